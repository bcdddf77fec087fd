"""Embed the jets of a file: one row per jet, as Parquet.

    python -m jbot.embed jets.hdf5 --checkpoint results/trials/0123456789abcdef --out embedding.parquet

Jets are in JetNet's layout: one file with a group for each class, a folder of {q,g,w,z,t}.hdf5, or one such file. Rows
keep their order, class by class. Columns: jbot_0, jbot_1, ...; label and class, null where the file does not say; the
jet's pt [GeV], eta, mass [GeV] and n (particles kept); and probability_<class> when the checkpoint has a head.
The file's metadata, key "jbot", is JSON: the checkpoint with its Config, the jets' source, versions.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from jbot import TRAINER_VERSION
from jbot.cli import Parser, program
from jbot.data.hdf5 import PARTICLES, Table, attributes_of, explained, find_class, open_hdf5, read_rows
from jbot.data.jets import CLASSES, DataError, blocks
from jbot.data.progress import progress_bar
from jbot.encoder.load import Encoder, load
from jbot.store.storage import atomic_write

JET_FEATURES = ("pt", "eta", "mass", "n")
"""Columns of JetNet's jet_features: GeV, pseudorapidity, GeV, count."""

UNKNOWN = ""
"""Class of a file that does not say."""


@contextmanager
def opened(path: Path) -> Iterator[tuple[list[Table], dict[str, str]]]:
    """Tables of the classes of a file or folder, in class order, and what the files say of themselves.

    Raises DataError for what is not in JetNet's layout.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    files = [path]
    if path.is_dir():
        files = [file for name in CLASSES if (file := path / f"{name}.hdf5").exists()]
    with ExitStack() as stack:
        tables: list[Table] = []
        facts: dict[str, str] = {}
        with explained(str(path)):
            for file in files:
                source, name = stack.enter_context(open_hdf5(file)), file.stem
                if PARTICLES in source:  # the datasets of one class at top level, which the file's name may tell
                    tables.append(find_class(source, "", name if name in CLASSES else UNKNOWN, None))
                else:  # a group for each class
                    tables += [find_class(source, name, name, None) for name in CLASSES if name in source]
                prefix = f"{file.stem}: " if path.is_dir() else ""
                facts |= {f"{prefix}{key}": text for key, text in attributes_of(source).items()}
        if not tables:
            raise DataError(f"{path}: holds none of the classes {', '.join(CLASSES)} and no {PARTICLES}")
        yield tables, facts


def embed_file(path: Path, encoder: Encoder, out: Path, console: Console | None = None) -> int:
    """Write the embedding of all jets, whole or not at all; returns the number of jets.

    Never more than a block of jets is held in memory. Raises DataError, naming file, dataset and row of what breaks
    a rule.
    """
    with opened(path) as (tables, facts), atomic_write(out) as partial:
        total = sum(table.n_jets for table in tables)
        with (
            progress_bar("embedding", total, console) as advance,
            pq.ParquetWriter(partial, schema(encoder, path, facts)) as writer,
        ):
            for table in tables:
                for rows in blocks(table.n_jets):
                    writer.write_table(embedded(table, rows, encoder, writer.schema))
                    advance(rows.stop - rows.start)
    return total


def schema(encoder: Encoder, path: Path, facts: dict[str, str]) -> pa.Schema:
    """Columns and metadata of the file."""
    header = {
        "checkpoint": encoder.facts(),
        "jets": {"path": str(path.absolute()), "attributes": facts},
        "versions": {"trainer": TRAINER_VERSION}
        | {name: importlib.metadata.version(name) for name in ("jbot-studies", "torch", "numpy", "h5py", "pyarrow")},
    }
    fields = [pa.field(f"jbot_{i}", pa.float32()) for i in range(encoder.config.dim)]
    fields += [pa.field("label", pa.int64()), pa.field("class", pa.string())]
    fields += [pa.field(name, pa.float32()) for name in JET_FEATURES]
    fields += [pa.field(f"probability_{name}", pa.float32()) for name in encoder.classes or ()]
    return pa.schema(fields, metadata={"jbot": json.dumps(header)})


def embedded(table: Table, rows: slice, encoder: Encoder, columns: pa.Schema) -> pa.Table:
    """Some rows of a class as rows of the file."""
    particles, jets = read_rows(table, rows)
    try:
        cls = encoder.embed(particles)
    except DataError as error:
        raise DataError(f"{table.where}{PARTICLES}, rows from {rows.start} on: {error}") from None
    named = (CLASSES.index(table.name), table.name) if table.name != UNKNOWN else (None, None)
    same = [
        pa.repeat(pa.scalar(value, columns.field(name).type), len(cls))
        for name, value in zip(("label", "class"), named, strict=True)
    ]
    probabilities = encoder.probabilities(cls).T if encoder.classes else ()
    return pa.table(
        [*map(pa.array, cls.T), *same, *map(pa.array, jets.T), *map(pa.array, probabilities)], schema=columns
    )


def check_out(out: Path, force: bool) -> None:
    """Before any work: where the result goes must be a .parquet file that is not there, or may be replaced."""
    if out.suffix != ".parquet":
        raise DataError(f"--out must end in .parquet, got {out}")
    if out.is_dir():
        raise DataError(f"{out}: is a folder, --out must be a file")
    if out.exists() and not force:
        raise DataError(f"{out}: is there already; --force replaces it")


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 2 and one line on stderr when the input is bad, 130 after Ctrl-C."""
    parser = Parser(prog="python -m jbot.embed", description="Embed the jets of a file.")
    parser.add_argument("jets", type=Path, metavar="JETS", help="file or folder in JetNet's layout")
    parser.add_argument("--checkpoint", required=True, help="trial folder, import, .safetensors or .weights.h5")
    parser.add_argument("--head", metavar="HEAD.weights.h5", help="classification head of a released .weights.h5")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:<number>")
    parser.add_argument("--force", action="store_true", help="replace an earlier result")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    console = Console(stderr=True, quiet=options.quiet)
    try:
        check_out(options.out, options.force)
        encoder = load(options.checkpoint, head=options.head, device=options.device)
        count = embed_file(options.jets, encoder, options.out, None if options.quiet else console)
    except KeyboardInterrupt:
        print(f"interrupted: {options.out} is not written", file=sys.stderr)
        return 130
    columns = encoder.config.dim
    print(f"{options.out}: {count:,} jets, jbot_0 to jbot_{columns - 1}")
    return 0

"""JetNet's HDF5 layout: read it with every row checked, write it atomically.

Two shapes of the layout (JetNet, arXiv:2106.11535, Zenodo 6975118):

    one file:  {q,g,w,z,t}/particle_features (jet, 30, 4), {q,g,w,z,t}/jet_features (jet, 4)
    a folder:  {q,g,w,z,t}.hdf5, each with particle_features and jet_features

particle_features are eta_rel, phi_rel, pt_rel, mask; jet_features are pT [GeV], eta, mass [GeV], number of particles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jbot.data.jets import CLASSES, N_PARTICLES, Arrays, DataError, JetData, blocks, content_fingerprint, join_parts
from jbot.messages import first_line
from jbot.store.storage import atomic_write

PARTICLES = "particle_features"
JETS = "jet_features"
PARTICLE_COLUMNS = ("eta_rel", "phi_rel", "pt_rel", "mask")
JET_COLUMNS = ("pT", "eta", "mass", "number of particles")
MAX_PT_REL = 3.0
"""Largest sum of pt_rel of a jet. It is about 1, below 2 even for wide jets; in GeV tens to thousands (assumed)."""

Request = Mapping[str, int] | int | None
"""Jets wanted: per class, the same of every class, or None for all there are."""


@dataclass(frozen=True)
class Table:
    """One class in an open file, its datasets found and their shapes checked, its rows not yet read."""

    name: str
    where: str
    """Opens the message of an error."""
    particles: h5py.Dataset
    jets: h5py.Dataset
    n_jets: int
    """Rows to take from the start."""


def read(path: Path, jets_per_class: Request = None) -> JetData:
    """Read jets from one file with a group for each class, or from a folder with a file for each.

    Parameters
    ----------
    path : Path
        An .h5 or .hdf5 file, or a folder holding q.hdf5, g.hdf5, ...
    jets_per_class : mapping, int or None
        The first rows of each class are taken: rows are assumed to be in random order, as generators write them.

    Raises
    ------
    DataError
        Naming file, dataset and row of whatever breaks the layout.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    with ExitStack() as stack, explained(str(path)):
        if path.is_dir():
            files = {name: path / f"{name}.hdf5" for name in CLASSES}
            wanted = _wanted(path, [name for name in CLASSES if files[name].exists()], jets_per_class)
            opened = {name: stack.enter_context(open_hdf5(files[name])) for name in wanted}
            metadata = {f"{name}: {key}": text for name, f in opened.items() for key, text in attributes_of(f).items()}
            tables = [find_class(file, "", name, wanted[name]) for name, file in opened.items()]
            source = f"folder {plain_text(path.name)}"
        else:
            file = stack.enter_context(open_hdf5(path))
            wanted = _wanted(path, [name for name in CLASSES if name in file], jets_per_class)
            metadata = attributes_of(file)
            tables = [find_class(file, name, name, count) for name, count in wanted.items()]
            source = metadata.get("source", plain_text(path.name))
        parts = (read_rows(table, rows) for table in tables for rows in blocks(table.n_jets))
        return join_parts({table.name: table.n_jets for table in tables}, parts, source, metadata)


def _wanted(path: Path, present: list[str], jets_per_class: Request) -> dict[str, int | None]:
    """Rows to read of each class (None: all), in class order; every class asked for must be there."""
    if not present:
        raise DataError(f"{path}: holds none of the classes {', '.join(CLASSES)}")
    if jets_per_class is None:
        return dict.fromkeys(present)
    wanted = requested_counts(jets_per_class)
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(f"{path}: class {', '.join(missing)} is missing, it holds {', '.join(present)}")
    return dict(wanted)


def requested_counts(jets_per_class: Mapping[str, int] | int) -> dict[str, int]:
    """Jets asked for of each class, in class order; classes with a count of zero are left out.

    Raises
    ------
    DataError
        For an unknown class, a negative or non-integer count, or no jets at all.
    """
    counts = dict.fromkeys(CLASSES, jets_per_class) if isinstance(jets_per_class, int) else dict(jets_per_class)
    for name, count in counts.items():
        if name not in CLASSES:
            raise DataError(f"class must be one of {', '.join(CLASSES)}, got {name!r}")
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise DataError(f"jets of class {name} must be an integer >= 0, got {count!r}")
    wanted = {name: int(counts[name]) for name in CLASSES if counts.get(name)}
    if not wanted:
        raise DataError(f"at least one jet must be asked for, got {jets_per_class!r}")
    return wanted


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading, with one clear error for what is no file, not readable, truncated or no HDF5."""
    if not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path}: {'must be a file' if path.exists() else 'no such file'}")
    with explained(str(path), "truncated or not an HDF5 file"):
        return h5py.File(path, "r")


REASONS = {
    "not registered": "is compressed by a filter that this HDF5 lacks; without it: h5repack -f NONE",
    "plugin": "is compressed by a filter that this HDF5 lacks; without it: h5repack -f NONE",
    "unable to lock": "is locked by a program that writes it; wait for its end, or copy the file",
    "Permission denied": "may not be read by this user",
}
"""Of errors of HDF5 by what their text holds."""


@contextmanager
def explained(where: str, otherwise: str = "damaged, or a link in it leads nowhere") -> Iterator[None]:
    """What HDF5 raises for a file, as one DataError; `where` opens its message."""
    try:
        yield
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError) as error:
        text = first_line(error)
        reason = next((said for word, said in REASONS.items() if word in text), otherwise)
        raise DataError(f"{where}: {reason} ({text})") from None


def plain_text(value: Any) -> str:
    """An attribute, or the name of a file, as text that can be written anywhere."""
    value = value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
    return raw.decode("utf-8", "replace")


def attributes_of(file: h5py.File) -> dict[str, str]:
    """What a file says of itself."""
    return {plain_text(key): plain_text(value) for key, value in file.attrs.items()}


def check_inside(dataset: h5py.Dataset, folder: Path, where: str) -> None:
    """Raise DataError for a dataset whose numbers lie in a file that is not below the folder of the data.

    A link, a virtual dataset or external storage can name any file of the machine.
    """
    if dataset.external:
        raise DataError(f"{where} lies in other files as external storage, which is not read; h5repack makes one file")
    sources = dataset.virtual_sources() if dataset.is_virtual else []
    here = Path(dataset.file.filename)
    named = {(here.parent / one.file_name if one.file_name != "." else here, one.dset_name) for one in sources}
    for path in (here, *(path for path, _ in named)):
        if folder.resolve() not in path.resolve().parents:
            raise DataError(f"{where} leads to {path}, out of the folder of the data, {folder}")
    for path, name in named:
        if path != here:
            with open_hdf5(path) as file:
                check_inside(file[name], folder, where)


def find_class(file: h5py.File, group: str, name: str, count: int | None) -> Table:
    """Find the datasets of one class and check that they are what the layout says.

    Parameters
    ----------
    file : h5py.File
        Open file.
    group : str
        The class's group, or "" where the datasets lie at top level.
    name : str
        The class.
    count : int or None
        Rows to take from the start; None takes all.
    """
    where = f"{file.filename}: {group}/" if group else f"{file.filename}: "
    with explained(f"{file.filename}: {group}" if group else str(file.filename)):
        container = file[group] if group else file
        if not isinstance(container, h5py.Group):
            raise DataError(f"{file.filename}: {group} must be a group with {PARTICLES} and {JETS}")
        folder = Path(file.filename).parent
        particle_set = _dataset(container, folder, where, PARTICLES, (N_PARTICLES, 4))
        jet_set = _dataset(container, folder, where, JETS, (4,))
    if len(particle_set) != len(jet_set):
        raise DataError(f"{where}{PARTICLES} has {len(particle_set)} rows but {JETS} has {len(jet_set)}")
    if len(jet_set) == 0:
        raise DataError(f"{where}{PARTICLES} holds no jets")
    if count is not None and count > len(jet_set):
        raise DataError(f"{where}{PARTICLES} holds {len(jet_set)} jets, {count} are needed")
    return Table(name, where, particle_set, jet_set, len(jet_set) if count is None else count)


def read_rows(table: Table, rows: slice) -> Arrays:
    """Some rows of a class, checked and cleaned as :func:`read` does: particles (jet, 30, 4) and jets (jet, 4).

    Raises
    ------
    DataError
        Naming file, dataset and the first row that breaks a rule.
    """
    particles = _rows(table.particles, table.where + PARTICLES, rows)
    jets = _rows(table.jets, table.where + JETS, rows)
    check_particles(particles, table.where + PARTICLES, rows.start)
    check_jets(jets, table.where + JETS, rows.start)
    particles *= particles[..., 3:]  # zero the padding, so that a sum over the 30 slots is a sum over particles
    np.minimum(jets[:, 3], N_PARTICLES, out=jets[:, 3])  # JetNet counts all particles, here those kept
    return particles, jets


def _dataset(container: h5py.Group, folder: Path, where: str, name: str, row_shape: tuple[int, ...]) -> h5py.Dataset:
    """The dataset of this name, of numbers and of the right shape, in a file below a folder."""
    if name not in container:
        raise DataError(f"{where}{name} is missing")
    dataset = container[name]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{where}{name} must be a dataset")
    check_inside(dataset, folder, f"{where}{name}")
    if dataset.shape is None or dataset.shape[1:] != row_shape or len(dataset.shape) != 1 + len(row_shape):
        expected = ", ".join(["jet", *map(str, row_shape)])
        raise DataError(f"{where}{name} must have shape ({expected}), got {dataset.shape}")
    if dataset.dtype.kind not in "fiu":
        raise DataError(f"{where}{name} must hold real numbers, got dtype {dataset.dtype}")
    return dataset


def _rows(dataset: h5py.Dataset, where: str, rows: slice) -> np.ndarray:
    with explained(where, "cannot be read, the file is damaged"):
        values = dataset[rows]
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which check_* reports
        return values.astype(np.float32, copy=False)


def check_particles(particles: np.ndarray, where: str, first_row: int = 0) -> None:
    """Check rows of (jet, 30, 4) features; `where` opens the message of the DataError."""
    _check_finite(particles, where, PARTICLE_COLUMNS, first_row)
    pt_rel, mask = particles[..., 2], particles[..., 3]
    _raise_at((mask != 0) & (mask != 1), mask, where, "mask must be 0 or 1", first_row)
    _raise_at((mask == 1) & (pt_rel <= 0), pt_rel, where, "pt_rel of a valid particle must be > 0", first_row)
    n_valid = mask.sum(axis=1)
    _raise_at(n_valid == 0, n_valid, where, "a jet must have at least one valid particle", first_row)
    total, most = (pt_rel * mask).sum(axis=1), f"(at most {MAX_PT_REL:g}; divide GeV by the pT of the jet)"
    rule = f"pt_rel is relative to the pT of the jet and must sum to about 1 {most}"
    _raise_at(total > MAX_PT_REL, total, where, rule, first_row)


def check_jets(jets: np.ndarray, where: str, first_row: int = 0) -> None:
    """Check rows of (jet, 4) features; `where` opens the message of the DataError."""
    _check_finite(jets, where, JET_COLUMNS, first_row)
    pt, _, mass, count = jets.T
    _raise_at(pt <= 0, pt, where, "jet pT must be > 0", first_row)
    _raise_at(count < 1, count, where, "number of particles must be at least 1", first_row)
    _raise_at((mass < 0) | ((mass == 0) & (count > 1)), mass, where, "mass of several particles must be > 0", first_row)


def _check_finite(values: np.ndarray, where: str, columns: tuple[str, ...], first_row: int) -> None:
    for column, name in enumerate(columns):
        _raise_at(~np.isfinite(values[..., column]), values[..., column], where, f"{name} must be finite", first_row)


def _raise_at(broken: np.ndarray, values: np.ndarray, where: str, rule: str, first_row: int) -> None:
    """Raise for the first entry where `broken` (jet,) or (jet, particle) of one block is true."""
    if not broken.any():
        return
    index = np.unravel_index(np.argmax(broken), broken.shape)
    spot = f"row {first_row + index[0]}" + (f", particle {index[1]}" if len(index) == 2 else "")
    others = np.count_nonzero(broken) - 1  # blocks behind this one are not looked at
    more = f" (and at least {others} more)" if others else ""
    raise DataError(f"{where}, {spot}: {rule}, got {values[index]:g}{more}")


def write(path: Path, per_class: Mapping[str, tuple[int, Iterable[Arrays]]], attributes: Mapping[str, str]) -> None:
    """Write one file in JetNet's layout, whole or not at all; equal content gives equal bytes.

    Never more than a block is held in memory. Not compressed: gzip makes such a file 0.4 to 0.7 times as large and
    its reading several times slower.

    Parameters
    ----------
    path : Path
        Target, replaced if it exists.
    per_class : mapping
        Class name -> number of jets, and blocks of (particles (jet, 30, 4), jets (jet, 4)) float32 that make it up.
    attributes : mapping
        Settings, versions and citations, kept as attributes of the file, beside its own "fingerprint".
    """
    with atomic_write(path) as partial, h5py.File(partial, "w") as file:  # the file closes before it is moved
        file.attrs.update(dict(attributes))
        for name, (n_jets, parts) in per_class.items():
            particle_set = file.create_dataset(f"{name}/{PARTICLES}", (n_jets, N_PARTICLES, 4), np.float32)
            jet_set = file.create_dataset(f"{name}/{JETS}", (n_jets, 4), np.float32)
            done = 0
            for particles, jets in parts:
                rows = slice(done, done + len(jets))
                particle_set[rows], jet_set[rows] = particles, jets
                done = rows.stop
            if done != n_jets:
                raise ValueError(f"blocks of class {name} must hold {n_jets} jets, got {done}")
        file.attrs["fingerprint"] = content_of(file)


def content_of(file: h5py.File) -> str:
    """Fingerprint of the jets in an open file of one's own, read block by block."""
    names = [name for name in CLASSES if name in file]
    return content_fingerprint(*(file[name][key] for name in names for key in (PARTICLES, JETS)))

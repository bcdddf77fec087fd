"""Jets by Pythia, in parallel and cached: the same settings give the same file, whatever the number of workers.

Each class is made in chunks of fixed size, each seeded by (seed, class, chunk). A finished chunk is a file of its own,
so a killed run continues where it was, a larger number of jets begins with the smaller one, and several processes may
generate at once: those of this machine, or of a cluster (`cluster.generate`). Studies read the chunks, so
that those of other sizes share them; the generator's command puts them together into one file in JetNet's layout.

    <cache>/pythia/<settings>/chunks/<class>_<chunk>_n<jets>.h5
    <cache>/pythia/<settings>/jets_q3000_g3000_w3000_z3000_t3000.h5
"""

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from rich.console import Console

from jbot.data import hdf5
from jbot.data.jets import CLASSES, Arrays, DataError, JetData, content_fingerprint, join_parts
from jbot.data.progress import progress_bar
from jbot.data.pythia import CITATIONS, Settings, generate
from jbot.messages import first_line
from jbot.store.storage import atomic_write, cache_folder, remove_stale_files

CHUNK = 1000
"""Jets of a full chunk. Another chunk size gives other jets of the same physics."""


@dataclass(frozen=True)
class Chunk:
    """One piece of work: some jets of one class."""

    name: str
    """Class."""
    number: int
    """Position in the class; the jets before it are number * CHUNK."""
    n_jets: int
    """At most CHUNK."""
    settings: Settings
    folder: Path

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder / f"{self.name}_{self.number:05d}_n{self.n_jets}.h5"


Made = tuple[np.ndarray, np.ndarray, int]
"""What `generate` returns: particles (jet, 30, 4), jets (jet, 4), events."""

Executor = Callable[[Sequence[Chunk]], Generator[int, None, None]]
"""Makes chunks anywhere and sees to it that their files are there; yields the jets of each as it is finished."""


def generate_file(
    jets_per_class: Mapping[str, int] | int,
    settings: Settings,
    *,
    workers: int | None = None,
    cache: Path | None = None,
    out: Path | None = None,
    progress: bool = True,
    executor: Executor | None = None,
) -> Path:
    """Make a file of generated jets, or find it in the cache; returns `out` where given, else the file in the cache.

    Parameters
    ----------
    workers : int, optional
        Processes; default one per core. Has no influence on the jets.
    cache : Path, optional
        Cache folder; default $JBOT_CACHE or ~/.cache/jbot.
    out : Path, optional
        Copy the file here too.
    progress : bool
        Show a bar with jets/s and time left on stderr.
    executor : callable, optional
        Makes the chunks, in place of `workers` processes here. Has no influence on the jets either.

    Raises
    ------
    DataError
        For a bad request, or when the extra [pythia] is missing.
    """
    counts, chunks = _request(jets_per_class, settings, cache, workers)
    path = settings_folder(settings, cache) / f"jets_{'_'.join(f'{name}{count}' for name, count in counts.items())}.h5"
    if not _is_whole(path):
        _make_chunks(chunks, executor or functools.partial(make_here, workers=workers), progress)
        per_class = {name: (n, _contents([c for c in chunks if c.name == name])) for name, n in counts.items()}
        hdf5.write(path, per_class, attributes(settings))  # one chunk in memory at a time
    if out is None:
        return path
    with atomic_write(out) as partial:
        shutil.copyfile(path, partial)
    return out


def load_generated(
    jets_per_class: Mapping[str, int] | int,
    settings: Settings,
    *,
    workers: int | None = None,
    cache: Path | None = None,
    progress: bool = True,
    executor: Executor | None = None,
) -> JetData:
    """Generated jets, straight from the chunks: no file a study, which all would begin with the same jets.

    Parameters and errors as of `generate_file`.
    """
    counts, chunks = _request(jets_per_class, settings, cache, workers)
    _make_chunks(chunks, executor or functools.partial(make_here, workers=workers), progress)
    return _put_together(counts, chunks, settings)


def load_finished(jets_per_class: Mapping[str, int] | int, settings: Settings, cache: Path | None) -> JetData | None:
    """The same when every chunk is there, else None."""
    counts, chunks = _request(jets_per_class, settings, cache)
    if any(_read_chunk(chunk) is None for chunk in chunks):
        return None
    return _put_together(counts, chunks, settings)


def _request(
    jets_per_class: Mapping[str, int] | int, settings: Settings, cache: Path | None, workers: int | None = None
) -> tuple[dict[str, int], list[Chunk]]:
    """Jets of each class, checked, and their chunks."""
    counts = hdf5.requested_counts(jets_per_class)
    if workers is not None and workers < 1:
        raise DataError(f"workers must be >= 1, got {workers}")
    folder = settings_folder(settings, cache) / "chunks"
    return counts, [
        Chunk(name, start // CHUNK, min(CHUNK, count - start), settings, folder)
        for name, count in counts.items()
        for start in range(0, count, CHUNK)
    ]


def _put_together(counts: Mapping[str, int], chunks: Sequence[Chunk], settings: Settings) -> JetData:
    metadata = attributes(settings)
    return join_parts(counts, _contents(chunks), metadata["source"], metadata)


def settings_folder(settings: Settings, cache: Path | None) -> Path:
    """Folder of everything made with these settings; its name ends on their fingerprint."""
    key = json.dumps(settings.describe() | {"chunk": str(CHUNK)}, sort_keys=True)
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:12]
    return cache_folder(cache) / "pythia" / f"{settings.jet_pt:g}GeV_seed{settings.seed}_{fingerprint}"


# --- making chunks ------------------------------------------------------------------------------------------------


def _make_chunks(chunks: list[Chunk], executor: Executor, progress: bool) -> None:
    """Make every chunk that is missing or damaged."""
    if not chunks:
        return
    remove_stale_files(chunks[0].folder)
    missing = [chunk for chunk in chunks if _read_chunk(chunk) is None]
    if not missing:
        return
    check_writable(chunks[0].folder)
    n_jets = sum(chunk.n_jets for chunk in missing)
    console = Console(file=sys.stderr) if progress else None
    with closing(executor(missing)) as finished, progress_bar("generating jets", n_jets, console) as advance:
        for done in finished:
            advance(done)


def check_writable(folder: Path) -> None:
    """Raise DataError where what is to be generated could not be kept: before minutes are spent on it."""
    try:
        with atomic_write(folder / "probe") as temporary:
            temporary.touch()
        (folder / "probe").unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise DataError(f"{folder}: jets cannot be kept there ({reason}); set JBOT_CACHE to another folder") from None


def make_here(chunks: Sequence[Chunk], workers: int | None) -> Generator[int, None, None]:
    """Make chunks in so many processes of this machine, by default one per core; with one, in this process."""
    if workers is None:  # the cores of a container or a batch job may be fewer than cpu_count
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, len(chunks))
    if workers <= 1:
        yield from map(make_chunk, chunks)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe after torch or pyarrow started threads
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        try:
            for done in as_completed([pool.submit(make_chunk, chunk) for chunk in chunks]):
                yield done.result()
        except BrokenProcessPool:
            raise DataError("a generating process was killed (out of memory?); the same command continues") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    """End silently on Ctrl-C, and with the parent when that is killed; unfinished chunks are made again."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if parent := multiprocessing.parent_process():

        def end_with_parent() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=end_with_parent, daemon=True).start()


def make_chunk(chunk: Chunk) -> int:
    """Generate one chunk and write its file; returns its number of jets."""
    save_chunk(chunk, generate_chunk(chunk))
    return chunk.n_jets


def generate_chunk(chunk: Chunk) -> Made:
    """The physics of one chunk, wherever this runs."""
    seeds = np.random.SeedSequence([chunk.settings.seed, CLASSES.index(chunk.name), chunk.number])
    return generate(chunk.name, chunk.n_jets, chunk.settings, seeds)


def save_chunk(chunk: Chunk, made: Made) -> None:
    """Write the file of a generated chunk, whole or not at all."""
    particles, jets, events = made
    with atomic_write(chunk.path) as partial, h5py.File(partial, "w") as file:
        file[hdf5.PARTICLES], file[hdf5.JETS] = particles, jets
        file.attrs.update({"events": events, "fingerprint": content_fingerprint(particles, jets)})


def _read_chunk(chunk: Chunk) -> Arrays | None:
    """Arrays of a finished chunk, or the first of a longer one; None when neither is there with what was written."""

    def size(path: Path) -> int:
        number = path.stem.rpartition("_n")[2]
        return int(number) if number.isdecimal() else 0

    def paths() -> Iterator[Path]:  # a longer chunk is looked for when its own file will not do
        yield chunk.path
        if chunk.n_jets < CHUNK:
            same = sorted(chunk.folder.glob(f"{chunk.name}_{chunk.number:05d}_n*.h5"))
            yield from (path for path in same if size(path) > chunk.n_jets)

    for path in paths():
        try:
            with h5py.File(path, "r") as file:
                arrays = file[hdf5.PARTICLES][:], file[hdf5.JETS][:]
                intact = file.attrs["fingerprint"] == content_fingerprint(*arrays)
        except (OSError, KeyError, ValueError):
            continue
        if intact and len(arrays[1]) == size(path):
            return arrays[0][: chunk.n_jets], arrays[1][: chunk.n_jets]
    return None


# --- finished chunks ----------------------------------------------------------------------------------------------


def _contents(chunks: Sequence[Chunk]) -> Iterator[Arrays]:
    for chunk in chunks:
        arrays = _read_chunk(chunk)
        if arrays is None:
            raise DataError(f"{chunk.path}: was damaged or removed while jets were generated; run the command again")
        yield arrays


def attributes(settings: Settings) -> dict[str, str]:
    """Facts that generated jets carry: source, settings, versions, citations."""
    used = settings.describe() | {"chunk": str(CHUNK)}
    source = f"Pythia {used['pythia8mc']} + FastJet, {settings.jet_pt:g} GeV, seed {settings.seed}"
    return {"source": source, **used, **{f"cite {name}": text for name, text in CITATIONS.items()}}


def _is_whole(path: Path) -> bool:
    """Whether an assembled file is there with the content that was written."""
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs["fingerprint"] == hdf5.content_of(file))
    except (OSError, KeyError, ValueError):
        return False

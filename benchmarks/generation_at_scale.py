"""Jets by the million, without their physics: Ray's cost a chunk, and one file of all of them.

    python -m benchmarks.generation_at_scale [--file-jets 10000000] [--only ray,file]

`ray` moves ready-made chunks of full size, so that what is left is Ray's cost and the writing. `file` links one chunk
into all places: figures of memory and time, not jets. Times are of this machine, as loaded as it is: compare in a run.
What the physics costs is the section `generation` of benchmarks.bench.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Row, show
from jbot.cli import Parser
from jbot.data import hdf5
from jbot.data.chunks import CHUNK, Chunk, Made, generate_file, save_chunk
from jbot.data.jets import CLASSES
from jbot.data.pythia import Settings

SETTINGS = Settings(seed=1)


# --- Ray ---------------------------------------------------------------------------------------------------------


def ray_overhead(options: argparse.Namespace, scratch: Path) -> list[Row]:
    """Wall milliseconds a chunk without any physics: written here, and sent by Ray and written here."""
    import ray

    from cluster.generate import on_nodes

    chunks = [Chunk("q", number, CHUNK, SETTINGS, scratch) for number in range(200)]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        list(on_nodes(chunks[:4], make=ready_made))  # workers start
        started = time.perf_counter()
        list(on_nodes(chunks, make=ready_made))
        sent = (time.perf_counter() - started) / len(chunks)
    finally:
        ray.shutdown()
    started = time.perf_counter()
    for chunk in chunks:
        save_chunk(chunk, ready_made(chunk))
    written = (time.perf_counter() - started) / len(chunks)
    return [
        {"what": "chunk of 1000 made of nothing and written here", "ms per chunk": 1000 * written},
        {"what": "the same sent by a Ray task", "ms per chunk": 1000 * sent},
    ]


def ready_made(chunk: Chunk) -> Made:
    """A chunk's arrays without physics."""
    particles = np.random.default_rng(chunk.number).random((chunk.n_jets, 30, 4), np.float32)
    particles[..., 3] = 1
    return particles, np.full((chunk.n_jets, 4), 100, np.float32), chunk.n_jets


# --- one file -----------------------------------------------------------------------------------------------------


def one_file(options: argparse.Namespace, scratch: Path) -> list[Row]:
    """Seconds and peak memory of putting chunks together, of finding the file again, and of loading it."""
    counts = dict.fromkeys(CLASSES, options.file_jets // len(CLASSES))
    rows = []
    for what, phase in (("put together", _assemble), ("found again", _assemble), ("loaded", _load)):
        seconds, peak = _in_own_process(phase, counts, scratch)
        jets = sum(counts.values())
        rows.append(
            {"what": f"{what}: {jets:,} jets", "s": seconds, "peak GB": peak, "particles GB": jets * 30 * 4 * 4 / 1e9}
        )
    return rows


def _in_own_process(phase: Callable[..., None], *arguments: Any) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    child = context.Process(target=_measure, args=(queue, phase, *arguments))
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"measuring process ended with exit code {child.exitcode}")
    return queue.get()


def _measure(queue: Any, phase: Callable[..., None], *arguments: Any) -> None:
    """Seconds, and GB by which the process has grown at its largest."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    phase(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put((time.perf_counter() - started, (peak - before) * 1024 / 1e9))


def _assemble(counts: dict[str, int], scratch: Path) -> None:
    generate_file(counts, SETTINGS, cache=scratch, progress=False, executor=linked)


def _load(counts: dict[str, int], scratch: Path) -> None:
    (path,) = scratch.rglob("jets_*.h5")
    hdf5.read(path, counts)


def linked(chunks: Sequence[Chunk]) -> Generator[int, None, None]:
    """An executor that writes one chunk and links it into the places of all others."""
    first = chunks[0]
    save_chunk(first, ready_made(first))
    for chunk in chunks[1:]:
        os.link(first.path, chunk.path)
        yield chunk.n_jets


# --- command line -------------------------------------------------------------------------------------------------

SECTIONS = {"ray": ray_overhead, "file": one_file}


def main(arguments: list[str] | None = None) -> int:
    """Run the sections asked for, print a table of each, and write all rows as JSON."""
    parser = Parser(prog="python -m benchmarks.generation_at_scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file-jets", type=int, default=10_000_000, help="jets of the file (multiple of 5000)")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--scratch", type=Path, help="folder for files of size 500 bytes a jet (default: /tmp)")
    parser.add_argument("--out", type=Path, default=Path("results/bench/generation_at_scale.json"))
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    if unknown := [name for name in wanted if name not in SECTIONS]:
        parser.error(f"sections are {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    if options.file_jets < 5 * CHUNK or options.file_jets % (5 * CHUNK):
        parser.error(f"--file-jets must be a multiple of {5 * CHUNK}, got {options.file_jets}")
    where = {"cpu_count": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()}
    result: dict[str, Any] = {"where": where}
    for name in wanted:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            result[name] = SECTIONS[name](options, Path(scratch))
        show(name, result[name])
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1))
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Sections of scale.py about jets by the million, without their physics: Ray's cost a chunk, and one file of all.

`chunks` moves ready-made chunks of full size, so that what is left is Ray's cost and the writing. `file` links one
chunk into all places: figures of memory and time, not jets. What the physics costs is the section `generation` of
benchmarks.bench.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jbot.data import hdf5
from jbot.data.chunks import CHUNK, Chunk, Made, generate_file, save_chunk
from jbot.data.jets import CLASSES
from jbot.data.pythia import Settings

SETTINGS = Settings(seed=1)


def chunks(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Wall milliseconds a chunk without any physics: written here, and sent by Ray and written here."""
    import ray

    from cluster.generate import on_nodes

    def milliseconds(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - started) / len(made)

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        made = [Chunk("q", number, CHUNK, SETTINGS, Path(folder)) for number in range(200)]
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            list(on_nodes(made[:4], make=ready_made))  # workers start
            sent = milliseconds(lambda: list(on_nodes(made, make=ready_made)))
        finally:
            ray.shutdown()

        def write() -> None:
            for chunk in made:
                save_chunk(chunk, ready_made(chunk))

        written = milliseconds(write)
    return [
        {"what": "chunk of 1000 made of nothing and written here", "ms per chunk": written},
        {"what": "the same sent by a Ray task", "ms per chunk": sent},
    ]


def ready_made(chunk: Chunk) -> Made:
    """A chunk's arrays without physics."""
    particles = np.random.default_rng(chunk.number).random((chunk.n_jets, 30, 4), np.float32)
    particles[..., 3] = 1
    return particles, np.full((chunk.n_jets, 4), 100, np.float32), chunk.n_jets


def one_file(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Seconds and peak memory of putting chunks together, of finding the file again, and of loading it."""
    counts = dict.fromkeys(CLASSES, options.file_jets // len(CLASSES))
    jets, context = sum(counts.values()), multiprocessing.get_context("spawn")
    rows = []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for what, phase in (("put together", _assemble), ("found again", _assemble), ("loaded", _load)):
            with ProcessPoolExecutor(1, context) as process:  # each phase in one of its own: peaks are of it alone
                seconds, peak = process.submit(_measure, phase, counts, Path(folder)).result()
            size = jets * 30 * 4 * 4 / 1e9
            rows.append({"what": f"{what}: {jets:,} jets", "s": seconds, "peak GB": peak, "particles GB": size})
    return rows


def _measure(phase: Callable[..., None], *arguments: Any) -> tuple[float, float]:
    """Seconds, and GB by which the process has grown at its largest."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    phase(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return time.perf_counter() - started, (peak - before) * 1024 / 1e9


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

"""The limits of this machine, measured: matrix products on cache-sized tiles, and memory bandwidth.

Both are what a perfect program could reach, so each is the best of several sizes. They are also run between the
training steps they are held against, since a shared machine's limits move.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.timing import Advance, Row, Variant, busy_rates, interleave, quartiles, rate_row
from jbot.trial.provenance import git_commit, hardware, library_versions

TILES_CPU = (256, 384, 512, 1024)
"""Sides of square products: 3 * 4 bytes * 512^2 = 3 MiB, the cache of one core."""
TILES_CUDA = (2048, 4096, 8192)
REPEAT_FLOP = {"cpu": 2e9, "cuda": 2e12}
"""Least FLOP of one timed run: some 20 ms on one core."""
TRIAD_MIB = 256
"""Size of each of the triad's three arrays: larger together than the caches of common machines."""
TRIAD_MIB_QUICK = 64
TRIAD_REPEATS = {"cpu": 1, "cuda": 50}
"""A GPU reads the arrays in a fraction of a millisecond, too short to be timed alone."""


def environment(device: str) -> dict[str, Any]:
    """Where and with what it ran, as every record says it."""
    return {
        "hardware": hardware(torch.device(device)),
        "libraries": library_versions(),
        "git_commit": git_commit(),
    }


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gemm(side: int, dtype: torch.dtype, device: torch.device) -> Variant:
    """Square matrix products of one size, repeated; the amount is in GFLOP."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    flop = 2.0 * side**3
    repeats = max(1, round(REPEAT_FLOP[device.type] / flop))

    def run() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    name = f"{str(dtype).removeprefix('torch.')} products of side {side}"
    return Variant(name=name, run=run, amount=repeats * flop / 1e9)


def triad(device: torch.device, mib: int) -> Variant:
    """STREAM's a = b + s * c; the amount is in GB, three arrays as STREAM counts them."""
    count, repeats = mib * 2**20 // 4, TRIAD_REPEATS[device.type]
    b, c = (torch.ones(count, device=device) for _ in range(2))
    a = torch.empty_like(b)

    def run() -> None:
        for _ in range(repeats):
            torch.add(b, c, alpha=3.0, out=a)

    return Variant(name=f"3 arrays of {mib} MiB", run=run, amount=repeats * 3 * 4 * count / 1e9)


def fastest(variants: Sequence[Variant], device: torch.device, rounds: int = 3) -> Variant:
    """The variant of the highest rate by `Sample.busy`."""
    found = interleave(variants, rounds=rounds, budget=10, device=device)
    return max(variants, key=lambda v: quartiles(busy_rates(found[v.name], v.amount))[0])


def limits(device: torch.device, quick: bool, advance: Advance | None = None) -> list[Row]:
    """GEMM and memory limit of one thread, the best size of each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dtypes = {"GEMM fp32": torch.float32, "GEMM bf16": torch.bfloat16}
        found = {
            what: (fastest([gemm(side, dtype, device) for side in tiles(device, quick)], device), "GFLOP/s")
            for what, dtype in dtypes.items()
        }
        found["triad"] = triad(device, TRIAD_MIB_QUICK if quick else TRIAD_MIB), "GB/s"
        probes = [dataclasses.replace(probe, name=what) for what, (probe, _) in found.items()]
        timed = interleave(probes, rounds=5 if quick else 15, budget=20, device=device, advance=advance)
    finally:
        torch.set_num_threads(before)
    return [
        rate_row(probe, timed, unit, note=of.name, settings={"device": device.type})
        for probe, (of, unit) in zip(probes, found.values(), strict=True)
    ]


def tiles(device: torch.device, quick: bool) -> tuple[int, ...]:
    """Sides of the products tried."""
    return TILES_CUDA if device.type == "cuda" else TILES_CPU[:2] if quick else TILES_CPU


def thread_count(threads: int) -> str:
    """In words."""
    return f"{threads} thread{'s' * (threads > 1)}"

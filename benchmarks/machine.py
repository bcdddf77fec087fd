"""The limits of this machine, measured: matrix products on cache-sized tiles, and memory bandwidth.

Both are what a perfect program could reach, so each is the best of several sizes. They are also run between the
training steps they are held against, since a shared machine's limits move.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from benchmarks.timing import Variant, busy_rates, interleave, quartiles

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


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def probes(device: torch.device, quick: bool) -> dict[str, Variant]:
    """What measures each limit: `fp32` and `bf16` products of the fastest side [GFLOP], and the `memory` triad [GB]."""
    sides = TILES_CUDA if device.type == "cuda" else TILES_CPU[:2] if quick else TILES_CPU
    precisions = {"fp32": torch.float32, "bf16": torch.bfloat16}
    products = {
        name: fastest([gemm(side, dtype, device) for side in sides], device) for name, dtype in precisions.items()
    }
    return products | {"memory": triad(device, TRIAD_MIB_QUICK if quick else TRIAD_MIB)}


def gemm(side: int, dtype: torch.dtype, device: torch.device) -> Variant:
    """Square matrix products of one size, repeated; the amount is in GFLOP."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    flop = 2.0 * side**3
    repeats = max(1, round(REPEAT_FLOP[device.type] / flop))

    def run() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    name = f"GEMM {str(dtype).removeprefix('torch.')}, side {side}"
    return Variant(name=name, run=run, amount=repeats * flop / 1e9)


def triad(device: torch.device, mib: int) -> Variant:
    """STREAM's a = b + s * c; the amount is in GB, three arrays as STREAM counts them."""
    count, repeats = mib * 2**20 // 4, TRIAD_REPEATS[device.type]
    b, c = (torch.ones(count, device=device) for _ in range(2))
    a = torch.empty_like(b)

    def run() -> None:
        for _ in range(repeats):
            torch.add(b, c, alpha=3.0, out=a)

    return Variant(name=f"triad, 3 arrays of {mib} MiB", run=run, amount=repeats * 3 * 4 * count / 1e9)


def fastest(variants: Sequence[Variant], device: torch.device) -> Variant:
    """The variant of the highest rate by `Sample.busy`."""
    samples = interleave(variants, rounds=3, budget=10, device=device)
    return max(variants, key=lambda v: quartiles(busy_rates(samples[v.name], v.amount))[0])

"""Interleaved timing, and the rows it gives.

Machines are shared and noisy, so variants are never timed one after the other: each round runs all of them, odd rounds
in reverse order (ABBA), and what is compared are values of the same round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

MIN_ROUNDS = 3


class NotAvailable(Exception):  # noqa: N818 - a variant that this machine or checkout lacks, not an error
    """Why a variant cannot be run here, in one line."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing to time."""

    name: str
    run: Callable[[], float | None]
    """Timed. May return CPU seconds that other processes spent on it."""
    prepare: Callable[[], None] | None = None
    """Before each run, not timed."""
    amount: float = 1.0
    """What one piece gets done, in the unit of the rate: jets, FLOP, bytes."""
    pieces: int = 1
    """Equal pieces in one run, e.g. steps; samples are of one."""


@dataclass(frozen=True)
class Sample:
    """One timed run, or one of its equal pieces [s]."""

    wall: float
    cpu: float
    """CPU seconds of this process and of those that helped it."""
    cuda: bool = False

    @property
    def busy(self) -> float:
        """What a run of one thread costs: CPU seconds, which other load on the machine leaves alone; wall on CUDA."""
        return self.wall if self.cuda else self.cpu

    def __add__(self, other: Sample) -> Sample:
        return Sample(self.wall + other.wall, self.cpu + other.cpu, self.cuda)

    def each(self, pieces: int) -> Sample:
        """One of equal pieces."""
        return Sample(self.wall / pieces, self.cpu / pieces, self.cuda)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the result: a figure with its spread, or, without a median, the reason in `note` for that."""

    what: str
    unit: str = ""
    median: float | None = None
    low: float | None = None
    high: float | None = None
    """First and third quartile."""
    n: int = 0
    ratio: tuple[float, float, float] | None = None
    """Median and quartiles of the ratio to `base`, each ratio taken within a round."""
    base: str | None = None
    cpu_ratio: tuple[float, float, float] | None = None
    """The same by CPU seconds."""
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    """Medians of one timed run, or of one of its equal pieces."""
    note: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def time_once(run: Callable[[], float | None], device: torch.device) -> Sample:
    """Wall and CPU seconds of one run; a GPU is idle before and after."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    elsewhere = run() or 0.0
    if cuda:
        torch.cuda.synchronize(device)
    return Sample(time.perf_counter() - wall, time.process_time() - cpu + elsewhere, cuda)


class Clock:
    """Times the parts of one run: `clock(part, function, *arguments)` is the function's result."""

    def __init__(self, device: torch.device):
        self.device = device
        self.parts: dict[str, Sample] = {}

    def __call__(self, part: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call it, and add its time to that of its part."""
        results: list[Any] = []
        sample = time_once(lambda: results.append(function(*arguments, **named)), self.device)
        self.parts[part] = self.parts[part] + sample if part in self.parts else sample
        return results[0]


def interleave(
    variants: Sequence[Variant], *, rounds: int, budget: float, device: torch.device, warmup: int = 1
) -> dict[str, list[Sample]]:
    """Time every variant once a round, forwards and backwards in turn.

    Parameters
    ----------
    rounds : int
        At most this many.
    budget : float
        Seconds after which no round is started, once there are MIN_ROUNDS.

    Returns
    -------
    dict
        Samples by variant; the i-th of each comes from the i-th round.
    """

    def sample(variant: Variant) -> Sample:
        if variant.prepare:
            variant.prepare()
        return time_once(variant.run, device).each(variant.pieces)

    for variant in variants:
        for _ in range(warmup):
            sample(variant)
    samples: dict[str, list[Sample]] = {variant.name: [] for variant in variants}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - started > budget:
            break
        for variant in variants if number % 2 == 0 else reversed(variants):
            samples[variant.name].append(sample(variant))
    return samples


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, first and third quartile."""
    low, middle, high = np.percentile(np.asarray(values, float), [25, 50, 75])
    return float(middle), float(low), float(high)


def ratios(values: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles of the ratio within rounds."""
    return quartiles([value / other for value, other in zip(values, base, strict=True)])


def busy_rates(samples: Sequence[Sample], amount: float) -> list[float]:
    """Amount a second of what it costs (`Sample.busy`), a value each round."""
    return [amount / sample.busy for sample in samples]


def rate_row(
    variant: Variant, samples: Mapping[str, list[Sample]], unit: str, base: Variant | None = None, **other: Any
) -> Row:
    """The amount of a variant a wall second, and its ratio to that of another one in the same rounds."""

    def rates(variant: Variant, clock: str) -> list[float]:
        return [variant.amount / getattr(sample, clock) for sample in samples[variant.name]]

    if base and base.name != variant.name:
        by_clock = {clock: ratios(rates(variant, clock), rates(base, clock)) for clock in ("wall", "cpu")}
        other |= {"base": base.name, "ratio": by_clock["wall"], "cpu_ratio": by_clock["cpu"]}
    return value_row(variant.name, unit, rates(variant, "wall"), samples[variant.name], **other)


def value_row(what: str, unit: str, values: Sequence[float], samples: Sequence[Sample] = (), **other: Any) -> Row:
    """Median and quartiles of some values, and the median seconds of the runs they are of."""
    median, low, high = quartiles(values)
    if samples:
        other |= {f"{clock}_seconds": quartiles([getattr(s, clock) for s in samples])[0] for clock in ("wall", "cpu")}
    return Row(what=what, unit=unit, median=median, low=low, high=high, n=len(values), **other)

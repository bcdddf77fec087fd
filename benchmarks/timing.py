"""Interleaved timing, and the rows it gives.

Machines are shared and noisy, so variants are never timed one after the other: each round runs all of them, odd rounds
in reverse order (ABBA), and what is compared are values of the same round.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

RowState = Literal["measured", "derived", "not measured", "not available"]
Advance = Callable[[], None]
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
    device: float | None = None
    """Between CUDA events; None on a CPU."""

    @property
    def busy(self) -> float:
        """What a run of one thread costs: CPU seconds, which other load on the machine leaves alone; wall on CUDA."""
        return self.cpu if self.device is None else self.wall

    def __add__(self, other: Sample) -> Sample:
        device = None if self.device is None or other.device is None else self.device + other.device
        return Sample(self.wall + other.wall, self.cpu + other.cpu, device)

    def each(self, pieces: int) -> Sample:
        """One of equal pieces."""
        return Sample(self.wall / pieces, self.cpu / pieces, None if self.device is None else self.device / pieces)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the result: a figure with its spread, or the reason why there is none."""

    what: str
    unit: str
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
    device_seconds: float | None = None
    """The same between CUDA events."""
    state: RowState = "measured"
    note: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def time_once(run: Callable[[], float | None], device: torch.device) -> Sample:
    """Wall, CPU and, on CUDA, device seconds of one run; the device is idle before and after."""
    cuda = device.type == "cuda"
    if cuda:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    if cuda:
        first.record(torch.cuda.current_stream(device))
    elsewhere = run() or 0.0
    if cuda:
        last.record(torch.cuda.current_stream(device))
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Sample(wall, cpu + elsewhere, first.elapsed_time(last) / 1000.0 if cuda else None)


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
    variants: Sequence[Variant],
    *,
    rounds: int,
    budget: float,
    device: torch.device,
    warmup: int = 1,
    advance: Advance | None = None,
) -> dict[str, list[Sample]]:
    """Time every variant once a round, forwards and backwards in turn.

    Parameters
    ----------
    rounds : int
        At most this many.
    budget : float
        Seconds after which no round is started, once there are MIN_ROUNDS.
    advance : callable, optional
        Called after each round.

    Returns
    -------
    dict
        Samples by variant; the i-th of each comes from the i-th round.
    """
    for variant in variants:
        for _ in range(warmup):
            _prepared(variant, device)
    found: dict[str, list[Sample]] = {variant.name: [] for variant in variants}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - started > budget:
            break
        for variant in variants if number % 2 == 0 else reversed(variants):
            found[variant.name].append(_prepared(variant, device))
        if advance:
            advance()
    return found


def _prepared(variant: Variant, device: torch.device) -> Sample:
    if variant.prepare:
        variant.prepare()
    return time_once(variant.run, device).each(variant.pieces)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, first and third quartile."""
    low, middle, high = np.percentile(np.asarray(values, float), [25, 50, 75])
    return float(middle), float(low), float(high)


def rates(samples: Sequence[Sample], amount: float) -> list[float]:
    """Amount a wall second, a value each round."""
    return [amount / sample.wall for sample in samples]


def busy_rates(samples: Sequence[Sample], amount: float) -> list[float]:
    """Amount a second of what it costs (`Sample.busy`), a value each round."""
    return [amount / sample.busy for sample in samples]


def ratios(values: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles of the ratio within rounds."""
    return quartiles([value / other for value, other in zip(values, base, strict=True)])


def seconds_of(samples: Sequence[Sample]) -> dict[str, float | None]:
    """Median seconds of a run, for a Row."""
    device = [sample.device for sample in samples if sample.device is not None]
    return {
        "wall_seconds": float(np.median([sample.wall for sample in samples])),
        "cpu_seconds": float(np.median([sample.cpu for sample in samples])),
        "device_seconds": float(np.median(device)) if device else None,
    }


def rate_row(
    variant: Variant, found: Mapping[str, list[Sample]], unit: str, base: Variant | None = None, **other: Any
) -> Row:
    """The rate of a variant, and its ratio to the rate of another one in the same rounds."""
    samples = found[variant.name]
    values = rates(samples, variant.amount)
    if base and base.name != variant.name:
        others = found[base.name]
        other |= {"base": base.name, "ratio": ratios(values, rates(others, base.amount))}
        spent = [[v.amount / s.cpu for s in found[v.name]] for v in (variant, base)]
        other["cpu_ratio"] = ratios(*spent)
    return value_row(variant.name, unit, values, **seconds_of(samples), **other)


def value_row(what: str, unit: str, values: Sequence[float], **other: Any) -> Row:
    """Median and quartiles of some values."""
    median, low, high = quartiles(values)
    return Row(what=what, unit=unit, median=median, low=low, high=high, n=len(values), **other)


def no_row(what: str, unit: str, reason: str, state: RowState = "not measured", **other: Any) -> Row:
    """A figure that is not there, and why."""
    return Row(what=what, unit=unit, state=state, note=reason, **other)

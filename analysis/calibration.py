"""Do our own statistics hold what they claim? ``python -m analysis.calibration``.

Thousands of simulated studies with known truth go through the functions that judge real ones: false positive rates,
coverage of intervals, power, and which law is told from which. Every figure has its number of simulated studies and its
Monte-Carlo error. Writes calibration.html, calibration.md and calibration.json into ``--out``; the exit code is 1 when a
claim does not stand. docs/calibration.md explains what was found.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from rich import box
from rich.console import Console
from rich.table import Table

from analysis import calibration_truths as truths
from analysis import statistics
from analysis.calibration_row import CONFIDENCE, Kind, Row
from analysis.calibration_truths import Event, Floats, Truth
from analysis.plan import Plan

ALPHA = 0.05
REPEATS = 2000
"""Simulated studies behind a figure that goes through the whole verdict: a rate of 5% then has an error of 0.5%."""
QUICK = 10
"""By how much --quick has fewer."""
FAST = 5
"""By how much more simulations there are where only one function is called."""
CHUNK = 100
"""Simulated studies between two looks at the clock; a chunk has random numbers of its own, whoever simulates it."""

Simulation = Callable[[np.random.Generator, int], Floats]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One claim, and how it is simulated."""

    what: str
    claim: str
    nominal: float
    kind: Kind
    simulate: Simulation
    """(generator, number of studies) -> one number in [0, 1] a study."""
    weight: float = 1.0
    """Simulations, in units of those asked for."""

    def row(self, values: Floats) -> Row:
        """The claim beside what was found, its interval from Monte-Carlo error."""
        low, high = _monte_carlo_interval(values)
        found = {"found": float(values.mean()), "repeats": len(values), "low": low, "high": high}
        return Row(what=self.what, claim=self.claim, nominal=self.nominal, kind=self.kind, **found)


def _monte_carlo_interval(values: Floats) -> tuple[float, float]:
    """Wilson's of a rate, and the normal one of a mean of shares."""
    if np.isin(values, (0.0, 1.0)).all():
        return statistics.wilson(int(values.sum()), len(values), CONFIDENCE)
    half = scipy.stats.norm.isf((1 - CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def checks() -> list[Check]:
    """Every claim that is simulated here, in the order of the page."""
    return [
        *_false_positives(),
        *_families(),
        *_equivalence(),
        *_intervals(),
        *_power(),
        *_sequential(),
    ]


def _judged(what: str, claim: str, event: Event, kind: Kind, nominal: float = ALPHA, **truth: Any) -> Check:
    weight = truth.pop("weight", 1.0)
    simulate = functools.partial(truths.judged, event, Truth(**truth))
    return Check(what=what, claim=claim, nominal=nominal, kind=kind, simulate=simulate, weight=weight)


def _false_positives() -> Iterator[Check]:
    """Studies of two arms that are the same: how often is one called better or worse?"""
    judged = functools.partial(_judged, "False positives, one contrast", event="difference", kind="at most")
    for n in (3, 5, 6, 8, 10, 20):
        yield judged(f"normal scores, n = {n}", seeds=n)
    for shape in ("skewed scores", "heavy tails", "ties"):
        for n in (8, 20):
            yield judged(f"{shape}, n = {n}", seeds=n, shape=shape, weight=0.5)
    yield judged("a fifth of the trials fails by chance, n = 10", seeds=10, failing="by chance")
    yield judged("the lowest fifth of the scores fails, n = 10", seeds=10, failing="low scores")
    shown = functools.partial(judged, kind="shown", weight=0.5)
    for n in (8, 20):
        yield shown(f"equal means, skewed differences, n = {n}", seeds=n, shape="skewed differences", shared=0.0)
    yield shown("only the treatment loses its lowest fifth, n = 10", seeds=10, failing="low scores of treatments")


def _families() -> Iterator[Check]:
    judged = functools.partial(_judged, "False positives, families of contrasts", kind="at most", seeds=10, weight=0.5)
    any_false = functools.partial(judged, event="difference")
    yield any_false("Holm: any of 3 contrasts, none differs, n = 10", shifts=(0.0,) * 3)
    yield any_false("Holm: any of 10 contrasts, none differs, n = 10", shifts=(0.0,) * 10)
    yield any_false("Holm: any of 3 contrasts beside 2 that differ by 3 sd, n = 10", shifts=(3.0, 3.0, 0.0, 0.0, 0.0))
    some, exploratory = (3.0,) * 5 + (0.0,) * 5, {"primary": False}
    yield judged(
        "Benjamini-Hochberg: share of false among claims, 5 of 10 contrasts differ, n = 10",
        event="share", shifts=some, **exploratory,
    )  # fmt: skip
    yield judged(
        "Benjamini-Hochberg: share of false among claims, none of 10 differs, n = 10",
        event="share", shifts=(0.0,) * 10, **exploratory,
    )  # fmt: skip
    mixed = {"shifts": (0.0, 0.3, 0.3, 0.3), "spreads": (1.0, 0.05, 0.05, 0.05), "margin": 0.3, "shared": 0.0}
    yield judged("Holm, a mixed family: any false difference, n = 10", event="difference", **mixed)
    yield judged("Holm, a mixed family: any false equivalence, n = 10", event="equivalence", **mixed)
    yield judged("Holm, a mixed family: a false claim of either kind, n = 10", event="either", **mixed | {"kind": "shown"})


def _equivalence() -> Iterator[Check]:
    """Differences exactly as large as the margin: how often are they called equivalent?"""
    judged = functools.partial(_judged, "False equivalence at the margin", event="equivalence", kind="at most")
    for n in (3, 5, 10, 20):
        yield judged(f"margin 1 sd of the difference, n = {n}", seeds=n, shifts=(1.0,), margin=1.0, weight=0.5)
    yield judged("margin 10 sd of the difference, n = 5", seeds=5, shifts=(10.0,), margin=10.0, weight=0.5)
    yield judged("Holm: any of 3 contrasts, n = 5", seeds=5, shifts=(3.0,) * 3, margin=3.0, weight=0.5)
    rare = {"shape": "rare collapse", "shared": 0.0, "shifts": (-1 / 3,), "margin": 1 / 3, "kind": "shown"}
    for n in (5, 20):
        yield judged(f"a mean made by a collapse in one of ten seeds, n = {n}", seeds=n, **rare, weight=0.5)


def _intervals() -> Iterator[Check]:
    """How often does a nominal 95% interval hold the truth?"""
    sizes = {"t": (3, 5, 8, 10, 20), "bootstrap-t": (4, 5, 8, 10, 20), "percentile bootstrap": (3, 5, 10, 20)}
    for method, numbers in sizes.items():
        kind: Kind = "equal" if method == "t" else "shown"
        for n in numbers:
            yield _interval(method, "normal", n, kind)
    for shape in ("skewed differences", "heavy tails"):
        for method in ("t", "bootstrap-t"):
            for n in (5, 20):
                yield _interval(method, shape, n, "shown")
    for n in (3, 10):
        simulate = functools.partial(cover_deviation, n)
        name = f"chi-square interval of a standard deviation, normal, n = {n}"
        yield Check(
            what="Coverage of intervals", claim=name, nominal=0.95, kind="equal", simulate=simulate, weight=FAST
        )
    for n in (3, 10, 20):
        name = f"Wilson interval of a failure rate, any rate alike, n = {n}"
        simulate = functools.partial(cover_rate, n)
        yield Check(
            what="Coverage of intervals", claim=name, nominal=0.95, kind="at least", simulate=simulate, weight=FAST
        )


def _interval(method: str, shape: str, n: int, kind: Kind) -> Check:
    simulate = functools.partial(cover_mean, method, shape, n)
    words = "a skewed distribution" if shape.startswith("skewed") else shape
    claim, weight = f"{method} interval of a mean, {words}, n = {n}", FAST if method == "t" else 1.0
    return Check(
        what="Coverage of intervals", claim=claim, nominal=0.95, kind=kind, simulate=simulate, weight=weight
    )


def cover_mean(method: str, shape: truths.Shape, n: int, rng: np.random.Generator, repeats: int) -> Floats:
    """Whether intervals of the mean of n values of mean zero hold it, (study,)."""
    truth = Truth(seeds=n, shape=shape)
    samples = (truths.noise(truth, rng, (n,)) for _ in range(repeats))
    return np.array([_holds(_mean_interval(method, sample, rng), 0.0) for sample in samples], dtype=float)


def _mean_interval(method: str, values: Floats, rng: np.random.Generator) -> tuple[float, float]:
    if method == "t":
        found = statistics.mean_interval(values)
        return found.low, found.high
    if method == "bootstrap-t":
        return statistics.bootstrap_t_interval(values, rng)
    means = rng.choice(values, size=(2000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def cover_deviation(n: int, rng: np.random.Generator, repeats: int) -> Floats:
    """Whether chi-square intervals of a standard deviation hold it, (study,)."""
    spreads = rng.normal(size=(repeats, n)).std(axis=1, ddof=1)
    return np.array([_holds(statistics.deviation_interval(float(sd), n), 1.0) for sd in spreads], dtype=float)


def cover_rate(n: int, rng: np.random.Generator, repeats: int) -> Floats:
    """Whether Wilson intervals of a rate hold it, the rate drawn from 0 to 1, (study,)."""
    rates = rng.random(repeats)
    events = rng.binomial(n, rates)
    return np.array(
        [_holds(statistics.wilson(int(k), n), rate) for k, rate in zip(events, rates, strict=True)], dtype=float
    )


def _holds(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def _power() -> Iterator[Check]:
    """What a dry run promises: a difference of the detectable size is found in 80% of studies."""
    judged = functools.partial(_judged, "Power", kind="at least", nominal=0.8, weight=0.5)
    for n in (6, 7, 8, 10, 12, 20):
        effect = statistics.minimum_detectable_effect(n)
        yield judged(f"one contrast, the detectable {effect:.2f} sd, n = {n}", event="better", seeds=n, shifts=(effect,))
    for n, family in ((8, 3), (10, 3), (10, 6)):
        effect = statistics.minimum_detectable_effect(n, alpha=ALPHA / family)
        alone = (effect, *(0.0,) * (family - 1))
        yield judged(f"one of {family} contrasts, the detectable {effect:.2f} sd, n = {n}", event="better", seeds=n, shifts=alone)
    for mean in (2.0, 1.0, 0.75):
        n = statistics.seeds_to_decide(mean, 1.0, truths.NO_MARGIN)
        if n is not None:
            claim = f"a difference of {mean:g} sd is decided by the {n} seeds it is said to need"
            yield judged(claim, event="decided", seeds=n, shifts=(mean,))
    for margin in (2.0, 1.0):
        n = statistics.seeds_to_decide(0.0, 1.0, margin)
        if n is not None:
            claim = f"no difference, margin {margin:g} sd: decided by the {n} seeds it is said to need"
            yield judged(claim, event="decided", seeds=n, shifts=(0.0,), margin=margin)


def _sequential() -> Iterator[Check]:
    """Studies that are looked at before their end; none where plans have no looks."""
    if "looks" not in {field.name for field in dataclasses.fields(Plan)}:
        return
    judged = functools.partial(_judged, "Sequential looks", kind="at most", weight=0.5)
    alike = functools.partial(judged, event="difference")
    yield alike("one contrast, looks at 6, 8, 10 blocks", seeds=10, looks=(6, 8, 10))
    yield alike("any of 3 contrasts, looks at 8, 10, 12 blocks", seeds=12, looks=(8, 10, 12), shifts=(0.0,) * 3)
    yield judged(
        "equivalence at a margin of 1 sd, looks at 6, 8, 10 blocks",
        event="equivalence", seeds=10, looks=(6, 8, 10), shifts=(1.0,), margin=1.0,
    )  # fmt: skip


def simulate(chosen: Sequence[Check], repeats: int, seed: int, workers: int) -> Iterator[Row]:
    """One row after another, in order. The same seed gives the same figures with any number of workers."""
    with contextlib.ExitStack() as stack:
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare))
            submitted = [
                [pool.submit(_simulate, *task) for task in _tasks(check, repeats, seed)] for check in chosen
            ]
            for check, parts in zip(chosen, submitted, strict=True):
                yield check.row(np.concatenate([part.result() for part in parts]))
            return
        _prepare()
        stack.callback(gc.unfreeze)
        for check in chosen:
            yield check.row(np.concatenate([_simulate(*task) for task in _tasks(check, repeats, seed)]))


def _tasks(check: Check, repeats: int, seed: int) -> Iterator[tuple[Simulation, list[int], int]]:
    total = max(2, round(check.weight * repeats))
    name = zlib.crc32(f"{check.what}: {check.claim}".encode())
    for number, start in enumerate(range(0, total, CHUNK)):
        yield check.simulate, [seed, name, number], min(CHUNK, total - start)


def _simulate(simulation: Simulation, seed: list[int], repeats: int) -> Floats:
    return simulation(np.random.default_rng(seed), repeats)


def _prepare() -> None:
    # statsmodels collects garbage at every correction: what is there already need not be looked at.
    gc.collect()
    gc.freeze()

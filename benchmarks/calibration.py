"""Do our own statistics hold what they claim? ``python -m benchmarks.calibration``.

Thousands of simulated studies with known truth go through the functions that decide real ones: false positive rates,
coverage of intervals, power, and which law is distinguished from which. Every figure has its number of simulated
studies and its Monte-Carlo error. Writes calibration.md and calibration.json into ``--out``; the exit code is 1 when
a claim does not stand. docs/calibration.md explains what was found.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import itertools
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
from rich.console import Console

from analysis.stats import paired, power, two_level
from benchmarks import calibration_laws
from benchmarks import calibration_truths as truths
from benchmarks.calibration_row import CONFIDENCE, Kind, Row, row_of
from benchmarks.calibration_truths import Event, Floats, Truth
from benchmarks.report import table
from jbot.cli import Parser, bad_input

ALPHA = 0.05
REPEATS = 1000
"""Simulated studies, times the weight of a check. A rate of 5% of a thousand studies has an error of 0.7%."""
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
        return row_of(self.what, self.claim, self.nominal, self.kind, values)


def _decided(what: str, claim: str, event: Event, kind: Kind, nominal: float = ALPHA, **truth: Any) -> Check:
    weight = truth.pop("weight", 1.0)
    simulate = functools.partial(truths.decided, event, Truth(**truth))
    return Check(what=what, claim=claim, nominal=nominal, kind=kind, simulate=simulate, weight=weight)


def _false_positives() -> Iterator[Check]:
    """Studies of two arms that are the same: how often is one called better or worse?"""
    decided = functools.partial(_decided, "False positives, one contrast", event="difference", kind="at most")
    for n, weight in ((3, 0.5), (5, 0.5), (6, 2), (8, 2), (10, 2), (20, 1)):
        yield decided(f"normal scores, n = {n}", seeds=n, weight=weight)
    for shape in ("skewed scores", "heavy tails", "ties"):
        for n in (8, 20):
            yield decided(f"{shape}, n = {n}", seeds=n, shape=shape, weight=0.5)
    yield decided("a fifth of the trials fails by chance, n = 10", seeds=10, failing="by chance")
    yield decided("the lowest fifth of the scores fails, n = 10", seeds=10, failing="low scores")
    shown = functools.partial(decided, kind="shown", weight=0.5)
    for n in (8, 20):
        yield shown(f"equal means, skewed differences, n = {n}", seeds=n, shape="skewed differences", shared=0.0)
    yield shown("only the treatment loses its lowest fifth, n = 10", seeds=10, failing="low scores of treatments")


def _families() -> Iterator[Check]:
    decided = functools.partial(
        _decided, "False positives, families of contrasts", kind="at most", seeds=10, weight=0.5
    )
    any_false = functools.partial(decided, event="difference")
    yield any_false("Holm: any of 3 contrasts, none differs, n = 10", shifts=(0.0,) * 3)
    yield any_false("Holm: any of 10 contrasts, none differs, n = 10", shifts=(0.0,) * 10)
    yield any_false("Holm: any of 3 contrasts beside 2 that differ by 3 sd, n = 10", shifts=(3.0, 3.0, 0.0, 0.0, 0.0))
    some = (3.0,) * 5 + (0.0,) * 5
    yield decided(
        "Benjamini-Hochberg: share of false among claims, 5 of 10 contrasts differ, n = 10",
        event="share", shifts=some, primary=False,
    )  # fmt: skip
    yield decided(
        "Benjamini-Hochberg: share of false among claims, none of 10 differs, n = 10",
        event="share", shifts=(0.0,) * 10, primary=False,
    )  # fmt: skip
    mixed: dict[str, Any] = {
        "shifts": (0.0, 0.3, 0.3, 0.3),
        "spreads": (1.0, 0.05, 0.05, 0.05),
        "margin": 0.3,
        "shared": 0.0,
    }
    yield decided("Holm, a mixed family: any false difference, n = 10", event="difference", **mixed)
    yield decided("Holm, a mixed family: any false equivalence, n = 10", event="equivalence", **mixed)
    yield decided(
        "Holm, a mixed family: a false claim of either kind, n = 10", event="either", **mixed | {"kind": "shown"}
    )
    skewed: dict[str, Any] = {"shape": "skewed differences", "shared": 0.0, "kind": "shown", "seeds": 12}
    yield any_false(
        "Holm: any of 10 contrasts of skewed differences with mean zero, n = 12", shifts=(0.0,) * 10, **skewed
    )


def _equivalence() -> Iterator[Check]:
    """Differences exactly as large as the margin: how often are they called equivalent?"""
    decided = functools.partial(_decided, "False equivalence at the margin", event="equivalence", kind="at most")
    for n in (3, 5, 10, 20):
        yield decided(f"margin 1 sd of the difference, n = {n}", seeds=n, shifts=(1.0,), margin=1.0, weight=0.5)
    yield decided("margin 10 sd of the difference, n = 5", seeds=5, shifts=(10.0,), margin=10.0, weight=0.5)
    yield decided("Holm: any of 3 contrasts, n = 5", seeds=5, shifts=(3.0,) * 3, margin=3.0, weight=0.5)
    rare: dict[str, Any] = {
        "shape": "rare collapse",
        "shared": 0.0,
        "shifts": (-1 / 3,),
        "margin": 1 / 3,
        "kind": "shown",
    }
    for n in (5, 20):
        yield decided(f"a mean made by a collapse in one of ten seeds, n = {n}", seeds=n, **rare, weight=0.5)
    family = rare | {"shifts": (-1 / 3,) * 10}
    yield decided(
        "Holm: any of 10 means made by a collapse in one of ten seeds, n = 12", seeds=12, **family, weight=0.5
    )


def _intervals() -> Iterator[Check]:
    """How often does a nominal 95% interval hold the truth?"""
    means: list[tuple[str, truths.Shape, str, Kind, tuple[int, ...]]] = [
        ("t", "normal", "normal", "equal", (3, 5, 8, 10, 20)),
        ("percentile bootstrap", "normal", "normal", "shown", (3, 5, 10, 20)),
        ("t", "skewed differences", "a skewed distribution", "shown", (5, 20)),
    ]
    check = functools.partial(Check, what="Coverage of intervals", nominal=0.95)
    for method, shape, words, kind, numbers in means:
        for n in numbers:
            claim, weight = f"{method} interval of a mean, {words}, n = {n}", FAST if method == "t" else 1.0
            simulate = functools.partial(cover_mean, method, shape, n)
            yield check(claim=claim, kind=kind, simulate=simulate, weight=weight)
    for n in (3, 10):
        claim = f"chi-square interval of a standard deviation, normal, n = {n}"
        yield check(claim=claim, kind="equal", simulate=functools.partial(cover_deviation, n), weight=FAST)
    for n in (3, 10, 20):
        claim = f"Wilson interval of a failure rate, any rate alike, n = {n}"
        yield check(claim=claim, kind="at least", simulate=functools.partial(cover_rate, n), weight=FAST)


def cover_mean(method: str, shape: truths.Shape, n: int, rng: np.random.Generator, repeats: int) -> Floats:
    """Whether intervals of the mean of n values of mean zero hold it, (study,)."""

    def holds() -> bool:
        values = truths.noise(Truth(seeds=n, shape=shape), rng, (n,))
        if method == "t":
            interval = paired.mean_interval(values)
            return interval.low <= 0 <= interval.high
        means = rng.choice(values, size=(2000, n)).mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        return bool(low <= 0 <= high)

    return np.array([holds() for _ in range(repeats)], dtype=float)


def cover_deviation(n: int, rng: np.random.Generator, repeats: int) -> Floats:
    """Whether chi-square intervals of a standard deviation hold it, (study,)."""
    spreads = rng.normal(size=(repeats, n)).std(axis=1, ddof=1)
    return np.array([_holds(paired.deviation_interval(float(sd), n), 1.0) for sd in spreads], dtype=float)


def cover_rate(n: int, rng: np.random.Generator, repeats: int) -> Floats:
    """Whether Wilson intervals of a rate hold it, the rate drawn from 0 to 1, (study,)."""
    rates = rng.random(repeats)
    events = rng.binomial(n, rates)
    return np.array(
        [_holds(paired.wilson(int(k), n), rate) for k, rate in zip(events, rates, strict=True)], dtype=float
    )


def _holds(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def _power() -> Iterator[Check]:
    """What a dry run promises: a difference of the detectable size is found in 80% of studies."""
    decided = functools.partial(_decided, "Power", kind="at least", nominal=0.8, weight=0.5)
    for n in (6, 7, 8, 10, 12, 20):
        effect = power.detectable_effect(n, ALPHA)
        yield decided(
            f"one contrast, the detectable {effect:.2f} sd, n = {n}", event="better", seeds=n, shifts=(effect,)
        )
    for n, family in ((8, 3), (10, 3), (10, 6)):
        effect = power.detectable_effect(n, ALPHA, family)
        alone = (effect, *(0.0,) * (family - 1))
        yield decided(
            f"one of {family} contrasts, the detectable {effect:.2f} sd, n = {n}", event="better", seeds=n, shifts=alone
        )
    for mean in (2.0, 1.0, 0.75):
        needed = power.seeds_to_decide(mean, 1.0, truths.NO_MARGIN)
        if needed is not None:
            claim = f"a difference of {mean:g} sd is decided by the {needed} seeds it is said to need"
            yield decided(claim, event="decided", seeds=needed, shifts=(mean,))
    for margin in (2.0, 1.0):
        needed = power.seeds_to_decide(0.0, 1.0, margin)
        if needed is not None:
            claim = f"no difference, margin {margin:g} sd: decided by the {needed} seeds it is said to need"
            yield decided(claim, event="decided", seeds=needed, shifts=(0.0,), margin=margin)


def _levels() -> Iterator[Check]:
    """Intervals for other seeds and other test jets; all seeds share their test jets."""
    what = "Coverage of intervals for seeds and test jets"
    for n in (3, 5, 10, 20):
        for error in (0.3, 1.0):
            claim = f"both levels, test jets {error:g} of the spread over seeds, n = {n}"
            simulate = functools.partial(cover_levels, "both", n, error)
            yield Check(what=what, claim=claim, nominal=0.95, kind="at least", simulate=simulate)
    for n in (3, 10):
        claim = f"seeds alone, test jets 0.3 of the spread over seeds, n = {n}"
        simulate = functools.partial(cover_levels, "seeds alone", n, 0.3)
        yield Check(what=what, claim=claim, nominal=0.95, kind="shown", simulate=simulate)


def cover_levels(method: str, n: int, error: float, rng: np.random.Generator, repeats: int) -> Floats:
    """Whether intervals of a mean over seeds hold its value for all seeds and all jets, (study,).

    Parameters
    ----------
    error : float
        Standard error from the test jets that all seeds share, in standard deviations over seeds. Each seed has half of
        the latter from its test jets besides.
    """
    strata = np.repeat(np.arange(5), 40)
    jets = len(strata)

    def study() -> bool:
        by_class = rng.normal(size=5)[strata]
        by_jet = by_class + error * math.sqrt(jets) * rng.normal(size=jets)
        parts = (by_jet + 0.5 * math.sqrt(jets) * rng.normal(size=(n, jets))) / jets
        values = rng.normal(size=n) + parts.sum(axis=1) - by_class.mean()
        found = two_level.levels("simulated", values, parts, strata)
        return _holds((found.low, found.high) if method == "both" else (found.seeds.low, found.seeds.high), 0.0)

    return np.array([study() for _ in range(repeats)], dtype=float)


def _sequential() -> Iterator[Check]:
    """Studies with interim analyses."""
    decided = functools.partial(_decided, "Sequential looks", kind="at most", weight=0.5)
    alike = functools.partial(decided, event="difference")
    yield alike("one contrast, looks at 6, 8, 10 blocks", seeds=10, looks=(6, 8, 10))
    yield alike("any of 3 contrasts, looks at 8, 10, 12 blocks", seeds=12, looks=(8, 10, 12), shifts=(0.0,) * 3)
    yield decided(
        "equivalence at a margin of 1 sd, looks at 6, 8, 10 blocks",
        event="equivalence", seeds=10, looks=(6, 8, 10), shifts=(1.0,), margin=1.0,
    )  # fmt: skip


def simulate(chosen: Sequence[Check], repeats: int, seed: int, workers: int) -> Iterator[Row]:
    """One row after another, in order. The same seed gives the same figures with any number of workers."""
    tasks = {check: list(_tasks(check, repeats, seed)) for check in chosen}
    with contextlib.ExitStack() as stack:
        run: Callable[..., Iterator[Floats]] = map
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            run = stack.enter_context(ProcessPoolExecutor(workers, context, _prepare)).map
        else:
            _prepare()
            stack.callback(gc.unfreeze)
        parts = iter(run(_simulate, itertools.chain.from_iterable(tasks.values())))
        for check, own in tasks.items():
            yield check.row(np.concatenate(list(itertools.islice(parts, len(own)))))


def _tasks(check: Check, repeats: int, seed: int) -> Iterator[tuple[Simulation, list[int], int]]:
    total = max(2, round(check.weight * repeats))
    name = zlib.crc32(f"{check.what}: {check.claim}".encode())
    for number, start in enumerate(range(0, total, CHUNK)):
        yield check.simulate, [seed, name, number], min(CHUNK, total - start)


def _simulate(task: tuple[Simulation, list[int], int]) -> Floats:
    simulation, seed, repeats = task
    return simulation(np.random.default_rng(seed), repeats)


def _prepare() -> None:
    # statsmodels collects garbage at every correction: what is there already need not be looked at.
    gc.collect()
    gc.freeze()


PARTS: dict[str, Callable[[], Iterator[Check]]] = {
    "false-positives": _false_positives,
    "families": _families,
    "equivalence": _equivalence,
    "intervals": _intervals,
    "power": _power,
    "levels": _levels,
    "sequential": _sequential,
}
"""Names for --only, in the order of the page; `laws` comes last."""
LAWS = "laws"
LAWS_SHARE = 50
"""Simulated studies behind a figure of the laws: one in so many, a fit of all forms takes long."""


def calibrate(only: Sequence[str], repeats: int, seed: int, workers: int) -> Iterator[Row]:
    """Every row of the chosen parts, each when it is done."""
    chosen = [check for name, part in PARTS.items() if name in only for check in part()]
    yield from simulate(chosen, repeats, seed, workers)
    if LAWS in only:
        rng = np.random.default_rng([seed, zlib.crc32(b"laws")])
        yield from calibration_laws.calibrate(rng, max(2, repeats // LAWS_SHARE))


def summary(rows: Sequence[Row]) -> str:
    """How many claims stand, in one line."""
    claimed = [row for row in rows if row.kind != "shown"]
    lost = [row for row in claimed if not row.ok]
    if not lost:
        return f"All {len(claimed)} claims stand within Monte-Carlo error."
    return f"{len(lost)} of {len(claimed)} claims do not stand: {'; '.join(row.claim for row in lost)}."


def cells(row: Row) -> dict[str, str]:
    """A row of the table in text."""
    percent = "{:.1%}".format
    claimed = row.kind != "shown"
    return {
        "simulated": row.claim,
        "claimed": f"{row.kind} {percent(row.nominal)}" if claimed else "not claimed",
        "found": percent(row.found),
        f"{100 * CONFIDENCE:g}% interval of simulation": f"{percent(row.low)} to {percent(row.high)}",
        "studies": f"{row.repeats:,}",
        "verdict": ("stands" if row.ok else "does not stand") if claimed else "",
    }


def write(rows: Sequence[Row], options: argparse.Namespace, seconds: float) -> Path:
    """Write calibration.json and calibration.md, with where the figures come from; returns the latter's path."""
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    only = f" --only {' '.join(options.only)}" if set(options.only) != {*PARTS, LAWS} else ""
    facts = {
        "Command": f"python -m benchmarks.calibration --repeats {options.repeats} --seed {options.seed}{only}",
        "Took": f"{seconds / 60:.0f} min with {options.workers} processes",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    saved = {"facts": facts, "rows": [dataclasses.asdict(row) | {"ok": row.ok} for row in rows]}
    (options.out / "calibration.json").write_text(json.dumps(saved, indent=1, allow_nan=False) + "\n")
    text = ["# Calibration of our own statistics", summary(rows), *(f"{name}: {line}" for name, line in facts.items())]
    for what, part in itertools.groupby(rows, key=lambda row: row.what):
        text += [f"## {what}", table([cells(row) for row in part])]
    (page := options.out / "calibration.md").write_text("\n\n".join(text) + "\n")
    return page


def show(row: Row, console: Console) -> None:
    """One line in the terminal, when it is known."""
    claim, claimed, found, interval, _, verdict = cells(row).values()
    style = "dim" if row.kind == "shown" else ("green" if row.ok else "bold red")
    line = f"{found:>6} ({interval}), {claimed}{': ' if verdict else ''}{verdict}"
    console.print(f"  {claim:<72} {line}", style=style, highlight=False, markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when every claim stands, 1 when one does not, 2 when the input is bad."""
    options = _options(arguments)
    console, started, rows = Console(), time.perf_counter(), list[Row]()
    for row in calibrate(options.only, options.repeats, options.seed, options.workers):
        if not rows or rows[-1].what != row.what:
            console.print(row.what, style="bold")
        show(row, console)
        rows.append(row)
    try:
        page = write(rows, options, time.perf_counter() - started)
    except OSError as error:
        return bad_input(error)
    console.print(summary(rows), style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(str(page), highlight=False, markup=False, soft_wrap=True)
    return 0 if all(row.ok for row in rows) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.calibration", description="Do our own statistics hold what they claim?")
    names = (*PARTS, LAWS)
    parser.add_argument(
        "--only", nargs="+", choices=names, default=list(names), help="parts to simulate", metavar="PART"
    )
    parser.add_argument("--repeats", type=_count, default=REPEATS, help=f"studies per figure (default {REPEATS})")
    parser.add_argument("--quick", action="store_true", help=f"a {QUICK}th of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=_count, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--out", type=Path, default=Path("results/calibration"))
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error(f"--seed must be 0 or more, got {options.seed}")
    if options.quick:
        options.repeats = max(2, options.repeats // QUICK)
    return options


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

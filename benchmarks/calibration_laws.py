"""Whether laws are distinguished where they can be, left open where they cannot, and predict with honest intervals.

Truths are a linear, a logarithmic and a power law (with an irreducible error, and without), over sizes from 1,600 to
1,000,000 jets.
The seeds of a study share a factor (10%, as in the pilot) along their line, and every trial has noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.stats import Floats, scaling_law
from analysis.stats.curve_fit import LINEAR, LOGARITHMIC, POWER, Form
from analysis.stats.scaling_law import AHEAD, Comparison
from benchmarks.calibration_row import Kind, Row, rate

MIN_JETS, MAX_JETS = 1600.0, 1e6
"""Training jets: those of the gpu preset of studies/scaling.py."""
SHARED, NOISE = 0.10, 0.02
"""Relative, of what a seed's trials share, and of each alone. In the pilot of STATISTICS.md they were 10% and 1.3%."""
ALPHA = 0.05
DRAWS, NULLS = 199, 99
"""Fewer than a report draws; the levels of tests and intervals are exact with any."""
APART = 0.9
"""Share of studies that a recommended design should name rightly (assumed)."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A law that studies are simulated from."""

    name: str
    form: Form
    error: Callable[[Floats], Floats]
    """Error as a function of training jets, in units of the fewest."""
    parameters: dict[str, float]


REACH = MAX_JETS / MIN_JETS
TRUTHS = (
    Truth(
        name="linear",
        form=LINEAR,
        error=lambda d: 0.6 - 0.35 * (d - 1) / (REACH - 1),
        parameters={},
    ),
    Truth(
        name="logarithmic",
        form=LOGARITHMIC,
        error=lambda d: 0.6 - 0.35 * np.log(d) / np.log(REACH),
        parameters={},
    ),
    Truth(
        name="power law with irreducible error",
        form=POWER,
        error=lambda d: 0.2 + 0.4 * d**-0.25,
        parameters={"E": 0.2, "β": 0.25},
    ),
    Truth(
        name="power law without irreducible error",
        form=POWER,
        error=lambda d: 0.6 * d**-0.25,
        parameters={"E": 0.0, "β": 0.25},
    ),
)
RECOMMENDED = ((7, 3), (8, 5))
"""Sizes and seeds."""
TOO_SMALL = (5, 1)


def calibrate(rng: np.random.Generator, repeats: int) -> list[Row]:
    """Simulate `repeats` studies of every truth at every design.

    Returns
    -------
    list of Row
        Forms named rightly and wrongly, and coverage of the intervals.
    """
    rows = []
    for sizes, seeds in (*RECOMMENDED, TOO_SMALL):
        for truth in TRUTHS:
            found = [simulate(truth, sizes, seeds, rng) for _ in range(repeats)]
            rows += _of_forms(truth, sizes, seeds, found)
            rows += _of_intervals(truth, sizes, seeds, found) if seeds > 1 else []
    return rows


def simulate(truth: Truth, sizes: int, seeds: int, rng: np.random.Generator, noise: float = NOISE) -> Comparison:
    """The forms at one simulated study of a truth."""
    jets = np.geomspace(MIN_JETS, MAX_JETS, sizes)
    logs = np.log(truth.error(jets / MIN_JETS))
    logs = logs + SHARED * rng.normal(size=(seeds, 1)) + noise * rng.normal(size=(seeds, sizes))
    return scaling_law.compare(jets, np.exp(logs), rng, alpha=ALPHA, draws=DRAWS, nulls=NULLS)


def _of_forms(truth: Truth, sizes: int, seeds: int, found: list[Comparison]) -> list[Row]:
    named = [one.named.form if one.named else None for one in found]
    right = sum(form is truth.form for form in named)
    wrong = sum(form is not None and form is not truth.form for form in named)
    where = f"{truth.name}, {sizes} sizes, {seeds} {'seed' if seeds == 1 else 'seeds'}, noise {NOISE:.0%}"

    def row(claim: str, events: int, nominal: float, kind: Kind) -> Row:
        return rate("laws: forms", f"{where}: {claim}", events, len(found), nominal, kind)

    if seeds == 1:
        log = sum(one.best.form is LOGARITHMIC for one in found)
        return [
            row("a form is named", right + wrong, 0.0, "at most"),
            row("AICc alone: logarithmic", log, 0.0, "shown"),
        ]
    return [row("named", right, APART, "at least"), row("another form is named", wrong, ALPHA, "at most")]


def _of_intervals(truth: Truth, sizes: int, seeds: int, found: list[Comparison]) -> list[Row]:
    fitted = [next(law for law in one.laws if law.form is truth.form) for one in found]
    where = f"{truth.name}, {sizes} sizes, {seeds} seeds"
    ahead = max(0.0, float(truth.error(np.array([AHEAD * REACH]))[0]))
    inside = {f"error at {AHEAD:g} times the jets": [(law.at(AHEAD * MAX_JETS), ahead) for law in fitted]}
    inside |= {name: [(law.parameters[name], value) for law in fitted] for name, value in truth.parameters.items()}
    return [
        rate(
            "laws: coverage",
            f"{where}: {name}",
            sum(one.low <= value <= one.high for one, value in pairs),
            len(pairs),
            1 - ALPHA,
            "at least",
        )
        for name, pairs in inside.items()
    ]

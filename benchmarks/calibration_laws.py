"""Whether laws are distinguished where they can be, left open where they cannot, and predict with honest intervals.

Truths are a linear, a logarithmic and a power law (with an irreducible error, and without), over sizes from 1,600 to
1,000,000 jets.
The seeds of a study share a factor (10%, as in the pilot) along their line, and every trial has noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from analysis.stats import Floats, scaling_law
from analysis.stats.curve_fit import LINEAR, LOGARITHMIC, PLATEAU, POWER, Form
from analysis.stats.scaling_law import AHEAD, Comparison
from benchmarks.calibration_row import Kind, Row, row_of

MIN_JETS, MAX_JETS = 1600.0, 1e6
"""Training jets: those of the gpu preset of studies/scaling.py."""
SHARED, NOISE = 0.10, 0.02
"""Relative, of what a seed's trials share, and of each alone. In the pilot of STATISTICS.md they were 10% and 1.3%."""
ALPHA = 0.05
DRAWS, NULLS = 199, 99
"""Fewer than a report draws; the levels of tests and intervals are exact with any."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A law that studies are simulated from."""

    name: str
    form: Form
    error: Callable[[Floats], Floats]
    """Error as a function of training jets, in units of the fewest."""
    parameters: dict[str, float]
    apart: float = 0.9
    """Share of studies that a recommended design should name rightly (assumed): with an irreducible error the
    flattening at both ends is to be told apart, and a plateau before the first size looks like an E."""


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
        apart=0.6,
    ),
    Truth(
        name="power law without irreducible error",
        form=POWER,
        error=lambda d: 0.6 * d**-0.25,
        parameters={"E": 0.0, "β": 0.25},
    ),
    Truth(
        name="power law after a plateau",
        form=PLATEAU,
        error=lambda d: 0.2 + 0.3 / (1 + d / 6.25),
        parameters={},
    ),
)
RECOMMENDED = ((7, 3), (8, 5))
"""Sizes and seeds."""
TOO_SMALL = (6, 1)


def calibrate(rng: np.random.Generator, repeats: int) -> list[Row]:
    """Simulate `repeats` studies of every truth at every design.

    Returns
    -------
    list of Row
        Forms named rightly and wrongly, and coverage of the intervals; of the design that is too small, forms named.
    """
    rows = []
    for sizes, seeds in (*RECOMMENDED, TOO_SMALL):
        for truth in TRUTHS:
            studies = [simulate(truth, sizes, seeds, rng) for _ in range(repeats)]
            named = [study.named.form if study.named else None for study in studies]
            where = f"{truth.name}, {sizes} sizes, {seeds} {'seed' if seeds == 1 else 'seeds'}"
            forms = partial(_row, "laws: forms", f"{where}, noise {NOISE:.0%}")
            if seeds == 1:
                rows.append(forms("a form is named", 0.0, "at most", [form is not None for form in named]))
                continue
            rows.append(forms("named", truth.apart, "at least", [form is truth.form for form in named]))
            wrong = [form not in (None, truth.form) for form in named]
            rows.append(forms("another form is named", ALPHA, "at most", wrong))
            rows += _coverage(truth, where, studies)
    return rows


def simulate(truth: Truth, sizes: int, seeds: int, rng: np.random.Generator, noise: float = NOISE) -> Comparison:
    """The forms at one simulated study of a truth."""
    jets = np.geomspace(MIN_JETS, MAX_JETS, sizes)
    logs = np.log(truth.error(jets / MIN_JETS))
    logs = logs + SHARED * rng.normal(size=(seeds, 1)) + noise * rng.normal(size=(seeds, sizes))
    return scaling_law.compare(jets, np.exp(logs), rng, alpha=ALPHA, draws=DRAWS, nulls=NULLS)


def _coverage(truth: Truth, where: str, studies: list[Comparison]) -> list[Row]:
    """How often the intervals of the true form hold the error ahead, and its parameters."""
    laws = [next(law for law in study.laws if law.form is truth.form) for study in studies]
    ahead = max(0.0, float(truth.error(np.array([AHEAD * REACH]))[0]))
    intervals = {f"error at {AHEAD:g} times the jets": ([law.at(AHEAD * MAX_JETS) for law in laws], ahead)}
    intervals |= {name: ([law.parameters[name] for law in laws], value) for name, value in truth.parameters.items()}
    return [
        _row("laws: coverage", where, name, 1 - ALPHA, "at least", [own.low <= value <= own.high for own in estimates])
        for name, (estimates, value) in intervals.items()
    ]


def _row(what: str, where: str, claim: str, nominal: float, kind: Kind, events: list[bool]) -> Row:
    return row_of(what, f"{where}: {claim}", nominal, kind, events)

"""Simulated studies whose truth is known, which :mod:`analysis.verdicts.decide` decides as it does real ones.

Unit of all scores: the standard deviation of a paired difference. Axes of scores: (seed, arm).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.stats import Floats
from analysis.verdicts import decide
from jbot.store.plan import Contrast, Plan

Shape = Literal["normal", "skewed scores", "skewed differences", "heavy tails", "ties", "rare collapse"]
Failing = Literal["none", "by chance", "low scores", "low scores of treatments"]
Event = Literal["difference", "equivalence", "either", "share", "better", "decided"]

CONTROL = "control"
BLOCK_SPREAD = 3.0
"""Standard deviation of what the arms of a block share (assumed; pairing takes it out)."""
NO_MARGIN = 1e-6
"""So small that no study shows equivalence: it would hide false differences."""
FAILURE_RATE = 0.2
COLLAPSE_RATE = 0.1
GRID = 0.5
"""Step to which scores with ties are rounded."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A design, and what is true of it."""

    seeds: int
    shifts: tuple[float, ...] = (0.0,)
    """True mean difference of each treatment from the one control."""
    spreads: tuple[float, ...] = ()
    """Standard deviation of each treatment's paired difference; 1 unless given."""
    margin: float = NO_MARGIN
    primary: bool = True
    shape: Shape = "normal"
    failing: Failing = "none"
    shared: float = 0.5
    """Part of a paired difference's variance that comes from the control's noise: arms alike have one half."""
    looks: tuple[int, ...] = ()
    """Numbers of blocks at which a sequential study is decided."""

    @property
    def treatments(self) -> list[str]:
        """Names of the arms beside the control."""
        return [f"treatment_{i}" for i in range(len(self.shifts))]


def draw(truth: Truth, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and states (seed, arm) of one study."""
    n, arms = truth.seeds, (CONTROL, *truth.treatments)
    spreads = np.asarray(truth.spreads or [1.0] * len(truth.shifts))
    drawn = noise(truth, rng, (n, len(arms)))
    control = np.sqrt(truth.shared) * drawn[:, :1]
    treatments = np.sqrt(np.maximum(spreads**2 - truth.shared, 0)) * drawn[:, 1:] + np.asarray(truth.shifts)
    values = BLOCK_SPREAD * rng.normal(size=(n, 1)) + np.hstack([control, treatments])
    if truth.shape == "ties":
        values = np.round(values / GRID) * GRID
    failed = _failed(truth, rng, drawn)
    scores = pd.DataFrame(np.where(failed, np.nan, values), columns=list(arms))
    states = pd.DataFrame(np.where(failed, "failed", "complete").astype(object), columns=list(arms), dtype=object)
    return scores, states


def noise(truth: Truth, rng: np.random.Generator, size: tuple[int, ...]) -> Floats:
    """Noise of mean zero and standard deviation one, but for heavy tails, which have none."""
    if truth.shape in ("skewed scores", "skewed differences"):
        return (rng.lognormal(size=size) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
    if truth.shape == "heavy tails":
        return rng.standard_t(2, size=size)
    if truth.shape == "rare collapse":
        mean, sd = COLLAPSE_RATE, np.sqrt(COLLAPSE_RATE * (1 - COLLAPSE_RATE))
        return (mean - (rng.random(size) < COLLAPSE_RATE)) / sd + rng.normal(scale=1e-3, size=size)
    return rng.normal(size=size)


def _failed(truth: Truth, rng: np.random.Generator, drawn: Floats) -> NDArray[np.bool_]:
    """Which trials fail; by score, the lowest of normal noise."""
    if truth.failing == "none":
        return np.zeros(drawn.shape, bool)
    if truth.failing == "by chance":
        return rng.random(drawn.shape) < FAILURE_RATE
    low = drawn < stats.norm.ppf(FAILURE_RATE)
    if truth.failing == "low scores of treatments":
        low[:, 0] = False
    return low


@functools.lru_cache
def plan_of(truth: Truth) -> Plan:
    """The plan of a simulated study: every treatment against the control."""
    names = truth.treatments
    return Plan(
        study="calibration",
        question="Does the verdict hold?",
        preset="simulated",
        arms={arm: {"name": arm} for arm in (CONTROL, *names)},
        base={},
        seeds=tuple(range(truth.seeds)),
        metric="test/score",
        higher_is_better=True,
        margin=truth.margin,
        contrasts=tuple(Contrast(treatment=arm, control=CONTROL, primary=truth.primary) for arm in names),
        looks=truth.looks,
    )


def outcomes(truth: Truth, rng: np.random.Generator) -> Iterator[list[str]]:
    """What one study says of each contrast: once, or at each of its looks until every contrast is decided."""
    plan, (scores, states) = plan_of(truth), draw(truth, rng)
    said: list[str]
    for look in truth.looks or (truth.seeds,):
        seen, known = states.copy(), scores.copy()
        seen.iloc[look:], known.iloc[look:] = "pending", np.nan
        said = [verdict.outcome for verdict in decide.decide_contrasts(plan, known, seen)]
        yield said
        if "undecided" not in said:
            return


def decided(event: Event, truth: Truth, rng: np.random.Generator, repeats: int) -> Floats:
    """How often an event happens: one number in [0, 1] for each simulated study, (study,).

    Parameters
    ----------
    event : str
        `difference`: a contrast without one is called better or worse. `equivalence`: one at the margin or beyond is
        called equivalent. `either` of the two. `share`: of the contrasts called better or worse, those that are
        not. `better`: the share of contrasts with a true difference that are called so in the right direction.
        `decided`: no contrast is left undecided.
    """
    return np.array([_happened(event, truth, list(outcomes(truth, rng))) for _ in range(repeats)], dtype=float)


def _happened(event: Event, truth: Truth, looks: list[list[str]]) -> float:
    last = list(zip(truth.shifts, looks[-1], strict=True))
    if event == "decided":
        return float("undecided" not in looks[-1])
    if event == "better":
        right = [outcome == _direction(shift) for shift, outcome in last if shift]
        return sum(right) / len(right)
    if event == "share":
        claims = [shift for shift, outcome in last if outcome in ("better", "worse")]
        return sum(shift == 0 for shift in claims) / max(1, len(claims))
    false = {
        (outcome == "equivalent" and abs(shift) >= truth.margin, outcome in ("better", "worse"))
        for outcomes in looks
        for shift, outcome in zip(truth.shifts, outcomes, strict=True)
        if outcome != _direction(shift)
    }
    equivalence, difference = any(equal for equal, _ in false), any(differs for _, differs in false)
    return float({"difference": difference, "equivalence": equivalence, "either": difference or equivalence}[event])


def _direction(shift: float) -> str:
    """What a true difference, if any, is rightly called; a difference in the wrong direction is a false claim."""
    return {1.0: "better", -1.0: "worse"}.get(float(np.sign(shift)), "")

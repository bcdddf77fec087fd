"""What the arms of a plan differ in, and numbers that the sections of several designs need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.stats import Floats, paired
from analysis.stats.paired import MeanInterval
from analysis.verdicts import number_format as fmt
from analysis.verdicts import tables
from analysis.verdicts.decide import SEED
from jbot.store.plan import Plan

Settings = dict[str, Any]
"""A whole Config, flat: dotted field -> value. Two that are equal are one Config."""


def settings(plan: Plan) -> dict[str, Settings]:
    """The Config of every arm, without its seed."""
    base = base_settings(plan)
    return {
        arm: base | {field: _plain(value) for field, value in changes.items()} for arm, changes in plan.arms.items()
    }


def base_settings(plan: Plan) -> Settings:
    """The Config that arms are changes of, without its seed."""
    flat: Settings = {}
    for name, value in plan.base.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{field}": _plain(one) for field, one in value.items()}
        elif name != "seed":
            flat[name] = _plain(value)
    return flat


def plain(overrides: Mapping[str, Any]) -> Settings:
    """Overrides as :func:`settings` has them."""
    return {field: _plain(value) for field, value in overrides.items()}


def _plain(value: Any) -> Any:
    """1 and 1.0 are one value, and a list can be a key."""
    if isinstance(value, list | tuple):
        return tuple(_plain(one) for one in value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def without(one: Settings, fields: Iterable[str]) -> tuple[tuple[str, Any], ...]:
    """All settings but some, as a key."""
    left = set(fields)
    return tuple(sorted((name, value) for name, value in one.items() if name not in left))


def compared(scores: pd.DataFrame, states: pd.DataFrame) -> pd.DataFrame:
    """Scores of the blocks in which every arm has ended: what may be compared."""
    return scores[~(states == tables.PENDING).any(axis=1)]


def gaps(scores: pd.DataFrame, treatment: str, control: str) -> np.ndarray:
    """Treatment minus control at the seeds that have both.

    Parameters
    ----------
    scores : DataFrame (seed, arm)

    Returns
    -------
    float array (seed,)
    """
    return (scores[treatment] - scores[control]).dropna().to_numpy(dtype=float)


def sign_flip(values: Sequence[float] | np.ndarray) -> float:
    """:func:`analysis.stats.paired.sign_flip_test`, the same p each time; NaN below two seeds, where there is no
    test."""
    return paired.sign_flip_test(values, np.random.default_rng(SEED)) if len(values) > 1 else float("nan")


def corrected(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg over those that are numbers; NaN stays NaN."""
    p = np.asarray(p_values, dtype=float)
    known = np.isfinite(p)
    p[known] = paired.benjamini_hochberg(p[known])
    return [float(one) for one in p]


def shown(values: MeanInterval, p_adjusted: float, alpha: float) -> int:
    """1 or -1 for a mean above or below zero, where test and interval agree; 0 when nothing is shown."""
    if values.n < 2 or not p_adjusted <= alpha or values.low <= 0 <= values.high:
        return 0
    return 1 if values.mean > 0 else -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A difference over seeds, tested together with others."""

    name: str
    seeds: Floats
    """(seed,), in units of the metric."""
    interval: MeanInterval
    p: float
    """Sign-flip test, Benjamini-Hochberg over all that are tested together; NaN below two seeds."""
    shown: int
    """1 or -1 when it is significantly above or below zero, else 0."""

    def __str__(self) -> str:
        return mean_cell(self.interval, sign=True)

    @property
    def cells(self) -> list[str]:
        """Mean, interval, n and corrected p."""
        n = self.interval.n
        return [str(self), interval_cell(self.interval), str(n), p_cell(self.p, n)]


def estimates(differences: Sequence[tuple[str, Floats]], alpha: float) -> list[Estimate]:
    """Names and their differences (seed,), all tested together."""
    p_values = corrected([sign_flip(seeds) for _, seeds in differences])
    found = []
    for (name, seeds), p in zip(differences, p_values, strict=True):
        interval = paired.mean_interval(seeds, 1 - alpha)
        found.append(Estimate(name=name, seeds=seeds, interval=interval, p=p, shown=shown(interval, p, alpha)))
    return found


def mean_cell(values: MeanInterval, sign: bool = False) -> str:
    """``0.021 ± 0.006``: mean and standard error; the mean alone where there is no spread."""
    if values.n < 2 or values.standard_error == 0:
        return fmt.number(values.mean, sign=sign)
    return fmt.with_error(values.mean, values.standard_error, sign)


def interval_cell(values: MeanInterval) -> str:
    """``0.008 to 0.034``."""
    return fmt.interval(values.low, values.high, values.standard_error)


def p_cell(p_adjusted: float, n: int) -> str:
    """A corrected p, never below what n seeds can reach; a dash without a test."""
    return fmt.p_value(p_adjusted, paired.min_p(n)) if np.isfinite(p_adjusted) else fmt.MISSING


def listed(names: Sequence[str], most: int = 8) -> str:
    """``a, b and c``; of more than `most` the first ones."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def value_words(value: Any) -> str:
    """A setting in few letters."""
    return fmt.compact(value, 4) if isinstance(value, float) else str(value)

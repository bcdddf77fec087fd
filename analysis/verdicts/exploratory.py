"""Exploratory tests beside the verdicts: paired differences of ended blocks, with p-values corrected together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.stats import Floats, paired
from analysis.stats.paired import MeanInterval
from analysis.verdicts import number_format as fmt


def paired_differences(scores: pd.DataFrame, treatment: str, control: str) -> Floats:
    """Treatment minus control (seed,) at the seeds that have both, from scores (seed, arm)."""
    return (scores[treatment] - scores[control]).dropna().to_numpy(dtype=float)


def sign_flip(values: Sequence[float] | np.ndarray) -> float:
    """:func:`analysis.stats.paired.sign_flip_test`; NaN below two seeds: no test."""
    return paired.sign_flip_test(values) if len(values) > 1 else float("nan")


def corrected(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg over those that are numbers; NaN stays NaN."""
    p = np.asarray(p_values, dtype=float)
    known = np.isfinite(p)
    p[known] = paired.benjamini_hochberg(p[known])
    return [float(one) for one in p]


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
        return fmt.mean_cell(self.interval, sign=True)

    @property
    def cells(self) -> list[str]:
        """Mean, interval, n and corrected p."""
        return [str(self), fmt.interval_cell(self.interval), str(self.interval.n), fmt.p_cell(self.p, self.interval.n)]


def estimates(differences: Sequence[tuple[str, Floats]], alpha: float) -> list[Estimate]:
    """Names and their differences (seed,), all tested together."""
    p_values = corrected([sign_flip(seeds) for _, seeds in differences])
    found = []
    for (name, seeds), p in zip(differences, p_values, strict=True):
        mean = paired.mean_interval(seeds, 1 - alpha)
        shown = mean.n > 1 and p <= alpha and not mean.low <= 0 <= mean.high
        sign = (1 if mean.mean > 0 else -1) if shown else 0
        found.append(Estimate(name=name, seeds=seeds, interval=mean, p=p, shown=sign))
    return found

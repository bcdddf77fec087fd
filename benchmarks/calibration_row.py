"""One line of a calibration: a claim of our statistics, and what simulation found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from analysis.stats import paired

Kind = Literal["at most", "equal", "at least", "shown"]
CONFIDENCE = 0.999
"""Level of the Monte-Carlo interval: some fifty claims are looked at, and at 99% a sound one would often fall out."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A simulated rate beside the rate that is claimed."""

    what: str
    """The part of the statistics, e.g. "false positives". Rows of one part stand together."""
    claim: str
    """What is simulated and claimed, in a few words."""
    nominal: float
    """The claimed rate, in [0, 1]."""
    found: float
    repeats: int
    """Simulated studies, independent of each other."""
    low: float
    high: float
    """Monte-Carlo interval at `CONFIDENCE`: Wilson's of a rate, the normal one of a mean of shares."""
    kind: Kind
    """How the rate should stand to the nominal one; `shown` claims nothing, such as a method that is not used."""

    @property
    def ok(self) -> bool:
        """Whether the claim stands within Monte-Carlo error."""
        return {
            "at most": self.low <= self.nominal,
            "at least": self.high >= self.nominal,
            "equal": self.low <= self.nominal <= self.high,
            "shown": True,
        }[self.kind]


def row_of(what: str, claim: str, nominal: float, kind: Kind, values: ArrayLike) -> Row:
    """The row of independent simulated studies, one number in [0, 1] each.

    Raises
    ------
    ValueError
        Without a simulated study.
    """
    shares = np.asarray(values, float)
    n = len(shares)
    if not n:
        raise ValueError("a calibration needs at least one simulated study, got none")
    if np.isin(shares, (0.0, 1.0)).all():
        low, high = paired.wilson(int(shares.sum()), n, CONFIDENCE)
    else:
        half = scipy.stats.norm.isf((1 - CONFIDENCE) / 2) * shares.std(ddof=1) / math.sqrt(n)
        low, high = max(0.0, float(shares.mean() - half)), min(1.0, float(shares.mean() + half))
    found = float(shares.mean())
    return Row(what=what, claim=claim, nominal=nominal, found=found, repeats=n, low=low, high=high, kind=kind)

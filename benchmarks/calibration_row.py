"""One line of a calibration: a claim of our statistics, and what simulation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    """Monte-Carlo interval of the rate (Wilson, `CONFIDENCE`)."""
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


def rate(what: str, claim: str, events: int, repeats: int, nominal: float, kind: Kind) -> Row:
    """The row of `events` among `repeats` independent simulated studies.

    Raises
    ------
    ValueError
        Without a simulated study.
    """
    if repeats < 1:
        raise ValueError(f"a calibration needs at least one simulated study, got repeats = {repeats}")
    low, high = paired.wilson(events, repeats, CONFIDENCE)
    found = events / repeats
    return Row(what=what, claim=claim, nominal=nominal, found=found, repeats=repeats, low=low, high=high, kind=kind)

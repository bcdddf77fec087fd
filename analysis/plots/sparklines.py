"""Differences in small: one sparkline per contrast, drawn by hand, so that a page of many costs no time.

[ margin ]  shaded       a bar: the interval, cut with an arrow where it leaves the scale
    |       zero         a diamond: the mean
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from analysis.verdicts import number_format as fmt

WIDTH, HEIGHT = 300.0, 22.0
"""Size of a sparkline, in units of its own."""
MAX_REACH = 4.0
"""Times the largest mean: longer intervals are cut, as that of two seeds would hide everything else (heuristic)."""


@dataclass(frozen=True, kw_only=True)
class Sparkline:
    """One contrast."""

    name: str
    says: str
    """The outcome, or why there is none."""
    value: str = ""
    tone: str = "undecided"
    """The outcome as a class of the page."""
    exploratory: bool = False
    mean: float = math.nan
    """NaN: nothing is drawn."""
    ends: tuple[float, float] = (math.nan, math.nan)
    """Ends of the interval."""
    alt: str = ""
    drawing: Markup = Markup()  # noqa: RUF009 - a Markup cannot be changed
    """An ``<svg>`` in the colours of the page; :func:`draw` makes it."""


@dataclass(frozen=True, kw_only=True)
class Sparklines:
    """Contrasts on one scale."""

    rows: tuple[Sparkline, ...]
    ticks: tuple[str, str, str]
    """Left end, zero, right end."""
    label: str
    """What the scale measures, and which side is good."""


def draw(rows: Sequence[Sparkline], margin: float, label: str) -> Sparklines | None:
    """Draw contrasts in units of one metric; None where none has a mean."""
    known = [row for row in rows if math.isfinite(row.mean)]
    if not known:
        return None
    reach = _reach(known, margin)
    power = math.floor(math.log10(reach))
    decimals = max(0, (0 if reach / 10**power >= 2 else 1) - power)
    ticks = (fmt.number(-reach, decimals), "0", fmt.number(reach, decimals, sign=True))
    drawn = (replace(row, drawing=_drawing(row, margin, reach)) if math.isfinite(row.mean) else row for row in rows)
    return Sparklines(rows=tuple(drawn), ticks=ticks, label=label)


def _reach(rows: Sequence[Sparkline], margin: float) -> float:
    """Half the width of the scale: a round number that holds the margin, the means, and most of the intervals."""
    means = max(abs(row.mean) for row in rows)
    ends = max((abs(end) for row in rows for end in row.ends if math.isfinite(end)), default=0.0)
    wanted = max(1.3 * margin, 1.1 * means, min(1.05 * ends, max(MAX_REACH * means, 2 * margin)))
    unit = 10.0 ** math.floor(math.log10(wanted))
    return next(step * unit for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * unit >= wanted * (1 - 1e-9))


def _drawing(row: Sparkline, margin: float, reach: float) -> Markup:
    def x(value: float) -> float:
        """Room for half a diamond is left at both ends."""
        return WIDTH / 2 + max(-1.0, min(1.0, value / reach)) * (WIDTH / 2 - 7)

    middle, (low, high) = HEIGHT / 2, row.ends
    parts = [
        f'<rect class="band" x="{x(-margin):.1f}" y="0" width="{x(margin) - x(-margin):.1f}" height="{HEIGHT:g}"/>',
        f'<line class="zero" x1="{WIDTH / 2:g}" x2="{WIDTH / 2:g}" y1="0" y2="{HEIGHT:g}"/>',
    ]
    if math.isfinite(low) and math.isfinite(high):
        left, right = x(max(low, -reach)), x(min(high, reach))
        parts.append(f'<line class="bar" x1="{left:.1f}" x2="{right:.1f}" y1="{middle:g}" y2="{middle:g}"/>')
        for side in [side for side, cut in ((-1, low < -reach), (1, high > reach)) if cut]:
            tip = WIDTH / 2 + side * (WIDTH / 2 - 1)
            parts.append(f'<path class="mean" d="M{tip:g} {middle:g}l{-side * 6} -4v8z"/>')
    parts.append(f'<path class="mean" d="M{x(row.mean):.1f} {middle - 6:g}l6 6l-6 6l-6 -6z"/>')
    head = Markup('<svg role="img" viewBox="0 0 {:g} {:g}" aria-label="{}">').format(WIDTH, HEIGHT, row.alt)
    return head + Markup("".join(parts)) + Markup("</svg>")

"""Differences of a card in small: one strip per contrast, drawn by hand, so that a page of many costs no time.

[ margin ]  shaded       a bar: the interval, cut with an arrow where it leaves the strip
    |       zero         a diamond: the mean
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from analysis.verdicts import wording
from analysis.verdicts.decide import Verdict

WIDTH, HEIGHT = 300.0, 22.0
"""Of a strip, in units of its own."""
LONG = 4.0
"""Times the largest mean: longer intervals are cut, as that of two seeds would hide everything else (assumed)."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One contrast."""

    name: str
    says: str
    """The outcome, or why there is none."""
    value: str
    tone: str
    """The outcome as a class of the page."""
    exploratory: bool
    drawing: Markup
    """An ``<svg>`` in the colours of the page; empty where there is nothing to draw."""


@dataclass(frozen=True, kw_only=True)
class Strips:
    """Contrasts on one scale."""

    rows: tuple[Strip, ...]
    ticks: tuple[str, str, str]
    """Left end, zero, right end."""
    label: str
    """What the scale measures, and which side is good."""


def draw(verdicts: Sequence[Verdict], margin: float, label: str) -> Strips | None:
    """Strips of contrasts in units of one metric; None where none has a score."""
    if not any(item.difference.n for item in verdicts):
        return None
    reach = _reach(verdicts, margin)
    decimals = max(0, -math.floor(math.log10(reach)) + (0 if reach / 10 ** math.floor(math.log10(reach)) >= 2 else 1))
    ends = (wording.number(-reach, decimals), "0", wording.number(reach, decimals, sign=True))
    return Strips(rows=tuple(_strip(item, margin, reach) for item in verdicts), ticks=ends, label=label)


def _reach(verdicts: Sequence[Verdict], margin: float) -> float:
    """Half the width of the scale: a round number that holds the margin, the means, and most of the intervals."""
    found = [item.difference for item in verdicts if item.difference.n]
    intervals = [item.ends for item in verdicts if item.difference.n]
    means = max(abs(d.mean) for d in found)
    ends = max((abs(end) for ends in intervals for end in ends if math.isfinite(end)), default=0.0)
    wanted = max(1.3 * margin, 1.1 * means, min(1.05 * ends, max(LONG * means, 2 * margin)))
    unit = 10.0 ** math.floor(math.log10(wanted))
    return next(step * unit for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * unit >= wanted * (1 - 1e-9))


def _strip(verdict: Verdict, margin: float, reach: float) -> Strip:
    d, contrast = verdict.difference, verdict.contrast
    # The label of the strips names the metric that they share.
    name = wording.contrast(contrast.name.removesuffix(f" on {contrast.metric}" if contrast.metric else ""))
    exploratory = not contrast.primary
    if not d.n:
        return Strip(
            name=name, says=lost(verdict), value="", tone="undecided", exploratory=exploratory, drawing=Markup()
        )
    value = wording.with_error(d.mean, d.standard_error, sign=True) if d.n > 1 else wording.number(d.mean, sign=True)
    says = verdict.outcome if d.n > 1 else lost(verdict)
    alt = f"{name}: {value}" + (
        f", interval {wording.interval(d.low, d.high, d.standard_error, verdict.within)}" if d.n > 1 else ""
    )
    drawing = _drawing((d.mean, *verdict.ends), margin, reach, alt)
    return Strip(name=name, says=says, value=value, tone=verdict.outcome, exploratory=exploratory, drawing=drawing)


def lost(verdict: Verdict) -> str:
    """Why a contrast has no verdict: failed trials, or none yet."""
    failed = [f"{rate.arm} failed in {rate.failed} of {rate.ended}" for rate in verdict.failures if rate.failed]
    seeds = ("no seed yet", "one seed so far")[min(1, verdict.difference.n)]
    return ", ".join(failed) or seeds


def _drawing(values: tuple[float, float, float], margin: float, reach: float, alt: str) -> Markup:
    mean, low, high = values
    middle = HEIGHT / 2
    parts = [
        f'<rect class="band" x="{_x(-margin, reach):.1f}" y="0" '
        f'width="{_x(margin, reach) - _x(-margin, reach):.1f}" height="{HEIGHT:g}"/>',
        f'<line class="zero" x1="{WIDTH / 2:g}" x2="{WIDTH / 2:g}" y1="0" y2="{HEIGHT:g}"/>',
    ]
    if math.isfinite(low) and math.isfinite(high):
        left, right = _x(max(low, -reach), reach), _x(min(high, reach), reach)
        parts.append(f'<line class="bar" x1="{left:.1f}" x2="{right:.1f}" y1="{middle:g}" y2="{middle:g}"/>')
        parts += [_arrow(side) for side, cut in ((-1, low < -reach), (1, high > reach)) if cut]
    parts.append(f'<path class="mean" d="M{_x(mean, reach):.1f} {middle - 6:g}l6 6l-6 6l-6 -6z"/>')
    head = Markup('<svg role="img" viewBox="0 0 {:g} {:g}" aria-label="{}">').format(WIDTH, HEIGHT, alt)
    return head + Markup("".join(parts)) + Markup("</svg>")


def _x(value: float, reach: float) -> float:
    """Place of a value, with room for half a diamond at both ends."""
    room = WIDTH / 2 - 7
    return WIDTH / 2 + max(-1.0, min(1.0, value / reach)) * room


def _arrow(side: int) -> str:
    tip = WIDTH / 2 + side * (WIDTH / 2 - 1)
    return f'<path class="mean" d="M{tip:g} {HEIGHT / 2:g}l{-side * 6} -4v8z"/>'

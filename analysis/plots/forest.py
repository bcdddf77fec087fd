"""Forest plots: means with intervals in rows, one dot per seed, over the band of differences that do not matter."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from analysis.plots import style
from analysis.stats import Floats, paired
from analysis.verdicts import number_format as fmt

LINE, ROW, LETTERS = 0.19, 0.36, 44
"""Inches for a line of a contrast's name and for the interval below it; letters that fit beside an outcome."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One contrast."""

    name: str
    short: str
    """The name beside the axis, without what the axis says."""
    outcome: str
    """A key of :data:`analysis.plots.style.OUTCOMES`."""
    primary: bool
    """Filled; exploratory ones are open."""
    mean: float
    ends: tuple[float, float]
    seeds: Sequence[float]
    numbers: str
    """The tooltip of the mean."""


@style.styled
def paired_differences(rows: Sequence[Difference], label: str, margin: float) -> Figure:
    """One row per contrast with mean, t interval and one dot per seed; what has no mean has its name and outcome."""
    names = [_wrapped(row.short) for row in rows]
    tops = np.cumsum([0.0, *(LINE * len(lines) + ROW for lines in names)])
    height = max(ROW, float(tops[-1]))
    figure, axes = style.canvas(0.7 + height)
    for top, lines, row in zip(tops[:-1], names, rows, strict=True):
        _difference(axes, float(top), lines, row)
    _finish(axes, height, 0, margin, label)
    return figure


def _finish(axes: Axes, bottom: float, top: float, margin: float, label: str) -> None:
    """Differences that do not matter as a band, zero in it, all of it shown whatever the data."""
    axes.axvspan(-margin, margin, color=style.BAND, lw=0, zorder=0)
    axes.axvline(0, color=style.MUTED, lw=0.8, zorder=1)
    axes.set(ylim=(bottom, top), yticks=[])
    axes.set_xlabel(label, parse_math=False)
    axes.tick_params(axis="y", which="both", left=False, right=False)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1.3 * margin), max(high, 1.3 * margin))
    style.few_ticks(axes.xaxis)


def _apart(seeds: ArrayLike) -> Floats:
    """Steps up and down, 0, 1, -1, ..., of circles (seed,) that would lie on each other: within a hundredth of all."""
    values = np.asarray(seeds, dtype=float)
    order, steps = np.argsort(values, kind="stable"), np.zeros(len(values))
    near = np.ptp(values) / 100 if len(values) else 0.0
    for before, place in itertools.pairwise(order):
        if values[place] - values[before] <= near:
            steps[place] = -steps[before] if steps[before] > 0 else 1 - steps[before]
    return steps


def _wrapped(name: str) -> list[str]:
    """A name in as many lines as it takes, so that none is cut and none runs into the outcome beside it."""
    lines = textwrap.wrap(" ".join(name.split()), LETTERS, max_lines=4, placeholder=" …")
    return [style.literal(line, LETTERS) for line in lines] or ["?"]


def _difference(axes: Axes, top: float, lines: Sequence[str], row: Difference) -> None:
    """`top` in inches from the top of the plot: so is its vertical axis."""
    colour, y = style.OUTCOMES[row.outcome], top + LINE * len(lines) + 0.15
    dots = axes.plot(row.seeds, y + 0.11 + 0.05 * _apart(row.seeds), "o", ms=3.4, mfc="none", mec=style.MUTED, mew=0.8)
    style.attach_tooltips(dots[0], [f"{row.name}: {fmt.number(one, sign=True)} at one seed" for one in row.seeds])
    if np.isfinite(row.mean):
        axes.plot(row.ends, [y, y], color=colour, lw=2.2, solid_capstyle="butt", zorder=3)
        fill = colour if row.primary else "none"
        mean = axes.plot([row.mean], [y], "D", mfc=fill, mec=colour, mew=1.3, ms=5.2, zorder=4)
        style.attach_tooltips(mean[0], [f"{row.name}, {row.outcome}\n{row.numbers}"])
    place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    for i, line in enumerate(lines):
        axes.text(0.015, top + LINE * (i + 0.6), line, ha="left", **place)
    axes.text(0.985, top + LINE * 0.6, row.outcome, ha="right", color=style.MUTED, fontsize=8.5, **place)


@style.styled
def effects(rows: Mapping[str, Mapping[str, Floats]], margin: float, label: str, confidence: float) -> Figure:
    """One row per name with an interval of each kind below it, over the band of `margin` to either side of zero.

    rows : name -> kind -> differences (seed,); every row has the same kinds, which fix colour and marker
    """
    kinds = list(next(iter(rows.values())))
    height = 0.36 + 0.2 * len(kinds)
    figure, axes = style.canvas(0.95 + height * len(rows))
    for row, (name, by_kind) in enumerate(rows.items()):
        axes.text(0.015, row * height, style.literal(name, 60), va="center", fontsize=8.5,
                  transform=axes.get_yaxis_transform())  # fmt: skip
        for i, (kind, seeds) in enumerate(by_kind.items()):
            _effect(axes, row * height + 0.24 + 0.2 * i, seeds, i, kind if row == 0 else "", confidence)
    _finish(axes, len(rows) * height - 0.05, -0.25, margin, label)
    if len(kinds) > 1:
        style.legend_above(figure, 2)
    return figure


def _effect(axes: Axes, y: float, seeds: Floats, i: int, label: str, confidence: float) -> None:
    colour, marker, mean = style.PALETTE[i], "Ds"[i % 2], paired.mean_interval(seeds, confidence)
    axes.plot(seeds, y + 0.07 + 0.04 * _apart(seeds), "o", ms=2.8, mfc="none", mec=style.MUTED, mew=0.7, zorder=2)
    axes.plot([mean.low, mean.high], [y, y], color=colour, lw=2, solid_capstyle="butt", zorder=3)
    # Drawn where there is no mean too: the legend is made of the first row.
    axes.plot([mean.mean], [y], marker, color=colour, ms=5, mew=0, zorder=4, ls="none", label=label or "_")

"""Scores against the values of one setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import AutoMinorLocator, FixedLocator, FuncFormatter, NullLocator

from analysis.plots.style import (
    MARKERS,
    few_ticks,
    legend_above,
    literal,
    panels,
    reference_line,
    styled,
    upright,
    zero_line,
)
from analysis.stats import paired
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.arm_colours import arm_colour

MIN_STEP = 0.5
"""Decades between the zero of a logarithmic axis and its smallest value, at least (heuristic)."""
MAX_TICKS = 6
DODGE = 0.012
"""Distance of groups at the same value, as a share of the axis."""


@styled
def responses(curves: Mapping[str, pd.DataFrame], field: str, metric: str, base: float, logarithmic: bool) -> Figure:
    """Means with t intervals against the values of one setting, each seed a faint line, one colour per group.

    Under them, where an arm has the base's value, the paired differences to it: what seeds share is not in those.

    Parameters
    ----------
    curves : mapping
        Group -> scores (seed, value), the columns ascending. NaN where a trial has no score.
    base : float
        The base's value, marked by a dashed line.
    logarithmic : bool
        A zero then stands at the left edge, behind a gap.
    """
    differences = {group: _minus_base(scores, base) for group, scores in curves.items()}
    below = {group: scores for group, scores in differences.items() if scores is not None}
    figure, grid = panels(4.6 if below else 3.1, 1 + bool(below), sharex=True)
    values = sorted({float(value) for scores in curves.values() for value in scores.columns} | {base})
    place = _log_places(values) if logarithmic else dict(zip(values, values, strict=True))
    reach = max(place.values()) - min(place.values())
    labels = (find_metric(metric).label, "minus the base’s value")
    for axes, drawn, label in zip(grid.flat, (curves, below), labels, strict=False):
        if math.isfinite(base):
            reference_line(axes, place[base])
        for i, group in enumerate(curves):
            if group in drawn:
                # Moved apart by little, so that the intervals of groups do not cover each other.
                aside = DODGE * reach * (i - (len(curves) - 1) / 2)
                x = [place[float(value)] + aside for value in drawn[group].columns]
                line_of_seeds(axes, x, drawn[group], group, i, first_apart=logarithmic and 0.0 in drawn[group].columns)
        upright(axes, label)
        axes.yaxis.set_minor_locator(AutoMinorLocator())
        axes.margins(x=0.06)
    axes.set_xlabel(field, parse_math=False)
    if below:
        zero_line(axes)
    if logarithmic:
        _label_places(axes.xaxis, place)
    else:
        few_ticks(axes.xaxis, MAX_TICKS)
    if len(curves) > 1:
        handles, names = grid.flat[0].get_legend_handles_labels()
        legend_above(figure, 2, handles, names)
    return figure


def _minus_base(scores: pd.DataFrame, base: float) -> pd.DataFrame | None:
    """Paired differences to the base's value, or None where no arm has it or no seed has two of the arms."""
    if base not in scores.columns:
        return None
    differences = scores.sub(scores[base], axis=0)
    return differences if differences.drop(columns=base).notna().any(axis=None) else None


def line_of_seeds(
    axes: Axes,
    x: Sequence[float],
    scores: pd.DataFrame,
    name: str,
    i: int,
    first_apart: bool = False,
    log: bool = False,
) -> None:
    """Each seed a faint line, the mean a full one with t intervals at its points.

    Parameters
    ----------
    scores : DataFrame (seed, x)
    i : int
        Place of the name among those of the figure: colour and marker.
    first_apart : bool
        No line leads to the first point.
    log : bool
        The vertical axis is logarithmic: an interval that reaches zero, of two or three seeds, is not drawn.
    """
    colour, marker = arm_colour(i), MARKERS[i % len(MARKERS)]
    means = [paired.mean_interval(scores[value].dropna()) for value in scores.columns]
    y = np.array([mean.mean for mean in means])
    seeds = scores.to_numpy(dtype=float).T
    for piece in (slice(0, 1), slice(1, None)) if first_apart else (slice(None),):
        axes.plot(x[piece], seeds[piece], color=colour, lw=0.7, alpha=0.35, zorder=2)
        axes.plot(x[piece], y[piece], color=colour, zorder=3)
    if not log:
        axes.plot(x, seeds, ".", color=colour, ms=3, alpha=0.45, mew=0, zorder=2)
    # Without an interval, of one seed, only the point is drawn.
    reach = np.nan_to_num([[m.mean - m.low, m.high - m.mean] if m.low > 0 or not log else (0, 0) for m in means]).T
    axes.errorbar(
        x, y, reach, fmt=marker, color=colour, ms=5, mew=0, elinewidth=1.3, capsize=0, label=literal(name), zorder=4
    )


def _log_places(values: Sequence[float]) -> dict[float, float]:
    """Where values stand: their decades, and a zero one step of the scan to the left of the smallest."""
    decades = {value: math.log10(value) for value in values if value > 0}
    steps = np.diff(sorted(decades.values()))
    step = max(MIN_STEP, float(np.median(steps)) if len(steps) else 1.0)
    return {value: decades.get(value, min(decades.values()) - step) for value in values}


def _label_places(axis: Axis, place: Mapping[float, float]) -> None:
    """Values of the scan as ticks, as many as there is room for; the zero always."""
    room = (max(place.values()) - min(place.values())) / (MAX_TICKS + 1)
    kept: list[float] = []
    for value in sorted(place):
        if not kept or place[value] - place[kept[-1]] >= room:
            kept.append(value)
    nearest = FuncFormatter(lambda at, _: f"{min(place, key=lambda value: abs(place[value] - at)):g}")
    axis.set_major_locator(FixedLocator([place[value] for value in kept]))
    axis.set_major_formatter(nearest)
    axis.set_minor_locator(NullLocator())

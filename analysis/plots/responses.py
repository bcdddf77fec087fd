"""Scores against the values of one setting, errors against a size with both axes logarithmic, and fitted laws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoMinorLocator, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis.plots import style
from analysis.stats import Floats, paired
from analysis.stats.scaling_law import AHEAD, Comparison
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.arm_colours import arm_colour

MIN_STEP = 0.5
"""Decades between the zero of a logarithmic axis and its smallest value, at least (heuristic)."""
MAX_TICKS = 6
DODGE = 0.012
"""Distance of groups at the same value, as a share of the axis."""


@style.styled
def responses(
    curves: Mapping[str, pd.DataFrame], field: str, metric: str, base: float, logarithmic: bool, confidence: float
) -> Figure:
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
    confidence : float
        Of the intervals.
    """
    below = {group: scores.sub(scores[base], axis=0) for group, scores in curves.items() if base in scores.columns}
    below = {group: gaps for group, gaps in below.items() if gaps.drop(columns=base).notna().any(axis=None)}
    figure, grid = style.panels(1 + bool(below), 1, 1.6, 1.5, sharex=True)
    values = sorted({float(value) for scores in curves.values() for value in scores.columns} | {base})
    place = _log_places(values) if logarithmic else dict(zip(values, values, strict=True))
    reach = max(place.values()) - min(place.values())
    labels = (find_metric(metric).label, "minus the base’s value")
    for axes, drawn, label in zip(grid.flat, (curves, below), labels, strict=False):
        if math.isfinite(base):
            style.reference_line(axes, place[base])
        for i, group in enumerate(curves):
            if group in drawn:
                # Moved apart by little, so that the intervals of groups do not cover each other.
                aside = DODGE * reach * (i - (len(curves) - 1) / 2)
                x = [place[float(value)] + aside for value in drawn[group].columns]
                apart = logarithmic and 0.0 in drawn[group].columns
                _line_of_seeds(axes, x, drawn[group], group, i, confidence, first_apart=apart)
        style.upright(axes, label)
        axes.yaxis.set_minor_locator(AutoMinorLocator())
        axes.margins(x=0.06)
    axes.set_xlabel(field, parse_math=False)
    if below:
        style.zero_line(axes)
    if logarithmic:
        _label_places(axes.xaxis, place)
    else:
        style.few_ticks(axes.xaxis, MAX_TICKS)
    if len(curves) > 1:
        handles, names = grid.flat[0].get_legend_handles_labels()
        style.legend_above(figure, 2, handles, names)
    return figure


def _line_of_seeds(
    axes: Axes,
    x: Sequence[float],
    scores: pd.DataFrame,
    name: str,
    i: int,
    confidence: float,
    first_apart: bool = False,
    log: bool = False,
) -> None:
    """Each seed of scores (seed, x) a faint line, the mean a full one with t intervals at its points.

    `i` gives colour and marker; no line leads to the first point where it is `first_apart`. With a `log` axis an
    interval that reaches zero, of two or three seeds, is not drawn.
    """
    colour, marker = arm_colour(i), style.MARKERS[i % len(style.MARKERS)]
    means = [paired.mean_interval(scores[value].dropna(), confidence) for value in scores.columns]
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
        x,
        y,
        reach,
        fmt=marker,
        color=colour,
        ms=5,
        mew=0,
        elinewidth=1.3,
        capsize=0,
        label=style.literal(name),
        zorder=4,
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
    _only_ticks(axis, [place[value] for value in kept], nearest)


def _only_ticks(axis: Axis, ticks: Sequence[float], words: FuncFormatter) -> None:
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(words)
    axis.set_minor_locator(NullLocator())


@style.styled
def error_lines(
    kinds: Mapping[str, Mapping[str, pd.DataFrame]], x_label: str, y_label: str, confidence: float
) -> Figure:
    """One panel per kind, one line per name, each seed a faint line.

    kinds : kind -> name -> errors (seed, size), sizes ascending; NaN, and errors of zero, are not drawn
    """
    names = list(dict.fromkeys(name for lines in kinds.values() for name in lines))
    figure, grid = style.panels(len(kinds), 1, 0.7, 2.3, sharex=True, sharey=True)
    for axes, (kind, lines) in zip(grid.flat, kinds.items(), strict=True):
        for name, errors in lines.items():
            positive = errors.where(errors > 0)
            _line_of_seeds(axes, _sizes(positive), positive, name, names.index(name), confidence, log=True)
        axes.set(xscale="log", yscale="log")
        axes.set_title(kind, loc="left", pad=4)
        style.upright(axes, y_label)
    for axis in (axes.xaxis, axes.yaxis):
        _log_ticks(axis)
    axes.set_xlabel(x_label)
    handles = {
        label: handle for one in grid.flat for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
    }
    style.legend_above(figure, 2, handles.values(), handles.keys())
    return figure


def _sizes(errors: pd.DataFrame) -> list[float]:
    return [float(size) for size in errors.columns]


@style.styled
def law_lines(lines: Mapping[str, tuple[pd.DataFrame, Comparison]], x_label: str, y_label: str) -> Figure:
    """Fitted forms over errors, one panel per line: every seed, the means, and curves beyond them.

    lines : title -> errors (seed, size) and the forms fitted to them, the same in every line: they fix the colours
    """
    figure, grid = style.panels(len(lines), 1, 0.8, 2.3, sharex=True)
    for axes, (title, (errors, fitted)) in zip(grid.flat, lines.items(), strict=True):
        axes.set(xscale="log", yscale="log")
        measured, x = errors.where(errors > 0), _sizes(errors)
        axes.plot(x, measured.to_numpy(dtype=float).T, ".", color=style.MUTED, ms=3.5, alpha=0.6, mew=0, zorder=3)
        # Means of the logarithm, as the laws are fitted.
        axes.plot(x, np.exp(np.log(measured).mean()), "o", color=style.INK, ms=4.5, mew=0, zorder=5)
        style.reference_line(axes, max(x))
        predicted = [value for i in range(len(fitted.laws)) for value in _law_curve(axes, fitted, i)]
        # All errors, and what the forms that stand predict, but not far below the errors.
        least, most = float(np.nanmin(measured)), float(np.nanmax(measured))
        seen = np.concatenate([*predicted, [least, most]])
        seen = seen[np.isfinite(seen)]
        axes.set_ylim(0.95 * max(0.3 * least, float(seen.min())), 1.05 * min(3 * most, float(seen.max())))
        axes.set_title(style.literal(title, 60), loc="left", pad=4)
        style.upright(axes, y_label)
        _log_ticks(axes.yaxis)
    _log_ticks(axes.xaxis)
    axes.set_xlabel(x_label)
    names = [Line2D([], [], color=arm_colour(i), label=law.form.name) for i, law in enumerate(fitted.laws)]
    style.legend_above(figure, 2, names)
    return figure


def _law_curve(axes: Axes, fitted: Comparison, i: int) -> list[Floats]:
    """Draw a form out to AHEAD times the last size; returns value and band where it is not rejected."""
    law, colour, stands = fitted.laws[i], arm_colour(i), fitted.laws[i] in fitted.standing
    sizes = np.geomspace(fitted.sizes[0, 0], AHEAD * fitted.sizes[-1, 0], 60)
    value, low, high = law.curve(sizes[:, None])
    above = np.where(value > 0, value, np.nan)
    axes.plot(sizes, above, color=colour, lw=1.5, ls="-" if stands else (0, (1, 1.6)), zorder=4)
    if stands and np.isfinite(low).any():
        band = np.maximum(low, 1e-9), np.maximum(high, 1e-9)
        axes.fill_between(sizes, *band, color=colour, alpha=0.16, lw=0, zorder=2)
    return [value, low, high] if stands else []


def _log_ticks(axis: Axis) -> None:
    """Few numbers on a logarithmic axis, whether it spans decades or a tenth of one."""
    low, high = (float(end) for end in axis.get_view_interval())
    decades = math.log10(high / low)
    if decades < 0.7:
        ticks = [tick for tick in MaxNLocator(MAX_TICKS - 1).tick_values(low, high) if tick > 0]
    else:
        steps = (1, 2, 5) if decades < 2 else (1,)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
    words = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")
    _only_ticks(axis, [tick for tick in ticks if low <= tick <= high], words)

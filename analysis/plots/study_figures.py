"""The figures of the sections that only some studies have: responses, components, scaling, seeds.

In the style of analysis.plots.figures. They draw what they are given and compute nothing but means and intervals.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoMinorLocator, FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from analysis.plots.figures import BAND, INK, MARKERS, MUTED, PALETTE, WIDTH, legend_above, literal, styled, upright
from analysis.stats import paired as statistics
from analysis.stats.paired import MeanInterval
from analysis.verdicts import wording

Floats = NDArray[np.float64]

LEAST_STEP = 0.5
"""Decades between the zero of a logarithmic axis and its smallest value, at least (assumed)."""
MOST_TICKS = 6
DODGE = 0.012
"""Of the axis, between groups at the same value."""


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
    paired = {group: _minus_base(scores, base) for group, scores in curves.items()}
    paired = {group: gaps for group, gaps in paired.items() if gaps is not None}
    figure = Figure(figsize=(WIDTH, 4.6 if paired else 3.1), layout="constrained")
    panels = figure.subplots(1 + bool(paired), 1, sharex=True, squeeze=False)[:, 0]
    values = sorted({float(value) for scores in curves.values() for value in scores.columns} | {base})
    place = _log_places(values) if logarithmic else dict(zip(values, values, strict=True))
    labels = (wording.quantity(metric), "minus the base’s value")
    for axes, drawn, label in zip(panels, (curves, paired), labels, strict=False):
        if math.isfinite(base):
            axes.axvline(place[base], color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
        for group, scores in drawn.items():
            broken = logarithmic and 0.0 in scores.columns
            # Moved apart by little, so that the intervals of groups do not cover each other.
            i, reach = list(curves).index(group), max(place.values()) - min(place.values())
            aside = DODGE * reach * (i - (len(curves) - 1) / 2)
            x = [place[float(value)] + aside for value in scores.columns]
            _response(axes, scores, x, broken, i, group)
        axes.set_ylabel(upright(label), parse_math=False)
        axes.yaxis.set_minor_locator(AutoMinorLocator())
        axes.margins(x=0.06)
    panels[-1].set_xlabel(field, parse_math=False)
    if paired:
        panels[-1].axhline(0, color=MUTED, lw=0.8, zorder=1)
    if logarithmic:
        _label_places(panels[0].xaxis, place)
    else:
        panels[0].xaxis.set_major_locator(MaxNLocator(MOST_TICKS))
    if len(curves) > 1:
        handles, names = panels[0].get_legend_handles_labels()
        legend_above(figure, 2, handles, names)
    return figure


def _minus_base(scores: pd.DataFrame, base: float) -> pd.DataFrame | None:
    """Paired differences to the base's value, or None where no arm has it or no seed has two of the arms."""
    if base not in scores.columns:
        return None
    gaps = scores.sub(scores[base], axis=0)
    return gaps if gaps.drop(columns=base).notna().any(axis=None) else None


def _response(axes: Axes, scores: pd.DataFrame, x: Sequence[float], broken: bool, i: int, label: str) -> None:
    """One group. `broken`: the first point is a zero, and no line leads to it."""
    colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
    means = [statistics.mean_interval(scores[value].dropna()) for value in scores.columns]
    pieces = (slice(0, 1), slice(1, None)) if broken else (slice(None),)
    for _, block in scores.iterrows():
        y = block.to_numpy(dtype=float)
        for piece in pieces:
            axes.plot(x[piece], y[piece], color=colour, lw=0.7, alpha=0.35, zorder=2)
        axes.plot(x, y, ".", color=colour, ms=3, alpha=0.45, mew=0, zorder=2)
    for piece in pieces:
        axes.plot(x[piece], [mean.mean for mean in means[piece]], color=colour, zorder=3)
    _points(axes, x, means, colour, marker, label)


def _points(
    axes: Axes, x: Sequence[float], means: Sequence[MeanInterval], colour: str, marker: str, label: str
) -> None:
    """Means with their intervals, upright."""
    y = np.array([mean.mean for mean in means])
    # Without an interval, of one seed, only the point is drawn.
    reach = np.nan_to_num([[m.mean - m.low for m in means], [m.high - m.mean for m in means]])
    axes.errorbar(
        x, y, reach, fmt=marker, color=colour, ms=5, mew=0, elinewidth=1.3, capsize=0, label=literal(label), zorder=4
    )


def _log_places(values: Sequence[float]) -> dict[float, float]:
    """Where values stand: their decades, and a zero one step of the scan to the left of the smallest."""
    decades = {value: math.log10(value) for value in values if value > 0}
    steps = np.diff(sorted(decades.values()))
    step = max(LEAST_STEP, float(np.median(steps)) if len(steps) else 1.0)
    return {value: decades.get(value, min(decades.values()) - step) for value in values}


def _label_places(axis: Axis, place: Mapping[float, float]) -> None:
    """Values of the scan as ticks, as many as there is room for; the zero always."""
    ends = (min(place.values()), max(place.values()))
    room = (ends[1] - ends[0]) / (MOST_TICKS + 1)
    kept: list[float] = []
    for value in sorted(place):
        if not kept or place[value] - place[kept[-1]] >= room:
            kept.append(value)
    axis.set_major_locator(FixedLocator([place[value] for value in kept]))
    axis.set_major_formatter(FuncFormatter(lambda at, _: _nearest_label(at, place)))
    axis.set_minor_locator(NullLocator())


def _nearest_label(at: float, place: Mapping[float, float]) -> str:
    return f"{min(place, key=lambda value: abs(place[value] - at)):g}"


@styled
def forest(rows: Mapping[str, Mapping[str, Floats]], margin: float, label: str, confidence: float) -> Figure:
    """Means with t intervals and one dot per seed, over the band of differences that do not matter.

    Parameters
    ----------
    rows : mapping
        Name -> kind -> differences (seed,). Every row has the same kinds, which fix colour and marker.
    margin : float
        Half-width of the band.
    label : str
        Of the axis.
    """
    kinds = list(next(iter(rows.values())))
    step = 0.2 * len(kinds)
    figure = Figure(figsize=(WIDTH, 0.95 + (0.36 + step) * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-margin, margin, color=BAND, lw=0, zorder=0)
    axes.axvline(0, color=MUTED, lw=0.8, zorder=1)
    height = 0.36 + step
    for row, (name, by_kind) in enumerate(rows.items()):
        text = axes.text(0.015, row * height, literal(name, 60), va="center", transform=axes.get_yaxis_transform())
        text.set_fontsize(8.5)
        for i, (kind, seeds) in enumerate(by_kind.items()):
            y = row * height + 0.24 + 0.2 * i
            _forest_mark(axes, y, seeds, i, kind if row == 0 else "", confidence)
    axes.set(ylim=(len(rows) * height - 0.05, -0.25), yticks=[])
    axes.set_xlabel(label, parse_math=False)
    axes.tick_params(axis="y", which="both", left=False, right=False)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1.3 * margin), max(high, 1.3 * margin))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if len(kinds) > 1:
        legend_above(figure, 2)
    return figure


def _forest_mark(axes: Axes, y: float, seeds: Floats, i: int, label: str, confidence: float) -> None:
    colour, marker, mean = PALETTE[i], "Ds"[i % 2], statistics.mean_interval(seeds, confidence)
    axes.plot(seeds, np.full(len(seeds), y + 0.07), "o", ms=2.8, mfc="none", mec=MUTED, mew=0.7, zorder=2)
    axes.plot([mean.low, mean.high], [y, y], color=colour, lw=2, solid_capstyle="butt", zorder=3)
    # Drawn where there is no mean too: the legend is made of the first row.
    axes.plot([mean.mean], [y], marker, color=colour, ms=5, mew=0, zorder=4, ls="none", label=label or "_")


@styled
def error_lines(panels: Mapping[str, Mapping[str, pd.DataFrame]], x_label: str, y_label: str) -> Figure:
    """Errors against a size, both axes logarithmic: a panel per kind, a line per name, each seed a faint line.

    Parameters
    ----------
    panels : mapping
        Kind -> name -> errors (seed, size), sizes ascending. NaN, and errors of zero, are not drawn.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    figure = Figure(figsize=(WIDTH, 0.7 + 2.3 * len(panels)), layout="constrained")
    drawn = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (kind, lines) in zip(drawn, panels.items(), strict=True):
        for name, errors in lines.items():
            _error_line(axes, errors.where(errors > 0), name, names.index(name))
        axes.set(xscale="log", yscale="log")
        axes.set_title(kind, loc="left", pad=4)
        axes.set_ylabel(upright(y_label), parse_math=False)
    for axis in (drawn[0].xaxis, drawn[0].yaxis):
        _log_ticks(axis)
    drawn[-1].set_xlabel(x_label)
    handles = {label: handle for axes in drawn for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    legend_above(figure, 2, handles.values(), handles.keys())
    return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class LawCurve:
    """A form to draw."""

    name: str
    stands: bool
    """Not rejected."""
    sizes: Floats
    value: Floats
    low: Floats
    high: Floats


@dataclasses.dataclass(frozen=True, kw_only=True)
class LawPanel:
    """A line and what was fitted to it."""

    errors: pd.DataFrame
    """(seed, size)"""
    curves: Sequence[LawCurve]


@styled
def law_lines(panels: Mapping[str, LawPanel], x_label: str, y_label: str) -> Figure:
    """Fitted forms over errors, both axes logarithmic, a panel per line: every seed, the means, and curves beyond them.

    Parameters
    ----------
    panels : mapping
        Title -> line. Every panel has curves of the same names, which fix their colours.
    """
    figure = Figure(figsize=(WIDTH, 0.8 + 2.3 * len(panels)), layout="constrained")
    drawn = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, panel) in zip(drawn, panels.items(), strict=True):
        axes.set(xscale="log", yscale="log")
        _law_points(axes, panel.errors.where(panel.errors > 0))
        for i, curve in enumerate(panel.curves):
            _law_curve(axes, curve, PALETTE[i % len(PALETTE)])
        axes.set_ylim(*_law_limits(panel))
        axes.set_title(literal(title, 60), loc="left", pad=4)
        axes.set_ylabel(upright(y_label), parse_math=False)
        _log_ticks(axes.yaxis)
    _log_ticks(drawn[-1].xaxis)
    drawn[-1].set_xlabel(x_label)
    lines = [Line2D([], [], color=PALETTE[i], label=curve.name) for i, curve in enumerate(_first(panels).curves)]
    legend_above(figure, 2, lines)
    return figure


def _first(panels: Mapping[str, LawPanel]) -> LawPanel:
    return next(iter(panels.values()))


def _law_points(axes: Axes, errors: pd.DataFrame) -> None:
    x = [float(size) for size in errors.columns]
    for _, block in errors.iterrows():
        axes.plot(x, block.to_numpy(dtype=float), ".", color=MUTED, ms=3.5, alpha=0.6, mew=0, zorder=3)
    # Of the logarithm, as the laws are fitted.
    axes.plot(x, np.exp(np.log(errors).mean()), "o", color=INK, ms=4.5, mew=0, zorder=5)
    axes.axvline(max(x), color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)


def _law_curve(axes: Axes, curve: LawCurve, colour: str) -> None:
    above = np.where(curve.value > 0, curve.value, np.nan)
    axes.plot(curve.sizes, above, color=colour, lw=1.5, ls="-" if curve.stands else (0, (1, 1.6)), zorder=4)
    if curve.stands and np.isfinite(curve.low).any():
        least = np.maximum(curve.low, 1e-9)
        axes.fill_between(curve.sizes, least, np.maximum(curve.high, 1e-9), color=colour, alpha=0.16, lw=0, zorder=2)


def _law_limits(panel: LawPanel) -> tuple[float, float]:
    """All errors, and what the forms that stand say, but not far below the errors."""
    measured = panel.errors.where(panel.errors > 0).to_numpy(dtype=float)
    low, high = float(np.nanmin(measured)), float(np.nanmax(measured))
    ends = [np.concatenate([curve.value, curve.low, curve.high]) for curve in panel.curves if curve.stands]
    said = np.concatenate(ends) if ends else np.empty(0)
    said = said[np.isfinite(said)]
    least = max(0.3 * low, float(said.min())) if len(said) else low
    most = min(3 * high, float(said.max())) if len(said) else high
    return 0.95 * min(low, least), 1.05 * max(high, most)


def _error_line(axes: Axes, errors: pd.DataFrame, name: str, i: int) -> None:
    colour, x = PALETTE[i % len(PALETTE)], [float(size) for size in errors.columns]
    means = [_positive(statistics.mean_interval(errors[size].dropna())) for size in errors.columns]
    for _, block in errors.iterrows():
        axes.plot(x, block.to_numpy(dtype=float), color=colour, lw=0.7, alpha=0.35, zorder=2)
    axes.plot(x, [mean.mean for mean in means], color=colour, zorder=3)
    _points(axes, x, means, colour, MARKERS[i % len(MARKERS)], name)


def _positive(mean: MeanInterval) -> MeanInterval:
    """An interval that a logarithmic axis can show: one that reaches zero, of two or three seeds, is not drawn."""
    return mean if mean.low > 0 else dataclasses.replace(mean, low=math.nan, high=math.nan)


def _log_ticks(axis: Axis) -> None:
    """Few numbers on a logarithmic axis, whether it spans decades or a tenth of one."""
    low, high = (float(end) for end in axis.get_view_interval())
    decades = math.log10(high / low)
    if decades < 0.7:
        ticks = [tick for tick in MaxNLocator(MOST_TICKS - 1).tick_values(low, high) if tick > 0]
    else:
        steps = (1, 2, 5) if decades < 2 else (1,)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


@styled
def steps_by_seed(panels: Mapping[str, pd.DataFrame], steps: Mapping[float, str], x_label: str) -> Figure:
    """Small multiples: values at a few steps, equally far apart, each seed a faint line under the mean.

    Parameters
    ----------
    panels : mapping
        Title -> values (seed, step). NaN where a seed has none.
    steps : mapping
        All steps in order, and what to call them.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 0.2 + 1.75 * rows), layout="constrained")
    drawn = figure.subplots(rows, columns, squeeze=False)
    place = {step: i for i, step in enumerate(steps)}
    for axes, (title, values) in zip(drawn.flat, panels.items(), strict=False):
        x = [place[step] for step in values.columns]
        for _, seed in values.iterrows():
            axes.plot(x, seed.to_numpy(dtype=float), color=MUTED, lw=0.7, alpha=0.5, zorder=2)
        axes.plot(x, values.mean(), "o-", color=PALETTE[0], mew=0, zorder=3)
        axes.set_title(literal(title), loc="left", pad=4)
        axes.set_xticks(list(place.values()), list(steps.values()))
        axes.set_xlim(-0.25, len(place) - 0.75)
        axes.tick_params(axis="x", which="minor", bottom=False, top=False)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    for axes in drawn.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in list(drawn.flat)[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel(x_label)
    return figure

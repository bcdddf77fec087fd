"""Errors against a size, both axes logarithmic, and the laws fitted to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis.plots.sensitivity import MAX_TICKS, line_of_seeds
from analysis.plots.style import INK, MUTED, legend_above, literal, panels, reference_line, styled, upright
from analysis.stats import Floats
from jbot.store.arm_colours import arm_colour


@styled
def error_lines(kinds: Mapping[str, Mapping[str, pd.DataFrame]], x_label: str, y_label: str) -> Figure:
    """One panel per kind, one line per name, each seed a faint line.

    Parameters
    ----------
    kinds : mapping
        Kind -> name -> errors (seed, size), sizes ascending. NaN, and errors of zero, are not drawn.
    """
    names = list(dict.fromkeys(name for lines in kinds.values() for name in lines))
    figure, grid = panels(0.7 + 2.3 * len(kinds), len(kinds), sharex=True, sharey=True)
    for axes, (kind, lines) in zip(grid.flat, kinds.items(), strict=True):
        for name, errors in lines.items():
            positive = errors.where(errors > 0)
            line_of_seeds(axes, _sizes(positive), positive, name, names.index(name), log=True)
        axes.set(xscale="log", yscale="log")
        axes.set_title(kind, loc="left", pad=4)
        upright(axes, y_label)
    for axis in (axes.xaxis, axes.yaxis):
        _log_ticks(axis)
    axes.set_xlabel(x_label)
    handles = {
        label: handle for one in grid.flat for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
    }
    legend_above(figure, 2, handles.values(), handles.keys())
    return figure


def _sizes(errors: pd.DataFrame) -> list[float]:
    return [float(size) for size in errors.columns]


@dataclass(frozen=True, kw_only=True)
class LawCurve:
    """A form to draw."""

    name: str
    stands: bool
    """Not rejected."""
    sizes: Floats
    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, kw_only=True)
class LawPanel:
    """A line and what was fitted to it."""

    errors: pd.DataFrame
    """(seed, size)"""
    curves: Sequence[LawCurve]


@styled
def law_lines(lines: Mapping[str, LawPanel], x_label: str, y_label: str) -> Figure:
    """Fitted forms over errors, one panel per line: every seed, the means, and curves beyond them.

    Parameters
    ----------
    lines : mapping
        Title -> line. Every line has curves of the same names, which fix their colours.
    """
    figure, grid = panels(0.8 + 2.3 * len(lines), len(lines), sharex=True)
    for axes, (title, line) in zip(grid.flat, lines.items(), strict=True):
        axes.set(xscale="log", yscale="log")
        _law_points(axes, line.errors.where(line.errors > 0))
        for i, curve in enumerate(line.curves):
            _law_curve(axes, curve, arm_colour(i))
        axes.set_ylim(*_law_limits(line))
        axes.set_title(literal(title, 60), loc="left", pad=4)
        upright(axes, y_label)
        _log_ticks(axes.yaxis)
    _log_ticks(axes.xaxis)
    axes.set_xlabel(x_label)
    names = [Line2D([], [], color=arm_colour(i), label=curve.name) for i, curve in enumerate(line.curves)]
    legend_above(figure, 2, names)
    return figure


def _law_points(axes: Axes, errors: pd.DataFrame) -> None:
    x = _sizes(errors)
    axes.plot(x, errors.to_numpy(dtype=float).T, ".", color=MUTED, ms=3.5, alpha=0.6, mew=0, zorder=3)
    # Means of the logarithm, as the laws are fitted.
    axes.plot(x, np.exp(np.log(errors).mean()), "o", color=INK, ms=4.5, mew=0, zorder=5)
    reference_line(axes, max(x))


def _law_curve(axes: Axes, curve: LawCurve, colour: str) -> None:
    above = np.where(curve.value > 0, curve.value, np.nan)
    axes.plot(curve.sizes, above, color=colour, lw=1.5, ls="-" if curve.stands else (0, (1, 1.6)), zorder=4)
    if curve.stands and np.isfinite(curve.low).any():
        low, high = np.maximum(curve.low, 1e-9), np.maximum(curve.high, 1e-9)
        axes.fill_between(curve.sizes, low, high, color=colour, alpha=0.16, lw=0, zorder=2)


def _law_limits(line: LawPanel) -> tuple[float, float]:
    """All errors, and what the forms that stand predict, but not far below the errors."""
    measured = line.errors.where(line.errors > 0).to_numpy(dtype=float)
    low, high = float(np.nanmin(measured)), float(np.nanmax(measured))
    ends = [np.concatenate([curve.value, curve.low, curve.high]) for curve in line.curves if curve.stands]
    predicted = np.concatenate([*ends, [low, high]])
    predicted = predicted[np.isfinite(predicted)]
    least, most = max(0.3 * low, float(predicted.min())), min(3 * high, float(predicted.max()))
    return 0.95 * least, 1.05 * most


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
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())

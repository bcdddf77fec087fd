"""The figures of a hyperparameter search, from the points of its ledger (jbot.store.search_ledger)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from analysis.plots.style import FAINT, INK, MUTED, PALETTE, canvas, few_ticks, panels, styled, upright

Point = Mapping[str, Any]
Axis = Mapping[str, Any]
COLUMNS = 3
"""Slices beside each other."""


def value_of(point: Point, objective: str) -> float:
    """The objective of a point that ran to its end, else its last value of the learning curve, NaN without one."""
    if point["state"] == "complete":
        return float(point["values"][objective])
    return float(point["points"][-1][1]) if point["points"] and objective == "accuracy" else math.nan


@styled
def history(points: Sequence[Point], objective: str, direction: str, label: str) -> Figure:
    """The objective by point, and the best so far of those that ran to the end."""
    figure, axes = canvas(2.6)
    better = np.fmax if direction == "maximize" else np.fmin
    values = np.array([value_of(p, objective) if p["state"] == "complete" else math.nan for p in points])
    axes.step([p["number"] for p in points], better.accumulate(values), where="post", color=MUTED, lw=1.0, zorder=1)
    _dots(axes, points, [point["number"] for point in points], objective)
    axes.set_xlabel("point")
    upright(axes, label)
    few_ticks(axes.xaxis, 6, integer=True)
    return figure


def _dots(axes: Axes, points: Sequence[Point], places: Sequence[float], objective: str) -> None:
    """Filled what ran to the end, hollow what was pruned."""
    for state, style in {
        "pruned": {"mfc": "none", "mec": MUTED},
        "complete": {"mfc": PALETTE[0], "mec": "none"},
    }.items():
        chosen = [(x, value_of(p, objective)) for x, p in zip(places, points, strict=True) if p["state"] == state]
        if chosen:
            axes.plot(*np.array(chosen, dtype=float).T, "o", ms=4, mew=0.8, zorder=2, **style)  # type: ignore[arg-type]


def share_along(axis: Axis, value: Any) -> float:
    """Where a value lies between the ends of its axis: 0 to 1, on the axis's own scale."""
    known = axis["distribution"]["attributes"]
    if "choices" in known:
        return known["choices"].index(value) / max(1, len(known["choices"]) - 1)
    low, high, value = (math.log(x) if known["log"] else x for x in (known["low"], known["high"], value))
    return float((value - low) / (high - low))


@styled
def parallel_coordinates(points: Sequence[Point], axes: Sequence[Axis], objective: str, label: str) -> Figure:
    """One line per point over all axes; those that ran to the end coloured by the objective."""
    figure, panel = canvas(3.9)
    complete = [point for point in points if point["state"] == "complete"]
    values = [value_of(point, objective) for point in complete]
    scale = mpl.colors.Normalize(min(values), max(values) if max(values) > min(values) else min(values) + 1e-9)
    colours = mpl.colormaps["viridis"]
    places = range(len(axes))

    def line(point: Point) -> list[float]:
        return [share_along(axis, point["params"][axis["coordinate"]]) for axis in axes]

    for point in points:
        if point["state"] != "complete":
            panel.plot(places, line(point), color=FAINT, lw=0.6, zorder=1)
    for value, point in sorted(zip(values, complete, strict=True), key=lambda pair: pair[0]):
        panel.plot(places, line(point), color=colours(scale(value)), lw=1.2, alpha=0.9, zorder=2)
    for place in places:
        panel.axvline(place, color=INK, lw=0.4, zorder=0)
    panel.set_xticks(places, [axis["coordinate"] for axis in axes], rotation=90, fontsize=7.5)
    panel.set_yticks([0, 1], ["low", "high"])
    panel.minorticks_off()
    panel.set_xlim(-0.3, len(axes) - 0.7)
    bar = figure.colorbar(mpl.cm.ScalarMappable(scale, colours), ax=panel, location="top", aspect=40, pad=0.02)
    bar.set_label(label, parse_math=False)
    return figure


@styled
def slices(points: Sequence[Point], axes: Sequence[Axis], objective: str, label: str) -> Figure:
    """The objective against each axis alone."""
    figure, grid = panels(len(axes), COLUMNS, 0.3, 1.35, sharey=True)
    for panel, axis in zip(grid.flat, axes, strict=False):
        known = axis["distribution"]["attributes"]
        values = [point["params"][axis["coordinate"]] for point in points]
        if "choices" in known:
            names = list(known["choices"])
            _dots(panel, points, [names.index(value) for value in values], objective)
            panel.set_xticks(range(len(names)), [str(name)[:4] for name in names])
            panel.set_xlim(-0.5, len(names) - 0.5)
            panel.tick_params(axis="x", which="minor", bottom=False, top=False)
        else:
            _dots(panel, points, values, objective)
            if known["log"]:
                panel.set_xscale("log")
                panel.xaxis.set_major_locator(LogLocator(numticks=4))
                panel.xaxis.set_minor_formatter(NullFormatter())
            if not known["log"] or known.get("step") == 1:
                few_ticks(panel.xaxis, 3, integer=known.get("step") == 1)
            panel.margins(x=0.06)
        # ``student_temp``, ``1 - ema_momentum``.
        inverted = "1 - " if axis["coordinate"].startswith("1 - ") else ""
        panel.set_title(inverted + axis["coordinate"].rpartition(".")[2], loc="left", fontsize=7.5, pad=3)
        panel.tick_params(labelsize=7)
        few_ticks(panel.yaxis, 3)
    figure.supylabel(label, fontsize=9, parse_math=False)
    return figure


@styled
def front(points: Sequence[Point], best: Sequence[int], names: Sequence[str], labels: Mapping[str, str]) -> Figure:
    """The first objective against each of the others, one panel each; filled what lies on the front."""
    figure, grid = panels(len(names) - 1, 1, 0, 2.5)
    for panel, other in zip(grid.flat, names[1:], strict=True):
        for on_front, face in ((False, "none"), (True, PALETTE[2])):
            chosen = [point for point in points if (point["number"] in best) == on_front]
            xy = [[point["values"][name] for point in chosen] for name in (other, names[0])]
            panel.plot(*xy, "o", ms=4.5, mfc=face, mec=MUTED, mew=0.7)
        panel.set_xlabel(labels[other], parse_math=False)
        upright(panel, labels[names[0]])
    return figure

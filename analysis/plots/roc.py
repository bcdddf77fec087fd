"""ROC curves and distributions of scores of one trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mplhep
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoMinorLocator
from numpy.typing import NDArray
from scipy.stats import beta

from analysis.plots import style
from jbot.data.jets import CLASS_LABELS
from jbot.evaluation.metrics import roc

Floats = NDArray[np.floating]

SIGNAL_COLOURS = {
    **dict(zip(CLASS_LABELS, style.CLASS_COLOURS, strict=True)),
    "combined": style.PALETTE[5],
    "qcd": style.PALETTE[8],
}
MIN_BINS, MAX_BINS, TAIL = 8, 32, 0.5
"""Bins of a histogram, more of them for more jets; and the per cent of scores beyond either end of it."""
ROC_POINTS = 101
LEGEND: Any = {"columnspacing": 1.0, "handlelength": 1.2}


@style.styled
def rejection_curves(signals: Mapping[str, tuple[Floats, NDArray[np.bool_]]]) -> Figure:
    """ROC: background rejection 1/eps_b against signal efficiency eps_s, one line per signal.

    Bands are the 68% Clopper-Pearson interval of eps_b from the number of background jets that pass. Scores that are
    not finite are left out; a signal without jets, or without background, has no line.

    signals : name -> scores (jet,), higher is more signal-like, and which of them are signal (jet,)
    """
    figure, axes = style.canvas(3.3)
    efficiency, most = np.linspace(0.005, 1, ROC_POINTS), 10.0
    axes.plot(efficiency, 1 / efficiency, color=style.MUTED, lw=0.9, ls=(0, (3, 2)), label="guessing")
    for name, (scores, positive) in signals.items():
        known = np.isfinite(scores)
        scores, positive = scores[known], positive[known]
        if not positive.any() or positive.all():
            continue
        rejection, low, high = rejection_band(scores, positive, efficiency)
        colour = SIGNAL_COLOURS.get(name, style.INK)
        axes.fill_between(efficiency, low, high, color=colour, alpha=0.18, lw=0)
        axes.plot(efficiency, rejection, color=colour, label=name, ls="--" if name == "combined" else "-")
        most = max(most, float((~positive).sum()))
    axes.set(yscale="log", xlim=(0, 1), ylim=(0.9, 2 * most))
    axes.set_xlabel(r"signal efficiency $\varepsilon_s$")
    axes.set_ylabel(r"background rejection $1/\varepsilon_b$")
    axes.xaxis.set_minor_locator(AutoMinorLocator())
    style.legend_above(figure, 6, handletextpad=0.4, **LEGEND)
    return figure


def rejection_band(
    scores: Floats, positive: NDArray[np.bool_], efficiency: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Background rejection at signal efficiencies in (0, 1], with its 68% interval from counts; NaN where none passes.

    At the tightest cut that keeps so much of the signal, like the numbers of the tables (jbot.evaluation.metrics).
    """
    curve = roc(scores, positive)
    n = curve.background_jets
    passing = np.rint(n * curve.background[np.searchsorted(curve.signal, efficiency)])
    tail = 0.5 * (1 - math.erf(1 / math.sqrt(2)))
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.where(passing < n, beta.ppf(1 - tail, passing + 1, n - passing), 1.0)
        least = beta.ppf(tail, passing, n - passing + 1)
        # Where none passes the rejection is beyond what so many jets can measure.
        rejection, low, high = (np.where(passing >= 1, 1 / share, np.nan) for share in (passing / n, most, least))
    return rejection, low, high


@style.styled
def score_histograms(scores: Mapping[str, Mapping[str, Floats]], axis: str = "score") -> Figure:
    """Distributions, each normalised to 1, with Poisson errors; one panel per score, one line per sample.

    The outer bins also hold what lies beyond them. Scores that are not finite are left out.

    scores : title -> sample -> scores (jet,)
    """
    several = len(scores) > 1
    figure, grid = style.panels(len(scores), 1 + several, 0.55, 1.75 if several else 2.6)
    for axes, (title, samples) in zip(grid.flat, scores.items(), strict=False):
        _histogram(axes, {name: values[np.isfinite(values)] for name, values in samples.items()})
        style.few_ticks(axes.xaxis, 4 if several else 6)
        if several:
            axes.set_title(title, loc="left", pad=4)
            axes.minorticks_off()
        axes.set_xlabel(axis)
    for axes in grid[:, 0]:
        axes.set_ylabel("density")
    names = dict.fromkeys(name for samples in scores.values() for name in samples)
    style.legend_above(figure, 6, [Line2D([], [], color=_colour(name), label=name) for name in names], **LEGEND)
    return figure


def _histogram(axes: Axes, samples: Mapping[str, Floats]) -> None:
    everything = np.concatenate([*samples.values(), np.array([])])
    fewest = min((len(scores) for scores in samples.values() if len(scores)), default=0)
    edges = histogram_edges(everything, int(np.clip(1.5 * math.sqrt(fewest), MIN_BINS, MAX_BINS)))
    for name, scores in samples.items():
        if not len(scores):
            continue
        counts = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0]
        scale = len(scores) * np.diff(edges)
        density, error = counts / scale, np.sqrt(counts) / scale
        band: Any = {"baseline": density - error, "fill": True, "color": _colour(name), "alpha": 0.2, "lw": 0}
        axes.stairs(density + error, edges, **band)
        mplhep.histplot(density, edges, ax=axes, color=_colour(name), lw=1.2)
    if len(everything):
        axes.set_yscale("log")
    axes.set_xlim(edges[0], edges[-1])


def histogram_edges(scores: Floats, bins: int = MAX_BINS) -> NDArray[np.float64]:
    """Bins for scores of any kind: equal ones between the tails, or around each value where there are few."""
    values = np.unique(scores)
    if len(values) == 0:
        return np.array([0.0, 1.0])
    if len(values) == 1:
        return np.array([values[0] - 0.5, values[0] + 0.5], dtype=np.float64)
    if len(values) <= bins:
        middle = (values[1:] + values[:-1]) / 2
        ends = 2 * values[0] - middle[0], 2 * values[-1] - middle[-1]
        return np.asarray([ends[0], *middle, ends[1]], dtype=np.float64)
    low, high = np.percentile(scores, [TAIL, 100 - TAIL])
    if not low < high:
        low, high = values[0], values[-1]
    return np.linspace(low, high, bins + 1)


def _colour(name: str) -> str:
    return SIGNAL_COLOURS.get(name, style.MUTED)

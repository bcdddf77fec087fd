"""The figures of one trial, one function each: what it was shown, how it trained, what it learnt.

In the style of analysis.plots.figures. They take arrays, and compute nothing but bands, histograms and ROC curves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mplhep
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.ticker import AutoMinorLocator, MaxNLocator
from numpy.typing import NDArray
from scipy.stats import beta

from analysis.plots.figures import CLASS_COLOURS, INK, MASKED, MUTED, PALETTE, WIDTH, styled
from jbot.data.jets import CLASS_LABELS
from jbot.evaluation.metrics import roc

Floats = NDArray[np.floating]
Labels = NDArray[np.int64]

_ARC = 4 / 3 * (math.sqrt(2) - 1)
DOT = MarkerStyle(
    Path(
        [
            *[(1, 0), (1, _ARC), (_ARC, 1), (0, 1), (-_ARC, 1), (-1, _ARC), (-1, 0)],
            *[(-1, -_ARC), (-_ARC, -1), (0, -1), (_ARC, -1), (1, -_ARC), (1, 0)],
        ],
        [Path.MOVETO, *[Path.CURVE4] * 12],
    )
)
"""A circle of four arcs, half the bytes of matplotlib's own: dots of different sizes each carry theirs."""
ATTENTION = PALETTE[2]
SHARES = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
"""Steps of attention, the same in every figure. A head that looks everywhere gives 30 particles 0.03 each."""
SIGNAL_COLOURS = {**dict(zip(CLASS_LABELS, CLASS_COLOURS, strict=True)), "combined": PALETTE[5], "qcd": PALETTE[8]}
LEAST_BINS, MOST_BINS, TAIL = 8, 32, 0.5
"""Bins of a histogram, more of them for more jets; and the per cent of scores beyond either end of it."""
ROC_POINTS = 101


@styled
def embedding_evolution(maps: Mapping[int, Floats], labels: Labels) -> Figure:
    """Small multiples of t-SNE maps of the same jets, a panel per finished epoch.

    Parameters
    ----------
    maps : mapping
        Epoch -> points (jet, 2), in the order drawn.
    labels : int array (jet,)
        0 to 4: q, g, W, Z, t.
    """
    columns = min(3, max(1, len(maps)))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(WIDTH, 0.35 + rows * (WIDTH / columns + 0.2)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for (epoch, points), axes in zip(maps.items(), panels, strict=False):
        for label in np.unique(labels):
            chosen = points[labels == label]
            axes.scatter(chosen[:, 0], chosen[:, 1], s=6, marker=DOT, color=_colour(label), lw=0, alpha=0.8)
        axes.set_title("untrained" if epoch == 0 else f"epoch {epoch}", loc="left", pad=4)
        axes.set(xticks=[], yticks=[])
        axes.minorticks_off()
        axes.set_aspect("equal", adjustable="datalim")
    for axes in list(figure.axes)[len(maps) :]:
        axes.set_axis_off()
    handles = [_dot(_colour(label), _name(label)) for label in np.unique(labels)]
    figure.legend(handles=handles, loc="outside upper left", ncols=5, columnspacing=1.2, handletextpad=0.1)
    return figure


@styled
def attention_of_cls(particles: Floats, attention: Floats, labels: Labels, layer: int = -1) -> Figure:
    """What each head of a block looks at from [CLS]: a row per head, a column per jet.

    Parameters
    ----------
    particles : float array (jet, particle, feature)
        eta_rel, phi_rel, pt_rel, valid. Area is pt_rel.
    attention : float array (jet, layer, head, particle + 1)
        Shares that sum to 1, of [CLS] to itself first. The redder a particle, the larger its share.
    labels : int array (jet,)
    layer : int
        Block drawn, the last one by default.
    """
    jets, heads = len(particles), attention.shape[2]
    figure = Figure(figsize=(WIDTH, 0.75 + heads * min(1.3, WIDTH / max(1, jets))), layout="constrained")
    panels = figure.subplots(heads, jets, squeeze=False)
    valid = particles[..., 3] > 0.5
    shares = attention[:, layer, :, 1:]
    norm, colours = _steps()
    for jet in range(jets):
        shown, reach = particles[jet][valid[jet]], _reach(particles[jet][valid[jet]])
        for head in range(heads):
            axes = panels[head, jet]
            _dots(axes, shown, colours(norm(shares[jet, head][valid[jet]])), edgecolor=MUTED)
            _window(axes, reach)
            axes.set(xticks=[], yticks=[])
        panels[0, jet].set_title(f"{_name(labels[jet])} jet", pad=4)
    for head in range(heads):
        panels[head, 0].set_ylabel(f"head {head + 1}", loc="center")
    bar = figure.colorbar(
        ScalarMappable(norm, colours),
        ax=panels,
        location="bottom",
        aspect=34,
        pad=0.02,
        ticks=SHARES,
        spacing="uniform",
        format="%g",
    )
    bar.set_label("share of the attention of [CLS]")
    bar.ax.minorticks_off()
    return figure


@styled
def augmented_jets(
    particles: Floats, masked: NDArray[Any], views: Floats, views_masked: NDArray[Any], labels: Labels
) -> Figure:
    """Jets before and after augmentation: a row per jet, the jet itself and its two views; masked particles in red.

    Parameters
    ----------
    particles : float array (jet, particle, feature)
        eta_rel, phi_rel, pt_rel (area), valid.
    masked : array (jet, particle)
        1 where hidden from the student, if the jet were its own view.
    views : float array (jet, view, particle, feature)
    views_masked : array (jet, view, particle)
    labels : int array (jet,)
    """
    figure = Figure(figsize=(WIDTH, 0.5 + 1.42 * len(particles)), layout="constrained")
    panels = figure.subplots(len(particles), 3, squeeze=False)
    for row, label in enumerate(labels):
        shown = [(particles[row], masked[row]), *zip(views[row], views_masked[row], strict=True)]
        reach = 1.3 * _reach(particles[row][particles[row, :, 3] > 0.5])
        for axes, (jet, hidden) in zip(panels[row], shown, strict=True):
            valid = jet[:, 3] > 0.5
            _masked_dots(axes, jet[valid], np.asarray(hidden, dtype=bool)[valid])
            _window(axes, reach)
            axes.tick_params(labelsize=7.5)
        for axes in panels[row, 1:]:
            axes.set_yticklabels([])
        panels[row, 0].set_ylabel(f"{_name(label)} jet, $\\phi_\\mathrm{{rel}}$", loc="center")
    for axes, title in zip(panels[0], ("before", "view 1", "view 2"), strict=True):
        axes.set_title(title, pad=4)
    for axes in panels[-1]:
        axes.set_xlabel(r"$\eta_\mathrm{rel}$")
    handles = [_dot(PALETTE[8], "seen by the student"), _dot(MASKED, "masked")]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, columnspacing=1.2, handletextpad=0.1)
    return figure


@styled
def rejection_curves(signals: Mapping[str, tuple[Floats, NDArray[np.bool_]]]) -> Figure:
    """ROC: background rejection 1/eps_b against signal efficiency eps_s, one line per signal.

    Bands are the 68% Clopper-Pearson interval of eps_b from the number of background jets that pass. Scores that are
    not finite are left out; a signal without jets, or without background, has no line.

    Parameters
    ----------
    signals : mapping
        Name -> scores (jet,), higher is more signal-like, and which of them are signal (jet,).
    """
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes = figure.subplots()
    efficiency, most = np.linspace(0.005, 1, ROC_POINTS), 1.0
    axes.plot(efficiency, 1 / efficiency, color=MUTED, lw=0.9, ls=(0, (3, 2)), label="guessing")
    for name, (scores, positive) in signals.items():
        known = np.isfinite(scores)
        scores, positive = scores[known], positive[known]
        if not positive.any() or positive.all():
            continue
        rejection, low, high = rejection_band(scores, positive, efficiency)
        colour = SIGNAL_COLOURS.get(name, INK)
        axes.fill_between(efficiency, low, high, color=colour, alpha=0.18, lw=0)
        axes.plot(efficiency, rejection, color=colour, label=name, ls="--" if name == "combined" else "-")
        most = max(most, float((~positive).sum()))
    axes.set(yscale="log", xlim=(0, 1), ylim=(0.9, 2 * max(most, 10)))
    axes.set_xlabel(r"signal efficiency $\varepsilon_s$")
    axes.set_ylabel(r"background rejection $1/\varepsilon_b$")
    axes.xaxis.set_minor_locator(AutoMinorLocator())
    figure.legend(loc="outside upper left", ncols=6, columnspacing=1.0, handlelength=1.2, handletextpad=0.4)
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


@styled
def score_histograms(panels: Mapping[str, Mapping[str, Floats]], axis: str = "score", log: bool = True) -> Figure:
    """Distributions of a score, each normalised to 1, with Poisson errors; a panel per score, a line per sample.

    The outer bins also hold what lies beyond them. Scores that are not finite are left out.

    Parameters
    ----------
    panels : mapping
        Title -> sample -> scores (jet,).
    """
    columns = 1 if len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 0.55 + (2.6 if columns == 1 else 1.75) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (title, samples) in zip(grid.flat, panels.items(), strict=False):
        _histogram(axes, {name: scores[np.isfinite(scores)] for name, scores in samples.items()}, log)
        axes.set_title(title if columns > 1 else "", loc="left", pad=4)
        axes.xaxis.set_major_locator(MaxNLocator(4 if columns > 1 else 6))
        if columns > 1:
            axes.minorticks_off()
        axes.set_xlabel(axis)
    for axes in grid[:, 0]:
        axes.set_ylabel("density")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    names = dict.fromkeys(name for samples in panels.values() for name in samples)
    handles = [Line2D([], [], color=_sample_colour(name), label=name) for name in names]
    figure.legend(handles=handles, loc="outside upper left", ncols=6, columnspacing=1.0, handlelength=1.2)
    return figure


def _histogram(axes: Axes, samples: Mapping[str, Floats], log: bool) -> None:
    everything = np.concatenate([*samples.values(), np.array([])])
    fewest = min((len(scores) for scores in samples.values() if len(scores)), default=0)
    edges = histogram_edges(everything, int(np.clip(1.5 * math.sqrt(fewest), LEAST_BINS, MOST_BINS)))
    for name, scores in samples.items():
        if not len(scores):
            continue
        counts = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0]
        scale = len(scores) * np.diff(edges)
        density, error = counts / scale, np.sqrt(counts) / scale
        band: Any = {"baseline": density - error, "fill": True, "color": _sample_colour(name), "alpha": 0.2, "lw": 0}
        axes.stairs(density + error, edges, **band)
        mplhep.histplot(density, edges, ax=axes, color=_sample_colour(name), lw=1.2)
    if log and len(everything):
        axes.set_yscale("log")
    axes.set_xlim(edges[0], edges[-1])


def histogram_edges(scores: Floats, bins: int = MOST_BINS) -> NDArray[np.float64]:
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


PRETRAINING = {
    "loss": {
        "train/loss": "total",
        "train/cls_loss": "[CLS]",
        "train/particle_loss": "masked particles",
        "train/koleo_loss": "KoLeo",
    },
    "entropy (nats)": {"train/teacher_entropy": "teacher", "train/student_entropy": "student"},
}
"""Columns of the learning curves by panel."""


@styled
def pretraining_curves(curves: pd.DataFrame, learning_rate: bool = False) -> Figure:
    """Loss terms and entropies of pre-training against epoch; the learning rate, too, if wanted.

    Parameters
    ----------
    curves : DataFrame
        `epoch` and ``train/...``: a row per probed epoch, means over its steps. What is missing is not drawn.
    """
    panels = PRETRAINING | ({"learning rate": {"train/lr": ""}} if learning_rate else {})
    figure = Figure(figsize=(WIDTH, 0.3 + 1.9 * len(panels)), layout="constrained")
    for axes, (label, columns) in zip(figure.subplots(len(panels), 1, sharex=True), panels.items(), strict=True):
        drawn = [(column, name) for column, name in columns.items() if column in curves]
        for number, (column, name) in enumerate(drawn):
            known = curves.dropna(subset=[column])
            axes.plot(known["epoch"], known[column], marker="osD^"[number], color=_line(number), label=name, mew=0)
        _finish_curves(axes, label)
        if drawn and columns != {"train/lr": ""}:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.1, columnspacing=1.0)
    axes.set_xlabel("epoch")
    return figure


@styled
def finetuning_curves(rows: pd.DataFrame, names: Mapping[str, str] | None = None) -> Figure:
    """Loss and accuracy of classifiers against epoch, on training jets dashed and on validation jets solid.

    Parameters
    ----------
    rows : DataFrame
        `run`, `epoch`, `train_loss`, `val_loss`, `train_accuracy`, `val_accuracy`.
    names : mapping, optional
        Run -> what to call it.
    """
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    runs = list(dict.fromkeys(rows["run"]))
    for axes, quantity in zip(figure.subplots(2, 1, sharex=True), ("loss", "accuracy"), strict=True):
        for number, run in enumerate(runs):
            of_run = rows[rows["run"] == run].sort_values("epoch")
            for split, dashes, width in (("train", (0, (3, 1.5)), 1.0), ("val", "-", 1.5)):
                column = f"{split}_{quantity}"
                known = of_run.dropna(subset=[column]) if column in of_run else of_run.iloc[:0]
                # A single point has no line.
                marker = "o" if len(known) < 2 else ""
                axes.plot(known["epoch"], known[column] if len(known) else [], ls=dashes, lw=width, marker=marker,
                          color=PALETTE[number % len(PALETTE)])  # fmt: skip
        _finish_curves(axes, quantity)
    axes.set_xlabel("epoch")
    handles = [
        Line2D([], [], color=PALETTE[number % len(PALETTE)], label=(names or {}).get(run, run))
        for number, run in enumerate(runs)
    ]
    handles += [
        Line2D([], [], color=MUTED, ls=(0, (3, 1.5)), lw=1.0, label="training jets"),
        Line2D([], [], color=MUTED, label="validation jets"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, columnspacing=1.2)
    return figure


def _finish_curves(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_minor_locator(AutoMinorLocator())


def _line(number: int) -> str:
    """Colours of lines in a panel, the total in ink."""
    return (INK, *PALETTE[:4])[number]


def _name(label: int) -> str:
    return CLASS_LABELS[label] if 0 <= label < len(CLASS_LABELS) else str(label)


def _colour(label: int) -> str:
    return CLASS_COLOURS[int(label) % len(CLASS_COLOURS)]


def _sample_colour(name: str) -> str:
    return SIGNAL_COLOURS.get(name, MUTED)


def _dot(colour: str, label: str) -> Line2D:
    return Line2D([], [], ls="", marker=DOT, ms=5, color=colour, mew=0, label=label)


def _area(pt: Floats) -> Floats:
    return np.asarray(3 + 450 * np.clip(pt, 0, 1))


def _dots(axes: Axes, jet: Floats, colours: Any, edgecolor: str) -> None:
    """Particles, hard ones first so that soft ones are not hidden."""
    order = np.argsort(-jet[:, 2])
    axes.scatter(
        jet[order, 0], jet[order, 1], s=_area(jet[order, 2]), marker=DOT, facecolor=colours[order],
        edgecolor=edgecolor, lw=0.4,
    )  # fmt: skip


def _masked_dots(axes: Axes, jet: Floats, masked: NDArray[np.bool_]) -> None:
    for chosen, colour, alpha in ((~masked, PALETTE[8], 0.5), (masked, MASKED, 0.75)):
        dots = jet[chosen]
        axes.scatter(dots[:, 0], dots[:, 1], s=_area(dots[:, 2]), marker=DOT, color=colour, alpha=alpha, lw=0)


def _reach(jet: Floats) -> float:
    """Half the width of a window that shows all particles."""
    return max(0.05, 1.15 * float(np.abs(jet[:, :2]).max(initial=0.0)))


def _window(axes: Axes, reach: float) -> None:
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))
    axes.yaxis.set_major_locator(MaxNLocator(3, symmetric=True))
    axes.minorticks_off()
    axes.tick_params(length=2.5, top=False, right=False)


def _steps() -> tuple[BoundaryNorm, ListedColormap]:
    """From clear to opaque, which reads on white and on black; steps of 1, 2, 5, as shares span decades."""
    colours = ListedColormap([to_rgba(ATTENTION, alpha) for alpha in np.linspace(0, 1, len(SHARES) - 1)])
    return BoundaryNorm(SHARES, colours.N, clip=True), colours

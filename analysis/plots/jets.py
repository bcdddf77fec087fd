"""Jets in the (eta, phi) plane, and as points of maps of their embeddings (:mod:`analysis.stats.tsne`).

particles : (jet, particle, feature), eta_rel, phi_rel, pt_rel (share of the jet's, drawn as area), valid
masked : (jet, particle), 1 where hidden from the student
labels : (jet,), 0 to 4: q, g, W, Z, t
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from numpy.typing import NDArray

from analysis.plots import style

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
SEEN = style.PALETTE[8]
SHARES = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
"""Steps of attention, the same in every figure. A head that looks everywhere gives 30 particles 0.03 each."""


@style.styled
def example_jets(particles: Floats, masked: NDArray[Any], labels: Labels) -> Figure:
    """Jets as they are, masked particles in red."""
    figure, grid = style.panels(len(particles), 3, 0, 1.85)
    for axes, jet, hidden, label in zip(grid.flat, particles, masked, labels, strict=False):
        _masked_dots(axes, jet, hidden, area=900)
        _window(axes, 1.25 * _extent(jet))
        axes.set(xlabel=r"$\eta_\mathrm{rel}$")
        axes.set_title(f"{style.class_name(label)} jet", loc="left", pad=4)
        axes.tick_params(labelsize=7.5)
    for axes in grid[:, 0]:
        axes.set_ylabel(r"$\phi_\mathrm{rel}$")
    return figure


@style.styled
def augmented_jets(
    particles: Floats, masked: NDArray[Any], views: Floats, views_masked: NDArray[Any], labels: Labels
) -> Figure:
    """One row per jet, the jet itself and its two views; masked particles in red.

    views : (jet, view, particle, feature); views_masked : (jet, view, particle)
    """
    figure, grid = style.panels(3 * len(particles), 3, 0.5, 1.42)
    for row, label in enumerate(labels):
        shown = [(particles[row], masked[row]), *zip(views[row], views_masked[row], strict=True)]
        for axes, (jet, hidden) in zip(grid[row], shown, strict=True):
            _masked_dots(axes, jet, hidden)
            _small_window(axes, 1.3 * 1.15 * _extent(particles[row]))
            axes.tick_params(labelsize=7.5)
        for axes in grid[row, 1:]:
            axes.set_yticklabels([])
        grid[row, 0].set_ylabel(f"{style.class_name(label)} jet, $\\phi_\\mathrm{{rel}}$", loc="center")
    for axes, title in zip(grid[0], ("before", "view 1", "view 2"), strict=True):
        axes.set_title(title, pad=4)
    for axes in grid[-1]:
        axes.set_xlabel(r"$\eta_\mathrm{rel}$")
    handles = [_dot(SEEN, "seen by the student"), _dot(style.MASKED, "masked")]
    style.legend_above(figure, 2, handles, handletextpad=0.1)
    return figure


@style.styled
def attention_of_cls(particles: Floats, attention: Floats, labels: Labels) -> Figure:
    """What each head of the last block looks at from [CLS]: one row per head, one column per jet.

    attention : (jet, layer, head, particle + 1), shares that sum to 1, of [CLS] to itself first; redder is larger
    """
    jets, heads = len(particles), attention.shape[2]
    figure, grid = style.panels(heads * jets, jets, 0.75, min(1.3, style.WIDTH / max(1, jets)))
    shares = attention[:, -1, :, 1:]
    # From clear to opaque, which reads on white and on black; steps of 1, 2, 5, as shares span decades.
    colours = ListedColormap([to_rgba(style.MASKED, alpha) for alpha in np.linspace(0, 1, len(SHARES) - 1)])
    norm = BoundaryNorm(SHARES, colours.N, clip=True)
    for (head, jet), axes in np.ndenumerate(grid):
        # Hard ones first, so that soft ones are not hidden.
        order = [i for i in np.argsort(-particles[jet, :, 2], kind="stable") if particles[jet, i, 3] > 0.5]
        x, y, pt = particles[jet, order, :3].T
        face = colours(norm(shares[jet, head, order]))
        axes.scatter(x, y, s=_area(pt), marker=DOT, facecolor=face, edgecolor=style.MUTED, lw=0.4)
        _small_window(axes, 1.15 * _extent(particles[jet]))
        axes.set(xticks=[], yticks=[])
        if head == 0:
            axes.set_title(f"{style.class_name(labels[jet])} jet", pad=4)
        if jet == 0:
            axes.set_ylabel(f"head {head + 1}", loc="center")
    bar = figure.colorbar(
        ScalarMappable(norm, colours), ax=grid, location="bottom", aspect=34, pad=0.02,
        ticks=SHARES, spacing="uniform", format="%g",
    )  # fmt: skip
    bar.set_label("share of the attention of [CLS]")
    bar.ax.minorticks_off()
    return figure


def _area(pt: Floats, area: float = 450) -> Floats:
    return np.asarray(3 + area * np.clip(pt, 0, 1))


def _masked_dots(axes: Axes, jet: Floats, masked: NDArray[Any], area: float = 450) -> None:
    """Particles of a jet, without its padding."""
    for hidden, colour, alpha in ((False, SEEN, 0.5), (True, style.MASKED, 0.75)):
        dots = jet[(jet[:, 3] > 0.5) & (np.asarray(masked, dtype=bool) == hidden)]
        axes.scatter(dots[:, 0], dots[:, 1], s=_area(dots[:, 2], area), marker=DOT, color=colour, alpha=alpha, lw=0)


def _extent(jet: Floats) -> float:
    """Half the width of a square that holds all particles."""
    return max(0.04, float(np.abs(jet[jet[:, 3] > 0.5, :2]).max(initial=0.0)))


def _window(axes: Axes, reach: float) -> None:
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    style.few_ticks(axes.xaxis, 3, symmetric=True)
    style.few_ticks(axes.yaxis, 3, symmetric=True)


def _small_window(axes: Axes, reach: float) -> None:
    _window(axes, reach)
    axes.minorticks_off()
    axes.tick_params(length=2.5, top=False, right=False)


def _dot(colour: str, label: str) -> Line2D:
    """A dot beside a name."""
    return Line2D([], [], ls="", marker=DOT, ms=5, color=colour, mew=0, label=label)


@style.styled
def embedding_map(points: Floats, labels: Labels) -> Figure:
    """One encoder: every jet is the letter of its class. points : (jet, 2)"""
    figure = Figure(figsize=(3.0, 3.0), layout="constrained")
    axes = figure.subplots()
    for label in np.unique(labels):
        marker, chosen = rf"$\mathrm{{{style.class_name(label)}}}$", points[labels == label]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=28, marker=marker, color=style.class_colour(label), lw=0, alpha=0.9)
    _without_scale(axes)
    axes.margins(0.04)
    return figure


@style.styled
def embedding_evolution(maps: Mapping[int, Floats], labels: Labels) -> Figure:
    """Maps of the same jets, one panel per finished epoch. maps : epoch -> points (jet, 2), in the order drawn"""
    columns = min(3, max(1, len(maps)))
    figure, grid = style.panels(len(maps), columns, 0.35, style.WIDTH / columns + 0.2)
    for (epoch, points), axes in zip(maps.items(), grid.flat, strict=False):
        for label in np.unique(labels):
            chosen = points[labels == label]
            axes.scatter(chosen[:, 0], chosen[:, 1], s=6, marker=DOT, color=style.class_colour(label), lw=0, alpha=0.8)
        axes.set_title("untrained" if epoch == 0 else f"epoch {epoch}", loc="left", pad=4)
        _without_scale(axes)
    handles = [_dot(style.class_colour(label), style.class_name(label)) for label in np.unique(labels)]
    style.legend_above(figure, 5, handles, handletextpad=0.1)
    return figure


def _without_scale(axes: Axes) -> None:
    """t-SNE has no unit: only who lies beside whom means anything."""
    axes.set(xticks=[], yticks=[])
    axes.minorticks_off()
    axes.set_aspect("equal", adjustable="datalim")

"""Two-dimensional maps of embeddings (:mod:`analysis.stats.tsne`), coloured by class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.plots.jets import DOT, legend_dot
from analysis.plots.style import WIDTH, class_colour, class_name, legend_above, panels, styled

Floats = NDArray[np.floating]
Labels = NDArray[np.int64]


@styled
def embedding_map(points: Floats, labels: Labels) -> Figure:
    """One encoder: every jet is the letter of its class.

    Parameters
    ----------
    points : float array (jet, 2)
    labels : int array (jet,)
        0 to 4: q, g, W, Z, t.
    """
    figure = Figure(figsize=(3.0, 3.0), layout="constrained")
    axes = figure.subplots()
    for label in np.unique(labels):
        marker, chosen = rf"$\mathrm{{{class_name(label)}}}$", points[labels == label]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=28, marker=marker, color=class_colour(label), lw=0, alpha=0.9)
    _without_scale(axes)
    axes.margins(0.04)
    return figure


@styled
def embedding_evolution(maps: Mapping[int, Floats], labels: Labels) -> Figure:
    """Small multiples of maps of the same jets, one panel per finished epoch.

    Parameters
    ----------
    maps : mapping
        Epoch -> points (jet, 2), in the order drawn.
    labels : int array (jet,)
        0 to 4: q, g, W, Z, t.
    """
    columns = min(3, max(1, len(maps)))
    rows = -(-len(maps) // columns)
    figure, grid = panels(0.35 + rows * (WIDTH / columns + 0.2), rows, columns, len(maps))
    for (epoch, points), axes in zip(maps.items(), grid.flat, strict=False):
        for label in np.unique(labels):
            chosen = points[labels == label]
            axes.scatter(chosen[:, 0], chosen[:, 1], s=6, marker=DOT, color=class_colour(label), lw=0, alpha=0.8)
        axes.set_title("untrained" if epoch == 0 else f"epoch {epoch}", loc="left", pad=4)
        _without_scale(axes)
    handles = [legend_dot(class_colour(label), class_name(label)) for label in np.unique(labels)]
    legend_above(figure, 5, handles, handletextpad=0.1)
    return figure


def _without_scale(axes: Axes) -> None:
    """t-SNE has no unit: only who lies beside whom means anything."""
    axes.set(xticks=[], yticks=[])
    axes.minorticks_off()
    axes.set_aspect("equal", adjustable="datalim")

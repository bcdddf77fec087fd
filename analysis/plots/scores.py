"""Scores of arms and encoders: every trial in its row, shares of variance, ranges over settings, one against others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots.style import (
    FAINT,
    INK,
    MUTED,
    PALETTE,
    attach_tooltips,
    canvas,
    few_ticks,
    label_rows,
    legend_above,
    literal,
    panels,
    styled,
)
from analysis.verdicts import number_format as fmt
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.arm_colours import arm_colours


@styled
def scores_by_seed(
    scores: pd.DataFrame, metric: str, arms: Sequence[str], baseline: pd.Series | None = None, paired: bool = True
) -> Figure:
    """Every trial: one row per arm, one grey line per seed that joins its block.

    Parameters
    ----------
    scores : DataFrame (seed, arm)
        NaN where a trial has no score.
    arms : sequence of str
        To draw.
    baseline : Series (arm,), optional
        Mean of the untrained encoder, drawn as a tick.
    paired : bool
        Join the blocks: not where arms are not compared.
    """
    figure, axes = canvas(0.75 + 0.36 * len(arms))
    rows = label_rows(axes, arms)
    axes.tick_params(axis="y", which="major", left=True, right=True)
    for _, block in scores[list(arms)].iterrows() if paired else ():
        axes.plot(block.to_numpy(dtype=float), rows, color=FAINT, lw=0.8, zorder=1)
    colours = arm_colours(list(scores.columns))
    for row, arm in zip(rows, arms, strict=True):
        known = scores[arm].dropna().astype(float)
        dots = axes.plot(known, np.full(len(known), row), "o", color=colours[arm], ms=4.5, alpha=0.85, mew=0, zorder=2)
        attach_tooltips(dots[0], [f"{arm}, seed {seed}: {fmt.number(x)}" for seed, x in known.items()], arm)
        axes.plot(known.mean(), row, "|", color=INK, ms=15, mew=1.8, zorder=3)
        if baseline is not None and math.isfinite(baseline[arm]):
            axes.plot(baseline[arm], row, "|", color=MUTED, ms=11, mew=1.2, zorder=2)
    axes.set_xlabel(find_metric(metric).full_label)
    few_ticks(axes.xaxis)
    return figure


@styled
def variance_shares(shares: Sequence[tuple[str, float]]) -> Figure:
    """Horizontal bars, single factors dark and interactions pale, in the order given.

    Parameters
    ----------
    shares : sequence of (name, share)
    """
    figure, axes = canvas(0.75 + 0.27 * len(shares))
    rows = label_rows(axes, [name for name, _ in shares], 44)
    pale = [" × " in name or name.startswith("all other") for name, _ in shares]
    colours = [PALETTE[4] if one else PALETTE[0] for one in pale]
    axes.barh(rows, [100 * share for _, share in shares], height=0.62, color=colours, lw=0)
    axes.set(ylim=(len(shares) - 0.4, -0.6), xlabel="share of the variance [%]", xlim=(0, None))
    return figure


@styled
def score_ranges(scores: Mapping[str, Mapping[str, float]]) -> Figure:
    """One row per score: the range over settings as a bar, and marks at single ones.

    Parameters
    ----------
    scores : mapping
        Name -> `low` and `high` of the bar, `published`, `chosen`, `oracle`, `untrained`; NaN is not drawn.
    """
    figure, axes = canvas(1.1 + 0.36 * len(scores))
    rows = label_rows(axes, list(scores))
    marks = {"published": ("o", PALETTE[0]), "chosen": ("D", PALETTE[6]), "oracle": ("^", INK)}
    for row, one in zip(rows, scores.values(), strict=True):
        axes.plot([one["low"], one["high"]], [row, row], color=FAINT, lw=5, solid_capstyle="butt", zorder=1)
        axes.plot(one["untrained"], row, "|", color=MUTED, ms=12, mew=1.4, zorder=2)
    for name, (marker, colour) in marks.items():
        values = [one[name] for one in scores.values()]
        axes.plot(values, rows, marker, color=colour, ms=5.5, mew=0, label=name, zorder=3)
    axes.set_xlabel("AUC")
    few_ticks(axes.xaxis)
    legend_above(figure, 3)
    return figure


@styled
def against_each(
    points: pd.DataFrame, columns: Mapping[str, str], quantity: str, label: str, log: Sequence[str] = ()
) -> Figure:
    """One number against others, one panel each; one point per encoder.

    Parameters
    ----------
    points : DataFrame
        arm, trained (bool), the quantity and the columns.
    columns : mapping
        Column -> its label.
    log : sequence of str
        Columns with a logarithmic axis.
    """
    rows = -(-len(columns) // 2)
    figure, grid = panels(0.5 + 1.75 * rows, rows, 2, len(columns), sharey=True)
    for axes, (column, name) in zip(grid.flat, columns.items(), strict=False):
        for arm, colour in arm_colours(list(dict.fromkeys(points["arm"]))).items():
            for trained, fill in ((True, colour), (False, "none")):
                some = points[(points["arm"] == arm) & (points["trained"] == trained)]
                label_of = literal(arm) if trained and axes is grid.flat[0] else None
                axes.plot(some[column], some[quantity], "o", ms=4.2, mfc=fill, mec=colour, mew=0.9, label=label_of)
        axes.set_xlabel(literal(name))
        if column in log and (points[column] > 0).any():
            axes.set_xscale("log")
        else:
            few_ticks(axes.xaxis, 4)
    for axes in grid[:, 0]:
        axes.set_ylabel(literal(label))
    legend_above(figure, 3)
    return figure

"""Scores of arms and encoders: by trial, by share of variance, over settings, against geometry and jet energy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.plots import style
from analysis.stats import paired
from analysis.verdicts import number_format as fmt
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.arm_colours import arm_colour, arm_colours

Scores = Sequence[NDArray[np.float64]]
"""One array (seed,) per energy, empty where there is none."""


@style.styled
def scores_by_seed(
    scores: pd.DataFrame, metric: str, arms: Sequence[str], baseline: pd.Series | None = None, paired: bool = True
) -> Figure:
    """Every trial: one row per arm, one grey line per seed that joins its block, where arms are `paired`.

    scores : (seed, arm), NaN where a trial has none; arms : to draw; baseline : (arm,), untrained encoder, a tick
    """
    figure, axes = style.canvas(0.75 + 0.36 * len(arms))
    rows = style.label_rows(axes, arms)
    axes.tick_params(axis="y", which="major", left=True, right=True)
    for _, block in scores[list(arms)].iterrows() if paired else ():
        axes.plot(block.to_numpy(dtype=float), rows, color=style.FAINT, lw=0.8, zorder=1)
    colours = arm_colours(list(scores.columns))
    for row, arm in zip(rows, arms, strict=True):
        known = scores[arm].dropna().astype(float)
        dots = axes.plot(known, np.full(len(known), row), "o", color=colours[arm], ms=4.5, alpha=0.85, mew=0, zorder=2)
        style.attach_tooltips(dots[0], [f"{arm}, seed {seed}: {fmt.number(x)}" for seed, x in known.items()], arm)
        axes.plot(known.mean(), row, "|", color=style.INK, ms=15, mew=1.8, zorder=3)
        if baseline is not None and math.isfinite(baseline[arm]):
            axes.plot(baseline[arm], row, "|", color=style.MUTED, ms=11, mew=1.2, zorder=2)
    axes.set_xlabel(find_metric(metric).full_label)
    style.few_ticks(axes.xaxis)
    return figure


@style.styled
def variance_shares(shares: Sequence[tuple[str, float]]) -> Figure:
    """Horizontal bars of (name, share), single factors dark and interactions pale, in the order given."""
    figure, axes = style.canvas(0.75 + 0.27 * len(shares))
    rows = style.label_rows(axes, [name for name, _ in shares], 44)
    pale = [" × " in name or name.startswith("all other") for name, _ in shares]
    colours = [style.PALETTE[4] if one else style.PALETTE[0] for one in pale]
    axes.barh(rows, [100 * share for _, share in shares], height=0.62, color=colours, lw=0)
    axes.set(ylim=(len(shares) - 0.4, -0.6), xlabel="share of the variance [%]", xlim=(0, None))
    return figure


@style.styled
def score_ranges(scores: pd.DataFrame) -> Figure:
    """One row per score: the range over settings as a bar, and marks at single ones.

    scores : one row per score; `low`, `high` of the bar, `published`, `chosen`, `oracle`, `untrained`; NaN is not drawn
    """
    figure, axes = style.canvas(1.1 + 0.36 * len(scores))
    rows = style.label_rows(axes, list(scores.index))
    for row, one in zip(rows, scores.to_dict("records"), strict=True):
        axes.plot([one["low"], one["high"]], [row, row], color=style.FAINT, lw=5, solid_capstyle="butt", zorder=1)
        axes.plot(one["untrained"], row, "|", color=style.MUTED, ms=12, mew=1.4, zorder=2)
    for name, marker, colour in (
        ("published", "o", style.PALETTE[0]),
        ("chosen", "D", style.PALETTE[6]),
        ("oracle", "^", style.INK),
    ):
        axes.plot(scores[name], rows, marker, color=colour, ms=5.5, mew=0, label=name, zorder=3)
    axes.set_xlabel("AUC")
    style.few_ticks(axes.xaxis)
    style.legend_above(figure, 3)
    return figure


@style.styled
def against_each(
    points: pd.DataFrame, columns: Mapping[str, str], quantity: str, label: str, log: Sequence[str] = ()
) -> Figure:
    """One number against others, one panel each; one point per encoder.

    points : arm, trained (bool), the quantity and the columns; columns : column -> its label; log : logarithmic ones
    """
    figure, grid = style.panels(len(columns), 2, 0.5, 1.75, sharey=True)
    for axes, (column, name) in zip(grid.flat, columns.items(), strict=False):
        for arm, colour in arm_colours(list(dict.fromkeys(points["arm"]))).items():
            for trained, fill in ((True, colour), (False, "none")):
                some = points[(points["arm"] == arm) & (points["trained"] == trained)]
                label_of = style.literal(arm) if trained and axes is grid.flat[0] else None
                axes.plot(some[column], some[quantity], "o", ms=4.2, mfc=fill, mec=colour, mew=0.9, label=label_of)
        axes.set_xlabel(style.literal(name))
        if column in log and (points[column] > 0).any():
            axes.set_xscale("log")
        else:
            style.few_ticks(axes.xaxis, 4)
    for axes in grid[:, 0]:
        axes.set_ylabel(style.literal(label))
    style.legend_above(figure, 3)
    return figure


@dataclass(frozen=True, kw_only=True)
class EncoderScores:
    """An arm over the energies."""

    arm: str
    own: int
    """Which of the energies it was pre-trained at."""
    refitted: Scores
    """By probes of the energy of the test jets."""
    shifted: Scores
    """By probes of its own energy."""


@style.styled
def scores_by_energy(encoders: Sequence[EncoderScores], baseline: Scores, pts: Sequence[float], label: str) -> Figure:
    """One line per encoder, means with standard errors; dashed for probes of the encoder's own energy.

    baseline : scores of the untrained encoder, by energy; pts : jet pT in GeV
    """
    figure, axes = style.canvas(3.3)
    for number, encoder in enumerate(encoders):
        x = np.arange(len(pts)) + 0.04 * (number - (len(encoders) - 1) / 2)
        look: dict[str, Any] = {"color": arm_colour(number), "marker": style.MARKERS[number % len(style.MARKERS)]}
        _line(axes, x, encoder.shifted, look | {"ls": "--", "mfc": "none"})
        _line(axes, x, encoder.refitted, look | {"label": encoder.arm.lstrip("_")})
        if len(own := encoder.refitted[encoder.own]):
            axes.plot(x[encoder.own], own.mean(), "o", ms=11, mfc="none", color=look["color"])
    _line(axes, np.arange(len(pts)), baseline, {"color": style.MUTED, "marker": "", "ls": ":", "label": "untrained"})
    axes.set_xticks(range(len(pts)), [f"{pt:g}" for pt in pts])
    axes.tick_params(axis="x", which="minor", bottom=False, top=False)
    axes.set_xlabel("jet pT of the test jets [GeV]")
    style.upright(axes, label, 36)
    style.legend_above(figure, 2)
    return figure


def _line(axes: Axes, x: NDArray[Any], scores: Scores, look: dict[str, Any]) -> None:
    means = [paired.mean_interval(one) for one in scores]
    bars = [mean.standard_error if mean.n > 1 else 0.0 for mean in means]
    axes.errorbar(x, [mean.mean for mean in means], bars, elinewidth=0.9, **look)

"""Curves against epoch: learning curves of arms and their paired differences, losses of a trial, values of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoMinorLocator

from analysis.plots import style
from analysis.stats import paired
from analysis.verdicts import number_format as fmt
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.arm_colours import arm_colours

MIN_BAND_SEEDS = 4
"""Seeds from which on a t interval is drawn (heuristic): that of three is 2.5 standard deviations to either side, and
says more about Student's t than about the curve. Fewer seeds are drawn one by one."""
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
DASHES = (0, (3, 1.5))
"""How curves on training jets are drawn."""


@style.styled
def learning_curves(
    curves: pd.DataFrame,
    metric: str,
    arms: Sequence[str],
    all_arms: Sequence[str],
    confidence: float = 0.95,
    control: str = "",
) -> Figure:
    """Mean over complete trials with the t interval as a band, or few seeds one by one, against epoch.

    Parameters
    ----------
    curves : DataFrame
        `arm`, `seed`, `state`, `epoch` and the metric, one row per trial and epoch.
    arms, all_arms : sequence of str
        To draw, and of the study: these fix the colours.
    confidence : float
        Of the bands.
    control : str, optional
        The metric is then a paired difference to this arm, and there is no `state`.
    """
    figure, axes = style.canvas(3.1)
    if control:
        style.zero_line(axes)
    else:
        curves = curves[curves["state"] == "complete"].dropna(subset=[metric])
    for number, (arm, colour) in enumerate(arm_colours(all_arms).items()):
        of_arm = curves[curves["arm"] == arm]
        if arm in arms and not of_arm.empty:
            _curve(axes, of_arm, metric, arm, colour, style.MARKERS[number % len(style.MARKERS)], confidence)
    axes.set_xlabel("epoch")
    words = find_metric(metric)
    style.upright(axes, f"{words.label}, minus {control}" if control else words.full_label, 36)
    style.few_ticks(axes.xaxis, 6, integer=True)
    axes.yaxis.set_minor_locator(AutoMinorLocator())
    style.legend_above(figure, 3)
    return figure


def _curve(
    axes: Axes, curves: pd.DataFrame, metric: str, arm: str, colour: str, marker: str, confidence: float
) -> None:
    means = {float(epoch): paired.mean_interval(group[metric], confidence) for epoch, group in curves.groupby("epoch")}
    epochs, values = list(means), list(means.values())
    by_seed = curves.sort_values("epoch").groupby("seed")
    if len(by_seed) >= MIN_BAND_SEEDS:
        band = axes.fill_between(
            epochs, [one.low for one in values], [one.high for one in values], color=colour, alpha=0.14, lw=0
        )
        style.attach_tooltips(band, (), arm)
    else:
        for _, trial in by_seed:
            thin = axes.plot(trial["epoch"], trial[metric], color=colour, lw=0.7, alpha=0.5)
            style.attach_tooltips(thin[0], (), arm)
    line = axes.plot(epochs, [one.mean for one in values], marker=marker, color=colour, label=style.literal(arm), mew=0)
    tips = [f"{arm}, epoch {epoch:g}: {fmt.compact(y.mean, 4)}, mean of {y.n}" for epoch, y in means.items()]
    style.attach_tooltips(line[0], tips, arm)


@style.styled
def pretraining_curves(curves: pd.DataFrame) -> Figure:
    """Loss terms and entropies of pre-training against epoch. What is missing is not drawn.

    curves : `epoch` and ``train/...``, one row per probed epoch, means over its steps
    """
    figure, grid = style.panels(len(PRETRAINING), 1, 0.3, 1.9, sharex=True)
    for axes, (label, columns) in zip(grid.flat, PRETRAINING.items(), strict=True):
        drawn = [(column, name) for column, name in columns.items() if column in curves]
        # The total in ink.
        for (column, name), colour, marker in zip(drawn, (style.INK, *style.PALETTE), "osD^", strict=False):
            known = curves.dropna(subset=[column])
            axes.plot(known["epoch"], known[column], marker=marker, color=colour, label=name, mew=0)
        _finish(axes, label)
        if drawn:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.1, columnspacing=1.0)
    axes.set_xlabel("epoch")
    return figure


@style.styled
def finetuning_curves(rows: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Loss and accuracy of classifiers against epoch, on training jets dashed and on validation jets solid.

    rows : `run`, `epoch`, `train_loss`, `val_loss`, `train_accuracy`, `val_accuracy`; names : run -> what to call it
    """
    figure, grid = style.panels(2, 1, 0, 2.3, sharex=True)
    runs = arm_colours(list(dict.fromkeys(rows["run"])))
    for axes, quantity in zip(grid.flat, ("loss", "accuracy"), strict=True):
        for run, colour in runs.items():
            of_run = rows[rows["run"] == run].sort_values("epoch")
            for split, dashes, width in (("train", DASHES, 1.0), ("val", "-", 1.5)):
                column = f"{split}_{quantity}"
                known = of_run.dropna(subset=[column]) if column in of_run else of_run.iloc[:0]
                # A single point has no line.
                marker = "o" if len(known) < 2 else ""
                y = known[column] if len(known) else []
                axes.plot(known["epoch"], y, ls=dashes, lw=width, marker=marker, color=colour)
        _finish(axes, quantity)
    axes.set_xlabel("epoch")
    handles = [Line2D([], [], color=colour, label=names[run]) for run, colour in runs.items()]
    handles += [
        Line2D([], [], color=style.MUTED, ls=DASHES, lw=1.0, label="training jets"),
        Line2D([], [], color=style.MUTED, label="validation jets"),
    ]
    style.legend_above(figure, 2, handles)
    return figure


def _finish(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    style.few_ticks(axes.xaxis, 6, integer=True)
    style.few_ticks(axes.yaxis)
    axes.yaxis.set_minor_locator(AutoMinorLocator())


@style.styled
def steps_by_seed(curves: Mapping[str, pd.DataFrame], steps: Mapping[float, str], x_label: str) -> Figure:
    """Small multiples: values at a few steps, equally far apart, each seed a faint line under the mean.

    curves : title -> values (seed, step), NaN where a seed has none; steps : all steps in order -> what to call them
    """
    columns = min(2, len(curves))
    figure, grid = style.panels(len(curves), columns, 0.2, 1.75)
    place = {step: i for i, step in enumerate(steps)}
    for axes, (title, values) in zip(grid.flat, curves.items(), strict=False):
        x = [place[step] for step in values.columns]
        axes.plot(x, values.T.to_numpy(dtype=float), color=style.MUTED, lw=0.7, alpha=0.5, zorder=2)
        axes.plot(x, values.mean(), "o-", color=style.PALETTE[0], mew=0, zorder=3)
        axes.set_title(style.literal(title), loc="left", pad=4)
        axes.set_xticks(list(place.values()), list(steps.values()))
        axes.set_xlim(-0.25, len(place) - 0.75)
        axes.tick_params(axis="x", which="minor", bottom=False, top=False)
        style.few_ticks(axes.yaxis, 4)
    for axes in grid.flat[max(0, len(curves) - columns) : len(curves)]:
        axes.set_xlabel(x_label)
    return figure

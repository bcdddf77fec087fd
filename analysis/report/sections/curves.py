"""Learning curves of what may be compared between masking schemes: probes and entropies, no losses."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.plots import curves as plots
from analysis.plots.picture import Picture
from analysis.report.evidence import Evidence, compared_curves
from analysis.report.section import Section, slug
from analysis.verdicts import convergence
from analysis.verdicts import number_format as fmt
from jbot.evaluation.metrics_registry import find_metric

MAX_OPEN = 4
"""Curves that are not folded away."""


def section(evidence: Evidence) -> Section:
    """One figure per metric, the primary one first."""
    drawn = list(pictures(evidence))
    if not drawn:
        return Section(
            key="curves", title="Learning curves", sentences=["No complete trial has left a learning curve."]
        )
    first, rest = drawn[:MAX_OPEN], drawn[MAX_OPEN:]
    return Section(
        key="curves",
        title="Learning curves",
        sentences=[
            "Probes on validation jets; epoch 0 is the untrained encoder. Losses are not shown: under different "
            "masking they are different tasks."
        ],
        figures=first,
        details=[Section(title=fmt.count(len(rest), "more curve"), figures=rest)] if rest else [],
    )


def pictures(evidence: Evidence) -> Iterator[Picture]:
    """Paired differences of the primary metric's curves, then the curves of every metric."""
    first = convergence.validation_metric(evidence.plan, evidence.curves)
    control = convergence.control_arm(evidence.plan)
    if first and control:
        yield from _paired(evidence, first, control)
    complete = evidence.curves[evidence.curves["state"] == "complete"]
    for metric in sorted(comparable(evidence.curves), key=lambda name: name != first):
        words = find_metric(metric).full_label
        yield Picture(
            name=f"curves-{slug(metric)}",
            figure=plots.learning_curves(evidence.curves, metric, evidence.shown, list(evidence.plan.arms)),
            alt=f"Learning curves of {words} for {', '.join(evidence.shown)}.",
            caption=f"{words}: {_spread_words(complete, metric, 'complete trials')}.{evidence.not_all_drawn}",
        )


def _paired(evidence: Evidence, metric: str, control: str) -> Iterator[Picture]:
    """What the bands of single arms hide: they hold the spread over seeds, which pairs share."""
    curves = compared_curves(evidence.curves, evidence.states)
    differences = convergence.paired_curve_table(curves, metric, control)
    if differences.empty:
        return
    arms = [arm for arm in evidence.shown if arm != control]
    spread = _spread_words(differences, metric, "seeds")
    caption = f"Paired difference to {control} in {find_metric(metric).full_label}: {spread}.{evidence.not_all_drawn}"
    figure = plots.paired_curves(differences, metric, control, arms, list(evidence.plan.arms))
    yield Picture(name="curves-paired", figure=figure, alt=f"Learning curves. {caption}", caption=caption)


def _spread_words(curves: pd.DataFrame, metric: str, over: str) -> str:
    """What stands around a mean."""
    seeds = curves.dropna(subset=[metric]).groupby("arm")["seed"].nunique()
    bands, lines = bool((seeds >= plots.MIN_BAND_SEEDS).any()), bool((seeds < plots.MIN_BAND_SEEDS).any())
    parts = [f"mean over {over}", *["band: 95% interval"] * bands]
    parts += [f"thin lines: single seeds, where they are fewer than {plots.MIN_BAND_SEEDS}"] * lines
    return ", ".join(parts)


def comparable(curves: pd.DataFrame) -> list[str]:
    """Columns that mean the same in all arms: probes on validation jets, entropies of student and teacher."""
    names = [name for name in curves.columns if find_metric(name).split == "val" or name.endswith("_entropy")]
    complete = curves[curves["state"] == "complete"]
    return [name for name in names if complete[name].notna().any()]

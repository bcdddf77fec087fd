"""Learning curves of what may be compared between masking schemes, probes and entropies; and how fast arms learn."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.plots import curves as plots
from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section, Table, slug
from analysis.verdicts import convergence
from analysis.verdicts import number_format as fmt
from analysis.verdicts.convergence import Convergence
from analysis.verdicts.sentences import contrast_name
from jbot.evaluation.metrics_registry import find_metric

MAX_OPEN = 4
"""Curves that are not folded away."""


def section(evidence: Evidence) -> Section:
    """One figure per metric, the primary one first."""
    drawn = list(pictures(evidence))
    said = "Probes on validation jets; epoch 0 is the untrained encoder. Losses are not shown: under different masking "
    said += "they are different tasks."
    rest = drawn[MAX_OPEN:]
    return Section(
        key="curves",
        title="Learning curves",
        sentences=[said if drawn else "No complete trial has left a learning curve."],
        figures=drawn[:MAX_OPEN],
        details=[Section(title=fmt.count(len(rest), "more curve"), figures=rest)] if rest else [],
    )


def pictures(evidence: Evidence) -> Iterator[Picture]:
    """Paired differences of the primary metric's curves, then the curves of every metric."""
    plan, first = evidence.plan, convergence.validation_metric(evidence.plan, evidence.curves)
    control = convergence.control_arm(plan)
    if first and control:
        # What the bands of single arms hide: they hold the spread over seeds, which pairs share.
        curves = evidence.curves[evidence.curves["seed"].isin(evidence.judged)]
        differences = convergence.paired_curve_table(curves, first, control)
        if not differences.empty:
            words, spread = find_metric(first).full_label, _spread_words(differences, first, "seeds", evidence.level)
            arms = [arm for arm in evidence.shown if arm != control]
            caption = f"Paired difference to {control} in {words}: {spread}.{evidence.not_all_drawn}"
            figure = plots.learning_curves(differences, first, arms, list(plan.arms), 1 - evidence.alpha, control)
            yield Picture(name="curves-paired", figure=figure, alt=f"Learning curves. {caption}", caption=caption)
    complete = evidence.curves[evidence.curves["state"] == "complete"]
    for metric in sorted(comparable(evidence.curves), key=lambda name: name != first):
        words = find_metric(metric).full_label
        spread = _spread_words(complete, metric, "complete trials", evidence.level)
        yield Picture(
            name=f"curves-{slug(metric)}",
            figure=plots.learning_curves(evidence.curves, metric, evidence.shown, list(plan.arms), 1 - evidence.alpha),
            alt=f"Learning curves of {words} for {', '.join(evidence.shown)}.",
            caption=f"{words}: {spread}.{evidence.not_all_drawn}",
        )


def _spread_words(curves: pd.DataFrame, metric: str, over: str, level: str) -> str:
    """What stands around a mean."""
    seeds = curves.dropna(subset=[metric]).groupby("arm")["seed"].nunique()
    bands, lines = bool((seeds >= plots.MIN_BAND_SEEDS).any()), bool((seeds < plots.MIN_BAND_SEEDS).any())
    parts = [f"mean over {over}", *[f"band: {level}"] * bands]
    parts += [f"thin lines: single seeds, where they are fewer than {plots.MIN_BAND_SEEDS}"] * lines
    return ", ".join(parts)


def comparable(curves: pd.DataFrame) -> list[str]:
    """Columns that mean the same in all arms: probes on validation and signal jets, entropies of student and teacher.

    Of an anomaly score the AUC on all signals together; each signal's is in the curves of the trials.
    """
    columns = [find_metric(name) for name in curves.columns]
    names = [
        one.key
        for one in columns
        if (one.split in ("val", "signal") and not one.is_detail) or one.key.endswith("_entropy")
    ]
    complete = curves[curves["state"] == "complete"]
    return [name for name in names if complete[name].notna().any()]


def speed(evidence: Evidence) -> Section:
    """How fast each arm learns: the time until the primary metric reaches a threshold that the control arm sets."""
    found = evidence.convergence
    if not found:
        why = "There are no learning curves of the primary metric to measure it on."
        if not evidence.plan.contrasts:
            why = "No contrast of arms was planned, so there is no control arm to measure it against."
        return Section(key="convergence", title="Convergence speed", sentences=[why])
    first = found[0]
    return Section(
        key="convergence",
        title="Convergence speed",
        sentences=[
            f"Time until {find_metric(first.metric).full_label} first reaches {first.threshold:.4f} at a probe, the "
            f"point half-way from the untrained to the trained {first.control} arm (means over its seeds). The "
            "threshold knows nothing of the other arms. A trial that has not reached it when the shortest training "
            "ends is censored there; a failed trial that had not reached it counts as never reaching it. Negative "
            "differences are faster."
        ],
        tables=[table for one in found for table in _speed_tables(one, evidence.level)],
    )


def _speed_tables(found: Convergence, level: str) -> tuple[Table, Table]:
    """Per arm and per contrast, on one clock."""
    unit = found.unit
    # Where some have not reached it the mean is of times that are cut at the horizon: at least so much.
    head = ["arm", "reached", f"mean {unit}, cut at {found.horizon:.4g}", "mean of the curve"]
    rows = [
        [
            arm.arm,
            f"{arm.reached} of {arm.n}",
            f"{'≥ ' if arm.reached < arm.n else ''}{fmt.compact(arm.restricted_mean)}",
            fmt.mean_cell(arm.area),
        ]
        for arm in found.arms
    ]
    arms = Table(label=f"Convergence in {unit}, up to {found.horizon:.4g}", head=head, rows=rows)
    head = ["contrast", f"{unit}, difference", level, "curve, difference", level, "n"]
    rows = [
        [
            contrast_name(pair.contrast),
            *(cell for x in (pair.time, pair.area) for cell in (fmt.mean_cell(x, sign=True), fmt.interval_cell(x))),
            str(pair.time.n),
        ]
        for pair in found.contrasts
    ]
    return arms, Table(label=f"Paired convergence in {unit}", head=head, rows=rows)

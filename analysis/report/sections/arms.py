"""What each arm scored: mean, spread and losses, beside its baselines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.plots import scores
from analysis.plots.picture import Picture
from analysis.report.evidence import Evidence
from analysis.report.section import Section, Table
from analysis.verdicts import arm_settings
from analysis.verdicts import number_format as fmt
from jbot.evaluation.metrics_registry import BASELINES, find_metric
from jbot.store.plan import Plan

NOTE = (
    "Mean over complete trials; the interval is Student’s t. Failed: of those that ended, with a 95% Wilson interval."
)


def section(evidence: Evidence) -> Section:
    """Every arm, whatever came of it."""
    figure, error = _figure(evidence), trial_error(evidence)
    notes = [f"{NOTE} {error}".rstrip()]
    return Section(title="Arms", figures=[figure] if figure else [], tables=[arms_table(evidence)], notes=notes)


def arms_table(evidence: Evidence) -> Table:
    """One row per arm."""
    references = [name for name in BASELINES if name in evidence.arms]
    head = ["arm", "what it changes", "n", "mean", "sd over seeds", evidence.level]
    head += [*(BASELINES[name] for name in references), "failed", "pruned", "device time"]
    rows = [_row(evidence.plan, row, references) for _, row in evidence.arms.iterrows()]
    return Table(label="Arms", head=head, rows=rows, text_columns=(0, 1))


def _row(plan: Plan, row: pd.Series, references: Sequence[str]) -> list[str]:
    error = row["sd"] / math.sqrt(row["n"]) if row["n"] else math.nan
    decimals = fmt.decimals_of(error)
    rate = f"{row['failed']} of {row['failed'] + row['n']}"
    if row["failed"]:
        rate += f" ({row['failure_low']:.0%} to {row['failure_high']:.0%})"
    return [
        row["arm"],
        arm_settings.words(plan.arms[row["arm"]]),
        str(row["n"]),
        fmt.number(row["mean"], decimals),
        fmt.number(row["sd"], decimals),
        fmt.interval(row["low"], row["high"], error, find_metric(plan.metric).bounds),
        *(fmt.number(row[name], decimals) for name in references),
        rate,
        str(row["pruned"]),
        fmt.duration(row["device_seconds"]),
    ]


def _figure(evidence: Evidence) -> Picture | None:
    """The score of every trial; None without any."""
    if not evidence.scores.notna().any(axis=None):
        return None
    untrained = evidence.arms.set_index("arm")["untrained"] if "untrained" in evidence.arms else None
    metric = evidence.plan.metric
    paired = any(contrast.of_arms for contrast in evidence.plan.contrasts)
    means = ", ".join(f"{row.arm} {fmt.number(row.mean)}" for row in evidence.arms.itertuples())
    caption = "Dots: trials; dark ticks: means" + ("; grey lines join the trials of a seed." if paired else ".")
    caption += " Grey ticks: the untrained encoder." if untrained is not None else ""
    return Picture(
        name="scores-by-seed",
        figure=scores.scores_by_seed(evidence.scores, metric, evidence.shown, untrained, paired),
        alt=f"{find_metric(metric).full_label} of every trial. Means: {means}.",
        caption=caption + evidence.not_all_drawn,
    )


def trial_error(evidence: Evidence) -> str:
    """The error of one trial from its test jets, as recorded, beside the spread over seeds; empty where neither is."""
    records = evidence.study.records.values()
    metric, spread = evidence.plan.metric, float(evidence.arms["sd"].mean())
    errors = [r.uncertainties.get(metric, {}).get("error") for r in records if r is not None and r.state == "complete"]
    known = [float(error) for error in errors if error is not None and math.isfinite(error)]
    if not known or not math.isfinite(spread):
        return ""
    return (
        f"One trial carries a test-jet error of {fmt.compact(float(np.mean(known)), 2)}; "
        f"over seeds an arm varies by {fmt.compact(spread, 2)} (standard deviation)."
    )

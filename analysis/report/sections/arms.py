"""What each arm scored: mean, spread and losses, beside its baselines."""

from __future__ import annotations

import math

import numpy as np

from analysis.plots import scores
from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section, Table
from analysis.verdicts import arm_settings
from analysis.verdicts import number_format as fmt
from jbot.evaluation.metrics_registry import BASELINES, find_metric
from jbot.store.plan import StudyRecords

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
    rows, known = [], evidence.arms[evidence.arms["sd"] > 0]
    # One rounding for the column: by the median of its errors.
    typical = float((known["sd"] / known["n"] ** 0.5).median()) if len(known) else math.nan
    decimals = fmt.decimals_of(typical)
    for row in evidence.arms.to_dict("records"):
        rate = f"{row['failed']} of {row['failed'] + row['n']}"
        if row["failed"]:
            rate += f" ({row['failure_low']:.0%} to {row['failure_high']:.0%})"
        bounds = find_metric(evidence.plan.metric).bounds
        rows.append(
            {
                "arm": row["arm"],
                "what it changes": arm_settings.words(evidence.plan.arms[row["arm"]]),
                "n": str(row["n"]),
                "mean": fmt.number(row["mean"], decimals),
                "sd over seeds": fmt.number(row["sd"], decimals),
                evidence.level: fmt.interval(row["low"], row["high"], typical, bounds),
                **{words: fmt.number(row[name], decimals) for name, words in BASELINES.items() if name in row},
                "failed": rate,
                "pruned": str(row["pruned"]),
                "device time": fmt.duration(row["device_seconds"]),
            }
        )
    return Table.of("Arms", rows, words=("what it changes",))


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
    error, spread = jet_error(evidence.study, evidence.plan.metric), float(evidence.arms["sd"].mean())
    if not math.isfinite(error) or not math.isfinite(spread):
        return ""
    return (
        f"One trial carries a test-jet error of {fmt.compact(error, 2)}; "
        f"over seeds an arm varies by {fmt.compact(spread, 2)} (standard deviation)."
    )


def jet_error(study: StudyRecords, metric: str) -> float:
    """Mean error of a metric from the number of test jets, over complete trials; NaN where records have none."""
    complete = [record for record in study.records.values() if record is not None and record.state == "complete"]
    errors = [record.uncertainties.get(metric, {}).get("error", math.nan) for record in complete]
    known = [error for error in errors if isinstance(error, int | float) and math.isfinite(error)]
    return float(np.mean(known)) if known else math.nan

"""Trial by trial: in which ways training went wrong, which trials were lost, and the way to every record."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analysis.report.evidence import Evidence
from analysis.report.section import Section, Table
from analysis.verdicts import diagnostics, tables
from analysis.verdicts import number_format as fmt
from jbot.evaluation.metrics_registry import find_metric

MAX_TRIALS = 400
"""Rows in the page; all of them are in trials.csv."""
MAX_OPEN = 60
"""Rows that are not folded away."""
MAX_SIGNATURES, MAX_SEEDS = 60, 8
"""Rows of failure signatures, and seeds named in each; all of them are in signatures.csv."""
SIGNATURES = (
    "Single trials in which training went wrong in a way that has a name: where to look, no verdict. Confusion: of the "
    "jets of two classes that were given one of the two, the share given the other, with a 95% Wilson interval; a coin "
    "has 50%. ± of accuracies is the error from the number of test jets. All of them are in signatures.csv."
)


def signatures(evidence: Evidence) -> Section:
    """Named ways in which training went wrong: in which trials each was found, and the numbers of the worst one."""
    rows = []
    for name, arm, subject, found, examined in diagnostics.by_arm(evidence.diagnosis):
        seeds = sorted(item.seed for item in found)
        named = ", ".join(map(str, seeds[:MAX_SEEDS])) + (", …" if len(seeds) > MAX_SEEDS else "")
        worst = f"{found[0].case.evidence}" + (f" (seed {found[0].seed})" if len(found) > 1 else "")
        rows.append([name, arm, subject, f"{len(found)} of {examined}", named, worst])
    head = ["signature", "arm", "where", "trials", "seeds", "evidence, of the worst trial"]
    table = Table(label="Failure signatures", head=head, rows=rows[:MAX_SIGNATURES], text_columns=(0, 1, 2, 4, 5))
    absent, arms = diagnostics.absent_line(evidence.diagnosis), evidence.arms
    shown, folded = [table] if rows else [], []
    if rows and "untrained" in arms and not _learned(evidence).any():
        title = f"{fmt.count(len(rows), 'row')}, of encoders that have learned nothing: no arm is better than untrained"
        shown, folded = [], [Section(title=title, tables=shown)]
    return Section(
        key="signatures",
        title="Failure signatures",
        sentences=[absent] if absent else [],
        tables=shown,
        details=folded,
        notes=[SIGNATURES] if rows else [],
    )


def _learned(evidence: Evidence) -> pd.Series:
    """Whether each arm's mean is better than that of its untrained encoder (arm,)."""
    gain = evidence.arms["mean"] - evidence.arms["untrained"]
    return gain > 0 if evidence.plan.higher_is_better else gain < 0


def failures(evidence: Evidence) -> Section:
    """Every trial that did not complete, with its reason."""
    lost = evidence.trials[evidence.trials["state"].isin(["failed", "pruned"])]
    rows = [
        [row["arm"], str(row["seed"]), row["state"], row["reason"] or "no reason given"] for _, row in lost.iterrows()
    ]
    complete = evidence.states == "complete"
    for seed, arm in (complete & evidence.scores.isna()).stack().loc[lambda cell: cell].index:
        rows.append([arm, str(seed), "complete", f"left no {evidence.plan.metric}: counted as failed"])
    if not rows:
        return Section(title="Failures", sentences=["No trial that ended has failed or was pruned."])
    head = ["arm", "seed", "state", "reason"]
    return Section(title="Failures", tables=[Table(label="Failures", head=head, rows=rows, text_columns=(0, 2, 3))])


def every_trial(evidence: Evidence) -> Section:
    """One row per trial with the ways to its record and its MLflow run, folded away where there are many."""
    metric, links = evidence.plan.metric, evidence.links
    rows = []
    for row in evidence.trials.head(MAX_TRIALS).to_dict("records"):
        pending = row["state"] == tables.PENDING
        record, run = links.of_trial(str(row["trial_id"]))
        rows.append(
            {
                "trial, its record": str(row["trial_id"]) if pending else record,
                "arm": row["arm"],
                "seed": str(row["seed"]),
                "state": row["state"],
                find_metric(metric).full_label: fmt.number(_number(row, metric)),
                "device time": fmt.duration(_number(row, "device_seconds")),
                "attempts": fmt.number(_number(row, "attempts"), 0),
                "plan hash": fmt.MISSING if pending else str(row["plan_hash"]),
            }
            | ({"MLflow run": run or fmt.MISSING} if links.runs else {})
        )
    said = f"{len(rows)} of {len(evidence.trials)} trials; all of them with every metric are in trials.csv and "
    said += "trials.parquet"
    found = [Table.of("All trials", rows, words=("arm", "state", "plan hash", "MLflow run"))]
    where = [str(links)] if links.runs else []
    if len(rows) > MAX_OPEN:
        folded = Section(title=said, tables=found)
        return Section(key="trials", title="Every trial", sentences=where, details=[folded])
    return Section(key="trials", title="Every trial", sentences=[f"{said}.", *where], tables=found)


def _number(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)

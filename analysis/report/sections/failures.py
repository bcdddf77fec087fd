"""Every trial that did not complete, with its reason."""

from __future__ import annotations

from analysis.report.evidence import Evidence
from analysis.report.section import Section, Table


def section(evidence: Evidence) -> Section:
    """One row per lost trial."""
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

"""Every trial, with the ways to its record and its MLflow run."""

from __future__ import annotations

import math
from typing import Any

from analysis.report.evidence import Evidence
from analysis.report.links import Links
from analysis.report.section import Section, Table
from analysis.verdicts import number_format as fmt
from analysis.verdicts import tables
from jbot.evaluation.metrics_registry import find_metric

MAX_TRIALS = 400
"""Rows in the page; all of them are in trials.csv."""
MAX_OPEN = 60
"""Rows that are not folded away."""


def section(evidence: Evidence) -> Section:
    """One row per trial, folded away where there are many."""
    metric, links = evidence.plan.metric, evidence.links
    head = ["trial, its record", "arm", "seed", "state", find_metric(metric).full_label, "device time", "attempts"]
    head += ["plan hash", *["MLflow run"] * bool(links.runs)]
    rows = [_row(row, metric, links) for row in evidence.trials.head(MAX_TRIALS).to_dict("records")]
    table = Table(label="All trials", head=head, rows=rows, text_columns=(0, 1, 3, 7, 8))
    said = f"{len(rows)} of {len(evidence.trials)} trials; all of them with every metric are in trials.csv and "
    said += "trials.parquet"
    where = [str(links)] if links.runs else []
    if len(rows) > MAX_OPEN:
        folded = Section(title=said, tables=[table])
        return Section(key="trials", title="Every trial", sentences=where, details=[folded])
    return Section(key="trials", title="Every trial", sentences=[f"{said}.", *where], tables=[table])


def _row(row: dict[Any, Any], metric: str, links: Links) -> list[str]:
    pending = row["state"] == tables.PENDING
    trial, run = links.of_trial(str(row["trial_id"]))
    return [
        str(row["trial_id"]) if pending else trial,
        row["arm"],
        str(row["seed"]),
        row["state"],
        fmt.number(_number(row, metric)),
        fmt.duration(_number(row, "device_seconds")),
        fmt.number(_number(row, "attempts"), 0),
        fmt.MISSING if pending else str(row["plan_hash"]),
        *[run or fmt.MISSING] * bool(links.runs),
    ]


def _number(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)

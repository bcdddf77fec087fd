"""The final metrics besides the primary one, per arm and as exploratory paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from analysis.report.evidence import Evidence
from analysis.report.section import Section, Table
from analysis.stats import paired
from analysis.verdicts import number_format as fmt
from analysis.verdicts import tables
from analysis.verdicts.sentences import contrast_name
from jbot.evaluation.metrics_registry import BASELINES, find_metric

MAX_COLUMNS = 8
"""Metrics beside each other; more are set one below the other, with arms across."""
NOTE = (
    "On test jets: mean ± standard error over complete trials. Numbers of single classes, at single cuts and at other "
    "settings are in trials.csv."
)
UNEQUAL_WIDTH = (
    "The arms differ in embedding width: AMI, silhouette, effective rank and the geometry of the embedding are not "
    "comparable between them."
)


def section(evidence: Evidence) -> Section:
    """Means of the other metrics, and their differences folded away."""
    metrics = tables.other_metrics(evidence.trials, evidence.plan)
    if not metrics:
        return Section(
            key="metrics", title="Other metrics and clustering", sentences=["The records hold no other metrics."]
        )
    # Cluster metrics are comparable only between arms that embed in the same dimension.
    ended = [record for record in evidence.study.records.values() if record is not None]
    unequal_width = len({tables.lookup(record.config, "model.dim") for record in ended}) > 1
    return Section(
        key="metrics",
        title="Other metrics and clustering",
        tables=[means_table(evidence, metrics)],
        notes=[NOTE, *[UNEQUAL_WIDTH] * unequal_width],
        details=list(_differences(evidence, metrics)),
    )


def means_table(evidence: Evidence, metrics: Sequence[str]) -> Table:
    """Mean ± standard error per arm, then of the baselines; arms across if that fits better.

    Arms with other data or another model have baselines of their own.
    """
    plan, trials = evidence.plan, evidence.trials[~evidence.late]
    columns = [tables.scores_and_states(trials, plan, metric)[0] for metric in metrics]
    means = {arm: [paired.mean_interval(column[arm].dropna()) for column in columns] for arm in plan.arms}
    for name, words in BASELINES.items():
        baselines = [tables.scores_and_states(trials, plan, f"{name}/{metric}")[0] for metric in metrics]
        for group, arms in tables.baseline_groups(plan).items():
            if any(one[arms].notna().any(axis=None) for one in baselines):
                row = [paired.mean_interval(one[arms].mean(axis=1).dropna()) for one in baselines]
                means[f"{words}, {group}" if group else words] = row
    # All of one metric are rounded alike.
    cells = [fmt.mean_cells(of_metric) for of_metric in zip(*means.values(), strict=True)]
    rows = [[name, *row] for name, *row in zip(means, *cells, strict=True)]
    names = [found.label if found.split == "test" else found.full_label for found in map(find_metric, metrics)]
    table = [["arm", *names], *rows]
    if len(metrics) > max(MAX_COLUMNS, len(rows)):
        table = [list(cells) for cells in zip(*table, strict=True)]
        table[0][0] = "metric"
    return Table(label="Other metrics", head=table[0], rows=table[1:])


def _differences(evidence: Evidence, metrics: Sequence[str]) -> Iterator[Section]:
    rows = []
    differences = tables.metric_differences(evidence.trials, evidence.plan, metrics, evidence.judged, evidence.alpha)
    for row in differences.to_dict("records"):
        error, metric = row["sd"] / math.sqrt(row["n"]), find_metric(row["metric"])
        rows.append(
            {
                "metric": metric.full_label,
                "contrast": contrast_name(row["contrast"]),
                "difference": fmt.with_error(row["mean"], error, True),
                evidence.level: fmt.interval(row["low"], row["high"], error, metric.difference_bounds),
                "n": str(row["n"]),
                "p, corrected": fmt.p_value(row["p_adjusted"], paired.min_p(row["n"])),
            }
        )
    if rows:
        title = f"Paired differences of these metrics ({len(rows)}, exploratory, Benjamini-Hochberg over all of them)"
        yield Section(title=title, tables=[Table.of("Differences of other metrics", rows, words=("contrast",))])

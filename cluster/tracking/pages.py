"""Saved views and notes of a study: what the MLflow UI shows before anybody clicks. Text alone, no MLflow.

A saved view is what MLflow 3.17's button *Views > Save view* leaves: an experiment tag that holds the state of the list
and its charts as JSON. A UI that does not know the tag ignores it.
"""

from __future__ import annotations

import csv
import io
import json
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jbot.evaluation.metrics_registry import find_metric

DEFAULT_UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens when nobody says otherwise."""
MAX_CHARACTERS = 5000
"""Length of a description in MLflow's registry; tags hold more."""


@dataclass(frozen=True, kw_only=True)
class StudyInfo:
    """Facts about a study that the view shows."""

    name: str
    question: str
    preset: str
    plan_hash: str
    metric: str
    source: str
    """One line on the jets."""
    higher_is_better: bool = True
    arms: tuple[str, ...] = ()
    """In the plan's order: it gives their colours."""


def page(ui: str, experiment: str, view: str) -> str:
    """The address of a saved view; `ui` may be empty, for a link within the UI."""
    mode = {"compareRunsMode": "CHART"} if view == "curves" else {}  # the others are looked at as a list
    query = urllib.parse.urlencode({"workflowType": "machine_learning", **mode, "viewStateShareKey": view})
    return f"{ui.rstrip('/')}/#/experiments/{experiment}/runs?{query}"


def experiment_tags(info: StudyInfo, experiment: str) -> dict[str, str]:
    """Tags of the experiment: its kind, metric, description and saved views."""
    return {
        "mlflow.experimentKind": "custom_model_development",  # else the UI opens it as one of language models
        "mlflow.experiment.primaryMetric.name": info.metric,
        "mlflow.experiment.primaryMetric.greaterIsBetter": str(info.higher_is_better),
        "mlflow.note.content": experiment_note(info.question, experiment),
        **saved_views(info.metric, info.higher_is_better),
    }


def saved_views(metric: str, higher_is_better: bool) -> dict[str, str]:
    """Tags of an experiment: one saved view each, with the study's metric in columns and charts."""
    curve, spread, final = find_metric(metric).on_validation, f"{metric}_sd", [metric, "device_seconds"]
    best_first = {"orderByKey": _column(metric), "orderByAsc": not higher_is_better}
    by_arm = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "arm"}]}
    grouped = {"groupBy": by_arm, "useGroupedValuesInCharts": True}
    about = [f"tags.`{name}`" for name in ("arm", "seed", "state")]
    arms = _state("arm", [], [metric, spread, "n", "failed"], "Means of the arms", [_bars(metric), _bars(spread)])
    charts = [_line(curve), _line("train/loss"), _bars(metric)]
    curves = _state("trial", [], final, "Averages over the seeds of an arm", charts)
    trials = _state("trial", about, final, "Trials, in the colours of their arms", [_bars(metric), _line(curve)])
    # The UI lists the newest first: the rank stands for a time, so that writing twice is the same.
    views = (
        ("arms", 3, "1 Arms: mean and spread", arms | best_first),
        ("curves", 2, "2 Curves, grouped by arm", curves | grouped),
        ("trials", 1, "3 Trials, best first", trials | best_first),
    )
    tags = {}
    for key, rank, name, state in views:
        view = {"name": name, "createdAt": rank, "updatedAt": rank, "state": json.dumps(state)}
        tags[f"mlflow.sharedViewState.{key}"] = json.dumps(view, separators=(",", ":"))
    return tags


def _state(
    role: str, tags: Sequence[str], metrics: Sequence[str], title: str, charts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The state of list and charts, as the UI keeps it, of the runs with a role."""
    name, columns = "attributes.`Run Name`", [*tags, *map(_column, metrics)]
    return {
        "searchFilter": f"tags.role = '{role}'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "lifecycleFilter": "Active",
        "startTime": "ALL",
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": columns,
        "columnOrder": [name, *columns],
        "columnWidths": {name: 220} | dict.fromkeys(columns, 170),
        "compareRunSections": [{"uuid": "study", "name": title, "display": True}],
        "compareRunCharts": charts,
        "isAccordionReordered": True,  # else the UI puts its own sections, of some hundred metrics, before ours
    }


def _column(metric: str) -> str:
    return f"metrics.`{metric}`"


def _bars(metric: str, kind: str = "BAR") -> dict[str, Any]:
    names = {"uuid": f"{kind.lower()}-{metric}", "type": kind, "metricKey": metric, "displayName": metric}
    return names | {"metricSectionId": "study", "runsCountToCompare": 100}


def _line(metric: str) -> dict[str, Any]:
    axes = {"xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear", "scaleType": "linear"}
    values = {"yAxisKey": "metric", "yAxisExpressions": [], "selectedMetricKeys": [metric], "range": {}}
    return _bars(metric, "LINE") | axes | values | {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}


# --- notes --------------------------------------------------------------------------------------------------------


def experiment_note(question: str, experiment: str) -> str:
    """The description on top of the experiment's page, of which the UI shows one line until one opens it."""
    names = {"arms": "arms", "curves": "curves by arm", "trials": "trials"}
    links = " · ".join(f"[{name}]({page('', experiment, view)})" for view, name in names.items())
    return f"{question} Open: {links}".strip()  # plain: the list of experiments shows it as it is


def study_note(info: StudyInfo, experiment: str, verdicts: Sequence[str] = ()) -> str:
    """The description of the parent run: question, verdicts when there is a report, and where to go on."""
    arms = ", ".join(f"`{arm}`" for arm in info.arms)
    sentences = "\n".join(f"- {sentence}" for sentence in verdicts)
    parts = [
        f"**{info.question}**",
        sentences and f"{sentences}\n\nFigures and evidence: `report.html` under *Artifacts*.",
        experiment_note("", experiment),
        f"Arms: {arms}. Metric: `{info.metric}`. Jets: {info.source}." if arms else f"Jets: {info.source}",
        f'Search: `tags.arm = "{info.arms[0]}" and tags.seed = "0"`' if info.arms else "",
    ]
    return "\n\n".join(part for part in parts if part)


def verdicts(table: bytes) -> list[str]:
    """Sentences of ``contrasts.csv``, as the report gives them; primary contrasts first."""
    rows = [row for row in csv.DictReader(io.StringIO(table.decode())) if row.get("sentence")]
    return [row["sentence"] for row in sorted(rows, key=lambda row: row.get("kind") != "primary")]


def trial_note(arm: str, seed: int, folder: str) -> str:
    """The description of a trial's run: what it is, where its record lies, how to use its encoder."""
    code = f'import jbot\n\ncls = jbot.load("{folder}").embed(jets)'
    return f"Arm `{arm}`, seed {seed}. Record: `{folder}`\n\n```python\n{code}\n```"


def shortened(card: str, limit: int = MAX_CHARACTERS) -> str:
    """A model card as a description: without its front matter, and up to the last section that fits."""
    text = card.split("---\n", 2)[-1].strip() if card.startswith("---\n") else card
    if len(text) <= limit:
        return text
    more = "\n\nThe whole card is the artifact `card.md`."
    head = text[: limit - len(more)]
    return head[: head.rfind("\n## ")].rstrip() + more if "\n## " in head else head + more

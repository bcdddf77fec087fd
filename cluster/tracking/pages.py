"""What the MLflow UI shows of a study before anybody clicks: saved views, colours and notes. Text alone, no MLflow.

The form of a saved view is that of MLflow 3.17's own button *Views > Save view*: an experiment tag whose value holds
the list's and the charts' state as deflated JSON. A UI that does not know the tag ignores it.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import urllib.parse
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from jbot.evaluation.metrics_registry import find_metric

DEFAULT_UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens when nobody says otherwise."""
SAVED_VIEW = "mlflow.sharedViewState."
MOST_CHARACTERS = 5000
"""Of a description in MLflow's registry; tags hold more."""
NAME = "attributes.`Run Name`"
TABLE, CHARTS = "TABLE", "CHART"
MODES = {"arms": TABLE, "curves": CHARTS, "trials": TABLE}
"""Saved views by the key in their address, and how each is meant to be looked at."""


def page(ui: str, experiment: str, view: str) -> str:
    """The address of a saved view; `ui` may be empty, for a link within the UI."""
    mode = {"compareRunsMode": CHARTS} if MODES[view] == CHARTS else {}
    query = urllib.parse.urlencode({"workflowType": "machine_learning", **mode, "viewStateShareKey": view})
    return f"{ui.rstrip('/')}/#/experiments/{experiment}/runs?{query}"


def saved_views(metric: str, higher_is_better: bool) -> dict[str, str]:
    """Tags of an experiment: one saved view each, with the study's metric in columns and charts."""
    best_first = {"orderByKey": _column("metrics", metric), "orderByAsc": not higher_is_better}
    numbers = [metric, f"{metric}_sd", "n", "failed"]
    arms = {
        "searchFilter": "tags.role = 'arm'",
        **best_first,
        "selectedColumns": [_column("metrics", name) for name in numbers],
        "compareRunSections": [_section("Means of the arms")],
        "compareRunCharts": [_bars(name) for name in (metric, f"{metric}_sd")],
    }
    curves = {
        "searchFilter": "tags.role = 'trial'",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "arm"}]},
        "useGroupedValuesInCharts": True,
        "selectedColumns": [_column("metrics", name) for name in (metric, "device_seconds")],
        "compareRunSections": [_section("Averages over the seeds of an arm")],
        "compareRunCharts": [_line(find_metric(metric).on_validation), _line("train/loss"), _bars(metric)],
    }
    shown = [_column("tags", name) for name in ("arm", "seed", "state")]
    trials = {
        "searchFilter": "tags.role = 'trial'",
        **best_first,
        "selectedColumns": shown + [_column("metrics", name) for name in (metric, "device_seconds")],
        "compareRunSections": [_section("Trials, in the colours of their arms")],
        "compareRunCharts": [_bars(metric), _line(find_metric(metric).on_validation)],
    }
    named = {
        "arms": ("1 Arms: mean and spread", arms),
        "curves": ("2 Curves, grouped by arm", curves),
        "trials": ("3 Trials, best first", trials),
    }
    return {
        f"{SAVED_VIEW}{key}": _saved(name, len(named) - i, state)
        for i, (key, (name, state)) in enumerate(named.items())
    }


def experiment_note(question: str, experiment: str) -> str:
    """The description on top of the experiment's page, of which the UI shows one line until one opens it."""
    names = {"arms": "arms", "curves": "curves by arm", "trials": "trials"}
    links = " · ".join(f"[{name}]({page('', experiment, view)})" for view, name in names.items())
    return f"{question} Open: {links}".strip()  # plain: the list of experiments shows it as it is


def study_note(info: Any, experiment: str, verdicts: Sequence[str] = ()) -> str:
    """The description of the parent run: question, verdicts when there is a report, and where to go on.

    Parameters
    ----------
    info : StudyInfo
    verdicts : sequence of str
        A sentence each.
    """
    arms = ", ".join(f"`{arm}`" for arm in info.arms)
    found = "\n".join(f"- {sentence}" for sentence in verdicts)
    parts = [
        f"**{info.question}**",
        found and f"{found}\n\nFigures and evidence: `report.html` under *Artifacts*.",
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


def shortened(card: str, limit: int = MOST_CHARACTERS) -> str:
    """A model card as a description: without its front matter, and up to the last section that fits."""
    text = card.split("---\n", 2)[-1].strip() if card.startswith("---\n") else card
    if len(text) <= limit:
        return text
    more = "\n\nThe whole card is the artifact `card.md`."
    head = text[: limit - len(more)]
    return head[: head.rfind("\n## ")].rstrip() + more if "\n## " in head else head + more


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _section(name: str) -> dict[str, Any]:
    return {
        "uuid": "study",
        "name": name,
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": False,
    }


def _bars(metric: str) -> dict[str, Any]:
    return {"uuid": f"bar-{metric}", "type": "BAR", "metricKey": metric, **_card(metric)}


def _line(metric: str) -> dict[str, Any]:
    axes = {"xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear", "scaleType": "linear"}
    values = {"yAxisKey": "metric", "yAxisExpressions": [], "selectedMetricKeys": [metric], "range": {}}
    look = {"lineSmoothness": 0, "ignoreOutliers": False, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    return {"uuid": f"line-{metric}", "type": "LINE", "metricKey": metric, **axes, **values, **look, **_card(metric)}


def _card(metric: str) -> dict[str, Any]:
    return {
        "displayName": metric,
        "metricSectionId": "study",
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }


def _saved(name: str, rank: int, state: Mapping[str, Any]) -> str:
    """Newest first is how the UI lists them: `rank` stands for a time, so that writing twice is the same."""
    seen = {"orderByKey": "attributes.start_time", "orderByAsc": False, "lifecycleFilter": "Active", "startTime": "ALL"}
    columns = [NAME, *state["selectedColumns"]]
    widths = {column: 220 if column == NAME else 170 for column in columns}
    place: dict[str, Any] = {"columnOrder": columns, "columnWidths": widths, "runsHiddenMode": "SHOW_ALL"}
    place["isAccordionReordered"] = True  # else the UI puts its own sections, of some hundred metrics, before ours
    whole = seen | place | dict(state)
    packed = base64.b64encode(zlib.compress(json.dumps(whole).encode(), 9)).decode()
    return json.dumps({"name": name, "createdAt": rank, "updatedAt": rank, "state": f"deflate;{packed}"})

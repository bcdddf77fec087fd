"""Records as tables: one row per trial, per arm, per contrast."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.stats import paired
from analysis.stats.paired import PairedDifference
from analysis.verdicts.verdict import Verdict
from jbot.evaluation.metrics_registry import BASELINES, Metric, find_metric
from jbot.store.plan import Plan, StudyRecords
from jbot.store.record import Record

PENDING = "pending"
"""State of a trial that has not ended."""
FROM_RECORD = ["state", "reason", "wall_seconds", "device_seconds", "attempts", "started", "plan_hash", "git_commit"]
FROM_RECORD += ["trainer_version"]
BASELINE_GROUPS = ("data", "model", "probe", "anomaly")
"""Parts of a Config that its baselines depend on."""


def trial_table(study: StudyRecords) -> pd.DataFrame:
    """One row per planned trial, ended or not.

    Columns are study, arm, seed, trial_id, state (`complete`, `failed`, `pruned`, `pending`), reason, wall_seconds,
    device_seconds, attempts, where and with what it ran, the Config fields that arms change (``config.<field>``),
    and every metric under its own key. Missing values are None or NaN.
    """
    fields = sorted({field for changes in study.plan.arms.values() for field in changes})
    rows = []
    for trial in study.trials:
        record, row = study.records.get(trial.trial_id), {"study": study.plan.study, **vars(trial)}
        if record is None:
            rows.append(row | {"state": PENDING, "reason": None})
            continue
        row |= {name: getattr(record, name) for name in FROM_RECORD}
        row |= {"ran_in": record.study, "device": device_of(record), "fingerprint": record.data.get("fingerprint")}
        values = {field: lookup(record.config, field) for field in fields}
        # Values of one column must be of one type for Parquet.
        row |= {f"config.{field}": None if value is None else str(value) for field, value in values.items()}
        rows.append(row | {key: as_number(value) for key, value in record.metrics.items()})
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=["study", "arm", "seed", "trial_id", *FROM_RECORD[:2]])
    table["reason"] = table["reason"].astype(object).where(table["reason"].notna(), None)
    return table


def lookup(nested: Mapping[str, Any], field: str) -> Any:
    """The value of a dotted field in a nested Config, None when it is not there."""
    value: Any = nested
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def device_of(record: Record) -> str:
    """The machine of a trial in one line: what a comparison of seconds must hold equal."""
    hardware = record.hardware
    named = [str(hardware[key]) for key in ("gpu", "device", "accelerator", "cpu") if hardware.get(key)]
    return ", ".join(dict.fromkeys(named)) or (json.dumps(hardware, sort_keys=True) if hardware else "not recorded")


def scores_and_states(table: pd.DataFrame, plan: Plan, metric: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A metric and the states of all trials, each as (seed, arm).

    A combination that has no trial in the study is `pending`.
    """
    shown = table.assign(score=table.get(metric or plan.metric, np.nan))
    # Only what a trial leaves behind when it ends well is a score: a failed one may have left metrics of its ruins.
    shown["score"] = shown["score"].where(shown["state"] == "complete").astype(float)
    cells = shown.drop_duplicates(["seed", "arm"]).set_index(["seed", "arm"])
    seeds, arms = list(plan.seeds), list(plan.arms)
    grid = pd.MultiIndex.from_product([seeds, arms], names=["seed", "arm"])
    scores = cells["score"].reindex(grid).unstack("arm")
    states = cells["state"].reindex(grid, fill_value=PENDING).unstack("arm")
    return scores.loc[seeds, arms].astype(float), states.loc[seeds, arms]


def ended_blocks(states: pd.DataFrame) -> pd.Series:
    """Whether every arm has ended, by seed, from states (seed, arm): what may be compared."""
    return ~(states == PENDING).any(axis=1)


def other_scores(table: pd.DataFrame, plan: Plan) -> dict[str, pd.DataFrame]:
    """Scores (seed, arm) of the metrics that single contrasts name, by metric."""
    names = {metric for contrast in plan.contrasts for metric in contrast.metrics(plan.metric)} - {plan.metric}
    return {name: scores_and_states(table, plan, name)[0] for name in sorted(names)}


def seed_differences(table: pd.DataFrame, plan: Plan, verdict: Verdict) -> list[float]:
    """Treatment minus control at the seeds that a verdict compares, in units of the metric."""
    contrast, look = verdict.contrast, verdict.look
    own, other = contrast.metrics(plan.metric)
    (treatment, states), (control, _) = (scores_and_states(table, plan, metric) for metric in (own, other))
    ended = ended_blocks(states)
    if look and look.blocks:
        ended &= np.arange(len(ended)) < look.blocks
    return list((treatment[contrast.treatment] - control[contrast.control])[ended].dropna())


def arms_table(table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """One row per arm: the primary metric over its complete trials, its baselines, its failures.

    Columns are arm, changes, n, mean, sd, low, high (t interval), one per baseline (``untrained``, ...: mean of the
    same metric), failed, pruned, pending, failure_low, failure_high (Wilson interval of the failure rate),
    device_seconds (mean per complete trial).
    """
    scores, states = scores_and_states(table, plan)
    baselines = {name: scores_and_states(table, plan, f"{name}/{plan.metric}")[0] for name in BASELINES}
    complete, rows = table[table["state"] == "complete"], []
    seconds = complete.get("device_seconds", pd.Series(dtype=float))
    for arm, changes in plan.arms.items():
        values = paired.mean_interval(scores[arm].dropna(), 1 - plan.alpha)
        failed = int(((states[arm] == "failed") | ((states[arm] == "complete") & scores[arm].isna())).sum())
        low, high = paired.wilson(failed, failed + values.n)
        words = ", ".join(f"{field} = {value}" for field, value in changes.items()) or "the base"
        row = {"arm": arm, "changes": words, **vars(values)}
        row |= {name: float(one[arm].mean()) for name, one in baselines.items() if one.notna().any(axis=None)}
        row |= {"failed": failed, "pruned": int((states[arm] == "pruned").sum())}
        row |= {"pending": int((states[arm] == PENDING).sum()), "failure_low": low, "failure_high": high}
        rows.append(row | {"device_seconds": float(seconds[complete["arm"] == arm].mean())})
    return pd.DataFrame(rows)


_JUDGED: tuple[str, ...] = ("p", "p_adjusted", "min_p", "p_equivalent", "p_equivalent_adjusted", "min_p_equivalent")
_JUDGED += ("family", "dropped", "pruned", "detectable", "seeds_needed", "interim", "sentence")
_COLUMNS = ["contrast", "treatment", "control", "metric", "control_metric", "kind", "verdict"]
_COLUMNS += [*(field.name for field in dataclasses.fields(PairedDifference)), "standard_error", *_JUDGED, "notes"]


def contrasts_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One row per contrast: estimate, intervals, tests, losses, verdict. Without contrasts the columns alone."""
    rows = []
    for verdict in verdicts:
        contrast, difference, look = verdict.contrast, verdict.difference, verdict.look
        row: dict[str, Any] = {"contrast": contrast.name, "treatment": contrast.treatment, "control": contrast.control}
        row |= {"metric": contrast.metric, "control_metric": contrast.control_metric}
        row |= {"kind": "primary" if contrast.primary else "exploratory", "verdict": verdict.outcome}
        row |= vars(difference) | {"standard_error": difference.standard_error}
        row |= {name: getattr(verdict, name) for name in _JUDGED}
        if look:
            row |= {"look": look.blocks, "planned_blocks": look.of, "confidence": verdict.confidence}
        rows.append(row | {"notes": " ".join(verdict.notes)})
    return pd.DataFrame(rows, columns=None if rows else _COLUMNS)


def other_metrics(table: pd.DataFrame, plan: Plan) -> list[str]:
    """Keys of final metrics besides the primary one: accuracies, areas under ROC curves, the rest.

    Baselines are left out, and the many numbers of one ROC curve but its area: those of a class, at one cut, and at
    other settings than the published ones. trials.csv has them all.
    """

    def place(metric: Metric) -> tuple[int, list[tuple[float, str]]]:
        """Accuracies, areas of classifiers, of anomaly scores, and the rest; then by name, 10% before 100%."""
        area = metric.measure == "auc"
        kinds = (metric.measure == "accuracy", area and metric.kind != "anomaly", area, True)
        parts = re.findall(r"(\d+(?:\.\d+)?)|(\D+)", metric.key)
        return kinds.index(True), [(float(digits or 0), words) for digits, words in parts]

    names = [column for column in table.columns if "/" in column and not column.startswith("config.")]
    metrics = [find_metric(name) for name in names if name != plan.metric]
    return [one.key for one in sorted(metrics, key=place) if not (one.is_detail or one.baseline)]


def baseline_groups(plan: Plan) -> dict[str, list[str]]:
    """Arms that have the same baselines, by what tells the groups apart: empty words when there is one group.

    The untrained encoder of one task, or of one size, is no baseline of another.
    """
    changed = {name for changes in plan.arms.values() for name in changes}
    fields = sorted(name for name in changed if name.split(".")[0] in BASELINE_GROUPS)
    groups: dict[str, list[str]] = {}
    tasks = {}
    for arm, changes in plan.arms.items():
        settings = {name: changes.get(name, lookup(plan.base, name)) for name in ("data.task", *fields)}
        key = json.dumps(settings, sort_keys=True, default=str)
        groups.setdefault(key, []).append(arm)
        tasks[key] = settings["data.task"]
    if len(groups) == 1:
        return {"": list(plan.arms)}
    if len(set(tasks.values())) == len(groups):
        return {f"task {tasks[key]}": arms for key, arms in groups.items()}
    return {
        ", ".join(arms) if len(arms) <= 3 else f"{arms[0]} and {len(arms) - 1} other arms": arms
        for arms in groups.values()
    }


def metric_differences(
    table: pd.DataFrame, plan: Plan, metrics: Sequence[str], blocks: pd.Index, alpha: float
) -> pd.DataFrame:
    """Paired differences of secondary metrics for every contrast of arms but the null, which is no question, corrected
    together by Benjamini-Hochberg.

    No verdicts: the plan has a direction and a margin for its primary metric only. Columns are metric, contrast, n,
    mean, sd, low, high, p, p_adjusted; empty when there is nothing to compare. `blocks` and `alpha` are those of the
    verdicts (:class:`analysis.verdicts.decide.DecidedStudy`).
    """
    rows = []
    for metric in metrics:
        ended = scores_and_states(table, plan, metric)[0].loc[blocks]
        for contrast in (one for one in plan.contrasts if one.of_arms and one != plan.null):
            differences = (ended[contrast.treatment] - ended[contrast.control]).dropna()
            if len(differences) >= 2:
                mean, p = paired.mean_interval(differences, 1 - alpha), paired.sign_flip_test(differences)
                rows.append({"metric": metric, "contrast": contrast.name, **vars(mean), "p": p})
    frame = pd.DataFrame(rows)
    return frame.assign(p_adjusted=paired.benjamini_hochberg(frame["p"])) if rows else frame


def as_number(value: Any) -> float:
    """A finite metric; anything else is missing."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return math.nan
    return float(value)

"""What stands behind our lines of the paper's tables: arms of its models, their records, released checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.verdicts import paper_values as published
from jbot.config import Config, from_dict, override
from jbot.store.plan import StudyRecords
from jbot.store.record import Record
from jbot.store.storage import RecordError
from jbot.store.validation import check_types


@dataclass(frozen=True, kw_only=True)
class Released:
    """What the authors' checkpoints of one task and size reach on our jets."""

    task: str
    model: str
    data: dict[str, Any]
    """The DataConfig they were evaluated with."""
    fingerprint: str
    metrics: dict[str, float]
    uncertainties: dict[str, dict[str, float]]
    failed: dict[str, str] = field(default_factory=dict)
    """File -> why it cannot be evaluated."""

    def __post_init__(self) -> None:
        check_types(self)


def arms_by_kind(study: StudyRecords) -> dict[tuple[str, str], str]:
    """(task, model) -> the arm that pre-trains this model for this task."""
    found: dict[tuple[str, str], str] = {}
    for arm in study.plan.arms:
        config = arm_config(study, arm)
        model = published.MODELS.get((config.model.dim, config.model.heads, config.model.layers))
        if model is None:
            continue
        if (config.data.task, model) in found:
            other = found[config.data.task, model]
            raise RecordError(f"the paper has one jBOT-{model} of task {config.data.task}, got arms {other} and {arm}")
        found[config.data.task, model] = arm
    if not found:
        raise RecordError(f"study {study.plan.study} has no arm of the paper's models, jBOT-S and jBOT-B")
    return found


def arm_config(study: StudyRecords, arm: str) -> Config:
    """The Config of an arm, at any seed."""
    return override(from_dict(study.plan.base), study.plan.arms[arm])


def load_released(study: StudyRecords, arms: Mapping[tuple[str, str], str]) -> Iterator[Released]:
    """Released checkpoints that were evaluated on the test jets of this study's arms."""
    wanted = {task: vars(arm_config(study, arm).data) for (task, _), arm in arms.items()}
    folder = f"{study.plan.study}/{published.RELEASED}"
    for name in study.storage.names(folder):
        content = study.storage.read_json(f"{folder}/{name}")
        fields = Released.__dataclass_fields__.keys()
        try:
            if not isinstance(content, dict):
                raise TypeError(f"must be an object, got {content!r}")
            found = Released(**{key: content[key] for key in fields if key in content})
        except TypeError as error:
            raise RecordError(f"{folder}/{name} is not of a released checkpoint: {error}") from None
        if found.data == wanted.get(found.task) and found.fingerprint == study.data.get("fingerprint"):
            yield found


def complete_records(study: StudyRecords, arm: str) -> list[Record]:
    """Complete records of an arm, in the order of its seeds."""
    records = [study.records.get(trial.trial_id) for trial in study.trials if trial.arm == arm]
    return sorted((r for r in records if r is not None and r.state == "complete"), key=lambda record: record.seed)

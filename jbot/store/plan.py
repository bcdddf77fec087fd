"""What a study states before it runs, and the file in which it stands: ``<storage>/<study>/study.json``."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from dataclasses import dataclass, fields
from typing import Any

from jbot import TRAINER_VERSION
from jbot.config import differences, digest, with_defaults
from jbot.messages import one_line
from jbot.store.record import Record, load_curves, load_records, trial_folder
from jbot.store.storage import RecordError, Storage, open_folder
from jbot.store.validation import check_types, fits

FILE = "study.json"
PERTURBATION = "train.perturbation"
NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)
"""What a trial's folder may be called: no name leads out of the storage."""


class PlanError(ValueError):
    """A plan that contradicts itself."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A comparison: does `treatment` differ from `control`?"""

    treatment: str
    control: str
    primary: bool = False
    """Primary contrasts are confirmatory, corrected by Holm; the others are exploratory, by Benjamini-Hochberg."""
    metric: str = ""
    """What is compared, where that is not the plan's metric; with the plan's direction and margin."""
    control_metric: str = ""
    """The control's, where that is another one: its baseline, say ``untrained/test/knn_accuracy``."""

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def baseline(self) -> str:
        """``untrained`` or ``raw`` where the control is a baseline of its arm, else empty."""
        reference, _, split = self.control_metric.partition("/")
        return reference if split.startswith("test") else ""

    @property
    def name(self) -> str:
        """``a - b``, ``a - b on test_500/x``, ``base - untrained base``, ``base on test/x - base on test/y``."""
        on = f" on {self.metric}" if self.metric else ""
        if self.control_metric and not self.baseline:
            return f"{self.treatment}{on} - {self.control} on {self.control_metric}"
        return f"{self.treatment} - {f'{self.baseline} {self.control}'.strip()}{on}"

    @property
    def of_arms(self) -> bool:
        """Whether the two arms differ in the plan's own metric: what learning curves can follow."""
        return not self.metric and not self.control_metric

    def metrics(self, default: str) -> tuple[str, str]:
        """The treatment's and the control's, `default` being the plan's."""
        own = self.metric or default
        return own, self.control_metric or own


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The frozen design of a study. Its hash stands in every record."""

    study: str
    question: str
    preset: str
    arms: dict[str, dict[str, Any]]
    """Arm name -> its overrides of the base; {} for the base itself."""
    base: dict[str, Any]
    """The nested base Config (its seed is replaced by each block's)."""
    seeds: tuple[int, ...]
    """One block each."""
    metric: str
    """Primary metric, a key of Record.metrics."""
    higher_is_better: bool
    margin: float
    """Differences below it do not matter, in units of the metric."""
    contrasts: tuple[Contrast, ...]
    factors: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Component -> the overrides that take it out: the arms are then read as what is left in."""
    alpha: float = 0.05
    trainer_version: str = TRAINER_VERSION
    """The trainer that makes its trials; empty in plans from before it stood there (versions 1 and 2)."""
    looks: tuple[int, ...] = ()
    """Numbers of blocks after which there is an interim analysis, at which the study stops if every primary contrast is
    decided; the last is all of them. Empty: one analysis, at its end. See :mod:`analysis.stats.sequential`."""

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.margin < math.inf:
            raise PlanError(f"margin must be positive and finite, got {self.margin}")
        if not 0 < self.alpha < 1:
            raise PlanError(f"alpha must be between 0 and 1, got {self.alpha}")
        if self.looks:
            ascending = all(one < other for one, other in itertools.pairwise(self.looks))
            if not (ascending and self.looks[0] >= 2 and self.looks[-1] == len(self.seeds)):
                rule = f"looks must ascend from at least 2 to the last of {len(self.seeds)} blocks"
                raise PlanError(f"{rule}, got {', '.join(map(str, self.looks))}")
        for contrast in self.contrasts:
            for arm in (contrast.treatment, contrast.control):
                if arm not in self.arms:
                    raise PlanError(f"contrast {contrast.name!r}: no arm {arm!r}; arms are {', '.join(self.arms)}")
            if contrast.treatment == contrast.control and len(set(contrast.metrics(self.metric))) == 1:
                raise PlanError(f"contrast {contrast.name!r} compares an arm with itself")

    @property
    def null(self) -> Contrast | None:
        """The contrast of an arm with itself, initial weights perturbed: the noise floor, no question. None without."""
        for contrast in self.contrasts:
            treatment, control = dict(self.arms[contrast.treatment]), self.arms[contrast.control]
            if treatment.pop(PERTURBATION, 0) and treatment == control and contrast.of_arms:
                return contrast
        return None

    @property
    def hash(self) -> str:
        """Identity of the design: what differs from the defaults of Plan, Contrast and Config, and the trainer."""
        own = _changed(self) | {"base": differences(self.base), "contrasts": [*map(_changed, self.contrasts)]}
        return digest([own, self.trainer_version])


def _changed(instance: Plan | Contrast) -> dict[str, Any]:
    """Fields that are not at their defaults: one that is added later leaves them as they are."""
    missing = dataclasses.MISSING
    known = {f.name: f.default if f.default_factory is missing else f.default_factory() for f in fields(instance)}
    return {name: value for name, value in vars(instance).items() if value != known[name]}


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """One arm at one seed, and the id of its record."""

    arm: str
    seed: int
    trial_id: str

    def __post_init__(self) -> None:
        check_types(self)
        if not NAME.fullmatch(self.trial_id):
            raise PlanError(f"trial_id must be letters, digits, dots, - and _, got {self.trial_id!r}")


@dataclass(frozen=True, kw_only=True)
class StudyRecords:
    """A study folder as found: the plan, and every trial with its record, None while it has not ended."""

    plan: Plan
    data: dict[str, Any]
    trials: tuple[PlannedTrial, ...]
    records: dict[str, Record | None]
    """By trial id."""
    storage: Storage
    from_defaults: tuple[str, ...] = ()
    """Config fields that the plan or a record does not have, as it is older than they are."""

    def curves(self, trial_id: str) -> list[dict[str, Any]]:
        """Learning curves of one trial, a row per probed epoch."""
        return load_curves(self.storage, trial_id)

    def arrays(self, trial_id: str, name: str) -> dict[str, Any] | None:
        """`embedding` or `examples` of one trial, or None when it left none."""
        path = f"{trial_folder(trial_id)}/{name}.safetensors"
        return self.storage.read_arrays(path) if self.storage.exists(path) else None


def save_study(
    storage: Storage, plan: Plan, data: dict[str, Any], trials: list[PlannedTrial], needed: int | None = None
) -> None:
    """Write ``study.json`` into the study's folder.

    `needed` says how many of the trials, in their order, were needed, where an interim analysis stopped it: a hint for
    views, as it follows from the records.
    """
    content = {
        "plan": dataclasses.asdict(plan),
        "plan_hash": plan.hash,
        "data": data,
        "trials": [dataclasses.asdict(trial) for trial in trials],
        **({} if needed is None else {"needed": needed}),
    }
    storage.write_json(f"{plan.study}/{FILE}", content)


def move_other_plan(storage: Storage, plan: Plan, fingerprint: str | None) -> str | None:
    """Copy what stands in the place of a plan's ``study.json``, if it is of another plan or other jets, to a folder of
    its own; returns the name of that.

    Raises RecordError when it is no study.
    """
    name = f"{plan.study}/{FILE}"
    if not storage.exists(name):
        return None
    content = storage.read_json(name)
    if not isinstance(content, dict) or not isinstance(content.get("data"), dict):
        raise RecordError(f"{storage.uri}/{name} is not a study; move it away")
    identity = [content.get("plan_hash"), content["data"].get("fingerprint")]
    if identity == [plan.hash, fingerprint]:
        return None
    folder = f"{plan.study}-{digest(identity, 8)}"
    storage.write_json(f"{folder}/{FILE}", content)
    return folder


def load_study(folder: str) -> StudyRecords:
    """Read a study folder, ``<storage>/<study>``, and the records of its trials.

    Raises RecordError when the folder holds no readable plan.
    """
    storage, study = open_folder(folder)
    content = storage.read_json(f"{study}/{FILE}")
    try:
        plan = {"trainer_version": "", "looks": ()} | content["plan"]
        plan["base"], lacking = with_defaults(plan["base"])
        contrasts = tuple(Contrast(**contrast) for contrast in plan["contrasts"])
        lists = {"seeds": tuple(plan["seeds"]), "looks": tuple(plan["looks"])}
        parsed = Plan(**plan | lists | {"contrasts": contrasts})
        trials = tuple(PlannedTrial(**trial) for trial in content["trials"])
        data = content["data"]
        if not fits(data, dict[str, Any]):
            raise TypeError(f"data must be an object, got {data!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{storage.uri}/{study}/{FILE} is not a study: {one_line(error)}") from None
    records = load_records(storage, [trial.trial_id for trial in trials])
    lacking = (*lacking, *(name for record in records.values() if record for name in record.from_defaults))
    return StudyRecords(
        plan=parsed,
        data=data,
        trials=trials,
        records=records,
        storage=storage,
        from_defaults=tuple(dict.fromkeys(lacking)),
    )

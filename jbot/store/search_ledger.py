"""The plan of a hyperparameter search, and its ledger: plan and points, beside the records.

Whoever goes on with a search, shows it in MLflow or reports of it reads it here: JSON of other hands may be
anything, and what is returned can be indexed and drawn.
"""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict, cast

from jbot import TRAINER_VERSION
from jbot.config import differences, digest
from jbot.store.storage import RecordError, Storage
from jbot.store.validation import misfit

LEDGER = "search.json"
SCHEMA = 1
Direction = Literal["maximize", "minimize"]
DIRECTIONS: dict[str, Direction] = {"accuracy": "maximize", "anomaly": "maximize", "cost": "minimize"}
"""Objectives by name; how they are measured stands in :mod:`cluster.search.point`."""


class Distribution(TypedDict):
    """The range of an axis, as Optuna writes it: `choices`, or `low`, `high` and `log`."""

    name: str
    attributes: dict[str, Any]


class Axis(TypedDict):
    """A coordinate of the points: the name of a Config field, or ``1 - <field>``."""

    coordinate: str
    field: str
    reason: str
    distribution: Distribution


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """Space, objectives, sampling and pruning of a search, part of its ledger. Another plan is another search."""

    study: str
    question: str
    preset: str
    base: dict[str, Any]
    """The nested Config of every point but for what it changes, its seed included."""
    space: list[Axis]
    first: dict[str, Any]
    """Coordinates of point 0; empty: drawn like any other."""
    objectives: list[str]
    """Names in DIRECTIONS; the first chooses the winner."""
    metric: str
    """Column of learning curves, on validation jets: the objective `accuracy`."""
    seed: int
    startup: int
    """Points drawn at random before the sampler has enough to go by."""
    first_rung: int
    """Epochs; the next rungs are `reduction` times as far each. 0: nothing is pruned."""
    reduction: int
    epochs: int
    data: dict[str, str]
    """`source` and `fingerprint` of the jets."""

    @property
    def hash(self) -> str:
        """Identity of the search: what decides its suggestions and values."""
        words = ("question", "space")
        content = {name: value for name, value in vars(self).items() if name not in words}
        content |= {"base": differences(self.base), "data": self.data["fingerprint"]}
        axes = [[axis["coordinate"], axis["distribution"]] for axis in self.space]
        return digest([content, axes, TRAINER_VERSION, importlib.metadata.version("optuna")])

    @property
    def sampler(self) -> str:
        """The sampler of points, in words."""
        return f"TPE of Optuna {importlib.metadata.version('optuna')}, seeded by (seed, point)"

    @property
    def directions(self) -> dict[str, Direction]:
        """Which way each objective is better."""
        return {name: DIRECTIONS[name] for name in self.objectives}

    @property
    def rungs(self) -> list[int]:
        """Epochs at which points are compared."""
        rungs, epoch = [], self.first_rung
        while 0 < epoch < self.epochs:
            rungs.append(epoch)
            epoch *= self.reduction
        return rungs


class Trial(TypedDict):
    """One that a point has run."""

    arm: str
    trial_id: str


class Point(TypedDict):
    """One point of a search."""

    number: int
    params: dict[str, Any]
    """By coordinate."""
    overrides: dict[str, Any]
    """By Config field."""
    state: Literal["open", "complete", "pruned", "failed"]
    reason: str | None
    points: list[list[float]]
    """Epoch and value of the metric."""
    values: dict[str, float]
    """By objective, of a complete point."""
    trials: list[Trial]
    place: NotRequired[str]
    device_seconds: NotRequired[float]


class Importance(TypedDict):
    """Which axes decide the first objective."""

    n: int
    needed: int
    objective: str
    quantile: float
    ped_anova: NotRequired[dict[str, float]]
    fanova: NotRequired[dict[str, float]]


class Ledger(TypedDict):
    """The content of ``<storage>/<study>/search.json``; its last three stand there when the search has ended."""

    schema: int
    plan: SearchPlan
    plan_hash: str
    sampler: str
    rungs: list[int]
    directions: dict[str, Direction]
    target: int
    points: list[Point]
    importance: NotRequired[Importance]
    winner: NotRequired[int | None]
    front: NotRequired[list[int]]


def load_ledger(storage: Storage, study: str) -> dict[str, Any] | None:
    """The ledger of a study's search, see :class:`Ledger`; None where there is none.

    Raises RecordError when it is damaged.
    """
    name = f"{study}/{LEDGER}"
    if not storage.exists(name):
        return None
    content = storage.read_json(name)
    if wrong := misfit(content, Ledger, "") or _discrepancy(content):
        raise RecordError(f"{storage.uri}/{name} is not the ledger of a search: {wrong}")
    return cast(dict[str, Any], content)


def _discrepancy(content: dict[str, Any]) -> str | None:
    """What types do not tell."""
    axes, points = content["plan"]["space"], content["points"]
    if content["schema"] != SCHEMA:
        return f"schema must be {SCHEMA}, got {content['schema']}"
    if not content["directions"] or list(content["directions"]) != content["plan"]["objectives"]:
        return f"directions must be those of the objectives {content['plan']['objectives']}"
    if wrong := misfit(content["plan"]["base"].get("seed"), int, "plan.base.seed"):
        return wrong
    for axis in axes:
        if not _is_drawn_from(axis["distribution"]["attributes"]):
            return f"axis {axis['coordinate']} must have choices, or low below high and whether it is log"
    for number, point in enumerate(points):
        if point["number"] != number:
            return f"point {number} has number {point['number']}"
        if missing := [axis["coordinate"] for axis in axes if axis["coordinate"] not in point["params"]]:
            return f"point {number} has no {missing[0]}"
        if outside := [one for axis in axes if (one := _outside(axis, point["params"][axis["coordinate"]]))]:
            return f"point {number}: {outside[0]}"
        if any(len(pair) != 2 or not isinstance(pair[0], int) for pair in point["points"]):
            return f"points of point {number} must be pairs of epoch and value"
        evaluated = all(math.isfinite(point["values"].get(name, math.nan)) for name in content["directions"])
        if point["state"] == "complete" and not evaluated:
            return f"point {number} is complete and must have a value of each objective"
    complete = {point["number"] for point in points if point["state"] == "complete"}
    if content.get("winner") is not None and content["winner"] not in complete:
        return f"winner must be a complete point, got {content['winner']}"
    if not set(content.get("front", [])) <= complete:
        return "the front must be of complete points"
    if "winner" in content and not {"importance", "front"} <= set(content):
        return "importance and front must stand beside the winner"
    shares = content.get("importance", {})
    return None if ("ped_anova" in shares) == ("fanova" in shares) else "importance must be both or none"


def _is_drawn_from(known: dict[str, Any]) -> bool:
    if "choices" in known:
        return isinstance(known["choices"], list)
    numbers = misfit([known.get("low"), known.get("high")], list[float], "") is None
    if not numbers or not isinstance(known.get("log"), bool):
        return False
    return bool(known["low"] < known["high"] and (known["low"] > 0 or not known["log"]))


def _outside(axis: dict[str, Any], value: Any) -> str | None:
    known = axis["distribution"]["attributes"]
    if "choices" in known:
        return None if value in known["choices"] else f"{axis['coordinate']} must be one of the choices"
    fine = misfit(value, float, "") is None and known["low"] <= value <= known["high"]
    return None if fine else f"{axis['coordinate']} must lie in [{known['low']}, {known['high']}]"

"""The plan of a hyperparameter search: frozen, and part of the ledger."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from typing import Any, Literal

from optuna.distributions import BaseDistribution, json_to_distribution

from jbot import TRAINER_VERSION
from jbot.config import differences, digest

DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "anomaly": "maximize",
    "cost": "minimize",
}
"""Objectives by name; how they are measured stands in :mod:`cluster.search.point`."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """Space, objectives, sampling and pruning of a search. Another plan is another search."""

    study: str
    question: str
    preset: str
    base: dict[str, Any]
    """The nested Config of every point but for what it changes, its seed included."""
    space: tuple[dict[str, Any], ...]
    """Axes, each `coordinate`, `field`, `reason` and `distribution`, as Optuna writes it. A coordinate is the name of
    a Config field, or ``1 - <field>``."""
    first: dict[str, Any]
    """Coordinates of point 0; empty: drawn like any other."""
    objectives: tuple[str, ...]
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
    def directions(self) -> dict[str, Literal["maximize", "minimize"]]:
        """Which way each objective is better."""
        return {name: DIRECTIONS[name] for name in self.objectives}

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """By coordinate."""
        return {axis["coordinate"]: json_to_distribution(json.dumps(axis["distribution"])) for axis in self.space}

    @property
    def rungs(self) -> list[int]:
        """Epochs at which points are compared."""
        found, epoch = [], self.first_rung
        while 0 < epoch < self.epochs:
            found.append(epoch)
            epoch *= self.reduction
        return found

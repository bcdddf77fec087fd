"""What a person asks of a run: every option of a study once, typed and checked. studies/runner/cli.py makes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.resources import Resources
from jbot.config import ConfigError
from jbot.trainer.engines import ENGINES
from studies.presets import get_preset

FIGURES = ("first", "all", "none")
OBJECTIVES = ("accuracy", "anomaly", "cost")
NO_VIEW = "none"
"""In the place of a tracking URI: MLflow is shown nothing while a study runs."""
MAX_POINTS = 10_000


def check_objectives(names: tuple[str, ...]) -> None:
    """Raise a ConfigError for an unknown objective of a search, the same one twice, or none."""
    for name in names:
        if name not in OBJECTIVES:
            raise ConfigError(f"objectives must be among {', '.join(OBJECTIVES)}, got {name!r}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"objectives must be one or more, each once, got {', '.join(names) or 'none'}")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What only a hyperparameter search is asked."""

    points: int | None = None
    """Points in all; the preset's when None."""
    objectives: tuple[str, ...] | None = None
    """The search's own when None."""

    def __post_init__(self) -> None:
        if self.points is not None and not 1 <= self.points <= MAX_POINTS:
            raise ConfigError(f"points must be at least 1 and at most {MAX_POINTS}, got {self.points}")
        if self.objectives is not None:
            check_objectives(self.objectives)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a study is run. The defaults are those of the command line."""

    preset: str = "quick"
    seeds: int | None = None
    """Blocks; the study's own number for the preset when None."""
    first_seed: int = 0
    """Seed of the first block; blocks beyond those of an earlier study are fresh."""
    null: bool = False
    """An arm more: the control with its initial weights perturbed, which is the noise floor."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted Config fields that are other than the preset's, in every arm."""
    until_decided: tuple[int, ...] | None = None
    """Numbers of blocks after which the study may stop; empty: from the first that can show a difference; None: it
    runs to its end."""
    data: str = "pythia"
    """``pythia``, ``jetnet``, or a file or folder."""
    storage: str = "results"
    """Folder or URI of records and report."""
    dry_run: bool = False
    take_over: bool = False
    """Take the study from another driver that still runs it."""
    price: float | None = None
    """USD a device hour."""
    address: str | None = None
    """Ray cluster; None: Ray on this machine, or no Ray with `inline`."""
    inline: bool = False
    """One pack after another in this process, without Ray and MLflow."""
    cpus: float | None = None
    """CPUs that a pack holds; the preset's when None."""
    gpus: float | None = None
    pack: int | None = None
    """Trials of a pack; None: 1 on CPUs, what fits on GPUs."""
    grow_to: int | None = None
    """Packs at once that a cluster that scales up will hold."""
    engine: str = "auto"
    tracking_uri: str | None = None
    """MLflow server, or NO_VIEW; None: a file beside the records."""
    figures: str = "first"
    """Trials drawn for MLflow: of the first seed, all or none."""
    released: Path | None = None
    """Folder of the authors' checkpoints, for a study against the paper."""
    search: SearchOptions = field(default_factory=SearchOptions)

    def __post_init__(self) -> None:
        get_preset(self.preset)
        for name, value, known in (("figures", self.figures, FIGURES), ("engine", self.engine, ENGINES)):
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.price is not None and not 0 < self.price < math.inf:
            raise ConfigError(f"--price must be positive and finite, got {self.price:g}")
        if self.grow_to is not None and not self.address:
            raise ConfigError(f"--grow-to {self.grow_to} needs --address: Ray on this machine does not grow")
        if self.grow_to is not None and self.grow_to < 1:
            raise ConfigError(f"--grow-to needs at least one pack, got {self.grow_to}")
        if self.pack is not None and self.pack < 1:
            raise ConfigError(f"a pack needs at least one trial, got {self.pack}")
        cpus, gpus = self._held
        if not (0 < cpus < math.inf and 0 <= gpus < math.inf):
            raise ConfigError(f"a trial needs CPUs > 0 and GPUs >= 0, got {cpus:g} and {gpus:g}")
        if self.inline and self.address:
            raise ConfigError(f"--inline runs in this process, not at --address {self.address}")

    @property
    def _held(self) -> tuple[float, float]:
        size = get_preset(self.preset)
        return size.cpus if self.cpus is None else self.cpus, size.gpus if self.gpus is None else self.gpus

    @property
    def design(self) -> dict[str, Any]:
        """What :meth:`studies.runner.study.Study.plan` is given."""
        return {name: getattr(self, name) for name in ("preset", "seeds", "changes", "first_seed", "null")}

    @property
    def resources(self) -> Resources:
        """What one pack of trials holds, and how many they are."""
        cpus, gpus = self._held
        return Resources(cpus=cpus, gpus=gpus, pack=self.pack, engine=self.engine, grow_to=self.grow_to)


@dataclass(frozen=True, kw_only=True)
class CampaignOptions:
    """How all studies are run, one after another."""

    run: RunOptions
    only: tuple[str, ...] | None = None
    """Names of studies; None: all but the expensive ones."""
    budget: float = math.inf
    """Device hours to spend at most."""

    def __post_init__(self) -> None:
        if not self.budget >= 0:
            raise ConfigError(f"--budget must be 0 or positive, and finite, got {self.budget:g}")

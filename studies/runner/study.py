"""What a study is: a question, a base, arms, seeds, a metric and contrasts, at one of several sizes.

A study file names the question and the arms; a preset says how large. Together they give the Plan, which is frozen
and hashed before anything runs, and the trials, block by block.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.verdicts.paper_values import RECIPES
from jbot.config import Config, ConfigError, flatten, override, to_dict
from jbot.evaluation.anomaly.grid_settings import AnomalyGrid
from jbot.evaluation.metrics_registry import find_metric, metric_key, metric_names
from jbot.store.plan import PERTURBATION, Contrast, Plan
from search_spaces.axis import Axis
from studies.presets import get_preset
from studies.runner.options import check_objectives

Arms = Mapping[str, Mapping[str, Any]]

MAX_SEEDS, MAX_SEED = 10_000, 2**31 - 1
MAX_NAME, MAX_ARMS = 100, 1_000
RESERVED = ("trials", "encoders", "floors", "mlflow_artifacts", "mlflow.db", "index.html")
"""What a storage has beside the folders of its studies."""
FIELD_TYPES: tuple[tuple[str, Any, str], ...] = (
    ("question", str, "text"),
    ("arms", (Mapping, Callable), "a mapping, or a function of the base that gives one"),
    ("base", Mapping, "a mapping of fields to values"),
    ("contrasts", tuple, "a tuple of Contrasts"),
    ("metric", str, "text"),
    ("margin", (int, float), "a number"),
    ("factors", Mapping, "a mapping of components to overrides"),
    ("arms_by_preset", Mapping, "a mapping of presets to arms"),
    ("seeds_by_preset", Mapping, "a mapping of presets to numbers"),
)
"""What a study file may hold: it is written by hand."""
NULL = "null"
"""The arm that --null adds."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a hyperparameter search varies, and by which numbers its points are compared."""

    space: tuple[Axis, ...] | Callable[[Config], tuple[Axis, ...]]
    """Axes, or a function of the base that gives them."""
    cost_axes: tuple[Axis, ...] = ()
    """Also varied where cost is an objective."""
    metric: str = "val/knn_accuracy"
    """The objective `accuracy`: a column of the learning curves, of validation jets."""
    objectives: tuple[str, ...] = ("accuracy",)
    """One, with pruning; or several, without. The winner is the best by the first."""
    points: Mapping[str, int] = field(
        default_factory=lambda: {"smoke": 6, "quick": 24, "laptop": 24, "gpu": 100, "paper": 200}
    )
    """By preset."""
    reduction: int = 2
    """At each rung the best 1 / reduction go on. Optuna's 4 would leave two of 24 points whole."""
    seed: int = 0
    """Seed of the suggestions."""

    def __post_init__(self) -> None:
        if find_metric(self.metric).split != "val":
            raise ConfigError(f"a search chooses on validation jets: metric must start with val/, got {self.metric!r}")
        check_objectives(self.objectives)
        if self.reduction < 2:
            raise ConfigError(f"reduction must be at least 2, got {self.reduction}")

    def axes(self, base: Config, objectives: tuple[str, ...]) -> tuple[Axis, ...]:
        """The space around a base.

        Raises
        ------
        ConfigError
            When two axes are of one field, or one is of what points share.
        """
        made = self.space if isinstance(self.space, tuple) else self.space(base)
        made += self.cost_axes if "cost" in objectives else ()
        fields = [axis.field for axis in made]
        if twice := {name for name in fields if fields.count(name) > 1}:
            raise ConfigError(f"two axes of a search are of {', '.join(sorted(twice))}")
        if of_jets := [name for name in fields if name.startswith(("data.", "probe."))]:
            raise ConfigError(f"points of a search share jets and probes, got an axis of {', '.join(of_jets)}")
        return made


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question about jBOT, and what is compared to answer it."""

    name: str
    """Names the results folder and the MLflow experiment."""
    question: str
    arms: Arms | Callable[[Config], Arms]
    """Arm name -> overrides of the base, or a function of the base where they are in proportion to it. An arm without
    overrides is the base itself."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """What is other than the preset's in every arm."""
    contrasts: tuple[Contrast, ...]
    metric: str = "test/knn_accuracy"
    """Primary metric, fixed before anything runs."""
    higher_is_better: bool | None = None
    """None: as the registry of metrics says; needed for a metric of which neither is better by itself."""
    margin: float
    """Differences of the metric below it do not matter."""
    factors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Component -> the overrides that take it out. Arms made of them are reported by what they leave in."""
    arms_by_preset: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Presets that run only some arms (and the contrasts among them)."""
    seeds_by_preset: Mapping[str, int] = field(default_factory=dict)
    """Presets in which this study has another number of blocks than the preset says."""
    against_paper: bool = False
    """Arms follow the paper's recipe for their task: jets of each split and epochs are to the preset's as the paper's
    are to those of its five-class task. The paper's tables with ours are made at the end (analysis/paper/tables.py)."""
    anomaly_grid: AnomalyGrid | None = None
    """Over which scores, settings and banks every trial is evaluated when all have ended; for the task `qg`."""
    search: Search | None = None
    """What is searched first: its winner is then the arm `winner` against `base`."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.name in RESERVED:
            raise ConfigError(f"a study must not be called {self.name}: the storage has a folder or file of that name")
        for name, kind, word in FIELD_TYPES:
            if not isinstance(value := getattr(self, name), kind) or isinstance(value, bool):
                raise ConfigError(f"{name} of study {self.name} must be {word}, got {value!r:.80}")
        for contrast in self.contrasts:
            if not isinstance(contrast, Contrast):
                raise ConfigError(f"contrasts of study {self.name} must be Contrasts, got {contrast!r:.80}")
        if isinstance(self.arms, Mapping):
            self._check_arms(self.arms)
        if len({dataclasses.replace(contrast, primary=False) for contrast in self.contrasts}) < len(self.contrasts):
            raise ConfigError(f"study {self.name} has the same contrast twice")

    def _check_arms(self, arms: Arms) -> None:
        names = list(itertools.islice(arms, MAX_ARMS + 1)) if isinstance(arms, Mapping) else []  # it may never end
        if not isinstance(arms, Mapping) or len(names) > MAX_ARMS:
            got = f"{len(names):,} or more" if names else f"{arms!r:.80}"
            raise ConfigError(f"arms of study {self.name} must be up to {MAX_ARMS:,} names with overrides, got {got}")
        for name in names:
            _check_name(name)
            if not isinstance(changes := arms[name], Mapping):
                raise ConfigError(f"arm {name!r} must be a mapping of fields to values, got {changes!r:.80}")
        for contrast in self.contrasts:
            for arm in (contrast.treatment, contrast.control):
                if arm not in arms:
                    raise ConfigError(f"contrast {contrast.name!r}: no arm {arm!r}; arms are {', '.join(arms)}")

    def base_at(self, preset: str, changes: Mapping[str, Any] | None = None) -> Config:
        """What the arms change, at a preset."""
        return override(Config(), {**get_preset(preset).base, **self.base, **(changes or {})})

    def arms_at(self, preset: str, base: Config | None = None) -> dict[str, dict[str, Any]]:
        """The arms that a preset runs; `base` where it is not the preset's."""
        made = self.arms if isinstance(self.arms, Mapping) else self.arms(base or self.base_at(preset))
        self._check_arms(made)
        names = self.arms_by_preset.get(preset, tuple(made))
        if missing := set(names) - set(made):
            raise ConfigError(f"preset {preset} names arms that study {self.name} lacks: {', '.join(sorted(missing))}")
        return {name: dict(made[name]) for name in names}

    def seeds_at(self, preset: str) -> int:
        """Blocks of a preset."""
        return self.seeds_by_preset.get(preset, get_preset(preset).seeds)

    @property
    def direction(self) -> bool:
        """Whether higher values of the metric are better.

        Raises
        ------
        ConfigError
            When neither the study nor the registry of metrics says it, or they contradict each other.
        """
        known, stated = find_metric(self.metric).higher_is_better, self.higher_is_better
        if known is None and stated is None:
            raise ConfigError(f"metric {self.metric!r} is neither better high nor low: state higher_is_better")
        if None not in (known, stated) and known != stated:
            raise ConfigError(f"higher_is_better must be {known} for metric {self.metric!r}, got {stated}")
        return bool(stated if known is None else known)

    def plan(
        self,
        preset: str,
        seeds: int | None = None,
        changes: Mapping[str, Any] | None = None,
        *,
        first_seed: int = 0,
        null: bool = False,
    ) -> Plan:
        """The frozen design at one preset.

        Parameters
        ----------
        preset : str
            A key of PRESETS.
        seeds : int, optional
            Blocks; the preset's own number when None.
        changes : mapping, optional
            Dotted Config fields that are other than the preset's, in every arm.
        first_seed : int
            The blocks are this seed and those after it.
        null : bool
            Whether the control is compared with itself too, initial weights perturbed: the noise floor.

        Raises
        ------
        ConfigError
            For an unknown preset or field, a value out of range, or two arms with the same Config.
        """
        count = self.seeds_at(preset) if seeds is None else seeds
        if not 1 <= count <= MAX_SEEDS:
            raise ConfigError(f"seeds must be at least 1 and at most {MAX_SEEDS}, got {count}")
        if not 0 <= first_seed <= MAX_SEED - count:
            raise ConfigError(f"the first seed must be at least 0 and at most {MAX_SEED - count}, got {first_seed}")
        base = self.base_at(preset, changes)
        arms = self.arms_at(preset, base)
        if self.against_paper:
            arms = {name: _recipe(base, changes) | changes for name, changes in arms.items()}
        _check_changes(changes or {}, arms)
        _check_arms_differ(base, arms)
        contrasts = tuple(c for c in self.contrasts if c.treatment in arms and c.control in arms)
        if null:
            arms, contrasts = _with_null(arms, contrasts)
        for contrast in contrasts:
            sides = zip((contrast.treatment, contrast.control), contrast.metrics(self.metric), strict=True)
            for name, metric in sides:
                _check_metric(metric, name, override(base, arms[name]))
        tasks = {override(base, changes).data.task for changes in arms.values()} if self.anomaly_grid else set()
        if others := sorted(tasks - {"qg"}):
            raise ConfigError(f"an anomaly grid is of arms with data.task qg, got {', '.join(others)}")
        return Plan(
            study=self.name if preset == "quick" else f"{self.name}_{preset}",
            question=self.question,
            preset=preset,
            arms=arms,
            base=to_dict(base),
            seeds=tuple(range(first_seed, first_seed + count)),
            metric=self.metric,
            higher_is_better=self.direction,
            margin=self.margin,
            contrasts=contrasts,
            factors={name: dict(changes) for name, changes in self.factors.items()},
        )


def _with_null(
    arms: dict[str, dict[str, Any]], contrasts: tuple[Contrast, ...]
) -> tuple[dict[str, dict[str, Any]], tuple[Contrast, ...]]:
    """One arm more: the control of the first primary contrast (else the first arm) with its weights perturbed."""
    if NULL in arms:
        raise ConfigError(f"--null adds an arm {NULL!r}, which the study has already")
    control = next((c.control for c in contrasts if c.primary and c.of_arms), next(iter(arms)))
    return arms | {NULL: arms[control] | {PERTURBATION: 1e-6}}, (*contrasts, Contrast(treatment=NULL, control=control))


def _check_changes(changes: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> None:
    for name in changes:
        if name == "seed":
            raise ConfigError("seed is set by the block; choose how many with --seeds")
        if all(name in arm for arm in arms.values()):
            raise ConfigError(f"{name} is what the arms set: changing the base does nothing")
    for name, arm in arms.items():
        if "seed" in arm:
            raise ConfigError(f"arm {name!r} must not set the seed: arms of a block share it")


def _check_name(name: str) -> None:
    rule = f"names of studies and arms are letters, digits and _ . -, up to {MAX_NAME}, a letter or digit first"
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) and len(name) <= MAX_NAME):
        raise ConfigError(f"{rule}, got {name!r:.80}")


def _check_metric(metric: str, arm: str, config: Config) -> None:
    known, found = metric_names(config), find_metric(metric)
    if metric_key(found.name, found.split) not in known:
        close = difflib.get_close_matches(metric, known, n=3) or known[:3]
        raise ConfigError(f"metric {metric!r} is not measured in arm {arm!r}, which has {', '.join(close)}, ...")


def _recipe(base: Config, arm: Mapping[str, Any]) -> dict[str, Any]:
    """Jets and epochs of an arm's task, to the base as the paper's are to those of its five-class task."""
    task = str(arm.get("data.task", base.data.task))
    if task == "all":
        return {}
    whole, sizes = RECIPES["all"], flatten(base)
    return {name: max(1, round(sizes[name] * n / whole[name])) for name, n in RECIPES[task].items()}


def _check_arms_differ(base: Config, arms: Mapping[str, Mapping[str, Any]]) -> None:
    seen: dict[Config, str] = {}
    for name, changes in arms.items():
        config = override(base, changes)
        if config in seen:
            raise ConfigError(f"arms {seen[config]!r} and {name!r} have the same Config")
        seen[config] = name

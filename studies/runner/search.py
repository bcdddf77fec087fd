"""A hyperparameter search as part of a study: points chosen on validation jets at a seed of their own, then the winner
against the base as an ordinary study on fresh seeds.

    search, frozen        -> points (cluster.search.searcher): many recipes, one seed, most of them given up early
    winner, frozen        -> arms base and winner, the preset's seeds, test jets: the only claim
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.resources import ClusterError, Resources
from jbot.config import Config, ConfigError, flatten, from_dict, override, to_dict
from jbot.data import Jets
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Contrast, Plan
from jbot.store.record import Storage
from jbot.store.search_ledger import LEDGER, load_ledger
from jbot.trial.provenance import git_commit
from search_spaces.axis import Axis
from studies.runner.console import console, say, watched

if TYPE_CHECKING:
    from cluster.search.plan import SearchPlan
    from studies.runner.study import Study

SEED = 10_000
"""Of every point: no block of a study has it, and one for all lets points share weights, data order and noise."""
OBJECTIVES = ("accuracy", "anomaly", "cost")
MOST_POINTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is varied and by which numbers it is judged."""

    space: tuple[Axis, ...] | Callable[[Config], tuple[Axis, ...]]
    """Axes, or a function of the base that gives them."""
    cost_axes: tuple[Axis, ...] = ()
    """Also varied where cost is an objective."""
    metric: str = "val/knn_accuracy"
    """The objective `accuracy`: a column of the learning curves, of validation jets."""
    objectives: tuple[str, ...] = ("accuracy",)
    """One, with pruning; or several, without. The winner is the best by the first."""
    points: Mapping[str, int] = field(default_factory=lambda: {"smoke": 6, "quick": 24, "gpu": 100, "paper": 200})
    """By preset."""
    reduction: int = 2
    """At each rung the best 1 / reduction go on. Optuna's 4 would leave two of 24 points whole."""
    seed: int = 0
    """Of the suggestions."""

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


def check_objectives(names: tuple[str, ...]) -> None:
    """Raise a ConfigError for an unknown objective, or the same one twice."""
    for name in names:
        if name not in OBJECTIVES:
            raise ConfigError(f"objectives must be among {', '.join(OBJECTIVES)}, got {name!r}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"objectives must be one or more, each once, got {', '.join(names) or 'none'}")


def add_options(made: argparse.ArgumentParser, search: Search) -> None:
    """The options that only a search has."""
    group = made.add_argument_group("search")
    group.add_argument("--points", type=int, metavar="N", help="points tried (default: the preset's); more go on later")
    group.add_argument(
        "--objectives",
        default=",".join(search.objectives),
        metavar="NAMES",
        help="accuracy, anomaly (of an encoder of background, on a pilot signal), cost (FLOP): one, or several for a"
        " Pareto front, without pruning; the winner is the best by the first (default: %(default)s)",
    )


# --- plans --------------------------------------------------------------------------------------------------------


def search_plan(study: Study, plan: Plan, options: argparse.Namespace, data: Jets | None) -> SearchPlan:
    """What is searched at this preset; without jets, for a dry run."""
    try:
        from cluster.search.plan import SearchPlan
    except ModuleNotFoundError as missing:
        raise ClusterError(f"a search needs {missing.name}: pip install {missing.name}") from None
    search = searched(study)
    objectives = tuple(name.strip() for name in options.objectives.split(",")) if options.objectives else ()
    check_objectives(objectives)
    base = override(from_dict(plan.base), {"seed": SEED})
    axes = search.axes(base, objectives)
    if "anomaly" in objectives:
        override(base, {"data.task": "qg"})  # says what the background needs
    return SearchPlan(
        study=plan.study,
        question=plan.question,
        preset=plan.preset,
        base=to_dict(base),
        space=tuple(axis.described() for axis in axes),
        first=_base_point(axes, base),
        objectives=objectives,
        metric=search.metric,
        seed=search.seed,
        startup=max(1, min(10, search.points[plan.preset] // 3)),
        first_rung=first_rung(base) if len(objectives) == 1 and objectives[0] == "accuracy" else 0,
        reduction=search.reduction,
        epochs=base.train.epochs,
        data={"source": data.source, "fingerprint": data.fingerprint(base)}
        if data
        else {"source": "", "fingerprint": ""},
    )


def _base_point(axes: tuple[Axis, ...], base: Config) -> dict[str, Any]:
    """The base in coordinates; empty when the space does not hold it."""
    values = flatten(base)
    if not all(axis.holds(values[axis.field]) for axis in axes):
        return {}
    return {a.coordinate: round(1 - values[a.field], 12) if a.complement else values[a.field] for a in axes}


def first_rung(base: Config) -> int:
    """Epochs before the first comparison: a quarter of the training, at a point of the learning curves.

    Earlier the ranking says little, as warm-up may last as long; later there is little left to save (assumed).
    """
    return max(1, base.train.epochs // 4 // base.probe.every) * base.probe.every


def searched(study: Study) -> Search:
    """The search of a study that has one."""
    if study.search is None:
        raise ConfigError(f"study {study.name} has no search")
    return study.search


def points_of(study: Study, preset: str, asked: int | None) -> int:
    """How many points a search has in all."""
    count = searched(study).points[preset] if asked is None else asked
    if not 1 <= count <= MOST_POINTS:
        raise ConfigError(f"points must be at least 1 and at most {MOST_POINTS}, got {count}")
    return count


def check_search(study: Study, plan: Plan, options: argparse.Namespace) -> None:
    """Raise a ConfigError for options that no search can run with, before any jet is made."""
    search_plan(study, plan, options, None)
    points_of(study, plan.preset, options.points)


def expected_epochs(plan: SearchPlan, points: int) -> float:
    """Epochs of all points if at each rung the share 1 / reduction goes on: what halving saves on average."""
    stops = [0, *plan.rungs, plan.epochs]
    parts = itertools.pairwise(stops)
    return points * sum((end - begin) / plan.reduction**rung for rung, (begin, end) in enumerate(parts))


def confirmation(study: Study, changes: Mapping[str, Any]) -> Study:
    """The study that a search ends in: base against winner; the base alone where it won itself."""
    if not changes:
        return dataclasses.replace(study, search=None)
    contrasts = (Contrast(treatment="winner", control="base", primary=True),)
    return dataclasses.replace(study, arms={"base": {}, "winner": dict(changes)}, contrasts=contrasts, search=None)


# --- running ------------------------------------------------------------------------------------------------------


def run_search(
    study: Study, plan: Plan, data: Jets, storage: Storage, held: Resources, options: argparse.Namespace
) -> Study | None:
    """Run the points that have not ended; returns the study of the winner, None when points are left.

    Raises
    ------
    ClusterError
        When Optuna is not installed, or as for any study.
    """
    wanted, points = search_plan(study, plan, options, data), points_of(study, plan.preset, options.points)
    from cluster.search.point import ANOMALY_TASK, Job
    from cluster.search.searcher import load_entries, winner

    keep_other_search(storage, wanted)
    entries = load_entries(storage, wanted)
    ended = [entry for entry in entries[:points] if entry["state"] != "open"]
    if len(ended) < points:
        base = from_dict(wanted.base)
        tasks = {base.data.task, *([ANOMALY_TASK] if "anomaly" in wanted.objectives else [])}
        job = Job(
            plan=wanted,
            storage=storage,
            resources=held,
            git_commit=git_commit(),
            fingerprints={task: data.fingerprint(override(base, {"data.task": task})) for task in tasks},
        )
        _run_points(job, points, ended, plan, data, options)
        entries = load_entries(storage, wanted)
    return _decide(study, wanted, entries, points, winner(wanted, entries))


def _run_points(
    job: Any, points: int, ended: list[dict[str, Any]], plan: Plan, data: Jets, options: argparse.Namespace
) -> None:
    """Watched by the progress bar and MLflow, as a study's trials are."""
    from cluster.search import runner

    say(f"[bold]{plan.question}[/]\n{plan.study}: {points} points on {len(job.plan.space)} axes; {data.source}")
    if ended:
        say(f"{len(ended)} of {points} points have ended already and are not run again")
    progress = runner.SearchProgress(job.plan, points, ended, console)
    with watched(progress, plan, data, job.storage, options) as (listeners, _):
        if options.inline:
            runner.search_inline(job, points, data, listeners)
        else:
            runner.search_ray(job, points, data, listeners, address=options.address)


def _decide(
    study: Study, plan: SearchPlan, entries: list[dict[str, Any]], points: int, best: dict[str, Any] | None
) -> Study | None:
    """Say how the search has ended, and what is confirmed."""
    states = [entry["state"] for entry in entries]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed", "open"))
    if len(entries) < points or "open" in states[:points]:
        left = points - sum(state != "open" for state in states[:points])
        print(f"{left} of {points} points have not ended: the same command continues ({counts})", file=sys.stderr)
        return None
    if best is None:
        print(f"no point ran to its end ({counts}): there is nothing to confirm", file=sys.stderr)
        return confirmation(study, {})
    values = ", ".join(f"{name} {value:.4g}" for name, value in best["values"].items())
    say(f"search of {len(states)} points ({counts}): best is point {best['number']}, {values} on validation jets")
    changes = changes_to(from_dict(plan.base), best["overrides"])
    if not changes:
        say("the base is the best point: no recipe is better, nothing is left to confirm")
    return confirmation(study, changes)


def keep_other_search(storage: Storage, plan: SearchPlan) -> None:
    """A search of this name over another space, base, jets or version moves to a folder of its own; records stay."""
    content = load_ledger(storage, plan.study)
    if content is not None and content["plan_hash"] != plan.hash:
        folder = f"{plan.study}-search-{content['plan_hash'][:8]}"
        storage.write_json(f"{folder}/{LEDGER}", content)
        storage.remove_file(f"{plan.study}/{LEDGER}")
        say(f"[yellow]the search has changed[/]: the earlier one is now {storage.uri}/{folder}")


# --- dry run ------------------------------------------------------------------------------------------------------


def describe_search(study: Study, plan: Plan, storage: Storage, held: Resources, options: argparse.Namespace) -> Plan:
    """Print what the search would run and cost; returns the plan of what comes after it."""
    from cluster.search.searcher import winner
    from studies.runner.estimate import Costs, ended_records
    from studies.runner.jets import cached_plan_jets

    costs = Costs(ended_records(storage), held)
    cost = costs.of(from_dict(plan.base), fresh=True)
    assert cost is not None  # what has no record is timed
    seconds, basis = cost.seconds, "; ".join(cost.basis)
    data = cached_plan_jets(with_anomaly(plan, options), options.data)
    wanted, points = search_plan(study, plan, options, data), points_of(study, plan.preset, options.points)
    trials = 2 if "anomaly" in wanted.objectives else 1
    entries = found_entries(storage, wanted)
    ended = sum(entry["state"] != "open" for entry in entries[:points])
    most = costs.hours((points - ended) * trials * seconds)
    lines = [f"first a search: {points} points, of which {ended} have ended; objectives {', '.join(wanted.objectives)}"]
    lines += [f"  {axis['coordinate']}: {shown(axis['distribution'])}" for axis in wanted.space]
    if ended < points:
        each = f"{points - ended} x {trials} trial(s) x {seconds:,.0f} s, {basis}"
        money = "" if options.price is None else f", {most * options.price:,.2g} USD,"
        lines.append(f"  at most {most:,.2g} device hours{money} for the others ({each}), beside those below")
    if wanted.rungs and ended < points:
        share = expected_epochs(wanted, points) / (points * wanted.epochs)
        lines.append(
            f"  rungs at epochs {', '.join(map(str, wanted.rungs))} of {wanted.epochs}, 1/{wanted.reduction} go on:"
            f" some {share:.0%} of that, {most * share:,.2g} h, if it halves as planned"
        )
    print("\n".join([*lines, "then its winner against the base, on seeds that the search has not seen:"]))
    if ended < points:
        return _with_winner(plan)
    best = winner(wanted, entries)
    return _of_confirmation(study, plan, changes_to(from_dict(plan.base), best["overrides"] if best else {}))


def found_entries(storage: Storage, plan: SearchPlan) -> list[dict[str, Any]]:
    """The points that a search has in its ledger; none where that is of another search, or of jets not at hand."""
    ledger = load_ledger(storage, plan.study)
    return list(ledger["points"]) if ledger and ledger["plan_hash"] == plan.hash else []


def changes_to(base: Config, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the overrides that are other than the base."""
    flat = flatten(base)
    return {name: value for name, value in overrides.items() if flat[name] != value}


def _of_confirmation(study: Study, plan: Plan, changes: Mapping[str, Any]) -> Plan:
    found = confirmation(study, changes)
    return dataclasses.replace(
        plan, arms={name: dict(arm) for name, arm in found.arms_at(plan.preset).items()}, contrasts=found.contrasts
    )


def _with_winner(plan: Plan) -> Plan:
    """A winner that is not known yet stands there as a trial of the base's cost that has no record."""
    stands_in = {"optim.lr": math.nextafter(from_dict(plan.base).optim.lr, math.inf)}
    contrast = Contrast(treatment="winner", control="base", primary=True)
    return dataclasses.replace(plan, arms={"base": {}, "winner": stands_in}, contrasts=(contrast,))


def shown(distribution: Mapping[str, Any]) -> str:
    """``0.0002 to 0.01, log``, or the choices."""
    known = distribution["attributes"]
    if "choices" in known:
        return ", ".join(map(str, known["choices"]))
    return f"{known['low']:g} to {known['high']:g}" + (", log" if known["log"] else "")


def with_anomaly(plan: Plan, options: argparse.Namespace) -> Plan:
    """The plan whose jets a search needs: also those of the anomaly task, where that is an objective."""
    wanted = "anomaly" in options.objectives
    return dataclasses.replace(plan, arms=plan.arms | ({"anomaly": {"data.task": "qg"}} if wanted else {}))

"""A hyperparameter search as part of a study: points chosen on validation jets at a seed of their own, then the winner
against the base as an ordinary study on fresh seeds.

    search, frozen        -> points (cluster.search.searcher): many recipes, one seed, most of them given up early
    winner, frozen        -> arms base and winner, the preset's seeds, test jets: the only claim
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from cluster.progress import SearchProgress
from cluster.resources import ClusterError
from jbot.config import Config, ConfigError, flatten, from_dict, override, to_dict
from jbot.data import Jets
from jbot.store.plan import Contrast, Plan
from jbot.store.search_ledger import LEDGER, SearchPlan, load_ledger
from jbot.store.storage import Storage
from jbot.trial.provenance import git_commit
from studies.runner.console import console, say, watched
from studies.runner.estimate import Costs
from studies.runner.options import RunOptions, SearchOptions
from studies.runner.study import Search, Study
from studies.runner.trials import cached_plan_jets

SEED = 10_000
"""Seed of every point: no block of a study has it, and one for all lets points share weights, data order and noise."""
ANOMALY_TASK = "qg"
CONFIRMATION = Contrast(treatment="winner", control="base", primary=True)
"""What a search ends in; until then nobody knows the winner."""


# --- plans --------------------------------------------------------------------------------------------------------


def search_plan(study: Study, plan: Plan, options: SearchOptions, data: Jets | None) -> SearchPlan:
    """What is searched at this preset; without jets, for a dry run."""
    if find_spec("optuna") is None:
        raise ClusterError("a search needs optuna: pip install optuna")
    search = searched(study)
    objectives = options.objectives or search.objectives
    base = override(from_dict(plan.base), {"seed": SEED})
    axes = search.axes(base, objectives)
    space: list[Any] = [axis.described() for axis in axes]
    values = flatten(base)
    first = {a.coordinate: round(1 - values[a.field], 12) if a.complement else values[a.field] for a in axes}
    if "anomaly" in objectives:
        override(base, {"data.task": ANOMALY_TASK})  # says what the background needs
    return SearchPlan(
        study=plan.study,
        question=plan.question,
        preset=plan.preset,
        base=to_dict(base),
        space=space,
        first=first if all(axis.holds(values[axis.field]) for axis in axes) else {},
        objectives=list(objectives),
        metric=search.metric,
        seed=search.seed,
        startup=max(1, min(10, search.points[plan.preset] // 3)),
        first_rung=first_rung(base) if len(objectives) == 1 and objectives[0] == "accuracy" else 0,
        reduction=search.reduction,
        epochs=base.train.epochs,
        data={"source": data.source if data else "", "fingerprint": data.fingerprint(base) if data else ""},
    )


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


def tasks_of(study: Study, options: SearchOptions) -> tuple[str, ...]:
    """Tasks beside the base's own at which points are run."""
    return (ANOMALY_TASK,) if "anomaly" in (options.objectives or searched(study).objectives) else ()


def expected_epochs(plan: SearchPlan, points: int) -> float:
    """Epochs of all points if at each rung the share 1 / reduction goes on: what halving saves on average."""
    stops = [0, *plan.rungs, plan.epochs]
    parts = itertools.pairwise(stops)
    return points * sum((end - begin) / plan.reduction**rung for rung, (begin, end) in enumerate(parts))


def confirmation(study: Study, changes: Mapping[str, Any]) -> Study:
    """The study that a search ends in: base against winner; the base alone where it won itself."""
    if not changes:
        return dataclasses.replace(study, search=None)
    arms = {"base": {}, "winner": dict(changes)}
    return dataclasses.replace(study, arms=arms, contrasts=(CONFIRMATION,), search=None)


# --- running ------------------------------------------------------------------------------------------------------


def run_search(study: Study, plan: Plan, data: Jets, storage: Storage, options: RunOptions) -> Study | None:
    """Run the points that have not ended; returns the study of the winner, None when points are left.

    Raises
    ------
    ClusterError
        When Optuna is not installed, or as for any study.
    """
    wanted = search_plan(study, plan, options.search, data)
    points = options.search.points or searched(study).points[plan.preset]
    from cluster.search.point import Job
    from cluster.search.searcher import load_entries, winner

    keep_other_search(storage, wanted)
    entries = load_entries(storage, wanted)
    ended = [entry for entry in entries[:points] if entry["state"] != "open"]
    if len(ended) < points:
        base = from_dict(wanted.base)
        tasks = {base.data.task, *tasks_of(study, options.search)}
        job = Job(
            plan=wanted,
            storage=storage,
            resources=options.resources,
            git_commit=git_commit(),
            fingerprints={task: data.fingerprint(override(base, {"data.task": task})) for task in tasks},
        )
        _run_points(job, points, ended, plan, data, options)
        entries = load_entries(storage, wanted)
    return _decide(study, wanted, entries, points, winner(wanted, entries))


def _run_points(
    job: Any, points: int, ended: list[dict[str, Any]], plan: Plan, data: Jets, options: RunOptions
) -> None:
    """Watched by the progress bar and MLflow, as a study's trials are."""
    say(f"[bold]{plan.question}[/]\n{plan.study}: {points} points on {len(job.plan.space)} axes; {data.source}")
    if ended:
        say(f"{len(ended)} of {points} points have ended already and are not run again")
    progress = SearchProgress(job.plan, points, ended, console)
    with watched(progress, plan, data, job.storage, options) as (listeners, _):
        if options.inline:
            from cluster.search.point import search_inline

            search_inline(job, points, data, listeners)
        else:
            from cluster.search.tune import search_ray

            search_ray(job, points, data, listeners, address=options.address)


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


def describe_search(
    study: Study, plan: Plan, storage: Storage, options: RunOptions, costs: Costs
) -> tuple[Plan, tuple[Contrast, ...]]:
    """Print what the search would run and cost.

    Returns
    -------
    plan, contrasts
        What comes after it, and contrasts with arms that are not known yet.
    """
    from cluster.search.searcher import winner

    cost = costs.of(from_dict(plan.base), fresh=True)
    assert cost is not None  # what has no record is timed
    tasks = tasks_of(study, options.search)
    wanted = search_plan(study, plan, options.search, cached_plan_jets(plan, options.data, tasks=tasks))
    points, trials = options.search.points or searched(study).points[plan.preset], 1 + len(tasks)
    ledger = load_ledger(storage, plan.study)  # none, or of another search, or of jets that are not at hand
    entries = ledger["points"] if ledger and ledger["plan_hash"] == wanted.hash else []
    ended = sum(entry["state"] != "open" for entry in entries[:points])
    most = costs.hours((points - ended) * trials * cost.seconds)
    lines = [f"first a search: {points} points, of which {ended} have ended; objectives {', '.join(wanted.objectives)}"]
    lines += [f"  {axis['coordinate']}: {shown(axis['distribution'])}" for axis in wanted.space]
    if ended < points:
        each = f"{points - ended} x {trials} trial(s) x {cost.seconds:,.0f} s, {'; '.join(cost.basis)}"
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
        return plan, (CONFIRMATION,)
    best = winner(wanted, entries)
    found = confirmation(study, changes_to(from_dict(plan.base), best["overrides"] if best else {}))
    arms = {name: dict(arm) for name, arm in found.arms_at(plan.preset).items()}
    return dataclasses.replace(plan, arms=arms, contrasts=found.contrasts), ()


def changes_to(base: Config, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the overrides that are other than the base."""
    flat = flatten(base)
    return {name: value for name, value in overrides.items() if flat[name] != value}


def shown(distribution: Mapping[str, Any]) -> str:
    """``0.0002 to 0.01, log``, or the choices."""
    known = distribution["attributes"]
    if "choices" in known:
        return ", ".join(map(str, known["choices"]))
    return f"{known['low']:g} to {known['high']:g}" + (", log" if known["log"] else "")

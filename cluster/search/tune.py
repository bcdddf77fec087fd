"""Run the points of a search that have not ended under Ray Tune.

A Tune trial is a slot in the queue: when its turn comes it asks the Searcher, an actor beside the driver, for a point,
so that a suggestion knows all that has ended before. Driver, actor and workers may die at any moment: the ledger, the
records and the checkpoints are enough to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import ray
import torch
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.connection import connected
from cluster.events import Listener
from cluster.scheduling.nodes import check_nodes
from cluster.scheduling.tune import TuneCallback, run_tune
from cluster.search.point import Job, new_session, run_point
from cluster.search.searcher import Entry, Searcher
from jbot.data import Jets
from jbot.store.attempts import attempts_begun
from jbot.store.record import Record, TrialSpec


def search_ray(job: Job, points: int, data: Jets, listeners: Sequence[Listener], *, address: str | None) -> None:
    """Run as many points at once as the machines hold; see :func:`cluster.scheduling.tune.run_ray`.

    Raises ClusterError as that does. Raises KeyboardInterrupt after Ctrl-C, when Tune has stopped its trials.
    """
    left = Searcher(job.plan, points, job.storage).left()
    if not left:
        return
    with connected(address):
        check_nodes(job.storage, job.resources)
        # What it knows is in the ledger: one that died begins again, and everything asked of it may be asked twice.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        actor = ray.remote(Searcher).options(**options).remote(job.plan, points, job.storage, new_session())
        given, scratch = {"job": job, "data": data, "actor": actor}, f".ray-{job.plan.study}-search"
        callback = SearchCallback(job, listeners)
        run_tune(train_point, given, "slot", left, callback, job.resources, scratch=scratch, folders=_folder)


def _folder(trial: Any) -> str:
    return str(trial.config["slot"])


def train_point(config: dict[str, int], job: Job, data: Jets, actor: Any) -> None:
    """Claim and run a point in a Ray worker, when the turn of its slot has come."""
    torch.set_num_threads(job.resources.threads)
    searcher = cast(Searcher, RemoteSearcher(actor))
    entry = searcher.claim(str(config["slot"]))
    if entry is not None:
        run_point(entry, job, data, searcher, _Reports(entry, job))
    tune.report({"done": True})  # Tune wants a word even where nothing was left to do


class RemoteSearcher:
    """The Searcher in its actor: its methods, each answered from there."""

    def __init__(self, actor: Any):
        self.actor = actor

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *arguments: ray.get(getattr(self.actor, method).remote(*arguments))


class _Reports:
    """Watches a point in its worker, and reports each event as a result of the Tune trial, for `SearchCallback`."""

    def __init__(self, entry: Entry, job: Job):
        self.storage = job.storage
        self.entry = {name: entry[name] for name in ("number", "overrides")}
        self.position = {spec.trial_id: number for number, spec in enumerate(job.specs(entry))}

    def _report(self, spec: TrialSpec, **what: Any) -> None:
        tune.report({"entry": self.entry, "trial": self.position[spec.trial_id]} | what)

    def started(self, spec: TrialSpec) -> None:
        self._report(spec, started=attempts_begun(self.storage, spec.trial_id))

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        self._report(spec, row=row)

    def ended(self, spec: TrialSpec, record: Record) -> None:
        self._report(spec, ended=True)


class SearchCallback(TuneCallback):
    """The events of a search: which trial a slot runs is known from what its worker reports."""

    def __init__(self, job: Job, listeners: Sequence[Listener]):
        super().__init__(job.storage, listeners)
        self.job = job
        self.runs: dict[str, TrialSpec] = {}
        """The trial that runs in each slot, by Tune's name of it."""

    def running(self, trial: Any) -> list[TrialSpec]:
        """The trial that runs in a slot."""
        return [self.runs[trial.trial_id]] if trial.trial_id in self.runs else []

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial begins, has a new row, or has ended."""
        if "entry" not in result:
            return
        spec = self.job.specs(result["entry"])[result["trial"]]
        if "started" in result:
            self.runs[trial.trial_id] = spec
            self.attempts[spec.trial_id] = result["started"]
            self.listeners.started(spec)
        elif "row" in result:
            self.listeners.point(spec, result["row"])
        elif "ended" in result:
            self.runs.pop(trial.trial_id, None)
            self.end(spec)

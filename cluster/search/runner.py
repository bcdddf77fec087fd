"""Run the points of a search that have not ended, inline or under Ray Tune.

Under Ray, a Tune trial is a slot in the queue: when its turn comes it asks the Searcher, an actor beside the driver,
for a point, so that a suggestion knows all that has ended before. Driver, actor and workers may die at any moment: the
ledger, the records and the checkpoints are enough to go on.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from rich.console import Console

from cluster.events import Listener, Listeners
from cluster.progress import Bar, StudyProgress
from cluster.search.plan import SearchPlan
from cluster.search.point import Job, run_point
from cluster.search.searcher import Entry, Searcher
from jbot.data import Jets
from jbot.store.attempts import attempts_begun
from jbot.store.record import Record
from jbot.store.trial_spec import TrialSpec


def search_inline(job: Job, points: int, data: Jets, listeners: Sequence[Listener]) -> None:
    """One point after another in this process, without Ray."""
    job.resources.begin_inline("points")
    searcher, events = Searcher(job.plan, points, job.storage, session=_session()), Listeners(listeners)
    turn = 0
    while entry := searcher.claim(str(turn)):
        run_point(entry, job, data, searcher, events)
        turn += 1


def search_ray(job: Job, points: int, data: Jets, listeners: Sequence[Listener], *, address: str | None) -> None:
    """The same under Ray Tune, as many points at once as the machines hold; see
    :func:`cluster.scheduling.tune.run_ray`.

    Raises
    ------
    ClusterError
        As there.
    KeyboardInterrupt
        After Ctrl-C, when Tune has stopped its trials.
    """
    from cluster.connection import connected
    from cluster.scheduling.nodes import check_nodes

    left = Searcher(job.plan, points, job.storage).left()
    if not left:
        return
    with connected(address):
        check_nodes(job.storage, job.resources)
        _run_points(job, points, left, data, listeners)


def _session() -> str:
    return uuid.uuid4().hex[:8]


def _run_points(job: Job, points: int, slots: int, data: Jets, listeners: Sequence[Listener]) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.scheduling.tune import run_tune
    from cluster.search.callback import SearchCallback

    # What it knows is in the ledger: one that died begins again, and everything asked of it may be asked twice.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    kept = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    actor = ray.remote(Searcher).options(**kept).remote(job.plan, points, job.storage, _session())
    given, scratch = {"job": job, "data": data, "actor": actor}, f".ray-{job.plan.study}-search"
    callback = SearchCallback(job, listeners)
    run_tune(train_point, given, "slot", slots, callback, job.resources, scratch=scratch, folders=_folder)


def _folder(trial: Any) -> str:
    return str(trial.config["slot"])


class RemoteSearcher:
    """The Searcher in its actor: its methods, each answered from there."""

    def __init__(self, actor: Any):
        self.actor = actor

    def __getattr__(self, method: str) -> Callable[..., Any]:
        import ray

        return lambda *arguments: ray.get(getattr(self.actor, method).remote(*arguments))


class _Reports:
    """Watches a point in its worker, and reports each event as a result of the Tune trial."""

    def __init__(self, entry: Entry, job: Job):
        self.storage = job.storage
        self.entry = {name: entry[name] for name in ("number", "overrides")}
        self.position = {spec.trial_id: number for number, spec in enumerate(job.specs(entry))}

    def _report(self, spec: TrialSpec, **what: Any) -> None:
        from ray import tune

        tune.report({"entry": self.entry, "trial": self.position[spec.trial_id]} | what)

    def started(self, spec: TrialSpec) -> None:
        self._report(spec, started=attempts_begun(self.storage, spec.trial_id))

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        self._report(spec, row=row)

    def ended(self, spec: TrialSpec, record: Record) -> None:
        self._report(spec, ended=True)


def train_point(config: dict[str, int], job: Job, data: Jets, actor: Any) -> None:
    """Claim and run a point in a Ray worker, when the turn of its slot has come."""
    from ray import tune

    torch.set_num_threads(job.resources.threads)
    searcher = cast(Searcher, RemoteSearcher(actor))
    entry = searcher.claim(str(config["slot"]))
    if entry is not None:
        run_point(entry, job, data, searcher, _Reports(entry, job))
    tune.report({"done": True})  # Tune wants a word even where nothing was left to do


class SearchProgress(StudyProgress):
    """A bar over the points of a search, of which only those that have begun are known."""

    def __init__(self, plan: SearchPlan, points: int, entries: Sequence[Entry], console: Console | None = None):
        self.plan, self.points = plan, points
        self.before_this = sum(entry["state"] != "open" for entry in entries)
        super().__init__([], [], console)

    def make_bar(self, console: Console | None) -> Bar:
        """Without a time left: nobody knows what will be pruned."""
        return Bar("points", self.points, self.done(), console=console, time_left=False)

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        """The line is printed now and then."""
        self._show()

    def done(self) -> int:
        """Points whose last trial has a record."""
        per_point = 2 if "anomaly" in self.plan.objectives else 1
        gave_up = sum(state != "complete" for state in self.states.values())
        return self.before_this + gave_up + (len(self.states) - gave_up) // per_point

    def summary(self) -> str:
        """``points 14/24 done · 2 running · 6 pruned · 0 failed``."""
        counts = {state: list(self.states.values()).count(state) for state in ("pruned", "failed")}
        return (
            f"points {self.done()}/{self.points} done · {len(self.running)} running · "
            f"{counts['pruned']} pruned · {counts['failed']} failed"
        )

"""Run the points of a search that have not ended, inline or under Ray Tune, each as the trials of a study are run.

Under Ray, a Tune trial is a place in the queue: when its turn comes it asks the Searcher, an actor beside the driver,
for a point, so that a suggestion knows all that has ended before. Driver, actor and workers may die at any moment: the
ledger, the records and the checkpoints are enough to go on.

A point trains alone in its pack, as its neighbours are not known when it begins. On a GPU several points share it by
fractions (`--gpus 0.25`).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console

from cluster.events import Listener
from cluster.progress import LOG_SECONDS, StudyProgress
from cluster.scheduling.run import ClusterError, Resources
from cluster.search.plan import Entry, Searcher, SearchPlan
from jbot.config import from_dict, override
from jbot.data import Jets
from jbot.encoder import load
from jbot.evaluation.anomaly.detect import AnomalyError
from jbot.evaluation.anomaly.synthetic_signal_metric import pilot_auc
from jbot.store.attempts import attempts_begun
from jbot.store.record import Record, Storage, load_curves, load_record, trial_folder
from jbot.trainer.flops import training_flop
from jbot.trial.run import Prune, TrialSpec, run_pack

ANOMALY_TASK = "qg"


class Asked(Protocol):
    """A Searcher, here or in an actor."""

    def claim(self, place: str) -> Entry | None:
        """See Searcher.claim."""

    def report(self, number: int, epoch: int, value: float) -> str | None:
        """See Searcher.report."""

    def tell(self, number: int, told: dict[str, Any]) -> None:
        """See Searcher.tell."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs beside the jets to run points."""

    plan: SearchPlan
    storage: Storage
    resources: Resources
    git_commit: str | None
    fingerprints: Mapping[str, str]
    """Task -> fingerprint of the jets that a point of it uses."""

    def specs(self, entry: Entry) -> list[TrialSpec]:
        """The trials of a point: its own, and where the anomaly objective is wanted one of the same recipe on
        background alone."""
        own = override(from_dict(self.plan.base), entry["overrides"])
        configs = {"": own}
        if "anomaly" in self.plan.objectives:
            configs["-anomaly"] = override(own, {"data.task": ANOMALY_TASK})
        return [
            TrialSpec(
                study=self.plan.study,
                arm=f"point-{entry['number']:03d}{suffix}",
                plan_hash=self.plan.hash,
                config=config,
                data_fingerprint=self.fingerprints[config.data.task],
                git_commit=self.git_commit,
            )
            for suffix, config in configs.items()
        ]


class Watcher(Protocol):
    """What a worker says while it runs a point."""

    def started(self, spec: TrialSpec) -> None:
        """A trial begins."""

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        """A row of its curves."""

    def ended(self, spec: TrialSpec, record: Record) -> None:
        """It has a record."""


def run_point(entry: Entry, job: Job, data: Jets, searcher: Asked, watcher: Watcher) -> None:
    """Run the trials of a point that have no record yet, asking whether to go on, and tell how it ended."""
    number, specs = entry["number"], job.specs(entry)

    def report(rows: list[tuple[TrialSpec, dict[str, Any]]]) -> None:
        for spec, row in rows:
            watcher.point(spec, row)

    def prune(spec: TrialSpec, row: dict[str, Any]) -> str | None:
        value = row.get(job.plan.metric)
        return searcher.report(number, row["epoch"], value) if value is not None and np.isfinite(value) else None

    asked = prune if job.plan.rungs else None
    for spec in specs:
        record = load_record(job.storage, spec.trial_id)
        if record is None or (record.state == "pruned" and not _given_up(job.storage, spec, asked)):
            watcher.started(spec)
            run_pack(
                [spec], data, job.storage, job.resources.device, report, watcher.ended,
                prune=asked, engine=job.resources.engine,
            )  # fmt: skip
            record = load_record(job.storage, spec.trial_id)
        if record is not None and record.state != "complete":
            break
    searcher.tell(number, measure(job, specs, data))


def _given_up(storage: Storage, spec: TrialSpec, prune: Prune | None) -> bool:
    """Whether this search gives up a pruned trial too: another one may have pruned it, against other points."""
    return prune is not None and any(prune(spec, row) for row in load_curves(storage, spec.trial_id))


def measure(job: Job, specs: Sequence[TrialSpec], data: Jets) -> dict[str, Any]:
    """How a point has ended, from its records: what the ledger holds of it."""
    records = [record for spec in specs if (record := load_record(job.storage, spec.trial_id))]
    rows = load_curves(job.storage, specs[0].trial_id)
    points = [[row["epoch"], row[job.plan.metric]] for row in rows if row.get(job.plan.metric) is not None]
    last = records[-1]
    told: dict[str, Any] = {
        "state": last.state,
        "reason": last.reason,
        "points": points,
        "trials": [{"arm": record.arm, "trial_id": record.trial_id} for record in records],
        "device_seconds": sum(record.own_seconds for record in records),
        "values": {},
    }
    if last.state != "complete":
        return told
    try:
        told["values"] = {name: _value(name, job, specs, data, rows) for name in job.plan.objectives}
    except AnomalyError as error:  # an outcome: no score can use the embedding
        told |= {"state": "failed", "reason": f"no anomaly score: {error}"}
    return told


def _value(objective: str, job: Job, specs: Sequence[TrialSpec], data: Jets, rows: Sequence[dict[str, Any]]) -> float:
    """An objective of a complete point, on validation jets."""
    if objective == "accuracy":
        return float(rows[-1][job.plan.metric])
    if objective == "cost":
        masked = [row["train/masked_fraction"] for row in rows if row.get("train/masked_fraction") is not None]
        return training_flop(specs[0].config, float(np.mean(masked)) if masked else 1.0) / 1e12
    encoder = load.load(f"{job.storage.address}/{trial_folder(specs[-1].trial_id)}", device=job.resources.device)
    return pilot_auc(encoder.embed, data.at(specs[-1].config.data.jet_pt), specs[-1].config)


# --- inline -------------------------------------------------------------------------------------------------------


class _Told:
    """Listeners as a watcher."""

    def __init__(self, listeners: Sequence[Listener]):
        self.listeners = listeners

    def started(self, spec: TrialSpec) -> None:
        for listener in self.listeners:
            listener.started(spec)

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener.point(spec, row)

    def ended(self, spec: TrialSpec, record: Record) -> None:
        for listener in self.listeners:
            listener.ended(spec, record)


def search_inline(job: Job, points: int, data: Jets, listeners: Sequence[Listener]) -> None:
    """One point after another in this process, without Ray."""
    if job.resources.gpus > 0 and not torch.cuda.is_available():
        raise ClusterError(f"points ask for {job.resources.gpus:g} GPUs and there is none here; use --gpus 0")
    torch.set_num_threads(job.resources.threads)
    searcher = Searcher(job.plan, points, job.storage, session=uuid.uuid4().hex[:8])
    turn = 0
    while entry := searcher.claim(str(turn)):
        run_point(entry, job, data, searcher, _Told(listeners))
        turn += 1


# --- Ray ----------------------------------------------------------------------------------------------------------


class Remote:
    """The Searcher in its actor."""

    def __init__(self, actor: Any):
        self.actor = actor

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self.actor, method).remote(*arguments))

    def claim(self, place: str) -> Entry | None:
        """See Searcher.claim."""
        found: Entry | None = self._ask("claim", place)
        return found

    def report(self, number: int, epoch: int, value: float) -> str | None:
        """See Searcher.report."""
        found: str | None = self._ask("report", number, epoch, value)
        return found

    def tell(self, number: int, told: dict[str, Any]) -> None:
        """See Searcher.tell."""
        self._ask("tell", number, told)


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
    from cluster.scheduling.connection import connected
    from cluster.scheduling.tune import check_nodes

    left = Searcher(job.plan, points, job.storage).left()
    if not left:
        return
    with connected(address):
        check_nodes(job.storage, job.resources)
        _fit(job, points, left, data, listeners)


def _fit(job: Job, points: int, places: int, data: Jets, listeners: Sequence[Listener]) -> None:
    import ray
    from ray import tune
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.scheduling.tuner import run_tune
    from cluster.search.relay import SearchRelay

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # What it knows is in the ledger: one that died begins anew, and everything asked of it may be asked twice.
    kept = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    actor = ray.remote(Searcher).options(**kept).remote(job.plan, points, job.storage, uuid.uuid4().hex[:8])
    trainable = tune.with_resources(
        tune.with_parameters(train_point, job=job, data=data, actor=actor),
        {"cpu": job.resources.cpus, "gpu": job.resources.gpus},
    )
    relay, retries = SearchRelay(job, listeners), job.resources.max_retries
    scratch = f".ray-{job.plan.study}-search"
    run_tune(trainable, "place", places, relay, job.storage, scratch=scratch, max_retries=retries, folders=_folder)


def _folder(trial: Any) -> str:
    return str(trial.config["place"])


class _Reports:
    """What a worker says, as results of its Tune trial."""

    def __init__(self, entry: Entry, job: Job):
        self.storage, specs = job.storage, job.specs(entry)
        self.entry = {name: entry[name] for name in ("number", "overrides")}
        self.place = {spec.trial_id: place for place, spec in enumerate(specs)}

    def _say(self, spec: TrialSpec, **what: Any) -> None:
        from ray import tune

        tune.report({"entry": self.entry, "trial": self.place[spec.trial_id]} | what)

    def started(self, spec: TrialSpec) -> None:
        self._say(spec, started=attempts_begun(self.storage, spec.trial_id))

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        self._say(spec, row=row)

    def ended(self, spec: TrialSpec, record: Record) -> None:
        self._say(spec, ended=True)


def train_point(config: dict[str, int], job: Job, data: Jets, actor: Any) -> None:
    """What a Ray worker does when its place's turn has come."""
    from ray import tune

    torch.set_num_threads(job.resources.threads)
    searcher = Remote(actor)
    entry = searcher.claim(str(config["place"]))
    if entry is not None:
        run_point(entry, job, data, searcher, _Reports(entry, job))
    tune.report({"done": True})  # Tune wants a word even where nothing was left to do


# --- progress -----------------------------------------------------------------------------------------------------


class SearchProgress(StudyProgress):
    """A bar over the points of a search, of which only those that have begun are known."""

    def __init__(self, plan: SearchPlan, points: int, entries: Sequence[Entry], console: Console | None = None):
        self.plan, self.points = plan, points
        self.before_this = sum(entry["state"] != "open" for entry in entries)
        super().__init__([], [], console)
        self.bar.update(self.task, total=points)

    def started(self, spec: TrialSpec) -> None:
        """Count it as running."""
        if spec.trial_id not in self.epochs:
            self.specs.append(spec)
            self.epochs[spec.trial_id] = 0.0
        super().started(spec)

    def ended_points(self) -> int:
        """Points whose last trial has a record."""
        per_point = 2 if "anomaly" in self.plan.objectives else 1
        gave_up = sum(state != "complete" for state in self.states.values())
        return self.before_this + gave_up + (len(self.states) - gave_up) // per_point

    def summary(self) -> str:
        """``points 14/24 done, 2 running, 6 pruned, 0 failed``."""
        counts = {state: list(self.states.values()).count(state) for state in ("pruned", "failed")}
        return (
            f"points {self.ended_points()}/{self.points} done · {len(self.running)} running · "
            f"{counts['pruned']} pruned · {counts['failed']} failed"
        )

    def time_left(self) -> str:
        """Unknown: nobody knows what will be pruned."""
        return ""

    def _show(self) -> None:
        import time

        summary = self.summary()
        self.bar.update(self.task, completed=self.ended_points(), detail=summary, left="")
        if not self.console.is_terminal and time.monotonic() - self.logged > LOG_SECONDS:
            self.logged = time.monotonic()
            self.console.print(summary, highlight=False)

"""One point of a search: its trials, run by a worker or inline, and what it is worth.

A point trains alone in its pack, as its neighbours are not known when it begins. On a GPU several points share it by
fractions (`--gpus 0.25`).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.events import Listener, Listeners, Watcher
from cluster.resources import Resources
from cluster.search.searcher import Entry, Searcher
from jbot.config import from_dict, override
from jbot.data import Jets
from jbot.encoder import load
from jbot.evaluation.anomaly.detect import AnomalyError
from jbot.evaluation.anomaly.synthetic_signal import synthetic_signal_auc
from jbot.store.record import TrialSpec, load_curves, load_record, trial_folder
from jbot.store.search_ledger import SearchPlan
from jbot.store.storage import Storage
from jbot.trainer.flops import training_flop
from jbot.trial.run import Prune, run_pack

ANOMALY_TASK = "qg"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything but the jets that a worker needs to run points."""

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


def search_inline(job: Job, points: int, data: Jets, listeners: Sequence[Listener]) -> None:
    """One point after another in this process, without Ray."""
    job.resources.begin_inline("points")
    searcher, events = Searcher(job.plan, points, job.storage, session=new_session()), Listeners(listeners)
    turn = 0
    while entry := searcher.claim(str(turn)):
        run_point(entry, job, data, searcher, events)
        turn += 1


def new_session() -> str:
    """A name for this run of the program, see :class:`Searcher`."""
    return uuid.uuid4().hex[:8]


def run_point(entry: Entry, job: Job, data: Jets, searcher: Searcher, watcher: Watcher) -> None:
    """Run the trials of a point that have no record yet, asking whether to go on; tell the searcher how it ended."""
    number, specs = entry["number"], job.specs(entry)

    def report(rows: list[tuple[TrialSpec, dict[str, Any]]]) -> None:
        for spec, row in rows:
            watcher.point(spec, row)

    def prune(spec: TrialSpec, row: dict[str, Any]) -> str | None:
        value = row.get(job.plan.metric)
        return searcher.report(number, row["epoch"], value) if value is not None and np.isfinite(value) else None

    pruning = prune if job.plan.rungs else None
    for spec in specs:
        record = load_record(job.storage, spec.trial_id)
        if record is None or (record.state == "pruned" and not _given_up(job.storage, spec, pruning)):
            watcher.started(spec)
            run_pack(
                [spec], data, job.storage, job.resources.device, report, watcher.ended,
                prune=pruning, engine=job.resources.engine,
            )  # fmt: skip
            record = load_record(job.storage, spec.trial_id)
        if record is not None and record.state != "complete":
            break
    searcher.tell(number, measure(job, specs, data))


def _given_up(storage: Storage, spec: TrialSpec, prune: Prune | None) -> bool:
    """Whether this search gives up a pruned trial too: another one may have pruned it, against other points."""
    return prune is not None and any(prune(spec, row) for row in load_curves(storage, spec.trial_id))


def measure(job: Job, specs: Sequence[TrialSpec], data: Jets) -> dict[str, Any]:
    """The outcome of a point for the ledger, from its records."""
    records = [record for spec in specs if (record := load_record(job.storage, spec.trial_id))]
    rows = load_curves(job.storage, specs[0].trial_id)
    points = [[row["epoch"], row[job.plan.metric]] for row in rows if row.get(job.plan.metric) is not None]
    last = records[-1]
    outcome: dict[str, Any] = {
        "state": last.state,
        "reason": last.reason,
        "points": points,
        "trials": [{"arm": record.arm, "trial_id": record.trial_id} for record in records],
        "device_seconds": sum(record.own_seconds for record in records),
        "values": {},
    }
    if last.state != "complete":
        return outcome
    try:
        outcome["values"] = {name: _value(name, job, specs, data, rows) for name in job.plan.objectives}
    except AnomalyError as error:  # an outcome: no score can use the embedding
        outcome |= {"state": "failed", "reason": f"no anomaly score: {error}"}
    return outcome


def _value(objective: str, job: Job, specs: Sequence[TrialSpec], data: Jets, rows: Sequence[dict[str, Any]]) -> float:
    """An objective of a complete point, on validation jets."""
    if objective == "accuracy":
        return float(rows[-1][job.plan.metric])
    if objective == "cost":
        masked = [row["train/masked_fraction"] for row in rows if row.get("train/masked_fraction") is not None]
        return training_flop(specs[0].config, float(np.mean(masked)) if masked else 1.0) / 1e12
    encoder = load.load(f"{job.storage.address}/{trial_folder(specs[-1].trial_id)}", device=job.resources.device)
    return synthetic_signal_auc(encoder.embed, data.at(specs[-1].config.data.jet_pt), specs[-1].config)

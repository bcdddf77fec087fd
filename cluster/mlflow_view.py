"""The MLflow view of a study: written live by the driver, never read by the program, rebuilt from records at any time.

One experiment per study; in it a parent run, a child run per trial, and a summary run per arm. Runs are found
by our own ids in their tags, so continuing a study or rebuilding the view makes no duplicates.
"""

from __future__ import annotations

import os
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jbot.config import Config, flatten, from_dict
from jbot.record import Record, Storage, first_line, load_curves, load_finetune_curves, load_record, trial_folder
from jbot.trial import TrialSpec

# A server that is down must cost seconds, not MLflow's default of several minutes a call.
for _name, _value in {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}.items():
    os.environ.setdefault(_name, _value)

STATUS = {"complete": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}


@dataclass(frozen=True, kw_only=True)
class StudyInfo:
    """What the parent run says of a study."""

    name: str
    question: str
    preset: str
    plan_hash: str
    metric: str
    source: str
    """One line on the jets."""


class View:
    """Runs of one study in one tracking server. Every method may raise what MLflow raises."""

    def __init__(self, uri: str, info: StudyInfo):
        import mlflow

        self.info, self.uri = info, uri
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        self._runs: dict[tuple[str, str], str] = {}
        self._points: dict[tuple[str, str], set[int]] = {}
        """Epochs that are there, by run and the name of their clock."""
        self.experiment = self._experiment()
        self.parent = self._run("study", info.name, f"{info.name} ({info.preset})", {"question": info.question})
        for tag, value in {"plan_hash": info.plan_hash, "metric": info.metric}.items():  # of the plan that ran last
            self.client.set_tag(self.parent, tag, value)
        self.client.set_tag(self.parent, "mlflow.note.content", f"{info.question}\n\nJets: {info.source}")

    def started(self, spec: TrialSpec) -> None:
        """The run of a trial exists and is running."""
        self._status(self._trial(spec.trial_id, spec.arm, spec.config), "RUNNING", "running")

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        """One row of the learning curves, once."""
        self._log_rows(self._trial(spec.trial_id, spec.arm, spec.config), [row])

    def ended(self, trial_id: str, arm: str, record: Record, rows: list[dict[str, Any]]) -> None:
        """All a record holds: missing points, final metrics, state, where it ran."""
        run = self._trial(trial_id, arm, from_dict(record.config))
        self._log_rows(run, rows)
        final = {name: value for name, value in record.metrics.items() if value is not None}
        final |= {"wall_seconds": record.wall_seconds, "device_seconds": record.device_seconds}
        self._log(run, [self._metric(name, value, 0, record.started) for name, value in final.items()], {})
        tags = {"reason": record.reason or "", "attempts": str(record.attempts), "git_commit": record.git_commit or ""}
        tags |= {"data_fingerprint": record.data["fingerprint"], "plan_hash": record.plan_hash}
        self._log(run, [], tags)
        self._status(run, STATUS[record.state], record.state)

    def summarise(self, arm: str, records: list[Record]) -> None:
        """The summary run of an arm: mean and spread of each final metric over its complete trials."""
        complete = [record for record in records if record.state == "complete"]
        latest = max(record.started for record in records)
        run = self._run("arm", arm, f"{arm} (arm)", {"arm": arm}, self.parent)
        metrics: dict[str, float] = {"n": len(complete), "failed": len(records) - len(complete)}
        for name in sorted({name for record in complete for name in record.metrics}):
            values = [record.metrics[name] for record in complete if record.metrics.get(name) is not None]
            metrics[name] = statistics.fmean(values)
            if len(values) > 1:
                metrics[f"{name}_sd"] = statistics.stdev(values)
        self._log(run, [self._metric(name, value, 0, latest) for name, value in metrics.items()], {})
        self._status(run, "FINISHED", "complete")

    def figures(self, trial_id: str, arm: str, record: Record, storage: Storage) -> None:
        """The figures that were drawn of a trial, as artifacts of its run; those that are there are not sent again."""
        folder = f"{trial_folder(trial_id)}/figures"
        drawn = [name for name in storage.names(folder) if name.endswith(".svg")]
        if drawn:
            run = self._trial(trial_id, arm, from_dict(record.config))
            there = {Path(found.path).name for found in self.client.list_artifacts(run, "figures")}
            missing = {name: storage.read(f"{folder}/{name}") for name in drawn if name not in there}
            self._upload(run, missing, "figures")

    def report(self, page: bytes) -> None:
        """The study's report, as an artifact of the parent run."""
        self._upload(self.parent, {"report.html": page}, None)

    def finish(self, complete: bool) -> None:
        """The parent's state."""
        self._status(self.parent, *(("FINISHED", "complete") if complete else ("KILLED", "unfinished")))

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.info.name)
        if found:
            return found.experiment_id
        return self.client.create_experiment(
            self.info.name, artifact_location=artifact_folder(self.uri, self.info.name)
        )

    def _trial(self, trial_id: str, arm: str, config: Config) -> str:
        if ("trial", trial_id) in self._runs:
            return self._runs["trial", trial_id]
        tags = {"arm": arm, "seed": str(config.seed), "block": str(config.seed), "trial_id": trial_id}
        run = self._run("trial", trial_id, f"{arm} seed {config.seed}", tags, self.parent)
        if not self.client.get_run(run).data.params:
            from mlflow.entities import Param

            params = [Param(name, str(value)) for name, value in flatten(config).items()]
            self.client.log_batch(run, params=params)
        return run

    def _run(self, role: str, key: str, name: str, tags: dict[str, str], parent: str | None = None) -> str:
        """The run with this role and key, made when there is none."""
        if (role, key) in self._runs:
            return self._runs[role, key]
        query = f"tags.role = '{role}' and tags.key = '{key}'"
        found = self.client.search_runs([self.experiment], query, max_results=1)
        if found:
            run = found[0].info.run_id
        else:
            tags = tags | {"role": role, "key": key, "study": self.info.name, "preset": self.info.preset}
            tags |= {"mlflow.parentRunId": parent} if parent else {}
            run = self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id
        self._runs[role, key] = run
        return run

    def _log_rows(self, run: str, rows: list[dict[str, Any]]) -> None:
        metrics = []
        for row in rows:
            clock = next(name for name in row if name.rpartition("/")[2] == "epoch")  # of training, or of a fine-tuning
            if (run, clock) not in self._points:
                self._points[run, clock] = {int(m.step) for m in self.client.get_metric_history(run, clock)}
            if row[clock] not in self._points[run, clock]:
                self._points[run, clock].add(row[clock])
                known = {name: value for name, value in row.items() if isinstance(value, int | float)}
                metrics += [self._metric(name, value, row[clock], None) for name, value in known.items()]
        self._log(run, metrics, {})

    def _metric(self, name: str, value: float, step: int, at: str | None) -> Any:
        """A value with a time of its own, so that writing it twice is writing it once."""
        from mlflow.entities import Metric

        seconds = datetime.fromisoformat(at).timestamp() if at else time.time()
        return Metric(name, float(value), int(seconds * 1000), step)

    def _log(self, run: str, metrics: list[Any], tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        for begin in range(0, max(len(metrics), 1), 900):  # a batch holds at most 1000 metrics
            self.client.log_batch(
                run, metrics[begin : begin + 900], tags=[RunTag(key, value) for key, value in tags.items()]
            )

    def _upload(self, run: str, files: dict[str, bytes], folder: str | None) -> None:
        if not files:
            return
        with tempfile.TemporaryDirectory() as here:
            for name, content in files.items():
                (Path(here) / name).write_bytes(content)
            self.client.log_artifacts(run, here, folder)

    def _status(self, run: str, status: str, state: str) -> None:
        self.client.set_tag(run, "state", state)
        if status == "RUNNING":
            self.client.update_run(run, status=status)
        else:
            self.client.set_terminated(run, status)


class LiveView:
    """A listener that writes the view from one background thread. A server that fails loses nothing: see `rebuild`."""

    def __init__(self, uri: str, info: StudyInfo, storage: Storage):
        self.uri, self.info, self.storage = uri, info, storage
        self.error: str | None = None
        self._tasks: queue.Queue[Callable[[View], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow-view", daemon=True)
        self._thread.start()

    def started(self, spec: TrialSpec) -> None:
        """See View.started."""
        self._tasks.put(lambda view: view.started(spec))

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        """See View.point."""
        self._tasks.put(lambda view: view.point(spec, row))

    def ended(self, spec: TrialSpec, record: Record) -> None:
        """See View.ended."""
        trial = spec.trial_id
        self._tasks.put(lambda view: view.ended(trial, spec.arm, record, all_curves(self.storage, trial)))

    def interrupted(self, spec: TrialSpec) -> None:
        """Its run goes on when the trial does."""

    def lost(self, spec: TrialSpec, error: str) -> None:
        """Its run stays as it is until the trial is tried again."""

    def close(self) -> None:
        """Write what is left, or give up when the server has failed."""
        self._tasks.put(None)
        self._thread.join(timeout=120)
        if self._thread.is_alive():
            self.error = self.error or "it did not answer in two minutes"

    def _work(self) -> None:
        view = None
        while (task := self._tasks.get()) is not None:
            if self.error:
                continue
            try:
                view = view or View(self.uri, self.info)
                task(view)
            except Exception as error:  # whatever MLflow, SQLAlchemy or the network raise: the study goes on
                self.error = f"{type(error).__name__}: {first_line(error)}"


def artifact_folder(uri: str, experiment: str) -> str | None:
    """Where artifacts lie when the view is a SQLite file: beside it, not in whatever folder the study was started in.

    None leaves it to the server.
    """
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlflow_artifacts" / experiment).as_uri()


def all_curves(storage: Storage, trial: str) -> list[dict[str, Any]]:
    """Of pre-training, and of fine-tunings."""
    return load_curves(storage, trial) + load_finetune_curves(storage, trial)


def rebuild(storage: Storage, study: str, uri: str) -> int:
    """Make the view of a study from its records, and from figures and report if they were made; returns the trials.

    Parameters
    ----------
    study : str
        Name of the study's folder in the storage.
    """
    view, ended, complete = _open(storage, study, uri)
    by_arm: dict[str, list[Record]] = {}
    for trial, arm, record in ended:
        view.ended(trial, arm, record, all_curves(storage, trial))
        view.figures(trial, arm, record, storage)
        by_arm.setdefault(arm, []).append(record)
    searched = _points(storage, study)
    for trial, arm, record in searched:
        view.ended(trial, arm, record, all_curves(storage, trial))
    for arm, records in by_arm.items():
        view.summarise(arm, records)
    if storage.exists(f"{study}/report.html"):
        view.report(storage.read(f"{study}/report.html"))
    view.finish(complete)
    return len(ended) + len(searched)


def show_files(storage: Storage, study: str, uri: str, report: bytes) -> None:
    """Add the figures that were drawn, and the report, to the view of a study."""
    view, ended, _ = _open(storage, study, uri)
    for trial, arm, record in ended:
        view.figures(trial, arm, record, storage)
    view.report(report)


def _open(storage: Storage, study: str, uri: str) -> tuple[View, list[tuple[str, str, Record]], bool]:
    """The view of a study, (id, arm, record) of its trials that have ended, and whether those are all."""
    content = _content(storage, study)
    plan = content["plan"]
    info = StudyInfo(
        name=plan["study"],
        question=plan["question"],
        preset=plan["preset"],
        plan_hash=content["plan_hash"],
        metric=plan["metric"],
        source=content["data"]["source"],
    )
    trials = content["trials"][: content.get("needed")]  # fewer than planned, where a study was stopped at a look
    found = [(trial["trial_id"], trial["arm"], load_record(storage, trial["trial_id"])) for trial in trials]
    ended = [(trial, arm, record) for trial, arm, record in found if record is not None]
    return View(uri, info), ended, "unfinished" not in content and len(ended) == len(found)


def _content(storage: Storage, study: str) -> dict[str, Any]:
    """The plan of a study and its trials; while it is still searching for its arms, that of the search."""
    if storage.exists(f"{study}/study.json") or not storage.exists(f"{study}/search.json"):
        return dict(storage.read_json(f"{study}/study.json"))
    ledger = storage.read_json(f"{study}/search.json")
    return ledger | {"data": ledger["plan"]["data"], "trials": [], "unfinished": True}


def _points(storage: Storage, study: str) -> list[tuple[str, str, Record]]:
    """(id, arm, record) of the trials of a study's search that have ended; those without a search have none."""
    trials: list[tuple[str, str]] = []
    if storage.exists(f"{study}/search.json"):
        points = storage.read_json(f"{study}/search.json")["points"]
        trials += [(trial["trial_id"], trial["arm"]) for point in points for trial in point["trials"]]
    if storage.exists(f"{study}/population.json"):
        members = storage.read_json(f"{study}/population.json")["lineage"]
        trials += [(member["trial_id"], f"pbt-{member['member']:02d}") for member in members]
    found = [(trial, arm, load_record(storage, trial)) for trial, arm in trials]
    return [(trial, arm, record) for trial, arm, record in found if record is not None]

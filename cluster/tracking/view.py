"""The MLflow view of a study: written live by the driver, never read by the program, rebuilt from records at any time.

One experiment per study; in it a parent run, a child run per trial, and a summary run per arm. Runs are found
by our own ids in their tags, so continuing a study or rebuilding the view makes no duplicates.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.tracking import pages as pages
from cluster.tracking.registry import register_best
from jbot.config import Config, digest, flatten, from_dict
from jbot.store.arm_colours import arm_colour
from jbot.store.record import (
    Record,
    RecordError,
    Storage,
    first_line,
    load_curves,
    load_finetune_curves,
    load_records,
    trial_folder,
    without_secret,
    without_user,
)
from jbot.store.search_ledger import load_ledger
from jbot.store.trial_spec import TrialSpec

# A server that is down must cost seconds, not MLflow's default of several minutes a call.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}.items():
    os.environ.setdefault(_name, _value)

EARLIER = "earlier "
"""Opens the role of runs that a plan of this name had before."""
STATUS = {"complete": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}


SCHEMA = "1"
"""Of what is written into a run. Raise it when that changes: `rebuild` then writes anew what it would pass over."""
Ended = tuple[str, str, Record]
"""Id, arm, and record of a trial that has ended."""
LINKS = "mlflow.json"
"""In the study's folder: where its runs are, for reports."""
CATCH_UP_SECONDS = 15.0
"""While a study runs, between writings of LINKS and of the arms' summaries: each goes through all trials (assumed)."""


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
    higher_is_better: bool = True
    arms: tuple[str, ...] = ()
    """In the plan's order: it gives their colours."""


class View:
    """Runs of one study in one tracking server. Every method may raise what MLflow raises.

    Parameters
    ----------
    folder : str
        Path or URI under which the records lie, said in the runs.
    begun : int, optional
        When the study started [ms since 1970]; now by default.
    """

    def __init__(self, uri: str, info: StudyInfo, folder: str = "", begun: int | None = None):
        import mlflow

        self.info, self.uri, self.folder = info, uri, folder
        self.begun = int(time.time() * 1000) if begun is None else begun
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        self._points: dict[tuple[str, str], set[int]] = {}
        """Epochs that are there, by run and the name of their clock."""
        self._new: set[str] = set()
        """Runs made here: nothing is in them that this view has not written."""
        self._arms: dict[str, dict[str, Record]] = {}
        """Records told so far, by arm and trial: what the live summaries are of."""
        self.experiment = self._experiment()
        self._tags: dict[str, dict[str, str]] = {}
        self._starts: dict[str, int] = {}
        self._states: dict[str, str] = {}
        """MLflow's status of each run, as far as it is known here."""
        self._runs: dict[tuple[str, str], str] = {}
        self._bare: set[str] = set()
        """Runs that were found without parameters: who made one may have died before it wrote them."""
        self._find_runs()
        title = f"{info.name} ({info.preset})"
        self.parent = self._run("study", info.name, title, {"question": info.question}, None, self.begun)
        self._log(self.parent, [], {"plan_hash": info.plan_hash, "metric": info.metric})  # of the plan that ran last
        self.describe(())

    def describe(self, verdicts: Sequence[str]) -> None:
        """Saved views and description of the experiment, and of its parent run."""
        tags = {
            "mlflow.experimentKind": "custom_model_development",  # else the UI opens it as one of language models
            "mlflow.experiment.primaryMetric.name": self.info.metric,
            "mlflow.experiment.primaryMetric.greaterIsBetter": str(self.info.higher_is_better),
            "mlflow.note.content": pages.experiment_note(self.info.question, self.experiment),
            **pages.saved_views(self.info.metric, self.info.higher_is_better),
        }
        there = self.client.get_experiment(self.experiment).tags
        for tag, value in tags.items():
            if there.get(tag) != value:
                self.client.set_experiment_tag(self.experiment, tag, value)
        self._log(self.parent, [], {"mlflow.note.content": pages.study_note(self.info, self.experiment, verdicts)})

    def started(self, spec: TrialSpec) -> None:
        """The run of a trial exists and is running."""
        self._status(self._trial(spec.trial_id, spec.arm, spec.config), "RUNNING", "running")

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        """One row of the learning curves, once."""
        run = self._trial(spec.trial_id, spec.arm, spec.config)
        self._log(run, self._rows(run, [row]), {})

    def ended(self, trial_id: str, arm: str, record: Record, rows: Callable[[], list[dict[str, Any]]]) -> None:
        """All a record holds: missing points, final metrics, state, where it ran. Nothing where it was written before.

        Parameters
        ----------
        rows : callable
            Gives the learning curves, when they are needed.
        """
        self._arms.setdefault(arm, {})[trial_id] = record
        begun, finished = _milliseconds(record)
        run = self._trial(trial_id, arm, from_dict(record.config), begun)
        written = f"{SCHEMA} {digest([dataclasses.asdict(record), self.folder, arm])}"
        if self._tags[run].get("written") == written:
            return
        final = {name: value for name, value in record.metrics.items() if value is not None}
        final |= {"wall_seconds": record.wall_seconds, "device_seconds": record.device_seconds}
        metrics = self._rows(run, rows()) + [self._metric(name, value, 0, begun) for name, value in final.items()]
        tags = {"reason": record.reason or "", "attempts": str(record.attempts), "git_commit": record.git_commit or ""}
        tags |= {"data_fingerprint": record.data["fingerprint"], "plan_hash": record.plan_hash}
        tags |= {"mlflow.source.git.commit": record.git_commit or "", "mlflow.source.name": record.study}
        self._log(run, metrics, tags | {"state": record.state})
        self._data(run, record)
        self._status(run, STATUS[record.state], record.state, finished)
        self._log(run, [], {"written": written})  # last: a run with this tag is whole

    def summarise(self, arm: str, records: Sequence[Record] | None = None) -> None:
        """The summary run of an arm: mean and spread of each final metric over its complete trials.

        Parameters
        ----------
        records : sequence of Record, optional
            Those that were told to `ended` by default.
        """
        records = list(self._arms.get(arm, {}).values()) if records is None else records
        if not records:
            return
        complete = [record for record in records if record.state == "complete"]
        finished = max(_milliseconds(record)[1] for record in records)
        run = self._arm(arm, from_dict(records[0].config))
        metrics: dict[str, float] = {}
        names = sorted({name for record in complete for name in record.metrics}, key=self._order)
        for name in names:  # the study's own first: the UI's comparison begins with what was logged first
            values = [record.metrics[name] for record in complete if record.metrics.get(name) is not None]
            if values:
                metrics[name] = statistics.fmean(values)
            if len(values) > 1:
                metrics[f"{name}_sd"] = statistics.stdev(values)
        metrics |= {"n": len(complete), "failed": len(records) - len(complete)}
        written = f"{SCHEMA} {digest([metrics, finished])}"
        if self._tags[run].get("written") == written:
            return
        at = finished + len(records)  # later with every trial, so that of two values the UI shows the newer
        self._log(run, [self._metric(name, value, 0, at) for name, value in metrics.items()], {})
        self._status(run, "FINISHED", "complete", finished)
        self._log(run, [], {"written": written})

    def _order(self, name: str) -> tuple[bool, str]:
        return name != self.info.metric, name

    def figures(self, trial_id: str, arm: str, record: Record, storage: Storage) -> None:
        """The figures that were drawn of a trial, as artifacts of its run; those that are there are not sent again."""
        folder = f"{trial_folder(trial_id)}/figures"
        drawn = [name for name in storage.names(folder) if name.endswith(".svg")]
        if drawn:
            run = self._trial(trial_id, arm, from_dict(record.config), _milliseconds(record)[0])
            there = {Path(found.path).name for found in self.client.list_artifacts(run, "figures")}
            missing = {name: storage.read(f"{folder}/{name}") for name in drawn if name not in there}
            self._upload(run, missing, "figures")

    def report(self, page: bytes, storage: Storage) -> None:
        """The study's report, its figures and tables, as artifacts of the parent run; its verdicts in the description.

        Files that are as they were are not sent again.
        """
        study = self.info.name
        names = {f"{study}/{name}": "" for name in storage.names(study) if name.endswith(".csv")}
        drawn = storage.names(f"{study}/figures")
        names |= {f"{study}/figures/{name}": "figures" for name in drawn if name.endswith(".svg")}
        files = {("", "report.html"): page}
        files |= {(folder, Path(name).name): storage.read(name) for name, folder in names.items()}
        known = json.loads(self._tags[self.parent].get("sent", "{}"))
        sums = {"/".join(part for part in key if part): digest(content.hex(), 8) for key, content in files.items()}
        for folder in ("", "figures"):
            changed = {
                name: content
                for (place, name), content in files.items()
                if place == folder and known.get(path := "/".join(part for part in (place, name) if part)) != sums[path]
            }
            self._upload(self.parent, changed, folder or None)
        self._log(self.parent, [], {"sent": json.dumps(sums)})
        if ("", "contrasts.csv") in files:
            self.describe(pages.verdicts(files["", "contrasts.csv"]))

    def finish(self, complete: bool) -> None:
        """The parent's state."""
        records = [record for told in self._arms.values() for record in told.values()]
        end = max((_milliseconds(record)[1] for record in records), default=None)
        self._status(self.parent, *(("FINISHED", "complete") if complete else ("KILLED", "unfinished")), end)

    def set_aside(self, arms: Iterable[str], trials: Iterable[str]) -> None:
        """Runs of arms and trials that are not of this plan any more leave the lists: their role says `earlier`."""
        keep = {("arm", arm) for arm in arms} | {("trial", trial) for trial in trials} | {("study", self.info.name)}
        for (role, key), run in self._runs.items():
            if (role, key) not in keep and not self._tags[run]["role"].startswith(EARLIER):
                self._log(run, [], {"role": f"{EARLIER}{role}"})

    def links(self) -> dict[str, Any]:
        """Where the runs are, see LINKS: ids by trial, and the address of the UI, empty when it is a file."""
        trials = {key: run for (role, key), run in sorted(self._runs.items()) if role == "trial"}
        ui = without_user(self.uri) if self.uri.startswith("http") else ""
        where = {
            "tracking_uri": without_secret(self.uri),
            "ui": ui,
            "experiment_id": self.experiment,
            "parent": self.parent,
        }
        return where | {"runs": trials}

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.info.name)
        if found:
            return found.experiment_id
        try:
            return self.client.create_experiment(
                self.info.name, artifact_location=artifact_folder(self.uri, self.info.name)
            )
        except MlflowException:  # another process has just made it, or this one did by a request that was asked twice
            if found := self.client.get_experiment_by_name(self.info.name):
                return found.experiment_id
            raise

    def _find_runs(self, query: str = "tags.key != ''") -> None:
        """Runs of the experiment that are ours; all of them in few queries, however many trials there are."""
        token: str | None = ""
        while token is not None:
            found = self.client.search_runs([self.experiment], query, max_results=1000, page_token=token)
            for run in found:
                self._tags[run.info.run_id] = dict(run.data.tags)
                self._starts[run.info.run_id] = run.info.start_time
                self._states[run.info.run_id] = run.info.status
                if not run.data.params:
                    self._bare.add(run.info.run_id)
                role = run.data.tags.get("role", "").removeprefix(EARLIER)
                self._keep((role, run.data.tags["key"]), run.info.run_id)
            token = found.token or None

    def _keep(self, key: tuple[str, str], run: str) -> None:
        """Of two runs for the same the earlier one: a server that answers too late makes one, and is asked again."""
        earlier, *later = sorted({run, self._runs.get(key, run)}, key=lambda one: (self._starts[one], one))
        for twin in later:
            self.client.delete_run(twin)
        self._runs[key] = earlier

    def _trial(self, trial_id: str, arm: str, config: Config, begun: int | None = None) -> str:
        tags = {"arm": arm, "seed": str(config.seed), "block": str(config.seed), "trial_id": trial_id}
        folder = f"{self.folder}/{trial_folder(trial_id)}" if self.folder else trial_folder(trial_id)
        tags |= {"record": folder, "mlflow.note.content": pages.trial_note(arm, config.seed, folder)}
        if arm not in self.info.arms:  # a point of a search
            return self._run("trial", trial_id, f"{arm} seed {config.seed}", tags, self.parent, begun, config)
        name = f"seed {config.seed}: {arm}"  # lists cut names, and the arm stands in the row above
        return self._run("trial", trial_id, name, tags, self._arm(arm, config), begun, config)

    def _arm(self, arm: str, config: Config) -> str:
        """The run of an arm, over those of its trials. The UI lists the newest first: that is the plan's order."""
        place = self.info.arms.index(arm) if arm in self.info.arms else len(self.info.arms)
        return self._run("arm", arm, f"{arm} (arm)", {"arm": arm}, self.parent, self.begun - place, config)

    def _run(
        self,
        role: str,
        key: str,
        name: str,
        tags: dict[str, str],
        parent: str | None = None,
        begun: int | None = None,
        config: Config | None = None,
    ) -> str:
        """The run with this role and key, made when there is none; its tags are brought up to date once."""
        tags = tags | {"role": role, "key": key, "study": self.info.name, "preset": self.info.preset}
        tags |= {"mlflow.parentRunId": parent} if parent else {}
        if arm := tags.get("arm"):
            place = self.info.arms.index(arm) if arm in self.info.arms else len(self.info.arms)
            tags["mlflow.runColor"] = arm_colour(place)
        if parent:
            tags["mlflow.runType"] = "evaluation"  # the UI then opens what it lies under: found is seen at once
        if (role, key) not in self._runs:  # another process may have made it since
            self._find_runs(f"tags.key = '{key}'")
        run = self._runs.get((role, key))
        if run is None:
            tags["state"] = "running"
            made = self.client.create_run(self.experiment, start_time=begun, run_name=name, tags=tags).info
            run = made.run_id
            self._runs[role, key], self._tags[run], self._starts[run] = run, tags, made.start_time
            self._states[run] = made.status
            self._new.add(run)
            self._params(run, config, role == "arm")
        else:
            self._log(run, [], tags)
            if run in self._bare:
                self._params(run, config, role == "arm")
        return run

    def _params(self, run: str, config: Config | None, of_arm: bool) -> None:
        """The Config, of an arm without the seed: so comparing two arms shows what differs."""
        from mlflow.entities import Param

        self._bare.discard(run)
        values = flatten(config) if config else {}
        params = [Param(name, str(value)) for name, value in values.items() if not (of_arm and name == "seed")]
        for begin in range(0, len(params), 100):
            self.client.log_batch(run, params=params[begin : begin + 100])

    def _data(self, run: str, record: Record) -> None:
        """The jets, as the dataset that the UI lists and filters by."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = str(record.data.get("source", ""))
        fingerprint = record.data["fingerprint"]
        facts = json.dumps({"source": source, "fingerprint": fingerprint})
        dataset = Dataset(name=source[:500] or "jets", digest=fingerprint[:16], source_type="local", source=facts)
        self.client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _rows(self, run: str, rows: list[dict[str, Any]]) -> list[Any]:
        """Points of learning curves that are not there yet."""
        metrics = []
        for row in rows:
            clock = next(name for name in row if name.rpartition("/")[2] == "epoch")  # of training, or of a fine-tuning
            if (run, clock) not in self._points:
                history = [] if run in self._new else self.client.get_metric_history(run, clock)
                self._points[run, clock] = {int(metric.step) for metric in history}
            if row[clock] not in self._points[run, clock]:
                self._points[run, clock].add(row[clock])
                known = {name: value for name, value in row.items() if isinstance(value, int | float)}
                metrics += [self._metric(name, value, row[clock], None) for name, value in known.items()]
        return metrics

    def _metric(self, name: str, value: float, step: int, at: int | None) -> Any:
        """A value with a time of its own [ms], so that writing it twice is writing it once."""
        from mlflow.entities import Metric

        return Metric(name, float(value), int(time.time() * 1000) if at is None else at, step)

    def _log(self, run: str, metrics: list[Any], tags: dict[str, str]) -> None:
        """Metrics, and those of the tags that have changed."""
        from mlflow.entities import RunTag

        known = self._tags[run]
        changed = [RunTag(key, value) for key, value in tags.items() if known.get(key) != value]
        for begin in range(0, max(len(metrics), 1 if changed else 0), 900):  # a batch holds at most 1000 metrics
            self.client.log_batch(run, metrics[begin : begin + 900], tags=[] if begin else changed)
        known.update(tags)

    def _upload(self, run: str, files: dict[str, bytes], folder: str | None) -> None:
        if not files:
            return
        with tempfile.TemporaryDirectory() as here:
            for name, content in files.items():
                (Path(here) / name).write_bytes(content)
            self.client.log_artifacts(run, here, folder)

    def _status(self, run: str, status: str, state: str, end: int | None = None) -> None:
        self._log(run, [], {"state": state})
        if status != "RUNNING":
            self.client.set_terminated(run, status, None if end is None else max(end, self._starts[run]))
        elif self._states[run] != status:
            self.client.update_run(run, status=status)
        self._states[run] = status


def _milliseconds(record: Record) -> tuple[int, int]:
    """When a trial started and ended, since 1970."""
    start = datetime.fromisoformat(record.started).timestamp()
    return int(start * 1000), int((start + record.wall_seconds) * 1000)


class LiveView:
    """A listener that writes the view from one background thread. A server that fails loses nothing: see `rebuild`."""

    def __init__(self, uri: str, info: StudyInfo, storage: Storage):
        self.uri, self.info, self.storage = uri, info, storage
        self.error: str | None = None
        self._tasks: queue.Queue[Callable[[View], None] | None] = queue.Queue()
        self._changed: set[str] = set()
        """Arms of which a trial has ended since they were summarised."""
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

        def tell(view: View) -> None:
            view.ended(trial, spec.arm, record, lambda: all_curves(self.storage, trial))
            self._changed.add(spec.arm)

        self._tasks.put(tell)

    def interrupted(self, spec: TrialSpec) -> None:
        """Its run goes on when the trial does."""

    def lost(self, spec: TrialSpec, error: str) -> None:
        """Its run stays as it is until the trial is tried again."""

    def stopped(self) -> None:
        """The study stops before its end, and its run says so."""
        self._tasks.put(lambda view: view.finish(False))

    def close(self) -> None:
        """Write what is left, or give up when the server has failed."""
        self._tasks.put(None)
        left = math.inf
        while self._thread.is_alive() and self._tasks.qsize() < left:  # it may be far behind, as long as it goes on
            left = self._tasks.qsize()
            self._thread.join(timeout=120)
        if self._thread.is_alive():
            self.error = self.error or "it did not answer in two minutes"

    def _work(self) -> None:
        view: View | None = None
        saved = -math.inf

        def do(task: Callable[[View], None]) -> None:
            nonlocal view
            try:
                view = view or View(self.uri, self.info, self.storage.uri)
                task(view)
            except Exception as error:  # whatever MLflow, SQLAlchemy or the network raise: the study goes on
                self.error = f"{type(error).__name__}: {first_line(error)}"

        while (task := self._tasks.get()) is not None:
            if not self.error:
                do(task)
            if not self.error and time.monotonic() - saved > CATCH_UP_SECONDS:
                do(self._catch_up)
                saved = time.monotonic()
        if view and not self.error:
            do(self._catch_up)

    def _catch_up(self, view: View) -> None:
        """What is said of all trials so far."""
        for arm in sorted(self._changed):
            view.summarise(arm)
        self._changed.clear()
        save_links(view, self.storage)


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


def save_links(view: View, storage: Storage) -> None:
    """Write LINKS into the study's folder, when anything has changed."""
    name, content = f"{view.info.name}/{LINKS}", view.links()
    try:
        there = storage.read_json(name)
    except RecordError:  # not there yet, or damaged
        there = None
    if there != content:
        storage.write_json(name, content)


def rebuild(storage: Storage, study: str, uri: str, files: bool = True) -> int:
    """Make the view of a study from its records; returns the trials. What is there already is passed over.

    Parameters
    ----------
    study : str
        Name of the study's folder in the storage.
    files : bool
        Figures, report and models too, as far as they were made.
    """
    view, content, ended = _open(storage, study, uri)
    searched = _points(storage, study)
    for trial, arm, record in ended + searched:
        view.ended(trial, arm, record, functools.partial(all_curves, storage, trial))
    for arm in dict.fromkeys(arm for _, arm, _ in ended):
        view.summarise(arm)
    trials = [trial["trial_id"] for trial in content["trials"]]
    view.set_aside(view.info.arms, trials + [trial for trial, _, _ in searched])
    view.finish("unfinished" not in content and len(ended) == len(trials))
    save_links(view, storage)
    if files:
        page = f"{study}/report.html"
        _send_files(view, storage, ended, storage.read(page) if storage.exists(page) else None)
    return len(ended) + len(searched)


def show_files(storage: Storage, study: str, uri: str, report: bytes) -> None:
    """Add the figures that were drawn, the report, and the best encoder of each arm to the view of a study."""
    view, _, ended = _open(storage, study, uri)
    _send_files(view, storage, ended, report)


def _send_files(view: View, storage: Storage, ended: list[Ended], report: bytes | None) -> None:
    for trial, arm, record in ended:
        view.figures(trial, arm, record, storage)
    if report is not None:
        view.report(report, storage)
    register_best(view, storage, ended)


def _open(storage: Storage, study: str, uri: str) -> tuple[View, dict[str, Any], list[Ended]]:
    """The view of a study, what its file says, and its trials that have ended."""
    content = _content(storage, study)
    plan = content["plan"]
    info = StudyInfo(
        name=plan["study"],
        question=plan["question"],
        preset=plan["preset"],
        plan_hash=content["plan_hash"],
        metric=plan["metric"],
        source=content["data"]["source"],
        higher_is_better=plan.get("higher_is_better", True),
        arms=tuple(plan.get("arms", ())),
    )
    trials = content["trials"][: content.get("needed")]  # fewer than planned, where a study was stopped at a look
    ended = _ended(storage, [(trial["trial_id"], trial["arm"]) for trial in trials])
    begun = min((_milliseconds(record)[0] for _, _, record in ended), default=None)
    return View(uri, info, storage.uri, begun), content, ended


def _content(storage: Storage, study: str) -> dict[str, Any]:
    """The plan of a study and its trials; while it is still searching for its arms, that of the search."""
    ledger = None if storage.exists(f"{study}/study.json") else load_ledger(storage, study)
    if ledger is None:
        return dict(storage.read_json(f"{study}/study.json"))
    return ledger | {"data": ledger["plan"]["data"], "trials": [], "unfinished": True}


def _points(storage: Storage, study: str) -> list[Ended]:
    """(id, arm, record) of the trials of a study's search that have ended; those without a search have none."""
    ledger = load_ledger(storage, study) or {"points": []}
    trials = [(trial["trial_id"], trial["arm"]) for point in ledger["points"] for trial in point["trials"]]
    return _ended(storage, trials)


def _ended(storage: Storage, trials: list[tuple[str, str]]) -> list[Ended]:
    """Those of (id, arm) that have ended, with their records."""
    there = load_records(storage, [trial for trial, _ in trials])
    return [(trial, arm, record) for trial, arm in trials if (record := there[trial]) is not None]

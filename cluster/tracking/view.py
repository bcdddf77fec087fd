"""The MLflow view of a study: written live by the driver, rebuilt from records, never read by the program.

One experiment per study; in it a parent run, a summary run per arm, and a child run per trial.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.tracking import pages
from cluster.tracking.pages import StudyInfo
from cluster.tracking.runs import Run, Runs
from jbot.config import Config, digest, flatten, from_dict
from jbot.messages import without_secret, without_user
from jbot.store.arm_colours import arm_colour
from jbot.store.record import Record, TrialSpec, load_curves, load_finetune_curves, trial_folder
from jbot.store.storage import RecordError, Storage

STATUS = {"complete": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}
SCHEMA = "1"
"""Version of what is written into a run. Raise it when that changes: `rebuild` then writes what it would pass over."""
LINKS = "mlflow.json"
"""In the study's folder: where its runs are, for reports."""


class View:
    """Runs of one study in one tracking server. Every method may raise what MLflow raises.

    Parameters
    ----------
    storage : Storage
        Where the records lie.
    begun : int, optional
        When the study started [ms since 1970]; now by default.
    """

    def __init__(self, uri: str, info: StudyInfo, storage: Storage, begun: int | None = None):
        self.info, self.storage = info, storage
        self.begun = int(time.time() * 1000) if begun is None else begun
        self.runs = Runs(uri, info.name)
        self.records: dict[str, dict[str, Record]] = {}
        """Those that were written or found written, by arm and trial: what the summaries are of."""
        title, tags = f"{info.name} ({info.preset})", self._tags(None, question=info.question)
        self.parent = self.runs.get("study", info.name, title, tags, self.begun)
        self.runs.log(self.parent, tags={"plan_hash": info.plan_hash, "metric": info.metric})  # the plan that ran last
        self.describe(())

    def describe(self, verdicts: Sequence[str]) -> None:
        """Saved views and description of the experiment, and of its parent run."""
        experiment, client = self.runs.experiment, self.runs.client
        there = client.get_experiment(experiment).tags
        for tag, value in pages.experiment_tags(self.info, experiment).items():
            if there.get(tag) != value:
                client.set_experiment_tag(experiment, tag, value)
        self.runs.log(self.parent, tags={"mlflow.note.content": pages.study_note(self.info, experiment, verdicts)})

    def started(self, spec: TrialSpec) -> None:
        """The run of a trial exists and is running."""
        self.runs.set_status(self._trial(spec.trial_id, spec.arm, spec.config), "RUNNING", "running")

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        """One row of the learning curves, once."""
        run = self._trial(spec.trial_id, spec.arm, spec.config)
        self.runs.log(run, self.runs.points(run, [row]))

    def ended(self, trial: str, arm: str, record: Record) -> None:
        """All a record holds: missing points, final metrics, state, where it ran. Nothing that was written before."""
        self.records.setdefault(arm, {})[trial] = record
        begun, finished = milliseconds(record)
        run = self._trial(trial, arm, from_dict(record.config), begun)
        written = f"{SCHEMA} {digest([dataclasses.asdict(record), self.storage.uri, arm])}"
        if run.tags.get("written") == written:
            return
        final = {name: value for name, value in record.metrics.items() if value is not None}
        curves = load_curves(self.storage, trial) + load_finetune_curves(self.storage, trial)
        final |= {"wall_seconds": record.wall_seconds, "device_seconds": record.device_seconds}
        metrics = self.runs.points(run, curves) + self.runs.metrics(final, at=begun)
        tags = {
            "state": record.state,
            "reason": record.reason or "",
            "attempts": str(record.attempts),
            "git_commit": record.git_commit or "",
            "data_fingerprint": record.data["fingerprint"],
            "plan_hash": record.plan_hash,
            "mlflow.source.git.commit": record.git_commit or "",
            "mlflow.source.name": record.study,
        }
        self.runs.log(run, metrics, tags)
        self._data(run, record)
        self._finish(run, written, STATUS[record.state], record.state, finished)

    def summarise(self, arm: str) -> None:
        """The summary run of an arm: mean and spread of each final metric over its complete trials."""
        if not (records := list(self.records.get(arm, {}).values())):
            return
        metrics, finished = summary(records, self.info.metric), max(milliseconds(record)[1] for record in records)
        run, written = self._arm(arm, from_dict(records[0].config)), f"{SCHEMA} {digest([metrics, finished])}"
        if run.tags.get("written") == written:
            return
        at = finished + len(records)  # later with every trial, so that of two values the UI shows the newer
        self.runs.log(run, self.runs.metrics(metrics, at=at))
        self._finish(run, written, "FINISHED", "complete", finished)

    def finish(self, complete: bool) -> None:
        """The parent's state."""
        ends = [milliseconds(record)[1] for records in self.records.values() for record in records.values()]
        status = ("FINISHED", "complete") if complete else ("KILLED", "unfinished")
        self.runs.set_status(self.parent, *status, max(ends, default=None))

    def retire(self, trials: Iterable[str]) -> None:
        """Runs of arms and trials that are not of this plan any more leave the lists."""
        keep = {("arm", arm) for arm in self.info.arms} | {("trial", trial) for trial in trials}
        self.runs.retire(keep | {("study", self.info.name)})

    def save_links(self) -> None:
        """Write LINKS into the study's folder, when anything has changed: ids by trial, and the UI, if not a file's."""
        name, uri = f"{self.info.name}/{LINKS}", self.runs.uri
        content = {
            "tracking_uri": without_secret(uri),
            "ui": without_user(uri) if uri.startswith("http") else "",
            "experiment_id": self.runs.experiment,
            "parent": self.parent.id,
            "runs": {key: run.id for (role, key), run in sorted(self.runs.known.items()) if role == "trial"},
        }
        try:
            there = self.storage.read_json(name)
        except RecordError:  # not there yet, or damaged
            there = None
        if there != content:
            self.storage.write_json(name, content)

    # --- files ----------------------------------------------------------------------------------------------------

    def figures(self, trial: str, arm: str, record: Record) -> None:
        """The figures that were drawn of a trial, as artifacts of its run; those that are there are not sent again."""
        folder, storage = f"{trial_folder(trial)}/figures", self.storage
        if drawn := [name for name in storage.names(folder) if name.endswith(".svg")]:
            run = self._trial(trial, arm, from_dict(record.config), milliseconds(record)[0])
            there = {Path(artifact.path).name for artifact in self.runs.client.list_artifacts(run.id, "figures")}
            missing = {name: storage.read(f"{folder}/{name}") for name in drawn if name not in there}
            self.runs.upload(run, missing, "figures")

    def report(self, page: bytes) -> None:
        """The study's report, its figures and tables, as artifacts of the parent run; its verdicts in the description.

        Files that are as they were are not sent again.
        """
        study, storage = self.info.name, self.storage
        tables = [name for name in storage.names(study) if name.endswith(".csv")]
        drawn = [f"figures/{name}" for name in storage.names(f"{study}/figures") if name.endswith(".svg")]
        files = {"report.html": page} | {name: storage.read(f"{study}/{name}") for name in tables + drawn}
        known = json.loads(self.parent.tags.get("sent", "{}"))
        sums = {name: digest(content.hex(), 8) for name, content in files.items()}
        changed = {name: content for name, content in files.items() if known.get(name) != sums[name]}
        for folder in ("", "figures"):
            inside = {Path(name).name: data for name, data in changed.items() if name.rpartition("/")[0] == folder}
            self.runs.upload(self.parent, inside, folder or None)
        self.runs.log(self.parent, tags={"sent": json.dumps(sums)})
        if "contrasts.csv" in files:
            self.describe(pages.verdicts(files["contrasts.csv"]))

    # --- runs -----------------------------------------------------------------------------------------------------

    def _trial(self, trial: str, arm: str, config: Config, begun: int | None = None) -> Run:
        seed, folder = str(config.seed), f"{self.storage.uri}/{trial_folder(trial)}"
        if arm in self.info.arms:  # lists cut names, and the arm stands in the row above
            name, parent = f"seed {seed}: {arm}", self._arm(arm, config)
        else:  # a point of a search
            name, parent = f"{arm} seed {seed}", self.parent
        tags = self._tags(parent, arm=arm, seed=seed, block=seed, trial_id=trial, record=folder)
        tags["mlflow.note.content"] = pages.trial_note(arm, config.seed, folder)
        return self.runs.get("trial", trial, name, tags, begun, lambda: flatten(config))

    def _arm(self, arm: str, config: Config) -> Run:
        """The run of an arm, over those of its trials. Without the seed: so comparing two arms shows what differs.

        The UI lists the newest first: that is made the plan's order.
        """

        def params() -> dict[str, Any]:
            return {name: value for name, value in flatten(config).items() if name != "seed"}

        tags = self._tags(self.parent, arm=arm)
        return self.runs.get("arm", arm, f"{arm} (arm)", tags, self.begun - self._index(arm), params)

    def _tags(self, parent: Run | None, **tags: str) -> dict[str, str]:
        tags |= {"study": self.info.name, "preset": self.info.preset}
        if parent:  # the UI opens what a run of this type lies under: found is seen at once
            tags |= {"mlflow.parentRunId": parent.id, "mlflow.runType": "evaluation"}
        if "arm" in tags:
            tags["mlflow.runColor"] = arm_colour(self._index(tags["arm"]))
        return tags

    def _index(self, arm: str) -> int:
        """The arm's place in the plan; the last for points of a search."""
        return self.info.arms.index(arm) if arm in self.info.arms else len(self.info.arms)

    def _data(self, run: Run, record: Record) -> None:
        """The jets, as the dataset that the UI lists and filters by."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source, fingerprint = str(record.data.get("source", "")), record.data["fingerprint"]
        facts = json.dumps({"source": source, "fingerprint": fingerprint})
        dataset = Dataset(name=source[:500] or "jets", digest=fingerprint[:16], source_type="local", source=facts)
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        self.runs.client.log_inputs(run.id, inputs)

    def _finish(self, run: Run, written: str, status: str, state: str, end: int) -> None:
        self.runs.set_status(run, status, state, end)
        self.runs.log(run, tags={"written": written})  # last: a run with this tag is whole


def milliseconds(record: Record) -> tuple[int, int]:
    """When a trial started and ended, since 1970."""
    start = datetime.fromisoformat(record.started).timestamp()
    return int(start * 1000), int((start + record.wall_seconds) * 1000)


def summary(records: Sequence[Record], first: str) -> dict[str, float]:
    """Mean and spread of each final metric over the complete trials of an arm, and how many there are.

    The metric `first` is logged first: the UI's comparison begins with it.
    """
    complete = [record for record in records if record.state == "complete"]
    metrics: dict[str, float] = {}
    for name in sorted(
        {name for record in complete for name in record.metrics}, key=lambda name: (name != first, name)
    ):
        values = [value for record in complete if (value := record.metrics.get(name)) is not None]
        if values:
            metrics[name] = statistics.fmean(values)
        if len(values) > 1:
            metrics[f"{name}_sd"] = statistics.stdev(values)
    return metrics | {"n": len(complete), "failed": len(records) - len(complete)}

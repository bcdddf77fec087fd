"""The runs of a study in a tracking server, each found by our own ids in its tags: what is asked twice is done once."""

from __future__ import annotations

import functools
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

EARLIER = "earlier "
"""Opens the role of runs that a plan of this name had before."""
BATCH, PARAM_BATCH = 900, 100
"""Metrics and parameters a request; MLflow takes 1000 and 100."""


@dataclass
class Run:
    """A run, as far as it is known here."""

    id: str
    start: int
    """Milliseconds since 1970."""
    status: str
    """MLflow's word."""
    tags: dict[str, str]
    has_params: bool
    """Who made it may have died before it wrote them."""
    is_new: bool = False
    """Made here: nothing is in it that was not written here."""
    steps: dict[str, set[int]] = field(default_factory=dict)
    """Epochs that are there, by the name of their clock."""


class Runs:
    """Every run of one experiment. Each method may raise what MLflow raises.

    Parameters
    ----------
    uri : str
        The tracking server.
    name : str
        The experiment, made when there is none.
    """

    def __init__(self, uri: str, name: str):
        import mlflow

        self.uri, self.client = uri, mlflow.MlflowClient(tracking_uri=uri)
        self.experiment, self.location = self._open(name)
        self.known: dict[tuple[str, str], Run] = {}
        """By role and key."""
        self._find()

    def get(
        self,
        role: str,
        key: str,
        name: str,
        tags: Mapping[str, str],
        begun: int | None = None,
        params: Callable[[], Mapping[str, Any]] | None = None,
    ) -> Run:
        """The run with this role and key, made when there is none; its tags are brought up to date.

        Parameters
        ----------
        begun : int, optional
            When it started [ms since 1970]; now by default.
        params : callable, optional
            Gives its parameters, when they are needed.
        """
        tags = {**tags, "role": role, "key": key}
        if (role, key) not in self.known:  # another process may have made it since
            self._find(f"tags.key = '{key}'")
        if (role, key) not in self.known:
            tags["state"] = "running"
            made = self.client.create_run(self.experiment, start_time=begun, run_name=name, tags=tags).info
            self.known[role, key] = Run(made.run_id, made.start_time, made.status, tags, has_params=False, is_new=True)
        run = self.known[role, key]
        self.log(run, tags=tags)
        if params and not run.has_params:
            from mlflow.entities import Param

            values = [Param(name, str(value)) for name, value in params().items()]
            for begin in range(0, len(values), PARAM_BATCH):
                self.client.log_batch(run.id, params=values[begin : begin + PARAM_BATCH])
            run.has_params = True
        return run

    def log(self, run: Run, metrics: Sequence[Any] = (), tags: Mapping[str, str] | None = None) -> None:
        """Write metrics, and those of the tags that have changed."""
        from mlflow.entities import RunTag

        tags = tags or {}
        changed = [RunTag(key, value) for key, value in tags.items() if run.tags.get(key) != value]
        for begin in range(0, max(len(metrics), 1 if changed else 0), BATCH):
            self.client.log_batch(run.id, metrics[begin : begin + BATCH], tags=[] if begin else changed)
        run.tags.update(tags)

    def points(self, run: Run, rows: Iterable[Mapping[str, Any]]) -> list[Any]:
        """Metrics of those rows of learning curves that are not there yet."""
        metrics = []
        for row in rows:
            clock = next(name for name in row if name.endswith("epoch"))  # its own, or that of a fine-tuning
            if clock not in run.steps:
                history = [] if run.is_new else self.client.get_metric_history(run.id, clock)
                run.steps[clock] = {int(metric.step) for metric in history}
            if row[clock] not in run.steps[clock]:
                run.steps[clock].add(row[clock])
                known = {name: value for name, value in row.items() if isinstance(value, int | float)}
                metrics += self.metrics(known, step=row[clock])
        return metrics

    def metrics(self, values: Mapping[str, float], step: int = 0, at: int | None = None) -> list[Any]:
        """Values as MLflow takes them; with a time of their own [ms], so that writing twice is writing once."""
        from mlflow.entities import Metric

        at = int(time.time() * 1000) if at is None else at
        return [Metric(name, float(value), at, step) for name, value in values.items()]

    def set_status(self, run: Run, status: str, state: str, end: int | None = None) -> None:
        """MLflow's status and our state; a run that has ended ended at `end` [ms]."""
        self.log(run, tags={"state": state})
        if status != "RUNNING":
            self.client.set_terminated(run.id, status, None if end is None else max(end, run.start))
        elif run.status != status:
            self.client.update_run(run.id, status=status)
        run.status = status

    def upload(self, run: Run, files: Mapping[str, bytes], folder: str | None) -> None:
        """Files as artifacts."""
        if not files:
            return
        with tempfile.TemporaryDirectory() as here:
            for name, content in files.items():
                (Path(here) / name).write_bytes(content)
            self.client.log_artifacts(run.id, here, folder)

    def retire(self, keep: set[tuple[str, str]]) -> None:
        """Runs whose role and key are not among these leave the lists: their role says `earlier`."""
        for (role, key), run in self.known.items():
            if (role, key) not in keep and not run.tags["role"].startswith(EARLIER):
                self.log(run, tags={"role": f"{EARLIER}{role}"})

    def _open(self, name: str) -> tuple[str, str]:
        """Id of the experiment, and where its artifacts lie."""
        from mlflow.exceptions import MlflowException

        folder = None  # left to the server; with a SQLite file beside it, not where the study was started
        if self.uri.startswith("sqlite:///"):
            beside = Path(self.uri.removeprefix("sqlite:///")).absolute().parent
            folder = (beside / "mlflow_artifacts" / name).as_uri()
        experiment = self.client.get_experiment_by_name(name)
        if experiment and folder and _is_elsewhere(experiment.artifact_location, folder):
            # The storage was moved or copied. MLflow would write to the old place, and make it anew.
            earlier = f"{name} until {datetime.now():%Y-%m-%d %H:%M:%S}"
            self.client.rename_experiment(experiment.experiment_id, earlier)
            words = (
                f"MLflow's experiment {name} has its files in {experiment.artifact_location}, not beside its database"
            )
            print(f"{words}: it is called {earlier!r} now, and one here is made from the records", file=sys.stderr)
            experiment = None
        if experiment is None:
            try:
                experiment = self.client.get_experiment(self.client.create_experiment(name, artifact_location=folder))
            except MlflowException:  # another process has just made it, or this one did by a request asked twice
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return experiment.experiment_id, experiment.artifact_location

    def _find(self, query: str = "tags.key != ''") -> None:
        """Runs of the experiment that are ours; all of them in few queries, however many trials there are.

        Of two for the same the earlier is kept: a server that answers too late makes one, and is asked again.
        """
        search = functools.partial(self.client.search_runs, [self.experiment], query, max_results=1000)
        for page in pages_of(search):
            tags, info = dict(page.data.tags), page.info
            run = Run(info.run_id, info.start_time, info.status, tags, bool(page.data.params))
            key = tags.get("role", "").removeprefix(EARLIER), tags["key"]
            known = self.known.setdefault(key, run)
            if known.id != run.id:
                self.known[key], duplicate = sorted((known, run), key=lambda one: (one.start, one.id))
                self.client.delete_run(duplicate.id)


def _is_elsewhere(location: str, folder: str) -> bool:
    """Whether two locations are folders, and not the same by another path."""
    one, other = (urllib.parse.urlsplit(uri) for uri in (location, folder))
    paths = [Path(urllib.parse.unquote(uri.path)).resolve() for uri in (one, other)]
    return one.scheme == other.scheme == "file" and paths[0] != paths[1]


def pages_of(search: Callable[..., Any]) -> Iterator[Any]:
    """Everything that a search of MLflow's, called with `page_token`, gives out page by page."""
    page = search(page_token=None)
    yield from page
    while page.token:
        page = search(page_token=page.token)
        yield from page

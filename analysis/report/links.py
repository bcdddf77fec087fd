"""From a report to what is behind it: the record of a trial, and its run in MLflow."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jbot.store.plan import StudyRecords
from jbot.store.record import trial_folder
from jbot.store.storage import RecordError

DEFAULT_UI = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` answers by default."""


class Link(str):
    """A cell of a table that leads somewhere."""

    href: str

    def __new__(cls, text: str, href: str) -> Link:
        """`text` is shown."""
        link = super().__new__(cls, text)
        link.href = href
        return link


@dataclass(frozen=True, kw_only=True)
class Links:
    """Where the trials of a study are found from its report."""

    ui: str = ""
    """Address of the MLflow page, empty when there is none."""
    assumed: bool = False
    """`ui` is the default one: the runs were written to a file or a database."""
    experiment: str = ""
    parent: str = ""
    runs: dict[str, str] = field(default_factory=dict)
    """Trial id -> run id."""
    records: str | None = None
    """From the report to the folder of the records; None when a browser cannot go there."""

    def run(self, run: str) -> str:
        """Address of a run in MLflow."""
        return f"{self.ui}/#/experiments/{quote(self.experiment)}/runs/{quote(run)}"

    def of_trial(self, trial: str) -> tuple[str, str]:
        """Cells of a trial: its id, that leads to its record, and its MLflow run, empty when there is none."""
        record = trial if self.records is None else Link(trial, f"{self.records}/{trial_folder(trial)}/record.json")
        run = self.runs.get(trial, "")
        return record, Link(run[:8], self.run(run)) if run else ""

    def __str__(self) -> str:
        """What to do to see the runs; empty when the study left none."""
        if not self.runs:
            return ""
        how = " once `mlflow ui` runs on this machine" if self.assumed else ""
        return f"The links lead to {self.ui}{how}."


def find(study: StudyRecords, out: Path) -> Links:
    """Links from a report in the folder `out`. A missing or unreadable mlflow.json gives no links: it is but a view."""
    storage, records = study.storage, None
    if storage.local:
        records = quote(Path(os.path.relpath(storage.uri, out.absolute())).as_posix())
    try:
        content: Any = storage.read_json(f"{study.plan.study}/mlflow.json")
        ui = str(content.get("ui") or "").rstrip("/")
        # A page must not lead to anything but a page, such as javascript:.
        usable = ui.startswith(("http://", "https://"))
        return Links(
            ui=ui if usable else DEFAULT_UI,
            assumed=not usable,
            experiment=str(content["experiment_id"]),
            parent=str(content.get("parent") or ""),
            runs={str(trial): str(run) for trial, run in content["runs"].items()},
            records=records,
        )
    except (RecordError, ValueError, TypeError, KeyError, AttributeError):
        return Links(records=records)

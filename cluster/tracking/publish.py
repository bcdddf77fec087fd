"""Writing the MLflow view of a study: live by its driver, or from its records at any time."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from cluster.tracking.pages import StudyInfo
from cluster.tracking.registry import Ended, register_best
from cluster.tracking.view import View, milliseconds
from jbot.messages import first_line
from jbot.store.record import Record, TrialSpec, load_records
from jbot.store.search_ledger import load_ledger
from jbot.store.storage import Storage

CATCH_UP_SECONDS = 15.0
"""Between writings of links and summaries of arms while a study runs: each goes through all trials (assumed)."""
PATIENCE_S = 120
"""How long a server may take for one task when the study waits for the last ones (assumed)."""


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

        def write(view: View) -> None:
            view.ended(spec.trial_id, spec.arm, record)
            self._changed.add(spec.arm)

        self._tasks.put(write)

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
            self._thread.join(timeout=PATIENCE_S)
        if self._thread.is_alive():
            self.error = self.error or "it did not answer in two minutes"

    def _work(self) -> None:
        view: View | None = None
        saved = -math.inf
        try:
            while (task := self._tasks.get()) is not None:
                view = view or View(self.uri, self.info, self.storage)
                task(view)
                if time.monotonic() - saved > CATCH_UP_SECONDS:
                    self._catch_up(view)
                    saved = time.monotonic()
            if view:
                self._catch_up(view)
        except Exception as error:  # whatever MLflow, SQLAlchemy or the network raise: the study goes on
            self.error = f"{type(error).__name__}: {first_line(error)}"
            while self._tasks.get() is not None:
                continue

    def _catch_up(self, view: View) -> None:
        """Write what depends on all trials so far."""
        for arm in sorted(self._changed):
            view.summarise(arm)
        self._changed.clear()
        view.save_links()


def rebuild(storage: Storage, study: str, uri: str, files: bool = True) -> int:
    """Make the view of a study from its records; returns the trials. What is there already is passed over.

    With `files`, figures, report and models too, as far as they were made.
    """
    view, content, ended = _open(storage, study, uri)
    ledger = load_ledger(storage, study) or {"points": []}
    searched = _ended(storage, [trial for point in ledger["points"] for trial in point["trials"]])
    for trial, arm, record in ended + searched:
        view.ended(trial, arm, record)
    for arm in dict.fromkeys(arm for _, arm, _ in ended):
        view.summarise(arm)
    trials = [trial["trial_id"] for trial in content["trials"]]
    view.retire(trials + [trial for trial, _, _ in searched])
    view.finish("unfinished" not in content and len(ended) == len(trials))
    view.save_links()
    if files:
        page = f"{study}/report.html"
        _send_files(view, ended, storage.read(page) if storage.exists(page) else None)
    return len(ended) + len(searched)


def show_files(storage: Storage, study: str, uri: str, report: bytes) -> None:
    """Add the figures that were drawn, the report, and the best encoder of each arm to the view of a study."""
    view, _, ended = _open(storage, study, uri)
    _send_files(view, ended, report)


def _send_files(view: View, ended: list[Ended], report: bytes | None) -> None:
    for trial, arm, record in ended:
        view.figures(trial, arm, record)
    if report is not None:
        view.report(report)
    register_best(view.runs, view.info, view.storage, ended)


def _open(storage: Storage, study: str, uri: str) -> tuple[View, dict[str, Any], list[Ended]]:
    """The view of a study, what its file says, and its trials that have ended.

    While it is still searching for its arms, its file is that of the search.
    """
    ledger = None if storage.exists(f"{study}/study.json") else load_ledger(storage, study)
    if ledger is None:
        content = dict(storage.read_json(f"{study}/study.json"))
    else:
        content = ledger | {"data": ledger["plan"]["data"], "trials": [], "unfinished": True}
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
    # Fewer than planned, where a study was decided at an interim analysis.
    ended = _ended(storage, content["trials"][: content.get("needed")])
    begun = min((milliseconds(record)[0] for _, _, record in ended), default=None)
    return View(uri, info, storage, begun), content, ended


def _ended(storage: Storage, trials: list[dict[str, Any]]) -> list[Ended]:
    """Those of the trials (`trial_id`, `arm`) that have a record."""
    there = load_records(storage, [trial["trial_id"] for trial in trials])
    return [(trial["trial_id"], trial["arm"], r) for trial in trials if (r := there[trial["trial_id"]]) is not None]

"""Ray Tune's events, passed on as those of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.events import Listener
from cluster.scheduling.callback import TuneCallback
from cluster.search.point import Job
from jbot.store.trial_spec import TrialSpec


class SearchCallback(TuneCallback):
    """The events of a search: which trial a slot runs is known from what its worker reports."""

    def __init__(self, job: Job, listeners: Sequence[Listener]):
        super().__init__(job.storage, listeners)
        self.job = job
        self.runs: dict[str, TrialSpec] = {}
        """The trial that runs in each slot, by Tune's name of it."""

    def running(self, trial: Any) -> list[TrialSpec]:
        """The trial that a slot has begun and not ended."""
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
            self.lost_attempts.attempts[spec.trial_id] = result["started"]
            self.listeners.started(spec)
        elif "row" in result:
            self.listeners.point(spec, result["row"])
        elif "ended" in result:
            self.runs.pop(trial.trial_id, None)
            self.end(spec)

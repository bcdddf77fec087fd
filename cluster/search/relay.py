"""What Tune's events are in the words of a search: the driver's side of :mod:`cluster.search.runner`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.events import Deaths, Listener, tell_end
from cluster.scheduling.tuner import Relay
from cluster.search.runner import Job
from jbot.store.trial_spec import TrialSpec


class SearchRelay(Relay):
    """Tells the listeners; which trial a place runs is known from what its worker says."""

    def __init__(self, job: Job, listeners: Sequence[Listener]):
        super().__init__()
        self.job, self.listeners = job, listeners
        self.running: dict[str, TrialSpec] = {}
        """By Tune's name of the place."""
        self.deaths = Deaths(job.storage)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial begins, has a new row, or has ended."""
        if "entry" not in result:
            return
        spec = self.job.specs(result["entry"])[result["trial"]]
        if "started" in result:
            self.running[trial.trial_id] = spec
            self.deaths.attempts[spec.trial_id] = result["started"]
            for listener in self.listeners:
                listener.started(spec)
        elif "row" in result:
            for listener in self.listeners:
                listener.point(spec, result["row"])
        elif "ended" in result:
            self.running.pop(trial.trial_id, None)
            tell_end(self.listeners, self.job.storage, spec)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its worker died, and it has a retry left."""
        if spec := self.running.get(trial.trial_id):
            self.deaths.died(spec.trial_id)
            for listener in self.listeners:
                listener.interrupted(spec)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Given up after the last retry."""
        super().on_trial_error(iteration, trials, trial, **info)
        if spec := self.running.pop(trial.trial_id, None):
            self.deaths.died(spec.trial_id)
            for listener in self.listeners:
                listener.lost(spec, str(trial.get_error() or ""))

"""Callbacks of Ray Tune: its events, passed on as events of our trials."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ray import tune

from cluster.events import Listener, Listeners, LostAttempts
from jbot.store.attempts import attempts_begun
from jbot.store.storage import Storage
from jbot.store.trial_spec import TrialSpec


class TuneCallback(tune.Callback):
    """Passes Tune's events on to listeners, counts Tune trials that are over, and hears the Ctrl-C that Tune catches.

    Studies and searches say in `running` which of our trials a Tune trial runs.
    """

    def __init__(self, storage: Storage, listeners: Sequence[Listener]) -> None:
        self.storage, self.listeners = storage, Listeners(listeners)
        self.lost_attempts = LostAttempts(storage)
        self.settled = 0
        """Tune trials that have ended or were given up."""
        self.interrupted = False

    def running(self, trial: Any) -> list[TrialSpec]:
        """Our trials that a Tune trial has begun, or will, and not ended."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return (tune.Callback, ())  # Tune pickles its callbacks; listeners live in this process alone

    def setup(self, *args: Any, **info: Any) -> None:
        """Tune has just set its handler, which stops its trials in order; a second Ctrl-C then stops Tune itself."""
        theirs = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(theirs):
            return

        def hear(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            theirs(number, frame)

        signal.signal(signal.SIGINT, hear)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The worker is done: records say how the trials ended that it has not spoken of."""
        self.settled += 1
        for spec in self.running(trial):
            self.end(spec)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its worker died, and it has a retry left."""
        for spec in self.running(trial):
            self.lost_attempts.count(spec.trial_id)
            self.listeners.interrupted(spec)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Given up after the last retry."""
        self.settled += 1
        for spec in self.running(trial):
            self.lost_attempts.count(spec.trial_id)
            self.listeners.lost(spec, str(trial.get_error() or ""))

    def end(self, spec: TrialSpec) -> None:
        """One of our trials has ended."""
        self.listeners.ended_elsewhere(spec, self.storage)


class StudyCallback(TuneCallback):
    """The events of a study, whose Tune trials are packs."""

    def __init__(self, packs: list[list[TrialSpec]], storage: Storage, listeners: Sequence[Listener]):
        super().__init__(storage, listeners)
        self.packs = packs
        self.ended: set[str] = set()
        there, specs = set(storage.names("trials")), [spec for pack in packs for spec in pack]
        begun = {s.trial_id: attempts_begun(storage, s.trial_id) for s in specs if s.trial_id in there}
        self.lost_attempts.attempts = begun

    def running(self, trial: Any) -> list[TrialSpec]:
        """The trials of a pack that have not ended yet."""
        return [spec for spec in self.packs[trial.config["pack"]] if spec.trial_id not in self.ended]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """For the first time, or again after a crash."""
        for spec in self.running(trial):
            self.listeners.started(spec)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Rows of learning curves, or the end of a trial whose pack goes on."""
        pack = self.packs[trial.config["pack"]]
        self.listeners.points((pack[position], row) for position, row in result.get("points", ()))
        if "ended" in result:
            self.end(pack[result["ended"]])

    def end(self, spec: TrialSpec) -> None:
        """One of our trials has ended, whatever of the others in its pack."""
        self.ended.add(spec.trial_id)
        super().end(spec)

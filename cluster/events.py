"""What happens to the trials of a study while it runs, and who listens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

from jbot.store.attempts import attempts_begun, note_attempt
from jbot.store.record import Record, RecordError, Storage, first_line, load_record, load_whole
from jbot.trial.run import TrialSpec


class Listener(Protocol):
    """Called in the driver process. Must not raise: a broken view never stops a study."""

    def started(self, spec: TrialSpec) -> None:
        """A trial has been given to a worker, for the first time or again."""

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        """A new row of a trial's learning curves. May come twice after a crash."""

    def interrupted(self, spec: TrialSpec) -> None:
        """Its worker or node has died; it will be started again from its last checkpoint."""

    def ended(self, spec: TrialSpec, record: Record) -> None:
        """A trial has left its record."""

    def lost(self, spec: TrialSpec, error: str) -> None:
        """A trial was given up without a record; the same command tries it again."""

    def close(self) -> None:
        """The study stops, finished or not."""


class Deaths:
    """Counts the attempts of workers that die before they can say themselves that they have begun.

    Attributes
    ----------
    attempts : dict
        Trial id -> attempts that have begun before the one that now runs.
    """

    def __init__(self, storage: Storage):
        self.storage = storage
        self.attempts: dict[str, int] = {}

    def died(self, trial: str) -> None:
        """The worker of a trial has died: this attempt is over, and noted."""
        number = self.attempts[trial] = self.attempts.get(trial, 0) + 1
        try:
            if attempts_begun(self.storage, trial) < number and load_whole(self.storage, trial) is None:
                note_attempt(self.storage, trial, number)
        except (OSError, RecordError) as error:
            print(f"warning: attempt {number} at trial {trial} is not noted: {first_line(error)}", file=sys.stderr)


def tell_end(listeners: Sequence[Listener], storage: Storage, spec: TrialSpec) -> None:
    """A trial has ended, and its record says how."""
    try:
        record, problem = load_record(storage, spec.trial_id), "it ended without a record"
    except (RecordError, OSError) as error:
        record, problem = None, str(error)
    for listener in listeners:
        if record is None:
            listener.lost(spec, problem)
        else:
            listener.ended(spec, record)

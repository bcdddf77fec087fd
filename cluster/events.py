"""What happens to the trials of a study while it runs, and who listens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from jbot.record import Record, RecordError, Storage, load_record
from jbot.trial import TrialSpec


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

"""Events of the trials of a study while it runs, and their listeners."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import Any, Protocol

from jbot.messages import first_line
from jbot.store.record import Record, TrialSpec, load_record
from jbot.store.storage import RecordError, Storage


class Watcher(Protocol):
    """Hears from whoever runs a trial."""

    def started(self, spec: TrialSpec) -> None:
        """A trial has been given to a worker, for the first time or again."""

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        """A new row of a trial's learning curves. May come twice after a crash."""

    def ended(self, spec: TrialSpec, record: Record) -> None:
        """A trial has left its record."""


class Listener(Watcher, Protocol):
    """Called in the driver process. Should not raise: see :class:`Listeners`."""

    def interrupted(self, spec: TrialSpec) -> None:
        """Its worker or node has died; it will be started again from its last checkpoint."""

    def lost(self, spec: TrialSpec, error: str) -> None:
        """A trial was given up without a record; the same command tries it again."""

    def close(self) -> None:
        """The study stops, finished or not."""


class Listeners:
    """Several listeners as one. One that raises is dropped with a warning; the study and the others go on."""

    def __init__(self, listeners: Iterable[Listener]):
        self.listeners = list(listeners)

    def started(self, spec: TrialSpec) -> None:
        """See Listener.started."""
        self._notify("started", spec)

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        """See Listener.point."""
        self._notify("point", spec, row)

    def points(self, rows: Iterable[tuple[TrialSpec, dict[str, Any]]]) -> None:
        """Rows of several trials, in order."""
        for spec, row in rows:
            self.point(spec, row)

    def interrupted(self, spec: TrialSpec) -> None:
        """See Listener.interrupted."""
        self._notify("interrupted", spec)

    def ended(self, spec: TrialSpec, record: Record) -> None:
        """See Listener.ended."""
        self._notify("ended", spec, record)

    def ended_elsewhere(self, spec: TrialSpec, storage: Storage) -> None:
        """A worker has ended a trial: its record, read from the storage, says how; without one it is lost."""
        try:
            record, problem = load_record(storage, spec.trial_id), "it ended without a record"
        except (RecordError, OSError) as error:
            record, problem = None, str(error)
        if record is None:
            self.lost(spec, problem)
        else:
            self.ended(spec, record)

    def lost(self, spec: TrialSpec, error: str) -> None:
        """See Listener.lost."""
        self._notify("lost", spec, error)

    def close(self) -> None:
        """See Listener.close."""
        self._notify("close")

    def _notify(self, event: str, *arguments: Any) -> None:
        for listener in tuple(self.listeners):
            try:
                getattr(listener, event)(*arguments)
            except Exception as error:  # whatever a terminal, a server or a library raises
                self.listeners.remove(listener)
                name, why = type(listener).__name__, f"{type(error).__name__}: {first_line(error)}"
                with contextlib.suppress(OSError, ValueError):  # stderr may be what has failed
                    print(f"warning: {name} has failed and hears no more of this run ({why})", file=sys.stderr)

"""Listeners: each hears everything, and none can stop a study or keep the others from hearing."""

import io
import sys
from types import SimpleNamespace

import pytest

from cluster.events import Listeners
from jbot.store.storage import Storage

SPEC = SimpleNamespace(trial_id="none", arm="a")


class Log:
    """Remembers what it hears, and raises at the second point."""

    def __init__(self, error: BaseException | None = None):
        self.heard, self.error = [], error

    def __getattr__(self, event):
        return lambda *arguments: self.hear(event, *arguments)

    def hear(self, event, spec=None, what=None):
        self.heard.append((event, what))
        if self.error and event == "point" and what["epoch"] == 2:
            raise self.error


def rows(*epochs):
    return [(SPEC, {"epoch": epoch}) for epoch in epochs]


def test_one_that_fails_is_dropped_and_the_others_hear_everything(capsys):
    broken, whole = Log(OSError("no\nroom")), Log()
    listeners = Listeners([broken, whole])
    listeners.started(SPEC)
    listeners.points(rows(1, 2, 3))
    listeners.close()
    assert [event for event, _ in broken.heard] == ["started", "point", "point"]
    assert [event for event, _ in whole.heard] == ["started", "point", "point", "point", "close"]
    assert capsys.readouterr().err == "warning: Log has failed and hears no more of this run (OSError: no)\n"


def test_a_terminal_that_has_gone_stops_nothing(monkeypatch):
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(sys, "stderr", gone)
    whole = Log()
    Listeners([Log(BrokenPipeError()), whole]).points(rows(2, 3))
    assert len(whole.heard) == 2


def test_ctrl_c_is_no_failure_of_a_listener():
    interrupted = Log(KeyboardInterrupt())
    listeners = Listeners([interrupted])
    with pytest.raises(KeyboardInterrupt):
        listeners.points(rows(2))
    listeners.points(rows(1))
    assert len(interrupted.heard) == 2  # it hears on


def test_a_trial_that_left_no_record_is_lost(tmp_path):
    log = Log()
    Listeners([log]).ended_elsewhere(SPEC, Storage(tmp_path))
    assert log.heard == [("lost", "it ended without a record")]

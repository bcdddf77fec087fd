"""One driver a study: who runs it says so in ``<storage>/<study>/driver.json``, and goes on saying so.

The file counts up while its driver lives. Whoever comes second watches it for a while by a clock that nobody can set:
a count that stands still is of a driver that is dead. Works on any storage, and needs no clocks that agree.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.resources import ClusterError
from cluster.stop import interrupt
from jbot.messages import first_line
from jbot.store.processes import host_id, is_alive, start_ticks
from jbot.store.storage import RecordError, Storage

FILE = "driver.json"
HEARTBEAT_S = 5.0
"""Seconds between two counts (assumed)."""
MAX_MISSED = 4
"""Heartbeats missed after which a driver is taken for dead: a storage that is slow for seconds kills nobody."""
SETTLE_S = 1.0
"""Seconds in which the write of another driver that starts at the same time would have arrived (assumed)."""


@contextmanager
def lease(
    storage: Storage, study: str, *, take_over: bool = False, say: Callable[[str], None] = lambda line: None
) -> Iterator[None]:
    """Hold a study while it runs; given back at the end, taken over when its holder has died.

    Parameters
    ----------
    take_over : bool
        Take it from a driver that seems to live, which then stops.
    say : callable
        Told why this takes seconds, when it does.

    Raises
    ------
    ClusterError
        When another driver runs the study.
    KeyboardInterrupt
        In the main thread, when another driver took the study over.
    """
    name = f"{study}/{FILE}"
    holder = _holder(storage, name)
    if holder is not None and not take_over:
        _wait_for_death(storage, name, holder, say)
    mine = _myself()
    storage.write_json(name, mine | {"count": 0})
    time.sleep(SETTLE_S if holder is not None or not storage.local else SETTLE_S / 10)
    if _nonce(_holder(storage, name)) != mine["nonce"]:
        raise ClusterError(_held(storage, study, _holder(storage, name)))
    heartbeat = _Heartbeat(storage, name, mine, say)
    heartbeat.start()
    try:
        yield
    finally:
        heartbeat.end()


class _Heartbeat(threading.Thread):
    """Counts in the file. A storage that fails for a while is no reason to stop: trials say so when they need it."""

    def __init__(self, storage: Storage, name: str, mine: dict[str, Any], say: Callable[[str], None]):
        super().__init__(name="lease", daemon=True)
        self.storage, self.file, self.mine, self.say = storage, name, mine, say
        self.over = threading.Event()

    def run(self) -> None:
        count = 0
        while not self.over.wait(HEARTBEAT_S):
            try:
                other = _holder(self.storage, self.file)
                if other and _nonce(other) != self.mine["nonce"]:
                    self.say(f"another driver ({_who(other)}) has taken this study over: this one stops")
                    interrupt()
                    return
                count += 1
                self.storage.write_json(self.file, self.mine | {"count": count})
            except OSError:
                continue

    def end(self) -> None:
        """Give the study back, unless it is another's by now."""
        self.over.set()
        self.join()
        try:
            if _nonce(_holder(self.storage, self.file)) == self.mine["nonce"]:
                self.storage.remove_file(self.file)
                study = self.file.rpartition("/")[0]
                if not self.storage.names(study):  # bad input: nothing has come of it, and nothing is left of it
                    self.storage.remove(study)
        except OSError as error:  # the next driver finds this process dead
            self.say(f"{self.storage.uri}/{self.file} was not removed: {first_line(error)}")


def _wait_for_death(storage: Storage, name: str, holder: dict[str, Any], say: Callable[[str], None]) -> None:
    """Return when the holder is dead; at once where its process can be looked for."""
    study = name.rpartition("/")[0]
    if holder.get("place") == host_id():
        if _runs(holder):
            raise ClusterError(_held(storage, study, holder))
        return
    say(f"{_who(holder)} was running this study: watching for {HEARTBEAT_S * MAX_MISSED:g} s whether it still is")
    until = time.monotonic() + HEARTBEAT_S * MAX_MISSED
    while time.monotonic() < until:
        time.sleep(min(HEARTBEAT_S, HEARTBEAT_S * MAX_MISSED) / 2)
        now = _holder(storage, name)
        if now is None:
            return
        if (_nonce(now), now.get("count")) != (_nonce(holder), holder.get("count")):
            raise ClusterError(_held(storage, study, now))


def _holder(storage: Storage, name: str) -> dict[str, Any] | None:
    """What the file says; None when there is none. Of a damaged one nothing is known, and nothing counts in it."""
    if not storage.exists(name):
        return None
    try:
        content = storage.read_json(name)
    except RecordError:
        return None if not storage.exists(name) else {}
    return content if isinstance(content, dict) else {}


def _nonce(holder: dict[str, Any] | None) -> Any:
    return holder.get("nonce") if holder else None


def _held(storage: Storage, study: str, holder: dict[str, Any] | None) -> str:
    return (
        f"study {study} in {storage.uri} is run by another driver, {_who(holder or {})}: wait for it, "
        "or take the study from it with --take-over"
    )


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "nonce": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": pid,
        "begun": start_ticks(pid),
        "place": host_id(),
    }


def _runs(holder: dict[str, Any]) -> bool:
    """Whether its process lives, and not another that has its number by now."""
    pid = holder.get("pid")
    return isinstance(pid, int) and is_alive(pid) and start_ticks(pid) == holder.get("begun")

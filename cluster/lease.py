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

Holder = dict[str, Any]
"""What a driver says of itself: `nonce`, `host`, `pid`, `start_ticks`, `host_id` and `count`."""


@contextmanager
def lease(
    storage: Storage, study: str, *, take_over: bool = False, say: Callable[[str], None] = lambda line: None
) -> Iterator[None]:
    """Hold a study while it runs; given back at the end, taken over when its holder has died.

    With `take_over` it is taken from a driver that seems to live, too, which then stops. `say` is told why this takes
    seconds, when it does.

    Raises
    ------
    ClusterError
        When another driver runs the study.
    KeyboardInterrupt
        In the main thread, when another driver took the study over.
    """
    pid = os.getpid()
    mine = {"nonce": uuid.uuid4().hex, "host": socket.gethostname(), "pid": pid}
    own = _Lease(storage, study, mine | {"start_ticks": start_ticks(pid), "host_id": host_id()}, say)
    holder = own.read()
    if holder is not None and not take_over:
        own.wait_for_death(holder)
    own.write(0)
    time.sleep(SETTLE_S if holder is not None or not storage.local else SETTLE_S / 10)
    if not own.is_mine(now := own.read()):
        raise own.refused(now)
    own.start()
    try:
        yield
    finally:
        own.end()


class _Lease(threading.Thread):
    """The file of a study's driver; as a thread it counts there."""

    def __init__(self, storage: Storage, study: str, mine: Holder, say: Callable[[str], None]):
        super().__init__(name="lease", daemon=True)
        self.storage, self.study, self.mine, self.say = storage, study, mine, say
        self.file, self.over = f"{study}/{FILE}", threading.Event()

    def read(self) -> Holder | None:
        """Content of the file; None when there is none. Of a damaged one nothing is known, and nothing counts in it."""
        if not self.storage.exists(self.file):
            return None
        try:
            content = self.storage.read_json(self.file)
        except RecordError:
            return None if not self.storage.exists(self.file) else {}
        return content if isinstance(content, dict) else {}

    def write(self, count: int) -> None:
        """Say that this driver lives."""
        self.storage.write_json(self.file, self.mine | {"count": count})

    def is_mine(self, holder: Holder | None) -> bool:
        """Whether this driver is the holder."""
        return holder is not None and holder.get("nonce") == self.mine["nonce"]

    def refused(self, holder: Holder | None) -> ClusterError:
        """Why a second driver does not start."""
        return ClusterError(
            f"study {self.study} in {self.storage.uri} is run by another driver, {_name(holder or {})}: wait for it, "
            "or take the study from it with --take-over"
        )

    def wait_for_death(self, holder: Holder) -> None:
        """Return when the holder is dead; at once on its own host, where its process can be looked for."""
        if holder.get("host_id") == host_id():
            pid = holder.get("pid")  # another process may have its number by now
            if isinstance(pid, int) and is_alive(pid) and start_ticks(pid) == holder.get("start_ticks"):
                raise self.refused(holder)
            return
        seconds = HEARTBEAT_S * MAX_MISSED
        self.say(f"{_name(holder)} was running this study: watching for {seconds:g} s whether it still is")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(HEARTBEAT_S / 2)
            now = self.read()
            if now is None:
                return
            if any(now.get(key) != holder.get(key) for key in ("nonce", "count")):
                raise self.refused(now)

    def run(self) -> None:
        """Count. A storage that fails for a while is no reason to stop: trials say so when they need it."""
        count = 0
        while not self.over.wait(HEARTBEAT_S):
            try:
                other = self.read()
                if other and not self.is_mine(other):
                    self.say(f"another driver ({_name(other)}) has taken this study over: this one stops")
                    interrupt()
                    return
                count += 1
                self.write(count)
            except OSError:
                continue

    def end(self) -> None:
        """Give the study back, unless it is another's by now."""
        self.over.set()
        self.join()
        try:
            if self.is_mine(self.read()):
                self.storage.remove_file(self.file)
                if not self.storage.names(self.study):  # bad input: nothing has come of it, and nothing is left of it
                    self.storage.remove(self.study)
        except OSError as error:  # the next driver finds this process dead
            self.say(f"{self.storage.uri}/{self.file} was not removed: {first_line(error)}")


def _name(holder: Holder) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"

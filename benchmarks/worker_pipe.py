"""A benchmark worker's end of its pipes: the driver's requests on stdin, an answer to each on stdout, as JSON lines.

Needs nothing but Python: it also runs in an interpreter that has TensorFlow and not our libraries.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


class Pipe:
    """Requests in, answers out. Whatever else the worker prints goes to stderr."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any]:
        """The next request; the worker ends when the driver has closed the pipe."""
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        request: dict[str, Any] = json.loads(line)
        return request

    def send(self, **answer: Any) -> None:
        """Answer the request received last."""
        self._answers.write(json.dumps(answer) + "\n")


class Stopwatch:
    """Seconds since it was made: of the clock, and of this process's processor time in all its threads."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """`wall` and `cpu` seconds."""
        return {"wall": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}

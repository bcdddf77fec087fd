"""Whether a process that left its number in a file still lives, as far as this machine can tell."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from jbot.config import digest


@functools.cache
def host_id() -> str:
    """Where a process number means one process: this boot of this machine, and this namespace of numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return digest([platform.node(), boot, os.fspath(Path("/proc/self/ns/pid").readlink())], 8)
    except OSError:  # not Linux
        return digest(platform.node(), 8)


def start_ticks(pid: int) -> int | None:
    """When a process began [clock ticks since boot, which no clock that is set changes]; None where nobody tells."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_alive(pid: int) -> bool:
    """Whether a process of this host has this number; numbers are used again, see `start_ticks`.

    One that has ended is dead, even where its parent never asks how: the first process of a container rarely does.
    """
    if pid <= 0:  # of a group of processes
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    fields = _stat(pid)
    return fields is None or fields[0] not in "ZX"


def is_pending(pid: int, number: int) -> bool:
    """Whether a process was sent a signal that it does not hear now; False where nobody tells, as outside Linux."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    pending = int(status.partition("\nShdPnd:")[2].split(maxsplit=1)[0], 16)
    return bool(pending >> (number - 1) & 1)


def _stat(pid: int) -> list[str] | None:
    """What Linux tells of a process after its name, which may be any bytes: its state first."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return stat.rpartition(b")")[2].decode("ascii").split()

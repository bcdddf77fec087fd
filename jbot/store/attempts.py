"""Which attempt at a trial this is: each leaves a small file beside the trial's checkpoint before it does anything.

The files outlive whatever happens to checkpoints, so that every retry is counted. And the newest names the attempt
that owns the checkpoint: one that was given up for dead and lives on, behind a cut network, sees that it does not.
The record is of whichever ends first, and counts both: they are the same, bit for bit.
"""

from __future__ import annotations

import os
import platform
import re
import uuid
from datetime import UTC, datetime

from jbot.store.record import trial_folder
from jbot.store.storage import RecordError, Storage, UnreadableError

NAME = re.compile(r"attempt-(\d+)\.json")


def checkpoint_folder(trial: str) -> str:
    """Where the checkpoint of an unfinished trial lies in the storage."""
    return f"{trial_folder(trial)}/checkpoint"


def attempts_begun(storage: Storage, trial: str) -> int:
    """Attempts that an unfinished trial has had; 0 also when it has ended."""
    matches = (NAME.fullmatch(name) for name in storage.names(checkpoint_folder(trial)))
    return max((int(match[1]) for match in matches if match), default=0)


def note_attempt(storage: Storage, trial: str, number: int) -> str:
    """Note that an attempt has started. Returns its own name; what else the file holds is for people."""
    name, noted = uuid.uuid4().hex, datetime.now(UTC).isoformat(timespec="seconds")
    storage.write_json(
        _file(trial, number), {"name": name, "host": platform.node(), "pid": os.getpid(), "noted": noted}
    )
    return name


def is_newest(storage: Storage, trial: str, number: int, name: str) -> bool:
    """Whether no later attempt has started, and of those that did together, in two studies, this is the one that
    owns the checkpoint."""
    if attempts_begun(storage, trial) != number:
        return False
    try:
        noted = storage.read_json(_file(trial, number))
    except UnreadableError:
        raise
    except RecordError:  # damaged, or gone with the checkpoint
        return False
    return isinstance(noted, dict) and noted.get("name") == name


def _file(trial: str, number: int) -> str:
    return f"{checkpoint_folder(trial)}/attempt-{number:04d}.json"

"""A training state in files: arrays, then the JSON file that names them with their checksum and so makes them valid.

An unfinished trial leaves its state in its checkpoint folder at the end of an epoch, and goes on from there after a
crash, alone or in another pack.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jbot.config import Config
from jbot.store.attempts import attempts_begun, checkpoint_folder, is_newest, note_attempt
from jbot.store.checksum import with_checksum, without_checksum
from jbot.store.record import trial_folder
from jbot.store.storage import RecordError, Storage, UnreadableError
from jbot.store.validation import check_types
from jbot.trainer.finetune import FinetuneProgress, FinetuneState, Run, init_finetune
from jbot.trainer.state import PackState, Progress, TrainState, init_state

CHECKPOINT_SECONDS = float(os.environ.get("JBOT_CHECKPOINT_SECONDS") or 20.0)
"""Between checkpoints, which are made at the end of an epoch. One of jBOT-S is half a megabyte."""

Arrays = dict[str, np.ndarray]


@dataclass(kw_only=True)
class History:
    """What the attempts at a trial leave to the next one, and to its record."""

    attempts: int = 0
    wall_seconds: float = 0.0
    started: str
    continues: str | None = None
    """The trial whose beginning or encoder it took."""
    shared_seconds: float = 0.0
    """Device seconds of that trial which it did not spend."""


class Checkpoint:
    """The state of one unfinished trial, and the attempt that owns it."""

    def __init__(self, storage: Storage, trial: str):
        self.storage, self.trial, self.folder = storage, trial, checkpoint_folder(trial)
        self.attempt, self.name = 0, ""
        self.history = History(started=datetime.now(UTC).isoformat(timespec="seconds"))
        self.is_first = True
        """Whether this attempt found nothing to go on from."""
        self.started = self.saved = time.perf_counter()

    def claim(self) -> None:
        """Begin an attempt, even one that dies at once: what earlier ones left half written goes."""
        self.attempt = attempts_begun(self.storage, self.trial) + 1
        self.name = note_attempt(self.storage, self.trial, self.attempt)
        for folder in (trial_folder(self.trial), self.folder):
            self.storage.remove_stale_files(folder)

    def is_ours(self) -> bool:
        """Whether no other attempt has started since, and none has ended the trial."""
        return is_newest(self.storage, self.trial, self.attempt, self.name)

    def load(self, config: Config, device: torch.device, dtype: torch.dtype) -> TrainState:
        """The saved state, or a fresh one; `history` is then that of the earlier attempts.

        Raises UnreadableError when the storage fails: a checkpoint that may be whole is not to be replaced by a fresh
        one.
        """
        fresh = init_state(config, [config.seed], device, dtype)
        if self.storage.exists(f"{self.folder}/state.json"):
            with damage_warned(f"checkpoint of trial {self.folder} is damaged, starting over"):
                saved, arrays = read_state(self.storage, self.folder, "state")
                state = restored(fresh, arrays, saved["state"])
                self.history = check_types(History(**saved["history"]))
                self.is_first = self.history.attempts == 0
                return state
        return fresh

    def begin(self, state: TrainState) -> None:
        """Count this attempt, which begins with `state`, and save that at once."""
        self.history.attempts = max(self.history.attempts + 1, self.attempt)
        self.started = time.perf_counter()
        self.save(state)

    def reuses(self) -> bool:
        """Whether this attempt started from what another trial has trained."""
        return self.is_first and self.history.continues is not None

    def wall_seconds(self) -> float:
        """Seconds of all attempts so far."""
        return float(self.history.wall_seconds + time.perf_counter() - self.started)

    def load_tuned(self, runs: Sequence[Run], trained: TrainState) -> dict[str, FinetuneState]:
        """The saved state of each fine-tuning, a pack of one; a fresh one when none was saved. Raises as `load`."""
        device, dtype = trained.student.device, trained.student.dtype
        fresh = {run.name: init_finetune([run], device, dtype) for run in runs}
        if self.storage.exists(f"{self.folder}/finetune.json"):
            with damage_warned(f"fine-tunings of {self.folder} are damaged, starting them over"):
                saved, arrays = read_state(self.storage, self.folder, "finetune")
                progress = {name: check_types(FinetuneProgress(**saved["runs"][name])) for name in fresh}
                return {
                    name: state.of(like(state, arrays, f"{name}/"), [progress[name]]) for name, state in fresh.items()
                }
        return fresh

    def save_if_due(self, state: TrainState, tuned: Mapping[str, FinetuneState] | None = None) -> None:
        """Save when the last one is old enough."""
        if time.perf_counter() - self.saved >= CHECKPOINT_SECONDS:
            self.save(state, tuned)

    def save(self, state: TrainState, tuned: Mapping[str, FinetuneState] | None = None) -> None:
        """Save now, unless the trial is another attempt's by now. A crash in the middle leaves the previous one."""
        self.saved = time.perf_counter()
        if not self.is_ours():
            return
        history = vars(self.history) | {"wall_seconds": self.wall_seconds()}
        self._write("state", state.epoch, state.tensors(), {"state": progress_of(state), "history": history})
        if tuned:
            tensors = {f"{run}/{name}": x for run, one in tuned.items() for name, x in one.tensors().items()}
            runs = {run: progress_of(one) for run, one in tuned.items()}
            self._write("finetune", sum(one.epoch for one in tuned.values()), tensors, {"runs": runs})

    def _write(self, part: str, number: int, tensors: Mapping[str, Tensor], content: dict[str, Any]) -> None:
        """Arrays under a name of their own, then the JSON file, then away with the arrays of before."""
        arrays = f"{part}-{number:06d}.safetensors"
        write_state(self.storage, self.folder, part, arrays, tensors, content)
        for name in self.storage.names(self.folder):
            if name.startswith(f"{part}-") and name != arrays:
                self.storage.remove_file(f"{self.folder}/{name}")

    def remove(self) -> None:
        """The record has replaced it."""
        self.storage.remove(self.folder)


def write_state(
    storage: Storage, folder: str, part: str, arrays: str, tensors: Mapping[str, Tensor], content: dict[str, Any]
) -> None:
    """Write the arrays under the name `arrays`, then ``<part>.json``, which makes them valid."""
    checksum = storage.write_arrays(f"{folder}/{arrays}", {n: x.detach().cpu().numpy() for n, x in tensors.items()})
    storage.write_json(f"{folder}/{part}.json", with_checksum({"arrays": arrays, "sha256": checksum} | content))


def read_state(storage: Storage, folder: str, part: str) -> tuple[dict[str, Any], Arrays]:
    """Content and arrays that :func:`write_state` has written.

    Raises RecordError, KeyError or TypeError when they are missing or damaged.
    """
    saved = without_checksum(storage.read_json(f"{folder}/{part}.json"), required=True)
    name = f"{folder}/{saved.get('arrays', f'{part}.safetensors')}"
    check_file(storage, name, saved.get("sha256"))
    return saved, storage.read_arrays(name)


def check_file(storage: Storage, name: str, checksum: str | None) -> None:
    """Raise a RecordError where a file is not what was written; files of old have no checksum."""
    if checksum is not None and hashlib.sha256(storage.read(name)).hexdigest() != checksum:
        raise RecordError(f"{name} is not what was written")


@contextmanager
def damage_warned(consequence: str) -> Iterator[None]:
    """Warn where what is read inside is damaged, and go on behind.

    A storage that fails raises its UnreadableError: what may be whole is not made again.
    """
    try:
        yield
    except UnreadableError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        warnings.warn(f"{consequence}: {why}", stacklevel=4)


def restored(fresh: TrainState, arrays: Arrays, progress: Any) -> TrainState:
    """A saved state on the device of a fresh one, which it must be like."""
    return fresh.of(like(fresh, arrays), [check_types(Progress(**progress))])


def like(state: PackState, arrays: Arrays, prefix: str = "") -> dict[str, Tensor]:
    """Saved tensors by the names of a state, on its device, each checked to be as there."""
    tensors = {}
    for name, value in state.tensors().items():
        tensors[name] = torch.from_numpy(arrays[f"{prefix}{name}"]).to(value.device)
        if tensors[name].shape != value.shape or tensors[name].dtype != value.dtype:
            raise RecordError(f"{prefix}{name} is of another model")
    return tensors


def progress_of(state: PackState) -> dict[str, Any]:
    """How far a pack of one is, as JSON can hold it."""
    (progress,) = state.progress
    return vars(progress) | {"curves": finite(progress.curves)}


def finite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """NaN as missing: Parquet readers and JSON agree on that."""

    def known(value: float | None) -> float | None:
        return None if value is None or not np.isfinite(value) else value

    return [{name: known(value) for name, value in row.items()} for row in rows]

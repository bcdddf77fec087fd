"""A training state in files; and trials that begin where another one, with the same beginning, has stopped early.

A trial with `train.until` leaves its state. One that agrees with it in all up to there (a longer one, or one whose
schedule changes something then) starts from that state: what it would have trained is the same, bit for bit.

And encoders that are shared: a trial that differs from a complete one in what is judged alone (fine-tunings, anomaly
scores, other jet pTs) takes its weights and learning curves, and is judged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jbot import TRAINER_VERSION
from jbot.config import AnomalyConfig, Config, FinetuneConfig, override
from jbot.store.checksum import sealed, unsealed
from jbot.store.record import RecordError, Storage, UnreadableError, load_curves, load_record, trial_folder, trial_id
from jbot.trainer.loop import PackState, Progress, TrainState, is_probed
from jbot.trainer.model import pack

# What is kept of a trial's progress, and of what type.
PROGRESS = {"epoch": int, "train_seconds": float, "probe_seconds": float, "curves": list}
STATE = "state"
"""``state.safetensors`` and the ``state.json`` that makes it valid."""
ENCODERS = "encoders"
"""Folder of what says which trial has an encoder, by the id of the plain trial."""
SNAPSHOT = re.compile(r"\w+-\d+\.safetensors")
"""What a trial leaves at some epochs, ``embedding-0010.safetensors`` and ``student-0010.safetensors``."""


def save_state(storage: Storage, trial: str, state: TrainState) -> None:
    """Leave the state of a trial that has stopped early, a pack of one: arrays, then the JSON file that vouches."""
    name = f"{trial_folder(trial)}/{STATE}"
    digest = storage.write_arrays(f"{name}.safetensors", as_arrays(state.tensors()))
    storage.write_json(f"{name}.json", sealed({"sha256": digest, "state": progress_of(state)}))


def load_state(storage: Storage, trial: str, fresh: TrainState) -> TrainState:
    """The state that a trial has left, on the device of a fresh one.

    Raises
    ------
    RecordError
        When it is missing, damaged, or of another model.
    """
    name = f"{trial_folder(trial)}/{STATE}"
    try:
        saved = unsealed(storage.read_json(f"{name}.json"))
        if hashlib.sha256(storage.read(f"{name}.safetensors")).hexdigest() != saved["sha256"]:
            raise RecordError(f"{name}.safetensors is not what was written")
        progress = Progress(**typed(saved["state"], PROGRESS))
        return fresh.of(like(fresh, storage.read_arrays(f"{name}.safetensors"), "", fresh.student.device), [progress])
    except (KeyError, TypeError) as error:
        raise RecordError(f"{name}.json: {error!r}") from None


def beginnings(config: Config, fingerprint: str) -> Iterator[tuple[int, str]]:
    """Trials that train as this one does and stop earlier, as (epoch, trial id): the longest first."""
    for epoch in range(config.train.last_epoch - 1, 0, -1):
        shorter = override(config, {"train.until": epoch})  # which leaves out later changes
        yield epoch, trial_id(shorter, fingerprint, TRAINER_VERSION)


def continue_other(
    storage: Storage, trial: str, config: Config, fingerprint: str, fresh: TrainState
) -> tuple[TrainState, str | None]:
    """The state of the longest beginning of a trial that another one has left, and whose; else the fresh one and None.

    Points of the learning curves that this trial has not, as the last one of a trial that stopped, are left out; what
    the other trial has left at the epochs before is copied.

    Raises
    ------
    UnreadableError
        When the storage fails: what may be whole is not trained again.
    """
    there = set(storage.names("trials"))
    for epoch, other in beginnings(config, fingerprint):
        if other not in there or not storage.exists(f"{trial_folder(other)}/{STATE}.json"):
            continue
        try:
            state = load_state(storage, other, fresh)
            if state.epoch != epoch:
                raise RecordError(f"it stands at epoch {state.epoch}, not {epoch}")
            _copy_snapshots(storage, other, trial)
        except UnreadableError:
            raise
        except RecordError as error:
            warnings.warn(f"the state of trial {other} is damaged, training from before: {error}", stacklevel=2)
            continue
        (progress,) = state.progress
        progress.curves = [row for row in progress.curves if is_probed(row["epoch"], config)]
        return state, other
    return fresh, None


def plain(config: Config) -> Config:
    """The trial that trains this one's encoder and learning curves, and judges no more than every trial does."""
    probe = dataclasses.replace(config.probe, jet_pts=())
    return dataclasses.replace(config, probe=probe, finetune=FinetuneConfig(), anomaly=AnomalyConfig())


def lend_encoder(storage: Storage, trial: str, encoder: str, weights: str) -> None:
    """Say that a complete trial has this encoder, unless another one that is still there says so.

    Parameters
    ----------
    encoder : str
        The id of the plain trial, whether that was run or not.
    weights : str
        The sha256 of its file of weights.
    """
    name = f"{ENCODERS}/{encoder}.json"
    try:
        there = storage.exists(f"{trial_folder(str(storage.read_json(name)['trial']))}/record.json")
    except (RecordError, KeyError, TypeError):  # nobody yet, or damaged
        there = False
    if not there:
        storage.write_json(name, {"trial": trial, "sha256": weights})


def borrow_encoder(
    storage: Storage, trial: str, config: Config, encoder: str, fresh: TrainState
) -> tuple[TrainState, str | None]:
    """The encoder that another trial has trained, at its last epoch, and whose; else the fresh state and None.

    The student and the learning curves alone: such a state can be judged, not trained further. So a trial that is to
    leave its state does not borrow. Raises as `continue_other`.
    """
    name = f"{ENCODERS}/{encoder}.json"
    if config.train.until or fresh.student.dtype != torch.float32 or not storage.exists(name):
        return fresh, None
    try:
        lent = storage.read_json(name)
        other = str(lent["trial"])
        record, file = load_record(storage, other), f"{trial_folder(other)}/student.safetensors"
        if record is None or record.state != "complete":
            return fresh, None
        if lent.get("sha256", whole := hashlib.sha256(storage.read(file)).hexdigest()) != whole:
            raise RecordError(f"{file} is not what was written")
        weights = pack(storage.read_arrays(file), config.model)
        curves = load_curves(storage, other)
        if not curves or curves[-1]["epoch"] != config.train.last_epoch:
            raise RecordError(f"learning curves of trial {other} do not reach epoch {config.train.last_epoch}")
        _copy_snapshots(storage, other, trial)
    except UnreadableError:
        raise
    except (RecordError, KeyError, TypeError, ValueError) as error:
        warnings.warn(f"the encoder of {name} is damaged, training it again: {error}", stacklevel=2)
        return fresh, None
    fresh.student.copy_(weights)
    seconds = record.device_seconds - record.probe_seconds - record.finetune_seconds
    progress = Progress(epoch=config.train.last_epoch, train_seconds=seconds, curves=curves)
    return fresh.of(fresh.tensors(), [progress]), other


def _copy_snapshots(storage: Storage, source: str, target: str) -> None:
    for name in filter(SNAPSHOT.fullmatch, storage.names(trial_folder(source))):
        storage.write(f"{trial_folder(target)}/{name}", storage.read(f"{trial_folder(source)}/{name}"))


def progress_of(state: TrainState) -> dict[str, Any]:
    """How far a trial is, as JSON can hold it."""
    (progress,) = state.progress
    return {name: getattr(progress, name) for name in PROGRESS} | {"curves": finite(progress.curves)}


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as safetensors files hold them."""
    return {name: value.detach().cpu().numpy() for name, value in tensors.items()}


def finite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """NaN as missing: Parquet readers and JSON agree on that."""

    def known(value: float | None) -> float | None:
        return None if value is None or not np.isfinite(value) else value

    return [{name: known(value) for name, value in row.items()} for row in rows]


def like(state: PackState, arrays: dict[str, np.ndarray], prefix: str, device: torch.device) -> dict[str, Tensor]:
    """Saved tensors by the names of a state, each checked to be as there."""
    tensors = {name: torch.from_numpy(arrays[f"{prefix}{name}"]).to(device) for name in state.tensors()}
    for name, value in state.tensors().items():
        if tensors[name].shape != value.shape or tensors[name].dtype != value.dtype:
            raise RecordError(f"{prefix}{name} is of another model")
    return tensors


def typed(values: Any, types: Mapping[str, Any]) -> dict[str, Any]:
    """The values, each checked to be there and of its type."""
    for name, kind in types.items():
        if not isinstance(values[name], kind):
            raise TypeError(f"{name} must be {getattr(kind, '__name__', kind)}, got {values[name]!r}")
    return {name: values[name] for name in types}

"""Results that a trial takes over from another one instead of computing them again.

The beginning: a trial with `train.until` leaves its state. One that agrees with it in all up to there (a longer one, or
one whose schedule changes something then) starts from that state: what it would have trained is the same, bit for bit.

The encoder: a trial that differs from a complete one in what is evaluated alone (fine-tunings, anomaly scores, other
jet pTs) takes its weights and learning curves, and is evaluated.
"""

from __future__ import annotations

import dataclasses
import re

import torch

from jbot import TRAINER_VERSION
from jbot.config import AnomalyConfig, Config, FinetuneConfig, override
from jbot.data import Jets
from jbot.evaluation.metrics_registry import other_pts
from jbot.store.record import load_curves, load_record, trial_folder, trial_id
from jbot.store.storage import RecordError, Storage
from jbot.trainer.model import pack
from jbot.trainer.state import Progress, TrainState
from jbot.trainer.workload import is_probed
from jbot.trial.checkpoint import Checkpoint, check_file, damage_warned, read_state, restored

STATE = "state"
"""``state.safetensors`` and the ``state.json`` that makes it valid."""
ENCODERS = "encoders"
"""Folder of what says which trial has an encoder, by the id of the plain trial."""
SNAPSHOT = re.compile(r"\w+-\d+\.safetensors")
"""Files that a trial leaves at some epochs, ``embedding-0010.safetensors`` and ``student-0010.safetensors``."""


def start(
    checkpoint: Checkpoint, config: Config, fingerprint: str, encoder: str, device: torch.device, dtype: torch.dtype
) -> TrainState:
    """The state with which an attempt at a trial begins, a pack of one.

    Its own of before, else the encoder (by the id of the plain trial) or the beginning of this trial that another one
    has trained on the jets of this fingerprint, else a fresh one.
    """
    storage, trial = checkpoint.storage, checkpoint.trial
    state = checkpoint.load(config, device, dtype)
    if checkpoint.is_first:
        state, other = load_cached_encoder(storage, trial, config, encoder, state)
        if other is None:
            state, other = continue_other(storage, trial, config, fingerprint, state)
        (progress,) = state.progress
        checkpoint.history.continues = other
        checkpoint.history.shared_seconds = progress.train_seconds + progress.probe_seconds
    checkpoint.begin(state)
    return state


def load_state(storage: Storage, trial: str, fresh: TrainState) -> TrainState:
    """The state that a trial has left, on the device of a fresh one.

    Raises RecordError, KeyError or TypeError when it is missing, damaged, or of another model.
    """
    saved, arrays = read_state(storage, trial_folder(trial), STATE)
    return restored(fresh, arrays, saved["state"])


def continue_other(
    storage: Storage, trial: str, config: Config, fingerprint: str, fresh: TrainState
) -> tuple[TrainState, str | None]:
    """The state of the longest beginning of a trial that another one has left, and whose; else the fresh one and None.

    Points of the learning curves that this trial has not, as the last one of a trial that stopped, are left out; what
    the other trial has left at the epochs before is copied. Raises UnreadableError when the storage fails: what may be
    whole is not trained again.
    """
    there = set(storage.names("trials"))
    for epoch in range(config.train.last_epoch - 1, 0, -1):
        shorter = override(config, {"train.until": epoch})  # which leaves out later changes
        other = trial_id(shorter, fingerprint, TRAINER_VERSION)
        if other not in there or not storage.exists(f"{trial_folder(other)}/{STATE}.json"):
            continue
        with damage_warned(f"the state of trial {other} is damaged, training from before"):
            state = load_state(storage, other, fresh)
            if state.epoch != epoch:
                raise RecordError(f"it stands at epoch {state.epoch}, not {epoch}")
            _copy_snapshots(storage, other, trial)
            (progress,) = state.progress
            progress.curves = [row for row in progress.curves if is_probed(row["epoch"], config)]
            return state, other
    return fresh, None


def plain(config: Config) -> Config:
    """The trial that trains this one's encoder and learning curves, and evaluates no more than every trial does."""
    probe = dataclasses.replace(config.probe, jet_pts=())
    return dataclasses.replace(config, probe=probe, finetune=FinetuneConfig(), anomaly=AnomalyConfig())


def encoder_id(config: Config, fingerprint: str, jets: Jets) -> str:
    """The id under which trials that differ in what is evaluated alone share an encoder: that of the plain trial.

    The fingerprint is of the trial's jets, those of other pTs among them.
    """
    trained = plain(config)
    return trial_id(trained, jets.fingerprint(trained) if other_pts(config) else fingerprint, TRAINER_VERSION)


def publish_encoder(storage: Storage, trial: str, encoder: str, weights: str) -> None:
    """Say that a complete trial has this encoder, with weights of this sha256, unless another one still there says so.

    The encoder's name is the id of the plain trial, whether that was run or not.
    """
    name = f"{ENCODERS}/{encoder}.json"
    try:
        there = storage.exists(f"{trial_folder(str(storage.read_json(name)['trial']))}/record.json")
    except (RecordError, KeyError, TypeError):  # nobody yet, or damaged
        there = False
    if not there:
        storage.write_json(name, {"trial": trial, "sha256": weights})


def load_cached_encoder(
    storage: Storage, trial: str, config: Config, encoder: str, fresh: TrainState
) -> tuple[TrainState, str | None]:
    """The encoder that another trial has trained, at its last epoch, and whose; else the fresh state and None.

    The student and the learning curves alone: such a state can be evaluated, not trained further. So a trial that is
    to leave its state does not take one. Raises as `continue_other`.
    """
    name = f"{ENCODERS}/{encoder}.json"
    if config.train.until or fresh.student.dtype != torch.float32 or not storage.exists(name):
        return fresh, None
    with damage_warned(f"the encoder of {name} is damaged, training it again"):
        published = storage.read_json(name)
        other = str(published["trial"])
        record, file = load_record(storage, other), f"{trial_folder(other)}/student.safetensors"
        if record is None or record.state != "complete":
            return fresh, None
        check_file(storage, file, published.get("sha256"))
        weights = pack(storage.read_arrays(file), config.model)
        curves = load_curves(storage, other)
        if not curves or curves[-1]["epoch"] != config.train.last_epoch:
            raise RecordError(f"learning curves of trial {other} do not reach epoch {config.train.last_epoch}")
        _copy_snapshots(storage, other, trial)
        fresh.student.copy_(weights)
        seconds = record.device_seconds - record.probe_seconds - record.finetune_seconds
        progress = Progress(epoch=config.train.last_epoch, train_seconds=seconds, curves=curves)
        return fresh.of(fresh.tensors(), [progress]), other
    return fresh, None


def _copy_snapshots(storage: Storage, source: str, target: str) -> None:
    for name in filter(SNAPSHOT.fullmatch, storage.names(trial_folder(source))):
        storage.write(f"{trial_folder(target)}/{name}", storage.read(f"{trial_folder(source)}/{name}"))

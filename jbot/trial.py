"""Run one trial on this machine and leave its record: the same function under Ray and inline."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jbot import TRAINER_VERSION
from jbot.config import Config, MaskConfig
from jbot.data import JetData, split
from jbot.evaluate import Evaluator, LabeledJets, embed
from jbot.masking import mask_views
from jbot.model import unpack
from jbot.record import Record, RecordError, State, Storage, load_record, save_record, trial_folder, trial_id
from jbot.streams import Draws
from jbot.train import Metrics, TrainState, TrialFailed, init_state, train

CHECKPOINT_SECONDS = 20.0
"""Between checkpoints, which are made at the end of an epoch. One of jBOT-S is half a megabyte."""
PICTURE_JETS = 1_000
EXAMPLE_JETS_PER_CLASS = 1

# What a checkpoint holds beside arrays, and of what type.
SCALARS = {"step": int, "epoch": int, "train_seconds": float, "probe_seconds": float, "curves": list}
HISTORY = {"attempts": int, "wall_seconds": float, "started": str}

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One arm at one seed, as a study hands it to a worker."""

    study: str
    arm: str
    plan_hash: str
    config: Config
    data_fingerprint: str
    git_commit: str | None = None
    """Of the driver: a worker may run a copy of the code without its history."""

    @property
    def trial_id(self) -> str:
        """Hash of Config, data and trainer version."""
        return trial_id(self.config, self.data_fingerprint, TRAINER_VERSION)


def run_trial(
    spec: TrialSpec, data: JetData, storage: Storage, device: str = "cpu", report: Report | None = None
) -> Record:
    """Train, judge, and write the record of one trial; continues from its checkpoint when there is one.

    Parameters
    ----------
    device : str
        A torch device.
    report : callable, optional
        Called with each new row of the learning curves.

    Returns
    -------
    Record
        The one that is there already when the trial has ended before: nothing is run twice.
    """
    done = load_record(storage, spec.trial_id)
    if done is not None:
        return done
    checkpoint = Checkpoint(storage, spec.trial_id)
    state, history = checkpoint.load(spec.config, torch.device(device))
    history["attempts"] += 1
    checkpoint.history, checkpoint.started = history, time.perf_counter()
    checkpoint.save(state)  # so that even an attempt that dies at once is counted
    sent = 0

    def after_epoch(state: TrainState) -> None:
        nonlocal sent
        checkpoint.save_if_due(state)
        if report:
            for row in state.curves[sent:]:
                report(row)
            sent = len(state.curves)

    jets = prepare(spec.config, data, torch.device(device))
    evaluator = Evaluator(spec.config, jets["bank"], jets["val"], jets["test"])
    outcome: State = "complete"
    reason, metrics = None, {}
    try:
        train(spec.config, jets["train"].particles, state, evaluator.curve_point, after_epoch)
        metrics = final_metrics(spec.config, state, evaluator)
        save_pictures(storage, spec, state, jets["test"])
    except TrialFailed as failure:
        outcome, reason = "failed", str(failure)
    save_weights(storage, spec, state)
    storage.write_rows(f"{trial_folder(spec.trial_id)}/curves.parquet", _finite(state.curves))
    record = Record(
        trial_id=spec.trial_id,
        state=outcome,
        reason=reason,
        study=spec.study,
        arm=spec.arm,
        plan_hash=spec.plan_hash,
        config=dataclasses.asdict(spec.config),
        data={"fingerprint": data.fingerprint, "source": data.source},
        metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
        trainer_version=TRAINER_VERSION,
        git_commit=spec.git_commit,
        libraries=library_versions(),
        hardware=hardware(device),
        started=history["started"],
        wall_seconds=round(history["wall_seconds"] + time.perf_counter() - checkpoint.started, 3),
        device_seconds=round(state.train_seconds + state.probe_seconds, 3),
        probe_seconds=round(state.probe_seconds, 3),
        attempts=history["attempts"],
    )
    save_record(storage, record)
    checkpoint.remove()
    return record


class Checkpoint:
    """The state of an unfinished trial: arrays first, then the small JSON file that names them."""

    def __init__(self, storage: Storage, trial: str):
        self.storage, self.folder = storage, f"{trial_folder(trial)}/checkpoint"
        self.history: dict[str, Any] = {}
        self.started = self.saved = time.perf_counter()

    def load(self, config: Config, device: torch.device) -> tuple[TrainState, dict[str, Any]]:
        """The saved state, or a fresh one; and what earlier attempts leave: attempts, seconds, first start."""
        fresh = init_state(config, [config.seed], device)
        history = {"attempts": 0, "wall_seconds": 0.0, "started": datetime.now(UTC).isoformat(timespec="seconds")}
        if not self.storage.exists(f"{self.folder}/state.json"):
            return fresh, history
        try:
            saved = self.storage.read_json(f"{self.folder}/state.json")
            arrays = self.storage.read_arrays(f"{self.folder}/{saved['arrays']}")
            tensors = {name: torch.from_numpy(arrays[name]).to(device) for name in fresh.tensors()}
            if any(tensors[name].shape != value.shape for name, value in fresh.tensors().items()):
                raise RecordError(f"{self.folder} is of another model")
            return TrainState(**(tensors | _typed(saved["state"], SCALARS))), _typed(saved["history"], HISTORY)
        except (RecordError, KeyError, TypeError) as error:
            warnings.warn(f"checkpoint of trial {self.folder} is damaged, starting over: {error}", stacklevel=2)
            return fresh, history

    def save_if_due(self, state: TrainState) -> None:
        """Save when the last one is old enough."""
        if time.perf_counter() - self.saved >= CHECKPOINT_SECONDS:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Save now. A crash in the middle leaves the previous checkpoint."""
        arrays = f"state-{state.epoch:06d}.safetensors"
        tensors = {name: value.detach().cpu().numpy() for name, value in state.tensors().items()}
        self.storage.write_arrays(f"{self.folder}/{arrays}", tensors)
        wall = self.history["wall_seconds"] + time.perf_counter() - self.started
        scalars = {name: value for name, value in vars(state).items() if name not in tensors}
        scalars["curves"] = _finite(state.curves)
        content = {"arrays": arrays, "state": scalars, "history": self.history | {"wall_seconds": wall}}
        self.storage.write_json(f"{self.folder}/state.json", content)
        for name in self.storage.names(self.folder):
            if name.endswith(".safetensors") and name != arrays:
                self.storage.remove_file(f"{self.folder}/{name}")
        self.saved = time.perf_counter()

    def remove(self) -> None:
        """The record has replaced it."""
        self.storage.remove(self.folder)


def _typed(values: Any, types: dict[str, type]) -> dict[str, Any]:
    """The values, each checked to be there and of its type."""
    for name, kind in types.items():
        if not isinstance(values[name], kind):
            raise TypeError(f"{name} must be {kind.__name__}, got {values[name]!r}")
    return {name: values[name] for name in types}


def prepare(config: Config, data: JetData, device: torch.device) -> dict[str, LabeledJets]:
    """The jets of each split on the device: train, bank (the labeled head of train), val, test."""
    wanted = config.data
    parts = split(data.labels, task=wanted.task, train=wanted.train_jets, val=wanted.val_jets, test=wanted.test_jets)
    rows = {"train": parts.train, "bank": parts.train[: config.probe.bank_jets], "val": parts.val, "test": parts.test}
    return {
        name: LabeledJets(
            particles=torch.from_numpy(data.particles[index, : wanted.particles]).to(device),
            labels=data.labels[index],
        )
        for name, index in rows.items()
    }


def final_metrics(config: Config, state: TrainState, evaluator: Evaluator) -> Metrics:
    """Metrics on the test jets, and the same for the encoder before training: the floor."""
    untrained = init_state(config, [config.seed], state.student.device)
    floor = evaluator.final(untrained)
    return evaluator.final(state) | {f"untrained/{name}": value for name, value in floor.items()}


def save_weights(storage: Storage, spec: TrialSpec, state: TrainState) -> None:
    """The student by weight name, without the trial axis."""
    weights = {
        name: value[0].detach().cpu().numpy() for name, value in unpack(state.student, spec.config.model).items()
    }
    storage.write_arrays(f"{trial_folder(spec.trial_id)}/student.safetensors", weights)


def save_pictures(storage: Storage, spec: TrialSpec, state: TrainState, test: LabeledJets) -> None:
    """What the report draws: embeddings of some test jets, and one jet a class with its masked particles."""
    folder = trial_folder(spec.trial_id)
    some = test.particles[:PICTURE_JETS]
    cls = embed(state.student, some, spec.config)
    storage.write_arrays(f"{folder}/embedding.safetensors", {"cls": cls, "label": test.labels[: len(some)]})
    shown = np.concatenate([np.flatnonzero(test.labels == c)[:EXAMPLE_JETS_PER_CLASS] for c in np.unique(test.labels)])
    jets = test.particles[torch.from_numpy(shown).to(test.particles.device)]
    middle = (spec.config.mask.ratio_low + spec.config.mask.ratio_high) / 2
    typical = MaskConfig(scheme=spec.config.mask.scheme, ratio_low=middle, ratio_high=middle)
    draws = Draws(torch.tensor([spec.config.seed], device=jets.device), 0)
    masked = mask_views(jets[None, None].expand(-1, 2, -1, -1, -1), draws, typical)[0, 0]
    arrays = {"particles": jets.cpu().numpy(), "masked": masked.cpu().numpy(), "label": test.labels[shown]}
    storage.write_arrays(f"{folder}/examples.safetensors", arrays)


def _finite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """NaN as missing: Parquet readers and JSON agree on that."""

    def known(value: float | None) -> float | None:
        return None if value is None or not np.isfinite(value) else value

    return [{name: known(value) for name, value in row.items()} for row in rows]


@functools.cache
def git_commit() -> str | None:
    """Commit of the checkout this code runs from, with ``+`` when it is changed; None outside a checkout."""
    run = functools.partial(subprocess.run, capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
    try:
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        return commit + ("+" if run(["git", "status", "--porcelain", "-uno"]).stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of what a result may depend on."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "numpy", "scikit-learn", "ray", "mlflow"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware(device: str) -> dict[str, Any]:
    """Where it ran."""
    found: dict[str, Any] = {"host": platform.node(), "machine": platform.machine(), "cores": os.cpu_count()}
    found |= {"device": device, "threads": torch.get_num_threads(), "cpu": _cpu_name()}
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())

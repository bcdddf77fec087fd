"""Run trials on this machine, as a pack, and leave their records: the same function under Ray and inline."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jbot import TRAINER_VERSION
from jbot.config import Config, DataConfig, at_epoch, digest, override, to_dict
from jbot.data import JetData, Jets, split
from jbot.data.jets import shared_tensor
from jbot.data.splits import TARGETS, targets
from jbot.evaluation.evaluator import Evaluator, Judgement, LabeledJets, OtherJets, other_pts, own_pt_names
from jbot.evaluation.metrics import Measured, classification, uncertainties
from jbot.store.attempts import attempts_begun, checkpoint_folder, is_newest, note_attempt
from jbot.store.checksum import sealed, unsealed
from jbot.store.record import (
    Record,
    RecordError,
    Storage,
    UnreadableError,
    load_whole,
    save_record,
    trial_folder,
    trial_id,
)
from jbot.trainer.engines.select import Engine, find_engine
from jbot.trainer.finetune import (
    FinetuneProgress,
    FinetuneState,
    LabeledRows,
    Run,
    class_probabilities_of,
    finetune,
    init_finetune,
    named_classifier,
    pack_key,
    runs_of,
)
from jbot.trainer.loop import Metrics, Progress, TrainState, TrialFailed, init_state, join_states, train
from jbot.trainer.model import named_weights
from jbot.trainer.pack import check_shared
from jbot.trial.card import save_card
from jbot.trial.resource_usage import Meter
from jbot.trial.reuse import (
    PROGRESS,
    as_arrays,
    borrow_encoder,
    continue_other,
    finite,
    lend_encoder,
    like,
    plain,
    progress_of,
    save_state,
    typed,
)
from jbot.trial.snapshots import save_pictures, save_snapshot

CHECKPOINT_SECONDS = float(os.environ.get("JBOT_CHECKPOINT_SECONDS") or 20.0)
"""Between checkpoints, which are made at the end of an epoch. One of jBOT-S is half a megabyte."""

# What a checkpoint holds beside arrays and progress, and of what type.
FINETUNE_PROGRESS = {
    "epoch": int,
    "seconds": float,
    "best_accuracy": float,
    "since_best": int,
    "curves": list,
    "reason": str | None,
}
HISTORY = {"attempts": int, "wall_seconds": float, "started": str, "continues": str | None, "shared_seconds": float}

Report = Callable[[list[tuple["TrialSpec", dict[str, Any]]]], None]
Ended = Callable[["TrialSpec", Record], None]
Prune = Callable[["TrialSpec", dict[str, Any]], str | None]


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One arm at one seed, as a study hands it to a worker."""

    study: str
    arm: str
    plan_hash: str
    config: Config
    data_fingerprint: str
    """Of the jets it uses (:meth:`jbot.data.Jets.fingerprint`), whatever else its study loads."""
    git_commit: str | None = None
    """Of the driver: a worker may run a copy of the code without its history."""

    @functools.cached_property
    def trial_id(self) -> str:
        """Hash of Config, data and trainer version."""
        return trial_id(self.config, self.data_fingerprint, TRAINER_VERSION)


def run_pack(
    specs: Sequence[TrialSpec],
    data: Jets | JetData,
    storage: Storage,
    device: str = "cpu",
    report: Report | None = None,
    ended: Ended | None = None,
    *,
    prune: Prune | None = None,
    engine: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> list[Record]:
    """Train, judge, and write the records of trials together; each continues from its checkpoint when there is one.

    Records and checkpoints are each trial's own: after a crash it may go on alone or in another pack.

    Parameters
    ----------
    specs : sequence of TrialSpec
        Trials that agree in what a pack shares (:func:`jbot.trainer.pack.pack_key`); one is the ordinary case.
    data : Jets or JetData
        By jet pT; jets alone are those of the pT that the trials ask for.
    device : str
        A torch device.
    report : callable, optional
        Called with new rows of learning curves, each with its trial, all those of an epoch at once. Names in a row of
        a fine-tuning start with the run's: ``finetune_10/epoch``.
    ended : callable, optional
        Called with a trial and its record as soon as that is written: a trial that fails ends before the others.
    prune : callable, optional
        Asked at each new point of a learning curve whether a search gives the trial up: the reason, or None. A pruned
        trial keeps its checkpoint beside its record, and goes on from it where it is wanted whole.
    engine : str
        What computes encoder and head, see :mod:`jbot.trainer.engines.select`.
    dtype : torch dtype
        Of weights and jets. Results are made in float32; float64 is for tests of equality.

    Returns
    -------
    list of Record
        One a spec, in order; those that were there already are not run again, but for pruned ones.

    Raises
    ------
    PackError
        When the trials cannot share a pack.
    Exception
        What judging a trial raised, be it a bug or a lack of memory: after the others have their records. It has none.
    """
    check_shared([spec.config for spec in specs])
    records = {spec.trial_id: record for spec in specs if (record := load_whole(storage, spec.trial_id))}
    for ended_before in records:  # of an attempt that died between record and tidying
        storage.remove(checkpoint_folder(ended_before))
    todo = list({spec.trial_id: spec for spec in specs if spec.trial_id not in records}.values())
    if todo:
        found = find_engine(engine, todo[0].config, torch.device(device), dtype)
        jets = data if isinstance(data, Jets) else Jets({todo[0].config.data.jet_pt: data})
        ride = Ride(todo, jets, storage, torch.device(device), dtype, report, ended, prune, found)
        ride.tell_borrowed()
        train(ride.configs, ride.particles, ride.rows, ride.state, ride.probe, ride.after_epoch, found.forward)
        ride.finetune()
        for trial in range(len(todo)):
            ride.conclude(trial)
        if ride.errors:
            raise next(iter(ride.errors.values()))
        records |= ride.records
    return [records[spec.trial_id] for spec in specs]


class Ride:
    """The trials of a pack on their way from checkpoints to records."""

    def __init__(
        self,
        specs: list[TrialSpec],
        all_jets: Jets,
        storage: Storage,
        device: torch.device,
        dtype: torch.dtype,
        report: Report | None,
        ended: Ended | None,
        prune: Prune | None,
        engine: Engine,
    ):
        self.checkpoints = [Checkpoint(storage, spec.trial_id) for spec in specs]
        for checkpoint in self.checkpoints:
            checkpoint.claim()
        self.meter = Meter(device)
        self.specs, self.all_jets, self.storage, self.device, self.engine = specs, all_jets, storage, device, engine
        self.report, self.ended, self.prune = report, ended, prune
        self.configs = [spec.config for spec in specs]
        self.data = all_jets.at(self.configs[0].data.jet_pt)
        self.encoders = [self._encoder(spec) for spec in specs]
        started = [
            checkpoint.start(spec, encoder, device, dtype)
            for checkpoint, spec, encoder in zip(self.checkpoints, specs, self.encoders, strict=True)
        ]
        self.state = join_states(started)
        self.particles = resident(self.data, self.configs[0].data.particles, device, dtype)
        parts = functools.cache(functools.partial(prepare, data=self.data, particles=self.particles))
        jets = [parts(config.data, config.probe.bank_jets) for config in self.configs]
        self.rows = [rows for rows, _ in jets]
        self.runs = [self._runs(trial, judged["val"].rows) for trial, (_, judged) in enumerate(jets)]
        self.tuned: list[dict[str, FinetuneState]] = [{} for _ in specs]
        """Of each trial, its fine-tunings by name: views of the packs in which they step."""
        fp32 = override(self.configs[0], {"train.precision": "fp32"})
        self.judge = find_engine("fused", fp32, device, dtype)  # compiling does not pay for the few calls of a probe
        self.evaluators = [
            Evaluator(config, judged["bank"], judged["val"], judged["test"], self.judge.forward, others)
            for config, (_, judged), others in zip(self.configs, jets, self._elsewhere(dtype), strict=True)
        ]
        self.sent = [0] * len(specs)
        self.records: dict[str, Record] = {}
        self.pruned: set[int] = set()
        """Trials that a search gave up: the reason is that of their progress."""
        self.errors: dict[int, Exception] = {}
        """What is no outcome of a trial but ended it: the others go on, then it is raised."""

    def _encoder(self, spec: TrialSpec) -> str:
        """The id under which trials that differ in what is judged alone share an encoder."""
        trained, jets = plain(spec.config), spec.data_fingerprint
        if other_pts(spec.config):
            jets = self.all_jets.fingerprint(trained)
        return trial_id(trained, jets, TRAINER_VERSION)

    def tell_borrowed(self) -> None:
        """Learning curves of trials that take the encoder of another one."""
        rows: list[tuple[TrialSpec, dict[str, Any]]] = []
        for trial in (trial for trial, checkpoint in enumerate(self.checkpoints) if checkpoint.continues_now()):
            rows += [(self.specs[trial], row) for row in self.state.progress[trial].curves]
            self.sent[trial] = len(self.state.progress[trial].curves)
        if self.report and rows:
            self.report(rows)

    def _elsewhere(self, dtype: torch.dtype) -> list[dict[float, OtherJets]]:
        """Of each trial, the jets of other pTs on which it is judged too: as many, of the same classes."""
        found: list[dict[float, OtherJets]] = [{} for _ in self.specs]
        for pt in other_pts(self.configs[0]):
            data = self.all_jets.at(pt)
            particles = resident(data, self.configs[0].data.particles, self.device, dtype)
            parts = functools.cache(functools.partial(prepare, data=data, particles=particles))
            for others, config in zip(found, self.configs, strict=True):
                few = dataclasses.replace(config.data, train_jets=config.bank_jets, labeled_jets=0)
                _, judged = parts(few, config.bank_jets)
                others[pt] = OtherJets(bank=judged["bank"], test=judged["test"])
        return found

    def probe(self, trial: int, state: TrainState) -> Metrics:
        """A point of a trial's learning curves."""
        try:
            return self.evaluators[trial].curve_point(state)
        except TrialFailed:
            raise
        except Exception as error:
            self.errors[trial] = error
            raise TrialFailed(repr(error)) from error

    def after_epoch(self, trials: list[int]) -> None:
        """Save, tell, and end what has failed."""
        self.meter.sample()
        for trial in trials:
            if self.state.progress[trial].reason is None:
                spec, judge, state = self.specs[trial], self.evaluators[trial], self.state.row(trial)
                save_snapshot(self.storage, spec.trial_id, spec.config, state, judge.test, judge.forward)
                self.checkpoints[trial].save_if_due(state)
        rows = []
        for trial in trials:
            curves = self.state.progress[trial].curves
            rows += [(self.specs[trial], row) for row in curves[self.sent[trial] :]]
            self.sent[trial] = len(curves)
        if self.report and rows:
            self.report(rows)
        self._ask_prune(trials, rows)
        for trial in trials:
            if self.state.progress[trial].reason is not None:
                self.conclude(trial)

    def _ask_prune(self, trials: list[int], rows: list[tuple[TrialSpec, dict[str, Any]]]) -> None:
        """End what a search gives up, once its checkpoint is saved."""
        for trial in trials if self.prune else ():
            progress, spec = self.state.progress[trial], self.specs[trial]
            reasons = (self.prune(spec, row) for of, row in rows if of is spec and self.prune)
            if progress.reason is None and (why := next(filter(None, reasons), None)):
                self.checkpoints[trial].save(self.state.row(trial))
                self.pruned.add(trial)
                progress.reason = why

    def _runs(self, trial: int, val: Int64[Tensor, "_"]) -> list[Run]:
        """A trial's fine-tunings. Made before its pre-training, of whose weights they are views: bad input stops it."""

        def labeled(rows: Int64[Tensor, "_"]) -> LabeledRows:
            found = targets(self.data.labels[rows.cpu().numpy()], self.configs[trial].data.task)
            return LabeledRows(rows=rows, targets=torch.from_numpy(found).to(rows.device))

        return runs_of(self.configs[trial], self.state.student[trial], labeled(self.rows[trial]), labeled(val))

    def finetune(self) -> None:
        """Fine-tune what is pre-trained, runs of equal shapes together; nothing of before is computed again."""
        packs: dict[Any, list[tuple[int, Run]]] = {}
        for trial in range(len(self.specs)):
            if self.runs[trial] and not self._has_ended(trial):
                self.tuned[trial] = self.checkpoints[trial].load_tuned(self.runs[trial], self.state.row(trial))
                self.checkpoints[trial].save(self.state.row(trial), self.tuned[trial])
                for run in self.runs[trial]:
                    packs.setdefault(pack_key(run), []).append((trial, run))
        for all_members in packs.values():
            members = [(trial, run) for trial, run in all_members if trial not in self.errors]
            try:
                self._finetune_together(members)
            except Exception as error:
                self.errors |= {trial: error for trial, _ in members}

    def _finetune_together(self, members: list[tuple[int, Run]]) -> None:
        if not members:
            return
        state = join_states([self.tuned[trial][run.name] for trial, run in members])
        for row, (trial, run) in enumerate(members):
            self.tuned[trial][run.name] = state.row(row)
        after = functools.partial(self.after_finetune_epoch, members)
        finetune([run for _, run in members], self.particles, state, after, self.judge.forward)

    def after_finetune_epoch(self, members: list[tuple[int, Run]], done: list[int]) -> None:
        """Save, and tell."""
        self.meter.sample()
        for trial in {members[number][0] for number in done}:
            self.checkpoints[trial].save_if_due(self.state.row(trial), self.tuned[trial])
        if self.report:
            rows = []
            for trial, run in (members[number] for number in done):
                last = finite(self.tuned[trial][run.name].progress[0].curves[-1:])[0]
                rows.append((self.specs[trial], {f"{run.name}/{name}": value for name, value in last.items()}))
            self.report(rows)

    def _has_ended(self, trial: int) -> bool:
        return self.specs[trial].trial_id in self.records or trial in self.errors

    def conclude(self, trial: int) -> None:
        """Write the record of a trial that has trained to the end or failed, once."""
        spec = self.specs[trial]
        if self._has_ended(trial):
            return
        state, evaluator = self.state.row(trial), self.evaluators[trial]
        measured: dict[str, Measured] = {}
        settings: dict[str, Any] = {}
        (progress,) = state.progress
        try:
            if progress.reason is None:
                judgement, measured = final_metrics(spec.config, state, evaluator)
                measured |= raw_floor(self.storage, spec.data_fingerprint, evaluator)
                settings = judgement.settings
                for run in self.runs[trial]:
                    measured |= self._judge_tuned(trial, run, judgement)
                save_scores(self.storage, spec, judgement, evaluator.test)
                last = at_epoch(spec.config, progress.epoch)
                save_pictures(self.storage, spec.trial_id, last, state, evaluator.test, evaluator.forward)
        except TrialFailed as failure:
            progress.reason = str(failure)
        except Exception as error:
            self.errors[trial] = error
            return
        if self._was_overtaken(trial):
            return
        weights = save_weights(self.storage, spec, state)
        if spec.config.train.until and progress.reason is None:
            save_state(self.storage, spec.trial_id, state)
        self.storage.write_rows(f"{trial_folder(spec.trial_id)}/curves.parquet", finite(progress.curves))
        self._save_tuned(trial)
        self.records[spec.trial_id] = self._record(trial, progress, measured, settings)
        save_card(self.storage, self.records[spec.trial_id])
        save_record(self.storage, self.records[spec.trial_id])
        if progress.reason is None:
            lend_encoder(self.storage, spec.trial_id, self.encoders[trial], weights)
        if trial not in self.pruned and self.checkpoints[trial].is_ours():
            self.checkpoints[trial].remove()
        if self.ended:
            self.ended(spec, self.records[spec.trial_id])

    def _was_overtaken(self, trial: int) -> bool:
        """Whether another attempt has ended the trial meanwhile: one that was given up for dead, or the one after."""
        spec = self.specs[trial]
        record = load_whole(self.storage, spec.trial_id)
        if record is None:
            return False
        self.records[spec.trial_id] = record
        if self.checkpoints[trial].is_ours():
            self.checkpoints[trial].remove()
        if self.ended:
            self.ended(spec, record)
        return True

    def _judge_tuned(self, trial: int, run: Run, judgement: Judgement) -> dict[str, Measured]:
        """A fine-tuned classifier's metrics on the test jets; none of one that diverged. Counted as probe seconds."""
        started, test, state = time.perf_counter(), self.evaluators[trial].test, self.tuned[trial][run.name]
        if state.progress[0].reason is not None:
            return {}
        found = class_probabilities_of(
            state.best, self.particles, test.rows, run.config, run.classes, self.judge.forward
        )
        probabilities = found.cpu().numpy()
        right = targets(test.labels, run.config.data.task)
        named = classification(probabilities, right, list(TARGETS[run.config.data.task]))
        judgement.scores[f"{run.name}/probability"] = probabilities
        self.state.progress[trial].probe_seconds += time.perf_counter() - started
        return {f"test/{run.name}_{metric}": one for metric, one in named.items()}

    def _save_tuned(self, trial: int) -> None:
        """Curves of a trial's fine-tunings, and the best weights of those that did not diverge."""
        folder, rows = trial_folder(self.specs[trial].trial_id), []
        for run in self.runs[trial] if self.tuned[trial] else []:
            state = self.tuned[trial][run.name]
            rows += [{"run": run.name} | row for row in finite(state.progress[0].curves)]
            if state.progress[0].reason is None:
                arrays = named_classifier(state.best, run)
                self.storage.write_arrays(f"{folder}/classifier_{run.name}.safetensors", arrays)
        if rows:
            self.storage.write_rows(f"{folder}/finetune.parquet", rows)

    def _engine(self) -> dict[str, Any]:
        why = {"engine_why": self.engine.why} if self.engine.why else {}
        return {"engine": self.engine.name} | why

    def _record(
        self, trial: int, progress: Progress, measured: dict[str, Measured], settings: dict[str, Any]
    ) -> Record:
        spec, checkpoint = self.specs[trial], self.checkpoints[trial]
        tuned = {name: state.progress[0] for name, state in self.tuned[trial].items()}
        finetune_seconds = sum(one.seconds for one in tuned.values())
        return Record(
            trial_id=spec.trial_id,
            state="complete" if progress.reason is None else "pruned" if trial in self.pruned else "failed",
            reason=progress.reason,
            study=spec.study,
            arm=spec.arm,
            plan_hash=spec.plan_hash,
            config=to_dict(spec.config),
            data={"fingerprint": spec.data_fingerprint, "source": self.all_jets.source_of(spec.config)},
            metrics={name: one.value for name, one in measured.items() if np.isfinite(one.value)},
            uncertainties=uncertainties(measured),
            anomaly_settings=settings,
            missing={name: one.reason for name, one in tuned.items() if one.reason is not None},
            trainer_version=TRAINER_VERSION,
            git_commit=spec.git_commit,
            libraries=library_versions(),
            hardware=hardware(self.device),
            resources={"pack": len(self.specs)} | self._engine() | self.meter.read(),
            started=checkpoint.history["started"],
            wall_seconds=round(checkpoint.wall_seconds(), 3),
            device_seconds=round(progress.train_seconds + finetune_seconds + progress.probe_seconds, 3),
            probe_seconds=round(progress.probe_seconds, 3),
            finetune_seconds=round(finetune_seconds, 3),
            attempts=max(checkpoint.history["attempts"], attempts_begun(self.storage, spec.trial_id)),
            continues=checkpoint.history["continues"],
            shared_seconds=round(checkpoint.history["shared_seconds"], 3),
        )


class Checkpoint:
    """The state of one unfinished trial: arrays first, then the small JSON file that names them."""

    def __init__(self, storage: Storage, trial: str):
        self.storage, self.trial, self.folder = storage, trial, checkpoint_folder(trial)
        self.history: dict[str, Any] = {}
        self.attempt, self.name = 0, ""
        self.anew = True
        """Whether this attempt found nothing to go on from."""
        self.started = self.saved = time.perf_counter()

    def claim(self) -> None:
        """Begin an attempt, even one that dies at once: what earlier ones left half written goes."""
        self.attempt = attempts_begun(self.storage, self.trial) + 1
        self.name = note_attempt(self.storage, self.trial, self.attempt)
        for folder in (trial_folder(self.trial), self.folder):
            self.storage.sweep(folder)

    def is_ours(self) -> bool:
        """Whether no other attempt has begun since, and none has ended the trial."""
        return is_newest(self.storage, self.trial, self.attempt, self.name)

    def start(
        self, spec: TrialSpec, encoder: str, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> TrainState:
        """The state to begin with, a pack of one.

        Its own of before, else the encoder or the beginning of this trial that another one has trained, else a fresh
        one.
        """
        state, self.history = self.load(spec.config, device, dtype)
        self.anew = self.history["attempts"] == 0
        if self.anew:
            state, other = borrow_encoder(self.storage, spec.trial_id, spec.config, encoder, state)
            if other is None:
                found = continue_other(self.storage, spec.trial_id, spec.config, spec.data_fingerprint, state)
                state, other = found
            (progress,) = state.progress
            self.history |= {"continues": other, "shared_seconds": progress.train_seconds + progress.probe_seconds}
        self.history["attempts"] = max(self.history["attempts"] + 1, self.attempt)
        self.started = time.perf_counter()
        self.save(state)
        return state

    def continues_now(self) -> bool:
        """Whether this attempt has begun with what another trial has trained."""
        return self.anew and self.history["continues"] is not None

    def load(self, config: Config, device: torch.device, dtype: torch.dtype) -> tuple[TrainState, dict[str, Any]]:
        """The saved state, or a fresh one; and what earlier attempts leave: attempts, seconds, first start.

        Raises
        ------
        UnreadableError
            When the storage fails: a checkpoint that may be whole is not to be replaced by a fresh one.
        """
        fresh = init_state(config, [config.seed], device, dtype)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        history = {"attempts": 0, "wall_seconds": 0.0, "started": started, "continues": None, "shared_seconds": 0.0}
        if not self.storage.exists(f"{self.folder}/state.json"):
            return fresh, history
        try:
            saved, arrays = self._read("state")
            tensors = like(fresh, arrays, "", device)
            progress = Progress(**typed(saved["state"], PROGRESS))
            return fresh.of(tensors, [progress]), typed(saved["history"], HISTORY)
        except UnreadableError:
            raise
        except (RecordError, KeyError, TypeError) as error:
            warnings.warn(f"checkpoint of trial {self.folder} is damaged, starting over: {error}", stacklevel=2)
            return fresh, history

    def wall_seconds(self) -> float:
        """Of all attempts so far."""
        return float(self.history["wall_seconds"] + time.perf_counter() - self.started)

    def load_tuned(self, runs: Sequence[Run], trained: TrainState) -> dict[str, FinetuneState]:
        """The saved state of each fine-tuning, a pack of one; a fresh one when none was saved. Raises as `load`."""
        device, dtype = trained.student.device, trained.student.dtype
        fresh = {run.name: init_finetune([run], device, dtype) for run in runs}
        if not self.storage.exists(f"{self.folder}/finetune.json"):
            return fresh
        try:
            saved, arrays = self._read("finetune")
            return {
                name: state.of(
                    like(state, arrays, f"{name}/", device),
                    [FinetuneProgress(**typed(saved["runs"][name], FINETUNE_PROGRESS))],
                )
                for name, state in fresh.items()
            }
        except UnreadableError:
            raise
        except (RecordError, KeyError, TypeError) as error:
            warnings.warn(f"fine-tunings of {self.folder} are damaged, starting them over: {error}", stacklevel=2)
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
        history = self.history | {"wall_seconds": self.wall_seconds()}
        self._write("state", state.epoch, state.tensors(), {"state": progress_of(state), "history": history})
        if tuned:
            tensors = {f"{run}/{name}": x for run, one in tuned.items() for name, x in one.tensors().items()}
            runs = {
                run: vars(one.progress[0]) | {"curves": finite(one.progress[0].curves)} for run, one in tuned.items()
            }
            self._write("finetune", sum(one.epoch for one in tuned.values()), tensors, {"runs": runs})

    def _write(self, part: str, number: int, tensors: Mapping[str, Tensor], content: dict[str, Any]) -> None:
        """Arrays under a name of their own, then the JSON file that names them, then away with those of before."""
        arrays = f"{part}-{number:06d}.safetensors"
        named = {"arrays": arrays, "sha256": self.storage.write_arrays(f"{self.folder}/{arrays}", as_arrays(tensors))}
        self.storage.write_json(f"{self.folder}/{part}.json", sealed(named | content))
        for name in self.storage.names(self.folder):
            if name.startswith(f"{part}-") and name != arrays:
                self.storage.remove_file(f"{self.folder}/{name}")

    def _read(self, part: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What `_write` has written."""
        saved = unsealed(self.storage.read_json(f"{self.folder}/{part}.json"))
        name = f"{self.folder}/{saved['arrays']}"
        if saved.get("sha256", whole := hashlib.sha256(self.storage.read(name)).hexdigest()) != whole:
            raise RecordError(f"{name} is not what was written")
        return saved, self.storage.read_arrays(name)

    def remove(self) -> None:
        """The record has replaced it."""
        self.storage.remove(self.folder)


def resident(
    data: JetData, particles: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "jet particle 4"]:
    """All jets, with their leading particles, once on the device for every trial; on a CPU without a copy."""
    return shared_tensor(data.particles)[:, :particles].to(device, dtype)


def prepare(
    wanted: DataConfig, bank_jets: int, *, data: JetData, particles: Float[Tensor, "jet particle 4"]
) -> tuple[Int64[Tensor, "train"], dict[str, LabeledJets]]:
    """Which jets to train on, as rows of `particles`; and those that judge: bank (the head of train), val, test."""
    parts = split(data.labels, task=wanted.task, train=wanted.set_aside, val=wanted.val_jets, test=wanted.test_jets)
    judged = {}
    for name, rows in {"bank": parts.train[:bank_jets], "val": parts.val, "test": parts.test}.items():
        index = torch.from_numpy(rows).to(particles.device)
        judged[name] = LabeledJets(particles=particles, rows=index, labels=data.labels[rows])
    return torch.from_numpy(parts.train[: wanted.train_jets]).to(particles.device), judged


def final_metrics(config: Config, state: TrainState, evaluator: Evaluator) -> tuple[Judgement, dict[str, Measured]]:
    """The trained encoder on the test jets, also of other pTs; and its metrics with those before training, the floor.

    Counted as probe seconds.
    """
    started = time.perf_counter()
    untrained = init_state(config, [config.seed], state.student.device, state.student.dtype)
    floor, judgement = evaluator.final(untrained, folds=False), evaluator.final(state, scan=config.anomaly.scan)
    measured = {f"test/{name}": one for name, one in judgement.measured.items()}
    measured |= {f"untrained/test/{name}": one for name, one in floor.measured.items()}
    measured |= evaluator.elsewhere(state)
    measured |= {f"untrained/{name}": one for name, one in evaluator.elsewhere(untrained, floor=True).items()}
    measured |= {alias: measured[name] for alias, name in own_pt_names(config).items()}
    state.progress[0].probe_seconds += time.perf_counter() - started
    return judgement, measured


def raw_floor(storage: Storage, fingerprint: str, evaluator: Evaluator) -> dict[str, Measured]:
    """Metrics without an encoder. They are the same in every trial with these jets: the first one leaves them here."""
    config = evaluator.config
    asked = [fingerprint, to_dict(config)["data"], config.probe.bank_jets, config.probe.knn_k, TRAINER_VERSION]
    name = f"floors/raw-{digest(asked)}.json"
    try:
        found = {metric: Measured(**parts) for metric, parts in unsealed(storage.read_json(name)).items()}
    except (RecordError, AttributeError, TypeError):  # not there yet, or damaged: made again
        found = {metric: one for metric, one in evaluator.raw().items() if np.isfinite(one.value)}
        known = uncertainties(found)
        told = {metric: {"value": one.value} | known.get(metric, {}) for metric, one in found.items()}
        storage.write_json(name, sealed(told))
    return {f"raw/test/{metric}": one for metric, one in found.items()}


def save_scores(storage: Storage, spec: TrialSpec, judgement: Judgement, test: LabeledJets) -> None:
    """What ROC curves and histograms are made of: a row a test jet, and its class label."""
    arrays = judgement.scores | {"label": test.labels}
    storage.write_arrays(f"{trial_folder(spec.trial_id)}/scores.safetensors", arrays)


def save_weights(storage: Storage, spec: TrialSpec, state: TrainState) -> str:
    """The student by weight name, without the trial axis; returns the file's sha256."""
    weights = named_weights(state.student, spec.config.model)
    return storage.write_arrays(f"{trial_folder(spec.trial_id)}/student.safetensors", weights)


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


def hardware(device: torch.device) -> dict[str, Any]:
    """Where it ran."""
    found: dict[str, Any] = {"host": platform.node(), "machine": platform.machine(), "cores": os.cpu_count()}
    found |= {"device": str(device), "threads": torch.get_num_threads(), "cpu": _cpu_name()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())

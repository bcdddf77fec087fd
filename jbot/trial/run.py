"""Run trials on this machine, as a pack, and leave their records: the same function under Ray and inline."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from jbot import TRAINER_VERSION
from jbot.config import at_epoch, override, to_dict
from jbot.data import JetData, Jets
from jbot.evaluation.evaluator import Evaluator
from jbot.evaluation.metrics import Measured, uncertainties
from jbot.evaluation.metrics_registry import other_pts
from jbot.store.attempts import attempts_begun, checkpoint_folder
from jbot.store.record import Record, TrialSpec, load_whole, save_record, trial_folder
from jbot.store.storage import Storage
from jbot.trainer.engines.select import Engine, find_engine
from jbot.trainer.finetune import FinetuneState, Run, finetune, label, named_classifier, pack_key, runs_of
from jbot.trainer.inputs import LabeledJets, prepare, resident
from jbot.trainer.loop import Metrics, TrialFailed, train
from jbot.trainer.model import named_weights
from jbot.trainer.pack import check_shared
from jbot.trainer.state import Progress, TrainState, join_states
from jbot.trial.card import save_card
from jbot.trial.checkpoint import Checkpoint, finite, progress_of, write_state
from jbot.trial.evaluate import classifier_metrics, final_metrics, raw_feature_baseline
from jbot.trial.provenance import ResourceUsage, hardware, library_versions
from jbot.trial.reuse import STATE, encoder_id, publish_encoder, start
from jbot.trial.snapshots import save_pictures, save_snapshot

Row = tuple[TrialSpec, dict[str, Any]]
"""A trial, and a new point of its learning curves."""
Report = Callable[[list[Row]], None]
Ended = Callable[[TrialSpec, Record], None]
Prune = Callable[[TrialSpec, dict[str, Any]], str | None]


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
    """Train, evaluate, and write the records of trials together; each continues from its checkpoint when there is one.

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
        That of weights and jets. Results are made in float32; float64 is for tests of equality.

    Returns
    -------
    list of Record
        One per spec, in order; those that were there already are not run again, but for pruned ones.

    Raises
    ------
    PackError
        When the trials cannot share a pack.
    Exception
        What evaluating a trial raised, be it a bug or a lack of memory: after the others have their records; it has
        none.
    """
    check_shared([spec.config for spec in specs])
    records = {spec.trial_id: record for spec in specs if (record := load_whole(storage, spec.trial_id))}
    for ended_before in records:  # of an attempt that died between record and cleanup
        storage.remove(checkpoint_folder(ended_before))
    todo = list({spec.trial_id: spec for spec in specs if spec.trial_id not in records}.values())
    if todo:
        chosen = find_engine(engine, todo[0].config, torch.device(device), dtype)
        jets = data if isinstance(data, Jets) else Jets({todo[0].config.data.jet_pt: data})
        run = PackRun(todo, jets, storage, torch.device(device), dtype, report, ended, prune, chosen)
        run.pretrain()
        run.finetune()
        for trial in range(len(todo)):
            run.conclude(trial)
        if run.errors:
            raise next(iter(run.errors.values()))
        records |= run.records
    return [records[spec.trial_id] for spec in specs]


@dataclasses.dataclass(eq=False)
class PackRun:
    """The trials of a pack on their way from checkpoints to records."""

    specs: list[TrialSpec]
    all_jets: Jets
    storage: Storage
    device: torch.device
    dtype: torch.dtype
    report: Report | None
    ended: Ended | None
    prune: Prune | None
    engine: Engine

    def __post_init__(self) -> None:
        specs, all_jets, device, dtype = self.specs, self.all_jets, self.device, self.dtype
        self.checkpoints = [Checkpoint(self.storage, spec.trial_id) for spec in specs]
        for checkpoint in self.checkpoints:
            checkpoint.claim()
        self.usage = ResourceUsage(device)
        self.configs = [spec.config for spec in specs]
        self.data = all_jets.at(self.configs[0].data.jet_pt)
        self.encoders = [encoder_id(spec.config, spec.data_fingerprint, all_jets) for spec in specs]
        self.state = join_states(
            [
                start(checkpoint, spec.config, spec.data_fingerprint, encoder, device, dtype)
                for checkpoint, spec, encoder in zip(self.checkpoints, specs, self.encoders, strict=True)
            ]
        )
        self.particles, prepared = self._prepared(self.data)
        jets = [prepared(config.data, config.probe.bank_jets) for config in self.configs]
        self.rows = [rows for rows, _ in jets]
        # Fine-tunings are made before what they fine-tune is trained, as views of its weights: bad input stops it.
        self.runs: list[list[Run]] = []
        for config, student, (rows, splits) in zip(self.configs, self.state.student, jets, strict=True):
            train_rows, val_rows = (label(x, self.data.labels, config.data.task) for x in (rows, splits["val"].rows))
            self.runs.append(runs_of(config, student, train_rows, val_rows))
        self.tuned: list[dict[str, FinetuneState]] = [{} for _ in specs]
        """For each trial, its fine-tunings by name: views of the packs in which they step."""
        fp32 = override(self.configs[0], {"train.precision": "fp32"})
        self.forward = find_engine("fused", fp32, device, dtype).forward
        """Encoder and head of probes: compiling does not pay for their few calls."""
        self.evaluators = [
            Evaluator(config, splits["bank"], splits["val"], splits["test"], splits["signal"], self.forward, others)
            for config, (_, splits), others in zip(self.configs, jets, self._elsewhere(), strict=True)
        ]
        self.sent = [0] * len(specs)
        """Reported rows of each trial's learning curves."""
        self.records: dict[str, Record] = {}
        self.pruned: set[int] = set()
        """Trials that a search gave up: the reason is that of their progress."""
        self.errors: dict[int, Exception] = {}
        """Errors that are no outcome of a trial but ended it: the others go on, then the first is raised."""

    def _elsewhere(self) -> list[dict[float, tuple[LabeledJets, LabeledJets]]]:
        """For each trial, the jets of other pTs on which it is evaluated too: as many, of the same classes."""
        elsewhere: list[dict[float, tuple[LabeledJets, LabeledJets]]] = [{} for _ in self.specs]
        for pt in other_pts(self.configs[0]):
            _, prepared = self._prepared(self.all_jets.at(pt))
            for others, config in zip(elsewhere, self.configs, strict=True):
                few = dataclasses.replace(config.data, train_jets=config.bank_jets, labeled_jets=0)
                _, splits = prepared(few, config.bank_jets)
                others[pt] = splits["bank"], splits["test"]
        return elsewhere

    def _prepared(self, data: JetData) -> tuple[torch.Tensor, Callable[..., Any]]:
        """Particles on the device, and `prepare` on them: trials of the same jets share one result."""
        particles = resident(data, self.configs[0].data.particles, self.device, self.dtype)
        return particles, functools.cache(functools.partial(prepare, data=data, particles=particles))

    # --- pre-training ---

    def pretrain(self) -> None:
        """Train every trial to its last epoch; one that fails is concluded at once."""
        self._report_new([trial for trial, checkpoint in enumerate(self.checkpoints) if checkpoint.reuses()])
        train(self.configs, self.particles, self.rows, self.state, self.probe, self.after_epoch, self.engine.forward)

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
        """Save, report, and end what has failed."""
        self.usage.sample()
        for trial in trials:
            if self.state.progress[trial].reason is None:
                spec, evaluator, state = self.specs[trial], self.evaluators[trial], self.state.row(trial)
                save_snapshot(self.storage, spec.trial_id, spec.config, state, evaluator.test, evaluator.forward)
                self.checkpoints[trial].save_if_due(state)
        self._ask_prune(trials, self._report_new(trials))
        for trial in trials:
            if self.state.progress[trial].reason is not None:
                self.conclude(trial)

    def _report_new(self, trials: list[int]) -> list[Row]:
        """Report the points of learning curves that were not reported yet, and return them."""
        rows: list[Row] = []
        for trial in trials:
            curves = self.state.progress[trial].curves
            rows += [(self.specs[trial], row) for row in curves[self.sent[trial] :]]
            self.sent[trial] = len(curves)
        if self.report and rows:
            self.report(rows)
        return rows

    def _ask_prune(self, trials: list[int], rows: list[Row]) -> None:
        """End what a search gives up, once its checkpoint is saved."""
        for trial in trials if self.prune else ():
            progress, spec = self.state.progress[trial], self.specs[trial]
            reasons = (self.prune(spec, row) for of, row in rows if of is spec and self.prune)
            if progress.reason is None and (why := next(filter(None, reasons), None)):
                self.checkpoints[trial].save(self.state.row(trial))
                self.pruned.add(trial)
                progress.reason = why

    # --- fine-tuning ---

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
            if not members:
                continue
            try:
                state = join_states([self.tuned[trial][run.name] for trial, run in members])
                for row, (trial, run) in enumerate(members):
                    self.tuned[trial][run.name] = state.row(row)
                after = functools.partial(self.after_finetune_epoch, members)
                finetune([run for _, run in members], self.particles, state, after, self.forward)
            except Exception as error:
                self.errors |= {trial: error for trial, _ in members}

    def after_finetune_epoch(self, members: list[tuple[int, Run]], done: list[int]) -> None:
        """Save, and report."""
        self.usage.sample()
        for trial in {members[number][0] for number in done}:
            self.checkpoints[trial].save_if_due(self.state.row(trial), self.tuned[trial])
        if self.report:
            rows = []
            for trial, run in (members[number] for number in done):
                last = finite(self.tuned[trial][run.name].progress[0].curves[-1:])[0]
                rows.append((self.specs[trial], {f"{run.name}/{name}": value for name, value in last.items()}))
            self.report(rows)

    # --- the end of a trial ---

    def _has_ended(self, trial: int) -> bool:
        return self.specs[trial].trial_id in self.records or trial in self.errors

    def conclude(self, trial: int) -> None:
        """Write the record of a trial that has trained to the end or failed, once."""
        if self._has_ended(trial):
            return
        try:
            measured, settings = self._evaluate(trial)
        except Exception as error:
            self.errors[trial] = error
            return
        spec, checkpoint, keeps_state = self.specs[trial], self.checkpoints[trial], trial in self.pruned
        if record := load_whole(self.storage, spec.trial_id):
            keeps_state = False  # another attempt has ended it: one given up for dead, or the one after
        else:
            record = self._save(trial, measured, settings)
        self.records[spec.trial_id] = record
        if not keeps_state and checkpoint.is_ours():
            checkpoint.remove()
        if self.ended:
            self.ended(spec, record)

    def _evaluate(self, trial: int) -> tuple[dict[str, Measured], dict[str, Any]]:
        """Metrics of a trial and settings of its anomaly scores; one with an unusable embedding fails."""
        spec, state, evaluator = self.specs[trial], self.state.row(trial), self.evaluators[trial]
        measured: dict[str, Measured] = {}
        settings: dict[str, Any] = {}
        (progress,) = state.progress
        if progress.reason is not None:
            return measured, settings
        try:
            result, measured = final_metrics(spec.config, state, evaluator)
            measured |= raw_feature_baseline(self.storage, spec.data_fingerprint, evaluator)
            settings = result.settings
            scores = result.scores | self._evaluate_tuned(trial, measured) | {"label": evaluator.test.labels}
            self.storage.write_arrays(f"{trial_folder(spec.trial_id)}/scores.safetensors", scores)
            last = at_epoch(spec.config, progress.epoch)
            save_pictures(self.storage, spec.trial_id, last, state, evaluator.test, evaluator.forward)
        except TrialFailed as failure:
            progress.reason = str(failure)
        return measured, settings

    def _evaluate_tuned(self, trial: int, measured: dict[str, Measured]) -> dict[str, np.ndarray]:
        """Add the metrics of fine-tuned classifiers that did not diverge; returns their class probabilities.

        Counted as probe seconds.
        """
        scores: dict[str, np.ndarray] = {}
        started = time.perf_counter()
        for run in self.runs[trial]:
            state = self.tuned[trial][run.name]
            if state.progress[0].reason is None:
                test = self.evaluators[trial].test
                probabilities, metrics = classifier_metrics(run, state, self.particles, test, self.forward)
                scores[f"{run.name}/probability"] = probabilities
                measured |= metrics
        if self.runs[trial]:
            self.state.progress[trial].probe_seconds += time.perf_counter() - started
        return scores

    def _save(self, trial: int, measured: dict[str, Measured], settings: dict[str, Any]) -> Record:
        """Leave all that a trial leaves; the record last."""
        spec, state, folder = self.specs[trial], self.state.row(trial), trial_folder(self.specs[trial].trial_id)
        (progress,) = state.progress
        weights = named_weights(state.student, spec.config.model)
        checksum = self.storage.write_arrays(f"{folder}/student.safetensors", weights)
        if spec.config.train.until and progress.reason is None:
            progress_json = {"state": progress_of(state)}
            write_state(self.storage, folder, STATE, f"{STATE}.safetensors", state.tensors(), progress_json)
        self.storage.write_rows(f"{folder}/curves.parquet", finite(progress.curves))
        rows = []
        for run in self.runs[trial] if self.tuned[trial] else []:
            tuned = self.tuned[trial][run.name]
            rows += [{"run": run.name} | row for row in finite(tuned.progress[0].curves)]
            if tuned.progress[0].reason is None:  # the best weights of what did not diverge
                arrays = named_classifier(tuned.best, run)
                self.storage.write_arrays(f"{folder}/classifier_{run.name}.safetensors", arrays)
        if rows:
            self.storage.write_rows(f"{folder}/finetune.parquet", rows)
        record = self._record(trial, progress, measured, settings)
        save_card(self.storage, record)
        save_record(self.storage, record)
        if progress.reason is None:
            publish_encoder(self.storage, spec.trial_id, self.encoders[trial], checksum)
        return record

    def _record(
        self, trial: int, progress: Progress, measured: dict[str, Measured], settings: dict[str, Any]
    ) -> Record:
        spec, checkpoint, engine = self.specs[trial], self.checkpoints[trial], self.engine
        tuned = {name: state.progress[0] for name, state in self.tuned[trial].items()}
        finetune_seconds = sum(one.seconds for one in tuned.values())
        chosen = {"pack": len(self.specs), "engine": engine.name} | ({"engine_why": engine.why} if engine.why else {})
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
            resources=chosen | self.usage.read(),
            started=checkpoint.history.started,
            wall_seconds=round(checkpoint.wall_seconds(), 3),
            device_seconds=round(progress.train_seconds + finetune_seconds + progress.probe_seconds, 3),
            probe_seconds=round(progress.probe_seconds, 3),
            finetune_seconds=round(finetune_seconds, 3),
            attempts=max(checkpoint.history.attempts, attempts_begun(self.storage, spec.trial_id)),
            continues=checkpoint.history.continues,
            shared_seconds=round(checkpoint.history.shared_seconds, 3),
        )

"""Metrics of a trained trial, beside the baselines it must beat: untrained, and without an encoder."""

from __future__ import annotations

import time

import numpy as np
from jaxtyping import Float
from torch import Tensor

from jbot import TRAINER_VERSION
from jbot.config import Config, differences, digest
from jbot.data.splits import TARGETS, targets
from jbot.evaluation.evaluator import EvaluationResult, Evaluator
from jbot.evaluation.metrics import Measured, classification, uncertainties
from jbot.evaluation.metrics_registry import metric_key, own_pt_names
from jbot.store.checksum import with_checksum, without_checksum
from jbot.store.storage import RecordError, Storage
from jbot.trainer.engines.select import Forward
from jbot.trainer.finetune import FinetuneState, Run, class_logits
from jbot.trainer.inputs import LabeledJets
from jbot.trainer.state import TrainState, init_state


def final_metrics(
    config: Config, state: TrainState, evaluator: Evaluator
) -> tuple[EvaluationResult, dict[str, Measured]]:
    """The trained encoder on the test jets, also of other pTs; and its metrics beside those before training.

    Counted as probe seconds.
    """
    started = time.perf_counter()
    untrained = init_state(config, [config.seed], state.student.device, state.student.dtype)
    before, result = evaluator.final(untrained, folds=False), evaluator.final(state, scan=config.anomaly.scan)
    measured = {metric_key(name): one for name, one in result.measured.items()}
    measured |= {metric_key(name, baseline="untrained"): one for name, one in before.measured.items()}
    measured |= evaluator.elsewhere(state)
    elsewhere = evaluator.elsewhere(untrained, baseline=True)
    measured |= {metric_key(name, "", "untrained"): one for name, one in elsewhere.items()}
    measured |= {alias: measured[name] for alias, name in own_pt_names(config).items()}
    state.progress[0].probe_seconds += time.perf_counter() - started
    return result, measured


def raw_feature_baseline(storage: Storage, fingerprint: str, evaluator: Evaluator) -> dict[str, Measured]:
    """Metrics without an encoder. They are the same in every trial with these jets: the first one leaves them here."""
    config = evaluator.config
    decide = ("data.", "probe.bank_jets", "probe.knn_k", "anomaly.bank_jets")
    used = {name: value for name, value in differences(config).items() if name.startswith(decide)}
    asked = [fingerprint, used, TRAINER_VERSION]
    name = f"floors/raw-{digest(asked)}.json"
    try:
        measured = {metric: Measured(**parts) for metric, parts in without_checksum(storage.read_json(name)).items()}
    except (RecordError, AttributeError, TypeError):  # not there yet, or damaged: made again
        measured = {metric: one for metric, one in evaluator.raw().items() if np.isfinite(one.value)}
        known = uncertainties(measured)
        saved = {metric: {"value": one.value} | known.get(metric, {}) for metric, one in measured.items()}
        storage.write_json(name, with_checksum(saved))
    return {metric_key(metric, baseline="raw"): one for metric, one in measured.items()}


def classifier_metrics(
    run: Run, state: FinetuneState, particles: Float[Tensor, "jet particle 4"], test: LabeledJets, forward: Forward
) -> tuple[Float[np.ndarray, "jet class"], dict[str, Measured]]:
    """A fine-tuned classifier on the test jets: class probabilities, and metrics by key."""
    config = run.config
    logits = class_logits(state.best, particles, test.rows, config, run.classes, forward)
    probabilities = logits.softmax(1).cpu().numpy()
    named = classification(probabilities, targets(test.labels, config.data.task), list(TARGETS[config.data.task]))
    return probabilities, {metric_key(f"{run.name}_{metric}"): one for metric, one in named.items()}

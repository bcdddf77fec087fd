"""The authors' released checkpoints as rows of the paper's tables: their weights, our jets, our metrics.

They were trained by the authors on JetNet, whose jets they may know better than ours. k-NN and linear probe and anomaly
scores are fitted on our training jets, as for our own encoders; fine-tuned and supervised classifiers are used as they
are. The files are found by the authors' names (https://github.com/hftsoi/jbot, folder models):

    <task>_backbone_pretrain_<dim>_<heads>_<layers>.weights.h5              k-NN, linear, anomaly scores
    <task>_backbone_ft_..., <task>_mlp_ft_...                               finetune_100; ..._data10: finetune_10
    <task>_backbone_standalone_..., <task>_mlp_standalone_...               supervised_100; ..._data10: supervised_10

What is found goes to <storage>/<study>/released/<task>_<size>.json; the same weights and jets are not evaluated again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.verdicts.paper_values import MODELS, RELEASED
from jbot import TRAINER_VERSION
from jbot.config import Config, differences, digest, from_dict, override
from jbot.data import DataError, Jets
from jbot.data.splits import TARGETS, targets
from jbot.encoder.keras_weights import KerasWeightsError, frozen_student, load_backbone, load_head
from jbot.evaluation.anomaly.detect import AnomalyError
from jbot.evaluation.evaluator import Evaluator
from jbot.evaluation.metrics import Measured, MetricError, classification, uncertainties
from jbot.store.plan import Plan
from jbot.store.storage import RecordError, Storage
from jbot.trainer.classifier import pack_classifier
from jbot.trainer.finetune import class_logits
from jbot.trainer.inputs import LabeledJets, prepare, resident
from jbot.trainer.loop import MIN_SPREAD, TrialFailed
from jbot.trainer.state import init_state

CLASSIFIERS = {
    "finetune_100": ("ft", ""),
    "finetune_10": ("ft", "_data10"),
    "supervised_100": ("standalone", ""),
    "supervised_10": ("standalone", "_data10"),
}
"""Our probe -> how the authors name its files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuthorCheckpoint:
    """The released files of one task and model size."""

    task: str
    size: tuple[int, int, int]
    folder: Path

    def path(self, part: str, kind: str, share: str = "") -> Path:
        """The file of ``backbone`` or ``mlp``, whether it is there or not."""
        return self.folder / f"{self.task}_{part}_{kind}_{'_'.join(map(str, self.size))}{share}.weights.h5"

    @property
    def encoder(self) -> Path:
        """The pre-trained encoder."""
        return self.path("backbone", "pretrain")

    @property
    def classifiers(self) -> dict[str, tuple[Path, Path]]:
        """Probe -> encoder and head, of those whose two files are there."""
        pairs = {
            probe: (self.path("backbone", kind, share), self.path("mlp", kind, share))
            for probe, (kind, share) in CLASSIFIERS.items()
        }
        return {probe: pair for probe, pair in pairs.items() if all(path.is_file() for path in pair)}

    @property
    def files(self) -> list[Path]:
        """Every file of it that is there."""
        found = [self.encoder, *(path for pair in self.classifiers.values() for path in pair)]
        return [path for path in found if path.is_file()]


def evaluate_checkpoints(folder: Path, plan: Plan, data: Jets, storage: Storage, say: Callable[[str], None]) -> bool:
    """Evaluate the released checkpoints of the plan's tasks on the plan's test jets; leaves a file each.

    A checkpoint that cannot be evaluated is a line, and the others are evaluated all the same.

    Returns
    -------
    bool
        Whether every one could be evaluated.

    Raises
    ------
    DataError
        When the folder holds no such checkpoint, or one cannot be read.
    """
    particles = functools.cache(lambda pt, count: resident(data.at(pt), count, torch.device("cpu")))
    whole = True
    for checkpoint, config in find_checkpoints(folder, plan):
        name = f"{plan.study}/{RELEASED}/{checkpoint.task}_{MODELS[checkpoint.size]}.json"
        wanted = identity(checkpoint, config, data)
        failed = _failed_before(storage, name, wanted)
        if failed is None:
            size, count = MODELS[checkpoint.size], config.data.test_jets
            say(f"evaluating the released {checkpoint.task} {size} on {count:,} test jets")
            own = config.data
            _, jets = prepare(
                own,
                config.probe.bank_jets,
                data=data.at(own.jet_pt),
                particles=particles(own.jet_pt, own.particles),
            )
            measured, failed = evaluate(checkpoint, config, jets)
            found = content(checkpoint, config, data, measured)
            storage.write_json(name, found | {"failed": failed, "identity": wanted})
        for file, why in failed.items():
            say(f"{folder / file} cannot be evaluated: {why}")
        whole = whole and not failed
    return whole


def find_checkpoints(folder: Path, plan: Plan) -> list[tuple[AuthorCheckpoint, Config]]:
    """The checkpoints of the plan's tasks in a folder, each with the Config it is evaluated by; every file is read.

    Raises
    ------
    DataError
        When there are none, or a file is damaged or of another model or task than its name says.
    """
    configs = task_configs(plan)
    checkpoints = [
        (AuthorCheckpoint(task=config.data.task, size=size, folder=folder), config)
        for config in configs
        for size in MODELS
    ]
    found = [(checkpoint, config) for checkpoint, config in checkpoints if checkpoint.files]
    if not found:
        raise DataError(f"{folder}: no released checkpoint like {checkpoints[0][0].encoder.name}")
    try:
        for checkpoint, _ in found:
            check_files(checkpoint)
    except KerasWeightsError as error:
        raise DataError(str(error)) from None
    return found


def check_files(checkpoint: AuthorCheckpoint) -> None:
    """Read every file of a checkpoint: its width, heads and layers are its name's, its outputs the task's.

    Raises
    ------
    KerasWeightsError
        When one cannot be read or is of another model or task.
    """
    pairs = checkpoint.classifiers.values()
    encoders = [path for path in (checkpoint.encoder, *(encoder for encoder, _ in pairs)) if path.is_file()]
    for path in encoders:
        model, _ = load_backbone(path)
        size = (model.dim, model.heads, model.layers)
        if size != checkpoint.size:
            raise KerasWeightsError(f"{path}: dim, heads, layers must be {checkpoint.size} as in its name, got {size}")
    for _, path in pairs:
        head, wanted = load_head(path), (checkpoint.size[0], len(TARGETS[checkpoint.task]))
        shape = (len(head["hidden1.weight"]), len(head["output.bias"]))
        if shape != wanted:
            raise KerasWeightsError(f"{path}: must have {wanted[0]} inputs and {wanted[1]} outputs, got {shape}")


def task_configs(plan: Plan) -> list[Config]:
    """A Config for each task of the plan: its jets, probes and scores; the model is the checkpoint's."""
    base = from_dict(plan.base)
    configs = [override(base, {**changes, "seed": plan.seeds[0]}) for changes in plan.arms.values()]
    return list({config.data.task: config for config in reversed(configs)}.values())[::-1]


def evaluate(
    checkpoint: AuthorCheckpoint, config: Config, jets: dict[str, LabeledJets]
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Metrics of the frozen encoder and of the classifiers, named as in a record; and why a file has none."""
    parts: dict[Path, Callable[[], dict[str, Measured]]] = {}
    if checkpoint.encoder.is_file():
        parts[checkpoint.encoder] = functools.partial(evaluate_encoder, checkpoint.encoder, config, jets)
    for probe, (encoder, head) in checkpoint.classifiers.items():
        parts[head] = functools.partial(evaluate_classifier, probe, encoder, head, config, jets["test"])
    measured: dict[str, Measured] = {}
    failed: dict[str, str] = {}
    for path, found in parts.items():
        try:
            measured |= found()
        except (TrialFailed, AnomalyError, MetricError) as error:  # what the files hold, not how they hold it
            failed[path.name] = " ".join(str(error).split())
    return measured, failed


def evaluate_encoder(path: Path, config: Config, jets: dict[str, LabeledJets]) -> dict[str, Measured]:
    """Metrics of a frozen encoder, as of a trial's.

    Raises
    ------
    TrialFailed
        When its embedding is not finite, the same for all jets, or of no use to an anomaly score.
    """
    model, backbone = load_backbone(path)
    of_model = dataclasses.replace(config, model=model)
    state = init_state(of_model, [config.seed], torch.device("cpu"))
    state.student = frozen_student(model, backbone)
    found = Evaluator(of_model, jets["bank"], jets["val"], jets["test"]).final(state, scan=config.anomaly.scan)
    spread = found.measured["spread"].value
    if not spread >= MIN_SPREAD:
        raise TrialFailed(f"collapsed: the spread of the embedding is {spread:.2g}, below {MIN_SPREAD:g}")
    return {f"test/{name}": one for name, one in found.measured.items()}


def evaluate_classifier(
    probe: str, encoder: Path, head: Path, config: Config, jets: LabeledJets
) -> dict[str, Measured]:
    """Metrics of a classifier as it was released.

    Raises
    ------
    MetricError
        When its probabilities are not finite.
    """
    model, backbone = load_backbone(encoder)
    of_model, names = dataclasses.replace(config, model=model), list(TARGETS[config.data.task])
    weights = torch.cat((frozen_student(model, backbone), pack_classifier(load_head(head))[None]), dim=1)
    probabilities = class_logits(weights, jets.particles, jets.rows, of_model, len(names)).softmax(1).numpy()
    right = targets(jets.labels, config.data.task)
    known = right >= 0  # the test jets of the q/g task have signal that no classifier knows
    found = classification(probabilities[known], right[known], names)
    return {f"test/{probe}_{name}": one for name, one in found.items()}


def identity(checkpoint: AuthorCheckpoint, config: Config, data: Jets) -> str:
    """Changes when weights, jets, probes or the code that evaluates do."""
    groups = ("data.", "probe.", "anomaly.", "seed")
    evaluated_by = {name: value for name, value in differences(config).items() if name.startswith(groups)}
    return digest([evaluated_by, sha256(checkpoint), data.whole, TRAINER_VERSION])


def sha256(checkpoint: AuthorCheckpoint) -> dict[str, str]:
    """File name -> hash of its content."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.files}


def content(checkpoint: AuthorCheckpoint, config: Config, data: Jets, measured: dict[str, Measured]) -> dict[str, Any]:
    """What the tables read, and where it comes from."""
    return {
        "task": checkpoint.task,
        "model": MODELS[checkpoint.size],
        "about": "trained by the authors on JetNet, evaluated on our test jets",
        "data": dataclasses.asdict(config.data),
        "fingerprint": data.whole,
        "source": data.source,
        "weights": sha256(checkpoint),
        "trainer_version": TRAINER_VERSION,
        "metrics": {name: one.value for name, one in measured.items() if np.isfinite(one.value)},
        "uncertainties": uncertainties(measured),
    }


def _failed_before(storage: Storage, name: str, wanted: str) -> dict[str, str] | None:
    """File -> why it could not be evaluated, of the same weights and jets before; None when it is to be (again)."""
    try:
        kept = storage.read_json(name) if storage.exists(name) else {}
        return dict(kept["failed"]) if kept["identity"] == wanted else None
    except (RecordError, KeyError, TypeError, ValueError):
        return None

"""Where evaluation time goes, and its share of a trial.

The encoder is jBOT-S after some training steps on the same jets. A preset's jets are drawn from the file with
replacement and moved by JITTER, so that no two are the same: times can be used, metrics not. The share of a trial is
derived: its training was not run, but is jet passes over the jets a second of the steps timed here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.steps import Setting, step_variant
from benchmarks.timing import Row, Variant, quartiles, value_row
from jbot.config import Config, override
from jbot.data import JetData
from jbot.evaluation import evaluator
from jbot.trainer.inputs import LabeledJets
from jbot.trainer.workload import curve_epochs
from studies.presets import PRESETS

JITTER = 1e-4
"""Width of the Gaussian added to eta and phi of repeated jets."""
STEP_BATCH = 1024
CURVE_PARTS = ("embed bank", "embed val", "knn val", "rank val", "entropy")
"""What a point of the learning curves takes."""
FINAL_PARTS = ("embed bank", "embed test", "knn test", "linear", "clustering", "rank test", "entropy")
"""What the final metrics take; they are made of the trained and of the untrained encoder."""


def evaluation(setting: Setting) -> list[Row]:
    """Seconds of each part of an evaluation, and its share of a trial, at one preset or at quick and paper."""
    presets = [setting.preset] if setting.preset else ["quick"] if setting.quick else ["quick", "paper"]
    with threadpool_limits(1):
        return [row for preset in presets for row in _rows_of(setting, preset)]


def _rows_of(setting: Setting, preset: str) -> list[Row]:
    config, rng = override(Config(), PRESETS[preset].base), np.random.default_rng(0)
    sizes = {"bank": config.probe.bank_jets, "val": config.data.val_jets, "test": config.data.test_jets}
    jets = {name: draw(setting.data, count, rng, setting.device) for name, count in sizes.items()}
    group = setting.group(override(config, {"train.batch": min(config.train.batch, STEP_BATCH)}))
    group.run()
    training = step_variant("a training step", group)
    parts = [
        Variant(name=name, run=_without_result(part))
        for name, part in parts_of(config, group.state.student, jets).items()
    ]
    samples = setting.timed([training, *parts], rounds=4, budget=3600)
    seconds = {name: [sample.busy for sample in own] for name, own in samples.items()}
    medians = {name: quartiles(values)[0] for name, values in seconds.items()}
    rows = [value_row(f"{preset}: {name}", "s", values, settings=sizes) for name, values in seconds.items()]
    return [*rows, trial_share(preset, medians, config, group.jets_a_step / medians[training.name])]


def _without_result(part: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        part()

    return run


def draw(data: JetData, count: int, rng: np.random.Generator, device: torch.device) -> LabeledJets:
    """Jets with replacement, each moved a little."""
    rows = rng.integers(0, len(data.labels), count)
    particles = data.particles[rows]
    particles[..., :2] += rng.normal(0, JITTER, particles[..., :2].shape) * particles[..., 3:]
    everything = torch.arange(count, device=device)
    return LabeledJets(particles=torch.from_numpy(particles).to(device), rows=everything, labels=data.labels[rows])


def parts_of(config: Config, student: torch.Tensor, jets: dict[str, LabeledJets]) -> dict[str, Callable[[], object]]:
    """Every part of an evaluation; each ends with a number on the host, so that the device is done."""
    embedded = {name: evaluator.embed_on_device(student, own.particles, config) for name, own in jets.items()}
    labels = {name: torch.from_numpy(own.labels).to(embedded[name].device) for name, own in jets.items()}
    bank, test = (embedded["bank"], labels["bank"]), embedded["test"]
    monitored = jets["val"].particles[: evaluator.MONITOR_JETS]

    def embed(name: str) -> None:
        evaluator.embed_on_device(student, jets[name].particles, config).isfinite().all().item()

    def knn(name: str) -> None:
        found = evaluator.knn_probe(*bank, embedded[name], config.probe.knn_k)
        evaluator.quick_metrics("knn", found, labels[name])

    return {
        **{f"embed {name}": partial(embed, name) for name in jets},
        **{f"knn {name}": partial(knn, name) for name in ("val", "test")},
        "linear": lambda: evaluator.quick_metrics("linear", evaluator.linear_probe(*bank, test), labels["test"]),
        "clustering": lambda: evaluator.clustering(test, labels["test"], np.random.default_rng(0)),
        **{f"rank {name}": partial(evaluator.effective_rank, embedded[name]) for name in ("val", "test")},
        "entropy": lambda: evaluator.attention_entropy(student, monitored, config),
    }


def trial_share(preset: str, seconds: dict[str, float], config: Config, jets_a_second: float) -> Row:
    """Evaluation in a whole trial: its curve points, and the final metrics of the trained and the untrained encoder."""
    points = len(curve_epochs(config))
    training = config.data.train_jets * config.train.epochs / jets_a_second
    curve, final = (sum(seconds[name] for name in parts) for parts in (CURVE_PARTS, FINAL_PARTS))
    total = points * curve + 2 * final
    note = f"{total:.0f} s of evaluation with {points} curve points, {training:.0f} s of training: derived"
    share = 100 * total / (total + training)
    return value_row(f"{preset}: evaluation's share of a trial", "%", [share], note=note)

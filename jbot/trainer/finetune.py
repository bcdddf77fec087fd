"""Fine-tuning: encoder and a fresh classification head trained on labeled jets, one flat loop over epochs and steps.

    while some run is unfinished: one epoch of those furthest behind
        each step: dropout, cross-entropy, finetune_step(state, particles, targets, ...)
        evaluate each on its validation jets; keep the weights of the best accuracy

The supervised baseline of a fine-tuning is the same run from fresh encoder weights, with layer_decay 1. Every tensor
has a leading axis, called trial as everywhere: here one row is one run (a trial has one for each fraction of its
labels, and as many baselines). Runs of equal shapes step together, and none feels the others; those of a trial share
its seed: a fine-tuning and its baseline begin with the same head, and see the same jets and the same dropout at each
step.

Differences from the released code (arXiv:2601.11719, `finetune` in its utils.py), which are mistakes there:
- it multiplies the *gradients* by the layer's decay, which Adam undoes: its step is the gradient over its own size;
- it looks the factors up by a variable's short name ("kernel", "bias"), which many variables share, the head's among
  them: most factors are 1.
So published fine-tunings are, in effect, those with layer_decay = 1. Here the decay is one of step sizes.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int16, Int64
from torch import Tensor

from jbot.config import Config, ModelConfig
from jbot.data.jets import DataError
from jbot.data.splits import TARGETS, targets
from jbot.trainer.classifier import classifier_logits, classifier_shapes, init_classifier, unpack_classifier
from jbot.trainer.dropout import cut_and_scale, factors
from jbot.trainer.embed import GATHERED, embed_on_device
from jbot.trainer.engines.graphs import StepGraphs
from jbot.trainer.engines.select import Forward
from jbot.trainer.model import Drop, Flat, encode_cls, first_trial, forward, init_weights, weight_count, weight_shapes
from jbot.trainer.rng import Draws
from jbot.trainer.state import PackState, diverged, epoch_order, furthest_behind

BETA1, BETA2, EPS = 0.9, 0.999, 1e-7
"""Adam's defaults in Keras, which the released code leaves as they are."""

TERMS = ("loss", "correct")
"""What a step returns of itself: sums over its jets."""

Particles = Float[Tensor, "trial jet particle 4"]
Targets = Int64[Tensor, "trial jet"]


@dataclass(frozen=True, kw_only=True)
class LabeledRows:
    """Jets as rows of all jets, and the class of each, both on the device."""

    rows: Int64[Tensor, "jet"]
    targets: Int64[Tensor, "jet"]

    def head(self, fraction: float, names: Sequence[str]) -> LabeledRows:
        """The first share of the jets; a DataError names the first class that is not among them."""
        count = round(fraction * len(self.rows))
        missing = [name for c, name in enumerate(names) if not bool((self.targets[:count] == c).any())]
        if missing:
            raise DataError(
                f"finetune.fractions must leave at least one labeled jet of each class, "
                f"got {fraction:g} of {len(self.rows)} training jets, {count} jets without class {missing[0]}"
            )
        return LabeledRows(rows=self.rows[:count], targets=self.targets[:count])


def label(rows: Int64[Tensor, "jet"], labels: Int[np.ndarray, "all"], task: str) -> LabeledRows:
    """Rows of all jets with their classes by a task, made of the `labels` of all jets."""
    classes = targets(labels[rows.cpu().numpy()], task)
    return LabeledRows(rows=rows, targets=torch.from_numpy(classes).to(rows.device))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One classifier to be trained."""

    name: str
    """As in its metrics and files: finetune_10, supervised_100."""
    config: Config
    """Its trial's: what counts here is `model`, `finetune` and `seed`."""
    encoder: Float[Tensor, "weight"]
    """The encoder to begin with, in the order of :func:`jbot.trainer.model.weight_shapes`."""
    layer_decay: float
    classes: int
    train: LabeledRows
    val: LabeledRows


@dataclass
class FinetuneProgress:
    """How far one run is."""

    epoch: int = 0
    """Finished epochs."""
    seconds: float = 0.0
    """Its share of the seconds of its packs, in all attempts."""
    best_accuracy: float = -1.0
    """On the validation jets; any real one is better."""
    since_best: int = 0
    """Epochs without a better one."""
    curves: list[dict[str, Any]] = field(default_factory=list)
    """One row per epoch: epoch, device_seconds, train_loss, train_accuracy, val_loss, val_accuracy."""
    reason: str | None = None
    """Why it failed; it takes no further step."""


@dataclass
class FinetuneState(PackState):
    """All that runs are, between two steps. Changed in place by :func:`finetune_step`."""

    weights: Flat
    """Encoder, then head."""
    moment1: Flat
    moment2: Flat
    best: Flat
    """The weights of the best validation accuracy so far."""
    step: Int64[Tensor, "trial"]
    progress: list[FinetuneProgress]


@dataclass(frozen=True, kw_only=True)
class RunHyper:
    """The hyperparameters of runs that step together, on the device."""

    model: ModelConfig
    classes: int
    seeds: Int64[Tensor, "trial"]
    rates: Flat
    """Learning rate of each weight."""
    cut: Int16[Tensor, "trial 1"]
    scale: Float[Tensor, "trial 1"]
    """For dropout, see :func:`jbot.trainer.dropout.cut_and_scale`."""
    dropping: bool
    """Whether any run has dropout."""


def runs_of(config: Config, encoder: Float[Tensor, "weight"], train: LabeledRows, val: LabeledRows) -> list[Run]:
    """A trial's fine-tunings, one for each fraction of its labels, and their baselines, as its Config wants them.

    Raises DataError when a fraction leaves a class without a jet.
    """
    names, wanted = list(TARGETS[config.data.task]), config.finetune
    shared = functools.partial(Run, config=config, classes=len(names), val=val)
    runs = []
    for fraction in wanted.fractions:
        some, percent = train.head(fraction, names), f"{100 * fraction:g}"
        runs.append(shared(name=f"finetune_{percent}", encoder=encoder, layer_decay=wanted.layer_decay, train=some))
        if wanted.twin:
            fresh = init_weights(config.model, config.seed)
            runs.append(shared(name=f"supervised_{percent}", encoder=fresh, layer_decay=1.0, train=some))
    return runs


def init_finetune(runs: Sequence[Run], device: torch.device, dtype: torch.dtype = torch.float32) -> FinetuneState:
    """The state before the first step, a row for each run: its encoder, and a head drawn from its trial's seed."""
    heads = [init_classifier(run.config.model.dim, run.classes, run.config.seed) for run in runs]
    rows = [torch.cat((run.encoder.to(device), head.to(device))) for run, head in zip(runs, heads, strict=True)]
    weights = torch.stack(rows).to(dtype)
    return FinetuneState(
        weights=weights,
        moment1=torch.zeros_like(weights),
        moment2=torch.zeros_like(weights),
        best=weights.clone(),
        step=torch.zeros(len(runs), dtype=torch.int64, device=device),
        progress=[FinetuneProgress() for _ in runs],
    )


def finetune(
    runs: Sequence[Run],
    particles: Float[Tensor, "jet particle 4"],
    state: FinetuneState,
    after_epoch: Callable[[list[int]], None],
    forward: Forward = forward,
) -> FinetuneState:
    """Train the classifiers from `state` to their ends; one that diverges ends alone, with its reason.

    A run ends after `finetune.epochs`, or after `finetune.patience` of them without a validation accuracy better by
    more than `finetune.tolerance`. What it leaves is `state.best`.

    Parameters
    ----------
    runs : sequence of Run
        With equal :func:`pack_key`; ValueError otherwise.
    particles : float tensor (jet, particle, 4)
        All jets, on the device of the state.
    after_epoch : callable
        Called with the numbers of the runs that have just done an epoch: the place to save.
    forward : callable
        Encoder and head without dropout, for the validation jets.
    """
    if len(set(map(pack_key, runs))) > 1:
        raise ValueError("runs that step together must agree in model, classes, batch and number of training jets")
    device, dtype = state.weights.device, state.weights.dtype
    hyper = functools.cache(lambda members: stack_hyper([runs[run] for run in members], device, dtype))
    graphs = StepGraphs() if device.type == "cuda" else None
    while members := furthest_behind(state.progress, list(map(has_ended, runs, state.progress))):
        started, some = time.perf_counter(), [runs[run] for run in members]
        # Some of the runs step on a copy of their state, which has another address each time: no graph.
        recorded = graphs if len(members) == len(runs) else None
        with state.only(members) as part:
            sums = run_epoch(some, particles, part, hyper(tuple(members)), recorded)
            validation = [validate(run, particles, part.row(row), forward) for row, run in enumerate(some)]
            seconds = (time.perf_counter() - started) / len(members)
            for row, run in enumerate(some):
                jets = len(run.train.rows)
                trained = {"train_loss": sums[row][0] / jets, "train_accuracy": sums[row][1] / jets}
                finish_epoch(run, part.row(row), trained | validation[row], seconds)
        after_epoch(members)
    return state


def pack_key(run: Run) -> tuple[ModelConfig, int, int, int]:
    """Runs with equal keys can step together."""
    return run.config.model, run.classes, run.config.finetune.batch, len(run.train.rows)


def has_ended(run: Run, progress: FinetuneProgress) -> bool:
    """Whether a run takes no further step."""
    wanted = run.config.finetune
    return progress.reason is not None or progress.epoch >= wanted.epochs or progress.since_best >= wanted.patience


def run_epoch(
    runs: Sequence[Run],
    particles: Float[Tensor, "jet particle 4"],
    state: FinetuneState,
    hyper: RunHyper,
    graphs: StepGraphs | None,
) -> list[list[float]]:
    """One epoch of runs that stand at the same one; for each, the sums of TERMS."""
    labeled = []
    for run in runs:
        order = epoch_order(len(run.train.rows), run.config.seed, state.epoch, "finetune_order").to(particles.device)
        labeled.append(torch.stack((run.train.rows[order], run.train.targets[order])))
    sums = torch.zeros(len(TERMS), len(runs), device=particles.device, dtype=torch.float64)
    step = functools.partial(finetune_step, hyper=hyper)
    for index, classes in torch.stack(labeled, dim=1).split(runs[0].config.finetune.batch, dim=2):
        jets = particles.index_select(0, index.flatten()).view(*index.shape, *particles.shape[1:])
        terms = graphs(step, state, (jets, classes)) if graphs else step(state, jets, classes)
        sums += torch.stack([terms[name] for name in TERMS])
    return sums.T.tolist()  # waits for the device


def finetune_step(
    state: FinetuneState, particles: Particles, targets: Targets, hyper: RunHyper
) -> dict[str, Float[Tensor, "trial"]]:
    """One step of Adam on the mean cross-entropy of a batch, with dropout. Nothing is read on the host.

    Returns TERMS by name, sums over the jets, each (trial,) in nats or jets; `state` is changed in place.
    """
    jets, slots = particles.shape[1:3]
    draws = Draws(hyper.seeds, state.step)
    drop = finetune_dropout(draws, hyper, dropout_sizes(hyper.model, jets, slots)) if hyper.dropping else None
    flat = state.weights.detach().requires_grad_()
    encoder, head = unpack_classifier(flat, hyper.model, hyper.classes)
    logits = classifier_logits(head, encode_cls(encoder, particles, hyper.model, drop), drop)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).sum(1)
    (gradient,) = torch.autograd.grad((loss / jets).sum(), flat)
    with torch.no_grad():
        adam(state, gradient, hyper.rates)
    return {"loss": loss.detach(), "correct": (logits.detach().argmax(-1) == targets).sum(1)}


def finetune_dropout(draws: Draws, hyper: RunHyper, sizes: dict[str, int]) -> Drop:
    """Dropout of one step, see :mod:`jbot.trainer.dropout`; `sizes` are those of :func:`dropout_sizes`."""
    drawn = factors(draws, sum(sizes.values()), hyper.cut, hyper.scale).split(list(sizes.values()), dim=1)
    named = dict(zip(sizes, drawn, strict=True))
    return lambda name, values: values * named[name].view(values.shape)


def dropout_sizes(model: ModelConfig, jets: int, slots: int) -> dict[str, int]:
    """Values that dropout sees in one step, by layer: each block's two updates, [CLS] alone in the last; the head."""
    sizes: dict[str, int] = {}
    for layer in range(model.layers):
        rows = jets * (1 if layer == model.layers - 1 else slots + 1)
        sizes |= {f"block{layer}.out": rows * model.dim, f"block{layer}.ffn2": rows * model.dim}
    return sizes | {"hidden1": jets * 2 * model.dim, "hidden2": jets * model.dim}


def adam(state: FinetuneState, gradient: Flat, rates: Flat) -> None:
    """Adam as Keras has it, eps outside the bias correction (arXiv:1412.6980); a rate for each weight."""
    state.step += 1
    t = state.step.double()
    correction = torch.sqrt(1.0 - BETA2**t) / (1.0 - BETA1**t)
    state.moment1.lerp_(gradient, 1.0 - BETA1)
    state.moment2.lerp_(gradient.square(), 1.0 - BETA2)
    move = state.moment1 * rates * -correction.to(rates.dtype)[:, None]
    state.weights.addcdiv_(move, state.moment2.sqrt().add_(EPS))


def stack_hyper(runs: Sequence[Run], device: torch.device, dtype: torch.dtype = torch.float32) -> RunHyper:
    """The hyperparameters of runs that step together."""
    model, classes = runs[0].config.model, runs[0].classes
    decay = torch.stack([decay_factors(model, classes, run.layer_decay) for run in runs])
    lr = torch.tensor([run.config.finetune.lr for run in runs], dtype=torch.float64)
    rates = torch.tensor([run.config.finetune.dropout for run in runs], dtype=torch.float64, device=device)
    cut, scale = cut_and_scale(rates, dtype)
    return RunHyper(
        model=model,
        classes=classes,
        seeds=torch.tensor([run.config.seed for run in runs], device=device),
        rates=(lr[:, None] * decay).to(device, dtype),
        cut=cut,
        scale=scale,
        dropping=any(run.config.finetune.dropout for run in runs),
    )


def decay_factors(model: ModelConfig, classes: int, decay: float) -> Float[Tensor, "weight"]:
    """Factor of each weight's learning rate: decay^depth, depth counted back from the last block.

    1 for the head and the last block, decay for the block before it, decay^layers for the embedding and [CLS]. The mask
    token and the projection head have no gradient here.
    """
    depth = {"embed": model.layers, "cls_token": model.layers}
    depth |= {f"block{layer}": model.layers - 1 - layer for layer in range(model.layers)}
    shapes = weight_shapes(model) | classifier_shapes(model.dim, classes)
    sizes = torch.tensor([math.prod(shape) for shape in shapes.values()])
    factors = [decay ** depth.get(name.split(".")[0], 0) for name in shapes]
    return torch.tensor(factors, dtype=torch.float64).repeat_interleave(sizes)


def validate(
    run: Run, particles: Float[Tensor, "jet particle 4"], state: FinetuneState, forward: Forward
) -> dict[str, float]:
    """Loss and accuracy on the validation jets, without dropout."""
    logits = class_logits(state.weights, particles, run.val.rows, run.config, run.classes, forward)
    return {
        "val_loss": float(F.cross_entropy(logits, run.val.targets)),
        "val_accuracy": float((logits.argmax(1) == run.val.targets).double().mean()),
    }


def finish_epoch(run: Run, state: FinetuneState, means: dict[str, float], seconds: float) -> None:
    """Add a row to a run's curves, and keep its weights when they are the best so far."""
    (progress,) = state.progress
    progress.epoch += 1
    progress.seconds += seconds
    progress.curves.append({"epoch": progress.epoch, "device_seconds": round(progress.seconds, 3)} | means)
    progress.reason = diverged({name: means[name] for name in ("train_loss", "val_loss")}, progress.epoch)
    if progress.reason is not None:
        return
    progress.since_best += 1
    if means["val_accuracy"] > progress.best_accuracy + run.config.finetune.tolerance:
        progress.best_accuracy, progress.since_best = means["val_accuracy"], 0
        state.best.copy_(state.weights)


def class_logits(
    weights: Float[Tensor, "1 weight"],
    particles: Float[Tensor, "jet particle 4"],
    rows: Int64[Tensor, "row"],
    config: Config,
    classes: int,
    forward: Forward = forward,
) -> Float[Tensor, "row class"]:
    """Class scores (logits) of some jets by one run's encoder and head, without dropout, float32."""
    _, head = unpack_classifier(weights, config.model, classes)
    encoder = weights[:, : weight_count(config.model)]
    parts = (particles.index_select(0, some) for some in rows.split(GATHERED))
    cls = torch.cat([embed_on_device(encoder, part, config, forward) for part in parts])
    return classifier_logits(head, cls[None].to(weights.dtype))[0].float()


def named_classifier(weights: Float[Tensor, "1 weight"], run: Run) -> dict[str, np.ndarray]:
    """One run's weights by name, those of the head behind ``classifier.``, without the trial axis."""
    encoder, head = unpack_classifier(weights, run.config.model, run.classes)
    return first_trial(encoder | {f"classifier.{name}": value for name, value in head.items()})

"""Pre-training: one flat loop over epochs and steps.

    state = init_state(config, seeds, device)
    for epoch in ...: for each batch: train_step(state, jets, Draws(seeds, step), ...)

Every tensor has a leading trial axis. Nothing here knows of files, Ray or studies: `train` calls back after each epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jbot.augment import augment
from jbot.config import Config, OptimConfig, TeacherConfig
from jbot.loss import cls_loss, entropy, koleo_loss, particle_loss, teacher_targets
from jbot.masking import Masked, mask_views
from jbot.model import Encoded, Flat, encode, init_weights, project, unpack
from jbot.streams import Draws, numpy_generator

Metrics = dict[str, float]


class TrialFailed(Exception):  # noqa: N818 - an outcome of the trial, not an error of the program
    """A trial that diverged or collapsed: its reason, and the curves it has."""


@dataclass
class TrainState:
    """All that a run is, between two steps. Changed in place by :func:`train_step`."""

    student: Flat
    teacher: Flat
    moment1: Flat
    moment2: Flat
    cls_center: Float[Tensor, "trial projection"]
    particle_center: Float[Tensor, "trial projection"]
    step: int = 0
    epoch: int = 0
    """Finished epochs."""
    seconds: float = 0.0
    """Device seconds so far, in all attempts."""
    curves: list[dict[str, Any]] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds as arrays."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def init_state(
    config: Config, seeds: list[int], device: torch.device, dtype: torch.dtype = torch.float32
) -> TrainState:
    """The state before the first step, a row for each seed: teacher equal to student, moments and centres zero."""
    student = torch.stack([init_weights(config.model, seed) for seed in seeds]).to(device, dtype)
    centers = torch.zeros(len(seeds), config.model.projection, device=device, dtype=dtype)
    return TrainState(
        student=student.clone(),
        teacher=student.clone(),
        moment1=torch.zeros_like(student),
        moment2=torch.zeros_like(student),
        cls_center=centers.clone(),
        particle_center=centers.clone(),
    )


def learning_rate(epoch: int, config: OptimConfig) -> float:
    """Linear warm-up set once an epoch, then constant."""
    return config.lr * min(1.0, (epoch + 1) / config.warmup_epochs) if config.warmup_epochs else config.lr


def ema_momentum(epoch: int, epochs: int, config: TeacherConfig) -> float:
    """Rises from its first value towards 1 along a cosine."""
    return 1.0 - (1.0 - config.ema_momentum) * (1.0 + math.cos(math.pi * epoch / epochs)) / 2.0


def train(
    config: Config,
    jets: Float[Tensor, "jet particle 4"],
    state: TrainState,
    probe: Callable[[TrainState], Metrics],
    after_epoch: Callable[[TrainState], None],
) -> TrainState:
    """Train one trial from `state` to the last epoch.

    Parameters
    ----------
    jets : float tensor (jet, particle, 4)
        Unlabeled training jets, on the device of the state.
    probe : callable
        Judges the frozen student; called at epoch 0, every `probe.every` epochs and at the end.
    after_epoch : callable
        Called when an epoch and its probe are done: the place to save a checkpoint and report progress.

    Raises
    ------
    TrialFailed
        When the loss is not finite or `probe` finds a collapse. The state keeps what there is.
    """
    seeds = torch.tensor([config.seed], device=jets.device)
    if not state.curves:
        _add_point(state, probe(state), {})
        after_epoch(state)
    while state.epoch < config.train.epochs:
        started = time.perf_counter()
        lr = learning_rate(state.epoch, config.optim)
        momentum = ema_momentum(state.epoch, config.train.epochs, config.teacher)
        sums: dict[str, Tensor] = {}
        steps = 0
        for batch in batches(len(jets), config.train.batch, config.seed, state.epoch):
            batch_jets = jets.index_select(0, batch.to(jets.device))[None]
            terms = train_step(state, batch_jets, Draws(seeds, state.step), config, lr, momentum)
            sums = {name: sums.get(name, 0.0) + value for name, value in terms.items()}
            steps += 1
        means = {f"train/{name}": float(value[0]) / steps for name, value in sums.items()}
        state.epoch += 1
        state.seconds += time.perf_counter() - started
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise TrialFailed(f"diverged: {broken[0]} is not finite in epoch {state.epoch}")
        if state.epoch % config.probe.every == 0 or state.epoch == config.train.epochs:
            _add_point(state, probe(state), means | {"train/lr": lr, "train/ema_momentum": momentum})
        after_epoch(state)
    return state


def batches(jets: int, batch: int, seed: int, epoch: int) -> Iterator[Int64[Tensor, "jet"]]:
    """Indices of each step of an epoch; the last batch may be smaller, but never a single jet (KoLeo needs two)."""
    order = torch.from_numpy(numpy_generator(seed, "order", epoch).permutation(jets))
    return (part for part in order.split(batch) if len(part) > 1)


def train_step(
    state: TrainState,
    jets: Float[Tensor, "trial jet particle 4"],
    draws: Draws,
    config: Config,
    lr: float,
    momentum: float,
) -> dict[str, Float[Tensor, "trial"]]:
    """Two views, one gradient step of the student, then the teacher's average and the centres.

    Returns the terms of the loss and the entropies, per trial; `state` is changed in place.
    """
    views = augment(jets, draws, config.augment)
    masked = mask_views(views, draws, config.mask)
    return step_on_views(state, views, masked, config, lr, momentum)


def step_on_views(
    state: TrainState,
    views: Float[Tensor, "trial 2 jet particle 4"],
    masked: Masked,
    config: Config,
    lr: float,
    momentum: float,
) -> dict[str, Float[Tensor, "trial"]]:
    """The step behind augmentation and masking."""
    with torch.no_grad():
        teacher_cls, teacher_particle, _ = project_views(state.teacher, views, None, config)
    student = state.student.detach().requires_grad_()
    student_cls, student_particle, encoded = project_views(student, views, masked, config)

    loss, temps = config.loss, (config.loss.teacher_temp, config.loss.student_temp)
    cls_targets = teacher_targets(teacher_cls, state.cls_center[:, None, None], temps[0])
    particle_targets = teacher_targets(teacher_particle, state.particle_center[:, None, None, None], temps[0])
    terms = {
        "cls_loss": cls_loss(cls_targets, student_cls, temps[1]),
        "particle_loss": particle_loss(particle_targets, student_particle, masked, temps[1]),
        "koleo_loss": koleo_loss(encoded.cls[:, : jets_of(views)]),
    }
    total = (
        loss.cls_weight * terms["cls_loss"]
        + loss.particle_weight * terms["particle_loss"]
        + loss.koleo_weight * terms["koleo_loss"]
    )
    (gradient,) = torch.autograd.grad(total.sum(), student)

    with torch.no_grad():
        adamw(state, gradient, lr, config.optim)
        state.teacher.lerp_(state.student, 1.0 - momentum)
        update_centers(state, teacher_cls, teacher_particle, views, config)
        probabilities = torch.softmax(student_cls / temps[1], dim=-1)
        terms = {"loss": total} | terms
        terms["teacher_entropy"] = entropy(cls_targets).mean(dim=(1, 2))
        terms["student_entropy"] = entropy(probabilities).mean(dim=(1, 2))
        terms["masked_fraction"] = masked.sum(dim=(1, 2, 3)) / (views[..., 3] > 0.5).sum(dim=(1, 2, 3))
    state.step += 1
    return {name: value.detach() for name, value in terms.items()}


def jets_of(views: Tensor) -> int:
    """Jets a view, of (trial, view, jet, particle, feature)."""
    return views.shape[2]


def project_views(
    flat: Flat, views: Float[Tensor, "trial 2 jet particle 4"], masked: Masked | None, config: Config
) -> tuple[Float[Tensor, "trial 2 jet projection"], Float[Tensor, "trial 2 jet particle projection"], Encoded]:
    """Both views in one batch through encoder and projection head: [CLS], particles, and the raw outputs."""
    trials, _, jets, slots, _ = views.shape
    weights = unpack(flat, config.model)
    hidden = None if masked is None else masked.flatten(1, 2)
    encoded = encode(weights, views.flatten(1, 2), config.model, hidden)
    assert encoded.particle is not None
    tokens = torch.cat((encoded.cls[:, :, None], encoded.particle), dim=2)
    projected = project(weights, tokens.flatten(1, 2)).view(trials, 2, jets, slots + 1, -1)
    return projected[..., 0, :], projected[..., 1:, :], encoded


def adamw(state: TrainState, gradient: Flat, lr: float, config: OptimConfig) -> None:
    """AdamW as Keras has it: decay on every weight, eps outside the bias correction (arXiv:1711.05101)."""
    t = state.step + 1
    state.moment1.lerp_(gradient, 1.0 - config.beta1)
    state.moment2.mul_(config.beta2).addcmul_(gradient, gradient, value=1.0 - config.beta2)
    step_size = lr * math.sqrt(1.0 - config.beta2**t) / (1.0 - config.beta1**t)
    state.student.mul_(1.0 - lr * config.weight_decay)
    state.student.addcdiv_(state.moment1, state.moment2.sqrt().add_(config.eps), value=-step_size)


def update_centers(
    state: TrainState, teacher_cls: Tensor, teacher_particle: Tensor, views: Tensor, config: Config
) -> None:
    """Running means of the teacher's outputs over both views; of particles, over the valid ones."""
    if not config.teacher.centering:
        return
    weight = torch.ones_like(views[..., 3]) if config.model.padding == "reference" else views[..., 3]
    total = weight.sum(dim=(1, 2, 3))[:, None]
    particle_mean = (teacher_particle * weight[..., None]).sum(dim=(1, 2, 3)) / total
    state.cls_center.lerp_(teacher_cls.mean(dim=(1, 2)), 1.0 - config.teacher.center_momentum)
    state.particle_center.lerp_(particle_mean, 1.0 - config.teacher.center_momentum)


def _add_point(state: TrainState, probed: Metrics, means: Metrics) -> None:
    """One row of the learning curves."""
    state.curves.append(
        {"epoch": state.epoch, "step": state.step, "device_seconds": round(state.seconds, 3)} | probed | means
    )

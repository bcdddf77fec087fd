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

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jbot.augment import augment
from jbot.config import Config, OptimConfig, TeacherConfig
from jbot.loss import cls_loss, entropy, koleo_loss, particle_loss, teacher_targets
from jbot.masking import Masked, mask_views
from jbot.model import Flat, cls_rows, encode, init_weights, project, take_rows, unpack
from jbot.streams import Draws, numpy_generator

Metrics = dict[str, float]

# Beyond these an embedding says nothing about its jets (assumed; an untrained encoder is far from all three).
MIN_SPREAD = 1e-3
MIN_ENTROPY = 1e-3
MAX_ATTENTION_ENTROPY = 0.9999


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
    train_seconds: float = 0.0
    probe_seconds: float = 0.0
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
        _add_point(state, {}, probe)
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
        state.train_seconds += time.perf_counter() - started
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise TrialFailed(f"diverged: {broken[0]} is not finite in epoch {state.epoch}")
        if state.epoch % config.probe.every == 0 or state.epoch == config.train.epochs:
            point = _add_point(state, means | {"train/lr": lr, "train/ema_momentum": momentum}, probe)
            if reason := collapse(point):
                raise TrialFailed(f"collapsed: {reason} after epoch {state.epoch}")
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
    trials, _, jets, slots, _ = views.shape
    cls = cls_rows(trials, 2 * jets, slots, views.device)
    particle, weight = masked_rows(masked)
    with torch.no_grad():
        teacher = unpack(state.teacher, config.model)
        teacher_out = project(teacher, encode(teacher, views.flatten(1, 2), config.model))
    flat = state.student.detach().requires_grad_()
    student = unpack(flat, config.model)
    wanted = torch.cat((cls, particle), dim=1)
    raw = encode(student, views.flatten(1, 2), config.model, masked.flatten(1, 2), wanted)
    student_out = project(student, raw)

    temp, teacher_temp = config.loss.student_temp, config.loss.teacher_temp
    student_cls = student_out[:, : 2 * jets].unflatten(1, (2, jets))
    teacher_cls = take_rows(teacher_out, cls).unflatten(1, (2, jets))
    cls_targets = teacher_targets(teacher_cls, state.cls_center[:, None, None], teacher_temp)
    particle_targets = teacher_targets(take_rows(teacher_out, particle), state.particle_center[:, None], teacher_temp)
    terms = {
        "cls_loss": cls_loss(cls_targets, student_cls, temp),
        "particle_loss": particle_loss(particle_targets, student_out[:, 2 * jets :], weight, temp),
        "koleo_loss": koleo_loss(raw[:, :jets]),
    }
    total = (
        config.loss.cls_weight * terms["cls_loss"]
        + config.loss.particle_weight * terms["particle_loss"]
        + config.loss.koleo_weight * terms["koleo_loss"]
    )
    (gradient,) = torch.autograd.grad(total.sum(), flat)

    with torch.no_grad():
        adamw(state, gradient, lr, config.optim)
        state.teacher.lerp_(state.student, 1.0 - momentum)
        update_centers(state, teacher_out.unflatten(1, (2, jets, slots + 1)), views[..., 3], config)
        terms = {"loss": total} | terms
        terms["teacher_entropy"] = entropy(cls_targets).mean(dim=(1, 2))
        terms["student_entropy"] = entropy(torch.softmax(student_cls / temp, dim=-1)).mean(dim=(1, 2))
        terms["masked_fraction"] = masked.sum(dim=(1, 2, 3)) / views[..., 3].sum(dim=(1, 2, 3))
    state.step += 1
    return {name: value.detach() for name, value in terms.items()}


def masked_rows(masked: Masked) -> tuple[Int64[Tensor, "trial row"], Float[Tensor, "trial row"]]:
    """Token numbers of the masked particles, and weights that make a sum over them the mean over views of means.

    Trials of a pack mask different counts; the shorter ones are filled up with rows of weight 0.
    """
    slots = masked.shape[-1]
    per_view = masked.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    weight = (masked / (2.0 * per_view)).flatten(1)
    rows = int(masked.sum(dim=(1, 2, 3)).max())
    index = masked.flatten(1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :rows]
    return index + index // slots + 1, weight.gather(1, index)


def adamw(state: TrainState, gradient: Flat, lr: float, config: OptimConfig) -> None:
    """AdamW as Keras has it: decay on every weight, eps outside the bias correction (arXiv:1711.05101)."""
    t = state.step + 1
    state.moment1.lerp_(gradient, 1.0 - config.beta1)
    state.moment2.mul_(config.beta2).addcmul_(gradient, gradient, value=1.0 - config.beta2)
    step_size = lr * math.sqrt(1.0 - config.beta2**t) / (1.0 - config.beta1**t)
    state.student.mul_(1.0 - lr * config.weight_decay)
    state.student.addcdiv_(state.moment1, state.moment2.sqrt().add_(config.eps), value=-step_size)


def update_centers(
    state: TrainState,
    teacher_out: Float[Tensor, "trial 2 jet token projection"],
    valid: Float[Tensor, "trial 2 jet particle"],
    config: Config,
) -> None:
    """Running means of the teacher's outputs over both views; of particles, over the valid ones."""
    if not config.teacher.centering:
        return
    weight = torch.ones_like(valid) if config.model.padding == "reference" else valid
    cls, particle = teacher_out[..., 0, :], teacher_out[..., 1:, :]
    particle_mean = (particle * weight[..., None]).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))[:, None]
    state.cls_center.lerp_(cls.mean(dim=(1, 2)), 1.0 - config.teacher.center_momentum)
    state.particle_center.lerp_(particle_mean, 1.0 - config.teacher.center_momentum)


def collapse(point: dict[str, Any]) -> str | None:
    """Why the encoder of a curve point says nothing about its jets any more, or None when it does."""
    if point["val/spread"] < MIN_SPREAD:
        return f"the spread of the embedding is {point['val/spread']:.2g}"
    if point["train/teacher_entropy"] < MIN_ENTROPY:
        return f"the entropy of the teacher is {point['train/teacher_entropy']:.2g} nats"
    if point["val/attention_entropy"] > MAX_ATTENTION_ENTROPY:
        return "the [CLS] attention is uniform in every head"
    return None


def _add_point(state: TrainState, means: Metrics, probe: Callable[[TrainState], Metrics]) -> dict[str, Any]:
    """Probe the student and add one row to the learning curves."""
    started = time.perf_counter()
    probed = probe(state)
    state.probe_seconds += time.perf_counter() - started
    at = {"epoch": state.epoch, "step": state.step, "device_seconds": round(state.train_seconds, 3)}
    state.curves.append(at | probed | means)
    return state.curves[-1]

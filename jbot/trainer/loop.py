"""Pre-training: one flat loop over epochs and steps, for one trial or a pack of them.

    while some trial is unfinished: one epoch of those furthest behind
        each step: two views, masks, train_step(state, views, masked, ...)

Every tensor has a leading trial axis. Nothing here knows of files, Ray or studies: `train` calls back after each epoch.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from jbot.config import Config, OptimConfig, TeacherConfig
from jbot.trainer.augment import Particles, augment
from jbot.trainer.dropout import step_factors
from jbot.trainer.engines.graphs import row_capacity
from jbot.trainer.engines.select import Forward
from jbot.trainer.loss import cls_loss, entropy, koleo_loss, log_predictions, particle_loss, teacher_targets
from jbot.trainer.masking import Masked, mask_views
from jbot.trainer.model import Flat, cls_rows, forward, init_weights, take_rows, weight_place
from jbot.trainer.pack import Pack, column
from jbot.trainer.rng import Draws, numpy_generator

Metrics = dict[str, float]
Rates = Float[Tensor, "trial"]
TERMS = (
    "loss",
    "cls_loss",
    "particle_loss",
    "koleo_loss",
    "teacher_entropy",
    "student_entropy",
    "masked_fraction",
)
"""What a step tells of itself, in this order."""

# Beyond these an embedding says nothing about its jets (assumed; an untrained encoder is far from all three).
MIN_SPREAD = 1e-3
MIN_ENTROPY = 1e-3
MAX_ATTENTION_ENTROPY = 0.9999

SNAPSHOT_EPOCHS = (0, 1, 10, 50)
"""Finished epochs of points in every learning curve, whose weights and embedding are kept beside the last ones."""

VIEW_JETS = {"cpu": 256, "cuda": 16_384}
"""Jets whose views are made in one call, several steps ahead when batches are small: at batch 16, a call for each step
costs three times as much. The arrays of 256 jets stay in a CPU's cache; the number for a GPU is assumed."""


class TrialFailed(Exception):  # noqa: N818 - an outcome of the trial, not an error of the program
    """A trial that diverged or collapsed: its reason."""


@dataclass
class Progress:
    """How far one trial is."""

    epoch: int = 0
    """Finished epochs."""
    train_seconds: float = 0.0
    """Its share of its packs' seconds of training steps, in all attempts: by jets seen, where trials share a step."""
    probe_seconds: float = 0.0
    curves: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None
    """Why it failed; it takes no further step."""


State = TypeVar("State", bound="PackState")


class PackState:
    """Tensors with a leading trial axis, and how far each trial is: what a pack is between two steps."""

    progress: list[Any]

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds as arrays, each with a leading trial axis."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def of(self: State, tensors: dict[str, Tensor], progress: list[Any]) -> State:
        """A state of the same kind."""
        made = copy.copy(self)
        vars(made).update(tensors, progress=progress)
        return made

    @property
    def epoch(self) -> int:
        """Finished epochs of the first trial."""
        return int(self.progress[0].epoch)

    def row(self: State, trial: int) -> State:
        """One trial as a pack of one: views of its rows."""
        tensors = {name: value[trial : trial + 1] for name, value in self.tensors().items()}
        return self.of(tensors, self.progress[trial : trial + 1])

    @contextmanager
    def only(self: State, trials: Sequence[int]) -> Iterator[State]:
        """Some trials, in ascending order, as a state of their own; what is done to it is done to them."""
        if len(trials) == len(self.progress):
            yield self
            return
        index = torch.tensor(trials, device=next(iter(self.tensors().values())).device)
        tensors = {name: value.index_select(0, index) for name, value in self.tensors().items()}
        part = self.of(tensors, [self.progress[trial] for trial in trials])
        yield part
        for name, value in self.tensors().items():
            value.index_copy_(0, index, getattr(part, name))


def join_states(states: Sequence[State]) -> State:
    """The states of several packs as one."""
    tensors = {name: torch.cat([state.tensors()[name] for state in states]) for name in states[0].tensors()}
    return states[0].of(tensors, [progress for state in states for progress in state.progress])


@dataclass
class TrainState(PackState):
    """All that the runs of a pack are, between two steps. Changed in place by :func:`train_step`."""

    student: Flat
    teacher: Flat
    moment1: Flat
    moment2: Flat
    cls_center: Float[Tensor, "trial projection"]
    particle_center: Float[Tensor, "trial projection"]
    step: Int64[Tensor, "trial"]
    """Finished steps, on the device: a step reads no number on the host."""
    progress: list[Progress]


def init_state(
    config: Config, seeds: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32
) -> TrainState:
    """The state before the first step, a row for each seed: teacher equal to student, moments and centres zero."""
    student = torch.stack([init_weights(config.model, seed) for seed in seeds]).to(device, dtype)
    if config.mask.token == "zero":
        student[:, weight_place("mask_token", config.model)] = 0.0
    centers = torch.zeros(len(seeds), config.model.projection, device=device, dtype=dtype)
    return TrainState(
        student=student.clone(),
        teacher=student.clone(),
        moment1=torch.zeros_like(student),
        moment2=torch.zeros_like(student),
        cls_center=centers.clone(),
        particle_center=centers.clone(),
        step=torch.zeros(len(seeds), dtype=torch.int64, device=device),
        progress=[Progress() for _ in seeds],
    )


def learning_rate(epoch: int, config: OptimConfig) -> float:
    """Linear warm-up set once an epoch, then constant."""
    return config.lr * min(1.0, (epoch + 1) / config.warmup_epochs) if config.warmup_epochs else config.lr


def ema_momentum(epoch: int, epochs: int, config: TeacherConfig) -> float:
    """Goes from its first value towards its final one along a cosine."""
    first, final = config.ema_momentum, config.ema_final
    return final - (final - first) * (1.0 + math.cos(math.pi * epoch / epochs)) / 2.0


def train(
    configs: Sequence[Config],
    particles: Float[Tensor, "jet particle 4"],
    rows: Sequence[Int64[Tensor, "_"]],
    state: TrainState,
    probe: Callable[[int, TrainState], Metrics],
    after_epoch: Callable[[list[int]], None],
    forward: Forward = forward,
) -> TrainState:
    """Train the trials of a pack from `state` to their last epoch; a trial that fails ends alone, with its reason.

    What `train.schedule` changes holds from the first step of its epoch on; before, nothing of it is felt.

    Parameters
    ----------
    configs : sequence of Config
        One a trial, equal in the fields a pack shares.
    particles : float tensor (jet, particle, 4)
        All jets, on the device of the state.
    rows : sequence of int64 tensor (jet,)
        For each trial, its training jets among them.
    probe : callable
        Judges the frozen student of a trial, given its number and its state alone; called at epoch 0, every
        `probe.every` epochs, at SNAPSHOT_EPOCHS and at the end. A TrialFailed that it raises ends that trial.
    after_epoch : callable
        Called with the numbers of the trials that have just done an epoch and its probe, or have failed: the place to
        save checkpoints and report progress.
    forward : callable
        Encoder and head.
    """
    pack = Pack(configs, particles.device, state.student.dtype)
    ends = [config.train.last_epoch for config in configs]
    fresh = [trial for trial, progress in enumerate(state.progress) if not progress.curves]
    for trial in fresh:
        add_point(state, trial, {}, probe)
    if fresh:
        after_epoch(fresh)
    while trials := furthest_behind(state.progress, ends):
        means = run_epoch(pack, particles, rows, state, trials, forward)
        for trial in trials:
            progress = state.progress[trial]
            progress.epoch += 1
            if broken := [name for name, value in means[trial].items() if not math.isfinite(value)]:
                progress.reason = f"diverged: {broken[0]} is not finite in epoch {progress.epoch}"
            elif is_probed(progress.epoch, configs[trial]):
                add_point(state, trial, means[trial], probe)
                judged = progress.reason is None and may_collapse(progress.epoch, configs[trial])
                if judged and (why := collapse(progress.curves[-1], progress.curves[0])):
                    progress.reason = f"collapsed: {why} after epoch {progress.epoch}"
        after_epoch(trials)
    return state


def is_probed(epoch: int, config: Config) -> bool:
    """Whether the learning curves have a point when so many epochs are done."""
    return epoch in SNAPSHOT_EPOCHS or may_collapse(epoch, config)


def may_collapse(epoch: int, config: Config) -> bool:
    """Whether a collapse ends the trial when so many epochs are done: after the first one it may still pass."""
    return epoch % config.probe.every == 0 or epoch == config.train.last_epoch


def curve_epochs(config: Config) -> list[int]:
    """Finished epochs at which learning curves have points."""
    return [epoch for epoch in range(config.train.last_epoch + 1) if is_probed(epoch, config)]


def furthest_behind(progress: Sequence[Progress], ends: Sequence[int]) -> list[int]:
    """The unfinished trials with the fewest epochs: after a crash, the trials of a pack may stand at different ones."""
    left = {trial: one.epoch for trial, one in enumerate(progress) if one.epoch < ends[trial] and one.reason is None}
    return [trial for trial, epoch in left.items() if epoch == min(left.values())]


def run_epoch(
    pack: Pack,
    particles: Float[Tensor, "jet particle 4"],
    rows: Sequence[Int64[Tensor, "_"]],
    state: TrainState,
    trials: list[int],
    forward: Forward = forward,
) -> dict[int, Metrics]:
    """One epoch of trials that stand at the same one; the means of their training metrics, by trial."""
    started = time.perf_counter()
    device, batch, epoch = particles.device, pack.configs[0].train.batch, state.progress[trials[0]].epoch
    pack.enter(trials, epoch)
    order, rates = {}, {}
    for trial in trials:
        config = pack.configs[trial]
        order[trial] = rows[trial][epoch_order(len(rows[trial]), config.seed, epoch).to(device)]
        rates[trial] = (
            learning_rate(epoch, config.optim),
            ema_momentum(epoch, config.train.epochs, config.teacher),
        )
    sums = torch.zeros(len(TERMS), len(rows), device=device, dtype=torch.float64)
    counts = {trial: len(order[trial]) for trial in trials}
    for members, first, steps, jets in stretches(counts, batch, VIEW_JETS.get(device.type, 256)):
        begin, end = first * batch, first * batch + steps * jets
        index = torch.stack([order[trial][begin:end].view(steps, jets) for trial in members], dim=1)
        batches = particles.index_select(0, index.flatten()).view(*index.shape, *particles.shape[1:])
        lr, momentum = torch.tensor([rates[trial] for trial in members], dtype=torch.float64).to(device).unbind(1)
        with state.only(members) as part:
            sums[:, members] += run_steps(part, batches, pack, members, lr, momentum, forward)
    totals = sums.T.tolist()  # waits for the device
    seconds = time.perf_counter() - started
    means = {}
    for trial in trials:
        state.progress[trial].train_seconds += seconds * counts[trial] / sum(counts.values())
        steps = len(batch_sizes(counts[trial], batch))
        means[trial] = {f"train/{name}": total / steps for name, total in zip(TERMS, totals[trial], strict=True)}
        means[trial] |= dict(zip(("train/lr", "train/ema_momentum"), rates[trial], strict=True))
    return means


def epoch_order(jets: int, seed: int, epoch: int) -> Int64[Tensor, "jet"]:
    """The order in which an epoch goes through the training jets."""
    return torch.from_numpy(numpy_generator(seed, "order", epoch).permutation(jets))


def batch_sizes(jets: int, batch: int) -> list[int]:
    """Jets of each step of an epoch; the last batch may be smaller, but never a single jet (KoLeo needs two)."""
    rest = jets % batch
    return [batch] * (jets // batch) + ([rest] if rest > 1 else [])


def stretches(jets: dict[int, int], batch: int, most: int) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
    """An epoch as (trials, first step, steps, jets a step): trials whose batches are of one size step together.

    Parameters
    ----------
    jets : dict
        Training jets by trial.
    most : int
        Jets of one stretch, all its trials and steps together; a single step may have more.
    """
    sizes = {trial: batch_sizes(count, batch) for trial, count in jets.items()}

    def by_size(step: int) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = {}
        for trial, of_trial in sizes.items():
            if step < len(of_trial):
                groups.setdefault(of_trial[step], []).append(trial)
        return groups

    first = 0
    for groups, run in itertools.groupby(range(max(map(len, sizes.values()))), by_size):
        end = first + len(list(run))
        for size, trials in groups.items():
            ahead = max(1, most // (size * len(trials)))
            for begin in range(first, end, ahead):
                yield tuple(trials), begin, min(ahead, end - begin), size
        first = end


def run_steps(
    state: TrainState,
    jets: Float[Tensor, "step trial jet particle 4"],
    pack: Pack,
    members: tuple[int, ...],
    lr: Rates,
    momentum: Rates,
    forward: Forward = forward,
) -> Float[Tensor, "term trial"]:
    """Consecutive steps of the pack's `members`, whose state is `state`; sums of TERMS over the steps."""
    knobs = pack.knobs(members)
    views, masked = views_of_steps(jets, state.step, pack.knobs(members, len(jets)))
    sums = torch.zeros(len(TERMS), len(members), device=jets.device, dtype=torch.float64)
    # Some of a pack's trials step on a copy of their state, which has another address each time: no graph.
    graphs = pack.graphs if len(members) == len(pack.configs) else None
    # Few shapes in bf16 too: oneDNN makes, and keeps, a program for each (1 GB after a trial, and 1.7 times the time).
    few_shapes = graphs or pack.configs[0].train.precision == "bf16"
    capacity = row_capacity(masked) if few_shapes else None

    def step(state: TrainState, views: Particles, masked: Masked, lr: Rates, momentum: Rates) -> dict[str, Tensor]:
        return train_step(state, views, masked, knobs, lr, momentum, forward, capacity)

    for one in zip(views, masked, strict=True):
        inputs = (*one, lr, momentum)
        terms = graphs(step, state, inputs, capacity) if graphs else step(state, *inputs)
        sums += torch.stack([terms[name] for name in TERMS])
    return sums


def views_of_steps(
    jets: Float[Tensor, "step trial jet particle 4"], first: Int64[Tensor, "trial"], config: Config
) -> tuple[Float[Tensor, "step trial 2 jet particle 4"], Bool[Tensor, "step trial 2 jet particle"]]:
    """Views and masks of consecutive steps from step `first`, in one call: neither feels the weights.

    Draws depend on (seed, stream, step) alone, so the views are those of one call a step, bit for bit.
    `config` is stacked with (step, trial) as one axis.
    """
    steps = first + torch.arange(len(jets), device=jets.device)[:, None]
    seeds: Any = config.seed  # stacked
    draws = Draws(seeds, steps.flatten())
    views = augment(jets.flatten(0, 1), draws, config.augment)
    masked = mask_views(views, draws, config.mask)
    return views.unflatten(0, steps.shape), masked.unflatten(0, steps.shape)


def train_step(
    state: TrainState,
    views: Particles,
    masked: Masked,
    config: Config,
    lr: Rates,
    momentum: Rates,
    forward: Forward = forward,
    capacity: int | None = None,
) -> dict[str, Float[Tensor, "trial"]]:
    """One gradient step of the student, then the teacher's average and the centres.

    Parameters
    ----------
    config : Config
        Stacked (:func:`jbot.trainer.pack.stack`).
    lr, momentum : float64 tensor (trial,)
        Learning rate, and how much of itself the teacher keeps.
    capacity : int, optional
        See :func:`masked_rows`. With it, nothing is read on the host and no shape depends on data.

    Returns
    -------
    dict
        TERMS by name, each (trial,); `state` is changed in place.
    """
    masked_tokens, weight = masked_rows(masked, capacity)
    trials, _, jets, slots, _ = views.shape
    rows = torch.cat((cls_rows(trials, 2 * jets, slots, views.device), masked_tokens), dim=1)
    particles = views.flatten(1, 2)
    with torch.no_grad():
        _, taught = forward(state.teacher, particles, config.model)
    student = state.student.detach().requires_grad_()
    hidden = None if config.mask.token == "none" else masked.flatten(1, 2)
    seeds: Any = config.seed  # stacked
    factors = step_factors(
        seeds, state.step, config.train.dropout, config.model, 2 * jets * (slots + 1), rows.shape[1], particles.dtype
    )
    raw, predicted = forward(student, particles, config.model, hidden, rows, factors)
    terms = losses(state, raw, predicted, taught, rows, weight, config)
    (gradient,) = torch.autograd.grad(terms["loss"].sum(), student)
    with torch.no_grad():
        if config.mask.token == "zero":  # without gradient, Adam and its decay leave a zero where it is
            gradient[:, weight_place("mask_token", config.model)] = 0.0
        update(state, gradient, taught, views[..., 3], config, lr, momentum)
        terms["masked_fraction"] = masked.sum(dim=(1, 2, 3)) / views[..., 3].sum(dim=(1, 2, 3))
    return {name: value.detach() for name, value in terms.items()}


def losses(
    state: TrainState,
    raw: Float[Tensor, "trial row dim"],
    predicted: Float[Tensor, "trial row projection"],
    taught: Float[Tensor, "trial token projection"],
    rows: Int64[Tensor, "trial row"],
    weight: Float[Tensor, "trial masked"],
    config: Config,
) -> dict[str, Float[Tensor, "trial"]]:
    """The loss, its terms, and the entropies of teacher and student [CLS] in nats.

    Parameters
    ----------
    raw, predicted : float tensor
        The student's at `rows`: [CLS] of u, [CLS] of v, then masked particles.
    taught : float tensor
        The teacher's, of all tokens.
    """
    cls, jets = rows.shape[1] - weight.shape[1], (rows.shape[1] - weight.shape[1]) // 2
    targets, temp = take_rows(taught, rows), column(config.loss.teacher_temp, 2)
    cls_targets = teacher_targets(targets[:, :cls], state.cls_center[:, None], temp).unflatten(1, (2, jets))
    particle_targets = teacher_targets(targets[:, cls:], state.particle_center[:, None], temp)
    log_predicted = log_predictions(predicted, column(config.loss.student_temp, 2))
    cls_predicted = log_predicted[:, :cls].unflatten(1, (2, jets))
    terms = {
        "cls_loss": cls_loss(cls_targets, cls_predicted),
        "particle_loss": particle_loss(particle_targets, log_predicted[:, cls:], weight),
        "koleo_loss": koleo_loss(raw[:, :jets]),
    }
    total = (
        config.loss.cls_weight * terms["cls_loss"]
        + config.loss.particle_weight * terms["particle_loss"]
        + config.loss.koleo_weight * terms["koleo_loss"]
    )
    with torch.no_grad():
        entropies = entropy(cls_targets), entropy(cls_predicted.exp())
    names = "teacher_entropy", "student_entropy"
    return {"loss": total} | terms | {n: value.mean(dim=(1, 2)) for n, value in zip(names, entropies, strict=True)}


def update(
    state: TrainState,
    gradient: Flat,
    taught: Float[Tensor, "trial token projection"],
    valid: Float[Tensor, "trial 2 jet particle"],
    config: Config,
    lr: Rates,
    momentum: Rates,
) -> None:
    """Optimiser, teacher's average and centres, in this order."""
    adamw(state, gradient, lr, config.optim)
    state.teacher.lerp_(state.student, column(1.0 - momentum, 1).to(state.teacher.dtype))
    update_centers(state, taught.unflatten(1, (*valid.shape[1:3], valid.shape[3] + 1)), valid, config)
    state.step += 1


def masked_rows(
    masked: Masked, capacity: int | None = None
) -> tuple[Int64[Tensor, "trial row"], Float[Tensor, "trial row"]]:
    """Token numbers of the masked particles, and weights that make a sum over them the mean over views of means.

    As many rows as the trial with the most has, which is read on the host; or `capacity` of them, which must not be
    fewer. Behind the masked particles of a trial that has fewer stand rows of number -1, with weight 0: none of its
    tokens, so that it computes the same as alone.
    """
    slots, flat = masked.shape[-1], masked.flatten(1)
    per_view = masked.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    weight = (masked / (2.0 * per_view)).flatten(1)
    if len(masked) == 1 and capacity is None:  # a pack of one, the ordinary case
        index = flat[0].nonzero().T
        return index + index // slots + 1, weight.gather(1, index)
    count = int(flat.sum(dim=1).max()) if capacity is None else capacity
    # A stable partition: the masked particles first, each at its rank among them, then the others.
    rank = torch.where(flat, flat.cumsum(1), flat.sum(1, keepdim=True) + (~flat).cumsum(1)) - 1
    numbers = torch.arange(flat.shape[1], device=flat.device).expand_as(rank)
    index = torch.empty_like(rank).scatter_(1, rank, numbers)[:, :count]
    weight = weight.gather(1, index)
    return torch.where(weight > 0, index + index // slots + 1, -1), weight


def adamw(state: TrainState, gradient: Flat, lr: Rates, config: OptimConfig) -> None:
    """AdamW as Keras has it: decay on every weight, eps outside the bias correction (arXiv:1711.05101).

    `config` is stacked: float64, so that 1 - beta2 and the bias corrections keep their digits.
    """
    beta1, beta2, t = config.beta1, config.beta2, state.step + 1
    step_size = lr * torch.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
    numbers: Any = (1.0 - beta1, 1.0 - beta2, 1.0 - lr * config.weight_decay, -step_size, config.eps)
    new1, new2, kept, move, eps = torch.stack(numbers).to(gradient.dtype)[..., None].unbind()
    state.moment1.lerp_(gradient, new1)
    state.moment2.lerp_(gradient.square(), new2)
    state.student.mul_(kept).addcdiv_(state.moment1 * move, state.moment2.sqrt().add_(eps))


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
    new = column(1.0 - config.teacher.center_momentum, 1).to(cls.dtype)
    state.cls_center.lerp_(cls.mean(dim=(1, 2)), new)
    state.particle_center.lerp_(particle_mean, new)


def collapse(point: dict[str, Any], untrained: dict[str, Any]) -> str | None:
    """Why the encoder of a curve point says nothing about its jets any more, or None when it does.

    Uniform attention is where an encoder of one layer begins, as [CLS] is zero: only a later layer can lose it.
    """
    if point["val/spread"] < MIN_SPREAD:
        return f"the spread of the embedding is {point['val/spread']:.2g}"
    if point["train/teacher_entropy"] < MIN_ENTROPY:
        return f"the entropy of the teacher is {point['train/teacher_entropy']:.2g} nats"
    if untrained["val/attention_entropy"] <= MAX_ATTENTION_ENTROPY < point["val/attention_entropy"]:
        return "the [CLS] attention is uniform in every head"
    return None


def add_point(state: TrainState, trial: int, means: Metrics, probe: Callable[[int, TrainState], Metrics]) -> None:
    """Probe a trial's student and add a row to its learning curves; no embedding is the reason of its failure."""
    progress, started = state.progress[trial], time.perf_counter()
    try:
        probed = probe(trial, state.row(trial))
    except TrialFailed as failure:
        progress.reason = str(failure)
        return
    finally:
        progress.probe_seconds += time.perf_counter() - started
    at = {"epoch": progress.epoch, "step": int(state.step[trial]), "device_seconds": round(progress.train_seconds, 3)}
    progress.curves.append(at | probed | means)

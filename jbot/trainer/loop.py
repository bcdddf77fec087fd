"""Pre-training: one flat loop over epochs and steps, for one trial or a pack of them.

    while some trial is unfinished: one epoch of those furthest behind
        each step: two views, masks, train_step(state, views, masked, ...)

Every tensor has a leading trial axis. Nothing here knows of files, Ray or studies: `train` calls back after each epoch.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from jbot.config import Config, OptimConfig, TeacherConfig
from jbot.trainer.augment import Particles, augment
from jbot.trainer.engines.graphs import row_capacity
from jbot.trainer.engines.select import Forward
from jbot.trainer.masking import Masked, mask_views
from jbot.trainer.model import forward
from jbot.trainer.pack import Pack
from jbot.trainer.rng import Draws
from jbot.trainer.state import Progress, TrainState, diverged, epoch_order, furthest_behind
from jbot.trainer.step import TERMS, Rates, train_step
from jbot.trainer.workload import is_probed, may_collapse

Metrics = dict[str, float]

# Beyond these an embedding says nothing about its jets (assumed; an untrained encoder is far from all three).
MIN_SPREAD = 1e-3
MIN_ENTROPY = 1e-3
MAX_ATTENTION_ENTROPY = 0.9999

VIEW_JETS = {"cpu": 256, "cuda": 16_384}
"""Jets whose views are made in one call, several steps ahead when batches are small: at batch 16, a call for each step
costs three times as much. The arrays of 256 jets stay in a CPU's cache; the number for a GPU is assumed."""


class TrialFailed(Exception):  # noqa: N818 - an outcome of the trial, not an error of the program
    """A trial that diverged or collapsed: its reason."""


def learning_rate(epoch: int, epochs: int, config: OptimConfig) -> float:
    """Linear warm-up, then along a cosine to its final share; set once an epoch."""
    if epoch < config.warmup_epochs:
        return config.lr * ((epoch + 1) / config.warmup_epochs)
    passed = (epoch - config.warmup_epochs) / max(1, epochs - 1 - config.warmup_epochs)
    return config.lr * (config.final_lr + (1.0 - config.final_lr) * (1.0 + math.cos(math.pi * passed)) / 2.0)


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
        One per trial, equal in the fields a pack shares.
    particles : float tensor (jet, particle, 4)
        All jets, on the device of the state.
    rows : sequence of int64 tensor (jet,)
        For each trial, its training jets among them.
    probe : callable
        Evaluates the frozen student of a trial, given its number and its state alone; called at epoch 0, every
        `probe.every` epochs, at SNAPSHOT_EPOCHS and at the end. A TrialFailed that it raises ends that trial.
    after_epoch : callable
        Called with the numbers of the trials that have just done an epoch and its probe, or have failed: the place to
        save checkpoints and report progress.
    forward : callable
        Encoder and head.
    """
    pack = Pack(configs, particles.device, state.student.dtype)
    fresh = [trial for trial, progress in enumerate(state.progress) if not progress.curves]
    for trial in fresh:
        add_point(state, trial, {}, probe)
    if fresh:
        after_epoch(fresh)
    while trials := furthest_behind(state.progress, list(map(has_ended, configs, state.progress))):
        means = run_epoch(pack, particles, rows, state, trials, forward)
        for trial in trials:
            finish_epoch(state, trial, means[trial], configs[trial], probe)
        after_epoch(trials)
    return state


def finish_epoch(
    state: TrainState, trial: int, means: Metrics, config: Config, probe: Callable[[int, TrainState], Metrics]
) -> None:
    """Count a trial's epoch, add a point to its learning curves where one is due, and say why it failed if it has."""
    progress = state.progress[trial]
    progress.epoch += 1
    progress.reason = diverged(means, progress.epoch)
    if progress.reason is None and is_probed(progress.epoch, config):
        add_point(state, trial, means, probe)
        may_end = progress.reason is None and may_collapse(progress.epoch, config)
        if may_end and (why := collapse(progress.curves[-1], progress.curves[0])):
            progress.reason = f"collapsed: {why} after epoch {progress.epoch}"


def has_ended(config: Config, progress: Progress) -> bool:
    """Whether a trial takes no further step."""
    return progress.reason is not None or progress.epoch >= config.train.last_epoch


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
        teacher = ema_momentum(epoch, config.train.epochs, config.teacher)
        rates[trial] = learning_rate(epoch, config.train.epochs, config.optim), teacher
    sums = torch.zeros(len(TERMS), len(rows), device=device, dtype=torch.float64)
    counts = {trial: len(order[trial]) for trial in trials}
    for members, first, steps, jets in step_groups(counts, batch, VIEW_JETS.get(device.type, 256)):
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


def batch_sizes(jets: int, batch: int) -> list[int]:
    """Jets of each step of an epoch; the last batch may be smaller, but never a single jet (KoLeo needs two)."""
    rest = jets % batch
    return [batch] * (jets // batch) + ([rest] if rest > 1 else [])


def step_groups(jets: dict[int, int], batch: int, max_jets: int) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
    """An epoch as (trials, first step, steps, jets per step): trials whose batches are of one size step together.

    `jets` are the training jets by trial; a group has at most `max_jets`, all its trials and steps together, but for
    that of a single step.
    """
    sizes = {trial: batch_sizes(count, batch) for trial, count in jets.items()}

    def by_size(step: int) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = {}
        for trial, steps in sizes.items():
            if step < len(steps):
                groups.setdefault(steps[step], []).append(trial)
        return groups

    first = 0
    for groups, run in itertools.groupby(range(max(map(len, sizes.values()))), by_size):
        end = first + len(list(run))
        for size, trials in groups.items():
            ahead = max(1, max_jets // (size * len(trials)))
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
    hyper = pack.hyper(members)
    views, masked = views_of_steps(jets, state.step, pack.hyper(members, len(jets)))
    sums = torch.zeros(len(TERMS), len(members), device=jets.device, dtype=torch.float64)
    # Some of a pack's trials step on a copy of their state, which has another address each time: no graph.
    graphs = pack.graphs if len(members) == len(pack.configs) else None
    capacity = row_capacity(masked) if graphs else None

    def step(state: TrainState, views: Particles, masked: Masked, lr: Rates, momentum: Rates) -> dict[str, Tensor]:
        return train_step(state, views, masked, hyper, lr, momentum, forward, capacity)

    for one in zip(views, masked, strict=True):
        inputs = (*one, lr, momentum)
        terms = graphs(step, state, inputs, capacity) if graphs else step(state, *inputs)
        sums += torch.stack([terms[name] for name in TERMS])
    return sums


def views_of_steps(
    jets: Float[Tensor, "step trial jet particle 4"], first: Int64[Tensor, "trial"], config: Config
) -> tuple[Float[Tensor, "step trial 2 jet particle 4"], Bool[Tensor, "step trial 2 jet particle"]]:
    """Views and masks of consecutive steps from step `first`, in one call: neither feels the weights.

    Draws depend on (seed, stream, step) alone, so the views are those of one call per step, bit for bit.
    `config` is stacked with (step, trial) as one axis.
    """
    steps = first + torch.arange(len(jets), device=jets.device)[:, None]
    seeds: Any = config.seed  # stacked
    draws = Draws(seeds, steps.flatten())
    views = augment(jets.flatten(0, 1), draws, config.augment)
    masked = mask_views(views, draws, config.mask)
    return views.unflatten(0, steps.shape), masked.unflatten(0, steps.shape)


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

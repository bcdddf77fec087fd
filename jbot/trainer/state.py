"""What a pack is between two steps: tensors with a leading trial axis, and how far each trial is."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jbot.config import Config
from jbot.trainer.model import Flat, init_weights, weight_slice
from jbot.trainer.rng import numpy_generator


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
    """All that the trials of a pack are, between two steps. A step (`jbot.trainer.step`) changes it in place."""

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
    share = config.train.perturbation
    student = torch.stack([perturbed(init_weights(config.model, seed), share, seed) for seed in seeds]).to(
        device, dtype
    )
    if config.mask.token == "zero":
        student[:, weight_slice("mask_token", config.model)] = 0.0
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


def perturbed(weights: Float[Tensor, "weight"], share: float, seed: int) -> Float[Tensor, "weight"]:
    """Weights times 1 + share * Normal(0, 1); as they are where the share is 0."""
    if not share:
        return weights
    noise = numpy_generator(seed, "init/perturbation").standard_normal(len(weights))
    return weights * torch.from_numpy(1 + share * noise).to(weights.dtype)


def diverged(means: dict[str, float], epoch: int) -> str | None:
    """The reason to fail after an epoch of which a mean is not finite, else None."""
    broken = [name for name, value in means.items() if not math.isfinite(value)]
    return f"diverged: {broken[0]} is not finite in epoch {epoch}" if broken else None


def furthest_behind(progress: Sequence[Any], ended: Sequence[bool]) -> list[int]:
    """Those with the fewest epochs that have not ended: after a crash, the members of a pack may stand apart."""
    left = {number: one.epoch for number, (one, done) in enumerate(zip(progress, ended, strict=True)) if not done}
    return [number for number, epoch in left.items() if epoch == min(left.values())]


def epoch_order(jets: int, seed: int, epoch: int, stream: str = "order") -> Int64[Tensor, "jet"]:
    """The order in which an epoch goes through the training jets; fine-tuning has a stream of its own."""
    return torch.from_numpy(numpy_generator(seed, stream, epoch).permutation(jets))

"""The fields in which the trials of a pack differ, as tensors with a leading trial axis.

A pack trains trials of equal tensor shapes together. Where their Configs differ, the step reads a (trial,) tensor in
the place of a number: `stack` makes one Config-shaped object of many Configs, so that the formulas of the step read
the same for one trial and for a pack. Nothing in a step reads such a tensor on the host.

With the C++ kernel a trial's result in a pack is that of the trial alone, bit for bit. Plain torch multiplies one
matrix and a batch of them in different orders: there the two differ by rounding, which training amplifies.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jbot.config import FIELDS, Config, at_epoch, flatten
from jbot.trainer.engines.graphs import StepGraphs


class PackError(ValueError):
    """Trials that cannot be trained together."""


def pack_key(config: Config) -> Hashable:
    """Trials with equal keys can share a pack."""
    return tuple((name, value) for name, value in flatten(config).items() if FIELDS[name].shared)


def check_shared(configs: Sequence[Config]) -> None:
    """Raise a PackError that names the first shared field in which trials differ."""
    first = flatten(configs[0])
    for other in map(flatten, configs[1:]):
        for name in first:
            if FIELDS[name].shared and other[name] != first[name]:
                raise PackError(f"trials of a pack must share {name}, got {first[name]!r} and {other[name]!r}")


def stack(configs: Sequence[Config], device: torch.device, dtype: torch.dtype = torch.float32) -> Config:
    """One Config-shaped object for a pack.

    Shared fields are plain values. A numeric field that may differ is a (trial,) tensor on `device`: int64 for whole
    numbers, float64 for optimiser, teacher and dropout (1 - beta2 needs the digits), else `dtype`; an augmentation or a
    dropout that is off in every trial is the plain number 0. A text field is the text when all agree, else
    {text: its rows}; a field of several values is those of each trial.
    """
    flat = [flatten(config) for config in configs]
    values = {
        name: value if FIELDS[name].shared else _stacked(name, [one[name] for one in flat], device, dtype)
        for name, value in flat[0].items()
    }
    return _unchecked(values)


def column(value: Tensor | float | int, dims: int) -> Any:
    """A (trial,) tensor with `dims` axes of length 1 behind; a plain number, which is the same for all, as it is."""
    return value.view(-1, *[1] * dims) if isinstance(value, Tensor) else value


def is_off(strength: Tensor | float | int) -> bool:
    """Whether an augmentation or a dropout is off in every trial."""
    return not isinstance(strength, Tensor) and strength == 0


class Pack:
    """The Configs of trials that are trained together, and what is made once for them: stacks, recorded steps.

    `configs` are those that hold in the epochs that the trials have entered.
    """

    def __init__(self, configs: Sequence[Config], device: torch.device, dtype: torch.dtype = torch.float32):
        check_shared(configs)
        self.configs, self.device, self.dtype = list(configs), device, dtype
        self._planned = tuple(configs)
        self._forget()

    def enter(self, trials: Sequence[int], epoch: int) -> None:
        """Some trials begin an epoch: their schedules say what holds in it."""
        now = {trial: at_epoch(self._planned[trial], epoch) for trial in trials if self._planned[trial].train.schedule}
        if any(self.configs[trial] != config for trial, config in now.items()):
            for trial, config in now.items():
                self.configs[trial] = config
            self._forget()

    def _forget(self) -> None:
        """A recorded step reads the stacks it was recorded with: new ones need a new recording."""
        self.graphs = StepGraphs() if self.device.type == "cuda" else None
        self._stacks: dict[tuple[tuple[int, ...], int], Config] = {}

    def hyper(self, trials: tuple[int, ...], steps: int = 1) -> Config:
        """The per-trial hyperparameters of some trials as one stack, `steps` times over: (step, trial) as one axis."""
        if (trials, steps) not in self._stacks:
            chosen = [self.configs[trial] for trial in trials] * steps
            self._stacks[trials, steps] = stack(chosen, self.device, self.dtype)
        return self._stacks[trials, steps]


def _stacked(name: str, values: list[Any], device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(values[0], tuple):
        return tuple(values)  # train.schedule, which no step reads
    if isinstance(values[0], str):
        if len(set(values)) == 1:
            return values[0]
        rows = {text: [row for row, value in enumerate(values) if value == text] for text in dict.fromkeys(values)}
        return {text: torch.tensor(numbers, device=device) for text, numbers in rows.items()}
    if FIELDS[name].kind is int:
        return torch.tensor(values, device=device)
    if name.startswith(("augment.", "train.")) and not any(values):
        return 0.0
    exact = name.startswith(("optim.", "teacher.", "train."))
    return torch.tensor(values, device=device, dtype=torch.float64 if exact else dtype)


def _unchecked(values: Mapping[str, Any]) -> Config:
    """A Config from dotted fields, without the checks of its class: those know numbers, not tensors."""
    whole, example = object.__new__(Config), Config()
    for name, value in values.items():
        group, _, leaf = name.rpartition(".")
        part = vars(whole).setdefault(group, object.__new__(type(getattr(example, group)))) if group else whole
        vars(part)[leaf] = value
    return whole

"""Axes of scaling: models, and sizes of the training set, at fixed epochs and at fixed optimiser steps."""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from typing import Any

from jbot.config import JBOT_B, Config

MODELS: dict[str, dict[str, Any]] = {
    "XS": {"model.dim": 16, "model.heads": 2, "model.layers": 1, "model.projection": 8},
    "S": {},
    "M": {"model.dim": 48, "model.heads": 6, "model.layers": 3, "model.projection": 24},
    "B": JBOT_B,
}
"""S and B are the paper's: 32 and 64 wide, 2 and 4 layers. XS and M continue the line, 16 a layer, in heads of 8 as S
has (B: 10), with d / 2 outputs of the projection head as both have."""

SIZES = tuple(map(Fraction, ("2/125", "1/25", "2/25", "1/5", "2/5", "1", "2", "4", "10")))
"""Training jets, to the base's. Steps of 2 and 2.5, nearly even on a log axis, and 128,000, 600,000, 2,000,000 and
56,000,000 jet passes (the presets quick, laptop, gpu and paper) divide into whole epochs; powers of 2 do not."""


def arms(base: Config) -> dict[str, dict[str, Any]]:
    """Arms ``<model>_x<size>`` with the epochs of the base, and ``..._steps`` with its optimiser steps instead.

    The base itself is ``S_x1``. Jets and epochs are rounded where the base's do not divide.
    """
    fixed_epochs = {
        name(model, size): {**shape, **jets(base, size)} for model, shape in MODELS.items() for size in SIZES
    }
    fixed_steps = {
        name(model, size, steps=True): {**shape, **jets(base, size), **epochs(base, size)}
        for model, shape in MODELS.items()
        for size in SIZES
        if size != 1
    }
    return fixed_epochs | fixed_steps


def jets(base: Config, size: Fraction) -> dict[str, Any]:
    """Overrides of another training set. Labels of the probes are as many as in the base, whatever the encoder saw."""
    if size == 1:
        return {}
    count = round(base.data.train_jets * size)
    labeled = min(base.probe.bank_jets, base.data.train_jets)
    return {"data.train_jets": count} | ({"data.labeled_jets": labeled} if count < labeled else {})


def epochs(base: Config, size: Fraction) -> dict[str, Any]:
    """Overrides that keep the base's optimiser steps: epochs, those of warm-up, and those between probes."""
    warmup = base.optim.warmup_epochs
    return {
        "train.epochs": max(1, round(base.train.epochs / size)),
        # A single epoch of warm-up is none, as the rate is set once an epoch.
        "optim.warmup_epochs": max(1, round(warmup / size)) if warmup > 1 else warmup,
        "probe.every": max(1, round(base.probe.every / size)),
    }


def name(model: str, size: Fraction | str, *, steps: bool = False) -> str:
    """``S_x0.2``, ``S_x0.2_steps``."""
    return f"{model}_x{float(Fraction(size)):g}{'_steps' if steps else ''}"


def names(models: Collection[str], largest: Fraction | int, smallest: Fraction | str = SIZES[0]) -> tuple[str, ...]:
    """The arms of some models over the sizes between two, both ways."""
    sizes = [size for size in SIZES if Fraction(smallest) <= size <= largest]
    both = [(size, steps) for steps in (False, True) for size in sizes if size != 1 or not steps]
    return tuple(name(model, size, steps=steps) for model in models for size, steps in both)

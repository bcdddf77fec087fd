"""The sizes in which every study can be run: changes to the paper's settings (the defaults of Config).

The paper's batch and rate need some 55,000 steps; in a few core minutes they stay near the untrained encoder. So the
small presets use small batches, which KoLeo and the centres feel: the report names the preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jbot.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A size: Config changes, blocks, and what one pack of trials holds."""

    about: str
    base: Mapping[str, Any]
    seeds: int
    cpus: float = 1.0
    gpus: float = 0.0


STEADY = {
    "optim.lr": 1e-3,
    "optim.warmup_epochs": 1,
    "teacher.ema_momentum": 0.998,
    "teacher.ema_final": 0.998,
}
"""What the small presets change of the paper's recipe: half its rate, and a teacher whose window stays at 500 steps.
docs/performance.md has what this gains in accuracy, and in how alike trials of one seed are."""

PRESETS = {
    "smoke": Preset(
        about="proves the path, answers nothing",
        base={
            "data.train_jets": 600,
            "data.val_jets": 150,
            "data.test_jets": 300,
            "optim.warmup_epochs": 1,
            "optim.lr": 2e-3,
            "train.batch": 50,
            "train.epochs": 2,
            "probe.every": 1,
            "finetune.epochs": 2,
            "finetune.batch": 50,
        },
        seeds=2,
    ),
    "quick": Preset(
        about="25,000 jets in all, for two cores and a quarter of an hour",
        base={
            "data.train_jets": 16_000,
            "data.val_jets": 1_500,
            "data.test_jets": 7_500,
            "train.batch": 16,
            "train.epochs": 8,
            "probe.every": 2,
            "probe.bank_jets": 16_000,
            "finetune.epochs": 30,
            "finetune.batch": 16,
            **STEADY,
            "teacher.ema_momentum": 0.996,
            "teacher.ema_final": 0.996,
        },
        seeds=6,
    ),
    "laptop": Preset(
        about="130,000 jets in all, near the accuracy of the paper: three core minutes a trial",
        base={
            "data.train_jets": 100_000,
            "data.val_jets": 5_000,
            "data.test_jets": 25_000,
            "train.batch": 64,
            "train.epochs": 6,
            "probe.every": 2,
            "probe.bank_jets": 20_000,
            "finetune.epochs": 30,
            "finetune.batch": 64,
            **STEADY,
        },
        seeds=6,
    ),
    "gpu": Preset(
        about="135,000 jets in all, for one GPU (its hours are not measured yet)",
        base={
            "data.train_jets": 100_000,
            "data.val_jets": 10_000,
            "data.test_jets": 25_000,
            "train.batch": 256,
            "train.epochs": 20,
            "probe.every": 4,
            "finetune.epochs": 25,
            "finetune.batch": 256,
            **STEADY,
            "optim.lr": 2e-3,
        },
        seeds=8,
        cpus=2.0,
        gpus=1.0,
    ),
    "paper": Preset(
        about="the paper's jets, batches of 1024 and epochs",
        base={},
        seeds=8,
        cpus=4.0,
        gpus=1.0,
    ),
}


SMALL = ("smoke", "quick", "laptop")
"""Presets of a size at which studies run the arms of their main contrasts alone."""


def get_preset(name: str) -> Preset:
    """A preset by name."""
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]

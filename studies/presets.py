"""The sizes in which every study can be run: changes to the paper's settings (the defaults of Config).

The paper's batch and rate need some 55,000 steps; at laptop size they stay near the untrained encoder. So the small
presets use small batches, which KoLeo and the centres feel: the report names the preset.
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
        about="15,000 jets in all, for two cores and some minutes",
        base={
            "data.train_jets": 10_000,
            "data.val_jets": 1_500,
            "data.test_jets": 3_500,
            "optim.warmup_epochs": 2,
            "optim.lr": 2e-3,
            "train.batch": 16,
            "train.epochs": 8,
            "probe.every": 2,
            "probe.bank_jets": 5_000,
            "finetune.epochs": 30,
            "finetune.batch": 16,
        },
        seeds=6,
    ),
    "gpu": Preset(
        about="135,000 jets in all, for one GPU (its hours are not measured yet)",
        base={
            "data.train_jets": 100_000,
            "data.val_jets": 10_000,
            "data.test_jets": 25_000,
            "optim.warmup_epochs": 2,
            "optim.lr": 2e-3,
            "train.batch": 256,
            "train.epochs": 20,
            "probe.every": 4,
            "finetune.epochs": 25,
            "finetune.batch": 256,
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


def get_preset(name: str) -> Preset:
    """A preset by name."""
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]

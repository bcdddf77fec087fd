"""How much a trial has to do, from its Config alone: steps, points of the learning curves, fine-tunings."""

from __future__ import annotations

from jbot.config import Config

SNAPSHOT_EPOCHS = (0, 1, 10, 50)
"""Epochs at which weights and an embedding are kept, and learning curves always have a point."""


def jet_passes(config: Config) -> int:
    """Jets that pre-training sees, each as often as it does."""
    return config.data.train_jets * config.train.last_epoch


def train_steps(config: Config) -> int:
    """Optimiser steps of pre-training."""
    return config.train.last_epoch * -(-config.data.train_jets // config.train.batch)


def is_probed(epoch: int, config: Config) -> bool:
    """Whether the learning curves have a point when so many epochs are done."""
    return epoch in SNAPSHOT_EPOCHS or may_collapse(epoch, config)


def may_collapse(epoch: int, config: Config) -> bool:
    """Whether a collapse ends the trial when so many epochs are done: after the first one it may still pass."""
    return epoch % config.probe.every == 0 or epoch == config.train.last_epoch


def curve_epochs(config: Config) -> list[int]:
    """Finished epochs at which learning curves have points."""
    return [epoch for epoch in range(config.train.last_epoch + 1) if is_probed(epoch, config)]


def finetune_steps(config: Config) -> int:
    """Optimiser steps of all fine-tunings and supervised baselines of a trial, if none ends early."""
    wanted, jets = config.finetune, config.data.train_jets
    steps = sum(wanted.epochs * -(-round(share * jets) // wanted.batch) for share in wanted.fractions)
    return 2 * steps if wanted.twin else steps

"""The jets of a trial, on its device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from jbot.config import DataConfig
from jbot.data import JetData, split
from jbot.data.jets import shared_tensor


@dataclass(frozen=True, kw_only=True)
class LabeledJets:
    """Jets of one split: rows of all jets, which splits and trials share, and their class labels."""

    particles: Float[Tensor, "all particle 4"]
    """On the device; on a CPU perhaps the memory of all trials of the node: it is only read."""
    rows: Int64[Tensor, "jet"]
    labels: Int[np.ndarray, "jet"]

    def take(self, which: slice | Tensor) -> Float[Tensor, "some particle 4"]:
        """A copy of some of these jets."""
        return self.particles.index_select(0, self.rows[which])


def resident(
    data: JetData, particles: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "jet particle 4"]:
    """All jets, with their leading particles, once on the device for every trial; on a CPU without a copy."""
    return shared_tensor(data.particles)[:, :particles].to(device, dtype)


def prepare(
    wanted: DataConfig, bank_jets: int, *, data: JetData, particles: Float[Tensor, "jet particle 4"]
) -> tuple[Int64[Tensor, "train"], dict[str, LabeledJets]]:
    """Which jets to train on, as rows of `particles`; and those that evaluate: bank (the head of train), val, test,
    signal."""
    parts = split(data.labels, **wanted.sizes)
    evaluate = {"bank": parts.train[:bank_jets], "val": parts.val, "test": parts.test, "signal": parts.signal}
    labeled = {}
    for name, rows in evaluate.items():
        index = torch.from_numpy(rows).to(particles.device)
        labeled[name] = LabeledJets(particles=particles, rows=index, labels=data.labels[rows])
    return torch.from_numpy(parts.train[: wanted.train_jets]).to(particles.device), labeled

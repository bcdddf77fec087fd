"""The frozen [CLS] embedding of jets by one trial's student.

In fp32, also of a trial that trains in bf16: probes measure the weights, all arms alike, and not how a machine rounds.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jbot.config import Config
from jbot.trainer.engines.select import Forward
from jbot.trainer.model import Flat, cls_rows, forward

CHUNK = {"cpu": 128, "cuda": 8192}
"""Jets embedded at once: keeps activations in a CPU's cache, or fills a GPU (assumed)."""
GATHERED = 8_192
"""Jets copied together from those of the node."""

Embedding = Float[Tensor, "jet dim"]


def embed(
    student: Flat, jets: Float[Tensor, "jet particle 4"], config: Config, forward: Forward = forward
) -> Float[np.ndarray, "jet dim"]:
    """Raw [CLS] embedding of each jet by the first trial of a pack, float32."""
    return embed_on_device(student, jets, config, forward).cpu().numpy()


def embed_on_device(
    student: Flat, jets: Float[Tensor, "jet particle 4"], config: Config, forward: Forward = forward
) -> Embedding:
    """The same as `embed`, left on the device."""
    slots = jets.shape[1]
    with torch.no_grad():
        parts = [
            forward(student[:1], part[None], config.model, rows=cls_rows(1, len(part), slots, part.device))[0][0]
            for part in jets.split(CHUNK[jets.device.type])
        ]
    return torch.cat(parts).float()

"""Monitors of failed training: attention that looks at nothing, an embedding that collapses.

A trial fails at the limits of jbot.trainer.loop; analysis.verdicts.diagnostics names trials that come near.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jbot.config import Config
from jbot.trainer.embed import CHUNK, Embedding
from jbot.trainer.model import Flat, cls_rows, encode, hidden_keys, relative_entropy, unpack


def attention_entropy(student: Flat, jets: Float[Tensor, "jet particle 4"], config: Config) -> float:
    """Entropy of the sharpest head's [CLS] attention, relative to uniform attention (1), averaged over jets."""
    weights, slots, reference = unpack(student[:1], config.model), jets.shape[1], config.model.padding == "reference"
    total = torch.zeros(config.model.layers, config.model.heads, device=jets.device)
    for part in jets.split(CHUNK[jets.device.type]):
        attentions: list[Tensor] = []
        with torch.no_grad():
            rows = cls_rows(1, len(part), slots, part.device)
            encode(weights, part[None], config.model, rows=rows, attentions=attentions)
        hidden = None if reference else hidden_keys(part[None, ..., 3] < 0.5)
        total += len(part) * torch.cat([relative_entropy(attention, hidden) for attention in attentions])
    return float(total.min()) / len(jets)


def effective_rank(embedding: Embedding) -> float:
    """RankMe: exp of the entropy of the normalised singular values; 1 to dim (Garrido et al., arXiv:2210.02885).

    Singular values come from the eigenvalues of the dim x dim Gram matrix in double precision: exact to 1e-8 of the
    largest, less than the rounding of the embedding itself.
    """
    embedding = embedding.double()
    eigenvalues = torch.linalg.eigvalsh(embedding.T @ embedding)[-len(embedding) :]
    singular = eigenvalues.clamp(min=0).sqrt()
    share = singular / singular.sum() + 1e-7
    return float(torch.special.entr(share).sum().exp())


def spread(embedding: Embedding) -> float:
    """Root mean square distance of the normalised embeddings to their mean: 0 when all jets look alike, at most 1."""
    unit = F.normalize(embedding.double(), dim=1)
    return float((unit - unit.mean(0)).square().sum(1).mean().sqrt())

"""The jBOT loss: self-distillation of [CLS] and of masked particles, and KoLeo (arXiv:2601.11719, section 2).

L = 1/2 (L_uv + L_vu) + koleo_weight * KoLeo([CLS] of u)
L_uv = cls_weight * CE(teacher [CLS] of v, student [CLS] of u)
     + particle_weight * CE(teacher particle of u, student particle of u)   at masked particles
CE(t, s) = - mean over rows of  softmax((t - center) / teacher_temp) . log_softmax(s / student_temp)

Temperatures are numbers, or tensors that broadcast over the rows: a pack's trials have each their own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

PerTrial = Float[Tensor, "trial"]
Rows = Float[Tensor, "*rows projection"]
Temperature = float | Float[Tensor, "*#rows 1"]


def teacher_targets(projected: Rows, center: Float[Tensor, "*#rows projection"], temp: Temperature) -> Rows:
    """Centered and sharpened: softmax((t - center) / temp). Centering spreads the targets, sharpening focuses them."""
    return torch.softmax((projected - center) / temp, dim=-1)


def log_predictions(projected: Rows, temp: Temperature) -> Rows:
    """Logarithms of the student's probabilities: log_softmax(s / temp), made once for both terms and the entropy."""
    return torch.log_softmax(projected / temp, dim=-1)


def cross_entropy(targets: Rows, student: Rows) -> Float[Tensor, "*rows"]:
    """- targets . student, a row each, in nats; `student` from :func:`log_predictions`."""
    return -(targets * student).sum(-1)


def cls_loss(
    targets: Float[Tensor, "trial 2 jet projection"], student: Float[Tensor, "trial 2 jet projection"]
) -> PerTrial:
    """[CLS] across views: the student's u learns the teacher's v and the other way round."""
    return cross_entropy(targets.flip(1), student).mean(dim=(1, 2))


def particle_loss(
    targets: Float[Tensor, "trial row projection"],
    student: Float[Tensor, "trial row projection"],
    weight: Float[Tensor, "trial row"],
) -> PerTrial:
    """Masked particles within a view; `weight` makes it the mean over each view's masked particles, then over views."""
    # In double precision, so that rows of weight 0, of which a pack has more than a trial alone, round nothing else.
    return (cross_entropy(targets, student) * weight).sum(dim=1, dtype=torch.float64).to(weight.dtype)


def koleo_loss(cls_embedding: Float[Tensor, "trial jet dim"], eps: float = 1e-8) -> PerTrial:
    """Kozachenko-Leonenko regulariser: spreads jet embeddings on the unit sphere.

    Parameters
    ----------
    cls_embedding : float tensor (trial, jet, dim)
        Raw student [CLS] of one view, dimensionless. Two views of one jet must not share a batch.

    Returns
    -------
    float tensor (trial,)
        Mean of -log d_i in nats, d_i in [0, 2] the distance to the nearest other jet.

    Raises
    ------
    ValueError
        With fewer than two jets.

    References
    ----------
    Sablayrolles et al., ICLR 2019, arXiv:1806.03198.
    """
    jets = cls_embedding.shape[1]
    if jets < 2:
        raise ValueError(f"KoLeo needs at least two jets in a batch, got {jets}")
    unit = torch.nn.functional.normalize(cls_embedding, dim=-1, eps=1e-6)
    cosine = unit @ unit.transpose(1, 2)
    itself = torch.eye(jets, dtype=torch.bool, device=unit.device)
    nearest = cosine.masked_fill(itself, -2.0).amax(-1).clamp(-1.0, 1.0)
    distance = torch.sqrt((2.0 - 2.0 * nearest).clamp(min=eps))
    return -torch.log(distance + eps).mean(-1)


def entropy(probabilities: Rows) -> Float[Tensor, "*rows"]:
    """In nats; log(projection) when uniform, 0 when collapsed on one output."""
    return torch.special.entr(probabilities).sum(-1)

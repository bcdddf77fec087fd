"""One training step: losses, gradient of the student, AdamW, the teacher's average, the centres.

Every tensor has a leading trial axis. Where the trials of a pack differ, the stacked Config
(:func:`jbot.trainer.pack.stack`) holds a (trial,) tensor in the place of a number.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jbot.config import Config, OptimConfig
from jbot.trainer.augment import Particles
from jbot.trainer.dropout import step_factors
from jbot.trainer.engines.select import Forward
from jbot.trainer.loss import cls_loss, entropy, koleo_loss, log_predictions, particle_loss, teacher_targets
from jbot.trainer.masking import Masked
from jbot.trainer.model import Flat, cls_rows, forward, take_rows, weight_slice
from jbot.trainer.pack import column
from jbot.trainer.state import TrainState

Rates = Float[Tensor, "trial"]
ENTROPIES = ("teacher_entropy", "student_entropy")
TERMS = ("loss", "cls_loss", "particle_loss", "koleo_loss", *ENTROPIES, "masked_fraction")
"""What a step returns of itself, in this order."""


def train_step(
    state: TrainState,
    views: Particles,
    masked: Masked,
    config: Config,
    lr: Rates,
    momentum: Rates,
    forward: Forward = forward,
    capacity: int | None = None,
) -> dict[str, Float[Tensor, "trial"]]:
    """One gradient step of the student, then the teacher's average and the centres.

    Parameters
    ----------
    config : Config
        Stacked (:func:`jbot.trainer.pack.stack`).
    lr, momentum : float64 tensor (trial,)
        Learning rate, and how much of itself the teacher keeps.
    capacity : int, optional
        See :func:`masked_rows`. With it, nothing is read on the host and no shape depends on data.

    Returns
    -------
    dict of float tensor (trial,)
        TERMS by name; `state` is changed in place.
    """
    masked_tokens, weight = masked_rows(masked, capacity)
    trials, _, jets, slots, _ = views.shape
    rows = torch.cat((cls_rows(trials, 2 * jets, slots, views.device), masked_tokens), dim=1)
    particles = views.flatten(1, 2)
    with torch.no_grad():
        _, taught = forward(state.teacher, particles, config.model)
    student = state.student.detach().requires_grad_()
    hidden = None if config.mask.token == "none" else masked.flatten(1, 2)
    seeds: Any = config.seed  # stacked
    factors = step_factors(
        seeds, state.step, config.train.dropout, config.model, 2 * jets * (slots + 1), rows.shape[1], particles.dtype
    )
    raw, predicted = forward(student, particles, config.model, hidden, rows, factors)
    terms = losses(state, raw, predicted, taught, rows, weight, config)
    (gradient,) = torch.autograd.grad(terms["loss"].sum(), student)
    with torch.no_grad():
        if config.mask.token == "zero":  # without gradient, Adam and its decay leave a zero where it is
            gradient[:, weight_slice("mask_token", config.model)] = 0.0
        update(state, gradient, taught, views[..., 3], config, lr, momentum)
        terms["masked_fraction"] = masked.sum(dim=(1, 2, 3)) / views[..., 3].sum(dim=(1, 2, 3))
    return {name: value.detach() for name, value in terms.items()}


def losses(
    state: TrainState,
    raw: Float[Tensor, "trial row dim"],
    predicted: Float[Tensor, "trial row projection"],
    taught: Float[Tensor, "trial token projection"],
    rows: Int64[Tensor, "trial row"],
    weight: Float[Tensor, "trial masked"],
    config: Config,
) -> dict[str, Float[Tensor, "trial"]]:
    """The loss, its terms, and the entropies of teacher and student [CLS] in nats.

    `raw` and `predicted` are the student's at `rows`: [CLS] of u, [CLS] of v, then masked particles; `taught` is the
    teacher's, of all tokens.
    """
    cls = rows.shape[1] - weight.shape[1]
    jets = cls // 2
    targets, temp = take_rows(taught, rows), column(config.loss.teacher_temp, 2)
    cls_targets = teacher_targets(targets[:, :cls], state.cls_center[:, None], temp).unflatten(1, (2, jets))
    particle_targets = teacher_targets(targets[:, cls:], state.particle_center[:, None], temp)
    log_predicted = log_predictions(predicted, column(config.loss.student_temp, 2))
    cls_predicted = log_predicted[:, :cls].unflatten(1, (2, jets))
    terms = {
        "cls_loss": cls_loss(cls_targets, cls_predicted),
        "particle_loss": particle_loss(particle_targets, log_predicted[:, cls:], weight),
        "koleo_loss": koleo_loss(raw[:, :jets]),
    }
    total = (
        config.loss.cls_weight * terms["cls_loss"]
        + config.loss.particle_weight * terms["particle_loss"]
        + config.loss.koleo_weight * terms["koleo_loss"]
    )
    with torch.no_grad():
        for name, probabilities in zip(ENTROPIES, (cls_targets, cls_predicted.exp()), strict=True):
            terms[name] = entropy(probabilities).mean(dim=(1, 2))
    return {"loss": total} | terms


def update(
    state: TrainState,
    gradient: Flat,
    taught: Float[Tensor, "trial token projection"],
    valid: Float[Tensor, "trial 2 jet particle"],
    config: Config,
    lr: Rates,
    momentum: Rates,
) -> None:
    """Optimiser, teacher's average and centres, in this order."""
    adamw(state, gradient, lr, config.optim)
    state.teacher.lerp_(state.student, column(1.0 - momentum, 1).to(state.teacher.dtype))
    update_centers(state, taught.unflatten(1, (*valid.shape[1:3], valid.shape[3] + 1)), valid, config)
    state.step += 1


def masked_rows(
    masked: Masked, capacity: int | None = None
) -> tuple[Int64[Tensor, "trial row"], Float[Tensor, "trial row"]]:
    """Token numbers of the masked particles, and weights that make a sum over them the mean over views of means.

    As many rows as the trial with the most has, which is read on the host; or `capacity` of them, which must not be
    fewer. Behind the masked particles of a trial that has fewer stand rows of number -1, with weight 0: none of its
    tokens, so that it computes the same as alone.
    """
    slots, flat = masked.shape[-1], masked.flatten(1)
    per_view = masked.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    weight = (masked / (2.0 * per_view)).flatten(1)
    if len(masked) == 1 and capacity is None:  # a pack of one, the ordinary case
        index = flat[0].nonzero().T
        return index + index // slots + 1, weight.gather(1, index)
    count = int(flat.sum(dim=1).max()) if capacity is None else capacity
    # A stable partition: the masked particles first, each at its rank among them, then the others.
    rank = torch.where(flat, flat.cumsum(1), flat.sum(1, keepdim=True) + (~flat).cumsum(1)) - 1
    numbers = torch.arange(flat.shape[1], device=flat.device).expand_as(rank)
    index = torch.empty_like(rank).scatter_(1, rank, numbers)[:, :count]
    weight = weight.gather(1, index)
    return torch.where(weight > 0, index + index // slots + 1, -1), weight


def adamw(state: TrainState, gradient: Flat, lr: Rates, config: OptimConfig) -> None:
    """AdamW as Keras has it: decay on every weight, eps outside the bias correction (arXiv:1711.05101).

    `config` is stacked: float64, so that 1 - beta2 and the bias corrections keep their digits.
    """
    beta1, beta2, t = config.beta1, config.beta2, state.step + 1
    step_size = lr * torch.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
    numbers: Any = (1.0 - beta1, 1.0 - beta2, 1.0 - lr * config.weight_decay, -step_size, config.eps)
    new1, new2, kept, move, eps = torch.stack(numbers).to(gradient.dtype)[..., None].unbind()
    state.moment1.lerp_(gradient, new1)
    state.moment2.lerp_(gradient.square(), new2)
    state.student.mul_(kept).addcdiv_(state.moment1 * move, state.moment2.sqrt().add_(eps))


def update_centers(
    state: TrainState,
    teacher_out: Float[Tensor, "trial 2 jet token projection"],
    valid: Float[Tensor, "trial 2 jet particle"],
    config: Config,
) -> None:
    """Running means of the teacher's outputs over both views; of particles, over the valid ones."""
    if not config.teacher.centering:
        return
    weight = torch.ones_like(valid) if config.model.padding == "reference" else valid
    cls, particle = teacher_out[..., 0, :], teacher_out[..., 1:, :]
    particle_mean = (particle * weight[..., None]).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))[:, None]
    new = column(1.0 - config.teacher.center_momentum, 1).to(cls.dtype)
    state.cls_center.lerp_(cls.mean(dim=(1, 2)), new)
    state.particle_center.lerp_(particle_mean, new)

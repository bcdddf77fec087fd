"""Dropout by a value's position in its layer: the same on every device, in every pack and by every engine.

Each value is dropped with chance rate, a multiple of 2^-16, and kept times 1 / (1 - rate). All positions of a step are
drawn in one go: one hash serves four values.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int16, Int64
from torch import Tensor

from jbot.config import ModelConfig
from jbot.trainer.rng import Draws

Rates = Float64[Tensor, "trial"]


def cut_and_scale(rates: Rates, dtype: torch.dtype) -> tuple[Int16[Tensor, "trial 1"], Float[Tensor, "trial 1"]]:
    """A value is dropped when its short (:meth:`jbot.trainer.rng.Draws.shorts`) is below the cut; kept, it is
    scaled."""
    drops = torch.round(rates * 2**16).long()  # of 2^16 values
    return (drops - 2**15)[:, None].to(torch.int16), (2**16 / (2**16 - drops))[:, None].to(dtype)


def factors(
    draws: Draws, count: int, cut: Int16[Tensor, "trial 1"], scale: Float[Tensor, "trial 1"]
) -> Float[Tensor, "trial {count}"]:
    """Factors of `count` values of each trial: 0, or the scale."""
    return (draws.shorts("dropout", count) >= cut).to(scale.dtype) * scale


def step_factors(
    seeds: Int64[Tensor, "trial"],
    step: Int64[Tensor, "trial"],
    rates: Rates | float,
    model: ModelConfig,
    tokens: int,
    rows: int,
    dtype: torch.dtype,
) -> Float[Tensor, "trial value"] | None:
    """The factors of one pre-training step in the order of :func:`jbot.trainer.model.by_layer`; None without dropout.

    The last block's stand at the end, so that a trial's do not move with the rows of its pack.
    """
    if not isinstance(rates, Tensor):  # off in every trial, see jbot.trainer.pack.stack
        return None
    count = 2 * model.dim * ((model.layers - 1) * tokens + rows)
    return factors(Draws(seeds, step), count, *cut_and_scale(rates, dtype))

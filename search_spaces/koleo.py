"""Axes of the KoLeo term, which spreads the jets of a batch over the sphere."""

from typing import Any

from jbot.config import Config
from search_spaces.axis import Axis

WEIGHT = Axis(
    field="loss.koleo_weight",
    values=(0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0),
    reason="off, and two decades on either side of the paper's 1e-2, closer around it; at 1 the term is of the size of "
    "the distillation losses",
)
BATCH_FACTOR = 4
"""The second batch size, to the base's: the nearest of n jets is nearer in a larger batch, so KoLeo means another."""


def sweep(base: Config) -> dict[str, dict[str, Any]]:
    """Arms ``koleo_<weight>`` at the base's batch size, and ``..._large`` at the larger one."""
    batches = {"": {}, "_large": {"train.batch": BATCH_FACTOR * base.train.batch}}
    return {
        f"koleo_{weight:g}{name}": WEIGHT.arm(weight) | b for name, b in batches.items() for weight in WEIGHT.values
    }


def names(*weights: float) -> tuple[str, ...]:
    """The arms of some weights, at both batch sizes."""
    return tuple(f"koleo_{WEIGHT.arm(weight)[WEIGHT.field]:g}{name}" for name in ("", "_large") for weight in weights)

"""The classification head on the [CLS] embedding: d -> 2d -> d -> classes (arXiv:2601.11719, section 4).

Axes: (trial, jet, dim). Every weight has a leading trial axis, as in jbot.model.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jbot.model import Weights, linear


def classifier_shapes(dim: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of one trial's classification head."""
    return {
        "hidden1.weight": (dim, 2 * dim),
        "hidden1.bias": (2 * dim,),
        "hidden2.weight": (2 * dim, dim),
        "hidden2.bias": (dim,),
        "output.weight": (dim, classes),
        "output.bias": (classes,),
    }


def classifier_logits(weights: Weights, cls: Float[Tensor, "trial jet dim"]) -> Float[Tensor, "trial jet class"]:
    """Class scores of each jet; a softmax over the last axis makes them probabilities.

    Parameters
    ----------
    weights : dict of float tensors (trial, ...)
        By the names of :func:`classifier_shapes`.
    cls : float tensor (trial, jet, dim)
        Raw [CLS] embedding.
    """
    hidden = F.gelu(linear(cls, weights["hidden1.weight"], weights["hidden1.bias"]))
    hidden = F.gelu(linear(hidden, weights["hidden2.weight"], weights["hidden2.bias"]))
    return linear(hidden, weights["output.weight"], weights["output.bias"])

"""The classification head on the [CLS] embedding: d -> 2d -> d -> classes (arXiv:2601.11719, section 4).

Axes: (trial, jet, dim). Every weight has a leading trial axis, as in jbot.trainer.model.
"""

from __future__ import annotations

import math

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jbot.config import ModelConfig
from jbot.trainer.model import Drop, Flat, Weights, dense, join_weights, linear, split_weights, unpack, weight_count
from jbot.trainer.rng import numpy_generator


def classifier_shapes(dim: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of one trial's classification head."""
    hidden = dense("hidden1", dim, 2 * dim) | dense("hidden2", 2 * dim, dim)
    return hidden | dense("output", dim, classes)


def init_classifier(dim: int, classes: int, seed: int) -> Float[Tensor, "weight"]:
    """Initial weights of one trial, in the order of :func:`classifier_shapes`: Glorot uniform, biases zero, as Keras.

    From streams ``init/classifier.<name>``: the same for every fine-tuning of a seed.
    """
    weights = {}
    for name, shape in classifier_shapes(dim, classes).items():
        limit = math.sqrt(6.0 / sum(shape)) if name.endswith("weight") else 0.0
        weights[name] = numpy_generator(seed, f"init/classifier.{name}").uniform(-limit, limit, shape)
    return pack_classifier(weights)


def pack_classifier(weights: dict[str, np.ndarray]) -> Float[Tensor, "weight"]:
    """One trial's named weights as a row."""
    dim, classes = weights["hidden1.weight"].shape[0], weights["output.weight"].shape[1]
    return join_weights(weights, classifier_shapes(dim, classes))


def unpack_classifier(flat: Flat, model: ModelConfig, classes: int) -> tuple[Weights, Weights]:
    """Views of the weights by name, each (trial, *shape): those of the encoder, those of the head."""
    count = weight_count(model)
    return unpack(flat[:, :count], model), split_weights(flat[:, count:], classifier_shapes(model.dim, classes))


def classifier_logits(
    weights: Weights, cls: Float[Tensor, "trial jet dim"], drop: Drop | None = None
) -> Float[Tensor, "trial jet class"]:
    """Class scores of each jet, from raw [CLS] embeddings; a softmax over the last axis makes them probabilities.

    `weights` are by the names of :func:`classifier_shapes`; `drop`, in training, acts behind both hidden layers.
    """
    hidden = cls
    for name in ("hidden1", "hidden2"):
        hidden = F.gelu(linear(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"]))
        hidden = drop(name, hidden) if drop else hidden
    return linear(hidden, weights["output.weight"], weights["output.bias"])

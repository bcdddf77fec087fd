"""Floating-point operations (FLOP) of training, from the Config.

FLOP of one token in one forward pass (a multiply-add is 2), d = dim, a = heads * head_dim, p = projection, T = tokens:

    embed      2 * 4 d                    particles only
    block      2 * (3 d a                 q, k, v
                  + 2 T a                 scores, and the mean of the values
                  + a d + 8 d^2)          output, FFN d -> 4d -> d
    head       2 * (8 p d + 8 p^2)        d -> 8p -> p

A jet has two views. The teacher does one forward pass, the student one and a backward pass of twice its cost: 4 in all.
`used` is the share of the student's tokens that the loss looks at, [CLS] and the masked particles. Behind keys and
values, the last block and the head are needed for those alone. Left out: softmax, GELU, norms, KoLeo, augmentation,
the optimiser. Padding counts as particles: that is how it is computed.

This is what a step needs, not what an engine performs: the C++ kernel computes the last block's queries and attention
for all tokens, and the student's forward pass twice, as making activations again costs less than keeping them
(jbot.trainer.engines.fused).
"""

from __future__ import annotations

from jbot.config import Config
from jbot.trainer.model import FEATURES, FFN_WIDTH, HEAD_WIDTH
from jbot.trainer.workload import jet_passes

VIEWS = 2
PASSES_TEACHER, PASSES_STUDENT = 1, 3


def step_flop(config: Config, used: float = 1.0) -> float:
    """FLOP of one training step for one jet; `used` in [0, 1], 1 for a student that is not pruned."""
    if not 0.0 <= used <= 1.0:
        raise ValueError(f"used must be in [0, 1], got {used}")
    teacher, student = forward_flop(config, 1.0), forward_flop(config, used)
    return VIEWS * (PASSES_TEACHER * teacher + PASSES_STUDENT * student)


def forward_flop(config: Config, used: float) -> float:
    """FLOP of one forward pass of one view."""
    model, particles = config.model, config.data.particles
    d, a, p, tokens = model.dim, model.heads * model.head_dim, model.projection, particles + 1
    key_value, query = 2 * 2 * d * a, 2 * d * a
    behind = query + 2 * 2 * tokens * a + 2 * a * d + 2 * 2 * FFN_WIDTH * d * d
    head = 2 * (HEAD_WIDTH * p * d + HEAD_WIDTH * p * p)
    full_blocks = (model.layers - 1) * (key_value + behind)
    last = key_value + used * (behind + head)
    return particles * 2 * FEATURES * d + tokens * (full_blocks + last)


def training_flop(config: Config, masked: float) -> float:
    """FLOP of a whole pre-training; `masked` is the mean share of the particles that were hidden."""
    used = (1 + masked * config.data.particles) / (1 + config.data.particles)
    return step_flop(config, used) * jet_passes(config)

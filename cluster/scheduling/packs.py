"""Which trials train together, and how many a device holds.

On a CPU a pack gains nothing, and one process a core is best: packs of one. On a GPU small models are bound by the
launching of kernels, so a pack holds as many trials as fit in memory, but there are never fewer packs than slots.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence

import torch

from jbot.config import Config
from jbot.store.record import TrialSpec
from jbot.trainer.model import FFN_WIDTH, HEAD_WIDTH, weight_shapes
from jbot.trainer.pack import pack_key

FLOAT = 4
"""Bytes of a number: everything is float32."""
MEMORY_SHARE = 0.8
"""Share of the free memory that packs take; the rest is for jets, probes and the allocator's gaps (assumed)."""


def form_packs(
    specs: Sequence[TrialSpec], *, size: int | None = None, free_bytes: int | None = None, slots: int = 1
) -> list[list[TrialSpec]]:
    """Trials in packs: those that can share one, in block order; packs in the order of their first trials.

    Parameters
    ----------
    size : int, optional
        Trials of a pack; chosen here when None.
    free_bytes : int, optional
        What a pack may take of a GPU's memory; None on a CPU.
    slots : int
        Packs that can run at once. Unless `size` is given, trials are spread over all slots before packs are filled.
    """
    groups: dict[Hashable, list[TrialSpec]] = {}
    for spec in specs:
        key = (pack_key(spec.config), spec.config.data.train_jets)
        groups.setdefault(key, []).append(spec)
    packs: list[list[TrialSpec]] = []
    for group in groups.values():
        if size is not None:
            packs += [group[begin : begin + size] for begin in range(0, len(group), size)]
            continue
        own_slots = min(-(-slots * len(group) // len(specs)), len(group))
        count = max(-(-len(group) // fitting(group[0].config, free_bytes)), own_slots)
        edges = [len(group) * number // count for number in range(count + 1)]
        packs += [group[begin:end] for begin, end in itertools.pairwise(edges)]
    order = {spec.trial_id: number for number, spec in enumerate(specs)}
    return sorted(packs, key=lambda pack: order[pack[0].trial_id])


def fitting(config: Config, free_bytes: int | None) -> int:
    """Number of trials of this shape that fit in a GPU's free memory together; one on a CPU, where it is None."""
    return 1 if free_bytes is None else max(1, int(MEMORY_SHARE * free_bytes / trial_bytes(config)))


def trial_bytes(config: Config) -> int:
    """Device memory one more trial of a pack takes while it trains.

    Weights: 7 buffers (student, teacher, two moments, gradient, two in the making). Of each token, what the student
    keeps for its gradient, in numbers: the embedding 2d; a block's query, key, value and mixed values 4i, its scores
    and attention 2 x heads x tokens, its residuals, norms and updates 6d, its feed-forward 2 x 4d; the head's hidden
    layer twice and output three times. Gradients take the place of what they were made from. Views are compared
    particle by particle with some 6 bytes a pair, for two comparisons at a time. Some 1.5 times what a step was seen
    to take (jBOT-S and B, tests/cluster/scheduling/test_packs.py), as the student's last block works on fewer tokens.
    """
    model, tokens = config.model, config.data.particles + 1
    d, inner = model.dim, model.heads * model.head_dim
    block = 4 * inner + 2 * model.heads * tokens + 6 * d + 2 * FFN_WIDTH * d
    head = 2 * HEAD_WIDTH * model.projection + 3 * model.projection
    weights = sum(math.prod(shape) for shape in weight_shapes(model).values())
    # A fine-tuning sees one view, and steps together with its supervised baseline.
    jets = 2 * max(config.train.batch, config.finetune.batch if config.finetune.fractions else 0)
    activations = jets * tokens * (2 * d + model.layers * block + head) * FLOAT
    return 7 * weights * FLOAT + activations + jets * tokens**2 * 12


def free_gpu_bytes(share: float = 1.0) -> int:
    """Free memory of this process's GPU, of which a pack holds `share`."""
    free, _ = torch.cuda.mem_get_info()
    return int(free * min(1.0, share))

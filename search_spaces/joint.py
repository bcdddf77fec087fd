"""The joint space of a hyperparameter search: the recipe of pre-training, not the size of model or data.

Bounds are wide enough to hold the paper's recipe well inside, and narrow enough for some tens of points. Fields that
must not cross have ranges that meet at most: the teacher is never softer than the student, a masked share never starts
above its end.
"""

from __future__ import annotations

import math

from jbot.config import Config
from search_spaces.axis import Axis

FIXED = (
    Axis(
        field="optim.weight_decay", low=1e-6, high=1e-1, log=True,
        reason="the paper's 1e-4 in the middle; above 0.1 a step of 2e-3 forgets within some 5,000 steps",
    ),
    Axis(
        field="teacher.ema_momentum", low=0.9, high=0.9999, log=True, complement=True,
        reason="averages over 10 to 10,000 steps; the paper's 0.996 over 250",
    ),
    Axis(
        field="loss.student_temp", low=0.08, high=0.3, log=True,
        reason="the paper's 0.1; above the teacher's, so that its targets are sharper",
    ),
    Axis(
        field="loss.teacher_temp", low=0.01, high=0.08, log=True,
        reason="the paper's 0.04; DINO's 0.04 to 0.07 (arXiv:2104.14294) are inside; below 0.01 targets are one-hot",
    ),
    Axis(
        field="loss.koleo_weight", low=1e-3, high=1.0, log=True,
        reason="the paper's 0.01, DINOv2's 0.1 (arXiv:2304.07193); below 1e-3 it is as good as off",
    ),
    Axis(
        field="mask.scheme", values=("momentum", "random", "geometric", "hardest"),
        reason="the paper's and three that hide other particles; matched controls are of the masking study",
    ),
    Axis(
        field="mask.ratio_low", low=0.0, high=0.3,
        reason="the paper's 0; meets ratio_high at 0.3",
    ),
    Axis(
        field="mask.ratio_high", low=0.3, high=0.9,
        reason="the paper's 0.5; above 0.9 hardly a particle is left to see",
    ),
    Axis(
        field="augment.rotation", low=0.0, high=math.pi,
        reason="from none to the paper's full turn",
    ),
    Axis(
        field="augment.smear_sigma", low=3e-5, high=3e-3, log=True,
        reason="a tenth to ten times the paper's 3e-4",
    ),
    Axis(
        field="augment.split_fraction", low=0.0, high=1.0,
        reason="from none to the paper's all",
    ),
    Axis(
        field="train.dropout", low=0.0, high=0.3,
        reason="the paper has none in pre-training, 0.2 in fine-tuning",
    ),
)  # fmt: skip

COST = (
    Axis(field="model.layers", values=(1, 2, 3, 4), reason="half of jBOT-S to jBOT-B"),
    Axis(field="model.dim", values=(16, 32, 48, 64), reason="half of jBOT-S to jBOT-B"),
)
"""Only where cost is an objective: the recipe alone hardly moves it."""


def joint(base: Config) -> tuple[Axis, ...]:
    """The space around a preset's base: rate and warm-up go with its batch and length."""
    rate, quarter = base.optim.lr, max(1, base.train.epochs // 4)
    return (
        Axis(
            field="optim.lr", low=rate / 10, high=rate * 5, log=True,
            reason="a tenth to five times the preset's, which is scaled to its batch",
        ),
        Axis(
            field="optim.warmup_epochs", low=0, high=quarter,
            reason="a quarter of the training, the first rung: longer ones would be pruned for being slow",
        ),
        *FIXED,
    )  # fmt: skip

"""What an arm changes and how large a study is, in words that a reader of the paper knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from analysis.verdicts import number_format as fmt
from analysis.verdicts.paper_values import RECIPES
from jbot.config import FIELDS, JBOT_B, ModelConfig
from jbot.store.plan import Plan

BASE = "the recipe unchanged"


def words(changes: Mapping[str, Any]) -> str:
    """The overrides of an arm: ``no rotation, KoLeo weight 0.1``."""
    settings = {}
    for field, value in changes.items():
        try:
            settings[field] = FIELDS[field].words(value)
        except (KeyError, TypeError, ValueError):  # of another version of the program
            settings[field] = f"{field} = {value}"
    if changes.get("teacher.ema_momentum") == changes.get("teacher.ema_final") == 0:
        settings |= {"teacher.ema_momentum": "no EMA: the teacher is the student", "teacher.ema_final": ""}
    return ", ".join(filter(None, settings.values())) or BASE


def trained(base: Mapping[str, Any]) -> tuple[int, int]:
    """Jets and epochs of a pre-training, from a nested Config."""
    return int(base["data"]["train_jets"]), int(base["train"].get("until") or base["train"]["epochs"])


def share_of_paper(plan: Plan) -> float:
    """Jet passes of the base as a share of what the paper's recipe for the same task has."""
    recipe = RECIPES[str(plan.base["data"].get("task", "all"))]
    return math.prod(trained(plan.base)) / (recipe["data.train_jets"] * recipe["train.epochs"])


def size(plan: Plan) -> str:
    """``10,000 jets × 8 epochs, jBOT-S; 0.14% of the paper’s training``: of the base."""
    jets, epochs = trained(plan.base)
    share = share_of_paper(plan)
    if share < 0.995:
        part = f"{float(f'{100 * share:.2g}'):g}% of the paper’s training"
    else:
        part = "the paper’s training" if share < 1.5 else f"{share:.2g} times the paper’s training"
    return f"{jets:,} jets × {epochs} epochs, {_model(plan)}; {part}"


def _model(plan: Plan) -> str:
    own = plan.base["model"]
    for name, changes in (("jBOT-S", {}), ("jBOT-B", JBOT_B)):
        known = vars(ModelConfig()) | {key.removeprefix("model."): value for key, value in changes.items()}
        if all(own.get(key) == known[key] for key in ("dim", "heads", "layers", "projection")):
            return name
    return f"d = {own['dim']}, {fmt.count(own['layers'], 'block')}"

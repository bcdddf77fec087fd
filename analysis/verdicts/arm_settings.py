"""What an arm changes and how large a study is, in words that a reader of the paper knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.verdicts import wording
from analysis.verdicts.costs import jet_passes
from analysis.verdicts.paper_values import RECIPES
from jbot.config import JBOT_B, ModelConfig
from jbot.store.plan import Plan

BASE = "the recipe unchanged"
VALUES: Mapping[tuple[str, Any], str] = {
    ("mask.scheme", "momentum"): "hides random particles, up to a share of the jet’s momentum",
    ("mask.scheme", "random"): "hides a share of the particles, at random",
    ("mask.scheme", "random_count"): "hides as many particles as momentum does, but drawn blindly",
    ("mask.scheme", "geometric"): "hides neighbours in (η, φ), up to a share of the jet’s momentum",
    ("mask.scheme", "geometric_count"): "hides neighbours in (η, φ), as many as momentum does",
    ("mask.scheme", "hardest"): "hides the hardest particles, up to a share of the jet’s momentum",
    ("mask.scheme", "softest"): "hides the softest particles, up to a share of the jet’s momentum",
    ("mask.scheme", "none"): "hides nothing: only the [CLS] loss is left",
    ("mask.token", "zero"): "zeros instead of a learned mask token",
    ("mask.token", "none"): "hidden particles are seen, but their loss counts",
    ("loss.particle_weight", 0.0): "no particle loss",
    ("loss.cls_weight", 0.0): "no [CLS] loss",
    ("loss.koleo_weight", 0.0): "no KoLeo term",
    ("teacher.centering", False): "teacher’s outputs not centred",
    ("augment.rotation", 0.0): "no rotation",
    ("augment.smear_sigma", 0.0): "no smearing",
    ("augment.split_fraction", 0.0): "no collinear splitting",
    ("augment.split_variant", "reference"): "a split particle loses its second half (released code)",
    ("augment.smear_variant", "reference"): "padding is smeared too (released code)",
    ("model.padding", "reference"): "attention sees padding (released code)",
}
"""Settings that have a name of their own."""
FIELDS: Mapping[str, str] = {
    "data.train_jets": "{:,} training jets",
    "data.labeled_jets": "{:,} labelled jets for the probes",
    "data.jet_pt": "pre-trained on jets of {:g} GeV",
    "augment.rotation": "rotation up to {:.3g} rad",
    "augment.smear_sigma": "smearing width {:g}",
    "augment.split_fraction": "a share {:g} of the splittings made",
    "augment.split_low": "splittings from a momentum share of {:g} on",
    "augment.translation": "shifts up to {:g} rad",
    "augment.boost": "boosts along the axis up to {:g} in rapidity",
    "augment.pt_sigma": "pT smeared by {:g}/√(pT share)",
    "augment.soft_dropout": "soft particles lost with a chance of {:g}",
    "mask.ratio_low": "hidden share from {:g}",
    "mask.ratio_high": "hidden share up to {:g}",
    "model.dim": "width {}",
    "model.heads": "{} heads",
    "model.layers": "{} attention blocks",
    "model.projection": "projection to {}",
    "loss.koleo_weight": "KoLeo weight {:g}",
    "loss.particle_weight": "particle-loss weight {:g}",
    "loss.cls_weight": "[CLS]-loss weight {:g}",
    "loss.student_temp": "student temperature {:g}",
    "loss.teacher_temp": "teacher temperature {:g}",
    "teacher.ema_momentum": "teacher’s EMA from {:g}",
    "teacher.ema_final": "teacher’s EMA to {:g}",
    "optim.lr": "learning rate {:g}",
    "optim.warmup_epochs": "warm-up of {} epochs",
    "optim.weight_decay": "weight decay {:g}",
    "train.epochs": "{} epochs",
    "train.batch": "batches of {}",
    "train.dropout": "dropout {:g}",
    "train.precision": "trained in {}",
    "probe.every": "probed every {} epochs",
}
"""The others, by dotted Config field; what is not here stands as ``field = value``."""


def words(changes: Mapping[str, Any]) -> str:
    """The overrides of an arm: ``no rotation, KoLeo weight 0.1``."""
    said = {field: _word(field, value) for field, value in changes.items()}
    if changes.get("teacher.ema_momentum") == changes.get("teacher.ema_final") == 0:
        said |= {"teacher.ema_momentum": "no EMA: the teacher is the student", "teacher.ema_final": ""}
    return ", ".join(filter(None, said.values())) or BASE


def _word(field: str, value: Any) -> str:
    try:
        return VALUES.get((field, value)) or FIELDS[field].format(value)
    except (KeyError, TypeError, ValueError):  # a field without words, or a value of another kind
        return f"{field} = {value}"


def share_of_paper(plan: Plan) -> float:
    """Jet passes of the base as a share of what the paper's recipe for the same task has."""
    recipe = RECIPES[str(plan.base["data"].get("task", "all"))]
    return jet_passes(plan.base) / (recipe["data.train_jets"] * recipe["train.epochs"])


def size(plan: Plan) -> str:
    """``10,000 jets × 8 epochs, jBOT-S; 0.14% of the paper’s training``: of the base."""
    trained = f"{plan.base['data']['train_jets']:,} jets × {plan.base['train']['epochs']} epochs"
    return f"{trained}, {_model(plan)}; {_share(share_of_paper(plan))}"


def _model(plan: Plan) -> str:
    own = plan.base["model"]
    for name, changes in (("jBOT-S", {}), ("jBOT-B", JBOT_B)):
        known = vars(ModelConfig()) | {key.removeprefix("model."): value for key, value in changes.items()}
        if all(own.get(key) == known[key] for key in ("dim", "heads", "layers", "projection")):
            return name
    return f"d = {own['dim']}, {wording.count(own['layers'], 'block')}"


def _share(share: float) -> str:
    if share >= 0.995:
        return "the paper’s training" if share < 1.5 else f"{share:.2g} times the paper’s training"
    return f"{float(f'{100 * share:.2g}'):g}% of the paper’s training"

"""The components of jBOT, each by the overrides that take it out, and the designs that ask what each is worth.

An arm is named by what it lacks, so that designs which share an arm share its name: ``base``, ``no_koleo``,
``no_koleo-centering``; where only a loss and at most one more are left, by these: ``only_cls_loss-ema``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Arms = dict[str, dict[str, Any]]

COMPONENTS: dict[str, dict[str, Any]] = {
    "particle_loss": {"loss.particle_weight": 0.0},
    "cls_loss": {"loss.cls_weight": 0.0},
    "koleo": {"loss.koleo_weight": 0.0},
    "centering": {"teacher.centering": False},
    "ema": {"teacher.ema_momentum": 0.0, "teacher.ema_final": 0.0},
    "mask_token": {"mask.token": "zero"},
    "rotation": {"augment.rotation": 0.0},
    "smearing": {"augment.smear_sigma": 0.0},
    "splitting": {"augment.split_fraction": 0.0},
    "attention_mask": {"model.padding": "reference"},
}
"""Without EMA the teacher is the student; a mask token of zero hides, but is not learned; without the attention mask
padded slots are seen."""

IMPOSSIBLE = {
    frozenset({"particle_loss", "cls_loss"}): "no distillation is left: there is nothing to learn from the teacher",
}
"""Components that cannot all be out, and why."""

LOSSES = ("cls_loss", "particle_loss")


def arm(out: Collection[str]) -> Arms:
    """The arm without these components, by its name.

    Raises
    ------
    ValueError
        For an unknown component, or a combination that is impossible, with the reason.
    """
    if unknown := set(out) - set(COMPONENTS):
        raise ValueError(f"components are {', '.join(COMPONENTS)}, got {', '.join(sorted(unknown))}")
    for together, why in IMPOSSIBLE.items():
        if together <= set(out):
            raise ValueError(f"{' and '.join(sorted(together))} cannot both be out: {why}")
    lacks = [name for name in COMPONENTS if name in out]
    has = [name for name in COMPONENTS if name not in out]
    if len(has) <= 2 and (loss := next((name for name in LOSSES if name in has), None)):
        name = "-".join([f"only_{loss}", *(other for other in has if other != loss)])
    else:
        name = f"no_{'-'.join(lacks)}" if lacks else "base"
    return {name: {field: value for lack in lacks for field, value in COMPONENTS[lack].items()}}


def leave_one_out() -> Arms:
    """The base, and the base without each component."""
    return arm(()) | merge(arm((name,)) for name in COMPONENTS)


def add_one_in() -> Arms:
    """The [CLS] loss alone, the same with each component; and the particle loss alone, to which [CLS] is added."""
    bare = [name for name in COMPONENTS if name != "cls_loss"]
    added = merge(arm([other for other in bare if other != name]) for name in bare)
    return arm(bare) | added | arm([name for name in COMPONENTS if name != "particle_loss"])


def fraction(factors: Sequence[str], generators: Mapping[str, str]) -> Arms:
    """A regular two-level fraction: all combinations of `factors`, from which the others follow.

    Parameters
    ----------
    factors : sequence of str
        Components that are in or out in all combinations.
    generators : mapping
        Component -> the word that sets it, such as ``"-koleo*ema"``. With in = +1 and out = -1 it is the product of
        the word's levels, times the sign in front.

    Returns
    -------
    dict
        Arms by name, without those that are impossible (:data:`IMPOSSIBLE`).
    """
    arms: Arms = {}
    for levels in itertools.product((1, -1), repeat=len(factors)):
        level = dict(zip(factors, levels, strict=True))
        for name, word in generators.items():
            sign = -1 if word.startswith("-") else 1
            level[name] = sign * math.prod(level[letter] for letter in word.removeprefix("-").split("*"))
        out = {name for name, value in level.items() if value < 0}
        if not any(together <= out for together in IMPOSSIBLE):
            arms |= arm(out)
    return arms


def merge(designs: Any) -> Arms:
    """Arms of several designs; those of one name are one arm."""
    return {name: changes for design in designs for name, changes in design.items()}

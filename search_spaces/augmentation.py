"""Axes of augmentation: what makes the two views of a jet differ. 0 switches each one off."""

import math
from typing import Any

from search_spaces.axis import Axis

ROTATION = Axis(
    field="augment.rotation",
    low=0.0,
    high=math.pi,
    reason="from no rotation to every angle, the paper's",
)
SMEARING = Axis(
    field="augment.smear_sigma",
    low=0.0,
    high=3e-3,
    reason="the paper's 3e-4 is three times 100 MeV over 1 TeV; at ten times that, a particle of 1% of the jet's pT "
    "moves by 0.3, most of the jet's radius",
)
SPLITTING = Axis(
    field="augment.split_fraction",
    low=0.0,
    high=1.0,
    reason="from none of the possible splittings to all of them, the paper's",
)
SPLIT_LOW = Axis(
    field="augment.split_low",
    low=0.0,
    high=0.5,
    reason="the paper's 0.3; 0 allows any share, 0.5 splits in halves",
)
TRANSLATION = Axis(
    field="augment.translation",
    low=0.0,
    high=0.4,
    reason="a shift of the whole jet by up to its radius of 0.4; JetCLR (arXiv:2108.04253) shifts within the "
    "jet's width",
)
BOOST = Axis(
    field="augment.boost",
    low=0.0,
    high=0.5,
    reason="angles times exp(-y): jets of one kind at pT 40% lower or 65% higher look like this in the collinear limit",
)
PT_RESOLUTION = Axis(
    field="augment.pt_sigma",
    low=0.0,
    high=0.05,
    reason="a calorimeter's stochastic term a / sqrt(E / GeV) is 0.01 to 0.03 at 1 TeV for a = 30% to 100%",
)
SOFT_DROPOUT = Axis(
    field="augment.soft_dropout",
    low=0.0,
    high=1.0,
    reason="share lost of the particles below augment.soft_pt of the jet's pT, from none to all: soft radiation is "
    "what detectors and generators agree on least",
)

PAPER = {"rotation": ROTATION, "smearing": SMEARING, "splitting": SPLITTING}
"""Augmentations of the paper."""

PHYSICS = {
    "translation": TRANSLATION.arm(0.1),
    "boost": BOOST.arm(0.2),
    "pt_resolution": PT_RESOLUTION.arm(0.02),
    "soft_dropout": SOFT_DROPOUT.arm(0.3),
}
"""What a detector, the frame, or soft radiation would do to a jet, at moderate strength (heuristic)."""


def only(*kept: str) -> dict[str, Any]:
    """Overrides that leave of the paper's augmentations only these."""
    return {axis.field: 0.0 for name, axis in PAPER.items() if name not in kept}


def scan(name: str, axis: Axis, values: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    """Arms ``<name>_<value>``: one axis at some values, everything else as in the base."""
    return {f"{name}_{value:.2g}": axis.arm(value) for value in values}

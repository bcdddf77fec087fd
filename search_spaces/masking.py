"""Axes of masking: which particles are hidden from the student, and how many."""

from typing import Any, get_args

from jbot.config import Scheme
from search_spaces.axis import Axis

SCHEME = Axis(
    field="mask.scheme",
    values=get_args(Scheme),
    reason="momentum is the paper's; random, random_count and the geometric pair are its matched controls; "
    "hardest and softest are the two extremes; none leaves only the [CLS] loss",
)
RATIO_HIGH = Axis(
    field="mask.ratio_high",
    low=0.1,
    high=0.9,
    reason="the paper's 0.5 with room on both sides: below 0.1 a typical jet has one masked particle whatever the "
    "share, above 0.9 some have one left",
)
RATIO_LOW = Axis(
    field="mask.ratio_low",
    low=0.0,
    high=0.5,
    reason="from the paper's 0 to its ratio_high, where every view hides the same share",
)


def ratio_ranges(schemes: tuple[str, ...], ranges: dict[str, tuple[float, float]]) -> dict[str, dict[str, Any]]:
    """Arms ``<scheme>_<range>``: each scheme at each named (low, high) of the masked share."""
    return {
        f"{scheme}_{name}": SCHEME.arm(scheme) | RATIO_LOW.arm(low) | RATIO_HIGH.arm(high)
        for name, (low, high) in ranges.items()
        for scheme in schemes
    }

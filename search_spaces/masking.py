"""Axes of masking: which particles are hidden from the student."""

from jbot.masking import SCHEMES
from search_spaces.axis import Axis

SCHEME = Axis(
    field="mask.scheme",
    values=tuple(SCHEMES),
    reason="momentum is the paper's; random, random_count and the geometric pair are its matched controls; "
    "hardest and softest are the two extremes; none leaves only the [CLS] loss",
)

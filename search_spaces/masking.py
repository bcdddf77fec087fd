"""Axes of masking: which particles are hidden from the student, and how much of the jet."""

from jbot.masking import SCHEMES
from search_spaces.axis import Axis

SCHEME = Axis(
    field="mask.scheme",
    values=tuple(SCHEMES),
    reason="momentum is the paper's; random, random_count and the geometric pair are its matched controls; "
    "hardest and softest are the two extremes; none leaves only the [CLS] loss",
)

RATIO_HIGH = Axis(
    field="mask.ratio_high",
    low=0.1,
    high=0.9,
    reason="the paper masks up to 0.5; image and language models work from 0.15 to 0.75",
)

"""One colour per arm, the same in figures, pages and the MLflow view."""

from collections.abc import Sequence

# Petroff, arXiv:2107.02270: ten colours told apart in colour-vision deficiency, the sequence HEP experiments use.
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#94a4a2", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip


def arm_colour(index: int) -> str:
    """Colour of the arm at this place of the plan; repeated after ten."""
    return PALETTE[index % len(PALETTE)]


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """Arm -> colour, in the plan's order."""
    return {arm: arm_colour(index) for index, arm in enumerate(arms)}

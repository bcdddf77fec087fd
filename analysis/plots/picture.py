"""A figure with its words. Needs no drawing library: pages of words import it, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with its words."""

    name: str
    """File name without ending."""
    figure: Figure
    alt: str
    caption: str = ""
    pdf: bool = True
    """Saved as PDF too."""


def picture(name: str, figure: Figure, caption: str, said: str) -> Picture:
    """A figure whose alternative text is its caption and what it shows."""
    return Picture(name=name, figure=figure, alt=f"{caption} {said}.", caption=caption)

"""Sections of the report that answer the question of some studies and say nothing of others.

Each is found by what the plan and the records hold, not by the study's name, so that a study of one's own has them too.
"""

from __future__ import annotations

from collections.abc import Callable

from analysis.report.section import Evidence, Extra
from analysis.report.sections import (
    components,
    scaling,
    score_grid,
    search,
    seed_variation,
    sensitivity,
    transfer,
    two_level,
)

SECTIONS: tuple[Callable[[Evidence], Extra | None], ...] = (
    search.section,
    components.section,
    sensitivity.section,
    scaling.section,
    transfer.section,
    score_grid.section,
    seed_variation.section,
    two_level.section,
)
"""In the order of the page. Each returns None where it has nothing to say."""


def gather(evidence: Evidence) -> list[Extra]:
    """Those that this study has."""
    found = (section(evidence) for section in SECTIONS)
    return [extra for extra in found if extra is not None]

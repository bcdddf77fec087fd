"""All sections of a report, listed once, in the order of the page.

Each is found by what the plan and the records hold, not by the study's name, so that a study of one's own has them too.
A new one is a function in a file of ``sections/``, and its name here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from analysis.report.evidence import Evidence
from analysis.report.section import Section
from analysis.report.sections import (
    arms,
    components,
    curves,
    differences,
    method,
    other_metrics,
    scaling,
    score_grid,
    search,
    seed_variation,
    sensitivity,
    single_trials,
    transfer,
    trials,
    two_level,
)

Make = Callable[[Evidence], Section | None]
"""Makes a section; returns None where it has nothing to say."""

PARTS: Mapping[str, Sequence[Make]] = {
    "Evidence": (
        differences.section,
        arms.section,
        search.section,
        components.section,
        sensitivity.section,
        scaling.section,
        transfer.section,
        score_grid.section,
        seed_variation.section,
        two_level.section,
        curves.section,
        curves.speed,
        other_metrics.section,
        single_trials.embedding_maps,
        single_trials.example_jets,
        single_trials.details,
        trials.signatures,
        trials.failures,
    ),
    "Method": (method.design, method.sources, method.deviations, method.reading),
    "Records": (trials.every_trial,),
}
"""Heading -> the sections under it."""


def gather(evidence: Evidence) -> dict[str, list[Section]]:
    """The sections that this study has, by heading."""
    return {
        part: [section for make in makes if (section := make(evidence)) is not None] for part, makes in PARTS.items()
    }

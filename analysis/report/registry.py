"""All sections of a report, listed once, in the order of the page.

Each is found by what the plan and the records hold, not by the study's name, so that a study of one's own has them too.
A new one is a file in ``sections/`` with a function ``section``, and its name here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from analysis.report.evidence import Evidence
from analysis.report.section import Section
from analysis.report.sections import (
    arms,
    components,
    convergence_speed,
    curves,
    differences,
    embedding_maps,
    example_jets,
    failure_signatures,
    failures,
    other_metrics,
    plan,
    provenance,
    reading,
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
        convergence_speed.section,
        other_metrics.section,
        embedding_maps.section,
        example_jets.section,
        single_trials.section,
        failure_signatures.section,
        failures.section,
    ),
    "Method": (plan.section, provenance.section, provenance.deviations, reading.section),
    "Records": (trials.section,),
}
"""Heading -> the sections under it."""


def gather(evidence: Evidence) -> dict[str, list[Section]]:
    """The sections that this study has, by heading."""
    return {
        part: [section for make in makes if (section := make(evidence)) is not None] for part, makes in PARTS.items()
    }

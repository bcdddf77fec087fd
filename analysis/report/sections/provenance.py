"""Where the numbers come from, and where the records deviate from the plan."""

from __future__ import annotations

from analysis.report.evidence import Evidence
from analysis.report.section import Section
from analysis.verdicts import provenance

NO_DEVIATION = "None: all records carry this plan, one data set, one code version and one kind of machine."


def section(evidence: Evidence) -> Section:
    """Code, libraries, machines and data of the records."""
    return Section(title="Provenance", facts=provenance.facts(evidence.study))


def deviations(evidence: Evidence) -> Section:
    """Records that are not what the plan says."""
    found = provenance.deviations(evidence.study)
    return Section(title="Deviations from the plan", sentences=found or [NO_DEVIATION])

"""The terms of the report, for a reader who has not met them."""

from __future__ import annotations

from analysis.report.evidence import Evidence
from analysis.report.section import Section


def section(evidence: Evidence) -> Section:
    """A glossary."""
    return Section(
        key="reading",
        title="How to read this",
        facts={
            "Seed, block": "All arms at one seed share initial weights, data order and noise, so they differ only by "
            "what the arm changes. The differences at a seed are what is compared.",
            "95% interval": "Made this way, 95 of 100 intervals contain the true mean difference. It covers the choice "
            "of seeds, not the choice of test jets or of data set. Where a metric is a share, it is cut at 0 and 1.",
            "p": "If the arms were the same, the chance of a mean difference at least this large: the share of all "
            "sign flips of the differences that reach it. It is corrected for the number of contrasts, and cannot "
            "fall below the “smallest p” of so many seeds.",
            "Better, worse": f"p at most {evidence.plan.alpha:g} after correction, and an interval clear of zero.",
            "Equivalent": "Two one-sided t-tests show that the mean difference is smaller than the margin. A large p "
            "alone is never “no effect”.",
            "Undecided": "Neither is shown. The number of seeds that would probably decide it assumes the size and "
            "spread seen so far.",
            "Figures": "Point at, tap, or step through with Tab and the arrow keys to read values; the buttons above "
            "figures switch arms off. They are vectors: their text can be searched and copied.",
            "Failed trials": "They are an outcome: counted, never averaged. A difference describes the seeds at which "
            "both arms finished.",
        },
    )

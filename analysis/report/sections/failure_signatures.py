"""Named ways in which training went wrong, per arm."""

from __future__ import annotations

from analysis.report.evidence import Evidence
from analysis.report.section import Section, Table
from analysis.verdicts import diagnostics

MAX_ROWS, MAX_SEEDS = 60, 8
"""Rows of the table, and seeds named in each; all of them are in signatures.csv."""
NOTE = (
    "Single trials in which training went wrong in a way that has a name: where to look, no verdict. Confusion: of the "
    "jets of two classes that were given one of the two, the share given the other, with a 95% Wilson interval; a coin "
    "has 50%. ± of accuracies is the error from the number of test jets. All of them are in signatures.csv."
)


def section(evidence: Evidence) -> Section:
    """In which trials each was found, and the numbers of the worst one."""
    rows = []
    for name, arm, subject, found, examined in diagnostics.by_arm(evidence.diagnosis):
        seeds = sorted(item.seed for item in found)
        named = ", ".join(map(str, seeds[:MAX_SEEDS])) + (", …" if len(seeds) > MAX_SEEDS else "")
        worst = f"{found[0].case.evidence}" + (f" (seed {found[0].seed})" if len(found) > 1 else "")
        rows.append([name, arm, subject, f"{len(found)} of {examined}", named, worst])
    head = ["signature", "arm", "where", "trials", "seeds", "evidence, of the worst trial"]
    table = Table(label="Failure signatures", head=head, rows=rows[:MAX_ROWS], text_columns=(0, 1, 2, 4, 5))
    absent = diagnostics.absent_line(evidence.diagnosis)
    return Section(
        key="signatures",
        title="Failure signatures",
        sentences=[absent] if absent else [],
        tables=[table] if rows else [],
        notes=[NOTE] if rows else [],
    )

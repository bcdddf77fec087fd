"""How fast each arm learns: the time until the primary metric reaches a threshold that the control arm sets."""

from __future__ import annotations

from analysis.report.evidence import Evidence
from analysis.report.section import Section, Table
from analysis.verdicts import number_format as fmt
from analysis.verdicts.convergence import Convergence
from analysis.verdicts.number_format import interval_cell, mean_cell
from analysis.verdicts.sentences import contrast_name
from jbot.evaluation.metrics_registry import find_metric


def section(evidence: Evidence) -> Section:
    """Times per arm and paired differences of them, on every clock."""
    found = evidence.convergence
    if not found:
        why = "There are no learning curves of the primary metric to measure it on."
        if not evidence.plan.contrasts:
            why = "No contrast of arms was planned, so there is no control arm to measure it against."
        return Section(key="convergence", title="Convergence speed", sentences=[why])
    first = found[0]
    return Section(
        key="convergence",
        title="Convergence speed",
        sentences=[
            f"Time until {find_metric(first.metric).full_label} first reaches {first.threshold:.4f} at a probe, the "
            f"point half-way from the untrained to the trained {first.control} arm (means over its seeds). The "
            "threshold knows nothing of the other arms. A trial that has not reached it when the shortest training "
            "ends is censored there; a failed trial that had not reached it counts as never reaching it. Negative "
            "differences are faster."
        ],
        tables=[table for one in found for table in _tables(one)],
    )


def _tables(found: Convergence) -> tuple[Table, Table]:
    """Per arm and per contrast, on one clock."""
    arms = [
        [arm.arm, f"{arm.reached} of {arm.n}", fmt.compact(arm.restricted_mean), mean_cell(arm.area)]
        for arm in found.arms
    ]
    pairs = [
        [
            contrast_name(pair.contrast),
            *(cell for one in (pair.time, pair.area) for cell in (mean_cell(one, sign=True), interval_cell(one))),
            str(pair.time.n),
        ]
        for pair in found.contrasts
    ]
    unit = found.unit
    head = ["contrast", f"{unit}, difference", "95% interval", "curve, difference", "95% interval", "n"]
    return (
        Table(
            label=f"Convergence in {unit}, up to {found.horizon:.4g}",
            head=["arm", "reached", f"mean {unit}", "mean of the curve"],
            rows=arms,
        ),
        Table(label=f"Paired convergence in {unit}", head=head, rows=pairs),
    )

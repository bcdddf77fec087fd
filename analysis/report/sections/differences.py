"""Paired differences between arms, and the verdict on each contrast of the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from analysis.plots.forest import Difference, paired_differences
from analysis.report import headline
from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section, Table
from analysis.verdicts import number_format as fmt
from analysis.verdicts import tables
from analysis.verdicts.sentences import FAILED, contrast_name, numbers, outcome_label
from analysis.verdicts.verdict import Verdict
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Plan

MAX_ROWS = 10
"""Contrasts drawn on the first screen; where there are more, a second figure has them."""
MAX_CONTRASTS = 30
"""Contrasts drawn and described in sentences; the table has all."""
FAILED_NOTE = (
    " “failed”: trials of an arm failed, so that fewer than two seeds are left to compare; the verdict is undecided."
)


def section(evidence: Evidence) -> Section:
    """Estimate, test and verdict of every contrast, with the checks behind them."""
    if not evidence.verdicts:
        return Section(key="differences", title="Paired differences", sentences=["No contrasts were planned."])
    shown = contrasts_table(evidence)
    failed = any(FAILED in row[1] for row in shown.rows)
    drawn = [_figure(evidence, MAX_ROWS, "paired-differences")]
    if len(evidence.verdicts) > MAX_ROWS:
        drawn.append(_figure(evidence, MAX_CONTRASTS, "paired-differences-all"))
    return Section(
        key="differences",
        title="Paired differences",
        figures=[one for one in drawn if one],
        tables=[shown],
        notes=[
            "First-named arm minus the second, at the same seeds; ± is the standard error of the mean."
            + FAILED_NOTE * failed
        ],
        details=[*_in_words(evidence), _checks(evidence)],
    )


def contrasts_table(evidence: Evidence) -> Table:
    """One row per contrast; none without contrasts."""
    rows = []
    for item in evidence.verdicts:
        d, kind = item.difference, "" if item.contrast.primary or item.null else " (exploratory)"
        interval = fmt.interval(d.low, d.high, d.standard_error, item.within)
        p = fmt.p_value(item.p_adjusted, item.min_p) if d.n > 1 else fmt.MISSING
        needed = str(item.seeds_needed) if item.seeds_needed else fmt.MISSING
        name, outcome = contrast_name(item.contrast.name), f"{outcome_label(item)}{kind}"
        rows.append([name, outcome, _size(item), interval, str(d.n), p, needed])
    head = ["contrast", "verdict", "difference", _level(evidence), "n", "p, corrected", "seeds to decide"]
    return Table(label="Paired differences", head=head, rows=rows, text_columns=(0, 1))


def _level(evidence: Evidence) -> str:
    """``95% interval``; that of looks holds at all of them together."""
    repeated = "repeated " if evidence.plan.looks else ""
    return f"{fmt.level(evidence.plan.alpha)} {repeated}interval"


def _decided_first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Primary contrasts before exploratory ones, and of each those that are decided before the others."""
    return sorted(verdicts, key=lambda v: (not v.contrast.primary, v.null or v.outcome == "undecided"))


def _size(item: Verdict) -> str:
    d = item.difference
    return fmt.with_error(d.mean, d.standard_error, sign=True) if d.n > 1 else fmt.number(d.mean, sign=True)


def _in_words(evidence: Evidence) -> list[Section]:
    """The verdicts that the first screen does not give in a sentence: it does so with a single one."""
    first = headline.chosen(evidence.verdicts)
    said = [v for v in first if len(first) == 1 and outcome_label(v) != FAILED]
    rest = _decided_first([v for v in evidence.verdicts if v not in said and not v.null])[:MAX_CONTRASTS]
    title = f"{'Other verdicts' if said else 'Verdicts'} in words ({len(rest)})"
    facts = {contrast_name(v.contrast.name): " ".join([v.sentence, *v.notes]) for v in rest}
    return [Section(title=title, facts=facts)] if rest else []


def _checks(evidence: Evidence) -> Section:
    """The limits of both tests, and what pairing gained."""
    rows = [
        {
            "contrast": contrast_name(item.contrast.name),
            "smallest p": fmt.p_value(item.min_p),
            "equivalence p": fmt.p_value(item.p_equivalent_adjusted) if d.n > 1 else fmt.MISSING,
            "detectable": fmt.compact(item.detectable, 2),
            "correlation": fmt.number(d.correlation, 3),
            "gain of pairing": f"{fmt.compact(d.variance_ratio, 2)}×"
            if math.isfinite(d.variance_ratio)
            else fmt.MISSING,
            "seeds left out": str(item.dropped + item.pruned),
        }
        for item in evidence.verdicts
        for d in [item.difference]
    ]
    return Section(
        title="Checks of these verdicts: limits of the tests, gain of pairing",
        tables=[Table.of("Checks of the paired differences", rows)],
        notes=[
            "Smallest p: what so many seeds can reach after correction. Detectable: the difference this design finds "
            "with 80% power. Gain of pairing: how many times the trials an unpaired comparison would need."
        ],
    )


def _figure(evidence: Evidence, most: int, name: str) -> Picture | None:
    """Primary contrasts first; None when nothing can be compared."""
    plan, n = evidence.plan, len(evidence.verdicts)
    drawn = _decided_first(evidence.verdicts)[:most]
    if not any(item.difference.n for item in drawn):
        return None
    said = "; ".join(f"{item.contrast.name}: {_size(item)}, {outcome_label(item)}" for item in drawn)
    more = f" {len(drawn)} of {n} contrasts are drawn." if len(drawn) < n else ""
    hollow = " Open diamonds: exploratory." if len({item.contrast.primary for item in drawn}) == 2 else ""
    return Picture(
        name=name,
        figure=paired_differences(*forest_rows(drawn, evidence.trials, plan), plan.margin),
        alt=f"Paired differences. {said}.",
        caption="First-named arm minus the second, at the same seeds: "
        f"{'right' if plan.higher_is_better else 'left'} of zero the first is better. Diamond and bar: mean and "
        f"{_level(evidence)}; circles: seeds; shaded: differences below the margin of {plan.margin:g}.{hollow}{more}",
    )


def forest_rows(verdicts: Sequence[Verdict], trials: pd.DataFrame, plan: Plan) -> tuple[list[Difference], str]:
    """Rows and axis label of the figure of verdicts, :func:`analysis.plots.forest.paired_differences`."""
    metrics = {item.contrast.metric or plan.metric for item in verdicts}
    quantities = {find_metric(metric).label for metric in metrics}
    # What all rows share stands at the axis, not in each of them.
    shared = f"{min(quantities)} " if len(quantities) == 1 else ""
    rows = [
        Difference(
            name=(name := contrast_name(item.contrast.name)),
            short=name.replace(f"({shared}", "("),
            outcome=outcome_label(item),
            primary=item.contrast.primary,
            mean=item.difference.mean,
            ends=item.ends,
            seeds=tables.seed_differences(trials, plan, item),
            numbers=numbers(item),
        )
        for item in verdicts
    ]
    what = {find_metric(metric).full_label for metric in metrics} if len(metrics) == 1 else quantities
    return rows, f"difference in {min(what)}" if len(what) == 1 else "difference"

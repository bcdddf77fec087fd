"""How the primary metric answers to a number of the Config: a response curve for every field that arms scan.

A scan is a set of arms that lie at three or more values of one numeric field and agree in everything else; the value
of the base counts. Scans of one field that differ in something else (two batch sizes) are its groups, in one figure.

A scan has no direction and no margin, so there is no verdict. What is tested is whether the field matters at all: the
span of the means, against the spans that come about when the arms are shuffled within each seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.plots import responses as plots
from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section, Table, slug
from analysis.stats import paired
from analysis.verdicts import arm_configs, exploratory
from analysis.verdicts import number_format as fmt
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Plan

MIN_VALUES = 3
"""Two values are a contrast."""
ELSEWHERE = ("data.train_jets", "data.jet_pt")
"""Fields whose arms have sections of their own: scaling, and transfer between energies."""
SHUFFLES = 1999
"""Shuffles of the arms within each seed. A p-value of 0.05 then carries a Monte Carlo error of 0.005."""
LOG_REACH = 10.0
"""A scan over less than a factor of ten is drawn on a linear axis, however it is spaced (assumed)."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Arms that differ in one numeric field alone."""

    field: str
    group: str
    """What distinguishes this scan from the others of its field; empty when there is one."""
    arms: dict[float, str]
    """Value of the field -> arm, ascending."""
    base: float
    """The value of the base, whether an arm lies on it or not."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """How far the means of a scan lie apart, at the seeds that have all of its arms."""

    n: int
    lowest: tuple[float, float]
    """(value of the field, mean of the metric)."""
    highest: tuple[float, float]
    by_chance: float
    """Mean span after the arms are shuffled within each seed; NaN below two seeds."""
    p: float
    """Share of shuffles with a span at least this large; NaN below two seeds."""

    @property
    def size(self) -> float:
        """In units of the metric."""
        return self.highest[1] - self.lowest[1]


def scans(plan: Plan) -> list[Scan]:
    """Every scan of a plan, by field, in the order in which arms first change the fields."""
    configs, base = arm_configs.arm_configs(plan), arm_configs.base_config(plan)
    changed = dict.fromkeys(field for changes in plan.arms.values() for field in changes if field not in ELSEWHERE)
    found = []
    for field in changed:
        groups: dict[tuple[tuple[str, object], ...], dict[float, str]] = {}
        for arm, config in configs.items():
            if isinstance(config.get(field), float):
                groups.setdefault(arm_configs.without(config, [field]), {})[config[field]] = arm
        alike = [(dict(key), arms) for key, arms in groups.items() if len(arms) >= MIN_VALUES]
        differing = [name for name in base if name != field and len({rest.get(name) for rest, _ in alike}) > 1]
        for rest, arms in alike:
            group = ", ".join(f"{name} = {fmt.value_words(rest[name])}" for name in differing)
            arms = dict(sorted(arms.items()))
            found.append(Scan(field=field, group=group, arms=arms, base=base.get(field, math.nan)))
    return found


def is_logarithmic(values: list[float]) -> bool:
    """Whether values are spaced more evenly in their logarithm; a zero among them is left aside for that.

    Never below a factor of LOG_REACH, and never with negative values.
    """
    positive = np.array(sorted(value for value in values if value > 0))
    if min(values) < 0 or len(positive) < 2 or positive[-1] < LOG_REACH * positive[0]:
        return False
    steps = (np.diff(np.log(positive)), np.diff(sorted(values)))
    logarithmic, linear = (float(step.std() / step.mean()) for step in steps)
    return logarithmic < linear


def span(scan: Scan, scores: pd.DataFrame) -> Span | None:
    """How far the means lie apart, from compared scores (seed, arm); None when no seed has MIN_VALUES of the arms.

    Arms without any score are left out, then seeds without all of the others.
    """
    block = scores[list(scan.arms.values())].set_axis(list(scan.arms), axis=1).dropna(axis=1, how="all").dropna()
    if block.shape[1] < MIN_VALUES or block.empty:
        return None
    rows = block.to_numpy(dtype=float)
    means = rows.mean(axis=0)
    low, high = int(means.argmin()), int(means.argmax())
    by_chance, p = math.nan, math.nan
    if len(rows) > 1:
        rng = np.random.default_rng(paired.SEED)
        spans = np.array([np.ptp(rng.permuted(rows, axis=1).mean(axis=0)) for _ in range(SHUFFLES)])
        # Equal spans may differ by their rounding: those count as reached. p after Phipson & Smyth,
        # doi:10.2202/1544-6115.1585.
        reached = spans >= np.ptp(means) * (1 - 1e-12)
        by_chance, p = float(spans.mean()), float((np.count_nonzero(reached) + 1) / (SHUFFLES + 1))
    return Span(
        n=len(rows),
        lowest=(block.columns[low], float(means[low])),
        highest=(block.columns[high], float(means[high])),
        by_chance=by_chance,
        p=p,
    )


def section(evidence: Evidence) -> Section | None:
    """Response curves of the study; None when its arms scan nothing."""
    plan, scores = evidence.judged_plan, evidence.compared
    found = scans(plan)
    if not found:
        return None
    by_field: dict[str, list[Scan]] = {}
    for scan in found:
        by_field.setdefault(scan.field, []).append(scan)
    seeds = paired.mean_interval(scores.std(ddof=1).dropna())
    spread = f" One arm varies over seeds by {fmt.compact(seeds.mean, 2)} (standard deviation)." if seeds.n else ""
    spans = [span(scan, scores) for scan in found]
    p_values = exploratory.corrected([math.nan if one is None else one.p for one in spans])
    family = sum(math.isfinite(p) for p in p_values)
    said = [_sentence(plan, *item, family) for item in zip(found, spans, p_values, strict=True)]
    return Section(
        title="Response to single settings",
        sentences=(
            f"Each curve changes one setting and nothing else, and shows {find_metric(plan.metric).full_label}. All "
            "of this is exploratory, corrected by Benjamini-Hochberg: a value that looks best here needs a run on "
            f"fresh seeds.{spread}",
            *said,
        ),
        answer=said,
        tables=_tables(evidence, by_field),
        figures=tuple(_picture(plan, field, of_field, scores) for field, of_field in by_field.items()),
    )


def _sentence(plan: Plan, scan: Scan, reach: Span | None, p: float, family: int) -> str:
    first, last = (fmt.value_words(value) for value in (min(scan.arms), max(scan.arms)))
    where = f"{scan.field} from {first} to {last}" + (f" ({scan.group})" if scan.group else "")
    if reach is None:
        return f"{where}: fewer than {MIN_VALUES} values have a score at one seed, so nothing can be said yet."
    low, high = (f"{fmt.number(one[1])} at {fmt.value_words(one[0])}" for one in (reach.lowest, reach.highest))
    said = f"{where}: the means lie {fmt.compact(reach.size, 2)} apart, from {low} to {high}"
    if not math.isfinite(p):
        return f"{said}. One seed has no spread: this may be noise."
    verdict = "" if p <= plan.alpha else "no effect is shown, as "
    chance = f"chance alone would set them {fmt.compact(reach.by_chance, 2)} apart"
    over = f" after Benjamini-Hochberg over {family} scans" if family > 1 else ""
    return f"{said}; {verdict}{chance} (p = {fmt.p_value(p)}{over}, n = {fmt.count(reach.n, 'seed')})."


def _tables(evidence: Evidence, by_field: dict[str, list[Scan]]) -> list[Table]:
    """A table per field, with paired differences to the arm of the scan that has the base's value, if there is one.

    The differences of all tables are corrected together.
    """
    scores, confidence, level = evidence.compared, 1 - evidence.alpha, evidence.level
    rows = [
        (scan, value, arm) for of_field in by_field.values() for scan in of_field for value, arm in scan.arms.items()
    ]
    differences = [
        np.empty(0)
        if scan.arms.get(scan.base, arm) == arm
        else exploratory.paired_differences(scores, arm, scan.arms[scan.base])
        for scan, _, arm in rows
    ]
    p_values = exploratory.corrected([exploratory.sign_flip(gaps) for gaps in differences])
    cells: dict[str, list[list[str]]] = {field: [] for field in by_field}
    for (scan, value, arm), gaps, p in zip(rows, differences, p_values, strict=True):
        mean, difference = (paired.mean_interval(x, confidence) for x in (scores[arm].dropna(), gaps))
        name = fmt.value_words(value) + (f", {scan.group}" if scan.group else "")
        to_base = [fmt.mean_cell(difference, sign=True), fmt.interval_cell(difference)]
        to_base += [str(difference.n), fmt.p_cell(p, difference.n)]
        if value == scan.base:
            to_base = ["the base’s value", *[fmt.MISSING] * 3]
        cells[scan.field].append([name, arm, str(mean.n), fmt.mean_cell(mean), fmt.interval_cell(mean), *to_base])
    head = ["arm", "n", "mean", level, "difference to base", level, "pairs", "p, corrected"]
    return [
        Table(label=f"Response to {name}", head=[name, *head], rows=of_field, text_columns=(0, 1))
        for name, of_field in cells.items()
    ]


def _picture(plan: Plan, field: str, found: list[Scan], scores: pd.DataFrame) -> Picture:
    values = sorted({value for scan in found for value in scan.arms} | {found[0].base})
    curves = {scan.group: scores[list(scan.arms.values())].set_axis(list(scan.arms), axis=1) for scan in found}
    figure = plots.responses(curves, field, plan.metric, found[0].base, is_logarithmic(values), 1 - plan.alpha)
    words = find_metric(plan.metric).full_label
    means = {value: paired.mean_interval(scores[arm].dropna()) for value, arm in found[0].arms.items()}
    said = "; ".join(f"{fmt.value_words(value)}: {fmt.mean_cell(mean)}" for value, mean in means.items())
    return Picture(
        name=f"response-{slug(field)}",
        figure=figure,
        alt=f"{words} against {field}. Means: {said}.",
        caption=f"{words} against {field}: means over seeds with {fmt.level(plan.alpha)} intervals; faint lines: "
        "single seeds; dashed: the base’s value. Below, the paired differences to it, without the spread that all arms "
        "of a seed share.",
    )

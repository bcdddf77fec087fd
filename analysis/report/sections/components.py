"""The effect of each component of a recipe: left out of it, alone, and in a factorial with its interactions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.plots import forest
from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section, Table, picture
from analysis.stats import paired
from analysis.verdicts import component_design as design
from analysis.verdicts import exploratory
from analysis.verdicts import number_format as fmt
from analysis.verdicts.component_design import ComponentEffect
from analysis.verdicts.exploratory import Estimate
from analysis.verdicts.number_format import listed
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Plan

EFFECT = (
    "An effect is the mean of the arms in which a component is in minus that of the arms in which it is out. An "
    "interaction A × B is half of what the effect of A differs by between the arms with and without B; what stands "
    "in one line is one number, the sum of all that is named there."
)
MARKS = "Marks and bars: mean and interval over seeds; circles: seeds; shaded: differences below the margin"
FACTORIAL = "Main effects and two-factor interactions of the factorial."


def section(evidence: Evidence) -> Section | None:
    """The components of the study; None when its plan names none, or no arms that vary them."""
    plan, scores = evidence.judged_plan, evidence.compared
    full, alone, crossed = design.left_out(plan), design.added_alone(plan), design.factorial(plan)
    if not (alone or full or crossed):
        return None
    contrasts = design.columns(crossed) if crossed else []
    sizes = [
        (one.component, exploratory.paired_differences(scores, one.treatment, one.control)) for one in (*full, *alone)
    ]
    sizes += [(column.name, design.effect_sizes(crossed, column, scores)) for column in contrasts if crossed]
    found = exploratory.estimates(sizes, plan.alpha)
    in_full, in_alone = found[: len(full)], found[len(full) : len(full) + len(alone)]
    effects = found[len(full) + len(alone) :]
    said = list(_sentences(plan, in_full, in_alone, evidence))
    kinds = {"in the full recipe": in_full, "alone": in_alone}
    by_name = {kind: {one.name: one for one in of} for kind, of in kinds.items()}
    names = [name for name in design.components(plan) if any(name in of for of in by_name.values())]
    single = {name: {kind: of.get(name) for kind, of in by_name.items()} for name in names}
    drawn = {name: {kind: of.get(name) for kind, of in by_name.items() if of} for name in names}
    short = {column.short: {"": one} for column, one in zip(contrasts, effects, strict=True)}
    return Section(
        title="Effect of each component",
        sentences=[
            *_intro(plan, found),
            *said,
            *_together(plan, full, scores),
            *_factorial_sentences(plan, effects),
        ],
        method=[*design.alias_lines(plan)[:1], *([EFFECT] if effects else [])],
        answer=said,
        tables=list(_tables(evidence, list(kinds), single, effects)),
        figures=[
            *_figure(plan, "components-single", "Effect of each component.", drawn),
            *_figure(plan, "components-effects", FACTORIAL, short),
        ],
    )


def _intro(plan: Plan, found: Sequence[Estimate]) -> Iterator[str]:
    """How to read the numbers of the section, and whether any could be shown with so few seeds."""
    helps = "positive" if plan.higher_is_better else "negative"
    yield (
        f"The effect of a component is a difference in {find_metric(plan.metric).full_label}, with it minus without "
        f"it, at the same seed: {helps} means that it helps. In the full recipe it is left out of everything else; "
        "alone it is added to the barest recipe. Exploratory: corrected by Benjamini-Hochberg over the "
        f"{len(found)} numbers of this section."
    )
    n = max(one.interval.n for one in found)
    if n > 1 and paired.min_p(n) > plan.alpha:
        smallest = fmt.p_value(paired.min_p(n))
        yield f"{n} seeds can show nothing here, as their smallest p is {smallest}: what follows are leads."


def _sentences(
    plan: Plan, in_full: Sequence[Estimate], in_alone: Sequence[Estimate], evidence: Evidence
) -> Iterator[str]:
    if in_full:
        yield f"Left out of the full recipe: {_sorted_out(plan, in_full)}."
    if in_alone:
        barest: dict[str, list[str]] = {}
        for one in design.added_alone(plan):
            barest.setdefault(one.control, []).append(one.component)
        controls = [f"{arm} ({listed(names)})" for arm, names in barest.items()]
        yield f"Added alone, to {listed(controls)}: {_sorted_out(plan, in_alone)}."
    failed = evidence.arms.set_index("arm")["failed"]
    lost = [f"{one.component} ({failed[one.control]})" for one in design.left_out(plan) if failed[one.control]]
    if lost:
        yield f"Trials failed without {listed(lost)}: an outcome that no mean shows."
    out = [name for name in plan.factors if name not in design.components(plan)]
    if out:
        yield f"Already out of the base, so not measured: {listed(out)}."


def _sorted_out(plan: Plan, found: Sequence[Estimate]) -> str:
    """Which help, which hurt, which may, and of which nothing is shown; the largest first."""
    better, parts = 1 if plan.higher_is_better else -1, []
    for word, sign in (("help", better), ("hurt", -better)):
        if those := [one for one in found if one.shown == sign]:
            parts.append(f"{_named(those)} {word if len(those) > 1 else word + 's'}")
    leads = _leads(found)
    if leads:
        parts.append(f"not shown after the correction, though the interval excludes zero: {_named(leads)}")
    rest = [one for one in found if not one.shown and one not in leads]
    for says, names in (
        ("nothing is shown for", [one.name for one in rest if one.interval.n > 1]),
        ("too few trials are left for", [one.name for one in rest if one.interval.n < 2]),
    ):
        parts += [f"{says} {listed(names)}"] * bool(names)
    return "; ".join(parts)


def _together(plan: Plan, full: Sequence[ComponentEffect], scores: pd.DataFrame) -> Iterator[str]:
    """Whether the effects in the full recipe add up to that of all components together."""
    outs, names = design.removed(plan), design.components(plan)
    barest = max(outs, key=lambda arm: len(outs[arm]))
    parts_of = [one for one in full if one.component in outs[barest]]
    if len(parts_of) < max(2, len(outs[barest]), len(names) - 1):
        return
    block = scores[[full[0].treatment, barest, *(one.control for one in parts_of)]].dropna()
    total = block[full[0].treatment] - block[barest]
    parts = sum(block[one.treatment] - block[one.control] for one in parts_of)
    whole, rest = (paired.mean_interval(values, 1 - plan.alpha) for values in (total, total - parts))
    if whole.n < 2:
        return
    added = fmt.mean_cell(paired.mean_interval(parts), sign=True)
    if rest.low <= 0 <= rest.high:
        says = "not clear of zero: nothing shows that they depend on each other"
    elif (rest.mean > 0) == plan.higher_is_better:
        says = "so they stand in for each other"
    else:
        says = "so they need each other"
    but = "".join(f" but {name}" for name in names if name not in outs[barest])
    yield (
        f"All components{but} together have an effect of {fmt.mean_cell(whole, sign=True)}; left out of the full "
        f"recipe one by one, they add up to {added}. The rest is {fmt.mean_cell(rest, sign=True)} "
        f"({fmt.level(plan.alpha)} interval {fmt.interval_cell(rest)}), {says}."
    )


def _factorial_sentences(plan: Plan, effects: Sequence[Estimate]) -> Iterator[str]:
    if not effects:
        return
    seeds = max(one.interval.n for one in effects)
    shown, leads = [one for one in effects if one.shown], _leads(effects)
    if not seeds:
        yield "No seed has a score of every arm of the factorial, so it gives no effect."
    elif shown:
        yield f"Shown by the factorial: {_named(shown)}."
    elif paired.min_p(seeds) <= plan.alpha:
        yield "No effect of the factorial is shown after the correction."
    else:
        best = f"{seeds} seeds reach a p of {fmt.p_value(paired.min_p(seeds))} at best, before any correction"
        yield f"The factorial cannot show an effect: {best}."
    if leads:
        yield f"Not shown after the correction, though the interval excludes zero: {_named(leads)}."


def _leads(found: Sequence[Estimate]) -> list[Estimate]:
    """Those whose interval excludes zero, without being shown."""
    return [one for one in found if not one.shown and (one.interval.low > 0 or one.interval.high < 0)]


def _named(found: Sequence[Estimate]) -> str:
    """With their sizes, the largest first."""
    return listed([f"{one.name} ({one})" for one in sorted(found, key=lambda one: -abs(one.interval.mean))])


def _tables(
    evidence: Evidence,
    kinds: Sequence[str],
    single: Mapping[str, Mapping[str, Estimate | None]],
    effects: Sequence[Estimate],
) -> Iterator[Table]:
    cells = [evidence.level, "n", "p, corrected"]
    if single:
        head = ["component", *(cell for kind in kinds for cell in (kind, *cells))]
        rows = [
            [name, *(cell for one in of.values() for cell in (one.cells if one else [fmt.MISSING] * 4))]
            for name, of in single.items()
        ]
        yield Table(label="Effects of components", head=head, rows=rows)
    if effects:
        rows = [[one.name, *one.cells] for one in effects]
        label = "Effects of the factorial, aliased ones in one row"
        yield Table(label=label, head=["effect", "size", *cells], rows=rows)


def _figure(plan: Plan, name: str, what: str, rows: Mapping[str, Mapping[str, Estimate | None]]) -> Iterator[Picture]:
    if not rows:
        return
    seeds = {row: {kind: one.seeds if one else np.empty(0) for kind, one in of.items()} for row, of in rows.items()}
    caption = f"{what} {MARKS} of {plan.margin:g}."
    first = [next(one for one in of.values() if one) for of in rows.values()]
    said = "; ".join(f"{one.name}: {one}" for one in first)
    figure = forest.effects(seeds, plan.margin, f"effect on {find_metric(plan.metric).full_label}", 1 - plan.alpha)
    yield picture(name, figure, caption, said)

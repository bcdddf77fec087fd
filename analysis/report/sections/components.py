"""What each component of a recipe is worth: left out of it, alone, and in a factorial with its interactions.

A plan names its components and the overrides that take each one out (Plan.factors). An arm is read by what is out of
it, whatever its name:

    nothing             the full recipe
    one component       leave-one-out: worth = full - without it
    all, or all but one the barest recipe; add-one-in: alone = the barest with it - without it
    others              the factorial

The worth of a component in the full recipe and alone differ where another component does the same work.

The factorial. Arms that form a regular fraction of the 2^k combinations give main effects and two-factor interactions
as orthogonal contrasts: with every component at +1 (in) or -1 (out), the effect of a column x is the mean score where
x = +1 minus the mean where x = -1, per seed, and the column of an interaction is the product of its components'.
Effects that share a column are aliased: the arms cannot tell them apart. That is computed from the arms themselves.

References
----------
Box, Hunter & Hunter, Statistics for Experimenters (2005), chapters 5 and 6.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.plots import forest
from analysis.plots.picture import Picture
from analysis.report.evidence import Evidence
from analysis.report.section import Section, Table
from analysis.stats import Floats, paired
from analysis.stats.paired import MeanInterval
from analysis.verdicts import design
from analysis.verdicts import number_format as fmt
from analysis.verdicts.design import Settings
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Plan

EFFECT = (
    "An effect is the mean of the arms in which a component is in minus that of the arms in which it is out. An "
    "interaction A × B is half of what the effect of A differs by between the arms with and without B; what stands "
    "in one line is one number, the sum of all that is named there."
)
LEAST_ARMS = 4
"""Of a factorial: two components, each in and out."""
ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")

Signs = NDArray[np.int64]
Effect = tuple[str, ...]
"""Components whose columns are multiplied: one of a main effect, two of an interaction."""


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What one component changes, as a difference of two arms."""

    component: str
    treatment: str
    """Arm with it."""
    control: str
    """Arm without it."""


@dataclass(frozen=True, kw_only=True)
class Factorial:
    """Arms that form a regular two-level fraction."""

    components: tuple[str, ...]
    """Those that are both in and out among the arms."""
    arms: tuple[str, ...]
    signs: Signs
    """(arm, component): +1 in, -1 out."""
    resolution: int
    """Components in the shortest product that is the same in all arms; 0 in a full factorial, which has none."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A contrast of the factorial, and all effects that it is the sum of."""

    signs: Signs
    """(arm,)"""
    effects: tuple[tuple[int, Effect], ...]
    """With the sign with which each enters; the first one is +1."""

    @property
    def name(self) -> str:
        """``A``, ``A × B − C × D``."""
        first, *others = self.effects
        return " × ".join(first[1]) + "".join(f" {'−' if sign < 0 else '+'} {' × '.join(e)}" for sign, e in others)

    @property
    def short(self) -> str:
        """``A (+ 1 aliased)``."""
        more = f" (+ {len(self.effects) - 1} aliased)" if len(self.effects) > 1 else ""
        return " × ".join(self.effects[0][1]) + more


def taken_out(plan: Plan) -> dict[str, frozenset[str]]:
    """The components that are out of each arm; arms that differ from the base in something else are not there."""
    base, factors = design.base_settings(plan), components(plan)
    found = {}
    for arm, config in design.settings(plan).items():
        for out in _candidates(config, factors):
            if config == base | {field: value for name in out for field, value in factors[name].items()}:
                found[arm] = frozenset(out)
                break
    return found


def components(plan: Plan) -> dict[str, Settings]:
    """Those of the plan that are in its base: what is out of it already cannot be taken out."""
    base = design.base_settings(plan)
    factors = {name: design.plain(changes) for name, changes in plan.factors.items()}
    return {name: changes for name, changes in factors.items() if changes and not changes.items() <= base.items()}


def _candidates(config: Settings, factors: dict[str, Settings]) -> Iterator[tuple[str, ...]]:
    """What may be out of an arm. The simplest reading first: taking one component out may imply another."""
    names = tuple(factors)
    yield ()
    yield from ((name,) for name in names)
    yield names
    yield from (tuple(other for other in names if other != name) for name in names)
    yield tuple(name for name in names if factors[name].items() <= config.items())


def left_out(plan: Plan) -> list[Worth]:
    """The full recipe against itself without one component, in the order of the plan's factors."""
    arms = {out: arm for arm, out in taken_out(plan).items()}
    return [
        Worth(component=name, treatment=arms[frozenset()], control=arms[frozenset({name})])
        for name in components(plan)
        if {frozenset(), frozenset({name})} <= set(arms)
    ]


def added_alone(plan: Plan) -> list[Worth]:
    """The barest recipe against itself with one component more, in the order of the plan's factors.

    The barest recipe without that component: none at all, or a single other one, since some cannot all be out.
    """
    arms, names = {out: arm for arm, out in taken_out(plan).items()}, components(plan)
    bare = sorted((out for out in arms if len(out) >= max(2, len(names) - 1)), key=lambda out: (-len(out), arms[out]))
    found = []
    for name in names:
        control = next((out for out in bare if name in out and out - {name} in arms), None)
        if control:
            found.append(Worth(component=name, treatment=arms[control - {name}], control=arms[control]))
    return found


def factorial(plan: Plan) -> Factorial | None:
    """The largest regular fraction that is easily seen among the arms; None when there is none.

    Tried are all arms whose components are known; the fraction spanned by those that are neither leave-one-out nor
    add-one-in; and the arms that take out no other components than these do.
    """
    names, mixed = list(components(plan)), list(_mixed(plan))
    bits = {point: arm for arm, point in _points(plan).items()}
    reach = 0
    for point in mixed:
        reach |= point
    for points in (set(bits), _spanned(mixed, len(bits)), {point for point in bits if not point & ~reach}):
        if len(points) >= LEAST_ARMS and points <= set(bits) and _is_regular(points):
            return _of_points(sorted(points), bits, names)
    return None


def _points(plan: Plan) -> dict[str, int]:
    """Arms as points of GF(2)^k: a bit per component, 1 where it is out."""
    names = list(components(plan))
    return {arm: sum(1 << names.index(name) for name in out) for arm, out in taken_out(plan).items()}


def _mixed(plan: Plan) -> Iterator[int]:
    """Points with several components out that are no part of a leave-one-out or an add-one-in."""
    used = {arm for worth in (*left_out(plan), *added_alone(plan)) for arm in (worth.treatment, worth.control)}
    yield from (point for arm, point in _points(plan).items() if arm not in used and point.bit_count() > 1)


def _spanned(points: Sequence[int], most: int) -> set[int]:
    """The affine hull over GF(2); empty when it has more than `most` points."""
    hull = set(points[:1])
    for point in points[1:]:
        if point not in hull:
            hull |= {point ^ points[0] ^ other for other in hull}
        if len(hull) > most:
            return set()
    return hull


def _is_regular(points: set[int]) -> bool:
    """Whether points are an affine subspace over GF(2)."""
    first = next(iter(points))
    return all(first ^ a ^ b in points for a, b in itertools.combinations(points, 2))


def _of_points(points: Sequence[int], arms: Mapping[int, str], names: Sequence[str]) -> Factorial:
    signs = np.array([[-1 if point >> i & 1 else 1 for i in range(len(names))] for point in points])
    varied = [i for i in range(len(names)) if abs(signs[:, i].sum()) < len(points)]
    return Factorial(
        components=tuple(names[i] for i in varied),
        arms=tuple(arms[point] for point in points),
        signs=signs[:, varied],
        resolution=_resolution(signs[:, varied]),
    )


def _resolution(signs: Signs) -> int:
    """Length of the shortest word of the defining relation; 0 without one."""
    k = signs.shape[1]
    if len(signs) == 2**k:
        return 0
    words = (word for size in range(1, k + 1) for word in itertools.combinations(range(k), size))
    return next(len(word) for word in words if abs(signs[:, word].prod(axis=1).sum()) == len(signs))


def columns(design_of: Factorial) -> list[Column]:
    """The contrasts of main effects and two-factor interactions; effects that share one come together.

    An interaction that is the same in all arms has none.
    """
    names = design_of.components
    effects = [effect for size in (1, 2) for effect in itertools.combinations(range(len(names)), size)]
    found: dict[tuple[int, ...], list[tuple[int, Effect]]] = {}
    for effect in effects:
        column = design_of.signs[:, effect].prod(axis=1)
        words, opposite = tuple(names[i] for i in effect), tuple(-column)
        if opposite in found:
            found[opposite].append((-1, words))
        elif abs(column.sum()) < len(column):
            found.setdefault(tuple(column), []).append((1, words))
    return [Column(signs=np.array(signs), effects=tuple(shared)) for signs, shared in found.items()]


def effect_sizes(design_of: Factorial, column: Column, scores: pd.DataFrame) -> Floats:
    """The contrast of a column at every seed that has all arms of the factorial.

    Parameters
    ----------
    scores : DataFrame (seed, arm)

    Returns
    -------
    float array (seed,)
        Mean of the scores where the column is +1, minus the mean where it is -1.
    """
    rows = scores[list(design_of.arms)].dropna().to_numpy(dtype=float)
    return np.asarray(rows @ column.signs * 2 / len(column.signs), dtype=float)


def alias_lines(plan: Plan) -> list[str]:
    """What the factorial of a plan can tell apart, a line each; empty without one. Needs no record."""
    found = factorial(plan)
    if found is None:
        several = len(list(_mixed(plan)))
        line = f"{fmt.count(several, 'arm')} with several components out, but no regular fraction of a factorial: "
        return [f"{line}effects and interactions are not estimated."] if several else []
    k, n = len(found.components), len(found.arms)
    if not found.resolution:
        return [f"Full factorial of {design.listed(found.components)} in {n} arms: nothing is aliased."]
    lines = [
        f"Fractional factorial: {n} of the {2**k} combinations of {k} components ({design.listed(found.components)}), "
        f"resolution {ROMAN[found.resolution] if found.resolution < len(ROMAN) else found.resolution}: "
        f"{_what_is_clear(found.resolution)}."
    ]
    shared = [column.name for column in columns(found) if len(column.effects) > 1]
    return lines + [f"Aliased, only the sum is estimated: {name}." for name in shared]


def _what_is_clear(resolution: int) -> str:
    if resolution >= 5:
        return "main effects and two-factor interactions are clear of each other"
    return {
        4: "main effects are clear of two-factor interactions, and those are aliased with each other",
        3: "main effects are aliased with two-factor interactions",
    }.get(resolution, "main effects are aliased with each other")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number of this section over its seeds."""

    name: str
    seeds: Floats
    """(seed,), in units of the metric."""
    interval: MeanInterval
    p: float
    """Corrected over the whole section; NaN below two seeds."""
    shown: int
    """1 or -1 when it is significantly above or below zero, else 0."""


def section(evidence: Evidence) -> Section | None:
    """The components of the study; None when its plan names none, or no arms that tell of them."""
    plan = evidence.plan
    alone, full, crossed = added_alone(plan), left_out(plan), factorial(plan)
    if not (alone or full or crossed):
        return None
    scores = evidence.compared
    contrasts = columns(crossed) if crossed else []
    sizes = [(worth.component, design.gaps(scores, worth.treatment, worth.control)) for worth in (*full, *alone)]
    sizes += [(column.name, effect_sizes(crossed, column, scores)) for column in contrasts if crossed]
    found = _estimates(plan, sizes)
    of_full, of_alone = found[: len(full)], found[len(full) : len(full) + len(alone)]
    effects = found[len(full) + len(alone) :]
    return Section(
        title="Worth of each component",
        sentences=[
            _how_to_read(plan, len(found)),
            *_floor(plan, found),
            *_worth_sentences(plan, of_full, of_alone, evidence),
            *_together(plan, full, scores),
            *_effect_sentences(plan, effects),
        ],
        method=[*alias_lines(plan)[:1], *([EFFECT] if effects else [])],
        answer=list(_worth_sentences(plan, of_full, of_alone, evidence)),
        tables=_tables(plan, of_full, of_alone, effects),
        figures=[*_worth_pictures(plan, of_full, of_alone), *_effect_pictures(plan, contrasts, effects)],
    )


def _estimates(plan: Plan, sizes: Sequence[tuple[str, Floats]]) -> list[Estimate]:
    p_values = design.corrected([design.sign_flip(seeds) for _, seeds in sizes])
    found = []
    for (name, seeds), p in zip(sizes, p_values, strict=True):
        interval = paired.mean_interval(seeds, 1 - plan.alpha)
        shown = design.shown(interval, p, plan.alpha)
        found.append(Estimate(name=name, seeds=seeds, interval=interval, p=p, shown=shown))
    return found


def _how_to_read(plan: Plan, n: int) -> str:
    helps = "positive" if plan.higher_is_better else "negative"
    return (
        f"Worth is a difference in {find_metric(plan.metric).full_label}, with a component minus without it, at the "
        f"same seed: {helps} means that it helps. In the full recipe it is left out of everything else; alone it is "
        "added to the barest recipe. Exploratory: corrected by Benjamini-Hochberg over the "
        f"{n} numbers of this section."
    )


def _floor(plan: Plan, found: Sequence[Estimate]) -> Iterator[str]:
    """Says so where no number of this section could be shown with so few seeds."""
    n = max(one.interval.n for one in found)
    if n > 1 and paired.min_p(n) > plan.alpha:
        floor = fmt.p_value(paired.min_p(n))
        yield f"{n} seeds can show nothing here, as their smallest p is {floor}: what follows are leads."


def _worth_sentences(
    plan: Plan, full: Sequence[Estimate], alone: Sequence[Estimate], evidence: Evidence
) -> Iterator[str]:
    if full:
        yield f"Left out of the full recipe: {_sorted_out(plan, full)}."
    if alone:
        controls = [f"{bare} ({design.listed(of)})" for bare, of in _barest(plan).items()]
        yield f"Added alone, to {design.listed(controls)}: {_sorted_out(plan, alone)}."
    failed = evidence.arms.set_index("arm")["failed"]
    lost = [f"{worth.component} ({failed[worth.control]})" for worth in left_out(plan) if failed[worth.control]]
    if lost:
        yield f"Trials failed without {design.listed(lost)}: an outcome that no mean shows."
    out = [name for name in plan.factors if name not in components(plan)]
    if out:
        yield f"Already out of the base, so not measured: {design.listed(out)}."


def _barest(plan: Plan) -> dict[str, list[str]]:
    """The barest recipes, and what is added to each."""
    found: dict[str, list[str]] = {}
    for worth in added_alone(plan):
        found.setdefault(worth.control, []).append(worth.component)
    return found


def _sorted_out(plan: Plan, found: Sequence[Estimate]) -> str:
    """Which help, which hurt, which may, and of which nothing is shown; the largest first."""
    better = 1 if plan.higher_is_better else -1
    groups = {"help": better, "hurt": -better}
    parts = []
    for word, sign in groups.items():
        of = [one for one in found if one.shown == sign]
        if of:
            parts.append(f"{_named(of)} {word if len(of) > 1 else word + 's'}")
    leads = _leads(found)
    if leads:
        parts.append(f"not shown after the correction, though the interval excludes zero: {_named(leads)}")
    rest = [one for one in found if not one.shown and one.name not in {lead.name for lead in leads}]
    for says, names in (
        ("nothing is shown for", [one.name for one in rest if one.interval.n > 1]),
        ("too few trials are left for", [one.name for one in rest if one.interval.n < 2]),
    ):
        parts += [f"{says} {design.listed(names)}"] * bool(names)
    return "; ".join(parts)


def _together(plan: Plan, full: Sequence[Worth], scores: pd.DataFrame) -> Iterator[str]:
    """Whether the worths in the full recipe add up to what all components are worth together."""
    outs, names = taken_out(plan), components(plan)
    barest = max(outs, key=lambda arm: len(outs[arm]))
    parts_of = [worth for worth in full if worth.component in outs[barest]]
    if len(parts_of) < max(2, len(outs[barest]), len(names) - 1):
        return
    block = scores[[full[0].treatment, barest, *(worth.control for worth in parts_of)]].dropna()
    total = block[full[0].treatment] - block[barest]
    parts = sum(block[worth.treatment] - block[worth.control] for worth in parts_of)
    whole, rest = (paired.mean_interval(values, 1 - plan.alpha) for values in (total, total - parts))
    if whole.n < 2:
        return
    added = design.mean_cell(paired.mean_interval(parts), sign=True)
    but = "".join(f" but {name}" for name in names if name not in outs[barest])
    yield (
        f"All components{but} together are worth {design.mean_cell(whole, sign=True)}; left out of the full recipe one "
        f"by one, they add up to {added}. The rest is {design.mean_cell(rest, sign=True)} "
        f"({1 - plan.alpha:.0%} interval {design.interval_cell(rest)}), {_what_the_rest_says(plan, rest)}."
    )


def _what_the_rest_says(plan: Plan, rest: MeanInterval) -> str:
    if rest.low <= 0 <= rest.high:
        return "not clear of zero: nothing shows that they depend on each other"
    more = (rest.mean > 0) == plan.higher_is_better
    return "so they stand in for each other" if more else "so they need each other"


def _effect_sentences(plan: Plan, effects: Sequence[Estimate]) -> Iterator[str]:
    if not effects:
        return
    if not any(one.interval.n for one in effects):
        yield "No seed has a score of every arm of the factorial, so it gives no effect."
        return
    shown, leads = [one for one in effects if one.shown], _leads(effects)
    yield f"Shown by the factorial: {_named(shown)}." if shown else _nothing_shown(plan, effects)
    if leads:
        yield f"Not shown after the correction, though the interval excludes zero: {_named(leads)}."


def _nothing_shown(plan: Plan, effects: Sequence[Estimate]) -> str:
    seeds = max(one.interval.n for one in effects)
    floor = paired.min_p(seeds)
    if floor <= plan.alpha:
        return "No effect of the factorial is shown after the correction."
    reached = fmt.p_value(floor)
    return f"The factorial cannot show an effect: {seeds} seeds reach a p of {reached} at best, before any correction."


def _leads(found: Sequence[Estimate]) -> list[Estimate]:
    """Those whose interval excludes zero, without being shown."""
    return [one for one in found if not one.shown and (one.interval.low > 0 or one.interval.high < 0)]


def _named(found: Sequence[Estimate]) -> str:
    """With their sizes, the largest first."""
    ordered = sorted(found, key=lambda one: -abs(one.interval.mean))
    return design.listed([f"{one.name} ({design.mean_cell(one.interval, sign=True)})" for one in ordered])


def _tables(
    plan: Plan, full: Sequence[Estimate], alone: Sequence[Estimate], effects: Sequence[Estimate]
) -> list[Table]:
    level = f"{1 - plan.alpha:.0%} interval"
    found = []
    if full or alone:
        head = ["component", "in the full recipe", level, "n", "p, corrected", "alone", level, "n", "p, corrected"]
        by_name = [{one.name: one for one in group} for group in (full, alone)]
        names = [name for name in components(plan) if any(name in group for group in by_name)]
        rows = [[name, *_cells(by_name[0].get(name)), *_cells(by_name[1].get(name))] for name in names]
        found.append(Table(label="Worth of components", head=head, rows=rows))
    if effects:
        rows = [[one.name, *_cells(one)] for one in effects]
        found.append(
            Table(
                label="Effects of the factorial, aliased ones in one row",
                head=["effect", "size", level, "n", "p, corrected"],
                rows=rows,
            )
        )
    return found


def _cells(one: Estimate | None) -> list[str]:
    if one is None:
        return [fmt.MISSING] * 4
    interval = one.interval
    return [
        design.mean_cell(interval, sign=True),
        design.interval_cell(interval),
        str(interval.n),
        design.p_cell(one.p, interval.n),
    ]


MARKS = "Marks and bars: mean and interval over seeds; circles: seeds; shaded: differences below the margin"


def _worth_pictures(plan: Plan, full: Sequence[Estimate], alone: Sequence[Estimate]) -> Iterator[Picture]:
    by_name = {"in the full recipe": full, "alone": alone}
    seeds = {kind: {one.name: one.seeds for one in group} for kind, group in by_name.items() if group}
    if not seeds:
        return
    names = [name for name in components(plan) if any(name in group for group in seeds.values())]
    rows = {name: {kind: group.get(name, np.empty(0)) for kind, group in seeds.items()} for name in names}
    label = f"worth in {find_metric(plan.metric).full_label}"
    caption = f"Worth of each component. {MARKS} of {plan.margin:g}."
    figure = forest.effects(rows, plan.margin, label, 1 - plan.alpha)
    yield Picture(name="components-worth", figure=figure, alt=f"{caption} {_sizes(full or alone)}.", caption=caption)


def _effect_pictures(plan: Plan, contrasts: Sequence[Column], effects: Sequence[Estimate]) -> Iterator[Picture]:
    if not effects:
        return
    rows = {column.short: {"": one.seeds} for column, one in zip(contrasts, effects, strict=True)}
    caption = f"Main effects and two-factor interactions of the factorial. {MARKS} of {plan.margin:g}."
    figure = forest.effects(rows, plan.margin, f"effect on {find_metric(plan.metric).full_label}", 1 - plan.alpha)
    yield Picture(name="components-effects", figure=figure, alt=f"{caption} {_sizes(effects)}.", caption=caption)


def _sizes(found: Sequence[Estimate]) -> str:
    return "; ".join(f"{one.name}: {design.mean_cell(one.interval, sign=True)}" for one in found)

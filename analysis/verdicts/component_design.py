"""The arms of a component study: one component left out, one alone, and a factorial with its interactions.

A plan names its components and the overrides that take each one out (Plan.factors). An arm is read by what is out of
it, whatever its name:

    nothing             the full recipe
    one component       leave-one-out: effect = full - without it
    all, or all but one the barest recipe; add-one-in: alone = the barest with it - without it
    others              the factorial

The effects of a component in the full recipe and alone differ where another component does the same work.

The factorial. Arms that form a regular fraction of the 2^k combinations give main effects and two-factor interactions
as orthogonal contrasts: with every component at +1 (in) or -1 (out), the effect of a column x is the mean score where
x = +1 minus the mean where x = -1, per seed, and the column of an interaction is the product of its components'.
Effects that share a column are aliased: the arms cannot tell them apart. That is computed from the arms themselves.

References
----------
Box, Hunter & Hunter, Statistics for Experimenters (2005), chapters 5 and 6.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.stats import Floats
from analysis.verdicts import number_format as fmt
from analysis.verdicts.arm_configs import FlatConfig, arm_configs, base_config, flat_values
from analysis.verdicts.number_format import listed
from jbot.store.plan import Plan

MIN_ARMS = 4
"""Arms of a factorial: two components, each in and out."""
ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")
CLEAR = dict.fromkeys((1, 2), "main effects are aliased with each other") | {
    3: "main effects are aliased with two-factor interactions",
    4: "main effects are clear of two-factor interactions, and those are aliased with each other",
    5: "main effects and two-factor interactions are clear of each other",
}
"""By resolution, what is told apart; of a higher one as of 5."""

Signs = NDArray[np.int64]
Effect = tuple[str, ...]
"""Components whose columns are multiplied: one of a main effect, two of an interaction."""


@dataclass(frozen=True, kw_only=True)
class ComponentEffect:
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


def components(plan: Plan) -> dict[str, FlatConfig]:
    """Those of the plan that are in its base: what is out of it already cannot be taken out."""
    base = base_config(plan)
    factors = {name: flat_values(changes) for name, changes in plan.factors.items()}
    return {name: changes for name, changes in factors.items() if changes and not changes.items() <= base.items()}


def removed(plan: Plan) -> dict[str, frozenset[str]]:
    """The components that are out of each arm; arms that differ from the base in something else are not there."""
    base, factors = base_config(plan), components(plan)
    names, out = tuple(factors), {}
    # The simplest reading first: taking one component out may imply another.
    simple = [(), *((name,) for name in names), names, *(tuple(n for n in names if n != name) for name in names)]
    for arm, config in arm_configs(plan).items():
        for parts in (*simple, tuple(name for name in names if factors[name].items() <= config.items())):
            if config == base | {field: value for name in parts for field, value in factors[name].items()}:
                out[arm] = frozenset(parts)
                break
    return out


def left_out(plan: Plan) -> list[ComponentEffect]:
    """The full recipe against itself without one component, in the order of the plan's factors."""
    arms = {out: arm for arm, out in removed(plan).items()}
    return [
        ComponentEffect(component=name, treatment=arms[frozenset()], control=arms[frozenset({name})])
        for name in components(plan)
        if {frozenset(), frozenset({name})} <= set(arms)
    ]


def added_alone(plan: Plan) -> list[ComponentEffect]:
    """The barest recipe against itself with one component more, in the order of the plan's factors.

    The barest recipe without that component: none at all, or a single other one, since some cannot all be out.
    """
    arms, names = {out: arm for arm, out in removed(plan).items()}, components(plan)
    bare = sorted((out for out in arms if len(out) >= max(2, len(names) - 1)), key=lambda out: (-len(out), arms[out]))
    pairs = {name: next((out for out in bare if name in out and out - {name} in arms), None) for name in names}
    return [
        ComponentEffect(component=name, treatment=arms[control - {name}], control=arms[control])
        for name, control in pairs.items()
        if control
    ]


def factorial(plan: Plan) -> Factorial | None:
    """The largest regular fraction that is easily seen among the arms; None when there is none.

    Tried are all arms whose components are known; the fraction spanned by those that are neither leave-one-out nor
    add-one-in; and the arms that take out no other components than these do.
    """
    names, mixed = list(components(plan)), _mixed(plan)
    arms = {point: arm for arm, point in _points(plan).items()}
    reach = functools.reduce(operator.or_, mixed, 0)
    for points in (set(arms), _spanned(mixed, len(arms)), {point for point in arms if not point & ~reach}):
        if len(points) >= MIN_ARMS and points <= set(arms) and _is_regular(points):
            chosen = sorted(points)
            signs = np.array([[-1 if point >> i & 1 else 1 for i in range(len(names))] for point in chosen])
            varied = np.flatnonzero(np.abs(signs.sum(axis=0)) < len(chosen))
            return Factorial(
                components=tuple(names[i] for i in varied),
                arms=tuple(arms[point] for point in chosen),
                signs=signs[:, varied],
                resolution=_resolution(signs[:, varied]),
            )
    return None


def _points(plan: Plan) -> dict[str, int]:
    """Arms as points of GF(2)^k: a bit per component, 1 where it is out."""
    names = list(components(plan))
    return {arm: sum(1 << names.index(name) for name in out) for arm, out in removed(plan).items()}


def _mixed(plan: Plan) -> list[int]:
    """Points with several components out that are no part of a leave-one-out or an add-one-in."""
    used = {arm for one in (*left_out(plan), *added_alone(plan)) for arm in (one.treatment, one.control)}
    return [point for arm, point in _points(plan).items() if arm not in used and point.bit_count() > 1]


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


def _resolution(signs: Signs) -> int:
    """Length of the shortest word of the defining relation; 0 without one."""
    arms, k = signs.shape
    words = (word for size in range(1, k + 1) for word in itertools.combinations(range(k), size))
    return 0 if arms == 2**k else next(len(word) for word in words if abs(signs[:, word].prod(axis=1).sum()) == arms)


def columns(design: Factorial) -> list[Column]:
    """The contrasts of main effects and two-factor interactions; effects that share one come together.

    An interaction that is the same in all arms has none.
    """
    shared: dict[tuple[int, ...], list[tuple[int, Effect]]] = {}
    for size in (1, 2):
        for effect in itertools.combinations(range(len(design.components)), size):
            signs = design.signs[:, effect].prod(axis=1)
            words, opposite = tuple(design.components[i] for i in effect), tuple(-signs)
            if opposite in shared:
                shared[opposite].append((-1, words))
            elif abs(signs.sum()) < len(signs):
                shared.setdefault(tuple(signs), []).append((1, words))
    return [Column(signs=np.array(signs), effects=tuple(effects)) for signs, effects in shared.items()]


def effect_sizes(design: Factorial, column: Column, scores: pd.DataFrame) -> Floats:
    """The contrast of a column (seed,) at every seed that has all arms of the factorial, from scores (seed, arm).

    It is the mean of the scores where the column is +1, minus the mean where it is -1.
    """
    rows = scores[list(design.arms)].dropna().to_numpy(dtype=float)
    return np.asarray(rows @ column.signs * 2 / len(column.signs), dtype=float)


def alias_lines(plan: Plan) -> list[str]:
    """What the factorial of a plan can tell apart, a line each; empty without one. Needs no record."""
    design, several = factorial(plan), len(_mixed(plan))
    if design is None:
        line = f"{fmt.count(several, 'arm')} with several components out, but no regular fraction of a factorial: "
        return [f"{line}effects and interactions are not estimated."] if several else []
    k, n, resolution = len(design.components), len(design.arms), design.resolution
    if not resolution:
        return [f"Full factorial of {listed(design.components)} in {n} arms: nothing is aliased."]
    lines = [
        f"Fractional factorial: {n} of the {2**k} combinations of {k} components ({listed(design.components)}), "
        f"resolution {ROMAN[resolution] if resolution < len(ROMAN) else resolution}: {CLEAR[min(resolution, 5)]}."
    ]
    shared = [column.name for column in columns(design) if len(column.effects) > 1]
    return lines + [f"Aliased, only the sum is estimated: {name}." for name in shared]

"""Looks at a study while it runs, paid for: a study that may stop early keeps the error level of its plan.

A plan names the blocks after which it is looked at. By each look a share of the error level may be spent
(`share_spent`), whatever was not spent before included. What follows from that:

- the sign-flip test stays exact: given the sizes of the differences all 2^n signs are equally likely, so the chance of
  stopping at one look or another is counted, not approximated (`sign_flip_test`);
- its p-value, the smallest level that rejects by this look, covers all looks together: it never exceeds a
  level with a greater chance than that level, so Holm's correction takes it like any other;
- t intervals and equivalence tests are made at the nominal levels that leave all looks together the level of the plan
  (`nominal_levels`): repeated confidence intervals, which hold at all looks at once.

References
----------
Lan & DeMets, Biometrika 70 (1983) 659, doi:10.1093/biomet/70.3.659 (spending); Jennison & Turnbull, Group Sequential
Methods (2000), chapters 7 to 9 (spending, repeated intervals); Ye et al., Statistics in Medicine 32 (2013) 1112,
doi:10.1002/sim.5700 (Holm over sequential p-values).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.stats import Floats, paired

EXACT_UP_TO = paired.EXACT_UP_TO
PATHS = 100_000
"""Simulated paths of a t statistic over the looks: a level of 0.05 is then met to 0.0007 (one standard deviation)."""
SEED = 20_260_102
"""Seed of those paths, so that the same looks have the same levels each time."""
STEP = 1 / 32
"""Levels between which a p-value is rounded up lie this far apart, in parts of themselves; those that decide, and
the 32 smallest that each look can reach, are among them exactly."""


@dataclass(frozen=True, kw_only=True)
class InterimHistory:
    """The interim analyses (looks) that a contrast has been through."""

    shares: tuple[float, ...]
    """Share of the error level that may be spent by each look, ascending."""
    pairs: tuple[int, ...]
    """Seeds with a score of both arms by each look; a block with a failed trial adds none."""


MAX_LOOKS = 4
"""Looks of a plan that does not name its own: each waits for the slowest trial of its block."""


def share_spent(blocks: int, of: int) -> float:
    """Share of the error level that may be spent by a look after so many of all planned blocks: (blocks / of)^2.

    Between the spending of Pocock, which at 8 to 12 blocks costs power, and of O'Brien and Fleming, which spends less
    early than the smallest p-value that so few sign flips can reach: figures in docs/running.md.

    References
    ----------
    Kim & DeMets, Biometrika 74 (1987) 149, doi:10.1093/biomet/74.1.149.
    """
    return (blocks / of) ** 2


def default_looks(blocks: int, contrasts: int, alpha: float = 0.05) -> tuple[int, ...]:
    """At most MAX_LOOKS looks, evenly from the first that can show a difference to the last block.

    The last alone where no earlier one can show anything but equivalence. `contrasts` are the primary ones, which are
    corrected together.
    """
    first = next((n for n in range(2, blocks) if can_differ(n, blocks, contrasts, alpha)), blocks)
    between = np.linspace(first, blocks, min(MAX_LOOKS, blocks - first + 1))
    return tuple(int(n) for n in np.unique(np.rint(between)))


def planned_history(looks: Sequence[int], blocks: int) -> InterimHistory:
    """Looks at a plan of so many blocks, if no trial fails."""
    return InterimHistory(shares=tuple(share_spent(look, blocks) for look in looks), pairs=tuple(looks))


def can_differ(look: int, blocks: int, contrasts: int, alpha: float = 0.05) -> bool:
    """Whether sign flips of so many blocks can reach what Holm asks of the first contrast at this look."""
    return contrasts * paired.min_p(look) <= alpha * share_spent(look, blocks) * (1 + 1e-12)


def critical_values(
    paths: Floats, shares: Sequence[float], levels: Floats, reserved: int = 0, tie: float = 0.0
) -> Floats:
    """What a statistic must reach at each look to be rejected at each level.

    Parameters
    ----------
    paths : float array (look, path)
        The statistic under the null hypothesis, large where it speaks against it; all paths are equally likely.
    shares : sequence of float
        Of a level, that may be spent by each look.
    levels : float array (level,)
        Ascending.
    reserved : int
        1 where the data's own path is not among them, as with simulated ones: it is then counted as the most extreme.
    tie : float
        Statistics that differ by no more are equal.

    Returns
    -------
    float array (look, level)
        Infinite where a level rejects nothing. Never larger at a larger level: what a level rejects by a look, all
        larger ones do. Where discrete statistics would break that, the smaller level gives up some of its error.
    """
    (looks, count), found = paths.shape, []
    rejected_by = np.full(count, len(levels))  # the smallest level that has rejected a path before this look
    for look in range(looks):
        order = np.argsort(-paths[look], kind="stable")
        values, before = paths[look][order], rejected_by[order]
        spent = np.searchsorted(np.sort(before), np.arange(len(levels)), side="right")
        allowed = np.floor(levels * shares[look] * (count + reserved) * (1 + 1e-12)).astype(int) - reserved
        new = np.concatenate([[True], values[:-1] > values[1:] + tie])
        tie_begins = np.append(np.maximum.accumulate(np.where(new, np.arange(count), 0)), count)
        reached = [
            tie_begins[np.searchsorted(np.cumsum(before[:most] > level), most - spent[level], side="right")]
            if most > spent[level]
            else 0
            for level, most in enumerate(allowed)
        ]
        first = np.minimum.accumulate(reached[::-1])[::-1]
        found.append(np.where(first > 0, values[first - 1], np.inf))
        rejected_by[order] = np.minimum(before, np.searchsorted(first, np.arange(count), side="right"))
    return np.array(found)


def sign_flip_test(differences: ArrayLike, history: InterimHistory, alpha: float, family: int) -> float:
    """Sequential p-value of the two-sided permutation test that paired differences are symmetric about zero.

    Exact over all signs up to 20 pairs, as long as which pairs failed has nothing to do with their signs; above that
    over random signs, the data's own among them.

    Parameters
    ----------
    differences : float array (seed,)
        In block order, up to the last look.
    alpha, family :
        Levels at which it is going to be read, exactly: alpha / 1 ... alpha / family.

    Returns
    -------
    float
        Smallest level that rejects by the last look, in (0, 1]; rounded up by at most 1/32 of itself.
    """
    d = paired.as_whole_numbers(differences)
    if len(d) != history.pairs[-1]:
        raise ValueError(f"expected {history.pairs[-1]} differences, as by the last look, got {len(d)}")
    exact = len(d) <= EXACT_UP_TO
    paths = np.abs(_all_sums(d, history.pairs) if exact else _random_sums(d, history.pairs))
    smallest = [2.0 ** (1 - n) if exact and n else 1 / paths.shape[1] for n in history.pairs]
    levels = _levels(smallest, history, alpha, family)
    critical = critical_values(paths, history.shares, levels, tie=len(d))
    return _smallest(levels, [value >= row for value, row in zip(paths[:, 0], critical, strict=True)])


def tost(differences: ArrayLike, history: InterimHistory, margin: float, alpha: float, family: int) -> float:
    """Sequential p-value of "the mean difference lies inside (-margin, margin)"; 1 below two seeds.

    Only the last look counts: that an earlier one would have rejected is no evidence for an equivalence that the later
    blocks speak against. The error level holds, as it holds for all looks together.

    Parameters as of :func:`sign_flip_test`; the margin is positive, in units of the differences.
    """
    d = np.asarray(differences, dtype=np.float64)
    levels, nominal = nominal_levels(history, 1, alpha, family)
    return _smallest(levels, [paired.tost(d, margin) <= nominal[-1]])


def confidence(history: InterimHistory, alpha: float) -> float:
    """Confidence of the t interval at the last look that, over all looks together, covers with 1 - alpha."""
    levels, nominal = nominal_levels(history, 2, alpha, 1)
    return 1 - float(nominal[-1, np.searchsorted(levels, alpha)])


def can_be_equivalent(look: int, blocks: int, contrasts: int, alpha: float = 0.05) -> bool:
    """Whether so many blocks are enough to show equivalence of a family at this look."""
    return contrasts * paired.min_p_equivalent(look) <= alpha * share_spent(look, blocks) * (1 + 1e-12)


def final_level(looks: Sequence[int], alpha: float) -> float:
    """Error level of a single t-test after the last of these looks: what the others leave; alpha without looks."""
    return 1 - confidence(planned_history(looks, looks[-1]), alpha) if looks else alpha


def min_p(history: InterimHistory) -> float:
    """The smallest sequential p-value that sign flips of so many pairs can reach by the last look."""
    return min(1.0, *(paired.min_p(n) / share for n, share in zip(history.pairs, history.shares, strict=True) if n))


def min_p_equivalent(history: InterimHistory) -> float:
    """The smallest sequential p-value that an exact test of equivalence can give to so many pairs at the last look."""
    return min(1.0, paired.min_p_equivalent(history.pairs[-1]) / history.shares[-1])


@functools.lru_cache(maxsize=256)
def nominal_levels(history: InterimHistory, sides: int, alpha: float, family: int) -> tuple[Floats, Floats]:
    """Levels (level,), and the nominal level (look, level) of a t-test at each look at which all looks together have
    that level: of simulated normal differences, see PATHS, as the t statistic knows no scale."""
    paths = _t_paths(history.pairs)
    paths = np.abs(paths) if sides == 2 else paths
    levels = _levels([1 / PATHS] * len(history.pairs), history, alpha, family)
    critical = critical_values(paths, history.shares, levels, reserved=1)
    freedom = np.maximum(1, np.array(history.pairs) - 1)[:, None]
    nominal = sides * stats.t.sf(critical, freedom)
    nominal[0] = levels * history.shares[0] if history.pairs[0] > 1 else 0.0  # the first look needs no simulation
    return levels, nominal


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a study with looks may be expected to take, by simulation."""

    stops: tuple[float, ...]
    """Chance to stop at each look; the last holds what runs to its end."""
    decided: float
    """Chance that every contrast is decided in the end."""
    blocks: float
    """Mean number of blocks."""


def outlook(
    looks: Sequence[int],
    effects: Sequence[float],
    margins: Sequence[float] = (),
    alpha: float = 0.05,
    repeats: int = 2000,
) -> Outlook:
    """Simulated studies of independent contrasts with normal differences, decided by t-tests at the nominal levels.

    t-tests stand for the sign flips, which they resemble but for the smallest p that so many pairs can reach: a look
    that cannot reach a level does not reach it here either.

    Parameters
    ----------
    looks : sequence of int
        Blocks, the last of them all.
    effects, margins : sequence of float
        True mean difference of each contrast, and its margin, in standard deviations of the difference; without a
        margin no contrast can be found equivalent.
    """
    blocks, rng = looks[-1], np.random.default_rng(SEED)
    history, family = planned_history(looks, blocks), len(effects)
    drawn = rng.standard_normal((blocks, repeats, family)) + np.asarray(effects)
    margin = np.asarray(margins) if len(margins) else np.full(family, -np.inf)
    running, decided, stops = np.ones(repeats, bool), np.zeros(repeats, bool), []
    p, q = np.ones((repeats, family)), np.ones((repeats, family))
    for k, look in enumerate(looks):
        mean, error = drawn[:look].mean(axis=0), drawn[:look].std(axis=0, ddof=1) / math.sqrt(look)
        nominal = 2 * stats.t.sf(np.abs(mean) / error, look - 1)
        past = planned_history(looks[: k + 1], blocks)
        p = np.minimum(p, np.maximum(min_p(past), _level_of(nominal, k, *nominal_levels(history, 2, alpha, family))))
        inside = stats.t.sf((margin - np.abs(mean)) / error, look - 1)
        few = paired.min_p_equivalent(look) / history.shares[k]
        q = np.maximum(few, _level_of(inside, k, *nominal_levels(history, 1, alpha, family)))
        decided = (_holm(p, alpha) | _holm(q, alpha)).all(axis=1)
        stops.append(float((running & decided).mean()) if look < blocks else float(running.mean()))
        running &= ~decided
    return Outlook(stops=tuple(stops), decided=1.0 - float(running.mean()), blocks=float(np.dot(stops, looks)))


def _level_of(p: Floats, look: int, levels: Floats, nominal: Floats) -> Floats:
    """The smallest level whose nominal level at a look a p-value reaches; 1 where none."""
    return np.append(levels, 1.0)[np.searchsorted(nominal[look], p)]


def _holm(p: Floats, alpha: float) -> NDArray[np.bool_]:
    """Which of (repeat, contrast) Holm rejects."""
    order = np.argsort(p, axis=1)
    ranked = np.take_along_axis(p, order, axis=1) * np.arange(p.shape[1], 0, -1) <= alpha
    found = np.zeros(p.shape, bool)
    np.put_along_axis(found, order, np.logical_and.accumulate(ranked, axis=1), axis=1)
    return found


def _levels(smallest: Sequence[float], history: InterimHistory, alpha: float, family: int) -> Floats:
    """Ascending up to 1: those that decide, the smallest that each look can reach, and steps between."""
    decide = [alpha / j for j in range(1, family + 1)]
    few = np.arange(1, round(1 / STEP) + 1)
    reached = np.concatenate([few * p / share for p, share in zip(smallest, history.shares, strict=True)])
    least = min(*decide, *reached)
    steps = np.exp(np.arange(0.0, math.log(least), -math.log1p(STEP)))
    levels = np.unique(np.concatenate([decide, reached, steps]))
    return levels[levels <= 1]


def _smallest(levels: Floats, rejected: Sequence[NDArray[np.bool_]]) -> float:
    """The smallest level that any look rejects at; 1 where none does."""
    found = levels[np.any(rejected, axis=0)]
    return float(found.min(initial=1.0))


def _all_sums(d: Floats, pairs: Sequence[int]) -> Floats:
    """Sums of the first differences at each look under all signs, (look, path). The first sign stays: only sizes count.

    Path 0 has the signs of the data.
    """
    count = 2 ** max(0, len(d) - 1)
    sums, found, at = d[:1].sum(keepdims=True), [], 1
    for n in pairs:
        for value in d[at:n]:
            sums = np.concatenate([sums + value, sums - value])
        at = max(at, n)
        # Signs still to come repeat what there is, in the order in which the paths go on.
        found.append(np.tile(sums if n else np.zeros(1), count // (len(sums) if n else 1)))
    return np.array(found)


def _random_sums(d: Floats, pairs: Sequence[int]) -> Floats:
    """The same under random signs, which a later look goes on with."""
    signs = np.random.default_rng(SEED).choice([-1.0, 1.0], size=(len(d), paired.RESAMPLES + 1))
    signs[:, 0] = 1.0
    return np.array([d[:n] @ signs[:n] for n in pairs])


@functools.lru_cache(maxsize=64)
def _t_paths(pairs: tuple[int, ...]) -> Floats:
    """t statistics of normal differences without effect at each look, (look, path); -infinite below two pairs."""
    rng = np.random.default_rng(SEED)
    total, squares, at, found = np.zeros(PATHS), np.zeros(PATHS), 0, []
    for n in pairs:
        if n > at:
            own = rng.normal(0.0, math.sqrt(n - at), PATHS)
            squares += own**2 / (n - at) + (rng.chisquare(n - at - 1, PATHS) if n - at > 1 else 0.0)
            total, at = total + own, n
        if n < 2:
            found.append(np.full(PATHS, -math.inf))
            continue
        deviation = np.sqrt((squares - total**2 / n) / (n - 1))
        found.append(total / (deviation * math.sqrt(n)))
    return np.array(found)

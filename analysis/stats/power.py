"""What a design can find, before its data: power, detectable differences, and how many seeds a verdict takes."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, special, stats

from analysis.stats import Floats
from analysis.stats.paired import min_p, min_p_equivalent

MAX_NCT_SHIFT = 25.0
"""Standard errors up to which scipy's noncentral t is trusted."""
SIMULATED_UP_TO, SIMULATED_STUDIES = 10, 4000
"""Seeds up to which the power of the sign-flip test is simulated, and with how many studies: an error of 0.006."""
MAX_SEEDS = 1000
"""A design that needs more seeds than this is not a design (assumed)."""


def min_seeds(alpha: float, contrasts: int = 1) -> tuple[int, int]:
    """Seeds from which on a difference, and from which on equivalence, can be shown over so many contrasts."""
    sizes = range(1, MAX_SEEDS)
    differ = next((n for n in sizes if min_p(n, contrasts) <= alpha), MAX_SEEDS)
    return differ, next((n for n in sizes if contrasts * min_p_equivalent(n) <= alpha), MAX_SEEDS)


@functools.cache
def minimum_detectable_effect(n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The mean difference that a paired t-test finds with this power, in standard deviations of the difference.

    Infinite below two seeds. `alpha` is two-sided; divide it by the number of contrasts for a Holm family.

    References
    ----------
    Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), section 2. statsmodels gives the same, but
    stops at wrong effects below some five seeds, and at levels of a large family.
    """
    if n < 2:
        return math.inf
    cut = float(stats.t.isf(alpha / 2, n - 1))

    def reached(effect: float) -> float:
        shift = effect * math.sqrt(n)
        return _chance_above(cut, n, shift) + _chance_above(cut, n, -shift)

    return _solve(reached, power, 0.0, 1.0, 1e-9)


def _solve(reached: Callable[[float], float], power: float, low: float, high: float, tolerance: float) -> float:
    """The effect at which a power is reached: between `low` and `high`, or above."""
    while reached(high) < power:
        high *= 2
    return float(optimize.brentq(lambda effect: reached(effect) - power, low, high, xtol=tolerance))


@functools.cache
def detectable_effect(n: int, alpha: float = 0.05, contrasts: int = 1, power: float = 0.8) -> float:
    """The mean difference that a verdict finds with this power, in standard deviations of the difference.

    A verdict asks the sign-flip test, whose p-values come in steps of 2/2^n, and then the t interval: with few seeds
    it finds less than :func:`minimum_detectable_effect` says of a t-test. Simulated up to SIMULATED_UP_TO seeds, from
    there on the two agree. Infinite where no p-value that `n` seeds can reach is small enough for a Holm family of
    `contrasts`.
    """
    if n < 2 or min_p(n, contrasts) > alpha:
        return math.inf
    by_t = minimum_detectable_effect(n, power, alpha / contrasts)
    if n > SIMULATED_UP_TO:
        return by_t

    simulated = functools.partial(_power_of_verdict, n, alpha=alpha, contrasts=contrasts)
    return _solve(simulated, power, 0.5 * by_t, 1.5 * by_t, 1e-3)


def _power_of_verdict(n: int, effect: float, alpha: float, contrasts: int) -> float:
    """Share of simulated studies in which sign-flip test and t interval show a normal difference of so many sd."""
    draws, sums, signs = _flips(n)
    flipped = np.abs(sums + effect * signs)  # all plus comes first
    p = 2.0 * (flipped >= flipped[:, :1] * (1 - 1e-12)).mean(axis=1) / 2.0
    values = draws + effect
    t = values.mean(axis=1) / values.std(axis=1, ddof=1) * math.sqrt(n)
    cut = special.stdtrit(n - 1, 1 - alpha / 2)
    return float(((p * contrasts <= alpha * (1 + 1e-12)) & (t > cut)).mean())


@functools.lru_cache(maxsize=SIMULATED_UP_TO)
def _flips(n: int) -> tuple[Floats, Floats, Floats]:
    """Draws (study, seed), their sums (study, flip) and the sums of the signs (flip,): half of all, mirrored alike."""
    draws = np.random.default_rng(n).standard_normal((SIMULATED_STUDIES, n))
    flips = np.arange(2 ** (n - 1))
    signs = 1.0 - 2.0 * ((flips[:, None] >> np.arange(n)) & 1)  # the last seed is never flipped
    return draws, draws @ signs.T, signs.sum(axis=1)


def seeds_to_decide(
    mean: float, sd: float, margin: float, alpha: float = 0.05, contrasts: int = 1, power: float = 0.8
) -> int | None:
    """Seeds at which a study with this mean difference and spread would probably reach a verdict.

    The smaller of two numbers: seeds that show a difference (sign-flip test and t interval), and seeds that show
    equivalence (TOST).

    Mean and spread are of the paired difference, in units of the metric as the margin is, e.g. from the seeds so far;
    each test is planned at alpha / contrasts. None when more than MAX_SEEDS would be needed, or mean or spread are
    unknown.
    """
    if not (math.isfinite(mean) and math.isfinite(sd)):
        return None

    def decides(n: int) -> bool:
        shown = mean != 0 and abs(mean) >= sd * detectable_effect(n, alpha, contrasts, power)
        return shown or _power_of_tost(n, mean, sd, margin, alpha / contrasts) >= power

    sizes = range(2, MAX_SEEDS + 1)
    first = bisect.bisect_left(sizes, True, key=decides)  # power grows with n
    return sizes[first] if first < len(sizes) else None


def seeds_to_decide_range(
    mean: float, sd: float, n: int, margin: float, alpha: float = 0.05, contrasts: int = 1, share: float = 0.8
) -> tuple[int, int | None]:
    """Between what numbers :func:`seeds_to_decide` lies, as `n` seeds know mean and spread only so well.

    Parameters
    ----------
    mean, sd, n :
        Of the paired difference over the seeds so far; at least two, and a spread.
    share : float
        Of the means and spreads behind such a pilot (Student's and the chi-square distribution) that give a number
        between the two.

    Returns
    -------
    (int, int or None)
        None where it may be more than MAX_SEEDS.
    """
    quantiles = np.linspace(0.1, 0.9, 5)
    spreads = sd * np.sqrt((n - 1) / stats.chi2.isf(quantiles, n - 1))
    shifts = stats.norm.ppf(quantiles) / math.sqrt(n)
    needed = sorted(
        seeds_to_decide(mean + shift * spread, float(spread), margin, alpha, contrasts) or MAX_SEEDS + 1
        for spread in spreads
        for shift in shifts
    )
    ends = np.quantile(needed, [(1 - share) / 2, (1 + share) / 2], method="nearest")
    low, high = int(ends[0]), int(ends[1])
    return low, (high if high <= MAX_SEEDS else None)


@functools.cache
def exaggeration(n: int, alpha: float = 0.05, contrasts: int = 1) -> float:
    """How many times as large a difference looks where it is shown, on average, if it is shown in half of studies.

    References
    ----------
    Gelman & Carlin, Perspect. Psychol. Sci. 9 (2014) 641, doi:10.1177/1745691614551642 (type M errors).
    """
    effect = detectable_effect(n, alpha, contrasts, power=0.5)
    if not math.isfinite(effect):
        return math.nan
    values = np.random.default_rng(n).standard_normal((SIMULATED_STUDIES, n)) + effect
    t = values.mean(axis=1) / values.std(axis=1, ddof=1) * math.sqrt(n)
    return float(values.mean(axis=1)[np.argsort(t)[SIMULATED_STUDIES // 2 :]].mean() / effect)


def _power_of_tost(n: int, mean: float, sd: float, margin: float, alpha: float) -> float:
    """Lower bound of the power of TOST: 1 minus the chances that either one-sided test fails; 0 for too few seeds."""
    if sd == 0 or min_p_equivalent(n) > alpha:
        return float(min_p_equivalent(n) <= alpha and abs(mean) < margin)
    cut, scale = special.stdtrit(n - 1, 1 - alpha), math.sqrt(n) / sd
    below, above = (_chance_above(float(cut), n, (margin - side * mean) * scale) for side in (1, -1))
    return below + above - 1


def _chance_above(cut: float, n: int, shift: float) -> float:
    """That t of n normal values exceeds `cut`, the mean lying `shift` standard errors from zero: noncentral t.

    scipy's gives NaN far out; there the normal tail is averaged over the quantiles of the standard deviation.
    """
    if max(abs(cut), abs(shift)) < MAX_NCT_SHIFT:
        below = special.nctdtr(n - 1, shift, cut)  # a twentieth of the time of stats.nct
        return float(stats.nct.sf(cut, n - 1, shift) if math.isnan(below) else 1 - below)
    return float(stats.norm.sf(cut * _deviations(n - 1) - shift).mean())


@functools.lru_cache(maxsize=128)
def _deviations(freedom: int) -> Floats:
    """Evenly spaced quantiles of a standard deviation, in units of the true one."""
    return np.asarray(np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, freedom) / freedom))

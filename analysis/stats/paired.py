"""The statistics of a comparison: pure functions on arrays, no files and no plots.

Axis: (seed,). A difference is treatment minus control at one seed, in units of the metric.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

Floats = NDArray[np.float64]

EXACT_UP_TO = 20
"""Seeds up to which all 2^n sign flips are enumerated."""
RESAMPLES = 19_999
"""Random sign flips above that. A p-value of 0.05 then carries a Monte Carlo error of 0.0015."""
FAR = 25.0
"""Standard errors up to which scipy's noncentral t is trusted."""
SIMULATED_UP_TO, SIMULATED_STUDIES = 10, 4000
"""Seeds up to which the power of the sign-flip test is simulated, and with how many studies: an error of 0.006."""
MOST_SEEDS = 1000
"""A design that needs more seeds than this is not a design (assumed)."""


@dataclass(frozen=True, kw_only=True)
class MeanInterval:
    """A mean over seeds with its spread. What `n` seeds cannot give is NaN."""

    n: int
    mean: float
    sd: float
    """Standard deviation over seeds, n - 1 in the denominator."""
    low: float
    high: float
    """Student's t interval of the mean."""

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return self.sd / math.sqrt(self.n) if self.n else math.nan


@dataclass(frozen=True, kw_only=True)
class PairedDifference(MeanInterval):
    """Mean of treatment minus control over seeds."""

    check_low: float
    check_high: float
    """Bootstrap-t interval, a check of the t interval."""
    correlation: float
    """Pearson, between the arms over seeds; NaN below 3 seeds or when an arm does not vary."""
    variance_ratio: float
    """Variance of the unpaired difference over that of the paired one: pairing saves this factor in trials."""


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> MeanInterval:
    """Mean, standard deviation and Student's t interval.

    Parameters
    ----------
    values : float array (seed,)
        Finite values, one per seed. May be empty.
    confidence : float
        Nominal coverage.

    Returns
    -------
    MeanInterval
        In units of the values. Spread and interval are NaN below two seeds.
    """
    x = _finite(values)
    n, mean = len(x), float(x.mean()) if len(x) else math.nan
    if n < 2:
        return MeanInterval(n=n, mean=mean, sd=math.nan, low=math.nan, high=math.nan)
    sd = _spread(x)
    half = stats.t.isf((1 - confidence) / 2, n - 1) * sd / math.sqrt(n)
    return MeanInterval(n=n, mean=mean, sd=sd, low=float(mean - half), high=float(mean + half))


def deviation_interval(sd: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Chi-square interval of a standard deviation of `n` values drawn from a normal distribution; NaN below two.

    Parameters
    ----------
    sd : float
        With n - 1 in the denominator.

    References
    ----------
    Casella & Berger, Statistical Inference (2002), section 9.2.
    """
    if n < 2 or not math.isfinite(sd):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = (sd * math.sqrt((n - 1) / stats.chi2.isf(q, n - 1)) for q in (tail, 1 - tail))
    return float(low), float(high)


def paired_difference(
    treatment: ArrayLike, control: ArrayLike, rng: np.random.Generator, confidence: float = 0.95
) -> PairedDifference:
    """Mean paired difference with its t interval, a bootstrap-t check and what pairing bought.

    Parameters
    ----------
    treatment, control : float array (seed,)
        Values of the two arms at the same seeds, in the same order.
    rng : numpy Generator
        For the bootstrap.
    confidence : float
        Nominal coverage of both intervals.

    Raises
    ------
    ValueError
        When the arms have different numbers of seeds, or a value is not finite.
    """
    a, b = _finite(treatment), _finite(control)
    if a.shape != b.shape:
        raise ValueError(f"paired arms must have equally many seeds, got {len(a)} and {len(b)}")
    interval = mean_interval(a - b, confidence)
    low, high = bootstrap_t_interval(a - b, rng, confidence)
    return PairedDifference(
        **vars(interval),
        check_low=low,
        check_high=high,
        correlation=pair_correlation(a, b),
        variance_ratio=_variance_ratio(a, b),
    )


def pair_correlation(a: Floats, b: Floats) -> float:
    """Pearson correlation of two arms over seeds; NaN below 3 seeds or when one does not vary."""
    if len(a) < 3 or _spread(a) == 0 or _spread(b) == 0:
        return math.nan
    return float(stats.pearsonr(a, b).statistic)


def bootstrap_t_interval(
    values: ArrayLike, rng: np.random.Generator, confidence: float = 0.95, resamples: int = 4999
) -> tuple[float, float]:
    """Studentised bootstrap interval of a mean.

    scipy has no studentised bootstrap, and its percentile and BCa intervals are too narrow at the few seeds of a study.

    Parameters
    ----------
    values : float array (seed,)

    Returns
    -------
    (float, float)
        In units of the values; NaN below 4 seeds, where too few distinct resamples exist, or without spread.

    References
    ----------
    Hall, Ann. Statist. 16 (1988) 927, doi:10.1214/aos/1176350933.
    """
    x = _finite(values)
    if len(x) < 4 or _spread(x) == 0:
        return math.nan, math.nan
    drawn = rng.choice(x, size=(resamples, len(x)))
    spread = drawn.std(axis=1, ddof=1)
    # A resample of one value repeated has no t; it says nothing about the spread and is left out.
    keep = spread > 1e-12 * np.abs(x).max()
    t = (drawn[keep].mean(axis=1) - x.mean()) / spread[keep]
    tail = (1 - confidence) / 2
    upper, lower = np.quantile(t, [1 - tail, tail]) * _spread(x)
    return float(x.mean() - upper), float(x.mean() - lower)


def sign_flip_test(differences: ArrayLike, rng: np.random.Generator) -> float:
    """Two-sided permutation test that paired differences are symmetric about zero.

    Exact over all 2^n signs up to n = 20, above that over random signs, the observed one counted among them.
    Written out because scipy.stats.permutation_test, which gives the same p, takes 13 s at n = 20 and this 15 ms.

    Parameters
    ----------
    differences : float array (seed,)
    rng : numpy Generator
        Used above n = 20 only.

    Returns
    -------
    float
        p-value in (0, 1]; 1 without data.

    References
    ----------
    Fisher, The Design of Experiments (1935), section 21; Phipson & Smyth (2010), doi:10.2202/1544-6115.1585.
    """
    d = as_whole_numbers(differences)
    if len(d) > EXACT_UP_TO:
        signs = rng.choice([-1.0, 1.0], size=(RESAMPLES, len(d)))
        extreme = np.count_nonzero(np.abs(signs @ d) >= abs(d.sum()))
        return float((extreme + 1) / (RESAMPLES + 1))
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums - value, sums + value])
    return float(np.mean(np.abs(sums) >= abs(d.sum())))


def p_floor(n: int, contrasts: int = 1) -> float:
    """The smallest p-value that `n` seeds can reach after Holm over `contrasts`: contrasts * 2 / 2^n, at most 1."""
    smallest = 2.0 / 2.0**n if n <= EXACT_UP_TO else 1.0 / (RESAMPLES + 1)
    return min(1.0, contrasts * smallest)


def equivalence_floor(n: int) -> float:
    """The smallest p-value that an exact test can give to "inside the margin" with `n` seeds: 1/2^n.

    It is that of n differences which all lie inside, when as many are expected to lie beyond. A t-test of two or three
    seeds can give any p-value, from nothing but how close they happen to be: simulated at the margin itself with
    lognormal differences, two one-sided t-tests of 2 to 5 seeds were wrong in 18% to 24% of studies, any of three
    contrasts in 19% to 39% (30,000 studies each; 4% with normal ones and t of 3 degrees of freedom).
    """
    return 0.5**n


def fewest_seeds(alpha: float, contrasts: int = 1) -> tuple[int, int]:
    """Seeds from which on a difference, and from which on equivalence, can be shown over so many contrasts."""
    sizes = range(1, MOST_SEEDS)
    differ = next((n for n in sizes if p_floor(n, contrasts) <= alpha), MOST_SEEDS)
    return differ, next((n for n in sizes if contrasts * equivalence_floor(n) <= alpha), MOST_SEEDS)


def holm(p_values: ArrayLike) -> Floats:
    """Adjusted p-values that bound the chance of any false positive in a family.

    References
    ----------
    Holm, Scand. J. Statist. 6 (1979) 65, www.jstor.org/stable/4615733.
    """
    p = _finite(p_values)
    # Not statsmodels' multipletests: it collects garbage at each call, a fifth of a second in a large process.
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Adjusted p-values that bound the expected share of false positives among the positives.

    References
    ----------
    Benjamini & Hochberg, J. R. Statist. Soc. B 57 (1995) 289, doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    p = _finite(p_values)
    return np.asarray(stats.false_discovery_control(p, method="bh")) if len(p) else p


def tost(differences: ArrayLike, margin: float) -> float:
    """Two one-sided t-tests: the p-value of "the mean difference lies inside (-margin, margin)".

    Without any spread there is no t, and the smallest p-value of an exact test takes its place:
    :func:`equivalence_floor`.

    Parameters
    ----------
    differences : float array (seed,)
    margin : float
        Positive, in units of the differences.

    Returns
    -------
    float
        p-value; small means equivalent. 1 below two seeds.

    References
    ----------
    Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987) 657, doi:10.1007/BF01068419.
    """
    d = _finite(differences)
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    if len(d) < 2:
        return 1.0
    if _spread(d) == 0:
        return equivalence_floor(len(d)) if abs(d[0]) < margin else 1.0
    return float(DescrStatsW(d).ttost_mean(-margin, margin)[0])


def wilson(events: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a rate of `events` among `trials`; (0, 1) without trials.

    References
    ----------
    Wilson, J. Am. Stat. Assoc. 22 (1927) 209, doi:10.1080/01621459.1927.10502953.
    """
    if trials == 0:
        return 0.0, 1.0
    low, high = proportion_confint(events, trials, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


@functools.cache
def minimum_detectable_effect(n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The mean difference that a paired t-test finds with this power, in standard deviations of the difference.

    Parameters
    ----------
    n : int
        Seeds. Infinite below two.
    alpha : float
        Two-sided; divide it by the number of contrasts for a Holm family.

    References
    ----------
    Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), section 2. statsmodels gives the same, but
    stops at wrong effects below some five seeds, and at levels of a large family.
    """
    if n < 2:
        return math.inf
    cut = float(stats.t.isf(alpha / 2, n - 1))

    def lacks(effect: float) -> float:
        shift = effect * math.sqrt(n)
        return _chance_above(cut, n, shift) + _chance_above(cut, n, -shift) - power

    most = 1.0
    while lacks(most) < 0:
        most *= 2
    return float(optimize.brentq(lacks, 0.0, most, xtol=1e-9))


@functools.cache
def detectable_effect(n: int, alpha: float = 0.05, contrasts: int = 1, power: float = 0.8) -> float:
    """The mean difference that a verdict finds with this power, in standard deviations of the difference.

    A verdict asks the sign-flip test, whose p-values come in steps of 2/2^n, and then the t interval: with few seeds
    it finds less than :func:`minimum_detectable_effect` says of a t-test. Simulated up to SIMULATED_UP_TO seeds, from
    there on the two agree.

    Parameters
    ----------
    n : int
        Seeds. Infinite where no p-value that they can reach is small enough.
    contrasts : int
        Size of the Holm family.
    """
    if n < 2 or p_floor(n, contrasts) > alpha:
        return math.inf
    by_t = minimum_detectable_effect(n, power, alpha / contrasts)
    if n > SIMULATED_UP_TO:
        return by_t

    def lacks(effect: float) -> float:
        return _power_of_verdict(n, effect, alpha, contrasts) - power

    most = 1.5 * by_t
    while lacks(most) < 0:
        most *= 2
    return float(optimize.brentq(lacks, 0.5 * by_t, most, xtol=1e-3))


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

    Parameters
    ----------
    mean, sd : float
        Of the paired difference, in units of the metric, e.g. from the seeds so far.
    margin : float
        Positive, same units.
    contrasts : int
        Size of the family; each test is planned at alpha / contrasts.

    Returns
    -------
    int or None
        None when more than MOST_SEEDS would be needed, or mean or spread are unknown.
    """
    if not (math.isfinite(mean) and math.isfinite(sd)):
        return None

    def decides(n: int) -> bool:
        shown = p_floor(n, contrasts) <= alpha and _power_to_differ(n, mean, sd, alpha, contrasts) >= power
        return shown or _power_of_tost(n, mean, sd, margin, alpha / contrasts) >= power

    sizes = range(2, MOST_SEEDS + 1)
    first = bisect.bisect_left(sizes, True, key=decides)  # power grows with n
    return sizes[first] if first < len(sizes) else None


def _power_to_differ(n: int, mean: float, sd: float, alpha: float, contrasts: int) -> float:
    """Power to show a difference: simulated for few seeds, then that of a paired t-test, its far tail neglected."""
    if sd == 0:
        return float(mean != 0)
    if n <= SIMULATED_UP_TO:
        return _power_of_verdict(n, abs(mean) / sd, alpha, contrasts)
    alpha /= contrasts
    return _chance_above(float(special.stdtrit(n - 1, 1 - alpha / 2)), n, abs(mean) / sd * math.sqrt(n))


def _power_of_tost(n: int, mean: float, sd: float, margin: float, alpha: float) -> float:
    """Lower bound of the power of TOST: 1 minus the chances that either one-sided test fails; 0 for too few seeds."""
    if sd == 0 or equivalence_floor(n) > alpha:
        return float(equivalence_floor(n) <= alpha and abs(mean) < margin)
    cut, scale = special.stdtrit(n - 1, 1 - alpha), math.sqrt(n) / sd
    below, above = (_chance_above(float(cut), n, (margin - side * mean) * scale) for side in (1, -1))
    return below + above - 1


def _chance_above(cut: float, n: int, shift: float) -> float:
    """That t of n normal values exceeds `cut`, the mean lying `shift` standard errors from zero: noncentral t.

    scipy's gives NaN far out; there the normal tail is averaged over the quantiles of the standard deviation.
    """
    if max(abs(cut), abs(shift)) < FAR:
        below = special.nctdtr(n - 1, shift, cut)  # a twentieth of the time of stats.nct
        return float(stats.nct.sf(cut, n - 1, shift) if math.isnan(below) else 1 - below)
    return float(stats.norm.sf(cut * _deviations(n - 1) - shift).mean())


@functools.lru_cache(maxsize=128)
def _deviations(freedom: int) -> Floats:
    """Evenly spaced quantiles of a standard deviation, in units of the true one."""
    return np.asarray(np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, freedom) / freedom))


def _variance_ratio(a: Floats, b: Floats) -> float:
    if len(a) < 3 or _spread(a - b) == 0:
        return math.nan
    return float((a.var(ddof=1) + b.var(ddof=1)) / (a - b).var(ddof=1))


def as_whole_numbers(differences: ArrayLike) -> Floats:
    """Differences in units of 2^-40 of the largest: sums of whole numbers are exact, so equal sums are seen as ties."""
    d = _finite(differences)
    scale = np.abs(d).max(initial=0.0)
    return np.rint(d / scale * 2.0**40) if scale > 0 else d


def _spread(x: Floats) -> float:
    """Standard deviation; exactly zero when the values differ by no more than rounding."""
    sd = float(x.std(ddof=1))
    return 0.0 if sd <= 1e-12 * float(np.abs(x).max()) else sd


def _finite(values: ArrayLike | Sequence[float]) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError(f"expected finite values along one axis (seed,), got shape {x.shape}: {x!r:.80}")
    return x

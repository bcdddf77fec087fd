"""The statistics of a comparison: pure functions on arrays, no files and no plots.

Axis: (seed,). A difference is treatment minus control at one seed, in units of the metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from analysis.stats import Floats

EXACT_UP_TO = 20
"""Seeds up to which all 2^n sign flips are enumerated."""
RESAMPLES = 19_999
"""Random sign flips above that. A p-value of 0.05 then carries a Monte Carlo error of 0.0015."""
SEED = 20_260_101
"""Seed of Monte Carlo tests, so that what is tested twice, here or elsewhere, has the same p-value."""


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
        """Standard error of the mean."""
        return self.sd / math.sqrt(self.n) if self.n else math.nan


@dataclass(frozen=True, kw_only=True)
class PairedDifference(MeanInterval):
    """Mean of treatment minus control over seeds."""

    correlation: float
    """Pearson, between the arms over seeds; NaN below 3 seeds or when an arm does not vary."""
    variance_ratio: float
    """Variance of the unpaired difference over that of the paired one: pairing saves this factor in trials."""


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> MeanInterval:
    """Mean, standard deviation and Student's t interval of finite values (seed,), in their units.

    Without a value the mean is NaN, below two seeds spread and interval are.
    """
    x = _finite(values)
    n, mean = len(x), float(x.mean()) if len(x) else math.nan
    if n < 2:
        return MeanInterval(n=n, mean=mean, sd=math.nan, low=math.nan, high=math.nan)
    sd = _spread(x)
    half = stats.t.isf((1 - confidence) / 2, n - 1) * sd / math.sqrt(n)
    return MeanInterval(n=n, mean=mean, sd=sd, low=float(mean - half), high=float(mean + half))


def deviation_interval(sd: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Chi-square interval of the standard deviation, n - 1 in its denominator, of `n` normal values; NaN below two.

    References
    ----------
    Casella & Berger, Statistical Inference (2002), section 9.2.
    """
    if n < 2 or not math.isfinite(sd):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = (sd * math.sqrt((n - 1) / stats.chi2.isf(q, n - 1)) for q in (tail, 1 - tail))
    return float(low), float(high)


def paired_difference(treatment: ArrayLike, control: ArrayLike, confidence: float = 0.95) -> PairedDifference:
    """Mean paired difference of two arms (seed,) at the same seeds, with its t interval, and what pairing bought.

    Raises ValueError when the arms have different numbers of seeds, or a value is not finite.
    """
    a, b = _finite(treatment), _finite(control)
    if a.shape != b.shape:
        raise ValueError(f"paired arms must have equally many seeds, got {len(a)} and {len(b)}")
    ratio = math.nan
    if len(a) > 2 and _spread(a - b) > 0:
        ratio = float((a.var(ddof=1) + b.var(ddof=1)) / (a - b).var(ddof=1))
    interval = mean_interval(a - b, confidence)
    return PairedDifference(**vars(interval), correlation=pair_correlation(a, b), variance_ratio=ratio)


def pair_correlation(a: Floats, b: Floats) -> float:
    """Pearson correlation of two arms over seeds; NaN below 3 seeds or when one does not vary."""
    if len(a) < 3 or _spread(a) == 0 or _spread(b) == 0:
        return math.nan
    return float(stats.pearsonr(a, b).statistic)


def sign_flip_test(differences: ArrayLike) -> float:
    """Two-sided permutation test that paired differences are symmetric about zero.

    Exact over all 2^n signs up to n = 20, above that over random signs, the observed one counted among them. They are
    drawn with SEED for the magnitudes in ascending order, so that p does not depend on what was tested before, nor on
    the order of the seeds.
    Written out because scipy.stats.permutation_test, which gives the same p, takes 13 s at n = 20 and this 15 ms.

    Parameters
    ----------
    differences : float array (seed,)
        Without any, p is 1.

    References
    ----------
    Fisher, The Design of Experiments (1935), section 21; Phipson & Smyth (2010), doi:10.2202/1544-6115.1585.
    """
    d = as_whole_numbers(differences)
    if len(d) > EXACT_UP_TO:
        signs = np.random.default_rng(SEED).choice([-1.0, 1.0], size=(RESAMPLES, len(d)))
        extreme = np.count_nonzero(np.abs(signs @ np.sort(np.abs(d))) >= abs(d.sum()) - len(d))
        return float((extreme + 1) / (RESAMPLES + 1))
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums - value, sums + value])
    return float(np.mean(np.abs(sums) >= abs(d.sum()) - len(d)))


def min_p(n: int, contrasts: int = 1) -> float:
    """The smallest p-value that `n` seeds can reach after Holm over `contrasts`: contrasts * 2 / 2^n, at most 1."""
    smallest = 2.0 / 2.0**n if n <= EXACT_UP_TO else 1.0 / (RESAMPLES + 1)
    return min(1.0, contrasts * smallest)


def min_p_equivalent(n: int) -> float:
    """The smallest p-value that an exact test can give to "inside the margin" with `n` seeds: 1/2^n.

    It is that of n differences which all lie inside, when as many are expected to lie beyond. A t-test of two or three
    seeds can give any p-value, from nothing but how close they happen to be: simulated at the margin itself with
    lognormal differences, two one-sided t-tests of 2 to 5 seeds were wrong in 18% to 24% of studies, any of three
    contrasts in 19% to 39% (30,000 studies each; 4% with normal ones and t of 3 degrees of freedom).
    """
    return 0.5**n


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
    :func:`min_p_equivalent`. 1 below two seeds.

    Parameters
    ----------
    differences : float array (seed,)
    margin : float
        Positive, in units of the differences.

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
        return min_p_equivalent(len(d)) if abs(d[0]) < margin else 1.0
    return float(DescrStatsW(d).ttost_mean(-margin, margin)[0])


def outlier(differences: ArrayLike, alpha: float = 0.01) -> int | None:
    """Place of the one difference that lies apart from all others, by Grubbs' two-sided test; None without one.

    Parameters
    ----------
    differences : float array (seed,)
    alpha : float
        Share of normal samples in which one is named all the same.

    References
    ----------
    Grubbs, Technometrics 11 (1969) 1, doi:10.1080/00401706.1969.10490657.
    """
    d = _finite(differences)
    n = len(d)
    if n < 4 or _spread(d) == 0:
        return None
    away = np.abs(d - d.mean()) / d.std(ddof=1)
    t = float(stats.t.isf(alpha / (2 * n), n - 2))
    farthest = int(away.argmax())
    return farthest if away[farthest] > (n - 1) / math.sqrt(n) * math.sqrt(t**2 / (n - 2 + t**2)) else None


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


def as_whole_numbers(differences: ArrayLike) -> Floats:
    """Differences in units of 2^-40 of the largest, rounded.

    Sums of whole numbers are exact. Those that were equal before the rounding, as sums of thirds are, differ by at most
    one unit a seed afterwards: whoever looks for ties takes them for equal.
    """
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

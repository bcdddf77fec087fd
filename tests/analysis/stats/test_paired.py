"""Statistics against numbers worked out by hand, from tables, or from scipy."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis.stats import paired as st


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),  # only +++ and --- reach |6|
        ([1.0, 2.0, -1.0], 6 / 8),  # |sum| >= 2: 4, 2, 2 and their mirror images; 0 twice
        ([0.0, 0.0, 0.0], 1.0),
        ([0.1, 0.2, -0.3], 1.0),  # the sum is zero but for rounding
        ([0.3 - 0.2, 0.2 - 0.1, 0.1], 2 / 8),  # equal but for rounding
        ([5.0], 1.0),
        ([], 1.0),
    ],
)
def test_sign_flip_by_hand(differences, expected, rng):
    assert st.sign_flip_test(differences, rng) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [4, 7, 10])
def test_sign_flip_agrees_with_scipy(n, rng):
    d = rng.normal(0.5, 1.0, n)
    expected = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=2**n).pvalue
    assert st.sign_flip_test(d, rng) == pytest.approx(expected)


def test_sign_flip_ignores_scale_and_direction(rng):
    d = rng.normal(0.5, 1.0, 8)
    assert st.sign_flip_test(d, rng) == st.sign_flip_test(-1e-9 * d, rng) == st.sign_flip_test(1e9 * d, rng)


def test_sign_flip_above_twenty_seeds_never_reaches_zero(rng):
    assert st.sign_flip_test(np.ones(25), rng) == st.p_floor(25) == 1 / (st.RESAMPLES + 1)


@pytest.mark.parametrize(("n", "contrasts", "floor"), [(5, 1, 0.0625), (6, 1, 0.03125), (3, 10, 1.0), (7, 3, 0.046875)])
def test_p_floor(n, contrasts, floor):
    assert st.p_floor(n, contrasts) == floor


@pytest.mark.parametrize(("contrasts", "n"), [(3, 7), (6, 8), (10, 9), (15, 10)])
def test_seeds_that_a_holm_family_needs(contrasts, n):
    assert st.p_floor(n, contrasts) <= 0.05 < st.p_floor(n - 1, contrasts)


@pytest.mark.parametrize(("contrasts", "fewest"), [(1, (6, 5)), (3, (7, 6)), (10, (9, 8))])
def test_fewest_seeds_by_hand(contrasts, fewest):
    """2 / 2^6 = 0.031 and 1 / 2^5 = 0.031; three times 2 / 2^7 and 1 / 2^6 are 0.047; ten times 2 / 2^9 are 0.039."""
    assert st.fewest_seeds(0.05, contrasts) == fewest


def test_equivalence_is_not_planned_for_fewer_seeds_than_can_show_it():
    assert st.seeds_to_decide(mean=0.0, sd=1e-6, margin=1.0) == 5
    assert st.seeds_to_decide(mean=0.0, sd=1e-6, margin=1.0, contrasts=10) == 8


def test_holm_by_hand():
    # Sorted .01 .03 .04 times 3, 2, 1 gives .03 .06 .04; made monotone: .03 .06 .06.
    assert st.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_benjamini_hochberg_by_hand():
    # Sorted .01 .03 .04 times 3/1, 3/2, 3/3 gives .03 .045 .04; made monotone from above: .03 .04 .04.
    assert st.benjamini_hochberg([0.04, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])


def test_corrections_are_those_of_statsmodels():
    for p in (np.random.default_rng(3).random(50), np.full(4, 0.02), np.array([0.03]), np.array([0.5, 0.01, 0.01])):
        assert st.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
        assert st.benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])


def test_corrections_of_nothing():
    assert len(st.holm([])) == len(st.benjamini_hochberg([])) == 0


def test_wilson_by_hand():
    # Centre (p + z^2 / 2n) / (1 + z^2 / n), here p = 1/6, n = 6, z = 1.95996: 0.29680 +- 0.26672.
    assert st.wilson(1, 6) == pytest.approx((0.03005, 0.56350), abs=1e-4)
    assert st.wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    assert st.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("n", "effect"), [(3, 3.26), (5, 1.68), (8, 1.16), (10, 1.00), (20, 0.66)])
def test_minimum_detectable_effect(n, effect):
    assert st.minimum_detectable_effect(n) == pytest.approx(effect, abs=0.005)


@pytest.mark.parametrize(
    ("n", "alpha"), [(2, 0.05), (2, 0.05 / 200), (3, 0.05 / 200), (5, 0.05 / 5000), (10, 0.05 / 5000)]
)
def test_minimum_detectable_effect_of_few_seeds_and_large_families(n, alpha):
    """Against the exact power by integration: statsmodels gave 10 for all of the first three."""
    effect, cut = st.minimum_detectable_effect(n, alpha=alpha), stats.t.isf(alpha / 2, n - 1)
    spread = np.sqrt(stats.chi2.ppf((np.arange(200_000) + 0.5) / 200_000, n - 1) / (n - 1))
    above, below = (stats.norm.sf(cut * spread - side * effect * math.sqrt(n)).mean() for side in (1, -1))
    assert above + below == pytest.approx(0.8, abs=1e-3)


def test_seeds_to_decide_where_the_answer_is_plain():
    """An effect of a billion standard deviations takes no more than the floor of the permutation test."""
    assert st.seeds_to_decide(mean=1.0, sd=1e-9, margin=0.01) == 6
    assert st.seeds_to_decide(mean=1.0, sd=1e-9, margin=0.01, contrasts=199) == 13


def test_mean_interval_by_hand():
    # mean 2, sd 1, t(0.975, 2) = 4.3027: 2 +- 4.3027 / sqrt(3).
    found = st.mean_interval([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert (found.low, found.high) == pytest.approx((2 - 2.48413, 2 + 2.48413), abs=1e-4)


def test_mean_interval_of_few():
    assert math.isnan(st.mean_interval([]).mean)
    assert st.mean_interval([1.0]).mean == 1.0
    assert math.isnan(st.mean_interval([1.0]).low)


def test_paired_difference(rng):
    a, b = np.array([0.50, 0.38, 0.38, 0.43]), np.array([0.47, 0.31, 0.36, 0.39])
    found = st.paired_difference(a, b, rng)
    low, high = stats.ttest_rel(a, b).confidence_interval()
    assert (found.mean, found.low, found.high) == pytest.approx((0.04, low, high))
    assert found.correlation == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert found.variance_ratio == pytest.approx((a.var() + b.var()) / (a - b).var())


def test_bootstrap_t_covers_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [st.bootstrap_t_interval(rng.normal(size=8), rng, resamples=499) for _ in range(200)]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert covered >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 200)


def test_tost_by_hand():
    # mean 0, sd 1, n = 4: t = margin * 2 on both sides.
    d = np.array([-1.0, 1.0, -1.0, 1.0]) * math.sqrt(3) / 2
    assert st.tost(d, 2.0) == pytest.approx(stats.t.sf(4.0, 3))


def test_tost_without_spread_needs_five_seeds():
    assert st.tost(np.zeros(4), 0.01) == 0.0625
    assert st.tost(np.zeros(5), 0.01) == 0.03125
    assert st.tost(np.full(5, 0.02), 0.01) == 1.0
    assert st.tost([0.0], 0.01) == 1.0


@pytest.mark.parametrize(("n", "contrasts"), [(6, 1), (7, 1), (8, 1), (10, 1), (7, 3), (8, 3), (10, 3)])
def test_a_verdict_finds_what_is_called_detectable(n, contrasts):
    """In fresh simulated studies, by the sign-flip test and the interval that verdicts use."""
    effect, rng = st.detectable_effect(n, 0.05, contrasts), np.random.default_rng(7)
    found = 0
    for _ in range(1000):
        d = rng.normal(effect, 1, n)
        found += st.sign_flip_test(d, rng) * contrasts <= 0.05 and st.mean_interval(d).low > 0
    assert abs(found / 1000 - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 1000)


def test_few_seeds_find_less_than_a_t_test():
    """At six seeds the one significant p needs all signs alike: simulated, 1.9 sd in the place of 1.43."""
    assert st.detectable_effect(6) > 1.25 * st.minimum_detectable_effect(6)
    assert st.detectable_effect(10) == pytest.approx(st.minimum_detectable_effect(10), rel=0.04)
    assert st.detectable_effect(11) == st.minimum_detectable_effect(11)
    assert st.detectable_effect(5) == st.detectable_effect(6, contrasts=2) == math.inf


def test_seeds_to_decide_finds_the_power_it_promises():
    n = st.seeds_to_decide(mean=0.02, sd=0.02, margin=0.005)
    assert st.detectable_effect(n) <= 1.0 < st.detectable_effect(n - 1)
    rng = np.random.default_rng(2)
    n = st.seeds_to_decide(mean=0.0, sd=0.02, margin=0.01)
    shown = np.mean([st.tost(rng.normal(0, 0.02, n), 0.01) <= 0.05 for _ in range(400)])
    assert shown >= 0.8 - 3 * math.sqrt(0.8 * 0.2 / 400)


def test_seeds_to_decide_respects_the_floor():
    assert st.seeds_to_decide(mean=1.0, sd=0.001, margin=0.01, contrasts=10) == 9
    assert st.seeds_to_decide(mean=0.01, sd=1.0, margin=0.01) is None
    assert st.seeds_to_decide(mean=math.nan, sd=math.nan, margin=0.01) is None


@pytest.mark.parametrize("values", [[1.0, math.nan], [[1.0]], [math.inf]])
def test_values_must_be_finite_and_flat(values, rng):
    with pytest.raises(ValueError, match="finite values along one axis"):
        st.sign_flip_test(values, rng)


def test_unequal_pairs_are_refused(rng):
    with pytest.raises(ValueError, match="equally many seeds"):
        st.paired_difference([1.0, 2.0], [1.0], rng)

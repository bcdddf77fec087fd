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
def test_sign_flip_by_hand(differences, expected):
    assert st.sign_flip_test(differences) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [4, 7, 10])
def test_sign_flip_agrees_with_scipy(n, rng):
    d = rng.normal(0.5, 1.0, n)
    expected = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=2**n).pvalue
    assert st.sign_flip_test(d) == pytest.approx(expected)


def test_sign_flip_ignores_scale_and_direction(rng):
    d = rng.normal(0.5, 1.0, 8)
    assert st.sign_flip_test(d) == st.sign_flip_test(-1e-9 * d) == st.sign_flip_test(1e9 * d)


def test_sign_flip_above_twenty_seeds_never_reaches_zero():
    assert st.sign_flip_test(np.ones(25)) == st.min_p(25) == 1 / (st.RESAMPLES + 1)


def test_the_same_differences_have_the_same_p_whatever_was_tested_before_and_in_any_order(rng):
    d = rng.normal(0.4, 1.0, 25)
    p = st.sign_flip_test(d)
    st.sign_flip_test(rng.normal(size=30))
    assert 0.001 < p < 0.2  # not one that all draws would give
    assert st.sign_flip_test(d) == st.sign_flip_test(-d) == st.sign_flip_test(rng.permutation(d)) == p


@pytest.mark.parametrize(("n", "contrasts", "floor"), [(5, 1, 0.0625), (6, 1, 0.03125), (3, 10, 1.0), (7, 3, 0.046875)])
def test_p_floor(n, contrasts, floor):
    assert st.min_p(n, contrasts) == floor


@pytest.mark.parametrize(("contrasts", "n"), [(3, 7), (6, 8), (10, 9), (15, 10)])
def test_seeds_that_a_holm_family_needs(contrasts, n):
    assert st.min_p(n, contrasts) <= 0.05 < st.min_p(n - 1, contrasts)


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


def test_mean_interval_by_hand():
    # mean 2, sd 1, t(0.975, 2) = 4.3027: 2 +- 4.3027 / sqrt(3).
    found = st.mean_interval([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert (found.low, found.high) == pytest.approx((2 - 2.48413, 2 + 2.48413), abs=1e-4)


def test_mean_interval_of_few():
    assert math.isnan(st.mean_interval([]).mean)
    assert st.mean_interval([1.0]).mean == 1.0
    assert math.isnan(st.mean_interval([1.0]).low)


def test_paired_difference():
    a, b = np.array([0.50, 0.38, 0.38, 0.43]), np.array([0.47, 0.31, 0.36, 0.39])
    found = st.paired_difference(a, b)
    low, high = stats.ttest_rel(a, b).confidence_interval()
    assert (found.mean, found.low, found.high) == pytest.approx((0.04, low, high))
    assert found.correlation == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert found.variance_ratio == pytest.approx((a.var() + b.var()) / (a - b).var())


def test_tost_by_hand():
    # mean 0, sd 1, n = 4: t = margin * 2 on both sides.
    d = np.array([-1.0, 1.0, -1.0, 1.0]) * math.sqrt(3) / 2
    assert st.tost(d, 2.0) == pytest.approx(stats.t.sf(4.0, 3))


def test_tost_without_spread_needs_five_seeds():
    assert st.tost(np.zeros(4), 0.01) == 0.0625
    assert st.tost(np.zeros(5), 0.01) == 0.03125
    assert st.tost(np.full(5, 0.02), 0.01) == 1.0
    assert st.tost([0.0], 0.01) == 1.0


@pytest.mark.parametrize("values", [[1.0, math.nan], [[1.0]], [math.inf]])
def test_values_must_be_finite_and_flat(values):
    with pytest.raises(ValueError, match="finite values along one axis"):
        st.sign_flip_test(values)


def test_unequal_pairs_are_refused():
    with pytest.raises(ValueError, match="equally many seeds"):
        st.paired_difference([1.0, 2.0], [1.0])

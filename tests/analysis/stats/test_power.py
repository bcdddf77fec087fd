"""Power against numbers worked out by hand, from tables, or by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.stats import paired as st
from analysis.stats import power


@pytest.mark.parametrize(("contrasts", "fewest"), [(1, (6, 5)), (3, (7, 6)), (10, (9, 8))])
def test_fewest_seeds_by_hand(contrasts, fewest):
    """2 / 2^6 = 0.031 and 1 / 2^5 = 0.031; three times 2 / 2^7 and 1 / 2^6 are 0.047; ten times 2 / 2^9 are 0.039."""
    assert power.min_seeds(0.05, contrasts) == fewest


def test_equivalence_is_not_planned_for_fewer_seeds_than_can_show_it():
    assert power.seeds_to_decide(mean=0.0, sd=1e-6, margin=1.0) == 5
    assert power.seeds_to_decide(mean=0.0, sd=1e-6, margin=1.0, contrasts=10) == 8


@pytest.mark.parametrize(("n", "effect"), [(3, 3.26), (5, 1.68), (8, 1.16), (10, 1.00), (20, 0.66)])
def test_minimum_detectable_effect(n, effect):
    assert power.minimum_detectable_effect(n) == pytest.approx(effect, abs=0.005)


@pytest.mark.parametrize(
    ("n", "alpha"), [(2, 0.05), (2, 0.05 / 200), (3, 0.05 / 200), (5, 0.05 / 5000), (10, 0.05 / 5000)]
)
def test_minimum_detectable_effect_of_few_seeds_and_large_families(n, alpha):
    """Against the exact power by integration: statsmodels gave 10 for all of the first three."""
    effect, cut = power.minimum_detectable_effect(n, alpha=alpha), stats.t.isf(alpha / 2, n - 1)
    spread = np.sqrt(stats.chi2.ppf((np.arange(200_000) + 0.5) / 200_000, n - 1) / (n - 1))
    above, below = (stats.norm.sf(cut * spread - side * effect * math.sqrt(n)).mean() for side in (1, -1))
    assert above + below == pytest.approx(0.8, abs=1e-3)


def test_seeds_to_decide_where_the_answer_is_plain():
    """An effect of a billion standard deviations takes no more than the floor of the permutation test."""
    assert power.seeds_to_decide(mean=1.0, sd=1e-9, margin=0.01) == 6
    assert power.seeds_to_decide(mean=1.0, sd=1e-9, margin=0.01, contrasts=199) == 13


@pytest.mark.parametrize(("n", "contrasts"), [(6, 1), (7, 1), (8, 1), (10, 1), (7, 3), (8, 3), (10, 3)])
def test_a_verdict_finds_what_is_called_detectable(n, contrasts):
    """In fresh simulated studies, by the sign-flip test and the interval that verdicts use."""
    effect, rng = power.detectable_effect(n, 0.05, contrasts), np.random.default_rng(7)
    found = 0
    for _ in range(1000):
        d = rng.normal(effect, 1, n)
        found += st.sign_flip_test(d) * contrasts <= 0.05 and st.mean_interval(d).low > 0
    assert abs(found / 1000 - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 1000)


def test_few_seeds_find_less_than_a_t_test():
    """At six seeds the one significant p needs all signs alike: simulated, 1.9 sd in the place of 1.43."""
    assert power.detectable_effect(6) > 1.25 * power.minimum_detectable_effect(6)
    assert power.detectable_effect(10) == pytest.approx(power.minimum_detectable_effect(10), rel=0.04)
    assert power.detectable_effect(11) == power.minimum_detectable_effect(11)
    assert power.detectable_effect(5) == power.detectable_effect(6, contrasts=2) == math.inf


def test_seeds_to_decide_finds_the_power_it_promises():
    n = power.seeds_to_decide(mean=0.02, sd=0.02, margin=0.005)
    assert power.detectable_effect(n) <= 1.0 < power.detectable_effect(n - 1)
    rng = np.random.default_rng(2)
    n = power.seeds_to_decide(mean=0.0, sd=0.02, margin=0.01)
    shown = np.mean([st.tost(rng.normal(0, 0.02, n), 0.01) <= 0.05 for _ in range(400)])
    assert shown >= 0.8 - 3 * math.sqrt(0.8 * 0.2 / 400)


def test_seeds_to_decide_respects_the_floor():
    assert power.seeds_to_decide(mean=1.0, sd=0.001, margin=0.01, contrasts=10) == 9
    assert power.seeds_to_decide(mean=0.01, sd=1.0, margin=0.01) is None
    assert power.seeds_to_decide(mean=math.nan, sd=math.nan, margin=0.01) is None

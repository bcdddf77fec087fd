"""Verdicts on scores with known answers."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.stats.paired import sign_flip_test
from analysis.verdicts.decide import decide_contrasts
from jbot.store.plan import Contrast, Plan, PlanError


def make_plan(arms=("a", "b"), contrasts=None, **changes):
    contrasts = contrasts or (Contrast(treatment="a", control="b", primary=True),)
    plan = {"study": "s", "question": "?", "preset": "smoke", "base": {}, "metric": "test/x", "margin": 0.01}
    plan |= {"arms": {arm: {} for arm in arms}, "contrasts": contrasts, "seeds": (0,), "higher_is_better": True}
    return Plan(**plan | changes)


def one(scores, states=None, **changes):
    """The verdict on the first contrast of two arms."""
    frame = pd.DataFrame(scores, dtype=float)
    states = pd.DataFrame("complete", frame.index, frame.columns) if states is None else pd.DataFrame(states)
    return decide_contrasts(make_plan(tuple(frame.columns), **changes), frame, states)[0]


BASE = np.array([0.50, 0.38, 0.38, 0.43, 0.41, 0.47])
NOISE = np.array([0.004, -0.003, 0.001, -0.002, 0.003, -0.001])


def test_better_in_plain_words():
    found = one({"a": BASE + 0.03 + NOISE, "b": BASE})
    assert found.outcome == "better"
    # sd of the noise 0.002805, over sqrt(6) 0.001145, times t(0.975, 5) = 2.571: 0.03033 +- 0.00294.
    expected = "a is better than b by 0.0303 ± 0.0011 (95% interval 0.0274 to 0.0333, n = 6 seeds, p = 0.031)."
    assert found.sentence == expected
    assert found.p == pytest.approx(2 / 64)


def test_worse_and_direction():
    assert one({"a": BASE - 0.03 + NOISE, "b": BASE}).outcome == "worse"
    assert one({"a": BASE - 0.03 + NOISE, "b": BASE}, higher_is_better=False).outcome == "better"
    sentence = one({"a": BASE - 0.03 + NOISE, "b": BASE}, higher_is_better=False).sentence
    assert sentence.startswith("a is better than b by 0.0")
    assert "−" not in sentence


def test_equivalent():
    found = one({"a": BASE + NOISE, "b": BASE})
    assert found.outcome == "equivalent"
    assert "less than the margin of 0.01" in found.sentence


def test_significant_inside_the_margin_is_equivalent_with_a_note():
    found = one({"a": BASE + 0.004 + NOISE / 4, "b": BASE})
    assert found.p_adjusted <= 0.05
    assert found.outcome == "equivalent"
    assert any("not zero (p = 0.031), but below the margin" in note for note in found.notes)


def test_undecided_names_the_seeds_that_would_decide():
    found = one({"a": BASE + 0.01 + 10 * NOISE, "b": BASE})
    assert found.outcome == "undecided"
    assert found.seeds_needed > 6
    assert f"About {found.seeds_needed} seeds would decide it" in found.sentence


def test_five_seeds_cannot_show_a_difference_and_the_verdict_says_so():
    found = one({"a": (BASE + 0.2 + NOISE)[:5], "b": BASE[:5]})
    assert found.outcome == "undecided"
    assert "p = 0.062" in found.sentence
    assert any("5 seeds cannot show a difference" in note for note in found.notes)
    assert found.seeds_needed == 6


@pytest.mark.parametrize("n", [2, 3, 5, 6, 10])
def test_identical_arms_are_never_better(n):
    values = np.resize(BASE, n)
    found = one({"a": values, "b": values})
    assert found.outcome == ("equivalent" if n >= 5 else "undecided")
    assert f"identical scores at all {n} seeds" in found.sentence


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_few_seeds_that_lie_close_are_not_equivalent(n):
    """As identical ones are not: t-tests are sure of what two seeds have in common, an exact test is not."""
    found = one({"a": (BASE + NOISE / 100)[:n], "b": BASE[:n]})
    assert found.p_equivalent < 0.01
    assert found.min_p_equivalent == 0.5**n
    assert found.outcome == ("equivalent" if n == 5 else "undecided")
    if n < 5:
        assert "About 6 seeds would decide it" in found.sentence
        assert "They are too few for equivalence, which takes at least 5." in found.notes
        assert any("T-tests alone would call it equivalent (p = " in note for note in found.notes)


def test_equivalence_of_a_family_takes_more_seeds():
    contrasts = tuple(Contrast(treatment="a", control=arm, primary=True) for arm in "bcd")
    scores = pd.DataFrame({arm: BASE + i * NOISE / 100 for i, arm in enumerate("abcd")})
    states = pd.DataFrame("complete", scores.index, scores.columns)
    whole, part = (decide_contrasts(make_plan("abcd", contrasts), scores[:n], states[:n]) for n in (6, 5))
    assert {item.outcome for item in whole} == {"equivalent"}
    assert {item.outcome for item in part} == {"undecided"}


def test_intervals_in_words_end_where_a_difference_can_be():
    """The t interval itself, which a table of numbers has, goes on."""
    scores = {"a": [0.99, 0.98, 0.97], "b": [0.2, 0.95, 0.3]}
    found = one(scores, metric="test/knn_accuracy")
    assert found.difference.high > 1
    assert found.ends == (found.difference.low, 1.0)
    assert "(95% interval −0.52 to 1.00, n = 3" in found.sentence
    assert "to 1.51" in one(scores, metric="test/effective_rank").sentence


@pytest.mark.parametrize(("n", "words"), [(0, "no seed has"), (1, "only one seed has")])
def test_too_few_seeds_in_plain_words(n, words):
    found = one({"a": BASE[:n], "b": BASE[:n]})
    assert found.outcome == "undecided"
    assert words in found.sentence


def test_failed_seed_leaves_the_difference_and_is_counted():
    states = {"a": ["complete"] * 6, "b": ["failed"] + ["complete"] * 5}
    scores = {"a": BASE, "b": np.r_[math.nan, BASE[1:] - 0.03]}
    found = one(scores, states)
    assert (found.difference.n, found.dropped) == (5, 1)
    assert "1 seed is left out because a trial failed: a failed in 0 of 6" in found.sentence
    assert "b failed in 1 of 6 (95% interval 3% to 56%)" in found.sentence


def test_score_of_a_failed_trial_is_not_used():
    states = {"a": ["failed"] + ["complete"] * 5, "b": ["complete"] * 6}
    assert one({"a": np.r_[9.0, BASE[1:]], "b": BASE}, states).difference.mean == 0


def test_pruned_trials_enter_nothing():
    states = {"a": ["pruned"] + ["complete"] * 5, "b": ["complete"] * 6}
    found = one({"a": np.r_[math.nan, BASE[1:]], "b": BASE}, states)
    assert (found.difference.n, found.dropped, found.pruned) == (5, 0, 1)
    assert (found.failures[0].failed, found.failures[0].ended) == (0, 5)


def test_incomplete_blocks_are_not_compared():
    states = {"a": ["complete"] * 6, "b": ["complete"] * 5 + ["pending"]}
    found = one({"a": BASE, "b": np.r_[BASE[:5], math.nan]}, states)
    assert (found.difference.n, found.dropped, found.interim) == (5, 0, True)


def test_family_is_corrected_by_holm_and_exploration_apart():
    contrasts = (
        *(Contrast(treatment="a", control=arm, primary=True) for arm in "bcd"),
        Contrast(treatment="b", control="c"),
    )
    scores = pd.DataFrame({"a": BASE + 0.05 + NOISE, "b": BASE, "c": BASE - NOISE, "d": BASE + 2 * NOISE})
    states = pd.DataFrame("complete", scores.index, scores.columns)
    found = decide_contrasts(make_plan("abcd", contrasts), scores, states)
    assert [item.family for item in found] == [3, 3, 3, 1]
    assert [item.p_adjusted for item in found[:3]] == pytest.approx([6 / 64] * 3)
    assert {item.outcome for item in found[:3]} == {"undecided"}
    assert "p = 0.094 after Holm over 3 contrasts" in found[0].sentence
    assert any("Exploratory" in note for note in found[3].notes)


def test_no_false_claims_on_noise():
    """Of 200 studies of two equal arms at 6 seeds, at most 5% and three Monte Carlo errors say better or worse."""
    rng, claims = np.random.default_rng(5), 0
    for _ in range(200):
        block = rng.normal(0.45, 0.05, 6)
        a, b = (block + rng.normal(0, 0.02, 6) for _ in range(2))
        claims += one({"a": a, "b": b}).outcome in ("better", "worse")
    assert claims / 200 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_true_effects_are_found():
    rng = np.random.default_rng(6)
    gaps = [rng.normal(0.06, 0.02, 8) for _ in range(50)]
    assert np.mean([one({"a": gap, "b": np.zeros(8)}).outcome == "better" for gap in gaps]) > 0.9


def test_p_is_never_printed_below_what_the_seeds_can_reach():
    found = one({"a": np.arange(12) + 5.0, "b": np.arange(12.0)})
    assert found.p == sign_flip_test(np.full(12, 5.0)) == found.min_p == 2 / 2**12
    assert "p = 0.00049" in found.sentence


def test_scores_and_states_must_match():
    with pytest.raises(ValueError, match="same seeds and arms"):
        decide_contrasts(make_plan(), pd.DataFrame({"a": [1.0], "b": [1.0]}), pd.DataFrame({"a": ["complete"]}))


def test_a_contrast_may_name_the_metric_of_each_side():
    """An arm against its own untrained encoder, and two arms on another metric, beside a plain contrast."""
    contrasts = (
        Contrast(treatment="a", control="a", control_metric="untrained/test/x", primary=True),
        Contrast(treatment="a", control="b", metric="test_500/x"),
        Contrast(treatment="a", control="b"),
    )
    scores = pd.DataFrame({"a": BASE + 0.05 + NOISE, "b": BASE})
    states = pd.DataFrame("complete", scores.index, scores.columns)
    others = {
        "untrained/test/x": scores - 0.1 - NOISE.mean(),
        "test_500/x": scores[["b", "b"]].set_axis(["a", "b"], axis=1),
    }
    baseline, elsewhere, plain = decide_contrasts(make_plan("ab", contrasts), scores, states, others)
    assert baseline.outcome == "better"
    assert baseline.difference.mean == pytest.approx(0.1 + NOISE.mean())
    assert baseline.sentence.startswith("a is better than untrained a by 0.1")
    assert baseline.contrast.name == "a - untrained a"
    assert (elsewhere.difference.mean, elsewhere.contrast.name) == (0, "a - b on test_500/x")
    assert plain.difference.mean == pytest.approx(0.05 + NOISE.mean())
    with pytest.raises(ValueError, match="no scores of test_500/x, untrained/test/x"):
        decide_contrasts(make_plan("ab", contrasts), scores, states)


def test_an_arm_is_not_compared_with_itself():
    with pytest.raises(PlanError, match="compares an arm with itself"):
        make_plan("ab", (Contrast(treatment="a", control="a"),))
    with pytest.raises(PlanError, match="compares an arm with itself"):
        make_plan("ab", (Contrast(treatment="a", control="a", metric="test/y"),))


def test_failures_of_the_better_arm_can_undo_the_claim():
    """It fails in 4 of 10, the other never: what is left is better, and may be left because it is."""
    base = np.resize(BASE, 10)
    scores = {"a": np.r_[np.full(4, math.nan), base[4:] + 0.03 + NOISE], "b": base}
    states = {"a": ["failed"] * 4 + ["complete"] * 6, "b": ["complete"] * 10}
    found = one(scores, states)
    assert (found.p_adjusted, found.outcome, found.undone_by_failures) == (pytest.approx(2 / 64), "undecided", True)
    assert found.seeds_needed is None
    assert "It would not stand if a had lost by the largest one wherever it alone failed (p = " in found.sentence
    # Where the worse arm fails, nothing flatters the better one.
    other = one(
        {"a": scores["b"] + 0.03 + np.resize(NOISE, 10), "b": scores["a"] - 0.03}, {"a": states["b"], "b": states["a"]}
    )
    assert (other.outcome, other.undone_by_failures) == ("better", False)


@pytest.mark.parametrize(
    ("sizes", "p"),
    [
        (np.array([-4, 5, 9, 8, 12, 9, -4, 6]) / 300, 0.0546875),
        (np.array([1, 1, 1, -3, 1, 1]) / 7, 0.84375),
        (np.array([2, 3, 3, 5, -1, 4, 6]) / 95_000, 0.03125),
    ],
)
def test_ties_of_rational_differences_are_ties(sizes, p):
    """Metrics are shares of the test jets: their sums tie, and floating point must not break that."""
    signs = 1 - 2 * ((np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes))) & 1)
    whole = np.rint(sizes * {8: 300, 6: 7, 7: 95_000}[len(sizes)]).astype(int)
    assert float(np.mean(np.abs(signs @ whole) >= abs(whole.sum()))) == p
    assert sign_flip_test(sizes) == p


def test_one_seed_that_carries_the_mean_is_named():
    found = one({"a": BASE + NOISE + np.array([0, 0, 0, 0, 0.9, 0]), "b": BASE})
    seed, others = found.outlier
    assert seed == 4
    assert others.mean == pytest.approx(np.delete(NOISE, 4).mean())
    assert any("Seed 4 lies apart from all others" in note for note in found.notes)
    assert one({"a": BASE + NOISE, "b": BASE}).outlier is None


def test_arms_that_score_alike_say_what_changed_nothing():
    frame = pd.DataFrame({"a": BASE, "b": BASE})
    plan = make_plan("ab", (Contrast(treatment="a", control="b", primary=True),))
    plan = Plan(**vars(plan) | {"arms": {"a": {"loss.koleo_weight": 0.5}, "b": {}}})
    (found,) = decide_contrasts(plan, frame, pd.DataFrame("complete", frame.index, frame.columns))
    assert "identical scores at all 6 seeds. What a changes had no effect: KoLeo weight 0.5." in found.sentence


def test_an_interval_without_zero_beside_undecided_is_explained():
    found = one({"a": (BASE + 0.2 + NOISE)[:5], "b": BASE[:5]})
    assert found.outcome == "undecided"
    assert "The interval excludes zero, but the permutation test does not (p = 0.062): no claim." in found.notes


def test_what_six_seeds_say_of_the_seeds_needed_is_a_range():
    found = one({"a": BASE + 0.01 + 10 * NOISE, "b": BASE})
    low, high = found.seeds_range
    assert 7 <= low <= found.seeds_needed <= (high or 1001)
    assert f"({found.difference.n} seeds leave {low} " in found.sentence


@pytest.mark.parametrize("margin", [math.inf, math.nan, 0.0, -0.01])
def test_a_margin_is_positive_and_finite(margin):
    with pytest.raises(PlanError, match="margin must be positive and finite"):
        make_plan("ab", margin=margin)

"""Numbers from scores: by hand on arrays with ties, against scikit-learn, and their uncertainties by simulation."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedKFold

from jbot.evaluation import metrics
from jbot.evaluation.metrics import Measured, MetricError

# Ties on purpose: a cut at 2 keeps signal and background together.
SCORES = np.array([3.0, 2, 2, 1, 2, 1, 0, 0])
SIGNAL = np.array([True, True, True, True, False, False, False, False])


def test_curve_by_hand_with_ties():
    curve = metrics.roc(SCORES, SIGNAL)
    assert curve.signal.tolist() == [0, 0.25, 0.75, 1, 1]
    assert curve.background.tolist() == [0, 0, 0.25, 0.5, 1]
    assert (curve.signal_jets, curve.background_jets) == (4, 4)


def test_numbers_by_hand_with_ties():
    # Pairs (signal, background): 3 wins 4, each 2 wins 3 and ties 1, 1 wins 2 and ties 1: 4 + 2 * 3.5 + 2.5 of 16.
    assert metrics.auc(SCORES, SIGNAL).value == pytest.approx(13.5 / 16)
    curve = metrics.roc(SCORES, SIGNAL)
    assert metrics.signal_efficiency(curve, 0.1).value == 0.25  # no cut between 0 and 1/4 of the background
    assert metrics.signal_efficiency(curve, 0.25).value == 0.75
    assert metrics.background_rejection(curve, 0.3).value == 4
    assert metrics.background_rejection(curve, 0.8).value == 2
    assert math.isnan(metrics.background_rejection(curve, 0.25).value)  # no background jet left
    assert metrics.significance_improvement(curve, 0.25).value == 0.75 / 0.5
    assert metrics.significance_improvement(curve, 0.5).value == 1 / math.sqrt(0.5)


def test_all_scores_equal():
    curve = metrics.roc(np.zeros(8), SIGNAL)
    assert metrics.auc(np.zeros(8), SIGNAL).value == 0.5
    assert metrics.signal_efficiency(curve, 0.1).value == 0
    assert metrics.background_rejection(curve, 0.5).value == 1
    assert metrics.significance_improvement(curve, 0.25).value == 1


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    for digits in (1, 8):  # many ties, none
        signal = rng.random(3000) < 0.3
        scores = np.round(rng.normal(size=3000) + signal, digits)
        curve = metrics.roc(scores, signal)
        fpr, tpr, _ = roc_curve(signal, scores, drop_intermediate=False)
        assert metrics.auc(scores, signal).value == pytest.approx(roc_auc_score(signal, scores), abs=1e-12)
        for eps_b in metrics.BACKGROUND_EFFICIENCIES:
            assert metrics.signal_efficiency(curve, eps_b).value == tpr[fpr <= eps_b].max()
        assert metrics.background_rejection(curve, 0.3).value == pytest.approx(1 / fpr[tpr >= 0.3].min())


@pytest.mark.parametrize(
    "number",
    [
        lambda scores, signal: metrics.auc(scores, signal),
        lambda scores, signal: metrics.signal_efficiency(metrics.roc(scores, signal), 0.1),
        lambda scores, signal: metrics.signal_efficiency(metrics.roc(scores, signal), 0.01),
        lambda scores, signal: metrics.background_rejection(metrics.roc(scores, signal), 0.3),
        lambda scores, signal: metrics.background_rejection(metrics.roc(scores, signal), 0.5),
    ],
)
def test_errors_are_the_spread_over_test_sets(number):
    rng = np.random.default_rng(1)
    signal = np.arange(4000) < 1500
    found = [number(rng.normal(size=4000) + 1.5 * signal, signal) for _ in range(300)]
    spread = np.std([one.value for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(spread, rel=0.2)


def test_error_of_an_accuracy():
    probabilities = np.eye(2)[[0, 0, 1, 1]]
    one = metrics.accuracy(probabilities, np.array([0, 1, 1, 1]))
    assert (one.value, one.error) == (0.75, math.sqrt(0.75 * 0.25 / 4))


def test_zeros_and_ones_are_labels_too():
    for number in (metrics.auc, metrics.detection):
        assert number(SCORES, SIGNAL.astype(int)) == number(SCORES, SIGNAL)
    with pytest.raises(MetricError, match=r"signal must be true or false for each jet, got \[0, 1, 4\]"):
        metrics.auc(np.array([1.0, 2, 3]), np.array([0, 1, 4]))


def test_a_difference_of_areas_checks_both_scores():
    gap = metrics.auc_difference(SCORES, -SCORES, SIGNAL)
    assert gap.value == pytest.approx(13.5 / 16 - 2.5 / 16)
    with pytest.raises(MetricError, match="scores must be finite, got nan at jet 0"):
        metrics.auc_difference(SCORES, np.full(8, math.nan), SIGNAL)


def test_significance_improvement_needs_background_to_pass():
    scores, signal = np.arange(50.0), np.arange(50) >= 25
    assert math.isnan(metrics.significance_improvement(metrics.roc(scores, signal)).value)  # 25 background jets
    found = metrics.detection(np.arange(400.0), np.arange(400) % 2 == 0)
    assert math.isfinite(found["sic"].value)
    assert found["sic"].fold_sd > 0  # at the min_eps_b of all jets: 2.5 of a fold's 20


def test_few_background_jets_make_a_tight_cut_uncertain():
    rng = np.random.default_rng(0)
    signal = np.arange(60_000) < 10_000
    scores = rng.normal(size=60_000) + 2 * signal
    curve = metrics.roc(scores, signal)
    one = metrics.signal_efficiency(curve, 1e-3)  # 50 of 50,000 background jets
    binomial = math.sqrt(one.value * (1 - one.value) / 10_000)
    assert one.error > 2 * binomial


def test_significance_improvement_has_a_least_background():
    # One signal jet above everything would be infinitely significant.
    scores, signal = np.arange(1000.0), np.zeros(1000, bool)
    signal[-1] = True
    one = metrics.significance_improvement(metrics.roc(scores, signal))
    assert one.value == pytest.approx(1 / math.sqrt(metrics.MIN_BACKGROUND / 999))


def test_classes_and_their_mean():
    rng = np.random.default_rng(2)
    targets = np.repeat(np.arange(3), 200)
    probabilities = rng.dirichlet(np.ones(3), 600) + 0.3 * np.eye(3)[targets]
    found = metrics.classification(probabilities, targets, ["q", "g", "w"])
    assert found["accuracy"].value == accuracy_score(targets, probabilities.argmax(1))
    for column, name in enumerate("qgw"):
        assert found[f"auc_{name}"].value == pytest.approx(roc_auc_score(targets == column, probabilities[:, column]))
    assert found["auc"].value == pytest.approx(np.mean([found[f"auc_{name}"].value for name in "qgw"]))
    assert found["auc"].error == pytest.approx(np.mean([found[f"auc_{name}"].error for name in "qgw"]))


def test_of_two_classes_the_second_is_the_signal():
    probabilities = np.stack([1 - SCORES / 3, SCORES / 3], axis=1)
    found = metrics.classification(probabilities, SIGNAL.astype(int), ["qcd", "t"])
    assert set(found) == {"accuracy", *metrics.CURVE}
    assert found["auc"].value == pytest.approx(13.5 / 16)
    assert math.isnan(found["auc"].fold_sd)  # fewer than ten jets of a class


def test_folds_are_those_of_the_released_code():
    rng = np.random.default_rng(3)
    signal = rng.random(500) < 0.4
    scores = rng.normal(size=500) + signal
    folds = StratifiedKFold(10, shuffle=True, random_state=42).split(np.zeros(500), signal)
    aucs = [roc_auc_score(signal[rows], scores[rows]) for _, rows in folds]
    assert metrics.detection(scores, signal)["auc"].fold_sd == pytest.approx(np.std(aucs))


@pytest.mark.parametrize(
    ("scores", "signal", "words"),
    [
        ([1.0, 2.0], [True, True], "needs signal and background jets, got 2 and 0"),
        ([1.0, 2.0], [False, False], "needs signal and background jets, got 0 and 2"),
        ([1.0, math.nan], [True, False], "scores must be finite, got nan at jet 1"),
        ([1.0], [True, False], r"of the same jets, got shapes \(1,\) and \(2,\)"),
    ],
)
def test_bad_scores_are_named(scores, signal, words):
    with pytest.raises(MetricError, match=words):
        metrics.detection(np.array(scores), np.array(signal))


@pytest.mark.parametrize(
    ("probabilities", "words"),
    [
        (np.ones((4, 3)), r"of 4 jets and 2 classes, got shape \(4, 3\)"),
        (np.full((4, 2), math.nan), "probabilities must be finite, got .* at jet 0"),
    ],
)
def test_bad_probabilities_are_named(probabilities, words):
    with pytest.raises(MetricError, match=words):
        metrics.classification(probabilities, np.array([0, 1, 0, 1]), ["q", "g"])
    with pytest.raises(MetricError, match=r"targets must be columns 0 to 1, got \[-1, 0, 1\]"):
        metrics.classification(np.ones((3, 2)), np.array([0, 1, -1]), ["q", "g"])
    with pytest.raises(MetricError, match="every class must have a jet, g has none among 2"):
        metrics.classification(np.ones((2, 2)), np.array([0, 0]), ["q", "g"])


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, math.nan])
def test_impossible_shares_are_refused(share):
    curve = metrics.roc(SCORES, SIGNAL)
    with pytest.raises(MetricError, match="eps_b must be in"):
        metrics.signal_efficiency(curve, share)
    if share != 1.0:
        with pytest.raises(MetricError, match="eps_s must be in"):
            metrics.background_rejection(curve, share)
        with pytest.raises(MetricError, match="min_eps_b must be > 0"):
            metrics.significance_improvement(curve, share)


def test_only_finite_uncertainties_are_kept():
    found = {"a": Measured(value=1.0, error=0.1), "b": Measured(value=1.0), "c": Measured(value=1.0, fold_sd=0.2)}
    assert metrics.uncertainties(found) == {"a": {"error": 0.1}, "c": {"fold_sd": 0.2}}

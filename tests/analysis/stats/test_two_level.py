"""Errors of seeds and of test jets, against numbers worked out by hand and against resampling itself."""

import numpy as np
import pytest

from analysis.stats.two_level import jet_covariance, jet_parts, levels
from jbot.data.jets import CLASSES
from jbot.data.splits import TARGETS
from jbot.evaluation.metrics import auc, classification


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_accuracy_by_jet():
    arrays = {"knn/probability": np.eye(5)[[0, 1, 2, 0]], "label": np.array([0, 1, 2, 3])}
    found = jet_parts("test/knn_accuracy", arrays, "all")
    assert found.value == 0.75
    assert found.parts.tolist() == [0.25, 0.25, 0.25, 0]


@pytest.mark.parametrize("metric", ["auc", "auc_g", "auc_t"])
def test_areas_by_jet_are_those_of_the_record(rng, metric):
    labels = rng.integers(5, size=300)
    probability = rng.dirichlet(np.ones(5), size=300) + 0.3 * np.eye(5)[labels]
    found = jet_parts(f"test/linear_{metric}", {"linear/probability": probability, "label": labels}, "all")
    classes = list(TARGETS["all"])
    assert found.value == pytest.approx(classification(probability, labels, classes, folds=False)[metric].value)


def test_error_of_an_area_is_delongs(rng):
    """Signal of one class, background of another: resampling within classes is what DeLong's variance describes."""
    labels = np.repeat([0, 1], [150, 250])
    probability = np.stack([1 - (p := rng.normal(labels)), p], axis=1)
    found = jet_parts("test/knn_auc", {"knn/probability": probability, "label": labels}, "qg")
    error = np.sqrt(jet_covariance(found.parts[None], labels)[0, 0])
    assert error == pytest.approx(auc(p, labels == 1).error)


def test_anomaly_scores_by_jet(rng):
    labels = np.repeat(np.arange(5), 60)
    score = rng.normal(labels)
    arrays = {"anomaly/knn": score, "label": labels}
    whole = jet_parts("test/anomaly_knn_auc", arrays, "qg")
    assert whole.value == pytest.approx(auc(score, labels >= 2).value)
    name = CLASSES[3]
    one = jet_parts(f"test/anomaly_knn_auc_{name}", arrays, "qg")
    used = labels != 2
    used &= labels != 4
    assert one.value == pytest.approx(auc(score[used], labels[used] == 3).value)


@pytest.mark.parametrize(
    "metric",
    ["test/knn_sic", "test/kmeans_ami", "untrained/test/knn_accuracy", "test/linear_accuracy", "test/anomaly_x_auc"],
)
def test_other_metrics_have_no_parts(metric):
    arrays = {"knn/probability": np.eye(5), "label": np.arange(5)}
    assert jet_parts(metric, arrays, "all") is None


def test_covariance_is_that_of_resampled_jets(rng):
    strata = np.repeat([0, 1], [40, 60])
    parts = (rng.normal(size=(3, 100)) + rng.normal(size=100) + 5 * strata) / 100
    of_strata = [np.flatnonzero(strata == one) for one in (0, 1)]
    draws = [np.concatenate([rng.choice(jets, len(jets)) for jets in of_strata]) for _ in range(4000)]
    drawn = np.array([(parts @ (np.bincount(jets, minlength=100) - 1)).mean() for jets in draws])
    expected = jet_covariance(parts, strata).mean()
    # A variance of 4000 draws: 2.2%; n / (n - 1) of 40 and 60 jets: 2%.
    assert drawn.var() == pytest.approx(expected, rel=0.11)


def test_jets_alike_for_all_seeds_are_an_error_that_seeds_do_not_reduce():
    """By hand: two seeds, four jets of one class, the same right answers; sd of 0, 1/4 is 1/8 * sqrt(4 / 3)."""
    parts = np.array([[0.25, 0.25, 0, 0], [0.25, 0.25, 0, 0]])
    found = levels("a", np.array([0.5, 0.7]), parts, np.zeros(4, int))
    assert found.jet_error == pytest.approx(np.sqrt(4 * (1 / 8) ** 2 * 4 / 3))
    assert found.one_trial == pytest.approx(found.jet_error)
    assert found.seeds.mean == pytest.approx(0.6)
    half = np.hypot(found.seeds.high - 0.6, 1.959964 * found.jet_error)
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half))


def test_jets_unlike_between_seeds_are_in_the_spread_of_seeds_already():
    parts = np.array([[0.25, 0, 0, 0], [0, 0.25, 0, 0], [0, 0, 0.25, 0]])
    found = levels("a", np.array([0.5, 0.6, 0.7]), parts, np.zeros(4, int))
    assert found.jet_error == 0
    assert (found.low, found.high) == pytest.approx((found.seeds.low, found.seeds.high))

"""ROC curves and distributions of scores: what they show, and what they survive."""

import math

import numpy as np
import pytest
from drawn import legend, texts
from scipy.stats import beta

from analysis.plots import roc as plots
from jbot.evaluation.metrics import background_rejection, roc


def test_rejection_by_hand():
    """Background 1 2 3 4, signal 3.5 4.5: half the signal passes no background, all of it passes one of four."""
    scores, positive = np.array([1, 2, 3, 4, 3.5, 4.5]), np.array([0, 0, 0, 0, 1, 1], dtype=bool)
    rejection, low, high = plots.rejection_band(scores, positive, np.array([0.25, 1.0]))
    assert np.isnan(rejection[0])  # none of four passes: no measurement
    assert rejection[1] == pytest.approx(4.0)
    tail = (1 - math.erf(1 / math.sqrt(2))) / 2
    assert low[1] == pytest.approx(1 / beta.ppf(1 - tail, 2, 3))
    assert high[1] == pytest.approx(1 / beta.ppf(tail, 1, 4))


def test_scores_that_are_all_equal_reject_nothing():
    positive = np.arange(1000) % 2 == 0
    for line in plots.rejection_band(np.ones(1000), positive, np.array([0.1, 0.5, 1.0])):
        np.testing.assert_allclose(line, 1, atol=0.01)


@pytest.mark.parametrize("ties", [False, True])
def test_the_line_goes_through_the_numbers_of_the_tables(ties):
    rng = np.random.default_rng(0)
    positive = np.arange(600) % 2 == 0
    scores = rng.normal(size=600) + positive
    scores = np.round(scores) if ties else scores
    found, low, high = plots.rejection_band(scores, positive, np.array([0.3, 0.5]))
    curve = roc(scores, positive)
    for value, eps_s in zip(found, (0.3, 0.5), strict=True):
        assert value == pytest.approx(background_rejection(curve, eps_s).value)
    assert ((low < found) & (found < high)).all()


def test_signals_that_cannot_be_judged_have_no_line():
    rng = np.random.default_rng(0)
    scores, positive = rng.normal(size=200), rng.random(200) < 0.5
    broken = np.where(positive, scores, np.nan)
    figure = plots.rejection_curves(
        {"W": (scores, positive), "Z": (scores, ~positive & positive), "t": (broken, positive)}
    )
    assert legend(figure) == ["guessing", "W"]


def test_histograms_are_normalised_and_hold_their_tails():
    rng = np.random.default_rng(0)
    figure = plots.score_histograms({"x": {"background": np.append(rng.normal(size=999), 1e6)}})
    (step,) = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    values, edges, _ = step.get_data()
    assert np.sum(values * np.diff(edges)) == pytest.approx(1)
    assert edges[-1] < 10


@pytest.mark.parametrize(
    ("scores", "edges"),
    [
        ([], [0, 1]),
        ([3, 3, 3], [2.5, 3.5]),
        ([0, 1, 0, 3], [-0.5, 0.5, 2, 4]),
    ],
)
def test_few_values_have_a_bin_each(scores, edges):
    np.testing.assert_allclose(plots.histogram_edges(np.array(scores, dtype=float)), edges)


@pytest.mark.parametrize("values", [np.ones(50), np.full(50, np.nan), np.linspace(0, 1, 50), np.arange(50) % 3.0])
def test_any_scores_can_be_drawn(values):
    for panels in ({"s": {"background": values, "W": values[:0]}}, {"P(q)": {"q": values}, "P(g)": {"g": values}}):
        assert "density" in texts(plots.score_histograms(panels, "probability"))

import numpy as np
import pytest
import torch
from conftest import make_jets

from jbot.evaluate import (
    FINAL_METRICS,
    Evaluator,
    LabeledJets,
    attention_entropy,
    clustering,
    effective_rank,
    embed,
    knn_probe,
    linear_probe,
    spread,
)
from jbot.model import encode, unpack
from jbot.train import TrialFailed, init_state

CPU = torch.device("cpu")
LINE = np.array([[0.0], [0.1], [0.2], [1.0], [1.1], [1.2]], np.float32)
SIDES = np.array([0, 0, 0, 1, 1, 1])


def test_knn_by_hand():
    # Neighbours of 0.05: two of class 0 and 0.2; of 0.65: 0.2 | 1.0, 1.1 -> class 1 by two votes of three.
    jets, labels = np.array([[0.05], [0.66], [1.05]], np.float32), np.array([0, 0, 1])
    metrics = knn_probe(LINE, SIDES, jets, labels, k=3)
    assert metrics["knn_accuracy"] == pytest.approx(2 / 3)
    assert metrics["knn_auc"] == pytest.approx(1.0)  # votes for class 1: 0, 2/3, 1


def test_knn_with_fewer_jets_than_k():
    assert knn_probe(LINE, SIDES, LINE, SIDES, k=30)["knn_auc"] == pytest.approx(0.5)


def test_linear_probe_separates_a_line_and_not_noise():
    assert linear_probe(LINE, SIDES, LINE, SIDES)["linear_accuracy"] == 1.0
    rng = np.random.default_rng(0)
    noise, labels = rng.normal(size=(2000, 4)).astype(np.float32), rng.integers(0, 5, 2000)
    held_out = linear_probe(noise[:1000], labels[:1000], noise[1000:], labels[1000:])
    assert abs(held_out["linear_accuracy"] - 0.2) < 0.05
    assert abs(held_out["linear_auc"] - 0.5) < 0.05


def test_classes_outside_the_bank_do_not_count():
    jets, labels = np.array([[0.0], [1.1], [9.0]], np.float32), np.array([0, 1, 4])
    assert knn_probe(LINE, SIDES, jets, labels, k=1)["knn_accuracy"] == 1.0


def test_clustering_of_separate_clusters_is_perfect_and_of_noise_zero():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 40)
    tight = (10 * np.eye(5)[labels] + 0.01 * rng.normal(size=(200, 5))).astype(np.float32)
    metrics = clustering(tight, labels, np.random.default_rng(1))
    assert metrics["kmeans_ami"] == pytest.approx(1.0)
    assert metrics["silhouette"] > 0.99
    noise = clustering(rng.normal(size=(500, 5)).astype(np.float32), rng.integers(0, 5, 500), np.random.default_rng(1))
    assert abs(noise["kmeans_ami"]) < 0.03


def test_effective_rank_limits():
    assert effective_rank(np.ones((10, 4), np.float32)) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(np.tile(np.eye(4, dtype=np.float32), (5, 1))) == pytest.approx(4.0, abs=1e-3)


def test_spread_limits():
    assert spread(np.ones((10, 3), np.float32)) == pytest.approx(0.0, abs=1e-6)
    assert spread(np.array([[1, 0], [-5, 0]], np.float32)) == pytest.approx(1.0)


def test_embedding_is_the_raw_cls_token(tiny):
    state = init_state(tiny, [0], CPU)
    jets = torch.from_numpy(make_jets(700, 1))  # more than one chunk
    every = encode(unpack(state.student, tiny.model), jets[None], tiny.model).unflatten(1, (700, 31))
    np.testing.assert_allclose(embed(state.student, jets, tiny), every[0, :, 0].numpy(), atol=1e-5)


def test_attention_of_an_untrained_first_layer_is_uniform(tiny):
    state = init_state(tiny, [0], CPU)
    jets = torch.from_numpy(make_jets(50, 1))
    assert attention_entropy(state.student, jets, tiny) > 0.99
    state.student.mul_(20)
    assert attention_entropy(state.student, jets, tiny) < 0.9


def test_evaluator_keys_and_failure(tiny):
    labels = np.arange(60) % 5
    jets = LabeledJets(particles=torch.from_numpy(make_jets(60, 1)), labels=labels)
    evaluator, state = Evaluator(tiny, jets, jets, jets), init_state(tiny, [0], CPU)
    assert {"val/knn_accuracy", "val/spread", "val/attention_entropy"} <= set(evaluator.curve_point(state))
    final = evaluator.final(state)
    assert set(final) == {f"test/{name}" for name in FINAL_METRICS}
    assert all(np.isfinite(value) for value in final.values())
    assert final == evaluator.final(state)
    state.student.fill_(float("nan"))
    with pytest.raises(TrialFailed, match="embedding is not finite after epoch 0"):
        evaluator.curve_point(state)

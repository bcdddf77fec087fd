"""Anomaly scores in the learning curves: on signal jets of their own, which are neither test jets nor a choice."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from jbot.config import Config, ConfigError, override
from jbot.data import CLASSES, DataError, split
from jbot.evaluation.anomaly import scores
from jbot.evaluation.evaluator import Evaluator
from jbot.evaluation.metrics_registry import SIGNALS, STANDARD_SCORES, find_metric
from jbot.trainer.inputs import prepare
from jbot.trainer.state import init_state

SIZES = {"task": "qg", "train": 200, "val": 60, "test": 50}
LABELS = np.repeat(np.arange(5), 200)


def test_signal_jets_leave_all_other_parts_as_they_were():
    without, having = split(LABELS, **SIZES), split(LABELS, **SIZES, signal=31)
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(without, part), getattr(having, part))
    assert (len(without.signal), len(having.signal)) == (0, 31)
    assert set(LABELS[having.signal]) == {CLASSES.index(name) for name in ("w", "z", "t")}
    parts = np.concatenate([having.train, having.val, having.test, having.signal])
    assert len(set(parts)) == len(parts)
    np.testing.assert_array_equal(split(LABELS, **SIZES, signal=60).signal[:30], having.signal[:30])


def test_another_task_has_none():
    with pytest.raises(DataError, match="task 'all' has no signal jets, got signal = 3"):
        split(LABELS, task="all", train=10, val=10, test=10, signal=3)
    with pytest.raises(ConfigError, match=r"data\.signal_jets must be 0, or at least 3 with data.task qg, got 9"):
        override(Config(), {"data.signal_jets": 9})
    with pytest.raises(ConfigError, match="got 2"):
        override(Config(), {"data.signal_jets": 2, "data.task": "qg"})


@pytest.fixture
def evaluated(tiny, tiny_data):
    """Makes an evaluator of the task qg with so many signal jets, and an untrained encoder."""

    def make(signal):
        sizes = {"train_jets": 100, "val_jets": 10, "test_jets": 10, "signal_jets": signal}
        config = override(tiny, {"data.task": "qg", **{f"data.{name}": size for name, size in sizes.items()}})
        particles = torch.from_numpy(tiny_data.particles)
        _, splits = prepare(config.data, config.bank_jets, data=tiny_data, particles=particles)
        return Evaluator(config, **splits), init_state(config, [0], torch.device("cpu"))

    return make


def test_curves_hold_the_auc_of_each_score_and_signal_beside_what_they_held(evaluated):
    (plain, state), (followed, _) = evaluated(0), evaluated(30)
    before, point = plain.curve_point(state), followed.curve_point(state)
    assert not [name for name in before if "anomaly" in name]
    more = {name: value for name, value in point.items() if name not in before}
    assert {name: point[name] for name in before} == before
    signals = ["" if name == "combined" else f"_{name}" for name in SIGNALS]
    assert set(more) == {f"signal/anomaly_{score}_auc{on}" for score in STANDARD_SCORES for on in signals} | {
        f"val/anomaly_{score}_overlay_auc" for score in STANDARD_SCORES
    }
    assert all(0 <= value <= 1 and find_metric(name).declared for name, value in more.items())


def test_they_are_the_scores_of_these_jets(evaluated):
    evaluator, state = evaluated(30)
    (bank, _), (val, _), (signal, _) = (
        evaluator._embed(state, jets) for jets in (evaluator.bank, evaluator.val, evaluator.signal)
    )
    unit = [jets / jets.norm(dim=1, keepdim=True) for jets in (bank, torch.cat((val, signal)))]
    k = scores.SCORES["knn"].defaults["k"]
    nearest = torch.cdist(unit[1].double(), unit[0].double()).topk(k, largest=False).values.mean(1)
    expected = roc_auc_score([0] * len(val) + [1] * len(signal), nearest.numpy())
    assert evaluator.curve_point(state)["signal/anomaly_knn_auc"] == pytest.approx(expected, abs=1e-3)


def test_a_collapsed_encoder_has_curves_without_anomaly_scores(evaluated):
    evaluator, state = evaluated(30)
    state.student.zero_()
    assert not [name for name in evaluator.curve_point(state) if "anomaly" in name]

"""What keys mean: every key that an evaluator emits is declared, and its words, bounds and direction are known."""

import math

import pytest

from jbot.config import Config, override
from jbot.evaluation import metrics_registry as registry
from jbot.evaluation.metrics_registry import find_metric, metric_key, metric_names

TASKS = [
    {"data.task": "all", "finetune.fractions": (0.1, 0.025, 1.0), "probe.jet_pts": (500.0, 1000.0)},
    {"data.task": "tqg", "finetune.fractions": (0.1, 1.0)},
    {"data.task": "qg", "anomaly.scan": True},
]


@pytest.mark.parametrize("changes", TASKS)
def test_every_metric_of_a_record_is_declared_with_words_of_its_own(changes):
    names = metric_names(override(Config(), changes))
    metrics = [find_metric(name) for name in names]
    assert all(metric.declared for metric in metrics)
    assert len({metric.full_label for metric in metrics}) == len(names)
    labels = [metric.full_label for metric in metrics]
    assert not [word for word in labels if "_" in word or "auc" in word or "eps" in word or "knn" in word]


@pytest.mark.parametrize("baseline", registry.BASELINES)
@pytest.mark.parametrize("changes", TASKS)
def test_a_baseline_means_the_same_of_another_encoder(baseline, changes):
    for name in metric_names(override(Config(), changes)):
        metric, own = find_metric(f"{baseline}/{name}"), find_metric(name)
        assert (metric.baseline, metric_key(metric.name, metric.split)) == (baseline, name)
        assert (metric.label, metric.bounds, metric.higher_is_better) == (own.label, own.bounds, own.higher_is_better)


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("test/knn_accuracy", "k-NN accuracy on test jets"),
        ("val/linear_auc", "linear-probe AUC on validation jets"),
        ("untrained/test/nc1", "neural collapse NC1 on test jets"),
        ("test/finetune_100_auc", "fine-tuning on 100% of labels, AUC on test jets"),
        ("test/supervised_2.5_accuracy", "supervised baseline on 2.5% of labels, accuracy on test jets"),
        ("test/knn_eps_s_0.01_w", "k-NN, signal efficiency at background 0.01 (W) on test jets"),
        ("raw/test/linear_rejection_0.5_z",
         "linear probe, background rejection at signal efficiency 0.5 (Z) on test jets"),
        ("test/anomaly_knn_auc_t", "anomaly AUC, k-NN (t) on test jets"),
        ("test/anomaly_relative_mahalanobis_labels_chosen_auc",
         "anomaly AUC at chosen settings, relative Mahalanobis with labels on test jets"),
        ("shifted_500/knn_auc", "k-NN AUC on test jets of 500 GeV, by probes of another energy"),
        ("finetune_10/val_loss", "fine-tuning on 10% of labels, loss on validation jets"),
        ("finetune_10/epoch", "fine-tuning on 10% of labels, epoch"),
        ("device_seconds", "device seconds"),
    ],
)  # fmt: skip
def test_labels(key, label):
    found = find_metric(key)
    assert (found.full_label, found.declared) == (label, True)


def test_parts_of_a_key():
    found = find_metric("untrained/test_500/anomaly_gmm_eps_s_0.01_w")
    parts = (found.baseline, found.split, found.source, found.kind, found.measure, found.cut, found.on)
    assert parts == ("untrained", "test_500", "anomaly_gmm", "anomaly", "eps_s", "0.01", "w")
    assert found.name == "anomaly_gmm_eps_s_0.01_w"
    assert find_metric("test/anomaly_mahalanobis_labels_auc").source == "anomaly_mahalanobis_labels"
    assert find_metric("test/finetune_2.5_accuracy").source == "finetune_2.5"
    assert find_metric("test_500/knn_auc").on_validation == "val/knn_auc"
    assert metric_key("knn_auc", "", "untrained") == "untrained/knn_auc"


@pytest.mark.parametrize(
    "key", ["test/own_number", "knn", "test/knn_accuracy_0.1_w_w", "x/y/z", "test/finetune_10", ""]
)
def test_a_key_that_nobody_declared_stands_for_itself(key):
    found = find_metric(key)
    assert not found.declared
    assert found.label == key.rpartition("/")[2].replace("_", " ")
    assert found.bounds == (-math.inf, math.inf)
    assert found.higher_is_better is None


def test_bounds_of_a_difference():
    assert find_metric("test/knn_auc_w").bounds == find_metric("test_500/linear_accuracy").bounds == (0, 1)
    assert find_metric("test/knn_accuracy").difference_bounds == (-1, 1)
    assert find_metric("test/silhouette").difference_bounds == (-2, 2)
    assert find_metric("test/effective_rank").difference_bounds == (-math.inf, math.inf)


def test_details_are_all_numbers_of_a_curve_but_its_area():
    names = ["knn_accuracy", "knn_auc", "anomaly_gmm_auc", "kmeans_ami", "hubness", "finetune_10_accuracy"]
    assert not [name for name in names if find_metric(metric_key(name)).is_detail]
    details = ["knn_auc_w", "knn_sic", "knn_eps_s_0.1", "linear_rejection_0.5_t", "anomaly_gmm_auc_w"]
    details += ["anomaly_gmm_chosen_auc", "anomaly_gmm_oracle_auc_t", "anomaly_gmm_optimism", "finetune_10_sic"]
    assert all(find_metric(metric_key(name)).is_detail for name in details)

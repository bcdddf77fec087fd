"""A study of one arm: spread over seeds against formulas, gains of training, milestones of simulated curves."""

import math

import numpy as np
import pytest
from scipy import stats
from simulated import FAILED, make_plan, simulate

from analysis.report.sections import seed_variation
from analysis.stats import paired

SD = 0.04


def normal(config, seed, rng):
    return 0.5 + SD * rng.normal()


def more(score):
    """Better in all but the silhouette, which does not change, and the AMI, which gets worse."""
    return {
        "test/knn_auc": 0.5 + score / 2,
        "test/kmeans_ami": 0.1,
        "test/silhouette": 0.02,
        "test/nc1": 3 - score,
        "test/effective_rank": 9 + score,
        "untrained/test/knn_accuracy": 0.3,
        "untrained/test/kmeans_ami": 0.1 + score / 10,
        "untrained/test/silhouette": 0.02,
        "untrained/test/nc1": 8.0,
        "untrained/test/effective_rank": 1.3,
        "raw/test/knn_accuracy": 0.41,
    }


def curves(epochs):
    def rows(score):
        return [
            {
                "epoch": epoch,
                "device_seconds": 2.0 * epoch,
                "val/knn_accuracy": 0.3 + (score - 0.3) * epoch / max(epochs),
                "val/effective_rank": 1.0 + epoch,
                "train/loss": 1.0,
            }
            for epoch in epochs
        ]

    return rows


def baseline(tmp_path, n=8, **options):
    return simulate(tmp_path, make_plan({"base": {}}, seeds=n), normal, more=more, **options)


def test_interval_of_a_standard_deviation_covers():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        low, high = paired.deviation_interval(float(rng.normal(size=6).std(ddof=1)), 6)
        hits += low <= 1 <= high
    assert 0.93 <= hits / 1000 <= 0.97
    assert paired.deviation_interval(1.0, 10)[0] == pytest.approx(math.sqrt(9 / stats.chi2.ppf(0.975, 9)))
    assert np.isnan(paired.deviation_interval(math.nan, 1)).all()


def test_detectable_difference_follows_the_correlation():
    """80% power at 20 seeds takes 0.66 sd of the difference (STATISTICS), which is sqrt(2 (1 - r)) sd of an arm."""
    assert seed_variation.detectable(1.0, 20) == pytest.approx(0.66 * math.sqrt(2), abs=0.01)
    assert seed_variation.detectable(2.0, 20, 0.5) == pytest.approx(2 * 0.66, abs=0.015)
    assert seed_variation.detectable(1.0, 8, 1.0) == 0
    assert seed_variation.detectable(1.0, 5) == math.inf  # no p-value of five seeds is below 0.05


def test_spread_of_every_metric_beside_the_error_of_test_jets(tmp_path):
    evidence = baseline(tmp_path)
    made = seed_variation.section(evidence)
    spread = made.tables[0]
    rows = {row[0]: row for row in spread.rows}
    scores = evidence.scores["base"]
    assert spread.rows[0][0] == "k-NN accuracy on test jets"
    assert float(rows["k-NN accuracy on test jets"][3]) == pytest.approx(scores.std(), rel=0.05)
    assert rows["k-NN accuracy on test jets"][5] == "0.008"
    assert rows["k-NN AUC on test jets"][5] == "–"
    assert float(rows["k-NN accuracy on test jets"][7]) == pytest.approx(
        seed_variation.detectable(scores.std(), 8), rel=0.05
    )
    assert "effective rank on test jets" in rows
    times = f"{scores.std() / 0.008:.2g}"
    assert (
        f"The error of one trial from its test jets is 0.008: seeds move it {times} times as far." in made.sentences[0]
    )
    assert [row[0] for row in made.tables[1].rows] == ["0", "0.5", "0.9", "0.99"]


def test_gains_of_training_are_paired_and_tested(tmp_path):
    gains = {gain.metric: gain for gain in seed_variation.trained_gains(*trials_and_plan(baseline(tmp_path)))}
    assert {metric: gain.outcome for metric, gain in gains.items()} == {
        "test/knn_accuracy": "better",
        "test/kmeans_ami": "worse",
        "test/silhouette": "not shown",
        "test/nc1": "better",
        "test/effective_rank": "larger",
    }
    assert gains["test/silhouette"].change.p == 1
    assert gains["test/knn_accuracy"].change.p == pytest.approx(2 / 2**8 * 5 / 4)


def trials_and_plan(evidence):
    return evidence.trials, evidence.study.plan


def test_sentences_name_what_is_better_and_what_is_not(tmp_path):
    line = next(line for line in seed_variation.section(baseline(tmp_path)).sentences if "untrained encoder" in line)
    assert "better in k-NN accuracy and neural collapse NC1; worse in k-means AMI; not shown for silhouette" in line
    assert "Clustering emerges" not in line


def test_milestones_are_the_epochs_that_exist(tmp_path):
    evidence = baseline(tmp_path, curves=curves((0, 1, 2, 4, 10, 20)))
    points = seed_variation.milestones(evidence.curves, evidence.study.plan)
    assert list(points) == ["val/knn_accuracy", "val/effective_rank"]
    assert list(points["val/knn_accuracy"].columns) == [0, 1, 10, 20]
    assert list(points["val/effective_rank"].mean()) == [1, 2, 11, 21]
    made = seed_variation.section(evidence)
    assert "of that way it has gone 5% after 1 epoch and 50% after 10 epochs" in made.sentences[-1]
    assert made.tables[-1].head == ["metric", "untrained", "epoch 1", "epoch 10", "epoch 20"]
    assert [picture.name for picture in made.figures] == ["emergence", "untrained-and-trained"]


def test_failed_trials_enter_nothing(tmp_path):
    evidence = baseline(tmp_path, changes={("base", 2): FAILED, ("base", 5): None}, curves=curves((0, 1)))
    plan = evidence.study.plan
    assert len(seed_variation.metric_values(evidence.trials, plan)["test/knn_accuracy"]) == 6
    assert list(seed_variation.milestones(evidence.curves, plan)["val/knn_accuracy"].index) == [0, 1, 3, 4, 6, 7]
    assert {gain.change.interval.n for gain in seed_variation.trained_gains(evidence.trials, plan)} == {6}


def test_one_seed_and_no_curves(tmp_path):
    made = seed_variation.section(baseline(tmp_path, n=1))
    assert made.sentences[0].startswith("One seed has ended")
    assert made.tables[0].rows[0][3:5] == ["–", "–"]
    assert [picture.name for picture in made.figures] == ["untrained-and-trained"]


def test_few_seeds_say_what_they_cannot_show(tmp_path):
    text = " ".join(seed_variation.section(baseline(tmp_path, n=4)).sentences)
    assert "4 seeds cannot show more: the smallest p they can reach is 0.12" in text


def test_no_such_section(tmp_path):
    two = make_plan({"base": {}, "none": {"mask.scheme": "none"}}, seeds=2)
    assert seed_variation.section(simulate(tmp_path, two, normal)) is None
    alone = make_plan({"base": {}}, seeds=2, study="alone")
    assert (
        seed_variation.section(simulate(tmp_path, alone, normal, {("base", seed): FAILED for seed in (0, 1)})) is None
    )

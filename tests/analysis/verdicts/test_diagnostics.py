"""Failure signatures from records in a storage: each one there, and not there, and in the page."""

import math

import numpy as np
import pytest
from test_report import make_plan, planned_trials, write_study

from analysis.report import build
from analysis.verdicts import diagnostics
from analysis.verdicts.diagnostics import CHECKS, absent_line, chance_of, confusion_matrix, diagnose, mutual_confusion
from jbot.data import CLASSES
from jbot.store.plan import load_study
from jbot.store.record import trial_folder
from jbot.store.storage import RecordError, Storage
from jbot.trainer import loop

HEALTHY = {
    "test/knn_accuracy": 0.60,
    "test/linear_accuracy": 0.62,
    "untrained/test/knn_accuracy": 0.35,
    "untrained/test/linear_accuracy": 0.45,
    "test/spread": 0.8,
    "test/effective_rank": 12.0,
    "test/anisotropy": 0.6,
    "test/attention_entropy": 0.6,
    "test/finetune_10_accuracy": 0.66,
    "test/finetune_100_accuracy": 0.70,
    "test/supervised_10_accuracy": 0.55,
    "test/supervised_100_accuracy": 0.69,
}
ARM = "momentum"


def one_arm(**changes):
    return make_plan(arms={ARM: {}}, contrasts=(), **{"seeds": (0,)} | changes)


def study_of(root, changes=None, scores=None, plan=None, healthy=HEALTHY):
    """A study of one arm. `changes` maps a seed to fields of its record, `scores` to its scores."""
    plan = plan or one_arm()
    fields = {(ARM, seed): {"metrics": healthy} | (changes or {}).get(seed, {}) for seed in plan.seeds}
    folder = write_study(root, plan, changes=fields)
    for trial in planned_trials(plan):
        if trial.seed in (scores or {}):
            Storage(root).write_arrays(f"{trial_folder(trial.trial_id)}/scores.safetensors", scores[trial.seed])
    return load_study(str(folder))


def with_metrics(**changes):
    """Metrics of a healthy trial but for these; ``test/`` in front of each."""
    return {"metrics": HEALTHY | {f"test/{name}": value for name, value in changes.items()}}


def named(study):
    return [(item.check, item.seed, item.case.subject) for item in diagnose(study).found]


def said(label, probability_of_truth, instead=None, classes=5):
    """Class probabilities of a probe that gives `instead[label]` to all jets but a share of each class."""
    label, rng = np.asarray(label), np.random.default_rng(0)
    right = rng.random(len(label)) < probability_of_truth
    wrong = np.asarray([(instead or {}).get(int(c), (int(c) + 1) % classes) for c in label])
    return np.eye(classes, dtype=np.float32)[np.where(right, label, wrong)]


LABELS = np.arange(5000) % 5


def test_a_healthy_trial_has_none(tmp_path):
    study = study_of(tmp_path, scores={0: {"label": LABELS, "knn/probability": said(LABELS, 0.7)}})
    found = diagnose(study)
    assert found.found == []
    assert {name: looked[ARM] for name, looked in found.looked.items()} == dict.fromkeys(CHECKS, 1)
    assert absent_line(found) == "None found. Looked for: " + ", ".join(f"{name} (1 trial)" for name in CHECKS) + "."


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (with_metrics(spread=0.009), ("collapse", 0, "spread of the embedding")),
        (with_metrics(effective_rank=1.05), ("collapse", 0, "effective rank")),
        (with_metrics(effective_rank=1.3, anisotropy=0.9999), ("dimensional collapse", 0, "the embedding")),
        (with_metrics(attention_entropy=0.995), ("uniform attention", 0, "every head")),
        (
            with_metrics(finetune_10_accuracy=0.6),
            ("fine-tuning below the frozen embedding", 0, "fine-tuning on 10% of labels"),
        ),
        (
            with_metrics(finetune_100_accuracy=0.65),
            ("fine-tuning below its supervised baseline", 0, "fine-tuning on 100% of labels"),
        ),
        (with_metrics(supervised_10_accuracy=0.2), ("classifier at chance", 0, "supervised baseline on 10% of labels")),
        (with_metrics(knn_accuracy=0.3), ("trained encoder below the untrained one", 0, "k-NN")),
        (with_metrics(linear_accuracy=0.4), ("trained encoder below the untrained one", 0, "linear probe")),
    ],
)
def test_each_check_of_metrics_alone(tmp_path, changes, expected):
    assert named(study_of(tmp_path, {0: changes})) == [expected]


@pytest.mark.parametrize(
    "changes",
    [
        with_metrics(spread=0.011, effective_rank=1.15, attention_entropy=0.985),
        with_metrics(finetune_10_accuracy=0.6195, supervised_100_accuracy=0.7001),
        with_metrics(knn_accuracy=0.35),
    ],
)
def test_just_inside_the_thresholds_there_is_none(tmp_path, changes):
    assert named(study_of(tmp_path, {0: changes})) == []


def point(**changes):
    return {"val/spread": 0.5, "train/teacher_entropy": 1.0, "val/attention_entropy": 0.5} | changes


def test_chance_is_the_share_of_the_most_frequent_target():
    assert [chance_of(task) for task in ("all", "tqg", "qg")] == [0.2, 0.5, 0.5]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (point(**{"val/spread": 1e-4}), ["collapse"]),
        (point(**{"train/teacher_entropy": 1e-4}), ["collapse"]),
        (point(**{"val/attention_entropy": 0.99995}), ["collapse", "uniform attention"]),
    ],
)
def test_a_failed_trial_is_named_by_the_reason_that_training_gives(tmp_path, row, expected):
    reason = f"collapsed: {loop.collapse(row, point())} after epoch 3"
    found = diagnose(study_of(tmp_path, {0: {"state": "failed", "reason": reason, "metrics": {}}})).found
    assert [item.check for item in found] == expected
    assert all(item.case.evidence == reason for item in found)


def test_a_trial_that_diverged_did_not_collapse(tmp_path):
    diverged = {"state": "failed", "reason": "diverged: train/loss is not finite in epoch 2", "metrics": {}}
    found = diagnose(study_of(tmp_path, {0: diverged}))
    assert found.found == []
    assert found.looked["collapse"] == {ARM: 1}
    assert not found.looked["uniform attention"]


def test_a_collapse_is_named_before_training_fails_of_it():
    assert diagnostics.MIN_SPREAD > loop.MIN_SPREAD
    assert diagnostics.MAX_ATTENTION_ENTROPY < loop.MAX_ATTENTION_ENTROPY


def test_confusion_by_hand():
    truth, given = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 2, 1, 0, 2, 1])
    counts = confusion_matrix(truth, given, 3)
    assert counts.tolist() == [[1, 1, 1], [1, 1, 0], [0, 1, 1]]
    assert mutual_confusion(counts, 0, 1) == (2, 4)
    assert mutual_confusion(counts, 0, 2) == (1, 3)


def test_confused_classes_are_named_with_their_interval(tmp_path):
    w, z = CLASSES.index("w"), CLASSES.index("z")
    label = np.array([w] * 100 + [z] * 100 + [0] * 100)
    probability = np.eye(5, dtype=np.float32)[np.concatenate([[w] * 55, [z] * 45, [z] * 60, [w] * 40, [0] * 100])]
    scores = {"label": label, "linear/probability": probability, "anomaly/knn": np.ones(300, np.float32)}
    (finding,) = diagnose(study_of(tmp_path, scores={0: scores})).found
    assert (finding.check, finding.case.subject) == ("class confusion", "W and Z, linear probe")
    # Wilson, z = 1.96, 85 of 200: centre (0.425 + z^2 / 400) / (1 + z^2 / 200) = 0.42641, half width 0.06783
    assert finding.case.evidence == "85 of 200 decisions between them wrong: 42.5% (35.9% to 49.4%)"


@pytest.mark.parametrize("guess", [np.full(5000, 2), np.random.default_rng(1).integers(5, size=5000)])
def test_a_classifier_at_chance_confuses_no_classes(tmp_path, guess):
    scores = {"label": LABELS, "knn/probability": np.eye(5, dtype=np.float32)[guess]}
    assert named(study_of(tmp_path, scores={0: scores})) == []


def test_few_jets_do_not_show_a_confusion(tmp_path):
    label = np.array([2] * 10 + [3] * 10)
    probability = np.eye(5, dtype=np.float32)[np.array([2] * 5 + [3] * 10 + [2] * 5)]  # a half, but of 20
    assert named(study_of(tmp_path, scores={0: {"label": label, "knn/probability": probability}})) == []


@pytest.mark.parametrize(("task", "pair"), [("tqg", "q/g and t"), ("qg", "q and g")])
def test_confusion_between_the_targets_of_a_task(tmp_path, task, pair):
    plan = one_arm()
    plan.base["data"]["task"] = task
    label = LABELS if task == "qg" else np.tile([0, 1, 4, 4], 1250)
    position = {"tqg": np.array([0, 0, -1, -1, 1]), "qg": np.array([0, 1, 0, 0, 0])}[task][label]
    said_other = np.random.default_rng(0).random(len(label)) < 0.4
    scores = {
        "label": label,
        "knn/probability": np.eye(2, dtype=np.float32)[np.where(said_other, 1 - position, position)],
    }
    assert named(study_of(tmp_path, scores={0: scores}, plan=plan)) == [("class confusion", 0, f"{pair}, k-NN")]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"label": LABELS, "knn/probability": np.ones((5000, 3), np.float32)}, r"must be \(5000, 5\), got \(5000, 3\)"),
        ({"label": LABELS[:7], "knn/probability": np.ones((8, 5), np.float32)}, r"must be \(7, 5\), got \(8, 5\)"),
        ({"label": LABELS + 1, "knn/probability": np.ones((5000, 5), np.float32)}, "label must be 0 to 4"),
    ],
)
def test_damaged_scores_are_one_line(tmp_path, scores, message):
    study = study_of(tmp_path, scores={0: scores})
    with pytest.raises(RecordError, match=message):
        diagnose(study)


def test_the_error_of_an_accuracy_decides(tmp_path):
    plan = one_arm()
    plan.base["data"]["test_jets"] = 100  # binomial errors of 0.05: a gap of 0.05 is inside two, of 0.17 is not
    inside = study_of(tmp_path / "in", {0: with_metrics(finetune_10_accuracy=0.57)}, plan=plan)
    outside = study_of(tmp_path / "out", {0: with_metrics(finetune_10_accuracy=0.45)}, plan=plan)
    assert named(inside) == []
    assert named(outside) == [("fine-tuning below the frozen embedding", 0, "fine-tuning on 10% of labels")]
    error = math.sqrt(0.45 * 0.55 / 100 + 0.62 * 0.38 / 100)
    assert diagnose(outside).found[0].case.evidence == (
        f"accuracy 0.45 against 0.62 (linear probe): 0.17 ± {error:.2f} lower"
    )


def test_a_recorded_error_comes_before_the_binomial_one(tmp_path):
    wide = {f"test/{name}_accuracy": {"error": 0.1, "fold_sd": 0.3} for name in ("finetune_10", "linear")}
    changes = with_metrics(finetune_10_accuracy=0.54)
    assert named(study_of(tmp_path / "narrow", {0: changes})) != []
    assert named(study_of(tmp_path / "wide", {0: changes | {"uncertainties": wide}})) == []


def test_what_a_trial_did_not_leave_is_not_looked_for(tmp_path):
    only = {"test/knn_accuracy": 0.6, "test/finetune_10_accuracy": 0.7, "test/spread": 0.7}
    found = diagnose(study_of(tmp_path, healthy=only))
    assert found.found == []
    assert {name for name, looked in found.looked.items() if looked} == {
        "collapse",
        "classifier at chance",
        "fine-tuning below the frozen embedding",
    }
    assert absent_line(found) == (
        "None found. Looked for: collapse (1 trial), classifier at chance (1 trial), "
        "fine-tuning below the frozen embedding (1 trial). "
        "Not looked for, because no trial left what it takes: dimensional collapse, uniform attention, "
        "fine-tuning below its supervised baseline, trained encoder below the untrained one, class confusion."
    )


def test_the_page_tells_arm_by_arm_and_shows_the_worst_trial(tmp_path):
    changes = {0: with_metrics(spread=0.009), 2: with_metrics(spread=0.002)}
    study = study_of(tmp_path, changes, plan=one_arm(seeds=(0, 1, 2)))
    page = build.build_report(study, tmp_path / "out").read_text(encoding="utf-8")
    section = page[page.index('id="signatures"') : page.index('id="failures"')]
    cells = ["collapse", ARM, "spread of the embedding", "2 of 3", "0, 2"]
    assert all(f">{cell}<" in section for cell in cells)
    assert "spread of the embedding 0.002, below 0.01 (seed 2)" in section
    assert "Looked for and not found: dimensional collapse (3 trials), uniform attention (3 trials)" in section
    assert "collapse" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    rows = (tmp_path / "out" / "signatures.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "signature,arm,seed,trial_id,subject,evidence"
    assert len(rows) == 3


def test_the_page_of_a_healthy_study_has_one_line(tmp_path):
    page = build.build_report(study_of(tmp_path), tmp_path / "out").read_text(encoding="utf-8")
    section = page[page.index('id="signatures"') : page.index('id="failures"')]
    assert "<table>" not in section
    assert "None found. Looked for: collapse (1 trial), dimensional collapse (1 trial)" in section


def test_a_study_without_records_has_been_looked_at_for_nothing(tmp_path):
    plan = one_arm()
    study = load_study(str(write_study(tmp_path, plan, changes={(ARM, 0): None})))
    assert absent_line(diagnose(study)).startswith("Not looked for, because no trial left what it takes: collapse, ")

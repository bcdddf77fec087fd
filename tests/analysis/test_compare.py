"""Two result folders: bit-equal or not, and by how much."""

import json
import math
import shutil

import pandas as pd
import pytest
from scipy import stats
from simulated import FAILED, make_plan, simulate

from analysis import compare
from analysis.stats import paired
from jbot.store.plan import Contrast
from jbot.store.record import trial_folder
from jbot.store.storage import Storage

ARMS = {"momentum": {}, "random": {"mask.scheme": "random"}}
CONTRAST = Contrast(treatment="momentum", control="random", primary=True)
CURVE = [{"epoch": 0, "device_seconds": 1.0, "val/knn_accuracy": 0.3}, {"epoch": 1, "device_seconds": 2.0}]


def make(root, gain=0.0, changes=None, seeds=5, **plan):
    """A side: `gain` is added to every score."""
    plan = make_plan(ARMS, seeds=seeds, contrasts=(CONTRAST,), **plan)
    score = lambda config, seed, rng: 0.5 + 0.01 * seed + gain * (1 + 0.1 * seed)  # noqa: E731
    more = lambda value: {"test/kmeans_ami": 0.2}  # noqa: E731
    return simulate(root, plan, score, changes, more, curves=lambda value: CURVE).study


def run(*arguments):
    return compare.main([str(argument) for argument in arguments])


@pytest.fixture
def sides(tmp_path):
    return tmp_path / "a", tmp_path / "b"


def test_the_same_twice_is_equal_and_exit_code_0(sides, capsys, tmp_path):
    for side in sides:
        make(side)
    assert run(*sides, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "EQUAL. All metrics of 10 trials are bit-equal, and their curves too." in said
    assert "bit-equal" in (tmp_path / "out/compare.html").read_text()
    frame = pd.read_csv(tmp_path / "out/compare.csv")
    assert len(frame) == 20
    assert frame["equal"].all()


def test_a_gain_in_one_metric_is_measured_over_seeds(sides, capsys, tmp_path):
    make(sides[0])
    make(sides[1], gain=0.02)
    assert run(*sides, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert "DIFFERENT. 0 of 10 matched trials are bit-equal; curves of 0" in said
    assert "test/kmeans_ami" not in said  # it is the same
    ((found,), _) = compare.match(*map(str, sides))
    frame = compare.metric_table(found)
    mean = paired.mean_interval(compare.by_seed(frame[frame["metric"] == "test/knn_accuracy"]))
    # Both arms of a seed differ by the same: five numbers, not ten.
    gaps = [0.02 * (1 + 0.1 * seed) for seed in range(5)]
    low, high = stats.t.interval(0.95, 4, loc=sum(gaps) / 5, scale=stats.sem(gaps))
    assert (mean.n, mean.mean) == (5, pytest.approx(0.024))
    assert (mean.low, mean.high) == (pytest.approx(low), pytest.approx(high))
    (row,) = compare.metrics_section(found, frame).rows
    assert row[:2] == ["test/knn_accuracy", "0 of 10"]
    assert float(row[-1]) == pytest.approx(2 / 2**5, rel=0.05)


def test_one_bit_in_one_trial_is_a_difference(sides):
    studies = [make(side) for side in sides]
    trial = studies[1].trials[3].trial_id
    path = sides[1] / f"trials/{trial}/record.json"
    content = json.loads(path.read_text())
    content["metrics"]["test/kmeans_ami"] = math.nextafter(0.2, 1)
    path.write_text(json.dumps(content))
    assert run(*sides) == 1
    ((found,), _) = compare.match(*map(str, sides))
    assert [pair.equal for pair in found.pairs].count(False) == 1


@pytest.mark.parametrize("what", ["curves", "weights"])
def test_equal_metrics_of_another_training_are_not_equal(sides, what, capsys):
    studies = [make(side) for side in sides]
    folder = trial_folder(studies[0].trials[0].trial_id)
    for number, side in enumerate(sides):
        if what == "weights":
            Storage(side).write(f"{folder}/{compare.WEIGHTS}", bytes([number]))
        else:
            Storage(side).write_rows(f"{folder}/curves.parquet", [{"epoch": 0, "val/knn_accuracy": 0.3 + number}])
    assert run(*sides) == 1
    assert f"{'curves of 1' if what == 'curves' else 'final weights of 1'}" in " ".join(capsys.readouterr().out.split())


def test_equal_weights_of_one_trial_are_not_those_of_all(sides, capsys):
    studies = [make(side) for side in sides]
    for side in sides:
        Storage(side).write(f"{trial_folder(studies[0].trials[0].trial_id)}/{compare.WEIGHTS}", b"the same")
    assert run(*sides) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "All metrics of 10 trials are bit-equal, and their curves and weights of 1 that both sides have too." in said


def test_a_verdict_lost_to_failures_has_changed(sides):
    make(sides[0], gain=0.0, seeds=6)
    make(sides[1], seeds=6, changes={("random", seed): FAILED for seed in range(6)})
    ((found,), _) = compare.match(*map(str, sides))
    ((_, a, b, changed),) = compare.verdicts_section(found).rows
    assert (a.split(",")[0], b.split(",")[0], changed) == ("equivalent", "failed", "CHANGED")


def test_times_are_told_and_make_no_difference(sides, capsys):
    make(sides[0])
    slower = {(arm, seed): {"device_seconds": 50.0} for arm in ARMS for seed in range(5)}
    make(sides[1], changes=slower)
    rows = [row | {"device_seconds": 9.0} for row in CURVE]
    for folder in (sides[1] / "trials").iterdir():
        Storage(sides[1]).write_rows(f"trials/{folder.name}/curves.parquet", rows)
    assert run(*sides) == 0
    assert "B takes 2.00 times A" in capsys.readouterr().out


def test_what_only_one_side_has_is_named(sides, capsys):
    make(sides[0])
    make(sides[1], changes={("random", 4): None, ("momentum", 0): FAILED})
    assert run(*sides) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "ended only in A: 1 trial (random at seed 4)" in said
    assert "momentum at seed 0: complete in A, failed (loss is not finite at step 12) in B" in said


def test_another_config_or_trainer_is_told_as_a_reason(sides, capsys):
    make(sides[0])
    newer = {(arm, seed): {"trainer_version": "2"} for arm in ARMS for seed in range(5)}
    make(sides[1], changes=newer, base={"optim.lr": 1e-3})
    assert run(*sides) == 0  # the scores are the same all the same
    said = " ".join(capsys.readouterr().out.split())
    assert "Config of 10 trials, optim.lr: A 0.002, B 0.001" in said
    assert "Trainer: A 1; B 2" in said
    assert "Plan hash: A" in said


def test_a_study_that_only_one_side_has_is_a_difference(sides, capsys):
    for side in sides:
        make(side)
    make(sides[1], study="more", base={"optim.lr": 1e-3})
    assert run(*sides) == 1
    assert "only in B: study more" in capsys.readouterr().out
    assert run(sides[0] / "simulated", sides[1] / "simulated") == 0
    assert run(sides[0] / "simulated", sides[1]) == 0  # one study against a storage


def test_two_study_folders_are_compared_whatever_their_names(sides):
    for side in sides:
        make(side)
    shutil.move(sides[1] / "simulated", sides[1] / "simulated-0123abcd")
    assert run(sides[0] / "simulated", sides[1] / "simulated-0123abcd") == 0


def test_a_changed_verdict_is_pointed_out(sides):
    make(sides[0])
    better = {("momentum", seed): {"metrics": {"test/knn_accuracy": 0.9 + 0.001 * seed}} for seed in range(8)}
    make(sides[1], seeds=8, changes=better)
    ((found,), _) = compare.match(*map(str, sides))
    ((name, *_, changed),) = compare.verdicts_section(found).rows
    assert (name, changed) == ("momentum − random", "CHANGED")


def test_one_seed_has_a_difference_and_no_spread(sides, capsys):
    make(sides[0], seeds=1)
    make(sides[1], gain=0.02, seeds=1)
    assert run(*sides) == 1
    assert "+0.0200" in capsys.readouterr().out


def test_bad_input_is_one_line_and_exit_code_2(sides, tmp_path, capsys):
    make(sides[0])
    make(sides[1], study="other")
    (tmp_path / "empty").mkdir()
    nothing = tmp_path / "nothing"
    make(nothing, changes={(arm, seed): None for arm in ARMS for seed in range(5)})
    for other, words in (
        (tmp_path / "empty", "holds no study"),
        (tmp_path / "missing", "holds no study"),
        (sides[1], "no study is in both: A has simulated; B has other"),
        (nothing, "no trial of the same arm and seed has ended on both sides"),
    ):
        assert run(sides[0], other) == 2
        said = capsys.readouterr().err
        assert words in said
        assert len(said.splitlines()) == 1


def damage(study, arm, seed, value):
    """What a record of other hands may hold in the place of a number."""
    (trial,) = (one.trial_id for one in study.trials if (one.arm, one.seed) == (arm, seed))
    path = f"{trial_folder(trial)}/record.json"
    content = study.storage.read_json(path)
    content["metrics"]["test/knn_accuracy"] = value
    study.storage.write(path, json.dumps(content).encode())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_no_record(sides, capsys, value):
    for side in sides:
        make(side)
    damage(make(sides[1]), "momentum", 1, value)
    assert run(*sides) == 2
    assert f"metric test/knn_accuracy must be finite, got {value}" in capsys.readouterr().err


def test_means_of_an_arm_are_of_the_seeds_that_both_sides_have(sides):
    make(sides[0])
    make(sides[1], changes={("momentum", 4): FAILED})
    ((found,), _) = compare.match(*map(str, sides))
    row = compare.arms_section(found, compare.metric_table(found)).rows[0]
    assert row[:5] == ["momentum", "4 of 5", "0.5150", "0.5150", "0.0000 ± 0.0000"]


def rename_trial(study, trial, other):
    """Give a trial another id, as another trainer version would."""
    folder = study.storage.uri
    shutil.move(f"{folder}/{trial_folder(trial)}", f"{folder}/{trial_folder(other)}")
    for name in (f"{trial_folder(other)}/record.json", f"{study.plan.study}/study.json"):
        study.storage.write(name, study.storage.read(name).replace(trial.encode(), other.encode()))


def test_a_trial_of_another_id_counts_as_bit_equal_and_is_said_once(sides, capsys):
    make(sides[0])
    study = make(sides[1])
    for trial in study.trials[:3]:
        rename_trial(study, trial.trial_id, trial.trial_id[::-1])
    assert run(*sides) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "EQUAL. All metrics of 10 trials are bit-equal, and their curves too." in said
    assert said.count("ids differ") == 1
    assert "ids differ for 3 trials, matched by arm and seed" in said


def test_a_field_that_older_records_lack_had_its_default(sides, capsys):
    for side in sides:
        study = make(side, base={"optim.lr": 1e-3})
    for trial in study.trials:
        path = f"{trial_folder(trial.trial_id)}/record.json"
        content = study.storage.read_json(path)
        del content["config"]["optim"]["lr"], content["config"]["train"]["batch"]
        study.storage.write(path, json.dumps(content).encode())
    assert run(*sides) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "optim.lr" in said  # the plan's is not the default
    assert "train.batch" not in said


def test_equal_differences_of_two_metrics_have_equal_p_values(sides):
    """Above 20 seeds signs are drawn; one generator over all metrics would draw others for each."""
    plan = make_plan(ARMS, seeds=24)
    for shift, side in zip((0.0, 0.01), sides, strict=True):
        noisy = lambda config, seed, rng, shift=shift: 0.5 + shift * (1 + 3 * rng.normal())  # noqa: E731
        simulate(side, plan, noisy, more=lambda value: {"test/kmeans_ami": value, "test/knn_auc": value})
    ((found,), _) = compare.match(*map(str, sides))
    assert len({row[-1] for row in compare.metrics_section(found, compare.metric_table(found)).rows}) == 1

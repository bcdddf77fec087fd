"""The tidy table of all trials."""

import pandas as pd
import pytest
from simulated import FAILED, make_plan, seed_offset, simulate

from analysis.export import curves, main, tidy, wide
from jbot.store.storage import RecordError, Storage

ARMS = {"base": {}, "random": {"mask.scheme": "random"}}
CURVE = [{"epoch": epoch, "device_seconds": 1.0 * epoch, "val/knn_accuracy": 0.1 * epoch} for epoch in (0, 2)]


def more(value):
    return {"untrained/test/knn_accuracy": 0.35, "test_500/knn_auc": 0.8}


@pytest.fixture
def results(tmp_path):
    """Two studies that share the trials of `base`; one failed, one pending trial."""
    score = lambda config, seed, rng: 0.5 + seed_offset(seed)  # noqa: E731
    simulate(tmp_path, make_plan({"base": {}}, seeds=3, study="alone"), score, None, more, lambda value: CURVE)
    changes = {("random", 1): FAILED, ("random", 2): None}
    simulate(tmp_path, make_plan(ARMS, seeds=3), score, changes, more, lambda value: CURVE)
    return tmp_path


def test_a_row_per_trial_and_metric(results):
    frame = tidy(results)
    whole = frame[(frame["folder"] == "simulated") & (frame["arm"] == "base") & (frame["seed"] == 1)]
    assert [tuple(row) for row in whole[["split", "metric", "reference"]].to_numpy()] == [
        ("test", "knn_accuracy", ""),
        ("test", "knn_accuracy", "untrained"),
        ("test_500", "knn_auc", ""),
    ]
    assert whole["value"].tolist() == pytest.approx([0.5 + seed_offset(1), 0.35, 0.8])
    assert whole["error"].iloc[0] == 0.008
    assert whole["error"].iloc[1:].isna().all()


def test_failed_and_pending_trials_are_rows_too(results):
    frame = tidy(results)
    random = frame[frame["arm"] == "random"].groupby("seed").first()
    assert random["state"].tolist() == ["complete", "failed", "pending"]
    assert random.loc[1, "reason"] == "loss is not finite at step 12"
    assert random["value"].isna().tolist() == [False, True, True]


def test_a_shared_trial_stands_once_for_each_study(results):
    frame = tidy(results)
    primary = frame[(frame["metric"] == "knn_accuracy") & (frame["reference"] == "") & (frame["arm"] == "base")]
    assert primary.groupby("folder").size().to_dict() == {"alone": 3, "simulated": 3}
    assert len(primary.drop_duplicates(["trial_id", "metric"])) == 3


def test_a_record_that_no_study_plans_is_kept(results):
    (results / "alone/study.json").unlink()
    (results / "simulated/study.json").unlink()
    frame = tidy(results)
    assert set(frame["folder"]) == {""}
    assert frame["trial_id"].nunique() == 5
    assert set(frame["arm"]) == {"base", "random"}


def test_wide_has_every_config_field_and_metric(results):
    frame = wide(str(results))
    assert len(frame) == 9
    row = frame[(frame["folder"] == "simulated") & (frame["arm"] == "random") & (frame["seed"] == 0)].iloc[0]
    assert row["config.mask.scheme"] == "random"
    assert row["config.optim.lr"] == 0.002
    assert row["test/knn_accuracy"] == pytest.approx(0.5 + seed_offset(0))
    assert row["device_seconds"] == 25.0


def test_curves_are_long(results):
    frame = curves(Storage(results))
    assert set(frame["run"]) == {"pretraining"}
    one = frame[(frame["folder"] == "alone") & (frame["seed"] == 0)]
    assert one[["epoch", "metric", "value", "device_seconds"]].to_numpy().tolist() == [
        [0, "val/knn_accuracy", 0.0, 0.0],
        [2, "val/knn_accuracy", 0.2, 2.0],
    ]


@pytest.mark.parametrize("option", [[], ["--wide"], ["--curves"]])
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_files_hold_what_the_functions_give(results, option, ending, capsys):
    out = results / f"tables/all.{ending}"
    assert main([str(results), "--out", str(out), *option]) == 0
    read = pd.read_parquet(out) if ending == "parquet" else pd.read_csv(out)
    expected = {"": tidy, "--wide": wide, "--curves": curves}["".join(option)](results)
    assert len(read) == len(expected)
    assert list(read.columns) == list(expected.columns)
    assert f"{len(expected):,} rows" in capsys.readouterr().out


def test_an_empty_storage_gives_an_empty_table_with_its_columns(tmp_path):
    frame = tidy(tmp_path)
    assert len(frame) == 0
    assert {"trial_id", "metric", "value"} <= set(frame.columns)


def test_bad_input_is_one_line_and_exit_code_2(results, capsys):
    for folder, out, words in (
        (results / "nowhere", "x.csv", "must be the folder of the results"),
        (results / "alone", "x.csv", "must be the folder of the results"),
        (results, "x.xlsx", "--out must end with .parquet or .csv, got x.xlsx"),
    ):
        assert main([str(folder), "--out", str(results / out)]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert len(said.splitlines()) == 1
    with pytest.raises(RecordError):
        tidy(results / "alone")

"""The MLflow view: one run per trial whatever happens, rebuilt from records, and never in the way."""

import socket
from pathlib import Path

import pytest
from conftest import TINY

from analysis.pictures import draw_trials
from analysis.plan import Contrast, save_study
from cluster.mirror import main as mirror
from cluster.run import Resources, run_inline
from jbot.config import Config, flatten, from_dict
from jbot.data import Jets
from jbot.record import Storage, load_record
from studies.study import Study, planned_trials, trial_specs

mlflow = pytest.importorskip("mlflow")
from cluster.mlflow_view import LiveView, StudyInfo, View, rebuild, show_files  # noqa: E402 - needs mlflow

STUDY = Study(
    name="view_test",
    question="Does it show?",
    arms={"on": {"finetune.fractions": [1.0], "finetune.epochs": 2}, "off": {"loss.koleo_weight": 0.0}},
    contrasts=(Contrast(treatment="on", control="off", primary=True),),
    margin=0.02,
)


class Case:
    """Two tiny trials in a storage, and a tracking database beside them."""

    def __init__(self, folder, data):
        self.data, self.storage = data, Storage(folder)
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.plan = STUDY.plan("smoke", seeds=1, changes=TINY)
        self.specs = trial_specs(self.plan, from_dict(self.plan.base), Jets({1000: data}))
        source = {"source": data.source, "fingerprint": data.fingerprint}
        save_study(self.storage, self.plan, source, planned_trials(self.specs))
        self.info = StudyInfo(
            name=self.plan.study, question="Does it show?", preset="smoke", plan_hash=self.plan.hash,
            metric=self.plan.metric, source=data.source,
        )  # fmt: skip

    def run(self, uri=None):
        view = LiveView(uri or self.uri, self.info, self.storage)
        run_inline(self.specs, self.data, self.storage, [view], Resources())
        view.close()
        return view

    def artifacts(self, run, folder=None):
        client = mlflow.MlflowClient(tracking_uri=self.uri)
        return sorted(found.path for found in client.list_artifacts(run.info.run_id, folder) if not found.is_dir)

    def runs(self, role="trial"):
        client = mlflow.MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name(self.plan.study)
        return client.search_runs([experiment.experiment_id], f"tags.role = '{role}'")


@pytest.fixture
def case(tmp_path, tiny_data) -> Case:
    return Case(tmp_path, tiny_data)


def contents(runs):
    return {
        run.data.tags["key"]: (run.info.status, run.data.params, run.data.metrics, run.data.tags["state"])
        for run in runs
    }


def test_a_live_run_shows_everything_a_record_holds(case):
    view = case.run()
    assert view.error is None
    (parent,) = case.runs("study")
    runs = {run.data.tags["arm"]: run for run in case.runs()}
    assert set(runs) == {"on", "off"}
    for spec in case.specs:
        run, record = runs[spec.arm], load_record(case.storage, spec.trial_id)
        assert run.info.run_name == f"{spec.arm} seed 0"
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.data.tags["seed"], run.data.tags["block"], run.data.tags["state"]) == ("0", "0", "complete")
        assert set(run.data.params) == set(flatten(Config()))
        assert run.data.params["loss.koleo_weight"] == ("0.01" if spec.arm == "on" else "0.0")
        for name, value in record.metrics.items():
            assert run.data.metrics[name] == pytest.approx(value)
    client = mlflow.MlflowClient(tracking_uri=case.uri)
    curve = client.get_metric_history(runs["on"].info.run_id, "val/knn_accuracy")
    assert [point.step for point in curve] == [0, 1, 2, 3]
    for name in ("finetune_100/val_accuracy", "supervised_100/train_loss"):
        assert [point.step for point in client.get_metric_history(runs["on"].info.run_id, name)] == [1, 2]


def test_continuing_and_rebuilding_make_no_duplicates(case):
    case.run()
    before = contents(case.runs())
    case.run()
    for _ in range(2):
        assert rebuild(case.storage, case.plan.study, case.uri) == 2
    assert contents(case.runs()) == before
    assert len(case.runs("study")) == 1
    client = mlflow.MlflowClient(tracking_uri=case.uri)
    for run in case.runs():
        tuned = 2 if run.data.tags["arm"] == "on" else 0
        points = {"val/knn_accuracy": 4, "test/knn_accuracy": 1, "epoch": 4, "finetune_100/val_loss": tuned}
        for name, count in points.items():
            steps = [(point.step, point.timestamp) for point in client.get_metric_history(run.info.run_id, name)]
            assert len(set(steps)) == len(steps) == count


def test_arm_summaries_have_mean_and_count(case):
    case.run()
    rebuild(case.storage, case.plan.study, case.uri)
    arms = {run.data.tags["arm"]: run.data.metrics for run in case.runs("arm")}
    record = load_record(case.storage, case.specs[0].trial_id)
    assert arms["on"]["n"] == 1
    assert arms["on"]["test/knn_accuracy"] == pytest.approx(record.metrics["test/knn_accuracy"])


def test_a_server_that_is_down_loses_nothing(case, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    view = case.run(uri=nobody)
    assert view.error
    assert all(load_record(case.storage, spec.trial_id).state == "complete" for spec in case.specs)
    assert mirror([f"{case.storage.uri}/{case.plan.study}"]) == 0
    assert "2 trials in sqlite:///" in capsys.readouterr().out
    assert len(case.runs()) == 2


def test_a_point_that_comes_twice_is_one_point(case):
    view = View(case.uri, case.info)
    spec, row = case.specs[0], {"epoch": 1, "train/loss": 2.0, "val/knn_accuracy": None}
    for _ in range(2):
        view.point(spec, row)
    (run,) = case.runs()
    assert len(view.client.get_metric_history(run.info.run_id, "train/loss")) == 1
    assert "val/knn_accuracy" not in run.data.metrics


def test_figures_and_report_are_artifacts_of_their_runs(case, tmp_path):
    case.run()
    draw_trials(case.storage, [spec.trial_id for spec in case.specs], processes=1)
    names = {spec.arm: case.storage.names(f"trials/{spec.trial_id}/figures") for spec in case.specs}
    drawn = {arm: [name for name in found if name.endswith(".svg")] for arm, found in names.items()}
    frozen = {"embedding.svg", "jets.svg", "attention.svg", "roc-knn.svg", "scores-linear.svg", "training.svg"}
    assert frozen <= set(drawn["off"]) < set(drawn["on"])
    for _ in range(2):
        show_files(case.storage, case.plan.study, case.uri, b"<html>the report</html>")
    for run in case.runs():
        assert case.artifacts(run, "figures") == [f"figures/{name}" for name in drawn[run.data.tags["arm"]]]
    (parent,) = case.runs("study")
    assert case.artifacts(parent) == ["report.html"]
    client = mlflow.MlflowClient(tracking_uri=case.uri)
    run = next(run for run in case.runs() if run.data.tags["trial_id"] == case.specs[0].trial_id)
    sent = client.download_artifacts(run.info.run_id, "figures/jets.svg", str(tmp_path))
    assert Path(sent).read_bytes() == case.storage.read(f"trials/{case.specs[0].trial_id}/figures/jets.svg")
    assert run.info.artifact_uri.startswith((tmp_path / "mlflow_artifacts").as_uri())


def test_rebuilding_shows_figures_and_report_too(case, tmp_path):
    """What the server missed is not lost: files in the storage are enough."""
    case.run()
    case.storage.write(f"trials/{case.specs[0].trial_id}/figures/jets.svg", b"<svg/>")
    case.storage.write(f"{case.plan.study}/report.html", b"<html>")
    elsewhere = f"sqlite:///{tmp_path}/elsewhere/mlflow.db"
    (tmp_path / "elsewhere").mkdir()
    assert mirror([f"{case.storage.uri}/{case.plan.study}", "--tracking-uri", elsewhere]) == 0
    case.uri = elsewhere
    artifacts = {run.data.tags["trial_id"]: case.artifacts(run, "figures") for run in case.runs()}
    assert artifacts == {case.specs[0].trial_id: ["figures/jets.svg"], case.specs[1].trial_id: []}
    assert case.artifacts(case.runs("study")[0]) == ["report.html"]


@pytest.mark.parametrize("folder", ["nowhere", "trials"])
def test_a_folder_that_is_no_study_is_one_line_and_exit_code_2(tmp_path, capsys, folder):
    assert mirror([str(tmp_path / folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

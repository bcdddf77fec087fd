"""The MLflow view: one run per trial whatever happens, rebuilt from records, and never in the way."""

import dataclasses
import json
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import TINY, make_jets

import jbot
from analysis.pictures import draw_trials
from cluster.mirror import main as mirror
from cluster.resources import Resources
from cluster.scheduling.run import run_inline
from jbot.config import Config, flatten, from_dict
from jbot.data import Jets
from jbot.store.plan import Contrast, save_study
from jbot.store.record import load_record
from jbot.store.storage import Storage
from studies.runner.console import watched
from studies.runner.options import RunOptions
from studies.runner.study import Study
from studies.runner.trials import planned_trials, trial_specs

mlflow = pytest.importorskip("mlflow")
from cluster.tracking import publish, view  # noqa: E402 - needs mlflow
from cluster.tracking.pages import StudyInfo, shortened  # noqa: E402
from cluster.tracking.publish import LiveView, rebuild, show_files  # noqa: E402
from cluster.tracking.registry import choose  # noqa: E402
from cluster.tracking.view import LINKS, View  # noqa: E402

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
        self.specs = trial_specs(self.plan, Jets({1000: data}))
        source = {"source": data.source, "fingerprint": data.fingerprint}
        save_study(self.storage, self.plan, source, planned_trials(self.specs))
        self.info = StudyInfo(
            name=self.plan.study, question="Does it show?", preset="smoke", plan_hash=self.plan.hash,
            metric=self.plan.metric, source=data.source, arms=tuple(self.plan.arms),
        )  # fmt: skip

    def run(self, uri=None):
        view = LiveView(uri or self.uri, self.info, self.storage)
        run_inline(self.specs, self.data, self.storage, [view], Resources())
        view.close()
        return view

    @property
    def client(self):
        return mlflow.MlflowClient(tracking_uri=self.uri)

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
    arms = {run.data.tags["arm"]: run for run in case.runs("arm")}
    runs = {run.data.tags["arm"]: run for run in case.runs()}
    assert set(runs) == {"on", "off"}
    for spec in case.specs:
        run, record = runs[spec.arm], load_record(case.storage, spec.trial_id)
        assert run.info.run_name == f"seed 0: {spec.arm}"
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == arms[spec.arm].info.run_id
        assert arms[spec.arm].data.tags["mlflow.parentRunId"] == parent.info.run_id
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


def test_runs_that_a_slow_server_made_twice_become_one(case):
    case.run()
    before = contents(case.runs()), len(case.runs("arm"))
    for made in [*case.runs(), *case.runs("arm"), *case.runs("study")]:
        tags = {name: made.data.tags[name] for name in ("role", "key")} | {"state": "running"}
        case.client.create_run(made.info.experiment_id, made.info.start_time - 1, tags, made.info.run_name)
    rebuild(case.storage, case.plan.study, case.uri)
    assert (contents(case.runs()), len(case.runs("arm"))) == before
    (study,) = case.runs("study")
    assert {run.data.tags["mlflow.parentRunId"] for run in case.runs("arm")} == {study.info.run_id}


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
    view = View(case.uri, case.info, case.storage)
    spec, row = case.specs[0], {"epoch": 1, "train/loss": 2.0, "val/knn_accuracy": None}
    for _ in range(2):
        view.point(spec, row)
    (run,) = case.runs()
    assert len(view.runs.client.get_metric_history(run.info.run_id, "train/loss")) == 1
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
    assert len(case.client.search_model_versions(f"name = '{case.plan.study}'")) == 2  # two arms, sent twice
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


def test_ctrl_c_while_the_view_is_made_anew_is_one_word(case, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "rebuild", stop)
    assert mirror([f"{case.storage.uri}/{case.plan.study}"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def saved(client, experiment, key):
    """A saved view as the UI reads it: its name, and the state of lists and charts."""
    content = json.loads(client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{key}"])
    return content["name"], json.loads(content["state"])


def test_a_storage_that_was_moved_has_its_view_there_and_nothing_at_the_old_place(tmp_path, tiny_data, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    Case(old, tiny_data).run()
    assert mirror([str(old / "view_test_smoke")]) == 0
    old.rename(new)
    (tmp_path / "same").symlink_to(new)  # another path to it is not another place
    capsys.readouterr()
    for folder, said in ((new, 1), (new, 0), (tmp_path / "same", 0)):
        assert mirror([str(folder / "view_test_smoke")]) == 0
        assert capsys.readouterr().err.count("one here is made from the records") == said
    moved = Case(new, tiny_data)
    assert not old.exists()
    assert len(moved.runs()) == 2
    assert all(run.info.artifact_uri.startswith(new.as_uri()) for run in moved.runs())
    for arm in ("on", "off"):
        model = moved.client.get_model_version_by_alias("view_test_smoke", arm)
        assert model.source.startswith(new.as_uri())


def test_the_experiment_opens_as_training_with_views_of_the_studys_metric(case):
    view = View(case.uri, case.info, case.storage)
    tags = view.runs.client.get_experiment(view.runs.experiment).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.note.content"].startswith("Does it show? Open: [arms](")
    assert "viewStateShareKey=arms" in tags["mlflow.note.content"]
    name, arms = saved(view.runs.client, view.runs.experiment, "arms")
    assert name == "1 Arms: mean and spread"
    assert arms["searchFilter"] == "tags.role = 'arm'"
    assert arms["orderByKey"] == f"metrics.`{case.plan.metric}`"
    assert arms["orderByAsc"] is False
    assert {f"metrics.`{case.plan.metric}`", f"metrics.`{case.plan.metric}_sd`"} <= set(arms["selectedColumns"])
    _, curves = saved(view.runs.client, view.runs.experiment, "curves")
    assert curves["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "arm"}]
    assert "val/knn_accuracy" in {chart["metricKey"] for chart in curves["compareRunCharts"]}
    assert all(len(value) <= 5000 for value in tags.values())
    View(case.uri, case.info, case.storage)
    assert view.runs.client.get_experiment(view.runs.experiment).tags == tags


def test_arms_can_be_compared_and_their_trials_share_a_colour(case, tmp_path):
    case.run()
    (tmp_path / "elsewhere").mkdir()
    case.uri = f"sqlite:///{tmp_path}/elsewhere/mlflow.db"
    rebuild(case.storage, case.plan.study, case.uri, files=False)
    arms = {run.data.tags["arm"]: run for run in case.runs("arm")}
    differ = {name for name, value in arms["on"].data.params.items() if arms["off"].data.params[name] != value}
    assert differ == {"finetune.fractions", "loss.koleo_weight"}  # finetune.epochs is 2 anyway
    assert "seed" not in arms["on"].data.params
    colours = {arm: run.data.tags["mlflow.runColor"] for arm, run in arms.items()}
    assert colours["on"] != colours["off"]
    for run in case.runs():
        assert run.data.tags["mlflow.runColor"] == colours[run.data.tags["arm"]]
        record = load_record(case.storage, run.data.tags["trial_id"])
        assert run.inputs.dataset_inputs[0].dataset.digest == record.data["fingerprint"][:16]
        assert run.data.tags["record"] == f"{case.storage.uri}/trials/{record.trial_id}"
        seconds = (run.info.end_time - run.info.start_time) / 1000
        assert seconds == pytest.approx(record.wall_seconds, abs=0.01)  # times are the record's, whenever it is shown


def test_a_summary_is_live_and_of_the_newest_trials(case):
    view = View(case.uri, case.info, case.storage)
    case.run()
    record = load_record(case.storage, case.specs[0].trial_id)
    for score in (0.9, 0.1):  # falling: of equal times MLflow would show the larger
        again = dataclasses.replace(record, metrics={"test/knn_accuracy": score})
        view.ended(f"{score}", "on", again)
        view.summarise("on")
    on = next(run for run in case.runs("arm") if run.data.tags["arm"] == "on")
    assert (on.data.metrics["n"], on.data.metrics["test/knn_accuracy"]) == (2, pytest.approx(0.5))
    assert on.data.metrics["test/knn_accuracy_sd"] == pytest.approx(0.8 / 2**0.5)


def test_links_lead_from_records_to_runs(case):
    case.run()
    live = case.storage.read_json(f"{case.plan.study}/mlflow.json")
    assert (live["tracking_uri"], live["ui"]) == (case.uri, "")
    assert live["parent"] == case.runs("study")[0].info.run_id
    assert live["runs"] == {run.data.tags["trial_id"]: run.info.run_id for run in case.runs()}
    rebuild(case.storage, case.plan.study, case.uri, files=False)
    assert case.storage.read_json(f"{case.plan.study}/mlflow.json") == live


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[]"])
def test_damaged_links_are_written_anew(tmp_path, damage):
    storage, runs = Storage(tmp_path), SimpleNamespace(uri="sqlite:///x.db", experiment="1", known={})
    storage.write(f"study/{LINKS}", damage)
    info, parent = SimpleNamespace(name="study"), SimpleNamespace(id="p")
    View.save_links(SimpleNamespace(info=info, runs=runs, parent=parent, storage=storage))
    links = {"tracking_uri": "sqlite:///x.db", "ui": "", "experiment_id": "1", "parent": "p", "runs": {}}
    assert storage.read_json(f"study/{LINKS}") == links


def test_what_is_whole_is_passed_over(case, monkeypatch):
    case.run()
    rebuild(case.storage, case.plan.study, case.uri, files=False)
    read = []
    monkeypatch.setattr(view, "load_curves", lambda storage, trial: read.append(trial) or [])
    rebuild(case.storage, case.plan.study, case.uri, files=False)
    assert read == []


def test_runs_of_an_earlier_plan_leave_the_lists_and_come_back(case):
    case.run()
    rebuild(case.storage, case.plan.study, case.uri, files=False)
    name = f"{case.plan.study}/study.json"
    whole = case.storage.read_json(name)
    less = json.loads(json.dumps(whole))
    del less["plan"]["arms"]["off"]
    less["trials"] = [trial for trial in less["trials"] if trial["arm"] == "on"]
    for content, arms in ((less, {"on"}), (whole, {"on", "off"})):
        case.storage.write_json(name, content)
        rebuild(case.storage, case.plan.study, case.uri, files=False)
        for role in ("arm", "trial"):
            assert {run.data.tags["arm"] for run in case.runs(role)} == arms


def test_the_report_tells_its_verdicts_in_the_description(case):
    case.run()
    table = 'contrast,kind,sentence\nb,exploratory,"second, later"\na,primary,first\n'
    case.storage.write(f"{case.plan.study}/contrasts.csv", table.encode())
    case.storage.write(f"{case.plan.study}/figures/curves.svg", b"<svg/>")
    show_files(case.storage, case.plan.study, case.uri, b"<html>")
    (parent,) = case.runs("study")
    assert "- first\n- second, later\n" in parent.data.tags["mlflow.note.content"]
    assert case.artifacts(parent) == ["contrasts.csv", "report.html"]
    assert case.artifacts(parent, "figures") == ["figures/curves.svg"]


def test_the_best_encoder_of_an_arm_is_registered_and_embeds_without_pickle(case, tmp_path, monkeypatch):
    case.run()
    rebuild(case.storage, case.plan.study, case.uri)
    model = case.client.get_registered_model(case.plan.study)
    assert set(model.aliases) == {"on", "off"}
    version = case.client.get_model_version_by_alias(case.plan.study, "on")
    trial = next(spec.trial_id for spec in case.specs if spec.arm == "on")
    assert version.tags["trial_id"] == trial
    assert version.description.startswith("Chosen: best of 1 seeds by its last val/knn_accuracy")
    assert "## Use" in version.description
    assert len(version.description) <= 5000
    files = {path.name for path in (tmp_path / "mlflow_artifacts").rglob("*") if path.is_file()}
    assert {"student.safetensors", "record.json", "card.md", "encoder.py", "MLmodel"} <= files
    assert not any(name.endswith((".pkl", ".pickle", ".pt", ".bin", ".joblib")) for name in files)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", case.uri)
    jets = make_jets(7)
    loaded = mlflow.pyfunc.load_model(f"models:/{case.plan.study}@on")
    found = loaded.predict(jets)
    assert np.array_equal(found, jbot.load(f"{case.storage.uri}/trials/{trial}").embed(jets))
    assert found.shape == (7, from_dict(case.plan.base).model.dim)


def test_an_encoder_is_chosen_on_validation_jets(case):
    case.run()
    ended = []
    for seed, score in enumerate((0.5, 0.7, 0.6)):
        record = dataclasses.replace(load_record(case.storage, case.specs[0].trial_id), trial_id=f"t{seed}")
        record.config["seed"] = seed
        case.storage.write(f"trials/t{seed}/student.safetensors", b"")
        case.storage.write_rows(f"trials/t{seed}/curves.parquet", [{"epoch": 0, "val/knn_accuracy": score}])
        ended.append((record.trial_id, "on", record))
    best = choose(case.storage, ended, "test/knn_accuracy", True)["on"]
    assert best[0] == "t1"
    assert best[2] == "best of 3 seeds by its last val/knn_accuracy, 0.7"
    assert choose(case.storage, ended, "test/knn_accuracy", False)["on"][0] == "t0"
    assert choose(case.storage, ended, "test/nothing", True)["on"][::2] == ("t0", "first seed of 3")


def test_a_card_that_is_too_long_ends_with_a_section():
    card = "---\nlicense: x\n---\n\n# Title\n\n## Use\n\nshort\n\n## Config\n\n" + "x" * 9000
    text = shortened(card)
    assert text.startswith("# Title")
    assert text.endswith("short\n\nThe whole card is the artifact `card.md`.")
    assert shortened("# Title") == "# Title"


@pytest.mark.parametrize(
    ("inline", "uri", "wanted"),
    [(False, None, True), (True, None, False), (True, "sqlite:///{}/other.db", True), (False, "none", False)],
)
def test_who_wants_a_live_view_has_one(tmp_path, tiny_data, inline, uri, wanted):
    case = Case(tmp_path, tiny_data)
    options = RunOptions(inline=inline, tracking_uri=uri and uri.format(tmp_path))
    with watched(SimpleNamespace(close=lambda: None), case.plan, Jets({1000: tiny_data}), case.storage, options) as (
        listeners,
        view,
    ):
        assert (view is not None, len(listeners)) == (wanted, 1 + wanted)
    assert (view is not None) == bool(list(tmp_path.glob("*.db")))


def test_a_study_that_is_stopped_says_so_in_its_view(tmp_path, tiny_data):
    case = Case(tmp_path, tiny_data)
    options = RunOptions(inline=True, tracking_uri=case.uri)
    progress = SimpleNamespace(close=lambda: None)

    def run_and_stop():
        with watched(progress, case.plan, Jets({1000: tiny_data}), case.storage, options) as (_, view):
            run_inline(case.specs[:1], case.data, case.storage, [view], Resources())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_and_stop()
    (study,), (trial,) = case.runs("study"), case.runs()
    assert (study.info.status, trial.info.status) == ("KILLED", "FINISHED")

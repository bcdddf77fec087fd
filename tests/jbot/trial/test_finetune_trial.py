"""Fine-tuning as a stage of a trial: its files and metrics, crashes, packs."""

import dataclasses

import numpy as np
import pytest
import torch

import jbot.trial.run
from jbot.config import override
from jbot.evaluation.metrics_registry import metric_names
from jbot.store.record import Record, TrialSpec, load_finetune_curves, load_record, trial_folder
from jbot.store.storage import Storage
from jbot.trainer.classifier import classifier_logits
from jbot.trainer.model import cls_rows, encode
from jbot.trial.run import run_pack

RUNS = ["finetune_20", "supervised_20", "finetune_100", "supervised_100"]
TUNED = {
    "train.epochs": 1,
    "finetune.fractions": (0.2, 1.0),
    "finetune.epochs": 2,
    "finetune.batch": 16,
    "finetune.lr": 3e-3,
}


@pytest.fixture
def spec(tiny, tiny_data) -> TrialSpec:
    config = override(tiny, TUNED)
    return TrialSpec(study="s", arm="a", plan_hash="p", config=config, data_fingerprint=tiny_data.fingerprint)


@pytest.fixture
def always_save(monkeypatch):
    monkeypatch.setattr("jbot.trial.checkpoint.CHECKPOINT_SECONDS", 0.0)


def changed(spec: TrialSpec, **changes) -> TrialSpec:
    over = {name.replace("__", "."): value for name, value in changes.items()}
    return dataclasses.replace(spec, config=override(spec.config, over))


def run_trial(spec, data, storage, **options) -> Record:
    (record,) = run_pack([spec], data, storage, **options)
    return record


def classifier(storage: Storage, spec: TrialSpec, run: str) -> dict[str, np.ndarray]:
    return storage.read_arrays(f"{trial_folder(spec.trial_id)}/classifier_{run}.safetensors")


def rows_of(storage: Storage, spec: TrialSpec) -> list[dict]:
    rows = storage.read_rows(f"{trial_folder(spec.trial_id)}/finetune.parquet")
    return [{name: value for name, value in row.items() if name != "device_seconds"} for row in rows]


def of_fine_tunings(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith(("test/finetune", "test/supervised"))}


def test_what_fine_tunings_leave_behind(spec, tiny_data, tmp_path):
    storage = Storage(tmp_path)
    record = run_trial(spec, tiny_data, storage)
    assert (record.state, record.missing) == ("complete", {})
    for run in RUNS:
        assert {f"test/{run}_accuracy", f"test/{run}_auc", f"test/{run}_eps_s_0.1_w"} <= set(record.metrics)
        assert record.uncertainties[f"test/{run}_accuracy"]["error"] > 0
    assert set(of_fine_tunings(record.metrics)) <= set(metric_names(spec.config))
    assert 0 < record.finetune_seconds < record.device_seconds - record.probe_seconds < record.wall_seconds
    rows = rows_of(storage, spec)
    assert [(row["run"], row["epoch"]) for row in rows] == [(run, epoch) for run in RUNS for epoch in (1, 2)]
    assert set(rows[0]) == {"run", "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    folder = trial_folder(spec.trial_id)
    assert "checkpoint" not in storage.names(folder)
    scores = storage.read_arrays(f"{folder}/scores.safetensors")
    for run in RUNS:
        probability = scores[f"{run}/probability"]
        assert (probability.shape, probability.dtype) == ((40, 5), np.float32)
        right = float((probability.argmax(1) == scores["label"]).mean())
        assert record.metrics[f"test/{run}_accuracy"] == pytest.approx(right)


def test_the_saved_classifier_is_the_one_that_was_judged(spec, tiny_data, tmp_path):
    storage = Storage(tmp_path)
    run_trial(spec, tiny_data, storage)
    scores = storage.read_arrays(f"{trial_folder(spec.trial_id)}/scores.safetensors")
    parts = jbot.data.split(tiny_data.labels, task="all", train=60, val=20, test=40)
    jets = torch.from_numpy(tiny_data.particles[parts.test])[None]
    for run in RUNS:
        weights = {name: torch.from_numpy(value)[None] for name, value in classifier(storage, spec, run).items()}
        head = {name.partition(".")[2]: value for name, value in weights.items() if name.startswith("classifier.")}
        cls = encode(weights, jets, spec.config.model, rows=cls_rows(1, 40, 30, jets.device))
        found = torch.softmax(classifier_logits(head, cls), dim=-1)[0]
        np.testing.assert_allclose(found, scores[f"{run}/probability"], rtol=0, atol=1e-5)


def test_twins_of_other_encoders_are_the_same(spec, tiny_data, tmp_path):
    """What the encoder has learned before is no part of a twin; of a fine-tuning it is."""
    storage, other = Storage(tmp_path), changed(spec, optim__lr=1e-4)
    records = [run_trial(one, tiny_data, storage) for one in (spec, other)]
    for run in RUNS:
        equal = all(np.array_equal(value, classifier(storage, other, run)[name])
                    for name, value in classifier(storage, spec, run).items())  # fmt: skip
        assert equal == run.startswith("supervised"), run
    assert records[0].metrics["test/supervised_100_auc"] == records[1].metrics["test/supervised_100_auc"]


def test_fractions_and_twin_are_live(spec, tiny_data, tmp_path):
    """Each makes runs, and changes nothing of the others."""
    storage = Storage(tmp_path)
    whole = run_trial(spec, tiny_data, storage)
    alone = run_trial(changed(spec, finetune__twin=False, finetune__fractions=(0.2,)), tiny_data, storage)
    none = run_trial(changed(spec, finetune__fractions=()), tiny_data, storage)
    kept = {name: value for name, value in whole.metrics.items() if name.startswith("test/finetune_20")}
    assert of_fine_tunings(alone.metrics) == kept != {}
    assert of_fine_tunings(none.metrics) == {}
    assert none.finetune_seconds == 0


def no_pre_training(rows):
    """A report that only fine-tunings may call."""
    assert all(name.startswith(("finetune_", "supervised_")) for _, row in rows for name in row)


def test_every_epoch_of_a_fine_tuning_is_reported(spec, tiny_data, tmp_path):
    told = []
    run_trial(spec, tiny_data, Storage(tmp_path), report=lambda rows: told.extend(row for _, row in rows))
    tuned = [row for row in told if "epoch" not in row]
    assert [(run, row[f"{run}/epoch"]) for row in tuned for run in RUNS if f"{run}/epoch" in row] == [
        (run, epoch) for share in (RUNS[:2], RUNS[2:]) for epoch in (1, 2) for run in share
    ]
    assert load_finetune_curves(Storage(tmp_path), spec.trial_id)[0] == tuned[0]


class Killed(BaseException):
    """As sudden as a signal."""


def killed_at(monkeypatch, epochs: int):
    """A context in which the machine dies after so many epochs of fine-tuning of a pack."""
    context, after, count = monkeypatch.context(), jbot.trial.run.PackRun.after_finetune_epoch, [0]

    def dying(self, members, done):
        after(self, members, done)
        count[0] += 1
        if count[0] == epochs:
            raise Killed

    patch = context.__enter__()
    patch.setattr(jbot.trial.run.PackRun, "after_finetune_epoch", dying)
    return context


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_killed_fine_tuning_goes_on_bit_for_bit(spec, tiny_data, tmp_path, monkeypatch, always_save, epochs):
    straight, broken = Storage(tmp_path / "straight"), Storage(tmp_path / "broken")
    undisturbed = run_trial(spec, tiny_data, straight)
    context = killed_at(monkeypatch, epochs)
    with pytest.raises(Killed):
        run_trial(spec, tiny_data, broken)
    context.__exit__(None, None, None)
    resumed = run_trial(spec, tiny_data, broken, report=no_pre_training)  # no epoch of pre-training, no probe
    assert resumed.attempts == 2
    assert resumed.metrics == undisturbed.metrics
    assert rows_of(broken, spec) == rows_of(straight, spec)
    for run in RUNS:
        for name, value in classifier(straight, spec, run).items():
            np.testing.assert_array_equal(classifier(broken, spec, run)[name], value)


def test_pre_training_is_saved_before_fine_tuning(spec, tiny_data, tmp_path, monkeypatch):
    """Also when no checkpoint was due yet."""

    def dying(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(jbot.trial.run, "finetune", dying)
        with pytest.raises(Killed):
            run_trial(spec, tiny_data, Storage(tmp_path))
    assert run_trial(spec, tiny_data, Storage(tmp_path), report=no_pre_training).state == "complete"


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"arrays": "finetune-000002.safetensors", "runs": {}}'])
def test_a_damaged_fine_tuning_starts_over_alone(spec, tiny_data, tmp_path, monkeypatch, always_save, damage):
    storage = Storage(tmp_path)
    undisturbed = run_trial(spec, tiny_data, Storage(tmp_path / "straight"))
    context = killed_at(monkeypatch, 1)
    with pytest.raises(Killed):
        run_trial(spec, tiny_data, storage)
    context.__exit__(None, None, None)
    storage.write(f"{trial_folder(spec.trial_id)}/checkpoint/finetune.json", damage)
    with pytest.warns(UserWarning, match="are damaged, starting them over"):
        record = run_trial(spec, tiny_data, storage, report=no_pre_training)
    assert record.metrics == undisturbed.metrics


DIFFERENT = (
    {},
    {"seed": 4, "finetune__lr": 1e-3, "finetune__dropout": 0.0, "data__train_jets": 45},
    {"seed": 5, "finetune__layer_decay": 1.0, "finetune__dropout": 0.5, "finetune__patience": 1, "data__task": "tqg"},
    {"seed": 6, "mask__scheme": "none", "finetune__tolerance": 0.5},
)


@pytest.fixture
def four(spec) -> list[TrialSpec]:
    """Trials that may share a pack and differ, in their classes too."""
    return [changed(spec, **changes) for changes in DIFFERENT]


def assert_same_fine_tunings(storages: tuple[Storage, Storage], records: tuple[Record, Record], spec: TrialSpec):
    one, other = records
    assert (one.trial_id, one.state, one.missing) == (other.trial_id, other.state, other.missing)
    assert one.metrics == pytest.approx(other.metrics, rel=1e-9)
    ours, theirs = (rows_of(storage, spec) for storage in storages)
    assert [row.pop("run") for row in ours] == [row.pop("run") for row in theirs]
    for row, other_row in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other_row, rel=1e-5)
    for run in RUNS:
        weights = [classifier(storage, spec, run) for storage in storages]
        for name, value in weights[0].items():
            np.testing.assert_allclose(value, weights[1][name], rtol=0, atol=1e-9)


def test_fine_tunings_do_not_feel_their_pack(four, tiny_data, tmp_path):
    together, alone = Storage(tmp_path / "together"), Storage(tmp_path / "alone")
    records = run_pack(four, tiny_data, together, dtype=torch.float64)
    for spec, record in zip(four, records, strict=True):
        lone = run_trial(spec, tiny_data, alone, dtype=torch.float64)
        assert_same_fine_tunings((together, alone), (record, lone), spec)
    assert "test/finetune_100_auc_w" in records[0].metrics
    assert "test/finetune_100_auc_w" not in records[2].metrics  # of two classes


def test_a_fine_tuning_goes_on_in_another_pack(four, tiny_data, tmp_path, monkeypatch, always_save):
    """Killed in a pack of four; one goes on alone, the others with a trial that begins with its pre-training."""
    broken, alone = Storage(tmp_path / "broken"), Storage(tmp_path / "alone")
    context = killed_at(monkeypatch, 3)
    with pytest.raises(Killed):
        run_pack(four, tiny_data, broken, dtype=torch.float64)
    context.__exit__(None, None, None)
    newcomer = changed(four[0], seed=10)
    specs = [four[0], newcomer, *four[1:]]
    records = run_pack(specs[:1], tiny_data, broken, dtype=torch.float64)
    records += run_pack(specs[1:], tiny_data, broken, dtype=torch.float64)
    assert [record.attempts for record in records] == [2, 1, 2, 2, 2]
    for spec, record in zip(specs, records, strict=True):
        lone = run_trial(spec, tiny_data, alone, dtype=torch.float64)
        assert_same_fine_tunings((broken, alone), (record, lone), spec)


def test_a_fine_tuning_that_diverges_is_an_outcome(spec, tiny_data, tmp_path):
    """Its metrics are missing, with the reason; the encoder's are there, and its pack's other trials are complete."""
    wild = changed(spec, seed=4, finetune__lr=1e30)
    records = run_pack([spec, wild], tiny_data, Storage(tmp_path))
    assert [record.state for record in records] == ["complete", "complete"]
    assert records[0].missing == {}
    assert set(records[1].missing) == set(RUNS)
    for reason in records[1].missing.values():
        assert reason.startswith("diverged: ")
    assert of_fine_tunings(records[1].metrics) == {}
    assert "test/knn_accuracy" in records[1].metrics
    assert not any(name.startswith("classifier") for name in Storage(tmp_path).names(trial_folder(wild.trial_id)))
    assert {row["run"] for row in rows_of(Storage(tmp_path), wild)} == set(RUNS)


def test_an_error_in_fine_tuning_leaves_the_others_their_records(spec, tiny_data, tmp_path, monkeypatch):
    """No outcome: a lack of memory, say, for the runs of two classes. The same pack again repeats these alone."""
    two, storage, together = changed(spec, data__task="tqg"), Storage(tmp_path), jbot.trial.run.finetune

    def cramped(runs, *arguments):
        if runs[0].classes == 2:
            raise MemoryError("no room for the step")
        return together(runs, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(jbot.trial.run, "finetune", cramped)
        with pytest.raises(MemoryError, match="no room for the step"):
            run_pack([spec, two], tiny_data, storage)
    assert [load_record(storage, one.trial_id) is None for one in (spec, two)] == [False, True]
    records = run_pack([spec, two], tiny_data, storage, report=no_pre_training)
    assert [(record.state, record.attempts) for record in records] == [("complete", 1), ("complete", 2)]


def test_a_trial_that_collapsed_is_not_fine_tuned(spec, tiny_data, tmp_path):
    record = run_trial(changed(spec, optim__lr=1e30, optim__warmup_epochs=0), tiny_data, Storage(tmp_path))
    assert (record.state, record.finetune_seconds, record.missing) == ("failed", 0.0, {})

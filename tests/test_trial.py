import json

import numpy as np
import pytest
import torch

import jbot.trial
from jbot.config import override
from jbot.record import Storage, load_curves, load_record, trial_folder
from jbot.trial import TrialSpec, prepare, run_trial


@pytest.fixture
def spec(tiny, tiny_data) -> TrialSpec:
    return TrialSpec(study="s", arm="a", plan_hash="p", config=tiny, data_fingerprint=tiny_data.fingerprint)


def student(storage: Storage, spec: TrialSpec) -> dict[str, np.ndarray]:
    return storage.read_arrays(f"{trial_folder(spec.trial_id)}/student.safetensors")


def test_a_record_says_it_all(spec, tiny_data, tmp_path):
    storage = Storage(tmp_path)
    rows = []
    record = run_trial(spec, tiny_data, storage, report=rows.append)
    assert record == load_record(storage, spec.trial_id)
    assert record.state == "complete"
    assert record.attempts == 1
    assert 0 < record.probe_seconds < record.device_seconds < record.wall_seconds
    assert {"test/knn_accuracy", "untrained/test/knn_accuracy"} <= set(record.metrics)
    assert (
        [row["epoch"] for row in rows] == [row["epoch"] for row in load_curves(storage, spec.trial_id)] == [0, 1, 2, 3]
    )
    assert set(storage.names(trial_folder(spec.trial_id))) == {
        "record.json", "curves.parquet", "student.safetensors", "embedding.safetensors", "examples.safetensors",
    }  # fmt: skip
    examples = storage.read_arrays(f"{trial_folder(spec.trial_id)}/examples.safetensors")
    assert sorted(examples["label"]) == [0, 1, 2, 3, 4]
    assert (examples["masked"].sum(1) >= 1).all()


def test_nothing_is_run_twice(spec, tiny_data, tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    first = run_trial(spec, tiny_data, storage)
    monkeypatch.setattr("jbot.trial.train", lambda *arguments: pytest.fail("trained again"))
    assert run_trial(spec, tiny_data, storage) == first


class Killed(BaseException):
    """As sudden as a signal."""


def kill_after(epoch: int):
    def report(row):
        if row["epoch"] == epoch:
            raise Killed

    return report


@pytest.fixture
def always_save(monkeypatch):
    monkeypatch.setattr(jbot.trial, "CHECKPOINT_SECONDS", 0.0)


def test_a_killed_trial_resumes_to_the_same_weights(spec, tiny_data, tmp_path, always_save):
    straight, broken = Storage(tmp_path / "straight"), Storage(tmp_path / "broken")
    undisturbed = run_trial(spec, tiny_data, straight)
    with pytest.raises(Killed):
        run_trial(spec, tiny_data, broken, report=kill_after(2))
    assert load_record(broken, spec.trial_id) is None
    rows = []
    resumed = run_trial(spec, tiny_data, broken, report=rows.append)
    assert rows[-1]["epoch"] == 3
    assert resumed.attempts == 2
    assert resumed.metrics == undisturbed.metrics
    for name, value in student(straight, spec).items():
        np.testing.assert_array_equal(student(broken, spec)[name], value)


@pytest.mark.parametrize("damage", [b"", b"{}", b"not JSON", ("epoch", "3"), ("curves", None), ("attempts", "one")])
def test_a_damaged_checkpoint_starts_over(spec, tiny_data, tmp_path, always_save, damage):
    storage = Storage(tmp_path)
    with pytest.raises(Killed):
        run_trial(spec, tiny_data, storage, report=kill_after(1))
    folder = f"{trial_folder(spec.trial_id)}/checkpoint"
    if isinstance(damage, tuple):
        name, value = damage
        saved = storage.read_json(f"{folder}/state.json")
        saved["history" if name == "attempts" else "state"][name] = value
        damage = json.dumps(saved).encode()
    storage.write(f"{folder}/state.json", damage)
    with pytest.warns(UserWarning, match="is damaged, starting over"):
        record = run_trial(spec, tiny_data, storage)
    assert record.state == "complete"


def test_a_diverged_trial_is_an_outcome_and_keeps_what_it_has(spec, tiny_data, tmp_path):
    wild = TrialSpec(**vars(spec) | {"config": override(spec.config, {"optim.lr": 1e30, "optim.warmup_epochs": 0})})
    record = run_trial(wild, tiny_data, Storage(tmp_path))
    assert record.state == "failed"
    assert record.reason.startswith("diverged: ")
    assert record.metrics == {}
    assert load_curves(Storage(tmp_path), wild.trial_id)[0]["val/knn_accuracy"] > 0


def test_without_centering_and_spreading_nothing_is_hidden(spec, tiny_data, tmp_path):
    """A component may be switched off; whether that collapses is for the record to say, not for a crash."""
    off = {"teacher.centering": False, "loss.koleo_weight": 0.0, "mask.scheme": "none"}
    bare = TrialSpec(**vars(spec) | {"config": override(spec.config, off)})
    assert run_trial(bare, tiny_data, Storage(tmp_path)).state in ("complete", "failed")


def test_splits_do_not_overlap_and_particles_are_cut(tiny, tiny_data):
    config = override(tiny, {"data.particles": 10, "probe.bank_jets": 25})
    parts = prepare(config, tiny_data, torch.device("cpu"))
    assert {name: tuple(part.particles.shape) for name, part in parts.items()} == {
        "train": (60, 10, 4), "bank": (25, 10, 4), "val": (20, 10, 4), "test": (40, 10, 4),
    }  # fmt: skip
    seen = [{jet.tobytes() for jet in parts[name].particles.numpy()} for name in ("train", "val", "test")]
    assert len(seen[0] | seen[1] | seen[2]) == 120
    assert torch.equal(parts["bank"].particles, parts["train"].particles[:25])


OUTSIDE_THE_STEP = {
    "data.train_jets": 50,
    "data.val_jets": 25,
    "data.test_jets": 35,
    "data.task": "qg",
    "data.particles": 12,
    "probe.bank_jets": 30,
    "probe.knn_k": 1,
    "probe.every": 2,
}


@pytest.mark.parametrize("knob", OUTSIDE_THE_STEP)
def test_fields_outside_the_step_are_live(spec, tiny_data, tmp_path, knob):
    other = TrialSpec(**vars(spec) | {"config": override(spec.config, {knob: OUTSIDE_THE_STEP[knob]})})
    one, two = (run_trial(s, tiny_data, Storage(tmp_path)) for s in (spec, other))
    curves = [load_curves(Storage(tmp_path), s.trial_id) for s in (spec, other)]
    assert one.trial_id != two.trial_id
    assert one.metrics != two.metrics or [r["val/knn_accuracy"] for r in curves[0]] != [
        r["val/knn_accuracy"] for r in curves[1]
    ]

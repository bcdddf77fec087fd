import dataclasses
import json

import numpy as np
import pytest
import torch

import jbot.trial.run
from jbot.config import ConfigError, override
from jbot.evaluation.metrics_registry import BASELINES, find_metric
from jbot.store.record import TrialSpec, load_curves, load_record, trial_folder
from jbot.store.storage import Storage
from jbot.trainer.inputs import prepare, resident
from jbot.trainer.pack import PackError
from jbot.trial.run import run_pack


@pytest.fixture
def spec(tiny, tiny_data) -> TrialSpec:
    return TrialSpec(study="s", arm="a", plan_hash="p", config=tiny, data_fingerprint=tiny_data.fingerprint)


def run_trial(spec, data, storage, report=None, **options):
    """A pack of one; `report` takes rows alone."""
    told = report and (lambda rows: [report(row) for _, row in rows])
    (record,) = run_pack([spec], data, storage, report=told, **options)
    return record


def changed(spec: TrialSpec, **changes) -> TrialSpec:
    over = {name.replace("__", "."): value for name, value in changes.items()}
    return dataclasses.replace(spec, config=override(spec.config, over))


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
    metrics = [find_metric(key) for key in record.metrics]
    assert all(metric.declared for metric in metrics)
    assert {metric.baseline for metric in metrics} == {"", *BASELINES}
    columns = {key for row in load_curves(storage, spec.trial_id) for key in row}
    assert {key for key in columns if not find_metric(key).declared} == set()
    assert set(record.resources) == {"pack", "engine", "peak_memory_bytes", "utilisation"}
    assert (record.resources["pack"], record.resources["engine"]) == (1, "fused")
    assert record.resources["peak_memory_bytes"] > 1e7  # torch alone is larger
    assert 0 < record.resources["utilisation"] < 1.5
    assert (
        [row["epoch"] for row in rows] == [row["epoch"] for row in load_curves(storage, spec.trial_id)] == [0, 1, 2, 3]
    )
    assert set(storage.names(trial_folder(spec.trial_id))) == {
        "record.json", "curves.parquet", "student.safetensors", "scores.safetensors", "examples.safetensors",
        "embedding.safetensors", "embedding-0000.safetensors", "embedding-0001.safetensors", "card.md",
        "student-0000.safetensors", "student-0001.safetensors",
    }  # fmt: skip
    examples = storage.read_arrays(f"{trial_folder(spec.trial_id)}/examples.safetensors")
    assert sorted(examples["label"]) == [0, 1, 2, 3, 4]
    assert (examples["masked"].sum(1) >= 1).all()


def test_nothing_is_run_twice(spec, tiny_data, tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    first = run_trial(spec, tiny_data, storage)
    monkeypatch.setattr("jbot.trial.run.train", lambda *arguments: pytest.fail("trained again"))
    assert run_pack([spec, spec], tiny_data, storage) == [first, first]
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
    monkeypatch.setattr("jbot.trial.checkpoint.CHECKPOINT_SECONDS", 0.0)


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
    wild = dataclasses.replace(spec, config=override(spec.config, {"optim.lr": 1e30, "optim.warmup_epochs": 0}))
    record = run_trial(wild, tiny_data, Storage(tmp_path))
    assert record.state == "failed"
    assert record.reason.startswith("diverged: ")
    assert record.metrics == {}
    assert load_curves(Storage(tmp_path), wild.trial_id)[0]["val/knn_accuracy"] > 0


def test_without_centering_and_spreading_nothing_is_hidden(spec, tiny_data, tmp_path):
    """A component may be switched off; whether that collapses is for the record to say, not for a crash."""
    off = {"teacher.centering": False, "loss.koleo_weight": 0.0, "mask.scheme": "none"}
    bare = dataclasses.replace(spec, config=override(spec.config, off))
    assert run_trial(bare, tiny_data, Storage(tmp_path)).state in ("complete", "failed")


def test_splits_do_not_overlap_and_particles_are_cut(tiny, tiny_data):
    config = override(tiny, {"data.particles": 10, "probe.bank_jets": 25})
    particles = resident(tiny_data, 10, torch.device("cpu"))
    rows, parts = prepare(config.data, config.probe.bank_jets, data=tiny_data, particles=particles)
    assert {name: tuple(part.take(slice(None)).shape) for name, part in parts.items()} == {
        "bank": (25, 10, 4), "val": (20, 10, 4), "test": (40, 10, 4), "signal": (0, 10, 4),
    }  # fmt: skip
    train = particles[rows]
    assert train.shape == (60, 10, 4)
    seen = [
        {jet.tobytes() for jet in part.numpy()}
        for part in (train, parts["val"].take(slice(None)), parts["test"].take(slice(None)))
    ]
    assert len(seen[0] | seen[1] | seen[2]) == 120
    assert torch.equal(parts["bank"].take(slice(None)), train[:25])


def test_labels_of_the_probes_do_not_shrink_with_the_training_set(tiny, tiny_data):
    particles = resident(tiny_data, 30, torch.device("cpu"))
    base = override(tiny, {"probe.bank_jets": 50})
    small = override(base, {"data.train_jets": 10, "data.labeled_jets": 60})
    (all_rows, judged), (rows, judged_small) = (
        prepare(config.data, config.probe.bank_jets, data=tiny_data, particles=particles) for config in (base, small)
    )
    assert torch.equal(rows, all_rows[:10])
    assert all(torch.equal(judged[part].rows, judged_small[part].rows) for part in ("bank", "val", "test"))
    with pytest.raises(ConfigError, match=r"must not exceed data\.train_jets and probe\.bank_jets, got 20 > 10"):
        override(base, {"data.train_jets": 10, "probe.knn_k": 20})
    assert override(small, {"probe.knn_k": 20}).probe.knn_k == 20


def test_jets_shared_by_trials_are_not_copied_nor_written(tiny_data):
    shared = dataclasses.replace(tiny_data, particles=tiny_data.particles.copy())
    shared.particles.flags.writeable = False  # as they come out of Ray's object store
    particles = resident(shared, 30, torch.device("cpu"))
    assert particles.data_ptr() == shared.particles.ctypes.data


OUTSIDE_THE_STEP = {
    "data.train_jets": 50,
    "data.labeled_jets": 70,
    "data.val_jets": 25,
    "data.test_jets": 35,
    "data.task": "tqg",
    "data.particles": 12,
    "probe.bank_jets": 30,
    "probe.knn_k": 1,
    "probe.every": 3,
}


@pytest.mark.parametrize("knob", OUTSIDE_THE_STEP)
def test_fields_outside_the_step_are_live(spec, tiny_data, tmp_path, knob):
    other = dataclasses.replace(spec, config=override(spec.config, {knob: OUTSIDE_THE_STEP[knob]}))
    one, two = (run_trial(s, tiny_data, Storage(tmp_path)) for s in (spec, other))
    curves = [load_curves(Storage(tmp_path), s.trial_id) for s in (spec, other)]
    assert one.trial_id != two.trial_id
    assert one.metrics != two.metrics or [r["val/knn_accuracy"] for r in curves[0]] != [
        r["val/knn_accuracy"] for r in curves[1]
    ]


def test_the_floor_without_an_encoder_is_made_once(spec, tiny_data, tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    first = run_trial(spec, tiny_data, storage)
    (name,) = storage.names("floors")
    with monkeypatch.context() as patch:
        patch.setattr(jbot.trial.run.Evaluator, "raw", lambda self: pytest.fail("made again"))
        second = run_trial(changed(spec, seed=3), tiny_data, storage)
    floor = {metric: value for metric, value in first.metrics.items() if metric.startswith("raw/")}
    assert floor["raw/test/knn_accuracy"] > 0
    assert floor == {metric: value for metric, value in second.metrics.items() if metric.startswith("raw/")}
    assert first.uncertainties["raw/test/knn_auc"] == second.uncertainties["raw/test/knn_auc"]
    storage.write(f"floors/{name}", b'{"knn_accuracy": 1}')  # damaged
    third = run_trial(changed(spec, seed=4), tiny_data, storage)
    assert floor == {metric: value for metric, value in third.metrics.items() if metric.startswith("raw/")}
    run_trial(changed(spec, data__test_jets=35), tiny_data, storage)
    assert len(storage.names("floors")) == 2


DIFFERENT = (
    {},
    {"seed": 4, "mask__scheme": "random", "augment__split_fraction": 0.0, "data__train_jets": 45},
    {"seed": 6, "optim__lr": 5e-4, "loss__koleo_weight": 0.0, "mask__ratio_high": 0.8, "data__task": "tqg"},
    {"seed": 5, "mask__scheme": "none", "loss__student_temp": 0.2, "teacher__ema_momentum": 0.9},
)


@pytest.fixture
def four(spec) -> list[TrialSpec]:
    """Trials that may share a pack and differ."""
    return [changed(spec, **changes) for changes in DIFFERENT]


def assert_same_result(one, other):
    """The same trial, whatever it rode in."""
    assert (one.trial_id, one.state, one.reason) == (other.trial_id, other.state, other.reason)
    assert one.metrics == pytest.approx(other.metrics, rel=1e-9)


def test_a_packs_records_are_those_of_each_trial_alone(four, tiny_data, tmp_path):
    together, alone = Storage(tmp_path / "together"), Storage(tmp_path / "alone")
    told, ends = [], []
    records = run_pack(
        four, tiny_data, together, dtype=torch.float64,
        report=lambda rows: told.extend((spec.trial_id, row["epoch"]) for spec, row in rows),
        ended=lambda spec, r: ends.append(r),
    )  # fmt: skip
    assert records == ends == [load_record(together, spec.trial_id) for spec in four]
    assert sorted(told) == sorted((spec.trial_id, epoch) for spec in four for epoch in range(4))
    assert {record.state for record in records} == {"complete"}
    for spec, record in zip(four, records, strict=True):
        assert_same_result(record, run_trial(spec, tiny_data, alone, dtype=torch.float64))
        assert record.resources["pack"] == 4
        for name, value in student(alone, spec).items():
            np.testing.assert_allclose(student(together, spec)[name], value, rtol=0, atol=1e-10)
        curves = [load_curves(storage, spec.trial_id) for storage in (together, alone)]
        assert [row["step"] for row in curves[0]] == [row["step"] for row in curves[1]]
    # Seconds of steps are shared out by jets seen: 45 for the second trial, 60 for the others.
    train_seconds = [record.device_seconds - record.probe_seconds for record in records]
    assert train_seconds[1] == pytest.approx(train_seconds[0] * 45 / 60, abs=0.003)
    assert sum(record.device_seconds for record in records) < max(record.wall_seconds for record in records)


def test_with_the_kernel_a_pack_changes_no_bit(four, tiny_data, tmp_path):
    """Where rounding grows: no second moment, a tiny eps, gradients that are zero up to rounding."""
    wild = changed(four[0], seed=9, optim__beta2=0.0, optim__eps=1e-12, mask__scheme="random", mask__ratio_high=1.0)
    together, alone = Storage(tmp_path / "together"), Storage(tmp_path / "alone")
    pack = [*four, wild]
    for spec, record in zip(pack, run_pack(pack, tiny_data, together, engine="fused"), strict=True):
        lone = run_trial(spec, tiny_data, alone, engine="fused")
        assert (record.state, record.metrics) == (lone.state, lone.metrics)
        for name, value in student(alone, spec).items():
            np.testing.assert_array_equal(student(together, spec)[name], value)
        curves = [load_curves(storage, spec.trial_id) for storage in (together, alone)]
        assert [row | {"device_seconds": 0} for row in curves[0]] == [row | {"device_seconds": 0} for row in curves[1]]


def test_a_trial_goes_on_in_another_pack(four, tiny_data, tmp_path, always_save):
    """Killed in a pack of four; one goes on alone, the others in a pack with a trial that begins."""
    broken, alone = Storage(tmp_path / "broken"), Storage(tmp_path / "alone")
    report = kill_after(2)
    with pytest.raises(Killed):
        run_pack(four, tiny_data, broken, report=lambda rows: report(rows[0][1]), dtype=torch.float64)
    newcomer = changed(four[0], seed=10)
    rounds = []
    records = [
        *run_pack(four[:1], tiny_data, broken, dtype=torch.float64),
        *run_pack(
            [newcomer, *four[1:]], tiny_data, broken, dtype=torch.float64,
            report=lambda rows: rounds.extend((spec.config.seed, row["epoch"]) for spec, row in rows),
        ),
    ]  # fmt: skip
    assert [record.attempts for record in records] == [2, 1, 2, 2, 2]
    assert rounds[:3] == [(10, 0), (10, 1), (10, 2)]  # it catches up before the others go on
    for spec, record in zip([four[0], newcomer, *four[1:]], records, strict=True):
        assert_same_result(record, run_trial(spec, tiny_data, alone, dtype=torch.float64))
        for name, value in student(alone, spec).items():
            np.testing.assert_allclose(student(broken, spec)[name], value, rtol=0, atol=1e-10)


def test_a_failure_in_a_pack_ends_one_trial(four, tiny_data, tmp_path):
    wild = changed(four[1], optim__lr=1e30, optim__warmup_epochs=0)
    ends, seen = [], []
    records = run_pack(
        [four[0], wild, four[3]], tiny_data, Storage(tmp_path / "pack"), dtype=torch.float64,
        report=lambda rows: seen.extend(row["epoch"] for _, row in rows),
        ended=lambda spec, r: ends.append((r.state, max(seen))),
    )  # fmt: skip
    assert ends == [("failed", 1), ("complete", 3), ("complete", 3)]  # the others went on
    assert records[1].reason.startswith("diverged: ")
    for spec, record in ((four[0], records[0]), (four[3], records[2])):
        assert_same_result(record, run_trial(spec, tiny_data, Storage(tmp_path / "alone"), dtype=torch.float64))


@pytest.mark.parametrize("where", ["curve_point", "final"])
def test_an_error_in_judging_one_trial_leaves_the_others_their_records(four, tiny_data, tmp_path, monkeypatch, where):
    """No outcome of the trial: it has no record, and the same pack again runs it alone."""
    judge = getattr(jbot.trial.run.Evaluator, where)

    def broken(self, state, **options):
        if self.config == four[1].config and state.epoch > 0:
            raise MemoryError("no room for the probe")
        return judge(self, state, **options)

    storage = Storage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(jbot.trial.run.Evaluator, where, broken)
        with pytest.raises(MemoryError, match="no room for the probe"):
            run_pack(four, tiny_data, storage)
    assert [load_record(storage, spec.trial_id) is None for spec in four] == [False, True, False, False]
    records = run_pack(four, tiny_data, storage)
    assert [(record.state, record.resources["pack"]) for record in records] == [
        ("complete", 4), ("complete", 1), ("complete", 4), ("complete", 4)
    ]  # fmt: skip


def test_trials_of_other_shapes_do_not_ride_together(spec, tiny_data, tmp_path):
    with pytest.raises(PackError, match=r"trials of a pack must share model\.dim, got 8 and 16"):
        run_pack([spec, changed(spec, model__dim=16)], tiny_data, Storage(tmp_path))
    assert Storage(tmp_path).names() == []

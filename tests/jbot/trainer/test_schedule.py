"""Changes while a trial trains, and trials that stop early and are gone on from."""

import json

import numpy as np
import pytest
import torch
from helpers import make_jets
from test_loop import CPU, assert_same_rows, run

import jbot.trial.run
from jbot.config import (
    FIELDS,
    Config,
    ConfigError,
    at_epoch,
    can_change,
    flatten,
    from_dict,
    override,
    parse_value,
    to_dict,
)
from jbot.store.record import TrialSpec, load_curves, load_record, trial_folder, trial_id
from jbot.store.storage import Storage
from jbot.trainer.loop import learning_rate, run_steps
from jbot.trainer.pack import Pack
from jbot.trainer.state import init_state
from jbot.trial.reuse import load_state
from jbot.trial.run import run_pack

SCHEDULE = ["1 optim.lr=0.01", "2 loss.koleo_weight=0.5", "2 mask.ratio_high=0.9", "2 augment.rotation=0"]


def scheduled(config: Config, *changes: str, **more) -> Config:
    return override(config, {"train.schedule": list(changes)} | more)


# --- the field ---------------------------------------------------------------------------------------------------


def test_equal_schedules_are_equal_trials(tiny):
    one = scheduled(tiny, "2 optim.lr=1e-3", "1 loss.koleo_weight=0.50", "2 mask.ratio_low=0")
    other = scheduled(tiny, "1   loss.koleo_weight = .5", "2 optim.lr=0.001", "1 optim.lr=0.002")
    assert one.train.schedule == other.train.schedule == ("1 loss.koleo_weight=0.5", "2 optim.lr=0.001")
    assert trial_id(one, "data", "2") == trial_id(other, "data", "2") != trial_id(tiny, "data", "2")
    assert scheduled(tiny, "1 optim.lr=0.002") == tiny  # does nothing
    assert scheduled(tiny, "1 optim.lr=1").train.schedule == ("1 optim.lr=1",)


def test_until_cuts_the_schedule_and_the_last_epoch_is_no_stop(tiny):
    whole = scheduled(tiny, "1 optim.lr=0.001", "2 optim.lr=0.01")
    assert override(whole, {"train.until": 2}).train.schedule == ("1 optim.lr=0.001",)
    assert override(whole, {"train.until": 3}) == whole
    assert [override(whole, {"train.until": n}).train.last_epoch for n in (0, 1, 2, 3)] == [3, 1, 2, 3]


def test_the_round_trips_of_the_command_line_and_of_records(tiny):
    text = json.dumps(SCHEDULE)
    config = override(tiny, {"train.schedule": parse_value("train.schedule", text)})
    assert config.train.schedule == (*SCHEDULE[:1], "2 augment.rotation=0", *SCHEDULE[1:3])
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.schedule": "1 optim.lr=1"}, 'train.schedule must be a list like ["4 optim.lr=0.001"], got \'1 opt'),
        ({"train.schedule": [1]}, "train.schedule must be str, got 1 (int)"),
        ({"train.schedule": ["optim.lr=1"]}, "a list of changes like \"4 optim.lr=0.001\", got 'optim.lr=1'"),
        ({"train.schedule": ["-1 optim.lr=1"]}, "a list of changes like"),
        ({"train.schedule": ["1 optim.lt=1"]}, "unknown Config field 'optim.lt'; did you mean 'optim.lr'?"),
        ({"train.schedule": ["1 model.dim=4"]}, "train.schedule may change augment.rotation, "),
        ({"train.schedule": ["1 mask.scheme=none"]}, "got 'mask.scheme'"),
        ({"train.schedule": ["1 optim.warmup_epochs=2"]}, "got 'optim.warmup_epochs'"),
        ({"train.schedule": ["1 optim.lr=fast"]}, "train.schedule must set numbers, got '1 optim.lr=fast'"),
        ({"train.schedule": ["1 optim.lr=0"]}, "train.schedule: optim.lr must be finite and in (0, inf], got 0"),
        ({"train.schedule": ["1 optim.lr=nan"]}, "train.schedule: optim.lr must be finite"),
        ({"train.schedule": ["0 optim.lr=1"]}, "at epochs 1 to 79 (train.epochs - 1), got '0 optim.lr=1'"),
        ({"train.schedule": ["80 optim.lr=1"]}, "at epochs 1 to 79 (train.epochs - 1), got '80 optim.lr=1'"),
        ({"train.schedule": ["4 optim.lr=1", "4 optim.lr=2"]}, "must change a field once an epoch, got '4 optim.lr=1'"),
        (
            {"train.schedule": ["4 mask.ratio_low=0.6"]},
            "train.schedule at '4 mask.ratio_low=0.6': mask.ratio_low must not exceed mask.ratio_high, got 0.6 > 0.5",
        ),
        ({"train.until": 81}, "train.until must not exceed train.epochs, got 81 > 80"),
        ({"train.until": -1}, "train.until must be finite and in [0, 1e+09], got -1"),
    ],
)
def test_bad_schedules_name_rule_and_value(changes, words):
    with pytest.raises(ConfigError) as error:
        override(Config(), changes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_bounds_that_move_together_may(tiny):
    config = scheduled(tiny, "1 mask.ratio_low=0.6", "1 mask.ratio_high=0.8")
    assert at_epoch(config, 0).mask.ratio_high == 0.5
    assert at_epoch(config, 2).mask.ratio_low == 0.6


def test_what_can_change_is_each_trials_own():
    found = {name for name in flatten(Config()) if can_change(name)}
    assert {"optim.lr", "loss.koleo_weight", "loss.teacher_temp", "mask.ratio_high", "augment.rotation"} < found
    assert not any(FIELDS[name].shared for name in found)
    assert not can_change("optim.lt")


# --- the training ------------------------------------------------------------------------------------------------


def test_a_change_holds_from_its_epoch_on_bit_for_bit(tiny):
    """Trained by hand: each stage with a Config that says nothing of schedules."""
    jets = torch.from_numpy(make_jets(50, 2))
    config = scheduled(tiny, *SCHEDULE)
    found = run([config], jets)
    state = init_state(tiny, [tiny.seed], CPU)
    second = {"optim.lr": 0.01}
    third = second | {"loss.koleo_weight": 0.5, "mask.ratio_high": 0.9, "augment.rotation": 0.0}
    stages = [{}, second, third]
    for epoch, changes in enumerate(stages, start=1):
        run([override(tiny, changes | {"train.until": epoch})], jets, state=state)
    assert torch.equal(found.student, state.student)
    assert torch.equal(found.teacher, state.teacher)
    assert [row.get("train/lr") for row in found.progress[0].curves] == [None, 0.002, 0.01, 0.01]
    assert not torch.equal(found.student, run([tiny], jets).student)


@pytest.mark.parametrize("name", [name for name in flatten(Config()) if can_change(name)])
def test_every_field_that_can_change_is_felt_from_then_on(tiny, name):
    jets = torch.from_numpy(make_jets(40, 2)).double()
    low = {"augment.split_low": 0.1, "augment.soft_pt": 0.2, "mask.ratio_low": 0.4}
    value = flatten(tiny)[name]
    wanted = low.get(name, 0.5 * value if value else 0.05)
    companions = {
        "augment.soft_pt": {"augment.soft_dropout": 0.9},
        "optim.final_lr": {"optim.warmup_epochs": 0},  # of two epochs the second is then the last of those that fall
    }.get(name, {})
    base = override(tiny, {"train.epochs": 2} | companions)
    before, after = run([base], jets), run([scheduled(base, f"1 {name}={wanted}")], jets)
    first, second = ([row.get("train/loss") for row in state.progress[0].curves] for state in (before, after))
    assert first[:2] == second[:2]
    assert not torch.equal(before.student, after.student) or not torch.equal(before.teacher, after.teacher)


def test_warm_up_and_ema_run_on_all_epochs(tiny):
    jets = torch.from_numpy(make_jets(40, 2))
    long = override(tiny, {"train.epochs": 6, "optim.warmup_epochs": 4})
    whole, part = (run([c], jets).progress[0].curves for c in (long, override(long, {"train.until": 2})))
    assert [row["epoch"] for row in part] == [0, 1, 2]
    assert [row.get("train/ema_momentum") for row in part] == [row.get("train/ema_momentum") for row in whole[:3]]
    assert [row.get("train/loss") for row in part] == [row.get("train/loss") for row in whole[:3]]


def test_trials_with_different_schedules_ride_together(tiny):
    jets = torch.from_numpy(make_jets(40, 2)).double()
    configs = [
        tiny,
        scheduled(tiny, *SCHEDULE, seed=1),
        scheduled(tiny, "1 loss.student_temp=0.2", seed=4),
        scheduled(tiny, "1 optim.lr=0.01", seed=6, **{"train.until": 2}),
        override(tiny, {"seed": 7, "train.until": 1}),
    ]
    seen = []
    pack = run(configs, jets, after=seen.append)
    assert seen == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2]]
    for row, config in enumerate(configs):
        assert_same_rows(pack, row, run([config], jets), rtol=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recorded_step_does_not_keep_an_earlier_value(tiny):
    """CUDA graphs are recorded anew: with the old ones, the second epoch would repeat the first one's hyper."""
    cuda, jets = torch.device("cuda"), torch.from_numpy(make_jets(64, 2)).cuda()
    config = scheduled(tiny, "1 loss.koleo_weight=5", "1 optim.weight_decay=0.5")
    made = {}
    for name, configs in {"graphs": [config], "by hand": [tiny, at_epoch(config, 1)]}.items():
        state, pack = init_state(tiny, [0], cuda), Pack([configs[0]], cuda)
        for epoch in (0, 1):
            if name == "graphs":
                pack.enter([0], epoch)
            else:
                pack = Pack([configs[epoch]], cuda)
                pack.graphs = None
            values = learning_rate(1, 3, tiny.optim), 0.9
            rates = (torch.tensor([value], dtype=torch.float64, device=cuda) for value in values)
            run_steps(state, jets.view(4, 1, 16, 30, 4), pack, (0,), *rates)
        made[name] = state.student.cpu()
    torch.testing.assert_close(made["graphs"], made["by hand"], atol=1e-5, rtol=0)


# --- trials that go on from others -------------------------------------------------------------------------------


def spec_of(config: Config, data) -> TrialSpec:
    return TrialSpec(study="s", arm="a", plan_hash="p", config=config, data_fingerprint=data.fingerprint)


def train_one(config: Config, data, storage: Storage, report=None):
    return run_pack([spec_of(config, data)], data, storage, report=report)[0]


def assert_same_trial(one, other, there: Storage, here: Storage):
    """All that a trial leaves, bit for bit, but seconds, dates and where it started."""
    assert (one.state, one.metrics, one.uncertainties) == (other.state, other.metrics, other.uncertainties)
    folder = trial_folder(one.trial_id)
    arrays = [name for name in there.names(folder) if name.endswith(".safetensors")]
    assert arrays == [name for name in here.names(folder) if name.endswith(".safetensors")]
    assert {"student.safetensors", "embedding-0000.safetensors", "student-0001.safetensors"} <= set(arrays)
    for name in arrays:
        mine, theirs = (storage.read_arrays(f"{folder}/{name}") for storage in (there, here))
        for key, value in mine.items():
            np.testing.assert_array_equal(value, theirs[key])
    curves = [[r | {"device_seconds": 0} for r in load_curves(s, one.trial_id)] for s in (there, here)]
    assert curves[0] == curves[1]


def epochs_trained(monkeypatch) -> list[int]:
    """The epochs that are trained from now on."""
    seen, run_epoch = [], jbot.trainer.loop.run_epoch

    def watched(pack, particles, rows, state, trials, forward):
        seen.append(state.progress[trials[0]].epoch)
        return run_epoch(pack, particles, rows, state, trials, forward)

    monkeypatch.setattr(jbot.trainer.loop, "run_epoch", watched)
    return seen


@pytest.mark.parametrize("every", [1, 2, 10])
def test_a_trial_starts_where_its_beginning_stopped(tiny, tiny_data, tmp_path, monkeypatch, every):
    alone, chain = Storage(tmp_path / "alone"), Storage(tmp_path / "chain")
    whole = scheduled(tiny, *SCHEDULE, **{"probe.every": every, "train.epochs": 5})
    straight = train_one(whole, tiny_data, alone)
    assert straight.continues is None
    assert "state.json" not in alone.names(trial_folder(straight.trial_id))
    seen, before = epochs_trained(monkeypatch), None
    for until in (1, 2, 4, 0):
        told = []
        record = train_one(override(whole, {"train.until": until}), tiny_data, chain, told.extend)
        assert record.continues == before
        before = record.trial_id
        # Listeners hear of the whole curve.
        points = load_curves(chain, record.trial_id)
        assert [row for _, row in told] == [{k: v for k, v in row.items() if v is not None} for row in points]
    assert seen == [0, 1, 2, 3, 4]  # each once
    assert_same_trial(straight, record, alone, chain)


def test_another_change_goes_on_from_the_same_beginning_in_a_pack(tiny, tiny_data, tmp_path, monkeypatch):
    """What copies a donor shares its seed and its schedule so far."""
    alone, here = Storage(tmp_path / "alone"), Storage(tmp_path / "here")
    donor = override(tiny, {"loss.koleo_weight": 0.1})
    first = train_one(override(donor, {"train.until": 2}), tiny_data, here)
    others = [donor, scheduled(donor, "2 loss.koleo_weight=0.08"), scheduled(donor, "2 optim.lr=0.003")]
    stranger = override(tiny, {"loss.koleo_weight": 0.2})
    seen = epochs_trained(monkeypatch)
    records = run_pack([spec_of(c, tiny_data) for c in (*others, stranger)], tiny_data, here)
    assert [record.continues for record in records] == [first.trial_id] * 3 + [None]
    assert seen == [0, 1, 2]  # the stranger catches up, then all
    for config, record in zip((*others, stranger), records, strict=True):
        assert_same_trial(train_one(config, tiny_data, alone), record, alone, here)


@pytest.mark.parametrize("damage", ["arrays", "json", "flipped", "other", "gone"])
def test_a_damaged_state_is_not_started_from(tiny, tiny_data, tmp_path, damage, recwarn):
    alone, here = Storage(tmp_path / "alone"), Storage(tmp_path / "here")
    straight = train_one(tiny, tiny_data, alone)
    first = train_one(override(tiny, {"train.until": 2}), tiny_data, here)
    folder = trial_folder(first.trial_id)
    arrays, saved = here.read(f"{folder}/state.safetensors"), here.read_json(f"{folder}/state.json")
    if damage == "arrays":
        here.write(f"{folder}/state.safetensors", arrays[:100])
    elif damage == "json":
        here.write(f"{folder}/state.json", b"{}")
    elif damage == "flipped":
        here.write(f"{folder}/state.safetensors", arrays[:-1] + bytes([arrays[-1] ^ 1]))
    elif damage == "other":
        here.write_json(f"{folder}/state.json", saved | {"state": saved["state"] | {"epoch": 1}})
    else:
        here.remove_file(f"{folder}/state.json")
    record = train_one(tiny, tiny_data, here)
    assert [str(w.message)[:60] for w in recwarn if "damaged" in str(w.message)] == (
        [] if damage == "gone" else [f"the state of trial {first.trial_id} is damaged, training from before"[:60]]
    )
    assert record.continues is None
    assert_same_trial(straight, record, alone, here)


def test_a_killed_trial_remembers_whose_state_it_started_from(tiny, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("jbot.trial.checkpoint.CHECKPOINT_SECONDS", 0.0)
    storage = Storage(tmp_path)
    first = train_one(override(tiny, {"train.until": 1}), tiny_data, storage)

    def kill(rows):
        if rows[-1][1]["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_one(tiny, tiny_data, storage, kill)
    storage.remove(trial_folder(first.trial_id))  # no longer needed
    record = train_one(tiny, tiny_data, storage)
    assert (record.continues, record.attempts) == (first.trial_id, 2)
    assert load_record(storage, record.trial_id) == record


def test_a_failed_beginning_leaves_no_state(tiny, tiny_data, tmp_path):
    storage = Storage(tmp_path)
    wild = override(tiny, {"optim.lr": 1e30, "optim.warmup_epochs": 0})
    first = train_one(override(wild, {"train.until": 2}), tiny_data, storage)
    assert first.state == "failed"
    assert train_one(wild, tiny_data, storage).reason == first.reason
    assert "state.json" not in storage.names(trial_folder(first.trial_id))


def test_the_state_says_all_of_a_training(tiny, tiny_data, tmp_path):
    storage = Storage(tmp_path)
    record = train_one(override(tiny, {"train.until": 2}), tiny_data, storage)
    state = load_state(storage, record.trial_id, init_state(tiny, [0], CPU))
    assert int(state.step[0]) == 2 * -(-60 // 16)
    assert state.epoch == 2
    assert set(state.tensors()) == {"student", "teacher", "moment1", "moment2", "cls_center", "particle_center", "step"}
    assert len(state.progress[0].curves) == 3

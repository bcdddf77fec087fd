import dataclasses
import json
import math
import os
import pickle

import numpy as np
import pytest

from jbot import TRAINER_VERSION
from jbot.config import Config, override, to_dict
from jbot.store.record import Record, load_curves, load_record, save_record, trial_id
from jbot.store.storage import RecordError, Storage, open_folder

RECORD = Record(
    trial_id="abc",
    state="complete",
    study="s",
    arm="a",
    plan_hash="p",
    config=to_dict(override(Config(), {"seed": 3})),
    data={"fingerprint": "f", "source": "x"},
    metrics={"test/knn_accuracy": 0.5},
    trainer_version="1",
    started="2026-01-01T00:00:00+00:00",
    wall_seconds=1.0,
    device_seconds=0.5,
)


def test_round_trip(tmp_path):
    storage = Storage(tmp_path)
    assert load_record(storage, "abc") is None
    save_record(storage, RECORD)
    assert load_record(storage, "abc") == RECORD
    assert RECORD.seed == 3


def test_a_record_from_before_packs_is_read(tmp_path):
    older = {name: value for name, value in dataclasses.asdict(RECORD).items() if name != "resources"}
    Storage(tmp_path).write_json("trials/abc/record.json", older)
    assert load_record(Storage(tmp_path), "abc") == RECORD


def test_a_pipe_or_a_folder_in_the_place_of_a_record_is_not_waited_for(tmp_path):
    folder = tmp_path / "trials" / "abc"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "record.json")
    (tmp_path / "trials" / "abd" / "record.json").mkdir(parents=True)
    for trial in ("abc", "abd"):
        with pytest.raises(RecordError, match=rf"trials/{trial}/record\.json cannot be read: it is no file"):
            load_record(Storage(tmp_path), trial)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": {"test/knn_auc": math.nan}}, "metric test/knn_auc must be finite, got nan"),
        ({"metrics": {}}, "a complete trial must have metrics"),
        ({"wall_seconds": -1.0}, "wall_seconds must be finite and not negative, got -1"),
        ({"device_seconds": math.inf}, "device_seconds must be finite"),
        ({"data": {}}, "data.fingerprint must be text"),
        ({"trainer_version": TRAINER_VERSION}, "config and jets make it trial [0-9a-f]+, but it says abc"),
        ({"trial_id": "abd"}, "the record of trial abd lies in the folder of abc"),
    ],
)
def test_a_record_is_checked_in_full_without_a_seal_too(tmp_path, changes, said):
    Storage(tmp_path).write("trials/abc/record.json", spoiled(**changes))
    with pytest.raises(RecordError, match=said):
        load_record(Storage(tmp_path), "abc")


def test_another_seed_makes_it_another_trial(tmp_path):
    config, storage = override(Config(), {"seed": 3}), Storage(tmp_path)
    own = trial_id(config, "f", TRAINER_VERSION)
    save_record(storage, dataclasses.replace(RECORD, trial_id=own, trainer_version=TRAINER_VERSION))
    assert load_record(storage, own).seed == 3
    other = to_dict(override(config, {"seed": 4}))
    storage.write(f"trials/{own}/record.json", spoiled(trial_id=own, trainer_version=TRAINER_VERSION, config=other))
    with pytest.raises(RecordError, match=f"make it trial .*, but it says {own}"):
        load_record(storage, own)


def spoiled(**changes) -> bytes:
    return json.dumps(dataclasses.asdict(RECORD) | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"schema": 99}', b'{"schema": 1, "odd": 2}', b"\xff\xfe",
        spoiled(state="fine"), spoiled(metrics=None), spoiled(config="x"), spoiled(config={"seed": "3"}),
    ],
)  # fmt: skip
def test_a_damaged_record_is_named(tmp_path, content):
    storage = Storage(tmp_path)
    storage.write("trials/abc/record.json", content)
    with pytest.raises(RecordError, match=r"trials/abc/record\.json") as error:
        load_record(storage, "abc")
    assert "\n" not in str(error.value)


def test_a_write_that_dies_leaves_the_old_file(tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    storage.write("file", b"old")
    monkeypatch.setattr("jbot.store.storage.os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        storage.write("file", b"new")
    assert storage.read("file") == b"old"
    assert storage.names() == ["file"]


def test_no_nan_gets_into_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_record(Storage(tmp_path), dataclasses.replace(RECORD, metrics={"x": float("nan")}))


def test_tables_and_arrays(tmp_path):
    storage = Storage(tmp_path / "deeper")
    storage.write_rows("trials/t/curves.parquet", [{"epoch": 0}, {"epoch": 1, "train/loss": 2.0}])
    assert load_curves(storage, "t") == [{"epoch": 0, "train/loss": None}, {"epoch": 1, "train/loss": 2.0}]
    assert load_curves(storage, "none") == []
    transposed = np.arange(6).reshape(2, 3).T
    storage.write_arrays("a.safetensors", {"x": transposed})
    np.testing.assert_array_equal(storage.read_arrays("a.safetensors")["x"], transposed)
    storage.write("a.safetensors", b"truncated")
    with pytest.raises(RecordError, match="not a valid safetensors file"):
        storage.read_arrays("a.safetensors")


def test_a_study_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "study").mkdir()
    for place, folder in (
        (tmp_path, "study/"),
        (tmp_path / "study", "."),
        (tmp_path, "./study"),
        ("/", f"file://{tmp_path}/study"),
    ):
        monkeypatch.chdir(place)
        storage, name = open_folder(folder)
        assert (storage.uri, name) == (str(tmp_path), "study")


def test_any_filesystem_of_pyarrow(tmp_path):
    storage = pickle.loads(pickle.dumps(Storage(f"file://{tmp_path}/bucket")))
    storage.write("a/b", b"1")
    assert storage.names("a") == ["b"]
    assert storage.exists("a")
    storage.remove("a")
    assert not storage.exists("a/b")
    with pytest.raises(RecordError, match="no a/b in"):
        storage.read("a/b")

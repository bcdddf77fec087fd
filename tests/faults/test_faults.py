"""Faults that take seconds: damaged files, storage that is full or read-only, drivers that are stopped or killed.

Those that need Ray, networks or minutes are in test_faults_long.py, which `make chaos` runs.
"""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import TINY
from promise import NAME, Before, Undisturbed, is_temporary, results
from test_shared_encoder import JETS, JUDGED, spec_of

import studies.runner.execute
from cluster.resources import Resources
from cluster.scheduling.run import cleanup, open_trials, run_inline, scratch_storage
from jbot.config import Config, override
from jbot.store.attempts import checkpoint_folder, is_newest, note_attempt
from jbot.store.processes import host_id
from jbot.store.record import TrialSpec, load_record
from jbot.store.storage import RecordError, Storage, UnreadableError
from jbot.trial.checkpoint import read_state
from jbot.trial.run import run_pack
from studies.masking_ablation import study as masking_ablation

SHORT = ["--set", "train.epochs=4", "--set", "probe.every=2"]


@pytest.fixture(autouse=True)
def checkpoints_after_every_epoch(monkeypatch):
    monkeypatch.setattr("jbot.trial.checkpoint.CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"), *SHORT, here=True)


# --- damaged files ----------------------------------------------------------------------------------------------------


def damages(content: bytes) -> dict[str, bytes]:
    """A file emptied, cut at several places, and with one bit changed at several places."""
    size, rng = len(content), random.Random(1)
    found = {"emptied": b""} | {f"cut at {at}": content[:at] for at in (8, size // 2, size - 1)}
    for at in (0, size - 1, *rng.sample(range(size), 2)):
        found[f"bit at {at}"] = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
    return found


class Killed(BaseException):
    """As sudden as a signal."""


def spec(data) -> TrialSpec:
    config = override(Config(), TINY)
    return TrialSpec(study="s", arm="a", plan_hash="p", config=config, data_fingerprint=data.fingerprint)


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    """A finished trial that nothing happened to, and its storage."""
    storage = Storage(tmp_path_factory.mktemp("whole"))
    return run_pack([spec(tiny_data)], tiny_data, storage)[0], storage


def interrupt(data, storage: Storage, epoch: int) -> None:
    """Leave a trial as kill -9 does."""

    def report(rows):
        if rows[0][1]["epoch"] == epoch:
            raise Killed

    with pytest.raises(Killed):
        run_pack([spec(data)], data, storage, report=report)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_damaged_checkpoint_costs_time_and_nothing_else(tiny_data, tmp_path, whole, suffix):
    record, quiet = whole
    broken = Storage(tmp_path / "broken")
    interrupt(tiny_data, broken, epoch=2)
    folder = f"trials/{record.trial_id}/checkpoint"
    (name,) = [name for name in broken.names(folder) if name.startswith("state") and name.endswith(suffix)]
    files = {name: broken.read(f"{folder}/{name}") for name in broken.names(folder)}
    for number, (damage, content) in enumerate(damages(files[name]).items()):
        storage = Storage(tmp_path / str(number))
        for other, kept in (files | {name: content}).items():
            storage.write(f"{folder}/{other}", kept)
        with pytest.warns(UserWarning, match="is damaged, starting over"):
            (again,) = run_pack([spec(tiny_data)], tiny_data, storage)
        assert results(storage, record.trial_id) == results(quiet, record.trial_id), damage
        assert again.attempts == 2, damage
        assert [path for path in Path(storage.uri).rglob("*") if is_temporary(path)] == [], damage


class Failing:
    """A file system that gives no file whose name ends in one of these."""

    def __init__(self, storage: Storage, *ends: str):
        self.inner, self.ends = storage._fs, ends
        storage._fs = self

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def open_input_stream(self, path: str):
        if path.endswith(self.ends):
            raise OSError("the network is down")
        return self.inner.open_input_stream(path)


@pytest.mark.parametrize("end", ["checkpoint/state.json", ".safetensors"])
def test_a_checkpoint_that_cannot_be_read_now_is_kept(tiny_data, tmp_path, whole, end, recwarn):
    record, quiet = whole
    storage, broken = Storage(tmp_path), Storage(tmp_path)
    interrupt(tiny_data, storage, epoch=2)
    folder = f"trials/{record.trial_id}/checkpoint"
    files = {name: storage.read(f"{folder}/{name}") for name in storage.names(folder)}
    Failing(broken, end)
    with pytest.raises(UnreadableError, match=r"checkpoint/state.* cannot be read: the network is down"):
        run_pack([spec(tiny_data)], tiny_data, broken)
    assert {name: storage.read(f"{folder}/{name}") for name in files} == files
    (again,) = run_pack([spec(tiny_data)], tiny_data, storage)
    assert again.attempts == 3
    assert results(storage, record.trial_id) == results(quiet, record.trial_id)
    assert not [said for said in recwarn if "damaged" in str(said.message)]


def test_a_record_that_cannot_be_read_now_is_not_called_damaged(tiny_data, whole):
    broken = Storage(whole[1].uri)
    Failing(broken, "record.json")
    with pytest.raises(UnreadableError, match=r"cannot be read: the network is down$"):
        open_trials([spec(tiny_data)], broken)


def test_a_storage_that_fails_is_no_bad_input(monkeypatch, capsys):
    def run(study, options):
        raise UnreadableError("s3://bucket/trials/x/record.json cannot be read: the network is down")

    monkeypatch.setattr(studies.runner.execute, "run", run)
    with pytest.raises(SystemExit) as stopped:
        studies.main(masking_ablation, ["--inline"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.endswith("is down: no finished trial is lost, the same command continues\n")


def test_no_bit_of_a_checkpoint_can_change_unseen(tiny_data, tmp_path):
    storage, rng = Storage(tmp_path), random.Random(2)
    interrupt(tiny_data, storage, epoch=2)
    folder = checkpoint_folder(spec(tiny_data).trial_id)
    right = read_state(storage, folder, "state")[0]
    for name in storage.names(folder):
        content = storage.read(path := f"{folder}/{name}")
        places = rng.sample(range(len(content)), 100) if name.startswith("state") else []
        if name == "state.json":
            places.append(content.index(b"seal"))  # the name of the checksum itself
        for at in places:
            storage.write(path, content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :])
            with contextlib.suppress(RecordError, KeyError, TypeError):
                assert read_state(storage, folder, "state")[0] == right, (name, at)  # as where a space has become a tab
        storage.write(path, content)


def test_a_damaged_record_is_named_kept_and_made_again_when_it_is_moved_away(tiny_data, tmp_path, whole):
    record, quiet = whole
    name = f"trials/{record.trial_id}/record.json"
    storage = Storage(tmp_path)
    run_pack([spec(tiny_data)], tiny_data, storage)
    content = storage.read(name)
    for damaged in damages(content).values():
        storage.write(name, damaged)
        with contextlib.suppress(RecordError):
            assert load_record(storage, record.trial_id) is not None
        with pytest.raises(RecordError, match="the same command runs that trial again") as error:
            open_trials([spec(tiny_data)], storage)
        assert name in str(error.value)
        assert f"move trials/{record.trial_id} away" in str(error.value)
        assert "\n" not in str(error.value)
        assert storage.read(name) == damaged
    Path(storage.uri, f"trials/{record.trial_id}").rename(tmp_path / "away")
    run_inline([spec(tiny_data)], tiny_data, storage, [], Resources())
    assert results(storage, record.trial_id) == results(quiet, record.trial_id)


@pytest.mark.parametrize("file", ["student.safetensors", "curves.parquet"])
def test_a_bit_that_changed_in_what_a_trial_lends_is_seen(tiny, tmp_path, file):
    storage, lender = Storage(tmp_path), spec_of(tiny)
    run_pack([lender], JETS, storage)
    name = f"trials/{lender.trial_id}/{file}"
    content = storage.read(name)
    at = len(content) // 2 if file.startswith("student") else content.index(b"PAR1") + 40  # in a page of numbers
    storage.write(name, content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    with pytest.warns(UserWarning, match="is damaged, training it again"):
        (record,) = run_pack([spec_of(tiny, **JUDGED["other energies"])], JETS, storage)
    assert (record.state, record.continues) == ("complete", None)


def test_weights_of_another_trial_that_cannot_be_read_now_are_not_trained_again(tiny, tmp_path):
    part = override(tiny, {"train.until": 1})
    for number, (lender, borrower, end) in enumerate(
        [
            (spec_of(tiny), spec_of(tiny, **JUDGED["other energies"]), "student.safetensors"),
            (dataclasses.replace(spec_of(tiny), config=part), spec_of(tiny), "state.safetensors"),
        ]
    ):
        storage, broken = (Storage(tmp_path / str(number)) for _ in range(2))
        run_pack([lender], JETS, storage)
        Failing(broken, end)
        with pytest.raises(UnreadableError, match=f"{end} cannot be read: the network is down"):
            run_pack([borrower], JETS, broken)
        (record,) = run_pack([borrower], JETS, storage)
        assert (record.state, record.attempts, record.continues) == ("complete", 2, lender.trial_id)


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_of_attempts_that_begin_together_one_owns_the_checkpoint(tmp_path):
    """Two studies of one storage that share a trial may both find that none has begun."""
    storage = Storage(tmp_path)
    one, other = (note_attempt(storage, "t", 1) for _ in range(2))
    assert not is_newest(storage, "t", 1, one)
    assert is_newest(storage, "t", 1, other)
    storage.write("trials/t/checkpoint/attempt-0001.json", b"{")
    assert not is_newest(storage, "t", 1, other)


def test_an_attempt_that_was_given_up_for_dead_neither_disturbs_nor_replaces_the_next(tiny_data, tmp_path, whole):
    """As when the network to a node is cut: the trial is begun again elsewhere, and both see the storage."""
    record, quiet = whole
    storage, inner = Storage(tmp_path), []

    def report(rows):
        if rows[0][1]["epoch"] == 1 and not inner:
            inner.extend(run_pack([spec(tiny_data)], tiny_data, storage))  # the other attempt, from here to its end

    (outer,) = run_pack([spec(tiny_data)], tiny_data, storage, report=report)
    assert inner[0].attempts == 2
    assert outer == inner[0] == load_record(storage, record.trial_id)
    assert results(storage, record.trial_id) == results(quiet, record.trial_id)
    assert "checkpoint" not in storage.names(f"trials/{record.trial_id}")


# --- storage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a file system of its own, and what mounts it anew with other options."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)

    try:
        mount("size=16m")
    except subprocess.CalledProcessError as refused:
        pytest.skip(f"this machine lets nobody mount a file system: {refused}")
    yield disk, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_storage_stops_the_study_and_room_lets_it_go_on(small_disk, undisturbed):
    disk, remount = small_disk
    before = Before(disk)
    remount("size=224k")
    code, said = before.inline(*SHORT)
    assert code == 1
    assert "No space left on device" in said.splitlines()[-1]
    assert said.splitlines()[-1].endswith("no finished trial is lost, the same command continues")
    assert "Traceback" not in said
    before.finished = before.stamps()
    remount("size=16m")
    assert before.inline(*SHORT)[0] == 0
    before.check(undisturbed)


def test_a_storage_that_cannot_be_written_is_said_at_once(small_disk):
    disk, remount = small_disk
    before = Before(disk)
    remount("ro")
    code, said = before.inline(*SHORT)
    assert code == 2
    assert said.count("\n") == 1
    assert f"storage {before.storage.uri} must be writable: " in said


# --- drivers ----------------------------------------------------------------------------------------------------------


def test_a_driver_that_is_killed_or_told_to_stop_loses_nothing(tmp_path, undisturbed):
    before = Before(tmp_path)
    for stop, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
        driver = before.start("--inline", *SHORT)
        signal.signal(signal.SIGINT, heard)
        before.wait_for(len(before.finished) + 1, driver)
        os.kill(driver.pid, signal.SIGSTOP)  # or it may have ended before the second one asks
        second, refused = before.inline(*SHORT)
        os.kill(driver.pid, stop)
        os.kill(driver.pid, signal.SIGCONT)
        said, _ = driver.communicate(timeout=120)
        assert (driver.returncode, second) == (code, 2), said + refused
        assert f"process {driver.pid}" in refused
        if stop == signal.SIGTERM:
            assert said.endswith("interrupted: no finished trial is lost, the same command continues\n")
            before.check_left(unfinished=True)
    leave_what_a_killed_driver_leaves(before, driver.pid)
    assert before.inline(*SHORT)[0] == 0
    before.check(undisturbed)


@pytest.mark.parametrize(("before", "code"), [(KeyboardInterrupt, 130), (ValueError, 1)])
def test_an_error_on_the_way_of_a_signal_is_an_interruption(monkeypatch, capsys, before, code):
    def run(*_):
        try:
            raise before
        except before:
            raise OSError(9, "Bad file descriptor")  # noqa: B904 - as Python chains what a file says when it is closed

    monkeypatch.setattr(studies.runner.execute, "run", run)
    with pytest.raises(SystemExit) as ended:
        studies.main(masking_ablation, ["--preset", "smoke"])
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith("interrupted: " if code == 130 else "error: [Errno 9]")


def leave_what_a_killed_driver_leaves(before: Before, pid: int) -> None:
    """Files that are there only if it dies at the wrong moment."""
    for name in (
        f"floors/.raw.json.{pid}-{host_id()}-00000000.tmp",
        f".ray-{NAME}/state.json",
        f".token.{pid}-{host_id()}-00000000.tmp",
    ):
        before.storage.write(name, b"half")
    for trial in before.finished:
        before.storage.write(f"trials/{trial}/checkpoint/state.json", b"{}")


def test_what_tune_left_here_goes_where_the_storage_is_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    storage = Storage(tmp_path / "records")
    storage.local = False  # as of a bucket
    for study in (NAME, "other"):
        scratch_storage(storage).write(f".ray-{study}/state.json", b"{}")
    cleanup([], storage, NAME)
    assert [path.name for path in (tmp_path / "tmp").rglob(".ray-*")] == [".ray-other"]
    assert not (tmp_path / "records").exists()


@pytest.mark.usefixtures("interrupt_raises")
def test_an_upload_that_is_interrupted_is_whole(tmp_path):
    """A bucket has no rename: what is closed is there, all of it or not."""
    storage = Storage(tmp_path)
    inner = storage._fs

    class Interrupting:
        def open_output_stream(self, path: str):
            stream = inner.open_output_stream(path)
            time.sleep(0.2)  # until the main thread waits
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # until it has seen the signal
            return stream

    storage.local, storage._fs = False, Interrupting()
    with pytest.raises(KeyboardInterrupt):
        storage.write("study.json", b"{}")
    assert (tmp_path / "study.json").read_bytes() == b"{}"


def test_files_of_other_machines_are_left_alone_for_a_day(tmp_path):
    storage = Storage(tmp_path)
    old, young = tmp_path / ".a.7-ffffffff-00000000.tmp", tmp_path / ".b.7-ffffffff-00000000.tmp"
    mine = tmp_path / f".c.{os.getpid()}-{host_id()}-00000000.tmp"
    for path in (old, young, mine):
        path.write_bytes(b"")
    os.utime(old, (time.time() - 90_000,) * 2)
    storage.remove_stale_files()
    assert storage.names() == [young.name, mine.name]

"""One driver a study: a second one is refused, a dead one is replaced, a replaced one stops."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import ROOT, SAMPLE

from cluster import lease as module
from cluster.lease import lease
from cluster.resources import ClusterError
from jbot.store.processes import host_id, is_alive, start_ticks
from jbot.store.storage import Storage, is_stale

DRIVER = """
import sys, time
from cluster import lease as module
from cluster.stop import stopped_by_sigterm
from jbot.store.storage import Storage
module.HEARTBEAT_S = 0.1
try:
    with stopped_by_sigterm(), module.lease(Storage(sys.argv[1]), "study", say=print):
        print("runs", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(module, "SETTLE_S", 0.05)
    return Storage(tmp_path)


def in_the_background() -> None:
    """As a shell starts what a script puts there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture
def driver(storage: Storage, request: pytest.FixtureRequest):
    """Another process that holds the study."""
    command, before = [sys.executable, "-c", DRIVER, storage.uri], getattr(request, "param", None)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=before)
    assert process.stdout.readline() == "runs\n"
    yield process
    process.kill()
    process.communicate()


def content(storage: Storage) -> dict:
    return json.loads(storage.read("study/driver.json"))


def write(storage: Storage, **changes) -> None:
    storage.write_json("study/driver.json", {"nonce": "x", "host": "far", "pid": 7, "host_id": "far away"} | changes)


def test_it_is_held_counts_and_is_given_back(storage):
    with lease(storage, "study"):
        assert content(storage)["pid"] == os.getpid()
        until = time.monotonic() + 10
        while content(storage)["count"] < 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert content(storage)["count"] >= 2
        with lease(storage, "another study"):  # of the same storage
            pass
    assert not storage.exists("study/driver.json")
    assert "lease" not in {thread.name for thread in threading.enumerate()}


def test_a_second_driver_is_refused_at_once_and_changes_nothing(storage, driver):
    begun = time.monotonic()
    refused = rf"is run by another driver, process {driver.pid} on .* --take-over"
    with pytest.raises(ClusterError, match=refused), lease(storage, "study"):
        pass
    assert time.monotonic() - begun < 0.1 * module.MAX_MISSED
    assert content(storage)["pid"] == driver.pid


def test_a_killed_driver_is_replaced_without_waiting(storage, driver):
    driver.kill()
    driver.wait()
    said = []
    with lease(storage, "study", say=said.append):
        assert content(storage)["pid"] == os.getpid()
    assert said == []


def test_a_process_number_that_is_used_again_is_no_driver(storage):
    write(storage, host_id=host_id(), pid=os.getpid(), start_ticks=1)
    with lease(storage, "study"):
        assert content(storage)["start_ticks"] == start_ticks(os.getpid())


def test_a_killed_driver_that_nobody_asks_after_is_dead(storage, driver):
    """As in a container whose first process is no init: the driver stays in the list of processes."""
    driver.kill()
    os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)
    assert is_stale(f".x.{driver.pid}-{host_id()}-00000000.tmp")
    with lease(storage, "study"):
        assert content(storage)["pid"] == os.getpid()


def test_a_process_may_have_any_name():
    rename = "import ctypes; ctypes.CDLL(None).prctl(15, b'\\xc3) Z', 0, 0, 0); print(); input()"
    process = subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    assert is_alive(process.pid)
    assert start_ticks(process.pid) >= start_ticks(os.getpid())
    process.communicate(b"\n")


@pytest.mark.parametrize("driver", [None, in_the_background], indirect=True)
def test_a_driver_that_lost_its_study_stops(storage, driver):
    with lease(storage, "study", take_over=True):
        said, _ = driver.communicate(timeout=30)
        assert f"another driver (process {os.getpid()} on" in said
        assert said.endswith("stopped\n")
        assert content(storage)["pid"] == os.getpid()  # it does not remove what is not its own


def test_a_silent_driver_elsewhere_is_replaced_after_a_while(storage):
    write(storage, count=3)
    said = []
    with lease(storage, "study", say=said.append):
        assert content(storage)["pid"] == os.getpid()
    assert said == ["process 7 on far was running this study: watching for 0.4 s whether it still is"]


def test_a_driver_elsewhere_that_counts_is_alive_whatever_its_clock(storage):
    over = threading.Event()

    def count() -> None:
        at = 0
        while not over.wait(0.05):
            at += 1
            write(storage, count=at)

    write(storage, count=0)
    beats = threading.Thread(target=count)
    beats.start()
    try:
        with pytest.raises(ClusterError, match="process 7 on far"), lease(storage, "study"):
            pass
    finally:
        over.set()
        beats.join()


@pytest.mark.parametrize("damaged", [b"", b"{", b"[1]", b'{"pid": "x"}', b"\xff\xfe"])
def test_a_damaged_file_is_replaced(storage, damaged):
    storage.write("study/driver.json", damaged)
    with lease(storage, "study"):
        assert content(storage)["pid"] == os.getpid()


def test_two_studies_on_the_command_line(storage, driver, tmp_path):
    """The whole command: one line, exit code 2, and the other driver's file as it was."""
    Path(storage.uri, "study").rename(Path(storage.uri, "masking_ablation_smoke"))
    data = SAMPLE
    command = [sys.executable, "studies/masking_ablation.py", "--preset", "smoke", "--inline", "--data", data]
    os.kill(driver.pid, signal.SIGSTOP)  # it lives, though it does not count
    done = subprocess.run([*command, "--storage", tmp_path], capture_output=True, text=True, check=False, cwd=ROOT)
    os.kill(driver.pid, signal.SIGCONT)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"process {driver.pid}" in done.stderr

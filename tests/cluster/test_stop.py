"""Ctrl-C and SIGTERM at any moment: heard once, in order, and nothing is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import ROOT

from cluster import connection
from cluster.resources import ClusterError
from cluster.stop import held_back, stopped_by_sigterm
from jbot.store.processes import is_pending

DRIVER = """
import sys
from cluster.stop import stopped_by_sigterm
from cluster.connection import connected
try:
    with stopped_by_sigterm():
        print("begins", flush=True)
        with connected(None):
            print("runs", flush=True)
        print("ends", flush=True)
except KeyboardInterrupt:
    print("stopped")
    sys.exit(130)
"""


@pytest.mark.usefixtures("interrupt_raises")
def test_a_first_signal_waits_for_the_end():
    done, numbers = [], [signal.SIGINT, signal.SIGTERM]

    def work(number: int) -> None:
        with stopped_by_sigterm(), held_back():
            signal.raise_signal(number)
            done.append(number)

    handlers = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        with pytest.raises(KeyboardInterrupt):
            work(number)
    assert done == numbers
    assert handlers == [signal.getsignal(number) for number in numbers]


@pytest.mark.usefixtures("interrupt_raises")
def test_a_second_signal_is_heard_at_once():
    done = []

    def work() -> None:
        with stopped_by_sigterm(), held_back():
            signal.raise_signal(signal.SIGTERM)
            done.append("one")
            signal.raise_signal(signal.SIGINT)
            done.append("two")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["one"]


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_back():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_is_not_heard_is_pending():
    code = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {15}); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    assert not is_pending(process.pid, signal.SIGTERM)
    process.terminate()
    assert is_pending(process.pid, signal.SIGTERM)
    assert not is_pending(process.pid, signal.SIGINT)
    process.kill()
    process.communicate()
    assert not is_pending(process.pid, signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_python_ends_soon_and_a_signal_meanwhile_changes_no_exit_code(number):
    code = """
import atexit, gc, sys, time
from cluster.stop import stopped_by_sigterm
atexit.register(lambda: (print("ends", gc.get_freeze_count() > 1000, flush=True), time.sleep(0.5)))
with stopped_by_sigterm():
    pass
sys.exit(3)
"""
    command = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert command.stdout.readline() == "ends True\n", command.stderr.read()
    command.send_signal(number)
    assert command.communicate(timeout=60) == ("", "")
    assert command.returncode == 3


def test_ctrl_c_while_a_study_imports_is_quiet():
    code = """
import importlib, os, signal
importlib.import_module = lambda name: os.kill(os.getpid(), signal.SIGINT)
from studies import main
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (found.returncode, found.stderr) == (-signal.SIGINT, "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("moment", "wait"), [("begins", 1.0), ("runs", 0.0), ("runs", 0.3)])
def test_ray_that_is_stopped_while_it_starts_or_ends_leaves_nothing(moment, wait, number):
    """Ray itself leaves processes and files, or crashes, when its start is interrupted; and its end sets SIGTERM to
    what it is by default."""
    pytest.importorskip("ray")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while (said := driver.stdout.readline().strip()) != moment:
        assert said, driver.stderr.read()
    time.sleep(wait)
    os.kill(driver.pid, number)
    _, error = driver.communicate(timeout=120)
    assert driver.returncode == 130, error
    assert left_of(driver.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_ray_that_is_killed_ends_the_study_with_a_line(name):
    code = """
import ray, time
from cluster.connection import connected
with connected(None):
    print("runs", flush=True)
    ray.get(ray.remote(lambda: time.sleep(100)).remote())
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes)
    assert driver.stdout.readline() == "runs\n", driver.stderr.read()
    (found,) = [child for child in psutil.Process(driver.pid).children() if child.name() == name]
    found.kill()
    _, said = driver.communicate(timeout=30)
    assert driver.returncode == 1, said
    assert said.startswith(f"error: Ray's {name} was killed on this machine"), said
    assert said.count("\n") == 1
    assert left_of(driver.pid) == []


def left_of(pid: int) -> list:
    """Files and processes of the Ray that a process has started."""
    name = f"jbot.{pid}-"
    found = [str(path) for path in Path(os.environ.get("RAY_TMPDIR", "/tmp")).glob(f"{name}*")]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found += [process.pid] if name in " ".join(process.cmdline()) else []
    return found


def test_the_folder_of_ray_is_entered_by_nobody_else(monkeypatch):
    """Ray makes its own folder writable for all; what is around it is not."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with connection.connected(None):
        (folder,) = Path("/tmp").glob(f"jbot.{os.getpid()}-*.tmp")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.stat().st_uid == os.getuid()
        assert list((folder / connection.INNER).glob("session_*/sockets"))
        sockets = [os.fsencode(path) for path in folder.rglob("*") if path.is_socket()]
        assert sockets
        assert max(map(len, sockets)) <= len(os.fsencode(folder)) + connection.SOCKET_BYTES
    assert not folder.exists()


@pytest.mark.parametrize(
    ("root", "said"), [("x" * 90, "is too long by"), ("/proc/1", "set RAY_TMPDIR to another folder")]
)
def test_a_folder_that_ray_cannot_use_is_one_line_at_once(monkeypatch, tmp_path, root, said):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / root))
    with pytest.raises(ClusterError, match=said), connection.connected(None):
        pass

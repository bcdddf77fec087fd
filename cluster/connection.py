"""Ray, started on this machine or found at an address: how it begins, and how it ends with nothing left behind."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import AuthenticationError, RayError, RayTaskError

from cluster.resources import ClusterError
from cluster.stop import held_back, own_sigterm
from jbot.messages import first_line, one_line
from jbot.store.processes import is_pending
from jbot.store.storage import is_stale, temporary_name

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Before a driver's folders are put in front of a worker's path: one of them may hold folders of these names.
    "RAY_preload_python_modules": "cluster,jbot",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what they mean in the driver
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our records replace Tune's CSV, JSON and TensorBoard files
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # Tune runs each trial in a new thread, and glibc would give each a heap of its own, of some 60 MB, for good.
    "MALLOC_ARENA_MAX": "1",
}

TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file ~/.ray/auth_token to what its nodes have"
MAX_SOCKET_BYTES = 107
"""Of the path of a Unix socket."""
INNER = "r"
"""Ray's own folder in that of a driver."""
SOCKET_BYTES = len(f"/{INNER}/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
"""What is behind a driver's folder."""
CONTINUES = "trials that have ended have their records, and the same command continues"
ENDING_S = 10.0
"""Ray's own processes have so long to end when they are killed, and then their files to go (assumed)."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray, started here or found at an address; a cluster that was there before is left running."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    folder = None
    if address is None:
        folder = _session_folder()
        options |= {"include_dashboard": False, "address": "local", "_temp_dir": str(folder / INNER)}
    else:
        check_address(address)
        import cluster
        import jbot

        # Every node runs this checkout's code, whatever is installed there.
        heap = {"MALLOC_ARENA_MAX": QUIET["MALLOC_ARENA_MAX"]}
        code = [str(Path(str(module.__file__)).parent) for module in (jbot, cluster)]
        options |= {"address": address, "runtime_env": {"py_modules": code, "env_vars": heap}}
    logging.getLogger("ray.tune.execution.tune_controller").addFilter(_in_one_line)
    over = threading.Event()
    close = partial(_close, folder, over)
    atexit.register(close)  # a signal may come in the moment before it is held back
    try:
        _join(options)
        if folder:
            _watch(folder, over)
        yield
    finally:
        close()
        atexit.unregister(close)


def _close(folder: Path | None, over: threading.Event) -> None:
    """End the connection, and the Ray that was started with this session folder. A second call does nothing."""
    over.set()  # before anything of it ends: that is no accident
    with held_back():
        # Tune leaves object references in cycles. One that a thread of MLflow frees while Ray shuts down ends this
        # process ("core worker has already been shutdown"), so they are freed before.
        gc.collect()
        own = _processes_of(folder) if folder else []
        with _kill_children(own):
            ray.shutdown()
        if folder:
            # What ray.shutdown has left: idle workers see only after seconds that their node is gone, and a Ray whose
            # start was interrupted is unknown to it. What is just ending may still write into the folder.
            for process in own:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(own, timeout=ENDING_S)
            until = time.monotonic() + ENDING_S
            while folder.exists() and time.monotonic() < until:
                shutil.rmtree(folder, ignore_errors=True)
                time.sleep(0.1)


def _watch(folder: Path, over: threading.Event) -> None:
    """Until it is over, end this process with one line when the raylet or the GCS of its Ray dies. Ray itself would say
    nothing for a minute, and then abort."""
    vital = {child: child.name() for child in _processes_of(folder) if child.name() in ("raylet", "gcs_server")}

    def has_ended(process: psutil.Process) -> bool:
        try:
            return process.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return True

    def watch() -> None:
        while not over.wait(1.0):
            dead = [name for process, name in vital.items() if has_ended(process)]
            if dead and not over.is_set():
                print(f"error: Ray's {dead[0]} was killed on this machine; {CONTINUES}", file=sys.stderr, flush=True)
                for process in _processes_of(folder):
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                shutil.rmtree(folder, ignore_errors=True)
                os._exit(1)  # whatever this process does with Ray would wait for it

    threading.Thread(target=watch, daemon=True).start()


def _in_one_line(said: logging.LogRecord) -> bool:
    """Filter that keeps every message, without the stack of Tune's own when a worker or node died: it helps nobody."""
    error = said.exc_info[1] if said.exc_info else None
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):  # the latter is an error in our code
        said.msg, said.args, said.exc_info = f"{said.getMessage()}: {first_line(error)}", (), None
    return True


def _session_folder() -> Path:
    """The folder of a Ray of this process alone, for sockets and logs; those of killed drivers are removed.

    Ray lets everybody write into its own folder, so it is inside one that nobody else may enter, from the first moment.

    Raises ClusterError where it cannot be made, or its path is too long for sockets.
    """
    root = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
    for path in root.glob("jbot.*.tmp"):
        with contextlib.suppress(OSError):  # removed meanwhile
            if is_stale(path.name) and path.lstat().st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)
    folder = root / temporary_name("jbot")
    if (excess := len(os.fsencode(folder)) + SOCKET_BYTES - MAX_SOCKET_BYTES) > 0:
        rule = f"is too long by {excess} bytes for the sockets of Ray"
        raise ClusterError(f"{root} {rule}: set RAY_TMPDIR to a shorter path")
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        rule = f"Ray cannot write into {root} ({error.strerror})"
        raise ClusterError(f"{rule}: set RAY_TMPDIR to another folder") from None
    return folder


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Processes of the Ray that keeps its session there: children of this one that were called with its path, and all
    that they have started."""
    processes = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            if str(folder) in " ".join(child.cmdline()):
                processes += [*child.children(recursive=True), child]
    return processes


@contextmanager
def _kill_children(processes: list[psutil.Process]) -> Iterator[None]:
    """Meanwhile, kill at once each process that Ray tells to end: they do not hear SIGTERM (see `own_sigterm`), and Ray
    would wait a second for each of the five before it kills it."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.02):
            for process in processes:
                if is_pending(process.pid, signal.SIGTERM):
                    with contextlib.suppress(psutil.Error):
                        process.kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _join(options: dict[str, Any]) -> None:
    """Call ray.init, with one line for what may go wrong. Ray tells a refused token to stderr alone, for 20 seconds."""
    address = options["address"]
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            with held_back(), own_sigterm():  # stopped half way, it leaves processes, or crashes
                ray.init(**options)
        except AuthenticationError:
            raise ClusterError(f"there is no token for the Ray cluster at address {address!r}: {TOKEN}") from None
        except ConnectionError:
            said.seek(0)
            if b"InvalidAuthToken" in said.read():
                raise ClusterError(f"the Ray cluster at address {address!r} wants its token: {TOKEN}") from None
            raise ClusterError(f"no Ray cluster at address {address!r}; start one with: ray start --head") from None
        except Exception as error:
            if address == "local":  # as Ray raises it when its processes are not there after half a minute
                busy = "; this machine may be too busy, so run the command again"
                raise ClusterError(f"Ray did not start on this machine: {first_line(error)}{busy}") from None
            if not isinstance(error, RayError | RuntimeError | ValueError):
                raise
            # Above all other versions of Ray or Python than here, which it says in seven lines.
            raise ClusterError(f"the Ray cluster at address {address!r} cannot be used: {one_line(error)}") from None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def check_address(address: str) -> None:
    """Something must listen there: Ray itself waits for minutes."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if not colon:
        if address != "auto":
            raise ClusterError(f"address must be auto or host:port, got {address!r}")
        return  # Ray looks for a cluster on this machine and answers at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Ray cluster at address {address!r}: {error}") from None

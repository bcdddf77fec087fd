"""Faults that need Ray, a network, a server, or minutes. `make chaos` runs them.

Each kills, cuts or starves something real while the study of tiny_study.py runs, runs the same command again where it
ended early, and checks the promise.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from promise import ROOT, Before, Undisturbed

from jbot.store.record import load_record

pytest.importorskip("ray")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("JBOT_CHAOS"), reason="takes minutes; make chaos runs it"),
]
DAY_S = 86_400
LONG = ["--set", "train.epochs=100", "--set", "probe.every=50"]
"""Trials that are alive long enough to be hit: seconds."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"), *LONG)


def view(before: Before) -> str:
    """Where the runs are when no server is named."""
    return f"sqlite:///{before.storage.uri}/mlflow.db"


def wait_for_trainer(before: Before, driver: subprocess.Popen, checkpoints: int = 1) -> psutil.Process:
    """Until a worker trains, with a checkpoint behind it."""
    until = time.monotonic() + 300
    while driver.poll() is None and time.monotonic() < until:
        made = list(Path(before.storage.uri).glob("trials/*/checkpoint/state-*.safetensors"))
        later = [path for path in made if path.name != "state-000000.safetensors"]
        if len(later) >= checkpoints and (found := before.trainers()):
            before.finished = before.stamps()
            return found[0]
        time.sleep(0.05)
    driver.kill()
    raise AssertionError(driver.communicate()[0])


def alive(process: subprocess.Popen, until: float) -> bool:
    return process.poll() is None and time.monotonic() < until


def finish(driver: subprocess.Popen, code: int = 0) -> str:
    said, _ = driver.communicate(timeout=600)
    assert driver.returncode == code, said
    return said


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_a_worker_is_killed_or_told_to_go(tmp_path, undisturbed, kind):
    before = Before(tmp_path)
    driver = before.start(*LONG, JBOT_FAULTS_REPORT="1")
    victim = wait_for_trainer(before, driver)
    victim.send_signal(kind)
    finish(driver)
    # Ray on this machine does not let its processes hear SIGTERM: a queue's grace period is the driver's to use.
    before.check(undisturbed, attempts=5 if kind == signal.SIGKILL else 4, tracking_uri=view(before))


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)], ids=["kill", "term"])
@pytest.mark.parametrize("whole_job", [False, True], ids=["alone", "job"])
def test_the_driver_is_killed_or_told_to_go(tmp_path, undisturbed, kind, code, whole_job):
    """Alone, or with all processes of its job, as queues and containers do it."""
    before = Before(tmp_path)
    driver = before.start(*LONG)
    wait_for_trainer(before, driver)
    for process in before.processes() if whole_job else [psutil.Process(driver.pid)]:
        process.send_signal(kind)
    said = finish(driver, code)
    if code == 143:
        assert said.endswith("interrupted: no finished trial is lost, the same command continues\n")
        before.check_left(unfinished=True)
    before.run(*LONG)
    before.check(undisturbed, tracking_uri=view(before))


def head_of_a_cluster(before: Before):
    from ray.cluster_utils import Cluster

    for last in (False, False, True):
        try:
            return Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        except Exception:  # as Ray raises it: a busy machine may need more than the 30 s that it waits
            for process in before.processes():
                process.kill()
            if last:
                raise


@contextmanager
def nodes(before: Before):
    """A cluster of two nodes with one CPU each, on this machine."""
    root = Path(f"/tmp/jn{os.getpid()}")  # of its own: where `--address auto` of others looks is left as it is
    with pytest.MonkeyPatch.context() as patch:
        for name, value in before.environment(RAY_TMPDIR=str(root)).items():
            patch.setenv(name, value)
        cluster = head_of_a_cluster(before)
        try:
            yield cluster, cluster.add_node(num_cpus=1)
        finally:
            cluster.shutdown()
            shutil.rmtree(root, ignore_errors=True)


def test_a_node_is_killed(tmp_path, undisturbed):
    before = Before(tmp_path)
    with nodes(before) as (cluster, second):
        driver = before.start("--address", cluster.address, *LONG)
        wait_for_trainer(before, driver, checkpoints=2)
        cluster.remove_node(second, allow_graceful=False)
        finish(driver)
    before.check(undisturbed, attempts=5, tracking_uri=view(before))


# --- MLflow -----------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def server(before: Before, folder: Path, port: int):
    """`mlflow server` on SQLite, in a session of its own, which is killed at the end."""
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", folder / "artifacts", "--port", str(port), "--workers", "1"]
    log, own = (folder / "server.log").open("a"), folder / "server"  # a server that is killed leaves files
    own.mkdir(exist_ok=True)
    quiet = {
        "TMPDIR": str(own),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # as cluster/deploy/tracking.sh starts it
    running = subprocess.Popen(command, env=before.environment(**quiet), stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                break
            except OSError:
                assert alive(running, until), (folder / "server.log").read_text()
                time.sleep(0.2)
        yield uri, running
    finally:
        killed = [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]
        for process in killed:
            process.kill()
        psutil.wait_procs(killed, timeout=60)  # the next server shall not find its port taken


def test_the_mlflow_server_is_killed_and_comes_back(tmp_path, undisturbed):
    before, port = Before(tmp_path), free_port()
    with server(before, tmp_path, port) as (uri, _):
        driver = before.start("--tracking-uri", uri, *LONG)
        wait_for_trainer(before, driver)
    said = finish(driver)  # the server is gone, and the study does not need it
    assert "nothing is lost, rebuild its view with" in said
    with server(before, tmp_path, port) as (uri, _):
        for _again in range(2):
            folder = f"{before.storage.uri}/faults_smoke"
            mirror = [sys.executable, "-m", "cluster.mirror", folder, "--tracking-uri", uri]
            done = subprocess.run(mirror, env=before.environment(), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        from promise import check_runs, load_study

        check_runs(uri, load_study(folder))
    before.check(undisturbed, attempts=4)


# --- network ----------------------------------------------------------------------------------------------------------


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def two_hosts():
    """Two network namespaces with a cable between them: their names, and the head's address."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    tag = f"{os.getpid() % 10000}"
    a, b, head = f"jfa{tag}", f"jfb{tag}", "10.97.1.1"
    try:
        ip("netns", "add", a)
        ip("netns", "add", b)
    except subprocess.CalledProcessError as refused:
        pytest.skip(f"this machine lets nobody make a network namespace: {refused}")
    try:
        ip("link", "add", f"va{tag}", "netns", a, "type", "veth", "peer", "name", f"vb{tag}", "netns", b)
        for space, device, address in ((a, f"va{tag}", head), (b, f"vb{tag}", "10.97.1.2")):
            ip("-n", space, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", space, "link", "set", device, "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield a, b, f"vb{tag}", head
    finally:
        for space in (a, b):
            subprocess.run(["ip", "netns", "del", space], check=False)


@contextmanager
def ray_on(before: Before, a: str, b: str, head: str):
    """`ray start` on both hosts, one CPU each; gives the address, and what logs them."""
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1", "--disable-usage-stats"]
    ray += ["--object-store-memory", "100000000"]
    heads = ["--head", "--port", "6399", "--node-ip-address", head, "--include-dashboard", "false"]
    joins = ["--address", f"{head}:6399", "--node-ip-address", "10.97.1.2"]
    root = Path(f"/tmp/jf{os.getpid()}")
    environment = before.environment(RAY_TMPDIR=str(root))
    started, log = [], (before.temporary.parent / "ray.log").open("w+")
    try:
        for space, options in ((a, heads), (b, joins)):
            command = ["ip", "netns", "exec", space, *ray, *options]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
            until, said = time.monotonic() + 180, len(started)
            while Path(log.name).read_text().count("Ray runtime started") < said:
                assert alive(started[-1], until), Path(log.name).read_text()
                time.sleep(0.2)
        yield f"{head}:6399", started
    finally:
        for process in before.processes():
            process.kill()
        for process in started:
            process.wait()
        shutil.rmtree(root, ignore_errors=True)


def start_in(space: str, before: Before, *more: str) -> subprocess.Popen:
    command = ["ip", "netns", "exec", space, *before.command(*more)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(command, env=before.environment(), **options)


@pytest.mark.parametrize("seconds", [8, None], ids=["for a while", "for ever"])
def test_the_network_between_two_hosts_is_cut(tmp_path, undisturbed, two_hosts, seconds):
    """For some seconds, which nobody needs to notice; or for ever. The storage is seen by both all the time: the worst
    case, as the worker that was given up for dead goes on writing."""
    a, b, cable, head = two_hosts
    before = Before(tmp_path)
    with ray_on(before, a, b, head) as (address, (_, lost)):
        driver = start_in(a, before, "--address", address, *LONG)
        wait_for_trainer(before, driver, checkpoints=2)
        ip("-n", b, "link", "set", cable, "down")
        if seconds is not None:
            time.sleep(seconds)
            ip("-n", b, "link", "set", cable, "up")
        finish(driver)
        if seconds is None:
            assert lost.wait(300) != 0  # a node that has lost its head goes by itself
    before.check(undisturbed, attempts=4 if seconds else 5, tracking_uri=view(before))


# --- storage, memory, clock -------------------------------------------------------------------------------------------


SLOW = """
import os, time
sync = os.fsync
def slow(file):
    time.sleep({seconds})
    sync(file)
os.fsync = slow
"""


def test_a_storage_that_takes_seconds_for_each_file(tmp_path, undisturbed):
    """Every write is synced (jbot/store/storage.py), and each sync takes 1.5 s, in the driver and in all workers:
    what a busy NFS server does to a program. Reads are as fast as ever, and so is what Tune writes for itself."""
    before, site = Before(tmp_path), tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SLOW.format(seconds=1.5))
    short = ["--set", "train.epochs=4", "--set", "probe.every=2"]
    before.run(*short, PYTHONPATH=f"{site}{os.pathsep}{ROOT}", JBOT_CHECKPOINT_SECONDS="5")
    before.check(Undisturbed(tmp_path / "quick", *short), attempts=4, tracking_uri=view(before))


ENOUGH = 4_000_000_000
"""Bytes of memory for driver, Ray and two workers (measured: 2.1 GB)."""


def test_ray_ends_a_worker_when_the_machine_runs_out_of_memory(tmp_path, undisturbed):
    """Ray's memory monitor, told that the machine is full where the study and its Ray would just fit; then this test
    takes that much again."""
    before, memory = Before(tmp_path), psutil.virtual_memory()
    if memory.available < 3 * ENOUGH:
        pytest.skip(f"{3 * ENOUGH / 1e9:g} GB of free memory are needed")
    full = (memory.total - memory.available + ENOUGH) / memory.total
    driver = before.start(*LONG, RAY_memory_usage_threshold=f"{full:.3f}", RAY_memory_monitor_refresh_ms="100")
    victim = wait_for_trainer(before, driver)
    hog = subprocess.Popen([sys.executable, "-c", f"import time; x = b'1' * {ENOUGH}; time.sleep(120)"])
    try:
        psutil.wait_procs([victim], timeout=60)
        assert not victim.is_running()
    finally:
        hog.kill()
        hog.wait()
    if driver.wait(600) == 1:  # given up after three retries: memory of this machine is not this test's alone
        driver.communicate()
        before.run(*LONG)
    before.check(undisturbed, tracking_uri=view(before))


def test_clocks_jump(tmp_path, undisturbed):
    """By a day ahead and two days back while trials run, in the driver. Clocks that nobody can set stay as they are."""
    import tiny_study  # noqa: F401 - here: the second drivers must come while the first one trains, which takes seconds

    if not shutil.which("cc"):
        pytest.skip("a C compiler is needed")
    library, ahead = tmp_path / "clock.so", tmp_path / "ahead"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, Path(__file__).with_name("clock.c")], check=True)
    ahead.write_text("0")
    before = Before(tmp_path)
    driver = before.start("--inline", *LONG, LD_PRELOAD=str(library), CLOCK_AHEAD=str(ahead))
    for number, jump in enumerate((DAY_S, -DAY_S), start=1):
        before.wait_for(number, driver)
        ahead.write_text(str(jump))
        time.sleep(0.5)
        code, said = before.inline(*LONG)  # a second driver, whose clock differs by a day
        assert code == 2, said
    finish(driver)
    before.check(undisturbed, attempts=4)
    records = [load_record(before.storage, trial) for trial in before.storage.names("trials")]
    started = sorted(datetime.fromisoformat(record.started).timestamp() for record in records if record)
    assert started[-1] - started[0] > DAY_S / 2  # they were seen

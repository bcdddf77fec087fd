"""A cluster with a token that has no room at first: Ray's own autoscaler brings a node when a study says --grow-to."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import ROOT

pytest.importorskip("ray")

TOKEN = "0123456789abcdef" * 4
STUDY = """
import sys
from helpers import TINY, make_data
from cluster.resources import ClusterError, Resources
from cluster.scheduling.tune import run_ray
from jbot.config import Config, override
from jbot.store.storage import Storage
from jbot.store.record import TrialSpec

data = make_data(60)
config = override(Config(), TINY)
specs = [TrialSpec(study="grow", arm="base", plan_hash="p", config=config, data_fingerprint=data.fingerprint)]
try:
    run_ray(specs, data, Storage(sys.argv[2]), [], address=sys.argv[1], resources=Resources(grow_to=1))
except ClusterError as error:
    sys.exit(f"refused: {error}")
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a process that knows no token unless told."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"HOME": str(home), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"} | more


def autoscaling(address: str) -> dict:
    """A cluster file for the provider with which Ray tests its autoscaler: nodes are processes of this machine."""
    node_types = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    }
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": address,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    empty = "initialization_commands setup_commands head_setup_commands worker_setup_commands cluster_synced_files"
    starts = {"head_start_ray_commands": [], "worker_start_ray_commands": []}
    return {
        "cluster_name": "grown",
        "max_workers": 1,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": provider,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "available_node_types": node_types,
        "head_node_type": "ray.head.default",
        **{name: [] for name in empty.split()},
        **starts,
    }


@pytest.fixture(scope="module")
def empty_cluster(tmp_path_factory):
    """The address of a head that offers no CPU, wants a token, and may start one worker."""
    folder, port = tmp_path_factory.mktemp("r"), free_port()
    sockets = Path(f"/tmp/jg{port}")  # Ray's: a path of theirs may have 107 characters
    address = f"127.0.0.1:{port}"
    (folder / "cluster.json").write_text(json.dumps(autoscaling(address)))
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    options = f"--head --block --num-cpus 0 --node-ip-address 127.0.0.1 --port {port} --include-dashboard false"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options.split(), "--disable-usage-stats"]
    command += ["--object-store-memory", "100000000", "--autoscaling-config", str(folder / "cluster.json")]
    more = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_TMPDIR": str(sockets)}
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment(folder, **secret, **more), start_new_session=True
        )
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in (folder / "log").read_text():
            assert running.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield address
    finally:
        begun = [running.pid, *(child.pid for child in psutil.Process(running.pid).children(recursive=True))]
        running.send_signal(signal.SIGTERM)
        running.wait(30)
        for process in psutil.process_iter(["pid", "cmdline"]):
            if process.pid in begun or any(str(sockets) in word for word in process.info["cmdline"] or ()):
                process.kill()
        shutil.rmtree(sockets, ignore_errors=True)


@pytest.mark.slow
def test_a_cluster_with_a_token_grows_for_a_study_and_refuses_drivers_without_one(empty_cluster, tmp_path):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    environments = {"none": {}, "lost": {"RAY_AUTH_MODE": "token"}, "right": token}
    started = {}  # all at once: Ray asks for half a minute before it gives up
    for name, more in environments.items():
        command = [sys.executable, "-c", STUDY, empty_cluster, str(tmp_path / name)]
        own = environment(tmp_path, **more)
        started[name] = subprocess.Popen(command, env=own, text=True, stderr=subprocess.PIPE)
    said = {name: driver.communicate(timeout=300)[1] for name, driver in started.items()}

    assert started["none"].returncode == started["lost"].returncode == 1
    at = f"the Ray cluster at address '{empty_cluster}'"
    assert said["none"].startswith(f"refused: {at} wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or")
    assert said["lost"].startswith(f"refused: there is no token for {at}: set RAY_AUTH_MODE=token")
    assert said["none"].count("\n") == said["lost"].count("\n") == 1

    assert started["right"].returncode == 0, said["right"]
    assert "waiting for a first node with 1 CPUs and 0 GPUs" in said["right"]
    assert len(list((tmp_path / "right/trials").glob("*/record.json"))) == 1

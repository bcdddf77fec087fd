"""What the doctor finds on made-up nodes, on this machine, and on the command line; on real nodes: test_cluster.py."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import ROOT, SAMPLE

from cluster.doctor import facts, nodes
from cluster.doctor.facts import check_storage, code_digest, probe_node
from cluster.doctor.findings import Finding, Node, evaluate
from cluster.doctor.nodes import clock_skew, on_each
from cluster.resources import ClusterError
from jbot.messages import without_secret
from jbot.store.storage import Storage

GPU = {"name": "H100", "free": 70 * 2**30, "total": 80 * 2**30}
GB = 10**9
VERSIONS = (
    "python 3.11.7",
    "torch 2.13.0",
    "numpy 2.1",
    "scipy 1",
    "scikit-learn 1",
    "pyarrow 9",
    "safetensors 1",
    "h5py 3",
)
FACTS = {
    "storage": "",
    "code": "abc",
    "versions": dict(text.split() for text in VERSIONS),
    "gpus": [],
    "disks": {"Ray's files": (50 * GB, 100 * GB)},
    "memory": (20 * GB, 24 * GB),
    "files": 65536,
}


def node(address: str = "10.0.0.1", slots: int = 4, promised: float = 0.0, skew: float = 0.0, **facts) -> Node:
    return Node(address=address, slots=slots, gpus_promised=promised, facts=FACTS | facts, skew=skew)


def wrong(*nodes: Node) -> list[str]:
    found = evaluate(nodes, Storage("/shared"), "abc")
    assert all(str(finding).count("\n") == 0 for finding in found)
    return [f"{'' if finding.fatal else 'warning: '}{finding}" for finding in found if not finding.ok]


def test_nodes_that_are_alike_are_well():
    assert wrong(node("a"), node("b")) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"storage": "is not seen"}, "b: storage: /shared is not seen by this node; use a folder that all nodes share"),
        ({"code": "def"}, "b: code: version def, here abc; Ray did not ship this checkout"),
        ({"disks": {"storage": (10**6, GB)}}, "b: disk of storage: 0.0 GB free, 100% used; free some"),
        ({"disks": {"Ray's files": (GB, 100 * GB)}}, "warning: b: disk of Ray's files: 1.0 GB free, 99% used"),
        ({"skew": 45.0}, "warning: b: clock: +45 s against this machine; set it by NTP"),
        ({"skew": -2000.0}, "b: clock: -2,000 s against this machine; set it by NTP"),
        ({"memory": (2 * GB, 24 * GB)}, "warning: b: memory: 2.0 GB available of 24.0, 4 trials at once; give trials"),
        ({"files": 1024}, "warning: b: open files: up to 1,024; ulimit -n 65536"),
        ({"promised": 2.0, "gpus": [GPU]}, "b: GPUs: 1 x H100, least free memory 70.0 GiB, Ray promises 2; start Ray"),
        ({"promised": 1.0}, "b: GPUs: none, Ray promises 1; start Ray there with --num-gpus"),
        ({"versions": FACTS["versions"] | {"torch": "2.1.0"}}, "b: torch: 2.1.0, other nodes 2.13.0; install the same"),
        ({"versions": FACTS["versions"] | {"h5py": "2"}}, "warning: b: h5py: 2, other nodes 3; install the same"),
        ({"versions": FACTS["versions"] | {"python": "3.12.1"}}, "warning: b: python: 3.12.1, other nodes 3.11.7"),
    ],
)
def test_each_failure_is_one_line_with_its_remedy(changes, says):
    (found,) = wrong(node("a"), node("c"), node("b", **changes))
    assert found.startswith(says)


def test_a_head_that_trains_nothing_may_have_another_torch():
    head = node("head", slots=0, versions=FACTS["versions"] | {"torch": "2.13.0+cpu"})
    assert wrong(head, node("a", promised=1.0, gpus=[GPU]), node("b", promised=1.0, gpus=[GPU])) == []


def test_a_token_that_is_not_there_is_an_unshared_storage(tmp_path):
    storage = Storage(tmp_path)
    assert probe_node(storage, "token")["storage"] == "is not seen"
    token = check_storage(storage)
    assert probe_node(storage, token)["storage"] == ""
    assert storage.names() == [token]  # its own file is gone
    storage.write(token, b"other")
    assert probe_node(storage, token)["storage"] == "has another content than here"


def test_code_is_known_by_its_content(tmp_path):
    assert code_digest() == code_digest()
    assert probe_node(Storage(tmp_path), check_storage(Storage(tmp_path)))["code"] == code_digest()


def test_the_time_a_question_takes_is_no_skew():
    assert clock_skew(lambda: time.sleep(0.05) or time.time()) == 0.0
    assert clock_skew(lambda: time.time() + 100) == pytest.approx(100, abs=1)
    assert clock_skew(lambda: time.time() - 100) == pytest.approx(-100, abs=1)


def test_nvidia_smi_is_read_as_it_writes(monkeypatch):
    said = "NVIDIA H200, 142000, 143771\nNVIDIA A100, [N/A], [N/A]\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=said))
    first, second = facts.gpus()
    assert first == {"name": "NVIDIA H200", "free": 142000 * 2**20, "total": 143771 * 2**20}
    assert second["free"] is None
    (finding,) = [
        f for f in evaluate([node(promised=2.0, gpus=[first, second])], Storage("/s"), "abc") if f.what == "GPUs"
    ]
    assert finding.says == "1 x NVIDIA H200, 1 x NVIDIA A100, least free memory 138.7 GiB"


@pytest.mark.parametrize(
    ("own", "files", "limits"),
    [
        (
            "0::/job/step",
            {
                "job/step/memory.max": "max",
                "job/memory.max": "1500",
                "job/memory.current": "1000",
                "job/memory.stat": "anon 700\ninactive_file 300",
            },
            [(800, 1500)],
        ),
        (
            "9:pids:/\n4:memory:/job\n0::/",
            {
                "memory/job/memory.limit_in_bytes": "1500",
                "memory/job/memory.usage_in_bytes": "1600",
                "memory/job/memory.stat": "total_inactive_file 0",
            },
            [(0, 1500)],
        ),
        ("0::/", {}, []),
    ],
    ids=["version 2", "version 1", "no limit"],
)
def test_memory_within_a_container_is_what_its_limit_leaves(tmp_path, own, files, limits):
    (groups := tmp_path / "cgroup").write_text(own)
    for name, content in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert list(facts.group_limits(groups, tmp_path / "fs")) == limits
    assert list(facts.group_limits(tmp_path / "none", tmp_path / "fs")) == []


def test_memory_of_this_machine_is_within_what_it_has():
    free, total = facts.memory()
    assert 0 < free <= total <= psutil.virtual_memory().total


def test_no_password_is_shown():
    assert without_secret("s3://key:secret@bucket/x") == "s3://***@bucket/x"
    assert without_secret("at http://u:p@h:5000/ and s3://b/x@y") == "at http://***@h:5000/ and s3://b/x@y"


def command(*arguments: str | Path) -> subprocess.CompletedProcess:
    root = ROOT
    return subprocess.run(
        [sys.executable, "-m", "cluster.doctor", *arguments], capture_output=True, text=True, cwd=root
    )


def test_the_command_on_this_machine(tmp_path):
    sample = SAMPLE
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    done = command("--storage", tmp_path / "results", "--data", sample, "--tracking-uri", tracking)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("storage", "torch", "fingerprint", "answers and takes runs"):
        assert word in " ".join(done.stdout.split())
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--storage", "/proc/nowhere"), "error: storage /proc/nowhere must be writable"),
        (("--address", "nowhere"), "error: address must be auto or host:port, got 'nowhere'"),
        (("--data", "none.h5"), "error: none.h5: no such file or folder"),
    ],
)
def test_what_cannot_be_asked_is_one_line(tmp_path, arguments, says):
    given = () if "--storage" in arguments else ("--storage", tmp_path)
    done = command(*arguments, *given)
    assert done.returncode == 2
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1


def cluster_of(monkeypatch, alive: dict[str, bool | Exception]) -> list[dict]:
    """Nodes that answer with their own name, or as told; the ones that are False have gone when they are asked."""
    ray = pytest.importorskip("ray")
    made = [{"NodeID": name * 56, "NodeManagerAddress": f"10.0.0.{name}"} for name in alive]

    class Task:
        def options(self, scheduling_strategy):
            self.node = scheduling_strategy.node_id[0]
            return self

        def remote(self):
            return self.node

    def get(node):
        if alive[node] is True:
            return node
        raise alive[node] or ray.exceptions.NodeDiedError("it has gone")

    monkeypatch.setattr(ray, "remote", lambda **held: lambda function: Task())
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(nodes, "alive_nodes", lambda: [node for node in made if alive[node["NodeID"][0]]])
    return made


def test_a_node_that_goes_while_it_is_asked_is_left_out(monkeypatch):
    made = cluster_of(monkeypatch, {"a": True, "b": False, "c": True})
    assert [(node["NodeID"][0], told) for node, told in on_each(made, probe_node)] == [("a", "a"), ("c", "c")]
    made = cluster_of(monkeypatch, {"a": False})
    with pytest.raises(ClusterError, match="every node has gone"):
        on_each(made, probe_node)


def test_a_node_that_cannot_run_this_code_is_named(monkeypatch):
    ray = pytest.importorskip("ray")
    error = ray.exceptions.RaySystemError("Traceback ...\nModuleNotFoundError: No module named 'rich'\n")
    made = cluster_of(monkeypatch, {"a": True, "b": error})
    with pytest.raises(ClusterError, match=r"^node 10\.0\.0\.b cannot be asked: ModuleNotFoundError: No module .*'$"):
        on_each(made, probe_node)


def test_a_finding_says_where_and_what():
    finding = Finding(what="clock", where="a", says="late", remedy="set it")
    assert str(finding) == "a: clock: late; set it"
    assert dataclasses.replace(finding, remedy="").ok

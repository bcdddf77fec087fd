"""Jets made on the nodes of a Ray cluster: the same files as made here, whatever happens to workers and nodes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from cluster.resources import ClusterError
from jbot.data import DataError, chunks, load, pythia
from jbot.data.chunks import Chunk, generate_file
from jbot.data.pythia import Settings

ray = pytest.importorskip("ray")
from cluster import generate  # noqa: E402 - needs ray
from cluster.connection import connected  # noqa: E402 - needs ray

SETTINGS = Settings(seed=3)

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests


@pytest.fixture
def generator() -> None:
    """Skip where the extra [pythia] is missing."""
    for module in ("pythia8mc", "fastjet", "awkward"):
        pytest.importorskip(module, reason="needs the extra [pythia]")


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two nodes with one CPU each, on this machine."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def nodes(cluster):
    """The nodes of that cluster, and this process connected to it: for the rest of this file, to save time."""
    with connected(cluster.address):
        yield [node["NodeID"] for node in ray.nodes() if node["Alive"]]


@pytest.fixture
def any_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the driver want what the nodes have, also where that is nothing: physics is replaced in these tests."""
    monkeypatch.setattr(pythia, "generator_versions", lambda: {"numpy": np.__version__})


def numbers(chunk: Chunk) -> chunks.Made:
    """In place of physics: jets that differ from chunk to chunk."""
    particles = np.zeros((chunk.n_jets, 30, 4), np.float32)
    particles[:, 0, 2:] = chunk.number + 1, 1
    return particles, np.full((chunk.n_jets, 4), 1000, np.float32), 2 * chunk.n_jets


def some_chunks(folder: Path, count: int) -> list[Chunk]:
    return [Chunk("q", number, 10, SETTINGS, folder) for number in range(count)]


# --- the same jets ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("generator")
def test_jets_of_a_cluster_are_those_of_one_machine_bit_by_bit(cluster, tmp_path: Path) -> None:
    wanted = {"q": 15, "w": 15, "t": 15}
    here = generate_file(wanted, SETTINGS, workers=1, cache=tmp_path / "here", progress=False)
    executor = generate.cluster_executor(cluster.address)
    there = generate_file(wanted, SETTINGS, cache=tmp_path / "there", progress=False, executor=executor)
    assert here.read_bytes() == there.read_bytes()
    made = {name: sorted((tmp_path / name).rglob("chunks/*")) for name in ("here", "there")}
    assert [path.name for path in made["here"]] == [path.name for path in made["there"]]
    assert len(made["here"]) == 3
    for one, other in zip(made["here"], made["there"], strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.usefixtures("generator")
def test_jets_in_the_cache_need_no_cluster(tmp_path: Path) -> None:
    first = load("pythia", jets_per_class={"q": 5}, workers=1, cache=tmp_path, progress=False)
    nowhere = generate.cluster_executor("127.0.0.1:1")
    again = load("pythia", jets_per_class={"q": 5}, cache=tmp_path, progress=False, executor=nowhere)
    assert again.fingerprint == first.fingerprint
    with pytest.raises(ClusterError, match=r"no Ray cluster at address '127\.0\.0\.1:1'"):
        load("pythia", jets_per_class={"q": 6}, cache=tmp_path, progress=False, executor=nowhere)


# --- deaths -------------------------------------------------------------------------------------------------------


def hang_the_first_time(folder: Path):
    """Chunk 1 says which process and node it is made by, and then never ends; made again, it does."""

    def make(chunk: Chunk) -> chunks.Made:
        told = folder / "hangs"
        if chunk.number == 1 and not told.exists():
            told.with_suffix(".new").write_text(f"{os.getpid()} {ray.get_runtime_context().get_node_id()}")
            told.with_suffix(".new").rename(told)
            time.sleep(600)
        return numbers(chunk)

    return make


def wait_for(path: Path) -> Path:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("any_generator")
def test_a_dead_node_has_its_chunks_made_elsewhere(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    own = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    doomed = own.add_node(num_cpus=1)
    wanted = some_chunks(tmp_path / "chunks", 5)
    try:
        with connected(own.address):
            finished = generate.on_nodes(wanted, make=hang_the_first_time(tmp_path))
            next(finished)
            assert wait_for(tmp_path / "hangs").read_text().split()[1] == doomed.node_id
            own.add_node(num_cpus=1)
            own.remove_node(doomed, allow_graceful=False)
            assert list(finished) == [10] * 4
    finally:
        own.shutdown()
    assert all(chunks._read_chunk(chunk) is not None for chunk in wanted)


@pytest.mark.usefixtures("any_generator")
def test_every_node_takes_part_and_few_chunks_are_in_flight(nodes, tmp_path: Path) -> None:
    def make(chunk: Chunk) -> chunks.Made:
        (tmp_path / f"started-{chunk.number}").write_text(ray.get_runtime_context().get_node_id())
        time.sleep(0.2)
        return numbers(chunk)

    wanted, finished = some_chunks(tmp_path / "chunks", 14), 0
    for n_jets in generate.on_nodes(wanted, make=make):
        finished += n_jets // 10
        started = list(tmp_path.glob("started-*"))
        assert len(started) <= finished - 1 + 2 * generate.WAITING_PER_CPU
    assert finished == 14
    assert {path.read_text() for path in started} == set(nodes)
    for chunk in wanted:
        np.testing.assert_array_equal(chunks._read_chunk(chunk)[0], numbers(chunk)[0])


@pytest.mark.usefixtures("any_generator")
def test_a_killed_worker_has_its_chunk_made_again(nodes, tmp_path: Path) -> None:
    wanted = some_chunks(tmp_path / "chunks", 5)
    finished = generate.on_nodes(wanted, make=hang_the_first_time(tmp_path))
    next(finished)
    os.kill(int(wait_for(tmp_path / "hangs").read_text().split()[0]), signal.SIGKILL)  # of this test's own cluster
    assert list(finished) == [10] * 4
    assert all(chunks._read_chunk(chunk) is not None for chunk in wanted)


@pytest.mark.usefixtures("any_generator")
def test_a_chunk_that_always_kills_its_worker_is_given_up(nodes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"given up after 3 retries .*; the same command continues"):
        list(generate.on_nodes(some_chunks(tmp_path, 1), make=lambda chunk: os._exit(1)))


@pytest.mark.usefixtures("any_generator")
def test_an_error_of_the_physics_is_said_as_it_is(nodes, tmp_path: Path) -> None:
    def refuse(chunk: Chunk) -> chunks.Made:
        raise DataError("Pythia could not start")

    with pytest.raises(DataError, match=r"^Pythia could not start$"):
        list(generate.on_nodes(some_chunks(tmp_path, 3), make=refuse))


@pytest.mark.usefixtures("any_generator")
def test_finished_chunks_are_kept_when_another_fails(nodes, tmp_path: Path) -> None:
    wanted = some_chunks(tmp_path / "chunks", 20)

    def fail_third(chunk: Chunk) -> chunks.Made:
        if chunk.number == 2:
            for other in wanted[:2]:
                wait_for(other.path)
            raise DataError("stopped")
        return numbers(chunk)

    with pytest.raises(DataError, match="stopped"):
        list(generate.on_nodes(wanted, make=fail_third))
    assert all(chunk.path.exists() for chunk in wanted[:2])
    assert not list((tmp_path / "chunks").glob(".*.tmp"))
    list(generate.on_nodes([chunk for chunk in wanted if not chunk.path.exists()], make=numbers))
    assert all(chunks._read_chunk(chunk) is not None for chunk in wanted)


# --- versions -----------------------------------------------------------------------------------------------------


def test_a_node_with_another_pythia_is_named_before_anything_is_made(nodes, tmp_path: Path) -> None:
    address = ray.nodes()[0]["NodeManagerAddress"]
    with pytest.raises(ClusterError) as caught:
        generate.check_generators({"numpy": "0.1"})
    said = f"node {address} has numpy {np.__version__}, this machine 0.1"
    assert str(caught.value) == f"{said}. Every node needs: pip install numpy==0.1"
    with pytest.raises(ClusterError, match=r"node \S+ has no nosuchpackage\. Every node needs: pip install"):
        generate.check_generators({"nosuchpackage": "1"})
    task = ray.remote(generate.made_here)
    with pytest.raises(ClusterError, match="has numpy"):  # a node that joined later
        generate._result(task.remote(some_chunks(tmp_path, 1)[0], {"numpy": "0.1"}, numbers))


def test_a_cluster_without_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"GPU": 1.0}}])
    with pytest.raises(ClusterError, match="needs a node with a CPU, and this cluster has none"):
        generate.check_generators({})


# --- command line -------------------------------------------------------------------------------------------------


def test_bad_requests_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    common = ["--jets", "5", "--cache", str(tmp_path)]
    assert generate.main([*common, "--address", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert generate.main([*common, "--pt", "50"]) == 2
    assert capsys.readouterr().err == "error: jet pT must lie in [200, 5000] GeV, got 50\n"


@pytest.mark.slow
@pytest.mark.usefixtures("generator", "interrupt_raises")
def test_ctrl_c_keeps_finished_chunks_and_the_same_command_continues(cluster, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster.generate", "--address", cluster.address, "--cache", tmp_path]
    command += ["--jets", "60", "--out", tmp_path / "out.h5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"text": True, "cwd": ROOT, "env": environment}
    running = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, **options)
    while running.poll() is None and not list(tmp_path.rglob("chunks/*.h5")):
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "finished chunks are kept, the same command continues" in said
    assert "Traceback" not in said
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("chunks/*")}
    assert 1 <= len(kept) < 5
    assert all(path.suffix == ".h5" for path in kept)
    again = subprocess.run(command, capture_output=True, check=False, **options)
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"{tmp_path / 'out.h5'}\n"
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert len(load(str(tmp_path / "out.h5"), jets_per_class=None).labels) == 300

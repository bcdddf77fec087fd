"""Trials under Ray Tune: the same records as inline, block order, crashes, two nodes."""

import contextlib
import copy
import dataclasses
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers import ROOT, SAMPLE, TINY

from cluster.doctor import command as doctor
from cluster.resources import ClusterError, Resources
from cluster.scheduling.run import open_trials, run_inline
from jbot.config import Config, override
from jbot.store.record import TrialSpec, load_record
from jbot.store.storage import Storage

ray = pytest.importorskip("ray")
from cluster import connection  # noqa: E402
from cluster.connection import connected  # noqa: E402
from cluster.scheduling import nodes, tune  # noqa: E402
from cluster.scheduling.tune import run_ray  # noqa: E402


class Log:
    """A listener that remembers."""

    def __init__(self):
        self.starts, self.points, self.ends, self.losses, self.interruptions = [], [], [], [], []
        self.running, self.most_running = set(), 0

    def started(self, spec):
        self.starts.append((spec.config.seed, spec.arm))
        self.running.add(spec.trial_id)
        self.most_running = max(self.most_running, len(self.running))

    def point(self, spec, row):
        self.points.append((spec.trial_id, row["epoch"]))

    def interrupted(self, spec):
        self.interruptions.append(spec.trial_id)

    def ended(self, spec, record):
        self.running.discard(spec.trial_id)
        self.ends.append(record)

    def lost(self, spec, error):
        self.losses.append(error)

    def close(self):
        pass


def specs_of(data, seeds=2, **changes) -> list[TrialSpec]:
    arms = {"momentum": {}, "none": {"mask.scheme": "none"}}
    return [
        TrialSpec(
            study="cluster_test",
            arm=arm,
            plan_hash="p",
            config=override(Config(), TINY | over | changes | {"seed": seed}),
            data_fingerprint=data.fingerprint,
        )
        for seed in range(seeds)
        for arm, over in arms.items()
    ]


@pytest.fixture(scope="module")
def two_nodes():
    """A Ray cluster of two nodes with one CPU each, on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def test_records_under_ray_equal_those_inline(two_nodes, tiny_data, tmp_path):
    specs, log, inline = specs_of(tiny_data, **{"train.epochs": 40}), Log(), Log()  # long enough to overlap
    here, there = Storage(tmp_path / "inline"), Storage(tmp_path / "ray")
    run_inline(specs, tiny_data, here, [inline], Resources())
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)]
    run_ray(specs, tiny_data, there, [log], address=two_nodes)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)]
    for spec in specs:
        one, other = load_record(here, spec.trial_id), load_record(there, spec.trial_id)
        assert one.metrics == other.metrics
        assert one.attempts == other.attempts == 1
    assert inline.starts == [(0, "momentum"), (0, "none"), (1, "momentum"), (1, "none")]
    assert [seed for seed, _ in log.starts] == [0, 0, 1, 1]
    assert sorted(log.points) == sorted(inline.points)
    assert len(log.ends) == 4
    assert log.most_running == 2  # one on each node
    assert there.names() == ["encoders", "floors", "trials"]  # nothing of Ray's own is left behind
    again = Log()
    run_ray(specs, tiny_data, there, [again], address=two_nodes)
    assert again.starts == []


def kill_workers():
    """Those that train, of this test's own cluster."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended by itself
            if process.cmdline() and process.cmdline()[0].startswith("ray::ImplicitFunc"):
                process.kill()


def test_a_killed_worker_is_retried_and_ends_with_the_same_result(two_nodes, tiny_data, tmp_path, caplog):
    # Long enough to be alive when the driver hears of its first point.
    specs = specs_of(tiny_data, seeds=1, **{"train.epochs": 300, "probe.every": 150})
    undisturbed = Storage(tmp_path / "undisturbed")
    run_inline(specs[:1], tiny_data, undisturbed, [], Resources())

    class Killer(Log):
        killed = False

        def point(self, spec, row):
            if spec.trial_id == specs[0].trial_id and row["epoch"] == 0 and not self.killed:
                self.killed = True
                kill_workers()
            super().point(spec, row)

    log, storage = Killer(), Storage(tmp_path / "broken")
    run_ray(specs, tiny_data, storage, [log], address=two_nodes)
    assert log.losses == []
    assert specs[0].trial_id in log.interruptions
    assert not [said for said in caplog.records if said.exc_info]  # the listeners have told of it
    record = load_record(storage, specs[0].trial_id)
    assert record.attempts == 2
    assert record.metrics == load_record(undisturbed, specs[0].trial_id).metrics


def test_what_no_node_can_hold_is_said_at_once(two_nodes, tiny_data, tmp_path):
    with pytest.raises(ClusterError, match="no node offers what one trial needs: 1 CPUs and 5 GPUs"):
        run_ray(specs_of(tiny_data), tiny_data, Storage(tmp_path), [], address=two_nodes, resources=Resources(gpus=5))


def test_the_doctor_asks_every_node(two_nodes, tmp_path, capsys):
    sample = SAMPLE
    assert doctor.main(["--address", two_nodes, "--storage", str(tmp_path), "--data", str(sample)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("is read and written") == 2
    assert said.count("ok 127.0.0.1") + said.count("clock as here") >= 2
    assert "ok all nodes jets" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("comes", [True, False])
def test_a_node_is_asked_for_until_one_comes_or_nobody_waits(monkeypatch, comes):
    """The autoscaler keeps what was asked for, whether the driver that asked lives or not."""
    asked, counts = [], iter([0, 0, 1] if comes else [0, 0])

    def count(resources: Resources) -> int:
        if (found := next(counts, None)) is None:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(nodes, "request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(nodes, "present_slots", count)
    monkeypatch.setattr(nodes, "POLL_S", 0.0)
    with contextlib.nullcontext() if comes else pytest.raises(KeyboardInterrupt):
        nodes._wait_for_slot(Resources(gpus=0.5))
    assert asked == [[{"CPU": 1.0, "GPU": 0.5}], []]


@pytest.mark.parametrize(("pack", "measured"), [(2, 0), (None, 1)])
def test_gpus_are_measured_only_where_packs_depend_on_it(tiny_data, tmp_path, monkeypatch, pack, measured):
    """It waits for a share of a GPU on every node, each of which another study may hold for hours."""
    asked, packs = [], []
    monkeypatch.setattr(tune, "connected", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(tune, "check_nodes", lambda storage, resources: None)
    monkeypatch.setattr(tune, "slots", lambda resources: 1)
    monkeypatch.setattr(tune, "free_bytes", lambda resources: asked.append(resources) or 10**12)
    monkeypatch.setattr(tune, "_run_packs", lambda formed, *others: packs.extend(formed))
    run_ray(specs_of(tiny_data), tiny_data, Storage(tmp_path), [], resources=Resources(gpus=1, pack=pack))
    assert len(asked) == measured
    assert sum(map(len, packs)) == 4


def test_inline_without_the_gpu_it_was_asked_for(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ClusterError, match="trials ask for 1 GPUs and there is none here"):
        run_inline(specs_of(tiny_data), tiny_data, Storage(tmp_path), [], Resources(gpus=1))


def test_an_address_is_auto_or_a_port():
    with pytest.raises(ClusterError, match="address must be auto or host:port, got 'foo'"), connected("foo"):
        pass


def test_a_cluster_of_other_versions_is_one_line(monkeypatch):
    def refuse(**options):
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\nThis process with:\n    Ray: 2.60.0\n"
        )

    monkeypatch.setattr(ray, "init", refuse)
    says = (
        r"Ray cluster at address 'there:1' cannot be used: Version mismatch: .*2\.9\.0 This process with: Ray: 2\.60\.0"
    )
    with pytest.raises(ClusterError, match=says):
        connection._join({"address": "there:1"})


def test_no_cluster_at_the_address(tiny_data, tmp_path):
    with pytest.raises(ClusterError, match=r"no Ray cluster at address '127\.0\.0\.1:1'"), connected("127.0.0.1:1"):
        pass


def test_what_tune_saves_with_every_trial_does_not_grow_with_the_study(tiny_data):
    from ray import cloudpickle

    from cluster.scheduling.tune import TrialNames

    names = TrialNames([[spec] for spec in specs_of(tiny_data, seeds=20)])
    assert len(cloudpickle.dumps(names)) < 200
    trial = type("Trial", (), {"config": {"pack": 3}})
    assert copy.deepcopy(names)(trial).startswith("none-seed1-")


def test_packs_come_from_the_object_store_by_their_number(two_nodes, tiny_data, monkeypatch):
    from cluster.scheduling.tune import PackRefs

    monkeypatch.setattr(PackRefs, "SIZE", 3)
    packs = [[spec] for spec in specs_of(tiny_data, seeds=4)]
    with connected(two_nodes):
        refs = PackRefs(packs)
        assert len(refs.parts) == 3
        assert [refs[number] for number in range(len(packs))] == packs


def test_equal_trials_of_a_study_are_run_once(tiny_data, tmp_path):
    specs = specs_of(tiny_data, seeds=1)
    assert len(open_trials(specs + specs, Storage(tmp_path))) == 2


def test_packs_inline_tell_each_trial_and_a_failure_at_once(tiny_data, tmp_path):
    arms = {"wild": {"optim.lr": 1e30, "optim.warmup_epochs": 0}, "good": {}, "larger": {"model.dim": 12}}
    specs = [dataclasses.replace(specs_of(tiny_data)[0], arm=arm, config=override(Config(), TINY | over))
             for arm, over in arms.items()]  # fmt: skip
    log, order = Log(), []
    log.ended = lambda spec, record: order.append((spec.arm, record.state, record.resources["pack"]))
    run_inline(specs, tiny_data, Storage(tmp_path), [log], Resources(pack=3))
    assert log.starts == [(0, "wild"), (0, "good"), (0, "larger")]
    assert order == [("wild", "failed", 2), ("good", "complete", 2), ("larger", "complete", 1)]
    assert len(log.points) == len(set(log.points)) == 1 + 4 + 4


def test_packs_under_ray_leave_the_records_of_lone_trials(two_nodes, tiny_data, tmp_path):
    specs, log = specs_of(tiny_data, seeds=3), Log()
    alone, packed = Storage(tmp_path / "alone"), Storage(tmp_path / "packed")
    run_inline(specs, tiny_data, alone, [], Resources())
    run_ray(specs, tiny_data, packed, [log], address=two_nodes, resources=Resources(pack=2))
    assert sorted(log.starts) == sorted((spec.config.seed, spec.arm) for spec in specs)
    assert sorted(log.points) == sorted((spec.trial_id, epoch) for spec in specs for epoch in range(4))
    assert sorted(record.trial_id for record in log.ends) == sorted(spec.trial_id for spec in specs)
    assert log.losses == log.interruptions == []
    for spec in specs:
        one, other = load_record(alone, spec.trial_id), load_record(packed, spec.trial_id)
        assert (one.resources["pack"], other.resources["pack"]) == (1, 2)
        assert one.metrics == pytest.approx(other.metrics, abs=0.05)  # float32: rounding of a pack and alone differs


def test_a_killed_pack_goes_on_with_what_has_not_ended(two_nodes, tiny_data, tmp_path):
    """The wild trial fails in the first epoch; then the worker dies, and the others of the pack go on."""
    changes = {"train.epochs": 600, "probe.every": 150}
    specs = specs_of(tiny_data, seeds=2, **changes)[:3]
    wild = override(specs[0].config, {"optim.lr": 1e30, "optim.warmup_epochs": 0})
    specs[0] = dataclasses.replace(specs[0], config=wild)

    class Killer(Log):
        def point(self, spec, row):
            if row["epoch"] == 150 and not self.interruptions:
                kill_workers()
            super().point(spec, row)

    log, storage = Killer(), Storage(tmp_path)
    run_ray(specs, tiny_data, storage, [log], address=two_nodes, resources=Resources(pack=3))
    assert log.losses == []
    assert log.interruptions == [spec.trial_id for spec in specs[1:]]
    assert [load_record(storage, spec.trial_id).attempts for spec in specs] == [1, 2, 2]
    assert [record.trial_id for record in log.ends] == [spec.trial_id for spec in specs]
    assert [record.state for record in log.ends] == ["failed", "complete", "complete"]


@pytest.mark.usefixtures("interrupt_raises")
def test_ctrl_c_when_the_last_trial_has_just_ended_is_heard(two_nodes, tiny_data, tmp_path):
    """Tune catches it, has nothing left to stop, and says nothing."""
    specs, storage = specs_of(tiny_data, seeds=1), Storage(tmp_path)

    class Last(Log):
        def ended(self, spec, record):
            super().ended(spec, record)
            if len(self.ends) == len(specs):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_ray(specs, tiny_data, storage, [Last()], address=two_nodes)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert open_trials(specs, storage) == []
    assert storage.names() == ["encoders", "floors", "trials"]


@pytest.mark.slow
@pytest.mark.usefixtures("interrupt_raises")
def test_ctrl_c_loses_no_finished_trial_and_the_same_command_continues(tmp_path):
    data = SAMPLE
    command = [sys.executable, ROOT / "studies/masking_ablation.py", "--preset", "smoke", "--storage", tmp_path]
    command += ["--figures", "none", "--seeds", "1"]
    command += ["--data", data, "--set", "train.epochs=20", "--set", "probe.every=20"]
    environment = {"JBOT_CACHE": str(tmp_path / "cache")} | os.environ  # kernels need not be compiled again
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    while running.poll() is None and len(list(tmp_path.glob("trials/*/record.json"))) < 1:
        time.sleep(0.2)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=400)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("trials/*/record.json")}
    assert running.returncode == 130, said
    assert said.count("stopping: ") == 1
    assert "the same command continues" in said
    assert 1 <= len(kept) < 4
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(kept)} of 4 trials have a record already" in again.stderr
    assert len(list(tmp_path.glob("trials/*/record.json"))) == 4
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


@pytest.mark.slow
def test_the_command_line_packs_trials_under_ray(tmp_path):
    data = SAMPLE
    command = [sys.executable, ROOT / "studies/masking_ablation.py", "--preset", "smoke", "--pack", "4"]
    command += ["--figures", "none", "--seeds", "1", "--tracking-uri", "none"]
    command += ["--storage", tmp_path, "--data", data, "--set", "train.epochs=1"]
    environment = {"JBOT_CACHE": str(tmp_path / "cache")} | os.environ  # kernels need not be compiled again
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    names = Storage(tmp_path).names("trials")
    records = [load_record(Storage(tmp_path), name) for name in names]
    assert [record.resources["pack"] for record in records] == [4] * 4
    assert len({(record.arm, record.seed) for record in records}) == 4
    assert (tmp_path / "masking_ablation_smoke/report.html").exists()

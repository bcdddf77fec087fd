"""The promise, checked after each fault.

    before = Before(folder)          # processes, files, records that are there
    ...break something; run the same command again...
    before.check(undisturbed)        # AssertionError names the sentence that does not hold

1. No finished trial is lost or run twice: records that were there are the same files as before.
2. A trial that was interrupted equals an undisturbed one bit for bit: weights, metrics, learning curves.
3. MLflow has one run for each trial and arm, and one for the study.
4. The report counts every attempt.
5. No process and no temporary file is left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import psutil
import pytest

from analysis.verdicts import provenance
from jbot.store.plan import StudyRecords, load_study
from jbot.store.record import Record, load_curves, load_whole
from jbot.store.storage import Storage, is_stale

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "tests/faults/tiny_study.py"
NAME = "faults_smoke"
JETS = ROOT / "tests/data/jets_sample.h5"
SHARED = Path("/dev/shm")
MARK = "JBOT_FAULT"
"""Environment variable that every process of a test inherits, from its driver to its last Ray worker."""
CLOCKS = {"device_seconds", "train_seconds", "probe_seconds", "seconds"}
"""Columns of learning curves that no two runs share."""


class Before:
    """A folder for one study, and what was there before anything happened to it.

    Parameters
    ----------
    folder : Path
        For records (`out`) and temporary files (`tmp`); made if missing.
    """

    def __init__(self, folder: Path):
        self.storage = Storage(folder / "out")
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.mark = uuid.uuid4().hex
        self.shared = set(SHARED.iterdir())
        self.finished = self.stamps()
        self.drivers: set[int] = set()

    def environment(self, **more: str) -> dict[str, str]:
        """Of everything that is started."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        own = {MARK: self.mark, "TMPDIR": str(self.temporary), "JBOT_CHECKPOINT_SECONDS": "0.2"}
        own["RAY_AUTH_MODE"] = (
            "disabled"  # which ray start would switch on; tests/cluster/scheduling/test_grow.py has it
        )
        own["RAY_raylet_start_wait_time_s"] = "300"  # a busy machine needs more than half a minute
        return kept | own | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more

    def command(self, *more: str) -> list[str]:
        """The study's, with these options."""
        fixed = ["--preset", "smoke", "--data", JETS, "--storage", self.storage.uri, "--figures", "none"]
        return [sys.executable, *map(str, [STUDY, *fixed, *more])]

    def start(self, *more: str, **environment: str) -> subprocess.Popen[str]:
        """A driver, in a session of its own."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        driver = subprocess.Popen(self.command(*more), env=self.environment(**environment), **options)  # type: ignore[call-overload]
        self.drivers.add(driver.pid)
        return driver  # type: ignore[no-any-return]

    def run(self, *more: str, code: int = 0, **environment: str) -> str:
        """The command to its end; what it said."""
        driver = self.start(*more, **environment)
        said, _ = driver.communicate(timeout=600)
        assert driver.returncode == code, said
        return said

    def inline(self, *more: str) -> tuple[int, str]:
        """The same command in this process, without a report; its exit code, and what it said."""
        from tiny_study import main, no_report, study

        from studies.runner import execute

        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
            patch.setattr(execute, "write_report", no_report)
            with pytest.raises(SystemExit) as ended:
                main(study, self.command("--inline", *more)[2:])
        return int(ended.value.code or 0), said.getvalue()

    def stamps(self) -> dict[str, int]:
        """When each whole record was written."""
        found = Path(self.storage.uri).glob("trials/*/record.json")
        return {path.parent.name: path.stat().st_mtime_ns for path in found}

    def wait_for(self, records: int, driver: subprocess.Popen[str]) -> None:
        """Until so many trials have ended; they are finished from now on."""
        while driver.poll() is None and len(self.stamps()) < records:
            time.sleep(0.02)
        self.finished = self.stamps()

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Live ones of this study whose command line begins with a name."""
        found = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                ours = process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark
            except psutil.Error:  # of another user, or ended meanwhile
                continue
            if ours and process.pid != os.getpid() and words.startswith(name):
                found.append(process)
        return found

    def trainers(self) -> list[psutil.Process]:
        """Ray workers that train."""
        return self.processes("ray::ImplicitFunc")

    def check(
        self,
        undisturbed: Undisturbed,
        *,
        attempts: int | None = None,
        tracking_uri: str | None = None,
        left: bool = True,
    ) -> None:
        """The five sentences.

        Parameters
        ----------
        attempts : int, optional
            How many there were in all, where the fault tells.
        tracking_uri : str, optional
            Of the MLflow server; None where there is none.
        left : bool
            Look for processes and temporary files too; False while others of this folder still run.
        """
        study = load_study(f"{self.storage.uri}/{NAME}")
        now = self.stamps()
        again = [trial for trial, stamp in self.finished.items() if now.get(trial) != stamp]
        assert not again, f"finished trials were lost or run twice: {again}"
        ids = [trial.trial_id for trial in study.trials]
        records = [load_whole(self.storage, trial) for trial in ids]
        assert None not in records, f"trials without a record: {records.count(None)} of {len(ids)}"
        for trial in ids:
            assert results(self.storage, trial) == undisturbed.of(trial), f"trial {trial} is not what it would be"
        if tracking_uri:
            check_runs(tracking_uri, study)
        check_report(self.storage, study, [record for record in records if record], attempts)
        if left:
            self.check_left()

    def check_left(self, unfinished: bool = False) -> None:
        """Nothing is left behind, but for checkpoints where trials are unfinished."""
        until = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < until:  # they need a moment to end
            time.sleep(0.1)
        assert not left, f"processes are left: {[process.info or process.cmdline()[:3] for process in left]}"
        files = [str(path) for path in Path(self.storage.uri).rglob("*") if is_temporary(path)]
        files = [name for name in files if not (unfinished and name.endswith("/checkpoint"))]
        files += [str(path) for path in self.temporary.iterdir()]
        for pid in self.drivers:  # of others something may be there, until the next Ray on this machine
            files += [str(path) for path in Path("/tmp").glob(f"jbot.{pid}-*.tmp") if is_stale(path.name)]
        files += [str(path) for path in set(SHARED.iterdir()) - self.shared if not is_mapped(path)]
        assert not files, f"temporary files are left: {files}"


class Undisturbed:
    """What each trial leaves when nothing happens to it; made once.

    Parameters
    ----------
    here : bool
        In this process: saves seconds for short trials, costs them for long ones, as pytest checks shapes.
    """

    def __init__(self, folder: Path, *more: str, here: bool = False):
        quiet = Before(folder)
        if here:
            code, said = quiet.inline(*more)
            assert code == 0, said
        else:
            quiet.run("--inline", *more)
        self.storage, self.trials = quiet.storage, sorted(quiet.stamps())

    def of(self, trial: str) -> tuple[object, ...]:
        """See :func:`results`."""
        return results(self.storage, trial)


def results(storage: Storage, trial: str) -> tuple[object, ...]:
    """Metrics, sha256 of the weights, learning curves without clocks."""
    record = load_whole(storage, trial)
    assert record is not None
    rows = [{key: value for key, value in row.items() if key not in CLOCKS} for row in load_curves(storage, trial)]
    weights = hashlib.sha256(storage.read(f"trials/{trial}/student.safetensors")).hexdigest()
    return record.state, record.metrics, weights, rows


def check_runs(uri: str, study: StudyRecords) -> None:
    """One run for each trial and arm, one for the study, none else; states are those of the records."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(study.plan.study)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    found = Counter((run.data.tags["role"], run.data.tags["key"]) for run in runs)
    wanted = [("trial", trial.trial_id) for trial in study.trials] + [("arm", arm) for arm in study.plan.arms]
    assert found == Counter([*wanted, ("study", study.plan.study)]), f"MLflow has other runs than these: {found}"
    states = {run.data.tags["key"]: run.data.tags["state"] for run in runs if run.data.tags["role"] == "trial"}
    assert set(states.values()) == {"complete"}, f"MLflow does not know that all trials have ended: {states}"


def check_report(storage: Storage, study: StudyRecords, records: list[Record], attempts: int | None) -> None:
    """Records and report count the same attempts; as many as there were."""
    counted = sum(record.attempts for record in records)
    assert attempts is None or counted == attempts, f"{attempts} attempts are {counted} in the records"
    line = provenance.facts(study)["Attempts"]  # what the report says
    assert line.startswith(f"{counted} ")
    page = f"{study.plan.study}/report.md"
    assert not storage.exists(page) or line in storage.read(page).decode(), f"the report does not say: {line}"


def is_temporary(path: Path) -> bool:
    """Of a file or folder in the storage: whether only a running study may have it."""
    name = path.name
    passing = name.endswith(".tmp") or name.startswith(".ray-")
    return passing or name in ("checkpoint", "driver.json")


def is_mapped(path: Path) -> bool:
    """Whether a live process has a file of /dev/shm: it is then of somebody who works on this machine."""
    for process in psutil.process_iter():
        try:
            if str(path) in Path(f"/proc/{process.pid}/maps").read_text():
                return True
        except OSError:
            continue
    return False

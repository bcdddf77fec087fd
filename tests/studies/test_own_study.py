"""A person's own study: a copy of one of ours anywhere on disk, edited as the README says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, TINY, write_jets

README = (ROOT / "README.md").read_text()


@pytest.fixture
def folder(tmp_path, tiny_data) -> Path:
    """A folder outside the checkout, with a file of jets."""
    write_jets(tmp_path / "jets.h5", tiny_data)
    return tmp_path


def own_study(folder: Path) -> Path:
    """The file that the README says to copy, with the study it says to write."""
    (copied,) = re.findall(r"^cp (studies/\w+\.py) ~/my_question\.py$", README, re.MULTILINE)
    (written,) = re.findall(r"```python\n(study = Study\(.*?\n\)\n)```", README, re.DOTALL)
    head, rest = (ROOT / copied).read_text().split("study = Study(")
    own = folder / "my_question.py"
    own.write_text(head + written + rest[rest.index("\nif __name__") :])
    return own


def run(own: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """At smoke size, on the file of jets, as from a shell in another folder."""
    settings = [item for name, value in TINY.items() for item in ("--set", f"{name}={value}")]
    where = ["--preset", "smoke", "--data", "jets.h5", "--storage", "out", *settings, *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, own, *where], capture_output=True, text=True, cwd=own.parent, check=False, env=environment
    )


@pytest.mark.parametrize("options", [["--inline", "--dry-run"], pytest.param([], marks=pytest.mark.slow)])
def test_folders_beside_it_may_have_the_names_of_our_packages(folder, options):
    for name in ("analysis", "cluster", "jbot"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('not ours')")
    done = run(own_study(folder), *options)
    assert done.returncode == 0, done.stderr


def test_a_copy_of_a_study_runs_anywhere_on_disk_and_never_twice(folder):
    own = own_study(folder)
    first = run(own, "--inline")
    assert first.returncode == 0, first.stderr
    report = (folder / "out/my_question_smoke/report.md").read_text()
    assert "Does it help to hide more of each jet?" in report
    assert "most - half" in report
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "out/trials").rglob("record.json")}
    assert len(stamps) == 4
    second = run(own, "--inline")
    assert "4 of 4 trials have a record already" in second.stderr
    assert stamps == {path: path.stat().st_mtime_ns for path in (folder / "out/trials").rglob("record.json")}


def test_a_slip_in_it_is_one_line(folder):
    own = own_study(folder)
    own.write_text(own.read_text().replace("mask.ratio_high", "mask.ratio_hihg"))
    done = run(own, "--inline")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: unknown Config field 'mask.ratio_hihg'; did you mean 'mask.ratio_high'?"
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["jets.h5", "my_question.py"]

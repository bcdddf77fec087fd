"""What a study file and a command line may name: one line and exit code 2, before anything is written."""

import itertools
import subprocess
import sys
from collections.abc import Mapping

import pytest
from helpers import ROOT

from cluster.mirror import default_tracking_uri
from cluster.tracking.registry import alias_names
from jbot.config import ConfigError
from jbot.store.plan import Contrast
from jbot.store.storage import RecordError, Storage, open_folder
from studies import RunOptions, Study, run
from studies.runner.command import run_study
from studies.runner.console import view_uri


class Endless(Mapping):
    """Arms without end, which says that it is one."""

    def __iter__(self):
        return (f"a{number}" for number in itertools.count())

    def __getitem__(self, name):
        return {}

    def __len__(self):
        return 1


def study(**changes):
    usual = {"name": "s", "question": "?", "arms": {"base": {}}, "contrasts": (), "margin": 0.01}
    return Study(**usual | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": ".."}, r"a letter or digit first, got '\.\.'"),
        ({"name": "."}, "a letter or digit first"),
        ({"name": "a" * 300}, "up to 100, a letter or digit first"),
        ({"name": "Fräge 1"}, "got 'Fräge 1'"),
        ({"name": ""}, "got ''"),
        ({"name": "-x"}, "got '-x'"),
        ({"name": 3}, "got 3"),
        ({"name": "trials"}, "must not be called trials"),
        ({"name": "mlflow.db"}, r"must not be called mlflow\.db"),
        ({"arms": {"../x": {}}}, "got '../x'"),
        ({"arms": {f"a{i}": {} for i in range(20_000)}}, "up to 1,000 names with overrides, got 1,001 or more"),
        ({"arms": Endless()}, "up to 1,000 names with overrides, got 1,001 or more"),
        ({"arms": {"base": 3}}, "arm 'base' must be a mapping of fields to values, got 3"),
        ({"arms": ["base"]}, "arms of study s must be a mapping, or a function"),
        ({"contrasts": ["a - b"]}, "contrasts of study s must be a tuple of Contrasts"),
        ({"contrasts": ("a - b",)}, "must be Contrasts, got 'a - b'"),
        ({"margin": "0.01"}, "margin of study s must be a number, got '0.01'"),
        ({"question": None}, "question of study s must be text, got None"),
        ({"seeds_by_preset": 8}, "must be a mapping of presets to numbers, got 8"),
    ],
)
def test_a_study_that_cannot_be_is_one_line(changes, said):
    with pytest.raises(ConfigError, match=said) as error:
        study(**changes)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("change", "address"),
    [
        ({"model.layers": 100_000}, None),
        ({"model.dim": 1_000_000}, None),
        ({"model.dim": 1_000_000}, "auto"),
        ({"train.batch": 10**9}, "auto"),
    ],
)
def test_a_trial_that_no_memory_holds_is_refused_at_once(change, address):
    options = RunOptions(preset="smoke", changes=change, address=address, dry_run=True)
    with pytest.raises(ConfigError, match=r"a trial of arm base \(.*\) needs some [\d,]+ GiB of memory, (this|no)"):
        run(study(), options)


def test_arms_of_a_function_are_checked_when_it_is_called():
    with pytest.raises(ConfigError, match="must be up to 1,000 names with overrides, got 7"):
        study(arms=lambda base: 7).plan("smoke")
    contrast = Contrast(treatment="b", control="a")
    assert study(arms=lambda base: {"a": {}, "b": {"seed": 1}}, contrasts=(contrast,)).arms_at("smoke")["a"] == {}


def test_a_study_file_with_a_syntax_error_is_named(tmp_path, capsys):
    path = tmp_path / "own.py"
    path.write_text("study = Study(\n  name='x'\n  question='?')\n")
    assert run_study([str(path)]) == 2
    said = capsys.readouterr().err
    assert f"error: {path}, line 2" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["jbot.py", "ray.py"])
def test_a_study_file_may_have_the_name_of_a_package(tmp_path, name):
    path = tmp_path / name
    text = (ROOT / "studies/precision.py").read_text().replace('name="precision"', 'name="own"')
    path.write_text(text)
    for command in ([str(path)], ["-m", "studies.runner.command", "study", str(path)]):
        words = [sys.executable, *command, "--preset", "smoke", "--dry-run", "--storage", str(tmp_path / "out")]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize("address", ["", "  ", "a\0b", "a\nb", "caf\udce9"])
def test_a_storage_that_cannot_be_named_is_refused(address):
    for open_it in (Storage, open_folder):
        with pytest.raises(RecordError, match="must name a bucket or folder, got"):
            open_it(address)


@pytest.mark.parametrize("folder", ["a?b", "a%41b", "a%20b", "a#b"])
def test_a_path_that_the_address_of_a_database_cannot_name_is_refused_with_the_view_alone(tmp_path, folder):
    storage = Storage(tmp_path / folder)
    with pytest.raises(RecordError, match=r"must be without [?%#] for MLflow's database to lie in it"):
        default_tracking_uri(storage)
    with pytest.raises(RecordError, match="or give --tracking-uri"):
        view_uri(RunOptions(storage=storage.uri), storage)
    assert view_uri(RunOptions(storage=storage.uri, inline=True), storage) is None
    elsewhere = RunOptions(storage=storage.uri, tracking_uri="http://127.0.0.1:5000")
    assert view_uri(elsewhere, storage) == "http://127.0.0.1:5000"
    assert not (tmp_path / folder).exists()


def test_aliases_are_what_mlflow_takes():
    arms = ("koleo_0.001", "S_x0.2", "latest", "v12", "a.b", "a-b", "momentum")
    assert list(alias_names(arms).values()) == [
        "koleo_0-001", "S_x0-2", "arm-latest", "arm-v12", "a-b", "a-b-2", "momentum",
    ]  # fmt: skip

"""The command lines: what they print and refuse, and what they do not import for it."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from jbot.config import ConfigError
from studies.masking_ablation import study
from studies.runner import command
from studies.runner.cli import campaign_options, campaign_parser, parser, run_options
from studies.runner.options import RunOptions

HEAVY = ("torch", "ray", "mlflow", "optuna", "pandas", "matplotlib", "sklearn", "scipy")
"""Seconds to import: nobody who has mistyped a word waits for them."""


def ended(module: str, *arguments: str, folder: Path = ROOT) -> tuple[int, list[str], str]:
    """A program's exit code, which of HEAVY it has imported, and what it said on stderr."""
    code = f"""
import json, runpy, sys
sys.argv = [{module!r}, *{arguments!r}]
try:
    runpy.run_module({module!r}, run_name="__main__")
except SystemExit as end:
    print()
    print(json.dumps([end.code or 0, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    return *json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize("module", [*(f"studies.{name}" for name in command.study_names()), "studies.all"])
def test_help_imports_nothing_heavy(module):
    assert ended(module, "--help")[:2] == (0, [])


@pytest.mark.parametrize("module", ["studies.masking_ablation", "studies.hyperparameters", "studies.all"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prest", "quick"], "unrecognized arguments: --prest quick"),
        (["--preset", "smoek"], "invalid choice: 'smoek'"),
        (["--set", "loss.koleo_wieght=1"], "did you mean 'loss.koleo_weight'?"),
        (["--grow-to", "2"], "--grow-to 2 needs --address"),
    ],
)
def test_a_typo_is_refused_before_anything_heavy_is_imported(module, arguments, words):
    code, heavy, said = ended(module, *arguments)
    assert (code, heavy) == (2, [])
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_value_out_of_range_is_refused_before_anything_heavy_is_imported():
    assert ended("studies.masking_ablation", "--set", "optim.lr=-1")[:2] == (2, [])


def test_the_console_command_imports_a_program_when_it_is_called():
    assert ended("studies.runner.command", "--help")[:2] == (0, [])
    assert ended("studies.runner.command", "study", "koleo_sweep", "--prest", "x")[:2] == (2, [])


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_sub_command_has_a_help_under_its_own_name(name, capsys, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setattr(sys, "argv", ["jbot"])
    assert callable(importlib.import_module(command.COMMANDS[name].module).main)
    try:
        code = command.main([name, "--help"])
    except SystemExit as end:
        code = end.code
    assert not code
    assert f"usage: jbot {name} " in capsys.readouterr().out


def test_the_console_command_refuses_what_there_is_not(capsys, tmp_path):
    for words, why in ((["reprot"], "invalid choice: 'reprot'"), (["study", "koleo"], "or one of anomaly_metrics, aug"),
                       (["study", str(tmp_path / "mine.py")], "no such file")):  # fmt: skip
        try:
            code = command.main(words)
        except SystemExit as end:
            code = end.code
        assert code == 2
        assert why in capsys.readouterr().err


def test_a_folder_beside_an_own_study_is_not_taken_for_ours(tmp_path):
    for name in ("analysis", "cluster"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('of somebody else')")
    text = (ROOT / "studies/koleo_sweep.py").read_text()
    (tmp_path / "own.py").write_text(f"import sys\nsys.path.append({str(ROOT)!r})\n{text}")
    done = subprocess.run(
        [sys.executable, "own.py", "--help"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "KoLeo" in done.stdout


def test_words_become_typed_options():
    made = run_options(parser(study).parse_args([]))
    assert made == RunOptions()
    typed = ["--set", "train.epochs=8", "--set", "mask.scheme=none", "--until-decided", "7,9", "--gpus", "0.5"]
    made = run_options(parser(study).parse_args([*typed, "--preset", "gpu", "--pack", "3"]))
    assert made == RunOptions(
        changes={"train.epochs": 8, "mask.scheme": "none"}, until_decided=(7, 9), gpus=0.5, preset="gpu", pack=3
    )
    assert (made.resources.cpus, made.resources.gpus, made.resources.pack) == (2.0, 0.5, 3)


def test_a_budget_in_money_is_one_in_hours():
    made = campaign_options(campaign_parser().parse_args(["--budget-usd", "40", "--price", "2.5", "--only", "a,b"]))
    assert (made.budget, made.only, made.run.price) == (16.0, ("a", "b"), 2.5)


def test_options_of_a_script_are_checked_too():
    with pytest.raises(ConfigError, match="preset must be one of smoke, quick, laptop, gpu, paper, got 'small'"):
        RunOptions(preset="small")
    with pytest.raises(ConfigError, match="engine must be one of auto, plain, fused, compiled, got 'fast'"):
        RunOptions(engine="fast")
    with pytest.raises(ConfigError, match="--inline runs in this process, not at --address auto"):
        RunOptions(inline=True, address="auto")


def test_fields_are_listed_with_their_values_at_the_preset(capsys):
    with pytest.raises(SystemExit) as end:
        run_options(parser(study).parse_args(["--preset", "smoke", "--set", "help"]))
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "train.epochs             2            [1, 1e+09]" in said
    assert "seed " not in said

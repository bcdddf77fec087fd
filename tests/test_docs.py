"""The documentation: every link leads somewhere, every page is in the navigation, and the notebook runs."""

import argparse
import importlib.util
import json
import posixpath
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from simulated import make_plan, seed_offset, simulate

from jbot.store.plan import Contrast
from studies.runner import command as command_line
from studies.runner.cli import run_options
from studies.runner.execute import planned

FOLDERS = ("docs", "docs/studies", "benchmarks", ".")
PAGES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]
NOTEBOOK = ROOT / "notebooks/records.ipynb"


def links(text: str) -> list[str]:
    """Relative targets, without anchors."""
    return [target for target in re.findall(r"\]\(([^)\s#]+)", text) if not re.match(r"\w+:", target)]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_work_on_a_repository_host(page):
    assert [target for target in links(page.read_text()) if not (page.parent / target).exists()] == []


def test_every_page_is_in_the_navigation_and_every_study_has_one():
    entries = re.findall(r": ([\w/.]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert set(entries) >= {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    studies = [path.stem for path in (ROOT / "studies").glob("*.py") if "\nstudy = Study(" in path.read_text()]
    assert set(entries) >= {f"studies/{study}.md" for study in studies}
    for overview in ("README.md", "docs/index.md"):
        assert {posixpath.basename(target) for target in links((ROOT / overview).read_text())} >= {
            f"{study}.md" for study in studies
        }


def test_links_out_of_docs_are_led_to_pages_of_the_site():
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        hooks = importlib.import_module("hooks")
    finally:
        sys.path.remove(str(ROOT / "docs"))

    class Page:
        def __init__(self, src_uri):
            self.file = self
            self.src_uri = src_uri

    def moved(src_uri, target):
        return hooks.on_page_markdown(f"see [it]({target}) and `f[0](x)`", Page(src_uri))[len("see [it](") :].split(
            ")"
        )[0]

    assert moved("running.md", "../analysis/export.py") == "repository/analysis/export.py.md"
    assert moved("running.md", "../notebooks/records.ipynb") == "notebooks/records.md"
    assert moved("running.md", "performance.md#studies") == "performance.md#studies"
    assert moved("api/studies.md", "../../studies/precision.py") == "../repository/studies/precision.py.md"
    assert moved("repository/benchmarks/README.md", "../docs/performance.md") == "../../performance.md"
    assert moved("running.md", "https://zenodo.org") == "https://zenodo.org"
    assert hooks.fenced("a ``` b", "python") == "````python\na ``` b\n````\n"
    code = '"""Is it so?\n\nSource   A paper,\n         and more.\nCommand  python studies/x.py   a minute\n"""\n'
    page = hooks.study_page(code, "# Title\n\nThe file.\n\n## Arms\n\nNone.")
    commands = "```bash\npython studies/x.py   # a minute\n```\n"
    assert page == f"# Is it so?\n\n**Source.** A paper, and more.\n\n{commands}\n\n## Arms\n\nNone."


SHOWING = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Pages whose commands are of today."""
OURS = re.compile(r"(?:-m )?(?:studies|analysis|cluster|jbot|benchmarks|tests)[./]|~/my_question.py|jbot \w")
"""What follows ``python`` in a command of this repository, or our own console command."""
OWN_FILE = re.compile(r"```python\n((?:(?!```).)*\nif __name__(?:(?!```).)*)```", re.DOTALL)
"""A whole study file in a page."""


def commands(text: str) -> list[str]:
    """What a page says to type, in blocks and in inline code, without ``python``; of make, what it runs."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [line for block in blocks for line in block.splitlines()] + inline
    found = [re.sub(r"^(?:time|taskset -c 0) ", "", line) for line in lines]
    made = [subprocess.check_output(["make", "-n", *shlex.split(line, comments=True)[1:]], cwd=ROOT, text=True)
            for line in found if line.startswith("make ")]  # fmt: skip
    found += [re.sub(r"^\S+/python ", "python ", line) for block in made for line in block.splitlines()]
    arguments = [line.removeprefix("python ") for line in found if line.startswith(("python ", "jbot "))]
    return [line.strip() for line in dict.fromkeys(arguments) if OURS.match(line)]


class Parsed(BaseException):
    """Ends a program once its parser has taken its arguments."""


def refused(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Why the program of a command would not take it; None where it does. Studies are planned too."""
    whole = re.sub(r" --\w+ \.\.\.", "", command.replace("<name>", "masking_ablation"))
    name, *arguments = shlex.split(whole, comments=True)
    name = arguments.pop(0) if name == "-m" else name.removesuffix(".py").replace("/", ".")
    own = name == "~.my_question"
    if not own and not arguments and importlib.util.find_spec(name):
        return None  # the mention of a program
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        if name == "jbot":
            command_line.main(arguments)
        elif own:
            runpy.run_path(str(folder / "my_question.py"), run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__")
    except Parsed as done:
        if study := getattr(importlib.import_module(name), "study", None) if name.startswith("studies.") else None:
            planned(study, run_options(done.args[0]))
        return None
    except SystemExit:
        return command
    return f"{command}: ends before its arguments are read"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize("page", SHOWING, ids=[str(page.relative_to(ROOT)) for page in SHOWING])
def test_programs_take_the_commands_that_pages_show(page, tmp_path, monkeypatch, capsys):
    (own,) = OWN_FILE.findall((ROOT / "docs/own_study.md").read_text())
    (tmp_path / "my_question.py").write_text(own)
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(self, arguments=None, namespace=None):
        raise Parsed(parse(self, arguments, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
    shown = commands(page.read_text())
    assert [why for command in shown if (why := refused(command, tmp_path, monkeypatch))] == [], capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
def test_commands_are_found_in_pages_and_a_wrong_one_is_seen(tmp_path, monkeypatch):
    page = """`make study PRESET=smoke` or `python -m http.server`
```bash
python studies/precision.py --sedes 3   # a comment
jbot study precision --sedes 3
```
    python -m analysis.report results/precision
"""
    found = commands(page)
    assert found == [
        "studies/precision.py --sedes 3   # a comment",
        "jbot study precision --sedes 3",
        "-m analysis.report results/precision",
        "studies/masking_ablation.py --preset smoke",
    ]
    assert all((refused(command, tmp_path, monkeypatch) or "").startswith(command) for command in found[:2])


def curves(value):
    """A learning curve that ends at a value."""
    return [{"epoch": e, "val/knn_accuracy": 0.2 + (value - 0.2) * e / 4, "device_seconds": 5.0 * e} for e in range(5)]


def test_the_notebook_runs_on_any_study_and_finds_what_the_report_finds(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="the extra dev has it")
    nbformat = importlib.import_module("nbformat")
    contrast = Contrast(treatment="more", control="base", primary=True)
    plan = make_plan({"base": {}, "more": {"mask.ratio_high": 0.8}}, seeds=7, contrasts=(contrast,))
    effect = {0.5: 0.0, 0.8: 0.05}

    def score(config, seed, rng):
        return 0.5 + seed_offset(seed) + effect[config.mask.ratio_high] + 0.002 * rng.normal()

    changes = {("base", 6): {"state": "failed", "reason": "loss is not finite", "metrics": {}}}
    evidence = simulate(
        tmp_path, plan, score, changes, more=lambda v: {f"untrained/{plan.metric}": 0.3 + v / 100}, curves=curves
    )
    monkeypatch.setenv("JBOT_STUDY", str(tmp_path / plan.study))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    (verdict,) = evidence.verdicts
    assert verdict.outcome == "better"
    assert verdict.sentence in printed
    d = verdict.difference
    assert f"more - base: mean {d.mean:+.4f}, 95% interval {d.low:+.4f} to {d.high:+.4f}" in printed
    assert "p = 0.0312, the smallest p that 6 seeds can reach: 0.0312" in printed
    assert "{'complete': 13, 'failed': 1}" in printed
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == 2


def test_the_notebook_is_kept_as_it_was_run():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]


def test_hooks_before_a_commit_have_the_versions_that_are_installed():
    pins = re.findall(r"[\w-]+==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(pins) == 2
    assert set(pins) <= set((ROOT / "constraints.txt").read_text().splitlines())

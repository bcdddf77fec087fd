"""The floors of the house: a file imports only from its own floor's package or from below."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

BELOW = {
    "jbot": set(),
    "search_spaces": {"jbot"},
    "analysis": {"jbot"},
    "cluster": {"jbot"},
    "studies": {"jbot", "search_spaces", "analysis", "cluster"},
}
ONLY_IN = {
    "ray": "cluster",
    "mlflow": "cluster",
    "optuna": ("search_spaces", "cluster"),
    "jetnet": "jbot",
    "matplotlib": "analysis",
}


def imports(path: Path) -> set[str]:
    """Top-level packages a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


FILES = [(floor, path) for floor in BELOW for path in sorted((ROOT / floor).rglob("*.py"))]


@pytest.mark.parametrize(("floor", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_no_arrow_goes_up(floor, path):
    used = imports(path)
    assert used & set(BELOW) <= BELOW[floor] | {floor}
    for library, home in ONLY_IN.items():
        assert library not in used or floor in home
    assert floor != "analysis" or "torch" not in used


@pytest.mark.parametrize("module", ["studies.runner.execute", "jbot.trial.run", "analysis.report.build"])
def test_inline_studies_and_reports_need_neither_ray_nor_mlflow(module):
    code = f"import {module}, sys; print([m for m in ('ray', 'mlflow', 'optuna', 'jetnet') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"

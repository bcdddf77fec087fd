"""The floors and rooms of the house: imports go down, from floor to floor and from room to room, and never in a circle.

CONTRIBUTING.md draws the same picture. A room is a folder of a floor, with the folders inside it, or a file that stands
beside the rooms.
"""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT

FLOORS = {
    "jbot": set(),
    "search_spaces": {"jbot"},
    "analysis": {"jbot"},
    "cluster": {"jbot"},
    "studies": {"jbot", "search_spaces", "analysis", "cluster"},
}
"""The floors below each floor."""
ROOMS = {
    "jbot": "field, messages < config, cli < store < data < trainer < evaluation < trial < encoder < "
    "embed, keras_weights",
    "search_spaces": "axis < augmentation, components, jets, koleo, masking, scaling < joint",
    "analysis": "stats < verdicts < plots < report < index, paper < answers, compare, export, pictures",
    "cluster": "deploy, events, resources, stop < connection, lease, progress < doctor < scheduling < search, "
    "tracking < generate, idle, launch, mirror",
    "studies": "presets < runner < QUESTIONS < all",
}
"""Rooms of each floor: one may import those before an earlier ``<``, not its neighbours between two of them."""
ONLY_IN = {
    "ray": "cluster",
    "mlflow": "cluster",
    "optuna": ("search_spaces", "cluster"),
    "jetnet": "jbot",
    "matplotlib": "analysis",
    "torch": ("jbot", "cluster", "studies"),
}
"""Libraries that are imported by these floors alone."""


def module(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module(path): path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))}


@cache
def imports(name: str) -> frozenset[str]:
    """Modules a file imports, anywhere in it: of ours the modules themselves, of others the top-level package."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively in line {node.lineno}"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {one if one in FILES else node.module for one in full}
    return frozenset(one if one in FILES else one.split(".")[0] for one in found) - {name}


def arrows() -> dict[str, set[str]]:
    """What each module imports of ours. A floor's own ``__init__`` only hands names on, and counts for no arrow."""
    return {name: {one for one in imports(name) if one in FILES} - set(FLOORS) for name in FILES if name not in FLOORS}


def room(name: str) -> str:
    """The room a module lies in."""
    return ".".join(name.split(".")[:2])


def storeys(floor: str) -> list[set[str]]:
    """Rooms of a floor, those that import nothing of it first."""
    questions = [name for name, path in FILES.items() if "\nstudy = Study(" in path.read_text()]
    order = ROOMS[floor].replace("QUESTIONS", ", ".join(name.removeprefix("studies.") for name in questions))
    return [{f"{floor}.{name.strip()}" for name in storey.split(",")} for storey in order.split("<")]


def circles(graph: dict[str, set[str]]) -> set[str]:
    """Circles of a graph, one by one: the last arrow of each is taken away before the next is looked for."""
    graph, found = {name: dict.fromkeys(sorted(used)) for name, used in graph.items()}, set()
    while True:
        try:
            TopologicalSorter(graph).prepare()
            return found
        except CycleError as error:
            *circle, _ = error.args[1]
            found.add(", ".join(sorted(circle)))
            del graph[error.args[1][1]][error.args[1][0]]


@pytest.mark.parametrize("name", FILES)
def test_no_import_goes_to_a_higher_floor(name):
    floor = name.split(".")[0]
    used = {one.split(".")[0] for one in imports(name)}
    assert used & set(FLOORS) <= FLOORS[floor] | {floor}
    for library, home in ONLY_IN.items():
        assert library not in used or floor in home


def test_every_room_is_declared_and_every_declared_one_is_there():
    for floor in FLOORS:
        assert {room(name) for name in FILES if name.startswith(f"{floor}.")} == set().union(*storeys(floor))


def test_no_import_goes_to_a_higher_room_or_to_a_neighbour():
    height = {one: at for floor in FLOORS for at, storey in enumerate(storeys(floor)) for one in storey}
    wrong: dict[str, list[str]] = {}
    for name, used in arrows().items():
        for one in used:
            source, target = room(name), room(one)
            same_floor = source.split(".")[0] == target.split(".")[0]
            if same_floor and source != target and height[source] <= height[target]:
                wrong.setdefault(f"{source} -> {target}", []).append(f"{name} imports {one}")
    assert wrong == {}


def test_no_modules_import_each_other_in_a_circle():
    assert circles(arrows()) == set()


def test_a_circle_is_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == {"a, b, c", "d, e"}
    assert circles({"a": {"b"}, "b": set()}) == set()


@pytest.mark.parametrize("module", ["studies.runner.execute", "jbot.trial.run", "analysis.report.build"])
def test_inline_studies_and_reports_need_neither_ray_nor_mlflow(module):
    code = f"import {module}, sys; print([m for m in ('ray', 'mlflow', 'optuna', 'jetnet') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"

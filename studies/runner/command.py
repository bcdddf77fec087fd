"""Every program of this project as a sub-command of jbot.

jbot study masking_ablation --preset smoke
jbot report results/masking_ablation_smoke
jbot COMMAND --help
"""

# PYTHON_ARGCOMPLETE_OK
from __future__ import annotations

import argparse
import contextlib
import importlib
import runpy
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jbot
from jbot.cli import BAD_INPUT, Parser, bad_input, docstring

STUDIES = Path(__file__).parents[1]


class Command(NamedTuple):
    """A sub-command: what it is for, and the module whose `main` it is."""

    about: str
    module: str


COMMANDS = {
    "study": Command("run one study: NAME of studies/, or a FILE of your own", "studies.runner.cli"),
    "all": Command("run every study, if wanted within a budget", "studies.all"),
    "report": Command("make the report of a study again", "analysis.report.build"),
    "index": Command("make the page of all questions", "analysis.index.page"),
    "answers": Command("make the pages of answers from archives of their records", "analysis.answers"),
    "paper": Command("make the paper's tables beside ours", "analysis.paper.tables"),
    "compare": Command("compare the studies of two storages", "analysis.compare"),
    "export": Command("write records as tables", "analysis.export"),
    "pictures": Command("draw the figures of trials", "analysis.pictures"),
    "store": Command("pack trials into one file, unpack it anywhere, merge storages", "jbot.store.command"),
    "mirror": Command("rebuild the MLflow view from the records", "cluster.mirror"),
    "doctor": Command("check this machine, a storage or a cluster", "cluster.doctor.command"),
    "launch": Command("check launch files before a cloud is paid for what is wrong in them", "cluster.launch"),
    "jets": Command("generate jets on this machine", "jbot.data.generate"),
    "jets-on-ray": Command("generate jets on all nodes of a Ray cluster", "cluster.generate"),
    "validate": Command("compare jets with published figures", "jbot.data.validate"),
    "embed": Command("embed jets with a trained encoder", "jbot.encoder.embed"),
    "import-weights": Command("make an encoder of the authors' Keras weights", "jbot.encoder.keras_weights"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a sub-command; returns its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    made = parser()
    with contextlib.suppress(ModuleNotFoundError):  # completes in the shell where it is installed and set up
        importlib.import_module("argcomplete").autocomplete(made)
    if not words or words[0] not in COMMANDS:
        made.parse_args(words)  # help, version, or a command that there is not
        made.print_help()
        return BAD_INPUT
    name, *rest = words
    if name == "study":
        return run_study(rest)
    sys.argv = [f"jbot {name}", *rest]
    return int(importlib.import_module(COMMANDS[name].module).main(rest))


def run_study(words: list[str]) -> int:
    """Run a study by its name or file, with the options of its own command line."""
    if not words or words[0].startswith("-"):
        print(f"usage: jbot study NAME|FILE [options]\n\nstudies: {', '.join(study_names())}")
        return 0 if words and words[0] in ("-h", "--help") else BAD_INPUT
    name, *rest = words
    if name not in study_names() and not name.endswith(".py"):
        return bad_input(f"a study is a file ending in .py or one of {', '.join(study_names())}, got {name!r}")
    if name not in study_names() and not Path(name).is_file():
        return bad_input(f"no such file: {name}")
    sys.argv = [f"jbot study {name}", *rest]
    try:
        if name in study_names():
            importlib.import_module("studies").main(importlib.import_module(f"studies.{name}").study, rest)
        sys.path.append(str(Path(name).resolve().parent))  # last: what it imports beside it, but no package of ours
        runpy.run_path(name, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except SyntaxError as error:
        return bad_input(f"{error.filename}, line {error.lineno}: {error.msg}")
    return 0


def study_names() -> list[str]:
    """Names of the files of studies/ that state a study."""
    return sorted(path.stem for path in STUDIES.glob("[a-z]*.py") if "\nstudy = Study(" in path.read_text("utf-8"))


def parser() -> argparse.ArgumentParser:
    """The tree: sub-commands with the line that says what each is for. Each parses what follows by itself."""
    made = Parser(prog="jbot", description=docstring(__file__), formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--version", action="version", version=f"jbot {jbot.__version__}")
    tree: Any = made.add_subparsers(metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        leaf = tree.add_parser(name, help=command.about, add_help=False)
        if name == "study":
            leaf.add_argument("name").completer = lambda **_: study_names()
        leaf.add_argument("rest", nargs=argparse.REMAINDER)
    return made


if __name__ == "__main__":
    sys.exit(main())

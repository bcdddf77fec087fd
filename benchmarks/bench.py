"""How fast the trainer is here: jets/s, parts of the step, limits, packs, growth.

    make bench                                    everything: some ten minutes on two cores, five more when
                                                  torch.compile runs for the first time
    make bench ARGS="--quick"                     smaller batches, no compilation: under two minutes
    make bench ARGS="--only step,parts"           some sections; the others stay in the result as they are
    make bench ARGS="--device cuda"               the same on a GPU

Speeds are compared within interleaved rounds of one run; see benchmarks/timing.py. Ctrl-C keeps the finished sections.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import report
from benchmarks.generation import generation
from benchmarks.machine import environment, limits
from benchmarks.steps import Setting, gpu, growth, packs, parts, step, threads
from benchmarks.timing import NotAvailable, Row, no_row
from benchmarks.trainer import read_jets
from jbot.cli import INTERRUPTED, Parser, bad_input
from jbot.data.jets import DataError
from jbot.trainer.engines.select import ENGINES

ROOT = Path(__file__).parent.parent
SECTIONS: dict[str, tuple[str, Callable[[Setting, argparse.Namespace], list[Row]]]] = {
    "limits": ("limits of the machine", lambda s, o: limits(s.device, s.quick, s.advance)),
    "step": ("training steps", lambda s, o: step(s)),
    "parts": ("parts of the step", lambda s, o: parts(s)),
    "threads": ("threads and processes", lambda s, o: threads(s)),
    "packs": ("packs of trials", lambda s, o: packs(s)),
    "growth": ("growth of the cost of a step", lambda s, o: growth(s)),
    "generation": ("jets made by Pythia", lambda s, o: generation(s)),
    "gpu": ("on a GPU", lambda s, o: gpu(s)),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the sections asked for; exit codes 0, 2 (bad request), 130 (Ctrl-C)."""
    options = parser().parse_args(arguments)
    try:
        wanted = chosen_sections(options.only)
        setting = make_setting(options)
        run(wanted, setting, options)
    except (ValueError, NotAvailable) as error:  # DataError is a ValueError
        return bad_input(error)
    except KeyboardInterrupt:
        print(f"interrupted: the finished sections are in {options.out}", file=sys.stderr)
        return INTERRUPTED
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        prog="python -m benchmarks.bench",
        description=(__doc__ or "").splitlines()[0],
        epilog="sections:\n" + "\n".join(f"  {name:12}{title}" for name, (title, _) in SECTIONS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--only", metavar="NAMES", help="sections, separated by commas (default: all)")
    made.add_argument("--quick", action="store_true", help="smaller batches, fewer rounds, no torch.compile")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="of the sections that do not compare engines (default: auto, as in a study)",
    )
    made.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder of the result")
    made.add_argument(
        "--data", type=Path, default=ROOT / "tests/data/jets_sample.h5", help="jets in JetNet's layout, repeated"
    )
    return made


def chosen_sections(names: str | None) -> list[str]:
    """The sections asked for, in the usual order.

    Raises
    ------
    ValueError
        For a name that is none.
    """
    wanted = [name.strip() for name in names.split(",")] if names else list(SECTIONS)
    for name in wanted:
        if name not in SECTIONS:
            raise ValueError(f"sections are {', '.join(SECTIONS)}, got {name!r}")
    return [name for name in SECTIONS if name in wanted]


def make_setting(options: argparse.Namespace, **other: Any) -> Setting:
    """What the sections are given.

    Raises
    ------
    NotAvailable
        When --device cuda finds none.
    DataError
        For a file that holds no jets.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise NotAvailable(f"--device cuda needs a CUDA device, torch {torch.__version__} finds none")
    options.data = options.data.resolve()
    device, data = torch.device(options.device), read_jets(options.data)
    return Setting(device=device, quick=options.quick, engine=options.engine, data=data, **other)


def run(wanted: list[str], setting: Setting, options: argparse.Namespace) -> dict[str, report.Section]:
    """Run sections and save the result after each; sections of an earlier run that are not run again stay."""
    sections = report.load(options.out)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            whole = bar.add_task("benchmark", total=len(wanted))
            for name in wanted:
                task = bar.add_task(f"{name}: {SECTIONS[name][0]}", total=None)
                ticking = dataclasses.replace(setting, advance=functools.partial(bar.advance, task))
                sections[name] = measure(name, ticking, options)
                sections = {known: sections[known] for known in SECTIONS if known in sections}
                report.save(options.out, sections)
                bar.remove_task(task)
                bar.advance(whole)
                bar.stop()
                print(report.section_text(name, sections[name]), end="\n\n", flush=True)
                bar.start()
    finally:
        if sections:
            print(options.out / "bench.md", options.out / "bench.json", sep="\n")
    return sections


def measure(name: str, setting: Setting, options: argparse.Namespace) -> report.Section:
    """One section with its rows and where it ran. What this machine lacks is a row with the reason."""
    title, function = SECTIONS[name]
    before, started = os.getloadavg(), time.perf_counter()
    when = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        rows = function(setting, options)
    except (NotAvailable, DataError) as reason:
        rows = [no_row(title, "", str(reason), "not available")]
    return {
        "title": title,
        "when": when,
        "seconds": round(time.perf_counter() - started, 1),
        "quick": setting.quick,
        "engine": setting.engine_name,
        "environment": environment(setting.device.type),
        "load_averages": [[round(load, 2) for load in loads] for loads in (before, os.getloadavg())],
        "rows": [row.as_dict() for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main())

"""How fast the trainer is here: jets/s, parts of the step, limits, packs, growth, evaluation.

    make bench                                    everything: some ten minutes on two cores, five more when
                                                  torch.compile runs for the first time, and the paper's evaluation
    make bench ARGS="--quick"                     smaller batches, no compilation: under two minutes
    make bench ARGS="--only step,parts"           some sections; the others stay in the result as they are
    make bench ARGS="--device cuda"               the same on a GPU

Speeds are compared within interleaved rounds of one run; see benchmarks/timing.py. Ctrl-C keeps the finished sections.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import report, steps
from benchmarks.evaluation import evaluation
from benchmarks.generation import generation
from benchmarks.steps import Setting
from benchmarks.timing import NotAvailable, Row
from benchmarks.trainer import MODELS
from jbot.cli import INTERRUPTED, Parser, bad_input, docstring
from jbot.data import hdf5
from jbot.trainer.engines.select import ENGINES, find_engine
from studies.presets import PRESETS

ROOT = Path(__file__).parent.parent
SECTIONS: dict[str, tuple[str, Callable[[Setting], list[Row]]]] = {
    "limits": ("limits of the machine", steps.limits),
    "step": ("training steps", steps.step),
    "parts": ("parts of the step", steps.parts),
    "threads": ("threads and processes", steps.threads),
    "packs": ("packs of trials", steps.packs),
    "growth": ("growth of the cost of a step", steps.growth),
    "generation": ("jets made by Pythia", generation),
    "evaluation": ("parts of an evaluation", evaluation),
}
HEAD = """# Benchmark

Medians and quartiles over n interleaved rounds; "wall s" and "CPU s" are medians of one step, or of one timed run.
Ratios are taken within each round: on a shared machine they hold where absolute times do not, and those by CPU seconds
best for one thread. Shares of limits are by CPU seconds of one thread (on a GPU by wall seconds) against limits
measured in the same rounds: products of cache-sized matrices in the same precision for the FLOP that are needed, a
triad for what moves between operations. What an engine computes beyond what is needed, or twice, is not counted. More
than 100% of the memory limit is what caches give. Made by `make bench`."""


def main(arguments: list[str] | None = None) -> int:
    """Run the sections asked for; exit codes 0, 2 (bad request), 130 (Ctrl-C)."""
    options = parser().parse_args(arguments)
    try:
        run(chosen_sections(options.only), make_setting(options), options.out)
    except (ValueError, NotAvailable) as error:
        return bad_input(error)
    except KeyboardInterrupt:
        print(f"interrupted: the finished sections are in {options.out}", file=sys.stderr)
        return INTERRUPTED
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        prog="python -m benchmarks.bench",
        description=docstring(__file__).splitlines()[0],
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
    made.add_argument("--preset", choices=list(PRESETS), help="of the section evaluation (default: quick and paper)")
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
    ValueError
        For a file that holds no jets.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise NotAvailable(f"--device cuda needs a CUDA device, torch {torch.__version__} finds none")
    device, data = torch.device(options.device), hdf5.read(options.data.resolve())
    return Setting(device=device, quick=options.quick, engine=options.engine, preset=options.preset, data=data, **other)


def run(wanted: list[str], setting: Setting, out: Path) -> dict[str, report.Section]:
    """Run sections and save the result after each; sections of an earlier run that are not run again stay."""
    page = out / "bench.json"
    sections = report.load(page)
    engine = setting.engine
    if engine == "auto":
        engine = f"auto ({find_engine('auto', MODELS['S'], setting.device).name})"
    notes = f"engine {engine} but where it is named{', --quick' * setting.quick}"
    threads = torch.get_num_threads()
    try:
        for name in wanted:
            title, function = SECTIONS[name]
            print(f"{name}: {title} ...", file=sys.stderr, flush=True)
            torch.set_num_threads(1)
            sections[name] = report.measure(title, partial(function, setting), setting.device.type, notes)
            sections = {known: sections[known] for known in SECTIONS if known in sections}
            report.save(page, sections, HEAD)
            print(report.section_text(name, sections[name]), end="\n\n", flush=True)
    finally:
        torch.set_num_threads(threads)
        if sections:
            print(page.with_suffix(".md"), page, sep="\n")
    return sections


if __name__ == "__main__":
    sys.exit(main())

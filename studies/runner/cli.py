"""The command line of a study, and of all studies: words -> RunOptions. What is refused is refused before torch and
others are imported, which takes seconds."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from cluster.resources import ClusterError
from cluster.stop import stopped_by_sigterm, was_interrupted
from jbot.cli import INTERRUPTED, Parser, bad_input
from jbot.config import FIELDS, Config, ConfigError, flatten, override, parse_value
from jbot.data.jets import DataError
from jbot.evaluation.metrics_registry import find_metric
from jbot.messages import one_line
from jbot.store.plan import PlanError
from jbot.store.storage import RecordError
from jbot.trainer.engines import ENGINES
from studies.presets import PRESETS, get_preset
from studies.runner.options import FIGURES, CampaignOptions, RunOptions, SearchOptions
from studies.runner.study import Search, Study

UNFINISHED = 1
CONTINUES = "no finished trial is lost, the same command continues"
REFUSED = (ConfigError, PlanError, DataError, RecordError, ClusterError)
FROM_FIRST = "default"
"""What --until-decided means without a list of blocks."""


def main(study: Study, arguments: list[str] | None = None) -> NoReturn:
    """Run a study from the command line.

    Exits with 0, 1 (trials or checkpoints left), 2 (bad input), 130 (Ctrl-C), 143 (SIGTERM).
    """
    with stopped_by_sigterm() as code:
        try:
            options = run_options(parser(study).parse_args(arguments))
            study.plan(**options.design)
            from studies.runner import execute

            sys.exit(execute.run(study, options))
        except OSError as error:  # the storage was written when the study began; first, as an UnreadableError is both
            stopped = was_interrupted(error)
            print(f"{'interrupted' if stopped else f'error: {one_line(error)}'}: {CONTINUES}", file=sys.stderr)
            sys.exit(code() if stopped else UNFINISHED)
        except REFUSED as error:
            sys.exit(bad_input(error))
        except KeyboardInterrupt:
            print(f"interrupted: {CONTINUES}", file=sys.stderr)
            sys.exit(code())


def main_of_all(arguments: list[str] | None = None, found: Mapping[str, Study] | None = None) -> int:
    """Run all studies from the command line, those of studies/ unless others are given; returns the exit code."""
    parsed = campaign_parser().parse_args(arguments)
    with stopped_by_sigterm() as stopped:
        try:
            options = campaign_options(parsed)
            from studies.runner import campaign

            code = campaign.run(options, found)
        except (*REFUSED, OSError) as error:
            return bad_input(error)
        except KeyboardInterrupt:
            code = INTERRUPTED
        return stopped() if code == INTERRUPTED else code


# --- words -> options -----------------------------------------------------------------------------------------------


def run_options(parsed: argparse.Namespace) -> RunOptions:
    """The options of a parsed command line.

    Raises
    ------
    ConfigError
        For a value out of range, or options that contradict each other.
    SystemExit
        After ``--set help``.
    """
    if "help" in parsed.set:
        print(describe_fields(override(Config(), get_preset(parsed.preset).base)))
        sys.exit(0)
    named = {field.name for field in fields(RunOptions)}
    same = {name: value for name, value in vars(parsed).items() if name in named}
    objectives = getattr(parsed, "objectives", None)
    released = getattr(parsed, "released", None)
    return RunOptions(
        **same
        | {
            "changes": changes_of(parsed.set),
            "until_decided": blocks_of(parsed.until_decided),
            "released": Path(released).expanduser() if released else None,
            "search": SearchOptions(
                points=getattr(parsed, "points", None),
                objectives=None if objectives is None else tuple(map(str.strip, filter(None, objectives.split(",")))),
            ),
        }
    )


def changes_of(settings: list[str]) -> dict[str, Any]:
    """Config fields and values of the --set options."""
    changes = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set wants field=value, got {setting!r}")
        changes[name] = parse_value(name, text)
    return changes


def describe_fields(base: Config) -> str:
    """Every field that --set may change: its value, what it may be, and what that means."""
    values = flatten(base)
    return "\n".join(
        f"{name:24} {values[name]!s:12} {known.range}\n    {known.words(values[name])}"
        for name, known in FIELDS.items()
        if name != "seed"
    )


def blocks_of(text: str | None) -> tuple[int, ...] | None:
    """Numbers of blocks of --until-decided, see :class:`RunOptions`."""
    if text is None or text == FROM_FIRST:
        return None if text is None else ()
    for part in text.split(","):
        if not part.strip().isdecimal():
            raise ConfigError(f"--until-decided wants numbers of blocks, such as 7,9, got {part!r}")
    return tuple(map(int, text.split(",")))


def campaign_options(parsed: argparse.Namespace) -> CampaignOptions:
    """The options of a parsed command line of all studies."""
    options = run_options(parsed)
    for name, value in (("--budget", parsed.budget), ("--budget-usd", parsed.budget_usd)):
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"{name} must be 0 or positive, and finite, got {value:g}")
    if parsed.budget_usd is not None and options.price is None:
        raise ConfigError("--budget-usd needs --price, the USD of a device hour")
    hours = math.inf if parsed.budget is None else parsed.budget
    if parsed.budget_usd is not None and options.price is not None:
        hours = parsed.budget_usd / options.price
    only = None if parsed.only is None else tuple(parsed.only.split(","))
    return CampaignOptions(run=options, only=only, budget=hours)


# --- what may be typed ----------------------------------------------------------------------------------------------


def parser(study: Study) -> argparse.ArgumentParser:
    """The options; one help text for all studies."""
    presets = "\n".join(f"  {name:8}{preset.about}; {size_of(study, name)}" for name, preset in PRESETS.items())
    metric, better = find_metric(study.metric), "higher" if study.direction else "lower"
    made = Parser(
        allow_abbrev=False,
        description=f"{study.question}\n\nmetric: {metric.label} ({study.metric}), {better} is better",
        epilog=f"presets:\n{presets}\n\nThe same command continues a study that was stopped.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_options(made)
    if study.against_paper:
        made.add_argument(
            "--released", metavar="FOLDER", help="the authors' .weights.h5 files, to be evaluated on the same test jets"
        )
    if study.search:
        add_search_options(made, study.search)
    return made


CAMPAIGN = """Every question, one after another: the studies in the order that shares most, if wanted within a budget.

    python studies/all.py                                            quick preset, this machine
    python studies/all.py --dry-run --price 0.05                     trials, device hours and money of all studies
    python studies/all.py --only baseline,masking_ablation --seeds 8
    python studies/all.py --preset gpu --budget-usd 40 --price 2.5   stops at a whole block

Each study runs as by its own command. The last table says what is decided, and what the rest would cost:
<storage>/all_<preset>.md. The same command continues. Options are those of a study, and:
"""


def campaign_parser() -> argparse.ArgumentParser:
    """The options of a study, and which studies, and the budget."""
    made = Parser(allow_abbrev=False, description=CAMPAIGN, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--only", metavar="A,B", help="these studies alone (default: all but the paper's tables and precision)"
    )
    limit = made.add_mutually_exclusive_group()
    limit.add_argument("--budget", type=float, metavar="HOURS", help="device hours (GPU or core) to spend at most")
    limit.add_argument("--budget-usd", type=float, metavar="USD", help="the same in money; needs --price")
    add_common_options(made)
    return made


def add_common_options(made: argparse.ArgumentParser) -> None:
    """The options that all studies have; each has the name of its field of RunOptions."""
    new = RunOptions
    made.add_argument("--preset", choices=list(PRESETS), default=new.preset, help="size of the study (default: quick)")
    made.add_argument("--seeds", type=int, metavar="N", help="blocks: every arm runs once at each of N seeds")
    made.add_argument(
        "--first-seed",
        type=int,
        default=new.first_seed,
        metavar="N",
        help="seed of the first block (default 0): fresh ones for a study planned after a look at others",
    )
    made.add_argument(
        "--null",
        action="store_true",
        help="one arm more, the control with initial weights off by one part in a million: the noise floor",
    )
    made.add_argument(
        "--data",
        default=new.data,
        help="pythia (generated, cached), jetnet, or a file or folder; {pt} in it stands for the jet pT in GeV",
    )
    made.add_argument("--storage", default=new.storage, help="folder or s3:// gs:// URI for records and report")
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change the base, e.g. train.epochs=8; --set help lists the fields, their ranges and the preset's values",
    )
    made.add_argument(
        "--until-decided",
        nargs="?",
        const=FROM_FIRST,
        metavar="BLOCKS",
        help="stop early, at a planned look, once every primary contrast is decided; the error level is paid for."
        " Looks after so many blocks, e.g. 7,9 (default: from the first that can show a difference)",
    )
    made.add_argument(
        "--dry-run", action="store_true", help="say what would run, what it costs, and what it can answer"
    )
    made.add_argument(
        "--take-over", action="store_true", help="take the study from another driver that still runs it, which stops"
    )
    made.add_argument(
        "--price", type=float, metavar="USD", help="of a device hour (GPU or core), to say costs in money"
    )
    where = made.add_argument_group("where")
    ray = where.add_mutually_exclusive_group()
    ray.add_argument("--address", help="Ray cluster: auto, or host:port (default: Ray on this machine)")
    ray.add_argument(
        "--inline", action="store_true", help="one pack after another in this process, without Ray and MLflow"
    )
    where.add_argument("--cpus", type=float, help="CPUs a pack of trials holds (default: the preset's)")
    where.add_argument("--gpus", type=float, help="GPUs a pack holds, fractions share one (default: the preset's)")
    where.add_argument(
        "--pack", type=int, metavar="N", help="trials trained together (default: 1 on CPUs, what fits on GPUs)"
    )
    where.add_argument(
        "--grow-to",
        type=int,
        metavar="N",
        help="packs at once that a cluster that scales up will hold: wait for a first node, spread trials over so many",
    )
    where.add_argument(
        "--engine",
        choices=ENGINES,
        default=new.engine,
        help="auto: the C++ kernel on CPUs, torch.compile on GPUs, plain torch where neither works",
    )
    where.add_argument("--tracking-uri", help="MLflow server, or none (default: mlflow.db beside the records)")
    made.add_argument(
        "--figures",
        choices=FIGURES,
        default=new.figures,
        help="trials drawn for MLflow when the study has ended, 5 to 40 s of a core each: the first seed of each arm"
        " (default), all, none; the report has its own figures with any of them",
    )


def add_search_options(made: argparse.ArgumentParser, search: Search) -> None:
    """The options that only a search has."""
    group = made.add_argument_group("search")
    label = find_metric(search.metric).full_label.replace("%", "%%")
    group.add_argument("--points", type=int, metavar="N", help="points tried (default: the preset's); more go on later")
    group.add_argument(
        "--objectives",
        metavar="NAMES",
        help=f"accuracy ({label}), anomaly (of an encoder of background, on a synthetic signal), cost (FLOP): one, or"
        " several for a Pareto front, without pruning; the winner is the best by the first"
        f" (default: {','.join(search.objectives)})",
    )


def size_of(study: Study, preset: str) -> str:
    """``4 arms x 6 seeds``; of a search ``24 points, then 2 arms x 6 seeds``."""
    if study.search:
        return f"{study.search.points[preset]} points, then 2 arms x {study.seeds_at(preset)} seeds"
    arms = len(study.arms_at(preset))
    return f"{arms} {'arm' if arms == 1 else 'arms'} x {study.seeds_at(preset)} seeds"

"""The command line of every study: plan, jets, trials, report."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from analysis.verdicts.number_format import count
from cluster.doctor.storage import check_storage
from cluster.lease import lease
from cluster.progress import StudyProgress
from cluster.resources import ClusterError, Resources
from cluster.scheduling.grids import run_grids
from cluster.scheduling.run import cleanup, open_trials
from cluster.stop import stopped_by_sigterm, was_interrupted
from jbot.cli import Parser, bad_input, one_line
from jbot.config import ConfigError, digest, from_dict, parse_value
from jbot.data import DataError, Jets
from jbot.store.plan import FILE, Plan, PlanError, load_study, save_study
from jbot.store.record import RecordError, Storage, first_line, load_records, load_whole_records, not_reused
from jbot.store.trial_spec import TrialSpec
from jbot.trainer.engines.select import ENGINES
from studies.presets import PRESETS
from studies.runner.author_checkpoints import find_released, judge_released
from studies.runner.console import console, run_specs, say, say_lost, watched
from studies.runner.dry_run import describe, device, hours_text
from studies.runner.estimate import Costs, ended_records
from studies.runner.jets import load_plan_jets
from studies.runner.looks import add_option, batches, needed_seeds, stopped_at, why_not, with_looks
from studies.runner.search import add_options, check_search, describe_search, run_search, with_anomaly
from studies.runner.study import Study, planned_trials, resources, trial_specs

FIGURES = ("first", "all", "none")
UNFINISHED = 1
CONTINUES = "no finished trial is lost, the same command continues"


def main(study: Study, arguments: list[str] | None = None) -> None:
    """Run a study from the command line.

    Exits with 0, 1 (trials or checkpoints left), 2 (bad input), 130 (Ctrl-C), 143 (SIGTERM).
    """
    with stopped_by_sigterm() as code:
        try:
            sys.exit(run(study, parser(study).parse_args(arguments)))
        except OSError as error:  # the storage was written when the study began; first, as an UnreadableError is both
            stopped = was_interrupted(error)
            print(f"{'interrupted' if stopped else f'error: {one_line(error)}'}: {CONTINUES}", file=sys.stderr)
            sys.exit(code() if stopped else UNFINISHED)
        except (ConfigError, PlanError, DataError, RecordError, ClusterError) as error:
            sys.exit(bad_input(error))
        except KeyboardInterrupt:
            print(f"interrupted: {CONTINUES}", file=sys.stderr)
            sys.exit(code())


def parser(study: Study) -> argparse.ArgumentParser:
    """The options; one help text for all studies."""
    presets = "\n".join(f"  {name:8}{preset.about}; {size_of(study, name)}" for name, preset in PRESETS.items())
    made = Parser(
        allow_abbrev=False,
        description=study.question,
        epilog=f"presets:\n{presets}\n\nThe same command continues a study that was stopped.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_options(made)
    if study.against_paper:
        made.add_argument(
            "--released", metavar="FOLDER", help="the authors' .weights.h5 files, to be judged on the same test jets"
        )
    if study.search:
        add_options(made, study.search)
    return made


def add_common_options(made: argparse.ArgumentParser) -> None:
    """The options that all studies have."""
    made.add_argument("--preset", choices=list(PRESETS), default="quick", help="size of the study (default: quick)")
    made.add_argument("--seeds", type=int, metavar="N", help="blocks: every arm runs once at each of N seeds")
    made.add_argument(
        "--data",
        default="pythia",
        help="pythia (generated, cached), jetnet, or a file or folder; {pt} in it stands for the jet pT in GeV",
    )
    made.add_argument("--storage", default="results", help="folder or s3:// gs:// URI for records and report")
    made.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change the base, e.g. train.epochs=8"
    )
    add_option(made)
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
        default="auto",
        help="auto: the C++ kernel on CPUs, torch.compile on GPUs, plain torch where neither works",
    )
    where.add_argument("--tracking-uri", help="MLflow server, or none (default: mlflow.db beside the records)")
    made.add_argument(
        "--figures",
        choices=FIGURES,
        default="first",
        help="trials drawn for MLflow when the study has ended, 5 to 40 s of a core each: the first seed of each arm"
        " (default), all, none",
    )


def size_of(study: Study, preset: str) -> str:
    """``4 arms x 6 seeds``; of a search ``24 points, then 2 arms x 6 seeds``."""
    if study.search:
        return f"{study.search.points[preset]} points, then 2 arms x {study.seeds_at(preset)} seeds"
    return f"{count(len(study.arms_at(preset)), 'arm')} x {study.seeds_at(preset)} seeds"


Choose = Callable[[Sequence[TrialSpec]], Sequence[TrialSpec]]
"""Of all trials of a plan, in block order, those that may run now."""


def run(study: Study, options: argparse.Namespace, choose: Choose | None = None) -> int:
    """Plan, jets, trials, report; returns the exit code. What `choose` leaves out stays open."""
    check_price(options.price)
    check_growth(options)
    plan = planned(study, options)
    held = resources(options.preset, options.cpus, options.gpus, options.pack, options.engine, options.grow_to)
    storage = Storage(options.storage)
    released_folder(study, plan, options)
    if study.search:
        check_search(study, plan, options)
    if options.dry_run:
        if study.search:
            plan = with_looks(describe_search(study, plan, storage, held, options), options.until_decided)
        describe(study, plan, held, storage, options)
        return 0
    check_ray(options)
    storage.remove_file(check_storage(storage))
    with lease(storage, plan.study, take_over=options.take_over, say=say):
        if study.search:
            jets = load_plan_jets(with_anomaly(plan, options), options.data, options.address)
            found = run_search(study, plan, jets, storage, held, options)
            if not found:
                return UNFINISHED
            study, plan = found, planned(found, options)
        return run_plan(study, plan, storage, held, options, choose)


def run_plan(
    study: Study,
    plan: Plan,
    storage: Storage,
    held: Resources,
    options: argparse.Namespace,
    choose: Choose | None = None,
) -> int:
    """Jets, trials, report of a plan; returns the exit code."""
    released = released_folder(study, plan, options)
    data = load_plan_jets(plan, options.data, options.address)
    specs = trial_specs(plan, from_dict(plan.base), data)
    cleanup(specs, storage, plan.study)
    keep_other_plan(storage, plan, data)
    save_study(storage, plan, origin(data), planned_trials(specs))
    if options.until_decided and not plan.looks:
        say(f"[yellow]--until-decided[/] {why_not(plan)}")
    page, ended, whole, gridless = None, False, True, 0
    expected = Expected(specs, storage, held)
    for line in expected.older:
        say(line)
    try:
        view = run_trials(plan, specs, choose(specs) if choose else specs, data, storage, held, options)
        if study.anomaly_grid:
            where = {"inline": options.inline, "address": options.address, "console": console}
            gridless = run_grids(study.anomaly_grid, needed(plan, specs, storage), data, storage, held, **where)
        ended = True
    finally:
        wanted = needed(plan, specs, storage)
        left = len(open_trials(wanted, storage))
        if left < len(wanted):
            if not ended:
                say("stopped; the report of what has ended is written, Ctrl-C again leaves it out")
            judged = released if ended else None  # who presses Ctrl-C does not wait for them
            tables = write_paper_tables(storage, plan, data, judged) if study.against_paper else None
            page = write_report(storage, plan)  # leads to the tables
            if tables:
                whole = tables(ended)
    if compared := expected.against(storage):
        say(compared)
    if len(wanted) < len(specs):
        say(f"[bold]stopped early[/]: {expected.saved(specs[len(wanted) :])}")
    if view and page and not view.error:
        drawn = {"none": [], "first": [spec for spec in specs if spec.config.seed == plan.seeds[0]], "all": wanted}
        draw_figures(drawn[options.figures], storage)
        show_files(view, plan, storage, page)
    records = [record for record in load_records(storage, [spec.trial_id for spec in specs]).values() if record]
    for why in sorted({record.resources["engine_why"] for record in records if "engine_why" in record.resources}):
        say(f"[yellow]the plain engine was used[/]: {why}")
    if sum(record.state == "failed" for record in records) == len(wanted):
        print("every trial has failed: the report says why", file=sys.stderr)
    if left:
        print(f"{left} of {len(wanted)} trials have no record yet: the same command continues", file=sys.stderr)
    if gridless:
        print(f"{gridless} anomaly grids could not be made: the same command tries them again", file=sys.stderr)
    return 0 if whole and not left and not gridless else UNFINISHED


def planned(study: Study, options: argparse.Namespace) -> Plan:
    """What the options ask of a study."""
    plan = study.plan(options.preset, options.seeds, changes_of(options.set))
    return with_looks(plan, options.until_decided)


def released_folder(study: Study, plan: Plan, options: argparse.Namespace) -> Path | None:
    """Of the released checkpoints, which must all be there; None without the option."""
    if not (study.against_paper and options.released):
        return None
    folder = Path(options.released).expanduser()
    find_released(folder, plan)
    return folder


def origin(data: Jets) -> dict[str, Any]:
    """Of the jets, for study.json."""
    return {"source": data.source, "fingerprint": data.whole}


def needed(plan: Plan, specs: list[TrialSpec], storage: Storage) -> list[TrialSpec]:
    """All trials, or those up to the look at which the study is decided."""
    seeds = set(needed_seeds(plan, storage))
    return [spec for spec in specs if spec.config.seed in seeds]


def keep_other_plan(storage: Storage, plan: Plan, data: Jets) -> None:
    """Another plan of this name, or the same with other jets, moves to a folder of its own; its records stay."""
    name = f"{plan.study}/{FILE}"
    if not storage.exists(name):
        return
    content = storage.read_json(name)
    if not isinstance(content, dict) or not isinstance(content.get("data"), dict):
        raise RecordError(f"{storage.uri}/{name} is not a study; move it away")
    identity = [content.get("plan_hash"), content["data"].get("fingerprint")]
    if identity != [plan.hash, data.whole]:
        folder = f"{plan.study}-{digest(identity, 8)}"
        storage.write_json(f"{folder}/{FILE}", content)
        say(f"[yellow]plan or jets have changed[/]: the earlier study is now {storage.uri}/{folder}")


class Expected:
    """What the trials that are left were expected to cost, before any of them ran."""

    def __init__(self, specs: Sequence[TrialSpec], storage: Storage, held: Resources):
        self.held, self.left = held, open_trials(specs, storage)
        records = ended_records(storage) if self.left else []
        self.older = not_reused(records)
        """What the storage holds of other trainer versions, in words."""
        # Timing takes seconds on a CPU; on a GPU steps are compiled first, which takes a minute.
        self.costs = Costs(records, held, timing=held.gpus == 0)
        self.seconds = {spec.trial_id: cost.seconds for spec in self.left if (cost := self.costs.of(spec.config))}

    def against(self, storage: Storage) -> str | None:
        """One line: estimated and spent, of the trials that are complete by now; None where nothing was estimated."""
        records = load_records(storage, self.seconds).values()
        ended = [record for record in records if record and record.state == "complete"]
        if not ended:
            return None
        estimated = sum(self.seconds[record.trial_id] for record in ended)
        spent = sum(record.own_seconds for record in ended)
        before, after = (hours_text(self.costs.hours(seconds)) for seconds in (estimated, spent))
        ratio = f"{spent / max(estimated, 1e-9):.2f} times the estimate"
        return f"{device(self.held)} hours of {count(len(ended), 'trial')}: {before} estimated, {after} spent, {ratio}"

    def saved(self, specs: Sequence[TrialSpec]) -> str:
        """What trials that need not run would have cost."""
        known = [self.seconds[spec.trial_id] for spec in specs if spec.trial_id in self.seconds]
        hours = f", some {hours_text(self.costs.hours(sum(known)))} {device(self.held)} hours" if known else ""
        return f"{count(len(specs), 'trial')} of the plan need not run{hours}"


def check_price(price: float | None) -> None:
    """It must be a positive number."""
    if price is not None and not 0 < price < math.inf:
        raise ConfigError(f"--price must be positive and finite, got {price:g}")


def check_growth(options: argparse.Namespace) -> None:
    """Only a cluster that is there already can grow."""
    if options.grow_to is not None and not options.address:
        raise ConfigError(f"--grow-to {options.grow_to} needs --address: Ray on this machine does not grow")


def check_ray(options: argparse.Namespace) -> None:
    """It must be installed where it is to run: it comes with an extra."""
    if not options.inline and find_spec("ray") is None:
        raise ClusterError("Ray is not installed: pip install 'jbot-studies[cluster]', or use --inline")


def run_trials(
    plan: Plan,
    specs: list[TrialSpec],
    now: Sequence[TrialSpec],
    data: Jets,
    storage: Storage,
    held: Resources,
    options: argparse.Namespace,
) -> Any:
    """Run those of `now` that have no record yet, watched by progress bar and MLflow; returns the view, if any."""
    done = list(load_whole_records(storage, [spec.trial_id for spec in specs]).values())
    size = f"{count(len(plan.arms), 'arm')} x {count(len(plan.seeds), 'seed')}"
    say(f"[bold]{plan.question}[/]\n{plan.study}: {size}; {data.source}")
    if done:
        say(f"{len(done)} of {len(specs)} trials have a record already and are not run again")
    with watched(StudyProgress(specs, done, console), plan, data, storage, options) as (listeners, view):
        for batch in batches(plan, now):
            if not stopped_at(plan, storage):
                run_specs(batch, data, storage, listeners, held, options)
        if stop := stopped_at(plan, storage):
            say(f"[bold]decided after {stop.blocks} of {stop.of} blocks[/], at a planned look")
            save_study(storage, plan, origin(data), planned_trials(specs), needed=stop.blocks * len(plan.arms))
    return view


def draw_figures(specs: list[TrialSpec], storage: Storage) -> None:
    """Draw trials that have ended, once. The report is out by now: this may wait."""
    from analysis.pictures import draw_trials

    if specs:
        say(f"drawing {len(specs)} trials for MLflow; nothing is lost by Ctrl-C, --figures none leaves it out")
    try:
        errors = draw_trials(storage, [spec.trial_id for spec in specs])
    except (OSError, RuntimeError) as broken:
        errors = {"at all": f"{type(broken).__name__}: {first_line(broken)}"}
    for trial, error in errors.items():
        say(f"[yellow]trial {trial} was not drawn[/]: {error}")


def show_files(view: Any, plan: Plan, storage: Storage, page: Path) -> None:
    """Figures and report as artifacts of their runs."""
    from cluster.tracking import publish

    try:
        publish.show_files(storage, plan.study, view.uri, page.read_bytes())
    except Exception as error:  # whatever MLflow, SQLAlchemy or the network raise: the records are complete
        view.error = f"{type(error).__name__}: {first_line(error)}"
        say_lost(view, plan, storage)


def write_report(storage: Storage, plan: Plan) -> Path | None:
    """The report of what has ended so far; None where it cannot be made."""
    try:
        from analysis.report.build import build_report
    except ModuleNotFoundError as missing:
        say(f"[yellow]no report[/]: {missing.name} is not installed; make it elsewhere with")
        say(f"  python -m analysis.report {storage.uri}/{plan.study}")
        return None
    page = build_report(load_study(f"{storage.address}/{plan.study}"), out_folder(storage, plan))
    say(f"report: {page}")
    write_index(storage)
    return page


def write_index(storage: Storage) -> None:
    """The page of all questions, from all studies of the storage. It is made of what others have left, too: what
    cannot be read there must not end this study."""
    try:
        from analysis.index.page import build_index

        say(f"all questions: {build_index(storage)}")
    except (ModuleNotFoundError, RecordError, OSError) as error:
        say(f"[yellow]no index of all questions[/]: {first_line(error)}")


def write_paper_tables(
    storage: Storage, plan: Plan, data: Jets, released: Path | None
) -> Callable[[bool], bool] | None:
    """The paper's tables beside what has ended so far. Released checkpoints come first.

    Returns what prints them, or their path alone, and tells whether all released checkpoints could be judged.
    """
    try:
        from analysis.paper import tables as paper
    except ModuleNotFoundError as missing:
        say(f"[yellow]no tables[/]: {missing.name} is not installed; make them elsewhere with")
        say(f"  python -m analysis.paper {storage.uri}/{plan.study}")
        return None
    try:
        whole = judge_released(released, plan, data, storage, say) if released else True
        found = load_study(f"{storage.address}/{plan.study}")
        tables, page = paper.write_tables(found, out_folder(storage, plan))
    except (DataError, RecordError) as error:  # the trials are complete, and their report comes next
        say(f"[yellow]no tables[/]: {error}")
        return None

    def show(figures: bool) -> bool:
        if figures:
            paper.show(tables, found, paper.console(), page)
        else:
            say(f"the paper's tables and ours: {page}")
        return whole

    return show


def out_folder(storage: Storage, plan: Plan) -> Path:
    """Where pages are written: the study's folder, or one here when that is in an object store."""
    return Path(storage.uri if storage.local else "results") / plan.study


def changes_of(settings: list[str]) -> dict[str, Any]:
    """Config fields and values of the --set options."""
    changes = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set wants field=value, got {setting!r}")
        changes[name] = parse_value(name, text)
    return changes

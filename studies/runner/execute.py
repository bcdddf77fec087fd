"""How a study runs: plan, jets, trials, report."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from analysis.verdicts.number_format import count
from cluster.doctor.facts import check_storage
from cluster.lease import lease
from cluster.progress import StudyProgress
from cluster.resources import ClusterError
from cluster.scheduling.grids import run_grids
from cluster.scheduling.run import cleanup, open_trials
from jbot.data import DataError, Jets
from jbot.messages import first_line
from jbot.store.plan import Plan, load_study, move_other_plan, save_study
from jbot.store.record import TrialSpec, load_records, load_whole_records
from jbot.store.storage import RecordError, Storage
from studies.runner.author_checkpoints import evaluate_checkpoints, find_checkpoints
from studies.runner.console import console, run_specs, say, say_lost, view_uri, watched
from studies.runner.dry_run import describe
from studies.runner.estimate import Costs, Expected, ended_records
from studies.runner.looks import batches, needed_seeds, number_of_primary, stopped_at, why_not, with_looks
from studies.runner.options import RunOptions
from studies.runner.search import describe_search, run_search, search_plan, tasks_of
from studies.runner.study import Study
from studies.runner.trials import check_memory, load_plan_jets, planned_trials, trial_specs

UNFINISHED = 1

Choose = Callable[[Sequence[TrialSpec]], Sequence[TrialSpec]]
"""Picks from all trials of a plan, in block order, those that may run now."""


def run(study: Study, options: RunOptions, choose: Choose | None = None) -> int:
    """Run a study; returns the exit code.

    Parameters
    ----------
    choose : callable, optional
        What it leaves out stays open.
    """
    plan, storage = planned(study, options), Storage(options.storage)
    check_memory(plan, options.address)
    if options.released and study.against_paper:
        find_checkpoints(options.released, plan)  # all must be there before anything runs
    if study.search:
        search_plan(study, plan, options.search, None)
    if options.dry_run:
        dry_run(study, plan, storage, options)
        return 0
    if not options.inline and find_spec("ray") is None:
        raise ClusterError("Ray is not installed: pip install 'jbot-studies[cluster]', or use --inline")
    if not options.inline and sys.flags.optimize > 1:
        raise ClusterError("Ray needs docstrings, which python -OO leaves out: use python -O, or --inline")
    view_uri(options, storage)  # refused before anything runs
    storage.remove_file(check_storage(storage))
    with lease(storage, plan.study, take_over=options.take_over, say=say):
        if study.search:
            jets = load_plan_jets(plan, options.data, options.address, tasks_of(study, options.search))
            found = run_search(study, plan, jets, storage, options)
            if not found:
                return UNFINISHED
            study, plan = found, planned(found, options)
        return run_plan(study, plan, storage, options, choose)


def dry_run(study: Study, plan: Plan, storage: Storage, options: RunOptions) -> None:
    """Print what would run; starts nothing."""
    if not study.search:
        describe(study, plan, storage, options)
        return
    costs = Costs(ended_records(storage), options.resources)
    plan, to_come = describe_search(study, plan, storage, options, costs)
    plan = with_looks(plan, options.until_decided, number_of_primary(plan) + len(to_come))
    describe(dataclasses.replace(study, search=None), plan, storage, options, to_come)


def run_plan(study: Study, plan: Plan, storage: Storage, options: RunOptions, choose: Choose | None = None) -> int:
    """Jets, trials, report of a plan; returns the exit code."""
    released = options.released if study.against_paper else None
    data = load_plan_jets(plan, options.data, options.address)
    specs = trial_specs(plan, data)
    cleanup(specs, storage, plan.study)
    keep_other_plan(storage, plan, data)
    save_study(storage, plan, origin(data), planned_trials(specs))
    if options.until_decided is not None and not plan.looks:
        say(f"[yellow]--until-decided[/] {why_not(plan, number_of_primary(plan))}")
    page, ended, whole, gridless = None, False, True, 0
    expected = Expected(specs, storage, options.resources)
    for line in expected.older:
        say(line)
    try:
        view = run_trials(plan, specs, choose(specs) if choose else specs, data, storage, options)
        if study.anomaly_grid:
            gridless = run_grids(
                study.anomaly_grid,
                needed(plan, specs, storage),
                data,
                storage,
                options.resources,
                inline=options.inline,
                address=options.address,
                console=console,
            )
        ended = True
    finally:
        wanted = needed(plan, specs, storage)
        left = len(open_trials(wanted, storage))
        if left < len(wanted):
            if not ended:
                say("stopped; the report of what has ended is written, Ctrl-C again leaves it out")
            checkpoints = released if ended else None  # who presses Ctrl-C does not wait for them
            tables = write_paper_tables(storage, plan, data, checkpoints) if study.against_paper else None
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


def planned(study: Study, options: RunOptions) -> Plan:
    """What the options ask of a study."""
    return with_looks(study.plan(**options.design), options.until_decided)


def origin(data: Jets) -> dict[str, Any]:
    """Where the jets come from, for study.json."""
    return {"source": data.source, "fingerprint": data.whole}


def needed(plan: Plan, specs: list[TrialSpec], storage: Storage) -> list[TrialSpec]:
    """All trials, or those up to the look at which the study is decided."""
    seeds = set(needed_seeds(plan, storage))
    return [spec for spec in specs if spec.config.seed in seeds]


def keep_other_plan(storage: Storage, plan: Plan, data: Jets) -> None:
    """Another plan of this name, or the same with other jets, moves to a folder of its own; its records stay."""
    if folder := move_other_plan(storage, plan, data.whole):
        say(f"[yellow]plan or jets have changed[/]: the earlier study is now {storage.uri}/{folder}")


def run_trials(
    plan: Plan,
    specs: list[TrialSpec],
    now: Sequence[TrialSpec],
    data: Jets,
    storage: Storage,
    options: RunOptions,
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
                run_specs(batch, data, storage, listeners, options)
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

    Returns what prints them, or their path alone, and tells whether all released checkpoints could be evaluated.
    """
    try:
        from analysis.paper import tables as paper
    except ModuleNotFoundError as missing:
        say(f"[yellow]no tables[/]: {missing.name} is not installed; make them elsewhere with")
        say(f"  python -m analysis.paper {storage.uri}/{plan.study}")
        return None
    try:
        whole = evaluate_checkpoints(released, plan, data, storage, say) if released else True
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

"""Every question, one after another: the studies in the order that shares most, if wanted within a budget.

    python studies/all.py                                            quick preset, this machine
    python studies/all.py --dry-run --price 0.05                     trials, device hours and money of
    all studies python studies/all.py --only baseline,masking_ablation --seeds 8
    python studies/all.py --preset gpu --budget-usd 40 --price 2.5   stops at a whole block

Each study runs as by its own command. The last table says what is decided, and what the rest would cost:
<storage>/all_<preset>.md. The same command continues. Options are those of a study, and:
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import math
import pkgutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from rich.console import Console
from rich.table import Table

import studies
from cluster.resources import ClusterError, Resources
from cluster.stop import stopped_by_sigterm
from jbot.cli import BAD_INPUT, INTERRUPTED, Parser, bad_input
from jbot.config import Config, ConfigError
from jbot.data import DataError
from jbot.store.plan import FILE, Plan, PlanError, load_study
from jbot.store.record import RecordError, Storage
from jbot.store.trial_spec import TrialSpec
from jbot.trial.reuse import plain
from studies.runner import execute
from studies.runner.console import say
from studies.runner.dry_run import device, further_work, hours_text, look_ahead, places, planned_configs, wall_line
from studies.runner.estimate import Costs, ended_records
from studies.runner.execute import UNFINISHED
from studies.runner.overview import Rates, as_table, last_line, look_back, write
from studies.runner.study import Study, resources

WORTH = ("baseline", "masking_ablation", "text_vs_code", "component_ablation", "augmentation_ablation", "scaling")
"""Studies in the order of their worth, for those that share equally many trials; the others follow by name."""
LEFT_OUT = ("paper_tables", "precision")
"""Not among the open questions: they run when --only names them. The paper's tables take hours at any size."""
BAD = (ConfigError, PlanError, DataError, RecordError, ClusterError, OSError)


@dataclass(kw_only=True)
class Tour:
    """All studies of one command."""

    options: argparse.Namespace
    plans: dict[str, tuple[Study, Plan]]
    """In the order in which they run."""
    held: Resources
    storage: Storage
    budget: float
    """Device hours; infinite without a limit."""
    known: frozenset[str]
    """Trials that had a record at the start."""
    errors: dict[str, str] = field(default_factory=dict)
    """Studies that could not run, and why."""

    @property
    def spent(self) -> float:
        """Device hours of the trials that have ended since the start."""
        new = [record for record in ended_records(self.storage) if record.trial_id not in self.known]
        return Costs([], self.held).hours(sum(record.own_seconds for record in new))


# --- which, and in what order ---------------------------------------------------------------------------------------


def find_studies() -> dict[str, Study]:
    """Every file of studies/ that has a `study`, by its name."""
    found = {}
    for module in pkgutil.iter_modules(studies.__path__):
        one = getattr(importlib.import_module(f"studies.{module.name}"), "study", None)
        if isinstance(one, Study):
            found[one.name] = one
    return found


def chosen(found: Mapping[str, Study], only: str | None) -> dict[str, Study]:
    """Those that --only names, or all but those left out."""
    names = [name for name in found if name not in LEFT_OUT] if only is None else only.split(",")
    if unknown := [name for name in names if name not in found]:
        raise ConfigError(f"--only names no study {unknown[0]!r}; studies are {', '.join(sorted(found))}")
    return {name: found[name] for name in names}


def in_order(plans: Mapping[str, Plan]) -> list[str]:
    """The first of WORTH first, then always the study that shares most trials with those before it."""

    def worth(name: str) -> tuple[int, str]:
        return (WORTH.index(name) if name in WORTH else len(WORTH), name)

    trials = {name: set(planned_configs(plan)) for name, plan in plans.items()}
    order: list[str] = []
    before: set[Config] = set()
    while rest := [name for name in plans if name not in order]:
        pilot = not order and WORTH[0] in rest
        order.append(WORTH[0] if pilot else min(rest, key=lambda name: (-len(trials[name] & before), *worth(name))))
        before |= trials[order[-1]]
    return order


# --- running --------------------------------------------------------------------------------------------------------


def blocks_that_fit(trials: Sequence[Config], left: Collection[Config], costs: Costs, hours: float) -> set[int]:
    """Seeds of the first blocks that can be finished in so many device hours; a first timed one comes alone."""
    fitting: set[int] = set()
    spent = 0.0
    for seed, block in itertools.groupby(trials, key=lambda config: config.seed):
        bill = costs.bill(config for config in block if config in left)
        assert bill is not None  # what has no record is timed
        spent += bill.seconds
        if costs.hours(spent) > hours:
            break
        fitting.add(seed)
        if bill.trials and not bill.measured:
            break  # its records tell what the next ones cost
    return fitting


def run_study(study: Study, plan: Plan, tour: Tour) -> int:
    """As by its own command; under a budget, blocks as long as a whole one fits. Returns the exit code."""
    options = options_of(study, tour.options)
    if tour.budget == math.inf:
        return execute.run(study, options)
    code = None
    while code in (None, UNFINISHED):
        records = ended_records(tour.storage)
        ahead = look_ahead(study, plan, tour.storage, options, Costs(records, tour.held), records)
        hours = tour.budget - tour.spent - ahead.costs.hours(sum(more.seconds for more in ahead.further))
        fitting = blocks_that_fit(planned_configs(plan), set(ahead.left), ahead.costs, hours)
        fits = any(config.seed in fitting for config in ahead.left)
        begun = len(ahead.left) < ahead.trials and not (ahead.further and hours < 0)
        if not fits and (code is not None or not begun):
            say(
                f"{plan.study}: no further block fits, {hours_text(max(0.0, hours))} {device(tour.held)} hours are left"
            )
            return UNFINISHED
        code = execute.run(study, options, partial(_of_blocks, seeds=fitting))  # without a block, the report alone
        if not fits or len(ended_records(tour.storage)) == len(records):
            return code
    return code or 0


def _of_blocks(specs: Sequence[TrialSpec], seeds: Collection[int]) -> list[TrialSpec]:
    return [spec for spec in specs if spec.config.seed in seeds]


def options_of(study: Study, options: argparse.Namespace) -> argparse.Namespace:
    """What its own command line would have made of them."""
    own = vars(execute.parser(study).parse_args([]))
    return argparse.Namespace(**own | {name: value for name, value in vars(options).items() if name in own})


def run_all(tour: Tour) -> int:
    """One study after another, then the table; returns the exit code."""
    code = 0
    try:
        for number, (name, (study, plan)) in enumerate(tour.plans.items(), start=1):
            say(f"[bold]study {number} of {len(tour.plans)}: {name}[/]")
            try:
                code = max(code, run_study(study, plan, tour))
            except BAD as error:
                tour.errors[name] = str(error)
                say(f"[red]{name}:[/] {error}")
    except KeyboardInterrupt:
        say("interrupted: no finished trial is lost, the same command continues")
        code = INTERRUPTED
    summarise(tour, timing=tour.held.gpus == 0 and code != INTERRUPTED)
    return say_errors(tour, code)


def summarise(tour: Tour, timing: bool) -> None:
    """Print and write what is decided, and what the rest would cost."""
    records = ended_records(tour.storage)
    rates = Rates(costs=Costs(records, tour.held, timing), price=tour.options.price)
    rows = []
    for name, (study, plan) in tour.plans.items():
        decided = decided_plan(plan, tour.storage) if study.search else None
        further = further_work(study, decided or plan, rates.costs, tour.storage)
        row = look_back(decided or plan, tour.storage, records, rates, further, tour.errors.get(name, ""))
        if decided and not decided.contrasts:
            row = dataclasses.replace(row, verdicts=("the search found nothing better than the base",))
        if study.search and not decided:
            row = dataclasses.replace(row, planned=row.planned + len(plan.seeds))  # the winner, whatever it will be
        rows.append(row)
    console = Console()
    console.print(as_table(rows, rates))
    console.print(last_line(rows, rates, tour.spent), highlight=False)
    if rows and not tour.errors.keys() >= tour.plans.keys():
        name = f"all_{tour.options.preset}"
        write(name, rows, rates, tour.spent, tour.storage)
        say(f"the same as a file: {tour.storage.uri}/{name}.md")
        execute.write_index(tour.storage)


def decided_plan(plan: Plan, storage: Storage) -> Plan | None:
    """What the search of a plan has ended in; None while it has not."""
    if not storage.exists(f"{plan.study}/{FILE}"):
        return None
    found = load_study(f"{storage.address}/{plan.study}").plan
    return found if (found.preset, found.base, found.seeds) == (plan.preset, plan.base, plan.seeds) else None


def dry_run(tour: Tour) -> int:
    """Print what would run, each shared trial counted once, and the cost; starts nothing."""
    records = ended_records(tour.storage)
    costs = Costs(records, tour.held)
    table = Table(title=f"all studies, preset {tour.options.preset}: dry run, nothing is started", title_justify="left")
    table.add_column("study", no_wrap=True)
    for head in ("arms x seeds", "with record", "shared with above", "to be run", f"{device(tour.held)} hours"):
        table.add_column(head, justify="right")
    seen: set[Config] = set()
    seconds, longest, unknown = 0.0, 0.0, []
    for name, (study, plan) in tour.plans.items():
        try:
            ahead = look_ahead(study, plan, tour.storage, options_of(study, tour.options), costs, records)
        except BAD as error:
            tour.errors[name] = str(error)
            continue
        new = list(dict.fromkeys(config for config in ahead.left if config not in seen))
        bill = costs.bill(new, before={plain(config) for config in seen})
        assert bill is not None  # what has no record is timed
        whole = bill.seconds + sum(more.seconds for more in ahead.further)
        seconds, longest = seconds + whole, max(longest, bill.longest)
        seen |= set(new)
        done = f"{ahead.trials - len(ahead.left)}" if ahead.jets else "?"
        unknown += [] if ahead.jets else [name]
        size = f"{len(plan.arms)} x {len(plan.seeds)}"
        table.add_row(name, size, done, f"{len(ahead.left) - len(new)}", f"{len(new)}", hours_text(costs.hours(whole)))
    console = Console()
    console.print(table)
    rates = Rates(costs=costs, price=tour.options.price)
    console.print(f"together {rates.words(costs.hours(seconds))}", highlight=False)
    console.print(f"wall clock {wall_line(seconds, longest, *places(tour.held, tour.options))}", highlight=False)
    if unknown:
        console.print(f"jets not at hand, so records not looked for: {', '.join(unknown)}", highlight=False)
    return say_errors(tour, 0)


def say_errors(tour: Tour, code: int) -> int:
    """Studies that could not run, at the end; the exit code with them in mind."""
    for error in dict.fromkeys(tour.errors.values()):
        names = ", ".join(name for name, own in tour.errors.items() if own == error)
        print(f"{names} could not run: {error}", file=sys.stderr)
    if tour.errors and tour.errors.keys() >= tour.plans.keys():
        return BAD_INPUT
    return max(code, UNFINISHED) if tour.errors else code


# --- command line ---------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The options of a study, and which studies, and the budget."""
    made = Parser(allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--only",
        metavar="A,B",
        help=f"these studies alone (default: all but {' and '.join(LEFT_OUT)}; the paper's tables are expensive)",
    )
    limit = made.add_mutually_exclusive_group()
    limit.add_argument("--budget", type=float, metavar="HOURS", help="device hours (GPU or core) to spend at most")
    limit.add_argument("--budget-usd", type=float, metavar="USD", help="the same in money; needs --price")
    execute.add_common_options(made)
    return made


def budget_of(options: argparse.Namespace) -> float:
    """Device hours."""
    execute.check_price(options.price)
    execute.check_growth(options)
    for name, value in (("--budget", options.budget), ("--budget-usd", options.budget_usd)):
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"{name} must be 0 or positive, and finite, got {value:g}")
    if options.budget_usd is None:
        return math.inf if options.budget is None else options.budget
    if options.price is None:
        raise ConfigError("--budget-usd needs --price, the USD of a device hour")
    return options.budget_usd / options.price


def prepare(options: argparse.Namespace, found: Mapping[str, Study]) -> Tour:
    """Plans in their order; a study that has none with these options is an error of its own."""
    plans: dict[str, Plan] = {}
    errors: dict[str, str] = {}
    for name, study in found.items():
        try:
            plans[name] = execute.planned(study, options)
        except (ConfigError, PlanError) as error:
            errors[name] = str(error)
    if errors and not plans:
        raise ConfigError("; ".join(dict.fromkeys(errors.values())))
    storage = Storage(options.storage)
    return Tour(
        options=options,
        plans={name: (found[name], plans[name]) for name in in_order(plans)},
        held=resources(options.preset, options.cpus, options.gpus, options.pack, options.engine, options.grow_to),
        storage=storage,
        budget=budget_of(options),
        known=frozenset(record.trial_id for record in ended_records(storage)),
        errors=errors,
    )


def run(arguments: list[str] | None = None, found: Mapping[str, Study] | None = None) -> int:
    """The whole command, of the studies found unless others are given; returns the exit code."""
    options = parser().parse_args(arguments)
    with stopped_by_sigterm() as stopped:
        try:
            tour = prepare(options, chosen(found or find_studies(), options.only))
            code = dry_run(tour) if options.dry_run else run_all(tour)
        except BAD as error:
            return bad_input(error)
        except KeyboardInterrupt:
            code = INTERRUPTED
        return stopped() if code == INTERRUPTED else code

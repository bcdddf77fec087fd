"""Every question, one after another: the studies in the order that shares most, if wanted within a budget."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
import pkgutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

import studies
from analysis.verdicts.costs import hours_text
from cluster.resources import ClusterError
from jbot.cli import BAD_INPUT, INTERRUPTED
from jbot.config import Config, ConfigError
from jbot.data import DataError
from jbot.store.plan import FILE, Plan, PlanError, load_study
from jbot.store.record import TrialSpec
from jbot.store.storage import RecordError, Storage
from jbot.trial.reuse import plain
from studies.runner import execute
from studies.runner.console import say
from studies.runner.dry_run import estimate_remaining, extra_work, slots, wall_line
from studies.runner.estimate import Costs, ended_records
from studies.runner.execute import UNFINISHED
from studies.runner.options import CampaignOptions, RunOptions
from studies.runner.overview import as_table, last_line, summarise, write
from studies.runner.study import Study
from studies.runner.trials import planned_configs

PRIORITY = ("baseline", "masking_ablation", "text_vs_code", "component_ablation", "augmentation_ablation", "scaling")
"""Studies by the worth of their answers, for those that share equally many trials; the others follow by name."""
LEFT_OUT = ("paper_tables", "precision")
"""Not among the open questions: they run when --only names them. The paper's tables take hours at any size."""
REFUSED = (ConfigError, PlanError, DataError, RecordError, ClusterError, OSError)


@dataclass(kw_only=True)
class Campaign:
    """All studies of one command."""

    options: RunOptions
    plans: dict[str, tuple[Study, Plan]]
    """In the order in which they run."""
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
        return Costs([], self.options.resources).hours(sum(record.own_seconds for record in new))


def run(options: CampaignOptions, found: Mapping[str, Study] | None = None) -> int:
    """Run all studies, those found unless others are given; returns the exit code."""
    wanted = chosen(found or find_studies(), options.only)
    plans: dict[str, Plan] = {}
    errors: dict[str, str] = {}
    for name, study in wanted.items():  # one that has no plan with these options is an error of its own
        try:
            plans[name] = execute.planned(study, options.run)
        except (ConfigError, PlanError) as error:
            errors[name] = str(error)
    if errors and not plans:
        raise ConfigError("; ".join(dict.fromkeys(errors.values())))
    storage = Storage(options.run.storage)
    campaign = Campaign(
        options=options.run,
        plans={name: (wanted[name], plans[name]) for name in in_order(plans)},
        storage=storage,
        budget=options.budget,
        known=frozenset(record.trial_id for record in ended_records(storage)),
        errors=errors,
    )
    return dry_run(campaign) if options.run.dry_run else run_all(campaign)


# --- which, and in what order ---------------------------------------------------------------------------------------


def find_studies() -> dict[str, Study]:
    """Every file of studies/ that has a `study`, by its name."""
    found = {}
    for module in pkgutil.iter_modules(studies.__path__):
        one = getattr(importlib.import_module(f"studies.{module.name}"), "study", None)
        if isinstance(one, Study):
            found[one.name] = one
    return found


def chosen(found: Mapping[str, Study], only: Sequence[str] | None) -> dict[str, Study]:
    """Those that --only names, or all but those left out."""
    names = [name for name in found if name not in LEFT_OUT] if only is None else only
    if unknown := [name for name in names if name not in found]:
        raise ConfigError(f"--only names no study {unknown[0]!r}; studies are {', '.join(sorted(found))}")
    return {name: found[name] for name in names}


def in_order(plans: Mapping[str, Plan]) -> list[str]:
    """The first of PRIORITY first, then always the study that shares most trials with those before it."""

    def rank(name: str) -> tuple[int, str]:
        return (PRIORITY.index(name) if name in PRIORITY else len(PRIORITY), name)

    trials = {name: set(planned_configs(plan)) for name, plan in plans.items()}
    order: list[str] = []
    before: set[Config] = set()
    while rest := [name for name in plans if name not in order]:
        first = not order and PRIORITY[0] in rest
        order.append(PRIORITY[0] if first else min(rest, key=lambda name: (-len(trials[name] & before), *rank(name))))
        before |= trials[order[-1]]
    return order


# --- running --------------------------------------------------------------------------------------------------------


def blocks_that_fit(trials: Sequence[Config], left: Collection[Config], costs: Costs, hours: float) -> set[int]:
    """Seeds of the first blocks that can be finished in so many device hours; a first timed one comes alone."""
    fitting: set[int] = set()
    spent = 0.0
    for seed, block in itertools.groupby(trials, key=lambda config: config.seed):
        cost = costs.total(config for config in block if config in left)
        assert cost is not None  # what has no record is timed
        spent += cost.seconds
        if costs.hours(spent) > hours:
            break
        fitting.add(seed)
        if cost.trials and not cost.measured:
            break  # its records tell what the next ones cost
    return fitting


def run_study(study: Study, plan: Plan, campaign: Campaign) -> int:
    """As by its own command; under a budget, blocks as long as a whole one fits. Returns the exit code."""
    options = campaign.options
    if campaign.budget == math.inf:
        return execute.run(study, options)
    code = None
    while code in (None, UNFINISHED):
        records = ended_records(campaign.storage)
        costs = Costs(records, options.resources)
        status = estimate_remaining(study, plan, campaign.storage, options.data, costs, records)
        hours = campaign.budget - campaign.spent - costs.hours(sum(more.seconds for more in status.extra))
        fitting = blocks_that_fit(planned_configs(plan), set(status.left), costs, hours)
        fits = any(config.seed in fitting for config in status.left)
        started = len(status.left) < status.trials and not (status.extra and hours < 0)
        if not fits and (code is not None or not started):
            say(f"{plan.study}: no further block fits, {costs.words(max(0.0, hours))} are left")
            return UNFINISHED

        def of_blocks(specs: Sequence[TrialSpec], seeds: Collection[int] = fitting) -> list[TrialSpec]:
            return [spec for spec in specs if spec.config.seed in seeds]

        code = execute.run(study, options, of_blocks)  # without a block, the report alone
        if not fits or len(ended_records(campaign.storage)) == len(records):
            return code
    return code or 0


def run_all(campaign: Campaign) -> int:
    """One study after another, then the table; returns the exit code."""
    code = 0
    try:
        for number, (name, (study, plan)) in enumerate(campaign.plans.items(), start=1):
            say(f"[bold]study {number} of {len(campaign.plans)}: {name}[/]")
            try:
                code = max(code, run_study(study, plan, campaign))
            except REFUSED as error:
                campaign.errors[name] = str(error)
                say(f"[red]{name}:[/] {error}")
    except KeyboardInterrupt:
        say("interrupted: no finished trial is lost, the same command continues")
        code = INTERRUPTED
    show_overview(campaign, timing=campaign.options.resources.gpus == 0 and code != INTERRUPTED)
    return say_errors(campaign, code)


def show_overview(campaign: Campaign, timing: bool) -> None:
    """Print and write what is decided, and what the rest would cost."""
    storage, price = campaign.storage, campaign.options.price
    records = ended_records(storage)
    costs = Costs(records, campaign.options.resources, timing)
    rows = []
    for name, (study, plan) in campaign.plans.items():
        decided = decided_plan(plan, storage) if study.search else None
        extra = extra_work(study, decided or plan, costs, storage)
        row = summarise(decided or plan, storage, records, costs, price, extra, campaign.errors.get(name, ""))
        if decided and not decided.contrasts:
            row = dataclasses.replace(row, verdicts=("the search found nothing better than the base",))
        if study.search and not decided:
            row = dataclasses.replace(row, planned=row.planned + len(plan.seeds))  # the winner, whatever it will be
        rows.append(row)
    totals = last_line(rows, costs, price, campaign.spent)
    console = Console()
    console.print(as_table(rows))
    console.print(totals, highlight=False)
    if rows and not campaign.errors.keys() >= campaign.plans.keys():
        name = f"all_{campaign.options.preset}"
        write(name, rows, totals, storage)
        say(f"the same as a file: {storage.uri}/{name}.md")
        execute.write_index(storage)


def decided_plan(plan: Plan, storage: Storage) -> Plan | None:
    """What the search of a plan has ended in; None while it has not."""
    if not storage.exists(f"{plan.study}/{FILE}"):
        return None
    found = load_study(f"{storage.address}/{plan.study}").plan
    return found if (found.preset, found.base, found.seeds) == (plan.preset, plan.base, plan.seeds) else None


def dry_run(campaign: Campaign) -> int:
    """Print what would run, each shared trial counted once, and the cost; starts nothing."""
    records = ended_records(campaign.storage)
    costs = Costs(records, campaign.options.resources)
    table = Table(
        title=f"all studies, preset {campaign.options.preset}: dry run, nothing is started", title_justify="left"
    )
    table.add_column("study", no_wrap=True)
    for head in ("arms x seeds", "with record", "shared with above", "to be run", f"{costs.unit} hours"):
        table.add_column(head, justify="right")
    seen: set[Config] = set()
    seconds, longest, unknown = 0.0, 0.0, []
    for name, (study, plan) in campaign.plans.items():
        try:
            status = estimate_remaining(study, plan, campaign.storage, campaign.options.data, costs, records)
        except REFUSED as error:
            campaign.errors[name] = str(error)
            continue
        new = list(dict.fromkeys(config for config in status.left if config not in seen))
        cost = costs.total(new, before={plain(config) for config in seen})
        assert cost is not None  # what has no record is timed
        whole = cost.seconds + sum(more.seconds for more in status.extra)
        seconds, longest = seconds + whole, max(longest, cost.longest)
        seen |= set(new)
        done = f"{status.trials - len(status.left)}" if status.jets else "?"
        unknown += [] if status.jets else [name]
        size = f"{len(plan.arms)} x {len(plan.seeds)}"
        table.add_row(name, size, done, f"{len(status.left) - len(new)}", f"{len(new)}", hours_text(costs.hours(whole)))
    console = Console()
    console.print(table)
    console.print(f"together {costs.words(costs.hours(seconds), campaign.options.price)}", highlight=False)
    console.print(f"wall clock {wall_line(seconds, longest, *slots(campaign.options))}", highlight=False)
    if unknown:
        console.print(f"jets not at hand, so records not looked for: {', '.join(unknown)}", highlight=False)
    return say_errors(campaign, 0)


def say_errors(campaign: Campaign, code: int) -> int:
    """Studies that could not run, at the end; the exit code with them in mind."""
    for error in dict.fromkeys(campaign.errors.values()):
        names = ", ".join(name for name, own in campaign.errors.items() if own == error)
        print(f"{names} could not run: {error}", file=sys.stderr)
    if campaign.errors and campaign.errors.keys() >= campaign.plans.keys():
        return BAD_INPUT
    return max(code, UNFINISHED) if campaign.errors else code

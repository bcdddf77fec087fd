"""What all studies of a storage have decided, and what deciding the rest would cost: from their records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from analysis.stats.power import MAX_SEEDS
from analysis.verdicts import number_format as fmt
from analysis.verdicts.costs import hours_text
from analysis.verdicts.decide import decide_study
from analysis.verdicts.sentences import contrast_name
from analysis.verdicts.verdict import Verdict
from jbot.config import Config, from_dict, override
from jbot.store.plan import Plan, StudyRecords
from jbot.store.record import Record
from jbot.store.storage import Storage
from studies.runner.dry_run import ExtraWork
from studies.runner.estimate import Costs, reusable_configs
from studies.runner.looks import look_of
from studies.runner.trials import planned_configs, started_study


@dataclass(frozen=True, kw_only=True)
class Row:
    """One study."""

    study: str
    question: str
    done: int
    """Trials with a record, whatever study made it."""
    planned: int
    verdicts: tuple[str, ...]
    """A line for each primary contrast."""
    spent_hours: float
    """Device hours of the trials that this study ran itself."""
    open: tuple[str, ...] = ()
    """What is undecided or unfinished, and its cost; empty when nothing is."""
    open_hours: float | None = 0.0
    """Device hours that would probably decide all of it; None when nobody knows, or nothing would."""


HEADS = ("question", "trials", "verdict", "spent", "still open, and what it would cost")


def summarise(
    plan: Plan,
    storage: Storage,
    records: Sequence[Record],
    costs: Costs,
    price: float | None = None,
    extra: Sequence[ExtraWork] = (),
    error: str = "",
) -> Row:
    """The state of a plan's question; `error` is why it could not run."""
    found = started_study(plan, storage)
    missing = missing_trials(plan, found, reusable_configs(records))
    verdicts = decide_study(found).primary if found else []
    look = look_of(found) if found else None
    planned = len(plan.arms) * (look.blocks if look else len(plan.seeds))
    lines, hours = still_open(plan, missing, verdicts, costs, price, extra)
    own = [record.own_seconds for record in records if record.study == plan.study]
    return Row(
        study=plan.study,
        question=plan.question,
        done=planned - len(missing),
        planned=planned,
        verdicts=verdict_lines(plan, verdicts, found is not None),
        spent_hours=costs.hours(sum(own)),
        open=(*([f"could not run: {error}"] if error else []), *lines),
        open_hours=hours,
    )


def missing_trials(plan: Plan, found: StudyRecords | None, recorded: set[Config]) -> list[Config]:
    """Trials without a record; of a study that has not started, those of which no other study has made one."""
    if found is None:
        return [config for config in planned_configs(plan) if config not in recorded]
    base, look = from_dict(plan.base), look_of(found)
    wanted = plan.seeds[: look.blocks] if look else plan.seeds
    pending = [trial for trial in found.trials if found.records[trial.trial_id] is None and trial.seed in wanted]
    return [override(base, {**plan.arms[trial.arm], "seed": trial.seed}) for trial in pending]


def verdict_lines(plan: Plan, verdicts: Sequence[Verdict], ran: bool) -> tuple[str, ...]:
    """``momentum − random_count: better, 0.021 ± 0.006, n = 6``."""
    if not ran:
        return ("not started",)
    if not any(contrast.primary for contrast in plan.contrasts):
        return ("no primary contrast: its report describes",)
    lines = []
    for verdict in verdicts:
        name, d = contrast_name(verdict.contrast.name), verdict.difference
        interim = " (interim)" if verdict.interim else ""
        if d.n < 2:
            lines.append(f"{name}: undecided{interim}, {fmt.count(d.n, 'block')} so far")
        else:
            size = fmt.with_error(d.mean, d.standard_error, sign=True)
            lines.append(f"{name}: {verdict.outcome}{interim}, {size}, n = {d.n}")
    return tuple(lines)


def still_open(
    plan: Plan,
    missing: Sequence[Config],
    verdicts: Sequence[Verdict],
    costs: Costs,
    price: float | None,
    extra: Sequence[ExtraWork],
) -> tuple[list[str], float | None]:
    """What is unfinished or undecided, each with its cost; and device hours for all of it."""
    lines: list[str] = []
    first = [config for config in planned_configs(plan) if config.seed == plan.seeds[0]]
    left, block = costs.total(missing), costs.total(first, fresh=True)
    hours: float | None = None if left is None else costs.hours(left.seconds)
    if missing:
        cost = "of unknown cost, as no such trial has run" if hours is None else costs.words(hours, price)
        lines.append(f"{fmt.count(len(missing), 'trial')} missing: {cost}")
    for more in extra:
        lines.append(f"{more.what}: {costs.words(costs.hours(more.seconds), price)}")
        hours = None if hours is None else hours + costs.hours(more.seconds)
    blocks = 0
    for verdict in (one for one in verdicts if one.outcome == "undecided" and one.difference.n > 1):
        name, needed = contrast_name(verdict.contrast.name), verdict.seeds_needed
        if needed is None:
            lines.append(f"{name}: not even {MAX_SEEDS} seeds would decide it at this size and spread")
            hours = None
            continue
        beyond = max(0, needed - len(plan.seeds))
        blocks = max(blocks, beyond)
        cost = "" if block is None else f": {costs.words(beyond * costs.hours(block.seconds), price)}"
        lines.append(
            f"{name}: about {needed} seeds would decide it, {fmt.count(beyond, 'block')} more than planned{cost}"
        )
    if hours is not None and blocks:
        hours = None if block is None else hours + blocks * costs.hours(block.seconds)
    return lines, hours


# --- how it is shown ------------------------------------------------------------------------------------------------


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table, under HEADS."""
    return (
        f"{row.study}: {row.question}",
        f"{row.done}/{row.planned}",
        "\n".join(row.verdicts),
        hours_text(row.spent_hours),
        "\n".join(row.open) or "nothing",
    )


def last_line(rows: Sequence[Row], costs: Costs, price: float | None, spent: float) -> str:
    """Totals."""
    known = sum(row.open_hours for row in rows if row.open_hours is not None)
    unknown = [row.study for row in rows if row.open_hours is None]
    more = f", without {', '.join(unknown)}" if unknown else ""
    return f"spent now: {costs.words(spent, price)}; what is open would cost about {costs.words(known, price)}{more}"


def as_table(rows: Sequence[Row]) -> Table:
    """For a terminal."""
    table = Table(title="what is decided, and what the rest would cost", title_justify="left", show_lines=True)
    for head in HEADS:
        table.add_column(head, justify="right" if head == "spent" else "left")
    for row in rows:
        table.add_row(*cells(row))
    return table


def write(name: str, rows: Sequence[Row], totals: str, storage: Storage) -> None:
    """``<name>.md`` for people, ``<name>.json`` for programs."""

    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|").replace("\n", "<br>") for text in texts) + " |"

    page = [f"# {name}", "", line(HEADS), line(["---"] * len(HEADS)), *(line(cells(row)) for row in rows)]
    storage.write(f"{name}.md", "\n".join([*page, "", totals, ""]).encode())
    storage.write_json(f"{name}.json", [dataclasses.asdict(row) for row in rows])

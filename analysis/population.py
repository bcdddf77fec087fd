"""Population-based training in the report: metric and knobs by generation, and who copied whom.

A study without a population (:mod:`jbot.searches`) has no section.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import design, wording
from analysis.figures import MUTED, PALETTE, WIDTH, styled, upright
from analysis.pictures import Picture
from analysis.plan import Plan
from analysis.sections import Evidence, Extra, Table
from jbot.searches import Member, Population, load_population

WINNER, OTHERS = PALETTE[0], "#b4bcc4"
LOG_RANGE = 20.0
"""A knob whose largest number is so many times its smallest is drawn on a logarithmic axis (assumed)."""


def section(evidence: Evidence) -> Extra | None:
    """Metric, knobs and lineage of the population of a study; None where there is none, or its winner is another's."""
    plan = evidence.study.plan
    found = load_population(evidence.study.storage, plan.study)
    if found is None or not found.lineage or not _is_of(found, plan):
        return None
    best = found.ranked[0]
    path = found.history(best)
    return Extra(
        title="Population-based training",
        text=tuple(_paragraphs(found, path)),
        tables=(_best_table(found, path), _lineage_table(found)),
        pictures=(_metric_picture(found, path), _knobs_picture(found, path)),
    )


def _is_of(found: Population, plan: Plan) -> bool:
    """Whether a study of base and winner is about this population: a search of points may have come after it."""
    if not set(plan.arms) <= {"base", "winner"} or len(found.generations) < len(found.stops):
        return True
    base, best = design.base_settings(plan), design.plain(found.ranked[0].overrides)
    won = {field: value for field, value in best.items() if base[field] != value}
    return won == design.plain(plan.arms.get("winner", {}))


def _paragraphs(found: Population, path: Sequence[Member]) -> Iterator[str]:
    ended, best = len(found.generations), path[-1]
    rows = [row for generation in found.generations for row in generation]
    copied, failed = sum(row.came == "copied" for row in rows), sum(row.value is None for row in rows)
    better = "higher" if found.higher_is_better else "lower"
    over = "" if ended == len(found.stops) else f" Unfinished: {ended} of {len(found.stops)} generations have ended."
    yield (
        f"{found.members} members trained in {wording.count(len(found.stops), 'generation')} with one seed, ranked by"
        f" {wording.quantity_on(found.metric)} ({better} is better) after each."
        f" The worst quarter, and what had failed, took over weights and knobs of the best quarter and changed the"
        f" knobs: {copied} {'copy' if copied == 1 else 'copies'} in all,"
        f" {wording.count(failed, 'failed trial')}.{over}"
    )
    if best.value is not None:
        yield (
            f"Member {best.member} is best with {wording.number(best.value)}. That is the best of {found.members} on"
            " the jets by which it was chosen, at one seed, and thus flatters it: only the contrasts at fresh seeds say"
            " whether its schedule is better."
        )


def _best_table(found: Population, path: Sequence[Member]) -> Table:
    head = ["epochs", "member", "came by", *found.fields, wording.quantity_on(found.metric)]
    begins = [0, *(row.epoch for row in path)]
    rows = [
        [
            f"{begin} to {row.epoch}",
            str(row.member),
            _came(row),
            *(wording.compact(row.knobs[name], 4) for name in found.fields),
            wording.number(row.value),
        ]
        for begin, row in zip(begins, path, strict=False)
    ]
    return Table(label="The best member: its knobs by epoch", head=head, rows=rows, wordy=frozenset({0, 2}))


def _came(row: Member) -> str:
    return f"copied {row.parent}, changed" if row.came == "copied" else row.came


def _lineage_table(found: Population) -> Table:
    """A row a member, a column a generation: its value, and whom it had copied."""

    def cell(row: Member) -> str:
        value = "failed" if row.value is None else wording.number(row.value)
        return f"{value} (copied {row.parent})" if row.came == "copied" else value

    head = ["member", *(f"epoch {generation[0].epoch}" for generation in found.generations)]
    rows = [[str(member), *(cell(g[member]) for g in found.generations)] for member in range(found.members)]
    return Table(label="Population: the metric after each generation, and who had copied whom", head=head, rows=rows)


def _metric_picture(found: Population, path: Sequence[Member]) -> Picture:
    words = wording.quantity_on(found.metric)
    values = [row.value for row in path if row.value is not None]
    said = f"from {wording.number(values[0])} to {wording.number(values[-1])}" if values else "failed"
    return Picture(
        name="population-metric",
        figure=metric_figure(found, path),
        alt=f"{words} of {found.members} members by epoch; the best member's line goes {said}.",
        caption=f"{words} at the end of each generation. Lines join a training with what it goes on from; dashed:"
        " copies with changed knobs. Blue: the best member.",
    )


def _knobs_picture(found: Population, path: Sequence[Member]) -> Picture:
    return Picture(
        name="population-knobs",
        figure=knobs_figure(found, path),
        alt=f"{', '.join(found.fields)} of every member by epoch.",
        caption="What each knob was in each generation, a bar a member. Blue: the best member, whose steps are its"
        " schedule.",
    )


@styled
def metric_figure(found: Population, path: Sequence[Member]) -> Figure:
    """The metric of every member against epoch, joined to what it goes on from.

    Parameters
    ----------
    found : Population
    path : sequence of Member
        The history of one member, drawn in front.
    """
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.subplots()
    for generation in found.generations:
        for row in generation:
            before = None if row.parent is None else found.generations[row.generation - 1][row.parent]
            _joined(axes, before, row, row in path)
    axes.set_xlabel("epoch")
    axes.set_ylabel(upright(wording.quantity_on(found.metric), 36), parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def _joined(axes: Axes, before: Member | None, row: Member, wins: bool) -> None:
    if row.value is None:
        return
    look: dict[str, Any] = {"color": WINNER if wins else OTHERS, "zorder": 3 if wins else 2}
    axes.plot([row.epoch], [row.value], "o", ms=5 if wins else 3.5, mew=0, **look)
    if before is not None and before.value is not None:
        style = "--" if row.came == "copied" else "-"
        axes.plot([before.epoch, row.epoch], [before.value, row.value], style, lw=2 if wins else 1, **look)


@styled
def knobs_figure(found: Population, path: Sequence[Member]) -> Figure:
    """Every knob of every member against epoch, a panel a knob, see :func:`metric_figure`."""
    figure = Figure(figsize=(WIDTH, 0.6 + 1.35 * len(found.fields)), layout="constrained")
    panels = figure.subplots(len(found.fields), 1, squeeze=False, sharex=True)[:, 0]
    for axes, name in zip(panels, found.fields, strict=True):
        numbers = [row.knobs[name] for generation in found.generations for row in generation]
        if min(numbers) > 0 and max(numbers) > LOG_RANGE * min(numbers):
            axes.set_yscale("log")
        begin = 0
        for generation in found.generations:
            for row in generation:
                axes.plot([begin, row.epoch], [row.knobs[name]] * 2, color=OTHERS, lw=1.4, solid_capstyle="butt")
            begin = generation[0].epoch
        edges = [0, *(row.epoch for row in path)]
        axes.stairs([row.knobs[name] for row in path], edges, baseline=None, color=WINNER, lw=2.2, zorder=3)
        axes.set_title(name, loc="left", pad=3, color=MUTED, fontsize=8.5, parse_math=False)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure

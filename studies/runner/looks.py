"""``--until-decided``: the looks of a plan, when a study stops at one, and what that may save."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from analysis.stats import sequential
from analysis.stats.power import minimum_detectable_effect
from analysis.stats.sequential import Outlook
from analysis.verdicts import number_format as fmt
from analysis.verdicts.decide import decide_study
from analysis.verdicts.verdict import Look
from jbot.store.plan import Plan, StudyRecords
from jbot.store.record import TrialSpec
from jbot.store.storage import Storage
from studies.runner.trials import started_study

MAX_BLOCKS = 40
"""Up to which the dry run looks for a number of blocks that could stop early (assumed)."""


def with_looks(plan: Plan, asked: Sequence[int] | None, primary: int | None = None) -> Plan:
    """The plan with the looks that were asked for; as it is where it has nothing to decide, or could not stop early.

    Parameters
    ----------
    asked : sequence of int or None
        See RunOptions.until_decided.
    primary : int, optional
        Primary contrasts, where the plan does not have them yet.

    Raises
    ------
    PlanError
        For looks that are not ascending numbers of its blocks.
    """
    primary = number_of_primary(plan) if primary is None else primary
    if asked is None or not primary:
        return plan
    blocks = len(plan.seeds)
    looks = tuple(asked) or sequential.default_looks(blocks, primary, plan.alpha)
    looks += (blocks,) if looks[-1] < blocks else ()
    return dataclasses.replace(plan, looks=looks) if len(looks) > 1 else plan


def number_of_primary(plan: Plan) -> int:
    """Contrasts that are corrected together, and decide when the study stops."""
    return sum(contrast.primary for contrast in plan.contrasts)


# --- stopping -------------------------------------------------------------------------------------------------------


def batches(plan: Plan, specs: Sequence[TrialSpec]) -> Iterator[list[TrialSpec]]:
    """Trials up to each look, after those of the look before; all at once where there are no looks."""
    begin = 0
    for look in plan.looks or (len(plan.seeds),):
        seeds = set(plan.seeds[begin:look])
        yield [spec for spec in specs if spec.config.seed in seeds]
        begin = look


def stopped_at(plan: Plan, storage: Storage) -> Look | None:
    """The look before the last at which the study is decided; None while it goes on, or where it has no looks."""
    found = started_study(plan, storage) if plan.looks else None
    return look_of(found) if found else None


def look_of(found: StudyRecords) -> Look | None:
    """The look at which a study, as found in a storage, is decided before its last; None while it goes on."""
    look = decide_study(found).look if found.plan.looks else None
    return look if look and look.decided and look.blocks < look.of else None


def needed_seeds(plan: Plan, storage: Storage) -> tuple[int, ...]:
    """Seeds of the blocks that are to be run: up to the look at which the study is decided, else all."""
    look = stopped_at(plan, storage)
    return plan.seeds[: look.blocks] if look else plan.seeds


# --- before anything runs -------------------------------------------------------------------------------------------


def describe_looks(
    plan: Plan, asked: Sequence[int] | None, hours: Sequence[float], pairs: Sequence[Sequence[float]], unit: str
) -> list[str]:
    """When the study may stop, what that would save at most, and what it may be expected to cost.

    Parameters
    ----------
    asked : sequence of int or None
        See RunOptions.until_decided.
    hours : sequence of float
        Device hours of each block that are still to be spent.
    pairs : sequence of sequence of float
        Earlier paired differences of each primary contrast, in units of the metric; may be empty.
    unit : str
        ``core hours``.
    """
    if asked is None:
        return []
    primary = len(pairs)
    if not plan.looks:
        return [why_not(plan, primary)]
    *first, last = map(str, plan.looks)
    lines = [f"decided after {', '.join(first)} and {last} blocks; stops once every primary contrast is decided"]
    spread = [float(np.std(values, ddof=1)) for values in pairs if len(values) > 1]
    lines += [_look_line(plan, primary, look, sum(hours[look:]), unit) for look in plan.looks[:-1]]
    known = len(spread) == len(pairs) and all(sd > 0 for sd in spread)
    margins = [plan.margin / sd for sd in spread] if known else []
    size = minimum_detectable_effect(len(plan.seeds), alpha=sequential.final_level(plan.looks, plan.alpha) / primary)
    cases = [("no difference", [0.0] * len(pairs)), (f"differences of {size:.2f} sd", [size] * len(pairs))]
    cases.append((f"differences of {2 * size:.2f} sd", [2 * size] * len(pairs)))
    if known:
        seen = [abs(float(np.mean(values))) / sd for values, sd in zip(pairs, spread, strict=True)]
        cases.append(("differences as in earlier records", seen))
    for name, effects in cases:
        ahead = sequential.outlook(plan.looks, effects, margins, plan.alpha)
        lines.append(f"expected with {name}: {_expectation(plan, ahead, hours, unit)}")
    if not known:
        lines.append("  (without equivalence, which would stop it earlier: no earlier record tells the spread)")
    return lines


def why_not(plan: Plan, primary: int) -> str:
    """Why a study of so many primary contrasts cannot stop early."""
    blocks = len(plan.seeds)
    if not primary:
        return "never stops early: the plan states no primary contrast, so there is nothing to decide"
    why = f"never stops early: no look before the last of {blocks} blocks can show a difference"
    enough = [n for n in range(blocks + 1, MAX_BLOCKS) if len(sequential.default_looks(n, primary, plan.alpha)) > 1]
    return why + (f"; --seeds {enough[0]} or more could" if enough else "")


def _look_line(plan: Plan, primary: int, look: int, saved: float, unit: str) -> str:
    blocks = len(plan.seeds)
    course = sequential.planned_history([one for one in plan.looks if one <= look], blocks)
    smallest = primary * sequential.min_p(course)
    if sequential.can_differ(look, blocks, primary, plan.alpha):
        can = f"differences (smallest p {fmt.p_value(smallest)}) or equivalence"
    else:
        equal = sequential.can_be_equivalent(look, blocks, primary, plan.alpha)
        can = "equivalence alone" if equal else "nothing yet"
        can += f": the smallest p of a difference is {fmt.p_value(min(1.0, smallest))}"
    saves = f"would save {fmt.count(blocks - look, 'block')}, {fmt.compact(saved, 2)} {unit}"
    return f"  after {look}: can show {can}; {saves}"


def _expectation(plan: Plan, ahead: Outlook, hours: Sequence[float], unit: str) -> str:
    cost = sum(chance * sum(hours[:look]) for chance, look in zip(ahead.stops, plan.looks, strict=True))
    return (
        f"{ahead.blocks:.1f} of {len(plan.seeds)} blocks, {fmt.compact(cost, 2)} of"
        f" {fmt.compact(sum(hours), 2)} {unit}; decided in {ahead.decided:.0%}"
    )

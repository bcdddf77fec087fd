"""The first screen of a report: the answer to the study's question, in boxes of contrasts that came out alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.plots.forest import Difference
from analysis.verdicts import arm_settings, tables, wording
from analysis.verdicts.decide import Verdict
from jbot.store.plan import Contrast, Plan, StudyRecords

FAILED = "failed"
"""How a contrast stands that has no difference because trials of an arm failed. The verdict on it is undecided; the
failure is what was found."""
ORDER = ("better", "worse", "equivalent", FAILED, "undecided")
MEANS = {
    "better": "a difference is shown",
    "worse": "a difference is shown",
    "equivalent": "any difference is smaller than the margin",
    "undecided": "a difference is neither shown nor excluded",
}
MOST_PAIRS = 8
"""Contrasts or arms listed in one box (assumed); the tables have all."""
MOST_ARMS, MOST_LETTERS = 6, 160
"""Arms that the first screen explains, and how long it is about one (assumed)."""
SAME_SIZE = 0.5
"""Share of the paper's training from which on a study is of its size (assumed)."""
REFERENCES = {"untrained": "before training", "raw": "particles without an encoder"}
"""What gives a score its scale, by columns of the table of arms."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A box: contrasts of one outcome."""

    outcome: str
    title: str
    aside: str = ""
    """Beside the title, in small."""
    text: str = ""
    pairs: Sequence[tuple[str, str]] = ()
    """Contrast and its numbers, when there are several."""
    notes: Sequence[str] = ()
    lines: Sequence[str] = ()
    """Sentences, each a paragraph, of the section at `href` that answers."""
    href: str = ""


def standing(verdict: Verdict) -> str:
    """The outcome, or `failed` where fewer than two seeds are left because trials failed."""
    return FAILED if verdict.difference.n < 2 and verdict.dropped else verdict.outcome


def answers(verdicts: Sequence[Verdict], metric: str = "") -> list[Answer]:
    """Primary contrasts, else the exploratory ones, by outcome: what was decided comes first.

    `metric` is the plan's: it says what intervals are cut at.
    """
    chosen = [v for v in verdicts if v.contrast.primary] or list(verdicts)
    groups = {name: [v for v in chosen if standing(v) == name] for name in ORDER}
    return [_answer(name, group, len(chosen), metric) for name, group in groups.items() if group]


def _answer(outcome: str, group: Sequence[Verdict], total: int, metric: str) -> Answer:
    first = group[0]
    title = outcome.capitalize() + (" so far" if first.interim else "")
    kind = "" if first.contrast.primary else "exploratory"
    several = len(group) > 1
    meaning = "" if several else MEANS.get(outcome)
    aside = ", ".join(filter(None, [f"{len(group)} of {total} contrasts" * several, kind, meaning]))
    if outcome == FAILED:
        shared = [note for note in first.notes if all(note in v.notes for v in group)]
        return Answer(outcome=outcome, title=title, aside=aside, text=_failed(group), notes=shared)
    if not several:
        return Answer(outcome=outcome, title=title, aside=aside, text=first.sentence, notes=first.notes)
    pairs = [(wording.contrast(v.contrast.name), _brief(v, metric)) for v in group[:MOST_PAIRS]]
    if len(group) > MOST_PAIRS:
        pairs.append((f"and {len(group) - MOST_PAIRS} more, in the table below", ""))
    return Answer(outcome=outcome, title=title, aside=aside, pairs=pairs, notes=_shared(group))


def _shared(group: Sequence[Verdict]) -> list[str]:
    """What is true of all of them, and the seeds that would decide those that are undecided."""
    needed = sorted(v.seeds_needed for v in group if v.seeds_needed)
    of = "" if len(needed) == len(group) else f"{len(needed)} of "
    span = " to ".join(map(str, dict.fromkeys((needed[0], needed[-1])))) if needed else ""
    said = [f"About {span} seeds would decide {of}them, at this size and spread."] if needed else []
    return [*(note for note in group[0].notes if all(note in v.notes for v in group)), *said]


def numbers(verdict: Verdict, metric: str = "") -> str:
    """``+0.120 ± 0.023 (0.022 to 0.218), n = 3, p = 1.00``, and how many seeds an undecided one takes."""
    d, error = verdict.difference, verdict.difference.standard_error
    if d.n < 2:
        return f"n = {d.n}"
    p = wording.p_value(verdict.p_adjusted, verdict.floor)
    if verdict.outcome == "equivalent":
        p = wording.p_value(verdict.p_equivalent_adjusted)
    estimate = (
        f"{wording.with_error(d.mean, error, sign=True)} ({wording.interval(d.low, d.high, error, verdict.within)})"
    )
    needed = f", about {verdict.seeds_needed} seeds decide" if verdict.seeds_needed else ""
    return f"{estimate}, n = {d.n}, p = {p}{needed}"


def forest_rows(verdicts: Sequence[Verdict], trials: pd.DataFrame, plan: Plan) -> tuple[list[Difference], str]:
    """Rows and axis label of the figure of verdicts, :func:`analysis.plots.forest.paired_differences`."""
    metrics = {item.contrast.metric or plan.metric for item in verdicts}
    quantities = {wording.quantity(metric) for metric in metrics}
    # What all rows share stands at the axis, not in each of them.
    shared = f"{min(quantities)} " if len(quantities) == 1 else ""
    rows = [
        Difference(
            name=(name := wording.contrast(item.contrast.name)),
            short=name.replace(f"({shared}", "("),
            outcome=standing(item),
            primary=item.contrast.primary,
            mean=item.difference.mean,
            ends=item.ends,
            seeds=tables.seed_differences(trials, plan, item),
            numbers=numbers(item, plan.metric),
        )
        for item in verdicts
    ]
    what = {wording.quantity_on(metric) for metric in metrics} if len(metrics) == 1 else quantities
    return rows, f"difference in {min(what)}" if len(what) == 1 else "difference"


def _brief(verdict: Verdict, metric: str) -> str:
    """Size and interval; p and n only of what was decided, as the table has them all."""
    whole = numbers(verdict, metric)
    return whole.split(", n = ")[0] if verdict.outcome == "undecided" else whole


def _failed(group: Sequence[Verdict]) -> str:
    """Arms that leave nothing to compare, worst first, each once."""
    rates = {rate.arm: rate for v in group for rate in v.failures if rate.failed}
    worst = sorted(rates.values(), key=lambda rate: rate.failed / rate.ended, reverse=True)
    said = "; ".join(map(str, worst[:MOST_PAIRS]))
    more = f"; and {len(worst) - MOST_PAIRS} more" if len(worst) > MOST_PAIRS else ""
    return f"{said}{more}. Too few trials are left to compare: the failure is what was found."


def summary(verdicts: Sequence[Verdict]) -> str:
    """``Of 10 primary contrasts: 8 undecided, 2 failed.``; empty where one box says it."""
    chosen = [v for v in verdicts if v.contrast.primary] or list(verdicts)
    found = [standing(v) for v in chosen]
    if len(set(found)) < 2:
        return ""
    kind = "primary" if chosen[0].contrast.primary else "exploratory"
    counts = ", ".join(f"{found.count(name)} {name}" for name in ORDER if name in found)
    return f"Of {len(chosen)} {kind} contrasts: {counts}."


def measured(plan: Plan, arms: pd.DataFrame) -> list[Answer]:
    """What a study without contrasts found: the metric of each arm, with its spread over seeds."""
    done = arms[arms["n"] > 0]
    if done.empty:
        return []
    pairs = [(str(row["arm"]), _mean(row)) for _, row in done.head(MOST_PAIRS).iterrows()]
    if len(done) > MOST_PAIRS:
        pairs.append((f"and {len(done) - MOST_PAIRS} more, in the table below", ""))
    aside = f"{wording.quantity_on(plan.metric)}, mean ± standard error over seeds"
    return [Answer(outcome="undecided", title="Measured", aside=aside, pairs=pairs)]


def _mean(row: pd.Series) -> str:
    error = row["sd"] / row["n"] ** 0.5
    n = wording.count(int(row["n"]), "seed")
    value = wording.with_error(row["mean"], error) if error > 0 else wording.number(row["mean"])
    return f"{value} ({n})"


def described(title: str, anchor: str, lines: Sequence[str]) -> Answer:
    """What a section answers, with the way to it."""
    aside = "described"
    return Answer(outcome="described", title=title, aside=aside, lines=lines, href=f"#{anchor}")


def facts(study: StudyRecords, arms: pd.DataFrame) -> dict[str, str]:
    """What the numbers of the first screen are, for a reader who sees nothing else: name -> one line."""
    plan = study.plan
    here = "" if arm_settings.share_of_paper(plan) >= SAME_SIZE else ": what is found holds at this size"
    lines = {"Trained on": arm_settings.size(plan) + here, "Jets": str(study.data.get("source") or "not recorded")}
    lines |= {"Measured": _measured_in(plan), "For scale": _scale(plan, arms)}
    return {name: line for name, line in lines.items() if line}


def _measured_in(plan: Plan) -> str:
    better = f"{'higher' if plan.higher_is_better else 'lower'} is better"
    if not plan.contrasts:
        return f"{wording.quantity_on(plan.metric)}, {better}"
    chosen = _headlines(plan)
    metrics = [c.metric or plan.metric for c in chosen]
    metrics += [c.control_metric for c in chosen if c.control_metric and not c.floor]
    known = list(dict.fromkeys(map(wording.quantity_on, metrics)))
    what = " and ".join(known) if len(known) <= 2 else "the metric named"
    return f"{what}, {better}; a difference below {plan.margin:g} does not matter"


def _headlines(plan: Plan) -> list[Contrast]:
    return [c for c in plan.contrasts if c.primary] or list(plan.contrasts)


def _scale(plan: Plan, arms: pd.DataFrame) -> str:
    """What training is worth in all, and what needs none: ``base 0.58; before training 0.41``."""
    compared = [arm for c in _headlines(plan) for arm in (c.treatment, c.control)]
    arm = max(compared, key=compared.count) if compared else next(iter(plan.arms))
    row = arms.set_index("arm").loc[arm]
    known = {arm: row["mean"]} | {words: row.get(name) for name, words in REFERENCES.items()}
    said = [
        f"{name} {wording.number(value, 3)}" for name, value in known.items() if value is not None and value == value
    ]
    return f"{wording.quantity(plan.metric)}: {', '.join(said)}" if len(said) > 1 else ""


def changes(plan: Plan) -> dict[str, str]:
    """What the compared arms are, where they are few: arm -> changes against the base. The table of arms has all."""
    for contrasts in (plan.contrasts, _headlines(plan)):
        arms = list(dict.fromkeys(arm for c in contrasts for arm in (c.treatment, c.control)))
        if 1 < len(arms) <= MOST_ARMS:
            return {arm: _change(plan.arms[arm]) for arm in arms}
    return {}


def _change(changes: Mapping[str, Any]) -> str:
    text = arm_settings.words(changes)
    return text if len(text) <= MOST_LETTERS else f"{len(changes)} settings changed, see the table of arms"

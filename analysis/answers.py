"""The first screen of a report: the answer to the study's question, in boxes of contrasts that came out alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import wording
from analysis.plan import Plan
from analysis.verdict import Verdict

FAILED = "failed"
"""How a contrast stands that has no difference because trials of an arm failed. The verdict on it is undecided; the
failure is what was found."""
ORDER = ("better", "worse", "equivalent", FAILED, "undecided")
MOST_PAIRS = 8
"""Contrasts or arms listed in one box (assumed); the tables have all."""


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


def standing(verdict: Verdict) -> str:
    """The outcome, or `failed` where fewer than two seeds are left because trials failed."""
    return FAILED if verdict.difference.n < 2 and verdict.dropped else verdict.outcome


def answers(verdicts: Sequence[Verdict]) -> list[Answer]:
    """Primary contrasts, else the exploratory ones, by outcome: what was decided comes first."""
    chosen = [v for v in verdicts if v.contrast.primary] or list(verdicts)
    groups = {name: [v for v in chosen if standing(v) == name] for name in ORDER}
    return [_answer(name, group, len(chosen)) for name, group in groups.items() if group]


def _answer(outcome: str, group: Sequence[Verdict], total: int) -> Answer:
    first = group[0]
    title = outcome.capitalize() + (" so far" if first.interim else "")
    aside = "" if first.contrast.primary else "exploratory"
    if len(group) == 1:
        text = _failed(group) if outcome == FAILED else first.sentence
        return Answer(outcome=outcome, title=title, aside=aside, text=text, notes=first.notes)
    shared = [note for note in first.notes if all(note in v.notes for v in group)]
    pairs = [(wording.contrast(v.contrast.name), _brief(v)) for v in group[:MOST_PAIRS]]
    if len(group) > MOST_PAIRS:
        pairs.append((f"and {len(group) - MOST_PAIRS} more, in the table below", ""))
    aside = ", ".join(filter(None, [f"{len(group)} of {total} contrasts", aside]))
    text = _failed(group) if outcome == FAILED else ""
    return Answer(outcome=outcome, title=title, aside=aside, text=text, pairs=() if text else pairs, notes=shared)


def numbers(verdict: Verdict) -> str:
    """``+0.120 ± 0.023 (0.022 to 0.218), n = 3, p = 1.00``, and how many seeds an undecided one takes."""
    d, error = verdict.difference, verdict.difference.standard_error
    if d.n < 2:
        return f"n = {d.n}"
    p = wording.p_value(verdict.p_adjusted, verdict.floor)
    if verdict.outcome == "equivalent":
        p = wording.p_value(verdict.p_equivalent_adjusted)
    estimate = f"{wording.with_error(d.mean, error, sign=True)} ({wording.interval(d.low, d.high, error)})"
    needed = f", about {verdict.seeds_needed} seeds decide" if verdict.seeds_needed else ""
    return f"{estimate}, n = {d.n}, p = {p}{needed}"


def _brief(verdict: Verdict) -> str:
    """Size and interval; p and n only of what was decided, as the table has them all."""
    whole = numbers(verdict)
    return whole.split(", n = ")[0] if verdict.outcome == "undecided" else whole


def _failed(group: Sequence[Verdict]) -> str:
    """Arms that leave nothing to compare, worst first, each once."""
    rates = {rate.arm: rate for v in group for rate in v.failures if rate.failed}
    worst = sorted(rates.values(), key=lambda rate: rate.failed / rate.ended, reverse=True)
    said = "; ".join(map(str, worst[:MOST_PAIRS]))
    more = f"; and {len(worst) - MOST_PAIRS} more" if len(worst) > MOST_PAIRS else ""
    left = max(v.difference.n for v in group)
    return (
        f"{said}{more}. {'At most one seed is' if left else 'No seed is'} left on which both arms of a comparison "
        "finished, so there is no difference to test: the failure is what was found."
    )


def summary(verdicts: Sequence[Verdict]) -> str:
    """``Of 10 primary contrasts: 8 undecided, 2 failed.``; empty for a single one."""
    chosen = [v for v in verdicts if v.contrast.primary] or list(verdicts)
    if len(chosen) < 2:
        return ""
    found = [standing(v) for v in chosen]
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


def compared(plan: Plan) -> str:
    """What the numbers on the first screen are, for a reader who sees nothing else."""
    if not plan.contrasts:
        return ""
    chosen = [c for c in plan.contrasts if c.primary] or list(plan.contrasts)
    metrics = {name for c in chosen for name in c.metrics(plan.metric)}
    what = wording.quantity_on(metrics.pop()) if len(metrics) == 1 else "the metric named"
    better = "higher" if plan.higher_is_better else "lower"
    return (
        f"Measured: {what}, {better} is better. A difference is the first-named arm minus the second, at the same "
        f"seed; below {plan.margin:g} it does not matter."
    )


def changes(plan: Plan, arms: pd.DataFrame) -> dict[str, str]:
    """What the arms of a single primary contrast are: arm -> changes against the base. Empty for several."""
    primary = [c for c in plan.contrasts if c.primary]
    if len(primary) != 1 or "changes" not in arms:
        return {}
    said = dict(zip(arms["arm"], arms["changes"], strict=True))
    return {arm: str(said[arm]) for arm in dict.fromkeys((primary[0].treatment, primary[0].control)) if arm in said}

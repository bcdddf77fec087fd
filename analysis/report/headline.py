"""The first screen of a report: the answer to the study's question, in boxes of contrasts that came out alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section
from analysis.verdicts import arm_settings, noise_floor, tables
from analysis.verdicts import number_format as fmt
from analysis.verdicts.decide import DecidedStudy
from analysis.verdicts.questions import answered_by_sections
from analysis.verdicts.sentences import FAILED, ORDER, contrast_name, losses, numbers, outcome_label
from analysis.verdicts.study_index import base_name
from analysis.verdicts.verdict import Verdict
from jbot.evaluation.metrics_registry import BASELINES, find_metric
from jbot.store.plan import Contrast, Plan, StudyRecords

MEANS = {
    "better": "a difference is shown",
    "worse": "a difference is shown",
    "equivalent": "any difference is smaller than the margin",
    "undecided": "a difference is neither shown nor excluded",
}
MAX_PRIMARY = 2
"""Primary contrasts beside which the first screen also has what sections answer (assumed)."""
MAX_PAIRS = 8
"""Contrasts or arms listed in one box (assumed); the tables have all."""
MAX_ARMS, MAX_LETTERS = 6, 160
"""Arms that the first screen explains, and how long it is about one (assumed)."""
SAME_SIZE = 0.5
"""Share of the paper's training from which on a study is of its size (assumed)."""


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


def chosen(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts that the first screen is about: the primary ones, else all."""
    return [v for v in verdicts if v.contrast.primary] or [v for v in verdicts if not v.null]


def status(found: Evidence | DecidedStudy) -> str:
    """Whether the study is finished, in one line; empty when it is."""
    n, pending = len(found.trials), int((found.trials["state"] == tables.PENDING).sum())
    look = found.verdicts[0].look if found.verdicts else None
    if look and look.decided and look.blocks < look.of:
        left = f"{pending} of {n} planned trials were not needed" if pending else "the others had run before"
        where = f"the planned look after {look.blocks} of {look.of} blocks"
        return f"Stopped at {where}, as every primary contrast is decided: {left}."
    if not pending:
        return ""
    if look:
        decided = f"the look after {look.blocks} blocks" if look.blocks else "no look yet"
        after = f"; the next is after {look.next}" if look.next else ""
        return f"Unfinished: {n - pending} of {n} trials have ended. Decided is {decided}{after}."
    return (
        f"Unfinished: {n - pending} of {n} trials have ended. Compared are the "
        f"{fmt.count(len(found.judged), 'block')} of {len(found.states)} in which every arm has ended."
    )


def below_baseline(plan: Plan, arms: pd.DataFrame) -> str:
    """Names the arms that training did not help, in one line; empty when there is none."""
    contrasts = plan.contrasts
    if "untrained" not in arms:
        return ""
    gain = (arms["mean"] - arms["untrained"]) * (1 if plan.higher_is_better else -1)
    lost = [str(arm) for arm in arms.loc[gain <= 0, "arm"]]
    if not lost:
        return ""
    compared = [arm for arm in lost if any(arm in (c.treatment, c.control) for c in contrasts)]
    warning = f" Comparisons with {', '.join(compared)} say little." if compared else ""
    return f"No better than the untrained encoder on average: {', '.join(lost)}.{warning}"


def answers(evidence: Evidence, sections: Sequence[Section]) -> list[Answer]:
    """Verdicts and what sections answer; these come first where the question asks for no winner."""
    plan = evidence.plan
    verdicts = by_outcome(evidence.verdicts) or _measured(plan, evidence.arms)
    if floor := noise_floor.sentences(evidence.verdicts):
        verdicts.append(Answer(outcome="described", title="Noise floor", aside="no verdict", lines=floor))
    said = [
        Answer(outcome="described", title=one.title, aside="described", lines=one.answer, href=f"#{one.anchor}")
        for one in sections
        if one.answer
    ]
    if _by_sections(plan):
        return [*said, *verdicts]
    # Where many verdicts stand, what sections say of the same arms is not said twice.
    return [*verdicts, *said] if sum(contrast.primary for contrast in plan.contrasts) <= MAX_PRIMARY else verdicts


def _by_sections(plan: Plan) -> bool:
    name = base_name(plan.study, plan.preset)
    return answered_by_sections(name) or not any(contrast.primary for contrast in plan.contrasts)


def lead(plan: Plan, sections: Sequence[Section]) -> tuple[Picture | None, list[Section]]:
    """The figure of the first screen, and the sections without it.

    It is that of the first section that answers, where sections do: it stands there too, so under a name of its own.
    Else it is taken out of the paired differences, or of the arms where nothing can be compared.
    """
    if _by_sections(plan) and (said := [one for one in sections if one.answer and one.figures]):
        first = said[0].figures[0]
        return dataclasses.replace(first, name=f"lead-{first.name}"), list(sections)
    for i, one in enumerate(sections):
        if one.anchor in ("differences", "arms") and one.figures:
            rest = dataclasses.replace(one, figures=one.figures[1:])
            return one.figures[0], [*sections[:i], rest, *sections[i + 1 :]]
    return None, list(sections)


def by_outcome(verdicts: Sequence[Verdict]) -> list[Answer]:
    """Primary contrasts, else the exploratory ones, by outcome: what was decided comes first."""
    first = chosen(verdicts)
    groups = {name: [v for v in first if outcome_label(v) == name] for name in ORDER}
    return [_answer(name, group, len(first)) for name, group in groups.items() if group]


def _answer(outcome: str, group: Sequence[Verdict], total: int) -> Answer:
    first, several = group[0], len(group) > 1
    title = outcome.capitalize() + (" so far" if first.interim else "")
    kind = "" if first.contrast.primary else "exploratory"
    meaning = "" if several else MEANS.get(outcome)
    aside = ", ".join(filter(None, [f"{len(group)} of {total} contrasts" * several, kind, meaning]))
    shared = [note for note in first.notes if all(note in v.notes for v in group)]
    box = Answer(outcome=outcome, title=title, aside=aside, notes=shared)
    if outcome == FAILED:
        return dataclasses.replace(box, text=_failed(group))
    if not several:
        return dataclasses.replace(box, text=first.sentence)
    pairs = []
    for v in group[:MAX_PAIRS]:
        own = [words for words in (losses(v), *v.warnings) if words and words not in shared]
        shared += [f"{contrast_name(v.contrast.name)}: {words}" for words in own]
        # p and n only of what was decided, as the table has them all.
        whole = numbers(v)
        pairs.append((contrast_name(v.contrast.name), whole.split(", n = ")[0] if v.outcome == "undecided" else whole))
    if len(group) > MAX_PAIRS:
        pairs.append((f"and {len(group) - MAX_PAIRS} more, in the table below", ""))
    needed = sorted(v.seeds_needed for v in group if v.seeds_needed)
    if needed:
        of = "" if len(needed) == len(group) else f"{len(needed)} of "
        span = " to ".join(map(str, dict.fromkeys((needed[0], needed[-1]))))
        shared.append(f"About {span} seeds would decide {of}them, at this size and spread.")
    return dataclasses.replace(box, pairs=pairs, notes=shared)


def _failed(group: Sequence[Verdict]) -> str:
    """Arms that leave nothing to compare, worst first, each once."""
    rates = {rate.arm: rate for v in group for rate in v.failures if rate.failed}
    worst = sorted(rates.values(), key=lambda rate: rate.failed / rate.ended, reverse=True)
    said = "; ".join(map(str, worst[:MAX_PAIRS]))
    more = f"; and {len(worst) - MAX_PAIRS} more" if len(worst) > MAX_PAIRS else ""
    return f"{said}{more}. Too few trials are left to compare: the failure is what was found."


def summary(verdicts: Sequence[Verdict]) -> str:
    """``Of 10 primary contrasts: 8 undecided, 2 failed.``; empty where one box says it."""
    first = chosen(verdicts)
    found = [outcome_label(v) for v in first]
    if len(set(found)) < 2:
        return ""
    kind = "primary" if first[0].contrast.primary else "exploratory"
    counts = ", ".join(f"{found.count(name)} {name}" for name in ORDER if name in found)
    return f"Of {len(first)} {kind} contrasts: {counts}."


def _measured(plan: Plan, arms: pd.DataFrame) -> list[Answer]:
    """What a study without contrasts found: the metric of each arm, with its spread over seeds."""
    done = arms[arms["n"] > 0]
    if done.empty:
        return []
    pairs = []
    for row in done.head(MAX_PAIRS).to_dict("records"):
        error = row["sd"] / row["n"] ** 0.5
        value = fmt.with_error(row["mean"], error) if error > 0 else fmt.number(row["mean"])
        pairs.append((str(row["arm"]), f"{value} ({fmt.count(row['n'], 'seed')})"))
    if len(done) > MAX_PAIRS:
        pairs.append((f"and {len(done) - MAX_PAIRS} more, in the table below", ""))
    aside = f"{find_metric(plan.metric).full_label}, mean ± standard error over seeds"
    return [Answer(outcome="undecided", title="Measured", aside=aside, pairs=pairs)]


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
        return f"{find_metric(plan.metric).full_label}, {better}"
    first = _headlines(plan)
    metrics = [c.metric or plan.metric for c in first]
    metrics += [c.control_metric for c in first if c.control_metric and not c.baseline]
    known = list(dict.fromkeys(find_metric(metric).full_label for metric in metrics))
    what = " and ".join(known) if len(known) <= 2 else "the metric named"
    return f"{what}, {better}; a difference below {plan.margin:g} does not matter"


def _headlines(plan: Plan) -> list[Contrast]:
    return [c for c in plan.contrasts if c.primary] or list(plan.contrasts)


def _scale(plan: Plan, arms: pd.DataFrame) -> str:
    """What training gains in all, and what needs none: ``base 0.58, untrained encoder 0.41``."""
    compared = [arm for c in _headlines(plan) for arm in (c.treatment, c.control)]
    arm = max(compared, key=compared.count) if compared else next(iter(plan.arms))
    row = arms.set_index("arm").loc[arm]
    known = {arm: row["mean"]} | {words: row.get(name) for name, words in BASELINES.items()}
    said = [f"{name} {fmt.number(value, 3)}" for name, value in known.items() if value is not None and value == value]
    return f"{find_metric(plan.metric).label}: {', '.join(said)}" if len(said) > 1 else ""


def changes(plan: Plan) -> dict[str, str]:
    """What the compared arms are, where they are few: arm -> changes against the base. The table of arms has all."""
    for contrasts in (plan.contrasts, _headlines(plan)):
        arms = list(dict.fromkeys(arm for c in contrasts for arm in (c.treatment, c.control)))
        if 1 < len(arms) <= MAX_ARMS:
            return {
                arm: words
                if len(words := arm_settings.words(plan.arms[arm])) <= MAX_LETTERS
                else f"{len(plan.arms[arm])} settings changed, see the table of arms"
                for arm in arms
            }
    return {}

"""Cards of the index: a question, what is known, at which size, what is missing and what that would cost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from markupsafe import Markup

from analysis.plots import sparklines, svg
from analysis.plots.sparklines import Sparkline, Sparklines
from analysis.stats.power import MAX_SEEDS
from analysis.verdicts import arm_settings, convergence, tables, wording
from analysis.verdicts.costs import Prices, device_hours, hours_text
from analysis.verdicts.decide import Verdict
from analysis.verdicts.questions import FURTHER, OPEN, Part, Question
from analysis.verdicts.study_index import Found, Holdings, Search
from analysis.verdicts.summary import Section
from jbot.store.record import RecordError, Storage

MOST_ROWS = 12
"""Contrasts drawn on one card."""
MOST_EXPLORATORY = 4
"""Of these, exploratory ones (assumed)."""
DECIDED = ("better", "worse", "equivalent")


@dataclass(frozen=True, kw_only=True)
class Link:
    """To a page beside the index."""

    text: str
    href: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a card says of one part of its question."""

    about: str = ""
    word: str
    """``Better``, ``Undecided so far``, ``2 better, 8 undecided``, ``Not run``: the answer in the overview."""
    tone: str = "open"
    """Class of the page: an outcome, or ``open``."""
    where: str = ""
    """``momentum − random_count +0.003 ± 0.011, preset quick, n = 6``: what the word rests on."""
    notices: list[str] = field(default_factory=list)
    """What a reader must know before the answer."""
    sentences: list[str] = field(default_factory=list)
    sparklines: Sparklines | None = None
    figure: Markup = Markup()  # noqa: RUF009 - a Markup cannot be changed
    facts: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """What is not there yet, each with its cost."""
    links: list[Link] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Other plans and presets of the study."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One question."""

    anchor: str
    number: str
    question: str
    entries: list[Entry]


def open_questions(holdings: Holdings, prices: Prices) -> list[Card]:
    """Of the paper: one each, whether or not anybody has looked."""
    return [
        _card(f"q{number}", str(number), question, holdings, prices) for number, question in enumerate(OPEN, start=1)
    ]


def further_questions(holdings: Holdings, prices: Prices) -> list[Card]:
    """Of the other studies of studies/ that somebody has begun."""
    asked = [question for question in FURTHER if any(part.study in holdings.names for part in question.parts)]
    return [_card(question.parts[0].study, "", question, holdings, prices) for question in asked]


def own_studies(holdings: Holdings, prices: Prices) -> list[Card]:
    """Of studies that are not ours."""
    ours = {part.study for question in (*OPEN, *FURTHER) for part in question.parts}
    cards = []
    for name in (name for name in holdings.names if name not in ours):
        asked = [*(one.plan.question for one in holdings.of(name))]
        asked += [one.question for one in holdings.searches if one.name == name]
        question = Question(text=asked[0], parts=(Part(study=name),))
        cards.append(_card(f"own-{name}", "", question, holdings, prices, own=True))
    return cards


def not_begun() -> list[Part]:
    """Every further study of studies/, for the line that names those without a card."""
    return [part for question in FURTHER for part in question.parts]


def _card(anchor: str, number: str, question: Question, holdings: Holdings, prices: Prices, own: bool = False) -> Card:
    entries = [_entry(part, holdings, prices, own) for part in question.parts]
    return Card(anchor=anchor, number=number, question=question.text, entries=entries)


def _entry(part: Part, holdings: Holdings, prices: Prices, own: bool) -> Entry:
    plans = holdings.of(part.study)
    with_arms = [found for found in plans if _has_arms(part, found)]
    searches = [search for search in holdings.searches if search.name == part.study]
    if not with_arms:
        return _not_looked_at(part, plans, searches, holdings)
    best, *others = with_arms
    entry = _of_study(part, best, holdings.storage, prices, own)
    rest = [_state_line(found) for found in others] + [_search_line(search) for search in searches]
    return replace(entry, others=rest)


def _has_arms(part: Part, found: Found) -> bool:
    return not part.arms or any(re.fullmatch(part.arms, arm) for arm in found.plan.arms)


# --- without a study ------------------------------------------------------------------------------------------------


def _not_looked_at(part: Part, plans: Sequence[Found], searches: Sequence[Search], holdings: Holdings) -> Entry:
    preset = "" if part.least == "quick" else f" --preset {part.least}"
    command = f"python studies/{part.study}.py{preset}"
    if searches:
        ended = ", ".join(_search_line(search) for search in searches)
        return Entry(about=part.about, word="No answer yet", where="a search runs", notices=[ended], commands=[command])
    if plans:
        shown = f"Preset {plans[0].plan.preset} of {part.study} has no arms for it; from {part.least} on there are."
        return Entry(about=part.about, word="Not run", missing=[shown], commands=[command])
    known = _estimate(part.study, holdings)
    cost = known or "everything; this command with --dry-run says what it would cost here"
    return Entry(about=part.about, word="Not run", missing=[cost], commands=[command])


def _estimate(study: str, holdings: Holdings) -> str:
    """What studies/all.py has written of a study that nobody has begun."""
    for name in holdings.storage.names():
        if re.fullmatch(r"all_\w+\.json", name):
            try:
                rows = {row["study"]: row for row in holdings.storage.read_json(name)}
                row = rows.get(study)
                if row and row["open"] and row["open_hours"] is not None:
                    return f"{'; '.join(row['open'])} (as studies/all.py has estimated)"
            except (RecordError, KeyError, TypeError):
                continue
    return ""


# --- of one study ---------------------------------------------------------------------------------------------------


def _of_study(part: Part, found: Found, storage: Storage, prices: Prices, own: bool) -> Entry:
    verdicts = _asked(part, found)
    primary = [item for item in verdicts if item.contrast.primary]
    sections = [one for one in found.sections or [] if one.title in part.sections]
    word, tone = _word(part, found, primary, sections)
    entry = Entry(
        about=part.about,
        word=word,
        tone=tone,
        where=_where(part, found, primary, sections),
        notices=_notices(found),
        facts=_facts(found, storage),
        missing=_missing(part, found, primary, prices),
        links=_links(found, storage, sections),
        commands=[] if own else [_command(part, found)],
    )
    if found.proves_the_path or found.blocks == 0:
        return entry
    said, described = _sentences(part, found, primary), [line for one in sections for line in one.answer]
    return replace(
        entry,
        sentences=[*said, *described] if part.contrasts else [*described, *said],
        sparklines=_sparklines(found, verdicts),
        figure=_figure(found, storage, sections) if not (primary and part.contrasts) else Markup(),
    )


def _asked(part: Part, found: Found) -> list[Verdict]:
    """Verdicts on what the part asks: the primary ones, then some exploratory ones."""
    if not part.arms:
        chosen = found.verdicts
    else:
        sides = [(item, (item.contrast.treatment, item.contrast.control)) for item in found.verdicts]
        chosen = [item for item, arms in sides if any(re.fullmatch(part.arms, arm) for arm in arms)]
    primary = [item for item in chosen if item.contrast.primary]
    exploratory = [item for item in chosen if not item.contrast.primary]
    return [*primary, *exploratory]


def _word(part: Part, found: Found, primary: Sequence[Verdict], sections: Sequence[Section]) -> tuple[str, str]:
    """The answer in a word or two, and its colour."""
    if found.proves_the_path:
        return ("Path proven" if found.ended == len(found.study.trials) else "Path begun"), "open"
    if found.blocks == 0:
        return "No answer yet", "open"
    so_far = " so far" if found.ended < len(found.study.trials) else ""
    if not primary or not part.contrasts:
        described = any(one.answer for one in sections) or any(item.difference.n > 1 for item in found.verdicts)
        return (f"Described{so_far}" if described else f"Seen, no verdict planned{so_far}"), "open"
    words = Counter("lost" if item.difference.n < 2 else item.outcome for item in primary)
    if len(primary) == 1:
        outcome = primary[0].outcome
        return ("Lost to failures" if words["lost"] and primary[0].dropped else outcome.capitalize()) + so_far, outcome
    told = [f"{words[name]} {name}" for name in (*DECIDED, "undecided") if words[name]]
    told += [f"{words['lost']} lost to failures"] * bool(words["lost"])
    decided = [name for name in DECIDED if words[name]]
    tone = decided[0] if len(decided) == 1 and not words["undecided"] else "undecided"
    return ", ".join(told).capitalize() + so_far, tone


def _where(part: Part, found: Found, primary: Sequence[Verdict], sections: Sequence[Section]) -> str:
    said = [f"preset {found.plan.preset}", f"n = {found.blocks}" if found.blocks else "no whole block"]
    answer = next((line for one in sections for line in one.answer), "")
    if not part.contrasts:
        first = answer.split(". ")[0].rstrip(".")
        return (
            f"{first}; {', '.join(said)}" if first and found.blocks and not found.proves_the_path else ", ".join(said)
        )
    if len(primary) == 1 and primary[0].difference.n > 1 and not found.proves_the_path:
        d, name = primary[0].difference, wording.contrast(primary[0].contrast.name)
        said.insert(0, f"{name} {wording.with_error(d.mean, d.standard_error, sign=True)}")
    return ", ".join(said)


def _notices(found: Found) -> list[str]:
    said = []
    if found.proves_the_path:
        said.append("This size proves the path and answers nothing: no verdict is quoted from it.")
    if 0 < found.ended < len(found.study.trials) or (found.ended and not found.blocks):
        said.append(
            f"Unfinished: {found.ended} of {len(found.study.trials)} trials have ended, "
            f"{wording.count(found.blocks, 'whole block')} of {len(found.states)}."
        )
    if not found.ended:
        said.append("Begun, but no trial has ended yet.")
    if not found.current:
        said.append(f"These are the records of an earlier plan, kept in {found.folder}: it has more to say.")
    return said


def _sentences(part: Part, found: Found, primary: Sequence[Verdict]) -> list[str]:
    """Verdicts in words where they are few; the sparklines show them all."""
    said = [item.sentence for item in primary] if len(primary) <= 2 else []
    names = {item.contrast.name for item in primary}
    return [*said, *_elsewhere(part, found, primary), *_other_metrics(part, found, names), *_speed(part, found, names)]


def _elsewhere(part: Part, found: Found, primary: Sequence[Verdict]) -> list[str]:
    """Exploratory contrasts in another metric than the sparklines': they have no place on their scale."""
    shown = primary[0].contrast.metric if primary else ""
    others = [item for item in _asked(part, found) if item.contrast.metric != shown and item.difference.n > 1]
    said = []
    for item in [one for one in others if not one.contrast.primary][:MOST_EXPLORATORY]:
        d = item.difference
        size = wording.with_error(d.mean, d.standard_error, sign=True)
        name = wording.contrast(item.contrast.name)
        said.append(f"{name}: {item.outcome} (exploratory), {size}, n = {d.n} seeds.")
    return said


def _other_metrics(part: Part, found: Found, names: set[str]) -> list[str]:
    """``k-means AMI: momentum − random_count +0.004 ± 0.006 (...)``."""
    wanted = [name for name in part.also if name in found.trials]
    frame = tables.metric_differences(found.trials, found.plan, wanted)
    said = []
    for row in frame.to_dict("records"):
        if row["contrast"] in names and row["n"] > 1:
            error = row["sd"] / row["n"] ** 0.5
            size = wording.with_error(row["mean"], error, sign=True)
            within = wording.bounds(row["metric"], of_difference=True)
            interval = wording.interval(row["low"], row["high"], error, within)
            said.append(
                f"In {wording.quantity(row['metric'])}: {wording.contrast(row['contrast'])} is {size} "
                f"({1 - found.plan.alpha:.0%} interval {interval}, n = {row['n']} seeds, exploratory)."
            )
    return said


def _speed(part: Part, found: Found, names: set[str]) -> list[str]:
    """Which arm learns faster, in epochs."""
    if not part.speed:
        return []
    curves = convergence.curve_table(found.study)
    ended = found.states.index[~(found.states == tables.PENDING).any(axis=1)]
    clock = convergence.converge(found.plan, curves[curves["seed"].isin(ended)], "epoch")
    said = []
    for pair in clock.contrasts if clock else ():
        if clock and pair.contrast in names and pair.time.n > 1:
            t, name = pair.time, wording.contrast(pair.contrast)
            size = wording.with_error(t.mean, t.standard_error, sign=True, most=2)
            interval = wording.interval(t.low, t.high, t.standard_error)
            said.append(
                f"Speed: until {wording.quantity(clock.metric)} {clock.threshold:.2f}, {name} is {size} epochs "
                f"(negative is faster; {1 - found.plan.alpha:.0%} interval {interval}, n = {t.n} seeds, exploratory)."
            )
    return said


def _sparklines(found: Found, verdicts: Sequence[Verdict]) -> Sparklines | None:
    """Primary contrasts, and a few others on the same scale: those of one metric."""
    drawn = [item for item in verdicts if item.contrast.primary][:MOST_ROWS]
    metric = drawn[0].contrast.metric if drawn else (verdicts[0].contrast.metric if verdicts else "")
    more = [item for item in verdicts if not item.contrast.primary and item.contrast.metric == metric]
    drawn += more[: max(0, min(MOST_EXPLORATORY if drawn else MOST_ROWS, MOST_ROWS - len(drawn)))]
    side = "right is better" if found.plan.higher_is_better else "left is better"
    label = f"difference in {wording.quantity_on(metric or found.plan.metric)}, {side}; shaded: below the margin"
    return sparklines.draw([sparkline(item) for item in drawn], found.plan.margin, label)


def sparkline(verdict: Verdict) -> Sparkline:
    """A contrast and what stands beside it."""
    d, contrast = verdict.difference, verdict.contrast
    # The label of the sparklines names the metric that they share.
    name = wording.contrast(contrast.name.removesuffix(f" on {contrast.metric}" if contrast.metric else ""))
    row = Sparkline(name=name, says=_why_none(verdict), exploratory=not contrast.primary)
    if not d.n:
        return row
    value = wording.with_error(d.mean, d.standard_error, sign=True) if d.n > 1 else wording.number(d.mean, sign=True)
    row = replace(row, value=value, tone=verdict.outcome, mean=d.mean, ends=verdict.ends, alt=f"{name}: {value}")
    if d.n == 1:
        return row
    interval = wording.interval(d.low, d.high, d.standard_error, verdict.within)
    return replace(row, says=verdict.outcome, alt=f"{row.alt}, interval {interval}")


def _why_none(verdict: Verdict) -> str:
    """Why a contrast has no verdict: failed trials, or none yet."""
    failed = [f"{rate.arm} failed in {rate.failed} of {rate.ended}" for rate in verdict.failures if rate.failed]
    seeds = ("no seed yet", "one seed so far")[min(1, verdict.difference.n)]
    return ", ".join(failed) or seeds


def _figure(found: Found, storage: Storage, sections: Sequence[Section]) -> Markup:
    """The first figure of a section, as its report has saved it."""
    for one in sections:
        name = f"{found.folder}/figures/{one.figure}.svg"
        if one.figure and storage.exists(name):
            drawn = storage.read(name).decode("utf-8", "replace")
            if svg.is_harmless(drawn):  # drawn by matplotlib, which escapes the text in it: not escaped again
                ids = re.sub(r"[^\w-]", "-", f"{found.folder}-{one.figure}")
                return Markup(svg.inline(drawn, ids, one.alt))
    return Markup()


# --- facts ----------------------------------------------------------------------------------------------------------


def _facts(found: Found, storage: Storage) -> dict[str, str]:
    plan, records = found.plan, [one for one in found.study.records.values() if one is not None]
    lost = Counter(record.state for record in records)
    ended = f"{found.ended} of {wording.count(len(found.study.trials), 'trial')}"
    ended += "".join(f", {lost[state]} {state}" for state in ("failed", "pruned") if lost[state])
    hours: dict[str, float] = {}
    for record in records:
        spent, unit = device_hours(record)
        own = spent * record.own_seconds / record.device_seconds if record.device_seconds else 0.0
        hours[unit] = hours.get(unit, 0.0) + own
    facts = {
        "Size": f"preset {plan.preset}: {arm_settings.size(plan)}",
        "Data": str(found.study.data.get("source") or "not recorded"),
        "Seeds": f"{found.blocks} of {len(found.states)} compared; ended: {ended}",
        "Took": ", ".join(hours_text(spent, unit) for unit, spent in hours.items()) or "nothing yet",
    }
    if records:
        facts["Newest trial"] = max(record.started for record in records)[:16].replace("T", " ") + " UTC"
    return facts


def _links(found: Found, storage: Storage, sections: Sequence[Section]) -> list[Link]:
    """The report, if there is one, and its sections that answer; a report of other records is called so."""
    if not storage.exists(f"{found.folder}/report.html"):
        return []
    folder = quote(found.folder)  # else javascript: could be the name of one
    page = f"{folder}/report.html"
    if found.sections is None:
        return [Link(text="report (perhaps of older records)", href=page)]
    links = [Link(text="report", href=page)]
    links += [Link(text=one.title, href=f"{page}#{one.anchor}") for one in sections]
    if storage.exists(f"{found.folder}/paper_tables.html"):
        links.append(Link(text="the paper’s tables", href=f"{folder}/paper_tables.html"))
    return links


def _command(part: Part, found: Found) -> str:
    """What continues it, or gives an answer."""
    preset = part.least if found.proves_the_path else found.plan.preset
    return f"python studies/{part.study}.py" + ("" if preset == "quick" else f" --preset {preset}")


def _state_line(found: Found) -> str:
    """Another plan or preset of a study in one line."""
    kind = f"preset {found.plan.preset}" + ("" if found.current else f", an earlier plan ({found.folder})")
    done = f"{found.ended} of {len(found.study.trials)} trials ended"
    if found.proves_the_path or found.blocks < 2:
        return f"{kind}: {done}"
    words = Counter(item.outcome for item in found.verdicts if item.contrast.primary and item.difference.n > 1)
    told = ", ".join(f"{n} {word}" if sum(words.values()) > 1 else word for word, n in words.items())
    return f"{kind}: {done}" + (f"; {told}, n = {found.blocks}" if told else "")


def _search_line(search: Search) -> str:
    return f"a search of preset {search.preset}: {search.ended} of {search.points} points have ended; no winner yet"


# --- what is missing ------------------------------------------------------------------------------------------------


def _missing(part: Part, found: Found, primary: Sequence[Verdict], prices: Prices) -> list[str]:
    if found.proves_the_path:
        return ["an answer: that takes a larger preset"]
    block = prices.of_block(found.plan, _unit(found, prices))
    said = [*_missing_trials(found, block, prices), *_missing_seeds(found, primary, block, prices)]
    if part.sections and found.sections is None and found.blocks:
        said.append(f"a report of these records, to be quoted here: python -m analysis.report <storage>/{found.folder}")
    return said


def _unit(found: Found, prices: Prices) -> str:
    units = Counter(device_hours(record)[1] for record in found.study.records.values() if record is not None)
    return units.most_common(1)[0][0] if units else prices.unit


def _missing_trials(found: Found, block: dict[str, float | None], prices: Prices) -> list[str]:
    pending = [trial.arm for trial in found.study.trials if found.study.records[trial.trial_id] is None]
    if not pending:
        return []
    costs = [block.get(arm) for arm in pending]
    hours = [cost for cost in costs if cost is not None]
    known = len(hours) == len(costs)
    about = f"about {hours_text(sum(hours), _unit(found, prices))}" if known else "no record tells what they cost"
    return [f"{wording.count(len(pending), 'trial')} that the plan has: {about}"]


def _missing_seeds(
    found: Found, primary: Sequence[Verdict], block: dict[str, float | None], prices: Prices
) -> list[str]:
    """Seeds that would probably decide the undecided, and what they cost."""
    undecided = [item for item in primary if item.outcome == "undecided" and item.difference.n > 1]
    never = [wording.contrast(item.contrast.name) for item in undecided if item.seeds_needed is None]
    needed = sorted(item.seeds_needed for item in undecided if item.seeds_needed is not None)
    said = []
    if needed:
        more = max(0, needed[-1] - len(found.plan.seeds))
        span = f"{needed[0]}" if needed[0] == needed[-1] else f"{needed[0]} to {needed[-1]}"
        what = "it" if len(undecided) == 1 else f"{len(needed)} undecided contrasts"
        known = [cost for cost in block.values() if cost is not None]
        cost = f", {hours_text(more * sum(known), _unit(found, prices))}" if len(known) == len(block) else ""
        said.append(
            f"about {span} seeds would decide {what}, at this size and spread: "
            f"{wording.count(more, 'block')} beyond the plan{cost}"
        )
    if never:
        names = ", ".join(never) if len(primary) > 1 else "it"
        said.append(f"not even {MAX_SEEDS} seeds would decide {names} at this size and spread")
    lost = [item for item in primary if item.difference.n < 2 and item.dropped]
    if lost and len(primary) > 1:
        said.append("; ".join(dict.fromkeys(_why_none(item) for item in lost)) + ": no difference can be formed")
    return said

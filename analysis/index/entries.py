"""Entries of the index: a question, what is known, at which size, what is missing and what that would cost."""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from urllib.parse import quote

from markupsafe import Markup

from analysis.plots import sparklines, svg
from analysis.plots.sparklines import Sparkline, Sparklines
from analysis.report import headline
from analysis.report.links import Link
from analysis.stats.paired import MeanInterval
from analysis.stats.power import MAX_SEEDS
from analysis.verdicts import arm_settings, convergence, noise_floor, tables
from analysis.verdicts import number_format as fmt
from analysis.verdicts.costs import Prices, device_hours, hours_text
from analysis.verdicts.provenance import unpaid_look
from analysis.verdicts.questions import FURTHER, OPEN, Part, Question
from analysis.verdicts.sentences import ORDER, contrast_name, losses, outcome_label
from analysis.verdicts.study_index import StudyIndex, StudySummary
from analysis.verdicts.summary import Section
from analysis.verdicts.verdict import Verdict
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.storage import RecordError, Storage

MAX_ROWS, MAX_EXPLORATORY = 12, 4
"""Contrasts drawn in one entry; of these, exploratory ones (heuristic)."""
DECIDED = ("better", "worse", "equivalent")
MAX_SENTENCES = 2
"""Primary contrasts that are quoted in sentences."""


@dataclass(frozen=True, kw_only=True)
class PartEntry:
    """What an entry says of one part of its question."""

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
    command: str = ""
    others: list[str] = field(default_factory=list)
    """Other plans and presets of the study."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One question."""

    anchor: str
    number: str = ""
    question: str
    parts: list[PartEntry]


@dataclass(frozen=True, kw_only=True)
class _Study:
    """A part of a question and the study that answers it."""

    part: Part
    found: StudySummary
    storage: Storage
    prices: Prices

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Verdicts on what the part asks, the primary ones first."""
        arms = _arms(self.part, self.found)
        asked = [v for v in self.found.verdicts if v.contrast.treatment in arms or v.contrast.control in arms]
        return sorted(asked, key=lambda verdict: not verdict.contrast.primary)

    @property
    def primary(self) -> list[Verdict]:
        """The primary ones."""
        return [verdict for verdict in self.verdicts if verdict.contrast.primary]

    @property
    def sections(self) -> list[Section]:
        """Sections of the report that answer the part."""
        return [section for section in self.found.sections or [] if section.title in self.part.sections]

    @property
    def described(self) -> list[str]:
        """What they say."""
        return [line for section in self.sections for line in section.answer]

    @property
    def unit(self) -> str:
        """Device its hours are of, ``core`` or ``GPU``."""
        units = Counter(device_hours(record)[1] for record in self.found.ended_records)
        return units.most_common(1)[0][0] if units else self.prices.unit

    @property
    def unfinished(self) -> bool:
        """Whether trials of its plan have not ended, and it was not stopped at a look."""
        look = self.found.look
        return self.found.ended < len(self.found.study.trials) and not (look and look.decided)


def open_questions(index: StudyIndex, prices: Prices) -> list[Entry]:
    """The paper's questions, whether or not anybody has looked."""
    return [_entry(f"q{n}", question, index, prices, number=str(n)) for n, question in enumerate(OPEN, 1)]


def further_questions(index: StudyIndex, prices: Prices) -> list[Entry]:
    """Questions of the other studies of studies/ that somebody has started."""
    asked = [question for question in FURTHER if any(part.study in index.names for part in question.parts)]
    return [_entry(question.parts[0].study, question, index, prices) for question in asked]


def own_studies(index: StudyIndex, prices: Prices) -> list[Entry]:
    """Questions of studies that are not ours."""
    ours = {part.study for question in (*OPEN, *FURTHER) for part in question.parts}
    asked = {search.name: search.question for search in reversed(index.searches)}
    asked |= {study.name: study.plan.question for name in index.names for study in reversed(index.of(name))}
    own = {name: Question(asked[name], (Part(study=name),)) for name in index.names if name not in ours}
    return [_entry(f"own-{name}", question, index, prices, own=True) for name, question in own.items()]


def _entry(
    anchor: str, question: Question, index: StudyIndex, prices: Prices, number: str = "", own: bool = False
) -> Entry:
    parts = [_part(part, index, prices, own) for part in question.parts]
    return Entry(anchor=anchor, number=number, question=question.text, parts=parts)


def _part(part: Part, index: StudyIndex, prices: Prices, own: bool) -> PartEntry:
    """The plan with the most to say, the others in a line each; without one, how to begin."""
    plans = index.of(part.study)
    searches = [
        f"a search of preset {search.preset}: {search.ended} of {search.points} points have ended; no winner yet"
        for search in index.searches
        if search.name == part.study
    ]
    with_arms = [plan for plan in plans if _arms(part, plan)]
    if with_arms:
        entry = _of_study(_Study(part=part, found=with_arms[0], storage=index.storage, prices=prices))
        others = [*map(_state_line, with_arms[1:]), *searches]
        return replace(entry, others=others, command="" if own else entry.command)
    command = _command(part, part.min_preset)
    if searches:
        notices = [", ".join(searches)]
        return PartEntry(
            about=part.about, word="No answer yet", where="a search runs", notices=notices, command=command
        )
    missing = _estimate(part.study, index) or "everything; this command with --dry-run says what it would cost here"
    if plans:
        preset = plans[0].plan.preset
        missing = f"Preset {preset} of {part.study} has no arms for it; from {part.min_preset} on there are."
    return PartEntry(about=part.about, word="Not run", missing=[missing], command=command)


def _arms(part: Part, study: StudySummary) -> list[str]:
    """Arms of a plan that answer a part."""
    return [arm for arm in study.plan.arms if not part.arms or re.fullmatch(part.arms, arm)]


def _command(part: Part, preset: str) -> str:
    return f"python studies/{part.study}.py" + ("" if preset == "quick" else f" --preset {preset}")


def _estimate(study: str, index: StudyIndex) -> str:
    """What studies/all.py has written of a study that nobody has started."""
    for name in index.storage.names():
        if re.fullmatch(r"all_\w+\.json", name):
            with contextlib.suppress(RecordError, KeyError, TypeError):
                row = {row["study"]: row for row in index.storage.read_json(name)}.get(study)
                if row and row["open"] and row["open_hours"] is not None:
                    return f"{'; '.join(row['open'])} (as studies/all.py has estimated)"
    return ""


# --- from a study ---------------------------------------------------------------------------------------------------


def _of_study(study: _Study) -> PartEntry:
    part, found = study.part, study.found
    word, tone = _word(study)
    entry = PartEntry(
        about=part.about,
        word=word,
        tone=tone,
        where=_where(study),
        notices=_notices(study),
        facts=_facts(found),
        missing=_missing(study),
        links=_links(study),
        command=_command(part, part.min_preset if found.is_smoke_test else found.plan.preset),
    )
    if found.is_smoke_test or found.blocks == 0:
        return entry
    decided = _sentences(study)
    return replace(
        entry,
        sentences=[*decided, *study.described] if part.contrasts else [*study.described, *decided],
        sparklines=_sparklines(study),
        figure=Markup() if study.primary and part.contrasts else _figure(study),
    )


def _word(study: _Study) -> tuple[str, str]:
    """The answer in a word or two, and its colour."""
    found, primary, so_far = study.found, study.primary, " so far" * study.unfinished
    if found.is_smoke_test:
        return ("Path started" if study.unfinished else "Path proven"), "open"
    if found.blocks == 0:
        return "No answer yet", "open"
    if not primary or not study.part.contrasts:
        described = study.described or any(item.difference.n > 1 for item in found.verdicts)
        return ("Described" if described else "Seen, no verdict planned") + so_far, "open"
    if len(primary) == 1:
        return outcome_label(primary[0]).capitalize() + so_far, primary[0].outcome
    words = Counter(map(outcome_label, primary))
    counts = [f"{words[name]} {name}" for name in ORDER if words[name]]
    decided = [name for name in DECIDED if words[name]]
    tone = decided[0] if len(decided) == 1 and not words["undecided"] else "undecided"
    return ", ".join(counts).capitalize() + so_far, tone


def _where(study: _Study) -> str:
    found, primary = study.found, study.primary
    n = primary[0].difference.n if study.part.contrasts and len(primary) == 1 else len(found.judged)
    size = f"preset {found.plan.preset}, {f'n = {n}' if found.blocks else 'no whole block'}"
    if found.is_smoke_test:
        return size
    if not study.part.contrasts:
        first = study.described[0].split(". ")[0].rstrip(".") if study.described and found.blocks else ""
        return f"{first}; {size}" if first else size
    if len(primary) == 1 and primary[0].difference.n > 1:
        return f"{contrast_name(primary[0].contrast.name)} {_estimate_of(primary[0].difference)}, {size}"
    return size


def _estimate_of(mean: MeanInterval, max_decimals: int = 8) -> str:
    return fmt.with_error(mean.mean, mean.standard_error, sign=True, max_decimals=max_decimals)


def _notices(study: _Study) -> list[str]:
    """What stands above the verdict of the report too, and where these records come from."""
    notices, found = [], study.found
    if found.is_smoke_test:
        notices.append("This size proves the path and answers nothing: no verdict is quoted from it.")
    if found.ended:
        said = [headline.status(found)]
        if found.blocks and not found.is_smoke_test:
            said += [
                headline.below_baseline(found.plan, found.arms),
                unpaid_look(found.study) if study.verdicts else "",
            ]
        notices += filter(None, said)
    else:
        notices.append("Started, but no trial has ended yet.")
    if not found.current:
        notices.append(f"These are the records of an earlier plan, kept in {found.folder}: it has more to say.")
    return notices


def _sentences(study: _Study) -> list[str]:
    """Verdicts in words where they are few, as the sparklines show them all, what may overturn them, and what has no
    place on their scale: exploratory contrasts in another metric, other metrics, speed."""
    primary = study.primary
    shown = primary[0].contrast.metric if primary else ""
    others = [v for v in study.verdicts if not (v.contrast.primary or v.null) and v.difference.n > 1]
    others = [v for v in others if v.contrast.metric != shown]
    elsewhere = [
        f"{contrast_name(item.contrast.name)}: {item.outcome} (exploratory), {_estimate_of(item.difference)}, "
        f"n = {item.difference.n} seeds."
        for item in others[:MAX_EXPLORATORY]
    ]
    if len(primary) <= MAX_SENTENCES:
        verdicts = [" ".join([item.sentence, *item.warnings]) for item in primary]
    else:
        words = {contrast_name(item.contrast.name): [losses(item), *item.warnings] for item in primary}
        verdicts = [f"{name}: {' '.join(filter(None, said))}" for name, said in words.items() if any(said)]
    floor = noise_floor.sentences(study.verdicts)
    return [*verdicts, *floor, *elsewhere, *_other_metrics(study), *_speed(study)]


def _other_metrics(study: _Study) -> list[str]:
    """``k-means AMI: momentum − random_count +0.004 ± 0.006 (...)``."""
    found, names = study.found, {item.contrast.name for item in study.primary}
    also = [metric for metric in study.part.also if metric in found.trials]
    frame = tables.metric_differences(found.trials, found.plan, also, found.judged, found.alpha)
    sentences = []
    for row in frame.to_dict("records"):
        if row["contrast"] in names:
            metric, error = find_metric(row["metric"]), row["sd"] / row["n"] ** 0.5
            interval = fmt.interval(row["low"], row["high"], error, metric.difference_bounds)
            sentences.append(
                f"In {metric.label}: {contrast_name(row['contrast'])} is "
                f"{fmt.with_error(row['mean'], error, sign=True)} "
                f"({fmt.level(found.alpha)} interval {interval}, n = {row['n']} seeds, exploratory)."
            )
    return sentences


def _speed(study: _Study) -> list[str]:
    """Which arm learns faster, in epochs."""
    if not study.part.speed:
        return []
    found, names = study.found, {item.contrast.name for item in study.primary}
    curves = convergence.curve_table(found.study)
    judged_plan = replace(found.plan, alpha=found.alpha)
    clock = convergence.converge(judged_plan, curves[curves["seed"].isin(found.judged)], "epoch")
    return [
        f"Speed: until {find_metric(clock.metric).label} {clock.threshold:.2f}, {contrast_name(pair.contrast)} is "
        f"{_estimate_of(t, max_decimals=2)} epochs (negative is faster; {fmt.level(found.alpha)} interval "
        f"{fmt.interval_cell(t)}, n = {t.n} seeds, exploratory)."
        for pair in (clock.contrasts if clock else ())
        if clock and pair.contrast in names and (t := pair.time).n > 1
    ]


def _sparklines(study: _Study) -> Sparklines | None:
    """Primary contrasts, and a few others on the same scale: those of one metric."""
    plan, drawn = study.found.plan, study.primary[:MAX_ROWS]
    metric = study.verdicts[0].contrast.metric if study.verdicts else ""
    more = [v for v in study.verdicts if not (v.contrast.primary or v.null) and v.contrast.metric == metric]
    drawn += more[: min(MAX_EXPLORATORY if drawn else MAX_ROWS, MAX_ROWS - len(drawn))]
    side = "right is better" if plan.higher_is_better else "left is better"
    label = f"difference in {find_metric(metric or plan.metric).full_label}, {side}; shaded: below the margin"
    return sparklines.draw([sparkline(item) for item in drawn], plan.margin, label)


def sparkline(verdict: Verdict) -> Sparkline:
    """A contrast and what stands beside it."""
    d, contrast = verdict.difference, verdict.contrast
    # The label of the sparklines names the metric that they share.
    name = contrast_name(contrast.name.removesuffix(f" on {contrast.metric}" if contrast.metric else ""))
    row = Sparkline(name=name, says=_why_none(verdict), exploratory=not contrast.primary)
    if not d.n:
        return row
    value = _estimate_of(d) if d.n > 1 else fmt.number(d.mean, sign=True)
    row = replace(row, value=value, tone=verdict.outcome, mean=d.mean, ends=verdict.ends, alt=f"{name}: {value}")
    interval = fmt.interval(d.low, d.high, d.standard_error, verdict.within)
    return row if d.n == 1 else replace(row, says=verdict.outcome, alt=f"{row.alt}, interval {interval}")


def _why_none(verdict: Verdict) -> str:
    """Why a contrast has no verdict: failed trials, or none yet."""
    failed = [f"{rate.arm} failed in {rate.failed} of {rate.ended}" for rate in verdict.failures if rate.failed]
    return ", ".join(failed) or ("one seed so far" if verdict.difference.n else "no seed yet")


def _figure(study: _Study) -> Markup:
    """The first figure of a section, as its report has saved it."""
    folder = study.found.folder
    for section in study.sections:
        name = f"{folder}/figures/{section.figure}.svg"
        if section.figure and study.storage.exists(name):
            drawn = study.storage.read(name).decode("utf-8", "replace")
            if svg.is_harmless(drawn):  # drawn by matplotlib, which escapes the text in it: not escaped again
                return Markup(svg.inline(drawn, re.sub(r"[^\w-]", "-", f"{folder}-{section.figure}"), section.alt))
    return Markup()


# --- facts ----------------------------------------------------------------------------------------------------------


def _facts(found: StudySummary) -> dict[str, str]:
    plan, records = found.plan, found.ended_records
    states = Counter(record.state for record in records)
    ended = f"{found.ended} of {fmt.count(len(found.study.trials), 'trial')}"
    ended += "".join(f", {states[state]} {state}" for state in ("failed", "pruned") if states[state])
    hours: dict[str, float] = defaultdict(float)
    for record in records:
        spent, unit = device_hours(record)
        hours[unit] += spent * record.own_seconds / record.device_seconds if record.device_seconds else 0.0
    facts = {
        "Size": f"preset {plan.preset}: {arm_settings.size(plan)}",
        "Data": str(found.study.data.get("source") or "not recorded"),
        "Seeds": f"{found.blocks} of {len(found.states)} compared; ended: {ended}",
        "Took": ", ".join(hours_text(spent, unit) for unit, spent in hours.items()) or "nothing yet",
    }
    newest = max((record.started for record in records), default="")[:16].replace("T", " ")
    return facts | ({"Newest trial": f"{newest} UTC"} if records else {})


def _links(study: _Study) -> list[Link]:
    """The report, if there is one, and its sections that answer; a report of other records is called so."""
    folder = study.found.folder
    page = f"{quote(folder)}/report.html"  # quoted, else javascript: could be the name of one
    if not study.storage.exists(f"{folder}/report.html"):
        return []
    if study.found.sections is None:
        return [Link("report (perhaps of older records)", page)]
    links = [Link("report", page), *(Link(one.title, f"{page}#{one.anchor}") for one in study.sections)]
    paper = study.storage.exists(f"{folder}/paper_tables.html")
    return [*links, *([Link("the paper’s tables", f"{quote(folder)}/paper_tables.html")] if paper else [])]


def _state_line(found: StudySummary) -> str:
    """Another plan or preset of a study in one line."""
    kind = f"preset {found.plan.preset}" + ("" if found.current else f", an earlier plan ({found.folder})")
    line = f"{kind}: {found.ended} of {len(found.study.trials)} trials ended"
    words = Counter(map(outcome_label, found.primary))
    if found.is_smoke_test or found.blocks < 2 or not words:
        return line
    outcomes = ", ".join(f"{n} {word}" if words.total() > 1 else word for word, n in words.items())
    return f"{line}; {outcomes}, n = {len(found.judged)}"


# --- what is missing ------------------------------------------------------------------------------------------------


def _missing(study: _Study) -> list[str]:
    found = study.found
    if found.is_smoke_test:
        return ["an answer: that takes a larger preset"]
    costs, missing = study.prices.of_block(found.plan, study.unit), []
    pending = [trial.arm for trial in found.study.trials if found.study.records[trial.trial_id] is None]
    if pending and study.unfinished:
        hours = [cost for arm in pending if (cost := costs.get(arm)) is not None]
        unknown = len(hours) < len(pending)
        price = "no record tells what they cost" if unknown else f"about {hours_text(sum(hours), study.unit)}"
        missing.append(f"{fmt.count(len(pending), 'trial')} that the plan has: {price}")
    missing += _missing_seeds(study, costs)
    if study.part.sections and found.sections is None and found.blocks:
        command = f"python -m analysis.report <storage>/{found.folder}"
        missing.append(f"a report of these records, to be quoted here: {command}")
    return missing


def _missing_seeds(study: _Study, costs: dict[str, float | None]) -> list[str]:
    """Seeds that would probably decide the undecided, and what they cost."""
    primary, missing = study.primary, []
    waits = study.found.look and not study.found.look.blocks
    undecided = [] if waits else [v for v in primary if v.outcome == "undecided" and v.difference.n > 1]
    undecided = [v for v in undecided if not v.undone_by_failures]  # more seeds are not what it lacks
    never = [contrast_name(item.contrast.name) for item in undecided if item.seeds_needed is None]
    needed = sorted(item.seeds_needed for item in undecided if item.seeds_needed is not None)
    if needed:
        more = max(0, needed[-1] - len(study.found.plan.seeds))
        span = " to ".join(map(str, dict.fromkeys((needed[0], needed[-1]))))
        what = "it" if len(undecided) == 1 else f"{len(needed)} undecided contrasts"
        hours = [cost for cost in costs.values() if cost is not None]
        price = f", {hours_text(more * sum(hours), study.unit)}" if len(hours) == len(costs) else ""
        left = f"{fmt.count(more, 'block')} beyond the plan{price}" if more else "the plan has them"
        missing.append(f"about {span} seeds would decide {what}, at this size and spread: {left}")
    if never:
        names = ", ".join(never) if len(primary) > 1 else "it"
        missing.append(f"not even {MAX_SEEDS} seeds would decide {names} at this size and spread")
    lost = [_why_none(item) for item in primary if item.difference.n < 2 and item.dropped]
    if lost and len(primary) > 1:
        missing.append("; ".join(dict.fromkeys(lost)) + ": no difference can be formed")
    return missing

"""Where the numbers of a study come from, and what departs from its plan."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from analysis.verdicts import number_format as fmt
from analysis.verdicts.tables import device_of
from jbot.config import digest
from jbot.store.plan import FILE, PlannedTrial, StudyRecords
from jbot.store.record import Record
from jbot.store.storage import RecordError


def ended(study: StudyRecords) -> list[tuple[PlannedTrial, Record]]:
    """Trials that have a record, in the plan's order."""
    pairs = ((trial, study.records.get(trial.trial_id)) for trial in study.trials)
    return [(trial, record) for trial, record in pairs if record is not None]


def facts(study: StudyRecords) -> dict[str, str]:
    """What a reader needs to make the numbers again: name -> one line."""
    records = [record for _, record in ended(study)]
    restarted = sum(record.attempts > 1 for record in records)
    source, fingerprint = (study.data.get(name, "not recorded") for name in ("source", "fingerprint"))
    lines = {
        "Data": f"{source}, fingerprint {fingerprint}",
        "Plan hash": study.plan.hash,
        "Seeds": ", ".join(map(str, study.plan.seeds)),
        "Trials ended": f"{len(records)} of {len(study.trials)}",
        "Wall time": f"{fmt.duration(sum(r.wall_seconds for r in records))}, all trials added",
        "Device time": f"{fmt.duration(sum(r.own_seconds for r in records))}, all trials added",
        "Attempts": f"{sum(r.attempts for r in records)} ({fmt.count(restarted, 'trial')} restarted)",
        "First start": min((r.started for r in records), default="none yet"),
        "Hardware": _listed(Counter(device_of(r) for r in records)),
        "Trainer": _listed(Counter(r.trainer_version for r in records)),
        "Git commit": _listed(Counter(r.git_commit or "not recorded" for r in records)),
        "Libraries": _listed(Counter(_versions(r) for r in records)),
        "At their defaults": study.from_defaults and f"{', '.join(study.from_defaults)}: younger than the files",
    }
    return {name: line for name, line in lines.items() if line}


def deviations(study: StudyRecords) -> list[str]:
    """Departures from one plan, one data set, one code and one machine, one line each."""
    trials = ended(study)
    records = [record for _, record in trials]
    lines = [*_plan_deviations(study, records)]
    same: dict[str, Callable[[Record], Any]] = {
        "trainer version": lambda record: record.trainer_version,
        "git commit": lambda record: record.git_commit,
        "library versions": _versions,
        "hardware": device_of,
    }
    for name, value_of in same.items():
        values = Counter(str(value_of(record)) for record in records)
        if len(values) > 1:
            lines.append(f"Trials differ in {name}: {_listed(values)}.")
    # Trials that ask for the same jets and had others; arms may ask for other jets by design.
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        probe = record.config.get("probe") or {}
        asked = [record.config.get("data"), probe.get("jet_pts"), probe.get("jet_pts") and probe.get("bank_jets")]
        groups[digest(asked)][f"{record.data.get('source')} {record.data.get('fingerprint')}"] += 1
    lines += [f"Trials differ in data: {_listed(sources)}." for sources in groups.values() if len(sources) > 1]
    return lines + [
        f"Trial {trial.arm} at seed {trial.seed} has a record of seed {record.config.get('seed')}."
        for trial, record in trials
        if record.config.get("seed") != trial.seed
    ]


def _plan_deviations(study: StudyRecords, records: list[Record]) -> Iterator[str]:
    own = {study.plan.hash}
    try:
        content = study.storage.read_json(f"{study.plan.study}/{FILE}")
    except RecordError:
        content = {}  # records that were never in a folder have no file to compare with
    written = content.get("plan_hash")
    if written and not study.plan.trainer_version and written == digest(content["plan"]):
        own.add(written)  # all of a plan was hashed once
    if written and written not in own:
        yield f"{FILE} was changed after it was written: it carries plan hash {written}, not {study.plan.hash}."
    others = Counter((r.study, r.plan_hash) for r in records if r.plan_hash not in own)
    for (name, plan_hash), n in sorted(others.items()):
        yield f"{fmt.count(n, 'trial')} ran under another plan: study {name}, plan hash {plan_hash}."


def unpaid_look(study: StudyRecords) -> str:
    """That some blocks had ended under an earlier plan of this study, before its number of seeds was set; or nothing.

    A plan with a look after so many blocks pays for it.
    """
    plan, trials = study.plan, ended(study)
    earlier = {record.plan_hash for _, record in trials if record.study == plan.study} - {plan.hash}
    for plan_hash in sorted(earlier):
        arms: dict[int, set[str]] = {}
        for trial, record in trials:
            if record.plan_hash == plan_hash and record.study == plan.study:
                arms.setdefault(trial.seed, set()).add(trial.arm)
        whole = sum(found == set(plan.arms) for found in arms.values())
        if 0 < whole < len(plan.seeds) and whole not in plan.looks:
            return (
                f"{fmt.count(whole, 'block')} of {len(plan.seeds)} had ended under an earlier plan of this study. If "
                "more seeds were added after a look at them, that look is not paid for: of studies without any "
                "difference some 7% to 12% are then called better or worse, not 5%. Fresh seeds, or --until-decided "
                "from the start, keep the level."
            )
    return ""


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(record.libraries.items())) or "not recorded"


def _listed(counts: Counter[str], most: int = 6) -> str:
    """The only value; of several, each with its number of trials, the commonest first."""
    if len(counts) == 1:
        return next(iter(counts))
    named = [f"{value} ({fmt.count(n, 'trial')})" for value, n in counts.most_common(most)]
    more = [f"and {len(counts) - most} more"] if len(counts) > most else []
    return "; ".join(named + more)

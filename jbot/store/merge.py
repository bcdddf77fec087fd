"""The storages of several groups brought together: what one has run with other seeds or arms counts in the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

from jbot.config import flatten
from jbot.store.archive import MERGED, Source, copy, encoder_files, load_ended, planned, study_files, trial_files
from jbot.store.plan import FILE, Plan, PlanError, PlannedTrial, StudyRecords, load_study, move_other_plan, save_study
from jbot.store.record import Record, load_record
from jbot.store.storage import Storage

RESULT = ("state", "reason", "metrics", "missing", "anomaly_settings")
"""Fields of a record that are equal where a trial was run twice; where, when and how fast it ran may differ."""


class Merged(NamedTuple):
    """What a merge did."""

    added: list[Record]
    same: int
    """Trials that the storage had already, with the same result."""
    conflicts: list[str]
    """One line for each trial or file of which the storage had another one, and has it still."""
    plans: list[Plan]
    """Plans that stand in the storage now in place of their parts."""


def merge(source: Source, target: Storage) -> Merged:
    """Copy trials that have ended in a source and not in the target, and join the plans of studies that both have.

    Raises RecordError or PlanError when plans, jets or trainer versions do not go together: nothing is written then.
    """
    added: dict[str, Record] = {}
    seen, conflicts, files, plans = set[str](), list[str](), list[str](), list[tuple[StudyRecords, Plan, Any]]()
    same = 0
    for study in source.studies:
        theirs, ids = planned(source, study)
        joins = theirs is not None and theirs.plan.study == study and target.exists(f"{study}/{FILE}")
        if theirs and joins:
            ours = load_study(f"{target.address}/{study}")
            plan, trials = join(ours, theirs)
            plans += [(ours, plan, trials)] if plan.hash != ours.plan.hash else []
        for name in study_files(source.storage, study):
            if not target.exists(name):
                files.append(name)
            elif not (joins and name == f"{study}/{FILE}") and target.read(name) != source.storage.read(name):
                conflicts.append(f"{name} is another file in the storage")
        for trial, record in load_ended(source.storage, [one for one in ids if one not in seen]).items():
            seen.add(trial)
            known = load_record(target, trial, strict=True)
            if known is None:
                added[trial] = record
                files += trial_files(source.storage, trial, MERGED)
            elif why := difference(record, known):
                conflicts.append(f"trial {trial} ({record.arm} at seed {record.seed}): {why}")
            else:
                same += 1
    files += [name for name in encoder_files(source.storage, added) if not target.exists(name)]
    copy([(source.storage, name) for name in files], target)
    for ours, plan, trials in plans:
        move_other_plan(target, plan, ours.data.get("fingerprint"))
        save_study(target, plan, ours.data, trials)
    return Merged(list(added.values()), same, conflicts, [plan for _, plan, _ in plans])


def difference(theirs: Record, ours: Record) -> str:
    """The first result in which two records of one trial differ, in words; empty when there is none."""
    for name in RESULT:
        a, b = getattr(theirs, name), getattr(ours, name)
        if isinstance(a, Mapping) and a != b:
            name = next(key for key in (*a, *b) if a.get(key) != b.get(key))
            a, b = a.get(name), b.get(name)
        if a != b:
            return f"{name} is {a} in the source, {b} in the storage"
    return ""


def join(ours: StudyRecords, theirs: StudyRecords) -> tuple[Plan, list[PlannedTrial]]:
    """The plan with seeds, arms and contrasts of both, and all trials that either has planned.

    Raises PlanError naming the first thing in which the two contradict each other.
    """
    study = ours.plan.study

    def check(name: str, a: Any, b: Any) -> None:
        if a != b:
            raise PlanError(f"{name} of study {study} must be the same to merge, got {b!r} and here {a!r}")

    check("jets", ours.data.get("fingerprint"), theirs.data.get("fingerprint"))
    for name in (field.name for field in fields(Plan) if field.name not in ("seeds", "arms", "contrasts", "base")):
        check(name, getattr(ours.plan, name), getattr(theirs.plan, name))
    a, b = flatten(ours.plan.base), flatten(theirs.plan.base)
    for name in {**a, **b}:
        check(name, a.get(name), b.get(name))
    for arm in ours.plan.arms.keys() & theirs.plan.arms:
        check(f"arm {arm}", ours.plan.arms[arm], theirs.plan.arms[arm])
    contrasts, other = ({one.name: one for one in side.plan.contrasts} for side in (ours, theirs))
    for name in contrasts.keys() & other:
        check(f"contrast {name}", contrasts[name], other[name])
    trials, more = ({(one.arm, one.seed): one for one in side.trials} for side in (ours, theirs))
    for arm, seed in trials.keys() & more:
        check(f"the trial of {arm} at seed {seed}", trials[arm, seed].trial_id, more[arm, seed].trial_id)
    plan = replace(
        ours.plan,
        seeds=tuple(sorted({*ours.plan.seeds, *theirs.plan.seeds})),
        arms=ours.plan.arms | theirs.plan.arms,
        contrasts=tuple((contrasts | other).values()),
    )
    found = trials | more
    return plan, [found[arm, seed] for seed in plan.seeds for arm in plan.arms if (arm, seed) in found]

"""What one trial of an arm can show beyond its score: attention, ROC curves, scores, and how its training went."""

from __future__ import annotations

import dataclasses

from analysis.plots.picture import Picture
from analysis.report import trial_pictures
from analysis.report.evidence import Evidence
from analysis.report.section import Section, slug
from analysis.verdicts import tables
from jbot.store.plan import PlannedTrial

MAX_FIGURES = 14
"""Figures in the page, the costliest part of a report to draw (assumed): those of as many arms as fit, but of one of
each task at least. Tasks that do not fit share them, see `FIRST`."""
FIRST = ("attention", "training", "finetuning", "roc-", "scores-")
"""How the names of these figures begin, in the order in which they are kept."""


def section(evidence: Evidence) -> Section:
    """The figures of some trials, folded away by trial."""
    drawn = pictures(evidence)
    said = (
        "One trial stands for its arm, the same as above: no verdict rests on it. `python -m analysis.pictures "
        "<storage>/trials/<id>` draws all figures of any."
        if drawn
        else "No complete trial has left more to draw."
    )
    details = [Section(title=f"{trial}: {len(found)} figures", figures=found) for trial, found in drawn.items()]
    return Section(key="closer", title="Single trials", sentences=[said], details=details)


def pictures(evidence: Evidence) -> dict[str, list[Picture]]:
    """Figures by "arm, seed"; without PDFs, which ``python -m analysis.pictures`` makes for all trials."""
    found: dict[str, list[Picture]] = {}
    trials = evidence.drawn_trials("examples")
    trials.sort(key=lambda trial: trial.arm not in evidence.primary_arms)
    first = {_task(evidence, trial): trial for trial in reversed(trials)}
    trials.sort(key=lambda trial: trial not in first.values())
    for trial in trials:
        record = evidence.study.records[trial.trial_id]
        most = max((len(figures) for figures in found.values()), default=0)
        if record is None or (len(found) >= len(first) and most * (len(found) + 1) > MAX_FIGURES):
            break
        drawn = list(trial_pictures.detail_pictures(evidence.study.storage, trial.trial_id, record))
        if len(first) > 1:
            drawn = sorted(drawn, key=_rank)[: max(1, MAX_FIGURES // len(first))]
        if drawn:
            found[f"{trial.arm}, seed {trial.seed}"] = [
                dataclasses.replace(of_arm(picture, trial), pdf=False) for picture in drawn
            ]
    return found


def _task(evidence: Evidence, trial: PlannedTrial) -> str:
    record = evidence.study.records[trial.trial_id]
    return "" if record is None else str(tables.lookup(record.config, "data.task"))


def _rank(picture: Picture) -> int:
    return next((i for i, begin in enumerate(FIRST) if picture.name.startswith(begin)), len(FIRST))


def of_arm(picture: Picture, trial: PlannedTrial, arms: str = "") -> Picture:
    """The figure of a trial, in words that name the arm, or the arms, it stands for."""
    return dataclasses.replace(
        picture,
        name=f"{picture.name}-{slug(trial.arm)}",
        alt=f"Arm {arms or trial.arm}, seed {trial.seed}. {picture.alt}",
        caption=f"{arms or trial.arm}, seed {trial.seed}: {picture.caption}",
    )

"""What one trial of an arm can show beyond its score: its embedding, its jets, attention, ROC curves, its training."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from analysis.report import trial_pictures
from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section, slug
from analysis.verdicts import tables
from jbot.store.plan import PlannedTrial

MAX_FIGURES = 14
"""Figures in the page, the costliest part of a report to draw (assumed): those of as many arms as fit, but of one of
each task at least. Tasks that do not fit share them, see `FIRST`."""
FIRST = ("attention", "training", "finetuning", "roc-", "scores-")
"""How the names of these figures begin, in the order in which they are kept."""


def embedding_maps(evidence: Evidence) -> Section:
    """t-SNE maps of the embedding over training: one trial per arm, all at one seed where possible."""
    drawn = [
        _of_arm(picture, trial)
        for trial in evidence.drawn_trials("embedding")
        for picture in trial_pictures.embedding_pictures(evidence.study.storage, trial.trial_id)
    ]
    said = (
        "t-SNE of the [CLS] embedding of test jets, coloured by class: one trial of each arm, the first seed that most "
        "arms have. Each map starts from the one before. Distances between clusters mean nothing; no verdict rests on "
        "these maps."
        if drawn
        else "No complete trial has left an embedding."
    )
    return Section(key="embedding", title="Embedding", sentences=[said], figures=drawn)


def example_jets(evidence: Evidence) -> Section:
    """Jets of each class before and after augmentation, one figure for all arms with the same jets, views and masks."""
    alike: dict[bytes, list[PlannedTrial]] = {}
    for trial in evidence.drawn_trials("examples"):
        arrays, digest = evidence.study.arrays(trial.trial_id, "examples") or {}, hashlib.sha256()
        for name in trial_pictures.JETS:
            if name in arrays:
                array = np.ascontiguousarray(arrays[name])
                digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
        alike.setdefault(digest.digest(), []).append(trial)
    drawn = [
        _of_arm(picture, trials[0], ", ".join(trial.arm for trial in trials))
        for trials in alike.values()
        for picture in trial_pictures.jet_pictures(evidence.study.storage, trials[0].trial_id)
    ]
    said = (
        "Particles in the plane of relative pseudorapidity and azimuth; area is the share of the jet’s transverse "
        "momentum, red is hidden from the student."
        if drawn
        else "No complete trial has left example jets."
    )
    return Section(key="jets", title="Example jets", sentences=[said], figures=drawn)


def details(evidence: Evidence) -> Section:
    """Attention, ROC curves, scores and how the training went, of some trials, folded away by trial."""
    drawn = pictures(evidence)
    said = (
        "One trial stands for its arm, the same as above: no verdict rests on it. `python -m analysis.pictures "
        "<storage>/trials/<id>` draws all figures of any."
        if drawn
        else "No complete trial has left more to draw."
    )
    folded = [Section(title=f"{trial}: {len(found)} figures", figures=found) for trial, found in drawn.items()]
    return Section(key="closer", title="Single trials", sentences=[said], details=folded)


def pictures(evidence: Evidence) -> dict[str, list[Picture]]:
    """Figures by "arm, seed"; without PDFs, which ``python -m analysis.pictures`` makes for all trials."""
    found: dict[str, list[Picture]] = {}
    trials, records = evidence.drawn_trials("examples"), evidence.study.records
    trials.sort(key=lambda trial: trial.arm not in evidence.primary_arms)
    tasks = {t: str(tables.lookup(r.config, "data.task")) if (r := records[t.trial_id]) else "" for t in trials}
    first = {tasks[trial]: trial for trial in reversed(trials)}
    trials.sort(key=lambda trial: trial not in first.values())
    for trial in trials:
        record = records[trial.trial_id]
        most = max((len(figures) for figures in found.values()), default=0)
        if record is None or (len(found) >= len(first) and most * (len(found) + 1) > MAX_FIGURES):
            break
        drawn = list(trial_pictures.detail_pictures(evidence.study.storage, trial.trial_id, record))
        if len(first) > 1:
            drawn = sorted(drawn, key=_rank)[: max(1, MAX_FIGURES // len(first))]
        if drawn:
            found[f"{trial.arm}, seed {trial.seed}"] = [
                dataclasses.replace(_of_arm(picture, trial), pdf=False) for picture in drawn
            ]
    return found


def _rank(picture: Picture) -> int:
    return next((i for i, begin in enumerate(FIRST) if picture.name.startswith(begin)), len(FIRST))


def _of_arm(picture: Picture, trial: PlannedTrial, arms: str = "") -> Picture:
    """The figure of a trial, in words that name the arm, or the arms, it stands for."""
    return dataclasses.replace(
        picture,
        name=f"{picture.name}-{slug(trial.arm)}",
        alt=f"Arm {arms or trial.arm}, seed {trial.seed}. {picture.alt}",
        caption=f"{arms or trial.arm}, seed {trial.seed}: {picture.caption}",
    )

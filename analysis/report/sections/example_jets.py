"""A jet of each class, before and after augmentation, with what the student does not see in red."""

from __future__ import annotations

import hashlib

import numpy as np

from analysis.report import trial_pictures
from analysis.report.evidence import Evidence
from analysis.report.section import Section
from analysis.report.sections.single_trials import of_arm
from jbot.store.plan import PlannedTrial


def section(evidence: Evidence) -> Section:
    """One figure for all arms that show the same: the same jets, views and masks."""
    alike: dict[bytes, list[PlannedTrial]] = {}
    for trial in evidence.drawn_trials("examples"):
        alike.setdefault(_shown_jets(evidence, trial), []).append(trial)
    drawn = [
        of_arm(picture, trials[0], ", ".join(trial.arm for trial in trials))
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


def _shown_jets(evidence: Evidence, trial: PlannedTrial) -> bytes:
    """Digest of what a figure of example jets is made of."""
    arrays, digest = evidence.study.arrays(trial.trial_id, "examples") or {}, hashlib.sha256()
    for name in trial_pictures.JETS:
        if name in arrays:
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.digest()

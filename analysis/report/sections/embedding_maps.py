"""t-SNE maps of the embedding over training."""

from __future__ import annotations

from analysis.report import trial_pictures
from analysis.report.evidence import Evidence
from analysis.report.section import Section
from analysis.report.sections.single_trials import of_arm


def section(evidence: Evidence) -> Section:
    """One trial per arm, all at one seed where possible."""
    drawn = [
        of_arm(picture, trial)
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

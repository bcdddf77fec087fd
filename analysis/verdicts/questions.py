"""The questions that the paper leaves open (arXiv:2601.11719), and which study answers each: entries of the index.

The questions are the paper's, so they stand here whether or not anybody has run their studies.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Part:
    """A question, or one part of it, and the study that answers it."""

    study: str
    """Its file is ``studies/<study>.py``."""
    about: str = ""
    """What of the question; empty where the study answers all of it."""
    arms: str = ""
    """Pattern of the arms that answer it, where that is not the whole study; some presets may lack them."""
    contrasts: bool = True
    """Whether verdicts answer it; if not, the sections of the report do."""
    sections: tuple[str, ...] = ()
    """Titles of sections of its report whose answer belongs here."""
    also: tuple[str, ...] = ()
    """Other metrics in which the question asks for the difference of the primary contrasts."""
    speed: bool = False
    """Whether the question is also which arm learns faster."""
    min_preset: str = "quick"
    """The smallest preset that has its arms."""


@dataclass(frozen=True)
class Question:
    """One entry."""

    text: str
    parts: tuple[Part, ...]


RESPONSES = ("Response to single settings",)

OPEN = (
    Question(
        "Does performance grow linearly, logarithmically, or as a power law with an irreducible error, "
        "with unlabeled jets?",
        (Part(study="scaling", contrasts=False, sections=("Scaling",)),),
    ),
    Question(
        "Do physics-informed augmentations make the representation better for anomaly detection?",
        (Part(study="augmentation_ablation"),),
    ),
    Question(
        "Does momentum-aware masking converge faster and cluster better than random and geometric masking?",
        (Part(study="masking_ablation", also=("test/kmeans_ami", "test/silhouette"), speed=True),),
    ),
    Question(
        "How much does anomaly detection depend on the score and its settings, against the embedding?",
        (Part(study="anomaly_metrics", contrasts=False, sections=("Scores, settings and geometry",)),),
    ),
    Question(
        "How sensitive is the embedding to what the paper never scanned?",
        (
            Part(about="KoLeo weight", study="koleo_sweep", sections=RESPONSES),
            Part(
                about="augmentation strength",
                study="augmentation_ablation",
                arms=r"(rotation|smear_sigma|split_fraction|split_low)_[\d.]+",
                sections=RESPONSES,
                min_preset="gpu",
            ),
            Part(
                about="masking ratio",
                study="masking_ablation",
                arms=r"(momentum|random_count)_(to|from|at)_[\d.]+",
                sections=RESPONSES,
                min_preset="gpu",
            ),
            Part(about="model size", study="scaling", arms="(XS|M|B)_x1"),
        ),
    ),
    Question(
        "Does an encoder pre-trained at one jet pT serve at another?",
        (Part(study="cross_energy", sections=("Transfer between jet energies",)),),
    ),
    Question(
        "What is each component worth?", (Part(study="component_ablation", sections=("Effect of each component",)),)
    ),
    Question(
        "What does it cost that the released code does not do what the paper says?", (Part(study="text_vs_code"),)
    ),
)
"""In the order of the paper's outlook, then those it does not name."""

FURTHER = (
    Question(
        "Does pre-training make the classes cluster, and how far do seeds alone move every metric?",
        (Part(study="baseline"),),
    ),
    Question("Is there a better recipe of pre-training than the base?", (Part(study="hyperparameters"),)),
    Question(
        "Which of the paper’s figures do we find, and with what spread over seeds?", (Part(study="paper_tables"),)
    ),
    Question("Does pre-training in bf16 change the accuracy of the embedding?", (Part(study="precision"),)),
)
"""What studies/ also asks."""


def answered_by_sections(study: str) -> bool:
    """Whether the question of a study asks for a law or a share, so that its sections answer it and no verdict does."""
    parts = [part for question in (*OPEN, *FURTHER) for part in question.parts if part.study == study]
    return bool(parts) and not any(part.contrasts for part in parts if not part.arms)

"""What an anomaly grid varies, as a study states it: jbot.evaluation.anomaly.grid makes it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from jbot import TRAINER_VERSION
from jbot.config import digest
from jbot.evaluation.anomaly import AnomalyError
from jbot.evaluation.metrics_registry import ANOMALY_SCORES, PARTICLE_SCORES, STANDARD_SCORES


@dataclass(frozen=True, kw_only=True)
class AnomalyGrid:
    """What is varied. Settings of each score are those of its own grid in jbot.evaluation.anomaly.scores."""

    scores: tuple[str, ...] = tuple(STANDARD_SCORES)
    as_it_is: tuple[str, ...] = ("knn", "mahalanobis", "mahalanobis_labels", "relative_mahalanobis_labels")
    """Scores that are also made of embeddings that are not projected on the unit sphere: those where it costs
    little."""
    shares: tuple[float, ...] = (1.0, 0.25)
    """Sizes of the bank, relative to the largest (:func:`jbot.evaluation.anomaly.grid.bank_sizes`)."""
    draws: int = 3
    """Banks of each size; the same jets for every encoder."""
    floor_draws: int = 1
    """Of them, those on which the encoder before training is evaluated."""

    def __post_init__(self) -> None:
        for name in (*self.scores, *self.as_it_is):
            if name not in ANOMALY_SCORES:
                raise AnomalyError(f"score must be one of {', '.join(ANOMALY_SCORES)}, got {name!r}")
            if name in PARTICLE_SCORES:
                raise AnomalyError(f"the grid is of the embedding, got score {name}, which is of the particles")
        if not 0 <= self.floor_draws <= self.draws or self.draws < 1:
            raise AnomalyError(f"draws must be >= 1 and >= floor_draws >= 0, got {self.draws} and {self.floor_draws}")

    @property
    def hash(self) -> str:
        """Identity of all that decides the rows beside the encoder and its jets."""
        from jbot.evaluation.anomaly.scores import SCORES  # brings scikit-learn, which a study file can do without

        every = {name: SCORES[name].grid for name in self.scores}
        return digest([dataclasses.asdict(self), every, TRAINER_VERSION])

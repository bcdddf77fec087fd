"""How well an encoder that has seen background alone finds the pilot signal: an anomaly metric for choosing.

Neither a signal jet nor a test jet has a part in it: bank of training jets, background of validation jets, and
overlays of these (jbot.evaluation.anomaly.synthetic_signal).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jbot.config import Config
from jbot.data import JetData, split
from jbot.evaluation.anomaly.detect import Embedded, draw_bank, overlay_pilot
from jbot.evaluation.anomaly.scores import Particles, Points
from jbot.evaluation.metrics import share_below

SCORE = "knn"
"""At its published settings."""


def pilot_auc(embed: Callable[[Particles], Points], data: JetData, config: Config) -> float:
    """Area under the ROC curve of the k-NN score: overlays of validation jets against the validation jets themselves.

    Parameters
    ----------
    embed : callable
        The encoder: particles (jet, particle, 4) to embeddings (jet, dim).
    data : JetData
        The jets it was trained on, as its trial split them.
    config : Config
        Of the trial; its task is `qg`.

    Raises
    ------
    AnomalyError
        When the embedding cannot be scored: constant, or not finite.
    """
    wanted = config.data
    parts = split(data.labels, task=wanted.task, train=wanted.train_jets, val=wanted.val_jets, test=wanted.test_jets)

    def embedded(rows: np.ndarray) -> Embedded:
        particles = data.particles[rows][:, : wanted.particles]
        return Embedded(embedding=embed(particles), labels=data.labels[rows], particles=particles)

    bank = draw_bank(embedded(parts.train[: config.probe.bank_jets]), config.anomaly.bank_jets, config.seed)
    pilot = overlay_pilot(embedded(parts.val), embed, config.seed)
    score = bank.fit(SCORE)
    background, signal = score(bank.jets(pilot.background.embedding)), score(bank.jets(pilot.embedding))
    return float(share_below(signal, background).mean())

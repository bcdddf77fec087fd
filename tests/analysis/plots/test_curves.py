"""Curves and maps over training: they draw what is there."""

import numpy as np
import pandas as pd
import pytest
from drawn import texts

from analysis.plots import curves, jets
from jbot.data.jets import CLASS_LABELS


@pytest.mark.parametrize("epochs", [(0, 7), (0, 1, 10, 50, 80)])
def test_a_panel_per_epoch(epochs):
    rng, labels = np.random.default_rng(0), np.array([0, 1, 2, 4] * 10)  # no Z
    figure = jets.embedding_evolution({epoch: rng.normal(size=(40, 2)) for epoch in epochs}, labels)
    written = texts(figure)
    assert ["untrained", *(f"epoch {epoch}" for epoch in epochs[1:])] == [
        word for word in written if word.startswith(("untrained", "epoch"))
    ]
    assert [word for word in written if word in CLASS_LABELS] == ["q", "g", "W", "t"]


def test_training_curves_draw_what_is_there():
    rows = [{"epoch": 0}, {"epoch": 1, "train/loss": 2.0, "train/teacher_entropy": None}]
    written = texts(curves.pretraining_curves(pd.DataFrame(rows)))
    assert {"loss", "entropy (nats)", "total", "epoch"} <= set(written)
    assert "KoLeo" not in written


def test_finetuning_curves_of_one_epoch_and_without_a_column():
    rows = pd.DataFrame([{"run": "finetune_10", "epoch": 1, "train_loss": 1.0, "val_loss": None, "val_accuracy": 0.2}])
    written = texts(curves.finetuning_curves(rows, {"finetune_10": "fine-tuned"}))
    assert {"fine-tuned", "training jets", "validation jets", "accuracy"} <= set(written)

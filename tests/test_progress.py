"""The bar counts epochs of training, and of fine-tunings by their share of the labels."""

import io

import pytest
from rich.console import Console

from cluster.progress import StudyProgress, epochs_of
from jbot.config import Config, override
from jbot.trial import TrialSpec


@pytest.fixture
def spec() -> TrialSpec:
    changes = {"train.epochs": 8, "finetune.fractions": [0.1, 1.0], "finetune.epochs": 10}
    return TrialSpec(study="s", arm="a", plan_hash="p", config=override(Config(), changes), data_fingerprint="f")


def test_a_trial_is_its_epochs_and_those_of_its_fine_tunings(spec):
    assert epochs_of(spec) == pytest.approx(8 + 2 * (0.1 + 1.0) * 10)


def test_every_reported_epoch_moves_the_bar(spec):
    progress = StudyProgress([spec], [], Console(file=io.StringIO()))
    progress.started(spec)
    assert progress.time_left() == ""
    for row in ({"epoch": 0}, {"epoch": 8}, {"finetune_10/epoch": 1}, {"supervised_100/epoch": 1}):
        progress.point(spec, row)
    assert progress.epochs[spec.trial_id] == pytest.approx(8 + 0.1 + 1.0)
    assert progress.time_left().endswith("left")
    progress.close()

"""What arms change and how large a study is, in words: against the Config, the schemes, and figures by hand."""

import pytest
from test_report import make_plan

from analysis.report import headline
from analysis.verdicts import arm_settings
from jbot.config import FIELDS
from jbot.store.plan import Contrast
from jbot.trainer.masking import SCHEMES


def test_every_scheme_has_words():
    assert set(FIELDS["mask.scheme"].names) == set(SCHEMES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "the recipe unchanged"),
        ({"augment.rotation": 0.0, "loss.koleo_weight": 0.1}, "no rotation, KoLeo weight 0.1"),
        (
            {"data.train_jets": 20_000, "model.padding": "corrected"},
            "20,000 training jets, attention does not see padding",
        ),
        ({"teacher.ema_momentum": 0.0, "teacher.ema_final": 0.0}, "no EMA: the teacher is the student"),
        ({"train.schedule": ["4 optim.lr=0.001"]}, "changes while it trains: 4 optim.lr=0.001"),
        ({"loss.older": 3}, "loss.older = 3"),
    ],
)
def test_words_of_an_arm(changes, words):
    assert arm_settings.words(changes) == words


def test_few_arms_are_explained_and_many_are_not():
    arms = {"base": {}} | {f"a{i}": {"train.epochs": i + 1} for i in range(7)}
    primary = Contrast(treatment="a1", control="base", primary=True)
    plan = make_plan(arms=arms, contrasts=(primary, *(Contrast(treatment=f"a{i}", control="base") for i in range(7))))
    assert headline.changes(plan) == {"a1": "2 epochs", "base": "the recipe unchanged"}
    plan = make_plan(arms=arms, contrasts=tuple(Contrast(treatment=f"a{i}", control="base") for i in range(7)))
    assert headline.changes(plan) == {}

"""The plan as the report states it."""

import pytest
from simulated import make_plan, simulate

from analysis.report.sections import method


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({}, "the paper’s recipe"),
        (
            {"mask.scheme": "softest", "train.batch": 32},
            "the paper’s recipe, but hides the softest particles, up to a share of the jet’s momentum, batches of 32",
        ),
    ],
)
def test_what_is_other_than_the_papers_recipe_is_said_of_the_base(tmp_path, base, words):
    plan = make_plan({"a": {}, "b": {"loss.koleo_weight": 0.0}}, seeds=2, base=base)
    assert method.design(simulate(tmp_path, plan, lambda *_: 0.5)).facts["Base"] == words

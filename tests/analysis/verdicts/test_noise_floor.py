"""A study that carries its own null: the noise floor beside the verdicts, never as one of them."""

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.verdicts import noise_floor
from analysis.verdicts.decide import decide_contrasts
from analysis.verdicts.sentences import outcome_label
from jbot.config import Config, ConfigError, differences, override
from jbot.store.plan import PERTURBATION, Contrast
from jbot.trainer.state import init_state
from studies import Study

CPU = torch.device("cpu")
STUDY = Study(
    name="masks",
    question="?",
    arms={"base": {}, "more": {"mask.ratio_high": 0.8}},
    contrasts=(Contrast(treatment="more", control="base", primary=True),),
    margin=0.01,
)
# Found by hand: batch 32, EMA .99, three epochs of 80,000 jets, k-NN accuracy, an arm against itself.
MEASURED = np.array([-0.015, -0.019, -0.023, -0.017, -0.02, -0.016])


def decided(null, more):
    plan = STUDY.plan("smoke", seeds=len(null), null=True)
    base = np.linspace(0.58, 0.66, len(null))
    frame = pd.DataFrame({"base": base, "more": base + more, "null": base + null}, index=plan.seeds)
    return plan, decide_contrasts(plan, frame, pd.DataFrame("complete", frame.index, frame.columns))


def test_a_null_that_comes_out_worse_is_said_and_is_no_verdict():
    plan, (more, null) = decided(MEASURED, np.full(6, 0.012) + 0.001 * np.arange(6))
    assert (null.null, outcome_label(null), plan.null) == (True, "noise floor", null.contrast)
    assert (more.outcome, more.family, null.family) == ("better", 1, 1)
    said = noise_floor.sentences([more, null])
    assert said[0].startswith("base against itself, initial weights changed by one part in a million, differs by −0.0")
    assert "The null itself comes out different, which it is not" in said[1]
    assert said[2].startswith("No larger than what chance alone makes of that null")
    assert "more − base" in said[2]


def test_a_difference_beyond_the_floor_is_not_held_against_it():
    _, (more, null) = decided(1e-4 * np.array([1, -2, 3, -1, 2, -3]), np.full(6, 0.05) + 0.001 * np.arange(6))
    assert more.outcome == "better"
    assert len(noise_floor.sentences([more, null])) == 1
    assert noise_floor.sentences([more]) == []
    _, (_, still) = decided(np.zeros(6), np.zeros(6))
    (said,) = noise_floor.sentences([still])
    assert said.endswith("scores the same at all 6 seeds: so short a training does not amplify rounding.")
    assert still.seeds_needed is None


def test_the_null_is_the_control_of_the_first_primary_contrast():
    plan = STUDY.plan("smoke", null=True, first_seed=6, seeds=3)
    assert plan.arms["null"] == {PERTURBATION: 1e-6}
    assert plan.seeds == (6, 7, 8)
    assert STUDY.plan("smoke").null is None
    with pytest.raises(ConfigError, match="which the study has already"):
        Study(
            **vars(STUDY) | {"arms": {"base": {}, "more": {"mask.ratio_high": 0.8}, "null": {"loss.koleo_weight": 0.5}}}
        ).plan("smoke", null=True)
    with pytest.raises(ConfigError, match="first seed must be at least 0"):
        STUDY.plan("smoke", first_seed=-1)


def test_perturbed_weights_are_near_and_without_them_nothing_changes():
    config = Config()
    plain, off = (init_state(one, [3], CPU).student for one in (config, override(config, {PERTURBATION: 1e-6})))
    rest = (off - plain).abs() / plain.abs().clamp(min=1e-12)
    assert not torch.equal(plain, off)
    assert float(rest.max()) < 1e-5
    assert torch.equal(off == 0, plain == 0)
    assert differences(config) == {}

"""Scaling of simulated arms: which lie on a line, the slope of a known power law, and what is said about laws."""

import numpy as np
import pandas as pd
import pytest
from simulated import FAILED, make_plan, simulate

from analysis.report.sections import scaling
from jbot.config import JBOT_B, Config, override
from jbot.trainer.model import weight_shapes

BASE = {"data.train_jets": 10_000, "train.epochs": 8, "train.batch": 16, "probe.bank_jets": 5_000}
TINY = {"model.dim": 16, "model.layers": 1, "model.projection": 8}
SIZES = (1250, 2500, 5000, 10_000, 20_000, 40_000, 80_000)
EXPONENT = -0.2


def epochs_arms(sizes=SIZES, model=None, name="s"):
    return {f"{name}{jets}": (model or {}) | {"data.train_jets": jets} for jets in sizes}


def steps_arms(sizes=SIZES):
    """As many optimiser steps as the base's."""
    return {
        f"steps{jets}": {
            "data.train_jets": jets,
            "train.epochs": round(80_000 / jets),
            "optim.warmup_epochs": max(1, round(20_000 / jets)),
        }
        for jets in sizes
        if jets != 10_000
    }


def power_law(config, seed, rng):
    """Error 0.5 at 10,000 jets, times 1.01^seed: a factor that no slope sees; larger models have less of it."""
    size = (scaling.weights({"model.dim": config.model.dim} | rest(config)) / 30_000) ** -0.1
    return 1 - 0.5 * (config.data.train_jets / 10_000) ** EXPONENT * 1.01**seed * size


def rest(config):
    return {f"model.{name}": getattr(config.model, name) for name in ("heads", "layers", "projection")}


def test_one_arm_lies_on_both_lines():
    plan = make_plan(epochs_arms() | steps_arms(), base=BASE)
    epochs, steps = scaling.lines_over_jets(plan)
    assert (epochs.kind, epochs.name) == (scaling.EPOCHS, "jBOT-S")
    assert [run.arm for run in epochs.runs] == list(epochs_arms())
    assert (steps.kind, steps.name) == (scaling.STEPS, "jBOT-S")
    assert [run.jets for run in steps.runs] == list(SIZES)
    assert [run.arm for run in steps.runs if run.jets == 10_000] == ["s10000"]
    assert [run.epochs for run in steps.runs] == [64, 32, 16, 8, 4, 2, 1]


def test_fixed_steps_allow_for_whole_epochs():
    """80,000 jets seen: of 30,000 jets that is 2.67 epochs, which must be 3."""
    arms = {f"d{jets}": {"data.train_jets": jets, "train.epochs": round(80_000 / jets)} for jets in (7000, 30_000)}
    (line,) = scaling.lines_over_jets(make_plan({"base": {}} | arms, base=BASE))
    assert [(run.jets, run.epochs) for run in line.runs] == [(7000, 11), (10_000, 8), (30_000, 3)]
    assert line.kind == scaling.STEPS


def test_models_are_lines_of_their_own_and_parameters_are_counted():
    sizes = (2500, 10_000, 40_000)
    plan = make_plan(epochs_arms(sizes) | epochs_arms(sizes, JBOT_B, "b") | epochs_arms(sizes, TINY, "t"), base=BASE)
    lines = scaling.lines_over_jets(plan)
    assert [line.name for line in lines] == ["d = 16, 1 block", "jBOT-S", "jBOT-B"]
    for line, changes in zip(lines, (TINY, {}, JBOT_B), strict=True):
        shapes = weight_shapes(override(Config(), changes).model)
        assert {run.parameters for run in line.runs} == {sum(int(np.prod(shape)) for shape in shapes.values())}
    models = scaling.lines_over_models(plan)
    assert [line.name for line in models] == [f"{jets:,} jets, 8 epochs" for jets in sizes]
    assert [run.arm for run in models[0].runs] == ["t2500", "s2500", "b2500"]


def test_lines_that_differ_in_something_else_are_told_apart():
    sizes = (2500, 10_000, 40_000)
    plan = make_plan(epochs_arms(sizes) | epochs_arms(sizes, {"mask.scheme": "none"}, "n"), base=BASE)
    names = [line.name for line in scaling.lines_over_jets(plan)]
    assert names == ["jBOT-S, mask.scheme = momentum", "jBOT-S, mask.scheme = none"]


def test_slope_of_a_known_law_and_its_sentences(tmp_path):
    plan = make_plan(epochs_arms() | steps_arms(), base=BASE, seeds=3)
    evidence = simulate(tmp_path, plan, power_law)
    errors = 1 - evidence.scores
    line = scaling.lines_over_jets(plan)[0]
    np.testing.assert_allclose(scaling.slopes(line.runs, SIZES, errors), EXPONENT, atol=1e-12)
    made = scaling.section(evidence)
    text = " ".join(made.sentences)
    # The law has a name, so there is one rate of improvement: its own.
    assert "fixed epochs, 1,250 to 80,000 jets: slope" not in text
    (rates,) = [table for table in made.tables if table.label == "Slopes of log error"]
    assert [row[rates.head.index("error left at ten times")] for row in rates.rows[:2]] == ["63%", "63%"]
    assert "At fixed steps each jet is seen 64 times with 1,250 jets and once with 80,000" in text
    assert "at least 7 sizes, evenly spaced in the logarithm, at 3 seeds each; this study has 7 sizes and 3" in text
    assert "Up to 2,500 training jets the probes have fewer labels than the 5,000 elsewhere" in text
    assert [picture.name for picture in made.figures] == ["scaling-laws", "scaling-jets"]
    assert [axes.get_title(loc="left") for axes in made.figures[1].figure.axes] == [scaling.EPOCHS, scaling.STEPS]
    (points,) = [table for table in made.tables if table.label == "Error against training jets"]
    assert [row[2:5] for row in points.rows][-1] == ["80,000", "1", "5,000"]
    assert "jBOT-S, fixed epochs: power law with irreducible error, E = 0 (0 to" in text
    assert "At 800,000 jets, 10 times the most here, it predicts an error of 0.2" in text
    assert "That it has no irreducible error (E = 0) is not excluded" in text


def test_labels_that_are_kept_are_no_second_reason_to_fall(tmp_path):
    """data.labeled_jets keeps the probes' bank as it is in the base, and is no other line."""
    arms = {
        name: of | ({"data.labeled_jets": 5000} if of["data.train_jets"] < 5000 else {})
        for name, of in epochs_arms().items()
    }
    plan = make_plan(arms, base=BASE, seeds=2)
    (line,) = scaling.lines_over_jets(plan)
    assert len(line.runs) == 7
    assert "fewer labels" not in " ".join(scaling.section(simulate(tmp_path, plan, power_law)).sentences)


def test_slope_against_least_squares_with_noise():
    rng = np.random.default_rng(0)
    errors = pd.DataFrame(0.3 * np.exp(0.1 * rng.normal(size=(4, 3))), columns=["a", "b", "c"])
    runs = [
        scaling.Run(arm=arm, jets=jets, epochs=1, steps=1, parameters=1)
        for arm, jets in zip("abc", (1, 5, 70), strict=True)
    ]
    expected = [np.polyfit(np.log([1, 5, 70]), np.log(row), 1)[0] for _, row in errors.iterrows()]
    np.testing.assert_allclose(scaling.slopes(runs, [1, 5, 70], errors), expected)


def test_seed_with_a_failed_size_has_no_slope(tmp_path):
    plan = make_plan(epochs_arms(), base=BASE, seeds=3)
    evidence = simulate(tmp_path, plan, power_law, {("s2500", 1): FAILED})
    made = scaling.section(evidence)
    (slopes,) = [table for table in made.tables if table.label == "Slopes of log error"]
    assert slopes.rows[0][4] == "2"
    assert "Left out, as trials are missing or without an error: size 2,500." in made.sentences[1]


def test_error_of_zero_has_no_logarithm():
    errors = pd.DataFrame({"a": [0.2, 0.2], "b": [0.1, 0.0], "c": [0.05, 0.05]})
    runs = [
        scaling.Run(arm=arm, jets=jets, epochs=1, steps=1, parameters=1)
        for arm, jets in zip("abc", (1, 2, 4), strict=True)
    ]
    np.testing.assert_allclose(scaling.slopes(runs, [1, 2, 4], errors), [-1])


def test_one_seed_has_a_slope_and_no_interval(tmp_path):
    text = scaling.section(simulate(tmp_path, make_plan(epochs_arms(), base=BASE, seeds=1), power_law)).sentences
    assert "slope −0.200, ten times the jets leave 63% of the error (one seed, no interval)" in " ".join(text)


def test_study_without_any_score(tmp_path):
    plan = make_plan(epochs_arms(), base=BASE, seeds=1)
    made = scaling.section(simulate(tmp_path, plan, power_law, {(arm, 0): FAILED for arm in plan.arms}))
    assert "no seed has all sizes yet" in " ".join(made.sentences)
    assert made.figures == []


def test_interval_that_reaches_zero_is_not_drawn_on_a_logarithmic_axis(tmp_path):
    plan = make_plan(epochs_arms(SIZES[:3]), base=BASE, seeds=2)
    evidence = simulate(tmp_path, plan, lambda c, seed, rng: 0.2 + 0.6 * seed)
    (axes,) = scaling.section(evidence).figures[0].figure.axes
    assert axes.get_ylim()[0] > 0.1


def test_flat_error_is_not_called_a_law(tmp_path):
    plan = make_plan(epochs_arms(), base=BASE, seeds=4)
    text = scaling.section(simulate(tmp_path, plan, lambda c, s, rng: 0.5 + 0.02 * rng.normal())).sentences
    assert "that the error does not change is not excluded" in " ".join(text)


@pytest.mark.parametrize(
    ("arms", "metric"),
    [
        (epochs_arms(SIZES[:2]), "test/knn_accuracy"),
        ({"base": {}, "other": {"mask.scheme": "none"}}, "test/knn_accuracy"),
        (epochs_arms(), "test/effective_rank"),
    ],
    ids=["two sizes", "no sizes", "no error"],
)
def test_no_such_section(arms, metric, tmp_path):
    plan = make_plan(arms, base=BASE, seeds=2, metric=metric)
    assert scaling.section(simulate(tmp_path, plan, lambda c, s, rng: 0.5)) is None


@pytest.mark.parametrize(
    "metric", ["test/knn_accuracy", "test/anomaly_knn_auc", "test/finetune_10_auc_t", "val/linear_auc"]
)
def test_metrics_with_an_error(metric):
    assert scaling.has_error(metric)

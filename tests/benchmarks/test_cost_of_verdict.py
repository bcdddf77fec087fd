"""The cost of a verdict from simulated records: what was put in comes out."""

import pandas as pd
import pytest
from simulated import make_plan, seed_offset, simulate

from benchmarks import cost_of_verdict
from jbot.store.plan import load_study

CURVE = [{"epoch": i, "device_seconds": 10.0 * i, "val/knn_accuracy": 0.5 + 0.05 * i} for i in range(4)]


def study(root, noise, seeds=5, curve=CURVE):
    made = cost_of_verdict.study_of("slow")
    plan = made.plan("smoke", seeds=seeds, null=True)
    plan = make_plan(plan.arms, seeds, study=plan.study, contrasts=plan.contrasts, margin=0.01)
    simulate(root, plan, lambda _, seed, rng: 0.6 + seed_offset(seed) + noise * rng.normal(), curves=lambda _: curve)
    return load_study(str(root / plan.study))


def test_a_row_has_what_was_simulated(tmp_path):
    row = cost_of_verdict.row_of(study(tmp_path, 0.002, seeds=30))
    assert (row["recipe"], row["n"], row["core s"]) == ("slow_smoke", 30, 25.0)
    assert [float(sd) for sd in row["paired sd"].split(", ")] == pytest.approx([0.002 * 2**0.5] * 2, rel=0.3)
    assert row["sd over seeds"] == pytest.approx(0.04, rel=0.3)
    assert (row["s to 0.60"], row["s to 0.65"], row["s to 0.68"]) == ("20.0 (30)", "30.0 (30)", "never")
    assert row["seeds, 0.01 apart"] == 6  # five seeds cannot show a difference, however small the spread
    assert row["core hours"] == pytest.approx(6 * 2 * 25 / 3600)


def test_seeds_that_lie_apart_cost_more_and_are_counted_where_they_do_not_reach_a_level(tmp_path):
    assert cost_of_verdict.row_of(study(tmp_path, 0.02))["core hours"] > 4 * 6 * 2 * 25 / 3600
    rows = [{"arm": "base", "state": "complete", "seed": seed, **row} for seed in (0, 1) for row in CURVE[: 3 + seed]]
    assert cost_of_verdict.times(pd.DataFrame(rows))["s to 0.65"] == "30.0 (1)"


def test_a_recipe_that_has_hardly_begun_has_a_name_alone(tmp_path):
    assert cost_of_verdict.row_of(study(tmp_path, 0.01, seeds=1)) == {"recipe": "slow_smoke", "n": 1}


def test_a_name_that_is_none_is_refused(capsys):
    assert cost_of_verdict.main(["a b"]) == 2
    assert "letters, digits" in capsys.readouterr().err

"""Variance components against what was put in, and the section of the report."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import TINY, make_data
from scipy.stats import kendalltau

from analysis.report.evidence import gather
from analysis.report.sections import score_grid
from analysis.stats.variance import jackknife, shares, variance_components
from cluster.scheduling.grids import run_grids
from cluster.scheduling.run import Resources, run_inline
from jbot.data import Jets
from jbot.evaluation.anomaly.grid import AnomalyGrid, grid_file
from jbot.store.plan import load_study, save_study
from jbot.store.storage import Storage
from studies.anomaly_metrics import study
from studies.runner.trials import planned_trials, trial_specs

SCORES = ["a", "a", "b", "b", "b", "b"]
SMALL = AnomalyGrid(scores=("knn", "gmm", "mahalanobis"), draws=2)
SIZES = {"data.train_jets": 240, "data.val_jets": 40, "data.test_jets": 100, "train.epochs": 1}


def key(*names):
    return frozenset(names)


def test_components_by_hand():
    """Scores at 1 and 3, settings of a at +-2, of b all equal, a signal at +-0.5: no chance at all."""
    values = np.zeros((6, 2, 3, 2))
    values += np.array([1 - 2, 1 + 2, 3, 3, 3, 3])[:, None, None, None]
    values += np.array([-0.5, 0.5])[:, None, None]
    found = variance_components(values, SCORES, ["signal"])
    expected = {key("score"): 1.0, key("setting"): 0.5 * 4, key("signal"): 0.25}  # each score weighs one half
    for names, component in found.items():
        assert component == pytest.approx(expected.get(names, 0.0), abs=1e-12)
    assert shares(found)[key("score")] == pytest.approx(1 / 3.25)


def test_components_of_simulated_data():
    """On average over many grids, the components are the variances that they were drawn with."""
    rng, true = np.random.default_rng(1), {"seed": 2.0, "draw": 0.5, "score seed": 1.0, "rest": 0.3}
    score = np.array([0, 0, 1, 1, 1, 1])
    found = []
    for _ in range(800):
        values = np.array([-1.0, 1.0])[score][:, None, None, None] * np.ones((6, 2, 4, 3))
        values += rng.normal(0, true["seed"] ** 0.5, (4, 1))
        values += rng.normal(0, true["draw"] ** 0.5, 3)
        by_score = rng.normal(0, true["score seed"] ** 0.5, 4)
        values += np.where(score == 0, -1, 1)[:, None, None, None] * by_score[:, None]
        values += rng.normal(0, true["rest"] ** 0.5, values.shape)
        found.append(variance_components(values, SCORES, ["signal"]))
    expected = {key("score"): 1.0, key("seed"): 2.0, key("draw"): 0.5, key("score", "seed"): 1.0}
    for names in found[0]:
        drawn = np.array([one[names] for one in found])
        if not names >= key("seed", "draw"):
            error = drawn.std() / len(drawn) ** 0.5
            assert abs(drawn.mean() - expected.get(names, 0.0)) < 4 * error + 1e-12, names
    # What is independent in every cell is spread over all components that hold seed and draw, and nowhere else.
    rest = [sum(part for names, part in one.items() if names >= key("seed", "draw")) for one in found]
    assert np.mean(rest) == pytest.approx(true["rest"], rel=0.03)


def test_components_need_a_whole_grid_of_two_seeds_and_draws():
    with pytest.raises(ValueError, match="2 or more seeds and draws"):
        variance_components(np.zeros((6, 2, 1, 2)), SCORES, ["signal"])
    values = np.zeros((6, 2, 2, 2))
    values[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="the grid must be complete, 1 values are missing"):
        variance_components(values, SCORES, ["signal"])


def test_negative_components_are_shown_as_zero():
    found = shares({key("a"): 3.0, key("b"): -1.0, key("c"): 1.0})
    assert found == {key("a"): 0.75, key("b"): 0.0, key("c"): 0.25}
    assert shares({key("a"): -1.0}) == {key("a"): 0.0}


def test_jackknife_leaves_each_seed_out():
    values = np.random.default_rng(0).normal(size=(6, 2, 3, 2))
    first, *rest = jackknife(values, SCORES, ["signal"])
    assert first == shares(variance_components(values[:, :, 1:], SCORES, ["signal"]))
    assert len(rest) == 2
    assert jackknife(values[:, :, :2], SCORES, ["signal"]) == []


def rows_of(areas):
    """Rows of one arm, size and signal from AUC (seed, setting)."""
    return pd.DataFrame(
        [
            {"arm": "a", "bank_jets": 9, "signal": "w", "seed": seed, "draw": 0, "score": "s", "settings": str(k)}
            | {"auc": auc}
            for seed, row in enumerate(areas)
            for k, auc in enumerate(row)
        ]
    )


def test_concordance_over_seeds_by_hand():
    areas = [[0.5, 0.6, 0.7, 0.8], [0.5, 0.6, 0.8, 0.7], [0.8, 0.7, 0.6, 0.5]]
    tau = score_grid.concordance(rows_of(areas), "seed", 0.05)
    pairwise = [kendalltau(areas[i], areas[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert tau.mean == pytest.approx(np.mean(pairwise))
    pseudo = [3 * np.mean(pairwise) - 2 * pairwise[2 - seed] for seed in range(3)]
    assert tau.sd == pytest.approx(np.std(pseudo, ddof=1))
    assert score_grid.concordance(rows_of([areas[0]] * 4), "seed", 0.05).mean == 1.0
    narrow = score_grid.concordance(rows_of(areas), "seed", 0.1)
    assert (narrow.high - narrow.mean) / (tau.high - tau.mean) == pytest.approx(2.920 / 4.303, abs=1e-3)  # t(2)
    two = score_grid.concordance(rows_of(areas[:2]), "seed", 0.05)
    assert np.isnan(two.low)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder of a tiny study of two arms and three seeds, with its grids."""
    storage, data = Storage(str(tmp_path_factory.mktemp("study"))), Jets({1000.0: make_data(170)})
    plan = study.plan("smoke", seeds=3, changes=TINY | SIZES)
    specs = trial_specs(plan, data)
    save_study(storage, plan, {"source": "", "fingerprint": data.whole}, planned_trials(specs))
    run_inline(specs, data, storage, [], Resources())
    assert run_grids(SMALL, specs, data, storage, Resources(), inline=True) == 0
    return storage, plan, specs


def found_in(evaluated):
    storage, plan, _ = evaluated
    return load_study(f"{storage.uri}/{plan.study}")


def test_the_section_has_shares_rankings_optimism_and_geometry(evaluated):
    made = score_grid.section(gather(found_in(evaluated)))
    labels = [table.label for table in made.tables]
    assert labels[0].startswith("Shares of the variance")
    assert [label.split(" ")[0] for label in labels[1:]] == ["Kendall's", "AUC", "Gap"]
    listed = dict.fromkeys(row[0] for row in made.tables[0].rows)
    assert {"score", "setting within score", "bank draw", "bank size", "signal", "training seed", "encoder arm"} <= set(
        listed
    )
    assert "score × training seed" in listed
    assert sum(float(row[1].rstrip("%")) for row in made.tables[0].rows) == pytest.approx(100, abs=1)
    assert any("needs at least 30 trained models, here are 6, so none is made" in line for line in made.sentences)
    assert [picture.name for picture in made.figures] == ["auc-shares", "auc-by-score", "gap-geometry"]
    assert len(made.tables[-1].rows) == 12  # six trained encoders and their starts


def test_the_oracle_is_never_behind(evaluated):
    grid, left_out = score_grid.grid_table(found_in(evaluated))
    trained = grid[grid["trained"]]
    found = score_grid.optimism_table(trained[trained["bank_jets"] == 120])
    assert left_out == []
    assert (found["oracle"] >= found["chosen"]).all()
    assert (found["oracle"] >= found["published"].fillna(0)).all()
    one = trained.query("bank_jets == 120 and signal == 'w' and seed == 1 and score == 'knn'")
    by_hand = one.groupby(["arm", "draw"])["auc"].max().mean()
    row = found.query("score == 'knn' and signal == 'w' and seed == 1")
    assert row["oracle"].item() == pytest.approx(by_hand)


def test_a_block_without_all_grids_is_left_out_and_a_study_without_grids_says_nothing(evaluated):
    storage, _, specs = evaluated
    name = grid_file(SMALL, specs[0].trial_id)
    content = storage.read(name)
    storage.remove_file(name)
    try:
        grid, _ = score_grid.grid_table(found_in(evaluated))
        assert set(grid["seed"]) == {1, 2}
        nothing = dataclasses.replace(found_in(evaluated), trials=found_in(evaluated).trials[:1])
        assert score_grid.grid_table(nothing)[0].empty
    finally:
        storage.write(name, content)


def test_a_setting_that_a_bank_cannot_carry_is_left_out_everywhere(evaluated):
    storage, _, specs = evaluated
    name = grid_file(SMALL, specs[0].trial_id)
    content = storage.read(name)
    rows = storage.read_rows(name)
    lost = next(row for row in rows if row["score"] == "gmm")
    storage.write_rows(name, [row | {"auc": None} if row is lost else row for row in rows])
    try:
        grid, left_out = score_grid.grid_table(found_in(evaluated))
    finally:
        storage.write(name, content)
    assert left_out == [f"Gaussian mixture {lost['settings']}"]
    assert lost["settings"] not in set(grid.loc[grid["score"] == "gmm", "settings"])


def test_a_regression_takes_thirty_models():
    rng = np.random.default_rng(0)
    gaps = pd.DataFrame(rng.normal(size=(40, 6)), columns=list(score_grid.GEOMETRY))
    gaps["condition_number"] = np.exp(gaps["condition_number"])
    gaps["gap"] = 0.2 + 0.05 * gaps["anisotropy"] / gaps["anisotropy"].std() + rng.normal(0, 1e-4, 40)
    table = score_grid.regression_table(gaps, 40, 0.05)
    changes = {row[0]: row[1] for row in table.rows}
    assert changes["anisotropy"].startswith("+0.0500") or changes["anisotropy"].startswith("+0.0499")
    assert len(table.rows) == 6
    wide = score_grid.regression_table(gaps, 40, 0.001)
    assert (table.head[-1], wide.head[-1]) == ("95% interval", "99.9% interval")
    (of_table, of_wide) = (next(row[-1] for row in one.rows if row[0] == "effective rank") for one in (table, wide))
    assert of_table != of_wide

"""The grid of one encoder: the same numbers as detection, each file made once, and what a bank cannot carry."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers import TINY, make_data
from test_anomaly import SELECTION, TEST, TRAIN

from cluster.resources import Resources
from cluster.scheduling.grids import open_grids, run_grids
from cluster.scheduling.run import run_inline
from jbot.config import Config, ConfigError, override
from jbot.data import Jets
from jbot.evaluation.anomaly.detect import detect
from jbot.evaluation.anomaly.grid import AnomalyGrid, bank_rows, bank_sizes, grid_file, grid_seconds, make_grid
from jbot.evaluation.anomaly.scores import MIN_BANK, SCORES, STANDARD, AnomalyError, draw_bank
from jbot.evaluation.anomaly.synthetic_signal import choose
from jbot.evaluation.metrics import MetricError, auc, rank_auc
from jbot.evaluation.metrics_registry import SIGNALS
from jbot.store.record import TrialSpec
from jbot.store.storage import Storage
from studies.runner.study import Study

SMALL = AnomalyGrid(scores=("knn", "gmm"), draws=2)
QG = {"data.task": "qg", "data.train_jets": 240, "data.val_jets": 40, "data.test_jets": 100, "train.epochs": 1}


@pytest.fixture(scope="module")
def data():
    return Jets({1000.0: make_data(170)})


def spec_of(data, seed=0, **changes):
    config = override(Config(), TINY | QG | {"seed": seed} | changes)
    return TrialSpec(study="x", arm="base", plan_hash="h", config=config, data_fingerprint=data.fingerprint(config))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A storage with two complete trials, and their specs."""
    storage, specs = Storage(str(tmp_path_factory.mktemp("grids"))), [spec_of(data, seed) for seed in (0, 1)]
    run_inline(specs, data, storage, [], Resources())
    return storage, specs


def test_grid_is_detection_at_the_same_bank():
    rows = bank_rows(AnomalyGrid(), TRAIN, TEST, SELECTION, 120, draw=3)
    found = detect(TRAIN, TEST, seed=3, bank_jets=120)
    for row in rows:
        if row["published"]:
            name = f"anomaly_{row['score']}_auc" + ("" if row["signal"] == "combined" else f"_{row['signal']}")
            assert row["auc"] == pytest.approx(found.values[name].value, abs=1e-12)
            assert row["error"] == pytest.approx(found.values[name].error, abs=1e-12)
    assert sum(row["published"] for row in rows) == len(STANDARD) * len(SIGNALS)


def test_chosen_settings_are_those_of_the_synthetic_signal_alone():
    on_sphere = AnomalyGrid(as_it_is=())
    rows = bank_rows(on_sphere, TRAIN, TEST, SELECTION, 120, draw=3)
    bank = draw_bank(TRAIN, 120, 3)
    background, signal = bank.jets(SELECTION.background.embedding), bank.jets(SELECTION.embedding)
    for name in STANDARD:
        chosen = {row["settings"] for row in rows if row["score"] == name and row["chosen"]}
        assert [json.loads(settings) for settings in chosen] == [choose(SCORES[name], bank, background, signal)]


def test_embeddings_as_they_are_are_the_unnormalised_detection():
    rows = bank_rows(SMALL, TRAIN, TEST, SELECTION, 150, draw=0)
    found = detect(TRAIN, TEST, seed=0, bank_jets=150, normalise=False, scores=["knn"])
    (row,) = [
        row for row in rows
        if row["signal"] == "combined" and json.loads(row["settings"]) == SCORES["knn"].defaults | {"normalise": False}
    ]  # fmt: skip
    assert row["auc"] == pytest.approx(found.values["anomaly_knn_auc"].value, abs=1e-12)
    assert not row["published"]


def test_a_bank_that_carries_no_score_has_no_auc():
    same = dataclasses.replace(TRAIN, embedding=np.ones_like(TRAIN.embedding))
    rows = bank_rows(SMALL, same, TEST, SELECTION, 120, draw=0)
    assert len(rows) == len(SIGNALS) * (2 * len(SCORES["knn"].grid) + len(SCORES["gmm"].grid))
    assert all(row["auc"] is None and not row["chosen"] for row in rows)


def test_the_quick_auc_is_the_auc():
    rng = np.random.default_rng(0)
    signal = rng.random(300) < 0.4
    scores = np.round(rng.normal(size=300) + signal, 1)  # with ties
    assert rank_auc(scores, signal).value == pytest.approx(auc(scores, signal).value, abs=1e-12)
    assert rank_auc(scores, signal).error == auc(scores, signal).error
    with pytest.raises(MetricError, match="needs signal and background jets, got 0 and 300"):
        rank_auc(scores, np.zeros(300, bool))


def test_banks_leave_half_of_the_training_jets_out():
    def sizes(**changes):
        return bank_sizes(AnomalyGrid(), override(Config(), {"data.task": "qg"} | changes))

    assert sizes(**{"data.train_jets": 10_000, "probe.bank_jets": 5_000}) == (5_000, 1_250)
    assert sizes() == (20_000, 5_000)
    assert sizes(**{"data.train_jets": 240, "probe.bank_jets": 240}) == (120, MIN_BANK)


def test_grids_are_made_once_and_continue(trained, data):
    storage, specs = trained
    assert run_grids(SMALL, specs[:1], data, storage, Resources(), inline=True) == 0  # stopped after the first
    assert open_grids(SMALL, specs, storage) == specs[1:]
    first = storage.read(grid_file(SMALL, specs[0].trial_id))
    storage.write(grid_file(SMALL, specs[0].trial_id), first + b" ")  # who makes it again would change this
    assert run_grids(SMALL, specs, data, storage, Resources(), inline=True) == 0
    assert storage.read(grid_file(SMALL, specs[0].trial_id)) == first + b" "
    storage.write(grid_file(SMALL, specs[0].trial_id), first)
    assert open_grids(SMALL, specs, storage) == []
    rows = storage.read_rows(grid_file(SMALL, specs[1].trial_id))
    places = {(row["trained"], row["bank_jets"], row["draw"]) for row in rows}
    assert places == {(True, 120, 0), (True, 120, 1), (True, 100, 0), (True, 100, 1), (False, 120, 0), (False, 100, 0)}
    assert not any(name.endswith(".tmp") for name in storage.names(f"trials/{specs[1].trial_id}"))


def test_a_grid_is_of_the_encoder_that_was_trained(trained, data):
    """The bank of all training jets, in the trial's own record and in the grid; other weights give other numbers."""
    storage, specs = trained
    run_grids(SMALL, specs, data, storage, Resources(), inline=True)
    of_seed = [
        {(r["trained"], r["settings"], r["bank_jets"], r["draw"], r["signal"], r["score"]): r["auc"] for r in rows}
        for rows in (storage.read_rows(grid_file(SMALL, spec.trial_id)) for spec in specs)
    ]
    assert of_seed[0].keys() == of_seed[1].keys()
    assert of_seed[0] != of_seed[1]
    floor = {key[1:]: auc for key, auc in of_seed[0].items() if not key[0]}
    assert floor != {key[1:]: auc for key, auc in of_seed[0].items() if key[0] and key[3] == 0}


def test_grids_under_ray_are_those_made_inline(trained, data, tmp_path):
    storage, specs = trained
    run_grids(SMALL, specs[:1], data, storage, Resources(), inline=True)
    expected = storage.read_rows(grid_file(SMALL, specs[0].trial_id))
    storage.remove_file(grid_file(SMALL, specs[0].trial_id))
    assert run_grids(SMALL, specs[:1], data, storage, Resources()) == 0
    assert storage.read_rows(grid_file(SMALL, specs[0].trial_id)) == expected


def test_a_trial_that_has_no_weights_is_counted_under_ray(trained, data, capsys):
    storage, specs = trained
    name = f"trials/{specs[0].trial_id}/student.safetensors"
    weights, other = storage.read(name), dataclasses.replace(SMALL, draws=1)
    storage.remove_file(name)
    try:
        assert run_grids(other, specs[:1], data, storage, Resources()) == 1
    finally:
        storage.write(name, weights)
    assert "no anomaly grid of base, seed 0: no trials/" in " ".join(capsys.readouterr().err.split())


def test_what_a_grid_refuses(data, tmp_path):
    with pytest.raises(AnomalyError, match="got score autoencoder, which is of the particles"):
        AnomalyGrid(scores=("autoencoder",))
    with pytest.raises(AnomalyError, match="draws must be >= 1 and >= floor_draws >= 0, got 1 and 2"):
        AnomalyGrid(draws=1, floor_draws=2)
    with pytest.raises(AnomalyError, match=r"data\.task qg, got all"):
        make_grid(SMALL, spec_of(data, **{"data.task": "all"}), data, Storage(str(tmp_path)))
    study = Study(name="x", question="?", arms={"a": {}}, contrasts=(), margin=0.1, anomaly_grid=SMALL)
    with pytest.raises(ConfigError, match=r"an anomaly grid is of arms with data\.task qg, got all"):
        study.plan("smoke")


def test_another_grid_is_another_file():
    names = {grid_file(grid, "t") for grid in (SMALL, AnomalyGrid(), dataclasses.replace(SMALL, draws=3))}
    assert len(names) == 3


def test_cost_follows_the_sizes():
    base = override(Config(), {"data.task": "qg", "data.train_jets": 10_000, "data.test_jets": 3_500})
    more = override(base, {"data.test_jets": 35_000})
    assert 0 < grid_seconds(AnomalyGrid(draws=1, floor_draws=0), base) < grid_seconds(AnomalyGrid(), base)
    assert grid_seconds(AnomalyGrid(), base) < grid_seconds(AnomalyGrid(), more)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: jets are embedded there")
def test_grid_on_a_gpu_is_that_of_the_cpu(trained, data):
    storage, specs = trained
    make_grid(SMALL, specs[1], data, storage)
    expected = storage.read_rows(grid_file(SMALL, specs[1].trial_id))
    storage.remove_file(grid_file(SMALL, specs[1].trial_id))
    make_grid(SMALL, specs[1], data, storage, "cuda")
    found = storage.read_rows(grid_file(SMALL, specs[1].trial_id))
    assert [row["auc"] for row in found] == pytest.approx([row["auc"] for row in expected], abs=0.02)

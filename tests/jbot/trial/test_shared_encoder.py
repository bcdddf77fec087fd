"""Trials that differ in what is judged alone share an encoder: it is trained once, and judged in each."""

import numpy as np
import pytest
from helpers import make_data

import jbot.trial.run
from jbot.config import override
from jbot.data import Jets
from jbot.store.record import TrialSpec, load_curves, trial_folder
from jbot.store.storage import Storage
from jbot.trial.reuse import plain
from jbot.trial.run import run_pack

JETS = Jets({500.0: make_data(60, seed=1), 1000.0: make_data(60)})
JUDGED = {
    "other energies": {"probe.jet_pts": [500, 1000]},
    "fine-tuning": {"finetune.fractions": [1.0], "finetune.epochs": 2, "finetune.batch": 16},
    "anomaly": {"anomaly.scan": True},
}


def spec_of(config, **changes) -> TrialSpec:
    config = override(config, changes)
    return TrialSpec(study="s", arm="a", plan_hash="p", config=config, data_fingerprint=JETS.fingerprint(config))


def forbid_training(monkeypatch) -> None:
    monkeypatch.setattr("jbot.trainer.loop.run_epoch", lambda *arguments: pytest.fail("trained again"))


@pytest.mark.parametrize("what", JUDGED)
def test_an_encoder_is_trained_once_and_judged_as_if_it_were_alone(tiny, tmp_path, monkeypatch, what):
    first, other = spec_of(tiny), spec_of(tiny, **JUDGED[what])
    shared, alone = Storage(tmp_path / "shared"), Storage(tmp_path / "alone")
    (by_itself,) = run_pack([other], JETS, alone)
    (lender,) = run_pack([first], JETS, shared)
    told: list[int] = []
    with monkeypatch.context() as patch:
        forbid_training(patch)
        report = lambda rows: told.extend(row["epoch"] for _, row in rows if "epoch" in row)  # noqa: E731
        (borrower,) = run_pack([other], JETS, shared, report=report)
    assert (borrower.state, borrower.continues) == ("complete", first.trial_id)
    assert (lender.continues, by_itself.continues) == (None, None)
    assert borrower.trial_id == by_itself.trial_id != lender.trial_id
    assert borrower.metrics == by_itself.metrics  # bit for bit
    assert told == [row["epoch"] for row in load_curves(shared, other.trial_id)]
    assert load_curves(shared, other.trial_id) == load_curves(shared, first.trial_id)
    names = set(alone.names(trial_folder(other.trial_id)))
    assert set(shared.names(trial_folder(other.trial_id))) == names
    weights = [s.read_arrays(f"{trial_folder(other.trial_id)}/student.safetensors") for s in (shared, alone)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    trained = lender.device_seconds - lender.probe_seconds
    assert borrower.device_seconds - borrower.probe_seconds - borrower.finetune_seconds == pytest.approx(
        trained, abs=0.01
    )


def test_the_plain_trial_borrows_too(tiny, tmp_path, monkeypatch):
    """Whichever comes first trains."""
    storage = Storage(tmp_path)
    (lender,) = run_pack([spec_of(tiny, **JUDGED["other energies"])], JETS, storage)
    forbid_training(monkeypatch)
    (borrower,) = run_pack([spec_of(tiny)], JETS, storage)
    assert borrower.continues == lender.trial_id
    assert borrower.metrics == {name: lender.metrics[name] for name in borrower.metrics}


def test_what_is_trained_otherwise_borrows_nothing(tiny, tmp_path):
    storage = Storage(tmp_path)
    run_pack([spec_of(tiny)], JETS, storage)
    others = [{"seed": 1}, {"optim.lr": 1e-3}, {"data.train_jets": 50}, {"probe.knn_k": 4}, {"data.jet_pt": 500.0}]
    for changes in others:
        (record,) = run_pack([spec_of(tiny, **changes, **JUDGED["fine-tuning"])], JETS, storage)
        assert record.continues is None, changes


@pytest.mark.parametrize("damage", ["student.safetensors", "curves.parquet", "record.json"])
def test_a_damaged_encoder_is_trained_again(tiny, tmp_path, damage):
    storage, spec = Storage(tmp_path), spec_of(tiny)
    run_pack([spec], JETS, storage)
    storage.write(f"{trial_folder(spec.trial_id)}/{damage}", b"{")
    with pytest.warns(UserWarning, match="is damaged, training it again"):
        (record,) = run_pack([spec_of(tiny, **JUDGED["other energies"])], JETS, storage)
    assert (record.state, record.continues) == ("complete", None)


def test_a_borrower_that_is_killed_while_it_fine_tunes_goes_on(tiny, tmp_path, monkeypatch):
    storage, other = Storage(tmp_path), spec_of(tiny, **JUDGED["fine-tuning"])
    (lender,) = run_pack([spec_of(tiny)], JETS, storage)

    class Killed(BaseException):
        pass

    def kill(*arguments, **options):
        raise Killed

    forbid_training(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(jbot.trial.run, "finetune", kill)
        with pytest.raises(Killed):
            run_pack([other], JETS, storage)
    (record,) = run_pack([other], JETS, storage)
    assert (record.state, record.attempts, record.continues) == ("complete", 2, lender.trial_id)


def test_plain_leaves_what_decides_the_curves(tiny):
    everything = {name: value for changes in JUDGED.values() for name, value in changes.items()}
    assert plain(override(tiny, everything)) == tiny
    assert plain(override(tiny, everything | {"probe.knn_k": 4})) != tiny

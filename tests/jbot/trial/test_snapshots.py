"""Arrays that a trial keeps for its figures: embeddings over training, example jets with views and attention."""

import time

import numpy as np
import pytest
import torch
from test_trial import Killed, always_save, changed, kill_after, run_trial, spec  # noqa: F401 - fixtures

import jbot.trial.run
from jbot.config import Config, override
from jbot.store.record import trial_folder
from jbot.store.storage import Storage
from jbot.trainer.embed import embed
from jbot.trainer.inputs import prepare, resident
from jbot.trainer.model import init_weights, pack
from jbot.trainer.state import init_state
from jbot.trial.run import run_pack
from jbot.trial.snapshots import cls_attention, examples, first_of_each_class, save_snapshot


def test_snapshots_are_those_of_their_epochs_and_of_the_same_jets(spec, tiny_data, tmp_path):  # noqa: F811
    storage = Storage(tmp_path)
    run_trial(spec, tiny_data, storage)
    folder = trial_folder(spec.trial_id)
    names = [name for name in storage.names(folder) if name.startswith("embedding")]
    assert names == ["embedding-0000.safetensors", "embedding-0001.safetensors", "embedding.safetensors"]
    kept = [storage.read_arrays(f"{folder}/{name}") for name in names]
    for arrays in kept:
        assert arrays["cls"].shape == (40, 8)
        np.testing.assert_array_equal(arrays["label"], kept[0]["label"])
    assert not np.allclose(kept[0]["cls"], kept[1]["cls"])
    students = [name for name in storage.names(folder) if name.startswith("student")]
    assert students == ["student-0000.safetensors", "student-0001.safetensors", "student.safetensors"]
    weights = [pack(storage.read_arrays(f"{folder}/{name}"), spec.config.model)[None] for name in students]
    fresh = init_state(spec.config, [spec.config.seed], torch.device("cpu"))
    particles = resident(tiny_data, 30, torch.device("cpu"))
    _, judged = prepare(spec.config.data, spec.config.probe.bank_jets, data=tiny_data, particles=particles)
    save_snapshot(storage, "again", spec.config, fresh, judged["test"])
    assert torch.equal(weights[0], fresh.student)
    for flat, arrays in zip(weights, kept, strict=True):
        cls = embed(flat, judged["test"].take(slice(None)), spec.config)
        np.testing.assert_allclose(cls, arrays["cls"], atol=1e-5)
    again = storage.read_arrays("trials/again/embedding-0000.safetensors")
    np.testing.assert_allclose(again["cls"], kept[0]["cls"], atol=1e-5)


def test_the_last_epoch_is_saved_once(spec, tiny_data, tmp_path):  # noqa: F811
    short = changed(spec, train__epochs=1)
    run_trial(short, tiny_data, Storage(tmp_path))
    names = Storage(tmp_path).names(trial_folder(short.trial_id))
    assert [name for name in names if name.startswith("embedding")] == [
        "embedding-0000.safetensors", "embedding.safetensors"
    ]  # fmt: skip


def test_a_resumed_trial_and_one_in_a_pack_have_the_snapshots_of_an_undisturbed_one(
    spec, tiny_data, tmp_path, always_save  # noqa: F811
):  # fmt: skip
    straight, broken, packed = (Storage(tmp_path / name) for name in ("straight", "broken", "packed"))
    run_trial(spec, tiny_data, straight)
    with pytest.raises(Killed):
        run_trial(spec, tiny_data, broken, report=kill_after(0))
    run_trial(spec, tiny_data, broken)
    run_pack([changed(spec, seed=9), spec], tiny_data, packed)
    folder = trial_folder(spec.trial_id)
    for name in ("embedding-0000", "embedding-0001", "embedding", "examples"):
        expected = straight.read_arrays(f"{folder}/{name}.safetensors")
        for storage in (broken, packed):
            found = storage.read_arrays(f"{folder}/{name}.safetensors")
            assert set(found) == set(expected)
            for key, value in expected.items():
                np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)


def test_examples_are_one_jet_of_each_class_with_both_views_and_attention(spec, tiny_data, tmp_path):  # noqa: F811
    storage = Storage(tmp_path)
    run_trial(spec, tiny_data, storage)
    arrays = storage.read_arrays(f"{trial_folder(spec.trial_id)}/examples.safetensors")
    assert {name: value.shape for name, value in arrays.items()} == {
        "particles": (5, 30, 4), "masked": (5, 30), "label": (5,), "views": (5, 2, 30, 4), "views_masked": (5, 2, 30),
        "attention": (5, 2, 2, 31),
    }  # fmt: skip
    assert list(arrays["label"]) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(arrays["attention"].sum(-1), 1, atol=1e-5)
    padding = arrays["particles"][..., 3] < 0.5
    assert (arrays["attention"][..., 1:].max((1, 2))[padding] == 0).all()
    np.testing.assert_allclose(arrays["views"][..., 2].sum(-1), 1, atol=1e-5)  # splitting keeps the momentum
    assert not np.allclose(arrays["views"][:, 0], arrays["views"][:, 1])
    assert not (arrays["views_masked"] & (arrays["views"][..., 3] < 0.5)).any()
    assert (arrays["views_masked"].sum(-1) >= 1).all()


def test_attention_by_hand():
    """Queries and keys of zero look everywhere alike: 1 / (particles + 1), and nothing at padding."""
    config = override(Config(), {"model.dim": 8, "model.heads": 2, "model.projection": 4})
    student = init_weights(config.model, 0)[None] * 0
    jets = torch.zeros(1, 5, 4)
    jets[0, :3] = torch.tensor([0.1, 0.2, 1 / 3, 1.0])
    expected = torch.tensor([0.25, 0.25, 0.25, 0.25, 0, 0]).expand(1, 2, 2, 6)
    torch.testing.assert_close(cls_attention(student, jets, config.model), expected)


def test_without_augmentation_the_views_are_the_jet(jets):
    config = override(
        Config(), {"augment.rotation": 0.0, "augment.smear_sigma": 0.0, "augment.split_fraction": 0.0}
    )  # fmt: skip
    arrays = examples(jets[0], init_weights(config.model, 0)[None], config)
    torch.testing.assert_close(arrays["views"][:, 0], jets[0])
    torch.testing.assert_close(arrays["views"][:, 1], jets[0])
    assert not examples(jets[0], init_weights(config.model, 0)[None], override(config, {"mask.scheme": "none"}))[
        "views_masked"
    ].any()


def test_a_class_that_is_missing_is_left_out():
    assert list(first_of_each_class(np.array([3, 1, 3, 0, 1]))) == [3, 1, 0]


def test_saving_costs_little(spec, tiny_data, tmp_path, monkeypatch):  # noqa: F811
    """At the quick preset's size of model and test set, all saving is under 1% of the shortest quick trial (30 s)."""
    quick = changed(spec, model__dim=32, model__heads=4, data__test_jets=100)
    spent = []
    for name in ("save_snapshot", "save_pictures"):
        save = getattr(jbot.trial.run, name)

        def timed(*arguments, save=save):
            begin = time.process_time()
            save(*arguments)
            spent.append(time.process_time() - begin)

        monkeypatch.setattr(f"jbot.trial.run.{name}", timed)
    run_trial(quick, tiny_data, Storage(tmp_path))
    # 1000 jets instead of 100 take ten times as long at most.
    assert 10 * sum(spent) < 3.0

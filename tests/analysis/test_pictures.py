"""The figures of one trial: which there are, what they say, and what they survive."""

import dataclasses

import numpy as np
import pytest
from drawn import legend, texts
from test_report import make_plan, make_record, planned_trials, write_files

from analysis import pictures
from analysis.report import trial_pictures
from jbot.data.jets import CLASS_LABELS
from jbot.store.record import save_record, trial_folder
from jbot.store.storage import RecordError, Storage


def small_jets(rng, classes):
    n = len(classes)
    particles = rng.normal(scale=0.1, size=(n, 30, 4)).astype(np.float32)
    particles[..., 2] = rng.dirichlet(np.ones(30), size=n)
    particles[..., 3] = np.arange(30) < 20
    views = np.stack([particles, particles], axis=1)
    return {
        "particles": particles,
        "masked": rng.random((n, 30)) < 0.3,
        "views": views,
        "views_masked": rng.random((n, 2, 30)) < 0.3,
        "attention": rng.dirichlet(np.ones(31), size=(n, 2, 4)).astype(np.float32),
        "label": np.array(classes, dtype=np.int64),
    }


def write_trial(root, task="all", classes=(0, 1, 2, 3, 4), finetune=True):
    """A trial with every file a figure is made of."""
    plan, rng, storage = make_plan(), np.random.default_rng(3), Storage(root)
    record = make_record(plan, planned_trials(plan)[0], rng)
    record.config["data"]["task"] = task
    write_files(storage, record, rng)
    folder = trial_folder(record.trial_id)
    last = storage.read_arrays(f"{folder}/embedding.safetensors")
    for epoch in (0, 1):
        earlier = {"cls": rng.normal(size=last["cls"].shape).astype(np.float32), "label": last["label"]}
        storage.write_arrays(f"{folder}/embedding-{epoch:04d}.safetensors", earlier)
    storage.write_arrays(f"{folder}/examples.safetensors", small_jets(rng, classes))
    labels = rng.choice(classes, size=400).astype(np.int64)
    outputs = {"all": 5, "tqg": 2, "qg": 2}[task]
    scores = {"label": labels, "knn/probability": rng.dirichlet(np.ones(outputs), size=400).astype(np.float32)}
    if task == "qg":
        scores["anomaly/relative_mahalanobis_labels"] = (labels + rng.normal(size=400)).astype(np.float32)
    storage.write_arrays(f"{folder}/scores.safetensors", scores)
    if finetune:
        rows = [
            {"run": run, "epoch": epoch, "device_seconds": 1.0, "train_loss": 1 / epoch, "val_loss": 1.1 / epoch,
             "train_accuracy": 0.5, "val_accuracy": 0.4}
            for run in ("finetune_10", "supervised_10") for epoch in (1, 2, 3)
        ]  # fmt: skip
        storage.write_rows(f"{folder}/finetune.parquet", rows)
    save_record(storage, record)
    return storage, record.trial_id


def names(storage, trial):
    return [picture.name for picture in trial_pictures.trial_pictures(storage, trial)]


@pytest.mark.parametrize("task", ["all", "tqg", "qg"])
def test_a_trial_has_all_its_figures(tmp_path, task):
    classes = {"all": (0, 1, 2, 3, 4), "tqg": (0, 1, 4), "qg": (0, 1, 2, 4)}[task]  # one signal is missing in qg
    storage, trial = write_trial(tmp_path, task, classes)
    drawn = {picture.name: picture for picture in trial_pictures.trial_pictures(storage, trial)}
    extra = ["roc-anomaly-relative-mahalanobis-labels", "scores-anomaly-relative-mahalanobis-labels"]
    assert set(drawn) == {
        "embedding", "jets", "attention", "roc-knn", "scores-knn", "training", "finetuning",
        *(extra if task == "qg" else []),
    }  # fmt: skip
    assert all(len(picture.alt) > 20 for picture in drawn.values())
    signals = {"all": ["q", "g", "W", "Z", "t"], "tqg": ["t"], "qg": ["g"]}[task]
    assert legend(drawn["roc-knn"].figure) == ["guessing", *signals]
    titles = [f"{CLASS_LABELS[label]} jet" for label in classes]
    assert [word for word in texts(drawn["attention"].figure) if word.endswith(" jet")] == titles
    if task == "qg":
        assert legend(drawn[extra[0]].figure) == ["guessing", "W", "t", "combined"]


def test_what_was_not_saved_is_not_drawn(tmp_path):
    storage, trial = write_trial(tmp_path, finetune=False)
    for name in ("embedding-0000", "embedding-0001", "scores"):
        storage.remove_file(f"{trial_folder(trial)}/{name}.safetensors")
    assert names(storage, trial) == ["embedding", "jets", "attention", "training"]
    old = small_jets(np.random.default_rng(0), (0, 1, 2, 3, 4))
    for name in ("views", "views_masked", "attention"):
        del old[name]
    storage.write_arrays(f"{trial_folder(trial)}/examples.safetensors", old)
    drawn = {picture.name: picture for picture in trial_pictures.trial_pictures(storage, trial)}
    assert list(drawn) == ["embedding", "jets", "training"]
    assert [word for word in texts(drawn["jets"].figure) if word.endswith(" jet")] == [
        f"{name} jet" for name in CLASS_LABELS
    ]


def test_a_collapsed_embedding_is_left_out_of_the_maps(tmp_path):
    storage, trial = write_trial(tmp_path)
    broken = storage.read_arrays(f"{trial_folder(trial)}/embedding-0001.safetensors")
    broken["cls"][:] = np.nan
    storage.write_arrays(f"{trial_folder(trial)}/embedding-0001.safetensors", broken)
    (picture,) = trial_pictures.embedding_pictures(storage, trial)
    assert "after 0 and 10 epochs" in picture.caption


def test_files_that_do_not_fit_are_named(tmp_path):
    storage, trial = write_trial(tmp_path)
    name = f"{trial_folder(trial)}/scores.safetensors"
    scores = storage.read_arrays(name)
    storage.write_arrays(name, scores | {"knn/probability": scores["knn/probability"][:, :2].copy()})
    with pytest.raises(RecordError, match=r"knn/probability must be \(400, 5\) for task all, got \(400, 2\)"):
        names(storage, trial)
    storage.write_arrays(name, scores | {"anomaly/knn": np.zeros((400, 2), np.float32)})
    with pytest.raises(RecordError, match=r"anomaly/knn must have shape \(400,\), got \(400, 2\)"):
        names(storage, trial)


def test_the_command_draws_one_trial_in_both_formats(tmp_path, capsys):
    storage, trial = write_trial(tmp_path / "results")
    assert pictures.main([f"{storage.uri}/trials/{trial}", "--out", str(tmp_path / "paper")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "paper")
    drawn = sorted(path.name for path in (tmp_path / "paper").iterdir())
    assert len(drawn) == 14
    assert pictures.main([f"{storage.uri}/trials/{trial}"]) == 0
    assert sorted(storage.names(f"{trial_folder(trial)}/figures")) == sorted([*drawn, pictures.INDEX])
    for name in drawn:  # the same bytes each time
        assert (tmp_path / "paper" / name).read_bytes() == storage.read(f"{trial_folder(trial)}/figures/{name}")


@pytest.mark.parametrize("folder", ["nowhere", "trials/0123", "trials"])
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, folder):
    write_trial(tmp_path)
    assert pictures.main([str(tmp_path / folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_all_trials_are_drawn_once_and_errors_cost_only_their_own(tmp_path):
    storage, trial = write_trial(tmp_path)
    record = dataclasses.replace(make_record(make_plan(), planned_trials(make_plan())[1], np.random.default_rng(1)))
    save_record(storage, record)  # left nothing but its record
    storage.write(f"{trial_folder(record.trial_id)}/embedding.safetensors", b"damaged")
    errors = pictures.draw_trials(storage, [trial, record.trial_id, "not ended"], processes=2)
    assert list(errors) == [record.trial_id]
    assert "is not a valid safetensors file" in errors[record.trial_id]
    index = storage.read_json(f"{trial_folder(trial)}/figures/{pictures.INDEX}")
    assert set(index) == set(names(storage, trial))
    storage.remove_file(f"{trial_folder(record.trial_id)}/embedding.safetensors")
    before = storage.read(f"{trial_folder(trial)}/figures/jets.svg")
    storage.write(f"{trial_folder(trial)}/figures/jets.svg", b"mine")
    assert pictures.draw_trials(storage, [trial, record.trial_id]) == {}
    assert storage.read(f"{trial_folder(trial)}/figures/jets.svg") == b"mine" != before

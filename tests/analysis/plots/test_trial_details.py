"""The figures of one trial: what they are drawn from, what they show, and what they survive."""

import dataclasses
import math
import re
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import beta
from test_report import make_plan, make_record, planned_trials, write_files
from test_trial import Killed, always_save, changed, kill_after, run_trial, spec  # noqa: F401 - fixtures

from analysis.plots import embedding, svg, trial_details, trial_figures
from jbot.config import Config, override
from jbot.data.jets import CLASS_LABELS
from jbot.evaluation.evaluator import embed
from jbot.evaluation.metrics import background_rejection, roc
from jbot.store.record import RecordError, Storage, save_record, trial_folder
from jbot.trainer.loop import init_state
from jbot.trainer.model import init_weights, pack
from jbot.trial.run import prepare, resident, run_pack
from jbot.trial.snapshots import cls_attention, examples, first_of_each_class, save_snapshot


def texts(figure):
    """What is written in a figure, and that both formats can be made of it."""
    document = svg.to_svg(figure)
    ElementTree.fromstring(document)
    assert svg.to_pdf(figure).startswith(b"%PDF")
    return re.findall(r">([^<>]+)</(?:text|tspan)>", document)


def legend(figure):
    """Names of the lines that are drawn."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


# The arrays a trial leaves


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
        save = getattr(__import__("jbot.trial.run").trial, name)

        def timed(*arguments, save=save):
            begin = time.process_time()
            save(*arguments)
            spent.append(time.process_time() - begin)

        monkeypatch.setattr(f"jbot.trial.run.{name}", timed)
    run_trial(quick, tiny_data, Storage(tmp_path))
    # 1000 jets instead of 100 take ten times as long at most.
    assert 10 * sum(spent) < 3.0


# Maps


def test_maps_keep_jets_in_their_place():
    rng = np.random.default_rng(0)
    centres = 6 * rng.normal(size=(4, 8))
    cls = centres[np.arange(80) % 4] + rng.normal(size=(80, 8))
    first, second = embedding.evolution([cls, cls + 0.3 * rng.normal(size=cls.shape)])
    other = embedding.tsne(cls, seed=1)

    def moved(to):
        return np.linalg.norm(first - to, axis=1).mean() / np.linalg.norm(first - first.mean(0), axis=1).mean()

    assert moved(second) < 0.5
    assert moved(second) < moved(other[:, ::-1])


@pytest.mark.parametrize("bad", [np.full((10, 4), np.nan), np.ones((10, 4)), np.zeros((4, 4))])
def test_what_cannot_be_mapped_is_a_clear_error(bad):
    assert not embedding.can_be_mapped(bad)
    with pytest.raises(ValueError, match="at least 5 finite embeddings that differ"):
        embedding.tsne(bad)


@pytest.mark.parametrize("epochs", [(0, 7), (0, 1, 10, 50, 80)])
def test_a_panel_per_epoch(epochs):
    rng, labels = np.random.default_rng(0), np.array([0, 1, 2, 4] * 10)  # no Z
    figure = trial_figures.embedding_evolution({epoch: rng.normal(size=(40, 2)) for epoch in epochs}, labels)
    written = texts(figure)
    assert ["untrained", *(f"epoch {epoch}" for epoch in epochs[1:])] == [
        word for word in written if word.startswith(("untrained", "epoch"))
    ]
    assert [word for word in written if word in CLASS_LABELS] == ["q", "g", "W", "t"]


# ROC


def test_rejection_by_hand():
    """Background 1 2 3 4, signal 3.5 4.5: half the signal passes no background, all of it passes one of four."""
    scores, positive = np.array([1, 2, 3, 4, 3.5, 4.5]), np.array([0, 0, 0, 0, 1, 1], dtype=bool)
    rejection, low, high = trial_figures.rejection_band(scores, positive, np.array([0.25, 1.0]))
    assert np.isnan(rejection[0])  # none of four passes: no measurement
    assert rejection[1] == pytest.approx(4.0)
    tail = (1 - math.erf(1 / math.sqrt(2))) / 2
    assert low[1] == pytest.approx(1 / beta.ppf(1 - tail, 2, 3))
    assert high[1] == pytest.approx(1 / beta.ppf(tail, 1, 4))


def test_scores_that_are_all_equal_reject_nothing():
    positive = np.arange(1000) % 2 == 0
    for line in trial_figures.rejection_band(np.ones(1000), positive, np.array([0.1, 0.5, 1.0])):
        np.testing.assert_allclose(line, 1, atol=0.01)


@pytest.mark.parametrize("ties", [False, True])
def test_the_line_goes_through_the_numbers_of_the_tables(ties):
    rng = np.random.default_rng(0)
    positive = np.arange(600) % 2 == 0
    scores = rng.normal(size=600) + positive
    scores = np.round(scores) if ties else scores
    found, low, high = trial_figures.rejection_band(scores, positive, np.array([0.3, 0.5]))
    curve = roc(scores, positive)
    for value, eps_s in zip(found, (0.3, 0.5), strict=True):
        assert value == pytest.approx(background_rejection(curve, eps_s).value)
    assert ((low < found) & (found < high)).all()


def test_signals_that_cannot_be_judged_have_no_line():
    rng = np.random.default_rng(0)
    scores, positive = rng.normal(size=200), rng.random(200) < 0.5
    broken = np.where(positive, scores, np.nan)
    figure = trial_figures.rejection_curves(
        {"W": (scores, positive), "Z": (scores, ~positive & positive), "t": (broken, positive)}
    )
    assert legend(figure) == ["guessing", "W"]


# Histograms


def test_histograms_are_normalised_and_hold_their_tails():
    rng = np.random.default_rng(0)
    figure = trial_figures.score_histograms({"x": {"background": np.append(rng.normal(size=999), 1e6)}})
    (step,) = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    values, edges, _ = step.get_data()
    assert np.sum(values * np.diff(edges)) == pytest.approx(1)
    assert edges[-1] < 10


@pytest.mark.parametrize(
    ("scores", "edges"),
    [
        ([], [0, 1]),
        ([3, 3, 3], [2.5, 3.5]),
        ([0, 1, 0, 3], [-0.5, 0.5, 2, 4]),
    ],
)
def test_few_values_have_a_bin_each(scores, edges):
    np.testing.assert_allclose(trial_figures.histogram_edges(np.array(scores, dtype=float)), edges)


@pytest.mark.parametrize("values", [np.ones(50), np.full(50, np.nan), np.linspace(0, 1, 50), np.arange(50) % 3.0])
def test_any_scores_can_be_drawn(values):
    for panels in ({"s": {"background": values, "W": values[:0]}}, {"P(q)": {"q": values}, "P(g)": {"g": values}}):
        assert "density" in texts(trial_figures.score_histograms(panels, "probability"))


# Curves


def test_training_curves_draw_what_is_there():
    rows = [{"epoch": 0}, {"epoch": 1, "train/loss": 2.0, "train/teacher_entropy": None, "train/lr": 1e-3}]
    written = texts(trial_figures.pretraining_curves(pd.DataFrame(rows), learning_rate=True))
    assert {"loss", "entropy (nats)", "learning rate", "total", "epoch"} <= set(written)
    assert "KoLeo" not in written


def test_finetuning_curves_of_one_epoch_and_without_a_column():
    rows = pd.DataFrame([{"run": "finetune_10", "epoch": 1, "train_loss": 1.0, "val_loss": None, "val_accuracy": 0.2}])
    written = texts(trial_figures.finetuning_curves(rows, {"finetune_10": "fine-tuned"}))
    assert {"fine-tuned", "training jets", "validation jets", "accuracy"} <= set(written)


# A whole trial


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
    return [picture.name for picture in trial_details.trial_pictures(storage, trial)]


@pytest.mark.parametrize("task", ["all", "tqg", "qg"])
def test_a_trial_has_all_its_figures(tmp_path, task):
    classes = {"all": (0, 1, 2, 3, 4), "tqg": (0, 1, 4), "qg": (0, 1, 2, 4)}[task]  # one signal is missing in qg
    storage, trial = write_trial(tmp_path, task, classes)
    drawn = {picture.name: picture for picture in trial_details.trial_pictures(storage, trial)}
    extra = ["roc-anomaly-relative-mahalanobis-labels", "scores-anomaly-relative-mahalanobis-labels"]
    assert set(drawn) == {
        "embedding", "jets", "attention", "roc-knn", "scores-knn", "training", "finetuning",
        *(extra if task == "qg" else []),
    }  # fmt: skip
    assert all(len(picture.alt) > 20 for picture in drawn.values())
    signals = {"all": ["q", "g", "W", "Z", "t"], "tqg": ["t"], "qg": ["g"]}[task]
    assert legend(drawn["roc-knn"].figure) == ["guessing", *signals]
    titles = [f"{trial_details.CLASSES[label]} jet" for label in classes]
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
    drawn = {picture.name: picture for picture in trial_details.trial_pictures(storage, trial)}
    assert list(drawn) == ["embedding", "jets", "training"]
    assert [word for word in texts(drawn["jets"].figure) if word.endswith(" jet")] == [
        f"{name} jet" for name in trial_details.CLASSES
    ]


def test_a_collapsed_embedding_is_left_out_of_the_maps(tmp_path):
    storage, trial = write_trial(tmp_path)
    broken = storage.read_arrays(f"{trial_folder(trial)}/embedding-0001.safetensors")
    broken["cls"][:] = np.nan
    storage.write_arrays(f"{trial_folder(trial)}/embedding-0001.safetensors", broken)
    (picture,) = trial_details.embedding_pictures(storage, trial)
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
    assert trial_details.main([f"{storage.uri}/trials/{trial}", "--out", str(tmp_path / "paper")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "paper")
    drawn = sorted(path.name for path in (tmp_path / "paper").iterdir())
    assert len(drawn) == 14
    assert trial_details.main([f"{storage.uri}/trials/{trial}"]) == 0
    assert sorted(storage.names(f"{trial_folder(trial)}/figures")) == sorted([*drawn, trial_details.INDEX])
    for name in drawn:  # the same bytes each time
        assert (tmp_path / "paper" / name).read_bytes() == storage.read(f"{trial_folder(trial)}/figures/{name}")


@pytest.mark.parametrize("folder", ["nowhere", "trials/0123", "trials"])
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, folder):
    write_trial(tmp_path)
    assert trial_details.main([str(tmp_path / folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_all_trials_are_drawn_once_and_errors_cost_only_their_own(tmp_path):
    storage, trial = write_trial(tmp_path)
    record = dataclasses.replace(make_record(make_plan(), planned_trials(make_plan())[1], np.random.default_rng(1)))
    save_record(storage, record)  # left nothing but its record
    storage.write(f"{trial_folder(record.trial_id)}/embedding.safetensors", b"damaged")
    errors = trial_details.draw_trials(storage, [trial, record.trial_id, "not ended"], processes=2)
    assert list(errors) == [record.trial_id]
    assert "is not a valid safetensors file" in errors[record.trial_id]
    index = storage.read_json(f"{trial_folder(trial)}/figures/{trial_details.INDEX}")
    assert set(index) == set(names(storage, trial))
    storage.remove_file(f"{trial_folder(record.trial_id)}/embedding.safetensors")
    before = storage.read(f"{trial_folder(trial)}/figures/jets.svg")
    storage.write(f"{trial_folder(trial)}/figures/jets.svg", b"mine")
    assert trial_details.draw_trials(storage, [trial, record.trial_id]) == {}
    assert storage.read(f"{trial_folder(trial)}/figures/jets.svg") == b"mine" != before

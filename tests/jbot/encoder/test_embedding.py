"""The embedding for others: jbot.load, JetEmbedding, python -m jbot.embed, and the model card."""

import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from helpers import TINY, make_data, make_jets, write_jets
from make_parity import formula_weights, keras_backbone, keras_head, write_hdf5
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import jbot
from jbot import JetEmbedding
from jbot.config import Config, ModelConfig, from_dict, override
from jbot.data import CLASSES, DataError, JetData
from jbot.encoder import embed as command
from jbot.encoder.keras_weights import main as import_main
from jbot.encoder.load import EncoderError, check_jets
from jbot.evaluation.metrics_registry import metric_names
from jbot.store.record import TrialSpec, load_record
from jbot.store.storage import Storage
from jbot.trainer.classifier import classifier_logits, classifier_shapes
from jbot.trainer.embed import embed
from jbot.trainer.model import pack, weight_shapes
from jbot.trial.card import model_card
from jbot.trial.run import run_pack

RELEASED = ModelConfig(dim=8, heads=3, layers=3, projection=4, padding="reference")
THIS_CODE = os.environ | {"PYTHONPATH": str(Path(jbot.__file__).parents[1])}
"""For processes in other folders."""


def train_one(root: Path, data: JetData, **changes: object) -> Path:
    """A real trial of the tiny Config; its folder."""
    config = override(Config(), TINY | {name.replace("__", "."): value for name, value in changes.items()})
    spec = TrialSpec(study="tests", arm="a|b", plan_hash="p", config=config, data_fingerprint=data.fingerprint)
    run_pack([spec], data, Storage(root))
    return root / "trials" / spec.trial_id


@pytest.fixture(scope="module")
def data() -> JetData:
    return make_data(60)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory, data: JetData) -> Path:
    return train_one(tmp_path_factory.mktemp("storage"), data)


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, data: JetData) -> Path:
    return train_one(tmp_path_factory.mktemp("failed"), data, optim__lr=1e30, optim__warmup_epochs=0)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A backbone and a five-class head in the layout of the released files."""
    folder = tmp_path_factory.mktemp("released")
    write_hdf5(folder / "all_backbone.weights.h5", keras_backbone(RELEASED, formula_weights(weight_shapes(RELEASED))))
    write_hdf5(folder / "all_mlp.weights.h5", keras_head(formula_weights(classifier_shapes(8, 5))))
    return folder / "all_backbone.weights.h5", folder / "all_mlp.weights.h5"


@pytest.fixture(scope="module")
def jets_file(tmp_path_factory: pytest.TempPathFactory, data: JetData) -> Path:
    """The tests' jets in one file of JetNet's layout, with numbers in the jet features that tell rows apart."""
    features = np.tile(np.array([1000, 0.5, 80, 30], np.float32), (60, 1))
    features[:, 0] += np.arange(60)
    path = tmp_path_factory.mktemp("jets") / "jets.hdf5"
    return write_jets(path, dataclasses.replace(data, jets=np.tile(features, (5, 1))), source="random jets")


def by_hand(folder: Path, jets: np.ndarray) -> np.ndarray:
    """The embedding by plain torch, as the trial itself is judged."""
    arrays = Storage(folder).read_arrays("student.safetensors")
    config = from_dict(json.loads((folder / "record.json").read_text())["config"])
    return embed(pack(arrays, config.model)[None], torch.from_numpy(jets), config)


def with_head(trial: Path, classes: int, name: str = "classifier_finetune_100.safetensors") -> Path:
    """A fine-tuned classifier beside the trial's weights, as the contract of the files has it."""
    storage = Storage(trial)
    head = formula_weights(classifier_shapes(8, classes))
    arrays = storage.read_arrays("student.safetensors") | {f"classifier.{key}": value for key, value in head.items()}
    arrays["cls_token"] = arrays["cls_token"] + np.float32(0.5)  # fine-tuned: not the student's weights
    storage.write_arrays(name, arrays)
    return trial / name


# ------------------------------------------------------------------------------------------------------- jbot.load


def test_importing_jbot_imports_neither_torch_nor_scikit_learn() -> None:
    code = "import jbot, sys; print([m for m in ('torch', 'sklearn', 'numpy', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = jbot.laod


def test_a_trial_embeds_as_it_was_judged(trial: Path, data: JetData) -> None:
    encoder = jbot.load(trial)
    cls = encoder.embed(data.particles)
    assert cls.shape == (300, 8)
    assert cls.dtype == np.float32
    expected = by_hand(trial, data.particles)
    np.testing.assert_allclose(cls, expected, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(jbot.load(trial, engine="plain").embed(data.particles), expected)
    record = load_record(Storage(trial.parent.parent), trial.name)
    assert encoder.provenance.record == record
    assert encoder.provenance.training == from_dict(record.config)
    assert (encoder.config, encoder.source, encoder.particles) == (from_dict(record.config).model, str(trial), 30)
    with pytest.raises(EncoderError, match="has no classification head"):
        encoder.predict_proba(data.particles)


def test_every_way_to_name_a_trial(trial: Path, data: JetData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trial)
    expected = jbot.load(trial).embed(data.particles[:5])
    for name in (str(trial), f"{trial}/", ".", "student.safetensors", trial / "student.safetensors", f"file://{trial}"):
        np.testing.assert_array_equal(jbot.load(name).embed(data.particles[:5]), expected)


def test_released_files_and_their_import_are_one(released: tuple[Path, Path], tmp_path: Path) -> None:
    backbone, head = released
    jets = make_jets(20)
    assert import_main([str(backbone), "--head", str(head), "--out", str(tmp_path / "imported")]) == 0
    direct, imported = jbot.load(backbone, head=head), jbot.load(tmp_path / "imported")
    assert direct.classes == imported.classes == CLASSES
    assert direct.config == imported.config == RELEASED
    np.testing.assert_array_equal(direct.embed(jets), imported.embed(jets))
    np.testing.assert_array_equal(direct.predict_proba(jets), imported.predict_proba(jets))
    assert jbot.load(backbone).classes is None
    # It sees padding: fewer slots must not change what it sees.
    jets[:, 12:] = 0
    np.testing.assert_array_equal(direct.embed(jets[:, :12]), direct.embed(jets))


def test_a_fine_tuned_classifier(trial: Path, data: JetData) -> None:
    encoder = jbot.load(with_head(trial, 5))
    assert encoder.classes == CLASSES
    cls = encoder.embed(data.particles)
    assert abs(cls - jbot.load(trial).embed(data.particles)).max() > 1e-3
    layers = {name: torch.from_numpy(value)[None] for name, value in formula_weights(classifier_shapes(8, 5)).items()}
    expected = classifier_logits(layers, torch.from_numpy(cls)[None])[0].softmax(1)
    probabilities = encoder.predict_proba(data.particles)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    with pytest.raises(EncoderError, match=r"a head must have 5 classes, it has 2$"):
        jbot.load(with_head(trial, 2, "classifier_two.safetensors"))


def test_an_encoder_survives_pickling(trial: Path, data: JetData) -> None:
    encoder = jbot.load(trial)
    before = encoder.embed(data.particles)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder)).embed(data.particles), before)


def test_only_the_leading_particles_of_its_training_count(data: JetData, tmp_path: Path) -> None:
    folder = train_one(tmp_path, data, data__particles=10, train__epochs=1)
    encoder = jbot.load(folder)
    assert encoder.particles == 10
    expected = by_hand(folder, np.ascontiguousarray(data.particles[:, :10]))
    np.testing.assert_allclose(encoder.embed(data.particles), expected, atol=1e-6, rtol=0)


def test_broken_checkpoints_say_why(trial: Path, failed: Path, released: tuple[Path, Path], tmp_path: Path) -> None:
    def says(place: object, rule: str, **options: str) -> None:
        with pytest.raises(EncoderError, match=rule) as caught:
            jbot.load(place, **options)
        assert "\n" not in str(caught.value)

    says(tmp_path / "absent", "absent: no such file or folder$")
    says(trial.parent.parent, f"must hold a record.json or a config.json; name one of its trials, e.g. .*{trial.name}$")
    says(failed, "this trial failed .diverged: .*, its weights are no embedding$")
    says(trial / "embedding.safetensors", "weight embed.weight is missing$")
    says(trial / "curves.safetensors", "holds no curves.safetensors$")
    says(trial, "head is for a released .weights.h5 file", head=released[1])
    says(trial, "device must be cpu, cuda or cuda:<number>, got 'gpu'$", device="gpu")
    says(trial, "engine must be one of .*, got 'fast'$", engine="fast")
    says(tmp_path / "absent.weights.h5", "no such file$")
    says("nothing://here", "cannot be opened")
    (tmp_path / "unfinished" / "checkpoint").mkdir(parents=True)
    says(tmp_path / "unfinished", "this trial has not ended, it has no record.json yet$")
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "record.json").write_bytes((trial / "record.json").read_bytes())
    says(copied, "holds no student.safetensors$")
    (copied / "student.safetensors").write_bytes(b"half of it")
    says(copied, "not a valid safetensors file")
    arrays = Storage(trial).read_arrays("student.safetensors")
    Storage(copied).write_arrays("student.safetensors", arrays | {"cls_token": np.full(8, np.nan, np.float32)})
    says(copied, "weight cls_token must be finite, it holds NaN or infinity$")
    Storage(copied).write_arrays("student.safetensors", arrays | {"cls_token": np.zeros(9, np.float32)})
    says(copied, r"weight cls_token must have shape \(8,\), got \(9,\)$")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(trial: Path, data: JetData) -> None:
    encoder = jbot.load(with_head(trial, 5), device="cuda")
    cpu = jbot.load(with_head(trial, 5))
    np.testing.assert_allclose(encoder.embed(data.particles), cpu.embed(data.particles), atol=1e-5)
    np.testing.assert_allclose(encoder.predict_proba(data.particles), cpu.predict_proba(data.particles), atol=1e-5)


# ------------------------------------------------------------------------------------------------------- the input


def broken(row: int, particle: int, column: int, value: float) -> np.ndarray:
    jets = make_jets(12, seed=1, least=5)
    jets[4, 3:] = 0  # row 4 has three particles
    jets[row, particle, column] = value
    return jets


@pytest.mark.parametrize(
    ("jets", "message"),
    [
        (np.zeros((3, 30)), r"must have shape \(jet, particle, 4\), got \(3, 30\)$"),
        (np.zeros((30, 4)), r"got \(30, 4\); a single jet is particles\[None\]$"),
        (np.zeros((3, 30, 3)), "the flag valid .1 for a particle, 0 for padding. is missing$"),
        (np.zeros((3, 30, 5)), "columns eta_rel, phi_rel, pt_rel, valid, got 5$"),
        (np.zeros((3, 31, 4)), "a jet must have 1 to 30 particles, the leading ones, got 31$"),
        (np.zeros((3, 0, 4)), "a jet must have 1 to 30 particles, the leading ones, got 0$"),
        (np.zeros((3, 30, 4), "U1"), "must be real numbers, got dtype <U1$"),
        (np.zeros((3, 30, 4), complex), "must be real numbers, got dtype complex128$"),
        ([[[0, 0, 1, 1]], [[0, 0, 1]]], r"must be an array \(jet, particle, 4\)"),
        (np.zeros((3, 30, 4)), "row 0: a jet must have at least one valid particle, got 0 .and at least 2 more.$"),
        (broken(2, 1, 0, np.nan), "row 2, particle 1: eta_rel must be finite, got nan$"),
        (broken(2, 1, 1, -np.inf), "row 2, particle 1: phi_rel must be finite, got -inf$"),
        (broken(2, 1, 3, 0.5), "row 2, particle 1: mask must be 0 or 1, got 0.5$"),
        (broken(2, 1, 2, 0.0), "row 2, particle 1: pt_rel of a valid particle must be > 0, got 0$"),
        (broken(4, 7, 0, 0.1), "row 4, particle 7: padding .valid = 0. must be zero, got 0.1, 0, 0$"),
        (broken(5, 0, 2, 400.0), "row 5: pt_rel is relative to the pT of the jet and must sum to about 1 .* got 40"),
        (broken(5, 0, 0, 1e30), "rows 0 to 11: too large for a finite embedding$"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(trial: Path, jets: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        jbot.load(trial).embed(jets)
    assert "\n" not in str(caught.value)


def test_rows_are_numbered_through_all_blocks(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jbot.encoder.load, "BLOCK", 5)
    with pytest.raises(DataError, match="row 7, particle 2: eta_rel must be finite"):
        jbot.load(trial).embed(broken(7, 2, 0, np.nan))
    with pytest.raises(DataError, match="row 1005: pt_rel is relative"):
        check_jets(broken(5, 0, 2, 400.0), 1000)
    jets = make_jets(12)
    np.testing.assert_allclose(jbot.load(trial).embed(jets), by_hand(trial, jets), atol=1e-6)


def test_good_input_of_any_kind_is_the_same(trial: Path) -> None:
    encoder, jets = jbot.load(trial), make_jets(12, seed=5)
    jets[:, 20:] = 0
    expected, kept = encoder.embed(jets), jets.copy()
    jets.flags.writeable = False
    for same in (
        jets,
        jets.astype(np.float64),
        jets[:, :20],
        jets.tolist(),
        np.asfortranarray(jets),
        torch.tensor(kept),
    ):
        np.testing.assert_array_equal(encoder.embed(same), expected)
    np.testing.assert_array_equal(jets, kept)
    shuffled = jets[:, np.random.default_rng(0).permutation(20)]
    np.testing.assert_allclose(encoder.embed(shuffled), expected, atol=2e-6)  # a set of particles, not a list


def test_no_jets_have_no_embedding(trial: Path) -> None:
    encoder = jbot.load(with_head(trial, 5))
    for nothing in ([], np.empty((0, 30, 4)), np.empty((0, 7, 4), np.float32)):
        assert encoder.embed(nothing).shape == (0, 8)
        assert encoder.predict_proba(nothing).shape == (0, 5)


# ---------------------------------------------------------------------------------------------------- scikit-learn


class OfAnyTable(JetEmbedding):
    """For scikit-learn's checks, which fit tables of random numbers: one particle of a jet from each number."""

    def _unflattened(self, table: np.ndarray) -> np.ndarray:
        jets = np.ones((*table.shape, 4), np.float32)
        jets[..., :2] = np.tanh(table.astype(np.float64))[..., None]
        jets[..., 2] = 1 / table.shape[1]
        return jets


NOT_OURS = {"check_estimators_nan_inf": "NaN is refused, but with the row and the particle instead of the usual words"}


def test_scikit_learns_own_checks(trial: Path) -> None:
    results = check_estimator(OfAnyTable(trial), expected_failed_checks=NOT_OURS, on_skip=None)
    passed = [result["check_name"] for result in results if result["status"] == "passed"]
    assert len(passed) > 40
    assert {"check_estimators_pickle", "check_fit_idempotent", "check_n_features_in_after_fitting"} <= set(passed)


def test_transform_is_the_embedding(trial: Path, data: JetData) -> None:
    expected = jbot.load(trial).embed(data.particles)
    model = JetEmbedding(trial)
    np.testing.assert_array_equal(model.fit_transform(data.particles), expected)
    assert model.n_features_in_ == 120
    flat = data.particles.reshape(300, 120)
    np.testing.assert_array_equal(model.transform(flat), expected)
    np.testing.assert_array_equal(model.transform(data.particles.tolist()), expected)
    assert model.get_feature_names_out().tolist() == [f"jbot_{i}" for i in range(8)]
    assert model.transform(np.empty((0, 30, 4))).shape == (0, 8)
    assert clone(model).get_params() == {"checkpoint": trial, "device": "cpu", "engine": "fused"}


def test_data_frames_in_and_out(trial: Path, data: JetData) -> None:
    columns = [f"{name}_{slot}" for slot in range(30) for name in ("eta_rel", "phi_rel", "pt_rel", "valid")]
    frame = pd.DataFrame(data.particles.reshape(300, 120), columns=columns, index=range(1000, 1300))
    model = JetEmbedding(trial).set_output(transform="pandas").fit(frame)
    out = model.transform(frame)
    assert list(out.columns) == [f"jbot_{i}" for i in range(8)]
    assert list(out.index) == list(range(1000, 1300))
    assert list(model.feature_names_in_) == columns
    with pytest.raises(ValueError, match="feature names should match"):
        model.transform(frame[columns[::-1]])


def test_a_fitted_one_needs_the_checkpoint_no_more(trial: Path, data: JetData, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    for name in ("record.json", "student.safetensors"):
        (copied / name).write_bytes((trial / name).read_bytes())
    fitted = pickle.dumps(JetEmbedding(copied).fit(data.particles))
    for name in ("record.json", "student.safetensors"):
        (copied / name).unlink()
    expected = jbot.load(trial).embed(data.particles)
    np.testing.assert_array_equal(pickle.loads(fitted).transform(data.particles), expected)


def test_a_pipeline_beats_chance(trial: Path, data: JetData) -> None:
    model = make_pipeline(JetEmbedding(trial), StandardScaler(), LogisticRegression(max_iter=2000))
    scores = cross_val_score(model, data.particles, data.labels, cv=5, n_jobs=2, error_score="raise")
    assert scores.mean() > 0.3  # chance is 0.2, its standard error 0.023


def test_checkpoints_are_a_choice_of_a_grid(trial: Path, released: tuple[Path, Path], data: JetData) -> None:
    steps = [("embed", JetEmbedding()), ("classify", LogisticRegression(max_iter=2000))]
    grid = {"embed__checkpoint": [trial, released[0]]}
    search = GridSearchCV(Pipeline(steps), grid, cv=2, n_jobs=2, error_score="raise")
    search.fit(data.particles.reshape(300, 120), data.labels)
    assert set(search.cv_results_["param_embed__checkpoint"]) == {trial, released[0]}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_what_a_transformer_refuses(trial: Path, data: JetData) -> None:
    with pytest.raises(ValueError, match=r"^checkpoint must be given"):
        JetEmbedding().fit(data.particles)
    with pytest.raises(ValueError, match="no such file or folder"):
        JetEmbedding("absent").fit(data.particles)
    with pytest.raises(ValueError, match="90 is no multiple of 4"):
        JetEmbedding(trial).fit(data.particles[..., :3].reshape(300, 90))
    with pytest.raises(ValueError, match=r"the flag valid .* is missing"):
        JetEmbedding(trial).fit(data.particles[..., :3])
    with pytest.raises(ValueError, match="row 3, particle 0: eta_rel must be finite, got nan"):
        JetEmbedding(trial).fit(broken(3, 0, 0, np.nan))
    with pytest.raises(ValueError, match="X has 80 features, but JetEmbedding is expecting 120"):
        JetEmbedding(trial).fit(data.particles).transform(data.particles[:, :20])


# -------------------------------------------------------------------------------------------- python -m jbot.embed


def run_command(*arguments: object) -> int:
    return command.main([*map(str, arguments), "--quiet"])


def test_the_command_line_end_to_end(trial: Path, data: JetData, jets_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "embedding.parquet"
    done = subprocess.run(
        [sys.executable, "-m", "jbot.embed", jets_file, "--checkpoint", trial, "--out", out],
        capture_output=True, text=True, cwd=tmp_path, env=THIS_CODE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: 300 jets, jbot_0 to jbot_7\n"
    assert "300/300" in done.stderr
    frame = pd.read_parquet(out)
    assert list(frame.columns) == [*(f"jbot_{i}" for i in range(8)), "label", "class", "pt", "eta", "mass", "n"]
    np.testing.assert_allclose(frame.iloc[:, :8], by_hand(trial, data.particles), atol=1e-6)
    assert frame["label"].tolist() == data.labels.tolist()
    assert frame["class"].tolist() == [CLASSES[label] for label in data.labels]
    assert frame["pt"].tolist() == [1000.0 + i for _ in CLASSES for i in range(60)]
    assert frame[["eta", "mass", "n"]].drop_duplicates().values.tolist() == [[0.5, 80.0, 30.0]]
    facts = json.loads(pq.read_schema(out).metadata[b"jbot"])
    record = json.loads((trial / "record.json").read_text())
    assert facts["checkpoint"]["config"] == record["config"]
    assert facts["checkpoint"]["trial_id"] == trial.name
    assert facts["checkpoint"]["data"]["fingerprint"] == data.fingerprint
    assert facts["checkpoint"]["sha256"] == jbot.load(trial).provenance.sha256
    assert facts["jets"]["attributes"]["source"] == "random jets"
    assert facts["versions"]["trainer"] == jbot.TRAINER_VERSION
    assert list(out.parent.iterdir()) == [out]


def test_files_are_streamed_in_blocks(trial: Path, jets_file: Path, tmp_path: Path, monkeypatch) -> None:
    assert run_command(jets_file, "--checkpoint", trial, "--out", tmp_path / "whole.parquet") == 0
    monkeypatch.setattr("jbot.data.jets.BLOCK", 7)
    assert run_command(jets_file, "--checkpoint", trial, "--out", tmp_path / "blocks.parquet") == 0
    assert pq.ParquetFile(tmp_path / "blocks.parquet").num_row_groups == 5 * 9
    whole, blocks = pd.read_parquet(tmp_path / "whole.parquet"), pd.read_parquet(tmp_path / "blocks.parquet")
    pd.testing.assert_frame_equal(whole, blocks, rtol=0, atol=1e-6)


def test_folders_and_single_classes(trial: Path, jets_file: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with h5py.File(jets_file) as source:
        for name, target in (("w", "folder/w"), ("q", "folder/q"), ("t", "mine")):
            with h5py.File(tmp_path / f"{target}.hdf5", "w") as file:
                for key in ("particle_features", "jet_features"):
                    file[key] = source[name][key][:10]
    for jets in ("folder", "mine.hdf5", "folder/w.hdf5"):
        out = tmp_path / f"{Path(jets).stem}.parquet"
        assert run_command(tmp_path / jets, "--checkpoint", trial, "--out", out) == 0
    assert pd.read_parquet(tmp_path / "folder.parquet")["class"].tolist() == ["q"] * 10 + ["w"] * 10
    assert pd.read_parquet(tmp_path / "w.parquet")["label"].tolist() == [2] * 10
    assert pd.read_parquet(tmp_path / "mine.parquet")[["label", "class"]].isna().all(axis=None)


def test_probabilities_of_a_head_are_columns(released: tuple[Path, Path], jets_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    assert run_command(jets_file, "--checkpoint", released[0], "--head", released[1], "--out", out) == 0
    frame = pd.read_parquet(out)
    columns = [f"probability_{name}" for name in CLASSES]
    assert list(frame.columns[-5:]) == columns
    np.testing.assert_allclose(frame[columns].sum(axis=1), 1, atol=1e-6)


def test_the_command_line_refuses_in_one_line(
    trial: Path, failed: Path, jets_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def says(rule: str, jets: object = jets_file, checkpoint: object = trial, out: object = "e.parquet") -> None:
        assert run_command(jets, "--checkpoint", checkpoint, "--out", tmp_path / str(out)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(rule, line), line
        assert line.startswith("error: ")

    says("no such file or folder$", jets=tmp_path / "absent.hdf5")
    says("truncated or not an HDF5 file", jets=__file__)
    says("no such file or folder$", checkpoint=tmp_path / "absent")
    says("this trial failed", checkpoint=failed)
    says("--out must end in .parquet, got .*e.csv$", out="e.csv")
    says("holds none of the classes q, g, w, z, t and no particle_features$", jets=tmp_path)
    (tmp_path / "there.parquet").write_text("precious")
    says("there.parquet: is there already; --force replaces it$", out="there.parquet")
    assert (tmp_path / "there.parquet").read_text() == "precious"
    (tmp_path / "folder.parquet").mkdir()
    says("folder.parquet: is a folder, --out must be a file$", out="folder.parquet")
    assert run_command(jets_file, "--checkpoint", trial, "--out", tmp_path / "there.parquet", "--force") == 0
    assert len(pd.read_parquet(tmp_path / "there.parquet")) == 300


def test_a_fault_late_in_the_file_leaves_no_half_result(
    trial: Path, jets_file: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    bad = tmp_path / "bad.hdf5"
    bad.write_bytes(jets_file.read_bytes())
    with h5py.File(bad, "r+") as file:
        file["t/particle_features"][55, 0, 2] = 400.0
    monkeypatch.setattr("jbot.data.jets.BLOCK", 20)
    assert run_command(bad, "--checkpoint", trial, "--out", tmp_path / "e.parquet") == 2
    assert "t/particle_features, row 55: pt_rel is relative" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.hdf5"]


def test_ctrl_c_leaves_no_half_file(trial: Path, jets_file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupted(*arguments: object) -> None:
        assert any(path.suffix == ".tmp" for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "embedded", interrupted)
    assert run_command(jets_file, "--checkpoint", trial, "--out", tmp_path / "e.parquet") == 130
    assert capsys.readouterr().err.endswith("e.parquet is not written\n")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- the model card


def run_example(card: Path) -> np.ndarray:
    """What the card's example computes, run as it stands in the folder of the card."""
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.S)
    assert len(code.splitlines()) == 3
    code += "print(cls.tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=card.parent, env=THIS_CODE)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout))


def front_matter(text: str) -> list[str]:
    opening, matter, _ = text.split("---\n", 2)
    assert opening == ""
    return matter.splitlines()


def test_the_card_of_a_trial(trial: Path) -> None:
    text = (trial / "card.md").read_text()
    assert front_matter(text)[:2] == ["license: bsd-3-clause", "library_name: jbot-studies"]
    assert front_matter(text)[-3:] == ["metrics:", "- accuracy", "- roc_auc"]
    record = load_record(Storage(trial.parent.parent), trial.name)
    assert text == model_card(record)
    assert record.data["fingerprint"] in text
    assert f"| `test/knn_accuracy` | {record.metrics['test/knn_accuracy']:.4g} |" in text
    assert "| `data.train_jets` | 60 | 700000 |" in text
    assert "`loss.koleo_weight`" not in text  # as in the paper
    config = json.loads(re.findall(r"```json\n(.*?)```", text, re.S)[0])
    assert config == record.config
    assert run_example(trial / "card.md").shape == (1, 8)


def test_uncertainties_and_fine_tuning_on_the_card(trial: Path) -> None:
    record = load_record(Storage(trial.parent.parent), trial.name)
    metrics = record.metrics | {"test/finetune_10_accuracy": 0.75}
    errors = {"test/finetune_10_accuracy": {"error": 0.0125}}
    text = model_card(dataclasses.replace(record, metrics=metrics, uncertainties=errors))
    assert "| `test/finetune_10_accuracy` | 0.75 | 0.0125 |" in text
    assert "`classifier_finetune_10.safetensors`" in text
    assert "fresh weights" not in text


def test_the_card_has_a_dozen_metrics_first_and_the_rest_folded_away(trial: Path) -> None:
    record = load_record(Storage(trial.parent.parent), trial.name)
    config = override(Config(), {"finetune.fractions": (0.01, 0.1, 1.0)})
    metrics = dict.fromkeys(sorted(metric_names(config)), 0.5)
    text = model_card(dataclasses.replace(record, metrics=metrics))
    head, _, folded = text.partition("<details>")
    shown = re.findall(r"\| `(test/\S+)` \|", head)
    assert shown[:4] == ["test/knn_accuracy", "test/knn_auc", "test/linear_accuracy", "test/linear_auc"]
    assert len(shown) == 12
    assert sorted(shown + re.findall(r"\| `(test/\S+)` \|", folded)) == list(metrics)
    tuned, _, twins = text.partition("Trained from fresh weights on the same labels, with a classification head: ")
    assert "classifier_supervised" not in tuned
    assert twins.startswith("`classifier_supervised_1.safetensors`")
    assert "Fine-tuned from this encoder, with a classification head: `classifier_finetune_1.safetensors`" in tuned


def test_the_card_of_anomaly_detection_has_the_area_of_each_signal(trial: Path) -> None:
    record = load_record(Storage(trial.parent.parent), trial.name)
    metrics = dict.fromkeys(metric_names(override(Config(), {"data.task": "qg", "anomaly.scan": True})), 0.5)
    head = model_card(dataclasses.replace(record, metrics=metrics)).partition("<details>")[0]
    assert re.findall(r"`test/anomaly_(\S+)`", head) == ["knn_auc", "knn_auc_w", "knn_auc_z", "knn_auc_t"]


def test_the_card_of_a_failed_trial_says_so(failed: Path) -> None:
    text = (failed / "card.md").read_text()
    assert "**State: failed, diverged: " in text
    assert "```python" not in text


def test_the_card_of_an_import_says_what_is_not_known(released: tuple[Path, Path], tmp_path: Path) -> None:
    assert import_main([str(released[0]), "--head", str(released[1]), "--out", str(tmp_path / "imported")]) == 0
    text = (tmp_path / "imported" / "card.md").read_text()
    assert front_matter(text)[0] == "license: unknown"
    assert "## Not known" in text
    assert jbot.load(released[0]).provenance.sha256 in text
    assert run_example(tmp_path / "imported" / "card.md").shape == (1, 8)

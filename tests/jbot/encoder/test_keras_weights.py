"""The importer of released Keras weights, on files of their layout that the tests write themselves."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from make_parity import formula_weights, keras_backbone, keras_head, write_hdf5
from safetensors.numpy import load_file

from jbot.config import Config, ModelConfig, from_dict
from jbot.encoder.keras_weights import UNRELEASED, KerasWeightsError, frozen_student, load_backbone, load_head, main
from jbot.trainer.classifier import classifier_logits, classifier_shapes
from jbot.trainer.embed import embed
from jbot.trainer.model import weight_shapes

MODEL = ModelConfig(dim=8, heads=3, layers=3, projection=4, padding="reference")  # heads of 2: 3 * 2 < 8, as in jBOT-B
BACKBONE = keras_backbone(MODEL, formula_weights(weight_shapes(MODEL)))
HEAD = keras_head(formula_weights(classifier_shapes(8, 5)))
QUERY = "layers/transformer_block/mha/query_dense/vars/0"


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A backbone file."""
    write_hdf5(tmp_path / "backbone.weights.h5", BACKBONE)
    return tmp_path / "backbone.weights.h5"


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A classification head file."""
    write_hdf5(tmp_path / "head.weights.h5", HEAD)
    return tmp_path / "head.weights.h5"


def changed(path: Path, dataset: str, value: object) -> Path:
    """The file with one dataset replaced, or removed when the value is None."""
    with h5py.File(path, "r+") as file:
        if dataset in file:
            del file[dataset]
        if value is not None:
            file[dataset] = value
    return path


def test_backbone_sizes_and_names(backbone: Path) -> None:
    """Width, heads and layers come from the shapes; what was not released is not made up."""
    model, weights = load_backbone(backbone)
    assert model == MODEL
    assert set(weights) == set(weight_shapes(MODEL)) - set(UNRELEASED)
    for name, value in weights.items():
        assert value.shape == weight_shapes(MODEL)[name]
        assert value.dtype == np.float32


def test_backbone_values(backbone: Path) -> None:
    """Query, key and value lie side by side; column head * key_dim + i is output i of that head."""
    _, weights = load_backbone(backbone)
    root = "layers/transformer_block_1"
    qkv = weights["block1.qkv.weight"]
    assert qkv.shape == (8, 3 * 3 * 2)
    for third, part in enumerate(("query", "key", "value")):
        kernel = BACKBONE[f"{root}/mha/{part}_dense/vars/0"]  # (dim, heads, key_dim)
        assert qkv[5, 6 * third + 2 * 2 + 1] == kernel[5, 2, 1]
        bias = BACKBONE[f"{root}/mha/{part}_dense/vars/1"]
        assert weights["block1.qkv.bias"][6 * third + 2 * 1 + 0] == bias[1, 0]
    assert weights["block1.out.weight"][2 * 2 + 1, 7] == BACKBONE[f"{root}/mha/output_dense/vars/0"][2, 1, 7]
    assert np.array_equal(weights["block1.norm2.weight"], BACKBONE[f"{root}/ln2/vars/0"])
    assert np.array_equal(weights["block1.ffn2.bias"], BACKBONE[f"{root}/ffn/layers/dense_1/vars/1"])
    assert np.array_equal(weights["cls_token"], BACKBONE["layers/add_cls_token/vars/0"][0, 0])


def test_embedding_ignores_what_was_not_released(backbone: Path) -> None:
    """A frozen student embeds; its NaN mask token and projection head are never read."""
    model, weights = load_backbone(backbone)
    student = frozen_student(model, weights)
    assert torch.isnan(student).sum() == sum(np.prod(weight_shapes(model)[name]) for name in UNRELEASED)
    cls = embed(student, torch.rand(4, 30, 4, generator=torch.Generator().manual_seed(0)), Config(model=model))
    assert cls.shape == (4, 8)
    assert np.isfinite(cls).all()


def test_head_by_hand(head: Path) -> None:
    """Kernels as stored; two trials, the second of zeros but for the output bias."""
    weights = load_head(head)
    assert {name: value.shape for name, value in weights.items()} == classifier_shapes(8, 5)
    assert np.array_equal(weights["hidden2.weight"], HEAD["layers/dense_1/vars/0"])
    pack = {name: torch.from_numpy(np.stack([value, 0 * value])) for name, value in weights.items()}
    pack["output.bias"][1] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    logits = classifier_logits(pack, torch.ones(2, 1, 8))
    assert logits[1, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    hidden = torch.nn.functional.gelu(torch.ones(8) @ pack["hidden1.weight"][0] + pack["hidden1.bias"][0])
    hidden = torch.nn.functional.gelu(hidden @ pack["hidden2.weight"][0] + pack["hidden2.bias"][0])
    torch.testing.assert_close(logits[0, 0], hidden @ pack["output.weight"][0] + pack["output.bias"][0])


@pytest.mark.parametrize(
    ("dataset", "value", "message"),
    [
        (QUERY, None, f"dataset {QUERY} is missing"),
        (QUERY, np.zeros((8, 6), "f4"), "must have shape (dim, heads, key_dim), got (8, 6)"),
        (QUERY, np.zeros((8, 0, 2), "f4"), "must have shape (dim, heads, key_dim), got (8, 0, 2)"),
        (QUERY, np.zeros((8, 3, 3), "f4"), "key_dim = dim // heads = 2, got 3"),
        (QUERY, np.zeros((9, 3, 2), "f4"), "must have shape (8, 3, 2), got (9, 3, 2)"),
        ("layers/dense/vars/0", np.zeros((5, 8), "f4"), "must have shape (4, dim), got (5, 8)"),
        ("layers/transformer_block_1/ln1/vars/1", None, "transformer_block_1/ln1/vars/1 is missing, it must have"),
        ("layers/transformer_block_2/ln1/vars/0", np.zeros(7, "f4"), "must have shape (8,), got (7,)"),
        ("layers/transformer_block_4/ln1/vars/0", np.zeros(8, "f4"), "transformer_block_3/mha/query_dense/vars/0 is"),
        ("layers/dense_7/vars/0", np.zeros(8, "f4"), "dataset layers/dense_7/vars/0 is not part of"),
        ("layers/dense/vars/1", np.full(8, np.nan, "f4"), "dataset layers/dense/vars/1 must be finite"),
        ("layers/dense/vars/1", np.zeros(8, "i4"), "must be an array of floats, got int32[8]"),
        ("layers/dense/vars/1", "text", "must be an array of floats, got bytes"),
    ],
)
def test_bad_backbone(backbone: Path, dataset: str, value: object, message: str) -> None:
    """One line that names the file, the dataset and the rule."""
    with pytest.raises(KerasWeightsError) as caught:
        load_backbone(changed(backbone, dataset, value))
    assert str(caught.value).startswith(f"{backbone}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "value", "message"),
    [
        ("layers/dense_1/vars/0", None, "dataset layers/dense_1/vars/0 is missing"),
        ("layers/dense_2/vars/1", np.zeros(4, "f4"), "must have shape (5,), got (4,)"),
        ("layers/dense/vars/0", np.zeros((8, 15), "f4"), "must have shape (8, 16), got (8, 15)"),
        ("layers/dense_3/vars/0", np.zeros(1, "f4"), "is not part of"),
    ],
)
def test_bad_head(head: Path, dataset: str, value: object, message: str) -> None:
    """As for a backbone."""
    with pytest.raises(KerasWeightsError) as caught:
        load_head(changed(head, dataset, value))
    assert message in str(caught.value)


def test_files_of_the_other_kind(backbone: Path, head: Path) -> None:
    """A head is not a backbone, nor the other way round."""
    with pytest.raises(KerasWeightsError, match="query_dense/vars/0 is missing, the file holds 6 datasets"):
        load_backbone(head)
    with pytest.raises(KerasWeightsError, match="dense_2/vars/0 is missing"):
        load_head(backbone)


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_truncated_file(backbone: Path, kept: float) -> None:
    """Cut at the start, in the middle, or near the end."""
    content = backbone.read_bytes()
    backbone.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(KerasWeightsError, match="must be a whole HDF5 file"):
        load_backbone(backbone)


def test_no_file(tmp_path: Path) -> None:
    """Neither a missing file nor a folder."""
    for path in (tmp_path / "absent.weights.h5", tmp_path):
        with pytest.raises(KerasWeightsError, match="no such file"):
            load_backbone(path)


def test_command_line(backbone: Path, head: Path, tmp_path: Path) -> None:
    """Weights as imported, and a config that jbot.config reads."""
    out = tmp_path / "imported"
    assert main([str(backbone), "--head", str(head), "--out", str(out)]) == 0
    written_names = ["card.md", "config.json", "head.safetensors", "student.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == written_names
    for name, (file, weights) in {
        "student": (out / "student.safetensors", load_backbone(backbone)[1]),
        "head": (out / "head.safetensors", load_head(head)),
    }.items():
        written = load_file(file)
        assert written.keys() == weights.keys(), name
        assert all(np.array_equal(written[key], weights[key]) for key in weights), name
    assert from_dict(json.loads((out / "config.json").read_text())) == Config(model=MODEL)


def test_command_line_never_overwrites(
    backbone: Path, head: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """An earlier import stays unless --force is given, and --force leaves no head of another model behind."""
    out = tmp_path / "imported"
    arguments = [str(backbone), "--out", str(out)]
    assert main([*arguments, "--head", str(head)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    changed(backbone, "layers/dense/vars/1", np.ones(8, "f4"))
    assert main(arguments) == 2
    assert "holds student.safetensors already; --force replaces it" in one_line(capsys)
    assert main([*arguments, "--force"]) == 2
    assert "holds head.safetensors of another import" in one_line(capsys)
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    assert main([*arguments, "--force", "--head", str(head)]) == 0
    assert load_file(out / "student.safetensors")["embed.bias"].tolist() == [1.0] * 8


def test_command_line_bad_input(backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Exit code 2, one line, and nothing written."""
    write_hdf5(tmp_path / "wide.weights.h5", keras_head(formula_weights(classifier_shapes(16, 5))))
    out = tmp_path / "imported"
    assert main([str(backbone), "--head", str(tmp_path / "wide.weights.h5"), "--out", str(out)]) == 2
    assert "the head must take the backbone's 8 outputs, it takes 16" in one_line(capsys)
    assert main([str(tmp_path / "absent"), "--out", str(out)]) == 2
    assert "no such file" in one_line(capsys)
    assert not out.exists()


def one_line(capsys: pytest.CaptureFixture) -> str:
    """What went to stderr, which must be one line."""
    text = str(capsys.readouterr().err)
    assert text.count("\n") == 1
    return text

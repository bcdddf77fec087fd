"""Import the weights that the jBOT authors released: Keras 3 `.weights.h5` files, read without TensorFlow.

    python -m jbot.keras_weights all_backbone_pretrain_32_4_2.weights.h5 --out imported

writes `student.safetensors`, `config.json` and a model card, `card.md`; `--head all_mlp_ft_32_4_2.weights.h5` adds the
classification head as `head.safetensors`. The files come from the authors' repository,
https://github.com/hftsoi/jbot (arXiv:2601.11719).

A backbone file holds what the embedding needs. The mask token and the projection head were never released: neither
the functions nor the files here make them up. The released encoder has no attention mask, so the imported one has
`model.padding = "reference"`. From Python:

    model, backbone = load_backbone("all_backbone_pretrain_32_4_2.weights.h5")
    cls = jbot.evaluation.evaluator.embed(frozen_student(model, backbone), jets, Config(model=model))
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors.numpy import save as save_arrays

from jbot.cli import Parser, program
from jbot.config import ModelConfig
from jbot.messages import first_line
from jbot.store.storage import Storage
from jbot.trainer.classifier import classifier_shapes
from jbot.trainer.model import FEATURES, FFN_WIDTH, Flat, pack, weight_shapes
from jbot.trial.card import CARD, released_card

Arrays = dict[str, np.ndarray]
Shape = tuple[int, ...]
Sources = Mapping[str, list[tuple[str, Shape]]]
"""By our names, the datasets that make up a weight, side by side along its last axis, and their shapes."""

UNRELEASED = ("mask_token", "head1.weight", "head1.bias", "head2.weight", "head2.bias")
"""Weights of jbot.trainer.model.weight_shapes that a backbone file does not hold."""

EMBED, CLS_TOKEN = "layers/dense/vars", "layers/add_cls_token/vars"
BLOCK = re.compile(r"layers/transformer_block(_\d+)?/")
QUERY = "layers/transformer_block/mha/query_dense/vars/0"

KINDS = ("weight", "bias")
"""Keras numbers the variables of a layer: a kernel is 0, a bias 1."""
HEAD_PARTS = {"hidden1": "layers/dense", "hidden2": "layers/dense_1", "output": "layers/dense_2"}


class KerasWeightsError(ValueError):
    """A weights file that cannot be imported. Its message is one line: file, dataset and the rule that it breaks."""


def load_backbone(path: str | os.PathLike[str]) -> tuple[ModelConfig, Arrays]:
    """The encoder of a released backbone file.

    `path` is a Keras 3 `.weights.h5` file of the authors' backbone, of any width, heads and layers.

    Returns
    -------
    ModelConfig
        As the shapes in the file say, with `padding="reference"`. `projection` is not in the file: it is dim / 2,
        as in both published sizes.
    dict of float32 arrays
        By the names and shapes of :func:`jbot.trainer.model.weight_shapes`, without those in `UNRELEASED`.

    Raises
    ------
    KerasWeightsError
        When the file is missing, truncated or of another layout, or a value is not finite.
    """
    path = Path(path)
    arrays = _read(path)
    config = _infer_model(path, arrays)
    shapes = {name: shape for name, shape in weight_shapes(config).items() if name not in UNRELEASED}
    return config, _assembled(path, arrays, _backbone_sources(config), shapes)


def load_head(path: str | os.PathLike[str]) -> Arrays:
    """The classification head of a released, fine-tuned or supervised, classifier: float32 arrays by the names and
    shapes of :func:`jbot.trainer.classifier.classifier_shapes`. Raises as :func:`load_backbone`.
    """
    path = Path(path)
    arrays = _read(path)
    dim = _sizes(path, arrays, f"{HEAD_PARTS['hidden1']}/vars/0", "(dim, 2 dim)")[0]
    classes = _sizes(path, arrays, f"{HEAD_PARTS['output']}/vars/0", "(dim, classes)")[1]
    shapes = classifier_shapes(dim, classes)
    sources = {
        f"{part}.{kind}": [(f"{layer}/vars/{i}", shapes[f"{part}.{kind}"])]
        for part, layer in HEAD_PARTS.items()
        for i, kind in enumerate(KINDS)
    }
    return _assembled(path, arrays, sources, shapes)


def frozen_student(config: ModelConfig, backbone: Arrays) -> Flat:
    """A student of one trial, (1, weight), for :func:`jbot.evaluation.evaluator.embed`: it embeds, and cannot be
    trained on.

    The weights that were not released are NaN: the embedding never reads them, and whatever does shows it at once.
    """
    missing = {name: np.full(shape, np.nan) for name, shape in weight_shapes(config).items() if name in UNRELEASED}
    return pack(backbone | missing, config)[None]


def _read(path: Path) -> Arrays:
    """Every dataset of the file by its name, float32."""
    if not path.is_file():
        raise KerasWeightsError(f"{path}: no such file")
    arrays: dict[str, Any] = {}

    def collect(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(collect)
    except (OSError, RuntimeError, KeyError) as error:
        raise KerasWeightsError(f"{path}: must be a whole HDF5 file: {first_line(error)}") from None
    for name, array in arrays.items():
        is_array, where = isinstance(array, np.ndarray), f"{path}: dataset {name}"
        got = f"{array.dtype}{list(array.shape)}" if is_array else type(array).__name__
        if not is_array or not np.issubdtype(array.dtype, np.floating):
            raise KerasWeightsError(f"{where} must be an array of floats, got {got}")
        if not np.isfinite(array).all():
            raise KerasWeightsError(f"{where} must be finite, got {got} with NaN or infinity")
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _infer_model(path: Path, arrays: Arrays) -> ModelConfig:
    """Width, heads and layers, from the shapes of two kernels and the number of blocks."""
    _, heads, key_dim = _sizes(path, arrays, QUERY, "(dim, heads, key_dim)")
    features, dim = _sizes(path, arrays, f"{EMBED}/0", f"({FEATURES}, dim)")
    if features != FEATURES:
        raise KerasWeightsError(f"{path}: dataset {EMBED}/0 must have shape ({FEATURES}, dim), got {(features, dim)}")
    if key_dim == 0 or dim // heads != key_dim:
        rule = f"key_dim = dim // heads = {dim // heads}"
        raise KerasWeightsError(f"{path}: dataset {QUERY} must have {rule}, got {key_dim}")
    blocks = {match.group() for name in arrays if (match := BLOCK.match(name))}
    return ModelConfig(dim=dim, heads=heads, layers=len(blocks), projection=max(2, dim // 2), padding="reference")


def _sizes(path: Path, arrays: Arrays, dataset: str, form: str) -> Shape:
    """Shape of a dataset that must be there, with as many axes as `form` names and none of them empty."""
    if dataset not in arrays:
        held = f"{len(arrays)} datasets, {min(arrays)} first" if arrays else "none"
        raise KerasWeightsError(f"{path}: dataset {dataset} is missing, the file holds {held}")
    shape = arrays[dataset].shape
    if len(shape) != form.count(",") + 1 or 0 in shape:
        raise KerasWeightsError(f"{path}: dataset {dataset} must have shape {form}, got {shape}")
    return shape


def _backbone_sources(config: ModelConfig) -> Sources:
    """Where the weights of a backbone file lie: query, key and value have datasets of their own."""
    d, heads, k = config.dim, config.heads, config.head_dim
    sources: dict[str, list[tuple[str, Shape]]] = {
        "embed.weight": [(f"{EMBED}/0", (FEATURES, d))],
        "embed.bias": [(f"{EMBED}/1", (d,))],
        "cls_token": [(f"{CLS_TOKEN}/0", (1, 1, d))],
    }
    # For each part, its layers in Keras, which numbers those of a class, and the shapes of kernel and bias.
    blocks: dict[str, tuple[list[str], tuple[Shape, Shape]]] = {
        "qkv": ([f"mha/{part}_dense" for part in ("query", "key", "value")], ((d, heads, k), (heads, k))),
        "out": (["mha/output_dense"], ((heads, k, d), (d,))),
        "norm1": (["ln1"], ((d,), (d,))),
        "ffn1": (["ffn/layers/dense"], ((d, FFN_WIDTH * d), (FFN_WIDTH * d,))),
        "ffn2": (["ffn/layers/dense_1"], ((FFN_WIDTH * d, d), (d,))),
        "norm2": (["ln2"], ((d,), (d,))),
    }
    for layer in range(config.layers):
        root = "layers/transformer_block" + (f"_{layer}" if layer else "")
        for part, (layers, shapes) in blocks.items():
            for i, kind in enumerate(KINDS):
                sources[f"block{layer}.{part}.{kind}"] = [(f"{root}/{name}/vars/{i}", shapes[i]) for name in layers]
    return sources


def _assembled(path: Path, arrays: Arrays, sources: Sources, shapes: Mapping[str, Shape]) -> Arrays:
    """The weights of these names and shapes, heads flattened; the file must hold their datasets and no others."""
    layout = {dataset: shape for parts in sources.values() for dataset, shape in parts}
    for dataset, shape in layout.items():
        if dataset not in arrays:
            raise KerasWeightsError(f"{path}: dataset {dataset} is missing, it must have shape {shape}")
        if arrays[dataset].shape != shape:
            raise KerasWeightsError(f"{path}: dataset {dataset} must have shape {shape}, got {arrays[dataset].shape}")
    unknown = sorted(arrays.keys() - layout.keys())
    if unknown:
        raise KerasWeightsError(f"{path}: dataset {unknown[0]} is not part of a jBOT model of this kind")
    return {
        name: np.concatenate([arrays[dataset].reshape(*shape[:-1], -1) for dataset, _ in sources[name]], axis=-1)
        for name, shape in shapes.items()
    }


def import_files(backbone: Path, head: Path | None, folder: str, force: bool = False) -> list[str]:
    """Write the imported weights and their config; returns the names of the files written.

    Raises KerasWeightsError when a file cannot be imported, head and backbone differ in width, or an earlier import
    would be overwritten.
    """
    model, weights = load_backbone(backbone)
    sources = {"backbone": _source(backbone)}
    files = {"student.safetensors": save_arrays(weights, sources["backbone"])}
    if head is not None:
        layers, sources["head"] = load_head(head), _source(head)
        dim = layers["hidden1.weight"].shape[0]
        if dim != model.dim:
            raise KerasWeightsError(f"{head}: the head must take the backbone's {model.dim} outputs, it takes {dim}")
        files["head.safetensors"] = save_arrays(layers, sources["head"])
    files[CARD] = released_card(model, sources).encode()
    # Read by jbot.config.from_dict. Written last: a folder with it is complete.
    files["config.json"] = json.dumps({"model": dataclasses.asdict(model)}, indent=1).encode()
    storage = Storage(folder)
    _check_overwrite(storage, files, force)
    for name, content in files.items():
        storage.write(name, content)
    return list(files)


def _check_overwrite(storage: Storage, files: dict[str, bytes], force: bool) -> None:
    there = [name for name in ("student.safetensors", "head.safetensors", "config.json") if storage.exists(name)]
    if there and not force:
        raise KerasWeightsError(f"{storage.uri}: holds {there[0]} already; --force replaces it")
    left = [name for name in there if name not in files]
    if left:
        raise KerasWeightsError(f"{storage.uri}: holds {left[0]} of another import; give --head or another folder")


def _source(path: Path) -> dict[str, str]:
    """Where weights came from, for the header of their file."""
    return {"source": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 2 and one line on stderr when the input is bad."""
    parser = Parser(prog="python -m jbot.keras_weights", description="Import released jBOT weights.")
    parser.add_argument("backbone", type=Path, metavar="BACKBONE.weights.h5")
    parser.add_argument("--head", type=Path, metavar="HEAD.weights.h5", help="classification head to import with it")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the imported files go")
    parser.add_argument("--force", action="store_true", help="replace an earlier import")
    options = parser.parse_args(arguments)
    written = import_files(options.backbone, options.head, options.out, options.force)
    print(f"{options.out}: wrote {', '.join(written)}")
    return 0

"""Make tests/data/parity.safetensors: what the authors' released TensorFlow code computes on fixed inputs.

    pip install -e . tensorflow-cpu==2.21.0 keras==3.12.0 matplotlib seaborn
    git clone https://github.com/hftsoi/jbot authors
    python tests/make_parity.py --reference authors

Their functions and their training loop run as released. Only what they draw at random is given to them (the draws are
in the file), and the loop's views and masks. tests/jbot/trainer/test_parity.py repeats all of it with jbot, without
TensorFlow.
Keras 3.12 is of the time of the released weights. From 3.15 on Keras counts the fans of attention kernels otherwise
(keras pull request 22789) and starts from other ranges. The starting weights of the forward pass and of training are a
formula, so the file does not hold them; no weight in it is the authors'.

Training is compared on views whose padding is put back to zero. Smeared padding lies up to 1000 away from the jet
axis; rounding in float32 then grows some tenfold a step, in either code, so only the first steps can be compared.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import h5py
import numpy as np
from safetensors.numpy import save_file

from jbot.config import ModelConfig
from jbot.encoder.keras_weights import load_backbone
from jbot.trainer.classifier import classifier_shapes
from jbot.trainer.model import weight_shapes

Arrays = dict[str, np.ndarray]

DATA = Path(__file__).parent / "data" / "parity.safetensors"
MODELS = {
    "S": ModelConfig(padding="reference"),
    "B": ModelConfig(dim=64, heads=6, layers=4, projection=32, padding="reference"),
}
CLASSES = 5
VALID_PARTICLES = (2, 5, 10, 15, 18, 24, 29, 30)  # of each jet
PARTICLE_JETS = {"S": 8, "B": 4}  # jets whose particle tokens are kept: the file stays small
EPOCHS, WARMUP, LR, KOLEO_WEIGHT = 8, 4, 2e-3, 0.01
# Far from the paper's 1e-4 and 0.996, so that eight steps show what is decayed, in which order, and what is averaged.
WEIGHT_DECAY, EMA_MOMENTUM = 10.0, 0.9
HISTORY = {
    "loss": "loss_total",
    "cls_loss": "loss_cls",
    "particle_loss": "loss_patch",
    "koleo_loss": "loss_koleo",
    "teacher_entropy": "entropy_teacher",
}
PROJECTION_HEAD = ("head1.weight", "head1.bias", "head2.weight", "head2.bias")
TEACHER_KEPT = ("embed.weight", "block1.qkv.weight", "block1.ffn2.bias", "head2.weight")
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def formula_weights(shapes: dict[str, tuple[int, ...]]) -> Arrays:
    """Weights that any machine computes again bit for bit: a quadratic Weyl sequence, frac(n^2 * golden ratio).

    Kernels are spread like Glorot uniform ones; biases and tokens are not zero, so that a misplaced one shows.
    """
    weights = {}
    for name, shape in shapes.items():
        n = np.arange(1, math.prod(shape) + 1, dtype=np.float64) + zlib.crc32(name.encode()) % 1000
        spread = 2.0 * (GOLDEN * n**2 % 1.0) - 1.0
        if len(shape) == 2:
            value = math.sqrt(6.0 / sum(shape)) * spread
        else:
            value = (1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.1 * spread
        weights[name] = value.reshape(shape).astype(np.float32)
    return weights


def keras_backbone(config: ModelConfig, weights: Arrays) -> Arrays:
    """Datasets of a released backbone file, by the names Keras gives them."""
    d, heads, k = config.dim, config.heads, config.head_dim
    datasets = {
        "layers/dense/vars/0": weights["embed.weight"],
        "layers/dense/vars/1": weights["embed.bias"],
        "layers/add_cls_token/vars/0": weights["cls_token"].reshape(1, 1, d),
    }
    for layer in range(config.layers):
        root = "layers/transformer_block" if layer == 0 else f"layers/transformer_block_{layer}"
        kernels = np.split(weights[f"block{layer}.qkv.weight"], 3, axis=1)
        biases = np.split(weights[f"block{layer}.qkv.bias"], 3)
        for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            datasets[f"{root}/mha/{part}_dense/vars/0"] = kernel.reshape(d, heads, k)
            datasets[f"{root}/mha/{part}_dense/vars/1"] = bias.reshape(heads, k)
        datasets[f"{root}/mha/output_dense/vars/0"] = weights[f"block{layer}.out.weight"].reshape(heads, k, d)
        datasets[f"{root}/mha/output_dense/vars/1"] = weights[f"block{layer}.out.bias"]
        for ours, theirs in {
            "norm1": "ln1",
            "norm2": "ln2",
            "ffn1": "ffn/layers/dense",
            "ffn2": "ffn/layers/dense_1",
        }.items():
            datasets[f"{root}/{theirs}/vars/0"] = weights[f"block{layer}.{ours}.weight"]
            datasets[f"{root}/{theirs}/vars/1"] = weights[f"block{layer}.{ours}.bias"]
    return datasets


def keras_head(weights: Arrays) -> Arrays:
    """Datasets of a released classification head file."""
    layers = {"hidden1": "dense", "hidden2": "dense_1", "output": "dense_2"}
    return {
        f"layers/{theirs}/vars/{i}": weights[f"{ours}.{kind}"]
        for ours, theirs in layers.items()
        for i, kind in enumerate(("weight", "bias"))
    }


def write_hdf5(path: Path, datasets: Arrays) -> None:
    """A file with these datasets."""
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value


def make_jets(generator: np.random.Generator) -> np.ndarray:
    """Toy jets (jet, particle, 4) with a falling pt_rel, and 2 to 30 valid particles."""
    jets = np.zeros((len(VALID_PARTICLES), 30, 4), np.float32)
    for jet, valid in zip(jets, VALID_PARTICLES, strict=True):
        jet[:valid, :2] = generator.normal(0.0, 0.1, (valid, 2))
        jet[:valid, 2] = np.sort(generator.dirichlet(np.full(valid, 0.7)))[::-1]
        jet[:valid, 3] = 1.0
    return jets


def make_draws(generator: np.random.Generator, jets: int) -> Arrays:
    """Everything random of one step: a row for each view, jet and particle."""
    return {
        "angle": generator.uniform(-math.pi, math.pi, (2, jets)).astype(np.float32),
        "noise": generator.normal(0.0, 1.0, (2, jets, 30, 2)).astype(np.float32),
        "split_key": generator.uniform(0.0, 1.0, (2, jets, 30)).astype(np.float32),
        "share": generator.uniform(0.3, 0.7, (2, jets, 30)).astype(np.float32),
        "ratio": generator.uniform(0.05, 0.5, (2, jets)).astype(np.float32),
        "mask_key": generator.uniform(0.0, 1.0, (2, jets, 30)).astype(np.float32),
    }


class GivenDraws:
    """Stands in for the authors' generator while they augment one jet: hands out given numbers."""

    def __init__(self, angle: float, noise: np.ndarray, key: np.ndarray, share: np.ndarray):
        self._angle, self._share, self._key = float(angle), share, key
        self._noise = iter(noise.T)
        self._chosen: list[int] = []

    def uniform(self, low: float, high: float) -> float:
        """The angle of the rotation, or the next split particle's share."""
        if low < 0:
            return self._angle
        assert (low, high) == (0.3, 0.7)
        return float(self._share[self._chosen.pop(0)])

    def normal(self, mean: float, sigma: np.ndarray) -> np.ndarray:
        """The smearing, of eta, then of phi."""
        return mean + sigma * next(self._noise)

    def choice(self, valid: np.ndarray, count: int, replace: bool) -> np.ndarray:
        """The particles to split: those with the smallest keys."""
        assert not replace
        self._chosen = sorted(valid.tolist(), key=lambda particle: self._key[particle])[:count]
        return np.array(self._chosen)


def reference_views(utils: ModuleType, jets: np.ndarray, draws: Arrays) -> np.ndarray:
    """Their augmentation of each jet, twice: (view, jet, particle, 4)."""
    views = np.zeros((2, *jets.shape), np.float32)
    for view, jet in np.ndindex(2, len(jets)):
        given = GivenDraws(*(draws[name][view, jet] for name in ("angle", "noise", "split_key", "share")))
        with mock.patch.object(utils, "RNG", given):
            views[view, jet] = utils.augment_jet(jets[jet].copy())
    return views


def reference_masked(utils: ModuleType, views: np.ndarray, draws: Arrays) -> np.ndarray:
    """Their masked particles, (view, jet, particle) bool."""
    masked = []
    for view, ratio, key in zip(views, draws["ratio"], draws["mask_key"], strict=True):
        given = [utils.tf.zeros(len(view)), utils.tf.constant(ratio), utils.tf.constant(key)]  # coin, ratio, order
        with mock.patch.object(utils.tf.random, "uniform", side_effect=given):
            masked.append(utils.tf_make_masks_pt_ratio.python_function(view, 1.0, (0.0, 0.5)).numpy())
    return np.stack(masked)


def reference_backbone(utils: ModuleType, config: ModelConfig, folder: Path, name: str) -> Any:
    """Their encoder with our formula's weights, loaded by Keras from a file that we write."""
    path = folder / "formula.weights.h5"
    write_hdf5(path, keras_backbone(config, formula_weights(weight_shapes(config))))
    backbone = utils.build_backbone(config.dim, config.heads, config.layers, name=name)
    backbone.load_weights(path)
    return backbone


def reference_forward(utils: ModuleType, folder: Path, views: np.ndarray) -> Arrays:
    """Their encoder, S and B, on view u; and their classification head on the [CLS] of S."""
    outputs = {}
    for size, config in MODELS.items():
        cls, particle = reference_backbone(utils, config, folder, "backbone")(views[0])
        outputs[f"{size}/cls"] = cls.numpy()
        outputs[f"{size}/particle"] = particle.numpy()[: PARTICLE_JETS[size]]
    head = utils.build_mlp(MODELS["S"].dim, CLASSES)
    write_hdf5(folder / "head.weights.h5", keras_head(formula_weights(classifier_shapes(MODELS["S"].dim, CLASSES))))
    head.load_weights(folder / "head.weights.h5")
    return outputs | {"S/probability": head(outputs["S/cls"]).numpy()}


def reference_initial(utils: ModuleType, folder: Path) -> Arrays:
    """Largest absolute value of every weight as Keras draws it, `initial/<size>/<name>`, each of shape (1,)."""
    largest = {}
    for size, config in MODELS.items():
        backbone = utils.build_backbone(config.dim, config.heads, config.layers)
        head = utils.build_proj_head(config.dim, config.projection, "head")
        for name, value in named_weights(config, backbone, head, folder).items():
            largest[f"initial/{size}/{name}"] = np.abs(value).max(keepdims=True).reshape(1)
    return largest


class ReferenceRun:
    """Their student, teacher, mask token and centers, starting from our formula's weights."""

    def __init__(self, utils: ModuleType, folder: Path):
        self.folder, self.config, initial = folder, MODELS["S"], formula_weights(weight_shapes(MODELS["S"]))
        self.student, self.teacher = (reference_backbone(utils, self.config, folder, name) for name in ("s", "t"))
        dim, outputs = self.config.dim, self.config.projection
        self.student_head, self.teacher_head = (utils.build_proj_head(dim, outputs, f"head_{name}") for name in "st")
        for head in (self.student_head, self.teacher_head):
            head.set_weights([initial[name] for name in PROJECTION_HEAD])
        self.masker = utils.MaskTokens(dim)
        self.masker.build((None, 30, dim))
        self.masker.set_weights([initial["mask_token"]])
        self.centers = [utils.tf.Variable(utils.tf.zeros([outputs]), trainable=False) for _ in range(2)]
        self.optimizer = utils.keras.optimizers.AdamW(learning_rate=LR, weight_decay=WEIGHT_DECAY)
        self.found: Arrays = {}

    def progress_bar(self, **_settings: Any) -> Any:
        """Stands in for the loop's progress bar: it is told when a step is done."""
        return mock.Mock(update=self.after_step)

    def after_step(self, *_step: Any, **_values: Any) -> None:
        """Keep what the student is after the first and the last step, and some of the teacher after the last."""
        step = int(self.optimizer.iterations.numpy())
        if step in (1, EPOCHS):
            weights = named_weights(self.config, self.student, self.student_head, self.folder)
            weights["mask_token"] = self.masker.mask_token.numpy()
            weights["cls_center"], weights["particle_center"] = (center.numpy() for center in self.centers)
            self.found |= {f"step{step}/{name}": value for name, value in weights.items()}
        if step == EPOCHS:
            weights = named_weights(self.config, self.teacher, self.teacher_head, self.folder)
            self.found |= {f"teacher{step}/{name}": weights[name] for name in TEACHER_KEPT}


def reference_training(
    utils: ModuleType, folder: Path, jets: np.ndarray, views: np.ndarray, masked: np.ndarray
) -> Arrays:
    """Their training loop for 8 epochs of one step, on these views and masks.

    `history/*` has a value a step; `step1/*` and `step8/*` are student and centers after them, `teacher8/*` some of the
    teacher.
    """
    run = ReferenceRun(utils, folder)
    # TensorFlow may trace a step more than once; each trace asks for view u, then for view v.
    given_views, given_masked = itertools.cycle(views), itertools.cycle(masked)

    def next_view(_jets: Any) -> Any:
        return utils.tf.constant(next(given_views))

    def next_masked(_view: Any, **_settings: Any) -> Any:
        return utils.tf.constant(next(given_masked))

    with (
        mock.patch.object(utils, "tf_augment_batch", next_view),
        mock.patch.object(utils, "tf_make_masks_pt_ratio", next_masked),
        mock.patch.object(utils, "Progbar", run.progress_bar),
    ):
        history = utils.train_jbot(
            x_train=jets, epochs=EPOCHS, batch_size=len(jets), optimizer=run.optimizer, base_lr=LR,
            warmup_epochs=WARMUP, ema_tau=EMA_MOMENTUM, student=run.student, teacher=run.teacher,
            proj_head_s=run.student_head, proj_head_t=run.teacher_head, n_layers=run.config.layers,
            d_proj=run.config.projection, mask_prob=1, mask_ratio_range=(0, 0.5), masker=run.masker,
            center_cls=run.centers[0], center_patch=run.centers[1], center_beta=0.9, temp_t=0.04, temp_s=0.1,
            use_hint=False, hint_hidden=0, lambda_koleo=KOLEO_WEIGHT, save_student_snapshots=False, snapshot_dir=None,
        )  # fmt: skip
    return run.found | {f"history/{ours}": np.array(history[theirs], np.float32) for ours, theirs in HISTORY.items()}


def named_weights(config: ModelConfig, backbone: Any, head: Any, folder: Path) -> Arrays:
    """Weights of encoder and projection head by our names; Keras writes them to a file, our importer reads it."""
    backbone.save_weights(folder / "now.weights.h5")
    imported, weights = load_backbone(folder / "now.weights.h5")
    assert imported == config
    return weights | dict(zip(PROJECTION_HEAD, head.get_weights(), strict=True))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make tests/data/parity.safetensors from the authors' code.")
    parser.add_argument("--reference", type=Path, required=True, help="checkout of the authors' repository")
    sys.path.insert(0, str(parser.parse_args().reference))
    import utils  # the authors'

    generator = np.random.default_rng(0)
    jets = make_jets(generator)
    draws = make_draws(generator, len(jets))
    views = reference_views(utils, jets, draws)
    masked = reference_masked(utils, views, draws)
    with tempfile.TemporaryDirectory() as folder:
        outputs = reference_forward(utils, Path(folder), views)
        outputs |= reference_initial(utils, Path(folder))
        outputs |= reference_training(utils, Path(folder), jets, views * views[..., 3:], masked)
        smeared = reference_training(utils, Path(folder), jets, views, masked)
        outputs |= {f"smeared/{name}": value for name, value in smeared.items() if name.startswith("history/")}
    arrays = {"jets": jets, "views": views, "masked": masked} | draws | outputs
    versions = {"keras": utils.keras.__version__, "tensorflow": utils.tf.__version__, "numpy": np.__version__}
    DATA.parent.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, DATA, versions)
    print(f"{DATA}: {len(arrays)} arrays, {DATA.stat().st_size / 1000:.0f} kB, {versions}")


if __name__ == "__main__":
    main()

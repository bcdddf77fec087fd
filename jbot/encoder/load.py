"""A trained encoder, however it was saved, ready to embed jets.

    import jbot
    encoder = jbot.load("results/trials/0123456789abcdef")
    cls = encoder.embed(particles)  # (jet, 30, 4) -> (jet, dim) float32

Axes: (jet, particle, 4) with the columns eta_rel, phi_rel, pt_rel, valid, leading particles first, as in JetNet.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jbot.config import Config, ConfigError, DataConfig, ModelConfig, from_dict
from jbot.data.hdf5 import check_particles
from jbot.data.jets import CLASSES, N_PARTICLES, DataError, shared_tensor
from jbot.data.splits import TARGETS
from jbot.encoder.keras_weights import UNRELEASED, KerasWeightsError, frozen_student, load_backbone, load_head
from jbot.messages import first_line, without_secret
from jbot.store.record import Record, read_record
from jbot.store.storage import RecordError, Storage
from jbot.trainer.classifier import classifier_logits, classifier_shapes
from jbot.trainer.embed import embed_on_device
from jbot.trainer.engines.select import ENGINES, Forward, find_engine
from jbot.trainer.model import FEATURES, weight_shapes

BLOCK = 8_192
"""Jets checked and moved to the device together: 4 MB of particles (assumed)."""

CLASSIFIER = "classifier."
"""Opens the names of a fine-tuned head's weights."""

Arrays = dict[str, np.ndarray]


class EncoderError(ValueError):
    """An encoder that cannot be used. Its message is one line: what it is, the rule, and what was found."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where weights came from; None is what nobody recorded."""

    source: str
    """File or folder, as a path or URI."""
    sha256: str
    """Checksum of the weights file."""
    record: Record | None = field(default=None, repr=False)
    """Record of the trial that trained them."""
    training: Config | None = field(default=None, repr=False)
    """Config of that trial."""


class Encoder:
    """A frozen encoder, with its classification head when it has one. Made by :func:`load`; can be pickled.

    Attributes
    ----------
    config : ModelConfig
        The model's shape.
    particles : int
        Leading particles it looks at, those it was trained on.
    classes : tuple of str or None
        What :meth:`predict_proba` tells apart; None without a head.
    provenance : Provenance
        Source, sha256 of the weights, and record and Config of the trial, as far as they are known.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Arrays,
        provenance: Provenance,
        *,
        head: Arrays | None = None,
        classes: tuple[str, ...] | None = None,
        device: str = "cpu",
        engine: str = "fused",
    ):
        self.config, self.provenance, self.classes = config, provenance, classes
        training = provenance.training
        self.particles = training.data.particles if training else N_PARTICLES
        self.device, self.engine = device, engine
        self._weights, self._head = weights, head

    def __repr__(self) -> str:
        shape = f"dim={self.config.dim}, heads={self.config.heads}, layers={self.config.layers}"
        return f"Encoder({shape}, classes={self.classes}, source={self.source!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Without tensors and compiled code: they are made again where it is needed."""
        return {name: value for name, value in vars(self).items() if name not in ("_forward", "_student", "_layers")}

    @property
    def source(self) -> str:
        """Where the weights were read from."""
        return self.provenance.source

    def embed(self, particles: npt.ArrayLike) -> np.ndarray:
        """The [CLS] embedding of jets.

        Parameters
        ----------
        particles : array (jet, particle, 4)
            eta_rel, phi_rel, pt_rel, valid of up to 30 particles, leading ones first, padding zero. Any real dtype.
            Never changed, and copied only where it is not float32 or has fewer particles than the encoder looks at.

        Returns
        -------
        float32 array (jet, dim)

        Raises
        ------
        DataError
            One line with the rule, the row and the value, for input that is no jets of this form.
        """
        jets = as_jets(particles)
        result = np.empty((len(jets), self.config.dim), np.float32)
        for first in range(0, len(jets), BLOCK):
            rows = slice(first, first + BLOCK)
            block = shared_tensor(prepared(jets[rows], self.particles, first)).to(self.device)
            cls = embed_on_device(self._student, block, Config(model=self.config), self._forward)
            if not bool(torch.isfinite(cls).all()):
                last = first + len(block) - 1
                raise DataError(f"particles, rows {first} to {last}: too large for a finite embedding")
            result[rows] = cls.cpu().numpy()
        return result

    def check(self, particles: npt.ArrayLike) -> None:
        """Raise the DataError that :meth:`embed` would, without embedding."""
        jets = as_jets(particles)
        for first in range(0, len(jets), BLOCK):
            prepared(jets[first : first + BLOCK], self.particles, first)

    def predict_proba(self, particles: npt.ArrayLike) -> np.ndarray:
        """Probability of each of `classes`, float32 (jet, class); raises EncoderError without a head."""
        return self.probabilities(self.embed(particles))

    def probabilities(self, cls: np.ndarray) -> np.ndarray:
        """The same, (jet, class), from an embedding (jet, dim) that :meth:`embed` gave."""
        if self.classes is None:
            raise EncoderError(f"{self.source}: has no classification head, it only embeds")
        with torch.no_grad():
            parts = [
                classifier_logits(self._layers, part[None].to(self.device))[0].softmax(1).cpu()
                for part in torch.from_numpy(np.ascontiguousarray(cls, np.float32)).split(BLOCK)
            ]
        return torch.cat(parts).numpy()

    def facts(self) -> dict[str, Any]:
        """What is known of the checkpoint, as JSON can hold it: for the header of files made with it."""
        record = self.provenance.record
        known = {
            "source": self.source,
            "sha256": self.provenance.sha256,
            "model": dataclasses.asdict(self.config),
            "classes": self.classes and list(self.classes),
        }
        if record is None:
            return known
        parts = ("trial_id", "study", "arm", "config", "data", "trainer_version", "git_commit")
        return known | {name: getattr(record, name) for name in parts}

    @functools.cached_property
    def _forward(self) -> Forward:
        shape = Config(model=self.config, data=DataConfig(particles=self.particles))
        return find_engine(self.engine, shape, torch.device(self.device)).forward

    @functools.cached_property
    def _student(self) -> torch.Tensor:
        return frozen_student(self.config, self._weights).to(self.device)

    @functools.cached_property
    def _layers(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(value)[None].to(self.device) for name, value in (self._head or {}).items()}


def as_jets(particles: npt.ArrayLike) -> np.ndarray:
    """The same numbers as an array (jet, particle, 4), not copied if they are one; values are not looked at.

    Raises DataError for another shape or dtype.
    """
    try:
        jets = np.asarray(particles)
    except (ValueError, TypeError) as error:
        raise DataError(f"particles must be an array (jet, particle, {FEATURES}): {first_line(error)}") from None
    if jets.shape == (0,):
        return np.empty((0, N_PARTICLES, FEATURES), np.float32)
    if jets.dtype.kind not in "fiu":
        raise DataError(f"particles must be real numbers, got dtype {jets.dtype}")
    if jets.ndim != 3:
        hint = "; a single jet is particles[None]" if jets.ndim == 2 and jets.shape[1] == FEATURES else ""
        raise DataError(f"particles must have shape (jet, particle, {FEATURES}), got {jets.shape}{hint}")
    if jets.shape[2] != FEATURES:
        hint = ": the flag valid (1 for a particle, 0 for padding) is missing" if jets.shape[2] == FEATURES - 1 else ""
        raise DataError(f"particles must have the columns eta_rel, phi_rel, pt_rel, valid, got {jets.shape[2]}{hint}")
    if not 1 <= jets.shape[1] <= N_PARTICLES:
        raise DataError(f"a jet must have 1 to {N_PARTICLES} particles, the leading ones, got {jets.shape[1]}")
    return jets


def prepared(jets: np.ndarray, particles: int, first: int = 0) -> np.ndarray:
    """Checked jets as an encoder wants them: float32, (jet, particles, 4), contiguous; copied only if need be.

    Missing particles are padding: an encoder that sees padding was trained with all slots.
    """
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which is reported
        jets = jets.astype(np.float32, copy=False)
    check_jets(jets, first)
    missing = particles - jets.shape[1]
    if missing > 0:
        return np.pad(jets, ((0, 0), (0, missing), (0, 0)))
    return np.ascontiguousarray(jets[:, :particles])


def check_jets(jets: np.ndarray, first: int = 0) -> None:
    """Check the values of (jet, particle, 4) float32; rows are numbered from `first` in the DataError."""
    check_particles(jets, "particles", first)
    stray = (jets[..., 3] == 0) & (jets[..., :3] != 0).any(2)
    if stray.any():
        row, slot = np.argwhere(stray)[0]
        got = ", ".join(f"{value:g}" for value in jets[row, slot, :3])
        raise DataError(f"particles, row {first + row}, particle {slot}: padding (valid = 0) must be zero, got {got}")


def load(
    checkpoint: str | os.PathLike[str],
    *,
    head: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    engine: str = "fused",
) -> Encoder:
    """A trained encoder, frozen.

    Parameters
    ----------
    checkpoint : path or URI
        A trial's folder, `<storage>/trials/<id>`, local or e.g. s3://; a folder that `python -m jbot.keras_weights`
        wrote; a `student.safetensors` or `classifier_<run>.safetensors` in one of these; or a released `.weights.h5`.
    head : path, optional
        The classification head that belongs to a released `.weights.h5`, another such file.
    device : str
        "cpu", "cuda" or "cuda:1".
    engine : str
        What computes the encoder, one of jbot.trainer.engines.select.ENGINES. The default is the C++ kernel on a
        CPU, plain torch on a GPU or without a compiler.

    Raises
    ------
    EncoderError
        One line: missing, unfinished, failed, damaged or incomplete checkpoints, an unknown device.
    """
    if engine not in ENGINES:
        raise EncoderError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    options = {"device": _device(device), "engine": engine}
    address = os.fspath(checkpoint)
    try:
        if address.endswith(".h5"):
            path = Path(address).expanduser()
            model, weights = load_backbone(path)
            layers = None if head is None else load_head(Path(head).expanduser())
            released = Provenance(source=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
            return _encoder(model, weights, layers, released, options)
        if head is not None:
            raise EncoderError(f"head is for a released .weights.h5 file, got {address} with it")
        return _load_saved(address, options)
    except (KerasWeightsError, RecordError, ConfigError, OSError) as error:  # OSError: a store that refuses
        raise EncoderError(first_line(error)) from None


def _load_saved(address: str, options: dict[str, Any]) -> Encoder:
    """From a folder, or a .safetensors file in one, with a record.json or config.json that says what it is."""
    if "://" not in address:
        address = str(Path(address).expanduser().absolute())
    folder, name = address.rstrip("/"), "student.safetensors"
    if address.endswith(".safetensors"):
        folder, _, name = address.rpartition("/")
    storage = Storage(folder)
    record = _record_of(storage)
    config = from_dict(record.config if record else storage.read_json("config.json"))
    if not storage.exists(name):
        raise EncoderError(f"{storage.uri}: holds no {name}")
    arrays = storage.read_arrays(name)
    layers = {key.removeprefix(CLASSIFIER): value for key, value in arrays.items() if key.startswith(CLASSIFIER)}
    if not layers and record is None and storage.exists("head.safetensors"):
        layers = storage.read_arrays("head.safetensors")
    provenance = Provenance(
        source=without_secret(address),
        sha256=hashlib.sha256(storage.read(name)).hexdigest(),
        record=record,
        training=config if record else None,
    )
    return _encoder(config.model, arrays, layers or None, provenance, options)


def _record_of(storage: Storage) -> Record | None:
    """The record beside the weights, or None where an import left a config.json instead."""
    if storage.exists("record.json"):
        record = read_record(storage, "record.json")
        if record.state == "failed":
            raise EncoderError(f"{storage.uri}: this trial failed ({record.reason}), its weights are no embedding")
        return record
    if storage.exists("config.json"):
        return None
    if not storage.exists(""):
        raise EncoderError(f"{storage.uri}: no such file or folder")
    if storage.exists("checkpoint"):
        raise EncoderError(f"{storage.uri}: this trial has not ended, it has no record.json yet")
    trials = storage.names("trials")
    hint = f"; name one of its trials, e.g. {storage.uri}/trials/{trials[0]}" if trials else ""
    raise EncoderError(f"{storage.uri}: no checkpoint, it must hold a record.json or a config.json{hint}")


def _encoder(
    model: ModelConfig, arrays: Arrays, head: Arrays | None, provenance: Provenance, options: dict[str, Any]
) -> Encoder:
    needed = {name: shape for name, shape in weight_shapes(model).items() if name not in UNRELEASED}
    weights = _checked(arrays, needed, provenance.source)
    if head is None:
        return Encoder(model, weights, provenance, **options)
    count = head["output.bias"].size if "output.bias" in head else 0
    layers = _checked(head, classifier_shapes(model.dim, count), f"{provenance.source}, classification head")
    # By the task of the trial. A released head is of the task all or tqg, and its size tells which.
    task = provenance.training.data.task if provenance.training else "all" if count == len(CLASSES) else "tqg"
    classes = tuple(TARGETS[task])
    if len(classes) != count:
        raise EncoderError(f"{provenance.source}: a head must have {len(classes)} classes, it has {count}")
    return Encoder(model, weights, provenance, head=layers, classes=classes, **options)


def _checked(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]], where: str) -> Arrays:
    """The weights of these names, float32, each there, of its shape, and finite."""
    for name, shape in shapes.items():
        if name not in arrays:
            raise EncoderError(f"{where}: weight {name} is missing")
        if arrays[name].shape != shape:
            raise EncoderError(f"{where}: weight {name} must have shape {shape}, got {arrays[name].shape}")
        if not np.isfinite(arrays[name]).all():
            raise EncoderError(f"{where}: weight {name} must be finite, it holds NaN or infinity")
    return {name: np.ascontiguousarray(arrays[name], np.float32) for name in shapes}


def _device(name: str) -> str:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise EncoderError(f"device must be cpu, cuda or cuda:<number>, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EncoderError(f"device {name!r} is not there, torch sees {torch.cuda.device_count()} CUDA devices")
    return str(device)

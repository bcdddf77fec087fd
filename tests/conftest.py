"""Shapes are checked in every test: jaxtyping annotations of the trainer, by beartype."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook(
    [
        "jbot.streams",
        "jbot.augment",
        "jbot.masking",
        "jbot.model",
        "jbot.classifier",
        "jbot.loss",
        "jbot.train",
        "jbot.pack",
        "jbot.probes",
        "jbot.geometry",
        "jbot.evaluate",
        "jbot.finetune",
    ],
    "beartype.beartype",
)

import signal

import numpy as np
import pytest
import torch
from hypothesis import settings

from jbot.config import Config, override
from jbot.data import JetData, chunks, pythia
from jbot.data.jetdata import content_fingerprint

settings.register_profile("tests", deadline=None, max_examples=40, derandomize=True)  # shared machines are slow
settings.load_profile("tests")


def make_jets(count: int, seed: int = 0, slots: int = 30, least: int = 2) -> np.ndarray:
    """Random particles (jet, slot, 4) with what the trainer relies on: falling pt_rel that sum to 1, zero padding."""
    rng = np.random.default_rng(seed)
    jets = np.zeros((count, slots, 4), np.float32)
    for jet in jets:
        n = rng.integers(least, slots + 1)
        pt = np.sort(rng.exponential(size=n) + 1e-3)[::-1]
        jet[:n, :2] = rng.normal(0, 0.1, (n, 2))
        jet[:n, 2] = pt / pt.sum()
        jet[:n, 3] = 1
    return jets


def make_data(per_class: int, seed: int = 0) -> JetData:
    """Labeled random jets whose classes differ in width, so that a probe has something to find."""
    particles = make_jets(5 * per_class, seed)
    labels = np.repeat(np.arange(5), per_class)
    particles[..., :2] *= (1 + labels)[:, None, None]
    features = np.ones((len(labels), 4), np.float32)
    fingerprint = content_fingerprint(particles, labels, features)
    return JetData(
        particles=particles, labels=labels, jets=features, fingerprint=fingerprint, source="random jets of the tests"
    )


TINY = {
    "data.train_jets": 60,
    "data.val_jets": 20,
    "data.test_jets": 40,
    "model.dim": 8,
    "model.heads": 2,
    "model.layers": 2,
    "model.projection": 4,
    "train.batch": 16,
    "train.epochs": 3,
    "optim.warmup_epochs": 1,
    "probe.every": 1,
    "probe.knn_k": 5,
}


@pytest.fixture
def tiny() -> Config:
    """A Config that trains in a second."""
    return override(Config(), TINY)


@pytest.fixture(scope="session")
def tiny_data() -> JetData:
    """Enough labeled jets for the tiny Config."""
    return make_data(60)


@pytest.fixture
def jets() -> torch.Tensor:
    """(trial, jet, particle, 4) with one trial and 12 jets, some of them full, some with two particles."""
    return torch.from_numpy(make_jets(12, seed=3))[None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Random numbers of each chunk's stream instead of Pythia, in chunks of 10 jets; what was generated."""
    calls: list[tuple[str, int]] = []

    def generate(name, n_jets, settings, seeds):
        calls.append((name, n_jets))
        particles = np.zeros((n_jets, 30, 4), np.float32)
        particles[:, 0, 2] = np.random.default_rng(seeds).uniform(0.1, 0.9, n_jets)
        particles[:, 0, 3] = 1
        return particles, np.tile(np.array([1000, 0, 80, 1], np.float32), (n_jets, 1)), 2 * n_jets

    monkeypatch.setattr(chunks, "generate", generate)
    monkeypatch.setattr(chunks, "CHUNK", 10)
    monkeypatch.setattr(pythia, "installed_version", lambda package: "test")
    return calls


@pytest.fixture
def interrupt_raises():
    """Ctrl-C does what it does by default, here and in what is started; in the background of a script it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

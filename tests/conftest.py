"""Shapes are checked in every test: jaxtyping annotations of the trainer, by beartype."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook(
    [
        "jbot.trainer.rng",
        "jbot.trainer.augment",
        "jbot.trainer.masking",
        "jbot.trainer.model",
        "jbot.trainer.classifier",
        "jbot.trainer.loss",
        "jbot.trainer.state",
        "jbot.trainer.step",
        "jbot.trainer.loop",
        "jbot.trainer.pack",
        "jbot.evaluation.probes",
        "jbot.evaluation.geometry",
        "jbot.evaluation.evaluator",
        "jbot.trainer.finetune",
        "jbot.trainer.embed",
        "jbot.trainer.inputs",
    ],
    "beartype.beartype",
)

import signal

import numpy as np
import pytest
import torch
from helpers import TINY, make_data, make_jets
from hypothesis import settings

from jbot.config import Config, override
from jbot.data import JetData, chunks, pythia

settings.register_profile("tests", deadline=None, max_examples=40, derandomize=True)  # shared machines are slow
settings.load_profile("tests")


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

"""What tests share besides fixtures: paths, random jets, and a Config that trains in a second."""

from pathlib import Path

import numpy as np

from jbot.data import CLASSES, JetData, hdf5
from jbot.data.jets import content_fingerprint

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "tests/data/jets_sample.h5"


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


def write_jets(path: Path, data: JetData, **attributes: str) -> Path:
    """A file of these jets in JetNet's layout."""
    groups = {name: (data.particles[data.labels == c], data.jets[data.labels == c]) for c, name in enumerate(CLASSES)}
    hdf5.write(path, {name: (len(group[0]), [group]) for name, group in groups.items()}, attributes)
    return path


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

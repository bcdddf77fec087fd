"""The shipped sample against physics that its maker did not put in by hand.

It is made again, byte for byte, by

    python -m jbot.data.generate --jets 300 --seed 1 --out tests/data/jets_sample.h5

with the pinned pythia8mc and fastjet.
"""

import numpy as np
import pytest
from helpers import SAMPLE

from jbot.data import CLASSES, JetData, load


@pytest.fixture(scope="module")
def data() -> JetData:
    return load(str(SAMPLE), jets_per_class=None)


def of_class(data: JetData, name: str) -> tuple[np.ndarray, np.ndarray]:
    chosen = data.labels == CLASSES.index(name)
    return data.particles[chosen].astype(np.float64), data.jets[chosen].astype(np.float64)


def test_it_is_small_and_complete(data: JetData) -> None:
    assert SAMPLE.stat().st_size < 900_000
    assert np.bincount(data.labels).tolist() == [300] * 5
    assert len(data.fingerprint) == 64
    assert data.metadata["seed"] == "1"


def test_particles_are_sorted_and_carry_at_most_the_jets_momentum(data: JetData) -> None:
    pt_rel, valid = data.particles[..., 2].astype(np.float64), data.particles[..., 3]
    assert (np.diff(pt_rel, axis=1) <= 0).all()
    assert (valid.sum(axis=1) == data.jets[:, 3]).all()
    px = np.sum(pt_rel * np.cos(data.particles[..., 1]), axis=1)
    py = np.sum(pt_rel * np.sin(data.particles[..., 1]), axis=1)
    complete = data.jets[:, 3] < 30
    np.testing.assert_allclose(px[complete], 1.0, atol=1e-5)  # all constituents are kept: momentum is conserved
    np.testing.assert_allclose(py[complete], 0.0, atol=1e-5)
    assert np.median(px[~complete]) > 0.85


def test_hard_particles_lie_within_the_radius(data: JetData) -> None:
    hard = data.particles[..., 2] > 0.01
    distance = np.hypot(data.particles[..., 0], data.particles[..., 1])[hard]
    assert np.mean(distance < 0.4) > 0.995
    assert distance.max() < 0.8


@pytest.mark.parametrize(("name", "mass"), [("w", 80.4), ("z", 91.2), ("t", 172.5)])
def test_resonances_have_their_mass(data: JetData, name: str, mass: float) -> None:
    """The median is close to the PDG mass; a top loses some of its decay outside R = 0.4."""
    _, jets = of_class(data, name)
    assert np.median(jets[:, 2]) == pytest.approx(mass, rel=0.10 if name == "t" else 0.03)


def test_mass_of_the_particles_is_the_mass_of_the_jet(data: JetData) -> None:
    """For W jets whose particles are all kept; particles are taken as massless, which costs about 1%."""
    particles, jets = (values[data.jets[data.labels == 2, 3] < 30] for values in of_class(data, "w"))
    pt = particles[..., 2] * jets[:, :1]
    eta = particles[..., 0] + jets[:, 1:2]
    energy, pz = np.sum(pt * np.cosh(eta), axis=1), np.sum(pt * np.sinh(eta), axis=1)
    px, py = (np.sum(pt * f(particles[..., 1]), axis=1) for f in (np.cos, np.sin))
    mass = np.sqrt(energy**2 - px**2 - py**2 - pz**2)
    assert np.median(mass / jets[:, 2]) == pytest.approx(1.0, abs=0.02)


def test_gluons_radiate_more_than_quarks_and_top_jets_are_wide(data: JetData) -> None:
    width = {}
    for name in CLASSES:
        particles, _ = of_class(data, name)
        width[name] = np.mean(np.sum(particles[..., 2] * np.hypot(particles[..., 0], particles[..., 1]), axis=1))
    assert width["q"] < width["g"] < width["t"]
    assert of_class(data, "q")[1][:, 3].mean() < of_class(data, "g")[1][:, 3].mean()


def test_jets_have_the_momentum_asked_for(data: JetData) -> None:
    """Gluons are generated without an upper bound, so theirs is higher."""
    for name in CLASSES:
        expected = 1100.0 if name == "g" else 1000.0
        assert np.median(of_class(data, name)[1][:, 0]) == pytest.approx(expected, rel=0.06)

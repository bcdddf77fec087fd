"""Detector: resolutions, cells and assignment against numbers worked out by hand."""

import numpy as np
import pytest

from jbot.data import DataError
from jbot.data.detector import (
    MIN_RESPONSE,
    Particles,
    assign,
    cells,
    ecal_resolution,
    hcal_resolution,
    massless_p4,
    simulate,
    smear,
    track_resolution,
)


def massless(energy: list[float], eta: list[float], phi: list[float], event: list[int] | None = None) -> Particles:
    return Particles(np.array(event or [0] * len(energy)), massless_p4(*map(np.array, (energy, eta, phi))))


def test_resolutions() -> None:
    # 0.5 sqrt((2.5e-4 * 80)^2 + 0.015^2) = 0.5 * sqrt(0.02^2 + 0.015^2) = 0.5 * 0.025
    assert track_resolution(np.array(80.0)) == pytest.approx(0.0125)
    # 0.5 sqrt(1.44 * 7 / 28 + 0.0025) = 0.5 sqrt(0.3625)
    assert hcal_resolution(np.array(28.0)) == pytest.approx(0.5 * 0.3625**0.5)
    # 0.5 sqrt(0.000729 / 10 + 0.015^2 + 0.005^2), E / 1.6 = 10
    assert ecal_resolution(np.array(16.0)) == pytest.approx(0.5 * (0.0000729 + 0.000225 + 0.000025) ** 0.5)


def test_assignment() -> None:
    pdg_id = np.array([211, -211, 2212, 11, -13, 22, 130, -2112, 211])
    pt = np.array([1.0, 219.9, 220.1, 300.0, 5.0, 500.0, 2.0, 3.0, 220.0])
    track, hcal, ecal = assign(pdg_id, pt)
    assert np.flatnonzero(track).tolist() == [0, 1, 3, 4, 8]
    assert np.flatnonzero(hcal).tolist() == [2, 6, 7]
    assert np.flatnonzero(ecal).tolist() == [5]


def test_an_unknown_particle_is_an_error() -> None:
    with pytest.raises(DataError, match="no stable particle with PDG id 1000022"):
        assign(np.array([22, 1000022]), np.array([1.0, 1.0]))


def test_energy_of_one_cell_is_summed_at_its_centre() -> None:
    found = cells(massless([10.0, 5.0], [0.501, 0.509], [1.0, 1.0]), size=0.01)
    assert found.p4[:, 3] == pytest.approx([15.0])
    assert found.eta == pytest.approx([0.505])
    # 628 cells of 2 pi / 628 = 0.0100051 go round; 1.0 lies in cell 99, whose centre is 99.5 widths
    assert found.phi == pytest.approx([99.5 * 2 * np.pi / 628])
    assert found.p4[0, 3] ** 2 == pytest.approx(np.sum(found.p4[0, :3] ** 2))


def test_cells_keep_events_apart_and_end_at_eta_three() -> None:
    particles = massless([1.0, 2.0, 4.0, 8.0], [0.1, 0.1, 2.999, -3.001], [-0.5, -0.5, 3.1, 0.0], [0, 3, 3, 3])
    found = cells(particles, size=0.005)
    assert found.event.tolist() == [0, 3, 3]
    assert found.p4[:, 3] == pytest.approx([1.0, 2.0, 4.0])


def test_neighbouring_cells_stay_two() -> None:
    assert len(cells(massless([1.0, 1.0], [0.0049, 0.0051], [0.001, 0.001]), size=0.005).event) == 2


def test_smearing_keeps_directions_and_never_turns_round() -> None:
    particles = massless([50.0] * 4000, [1.0] * 4000, [2.0] * 4000)
    smeared = smear(particles, np.full(4000, 0.1), np.random.default_rng(0))
    np.testing.assert_allclose(smeared.eta, 1.0)
    np.testing.assert_allclose(smeared.phi, 2.0)
    response = smeared.p4[:, 3] / 50.0
    assert response.mean() == pytest.approx(1.0, abs=4 * 0.1 / 4000**0.5)
    assert response.std() == pytest.approx(0.1, rel=0.05)
    wild = smear(particles, np.full(4000, 5.0), np.random.default_rng(0))
    assert wild.p4[:, 3].min() == pytest.approx(50.0 * MIN_RESPONSE)


def test_neutrinos_and_soft_particles_are_not_seen() -> None:
    particles = massless([30.0, 0.19, 40.0, 0.21], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0])
    measured = simulate(particles, np.array([14, 211, 211, 22]), np.random.default_rng(0))
    assert len(measured.event) == 2  # one track, then one ECAL cell
    assert measured.phi == pytest.approx([2.0, 3.0], abs=0.005)


def test_the_input_is_not_changed() -> None:
    particles = massless([30.0, 20.0], [0.0, 0.5], [0.0, 1.0])
    before = particles.p4.copy()
    simulate(particles, np.array([211, 22]), np.random.default_rng(0))
    np.testing.assert_array_equal(particles.p4, before)

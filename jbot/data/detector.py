"""A fast detector: particles in, tracks and calorimeter cells out. Plain numpy, many events at once.

The resolutions and cells are those of the detector simulation behind JetNet's jets (the trackObservables code of
Coleman et al., arXiv:1709.08705, configuration r0.5:h0.010:e0.005:t220): resolutions halved, HCAL cells of 0.01, ECAL
cells of 0.005, tracks up to 220 GeV. The pT threshold is fitted to the published JetNet figures.

Layout: arrays run over the particles of all events; `event` (particle,) says which event each belongs to;
`p4` (particle, 4) is px, py, pz, E in GeV.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jbot.data.jets import DataError

MIN_PT = 0.2
"""GeV; softer particles are dropped (fitted)."""
TRACK_MAX_PT = 220.0
"""GeV; charged hadrons above it are measured by the HCAL (t220)."""
CELL_MAX_ETA = 3.0
"""Calorimeters end here."""
HCAL_CELL = 0.010
"""HCAL cell size in eta and phi [rad] (h0.010)."""
ECAL_CELL = 0.005
"""ECAL cell size in eta and phi [rad] (e0.005)."""
RESOLUTION_SCALE = 0.5
"""Factor on every resolution (r0.5)."""
MIN_RESPONSE = 1e-10
"""Smallest ratio of measured to true momentum: a smeared momentum never turns round."""

NEUTRINOS = (12, 14, 16)
LEPTONS = (11, 13, 15)
PHOTON = 22
CHARGED_HADRONS = (211, 321, 2212, 3112, 3222, 3312, 3334)
NEUTRAL_HADRONS = (130, 310, 2112, 3122, 3322)


@dataclass(frozen=True)
class Particles:
    """Particles of many events."""

    event: np.ndarray
    """(particle,) int: number of the event."""
    p4: np.ndarray
    """(particle, 4) float64: px, py, pz, E [GeV]."""

    @cached_property
    def pt(self) -> np.ndarray:
        """(particle,) transverse momentum [GeV]."""
        return np.hypot(self.p4[:, 0], self.p4[:, 1])

    @cached_property
    def eta(self) -> np.ndarray:
        """(particle,) pseudorapidity."""
        return np.arcsinh(self.p4[:, 2] / self.pt)

    @cached_property
    def phi(self) -> np.ndarray:
        """(particle,) azimuth [rad] in [-pi, pi]."""
        return np.arctan2(self.p4[:, 1], self.p4[:, 0])

    def __getitem__(self, chosen: np.ndarray) -> "Particles":
        return Particles(self.event[chosen], self.p4[chosen])


def simulate(particles: Particles, pdg_id: np.ndarray, rng: np.random.Generator) -> Particles:
    """Measure final-state particles of PDG identity `pdg_id` (particle,) with tracker, HCAL and ECAL.

    Tracks come first, then HCAL cells, then ECAL cells, in what is returned and in the draws of the smearing.
    """
    visible = ~np.isin(np.abs(pdg_id), NEUTRINOS) & (particles.pt >= MIN_PT)
    particles, pdg_id = particles[visible], pdg_id[visible]
    track, hcal, ecal = assign(pdg_id, particles.pt)
    tracks = particles[track]
    hadron_cells = cells(particles[hcal], HCAL_CELL)
    photon_cells = cells(particles[ecal], ECAL_CELL)
    measured = (
        smear(tracks, track_resolution(tracks.pt), rng),
        smear(hadron_cells, hcal_resolution(hadron_cells.p4[:, 3]), rng),
        smear(photon_cells, ecal_resolution(photon_cells.p4[:, 3]), rng),
    )
    return Particles(np.concatenate([m.event for m in measured]), np.concatenate([m.p4 for m in measured]))


def assign(pdg_id: np.ndarray, pt: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which part of the detector measures each particle; `pdg_id` (particle,) without neutrinos, pT (particle,) [GeV].

    Returns
    -------
    track, hcal, ecal : (particle,) bool arrays
        Exactly one is true for each particle. Raises DataError for one that no part of the detector knows.
    """
    identity = np.abs(pdg_id)
    charged = np.isin(identity, CHARGED_HADRONS)
    hard = pt > TRACK_MAX_PT
    track = np.isin(identity, LEPTONS) | (charged & ~hard)
    hcal = np.isin(identity, NEUTRAL_HADRONS) | (charged & hard)
    ecal = identity == PHOTON
    unknown = ~(track | hcal | ecal)
    if unknown.any():
        raise DataError(f"the detector knows no stable particle with PDG id {pdg_id[np.argmax(unknown)]}")
    return track, hcal, ecal


def cells(particles: Particles, size: float) -> Particles:
    """Sum particle energies in cells of eta and phi; each with energy is a massless particle at its centre.

    Particles beyond |eta| = 3 are not measured. In phi, the circle takes the largest whole number of cells at least
    `size` wide. Cells are ordered by event, eta and phi.
    """
    n_eta, n_phi = round(2 * CELL_MAX_ETA / size), int(2 * np.pi / size)
    phi_size = 2 * np.pi / n_phi
    particles = particles[np.abs(particles.eta) < CELL_MAX_ETA]
    i_eta = np.minimum(((particles.eta + CELL_MAX_ETA) / size).astype(np.int64), n_eta - 1)
    i_phi = (np.mod(particles.phi, 2 * np.pi) / phi_size).astype(np.int64) % n_phi
    index = (particles.event * n_eta + i_eta) * n_phi + i_phi
    occupied, inverse = np.unique(index, return_inverse=True)
    energy = np.bincount(inverse.reshape(-1), particles.p4[:, 3], minlength=len(occupied))
    eta = ((occupied // n_phi) % n_eta + 0.5) * size - CELL_MAX_ETA
    phi = (occupied % n_phi + 0.5) * phi_size
    return Particles(occupied // (n_eta * n_phi), massless_p4(energy, eta, phi))


def massless_p4(energy: np.ndarray, eta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """(particle, 4) px, py, pz, E of massless particles with this energy [GeV], pseudorapidity and azimuth [rad]."""
    pt = energy / np.cosh(eta)
    return np.stack([pt * np.cos(phi), pt * np.sin(phi), energy * np.tanh(eta), energy], axis=1)


def track_resolution(pt: np.ndarray) -> np.ndarray:
    """Relative resolution of tracks of this pT [GeV]: 0.5 (2.5e-4 pT (+) 0.015), (+) a sum of squares."""
    return RESOLUTION_SCALE * np.hypot(2.5e-4 * pt, 0.015)


def hcal_resolution(energy: np.ndarray) -> np.ndarray:
    """Relative resolution of HCAL cells of this energy [GeV]: 0.5 (1.2 sqrt(7 / E) (+) 0.05).

    7 = 1 + 6: six charged-hadron energies are subtracted before one neutral energy is seen.
    """
    return RESOLUTION_SCALE * np.hypot(1.2 * np.sqrt(7.0 / energy), 0.05)


def ecal_resolution(energy: np.ndarray) -> np.ndarray:
    """Relative resolution of ECAL cells of this energy [GeV]: 0.5 (0.027 sqrt(1.6 / E) (+) 0.15 * 1.6 / E (+) 0.005).

    1.6 = 1 + 0.6, the charged part that is subtracted before the photon energy is seen.
    """
    effective = energy / 1.6
    return RESOLUTION_SCALE * np.sqrt(0.027**2 / effective + (0.15 / effective) ** 2 + 0.005**2)


def smear(particles: Particles, resolution: np.ndarray, rng: np.random.Generator) -> Particles:
    """Scale each four-momentum by max(1e-10, Normal(1, resolution)); directions stay."""
    response = np.maximum(MIN_RESPONSE, rng.normal(1.0, resolution))
    return Particles(particles.event, particles.p4 * response[:, None])

"""A pilot signal made of background alone, on which settings of anomaly scores may be chosen.

Two background jets, laid over each other as the two prongs of one jet, look like the decay of something heavy, of no
particular mass. No signal jet is used, so settings chosen on it may be judged on every signal.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

ETA, PHI, PT, VALID = range(4)
RADIUS = 0.4
"""Of the jets of JetNet at 1 TeV, anti-kT (arXiv:2106.11535)."""
LEAST_SHARE = 0.1
"""Of the softer prong: the z_cut of the soft-drop grooming that the jets passed."""
LEAST_SEPARATION = 0.25
"""Of the prongs, in units of the radius: 0.1 at 1 TeV, below W (2 m / pT = 0.16) and top (0.35)."""

Particles = Float[np.ndarray, "jet particle 4"]


def overlay(particles: Particles, generator: np.random.Generator, radius: float = RADIUS) -> Particles:
    """Two-prong jets, each of two different background jets.

    - Jets are paired at random, each used twice; the first takes the share z of the momentum, uniform in [0.1, 0.5].
    - The axes lie Delta R apart, uniform in [radius / 4, radius], at a random angle, their centre of momentum on the
      axis of the new jet: m = pT Delta R sqrt(z (1 - z)) is 30 to 200 GeV at 1 TeV.
    - A prong keeps its particles within Delta R of its axis: what decays has no colour and radiates inside its opening
      angle. Particles beyond the radius of the new jet are outside it.
    - pt_rel is relative to the momentum that is kept, the axis is the kept particles' centre, and the hardest
      particles fill the slots, hardest first.

    Parameters
    ----------
    particles : float array (jet, particle, 4)
        Background jets: eta_rel, phi_rel, pt_rel, valid.
    generator : numpy Generator
    radius : float
        Of the jets, in radians.

    Returns
    -------
    float32 array (jet, particle, 4)
        As many jets as came in; padding is zero.

    Raises
    ------
    ValueError
        With fewer than two jets.
    """
    jets, slots, _ = particles.shape
    if jets < 2:
        raise ValueError(f"an overlay needs at least 2 background jets, got {jets}")
    order = generator.permutation(jets)
    share = generator.uniform(LEAST_SHARE, 0.5, jets)
    apart = generator.uniform(LEAST_SEPARATION * radius, radius, jets)
    angle = generator.uniform(-math.pi, math.pi, jets)
    pair = np.stack((particles[order], particles[np.roll(order, 1)]), axis=1).astype(np.float64)
    prongs = _placed(pair, share, apart, angle).reshape(jets, 2 * slots, 4)
    return _as_jet(prongs, radius)[:, :slots].astype(np.float32)


def _placed(
    pair: Float[np.ndarray, "jet 2 particle 4"],
    share: Float[np.ndarray, "jet"],
    apart: Float[np.ndarray, "jet"],
    angle: Float[np.ndarray, "jet"],
) -> Float[np.ndarray, "jet 2 particle 4"]:
    """Prongs at their places with their shares of the momentum; what they do not keep is padding."""
    away = np.hypot(pair[..., ETA], pair[..., PHI])
    kept = pair[..., VALID] * (away <= apart[:, None, None])
    # The hardest particle stays, so that no prong is empty.
    kept[..., 0] = pair[..., 0, VALID]
    shares = np.stack((share, 1 - share), axis=1)
    side = np.stack((1 - share, -share), axis=1) * apart[:, None]
    eta = pair[..., ETA] + (side * np.cos(angle)[:, None])[..., None]
    phi = pair[..., PHI] + (side * np.sin(angle)[:, None])[..., None]
    return np.stack((eta, phi, pair[..., PT] * shares[..., None], np.ones_like(eta)), axis=-1) * kept[..., None]


def _as_jet(particles: Float[np.ndarray, "jet particle 4"], radius: float) -> Float[np.ndarray, "jet particle 4"]:
    """What lies inside the radius, relative to its own momentum and centre, hardest first."""
    inside = np.hypot(particles[..., ETA], particles[..., PHI]) <= radius
    inside |= particles[..., PT] == particles[..., PT].max(1, keepdims=True)  # so that no jet is empty
    particles = particles * inside[..., None]
    momentum = particles[..., PT].sum(1)[:, None]
    pt = particles[..., PT] / momentum
    centre = (particles[..., :2] * pt[..., None]).sum(1, keepdims=True)
    moved = (particles[..., :2] - centre) * particles[..., VALID, None]
    jets = np.concatenate((moved, pt[..., None], particles[..., VALID, None]), axis=-1)
    hardest = np.argsort(-pt, axis=1, kind="stable")
    return np.take_along_axis(jets, hardest[..., None], axis=1)

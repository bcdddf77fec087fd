"""Two augmented views of each jet (arXiv:2601.11719, section 3).

Axes: (trial, view, jet, particle, feature); features: eta_rel, phi_rel, pt_rel, valid.
Each augmentation is a pure function of the particles and of uniform draws in (0, 1).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from jbot.config import AugmentConfig
from jbot.streams import Draws, normals

ETA, PHI, PT, VALID = range(4)

Particles = Float[Tensor, "trial view jet particle 4"]
PerJet = Float[Tensor, "trial view jet"]
PerParticle = Float[Tensor, "trial view jet particle"]


def augment(particles: Float[Tensor, "trial jet particle 4"], draws: Draws, config: AugmentConfig) -> Particles:
    """Views u and v of each jet: rotated, smeared, then split, each view on its own draws."""
    _, jets, slots, _ = particles.shape
    views = particles[:, None].expand(-1, 2, -1, -1, -1)
    (turn,), _ = draws.uniforms(["rotate"], (2, jets))
    (smear_high, split_high), (smear_low, split_low) = draws.uniforms(["smear", "split"], (2, jets, slots))
    if config.rotation > 0:
        views = rotate(views, (2.0 * turn - 1.0) * config.rotation)
    if config.smear_sigma > 0:
        views = smear(views, normals(smear_high, smear_low), config.smear_sigma, config.smear_variant == "reference")
    if config.split_fraction > 0:
        share = config.split_low + (1.0 - 2.0 * config.split_low) * split_low
        views = split(views, split_high, share, config.split_fraction, config.split_variant == "reference")
    return views


def rotate(particles: Particles, angle: PerJet) -> Particles:
    """Turn each jet about its axis by `angle` radians: distances to the axis and between particles stay."""
    cos, sin = torch.cos(angle)[..., None], torch.sin(angle)[..., None]
    eta, phi, pt, valid = particles.unbind(-1)
    return torch.stack((cos * eta - sin * phi, sin * eta + cos * phi, pt, valid), dim=-1)


def smear(
    particles: Particles, noise: Float[Tensor, "trial view jet particle 2"], sigma: float, reference: bool = False
) -> Particles:
    """Add Normal(0, sigma / pt_rel) to eta and phi: soft radiation blurs directions.

    The released code also smears padding, at pt_rel = 1e-6; `reference` repeats it.
    """
    eta, phi, pt, valid = particles.unbind(-1)
    width = sigma / pt.clamp(min=1e-6)
    if not reference:
        width = width * valid
    eta = eta + noise[..., 0] * width
    phi = phi + noise[..., 1] * width
    phi = torch.where(phi > math.pi, phi - 2 * math.pi, torch.where(phi <= -math.pi, phi + 2 * math.pi, phi))
    return torch.stack((eta, phi, pt, valid), dim=-1)


def split(
    particles: Particles, key: PerParticle, share: PerParticle, fraction: float = 1.0, reference: bool = False
) -> Particles:
    """Split random particles in two of the same direction, as many as there are empty slots for.

    With n valid particles of `slots`, floor(fraction * min(n, slots - n)) are split. The first half keeps `share` of
    the momentum in its slot; the second goes to an empty slot. The released code appends the second halves behind
    the last slot and cuts them off, so the jet loses their momentum; `reference` repeats it.
    """
    valid = particles[..., VALID] > 0.5
    count = valid.sum(-1)
    splits = torch.floor(fraction * torch.minimum(count, particles.shape[-2] - count) + 1e-6)
    order = rank(key.masked_fill(~valid, 2.0))
    chosen = valid & (order < splits[..., None])
    pt = particles[..., PT]
    kept = torch.where(chosen, share * pt, pt)
    first = torch.stack((particles[..., ETA], particles[..., PHI], kept, particles[..., VALID]), dim=-1)
    if reference:
        return first
    # (slot, particle): the m-th split particle fills the m-th empty slot.
    empty_rank = (~valid).cumsum(-1) - 1
    fills = (empty_rank[..., :, None] == order[..., None, :]) & ~valid[..., :, None] & chosen[..., None, :]
    second = torch.stack((particles[..., ETA], particles[..., PHI], pt - kept, particles[..., VALID]), dim=-1)
    return torch.where(fills.any(-1)[..., None], fills.to(second.dtype) @ second, first)


def rank(key: Float[Tensor, "*shape particle"]) -> Float[Tensor, "*shape particle"]:
    """Place of each particle in ascending order of its key; equal keys keep their order. By comparison: no sort."""
    return precedes(key).sum(-1).to(key.dtype)


def precedes(key: Float[Tensor, "*shape particle"]) -> torch.Tensor:
    """bool (..., i, j): whether particle j comes before particle i in ascending order of the key."""
    mine, other = key[..., :, None], key[..., None, :]
    slots = torch.arange(key.shape[-1], device=key.device)
    return (other < mine) | ((other == mine) & (slots[None, :] < slots[:, None]))

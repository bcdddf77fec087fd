"""Two augmented views of each jet (arXiv:2601.11719, section 3).

Axes: (trial, view, jet, particle, feature); features: eta_rel, phi_rel, pt_rel, valid.
Each augmentation is a pure function of the particles and of uniform draws in (0, 1). Its strength is a number, or a
(trial,) tensor; at strength 0 it is the identity.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from jbot.config import AugmentConfig
from jbot.pack import column, is_off
from jbot.streams import Draws, normals

ETA, PHI, PT, VALID = range(4)

Particles = Float[Tensor, "trial view jet particle 4"]
PerJet = Float[Tensor, "trial view jet"]
PerParticle = Float[Tensor, "trial view jet particle"]
Strength = float | int | Float[Tensor, "trial"]


def augment(particles: Float[Tensor, "trial jet particle 4"], draws: Draws, config: AugmentConfig) -> Particles:
    """Views u and v of each jet: rotated, smeared, then split, each view on its own draws."""
    _, jets, slots, _ = particles.shape
    views = particles[:, None].expand(-1, 2, -1, -1, -1)
    (turn,), _ = draws.uniforms(["rotate"], (2, jets))
    (smear_high, split_high), (smear_low, split_low) = draws.uniforms(["smear", "split"], (2, jets, slots))
    if not is_off(config.rotation):
        views = rotate(views, (2.0 * turn - 1.0) * column(config.rotation, 2))
    if not is_off(config.smear_sigma):
        views = smear(views, normals(smear_high, smear_low), config.smear_sigma, config.smear_variant == "reference")
    if not is_off(config.split_fraction):
        low = column(config.split_low, 3)
        share = low + (1.0 - 2.0 * low) * split_low
        views = split(views, split_high, share, config.split_fraction, config.split_variant == "reference")
    return views


def rotate(particles: Particles, angle: PerJet) -> Particles:
    """Turn each jet about its axis by `angle` radians: distances to the axis and between particles stay."""
    cos, sin = torch.cos(angle)[..., None], torch.sin(angle)[..., None]
    eta, phi, pt, valid = particles.unbind(-1)
    return torch.stack((cos * eta - sin * phi, sin * eta + cos * phi, pt, valid), dim=-1)


def smear(
    particles: Particles, noise: Float[Tensor, "trial view jet particle 2"], sigma: Strength, reference: bool = False
) -> Particles:
    """Add Normal(0, sigma / pt_rel) to eta and phi: soft radiation blurs directions.

    The released code also smears padding, at pt_rel = 1e-6; `reference` repeats it.
    """
    eta, phi, pt, valid = particles.unbind(-1)
    width = column(sigma, 3) / pt.clamp(min=1e-6)
    if not reference:
        width = width * valid
    eta = eta + noise[..., 0] * width
    moved = phi + noise[..., 1] * width
    wrapped = torch.where(moved > math.pi, moved - 2 * math.pi, moved)
    wrapped = torch.where(moved <= -math.pi, moved + 2 * math.pi, wrapped)
    # What is not smeared keeps its bits, even outside (-pi, pi].
    return torch.stack((eta, torch.where(width > 0, wrapped, phi), pt, valid), dim=-1)


def split(
    particles: Particles, key: PerParticle, share: PerParticle, fraction: Strength = 1.0, reference: bool = False
) -> Particles:
    """Split random particles in two of the same direction, as many as there are empty slots for.

    With n valid particles of `slots`, floor(fraction * min(n, slots - n)) are split. The first half keeps `share` of
    the momentum in its slot; the second goes to an empty slot. The released code appends the second halves behind
    the last slot and cuts them off, so the jet loses their momentum; `reference` repeats it.
    """
    valid = particles[..., VALID] > 0.5
    count = valid.sum(-1)
    splits = torch.floor(column(fraction, 2) * torch.minimum(count, particles.shape[-2] - count) + 1e-6)
    slots = torch.arange(particles.shape[-2], device=particles.device)
    order = in_order(key, valid)
    chosen = torch.zeros_like(valid).scatter(-1, order, slots < splits[..., None])
    pt = particles[..., PT]
    kept = torch.where(chosen, share * pt, pt)
    first = torch.stack((particles[..., ETA], particles[..., PHI], kept, particles[..., VALID]), dim=-1)
    if reference:
        return first
    # The n-th particle to be split fills the n-th empty slot.
    nth = (~valid).cumsum(-1) - 1
    source = order.gather(-1, nth.clamp(min=0))
    second = torch.stack((particles[..., ETA], particles[..., PHI], pt - kept, particles[..., VALID]), dim=-1)
    second = second.gather(-2, source[..., None].expand(second.shape))
    return torch.where((~valid & (nth < splits[..., None]))[..., None], second, first)


def in_order(
    key: Float[Tensor, "*shape particle"], valid: Bool[Tensor, "*shape particle"]
) -> Int64[Tensor, "*shape particle"]:
    """Slots of the valid particles in ascending order of their key, then those of padding; equal keys keep theirs."""
    return torch.sort(key.masked_fill(~valid, math.inf), dim=-1, stable=True).indices

"""Two augmented views of each jet (arXiv:2601.11719, section 3), and four augmentations that the paper has not.

Axes: (trial, view, jet, particle, feature); features: eta_rel, phi_rel, pt_rel, valid.
Each augmentation is a pure function of the particles and of random draws. Its strength is a number, or a (trial,)
tensor; at strength 0 it is the identity. Each has a stream of its own, so none moves the draws of another.

            symmetries: what an observer may do        rotate, boost, translate
            the detector: what it blurs and loses      smear, blur_pt, drop_soft
            the theory: what no observable may feel    split (collinear safety), which fills the slots left empty
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from jbot.config import AugmentConfig
from jbot.trainer.pack import column, is_off
from jbot.trainer.rng import Draws, normals

ETA, PHI, PT, VALID = range(4)

Particles = Float[Tensor, "trial view jet particle 4"]
PerJet = Float[Tensor, "trial view jet"]
PerParticle = Float[Tensor, "trial view jet particle"]
Strength = float | int | Float[Tensor, "trial"]


def augment(particles: Float[Tensor, "trial jet particle 4"], draws: Draws, config: AugmentConfig) -> Particles:
    """Views u and v of each jet, each on its own draws.

    The symmetries act on the jet as it was made, whose axis is the origin. Then the detector measures it: directions
    are blurred by the particle's own momentum, so before that is blurred; and what is lost is chosen by the momentum
    that was measured. Splitting comes last: it needs to know the slots that are empty in the end.
    """
    _, jets, slots, _ = particles.shape
    views = particles[:, None].expand(-1, 2, -1, -1, -1)
    by_jet = {"rotate": config.rotation, "boost": config.boost, "translate": config.translation}
    by_particle = {
        "smear": config.smear_sigma, "split": config.split_fraction, "pt": config.pt_sigma, "soft": config.soft_dropout
    }  # fmt: skip
    drawn = _uniforms(draws, by_jet, (2, jets)) | _uniforms(draws, by_particle, (2, jets, slots))
    if "rotate" in drawn:
        views = rotate(views, _within(drawn["rotate"][0], config.rotation))
    if "boost" in drawn:
        views = boost(views, _within(drawn["boost"][0], config.boost))
    if "translate" in drawn:
        views = translate(views, *(_within(one, config.translation) for one in drawn["translate"]))
    if "smear" in drawn:
        views = smear(views, normals(*drawn["smear"]), config.smear_sigma, config.smear_variant == "reference")
    if "pt" in drawn:
        views = blur_pt(views, normals(*drawn["pt"])[..., 0], config.pt_sigma)
    if "soft" in drawn:
        views = drop_soft(views, drawn["soft"][0], config.soft_dropout, config.soft_pt)
    if "split" in drawn:
        key, half = drawn["split"]
        low = column(config.split_low, 3)
        share = low + (1.0 - 2.0 * low) * half
        views = split(views, key, share, config.split_fraction, config.split_variant == "reference")
    return views


def _uniforms(
    draws: Draws, strengths: Mapping[str, Strength], shape: tuple[int, ...]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Two independent uniforms in (0, 1) for each stream that some trial uses, by its name."""
    streams = [stream for stream, strength in strengths.items() if not is_off(strength)]
    if not streams:
        return {}
    high, low = draws.uniforms(streams, shape)
    return {stream: (high[n], low[n]) for n, stream in enumerate(streams)}


def _within(uniform: PerJet, limit: Strength) -> PerJet:
    """From (0, 1) to (-limit, limit)."""
    return (2.0 * uniform - 1.0) * column(limit, 2)


def rotate(particles: Particles, angle: PerJet) -> Particles:
    """Turn each jet about its axis by `angle` radians: distances to the axis and between particles stay."""
    cos, sin = torch.cos(angle)[..., None], torch.sin(angle)[..., None]
    eta, phi, pt, valid = particles.unbind(-1)
    return torch.stack((cos * eta - sin * phi, sin * eta + cos * phi, pt, valid), dim=-1)


def boost(particles: Particles, rapidity: PerJet) -> Particles:
    """Boost each jet along its axis, in the collinear limit: momenta grow by exp(rapidity), angles shrink by it.

    So shares of the jet's momentum stay as they are, and so does its mass, which is m^2 = sum over pairs of
    pT_i pT_j dR_ij^2 for massless particles at small angles: the same decay at another energy.
    """
    shrink = torch.exp(-rapidity)[..., None]
    eta, phi, pt, valid = particles.unbind(-1)
    return torch.stack((shrink * eta, shrink * phi, pt, valid), dim=-1)


def translate(particles: Particles, eta_shift: PerJet, phi_shift: PerJet) -> Particles:
    """Shift the particles of each jet in eta and in phi, by radians (JetCLR, arXiv:2108.04253).

    All distances between particles stay, those to the origin do not: where a jet points says nothing of what made it.
    phi is not wrapped, which would tear the jet apart.
    """
    eta, phi, pt, valid = particles.unbind(-1)
    real = valid > 0.5
    eta = torch.where(real, eta + eta_shift[..., None], eta)
    return torch.stack((eta, torch.where(real, phi + phi_shift[..., None], phi), pt, valid), dim=-1)


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


def blur_pt(particles: Particles, noise: PerParticle, sigma: Strength) -> Particles:
    """Measure each pT with the resolution of a calorimeter: relative width s = sigma / sqrt(pt_rel).

    pt * exp(s z - s^2 / 2), z standard normal: never negative, and its mean is pt; to first order in s it is
    pt (1 + s z). A stochastic term of 50% / sqrt(E / GeV) is sigma = 0.5 / sqrt(1000) = 0.016 for jets of 1 TeV.
    """
    eta, phi, pt, valid = particles.unbind(-1)
    width = column(sigma, 3) / torch.sqrt(pt.clamp(min=1e-6))
    return torch.stack((eta, phi, pt * torch.exp(width * noise - width**2 / 2), valid), dim=-1)


def drop_soft(particles: Particles, key: PerParticle, probability: Strength, below: Strength) -> Particles:
    """Lose particles softer than the share `below` of the jet's pT, each whose `key` is less than `probability`.

    Infrared safety: no observable may depend on a particle without momentum; and detectors have thresholds. A lost
    particle is padding, all zero, also between others. The hardest stays, so that no view is empty.
    """
    pt, valid = particles[..., PT], particles[..., VALID] > 0.5
    lost = valid & (pt < column(below, 3)) & (key < column(probability, 3))
    hardest = pt.masked_fill(~valid, -1.0).argmax(-1, keepdim=True)
    return particles.masked_fill(lost.scatter(-1, hardest, False)[..., None], 0.0)


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

"""Which particles are hidden from the student: one pure function a scheme, and the registry that says what each means.

A scheme takes a `Scene` and returns the masked particles, bool (trial, view, jet, particle). All schemes share the
same draws, so at one seed and step the arms of a masking study hide the same share of every jet.
Whenever the ratio is above zero at least one valid particle is masked and at least one is left; a jet of a single
particle stays unmasked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from jbot.config import MaskConfig
from jbot.trainer.augment import ETA, PHI, PT, VALID, Particles, PerJet, PerParticle, in_order
from jbot.trainer.pack import column
from jbot.trainer.rng import Draws

Masked = Bool[Tensor, "trial view jet particle"]
Order = Int64[Tensor, "trial view jet particle"]
"""Slots in the order in which a scheme takes particles."""


@dataclass(frozen=True)
class Scene:
    """Particles and draws that a masking scheme may look at."""

    particles: Particles
    ratio: PerJet
    """Share of the jet to mask, in [0, 1]; 0 masks nothing."""
    first: PerParticle
    second: PerParticle
    """Two independent uniform draws in (0, 1)."""

    @property
    def valid(self) -> Masked:
        """Real particles."""
        return self.particles[..., VALID] > 0.5

    @property
    def pt(self) -> PerParticle:
        """pt_rel, 0 in padding."""
        return self.particles[..., PT] * self.particles[..., VALID]

    def rows(self, trials: Int64[Tensor, "some"]) -> Scene:
        """The scene of some trials of a pack."""
        return Scene(self.particles[trials], self.ratio[trials], self.first[trials], self.second[trials])


def momentum(scene: Scene) -> Masked:
    """Particles in random order, up to a share of the jet's momentum."""
    order = _order(scene, scene.first)
    return _take(scene, order, _count_to_target(scene, order))


def random(scene: Scene) -> Masked:
    """Particles in random order, up to a share of the jet's particle count."""
    return _take(scene, _order(scene, scene.first), torch.round(scene.ratio * scene.valid.sum(-1)))


def random_count(scene: Scene) -> Masked:
    """As many particles as `momentum` masks on this jet, but drawn again, blind to momentum."""
    count = _count_to_target(scene, _order(scene, scene.first))
    return _take(scene, _order(scene, scene.second), count)


def geometric(scene: Scene) -> Masked:
    """The neighbourhood of a random particle in (eta, phi), up to a share of the jet's momentum."""
    order = _order(scene, _distance_to_random_particle(scene))
    return _take(scene, order, _count_to_target(scene, order))


def geometric_count(scene: Scene) -> Masked:
    """The neighbourhood of a random particle, as many particles as `momentum` masks on this jet."""
    count = _count_to_target(scene, _order(scene, scene.first))
    return _take(scene, _order(scene, _distance_to_random_particle(scene)), count)


def hardest(scene: Scene) -> Masked:
    """The highest-momentum particles first, up to a share of the jet's momentum."""
    order = _order(scene, -scene.pt)
    return _take(scene, order, _count_to_target(scene, order))


def softest(scene: Scene) -> Masked:
    """The lowest-momentum particles first, up to a share of the jet's momentum."""
    order = _order(scene, scene.pt)
    return _take(scene, order, _count_to_target(scene, order))


def none(scene: Scene) -> Masked:
    """Nothing is masked: only the [CLS] loss is left."""
    return torch.zeros_like(scene.valid)


SCHEMES: dict[str, Callable[[Scene], Masked]] = {
    scheme.__name__: scheme
    for scheme in (momentum, random, random_count, geometric, geometric_count, hardest, softest, none)
}


def mask_views(views: Particles, draws: Draws, config: MaskConfig) -> Masked:
    """The masked particles of each view, on its own draws."""
    _, _, jets, slots, _ = views.shape
    (share,), (coin,) = draws.uniforms(["ratio"], (2, jets))
    (first,), (second,) = draws.uniforms(["mask"], (2, jets, slots))
    low, high = column(config.ratio_low, 2), column(config.ratio_high, 2)
    ratio = (low + (high - low) * share) * (coin < column(config.probability, 2))
    scheme: str | Mapping[str, Tensor] = config.scheme  # in a pack whose trials differ in it, the rows of each
    scene = Scene(views, ratio, first, second)
    if isinstance(scheme, str):
        return SCHEMES[scheme](scene)
    masked = torch.empty_like(scene.valid)
    for name, rows in scheme.items():
        masked.index_copy_(0, rows, SCHEMES[name](scene.rows(rows)))
    return masked


def _order(scene: Scene, key: PerParticle) -> Order:
    return in_order(key, scene.valid)


def _take(scene: Scene, order: Order, count: PerJet) -> Masked:
    """Mask the first `count` particles of the order, but at least one and not the last one."""
    valid = scene.valid
    count = torch.minimum(count.clamp(min=1), valid.sum(-1) - 1) * (scene.ratio > 0)
    slots = torch.arange(order.shape[-1], device=order.device)
    return valid & torch.zeros_like(valid).scatter(-1, order, slots < count[..., None])


def _count_to_target(scene: Scene, order: Order) -> PerJet:
    """How many particles of the order come closest to the momentum target ratio * sum pT."""
    pt, valid = scene.pt.gather(-1, order), scene.valid.gather(-1, order)
    sums = pt.cumsum(-1)
    target = (scene.ratio * sums[..., -1])[..., None]
    before = sums - pt
    # A particle is taken when the sum with it lies closer to the target than the sum without it.
    taken = valid & ((sums - target).abs() <= (before - target).abs()) & (before < target)
    return taken.sum(-1).to(pt.dtype)


def _distance_to_random_particle(scene: Scene) -> PerParticle:
    """Squared (eta, phi) distance of each particle to one valid particle of its jet; 0 for that one."""
    centre = scene.second.masked_fill(~scene.valid, 2.0).argmin(-1, keepdim=True)
    eta, phi = scene.particles[..., ETA], scene.particles[..., PHI]
    d_phi = phi - phi.gather(-1, centre)
    d_phi = d_phi - 2 * math.pi * torch.round(d_phi / (2 * math.pi))
    distance = (eta - eta.gather(-1, centre)) ** 2 + d_phi**2
    # The centre comes first even when the other half of a split lies exactly on it.
    return distance.scatter(-1, centre, -1.0)

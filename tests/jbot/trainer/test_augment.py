import dataclasses
import math

import pytest
import torch
from helpers import make_jets
from hypothesis import given
from hypothesis import strategies as st

from jbot.config import AugmentConfig, MaskConfig
from jbot.trainer.augment import augment, blur_pt, boost, drop_soft, in_order, rotate, smear, split, translate
from jbot.trainer.masking import SCHEMES, mask_views
from jbot.trainer.rng import Draws

seeds = st.integers(0, 2**31 - 1)


def views_of(seed: int, count: int = 6) -> torch.Tensor:
    """(1, 2, jet, particle, 4): both views of random jets, double precision."""
    return torch.from_numpy(make_jets(count, seed)).double()[None, None].expand(1, 2, -1, -1, -1)


def uniforms(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def four_momentum(views: torch.Tensor) -> torch.Tensor:
    """Sums of px, py, pz, E of massless particles."""
    eta, phi, pt, _ = views.unbind(-1)
    parts = (pt * torch.cos(phi), pt * torch.sin(phi), pt * torch.sinh(eta), pt * torch.cosh(eta))
    return torch.stack([part.sum(-1) for part in parts], -1)


@given(seeds)
def test_rotation_keeps_distances_and_pt(seed):
    views = views_of(seed)
    turned = rotate(views, (2 * uniforms(seed, 1, 2, 6) - 1) * math.pi)
    assert torch.equal(turned[..., 2:], views[..., 2:])
    torch.testing.assert_close(
        torch.cdist(turned[..., :2], turned[..., :2]), torch.cdist(views[..., :2], views[..., :2])
    )
    torch.testing.assert_close(turned[..., :2].norm(dim=-1), views[..., :2].norm(dim=-1))


def test_rotation_by_a_quarter_turn():
    particle = torch.tensor([0.3, 0.1, 0.5, 1.0]).expand(1, 2, 1, 1, 4)
    turned = rotate(particle, torch.full((1, 2, 1), math.pi / 2))
    torch.testing.assert_close(turned[0, 0, 0, 0], torch.tensor([-0.1, 0.3, 0.5, 1.0]))


def collinear_mass_squared(views: torch.Tensor, scale: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Sum over pairs of pT_i pT_j dR_ij^2, the pT times `scale`; no distance is wrapped."""
    distance = torch.cdist(views[..., :2], views[..., :2]) ** 2
    pt = views[..., 2] * scale
    return (pt[..., :, None] * pt[..., None, :] * distance).sum((-1, -2)) / 2


def mass_squared(views: torch.Tensor) -> torch.Tensor:
    """Of massless particles, without approximation."""
    momentum = four_momentum(views)
    return momentum[..., 3] ** 2 - (momentum[..., :3] ** 2).sum(-1)


@given(seeds)
def test_a_boost_keeps_mass_and_shares_of_the_momentum(seed):
    views = views_of(seed)
    rapidity = 2 * uniforms(seed, 1, 2, 6) - 1
    boosted = boost(views, rapidity)
    assert torch.equal(boosted[..., 2:], views[..., 2:])
    growth = torch.exp(rapidity)[..., None]  # of each pT, which pt_rel is a share of
    torch.testing.assert_close(collinear_mass_squared(boosted, growth), collinear_mass_squared(views))
    narrow = views * torch.tensor([0.01, 0.01, 1.0, 1.0])  # here the collinear mass is the mass
    exact = boost(narrow, rapidity)
    exact[..., 2] *= growth
    torch.testing.assert_close(mass_squared(exact), mass_squared(narrow), rtol=2e-3, atol=0)


def test_a_boost_by_hand():
    """Rapidity log 2 halves the angles."""
    particle = torch.tensor([0.3, -0.1, 0.5, 1.0]).expand(1, 2, 1, 1, 4)
    boosted = boost(particle, torch.full((1, 2, 1), math.log(2)))
    torch.testing.assert_close(boosted[0, 0, 0, 0], torch.tensor([0.15, -0.05, 0.5, 1.0]))


@given(seeds)
def test_translation_keeps_distances_and_padding(seed):
    views = views_of(seed)
    eta, phi = 2 * uniforms(seed, 2, 1, 2, 6) - 1
    moved, real = translate(views, eta, phi), views[..., 3] > 0.5
    assert torch.equal(moved[..., 2:], views[..., 2:])
    assert (moved[~real] == 0).all()
    pairs = real[..., :, None] & real[..., None, :]
    before, after = (torch.cdist(x[..., :2], x[..., :2])[pairs] for x in (views, moved))
    torch.testing.assert_close(after, before)
    torch.testing.assert_close((moved - views)[..., 0][real], eta[..., None].expand(real.shape)[real])
    torch.testing.assert_close((moved - views)[..., 1][real], phi[..., None].expand(real.shape)[real])


def test_pt_is_blurred_by_the_resolution_of_a_calorimeter():
    """Mean pt, relative width sqrt(exp(s^2) - 1) with s = sigma / sqrt(pt), on 400,000 draws."""
    views = torch.zeros(1, 2, 100_000, 2, 4, dtype=torch.float64)
    views[..., 2:] = torch.tensor([[0.25, 1.0], [0.04, 1.0]])
    noise = torch.randn(views.shape[:-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blurred = blur_pt(views, noise, 0.05)
    assert torch.equal(blurred[..., [0, 1, 3]], views[..., [0, 1, 3]])
    for particle, (pt, s) in enumerate([(0.25, 0.1), (0.04, 0.25)]):
        relative = blurred[..., particle, 2] / pt
        width = math.sqrt(math.exp(s**2) - 1)
        assert abs(float(relative.mean()) - 1) < 5 * width / math.sqrt(2e5)
        assert abs(float(relative.std()) / width - 1) < 0.02


@given(seeds)
def test_blurred_pt_is_never_negative_and_padding_stays(seed):
    views = views_of(seed)
    blurred = blur_pt(views, torch.full(views.shape[:-1], -6.0, dtype=torch.float64), 1.0)
    assert (blurred[..., 2] >= 0).all()
    assert torch.equal(blurred[views[..., 3] == 0], views[views[..., 3] == 0])


def test_soft_particles_are_lost_by_hand():
    # Below 0.2 are the last two; the key of the one is below the probability. The hardest stays with any threshold.
    particles = [[0.1, 0.2, 0.3, 1], [0.3, 0.4, 0.5, 1], [0.5, 0.6, 0.05, 1], [0.7, 0.8, 0.15, 1], [0, 0, 0, 0]]
    views = torch.tensor(particles).expand(1, 2, 1, 5, 4)
    key = torch.tensor([0.0, 0.0, 0.1, 0.9, 0.0]).expand(1, 2, 1, 5)
    left = drop_soft(views, key, 0.5, 0.2)[0, 0, 0]
    assert left[..., 3].tolist() == [1, 1, 0, 1, 0]
    assert (left[2] == 0).all()
    assert torch.equal(left[[0, 1, 3, 4]], views[0, 0, 0, [0, 1, 3, 4]])
    assert drop_soft(views, key, 1.0, 1.0)[0, 0, 0, :, 3].tolist() == [0, 1, 0, 0, 0]


@given(seeds)
def test_losing_soft_particles_loses_their_share_and_never_all(seed):
    views = views_of(seed, 50)
    key = uniforms(seed, *views.shape[:-1])
    left = drop_soft(views, key, 0.6, 0.03)
    lost = (views[..., 3] > 0) & (left[..., 3] == 0)
    assert (left[lost] == 0).all()
    assert torch.equal(left[~lost], views[~lost])
    hardest = views[..., 2].max(-1, keepdim=True).values
    soft = (views[..., 3] > 0) & (views[..., 2] < 0.03) & (views[..., 2] < hardest)
    assert (lost <= soft).all()
    assert abs(float(lost.sum() / soft.sum()) - 0.6) < 5 * 0.5 / math.sqrt(float(soft.sum()))
    empty = drop_soft(views, torch.zeros_like(key), 1.0, 1.0)
    assert (empty[..., 3].sum(-1) == 1).all()


STRENGTHS = ("translation", "boost", "pt_sigma", "soft_dropout", "rotation", "smear_sigma")


def test_no_augmentation_moves_the_draws_of_another(jets):
    draws = Draws(torch.tensor([4]), 5)
    base = AugmentConfig(split_fraction=0)
    plain = augment(jets, draws, base)
    blurred = augment(jets, draws, dataclasses.replace(base, pt_sigma=0.05))
    assert torch.equal(blurred[..., [0, 1, 3]], plain[..., [0, 1, 3]])
    assert not torch.equal(blurred[..., 2], plain[..., 2])
    fewer = augment(jets, draws, dataclasses.replace(base, soft_dropout=0.5))
    real = fewer[..., 3] > 0
    assert torch.equal(fewer[real], plain[real])
    assert real.sum() < plain[..., 3].sum()
    boosted = augment(jets, draws, dataclasses.replace(base, boost=0.5, smear_sigma=0))
    flat = augment(jets, draws, dataclasses.replace(base, smear_sigma=0))
    ratio = (boosted / flat)[..., 0][flat[..., 3] > 0].view(-1)
    assert ratio.min() > math.exp(-0.5) - 1e-4
    assert ratio.max() < math.exp(0.5) + 1e-4
    moved = augment(jets, draws, dataclasses.replace(base, translation=0.3)) - plain
    real = plain[..., 3] > 0
    for axis in (0, 1):
        first = moved[..., :1, axis].expand(real.shape)
        torch.testing.assert_close(moved[..., axis][real], first[real], atol=1e-5, rtol=0)
        assert 0.1 < float(first.abs().max()) < 0.3
        assert not torch.equal(first[:, 0], first[:, 1])


def test_strength_zero_is_the_identity_to_the_bit(jets):
    """As a tensor, which a trial without it meets in a pack with one that has it."""
    draws, zero = Draws(torch.tensor([4]), 5), torch.zeros(1)
    off = dict.fromkeys(STRENGTHS, 0.0) | {"split_fraction": 0.0}
    same = augment(jets, draws, stand_in(off | dict.fromkeys(STRENGTHS, zero)))
    assert torch.equal(same, jets[:, None].expand(-1, 2, -1, -1, -1))
    one = augment(jets, draws, stand_in(off | dict.fromkeys(STRENGTHS, zero) | {"boost": torch.full((1,), 0.5)}))
    assert torch.equal(one, augment(jets, draws, AugmentConfig(**off | {"boost": 0.5})))


def stand_in(values: dict) -> AugmentConfig:
    """A Config with tensors, as `jbot.trainer.pack.stack` makes them."""
    made = AugmentConfig()
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def test_lost_particles_leave_slots_that_splitting_fills(jets):
    draws = Draws(torch.tensor([0]), 1)
    config = AugmentConfig(soft_dropout=1.0, soft_pt=0.03, rotation=0, smear_sigma=0)
    holes = augment(jets, draws, dataclasses.replace(config, split_fraction=0))
    count = holes[..., 3].sum(-1)
    assert (count < jets[:, None, ..., 3].sum(-1)).any()
    full = augment(jets, draws, config)
    assert torch.equal(full[..., 3].sum(-1), count + torch.minimum(count, 30 - count))
    torch.testing.assert_close(four_momentum(full), four_momentum(holes))


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "none"])
def test_masks_of_views_with_gaps(jets, scheme):
    """No gap is masked, and one particle is always left."""
    draws = Draws(torch.tensor([0]), 1)
    views = augment(jets, draws, AugmentConfig(soft_dropout=0.8, soft_pt=0.05, split_fraction=0.3))
    views[..., 1::7, :] = 0.0  # gaps for certain
    valid = views[..., 3] > 0
    masked = mask_views(views, draws, MaskConfig(scheme=scheme, ratio_low=0.3))
    assert not (masked & ~valid).any()
    several = valid.sum(-1) > 1
    assert (masked.sum(-1)[several] >= 1).all()
    assert (masked.sum(-1) < valid.sum(-1)).all()


@given(seeds)
def test_smearing_leaves_pt_and_padding_alone(seed):
    views = views_of(seed)
    smeared = smear(views, torch.full((*views.shape[:-1], 2), 2.0), 3e-4)
    assert torch.equal(smeared[..., 2:], views[..., 2:])
    padding = views[..., 3] == 0
    assert (smeared[padding] == 0).all()
    moved = (smeared - views)[..., 0][~padding]
    torch.testing.assert_close(moved, 2.0 * 3e-4 / views[..., 2][~padding])


def test_reference_smearing_moves_padding_by_hundreds():
    views = torch.zeros(1, 2, 1, 1, 4)
    smeared = smear(views, torch.ones(1, 2, 1, 1, 2), 3e-4, reference=True)
    assert smeared[0, 0, 0, 0, 0] == 3e-4 / 1e-6


@given(seeds)
def test_splitting_keeps_momentum_and_direction_and_grows_the_count(seed):
    views = views_of(seed)
    share = 0.3 + 0.4 * uniforms(seed + 1, *views.shape[:-1])
    halves = split(views, uniforms(seed, *views.shape[:-1]), share)
    before, after = views[..., 3].sum(-1), halves[..., 3].sum(-1)
    assert torch.equal(after, before + torch.minimum(before, 30 - before))
    torch.testing.assert_close(four_momentum(halves), four_momentum(views))
    assert (halves[..., 2][halves[..., 3] == 1] > 0).all()
    assert (halves[halves[..., 3] == 0] == 0).all()


def test_splitting_by_hand():
    # Two particles and one empty slot: the one with the smaller key, the second, is split 0.4 : 0.6.
    views = torch.tensor([[0.1, 0.2, 0.7, 1], [0.3, 0.4, 0.3, 1], [0, 0, 0, 0]]).expand(1, 2, 1, 3, 4)
    key, share = torch.tensor([0.9, 0.1, 0.0]).expand(1, 2, 1, 3), torch.full((1, 2, 1, 3), 0.4)
    expected = torch.tensor([[0.1, 0.2, 0.7, 1], [0.3, 0.4, 0.12, 1], [0.3, 0.4, 0.18, 1]])
    torch.testing.assert_close(split(views, key, share)[0, 0, 0], expected)
    lost = torch.tensor([[0.1, 0.2, 0.7, 1], [0.3, 0.4, 0.12, 1], [0, 0, 0, 0]])
    torch.testing.assert_close(split(views, key, share, reference=True)[0, 0, 0], lost)


def test_split_fraction_limits_the_splittings():
    views = torch.zeros(1, 2, 1, 30, 4)
    views[..., :10, 2:] = torch.tensor([0.1, 1.0])
    halves = split(views, uniforms(0, 1, 2, 1, 30).float(), torch.full((1, 2, 1, 30), 0.5), fraction=0.5)
    assert halves[..., 3].sum(-1).tolist() == [[[15.0], [15.0]]]


def test_views_differ_and_everything_off_is_the_identity(jets):
    draws = Draws(torch.tensor([0]), 0)
    views = augment(jets, draws, AugmentConfig())
    assert not torch.equal(views[:, 0], views[:, 1])
    plain = augment(jets, draws, AugmentConfig(rotation=0, smear_sigma=0, split_fraction=0))
    assert torch.equal(plain[:, 0], jets)
    assert torch.equal(plain[:, 1], jets)


def test_switching_splitting_off_does_not_move_the_other_draws(jets):
    draws = Draws(torch.tensor([0]), 5)
    with_split = augment(jets, draws, AugmentConfig(split_variant="reference"))
    without = augment(jets, draws, AugmentConfig(split_fraction=0))
    assert torch.equal(with_split[..., :2], without[..., :2])


def test_order_keeps_ties_and_puts_padding_last():
    key, valid = torch.tensor([0.5, 0.0, 0.1, 0.5, 0.5]), torch.tensor([True, False, True, True, True])
    assert in_order(key, valid).tolist() == [2, 0, 3, 4, 1]

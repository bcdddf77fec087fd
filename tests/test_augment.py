import math

import torch
from conftest import make_jets
from hypothesis import given
from hypothesis import strategies as st

from jbot.augment import augment, in_order, rotate, smear, split
from jbot.config import AugmentConfig
from jbot.streams import Draws

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

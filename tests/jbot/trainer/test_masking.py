import pytest
import torch
from helpers import make_jets
from hypothesis import given
from hypothesis import strategies as st

from jbot.config import MaskConfig
from jbot.trainer.masking import SCHEMES, Scene, mask_views
from jbot.trainer.rng import Draws

seeds = st.integers(0, 2**31 - 1)


def scene_of(seed: int, ratio: float, count: int = 8) -> Scene:
    particles = torch.from_numpy(make_jets(count, seed))[None, None].expand(1, 2, -1, -1, -1)
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, 1, 2, count, 30, generator=generator)
    return Scene(particles, torch.full((1, 2, count), ratio), first, second)


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"none"}))
@given(seed=seeds, ratio=st.floats(0.001, 1.0))
def test_at_least_one_masked_and_one_visible_and_never_padding(scheme, seed, ratio):
    scene = scene_of(seed, ratio)
    masked = SCHEMES[scheme](scene)
    assert (masked.sum(-1) >= 1).all()
    assert ((scene.valid & ~masked).sum(-1) >= 1).all()
    assert not (masked & ~scene.valid).any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ratio_zero_masks_nothing(scheme):
    assert not SCHEMES[scheme](scene_of(1, 0.0)).any()


@pytest.mark.parametrize("scheme", ["momentum", "geometric", "softest", "hardest"])
@given(seed=seeds, ratio=st.floats(0.05, 0.6))
def test_masked_momentum_is_within_one_particle_of_the_target(scheme, seed, ratio):
    scene = scene_of(seed, ratio)
    masked = SCHEMES[scheme](scene)
    got, target = (scene.pt * masked).sum(-1), scene.ratio * scene.pt.sum(-1)
    # Closest to the target: off by at most half of some particle, or one particle where one must be masked.
    largest = scene.pt.amax(-1)
    forced = (masked.sum(-1) == 1) | (masked.sum(-1) == scene.valid.sum(-1) - 1)
    assert ((got - target).abs() <= torch.where(forced, largest, largest / 2) + 1e-6).all()


@given(seed=seeds, ratio=st.floats(0.05, 0.9))
def test_random_masks_the_share_of_the_count(seed, ratio):
    scene = scene_of(seed, ratio)
    n = scene.valid.sum(-1)
    expected = torch.minimum(torch.round(scene.ratio * n).clamp(min=1), n - 1)
    assert torch.equal(SCHEMES["random"](scene).sum(-1).float(), expected)


@given(seed=seeds, ratio=st.floats(0.05, 0.9))
def test_matched_controls_mask_as_many_as_momentum(seed, ratio):
    scene = scene_of(seed, ratio)
    count = SCHEMES["momentum"](scene).sum(-1)
    for control in ("random_count", "geometric_count"):
        assert torch.equal(SCHEMES[control](scene).sum(-1), count)


def by_hand(**changes) -> Scene:
    """One jet of four particles on a line, pt 0.4 0.3 0.2 0.1, and one empty slot."""
    particles = torch.zeros(1, 2, 1, 5, 4)
    particles[..., :4, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    particles[..., :4, 2] = torch.tensor([0.4, 0.3, 0.2, 0.1])
    particles[..., :4, 3] = 1
    first = torch.tensor([0.9, 0.2, 0.5, 0.7, 0.0]).expand(1, 2, 1, 5)
    second = torch.tensor([0.8, 0.6, 0.1, 0.3, 0.0]).expand(1, 2, 1, 5)
    return Scene(particles, torch.full((1, 2, 1), changes.get("ratio", 0.5)), first, second)


@pytest.mark.parametrize(
    ("scheme", "ratio", "expected"),
    [
        ("momentum", 0.5, [1, 2]),  # order 1, 2, 3, 0: sums 0.3, 0.5
        ("momentum", 0.38, [1]),  # 0.3 is closer to 0.38 than 0.5
        ("momentum", 0.42, [1, 2]),  # 0.5 is closer to 0.42
        ("random", 0.5, [1, 2]),  # two of four
        ("random_count", 0.5, [2, 3]),  # two, in the order of the second draw
        ("geometric", 0.53, [1, 2]),  # centre 2 (pt 0.2), then 1 and 3 lie equally far: 1 comes first
        ("hardest", 0.45, [0]),
        ("softest", 0.35, [2, 3]),  # 0.1, 0.3
        ("softest", 0.95, [1, 2, 3]),  # one is left visible
        ("none", 0.5, []),
    ],
)
def test_schemes_by_hand(scheme, ratio, expected):
    masked = SCHEMES[scheme](by_hand(ratio=ratio))[0, 0, 0]
    assert masked.nonzero().flatten().tolist() == expected


def test_arms_share_the_masked_share(jets):
    views = jets[:, None].expand(-1, 2, -1, -1, -1)
    draws = Draws(torch.tensor([4]), 9)
    counts = [mask_views(views, draws, MaskConfig(scheme=s)).sum(-1) for s in ("momentum", "random_count")]
    assert torch.equal(*counts)


def test_probability_is_the_share_of_masked_views():
    views = torch.from_numpy(make_jets(4000, 1, slots=5))[None, None].expand(1, 2, -1, -1, -1)
    masked = mask_views(views, Draws(torch.tensor([0]), 0), MaskConfig(probability=0.3))
    share = masked.any(-1).float().mean()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 8000) ** 0.5

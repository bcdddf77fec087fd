import math

import pytest
import torch
from helpers import make_jets

from jbot.config import JBOT_B, Config, ModelConfig, override
from jbot.trainer.model import cls_rows, encode, init_weights, linear, pack, project, unpack, weight_shapes

SMALL = ModelConfig(dim=8, heads=2, layers=2, projection=4)


def weights_of(config: ModelConfig, *seeds: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    flat = torch.stack([init_weights(config, seed) for seed in seeds]).to(dtype)
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return unpack(flat + 0.1 * noise, config)  # so that no bias and no token is zero


def tokens(encoded: torch.Tensor, slots: int = 30) -> torch.Tensor:
    return encoded.unflatten(1, (-1, slots + 1))


@pytest.fixture
def particles() -> torch.Tensor:
    return torch.from_numpy(make_jets(6, 5))[None].double()


def test_sizes_of_the_two_published_models():
    for config, dim, inner in ((Config(), 32, 32), (override(Config(), JBOT_B), 64, 60)):
        shapes = weight_shapes(config.model)
        assert shapes["block0.qkv.weight"] == (dim, 3 * inner)
        assert shapes["head1.weight"] == (dim, 8 * config.model.projection)


def test_initial_weights_share_what_arms_have_in_common():
    one, two = (unpack(init_weights(ModelConfig(layers=n), 3)[None], ModelConfig(layers=n)) for n in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(two["block0.qkv.weight"], two["block1.qkv.weight"])


def test_initial_weights_have_keras_limits():
    weights = unpack(init_weights(ModelConfig(), 0)[None], ModelConfig())
    for name, limit in {"block0.qkv.weight": 0.125, "embed.weight": math.sqrt(6 / 36)}.items():
        assert 0.95 * limit < weights[name].abs().max() <= limit
    assert weights["block0.qkv.bias"].abs().max() == 0
    assert weights["cls_token"].abs().max() == 0


def test_pack_is_the_inverse_of_unpack():
    flat = init_weights(SMALL, 1)
    named = {name: value[0].numpy() for name, value in unpack(flat[None], SMALL).items()}
    assert torch.equal(pack(named, SMALL), flat)
    named["cls_token"] = named["cls_token"][:3]
    with pytest.raises(ValueError, match=r"weight cls_token must have shape \(8,\), got \(3,\)"):
        pack(named, SMALL)


def test_attention_by_hand():
    """One block with identity values, zero queries and everything else zero is a mean over valid tokens."""
    config = ModelConfig(dim=4, heads=1, layers=1, projection=2)
    weights = {name: torch.zeros(1, *shape, dtype=torch.float64) for name, shape in weight_shapes(config).items()}
    weights["embed.weight"] = torch.eye(4, dtype=torch.float64)[None]
    weights["block0.qkv.weight"][0, :, 8:] = torch.eye(4)
    weights["block0.out.weight"] = torch.eye(4, dtype=torch.float64)[None]
    weights["block0.norm1.weight"] += 1
    weights["block0.norm2.weight"] += 1
    jet = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    jet[0, 0, 0], jet[0, 0, 1] = torch.tensor([0.3, 0.1, 0.6, 1]), torch.tensor([-0.1, 0.2, 0.4, 1])
    cls = encode(weights, jet, config)[0, 0]
    mean = jet[0, 0, :2].sum(0) / 3  # [CLS] itself, zero, is the third
    expected = (mean - mean.mean()) / mean.std(correction=0)
    torch.testing.assert_close(cls, expected, atol=1e-4, rtol=0)


def test_padding_never_changes_a_valid_output(particles):
    weights = weights_of(SMALL, 0)
    garbage = torch.where(particles[..., 3:] > 0.5, particles, torch.tensor([9.0, -9.0, 5.0, 0.0], dtype=torch.float64))
    clean, dirty = tokens(encode(weights, particles, SMALL)), tokens(encode(weights, garbage, SMALL))
    valid = torch.cat((torch.ones(1, 6, 1), particles[..., 3]), -1) > 0.5
    assert torch.equal(clean[valid], dirty[valid])
    reference = ModelConfig(dim=8, heads=2, layers=2, projection=4, padding="reference")
    seen = tokens(encode(weights, particles, reference)), tokens(encode(weights, garbage, reference))
    assert not torch.equal(seen[0][valid], seen[1][valid])


def test_empty_slots_can_be_cut_off(particles):
    short = torch.from_numpy(make_jets(4, 2, slots=12))[None].double()
    long = torch.nn.functional.pad(short, (0, 0, 0, 18))
    weights = weights_of(SMALL, 0)
    cut = tokens(encode(weights, short, SMALL), 12)[:, :, 0]
    torch.testing.assert_close(tokens(encode(weights, long, SMALL))[:, :, 0], cut, atol=1e-12, rtol=0)


def test_permuting_particles_changes_nothing(particles):
    weights = weights_of(SMALL, 0)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    plain, mixed = tokens(encode(weights, particles, SMALL)), tokens(encode(weights, particles[:, :, order], SMALL))
    torch.testing.assert_close(mixed[:, :, 0], plain[:, :, 0], atol=1e-12, rtol=0)
    valid = particles[:, :, order, 3] > 0.5
    torch.testing.assert_close(mixed[:, :, 1:][valid], plain[:, :, 1:][:, :, order][valid], atol=1e-12, rtol=0)


def test_masked_particles_hide_their_features(particles):
    weights = weights_of(SMALL, 0)
    masked = torch.zeros(1, 6, 30, dtype=torch.bool)
    masked[..., 0] = True
    moved = particles.clone()
    moved[..., 0, :3] += 0.5
    assert torch.equal(encode(weights, particles, SMALL, masked), encode(weights, moved, SMALL, masked))
    assert not torch.equal(encode(weights, particles, SMALL), encode(weights, moved, SMALL))


def test_rows_are_the_same_numbers_for_less_work(particles):
    weights = weights_of(SMALL, 0, 1)
    pair = particles.expand(2, -1, -1, -1)
    everything = encode(weights, pair, SMALL)
    rows = torch.stack((torch.arange(0, 180, 7), torch.arange(1, 183, 7)[:26]))
    some = encode(weights, pair, SMALL, rows=rows)
    for trial in range(2):
        torch.testing.assert_close(some[trial], everything[trial, rows[trial]], atol=1e-13, rtol=0)
    assert cls_rows(1, 3, 30, torch.device("cpu")).tolist() == [[0, 31, 62]]


def test_a_trial_does_not_feel_its_pack(particles):
    both = weights_of(SMALL, 0, 1)
    pair = particles.expand(2, -1, -1, -1)
    together = encode(both, pair, SMALL)
    for trial in range(2):
        alone = {name: value[trial : trial + 1] for name, value in both.items()}
        torch.testing.assert_close(encode(alone, particles, SMALL)[0], together[trial], atol=1e-13, rtol=0)


def test_projection_lies_on_the_unit_sphere():
    weights = weights_of(SMALL, 0)
    x = torch.randn(1, 50, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(project(weights, x).norm(dim=-1), torch.ones(1, 50, dtype=torch.float64))


def test_linear_by_hand():
    x, weight, bias = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0], [4.0]]]), torch.tensor([[0.5]])
    assert linear(x, weight, bias).item() == 11.5

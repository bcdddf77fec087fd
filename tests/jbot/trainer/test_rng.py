import numpy as np
import torch
from scipy import stats

from jbot.trainer.rng import Draws, normals, splitmix, stream_number

STREAMS = (
    "init", "order", "rotate", "boost", "translate", "smear", "pt", "soft", "split", "ratio", "mask", "probe",
    "dropout", "finetune_order",
)  # fmt: skip


def test_splitmix_gives_the_published_sequence():
    # First outputs of SplitMix64 from state 1234567, as in the reference C code of Vigna.
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + i * golden) % 2**64 for i in range(3)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(x) % 2**64 for x in splitmix(signed)] == expected


def test_draws_are_uniform_and_streams_independent():
    high, low = Draws(torch.tensor([5]), 11).uniforms(STREAMS, (20_000,))
    for values in (*high[:, 0].numpy(), *low[:, 0].numpy()):
        assert values.min() > 0
        assert values.max() < 1
        assert stats.kstest(values, "uniform").pvalue > 1e-4
    rows = torch.cat((high[:, 0], low[:, 0])).numpy()
    correlations = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(20_000)


def test_a_draw_depends_on_seed_stream_step_and_place_alone():
    alone, _ = Draws(torch.tensor([3]), 7).uniforms(["mask"], (4, 5))
    among, _ = Draws(torch.tensor([9, 3]), 7).uniforms(["split", "mask"], (4, 5))
    assert torch.equal(alone[0, 0], among[1, 1])
    later, _ = Draws(torch.tensor([3]), 8).uniforms(["mask"], (4, 5))
    assert not torch.equal(alone, later)


def test_shorts_are_the_quarters_of_hashes():
    draws = Draws(torch.tensor([9, 3]), 7)
    shorts = draws.shorts("dropout", 20_001)
    assert shorts.shape == (2, 20_001)
    assert torch.equal(shorts[1:, :4], Draws(torch.tensor([3]), 7).shorts("dropout", 4))
    # The two uniforms of a place are made of the upper and the lower 23 bits of the same hash.
    (high,), (low,) = draws.uniforms(["dropout"], (5001,))
    quarters = shorts[:, :20_000].view(2, 5000, 4).long() % 2**16
    assert torch.equal(quarters[..., 3], ((high[:, :5000].double() * 2**23 - 0.5).long() >> 7))
    assert torch.equal(quarters[..., 0], (low[:, :5000].double() * 2**23 - 0.5).long() % 2**16)
    for column in quarters[0].unbind(-1):
        assert stats.kstest((column.numpy() + 0.5) / 2**16, "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(quarters[0].T.numpy())[np.triu_indices(4, 1)]).max() < 5 / np.sqrt(5000)


def test_normals_are_normal():
    (high,), (low,) = Draws(torch.tensor([1]), 0).uniforms(["smear"], (20_000,))
    for values in normals(high[0], low[0]).unbind(-1):
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-4


def test_stream_names_have_different_numbers():
    assert len({stream_number(name) for name in STREAMS}) == len(STREAMS)

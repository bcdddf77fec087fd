"""Trials of one node share one copy of the jets: memory is measured with several workers at once.

USS, the memory a process has for itself, is looked at: RSS counts shared pages in every process that touches them.
"""

import sys
import warnings

import numpy as np
import psutil
import pytest
import torch

from jbot.config import DataConfig
from jbot.data import JetData
from jbot.data.jets import shared_tensor
from jbot.trainer.inputs import prepare, resident

ray = pytest.importorskip("ray")

MB = 1e6
WORKERS = 3
PER_CLASS = 120_000  # 600,000 jets: 288 MB of particles
BATCH = 1024
SMALL = 0.15
"""Of the data: what a worker may grow by. Index tensors and labels of all jets are 16 of 480 bytes a jet; the rest is
what the allocator keeps of temporaries."""

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests


@pytest.fixture(scope="module")
def large() -> JetData:
    """Enough random jets for a copy not to hide in the noise of the interpreter."""
    rng = np.random.default_rng(0)
    n_jets = 5 * PER_CLASS
    particles = rng.random((n_jets, 30, 4), np.float32)
    labels = np.repeat(np.arange(5), PER_CLASS)
    return JetData(
        particles=particles, labels=labels, jets=particles[:, 0].copy(), fingerprint="random", source="random numbers"
    )


@pytest.fixture(scope="module")
def node():
    """Ray on this machine, with a CPU for each worker."""
    ray.init(
        address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, object_store_memory=int(700e6)
    )
    yield
    ray.shutdown()


# --- how trials open jets -----------------------------------------------------------------------------------------

Opened = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""particles (jet, particle, 4) of all splits, and row numbers into them by split."""


def open_shared(data: JetData, particles: int) -> Opened:
    """As a trial opens them: one tensor on the memory of the jets, and row numbers."""
    sizes = len(data.labels) // 20
    wanted = DataConfig(train_jets=len(data.labels) - 2 * sizes, val_jets=sizes, test_jets=sizes, particles=particles)
    jets = resident(data, particles, torch.device("cpu"))
    train, judged = prepare(wanted, 50_000, data=data, particles=jets)
    return jets, {"train": train} | {name: split.rows for name, split in judged.items()}


def open_copied(data: JetData, particles: int) -> Opened:
    """A tensor of its own: what this test must be able to see."""
    shared, rows = open_shared(data, particles)
    return shared.index_select(0, rows["train"]), {"train": torch.arange(len(rows["train"]))}


def read_all(opened: Opened) -> float:
    """An epoch: every jet is gathered once, a batch at a time."""
    jets, rows = opened
    order = rows["train"][torch.randperm(len(rows["train"]))]
    return float(sum(jets.index_select(0, batch).sum() for batch in order.split(BATCH)))


# --- measuring ----------------------------------------------------------------------------------------------------


class Worker:
    """A process that opens jets the way a trial does; as Ray actor, or here."""

    def __init__(self):
        import jbot.trial.run  # noqa: F401 - its libraries are counted before

        torch.set_num_threads(1)
        read_all((torch.rand(BATCH, 30, 4), {"train": torch.arange(BATCH)}))  # torch's own buffers are made now

    def own(self) -> int:
        """Bytes that only this process has."""
        return psutil.Process().memory_full_info().uss

    def read(self, data: JetData, open_jets, particles: int = 30) -> float:
        """Open the jets, keep them, and read an epoch of them."""
        self.opened = open_jets(data, particles)
        return read_all(self.opened)


def growth(data: JetData, open_jets, particles: int = 30) -> list[float]:
    """Memory that each of several workers, all holding the jets at once, has got for itself; shares of the data."""
    shared = ray.put(data)
    workers = [ray.remote(num_cpus=1)(Worker).remote() for _ in range(WORKERS)]
    before = ray.get([worker.own.remote() for worker in workers])
    ray.get([worker.read.remote(shared, open_jets, particles) for worker in workers])
    after = ray.get([worker.own.remote() for worker in workers])
    for worker in workers:
        ray.kill(worker)
    return [(late - early) / data.particles.nbytes for early, late in zip(before, after, strict=True)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="USS is read from /proc")
@pytest.mark.parametrize("particles", [30, 20])
def test_workers_of_a_node_share_one_copy(node, large, particles):
    shares = growth(large, open_shared, particles)
    assert max(shares) < SMALL, shares


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="USS is read from /proc")
def test_the_measurement_sees_a_copy(node, large):
    shares = growth(large, open_copied)
    assert min(shares) > 0.8, shares


def test_jets_out_of_the_object_store_are_the_store_s_memory(node, large):
    stored = ray.put(large)
    one, other = ray.get(stored), ray.get(stored)
    for name in ("particles", "labels", "jets"):
        assert not getattr(one, name).flags.writeable
        assert getattr(one, name).ctypes.data == getattr(other, name).ctypes.data
    tensor = shared_tensor(one.particles)
    assert tensor.data_ptr() == one.particles.ctypes.data
    assert tensor.dtype == torch.float32


# --- in this process ----------------------------------------------------------------------------------------------


def test_here_the_tensor_is_the_array_and_nobody_is_warned(large):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        readonly = large.particles.view()
        readonly.flags.writeable = False
        assert shared_tensor(readonly).data_ptr() == large.particles.ctypes.data
        assert shared_tensor(large.particles).data_ptr() == large.particles.ctypes.data


def test_opening_jets_here_takes_no_copy(large):
    jets, rows = open_shared(large, 30)
    assert jets.data_ptr() == large.particles.ctypes.data
    assert sum(row.nbytes for row in rows.values()) < 0.05 * large.particles.nbytes


def test_batches_of_fewer_particles_are_those_of_a_copy(large):
    jets, rows = open_shared(large, 7)
    batch = rows["train"][:50]
    np.testing.assert_array_equal(jets.index_select(0, batch).numpy(), large.particles[batch.numpy(), :7])
    assert jets.index_select(0, batch).is_contiguous()


def test_what_cannot_be_shared_is_refused(large):
    with pytest.raises(ValueError, match="only contiguous arrays of numbers are shared"):
        shared_tensor(large.particles[:10, ::2])

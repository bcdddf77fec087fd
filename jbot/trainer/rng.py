"""Random numbers that depend on nothing but (seed, stream, step, position).

Counter-based (Salmon et al., SC 2011): a draw is a hash of where it is used, so switching one thing off moves no
other draw, a resumed run is the same run, and a CPU, a GPU and a trial in a pack see the same bits. The hash is
SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) in torch integers: int64 products wrap as unsigned ones do.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int16, Int64
from torch import Tensor

# As signed numbers.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MIX1 = 0xBF58476D1CE4E5B9 - 2**64
MIX2 = 0x94D049BB133111EB - 2**64


def splitmix(state: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """The SplitMix64 output for each state: 64 random bits."""
    z = state + GOLDEN
    z = (z ^ _shift(z, 30)) * MIX1
    z = (z ^ _shift(z, 27)) * MIX2
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def stream_number(stream: str) -> int:
    """A stable number for a stream's name (or ``init/<parameter>``)."""
    return zlib.crc32(stream.encode())


@functools.cache
def _stream_numbers(streams: tuple[str, ...], device: torch.device) -> Int64[Tensor, "stream"]:
    """On the device once: a copy from the host in every step would stop a GPU."""
    return torch.tensor([stream_number(stream) for stream in streams], device=device)


def _positions(count: int, device: torch.device) -> Int64[Tensor, "count"]:
    """The number added to a key, for each draw."""
    return torch.arange(1, count + 1, device=device) * GOLDEN


def numpy_generator(seed: int, stream: str, step: int = 0) -> np.random.Generator:
    """For draws made once an epoch or less: initial weights, data order, probes."""
    return np.random.default_rng([seed, stream_number(stream), step])


class Draws:
    """The uniform draws of one training step for a pack of trials.

    Parameters
    ----------
    seeds : int64 tensor (trial,)
    step : int, or int64 tensor (trial,)
        Step counter of the whole run; of each trial's own.
    """

    def __init__(self, seeds: Int64[Tensor, "trial"], step: int | Int64[Tensor, "trial"]):
        self._state = splitmix(splitmix(seeds) + step)

    def uniforms(
        self, streams: Sequence[str], shape: Sequence[int]
    ) -> tuple[Float[Tensor, "stream trial *shape"], Float[Tensor, "stream trial *shape"]]:
        """Two independent uniforms in the open interval (0, 1) for each stream, trial and position.

        Drawn for several streams in one go: at small batches the number of kernels is what a step costs.
        """
        state = self._state
        keys = splitmix(state + _stream_numbers(tuple(streams), state.device)[:, None])
        position = _positions(math.prod(shape), state.device)
        bits = splitmix(keys[..., None] + position).view(*keys.shape, *shape)
        # 23 bits and a half: exact in float32, and never 0 or 1.
        high = (_shift(bits, 41).float() + 0.5) * 2.0**-23
        low = ((bits & (2**23 - 1)).float() + 0.5) * 2.0**-23
        return high, low

    def shorts(self, stream: str, count: int) -> Int16[Tensor, "trial count"]:
        """Whole numbers uniform in [-2^15, 2^15) for each trial and position, for draws that need few bits.

        The four quarters of each hash, lowest first: the byte order of any machine with a CUDA device.
        """
        hashes = _positions(-(-count // 4), self._state.device)
        keys = splitmix(self._state + stream_number(stream))
        return splitmix(keys[:, None] + hashes).view(torch.int16)[:, :count]


def normals(high: Float[Tensor, "*shape"], low: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape 2"]:
    """Two standard normals from two uniforms (Box & Muller 1958)."""
    radius = torch.sqrt(-2.0 * torch.log(high))
    angle = 2.0 * math.pi * low
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)

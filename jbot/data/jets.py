"""A set of jets: the frozen container of its arrays, the class order, and the error every loader raises."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = ("q", "g", "w", "z", "t")
"""Class order everywhere; labels are positions in it: light quark, gluon, W, Z, top."""

CLASS_LABELS = ("q", "g", "W", "Z", "t")
"""The same as figures and texts write them."""

N_PARTICLES = 30
"""Particles kept per jet, the leading ones in pT (JetNet, arXiv:2106.11535)."""

BLOCK = 100_000
"""Jets looked at together where a large set is read, checked or hashed: 48 MB of particles."""


class DataError(ValueError):
    """Bad jets or a bad request for jets. Its message is one line that names the rule and the value received."""


Arrays = tuple[np.ndarray, np.ndarray]
"""particles (jet, 30, 4) float32, jets (jet, 4) float32."""


@dataclass(frozen=True, kw_only=True)
class JetData:
    """Jets of one source, class by class in the order of `CLASSES`."""

    particles: np.ndarray
    """(jet, 30, 4) float32: eta_rel, phi_rel [rad], pt_rel, valid (0 or 1). Padding is zero."""
    labels: np.ndarray
    """(jet,) int64: position in `CLASSES`."""
    jets: np.ndarray
    """(jet, 4) float32: pT [GeV], pseudorapidity, mass [GeV], number of valid particles (at most 30)."""
    fingerprint: str
    """sha256, as hex digits, over the content of the three arrays."""
    source: str
    """One readable line for reports."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Settings, versions and citations, as the file states them."""


def content_fingerprint(*arrays: Any, rows: np.ndarray | None = None) -> str:
    """sha256 (hex) over dtype, shape and bytes of arrays or HDF5 datasets, in order; read block by block.

    With `rows`, (row,) int64, that of arrays which hold these rows alone.
    """
    digest = hashlib.sha256()
    for array in arrays:
        length = len(array if rows is None else rows)
        digest.update(f"{array.dtype.str}{(length, *array.shape[1:])}".encode())
        for block in blocks(length):
            digest.update(np.ascontiguousarray(array[block if rows is None else rows[block]]).data)
    return digest.hexdigest()


def is_number(text: str, number: float) -> bool:
    """Whether what a file states is this number, however it is written."""
    try:
        return float(text) == number
    except ValueError:
        return False


def blocks(n_rows: int) -> Iterator[slice]:
    """Row ranges that cover a table, each small enough for copies and temporaries of it not to matter."""
    return (slice(first, min(first + BLOCK, n_rows)) for first in range(0, n_rows, BLOCK))


def join_parts(
    counts: Mapping[str, int], parts: Iterable[Arrays], source: str, metadata: dict[str, str] | None = None
) -> JetData:
    """Put parts together into one `JetData`, in which each jet is held once.

    They come class by class, in the order of `counts` (jets of each class), and hold as many together.
    """
    total = sum(counts.values())
    particles, jets = np.empty((total, N_PARTICLES, 4), np.float32), np.empty((total, 4), np.float32)
    start = 0
    for some_particles, some_jets in parts:
        rows = slice(start, start + len(some_jets))
        particles[rows], jets[rows] = some_particles, some_jets
        start = rows.stop
    labels = np.repeat(np.array([CLASSES.index(name) for name in counts], np.int64), list(counts.values()))
    return JetData(
        particles=particles,
        labels=labels,
        jets=jets,
        fingerprint=content_fingerprint(particles, labels, jets),
        source=source,
        metadata=metadata or {},
    )


def shared_tensor(array: np.ndarray) -> Tensor:
    """A CPU tensor on the memory of an array: the trials of one node read the same memory.

    The array may be read-only, as those from Ray's object store are. The tensor must only be read (`index_select`,
    `.to`, slices of it): writing into read-only memory, which torch does not know of, would change the jets of every
    trial on the node or end the process. Raises ValueError for what is not contiguous, or no numbers.
    """
    import torch  # most that read jets do without

    if not array.flags.c_contiguous or array.dtype.kind not in "fiu":
        raise ValueError(f"only contiguous arrays of numbers are shared, got dtype {array.dtype}, {array.strides=}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)

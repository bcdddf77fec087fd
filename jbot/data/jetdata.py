"""What a set of jets is: one frozen container, the class order, and the error every loader raises."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CLASSES = ("q", "g", "w", "z", "t")
"""Class order everywhere; labels are positions in it: light quark, gluon, W, Z, top."""

N_PARTICLES = 30
"""Particles kept a jet, the leading ones in pT (JetNet, arXiv:2106.11535)."""

BLOCK = 100_000
"""Jets looked at together where a large set is read, checked or hashed: 48 MB of particles."""


class DataError(ValueError):
    """Bad jets or a bad request for jets. Its message is one line that names the rule and the value received."""


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


def content_fingerprint(*arrays: Any) -> str:
    """sha256 (hex) over dtype, shape and bytes of arrays or HDF5 datasets, in order; read block by block."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        for rows in blocks(len(array)):
            digest.update(np.ascontiguousarray(array[rows]).data)
    return digest.hexdigest()


def rows_fingerprint(rows: np.ndarray, *arrays: np.ndarray) -> str:
    """`content_fingerprint` of some rows of arrays, (row,) int64; never more than a block of them is copied."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{(len(rows), *array.shape[1:])}".encode())
        for some in blocks(len(rows)):
            digest.update(np.ascontiguousarray(array[rows[some]]).data)
    return digest.hexdigest()


def blocks(n_rows: int) -> Iterator[slice]:
    """Row ranges that cover a table, each small enough for copies and temporaries of it not to matter."""
    return (slice(first, min(first + BLOCK, n_rows)) for first in range(0, n_rows, BLOCK))

"""What a set of jets is: one frozen container, the class order, and the error every loader raises."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

CLASSES = ("q", "g", "w", "z", "t")
"""Class order everywhere; labels are positions in it: light quark, gluon, W, Z, top."""

N_PARTICLES = 30
"""Particles kept a jet, the leading ones in pT (JetNet, arXiv:2106.11535)."""


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


def content_fingerprint(*arrays: np.ndarray) -> str:
    """sha256 (hex) over dtype, shape and bytes of arrays, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def join_classes(
    per_class: dict[str, tuple[np.ndarray, np.ndarray]], *, source: str, metadata: dict[str, str]
) -> JetData:
    """Stack classes into one `JetData`.

    Parameters
    ----------
    per_class : dict
        Class name -> (particles (jet, 30, 4), jets (jet, 4)), float32.
    source, metadata
        As in `JetData`.
    """
    names = [name for name in CLASSES if name in per_class]
    particles = np.concatenate([per_class[name][0] for name in names])
    jets = np.concatenate([per_class[name][1] for name in names])
    labels = np.concatenate([np.full(len(per_class[name][1]), CLASSES.index(name), np.int64) for name in names])
    return JetData(
        particles=particles,
        labels=labels,
        jets=jets,
        fingerprint=content_fingerprint(particles, labels, jets),
        source=source,
        metadata=metadata,
    )

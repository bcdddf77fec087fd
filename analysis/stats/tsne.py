"""Two-dimensional maps of embeddings, for the eye only: nothing is concluded from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

ITERATIONS = 500
"""Twice as many take twice as long and lower the divergence of 500 quick jets by 1%."""
START_WIDTH = 1e-4
"""Standard deviation of a map at its start, as scikit-learn scales principal components to."""


def thin(labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Indices of at most `most` jets of labels (jet,): of each class equally many, as far as they reach, the first."""
    classes = np.unique(labels)
    each = max(1, most // max(1, len(classes)))
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in classes] or [np.array([], int)]))


def can_be_mapped(cls_embedding: NDArray[np.floating]) -> bool:
    """Whether there are at least 5 jets, all values are finite, and not all jets look the same."""
    x = np.asarray(cls_embedding)
    return len(x) >= 5 and bool(np.isfinite(x).all()) and bool((x != x[0]).any())


def tsne(
    cls_embedding: NDArray[np.floating], seed: int = 0, start: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """t-SNE of standardised embeddings.

    Parameters
    ----------
    cls_embedding : float array (jet, dim)
    start : float array (jet, 2), optional
        Where the jets lie on another map, so that clusters keep their place; two principal components when None.

    Returns
    -------
    float array (jet, 2)

    Raises ValueError with fewer than 5 jets, values that are not finite, or jets that all look the same.

    References
    ----------
    van der Maaten & Hinton, JMLR 9 (2008) 2579, jmlr.org/papers/v9/vandermaaten08a.html.
    """
    x = np.asarray(cls_embedding, dtype=np.float64)
    if not can_be_mapped(x):
        raise ValueError(f"t-SNE takes at least 5 finite embeddings that differ, got shape {x.shape}")
    scaled = StandardScaler().fit_transform(x)
    perplexity = min(30.0, (len(x) - 1) / 3)
    init: Any = "pca" if start is None else (start / np.std(start[:, 0]) * START_WIDTH).astype(np.float32)
    # Threads that wait for each other make so few jets slow on a busy machine, and their sums differ from run to run.
    with threadpool_limits(limits=1):
        points = TSNE(perplexity=perplexity, init=init, max_iter=ITERATIONS, random_state=seed).fit_transform(scaled)
    points = np.asarray(points, dtype=np.float64)
    if start is None:
        return points
    # t-SNE knows no directions: turned or reflected to lie on the other map as well as it can.
    points, other = points - points.mean(0), np.asarray(start, dtype=np.float64)
    return points @ orthogonal_procrustes(points, other - other.mean(0))[0]


def evolution(embeddings: Sequence[NDArray[np.floating]], seed: int = 0) -> list[NDArray[np.float64]]:
    """Maps of the same jets at several epochs, each started from the one before; see :func:`tsne`."""
    maps: list[NDArray[np.float64]] = []
    for one in embeddings:
        maps.append(tsne(one, seed, maps[-1] if maps else None))
    return maps

"""Two-dimensional maps of embeddings, for the eye only: nothing is concluded from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

CLASSES = ("q", "g", "W", "Z", "t")
"""Names of the labels 0 to 4, in JetNet's order."""


def thin(labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Indices of at most `most` jets, equally many of each class as far as they reach, first come first kept.

    Parameters
    ----------
    labels : int array (jet,)
    """
    classes = np.unique(labels)
    each = max(1, most // max(1, len(classes)))
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in classes] or [np.array([], int)]))


def can_be_mapped(cls_embedding: NDArray[np.floating]) -> bool:
    """Whether there are at least 5 jets and all values are finite."""
    return len(cls_embedding) >= 5 and bool(np.isfinite(cls_embedding).all())


def tsne(cls_embedding: NDArray[np.floating], seed: int = 0) -> NDArray[np.float64]:
    """t-SNE of standardised embeddings.

    Parameters
    ----------
    cls_embedding : float array (jet, dim)

    Returns
    -------
    float array (jet, 2)

    Raises
    ------
    ValueError
        With fewer than 5 jets or values that are not finite.

    References
    ----------
    van der Maaten & Hinton, JMLR 9 (2008) 2579, jmlr.org/papers/v9/vandermaaten08a.html.
    """
    x = np.asarray(cls_embedding, dtype=np.float64)
    if not can_be_mapped(x):
        raise ValueError(f"t-SNE takes at least 5 finite embeddings, got shape {x.shape}")
    scaled = StandardScaler().fit_transform(x)
    perplexity = min(30.0, (len(x) - 1) / 3)
    # Threads that wait for each other make so few jets slow on a busy machine, and their sums differ from run to run.
    with threadpool_limits(limits=1):
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(scaled)
    return np.asarray(points, dtype=np.float64)

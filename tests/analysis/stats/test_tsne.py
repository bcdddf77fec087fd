"""Maps of embeddings."""

import numpy as np
import pytest

from analysis.stats import tsne


def test_maps_keep_jets_in_their_place():
    rng = np.random.default_rng(0)
    centres = 6 * rng.normal(size=(4, 8))
    cls = centres[np.arange(80) % 4] + rng.normal(size=(80, 8))
    first, second = tsne.evolution([cls, cls + 0.3 * rng.normal(size=cls.shape)])
    other = tsne.tsne(cls, seed=1)

    def moved(to):
        return np.linalg.norm(first - to, axis=1).mean() / np.linalg.norm(first - first.mean(0), axis=1).mean()

    assert moved(second) < 0.5
    assert moved(second) < moved(other[:, ::-1])


@pytest.mark.parametrize("bad", [np.full((10, 4), np.nan), np.ones((10, 4)), np.zeros((4, 4))])
def test_what_cannot_be_mapped_is_a_clear_error(bad):
    assert not tsne.can_be_mapped(bad)
    with pytest.raises(ValueError, match="at least 5 finite embeddings that differ"):
        tsne.tsne(bad)

"""The embedding as a scikit-learn transformer.

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

model = make_pipeline(JetEmbedding("results/trials/0123456789abcdef"), LogisticRegression())
model.fit(particles, labels)
"""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from jbot.data.jets import DataError
from jbot.encoder.load import EncoderError, as_jets, load
from jbot.trainer.model import FEATURES


class JetEmbedding(TransformerMixin, BaseEstimator):
    """Frozen [CLS] embedding of jets, (jet, particle, 4) -> (jet, dim), columns jbot_0, jbot_1, ...

    Nothing is learnt from the jets: `fit` reads the checkpoint and checks the input. A fitted one carries the weights
    and needs the checkpoint no more, so it can be pickled and used elsewhere.

    Parameters
    ----------
    checkpoint : path or URI
        As for :func:`jbot.load`.
    device : str
        "cpu", "cuda" or "cuda:1".
    engine : str
        As for :func:`jbot.load`.

    Attributes
    ----------
    encoder_ : Encoder
    n_features_in_ : int
        4 per particle: 120 for 30 particles, be they given as (jet, 30, 4) or as (jet, 120).
    feature_names_in_ : array of str
        Only after fitting a data frame with names.

    Notes
    -----
    Flattened jets have the four columns eta_rel, phi_rel, pt_rel, valid of the first particle, then of the second, ...
    """

    def __init__(self, checkpoint: str | os.PathLike[str] | None = None, *, device: str = "cpu", engine: str = "fused"):
        self.checkpoint = checkpoint
        self.device = device
        self.engine = engine

    def __sklearn_tags__(self) -> Tags:
        """Three-dimensional input is accepted, the embedding is float32."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        assert tags.transformer_tags is not None  # a TransformerMixin has them
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(self, X: npt.ArrayLike, y: Any = None) -> Self:
        """Read the checkpoint, and check that X holds jets.

        Parameters
        ----------
        X : array (jet, particle, 4) or (jet, 4 * particle), or data frame of the latter form
        y : ignored

        Raises
        ------
        ValueError
            EncoderError or DataError, one line each, or scikit-learn's for what is no array at all.
        """
        if self.checkpoint is None:
            raise EncoderError("checkpoint must be given: JetEmbedding('<trial folder, import or .weights.h5>')")
        jets = self._jets(X, reset=True)
        self.encoder_ = load(self.checkpoint, device=self.device, engine=self.engine)
        self.encoder_.check(jets)
        return self

    def transform(self, X: npt.ArrayLike) -> np.ndarray:
        """The embedding, float32 (jet, dim), of as many particles per jet as were fitted."""
        check_is_fitted(self)
        return self.encoder_.embed(self._jets(X, reset=False))

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """jbot_0, jbot_1, ...; `input_features` is there for scikit-learn's sake."""
        check_is_fitted(self)
        return np.array([f"jbot_{i}" for i in range(self.encoder_.config.dim)], dtype=object)

    def _jets(self, X: Any, reset: bool) -> np.ndarray:
        """X as (jet, particle, 4), its width and column names noted or compared; not copied if it is an array."""
        if getattr(X, "ndim", 0) == 3 or (isinstance(X, list | tuple) and np.ndim(X) == 3):
            X = as_jets(X)
            X = X.reshape(len(X), X.shape[1] * FEATURES)
        fewest = 1 if reset else 0
        table = validate_data(self, X, reset=reset, dtype="numeric", ensure_all_finite=False, ensure_min_samples=fewest)
        return self._unflattened(table)

    def _unflattened(self, table: np.ndarray) -> np.ndarray:
        """(jet, 4 * particle) as (jet, particle, 4)."""
        if table.shape[1] % FEATURES:
            rule = f"flattened jets must have {FEATURES} columns per particle: eta_rel, phi_rel, pt_rel, valid"
            raise DataError(f"{rule}; {table.shape[1]} is no multiple of {FEATURES}")
        return as_jets(table.reshape(len(table), table.shape[1] // FEATURES, FEATURES))

"""An autoencoder on the particles: what anomaly detection reaches without any pre-trained encoder."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

HIDDEN = 64
"""Units of the layers before and after the bottleneck (assumed)."""
BATCH, LEARNING_RATE = 256, 4e-3
"""The fewest seconds at the least error on background, of three tried; signal was not looked at."""

Particles = Float[np.ndarray, "jet particle 4"]


def fit_autoencoder(
    particles: Particles, *, bottleneck: int, epochs: int, seed: int
) -> Callable[[Particles], Float[np.ndarray, "jet"]]:
    """Fit on background jets; returns the function that gives jets their reconstruction error.

    A jet is its particles' (eta_rel, phi_rel, pt_rel), one row of 3 * particles numbers, each standardised with the
    mean and spread of the background. The error is the mean square over the row, in units of these spreads. The
    fourth feature, whether a slot is filled, says no more than pt_rel > 0. `bottleneck` is the count of numbers a jet
    is squeezed through.
    """
    scaler = StandardScaler()
    rows = scaler.fit_transform(_flat(particles))
    network = MLPRegressor(
        hidden_layer_sizes=(HIDDEN, bottleneck, HIDDEN),
        batch_size=min(BATCH, len(rows)),
        learning_rate_init=LEARNING_RATE,
        max_iter=epochs,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the epochs are a budget
        network.fit(rows, rows)

    def error(jets: Particles) -> Float[np.ndarray, "jet"]:
        row = scaler.transform(_flat(jets))
        return np.square(network.predict(row) - row).mean(axis=1).astype(np.float64)

    return error


def _flat(particles: Particles) -> Float[np.ndarray, "jet feature"]:
    return np.asarray(particles[..., :3], np.float32).reshape(len(particles), -1)

"""Which factors a number depends on: shares of its variance over a balanced, crossed grid. Pure functions on arrays."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from analysis.stats import Floats

Components = dict[frozenset[str], float]

SCORE, SETTING, SEED, DRAW = "score", "setting", "seed", "draw"


def variance_components(values: Floats, scores: Sequence[str], fixed: Sequence[str]) -> Components:
    """Variance components of a balanced grid, by the method of moments.

    Scores, their settings and the `fixed` factors are what they are: the levels of the grid, each score weighing the
    same however many settings it has. Seeds and draws are samples of all there could be, so what their chance adds to
    the other components is taken off (expected mean squares of the crossed mixed model).

    Parameters
    ----------
    values : float array (setting, *fixed, seed, draw)
        All finite; at least two seeds and two draws.
    scores : sequence of str (setting,)
        The score of each setting; settings are nested in scores.
    fixed : sequence of str
        Names of the axes between.

    Returns
    -------
    dict
        Set of factors that interact -> component in units of the values squared: the variance of a value drawn from
        the grid is their sum. An estimate can be negative where its true value is near zero.

    Raises ValueError with fewer than two seeds or draws, or values that are missing.

    References
    ----------
    Cornfield & Tukey, Ann. Math. Stat. 27 (1956) 907; Searle, Casella & McCulloch, Variance Components (1992), ch. 4.
    """
    if values.ndim != len(fixed) + 3 or min(values.shape[-2:]) < 2 or len(values) != len(scores):
        raise ValueError(f"values must be of (setting, {', '.join(fixed)}, 2 or more seeds and draws), {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"the grid must be complete, {int((~np.isfinite(values)).sum())} values are missing")
    names, column = np.unique(np.asarray(scores), return_inverse=True)
    weights = 1.0 / (len(names) * np.bincount(column)[column])
    of_score = np.stack([values[column == number].mean(0) for number in range(len(names))])[column]
    whole = np.broadcast_to(np.tensordot(weights, values, 1), values.shape)
    pieces = {frozenset[str](): whole, frozenset([SCORE]): of_score - whole, frozenset([SETTING]): values - of_score}
    for axis, name in enumerate(fixed, 1):
        means = {key: piece.mean(axis, keepdims=True) for key, piece in pieces.items()}
        pieces = {key | {name}: piece - means[key] for key, piece in pieces.items()} | {
            key: np.broadcast_to(mean, values.shape) for key, mean in means.items()
        }
    samples = {key: _of_samples(piece, weights) for key, piece in pieces.items()}
    components = {key | drawn: component for key, own in samples.items() for drawn, component in own.items()}
    del components[frozenset()]  # the square of the mean
    return components


def _of_samples(piece: Floats, weights: Floats) -> Components:
    """Components of two crossed random factors, (..., seed, draw), on average over the cells before."""
    seeds, draws = piece.shape[-2:]

    def average(squares: Floats) -> float:
        return float(np.average(squares.reshape(len(squares), -1).mean(1), weights=weights))

    mean = piece.mean((-2, -1), keepdims=True)
    by_seed, by_draw = piece.mean(-1, keepdims=True) - mean, piece.mean(-2, keepdims=True) - mean
    rest = piece - mean - by_seed - by_draw
    both = average((rest**2).sum((-2, -1)) / ((seeds - 1) * (draws - 1)))
    seed = average((by_seed**2).sum((-2, -1)) / (seeds - 1)) - both / draws
    draw = average((by_draw**2).sum((-2, -1)) / (draws - 1)) - both / seeds
    none = average(mean[..., 0, 0] ** 2) - seed / seeds - draw / draws - both / (seeds * draws)
    return {frozenset(): none, frozenset([SEED]): seed, frozenset([DRAW]): draw, frozenset([SEED, DRAW]): both}


def shares(components: Mapping[frozenset[str], float]) -> Components:
    """Components as shares of the total, negative ones as 0; none of a grid that does not vary."""
    positive = {key: max(0.0, component) for key, component in components.items()}
    total = sum(positive.values())
    return {key: component / total if total else 0.0 for key, component in positive.items()}


def jackknife(values: Floats, scores: Sequence[str], fixed: Sequence[str]) -> list[Components]:
    """Shares with each seed left out in turn; empty with two seeds."""
    seeds = values.shape[-2]
    if seeds < 3:
        return []
    left = (np.delete(values, seed, axis=-2) for seed in range(seeds))
    return [shares(variance_components(rest, scores, fixed)) for rest in left]


def pairs(n: int) -> list[tuple[int, int]]:
    """Every pair of n things, once."""
    return list(itertools.combinations(range(n), 2))

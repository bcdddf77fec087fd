"""Which law an error follows as the training set grows, and what it foretells.

Forms        linear           a - b D
             logarithmic      a - b log D
             power law        E + B D^-beta            E, B >= 0, beta > 0

Each is fitted to the means over seeds of the logarithm of the error, by Huber's loss in units of the noise, from many
starts. All are closed under scaling: what the seeds of a line share (a good or a bad block) moves the level alone and
says nothing about the form. The noise is what is left of each seed when the mean curve, and its own level and slope on
logarithmic axes, are taken away.

Choice       AICc of the means with that noise; how well the two largest sizes are foretold by a fit without them; and a
             parametric bootstrap that asks of every form whether another one fits better than chance lets it.
             A form is named only when that test rejects all others, and AICc does not contradict. Otherwise the forms
             are not separable, and those that stand are shown with what each foretells.
Intervals    Refits of the means moved along the seeds' own deviations, by as much as Student's t with n - 1 degrees of
             freedom says. What is drawn are seeds, never points: to first order that is the t interval over seeds of
             every parameter, whatever the sizes of a seed have in common. Resampled seeds would give too narrow ones.

References
----------
Hoffmann et al., arXiv:2203.15556 (Huber's loss on log residuals). Hurvich & Tsai, Biometrika 76 (1989) 297 (AICc).
Cox, J. R. Stat. Soc. B 24 (1962) 406 (tests of separate families of hypotheses).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.law_fit import FORMS, Axes, Fits, Form, fit

Floats = NDArray[np.float64]

LEAST_SIZES = 5
"""Three parameters and their AICc need five means."""
LEFT_OUT = 2
"""Largest sizes that are foretold from the others."""
DRAWS, NULLS = 399, 199
"""Refits behind the intervals, and simulated studies behind each p-value."""
AHEAD = 10.0
"""How far an extrapolation goes, in largest sizes."""
LEAST_NOISE = 1e-4
"""Relative, of a mean: below it rounding decides (assumed)."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval, NaN with one seed."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Law:
    """One form, fitted to one line."""

    fits: Fits
    """One line: that of the means."""
    refits: Fits | None
    """The moved means; None with one seed."""
    aicc: float
    left_out: float
    """Root mean square of the logarithm of error over foretold error, at the largest sizes; infinite where an error
    below zero is foretold."""
    p: float
    """That another form fits better by so much though this one is true; NaN with one seed."""
    confidence: float

    @property
    def form(self) -> Form:
        """Of the curve."""
        return self.fits.form

    @functools.cached_property
    def parameters(self) -> dict[str, Estimate]:
        """Parameters of the formula."""
        values = self.fits.parameters()
        drawn = self.refits.parameters() if self.refits else {}
        return {name: self._estimate(float(value[0]), drawn.get(name)) for name, value in values.items()}

    def at(self, size: float) -> Estimate:
        """Error foretold for one size, not below zero."""
        sizes = np.array([[size]])
        drawn = self.refits.errors(sizes)[:, 0] if self.refits else None
        return self._estimate(float(self.fits.errors(sizes)[0, 0]), drawn)

    def curve(self, sizes: Sequence[float] | Floats) -> Floats:
        """Error, and its interval, (3, size): value, low, high."""
        found = [self.at(float(size)) for size in sizes]
        return np.array([[one.value, one.low, one.high] for one in found]).T

    def _estimate(self, value: float, drawn: Floats | None) -> Estimate:
        if drawn is None:
            return Estimate(value=value, low=math.nan, high=math.nan)
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(drawn, (tail, 1 - tail), method="weibull")
        return Estimate(value=value, low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The forms at one line."""

    laws: tuple[Law, ...]
    """The simpler first."""
    sizes: Floats
    seeds: int
    noise: float
    """Relative standard deviation of one error about its seed's own line; of one about the best fit with one seed."""
    alpha: float

    @property
    def standing(self) -> tuple[Law, ...]:
        """Forms that are not rejected; all of them with one seed."""
        return tuple(law for law in self.laws if not law.p <= self.alpha)

    @property
    def best(self) -> Law:
        """Of the least AICc."""
        return min(self.laws, key=lambda law: law.aicc)

    @property
    def foretelling(self) -> Law:
        """That which foretells the largest sizes best."""
        return min(self.laws, key=lambda law: law.left_out)

    @property
    def named(self) -> Law | None:
        """The only form that stands, where AICc prefers it too; None where the forms are not separable."""
        standing = self.standing
        return standing[0] if self.seeds > 1 and len(standing) == 1 and standing[0] is self.best else None


def compare(
    sizes: ArrayLike,
    errors: ArrayLike,
    rng: np.random.Generator,
    *,
    alpha: float = 0.05,
    draws: int = DRAWS,
    nulls: int = NULLS,
) -> Comparison:
    """Fit all forms to one line.

    Parameters
    ----------
    sizes : float array (size,)
        Training jets, ascending.
    errors : float array (seed, size)
        All positive; all sizes of a seed share its initial weights and noise.
    alpha : float
        Level of the tests, and 1 - alpha that of the intervals.

    Raises
    ------
    ValueError
        With too few sizes, no seed, or an error that has no logarithm.
    """
    sizes, errors = np.asarray(sizes, dtype=float), np.asarray(errors, dtype=float)
    _check(sizes, errors)
    measured, logs = Axes(sizes=sizes[:, None]), np.log(errors)
    noise, freedom = _noise(logs, np.log(sizes))
    if not freedom:
        noise = _noise_of_fits(measured, logs)
    of_mean = max(noise / math.sqrt(len(logs)), LEAST_NOISE)
    mean = logs.mean(axis=0, keepdims=True)
    fits = [fit(form, measured, mean, of_mean) for form in FORMS]
    several = len(logs) > 1
    moved_means = moved(logs, rng, draws) if several else None
    p_values = _p_values(fits, of_mean, freedom, rng, nulls) if freedom else [math.nan] * len(fits)
    laws = tuple(
        Law(
            fits=one,
            refits=None if moved_means is None else fit(one.form, measured, moved_means, of_mean),
            aicc=aicc(float(one.losses[0]), one.form.parameters, len(sizes)),
            left_out=_left_out(one.form, sizes, mean, of_mean),
            p=p,
            confidence=1 - alpha,
        )
        for one, p in zip(fits, p_values, strict=True)
    )
    return Comparison(laws=laws, sizes=sizes, seeds=len(logs), noise=noise, alpha=alpha)


def _check(sizes: Floats, errors: Floats) -> None:
    if len(sizes) < LEAST_SIZES or (np.diff(sizes) <= 0).any():
        raise ValueError(f"laws need at least {LEAST_SIZES} ascending sizes, got {sizes.tolist()}")
    if errors.ndim != 2 or not len(errors) or errors.shape[1] != len(sizes):
        raise ValueError(f"errors must be (seed, {len(sizes)}), got shape {errors.shape}")
    if not (np.isfinite(errors) & (errors > 0)).all():
        raise ValueError(f"every error must be finite and above 0 to have a logarithm, got {errors.min()}")


def aicc(loss: float, parameters: int, means: int) -> float:
    """Akaike's criterion with its correction for few means, of a loss in units of known noise."""
    return loss + 2 * parameters + 2 * parameters * (parameters + 1) / (means - parameters - 1)


def moved(logs: Floats, rng: np.random.Generator, draws: int) -> Floats:
    """Means over seeds, moved along the seeds' deviations as far as Student's t has them uncertain.

    Parameters
    ----------
    logs : float array (seed, ...)
        At least two seeds.

    Returns
    -------
    float array (draw, ...)
        Any linear function of it has the t distribution with n - 1 degrees of freedom about its own mean, with its own
        standard error over seeds: its percentiles are the t interval.
    """
    n = len(logs)
    mean = logs.mean(axis=0)
    weights = rng.normal(size=(draws, n)) / np.sqrt(n * rng.chisquare(n - 1, size=(draws, 1)))
    return np.asarray(mean + np.tensordot(weights, logs - mean, axes=1))


def _noise(logs: Floats, x: Floats) -> tuple[float, int]:
    """Standard deviation about each seed's own level and slope over `x`, and its degrees of freedom."""
    freedom = (len(logs) - 1) * (len(x) - 2)
    rest = logs - logs.mean(axis=0)
    rest = rest - rest.mean(axis=1, keepdims=True)
    x = x - x.mean()
    rest = rest - np.outer(rest @ x / (x @ x), x)
    return (float(np.sqrt((rest**2).sum() / freedom)), freedom) if freedom else (math.nan, 0)


def _noise_of_fits(measured: Axes, logs: Floats) -> float:
    """With one seed: what the best form leaves, as if it were the true one."""
    found = []
    for form in FORMS:
        # A large noise makes Huber's loss that of least squares.
        squares = float(fit(form, measured, logs, 1e3).losses[0]) * 1e6
        found.append(math.sqrt(squares / (logs.shape[1] - form.parameters)))
    return min(found)


def _p_values(fits: Sequence[Fits], noise: float, freedom: int, rng: np.random.Generator, nulls: int) -> list[float]:
    """How often, were a form true, the best of all would fit better than it by as much as here."""
    least = min(float(one.losses[0]) for one in fits)
    found = []
    for true in fits:
        excess = float(true.losses[0]) - least
        if not excess:
            found.append(1.0)
            continue
        curve = np.log(np.maximum(true.levels[:, None] * np.exp(true.form.logs(true.shapes, true.measured.sizes, true.measured)), 1e-300))
        logs = curve + noise * rng.normal(size=(nulls, curve.shape[1]))
        # Each simulated study estimates its own noise, as this one did.
        own = noise * np.sqrt(rng.chisquare(freedom, size=nulls) / freedom)
        refits = {one.form.name: fit(one.form, one.measured, logs, own).losses for one in fits}
        gained = refits[true.form.name] - np.min(list(refits.values()), axis=0)
        found.append((1 + int((gained >= excess).sum())) / (nulls + 1))
    return found


def _left_out(form: Form, sizes: Floats, mean: Floats, noise: float) -> float:
    """How far a fit without the largest sizes is off there."""
    kept = Axes(sizes=sizes[:-LEFT_OUT, None])
    foretold = fit(form, kept, mean[:, :-LEFT_OUT], noise).errors(sizes[-LEFT_OUT:, None])[0]
    if (foretold <= 0).any():
        return math.inf
    return float(np.sqrt(np.mean((mean[0, -LEFT_OUT:] - np.log(foretold)) ** 2)))

"""Which law an error follows as the training set grows, and what it predicts.

Forms        linear           a - b D
             logarithmic      a - b log D
             power law        E + B D^-beta            E, B >= 0, beta > 0
             after a plateau  E + B (1 + D / D0)^-beta D0 inside what was measured

Each is fitted to the means over seeds of the logarithm of the error, by Huber's loss in units of the noise, from many
starts. All are closed under scaling: what the seeds of a line share (a good or a bad block) moves the level alone and
says nothing about the form. The noise is what is left of each seed when the mean curve, and its own level and slope on
logarithmic axes, are taken away. Over models and jets together each model may have a level of its own at each seed, as
it has other initial weights: that is taken away too, and drawn again where the joint law is tested.

Choice       AICc of the means with that noise; how well the two largest sizes are predicted by a fit without them; and
             a parametric bootstrap that asks of every form whether another one fits better than chance lets it.
             A form is named only when that test rejects all others and AICc does not contradict. Otherwise the forms
             are not separable, and those that stand are shown with what each predicts.
             An error may be anything that falls: a form is the best of those that were asked, and what it predicts
             holds if it goes on to hold.
Intervals    Refits of the means moved along the seeds' own deviations, by as much as Student's t with n - 1 degrees of
             freedom says. What is drawn are seeds, never points: to first order that is the t interval over seeds of
             every parameter, whatever the sizes of a seed have in common. Resampled seeds would give too narrow ones.
             In these refits E may be below zero, else the interval of beta is one-sided; that of E ends at zero.

References
----------
Hoffmann et al., arXiv:2203.15556 (Huber's loss on log residuals). Hurvich & Tsai, Biometrika 76 (1989) 297 (AICc).
Cox, J. R. Stat. Soc. B 24 (1962) 406 (tests of separate families of hypotheses).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats import Floats
from analysis.stats.curve_fit import FORMS, Axes, Fits, Form, fit, freed

LEFT_OUT = 2
"""Largest sizes that are predicted from the others."""
DRAWS, NULLS = 399, 199
"""Refits behind the intervals, and simulated studies behind each p-value."""
AHEAD = 10.0
"""How far an extrapolation goes, in largest sizes."""
MIN_NOISE = 1e-4
"""Smallest relative noise of a mean: below it rounding decides (assumed)."""
LARGE = 700.0
"""Largest magnitude of a logarithm whose exponential is still above zero."""


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
    """Root mean square of the logarithm of error over predicted error, at the largest sizes; infinite where an error
    below zero is predicted, NaN where it was not asked."""
    p: float
    """That another form fits better by so much though this one is true; NaN with one seed."""
    p_fit: float
    """That the means lie so far from this form though it is true; NaN with one seed."""
    confidence: float

    @property
    def form(self) -> Form:
        """Form of the curve."""
        return self.fits.form

    @functools.cached_property
    def parameters(self) -> dict[str, Estimate]:
        """Parameters of the formula."""
        drawn, found = self.refits.parameters() if self.refits else {}, {}
        for name, value in self.fits.parameters().items():
            ends = self._interval(value, drawn[name][:, None])[:, 0] if self.refits else np.full(2, math.nan)
            low, high = np.maximum(0.0, ends) if name == "E" else ends
            found[name] = Estimate(value=float(value[0]), low=float(low), high=float(high))
        return found

    def at(self, *size: float) -> Estimate:
        """Error predicted for one size (of each axis), not below zero."""
        value, low, high = self.curve([size])[:, 0]
        return Estimate(value=float(value), low=float(low), high=float(high))

    def curve(self, sizes: ArrayLike) -> Floats:
        """Errors at sizes (size, axis), with their interval: (value and low and high, size)."""
        sizes = np.asarray(sizes, dtype=float)
        value = self.fits.errors(sizes)
        if self.refits is None:
            return np.concatenate([value, np.full((2, len(sizes)), math.nan)])
        return np.concatenate([value, self._interval(value[0], self.refits.errors(sizes))])

    def _interval(self, value: Floats, drawn: Floats) -> Floats:
        """Percentiles of refits (draw, number), (2, number), and `value` (number,) where it lies beyond them.

        E may not be below zero in the fit but in its refits: where the means bend as no such law does, the two
        part. An interval that is widened to its estimate covers no less.
        """
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(drawn, (tail, 1 - tail), axis=0, method="weibull")
        return np.array([np.minimum(low, value), np.maximum(high, value)])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Forms at the same means."""

    laws: tuple[Law, ...]
    """The simpler first."""
    sizes: Floats
    """(size, axis)"""
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
        """The form of the smallest AICc."""
        return min(self.laws, key=lambda law: law.aicc)

    @property
    def best_predictor(self) -> Law:
        """The form that predicts the left-out largest sizes best."""
        return min(self.laws, key=lambda law: law.left_out)

    @property
    def none_fits(self) -> bool:
        """Whether the means lie farther from every form that stands than the noise lets them."""
        return all(law.p_fit <= self.alpha for law in self.standing)

    @property
    def named(self) -> Law | None:
        """The only form that stands, where it fits and AICc prefers it; None where the forms are not separable."""
        if self.seeds < 2 or self.standing != (self.best,) or self.none_fits:
            return None
        return self.best


def compare(
    sizes: ArrayLike,
    errors: ArrayLike,
    rng: np.random.Generator,
    *,
    forms: Sequence[Form] = FORMS,
    groups: ArrayLike | None = None,
    alpha: float = 0.05,
    draws: int = DRAWS,
    nulls: int = NULLS,
) -> Comparison:
    """Fit forms to the errors of one line, or of a plane of sizes, and test each against the others.

    Parameters
    ----------
    sizes : float array (size,) or (size, axis)
        Training jets, ascending; or weights and jets; or jets and passes over each.
    errors : float array (seed, size)
        All positive; all sizes of a seed share its initial weights and noise.
    groups : array (size,), optional
        Sizes of one value have something of their own in common at each seed, as those of one model do: no two models
        have the same initial weights.
    alpha : float
        Level of the tests, and 1 - alpha that of the intervals.

    Raises ValueError with too few sizes, no seed, or an error that has no logarithm.
    """
    points, values = np.asarray(sizes, dtype=float), np.asarray(errors, dtype=float)
    points = points[:, None] if points.ndim == 1 else points
    _check(points, values, max(form.parameters for form in forms) + 2)
    measured, logs = Axes(sizes=points), np.log(values)
    names, of_each = np.unique([] if groups is None else np.asarray(groups), return_inverse=True)
    of_group = of_each if len(names) > 1 else None
    noise, freedom = _noise(logs, np.log(points), of_group)
    if not freedom:  # one seed: what the best form leaves, as if it were the true one
        wide = 1e3  # so large that Huber's loss is that of least squares
        losses = [(float(fit(form, measured, logs, wide).losses[0]), form.parameters) for form in forms]
        noise = min(math.sqrt(loss * wide**2 / (len(points) - used)) for loss, used in losses)
    of_mean = max(noise / math.sqrt(len(logs)), MIN_NOISE)
    mean = logs.mean(axis=0, keepdims=True)
    fits = [fit(form, measured, mean, of_mean) for form in forms]
    around = moved(logs, rng, draws) if len(logs) > 1 else None
    common = _common(logs, noise, of_group, rng, nulls) if of_group is not None and freedom else np.zeros(1)
    laws = []
    for one in fits:
        p, p_fit = _p_values(one, fits, of_mean, freedom, common, rng, nulls) if freedom else (math.nan, math.nan)
        law = Law(
            fits=one,
            refits=None if around is None else fit(freed(one.form), measured, around, of_mean),
            aicc=aicc(float(one.losses[0]), one.form.parameters, len(points)),
            left_out=_left_out(one.form, points, mean, of_mean) if points.shape[1] == 1 else math.nan,
            p=p,
            p_fit=p_fit,
            confidence=1 - alpha,
        )
        laws.append(law)
    return Comparison(laws=tuple(laws), sizes=points, seeds=len(logs), noise=noise, alpha=alpha)


def _check(sizes: Floats, errors: Floats, least: int) -> None:
    if len(sizes) < least:
        raise ValueError(f"these forms need at least {least} sizes, got {len(sizes)}")
    if not (np.isfinite(sizes) & (sizes > 0)).all() or len(np.unique(sizes, axis=0)) < len(sizes):
        raise ValueError(f"sizes must be positive and differ, got {sizes.tolist()}")
    if sizes.shape[1] == 1 and (np.diff(sizes[:, 0]) < 0).any():
        raise ValueError(f"sizes of a line must ascend, got {sizes[:, 0].tolist()}")
    if errors.ndim != 2 or not len(errors) or errors.shape[1] != len(sizes):
        raise ValueError(f"errors must be (seed, {len(sizes)}), got shape {errors.shape}")
    if not (np.isfinite(errors) & (errors > 0)).all():
        raise ValueError(f"every error must be finite and above 0 to have a logarithm, got {errors.min()}")


def aicc(loss: float, parameters: int, means: int) -> float:
    """Akaike's criterion with its correction for few means, of a loss in units of known noise."""
    return loss + 2 * parameters + 2 * parameters * (parameters + 1) / (means - parameters - 1)


def moved(logs: Floats, rng: np.random.Generator, draws: int) -> Floats:
    """Means over seeds (draw, size), moved along the deviations of at least two seeds, logs (seed, size), as far as
    Student's t has them uncertain.

    Any linear function of them has the t distribution with n - 1 degrees of freedom about its own mean, with its own
    standard error over seeds: its percentiles are the t interval.
    """
    n = len(logs)
    mean = logs.mean(axis=0)
    weights = rng.normal(size=(draws, n)) / np.sqrt(n * rng.chisquare(n - 1, size=(draws, 1)))
    return np.asarray(mean + weights @ (logs - mean))


def _noise(logs: Floats, x: Floats, of_group: NDArray[np.intp] | None = None) -> tuple[float, int]:
    """Standard deviation about each seed's own level and slopes over `x` (size, axis), and its degrees of freedom; with
    groups about the levels of its groups and the slope over the last axis."""
    if of_group is None:
        columns = np.column_stack([np.ones(len(x)), x])
    else:
        columns = np.column_stack([np.eye(of_group.max() + 1)[of_group], x[:, -1]])
    basis = np.linalg.qr(columns)[0]
    freedom = (len(logs) - 1) * (len(x) - basis.shape[1])
    if not freedom:
        return math.nan, 0
    rest = logs - logs.mean(axis=0)
    rest = rest - rest @ basis @ basis.T
    return float(np.sqrt((rest**2).sum() / freedom)), freedom


def _common(
    logs: Floats, noise: float, of_group: NDArray[np.intp], rng: np.random.Generator, nulls: int
) -> NDArray[np.float64]:
    """What the means of a group have in common beside what all sizes have, drawn as often as (null, size).

    Its variance over seeds is known by few degrees of freedom, and is drawn too.
    """
    counts = np.bincount(of_group)
    rest = logs - logs.mean(axis=0)
    rest = rest - rest.mean(axis=1, keepdims=True)
    levels = np.stack([rest[:, of_group == group].mean(axis=1) for group in range(len(counts))], axis=1)
    freedom = (len(logs) - 1) * (len(counts) - 1)
    between = float((counts * levels**2).sum()) / freedom  # on average noise², and counts times the variance sought
    drawn = between * freedom / rng.chisquare(freedom, size=nulls)
    variance = np.maximum(0.0, drawn - noise**2) / counts.mean() / len(logs)
    return np.asarray(np.sqrt(variance)[:, None] * rng.normal(size=(nulls, len(counts)))[:, of_group])


def _p_values(
    true: Fits, fits: Sequence[Fits], noise: float, freedom: int, common: Floats, rng: np.random.Generator, nulls: int
) -> tuple[float, float]:
    """Were this form true: how often the best of all would fit better than it by as much as here, and how often the
    means would lie as far from it. `common` is what deviations of the means (null, size) have beside the noise."""
    logs = np.log(np.maximum(true.errors(true.measured.sizes), math.exp(-LARGE)))
    logs = logs + common + noise * rng.normal(size=(nulls, logs.shape[1]))
    # Each simulated study estimates its own noise, as this one did.
    own = np.maximum(noise * np.sqrt(rng.chisquare(freedom, size=nulls) / freedom), MIN_NOISE)
    loss, least = float(true.losses[0]), min(float(one.losses[0]) for one in fits)
    again = fit(true.form, true.measured, logs, own).losses
    p_fit = _share(again >= loss)
    if loss <= least or len(fits) == 1:
        return 1.0, p_fit
    others = [fit(one.form, true.measured, logs, own).losses for one in fits if one is not true]
    return _share(again - np.min([again, *others], axis=0) >= loss - least), p_fit


def _share(events: NDArray[np.bool_]) -> float:
    """p-value of a Monte Carlo test: the study itself is one of the draws."""
    return (1 + int(events.sum())) / (len(events) + 1)


def _left_out(form: Form, sizes: Floats, mean: Floats, noise: float) -> float:
    """How far a fit without the largest sizes is off there."""
    predicted = fit(form, Axes(sizes=sizes[:-LEFT_OUT]), mean[:, :-LEFT_OUT], noise).errors(sizes[-LEFT_OUT:])[0]
    if (predicted <= 0).any():
        return math.inf
    return float(np.sqrt(np.mean((mean[0, -LEFT_OUT:] - np.log(predicted)) ** 2)))

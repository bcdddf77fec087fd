"""Curves that an error may follow, up to their level, and their fit to hundreds of lines at once.

Arrays are (line, size), a line one set of means of the logarithm of the error; shapes (line, parameter).

A form gives the error up to a factor, so its level is a mean, and what is searched are one to four numbers of its
shape: a grid of starts, then damped Gauss-Newton steps on Huber's loss from the best of them, inside the bounds.
scipy.optimize.least_squares(loss="huber") finds the same losses to 3e-8, one line at a time: on 60 lines and one core
it takes 57 to 126 times as long (4.5 to 6.7 s a form), and a comparison of three forms refits some 3,000.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.stats import Floats

HUBER = 1.345
"""In standard errors: 95% efficiency for normal noise (Huber, Robust Statistics, 1981)."""
MIN_SHARE = 1e-3
"""Share of the first error: where a form that falls below zero is held, so that it has a logarithm (assumed)."""
MAX_EXPONENT, MIN_EXPONENT = 3.0, 0.02
"""Exponents that are fitted (assumed): beyond them a power law is a step, or a logarithm."""
MIN_IRREDUCIBLE = -3.0
"""In first errors, of the refits behind an interval (assumed)."""
STARTS, ROUNDS = 4, 60
TINY = 1e-9
"""Share of the loss that ends a search."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Where a line has been measured.

    The axes are jets; weights and jets; or jets and passes over each.
    """

    sizes: Floats
    """(size, axis), in the order of the means."""

    @functools.cached_property
    def first(self) -> Floats:
        """Smallest size (axis,)."""
        return np.asarray(self.sizes.min(axis=0))

    @functools.cached_property
    def reach(self) -> Floats:
        """Largest size in units of the smallest (axis,)."""
        return np.asarray(self.sizes.max(axis=0) / self.first)


@dataclass(frozen=True, kw_only=True)
class Form:
    """A family of curves."""

    name: str
    formula: str
    shape: Callable[[Floats, Floats, Axes], Floats]
    """(shapes (..., parameter), sizes (size, axis), measured) -> errors (..., size), up to a factor."""
    bounds: tuple[tuple[float, float], ...]
    """Per parameter of the shape, the exponents first."""
    grid: tuple[tuple[float, ...], ...]
    apart: int = 1
    """So many parameters tell starts apart: of each of their combinations on the grid one start is kept."""
    read: Callable[[Floats, Floats, Axes], dict[str, Floats]]
    """(levels (line,), shapes (line, parameter), measured) -> parameters of the formula."""

    @property
    def parameters(self) -> int:
        """Those of the shape, and the level."""
        return len(self.bounds) + 1

    def logs(self, shapes: Floats, sizes: Floats, measured: Axes) -> Floats:
        """Logarithm of the error up to a constant, (..., size)."""
        return np.log(np.maximum(self.shape(shapes, sizes, measured), MIN_SHARE))


def _straight(scale: Callable[[Floats], Floats]) -> Callable[[Floats, Floats, Axes], Floats]:
    """Straight lines over a scale of sizes in units of the smallest; the shape is what the last size gains."""

    def shape(shapes: Floats, sizes: Floats, measured: Axes) -> Floats:
        return 1 - shapes[..., :1] * scale(sizes[:, 0] / measured.first[0]) / scale(measured.reach[0])

    return shape


def _read_linear(levels: Floats, shapes: Floats, measured: Axes) -> dict[str, Floats]:
    b = levels * shapes[:, 0] / (measured.reach[0] - 1) / measured.first[0]
    return {"a": levels + b * measured.first[0], "b": b}


def _read_logarithmic(levels: Floats, shapes: Floats, measured: Axes) -> dict[str, Floats]:
    b = levels * shapes[:, 0] / np.log10(measured.reach[0])
    return {"a": levels + b * np.log10(measured.first[0]), "b": b}


def _falling(beta: Floats, sizes: Floats) -> Floats:
    return np.exp(-beta * np.log(sizes))


def _power(shapes: Floats, sizes: Floats, measured: Axes) -> Floats:
    beta, irreducible = shapes[..., :1], shapes[..., 1:2]
    return irreducible + (1 - irreducible) * _falling(beta, sizes[:, 0] / measured.first[0])


def _read_power(levels: Floats, shapes: Floats, measured: Axes) -> dict[str, Floats]:
    beta, irreducible = shapes.T[:2]
    return {"E": levels * irreducible, "B": levels * (1 - irreducible) * measured.first[0] ** beta, "β": beta}


def _passed(shapes: Floats, sizes: Floats, measured: Axes) -> Floats:
    return _power(shapes, sizes.prod(axis=1, keepdims=True), measured)


def _plateau(shapes: Floats, sizes: Floats, measured: Axes) -> Floats:
    beta, irreducible, onset = shapes[..., :1], shapes[..., 1:2], measured.reach[0] ** shapes[..., 2:]
    growth = (1 + sizes[:, 0] / measured.first[0] / onset) / (1 + 1 / onset)
    return irreducible + (1 - irreducible) * _falling(beta, growth)


def _read_plateau(levels: Floats, shapes: Floats, measured: Axes) -> dict[str, Floats]:
    beta, irreducible, onset = shapes[:, 0], shapes[:, 1], measured.reach[0] ** shapes[:, 2]
    rest = levels * (1 - irreducible) * (1 + 1 / onset) ** beta
    return {"E": levels * irreducible, "B": rest, "β": beta, "D0": onset * measured.first[0]}


def _joint(shapes: Floats, sizes: Floats, measured: Axes) -> Floats:
    alpha, beta, irreducible, share = (shapes[..., i : i + 1] for i in range(4))
    model, jets = (sizes / measured.first).T
    return irreducible + (1 - irreducible) * (share * _falling(alpha, model) + (1 - share) * _falling(beta, jets))


def _read_joint(levels: Floats, shapes: Floats, measured: Axes) -> dict[str, Floats]:
    alpha, beta, irreducible, share = shapes.T
    model, jets = measured.first
    rest = levels * (1 - irreducible)
    found = {"E": levels * irreducible, "A": rest * share * model**alpha, "α": alpha}
    return found | {"B": rest * (1 - share) * jets**beta, "β": beta}


def _repeated(shapes: Floats, sizes: Floats, measured: Axes) -> Floats:
    beta, irreducible, worth = shapes[..., :1], shapes[..., 1:2], np.exp(shapes[..., 2:])
    unique, passes = sizes[:, 0] / measured.first[0], sizes[:, 1]
    return irreducible + (1 - irreducible) * _falling(beta, unique * (1 - worth * np.expm1(-(passes - 1) / worth)))


def _read_repeated(levels: Floats, shapes: Floats, measured: Axes) -> dict[str, Floats]:
    return _read_power(levels, shapes, measured) | {"R": np.exp(shapes[:, 2])}


_EXPONENT = (MIN_EXPONENT, MAX_EXPONENT)
_EXPONENTS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 1.1, 2.0)
_IRREDUCIBLE, _IRREDUCIBLES = (0.0, 1.0), (*np.linspace(0, 0.9, 10).tolist(), 0.95, 0.98)
_SLOPE, _SLOPES = (-30.0, 0.999), (-3.0, -1.0, -0.5, -0.2, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)

LINEAR = Form(
    name="linear",
    formula="a − b D",
    shape=_straight(lambda ratio: ratio - 1),
    bounds=(_SLOPE,),
    grid=(_SLOPES,),
    read=_read_linear,
)
LOGARITHMIC = dataclasses.replace(
    LINEAR, name="logarithmic", formula="a − b log10 D", shape=_straight(np.log), read=_read_logarithmic
)
POWER = Form(
    name="power law with irreducible error",
    formula="E + B D^−β",
    shape=_power,
    bounds=(_EXPONENT, _IRREDUCIBLE),
    grid=(_EXPONENTS, _IRREDUCIBLES),
    read=_read_power,
)
PLATEAU = Form(
    name="power law after a plateau",
    formula="E + B (1 + D/D0)^−β",
    shape=_plateau,
    # D0 as a power of the largest size over the smallest: one below the smallest is the plain power law of what was
    # measured, and one far beyond it a linear law.
    bounds=(_EXPONENT, _IRREDUCIBLE, (0.0, 0.6)),
    grid=(_EXPONENTS, _IRREDUCIBLES[::2], (0.02, 0.15, 0.3, 0.5)),
    read=_read_plateau,
)
JOINT = Form(
    name="joint power law",
    formula="E + A N^−α + B D^−β",
    shape=_joint,
    bounds=(_EXPONENT, _EXPONENT, _IRREDUCIBLE, (0.0, 1.0)),
    grid=(_EXPONENTS[1::2], _EXPONENTS[1::2], _IRREDUCIBLES[::2], (0.1, 0.3, 0.5, 0.7, 0.9)),
    apart=2,
    read=_read_joint,
)
UNIQUE = dataclasses.replace(POWER, name="passes count nothing")
PASSED = dataclasses.replace(POWER, name="a pass counts as new jets", formula="E + B (D · passes)^−β", shape=_passed)
REPEATED = Form(
    name="a pass counts less and less",
    formula="E + B D′^−β, D′ = D (1 + R (1 − exp(−(passes − 1)/R)))",
    shape=_repeated,
    bounds=(_EXPONENT, _IRREDUCIBLE, (-3.0, 7.0)),
    grid=(_EXPONENTS[::2], _IRREDUCIBLES[::2], tuple(np.linspace(-2, 6, 9).tolist())),
    read=_read_repeated,
)

FORMS = (LINEAR, LOGARITHMIC, POWER, PLATEAU)
"""Forms of one line, the simpler first."""
REPETITION = (UNIQUE, PASSED, REPEATED)
"""Forms of training sets and passes over each (Muennighoff et al., arXiv:2305.16264, for the last)."""


def freed(form: Form) -> Form:
    """The form without the rule that its irreducible error is not below zero, which would make intervals one-sided.

    Simulated with a power law without irreducible error (7 sizes, 3 seeds, 2% noise, 300 studies), the 95% interval of
    the exponent covers it in 88% of studies where refits keep to the rule, and in 96% where they do not.
    """
    if _IRREDUCIBLE not in form.bounds:
        return form
    at = form.bounds.index(_IRREDUCIBLE)
    bounds, grid = list(form.bounds), list(form.grid)
    bounds[at], grid[at] = (MIN_IRREDUCIBLE, 1.0), (-2.0, -1.0, -0.5, -0.2, *grid[at])
    return dataclasses.replace(form, bounds=tuple(bounds), grid=tuple(grid))


@dataclass(frozen=True, kw_only=True)
class Fits:
    """A form at each of several lines."""

    form: Form
    measured: Axes
    levels: Floats
    """Error at the first size (line,)."""
    shapes: Floats
    """(line, parameter)"""
    losses: Floats
    """Twice Huber's loss (line,): the sum of squares in units of the noise, where no residual is large."""

    def errors(self, sizes: Floats) -> Floats:
        """What the fits say of other sizes (size, axis): errors (line, size), not below zero."""
        shape = self.form.shape(self.shapes, sizes, self.measured)
        return np.maximum(0.0, self.levels[:, None] * shape)

    def parameters(self) -> dict[str, Floats]:
        """Parameters of the formula, each (line,)."""
        return self.form.read(self.levels, self.shapes, self.measured)


def fit(form: Form, measured: Axes, logs: Floats, noise: Floats | float) -> Fits:
    """Fit a form to each of several lines: means of the logarithm of the error (line, size), and their standard
    deviation about the form, (line,) or one for all."""
    noise = np.broadcast_to(np.asarray(noise, dtype=float), len(logs))
    starts = _starts(form, measured, logs)
    lines = np.repeat(np.arange(len(logs)), starts.shape[1])
    levels, shapes, losses = _search(form, measured, logs[lines], noise[lines], starts.reshape(len(lines), -1))
    best = losses.reshape(len(logs), -1).argmin(axis=1) + np.arange(len(logs)) * starts.shape[1]
    return Fits(form=form, measured=measured, levels=np.exp(levels[best]), shapes=shapes[best], losses=losses[best])


def _starts(form: Form, measured: Axes, logs: Floats) -> Floats:
    """The best few places of the grid by least squares, (line, start, parameter), far from each other."""
    grid = np.array(list(itertools.product(*form.grid)))
    curves = form.logs(grid, measured.sizes, measured)
    curves = curves - curves.mean(axis=1, keepdims=True)
    squares = (curves**2).sum(axis=1) - 2 * (logs - logs.mean(axis=1, keepdims=True)) @ curves.T
    apart = int(np.prod([len(values) for values in form.grid[: form.apart]]))
    squares = squares.reshape(len(logs), apart, -1)
    within, least = squares.argmin(axis=2), squares.min(axis=2)
    chosen = np.argsort(least, axis=1)[:, :STARTS]
    places = chosen * squares.shape[2] + np.take_along_axis(within, chosen, axis=1)
    return np.asarray(grid[places])


def _search(form: Form, measured: Axes, logs: Floats, noise: Floats, shapes: Floats) -> tuple[Floats, Floats, Floats]:
    """Damped Gauss-Newton steps from one start per line: levels, shapes and losses."""
    low, high = np.array(form.bounds).T
    shapes = np.clip(shapes, low, high)
    rest = logs - form.logs(shapes, measured.sizes, measured)
    levels, losses = _level(rest, np.median(rest, axis=1), noise)
    damping = np.full(len(logs), 1e-3)
    going = np.arange(len(logs))
    for _ in range(ROUNDS):
        if not len(going):
            break
        now, y, sigma = shapes[going], logs[going], noise[going]
        step = _step(form, measured, y, levels[going], sigma, now, damping[going])
        tried = np.clip(now + step, low, high)
        level, loss = _level(y - form.logs(tried, measured.sizes, measured), levels[going], sigma)
        gain = losses[going] - loss
        better = gain > 0
        at = going[better]
        shapes[at], levels[at], losses[at] = tried[better], level[better], loss[better]
        damping[going] = np.where(better, damping[going] / 5, damping[going] * 8)
        done = np.where(better, gain <= TINY * (losses[going] + TINY), damping[going] > 1e6)
        going = going[~done]
    return levels, shapes, losses


def _step(
    form: Form, measured: Axes, logs: Floats, levels: Floats, noise: Floats, shapes: Floats, damping: Floats
) -> Floats:
    """A step of the shape (line, parameter); parameters that a step would push out of their bounds stay."""
    low, high = np.array(form.bounds).T
    curves = form.logs(shapes, measured.sizes, measured)
    slopes = np.empty((*curves.shape, len(low)))
    for i in range(len(low)):
        moved = shapes.copy()
        aside = 1e-6 * np.where(shapes[:, i] > (low[i] + high[i]) / 2, -1.0, 1.0)
        moved[:, i] += aside
        slopes[..., i] = (form.logs(moved, measured.sizes, measured) - curves) / aside[:, None]
    residuals = logs - levels[:, None] - curves
    weights = _weights(residuals, noise)
    total = weights.sum(axis=1, keepdims=True)
    # The level is a weighted mean at every shape, so both sides are taken about theirs.
    slopes = slopes - np.einsum("lk,lkp->lp", weights, slopes)[:, None] / total[..., None]
    residuals = residuals - (weights * residuals).sum(axis=1, keepdims=True) / total
    pull = np.einsum("lk,lkp,lk->lp", weights, slopes, residuals)
    held = ((shapes <= low) & (pull < 0)) | ((shapes >= high) & (pull > 0))
    slopes = np.where(held[:, None], 0.0, slopes)
    normal = np.einsum("lk,lkp,lkq->lpq", weights, slopes, slopes)
    diagonal = np.einsum("lpp->lp", normal)
    diagonal *= 1 + damping[:, None]
    diagonal += 1e-12
    return np.asarray(np.linalg.solve(normal, np.where(held, 0.0, pull)[..., None])[..., 0])


def _level(residuals: Floats, levels: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """Towards Huber's location of each line, by two weighted means, and twice the loss there."""
    for _ in range(2):
        weights = _weights(residuals - levels[:, None], noise)
        levels = (weights * residuals).sum(axis=1) / weights.sum(axis=1)
    return levels, huber(residuals - levels[:, None], noise)


def _weights(residuals: Floats, noise: Floats) -> Floats:
    large = np.abs(residuals) / (HUBER * noise[:, None])
    return np.asarray(1 / np.maximum(1.0, large))


def huber(residuals: Floats, noise: Floats) -> Floats:
    """Twice Huber's loss (line,) of residuals (line, size): squares up to `HUBER` times the noise, linear beyond."""
    large = np.abs(residuals) / noise[:, None]
    return np.asarray(np.where(large <= HUBER, large**2, HUBER * (2 * large - HUBER)).sum(axis=1))

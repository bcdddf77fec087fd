"""How far a jet lies from a bank of background jets: the anomaly scores of arXiv:2601.11719, and some to compare with.

    bank = Bank(embedding_of_training_jets, labels)
    jets = bank.jets(embedding_of_other_jets)
    scores = bank.fit("knn", k=30, aggregate="mean")(jets)

Every score is higher the more anomalous a jet is. A bank is prepared once and scores any number of sets of jets; all
k-NN and cosine settings of a set share one search for neighbours. All arithmetic is in double precision whatever
comes in: an embedding behind a LayerNorm has a direction that hardly varies (variance 5e-10 for jBOT-S), which single
precision does not resolve; fed float32, the released code has Mahalanobis distances wrong by up to half a percent.
Threads are the caller's to limit (threadpoolctl, OMP_NUM_THREADS).

Settings that were published are the defaults. Nothing here knows which jets are signal.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cholesky, solve_triangular
from scipy.special import logsumexp, softmax
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from jbot.data.jets import CLASSES
from jbot.evaluation.anomaly import AnomalyError
from jbot.evaluation.anomaly.autoencoder import fit_autoencoder
from jbot.evaluation.metrics_registry import BACKGROUND, PARTICLE_SCORES, STANDARD_SCORES
from jbot.trainer.rng import numpy_generator

NEIGHBOURS = 100
"""Neighbours searched for at once: the most that any setting of the grid asks for."""
PAIRS = 2**21
"""Coordinates of neighbours held at once, 16 MB: near a CPU's cache (assumed)."""
COLLAPSED = 1e-6
"""A bank that spreads less around its mean, relative to its length, is constant but for the rounding of float32."""

Points = Float[np.ndarray, "jet dim"]
Particles = Float[np.ndarray, "jet particle 4"]
Scores = Float[np.ndarray, "jet"]
Labels = Int[np.ndarray, "jet"]
Settings = dict[str, Any]


class Bank:
    """Background jets that other jets are compared with.

    Parameters
    ----------
    embedding : float array (jet, dim)
    labels : int array (jet,), optional
        Positions in `CLASSES`; needed by the scores that use labels.
    particles : float array (jet, particle, 4), optional
        Needed by the autoencoder, which does not see the embedding.
    seed : int
        Of the scores that draw: Gaussian mixture, isolation forest, autoencoder.
    normalise : bool
        Project embeddings on the unit sphere first, as published. Cosine scores do so in any case.

    Raises
    ------
    AnomalyError
        For a value that is not finite, a constant embedding, a jet that is not background, or arrays of different
        lengths.
    """

    def __init__(
        self,
        embedding: Points,
        labels: Labels | None = None,
        particles: Particles | None = None,
        *,
        seed: int = 0,
        normalise: bool = True,
    ):
        self.points = _prepared(embedding, "bank", normalise)
        self.labels, self.particles, self.seed, self.normalise = labels, particles, seed, normalise
        _check_lengths(self.points, "bank: ", labels=labels, particles=particles)
        spread = float(np.sqrt(np.square(self.points - self.points.mean(0)).sum(1).mean()))
        if spread <= COLLAPSED * float(np.sqrt(np.square(self.points).sum(1).mean())):
            raise AnomalyError(
                f"bank: the embedding must vary, but {len(self)} jets lie within {spread:.1e} of one point: a collapsed"
                " encoder, or a single jet"
            )
        if labels is not None:
            check_background(labels, "bank")
        self._fitted: dict[tuple[Any, ...], Fitted] = {}
        self._whitened: dict[float, Bank] = {}

    def __len__(self) -> int:
        return len(self.points)

    def jets(self, embedding: Points, particles: Particles | None = None) -> Jets:
        """Jets to be scored against this bank."""
        points = _prepared(embedding, "jets", self.normalise)
        if points.shape[1] != self.points.shape[1]:
            raise AnomalyError(
                f"jets and bank must have embeddings of one width, got {points.shape[1]} and {self.points.shape[1]}"
            )
        _check_lengths(points, "jets: ", particles=particles)
        return Jets(self, points, particles)

    def fit(self, name: str, **settings: Any) -> Fitted:
        """A score of `SCORES` made ready on this bank; settings that are not given are the published ones.

        Raises AnomalyError for an unknown score or setting, a value out of range, or a bank that cannot carry the
        score.
        """
        score = find_score(name)
        unknown = sorted(settings.keys() - score.defaults.keys())
        if unknown:
            raise AnomalyError(f"{name} has no setting {unknown[0]!r}, it has {', '.join(score.defaults)}")
        settings = score.defaults | settings
        key = (name, *settings.items())
        try:
            if key not in self._fitted:
                self._fitted[key] = score.fit(self, **settings)
        except TypeError:  # a setting that is a list cannot be a key
            raise AnomalyError(f"{name}: settings must be single values, got {settings}") from None
        fitted = self._fitted[key]

        def scored(jets: Jets) -> Scores:
            if jets.bank is not self:
                raise AnomalyError("jets must be prepared by the bank that scores them, got those of another bank")
            return fitted(jets)

        return scored

    def rows_of(self, name: str) -> Points:
        """Jets of one class; raises AnomalyError when the bank has no labels or none of this class."""
        if self.labels is None:
            raise AnomalyError("class-conditional scores need the labels of the bank, got none")
        rows = self.points[self.labels == CLASSES.index(name)]
        if len(rows) == 0:
            raise AnomalyError(f"class-conditional scores need q and g jets in the bank, got no {name}")
        return rows

    @functools.cached_property
    def on_sphere(self) -> Bank:
        """The same jets on the unit sphere."""
        return self if self.normalise else Bank(self.points, seed=self.seed)

    def whiten(self, points: Points, reg: float) -> Points:
        """Points in coordinates in which the bank, around its mean, has unit covariance."""
        return solve_triangular(_factor(self.points, reg), (points - self.points.mean(0)).T, lower=True).T

    def whitened(self, reg: float) -> Bank:
        """The same jets in those coordinates."""
        if reg not in self._whitened:
            self._whitened[reg] = Bank(self.whiten(self.points, reg), seed=self.seed, normalise=False)
        return self._whitened[reg]

    @functools.cached_property
    def search(self) -> NearestNeighbors:
        """Euclidean neighbours, every pair looked at: at 32 dimensions trees are slower."""
        return NearestNeighbors(algorithm="brute").fit(self.points)


class Jets:
    """Jets to be scored against a bank, and their distances to it, searched for once."""

    def __init__(self, bank: Bank, points: Points, particles: Particles | None):
        self.bank, self.points, self.particles = bank, points, particles
        self._distances = np.empty((len(points), 0))
        self._whitened: dict[float, Jets] = {}

    def __len__(self) -> int:
        return len(self.points)

    def distances(self, k: int) -> Float[np.ndarray, "jet k"]:
        """Euclidean distances to the k nearest jets of the bank, nearest first.

        The search squares and subtracts lengths, which loses the distance of close jets; so those found are taken
        again from the differences of the coordinates.
        """
        if k > self._distances.shape[1]:
            wanted = min(max(k, NEIGHBOURS), len(self.bank))
            rows = self.bank.search.kneighbors(self.points, wanted, return_distance=False)
            step = max(1, PAIRS // (wanted * self.points.shape[1]))
            parts = (slice(at, at + step) for at in range(0, len(rows), step))
            exact = [np.linalg.norm(self.points[part, None] - self.bank.points[rows[part]], axis=2) for part in parts]
            self._distances = np.sort(np.concatenate(exact), axis=1)
        return self._distances[:, :k]

    def similarities(self, k: int) -> Float[np.ndarray, "jet k"]:
        """Cosines to the k most similar jets of the bank, highest first: 1 - d^2 / 2 on the unit sphere."""
        return 1.0 - self.on_sphere.distances(k) ** 2 / 2.0

    def whitened(self, reg: float) -> Jets:
        """The same jets in the coordinates of :meth:`Bank.whiten`."""
        if reg not in self._whitened:
            self._whitened[reg] = self.bank.whitened(reg).jets(self.bank.whiten(self.points, reg))
        return self._whitened[reg]

    @functools.cached_property
    def on_sphere(self) -> Jets:
        """The same jets on the unit sphere."""
        return self if self.bank.normalise else self.bank.on_sphere.jets(self.points)


Fitted = Callable[[Jets], Scores]
"""A score made ready on a bank."""


def knn_distance(bank: Bank, *, k: int, aggregate: str) -> Fitted:
    """Mean, median or largest of the distances to the k nearest jets of the bank.

    The largest of the k nearest is the k-th: `max` is its name in the released code, `kth` the same number.
    """
    check_neighbours(bank, k)
    functions: dict[str, Callable[..., Scores]] = {"mean": np.mean, "median": np.median, "kth": np.max, "max": np.max}
    _check_choice("aggregate", aggregate, functions)
    return lambda jets: functions[aggregate](jets.distances(k), axis=1)


def whitened_knn_distance(bank: Bank, *, k: int, aggregate: str, reg: float) -> Fitted:
    """The k-NN distance in whitened coordinates (not published): no direction outweighs the others.

    Of an encoder trained for long, two or three directions hold most of the variance and swallow the plain distance.
    """
    score = knn_distance(bank.whitened(reg), k=k, aggregate=aggregate)
    return lambda jets: score(jets.whitened(reg))


def cosine_similarity(bank: Bank, *, k: int, aggregate: str, temperature: float) -> Fitted:
    """Dissimilarity to the k most similar jets of the bank.

    `logsumexp` is -T log(mean exp(s / T) + 1e-12), with the published 1e-12, which weighs only where all similarities
    are far below zero; `softmax_mean` is 1 - the mean similarity with weights exp(s / T); `max` is 1 - the highest.
    """
    check_neighbours(bank, k)
    _check_choice("aggregate", aggregate, ("logsumexp", "softmax_mean", "max"))
    if not temperature > 0:
        raise AnomalyError(f"temperature must be > 0, got {temperature}")

    def score(jets: Jets) -> Scores:
        similar = jets.similarities(1 if aggregate == "max" else k)
        if aggregate == "logsumexp":
            log_mean = logsumexp(similar / temperature, axis=1) - math.log(k)
            return -temperature * np.logaddexp(log_mean, math.log(1e-12))
        return 1.0 - (softmax(similar / temperature, axis=1) * similar).sum(1)

    return score


def mahalanobis(bank: Bank, *, reg: float) -> Fitted:
    """Squared Mahalanobis distance to the mean of the bank; no labels.

    The covariance is divided by n - 1, as published (scikit-learn's EmpiricalCovariance divides by n), and `reg` added
    to its diagonal.
    """
    factor, mean = _factor(bank.points, reg), bank.points.mean(0)
    return lambda jets: _squared_distance(jets.points, mean, factor)


def class_mahalanobis(bank: Bank, *, reg: float) -> Fitted:
    """Squared Mahalanobis distance to the nearer of the quark and the gluon mean: uses labels.

    As published, both share the covariance around the mean of all jets of the bank, not around their own means
    (Lee et al., arXiv:1807.03888, take the latter).
    """
    factor, means = _factor(bank.points, reg), [bank.rows_of(name).mean(0) for name in BACKGROUND]
    return lambda jets: np.min([_squared_distance(jets.points, mean, factor) for mean in means], axis=0)


def relative_mahalanobis(bank: Bank, *, reg: float, variant: str) -> Fitted:
    """Class-conditional less label-free squared Mahalanobis distance (Ren et al., arXiv:2106.09022): uses labels.

    `variant`: the difference (`sub`), the `ratio`, or the difference of logarithms (`logratio`). With one covariance
    for both, as in the released code, `sub` is the smaller of two linear functions of the embedding.
    """
    _check_choice("variant", variant, ("sub", "ratio", "logratio"))
    to_class, to_all = class_mahalanobis(bank, reg=reg), mahalanobis(bank, reg=reg)

    def score(jets: Jets) -> Scores:
        nearer, whole = to_class(jets), to_all(jets)
        if variant == "sub":
            return nearer - whole
        tiny = np.finfo(float).tiny  # a jet at the very mean
        ratio = np.maximum(nearer, tiny) / np.maximum(whole, tiny)
        return ratio if variant == "ratio" else np.log(ratio)

    return score


def gaussian_mixture(bank: Bank, *, components: int, covariance: str, reg: float) -> Fitted:
    """-log p under a Gaussian mixture, in nats; its start is drawn from the seed of the bank."""
    _check_count("components", components)
    if components > len(bank):
        raise AnomalyError(f"a mixture of {components} needs as many jets in the bank, got {len(bank)}")
    _check_choice("covariance", covariance, ("full", "tied", "diag"))
    _check_reg(reg)
    mixture = GaussianMixture(
        components, covariance_type=covariance, reg_covar=reg, max_iter=300, random_state=bank.seed
    )
    try:
        mixture.fit(bank.points)
    except ValueError as error:
        raise AnomalyError(
            f"a mixture of {components} {covariance} Gaussians must have positive definite covariances, one has"
            f" not with reg {reg:g}: a larger reg or fewer components help"
        ) from error
    return lambda jets: -mixture.score_samples(jets.points)


def local_outlier_factor(bank: Bank, *, k: int) -> Fitted:
    """How much thinner the bank is around a jet than around the jet's k neighbours (Breunig et al., SIGMOD 2000)."""
    check_neighbours(bank, k, beside=1)
    factor = LocalOutlierFactor(k, algorithm="brute", novelty=True).fit(bank.points)
    return lambda jets: -factor.score_samples(jets.points)


def isolation_forest(bank: Bank, *, trees: int, samples: int) -> Fitted:
    """How few random cuts isolate a jet; each tree sees `samples` jets, or all (Liu, Ting & Zhou, ICDM 2008)."""
    _check_count("trees", trees)
    _check_count("samples", samples)
    drawn = min(samples, len(bank))
    forest = IsolationForest(n_estimators=trees, max_samples=drawn, random_state=bank.seed).fit(bank.points)
    return lambda jets: -forest.score_samples(jets.points)


def autoencoder(bank: Bank, *, bottleneck: int, epochs: int) -> Fitted:
    """Reconstruction error of the particles, by an autoencoder fitted on the bank's: the embedding plays no part."""
    _check_count("bottleneck", bottleneck)
    _check_count("epochs", epochs)
    error = fit_autoencoder(_particles(bank, "bank"), bottleneck=bottleneck, epochs=epochs, seed=bank.seed)
    return lambda jets: error(_particles(jets, "jets"))


@dataclass(frozen=True, kw_only=True)
class Score:
    """One way to score jets."""

    name: str
    fit: Callable[..., Fitted]
    defaults: Settings
    """As published, where it was."""
    grid: tuple[Settings, ...]
    """Settings to choose from; the defaults first."""

    @property
    def uses_particles(self) -> bool:
        """Whether it is made of the particles themselves, not of the embedding."""
        return self.name in PARTICLE_SCORES


def _score(
    name: str, fit: Callable[..., Fitted], defaults: Settings, choices: dict[str, Sequence[Any]], *more: Settings
) -> Score:
    """A score whose grid is the defaults, then all other combinations of the choices, then the defaults with `more`."""
    every = [defaults | dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    rest = [settings for settings in every if settings != defaults] + [defaults | settings for settings in more]
    return Score(name=name, fit=fit, defaults=defaults, grid=(defaults, *rest))


# The paper's scan, wider where that costs little: it had the mean for k-NN, log-sum-exp for cosine, full and tied
# mixtures, and reg 1e-5 and 1e-8.
_K = (15, 20, 25, 30, 35, 40, 55, 60, 100)
_REGS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
_COVARIANCES = ("full", "tied", "diag")

SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        _score("knn", knn_distance, {"k": 30, "aggregate": "mean"}, {"k": _K, "aggregate": ("mean", "median", "kth")}),
        _score(
            "cosine",
            cosine_similarity,
            {"k": 100, "aggregate": "logsumexp", "temperature": 0.02},
            {"k": _K, "aggregate": ("logsumexp", "softmax_mean"), "temperature": (0.02, 0.04, 0.05)},
            {"aggregate": "max"},  # one number, whatever k and temperature
        ),
        _score(
            "knn_whitened",
            whitened_knn_distance,
            {"k": 30, "aggregate": "mean", "reg": 1e-8},
            {"k": (15, 30, 60), "reg": (1e-8, 1e-5)},
        ),
        _score("mahalanobis", mahalanobis, {"reg": 1e-8}, {"reg": _REGS}),
        _score("mahalanobis_labels", class_mahalanobis, {"reg": 1e-8}, {"reg": _REGS}),
        _score(
            "relative_mahalanobis_labels",
            relative_mahalanobis,
            {"reg": 1e-8, "variant": "sub"},
            {"reg": _REGS, "variant": ("sub", "ratio", "logratio")},
        ),
        _score(
            "gmm",
            gaussian_mixture,
            {"components": 4, "covariance": "full", "reg": 1e-5},
            {"components": (1, 2, 4, 8), "covariance": _COVARIANCES},
            *({"covariance": covariance, "reg": 1e-8} for covariance in _COVARIANCES),
        ),
        _score("lof", local_outlier_factor, {"k": 20}, {"k": (10, 20, 50)}),
        _score("isolation_forest", isolation_forest, {"trees": 100, "samples": 256}, {"samples": (64, 256, 1024)}),
        _score("autoencoder", autoencoder, {"bottleneck": 8, "epochs": 15}, {"bottleneck": (4, 8, 16)}),
    )
}
"""Every score by its name."""

STANDARD = tuple(STANDARD_SCORES)
"""Scores that every encoder of the task `qg` has."""
MIN_BANK = max(settings.get("k", 1) for score in SCORES.values() for settings in score.grid)
"""Jets a bank must have for every setting of the grids."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Labeled jets by their embedding."""

    embedding: Points
    labels: Labels
    """Positions in `CLASSES`."""
    particles: Particles | None = None
    """For the autoencoder."""

    def __post_init__(self) -> None:
        _check_lengths(self.embedding, "", labels=self.labels, particles=self.particles)
        if not np.isin(self.labels, range(len(CLASSES))).all():
            raise AnomalyError(f"labels must be positions in {', '.join(CLASSES)}, got {np.unique(self.labels)}")


def draw_bank(train: Embedded, bank_jets: int, seed: int, normalise: bool = True) -> Bank:
    """A bank of training jets, drawn without replacement from the stream "bank" of the seed."""
    available = len(train.embedding)
    rows = numpy_generator(seed, "bank").choice(available, size=min(bank_jets, available), replace=False)
    particles = None if train.particles is None else train.particles[rows]
    return Bank(train.embedding[rows], train.labels[rows], particles, seed=seed, normalise=normalise)


def find_score(name: str) -> Score:
    """The score of this name, or an error that lists them."""
    if name not in SCORES:
        raise AnomalyError(f"score must be one of {', '.join(SCORES)}, got {name!r}")
    return SCORES[name]


def check_background(labels: Labels, what: str) -> None:
    """Labels of quark and gluon jets only."""
    strange = np.setdiff1d(labels, [CLASSES.index(name) for name in BACKGROUND])
    if len(strange):
        named = CLASSES[strange[0]] if strange[0] in range(len(CLASSES)) else repr(strange[0])
        raise AnomalyError(f"{what}: jets must be background ({', '.join(BACKGROUND)}), got {named}")


def check_neighbours(bank: Bank, k: int, beside: int = 0) -> None:
    """k jets of the bank, and `beside` more."""
    _check_count("k", k)
    if k + beside > len(bank):
        raise AnomalyError(f"the bank must have at least {k + beside} jets for k = {k}, got {len(bank)}")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise AnomalyError(f"{name} must be an integer >= 1, got {value!r}")


def _check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    if value not in choices:
        raise AnomalyError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_reg(reg: float) -> None:
    if not 0 <= reg < math.inf:
        raise AnomalyError(f"reg must be finite and >= 0, got {reg}")


def _prepared(embedding: Points, what: str, normalise: bool) -> Points:
    """Double precision, normalised when asked for; every value finite."""
    points = np.asarray(embedding, np.float64)
    if points.ndim != 2 or 0 in points.shape:
        raise AnomalyError(f"{what}: the embedding must have shape (jet, dim), none of them 0, got {points.shape}")
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise AnomalyError(
            f"{what}: the embedding must be finite, got NaN or infinity at jet {row}, one of {int((~finite).sum())}"
        )
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12) if normalise else points


def _check_lengths(points: Points, opening: str, **arrays: np.ndarray | None) -> None:
    for name, array in arrays.items():
        if array is not None and len(array) != len(points):
            raise AnomalyError(f"{opening}{name} must be of the same {len(points)} jets, got {len(array)}")


def _particles(jets: Bank | Jets, what: str) -> Particles:
    if jets.particles is None:
        raise AnomalyError(f"{what}: the autoencoder needs particles, got none")
    return jets.particles


def _factor(points: Points, reg: float) -> Float[np.ndarray, "dim dim"]:
    """Lower Cholesky factor of the covariance with `reg` on its diagonal."""
    _check_reg(reg)
    covariance = np.atleast_2d(np.cov(points, rowvar=False)) + reg * np.eye(points.shape[1])
    eigenvalues = np.linalg.eigvalsh(covariance)
    rounding = len(eigenvalues) * np.finfo(float).eps * eigenvalues[-1]
    if eigenvalues[0] <= rounding:
        raise AnomalyError(
            f"the covariance of the bank must be positive definite, its smallest eigenvalue is {eigenvalues[0]:.1e}"
            f" with reg {reg:g}: a reg of {1e3 * rounding:.0e} or more helps"
        )
    return cholesky(covariance, lower=True)


def _squared_distance(points: Points, mean: Float[np.ndarray, "dim"], factor: Float[np.ndarray, "dim dim"]) -> Scores:
    return np.square(solve_triangular(factor, (points - mean).T, lower=True)).sum(0)

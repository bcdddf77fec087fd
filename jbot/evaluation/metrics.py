"""What a score says about jets, in numbers a paper can quote: each with the uncertainty of counting test jets.

The test jets' uncertainty is the inner one: it says how far the number would move with other test jets, nothing about
other seeds. Beside it stands what the jBOT paper prints as +-: the spread over ten folds of one test set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import auc as area
from sklearn.metrics import roc_curve
from sklearn.model_selection import StratifiedKFold

from jbot.evaluation.metrics_registry import BACKGROUND_EFFICIENCIES, CURVE, SIGNAL_EFFICIENCIES

FOLDS, FOLD_SEED = 10, 42
"""As the released code folds its test sets (arXiv:2601.11719)."""
MIN_BACKGROUND = 25
"""Background jets that must pass where a significance improvement is read off: sqrt(25) / 25 = 20% (assumed)."""

Scores = Float[np.ndarray, "jet"]
Signal = Bool[np.ndarray, "jet"]
Probabilities = Float[np.ndarray, "jet class"]
Targets = Int[np.ndarray, "jet"]
Rows = Int[np.ndarray, "row"]


class MetricError(ValueError):
    """Scores or labels that have no such number. Its message is one line."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number on test jets."""

    value: float
    error: float = math.nan
    """Standard error from the number of test jets."""
    fold_sd: float = math.nan
    """Standard deviation over ten stratified folds of the test jets, as the jBOT paper quotes it: about sqrt(10)
    times the standard error, and no spread of models."""


@dataclass(frozen=True, kw_only=True)
class Roc:
    """Signal and background efficiency at every cut, from (0, 0) to (1, 1). Jets of equal score pass together."""

    background: Float[np.ndarray, "cut"]
    signal: Float[np.ndarray, "cut"]
    signal_jets: int
    background_jets: int


def roc(scores: Scores, signal: Signal) -> Roc:
    """The curve of a score; signal jets should have the higher ones.

    Raises MetricError when signal or background is missing, or a score is not a number.
    """
    scores, signal = _checked(scores, signal)
    jets = int(signal.sum())
    if jets in (0, len(signal)):
        raise MetricError(f"an ROC curve needs signal and background jets, got {jets} and {len(signal) - jets}")
    background, efficiency, _ = roc_curve(signal, scores, drop_intermediate=False)
    return Roc(background=background, signal=efficiency, signal_jets=jets, background_jets=len(signal) - jets)


def _checked(scores: Scores, signal: Signal) -> tuple[Scores, Signal]:
    """Finite scores in double precision, and a bool for each: 0 and 1 would pick jets by number."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(signal)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise MetricError(f"scores and labels must be of the same jets, got shapes {scores.shape} and {labels.shape}")
    if not np.isin(labels, (0, 1)).all():
        raise MetricError(f"signal must be true or false for each jet, got {np.unique(labels)[:5].tolist()}")
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise MetricError(f"scores must be finite, got {scores[row]} at jet {row}")
    return scores, labels.astype(bool)


def auc(scores: Scores, signal: Signal) -> Measured:
    """Area under the ROC curve: the chance that signal scores above background, ties counted half.

    The error is that of DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988) 837.
    """
    scores, signal = _checked(scores, signal)
    curve = roc(scores, signal)
    return Measured(value=float(area(curve.background, curve.signal)), error=_error_of(_shares(scores, signal)))


def rank_auc(scores: Scores, signal: Signal) -> Measured:
    """The same number and error as :func:`auc`, without the curve: a tenth of the time, for many scores."""
    scores, signal = _checked(scores, signal)
    jets = int(signal.sum())
    if jets in (0, len(signal)):
        raise MetricError(f"an AUC needs signal and background jets, got {jets} and {len(signal) - jets}")
    shares = _shares(scores, signal)
    return Measured(value=float(shares[0].mean()), error=_error_of(shares))


def auc_difference(scores: Scores, others: Scores, signal: Signal) -> Measured:
    """AUC of one score less that of another on the same jets; the error knows that they are the same (DeLong)."""
    for values in (scores, others):
        roc(values, signal)  # checks them
    (scores, signal), (others, _) = _checked(scores, signal), _checked(others, signal)
    gains = [share - other for share, other in zip(_shares(scores, signal), _shares(others, signal), strict=True)]
    return Measured(value=float(gains[0].mean()), error=_error_of(gains))


def share_below(scores: Scores, others: Float[np.ndarray, "other"]) -> Scores:
    """For each score, the share of the others below it, equal ones counted half: of a signal, the mean is the AUC."""
    others = np.sort(others)
    return (np.searchsorted(others, scores) + np.searchsorted(others, scores, side="right")) / (2 * len(others))


def _shares(scores: Scores, signal: Signal) -> list[np.ndarray]:
    """For each signal jet the share of background below it, and for each background jet that of signal."""
    return [share_below(scores[signal], scores[~signal]), share_below(scores[~signal], scores[signal])]


def _error_of(shares: Sequence[np.ndarray]) -> float:
    """Standard error of the mean of both, whose jets are independent."""
    return math.sqrt(sum(np.var(one, ddof=1) / len(one) if len(one) > 1 else math.nan for one in shares))


def signal_efficiency(curve: Roc, eps_b: float) -> Measured:
    """eps_s: the largest share of signal kept by a cut that keeps at most the share `eps_b` of the background.

    Few background jets set a tight cut (50 of 50,000 at 1e-3). The error has both parts: the binomial one of the signal
    above the cut, and what eps_s changes when the count of background jets above it changes by its standard deviation.
    """
    if not 0 < eps_b < 1:
        raise MetricError(f"eps_b must be in (0, 1), got {eps_b:g}")

    def kept(share: float) -> float:
        return float(curve.signal[curve.background <= share].max(initial=0.0))

    value, n = kept(eps_b), curve.background_jets
    step = max(1.0, math.sqrt(eps_b * (1 - eps_b) * n)) / n
    cut = (kept(eps_b + step) - kept(eps_b - step)) / 2
    return Measured(value=value, error=math.sqrt(value * (1 - value) / curve.signal_jets + cut**2))


def background_rejection(curve: Roc, eps_s: float) -> Measured:
    """1 / eps_b at the tightest cut that keeps at least the share `eps_s` of the signal.

    NaN where no background jet passes: the rejection is beyond what so many background jets can measure. The error has
    the binomial part of the background that passes, and what the number changes when the count of signal jets above the
    cut changes by its standard deviation.
    """
    if not 0 < eps_s <= 1:
        raise MetricError(f"eps_s must be in (0, 1], got {eps_s:g}")

    def passing(share: float) -> float:
        return float(curve.background[curve.signal >= min(share, 1.0)].min())

    eps_b, n = passing(eps_s), curve.signal_jets
    if eps_b == 0:
        return Measured(value=math.nan)
    step = max(1.0, math.sqrt(eps_s * (1 - eps_s) * n)) / n
    cut = (passing(eps_s + step) - passing(eps_s - step)) / 2
    error = math.sqrt(eps_b * (1 - eps_b) / curve.background_jets + cut**2)
    return Measured(value=1 / eps_b, error=error / eps_b**2)


def significance_improvement(curve: Roc, min_eps_b: float | None = None) -> Measured:
    """Largest eps_s / sqrt(eps_b) over all cuts that keep at least the share `min_eps_b` of the background.

    By default `MIN_BACKGROUND` background jets must pass: below, the maximum is made by a few jets. NaN where there
    are no more than so many, or `min_eps_b` is less than one jet. The error is that at the best cut; that it was
    searched for makes the value a little too large.
    """
    min_eps_b = MIN_BACKGROUND / curve.background_jets if min_eps_b is None else min_eps_b
    if not min_eps_b > 0:
        raise MetricError(f"min_eps_b must be > 0, got {min_eps_b:g}")
    if min_eps_b >= 1 or min_eps_b * curve.background_jets < 1:
        return Measured(value=math.nan)
    allowed = curve.background >= min_eps_b
    background, signal = curve.background[allowed], curve.signal[allowed]
    best = int(np.argmax(signal / np.sqrt(background)))
    eps_b, eps_s = float(background[best]), float(signal[best])
    if eps_s == 0:
        return Measured(value=0.0)
    relative = (1 - eps_s) / (curve.signal_jets * eps_s) + (1 - eps_b) / (4 * curve.background_jets * eps_b)
    value = eps_s / math.sqrt(eps_b)
    return Measured(value=value, error=value * math.sqrt(relative))


def accuracy(probabilities: Probabilities, targets: Targets) -> Measured:
    """Share of jets whose most probable class, the first of equal ones, is the right one; binomial error."""
    if len(targets) == 0:
        raise MetricError("an accuracy needs at least one jet, got none")
    value = float(np.mean(np.argmax(probabilities, axis=1) == targets))
    return Measured(value=value, error=math.sqrt(value * (1 - value) / len(targets)))


def separation(
    scores: Scores, signal: Signal, errors: bool = True, min_eps_b: float | None = None
) -> dict[str, Measured]:
    """Every number of one ROC curve: `auc`, `eps_s_<eps_b>`, `rejection_<eps_s>`, `sic`.

    The error of the AUC takes as long as the rest: it may be left out. `min_eps_b` is as for
    :func:`significance_improvement`; that of all jets, where these are a fold of them.
    """
    scores, signal = _checked(scores, signal)
    curve, error = roc(scores, signal), _error_of(_shares(scores, signal)) if errors else math.nan
    return (
        {"auc": Measured(value=float(area(curve.background, curve.signal)), error=error)}
        | {f"eps_s_{eps_b:g}": signal_efficiency(curve, eps_b) for eps_b in BACKGROUND_EFFICIENCIES}
        | {f"rejection_{eps_s:g}": background_rejection(curve, eps_s) for eps_s in SIGNAL_EFFICIENCIES}
        | {"sic": significance_improvement(curve, min_eps_b)}
    )


def detection(scores: Scores, signal: Signal, folds: bool = True) -> dict[str, Measured]:
    """How well a score, higher for what is more like signal, tells signal from background.

    With the spread over `folds`, which takes as long again. Raises MetricError when signal or background is missing, or
    a score is not finite.
    """
    scores, signal = _checked(scores, signal)
    whole, min_eps_b = separation(scores, signal), MIN_BACKGROUND / max(1, int((~signal).sum()))
    if not folds:
        return whole
    return _with_folds(whole, lambda rows: separation(scores[rows], signal[rows], False, min_eps_b), signal.astype(int))


def classification(
    probabilities: Probabilities, targets: Targets, classes: Sequence[str], folds: bool = True
) -> dict[str, Measured]:
    """`accuracy`, and the numbers of the ROC curve of each class against the rest.

    Parameters
    ----------
    probabilities : float array (jet, class)
        Or any scores that rise with the chance of the class.
    targets : int array (jet,)
        Columns of the right classes.
    classes : sequence of str
        Names of the columns.
    folds : bool
        With the spread over folds, which takes as long again.

    Returns
    -------
    dict
        With two classes, those of the second against the first by plain names (`auc`); with more, by class (`auc_w`),
        and their macro means by plain names. Classes share their jets, so the error of a mean is taken as if the
        errors were fully correlated: an upper limit. It is NaN where one of them is.

    Raises
    ------
    MetricError
        When shapes disagree, a class has no jet or a probability is not finite.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.shape != (len(targets), len(classes)):
        raise MetricError(
            f"probabilities must be of {len(targets)} jets and {len(classes)} classes, got shape {probabilities.shape}"
        )
    if not np.isin(targets, range(len(classes))).all():
        raise MetricError(f"targets must be columns 0 to {len(classes) - 1}, got {np.unique(targets).tolist()}")
    for column, name in enumerate(classes):
        if not (targets == column).any():
            raise MetricError(f"every class must have a jet, {name} has none among {len(targets)}")
    if not np.isfinite(probabilities).all():
        row = int(np.flatnonzero(~np.isfinite(probabilities).all(axis=1))[0])
        raise MetricError(f"probabilities must be finite, got {probabilities[row].tolist()} at jet {row}")
    whole = _classified(probabilities, targets, classes)
    if not folds:
        return whole
    min_eps_bs = [MIN_BACKGROUND / max(1, int((targets != column).sum())) for column in range(len(classes))]
    return _with_folds(
        whole, lambda rows: _classified(probabilities[rows], targets[rows], classes, False, min_eps_bs), targets
    )


def _classified(
    probabilities: Probabilities,
    targets: Targets,
    classes: Sequence[str],
    errors: bool = True,
    min_eps_bs: Sequence[float | None] | None = None,
) -> dict[str, Measured]:
    numbers, min_eps_bs = {"accuracy": accuracy(probabilities, targets)}, min_eps_bs or [None] * len(classes)
    each = {
        name: separation(probabilities[:, column], targets == column, errors, min_eps_bs[column])
        for column, name in enumerate(classes)
        if column or len(classes) > 2
    }
    if len(classes) == 2:
        return numbers | each[classes[1]]
    for metric in CURVE:
        values, deviations = zip(*((m[metric].value, m[metric].error) for m in each.values()), strict=True)
        numbers[metric] = Measured(value=float(np.mean(values)), error=float(np.mean(deviations)))
    return numbers | {f"{metric}_{name}": one for name, m in each.items() for metric, one in m.items()}


def _with_folds(
    whole: dict[str, Measured], measure: Callable[[Rows], dict[str, Measured]], strata: Targets
) -> dict[str, Measured]:
    """With the standard deviation over ten stratified folds, where each has every class."""
    if np.unique(strata, return_counts=True)[1].min() < FOLDS:
        return whole
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=FOLD_SEED).split(strata, strata)
    each = [measure(rows) for _, rows in folds]
    spread = {name: float(np.std([fold[name].value for fold in each])) for name in whole}
    return {name: replace(measured, fold_sd=spread[name]) for name, measured in whole.items()}


def uncertainties(measured: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """What is known of each number's uncertainty, as records hold it: `error` and `fold_sd`, where finite."""
    every = {name: {"error": number.error, "fold_sd": number.fold_sd} for name, number in measured.items()}
    finite = {name: {part: x for part, x in parts.items() if math.isfinite(x)} for name, parts in every.items()}
    return {name: parts for name, parts in finite.items() if parts}

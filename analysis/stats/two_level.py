"""Two levels of error, apart: seeds (outer) and test jets (inner).

All trials of a study are evaluated on the same test jets. An interval over seeds holds for those jets: what other jets
would change is common to all seeds, so that more seeds do not make it smaller. It is found from what each test jet
adds to the metric of each trial (scores.safetensors), by resampling jets within their class, the same jets for all
seeds and both arms. Of a mean over jets, and of an AUC to first order, the covariance of that bootstrap is known in
closed form, so none is drawn for a report. Training jets are the same for all seeds too: what others would change is
in neither error.

Axes: (seed, jet). Units: those of the metric.

References
----------
Hierarchical and crossed bootstrap: Davison & Hinkley, Bootstrap Methods and their Application (1997), section 3.8;
Owen, Ann. Appl. Stat. 1 (2007) 386. AUC as means over jets: DeLong et al., Biometrics 44 (1988) 837. Half widths added
in quadrature: Zou & Donner, Stat. Med. 27 (2008) 1693.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.stats import Floats, paired
from analysis.stats.paired import MeanInterval
from jbot.data.jets import CLASSES
from jbot.data.splits import TARGETS, targets
from jbot.evaluation.metrics import share_below
from jbot.evaluation.metrics_registry import Metric, find_metric

Labels = NDArray[np.int64]

BACKGROUND = (CLASSES.index("q"), CLASSES.index("g"))
"""Of anomaly scores."""


@dataclass(frozen=True, kw_only=True)
class JetParts:
    """What the test jets add to one metric of one trial."""

    value: float
    """The metric, from the kept outcomes."""
    parts: Floats
    """(jet,): drawing jet j m_j times changes the metric by the sum of (m_j - 1) parts_j, drawn within classes."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """A mean over seeds with both errors."""

    name: str
    seeds: MeanInterval
    """Mean and interval over seeds, for these test jets."""
    jets: int
    jet_error: float
    """Standard error of the mean from the test jets, the same for all seeds: what is left with ever more seeds."""
    one_trial: float
    """Standard error of one seed's value from its test jets."""
    low: float
    high: float
    """Interval for other seeds and other test jets."""


def jet_parts(metric: str, arrays: Mapping[str, Any], task: str) -> JetParts | None:
    """A trial's metric by test jet; None for a metric that is no accuracy and no AUC, or whose outcomes are not kept.

    Parameters
    ----------
    metric : str
        ``test/<probe>_accuracy``, ``test/<probe>_auc[_<class>]`` or ``test/anomaly_<score>_auc[_<signal>]``.
    arrays : mapping
        Of scores.safetensors: ``<probe>/probability`` (jet, class), ``anomaly/<score>`` (jet,) and ``label`` (jet,).
    task : str
        Of the trial's data: which classes the probes tell apart.
    """
    found = find_metric(metric)
    if found.split != "test" or found.baseline or task not in TARGETS or found.measure not in ("accuracy", "auc"):
        return None
    labels = np.asarray(arrays["label"], dtype=np.int64)
    if found.kind == "anomaly":
        scores = arrays.get(f"anomaly/{found.source.removeprefix('anomaly_')}")
        return None if scores is None else _anomaly_parts(found.on, scores, labels)
    probability = arrays.get(f"{found.source}/probability")
    if probability is None:
        return None
    return _classifier_parts(found, np.asarray(probability, np.float64), targets(labels, task), list(TARGETS[task]))


def _classifier_parts(metric: Metric, probability: Floats, right: Labels, classes: Sequence[str]) -> JetParts | None:
    known = right >= 0
    if metric.measure == "accuracy":
        parts = (known & (probability.argmax(axis=1) == right)) / max(1, known.sum())
        return JetParts(value=float(parts.sum()), parts=parts)
    if len(classes) > 2:
        used = [metric.on] if metric.on else classes
    else:
        used = [] if metric.on else classes[1:]
    if not used or not set(used) <= set(classes):
        return None
    found = [_auc_parts(probability[:, classes.index(name)], right == classes.index(name), known) for name in used]
    if any(item is None for item in found):
        return None
    areas = [item for item in found if item is not None]
    value = float(np.mean([item.value for item in areas]))
    return JetParts(value=value, parts=np.mean([item.parts for item in areas], axis=0))


def _anomaly_parts(signal: str, scores: Any, labels: Labels) -> JetParts | None:
    if signal not in ("", *CLASSES):
        return None
    background = np.isin(labels, BACKGROUND)
    chosen = labels == CLASSES.index(signal) if signal else ~background
    return _auc_parts(np.asarray(scores, dtype=np.float64), chosen, chosen | background)


def _auc_parts(scores: Floats, signal: NDArray[np.bool_], used: NDArray[np.bool_]) -> JetParts | None:
    """To first order in the numbers of jets: the share of the other kind that each jet is right about."""
    background = used & ~signal
    if not signal.any() or not background.any():
        return None
    parts, above = np.zeros(len(scores)), share_below(scores[signal], scores[background])
    parts[signal] = above / signal.sum()
    parts[background] = -share_below(scores[background], scores[signal]) / background.sum()
    return JetParts(value=float(above.mean()), parts=parts)


def jet_covariance(parts: Floats, strata: Labels) -> Floats:
    """Covariance over seeds of what a draw of other test jets adds to each, (seed, seed).

    Parameters
    ----------
    parts : float array (seed, jet)
    strata : int array (jet,)
        Classes of the jets: as many of each are drawn as there are.
    """
    total = np.zeros((len(parts), len(parts)))
    for stratum in np.unique(strata):
        chosen = parts[:, strata == stratum]
        n = chosen.shape[1]
        if n > 1:
            centred = chosen - chosen.mean(axis=1, keepdims=True)
            total += n / (n - 1) * centred @ centred.T
    return total


def levels(name: str, values: Floats, parts: Floats, strata: Labels, confidence: float = 0.95) -> Levels:
    """Both errors of a mean over seeds.

    The half widths of both intervals are added in quadrature: Student's t of the seeds, the normal one of the jets that
    all seeds share. Simulated coverage: docs/calibration.md.

    Parameters
    ----------
    values : float array (seed,)
    parts : float array (seed, jet)
        Of the same seeds; see :class:`JetParts`.
    strata : int array (jet,)
    """
    seeds, covariance = paired.mean_interval(values, confidence), jet_covariance(parts, strata)
    n = len(covariance)
    shared = (covariance.sum() - np.trace(covariance)) / (n * (n - 1)) if n > 1 else math.nan
    jet_error = math.sqrt(max(0.0, shared)) if n > 1 else math.nan
    half = math.hypot(seeds.high - seeds.mean, float(stats.norm.isf((1 - confidence) / 2)) * jet_error)
    return Levels(
        name=name,
        seeds=seeds,
        jets=parts.shape[1],
        jet_error=jet_error,
        one_trial=math.sqrt(np.trace(covariance) / n) if n else math.nan,
        low=seeds.mean - half,
        high=seeds.mean + half,
    )

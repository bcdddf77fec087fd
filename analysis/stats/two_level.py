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
from collections.abc import Mapping
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
from jbot.evaluation.metrics_registry import find_metric

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
    meant = find_metric(metric)
    if meant.split != "test" or meant.baseline or task not in TARGETS or meant.measure not in ("accuracy", "auc"):
        return None
    labels = np.asarray(arrays["label"], dtype=np.int64)
    if meant.kind == "anomaly":
        scores, signal = arrays.get(f"anomaly/{meant.source.removeprefix('anomaly_')}"), meant.on
        if scores is None or signal not in ("", *CLASSES):
            return None
        background = np.isin(labels, BACKGROUND)
        chosen = labels == CLASSES.index(signal) if signal else ~background
        return _auc_parts(np.asarray(scores, dtype=np.float64), chosen, chosen | background)
    if f"{meant.source}/probability" not in arrays:
        return None
    probability = np.asarray(arrays[f"{meant.source}/probability"], np.float64)
    right, classes = targets(labels, task), list(TARGETS[task])
    known = right >= 0
    if meant.measure == "accuracy":
        parts = (known & (probability.argmax(axis=1) == right)) / max(1, known.sum())
        return JetParts(value=float(parts.sum()), parts=parts)
    if len(classes) > 2:
        used = [meant.on] if meant.on else classes
    else:
        used = [] if meant.on else classes[1:]
    if not used or not set(used) <= set(classes):
        return None
    places = [classes.index(name) for name in used]
    areas = [area for i in places if (area := _auc_parts(probability[:, i], right == i, known)) is not None]
    if len(areas) < len(used):
        return None
    value = float(np.mean([area.value for area in areas]))
    return JetParts(value=value, parts=np.mean([area.parts for area in areas], axis=0))


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
    """Covariance over seeds (seed, seed) of what a draw of other test jets adds to each, from parts (seed, jet).

    `strata` (jet,) are the classes of the jets: as many of each are drawn as there are.
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
    """Both errors of a mean over seeds, from values (seed,), parts (seed, jet) as of :class:`JetParts`, strata (jet,).

    The half widths of both intervals are added in quadrature: Student's t of the seeds, the normal one of the jets that
    all seeds share. Simulated coverage: docs/calibration.md.
    """
    seeds, covariance = paired.mean_interval(values, confidence), jet_covariance(parts, strata)
    n, jet_error = len(covariance), math.nan
    if n > 1:
        jet_error = math.sqrt(max(0.0, (covariance.sum() - np.trace(covariance)) / (n * (n - 1))))
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

"""Each metric once: what a key means, in words, the values it can take, and which of them are better.

A key of a record is ``[<baseline>/]<split>/<name>``: ``test/kmeans_ami``, ``untrained/test_500/knn_accuracy``. A name
is a number of the embedding, or ``<source>_<measure>[_<cut>][_<class>]``, a number of a classifier or of an anomaly
score: ``finetune_10_eps_s_0.01_w``. Curves hold ``train/loss``, ``val/knn_auc``, ``epoch``; those of fine-tunings
``finetune_10/val_loss``.

    find_metric("untrained/test/knn_auc_w").label    k-NN, AUC (W)
    metric_key("knn_auc", baseline="untrained")      untrained/test/knn_auc
    metric_names(config)                             what the record of a complete trial has

Adding a metric: an entry here, and the number in jbot.evaluation.evaluator.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, replace

from jbot.config import Config
from jbot.data.jets import CLASSES
from jbot.data.splits import TARGETS

Bounds = tuple[float, float]
ANY, POSITIVE, SHARE = (-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What is measured, of whatever."""

    label: str
    """In words; of a number at one cut {} is the cut."""
    bounds: Bounds = ANY
    """The least and the largest value it can have."""
    higher_is_better: bool | None = None
    """None where neither is: a high effective rank may be noise, a low one a collapse."""
    unit: str = ""


NUMBERS: dict[str, Quantity] = {
    "kmeans_ami": Quantity(label="k-means AMI", bounds=(-1.0, 1.0), higher_is_better=True),
    "silhouette": Quantity(label="silhouette", bounds=(-1.0, 1.0), higher_is_better=True),
    "effective_rank": Quantity(label="effective rank", bounds=(1.0, math.inf), unit="directions"),
    "spread": Quantity(label="spread of the embedding", bounds=SHARE),
    "attention_entropy": Quantity(label="attention entropy", bounds=SHARE, unit="of uniform attention"),
    "intrinsic_dimension": Quantity(label="intrinsic dimension", bounds=POSITIVE),
    "anisotropy": Quantity(label="anisotropy", bounds=(-1.0, 1.0)),
    "hubness": Quantity(label="hubness"),
    "condition_number": Quantity(label="condition number", bounds=(1.0, math.inf)),
    "nc1": Quantity(label="neural collapse NC1", bounds=POSITIVE, higher_is_better=False),
    "alignment": Quantity(label="alignment", bounds=(0.0, 4.0)),
    "uniformity": Quantity(label="uniformity", bounds=(-8.0, 0.0)),
}
"""Numbers of the embedding, or of attention: jbot.evaluation.evaluator and .geometry."""
TRAINING: dict[str, Quantity] = {
    "loss": Quantity(label="loss", higher_is_better=False, unit="nats"),
    "cls_loss": Quantity(label="[CLS] loss", bounds=POSITIVE, higher_is_better=False, unit="nats"),
    "particle_loss": Quantity(label="particle loss", bounds=POSITIVE, higher_is_better=False, unit="nats"),
    "koleo_loss": Quantity(label="KoLeo term", higher_is_better=False, unit="nats"),
    "teacher_entropy": Quantity(label="teacher entropy", bounds=POSITIVE, unit="nats"),
    "student_entropy": Quantity(label="student entropy", bounds=POSITIVE, unit="nats"),
    "lr": Quantity(label="learning rate", bounds=POSITIVE),
    "ema_momentum": Quantity(label="EMA momentum of the teacher", bounds=SHARE),
    "masked_fraction": Quantity(label="share of particles masked", bounds=SHARE),
}
"""Columns of learning curves, on training jets; `loss` and `accuracy` also of fine-tunings."""
CLOCKS: dict[str, Quantity] = {
    "epoch": Quantity(label="epoch", bounds=POSITIVE, unit="epochs"),
    "step": Quantity(label="step", bounds=POSITIVE, unit="steps"),
    "device_seconds": Quantity(label="device seconds", bounds=POSITIVE, unit="device seconds"),
}
"""Columns of curves without a split: what the others are drawn over."""

BACKGROUND_EFFICIENCIES = (0.1, 0.01, 0.001)
SIGNAL_EFFICIENCIES = (0.3, 0.5)
MEASURES: dict[str, Quantity] = {
    "accuracy": Quantity(label="accuracy", bounds=SHARE, higher_is_better=True),
    "auc": Quantity(label="AUC", bounds=SHARE, higher_is_better=True),
    "eps_s": Quantity(label="signal efficiency at background {}", bounds=SHARE, higher_is_better=True),
    "rejection": Quantity(
        label="background rejection at signal efficiency {}", bounds=(1.0, math.inf), higher_is_better=True
    ),
    "sic": Quantity(label="largest significance improvement", bounds=POSITIVE, higher_is_better=True),
    "chosen_auc": Quantity(label="AUC at chosen settings", bounds=SHARE, higher_is_better=True),
    "oracle_auc": Quantity(label="AUC at the oracle's settings", bounds=SHARE, higher_is_better=True),
    "optimism": Quantity(label="optimism of the oracle", bounds=(-1.0, 1.0)),
    "overlay_auc": Quantity(label="AUC on overlaid background", bounds=SHARE, higher_is_better=True),
}
"""Numbers of a classifier or score: jbot.evaluation.metrics; of a score alone: jbot.evaluation.anomaly."""
_CUTS = {"eps_s": BACKGROUND_EFFICIENCIES, "rejection": SIGNAL_EFFICIENCIES}
CURVE = ("auc", *(f"{measure}_{share:g}" for measure, shares in _CUTS.items() for share in shares), "sic")
"""Numbers of one ROC curve."""
ANOMALY_CURVE = tuple(name for name in CURVE if not name.startswith("rejection"))

PROBES = {"knn": "k-NN", "linear": "linear probe"}
TUNED = {"finetune": "fine-tuning", "supervised": "supervised baseline"}
"""Trained on a share of the labels: ``finetune_10``."""
STANDARD_SCORES = {
    "knn": "k-NN",
    "cosine": "cosine",
    "knn_whitened": "whitened k-NN",
    "mahalanobis": "Mahalanobis",
    "mahalanobis_labels": "Mahalanobis with labels",
    "relative_mahalanobis_labels": "relative Mahalanobis with labels",
    "gmm": "Gaussian mixture",
}
"""Measured of every encoder: those of the released code, on the embedding, and the k-NN distance where no direction of
it outweighs the others."""
REFERENCE_SCORES = {"lof": "local outlier factor", "isolation_forest": "isolation forest", "autoencoder": "autoencoder"}
"""What those should beat; measured with `anomaly.scan` only."""
ANOMALY_SCORES = STANDARD_SCORES | REFERENCE_SCORES
PARTICLE_SCORES = ("autoencoder",)
"""Made of the particles themselves; all others are of the embedding."""
BACKGROUND = ("q", "g")
"""Jets that anomaly detection knows; all others are signal."""
COMBINED = "combined"
"""All signals together: what a number of an anomaly score is of without a class behind it."""
SIGNALS = (*(name for name in CLASSES if name not in BACKGROUND), COMBINED)
"""What can be reported: each signal class against quarks and gluons, and all of them together."""

BASELINES = {"untrained": "untrained encoder", "raw": "raw features"}
"""What opens the key of a metric that another one must beat: the encoder before training, the particles themselves."""
SPLITS = {
    "test": "test jets",
    "val": "validation jets",
    "train": "training jets",
    "signal": "signal jets of the learning curves",
}
AT_OTHER_PT = {"test": "test jets of {} GeV", "shifted": "test jets of {} GeV, by probes of another energy"}
"""Splits with a jet pT behind them, ``test_500``; {} is the pT in GeV."""
AT_EVERY_PT = ("knn_accuracy", "knn_auc", "linear_accuracy", "linear_auc")
"""What is measured at other jet pTs. No anomaly scores: they are of the jets an encoder was trained for."""

_CLASSES = {"w": "W", "z": "Z", "qcd": "q/g"}
"""How classes are written where it is not as jbot.data has them."""
_KEY = re.compile(rf"(?:(?P<baseline>{'|'.join(BASELINES)})/)?(?:(?P<split>[^/]+)/)?(?P<name>[^/]+)")
_TUNED = rf"(?:{'|'.join(TUNED)})_[\d.]+"
_NAME = re.compile(
    rf"(?P<source>{'|'.join(PROBES)}|{_TUNED}|anomaly_(?:{'|'.join(ANOMALY_SCORES)}))"
    rf"_(?P<measure>{'|'.join(MEASURES)})(?:_(?P<cut>[\d.]+))?(?:_(?P<on>[a-z]+))?"
)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a key means."""

    key: str
    name: str
    """What is behind the split: ``knn_auc_w``."""
    split: str = ""
    """``test``, ``val``, ``train``, ``test_<pt>``, ``shifted_<pt>``; empty for a clock."""
    baseline: str = ""
    """One of BASELINES; empty for the trained encoder."""
    source: str = ""
    """Classifier or score: ``knn``, ``finetune_10``, ``anomaly_gmm``; empty for a number of the embedding."""
    measure: str = ""
    """One of MEASURES, NUMBERS, TRAINING or CLOCKS; empty for a key that nobody declared."""
    cut: str = ""
    """The efficiency at which it is read off: ``0.01``."""
    on: str = ""
    """Class against the rest, or signal: ``w``; empty for all."""
    label: str
    """In words, without the split: ``k-NN, AUC (W)``."""
    unit: str = ""
    bounds: Bounds = ANY
    higher_is_better: bool | None = None

    @property
    def declared(self) -> bool:
        """Whether it stands here; if not, its label is its own name."""
        return bool(self.measure)

    @property
    def difference_bounds(self) -> Bounds:
        """What the difference of two values can be."""
        low, high = self.bounds
        return low - high, high - low

    @property
    def kind(self) -> str:
        """``knn``, ``linear``, ``finetune``, ``supervised`` or ``anomaly``; empty for a number of the embedding."""
        return self.source.partition("_")[0]

    @property
    def full_label(self) -> str:
        """``k-NN accuracy on test jets``, ``... of 500 GeV``; without a split that anybody knows the label alone."""
        split, _, pt = self.split.partition("_")
        jets = AT_OTHER_PT.get(split, "").format(pt) if pt else SPLITS.get(split)
        return f"{self.label} on {jets}" if jets else self.label

    @property
    def is_detail(self) -> bool:
        """One of the many numbers of one ROC curve, but its area: of a class, at one cut, at other settings."""
        return bool(self.source) and not (self.measure in ("accuracy", "auc") and not self.on)

    @property
    def on_validation(self) -> str:
        """Key of its learning curve."""
        return metric_key(self.name, "val")


def metric_key(name: str, split: str = "test", baseline: str = "") -> str:
    """``untrained/test/knn_auc``."""
    return "/".join(part for part in (baseline, split, name) if part)


def find_metric(key: str) -> Metric:
    """The metric of a key that a record or curve holds; without a baseline or split it may be a bare name.

    A key that is not declared here has its own name as label, no bounds and no direction.
    """
    path = _KEY.fullmatch(key)
    if path is None:
        return Metric(key=key, name=key, label=_plain(key.rpartition("/")[2]))
    baseline, split, name = (part or "" for part in path.group("baseline", "split", "name"))
    if re.fullmatch(_TUNED, split):  # a column of the learning curve of a fine-tuning: val_loss, epoch
        run, column = split, name
        split, _, name = column.partition("_")
        if split not in SPLITS:
            split, name = "", column
        metric = Metric(key=key, name=name, split=split, source=run, label=_plain(column))
        known = (TRAINING | MEASURES | CLOCKS).get(name)
        return _declared(metric, name, known, f"{classifier_label(run)}, {{}}") if known else metric
    metric = Metric(key=key, name=name, split=split, baseline=baseline, label=_plain(name))
    if known := (NUMBERS | TRAINING | CLOCKS).get(name):
        return _declared(metric, name, known)
    parts = _NAME.fullmatch(name)
    if parts is None:
        return metric
    source, measure, cut, on = (part or "" for part in parts.group("source", "measure", "cut", "on"))
    metric = replace(metric, source=source, cut=cut, on=on)
    return _declared(metric, measure, MEASURES[measure], _template(source, measure, on))


def _declared(metric: Metric, measure: str, quantity: Quantity, template: str = "{}") -> Metric:
    label = template.format(quantity.label.format(metric.cut))
    return replace(metric, **vars(quantity) | {"measure": measure, "label": label})


def _template(source: str, measure: str, on: str) -> str:
    """The label of a number of a classifier or score; {} is what of it."""
    signal = f" ({class_label(on)})" if on else ""
    if source.startswith("anomaly_"):
        return f"anomaly {{}}, {score_label(source.removeprefix('anomaly_'))}{signal}"
    if source in PROBES and measure in ("accuracy", "auc") and not on:
        return f"{PROBES[source].replace(' ', '-')} {{}}"
    return f"{classifier_label(source)}, {{}}{signal}"


def classifier_label(name: str) -> str:
    """``fine-tuning on 10% of labels`` for ``finetune_10``; an unknown name in its own words."""
    kind, _, percent = name.rpartition("_")
    return f"{TUNED[kind]} on {percent}% of labels" if kind in TUNED else PROBES.get(name, _plain(name))


def short_classifier_label(name: str) -> str:
    """``fine-tuned 10%`` for ``finetune_10``, where there is little room."""
    kind, _, percent = name.rpartition("_")
    short = {"finetune": "fine-tuned", "supervised": "supervised"}
    return f"{short[kind]} {percent}%" if kind in short else classifier_label(name)


def score_label(name: str) -> str:
    """``Gaussian mixture`` for ``gmm``; an unknown name in its own words."""
    return ANOMALY_SCORES.get(name, _plain(name))


def class_label(name: str) -> str:
    """``W`` for ``w``."""
    return _CLASSES.get(name, name)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def fine_tunings(config: Config) -> dict[str, float]:
    """The fine-tunings of a trial and their supervised baselines by name, and the share of the labels of each."""
    kinds = tuple(TUNED) if config.finetune.twin else ("finetune",)
    return {f"{kind}_{100 * share:g}": share for share in config.finetune.fractions for kind in kinds}


def metric_names(config: Config) -> list[str]:
    """Keys that the record of a complete trial has, without those of its baselines.

    Some may be missing: a rejection that so few background jets cannot measure, a number of the geometry that the
    embedding does not have, all of a fine-tuning that diverged. ``untrained/...`` has the same, but fine-tunings and
    ``shifted_<pt>``; ``raw/test/...`` the k-NN and linear probes, and some anomaly scores.

    For each pT of probe.jet_pts, in GeV: ``test_<pt>/...`` of probes refitted on jets of that pT, ``shifted_<pt>/...``
    of the probes fitted on jets of the encoder's own pT. At its own pT, ``test_<pt>/...`` is ``test/...``, so that arms
    of different pT have a metric in common.
    """
    classes = list(TARGETS[config.data.task])
    curve = [*CURVE, *(f"{measure}_{name}" for name in classes for measure in CURVE if len(classes) > 2)]
    names = [f"{source}_{measure}" for source in (*PROBES, *fine_tunings(config)) for measure in ("accuracy", *curve)]
    names += NUMBERS
    if config.data.task == "qg":
        names += anomaly_names(config.anomaly.scan)
    splits = [f"test_{pt:g}" for pt in config.probe.jet_pts] + [f"shifted_{pt:g}" for pt in other_pts(config)]
    return [metric_key(name) for name in names] + [metric_key(name, split) for split in splits for name in AT_EVERY_PT]


def anomaly_names(scan: bool = False) -> list[str]:
    """Names of what jbot.evaluation.anomaly.detect finds; with particles, as a scan has an autoencoder then."""
    measures = ANOMALY_CURVE + (("chosen_auc", "oracle_auc", "optimism") if scan else ())
    scores = ANOMALY_SCORES if scan else STANDARD_SCORES
    return list(itertools.starmap(anomaly_name, itertools.product(scores, measures, SIGNALS)))


def anomaly_name(score: str, measure: str, signal: str = COMBINED) -> str:
    """``anomaly_gmm_auc_w``; without the signal for all of them together."""
    return f"anomaly_{score}_{measure}" + ("" if signal == COMBINED else f"_{signal}")


def other_pts(config: Config) -> list[float]:
    """Jet pTs [GeV], other than its own, at which an encoder is evaluated."""
    return [pt for pt in config.probe.jet_pts if pt != config.data.jet_pt]


def own_pt_names(config: Config) -> dict[str, str]:
    """Second keys of metrics at the encoder's own pT, where it is asked for: ``test_1000/...`` of ``test/...``."""
    if config.data.jet_pt not in config.probe.jet_pts:
        return {}
    own = f"test_{config.data.jet_pt:g}"
    return {metric_key(name, own, of): metric_key(name, "test", of) for name in AT_EVERY_PT for of in ("", "untrained")}

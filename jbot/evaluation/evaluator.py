"""How good a frozen embedding is: probes, clustering, anomaly scores, geometry and the monitors of failures.

What the metrics mean stands in jbot.evaluation.metrics_registry. All of it runs on the device of the jets (see
jbot.evaluation.probes), so that on a GPU evaluating an encoder is a small part of training it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.metrics import adjusted_mutual_info_score
from threadpoolctl import ThreadpoolController
from torch import Tensor

from jbot.config import Config
from jbot.data.splits import TARGETS, targets
from jbot.evaluation.anomaly.detect import Detection, detect
from jbot.evaluation.anomaly.scores import AnomalyError, Embedded
from jbot.evaluation.anomaly.synthetic_signal import SelectionSignal, overlay_aucs, overlay_signal
from jbot.evaluation.geometry import attention_entropy, effective_rank, geometry, spread, views_for_alignment
from jbot.evaluation.metrics import Measured, MetricError, classification
from jbot.evaluation.metrics_registry import AT_EVERY_PT, anomaly_name, metric_key
from jbot.evaluation.probes import (
    area_under_curve,
    class_probabilities,
    kmeans,
    logistic_regression,
    nearest,
    silhouette,
)
from jbot.trainer.embed import GATHERED, Embedding, embed, embed_on_device
from jbot.trainer.engines.select import Forward
from jbot.trainer.inputs import LabeledJets
from jbot.trainer.loop import Metrics, TrialFailed
from jbot.trainer.model import forward
from jbot.trainer.rng import numpy_generator
from jbot.trainer.state import TrainState

KMEANS_STARTS = 4
SILHOUETTE_JETS = 2_000
MONITOR_JETS = 1_024

RAW_SCORES = ("knn", "cosine", "mahalanobis")
"""Anomaly scores of the particles themselves: mixtures in 120 dimensions would take minutes."""

Labels = Int64[Tensor, "jet"]
Bank = Float[Tensor, "bank dim"]
BankLabels = Int64[Tensor, "bank"]
Probabilities = Float[Tensor, "jet class"]
OtherJets = Mapping[float, tuple[LabeledJets, LabeledJets]]
"""By jet pT [GeV], training jets whose labels the probes may use, and test jets of that pT."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Metrics of an encoder on test jets, and what stands behind them."""

    measured: dict[str, Measured]
    """By metric, ``<probe>_<metric>``."""
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    """What stands behind ROC curves and histograms: ``<probe>/probability`` (jet, class) and ``anomaly/<score>`` (jet,)
    of the test jets, in their order; float32."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Those of anomaly scores, where they were scanned: `chosen` by score, `oracle` by score and signal."""


def knn_probe(bank: Bank, bank_targets: BankLabels, jets: Embedding, k: int) -> Probabilities:
    """Share of the k nearest training jets in each class: Euclidean, un-normalised (arXiv:2601.11719, section 4)."""
    classes = _check_probe(bank, bank_targets, jets)
    if k > len(bank):
        raise MetricError(f"k-NN needs at least k = {k} training jets, got {len(bank)}")
    voters = bank_targets[nearest(bank, jets, k)]
    return torch.stack([(voters == c).double().mean(1) for c in range(classes)], dim=1)


def linear_probe(bank: Bank, bank_targets: BankLabels, jets: Embedding) -> Probabilities:
    """Logistic regression on the standardised embedding."""
    _check_probe(bank, bank_targets, jets)
    mean, scale = bank.double().mean(0), bank.double().std(0, correction=0)
    scale = torch.where(scale > 1e-7 * mean.abs(), scale, 1.0)  # a constant feature, but for rounding, stays constant
    weights = logistic_regression((bank - mean) / scale, bank_targets)
    return class_probabilities(weights, (jets - mean) / scale)


def _check_probe(bank: Tensor, bank_targets: Tensor, jets: Tensor) -> int:
    """The number of classes, each of which must be in the bank; embeddings must be finite."""
    for name, embedding in (("training", bank), ("evaluated", jets)):
        if not bool(torch.isfinite(embedding).all()):
            row = int((~torch.isfinite(embedding)).any(1).nonzero()[0])
            raise MetricError(f"probes need finite embeddings, got NaN or infinity in {name} jet {row}")
    if len(bank) == 0 or int(bank_targets.min()) < 0:
        raise MetricError(f"probes need training jets with targets >= 0, got {len(bank)} jets")
    counts = torch.bincount(bank_targets)
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing or len(counts) < 2:
        raise MetricError(f"probes need training jets of each class and at least two classes, got {counts.tolist()}")
    return len(counts)


def quick_metrics(probe: str, probabilities: Probabilities, targets: Labels) -> Metrics:
    """Accuracy of the most probable class, the first of equal ones; AUC: the macro mean, of two classes the second's.

    As in :func:`jbot.evaluation.metrics.classification`, but on the device and without uncertainties: for curves.
    """
    classes = probabilities.shape[1]
    counted = [1] if classes == 2 else range(classes)
    return {
        f"{probe}_accuracy": float((probabilities.argmax(1) == targets).double().mean()),
        f"{probe}_auc": float(np.mean([area_under_curve(probabilities[:, c], targets == c) for c in counted])),
    }


def clustering(embedding: Embedding, labels: Labels, generator: np.random.Generator) -> Metrics:
    """Do classes form clusters: k-means against the labels (adjusted for chance), and the silhouette of the classes."""
    clusters = kmeans(embedding, len(labels.unique()), KMEANS_STARTS, int(generator.integers(2**31)))
    sample = torch.from_numpy(generator.permutation(len(labels))[:SILHOUETTE_JETS]).to(labels.device)
    return {
        "kmeans_ami": float(adjusted_mutual_info_score(labels.cpu().numpy(), clusters.cpu().numpy())),
        "silhouette": silhouette(embedding[sample], labels[sample]),
    }


class Evaluator:
    """Evaluates a student on fixed jets.

    Parameters
    ----------
    bank : LabeledJets
        Training jets whose labels the probes may use.
    val : LabeledJets
        Jets of the learning curves and of every choice.
    test : LabeledJets
        Jets of the final metrics: looked at once, never used for choosing.
    signal : LabeledJets, optional
        Signal whose anomaly scores stand in the learning curves, none by default.
    forward : callable
        Encoder and head, in float32.
    others : OtherJets
        Jets of other pTs on which it is evaluated too (:meth:`elsewhere`).
    """

    def __init__(
        self,
        config: Config,
        bank: LabeledJets,
        val: LabeledJets,
        test: LabeledJets,
        signal: LabeledJets | None = None,
        forward: Forward = forward,
        others: OtherJets | None = None,
    ):
        self.config, self.bank, self.val, self.test, self.forward = config, bank, val, test, forward
        self.signal = signal if signal is not None and len(signal.rows) else None
        self.others = others or {}
        # Trials share a machine. Found once: entering threadpool_limits takes milliseconds to look for the libraries.
        self._pools = ThreadpoolController()

    def curve_point(self, state: TrainState) -> Metrics:
        """Cheap metrics on the validation jets, and the monitors of failures."""
        bank, bank_targets = self._embed(state, self.bank)
        val, val_targets = self._embed(state, self.val)
        with self._pools.limit(limits=torch.get_num_threads()):
            point = quick_metrics("knn", knn_probe(bank, bank_targets, val, self.config.probe.knn_k), val_targets)
            point |= {"effective_rank": effective_rank(val), "spread": spread(val)}
        point["attention_entropy"] = attention_entropy(state.student, self.val.take(slice(MONITOR_JETS)), self.config)
        found = {metric_key(name, "val"): value for name, value in point.items()}
        return found if self.signal is None else found | self._signal_point(state, self.signal, bank, val)

    def _signal_point(self, state: TrainState, signal: LabeledJets, bank: Tensor, val: Tensor) -> Metrics:
        """AUC of each standard score on each signal, and on overlays of validation jets, which need no signal.

        Nothing where the embedding cannot be scored, as that of a collapsed encoder.
        """
        train = Embedded(embedding=bank.cpu().numpy(), labels=self.bank.labels)
        jets = Embedded(
            embedding=torch.cat((val, self._embed(state, signal)[0])).cpu().numpy(),
            labels=np.concatenate((self.val.labels, signal.labels)),
        )
        try:
            found = self._detect(train, jets, seed=self.config.seed, folds=False).values
            overlaid = overlay_aucs(train, self._overlay(state, val), self.config.anomaly.bank_jets, self.config.seed)
        except AnomalyError:
            return {}
        on_signal = {metric_key(name, "signal"): number.value for name, number in found.items() if "_auc" in name}
        return on_signal | {metric_key(anomaly_name(name, "overlay_auc"), "val"): x for name, x in overlaid.items()}

    def _overlay(self, state: TrainState, val: Tensor) -> SelectionSignal:
        """The synthetic signal of validation jets, which are embedded already."""

        def embed_overlays(particles: np.ndarray) -> np.ndarray:
            jets = torch.from_numpy(particles).to(state.student.device, state.student.dtype)
            return embed(state.student, jets, self.config, self.forward)

        particles = self.val.take(slice(None)).float().cpu().numpy()
        background = Embedded(embedding=val.cpu().numpy(), labels=self.val.labels, particles=particles)
        return overlay_signal(background, embed_overlays, self.config.seed)

    def final(self, state: TrainState, scan: bool = False, folds: bool = True) -> EvaluationResult:
        """Every metric of the frozen encoder, on the test jets.

        With `scan` anomaly scores at chosen settings too, and the reference methods; with `folds` the spread over folds
        of the test jets.
        """
        config, monitored = self.config, self.test.take(slice(MONITOR_JETS))
        bank, bank_targets = self._embed(state, self.bank)
        test, test_targets = self._embed(state, self.test)
        probabilities = self._probe(bank, bank_targets, test)
        views = [self._on_device(state, view) for view in views_for_alignment(monitored, config, config.seed)]
        with self._pools.limit(limits=torch.get_num_threads()):
            labels = torch.tensor(self.test.labels, device=test.device)
            single = clustering(test, labels, numpy_generator(config.seed, "probe"))
            single |= {"effective_rank": effective_rank(test), "spread": spread(test)}
            single |= geometry(test, labels, torch.stack(views))
        single["attention_entropy"] = attention_entropy(state.student, monitored, config)
        measured = {name: Measured(value=value) for name, value in single.items()}
        measured |= self._classified(probabilities, test_targets, folds)
        scores = {f"{probe}/probability": values.float().cpu().numpy() for probe, values in probabilities.items()}
        settings: dict[str, Any] = {}
        if config.data.task == "qg":
            try:
                train, jets, selection = self.anomaly_jets(state, scan, (bank, test))
                detected = self._detect(train, jets, seed=config.seed, selection=selection, folds=folds)
            except AnomalyError as error:  # sizes and labels are right: it is the embedding that no score can use
                raise TrialFailed(f"no anomaly score: {error}") from error
            measured |= detected.values
            scores |= {f"anomaly/{score}": values for score, values in detected.scores.items()}
            settings = {"chosen": detected.chosen, "oracle": detected.oracle} if scan else {}
        return EvaluationResult(measured=measured, scores=scores, settings=settings)

    def elsewhere(self, state: TrainState, baseline: bool = False) -> dict[str, Measured]:
        """The frozen encoder on jets of other pTs: ``test_<pt>/...`` and ``shifted_<pt>/...``, see
        :func:`jbot.evaluation.metrics_registry.metric_names`; as a `baseline`, that of an untrained encoder, without
        the shifted probes and the spread over folds."""
        measured: dict[str, Measured] = {}
        own = self._embed(state, self.bank) if self.others and not baseline else None
        for pt, jets in self.others.items():
            refitted, (test, test_targets) = (self._embed(state, some) for some in jets)
            for name, bank in {"test": refitted, "shifted": own}.items():
                if bank is not None:
                    numbers = self._classified(self._probe(*bank, test), test_targets, folds=not baseline)
                    measured |= {metric_key(metric, f"{name}_{pt:g}"): numbers[metric] for metric in AT_EVERY_PT}
        return measured

    def raw(self) -> dict[str, Measured]:
        """The classifiers on the particles themselves, flattened: what can be had without an encoder."""
        bank, test = (jets.take(slice(None)).flatten(1) for jets in (self.bank, self.test))
        measured = self._classified(
            self._probe(bank, self._targets(self.bank), test), self._targets(self.test), folds=False
        )
        if self.config.data.task == "qg":
            train = Embedded(embedding=bank.cpu().numpy(), labels=self.bank.labels)
            jets = Embedded(embedding=test.cpu().numpy(), labels=self.test.labels)
            measured |= self._detect(train, jets, seed=0, scores=RAW_SCORES, folds=False).values
        return measured

    def anomaly_jets(
        self, state: TrainState, scan: bool = True, embedded: tuple[Bank, Embedding] | None = None
    ) -> tuple[Embedded, Embedded, SelectionSignal | None]:
        """Jets for a bank, test jets, and the synthetic signal that settings may be chosen on, by their embedding.

        Without a scan, no particles for the autoencoder and no signal; `embedded` are bank and test jets if they are
        embedded already.
        """

        def labeled(jets: LabeledJets, embedding: Tensor) -> Embedded:
            particles = jets.take(slice(None)).float().cpu().numpy() if scan else None
            return Embedded(embedding=embedding.cpu().numpy(), labels=jets.labels, particles=particles)

        bank, test = embedded or (self._embed(state, jets)[0] for jets in (self.bank, self.test))
        selection = self._overlay(state, self._embed(state, self.val)[0]) if scan else None
        return labeled(self.bank, bank), labeled(self.test, test), selection

    def _detect(self, train: Embedded, test: Embedded, **how: Any) -> Detection:
        """Signal among the test jets, by scores on training jets; settings are chosen on the validation jets alone."""
        with self._pools.limit(limits=torch.get_num_threads()):
            return detect(train, test, bank_jets=self.config.anomaly.bank_jets, **how)

    def _probe(self, bank: Bank, bank_targets: BankLabels, jets: Embedding) -> dict[str, Probabilities]:
        """Class probabilities by each probe."""
        with self._pools.limit(limits=torch.get_num_threads()):
            return {
                "knn": knn_probe(bank, bank_targets, jets, self.config.probe.knn_k),
                "linear": linear_probe(bank, bank_targets, jets),
            }

    def _classified(self, probabilities: dict[str, Probabilities], targets: Labels, folds: bool) -> dict[str, Measured]:
        """The numbers of each probe on the jets whose class it knows: the anomaly task has signal among them."""
        measured: dict[str, Measured] = {}
        known, classes = targets >= 0, list(TARGETS[self.config.data.task])
        for probe, values in probabilities.items():
            numbers = classification(values[known].cpu().numpy(), targets[known].cpu().numpy(), classes, folds)
            measured |= {f"{probe}_{metric}": number for metric, number in numbers.items()}
        return measured

    def _targets(self, jets: LabeledJets) -> Labels:
        """On the device."""
        return torch.from_numpy(targets(jets.labels, self.config.data.task)).to(jets.rows.device)

    def _on_device(self, state: TrainState, jets: Tensor) -> Embedding:
        return embed_on_device(state.student, jets, self.config, self.forward)

    def _embed(self, state: TrainState, jets: LabeledJets) -> tuple[Embedding, Labels]:
        """Embedding and targets, both on the device."""
        parts = (jets.take(slice(at, at + GATHERED)) for at in range(0, len(jets.rows), GATHERED))
        embedding = torch.cat([self._on_device(state, part) for part in parts])
        if not bool(torch.isfinite(embedding).all()):
            raise TrialFailed(f"diverged: the embedding is not finite after epoch {state.epoch}")
        return embedding, self._targets(jets)

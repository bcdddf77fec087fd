"""How good a frozen embedding is: probes, clustering, and the monitors that tell a collapse.

Metric keys are ``<split>/<probe>_<metric>``. Everything is scikit-learn on numpy arrays, but for the embedding itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, adjusted_mutual_info_score, roc_auc_score, silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from jbot.config import Config
from jbot.model import Flat, cls_rows, encode, hidden_keys, relative_entropy, unpack
from jbot.streams import numpy_generator
from jbot.train import Metrics, TrainState, TrialFailed

CHUNK = 512
"""Jets embedded at once: keeps activations in cache on a CPU."""
SILHOUETTE_JETS = 2_000
MONITOR_JETS = 1_024

FINAL_METRICS = (
    "knn_accuracy",
    "knn_auc",
    "linear_accuracy",
    "linear_auc",
    "kmeans_ami",
    "silhouette",
    "effective_rank",
    "spread",
    "attention_entropy",
)
"""What a complete trial's record has, each as ``test/<name>`` and, before training, ``untrained/test/<name>``."""

Embedding = Float[np.ndarray, "jet dim"]
Labels = Int[np.ndarray, "jet"]
Bank = Float[np.ndarray, "bank dim"]
BankLabels = Int[np.ndarray, "bank"]


@dataclass(frozen=True, kw_only=True)
class LabeledJets:
    """Jets of one split, on the device, with their class labels."""

    particles: Float[Tensor, "jet particle 4"]
    labels: Labels


def embed(student: Flat, jets: Float[Tensor, "jet particle 4"], config: Config) -> Embedding:
    """Raw [CLS] embedding of each jet by the first trial of a pack, float32."""
    weights, slots = unpack(student[:1], config.model), jets.shape[1]
    with torch.no_grad():
        parts = [
            encode(weights, part[None], config.model, rows=cls_rows(1, len(part), slots, part.device))[0]
            for part in jets.split(CHUNK)
        ]
    return torch.cat(parts).float().cpu().numpy()


def attention_entropy(student: Flat, jets: Float[Tensor, "jet particle 4"], config: Config) -> float:
    """Entropy of the sharpest head's [CLS] attention, relative to uniform attention (1), averaged over jets."""
    hidden = None if config.model.padding == "reference" else hidden_keys(jets[None, ..., 3] < 0.5)
    attentions: list[Tensor] = []
    with torch.no_grad():
        encode(unpack(student[:1], config.model), jets[None], config.model, attentions=attentions)
    return min(float(relative_entropy(attention, hidden).min()) for attention in attentions)


def knn_probe(bank: Bank, bank_labels: BankLabels, jets: Embedding, labels: Labels, k: int) -> Metrics:
    """k nearest training jets vote: Euclidean, un-normalised (arXiv:2601.11719, section 4)."""
    classifier = KNeighborsClassifier(n_neighbors=min(k, len(bank)), algorithm="brute").fit(bank, bank_labels)
    return _classification("knn", classifier.predict_proba(jets), classifier.classes_, labels)


def linear_probe(bank: Bank, bank_labels: BankLabels, jets: Embedding, labels: Labels) -> Metrics:
    """Logistic regression on the standardised embedding."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky")).fit(bank, bank_labels)
    return _classification("linear", classifier.predict_proba(jets), classifier.classes_, labels)


def _classification(probe: str, scores: np.ndarray, classes: np.ndarray, labels: Labels) -> Metrics:
    known = np.isin(labels, classes)  # signal classes of the anomaly task are not in the bank
    scores, labels = scores[known], labels[known]
    if len(classes) == 2:
        auc = roc_auc_score(labels == classes[1], scores[:, 1])
    else:
        auc = roc_auc_score(labels, scores, multi_class="ovr", labels=classes)
    return {
        f"{probe}_accuracy": float(accuracy_score(labels, classes[scores.argmax(1)])),
        f"{probe}_auc": float(auc),
    }


def clustering(embedding: Embedding, labels: Labels, generator: np.random.Generator) -> Metrics:
    """Do classes form clusters: k-means against the labels (adjusted for chance), and the silhouette of the classes."""
    classes = len(np.unique(labels))
    seed = int(generator.integers(2**31))
    found = KMeans(n_clusters=classes, n_init=4, random_state=seed).fit_predict(embedding)
    sample = generator.permutation(len(labels))[:SILHOUETTE_JETS]
    return {
        "kmeans_ami": float(adjusted_mutual_info_score(labels, found)),
        "silhouette": float(silhouette_score(embedding[sample], labels[sample])),
    }


def effective_rank(embedding: Embedding) -> float:
    """RankMe: exp of the entropy of the normalised singular values; 1 to dim (Garrido et al., arXiv:2210.02885)."""
    singular = np.linalg.svd(embedding, compute_uv=False).astype(np.float64)
    share = singular / singular.sum() + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def spread(embedding: Embedding) -> float:
    """Root mean square distance of the normalised embeddings to their mean: 0 when all jets look alike, at most 1."""
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True).clip(1e-12)
    return float(np.sqrt(((unit - unit.mean(0)) ** 2).sum(1).mean()))


class Evaluator:
    """Judges a student on fixed jets.

    Parameters
    ----------
    bank : LabeledJets
        Training jets whose labels the probes may use.
    val : LabeledJets
        Jets of the learning curves and of every choice.
    test : LabeledJets
        Jets of the final metrics: looked at once, never used for choosing.
    """

    def __init__(self, config: Config, bank: LabeledJets, val: LabeledJets, test: LabeledJets):
        self.config, self.bank, self.val, self.test = config, bank, val, test

    def curve_point(self, state: TrainState) -> Metrics:
        """Cheap metrics on the validation jets, and what tells a collapse."""
        bank, val = self._embed(state, self.bank), self._embed(state, self.val)
        with threadpool_limits(torch.get_num_threads()):  # trials share a machine
            point = knn_probe(bank, self.bank.labels, val, self.val.labels, self.config.probe.knn_k)
            point |= {"effective_rank": effective_rank(val), "spread": spread(val)}
        point["attention_entropy"] = attention_entropy(state.student, self.val.particles[:MONITOR_JETS], self.config)
        return {f"val/{name}": value for name, value in point.items()}

    def final(self, state: TrainState) -> Metrics:
        """Every metric, on the test jets."""
        config, labels = self.config, self.test.labels
        bank, test = self._embed(state, self.bank), self._embed(state, self.test)
        with threadpool_limits(torch.get_num_threads()):
            metrics = knn_probe(bank, self.bank.labels, test, labels, config.probe.knn_k)
            metrics |= linear_probe(bank, self.bank.labels, test, labels)
            metrics |= clustering(test, labels, numpy_generator(config.seed, "probe"))
            metrics |= {"effective_rank": effective_rank(test), "spread": spread(test)}
        metrics["attention_entropy"] = attention_entropy(state.student, self.test.particles[:MONITOR_JETS], config)
        return {f"test/{name}": value for name, value in metrics.items()}

    def _embed(self, state: TrainState, jets: LabeledJets) -> Embedding:
        embedding = embed(state.student, jets.particles, self.config)
        if not np.isfinite(embedding).all():
            raise TrialFailed(f"diverged: the embedding is not finite after epoch {state.epoch}")
        return embedding

"""The paper's figures as data: every table of arXiv:2601.11719 that ours stand beside, each number with its source.

No number here is ours. A figure that the paper gives in words only ("about 70%") is kept in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

PAPER = "jBOT, arXiv:2601.11719 (Tsoi & Rankin)"
SPREAD = (
    "The paper's own ± (not repeated here) is the spread over 10 folds of one model's test jets, on jets that do not "
    "overlap: it shrinks with more test jets and knows nothing of seeds. No seed of the paper was replicated."
)

TRAIN, VAL, TEST, EPOCHS = "data.train_jets", "data.val_jets", "data.test_jets", "train.epochs"
RECIPES: Mapping[str, Mapping[str, int]] = {
    "all": {TRAIN: 700_000, VAL: 50_000, TEST: 95_000, EPOCHS: 80},
    "tqg": {TRAIN: 285_000, VAL: 20_000, TEST: 50_000, EPOCHS: 80},
    # The paper trains on 260,000 q and g, which with its test jets are all that JetNet has, and validates on none.
    # Our validation jets come out of the training jets.
    "qg": {TRAIN: 250_000, VAL: 10_000, TEST: 203_000, EPOCHS: 60},
}
"""Jets and epochs of each task, by dotted Config field, as in the paper and the authors' notebook but for q and g."""
PAPER_JETS: Mapping[str, str] = {
    "all": "700,000 / 50,000 / 95,000",
    "tqg": "285,000 / 20,000 / 50,000",
    "qg": "260,000 / none / 203,500",
}
"""Training, validation and test jets of the paper."""

BACKGROUND: Mapping[str, float] = {"all": 0.8, "tqg": 0.5, "qg": 0.4}
"""Share of the test jets that is background: of one class against the rest, of t, of the three signals together."""

MODELS: Mapping[tuple[int, int, int], str] = {(32, 4, 2): "S", (64, 6, 4): "B"}
"""Width, heads and layers, as in the names of the released files, and what the paper calls such a model."""

RELEASED = "released"
"""Folder of a study in which the authors' checkpoints leave their metrics (studies/runner/author_checkpoints.py)."""

AUC = "auc"
EFFICIENCY = {"eps_s_0.1": "εs(0.1)", "eps_s_0.01": "εs(0.01)", "eps_s_0.001": "εs(0.001)"}
"""εs(x): share of the signal that is kept where a share x of the background is."""


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One row of a table: one way to evaluate one model."""

    label: str
    model: str | None
    """S or B; None where only the paper's figure exists."""
    probe: str
    """What stands between ``test/`` and the metric in ours: knn, finetune_10, anomaly_gmm; empty without ours."""
    values: Mapping[str, float | str] = field(default_factory=dict)
    """Metric -> the paper's figure, a text where the paper gives it in words. Empty: the paper has no such row."""


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table of the paper, with rows of ours that have no counterpart in it."""

    name: str
    """For file names and the CSV."""
    title: str
    task: str
    """Config.data.task of the arms it evaluates."""
    metrics: Mapping[str, str]
    """Metric, as it ends our metric names, and its heading."""
    rows: tuple[PublishedRow, ...]
    source: str
    notes: tuple[str, ...] = ()


def _rows(
    figures: Mapping[tuple[str, str, str], tuple[float, ...]], metrics: tuple[str, ...]
) -> tuple[PublishedRow, ...]:
    return tuple(
        PublishedRow(label=label, model=model, probe=probe, values=dict(zip(metrics, values, strict=False)))
        for (label, model, probe), values in figures.items()
    )


def _cited(label: str, values: Mapping[str, float | str]) -> PublishedRow:
    """A row of the paper's alone."""
    return PublishedRow(label=label, model=None, probe="", values=values)


_TOP_METRICS = {"accuracy": "accuracy", AUC: "AUC", **EFFICIENCY}
TOP_TAGGING = PublishedTable(
    name="top_tagging",
    title="Top tagging: t against q and g",
    task="tqg",
    metrics=_TOP_METRICS,
    rows=_rows(
        {
            ("k-NN, S", "S", "knn"): (0.8777, 0.9447, 0.8352, 0.3337),
            ("k-NN, B", "B", "knn"): (0.8793, 0.9475, 0.8402, 0.3494),
            ("Linear, S", "S", "linear"): (0.8709, 0.9355, 0.8115, 0.2408),
            ("Linear, B", "B", "linear"): (0.8765, 0.9438, 0.8344, 0.3892),
            ("Sup. S 10%", "S", "supervised_10"): (0.8723, 0.9368, 0.8172, 0.2166),
            ("jBOT S 10%", "S", "finetune_10"): (0.8807, 0.9499, 0.8559, 0.4306),
            ("Sup. S 100%", "S", "supervised_100"): (0.8852, 0.9524, 0.8659, 0.4474),
            ("jBOT S 100%", "S", "finetune_100"): (0.8875, 0.9554, 0.8712, 0.4814),
            ("Sup. B 10%", "B", "supervised_10"): (0.8784, 0.9467, 0.8429, 0.4131),
            ("jBOT B 10%", "B", "finetune_10"): (0.8862, 0.9542, 0.8665, 0.4843),
            ("Sup. B 100%", "B", "supervised_100"): (0.8899, 0.9569, 0.8756, 0.5021),
            ("jBOT B 100%", "B", "finetune_100"): (0.8911, 0.9584, 0.8771, 0.5122),
        },
        ("accuracy", AUC, "eps_s_0.1", "eps_s_0.01"),
    ),
    source=f"{PAPER}, table of top-tagging results",
    notes=(
        "k-NN and linear probes read the frozen embedding; Sup. is trained from scratch with the budget of jBOT, which "
        "is pre-trained and fine-tuned; 10% and 100% are the shares of labels.",
        "The authors chose fine-tuning rate and layer decay on test jets; we take their settings as they are.",
    ),
)

_SIGNALS = {"auc_w": "AUC W", "auc_z": "AUC Z", "auc_t": "AUC t", AUC: "AUC combined"}
_SCORES = {
    "anomaly_knn": ("k-NN", (0.8072, 0.8355, 0.8356, 0.8261)),
    "anomaly_cosine": ("Cosine", (0.8064, 0.8355, 0.8388, 0.8269)),
    "anomaly_mahalanobis_labels": ("Mahalanobis with q/g labels", (0.7431, 0.7821, 0.8620, 0.7957)),
    "anomaly_gmm": ("GMM", (0.8062, 0.8204, 0.8197, 0.8155)),
    "anomaly_mahalanobis": ("Mahalanobis, label-free", ()),
    "anomaly_relative_mahalanobis_labels": ("Relative Mahalanobis with q/g labels", ()),
    "anomaly_knn_whitened": ("Whitened k-NN", ()),
    "anomaly_lof": ("Local outlier factor", ()),
    "anomaly_isolation_forest": ("Isolation forest", ()),
    "anomaly_autoencoder": ("Autoencoder", ()),
}
"""Score -> name and, where the paper has it, AUC of W, Z, t and all together, for S."""
ANOMALY = PublishedTable(
    name="anomaly",
    title="Anomaly detection: pre-trained on q and g, signals W, Z and t",
    task="qg",
    metrics=_SIGNALS,
    rows=(
        *_rows({(f"{label}, S", "S", score): values for score, (label, values) in _SCORES.items()}, tuple(_SIGNALS)),
        *_rows({(f"{label}, B", "B", score): () for score, (label, _) in _SCORES.items()}, tuple(_SIGNALS)),
        _cited("GNNAE, as the paper cites it", dict(zip(_SIGNALS, (0.7558, 0.7805, 0.8917, 0.8195), strict=True))),
        _cited("LGAE, as the paper cites it", dict(zip(_SIGNALS, (0.7489, 0.7909, 0.8669, 0.8313), strict=True))),
    ),
    source=f"{PAPER}, table of anomaly-detection results, jBOT-S",
    notes=(
        "The paper scanned settings of its scores on the labels of the test jets. ours: the published settings; "
        "chosen: settings chosen on background or a synthetic signal, never on the signal reported; oracle: the best "
        "of all settings on the reported signal; optimism: oracle minus chosen.",
        "Mahalanobis as published uses the labels q and g; the label-free one does not.",
    ),
)

_FIVE_ROWS = tuple(replace(row, values={}) for row in TOP_TAGGING.rows)
FIVE_CLASS = PublishedTable(
    name="five_class",
    title="Five classes: q, g, W, Z, t",
    task="all",
    metrics=_TOP_METRICS,
    rows=(
        *_FIVE_ROWS,
        _cited("Frozen embedding, any", {"accuracy": "about 0.70"}),
        _cited("Fine-tuned, best", {"accuracy": "up to 0.76"}),
    ),
    source=f"{PAPER}, text on five-class classification",
    notes=(
        "Of the paper's five-class figures, two accuracies that it gives in words could be sourced. "
        "Apart from accuracy, the columns are means over the classes, one against the rest.",
    ),
)
FIVE_CLASS_AUC = PublishedTable(
    name="five_class_auc",
    title="Five classes: AUC of each class against the rest",
    task="all",
    metrics={f"auc_{name}": f"AUC {name if name in 'qgt' else name.upper()}" for name in "qgwzt"},
    rows=_FIVE_ROWS,
    source="ours only: no figure by class of the paper could be sourced",
)

TABLES = (TOP_TAGGING, ANOMALY, FIVE_CLASS, FIVE_CLASS_AUC)

"""The figures of one trial and their words, from the files it left: what there is to draw, and what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.plots import curves, jets, roc
from analysis.report.section import Picture, capitalised
from analysis.stats import tsne
from jbot.data.jets import CLASS_LABELS, CLASSES
from jbot.data.splits import TARGETS, targets
from jbot.evaluation.metrics_registry import classifier_label, score_label, short_classifier_label
from jbot.store.record import Record, load_curves, load_record, trial_folder
from jbot.store.storage import RecordError, Storage

MAX_JETS = 300
"""Jets of an embedding map: t-SNE of them takes about a second."""
SIGNALS = ("W", "Z", "t")
"""Signals of anomaly detection; q and g are its background."""
JETS = ("particles", "masked", "views", "views_masked", "label")
"""Arrays of examples.safetensors that the figure of example jets shows."""


def trial_pictures(storage: Storage, trial: str) -> Iterator[Picture]:
    """Every figure that a trial's files allow; RecordError when it has not ended, or a file of it is damaged."""
    record = load_record(storage, trial)
    if record is None:
        raise RecordError(f"trial {trial} has no record in {storage.uri}: it has not ended, or never was")
    yield from embedding_pictures(storage, trial)
    yield from jet_pictures(storage, trial)
    yield from detail_pictures(storage, trial, record)


def detail_pictures(storage: Storage, trial: str, record: Record) -> Iterator[Picture]:
    """What only one trial can show: attention, ROC curves, distributions of scores, and how its training went."""
    yield from attention_pictures(storage, trial)
    yield from score_pictures(storage, trial, record.config.get("data", {}).get("task", "all"))
    yield from training_pictures(storage, trial)


def embedding_pictures(storage: Storage, trial: str) -> Iterator[Picture]:
    """The embedding of the same test jets over training, or only at its end where no more was kept."""
    names = [name.removesuffix(".safetensors") for name in storage.names(trial_folder(trial))]
    epochs = {name: int(name[10:]) for name in names if name.startswith("embedding-") and name[10:].isdigit()}
    kept = {epochs[name]: _read(storage, trial, name, "cls", "label") for name in sorted(epochs)}
    if last := _read(storage, trial, "embedding", "cls", "label"):
        probed = [row["epoch"] for row in load_curves(storage, trial) if isinstance(row.get("epoch"), int)]
        kept[max([max(kept, default=-1) + 1, *probed])] = last
    if not kept:
        return
    labels = np.asarray(next(iter(kept.values()))["label"], dtype=np.int64)
    if any(not np.array_equal(arrays["label"], labels) for arrays in kept.values()):
        raise RecordError(f"embeddings of trial {trial} must be of the same jets at every epoch")
    chosen = tsne.thin(labels, MAX_JETS)
    cls = {epoch: arrays["cls"][chosen] for epoch, arrays in kept.items() if tsne.can_be_mapped(arrays["cls"][chosen])}
    if not cls:
        return
    maps = dict(zip(cls, tsne.evolution(list(cls.values())), strict=True))
    if len(maps) > 1:
        figure = jets.embedding_evolution(maps, labels[chosen])
        when = f"after {', '.join(map(str, list(maps)[:-1]))} and {list(maps)[-1]} epochs"
    else:
        figure, when = jets.embedding_map(next(iter(maps.values())), labels[chosen]), "after training"
    yield Picture(
        name="embedding",
        figure=figure,
        alt=f"t-SNE maps of {len(chosen)} test jets {when}, coloured by class.",
        caption=f"the same {len(chosen)} test jets {when}",
    )


def jet_pictures(storage: Storage, trial: str) -> Iterator[Picture]:
    """One jet of each class, with its two views where they were kept, and what the student does not see in red."""
    arrays = _read(storage, trial, "examples", "particles", "masked", "label")
    if not arrays:
        return
    particles, masked, labels = (arrays[name] for name in ("particles", "masked", "label"))
    share = float(np.sum(masked) / max(1.0, (particles[..., 3] > 0.5).sum()))
    if {"views", "views_masked"} <= set(arrays):
        figure = jets.augmented_jets(particles, masked, arrays["views"], arrays["views_masked"], labels)
        words = "before augmentation, and its two views"
    else:
        figure, words = jets.example_jets(particles, masked, labels), "as it is"
    yield Picture(
        name="jets",
        figure=figure,
        alt=f"A jet of each class {words}; {share:.0%} of the particles are masked, in red.",
        caption=f"{share:.0%} of the particles masked",
    )


def attention_pictures(storage: Storage, trial: str) -> Iterator[Picture]:
    """What the heads of the last block attend to from [CLS]."""
    arrays = _read(storage, trial, "examples", "particles", "label")
    if not arrays or "attention" not in arrays:
        return
    attention = arrays["attention"]
    blocks = attention.shape[1]
    words = f"Attention of [CLS] in block {blocks} of {blocks}"
    own = ", ".join(f"{share:.0%}" for share in attention[:, -1, :, 0].mean(0))
    caption = f"{words}. To itself it gives, by head, {own} (mean over these jets)."
    figure = jets.attention_of_cls(arrays["particles"], attention, arrays["label"])
    yield Picture(name="attention", figure=figure, alt=f"{words}, a row per head, a column per jet.", caption=caption)


def score_pictures(storage: Storage, trial: str, task: str) -> Iterator[Picture]:
    """A ROC figure and a figure of distributions for every score on the test jets."""
    arrays = _read(storage, trial, "scores", "label")
    if not arrays:
        return
    labels = np.asarray(arrays["label"], dtype=np.int64)
    # Sorted: a safetensors file is read in no certain order.
    for name, scores in sorted(arrays.items(), key=lambda item: (item[0].startswith("anomaly/"), item[0])):
        if name.endswith("/probability"):
            yield from _classifier_pictures(name.removesuffix("/probability"), scores, labels, task)
        elif name.startswith("anomaly/"):
            yield from _anomaly_pictures(name.removeprefix("anomaly/"), scores, labels)


def _classifier_pictures(probe: str, probability: Any, labels: Any, task: str) -> Iterator[Picture]:
    written = dict(zip(CLASSES, CLASS_LABELS, strict=True))
    classes = [written.get(name, name) for name in TARGETS.get(task, ())]
    if probability.shape != (len(labels), len(classes)):
        raise RecordError(
            f"{probe}/probability must be ({len(labels)}, {len(classes)}) for task {task}, got {probability.shape}"
        )
    truth, several = targets(labels, task), len(classes) > 2
    known, of_class = truth >= 0, {name: truth == position for position, name in enumerate(classes)}
    signals, panels = {}, {}
    for name in classes if several else classes[1:]:
        score = probability[known, classes.index(name)]
        signals[name] = (score, of_class[name][known])
        # A panel of two classes has both, one of several has this class and the rest.
        samples = {"other classes": known & ~of_class[name], name: of_class[name]} if several else of_class
        panels[f"P({name})"] = {sample: score[jets_of[known]] for sample, jets_of in samples.items()}
    words, rest = classifier_label(probe), "the rest" if several else classes[0]
    yield _roc(f"roc-{_slug(probe)}", words, f"each of {', '.join(signals)} against {rest}", signals)
    yield Picture(
        name=f"scores-{_slug(probe)}",
        figure=roc.score_histograms(panels, "probability"),
        alt=f"Distributions of the class probabilities of the {words} on test jets, by true class.",
        caption=f"{capitalised(words)}: probability given to each class, by true class",
    )


def _anomaly_pictures(score: str, values: Any, labels: Any) -> Iterator[Picture]:
    if values.shape != labels.shape:
        raise RecordError(f"anomaly/{score} must have shape {labels.shape}, got {values.shape}")
    background, words = np.isin(labels, (0, 1)), f"anomaly score {score_label(score)}"
    signals = {name: (labels == CLASS_LABELS.index(name)) for name in SIGNALS} | {"combined": ~background}
    pairs = {name: (values[chosen | background], chosen[chosen | background]) for name, chosen in signals.items()}
    yield _roc(f"roc-anomaly-{_slug(score)}", words, "each signal, and all together, against q and g", pairs)
    samples = {"background": values[background]} | {name: values[signals[name]] for name in SIGNALS}
    yield Picture(
        name=f"scores-anomaly-{_slug(score)}",
        figure=roc.score_histograms({words: samples}, "anomaly score"),
        alt=f"Distributions of the {words} on test jets: background (q and g) and each signal.",
        caption=f"{capitalised(words)}: background is q and g",
    )


def _roc(name: str, words: str, against: str, signals: Mapping[str, Any]) -> Picture:
    return Picture(
        name=name,
        figure=roc.rejection_curves(signals),
        alt=f"ROC of the {words} on test jets, {against}.",
        caption=f"{capitalised(words)}: {against}; bands: 68% from the number of background jets that pass",
    )


def training_pictures(storage: Storage, trial: str) -> Iterator[Picture]:
    """Losses and entropies of pre-training, and of what was fine-tuned."""
    learning = pd.DataFrame(load_curves(storage, trial))
    if any(column in learning for panel in curves.PRETRAINING.values() for column in panel):
        words = "Losses and entropies of pre-training"
        caption = f"{words}. Losses of different masking schemes are of different tasks: compare probes, not losses."
        figure = curves.pretraining_curves(learning)
        yield Picture(name="training", figure=figure, alt=f"{words} against epoch.", caption=caption)
    name = f"{trial_folder(trial)}/finetune.parquet"
    rows = pd.DataFrame(storage.read_rows(name) if storage.exists(name) else [])
    if {"run", "epoch"} <= set(rows) and len(rows):
        words = "Loss and accuracy of fine-tuning"
        runs = {run: classifier_label(run) for run in rows["run"].unique()}
        # Short ones in the legend: two columns of them must fit the width.
        figure = curves.finetuning_curves(rows, {run: short_classifier_label(run) for run in runs})
        yield Picture(
            name="finetuning",
            figure=figure,
            alt=f"{words} against epoch for {', '.join(runs.values())}.",
            caption=f"{words}; the supervised baseline starts from fresh weights. Accuracy and loss on training jets "
            "are measured with dropout while the weights still change, so they may look worse than on validation jets.",
        )


def _read(storage: Storage, trial: str, name: str, *keys: str) -> dict[str, Any]:
    """Arrays of a trial, with at least these keys; none when it left no such file."""
    path = f"{trial_folder(trial)}/{name}.safetensors"
    arrays = storage.read_arrays(path) if storage.exists(path) else {}
    if arrays and not set(keys) <= set(arrays):
        raise RecordError(f"{name} of trial {trial} must hold {', '.join(keys)}, got {sorted(arrays)}")
    return arrays


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())

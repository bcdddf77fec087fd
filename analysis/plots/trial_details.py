"""Every figure of one trial, from the files it left.

    python -m analysis.pictures <storage>/trials/<id> [--out folder]

Writes SVG and PDF, into the trial's own ``figures/`` unless told otherwise. For a study's folder it draws the SVGs of
all trials that have ended and have none yet; ``python -m cluster.mirror`` then shows them in MLflow.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import embedding, figures, svg, trial_figures
from analysis.verdicts import wording
from jbot.cli import Parser, bad_input, program
from jbot.data.jets import CLASS_LABELS
from jbot.data.splits import TARGETS, targets
from jbot.store.record import (
    Record,
    RecordError,
    Storage,
    first_line,
    load_curves,
    load_record,
    open_folder,
    trial_folder,
)

MOST_JETS = 300
"""Jets of an embedding map: t-SNE of them takes about a second."""
INDEX = "figures.json"
"""Name -> caption, beside the figures, written last: a folder with this file is whole."""
LETTERS = {"w": "W", "z": "Z"}
"""How classes are written where it is not as jbot.data has them."""
SIGNALS = ("W", "Z", "t")
"""Of anomaly detection; q and g are its background."""

JETS = ("particles", "masked", "views", "views_masked", "label")
"""Arrays of examples.safetensors that the figure of example jets shows."""

Arrays = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with its words."""

    name: str
    """File name without ending."""
    figure: Figure
    alt: str
    caption: str = ""


def trial_pictures(storage: Storage, trial: str) -> Iterator[Picture]:
    """Every figure that a trial's files allow, one after the other.

    Raises
    ------
    RecordError
        When the trial has not ended, or a file of it is damaged.
    """
    record = load_record(storage, trial)
    if record is None:
        raise RecordError(f"trial {trial} has no record in {storage.uri}: it has not ended, or never was")
    yield from embedding_pictures(storage, trial)
    yield from jet_pictures(storage, trial)
    yield from closer_pictures(storage, trial, record)


def closer_pictures(storage: Storage, trial: str, record: Record) -> Iterator[Picture]:
    """What only one trial can show: attention, ROC curves, distributions of scores, and how its training went."""
    yield from attention_pictures(storage, trial)
    yield from score_pictures(storage, trial, record.config.get("data", {}).get("task", "all"))
    yield from training_pictures(storage, trial)


def embedding_pictures(storage: Storage, trial: str) -> Iterator[Picture]:
    """The embedding of the same test jets over training, or only at its end where no more was kept."""
    kept = {epoch: _read(storage, trial, name, "cls", "label") for epoch, name in _snapshots(storage, trial).items()}
    last = _read(storage, trial, "embedding", "cls", "label")
    if last:
        kept[_last_epoch(storage, trial, max(kept, default=-1))] = last
    if not kept:
        return
    labels = np.asarray(next(iter(kept.values()))["label"], dtype=np.int64)
    if any(not np.array_equal(arrays["label"], labels) for arrays in kept.values()):
        raise RecordError(f"embeddings of trial {trial} must be of the same jets at every epoch")
    chosen = embedding.thin(labels, MOST_JETS)
    cls = {epoch: arrays["cls"][chosen] for epoch, arrays in kept.items()}
    cls = {epoch: found for epoch, found in cls.items() if embedding.can_be_mapped(found)}
    if not cls:
        return
    maps = dict(zip(cls, embedding.evolution(list(cls.values())), strict=True))
    if len(maps) > 1:
        drawn = trial_figures.embedding_evolution(maps, labels[chosen])
        when = f"after {', '.join(map(str, list(maps)[:-1]))} and {list(maps)[-1]} epochs"
    else:
        drawn, when = figures.embedding_map(next(iter(maps.values())), labels[chosen]), "after training"
    yield Picture(
        name="embedding",
        figure=drawn,
        alt=f"t-SNE maps of {len(chosen)} test jets {when}, coloured by class.",
        caption=f"the same {len(chosen)} test jets {when}",
    )


def _snapshots(storage: Storage, trial: str) -> dict[int, str]:
    """Epoch -> name of the arrays, in order."""
    names = [name.removesuffix(".safetensors") for name in storage.names(trial_folder(trial))]
    found = [name for name in names if name.startswith("embedding-") and name[10:].isdigit()]
    return {int(name[10:]): name for name in sorted(found)}


def _last_epoch(storage: Storage, trial: str, before: int) -> int:
    epochs = [row["epoch"] for row in load_curves(storage, trial) if isinstance(row.get("epoch"), int)]
    return max([before + 1, *epochs])


def jet_pictures(storage: Storage, trial: str) -> Iterator[Picture]:
    """One jet of each class, with its two views where they were kept, and what the student does not see in red."""
    arrays = _read(storage, trial, "examples", "particles", "masked", "label")
    if not arrays:
        return
    particles, masked, labels = (arrays[name] for name in ("particles", "masked", "label"))
    share = float(np.sum(masked) / max(1.0, (particles[..., 3] > 0.5).sum()))
    if {"views", "views_masked"} <= set(arrays):
        drawn = trial_figures.augmented_jets(particles, masked, arrays["views"], arrays["views_masked"], labels)
        words = "before augmentation, and its two views"
    else:
        drawn, words = figures.example_jets(particles, masked, labels), "as it is"
    yield Picture(
        name="jets",
        figure=drawn,
        alt=f"A jet of each class {words}; {share:.0%} of the particles are masked, in red.",
        caption=f"{share:.0%} of the particles masked",
    )


def attention_pictures(storage: Storage, trial: str, layer: int = -1) -> Iterator[Picture]:
    """What the heads of a block look at from [CLS], the last block by default."""
    arrays = _read(storage, trial, "examples", "particles", "label")
    if not arrays or "attention" not in arrays:
        return
    attention = arrays["attention"]
    drawn = trial_figures.attention_of_cls(arrays["particles"], attention, arrays["label"], layer)
    block = range(attention.shape[1])[layer] + 1
    words = f"Attention of [CLS] in block {block} of {attention.shape[1]}"
    own = ", ".join(f"{share:.0%}" for share in attention[:, layer, :, 0].mean(0))
    caption = f"{words}. To itself it gives, by head, {own} (mean over these jets)."
    yield Picture(name="attention", figure=drawn, alt=f"{words}, a row per head, a column per jet.", caption=caption)


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
    classes = [LETTERS.get(name, name) for name in TARGETS.get(task, ())]
    if probability.shape != (len(labels), len(classes)):
        raise RecordError(
            f"{probe}/probability must be ({len(labels)}, {len(classes)}) for task {task}, got {probability.shape}"
        )
    truth = targets(labels, task)
    known, of_class = truth >= 0, {name: truth == position for position, name in enumerate(classes)}
    judged = classes if len(classes) > 2 else classes[1:]
    signals = {name: (probability[known, classes.index(name)], of_class[name][known]) for name in judged}
    panels = {
        f"P({name})": {
            other: score[chosen[known]]
            for other, chosen in (of_class.items() if len(classes) == 2 else _against_rest(of_class, name))
        }
        for name, (score, _) in signals.items()
    }
    words, rest = wording.classifier(probe), "the rest" if len(classes) > 2 else classes[0]
    yield _roc(f"roc-{_slug(probe)}", words, f"each of {', '.join(judged)} against {rest}", signals)
    yield Picture(
        name=f"scores-{_slug(probe)}",
        figure=trial_figures.score_histograms(panels, "probability"),
        alt=f"Distributions of the class probabilities of the {words} on test jets, by true class.",
        caption=f"{_capital(words)}: probability given to each class, by true class",
    )


def _against_rest(of_class: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    rest = np.any([chosen for other, chosen in of_class.items() if other != name], axis=0)
    return [("other classes", rest), (name, of_class[name])]


def _anomaly_pictures(score: str, values: Any, labels: Any) -> Iterator[Picture]:
    if values.shape != labels.shape:
        raise RecordError(f"anomaly/{score} must have shape {labels.shape}, got {values.shape}")
    background, words = np.isin(labels, (0, 1)), f"anomaly score {wording.anomaly_score(score)}"
    signals = {name: (labels == CLASS_LABELS.index(name)) for name in SIGNALS} | {"combined": ~background}
    pairs = {name: (values[chosen | background], chosen[chosen | background]) for name, chosen in signals.items()}
    yield _roc(f"roc-anomaly-{_slug(score)}", words, "each signal, and all together, against q and g", pairs)
    samples = {"background": values[background]} | {name: values[signals[name]] for name in SIGNALS}
    yield Picture(
        name=f"scores-anomaly-{_slug(score)}",
        figure=trial_figures.score_histograms({words: samples}, "anomaly score"),
        alt=f"Distributions of the {words} on test jets: background (q and g) and each signal.",
        caption=f"{_capital(words)}: background is q and g",
    )


def _roc(name: str, words: str, against: str, signals: Mapping[str, Any]) -> Picture:
    return Picture(
        name=name,
        figure=trial_figures.rejection_curves(signals),
        alt=f"ROC of the {words} on test jets, {against}.",
        caption=f"{_capital(words)}: {against}; bands: 68% from the number of background jets that pass",
    )


def training_pictures(storage: Storage, trial: str) -> Iterator[Picture]:
    """Losses and entropies of pre-training, and of what was fine-tuned."""
    curves = pd.DataFrame(load_curves(storage, trial))
    if any(column in curves for panel in trial_figures.PRETRAINING.values() for column in panel):
        words = "Losses and entropies of pre-training"
        caption = f"{words}. Losses of different masking schemes are of different tasks: compare probes, not losses."
        figure = trial_figures.pretraining_curves(curves)
        yield Picture(name="training", figure=figure, alt=f"{words} against epoch.", caption=caption)
    name = f"{trial_folder(trial)}/finetune.parquet"
    rows = pd.DataFrame(storage.read_rows(name) if storage.exists(name) else [])
    if {"run", "epoch"} <= set(rows) and len(rows):
        words = "Loss and accuracy of fine-tuning"
        runs = {run: wording.classifier(run) for run in rows["run"].unique()}
        # Short ones in the legend: two columns of them must fit the width.
        figure = trial_figures.finetuning_curves(rows, {run: wording.short_classifier(run) for run in runs})
        yield Picture(
            name="finetuning",
            figure=figure,
            alt=f"{words} against epoch for {', '.join(runs.values())}.",
            caption=f"{words}; the twin starts from fresh weights. Accuracy and loss on training jets are measured "
            "with dropout while the weights still change, so they may look worse than on validation jets.",
        )


def draw_trial(storage: Storage, trial: str, pdf: bool = False) -> list[str]:
    """Draw a trial's figures into its folder, and return their names."""
    folder, captions = f"{trial_folder(trial)}/figures", {}
    for picture in trial_pictures(storage, trial):
        for name, content in _files(picture, pdf).items():
            storage.write(f"{folder}/{name}", content)
        captions[picture.name] = picture.caption
    storage.write_json(f"{folder}/{INDEX}", captions)
    return list(captions)


def draw_trials(storage: Storage, trials: Sequence[str], processes: int | None = None) -> dict[str, str]:
    """Draw the figures of all trials that have ended and have none yet, on all cores; returns errors by trial.

    Slow enough (seconds a trial) to wait until a study has ended.
    """
    todo = [
        trial
        for trial in dict.fromkeys(trials)
        if storage.exists(f"{trial_folder(trial)}/record.json")
        and not storage.exists(f"{trial_folder(trial)}/figures/{INDEX}")
    ]
    if not todo:
        return {}
    # Started anew: a copy of a process that runs Ray, MLflow and torch threads may hang.
    spawn = multiprocessing.get_context("spawn")
    workers = min(processes or os.cpu_count() or 1, len(todo))
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        errors = pool.map(_draw_or_say, [storage] * len(todo), todo)
        return {trial: error for trial, error in zip(todo, errors, strict=True) if error}


def _draw_or_say(storage: Storage, trial: str) -> str:
    try:
        draw_trial(storage, trial)
    except Exception as error:  # a figure that cannot be drawn must not cost the others theirs
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def _files(picture: Picture, pdf: bool) -> dict[str, bytes]:
    files = {f"{picture.name}.svg": svg.to_svg(picture.figure).encode()}
    return files | ({f"{picture.name}.pdf": svg.to_pdf(picture.figure)} if pdf else {})


def _read(storage: Storage, trial: str, name: str, *keys: str) -> dict[str, Any]:
    """Arrays of a trial, with at least these keys; none when it left no such file."""
    path = f"{trial_folder(trial)}/{name}.safetensors"
    arrays = storage.read_arrays(path) if storage.exists(path) else {}
    if arrays and not set(keys) <= set(arrays):
        raise RecordError(f"{name} of trial {trial} must hold {', '.join(keys)}, got {sorted(arrays)}")
    return arrays


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def _capital(words: str) -> str:
    return words if words.startswith("k-NN") else words[:1].upper() + words[1:]


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when all is drawn, 2 when the input is no trial and no study."""
    parser = Parser(prog="python -m analysis.pictures", description="Draw the figures of a trial.")
    parser.add_argument("folder", help="<storage>/trials/<id>, or <storage>/<study> for all its trials")
    parser.add_argument("--out", type=Path, help="where to write (default: figures/ in the trial's folder)")
    options = parser.parse_args(arguments)
    storage, name = open_folder(options.folder)
    if storage.exists(f"{name}/study.json"):
        return _draw_study(storage, name, options.out)
    trials, _ = open_folder(storage.address)
    if storage.uri.rpartition("/")[2] != "trials":
        raise RecordError(f"{options.folder} must be <storage>/trials/<id> or the folder of a study")
    if options.out is None:
        draw_trial(trials, name, pdf=True)
    else:
        for picture in trial_pictures(trials, name):
            svg.save(picture.figure, options.out, picture.name)
    print(options.out or f"{trials.uri}/{trial_folder(name)}/figures")
    return 0


def _draw_study(storage: Storage, study: str, out: Path | None) -> int:
    if out is not None:
        raise RecordError("--out is for one trial: a study's figures lie in the folders of its trials")
    content = storage.read_json(f"{study}/study.json")
    if not isinstance(content, dict) or not isinstance(content.get("trials"), list):
        raise RecordError(f"{storage.uri}/{study}/study.json is not a study")
    trials = [trial["trial_id"] for trial in content["trials"]]
    errors = draw_trials(storage, trials)
    for trial, error in errors.items():
        bad_input(f"trial {trial}: {error}")
    print(f"{storage.uri}/{trial_folder('<id>')}/figures")
    return 2 if errors else 0

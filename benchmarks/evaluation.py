"""Where evaluation time goes, against scikit-learn, and its share of a trial.

    python benchmarks/evaluation.py                                   # quick and paper sizes, CPU, one thread
    python benchmarks/evaluation.py --device cuda --data jets.h5 --preset paper --output evaluation.json

Each part is timed in two ways in this run, in turns (old new new old): as scikit-learn and numpy on the host, which is
what jbot.evaluation.evaluator was at first, and as jbot.evaluation.evaluator does it now. Medians of CPU seconds for
one thread on a CPU, else of wall seconds; another load on the machine moves both, so read the ratios.

The encoder is jBOT-S after some training steps on the same jets. A preset's jets are drawn from the file with
replacement and moved by JITTER, so that no two are the same: times can be used, metrics not. The share of a trial is
derived: its training was not run, but is jet passes over the jets per second of the steps timed here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, adjusted_mutual_info_score, roc_auc_score, silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from jbot.cli import Parser, bad_input
from jbot.config import Config, override
from jbot.data import DataError, JetData, hdf5
from jbot.evaluation import evaluator
from jbot.evaluation.evaluator import LabeledJets
from jbot.trainer.engines.select import find_engine
from jbot.trainer.loop import Metrics, TrainState, curve_epochs, init_state, run_steps
from jbot.trainer.model import cls_rows, encode, hidden_keys, relative_entropy, unpack
from jbot.trainer.pack import Pack
from studies.presets import PRESETS

SAMPLE = Path(__file__).parent.parent / "tests" / "data" / "jets_sample.h5"
JITTER = 1e-4
"""Width of the Gaussian added to eta and phi of repeated jets."""
STEP_BATCH = 1024
OLD_CHUNK = 512

Clock = Callable[[], float]
Part = tuple[Callable[[], Any], Callable[[], Any]]
"""The old and the new way, both returning metrics to compare, or nothing."""


def draw(data: JetData, count: int, rng: np.random.Generator, device: torch.device) -> LabeledJets:
    """Jets with replacement, each moved a little."""
    rows = rng.integers(0, len(data.labels), count)
    particles = data.particles[rows]
    particles[..., :2] += rng.normal(0, JITTER, particles[..., :2].shape) * particles[..., 3:]
    everything = torch.arange(count, device=device)
    return LabeledJets(particles=torch.from_numpy(particles).to(device), rows=everything, labels=data.labels[rows])


def train_some(config: Config, jets: LabeledJets, steps: int, clock: Clock) -> tuple[TrainState, float]:
    """An encoder after some steps of the preset's batch, and jets per second (median step, the first two left out)."""
    device, batch = jets.particles.device, min(config.train.batch, STEP_BATCH)
    state, pack, seconds = init_state(config, [0], device), Pack([config], device), []
    engine = find_engine("auto", config, device)
    lr, momentum = (torch.tensor([rate], dtype=torch.float64, device=device) for rate in (1e-3, 0.996))
    order = torch.randint(len(jets.labels), (steps, batch), generator=torch.Generator().manual_seed(0)).to(device)
    for rows in order:
        started = clock()
        sums = run_steps(state, jets.particles[rows][None, None], pack, (0,), lr, momentum, engine.forward)
        float(sums[0])  # waits for the device
        seconds.append(clock() - started)
    return state, batch / median(seconds[2:])


def scikit_scores(name: str, classifier: Any, jets: np.ndarray, labels: np.ndarray) -> Metrics:
    """Accuracy and AUC of a fitted classifier."""
    chances = classifier.predict_proba(jets)
    auc = roc_auc_score(labels, chances, multi_class="ovr", labels=classifier.classes_)
    found = classifier.classes_[chances.argmax(1)]
    return {f"{name}_accuracy": float(accuracy_score(labels, found)), f"{name}_auc": float(auc)}


def scikit_clustering(embedding: np.ndarray, labels: np.ndarray) -> Metrics:
    """k-means and silhouette, with the draws of jbot.evaluation.evaluator.clustering."""
    generator = np.random.default_rng(0)
    found = KMeans(5, n_init=4, random_state=int(generator.integers(2**31))).fit_predict(embedding)
    sample = generator.permutation(len(labels))[: evaluator.SILHOUETTE_JETS]
    silhouette = float(silhouette_score(embedding[sample], labels[sample]))
    return {"kmeans_ami": float(adjusted_mutual_info_score(labels, found)), "silhouette": silhouette}


def numpy_rank(embedding: np.ndarray) -> Metrics:
    """RankMe from singular values in single precision."""
    singular = np.linalg.svd(embedding, compute_uv=False).astype(np.float64)
    share = singular / singular.sum() + 1e-7
    return {"effective_rank": float(np.exp(-(share * np.log(share)).sum()))}


def embed_in_old_chunks(state: TrainState, jets: LabeledJets, config: Config) -> None:
    """The embedding as it was made at first, brought to the host."""
    weights = unpack(state.student, config.model)
    with torch.no_grad():
        for part in jets.particles.split(OLD_CHUNK):
            rows = cls_rows(1, len(part), part.shape[1], part.device)
            encode(weights, part[None], config.model, rows=rows)[0].cpu()


def entropy_at_once(state: TrainState, jets: LabeledJets, config: Config) -> Metrics:
    """Attention entropy of all monitored jets in one piece."""
    some = jets.particles[None, : evaluator.MONITOR_JETS]
    attentions: list[Tensor] = []
    with torch.no_grad():
        encode(unpack(state.student, config.model), some, config.model, attentions=attentions)
    hidden = hidden_keys(some[..., 3] < 0.5)
    return {"attention_entropy": min(float(relative_entropy(a, hidden).min()) for a in attentions)}


def parts_of(config: Config, state: TrainState, jets: dict[str, LabeledJets]) -> dict[str, Part]:
    """Every part of an evaluation, the old way and the new one."""
    new = {name: evaluator.embed_on_device(state.student, jets[name].particles, config) for name in jets}
    new_labels = {name: torch.from_numpy(jets[name].labels).to(new[name].device) for name in jets}
    old, labels = {name: value.cpu().numpy() for name, value in new.items()}, {n: j.labels for n, j in jets.items()}
    bank, new_bank, k = (old["bank"], labels["bank"]), (new["bank"], new_labels["bank"]), config.probe.knn_k

    def knn(name: str) -> Part:
        neighbours = KNeighborsClassifier(n_neighbors=k, algorithm="brute")
        return (
            lambda: scikit_scores("knn", neighbours.fit(*bank), old[name], labels[name]),
            lambda: evaluator.quick_metrics("knn", evaluator.knn_probe(*new_bank, new[name], k), new_labels[name]),
        )

    def embedding(name: str) -> Part:
        return (
            lambda: embed_in_old_chunks(state, jets[name], config),
            lambda: evaluator.embed_on_device(state.student, jets[name].particles, config).isfinite().all().item(),
        )

    def rank(name: str) -> Part:
        return lambda: numpy_rank(old[name]), lambda: {"effective_rank": evaluator.effective_rank(new[name])}

    logistic = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky"))
    monitored = jets["val"].particles[: evaluator.MONITOR_JETS]
    return {
        **{f"embed {name}": embedding(name) for name in jets},
        **{f"knn {name}": knn(name) for name in ("val", "test")},
        "linear": (
            lambda: scikit_scores("linear", logistic.fit(*bank), old["test"], labels["test"]),
            lambda: evaluator.quick_metrics(
                "linear", evaluator.linear_probe(*new_bank, new["test"]), new_labels["test"]
            ),
        ),
        "clustering": (
            lambda: scikit_clustering(old["test"], labels["test"]),
            lambda: evaluator.clustering(new["test"], new_labels["test"], np.random.default_rng(0)),
        ),
        **{f"rank {name}": rank(name) for name in ("val", "test")},
        "entropy": (
            lambda: entropy_at_once(state, jets["val"], config),
            lambda: {"attention_entropy": evaluator.attention_entropy(state.student, monitored, config)},
        ),
    }


def compare(part: Part, rounds: int, clock: Clock) -> dict[str, float]:
    """Median seconds of both ways in turns, and the largest difference of their metrics."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    results: dict[int, Any] = {}
    for which in (0, 1, 1, 0) * rounds:
        started = clock()
        results[which] = part[which]()
        seconds[which].append(clock() - started)
    row = {"old_seconds": median(seconds[0]), "new_seconds": median(seconds[1])}
    if isinstance(results[0], dict):
        row["metric_difference"] = max(abs(results[0][name] - results[1][name]) for name in results[0])
    return row


CURVE_PARTS = ("embed bank", "embed val", "knn val", "rank val", "entropy")
FINAL_PARTS = ("embed bank", "embed test", "knn test", "linear", "clustering", "rank test", "entropy")


def trial_share(rows: dict[str, dict[str, float]], config: Config, jets_per_second: float) -> dict[str, float]:
    """Evaluation in a whole trial: its curve points, and the final metrics of the trained and the untrained encoder."""
    points = len(curve_epochs(config))
    training = config.data.train_jets * config.train.epochs / jets_per_second
    share: dict[str, float] = {"curve_points": points, "jets_per_second": jets_per_second, "training_seconds": training}
    for way in ("old", "new"):
        curve = sum(rows[name][f"{way}_seconds"] for name in CURVE_PARTS)
        final = sum(rows[name][f"{way}_seconds"] for name in FINAL_PARTS)
        total = points * curve + 2 * final
        share |= {f"{way}_curve_point": curve, f"{way}_final": final, f"{way}_evaluation": total}
        share[f"{way}_share"] = total / (total + training)
    return share


def clock_of(options: argparse.Namespace) -> Clock:
    """CPU seconds where they are what a quiet machine would take, else wall seconds."""
    return time.process_time if options.device == "cpu" and options.threads == 1 else time.perf_counter


def measure(preset: str, data: JetData, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one preset."""
    clock = clock_of(options)
    config, rng = override(Config(), PRESETS[preset].base), np.random.default_rng(0)
    sizes = {"bank": config.probe.bank_jets, "val": config.data.val_jets, "test": config.data.test_jets}
    jets = {name: draw(data, count, rng, device) for name, count in sizes.items()}
    state, jets_per_second = train_some(config, jets["bank"], options.steps, clock)
    rows = {name: compare(part, options.rounds, clock) for name, part in parts_of(config, state, jets).items()}
    return {"preset": preset, "sizes": sizes, "parts": rows, "trial": trial_share(rows, config, jets_per_second)}


def show(result: dict[str, Any], console: Console) -> None:
    """A table of one preset."""
    sizes = ", ".join(f"{name} {count:,}" for name, count in result["sizes"].items())
    table = Table("part", "old, s", "new, s", "old / new", "metrics differ by", title=f"{result['preset']}: {sizes}")
    for name, row in result["parts"].items():
        old, new = row["old_seconds"], row["new_seconds"]
        differ = f"{row['metric_difference']:.1e}" if "metric_difference" in row else ""
        table.add_row(name, f"{old:.4f}", f"{new:.4f}", f"{old / new:.2f}", differ)
    trial = result["trial"]
    for name in ("curve_point", "final", "evaluation"):
        old, new = trial[f"old_{name}"], trial[f"new_{name}"]
        table.add_row(f"{name.replace('_', ' ')} (sum)", f"{old:.3f}", f"{new:.3f}", f"{old / new:.2f}", "")
    console.print(table)
    console.print(
        f"derived: {trial['curve_points']} curve points and 2 final evaluations are {trial['new_share']:.1%} "
        f"(old: {trial['old_share']:.1%}) of a trial that trains {trial['training_seconds']:,.0f} s at the "
        f"{trial['jets_per_second']:,.0f} jets/s measured here\n"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=SAMPLE, help="jets in JetNet's HDF5 layout, five classes")
    parser.add_argument("--preset", action="append", choices=list(PRESETS), help="may be repeated; quick and paper")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="of old, new, new, old")
    parser.add_argument("--steps", type=int, default=20, help="training steps before, timed for the share")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch finds none")
    for name, least in (("threads", 1), ("rounds", 1), ("steps", 3)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options, console = parse(arguments), Console()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    try:
        data = hdf5.read(options.data)
    except DataError as error:
        sys.exit(bad_input(error))
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    header = {"device": options.device, "hardware": where, "cores": os.cpu_count(), "threads": options.threads}
    header |= {
        "clock": clock_of(options).__name__,
        "torch": torch.__version__,
        "rounds": options.rounds,
        "data": options.data.name,
    }
    results = []
    with threadpool_limits(options.threads):
        for preset in options.preset or ["quick", "paper"]:
            results.append(measure(preset, data, device, options))
            show(results[-1], console)
    load = os.getloadavg()[0]
    console.print(
        f"{where}, {options.threads} thread(s), n = {2 * options.rounds} each way, load {load:.1f} at the end"
    )
    if options.output:
        options.output.write_text(json.dumps(header | {"load_at_end": load, "results": results}, indent=1))


if __name__ == "__main__":
    main()

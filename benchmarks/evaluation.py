"""Where evaluation time goes, and its share of a trial.

    python -m benchmarks.evaluation                                  # quick and paper sizes, CPU, one thread
    python -m benchmarks.evaluation --device cuda --data jets.h5 --preset paper --output evaluation.json

Medians of CPU seconds for one thread on a CPU, else of wall seconds. The encoder is jBOT-S after some training steps on
the same jets. A preset's jets are drawn from the file with replacement and moved by JITTER, so that no two are the
same: times can be used, metrics not. The share of a trial is derived: its training was not run, but is jet passes over
the jets per second of the steps timed here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.machine import environment
from benchmarks.report import show
from jbot.cli import Parser, bad_input
from jbot.config import Config, override
from jbot.data import DataError, JetData, hdf5
from jbot.evaluation import evaluator
from jbot.trainer.engines.select import find_engine
from jbot.trainer.inputs import LabeledJets
from jbot.trainer.loop import run_steps
from jbot.trainer.pack import Pack
from jbot.trainer.state import TrainState, init_state
from jbot.trainer.workload import curve_epochs
from studies.presets import PRESETS

SAMPLE = Path(__file__).parent.parent / "tests" / "data" / "jets_sample.h5"
JITTER = 1e-4
"""Width of the Gaussian added to eta and phi of repeated jets."""
STEP_BATCH = 1024
CURVE_PARTS = ("embed bank", "embed val", "knn val", "rank val", "entropy")
"""What a point of the learning curves takes."""
FINAL_PARTS = ("embed bank", "embed test", "knn test", "linear", "clustering", "rank test", "entropy")
"""What the final metrics take; they are made of the trained and of the untrained encoder."""

Clock = Callable[[], float]


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


def parts_of(config: Config, state: TrainState, jets: dict[str, LabeledJets]) -> dict[str, Callable[[], Any]]:
    """Every part of an evaluation; each ends with a number on the host, so that the device is done."""
    embedded = {name: evaluator.embed_on_device(state.student, one.particles, config) for name, one in jets.items()}
    labels = {name: torch.from_numpy(one.labels).to(embedded[name].device) for name, one in jets.items()}
    bank = embedded["bank"], labels["bank"]
    monitored = jets["val"].particles[: evaluator.MONITOR_JETS]

    def embed(name: str) -> Callable[[], Any]:
        return lambda: evaluator.embed_on_device(state.student, jets[name].particles, config).isfinite().all().item()

    def knn(name: str) -> Callable[[], Any]:
        k = config.probe.knn_k
        return lambda: evaluator.quick_metrics("knn", evaluator.knn_probe(*bank, embedded[name], k), labels[name])

    def rank(name: str) -> Callable[[], Any]:
        return lambda: evaluator.effective_rank(embedded[name])

    return {
        **{f"embed {name}": embed(name) for name in jets},
        **{f"knn {name}": knn(name) for name in ("val", "test")},
        "linear": lambda: evaluator.quick_metrics(
            "linear", evaluator.linear_probe(*bank, embedded["test"]), labels["test"]
        ),
        "clustering": lambda: evaluator.clustering(embedded["test"], labels["test"], np.random.default_rng(0)),
        **{f"rank {name}": rank(name) for name in ("val", "test")},
        "entropy": lambda: evaluator.attention_entropy(state.student, monitored, config),
    }


def seconds_of(part: Callable[[], Any], rounds: int, clock: Clock) -> float:
    """Median seconds of some rounds."""
    taken = []
    for _ in range(rounds):
        started = clock()
        part()
        taken.append(clock() - started)
    return median(taken)


def trial_share(seconds: dict[str, float], config: Config, jets_per_second: float) -> dict[str, float]:
    """Evaluation in a whole trial: its curve points, and the final metrics of the trained and the untrained encoder."""
    points = len(curve_epochs(config))
    training = config.data.train_jets * config.train.epochs / jets_per_second
    curve, final = (sum(seconds[name] for name in parts) for parts in (CURVE_PARTS, FINAL_PARTS))
    total = points * curve + 2 * final
    return {
        "curve points": points,
        "jets/s": jets_per_second,
        "training s": training,
        "evaluation s": total,
        "share": total / (total + training),
    }


def measure(preset: str, data: JetData, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part of one preset, and what a trial is made of."""
    cpu = options.device == "cpu" and options.threads == 1
    clock = time.process_time if cpu else time.perf_counter  # CPU seconds are what a quiet machine would take
    config, rng = override(Config(), PRESETS[preset].base), np.random.default_rng(0)
    sizes = {"bank": config.probe.bank_jets, "val": config.data.val_jets, "test": config.data.test_jets}
    jets = {name: draw(data, count, rng, torch.device(options.device)) for name, count in sizes.items()}
    state, jets_per_second = train_some(config, jets["bank"], options.steps, clock)
    seconds = {name: seconds_of(part, options.rounds, clock) for name, part in parts_of(config, state, jets).items()}
    trial = trial_share(seconds, config, jets_per_second)
    return {"preset": preset, "clock": clock.__name__, "sizes": sizes, "seconds": seconds, "trial": trial}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = Parser(prog="python -m benchmarks.evaluation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=SAMPLE, help="jets in JetNet's HDF5 layout, five classes")
    parser.add_argument("--preset", action="append", choices=list(PRESETS), help="may be repeated; quick and paper")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="training steps before, timed for the share")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch finds none")
    for name, least in (("threads", 1), ("rounds", 1), ("steps", 3)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        data = hdf5.read(options.data)
    except DataError as error:
        return bad_input(error)
    results = []
    with threadpool_limits(options.threads):
        for preset in options.preset or ["quick", "paper"]:
            results.append(one := measure(preset, data, options))
            title = ", ".join(f"{name} {count:,}" for name, count in one["sizes"].items())
            show(f"{preset}: {title}", [{"what": name, "s": value} for name, value in one["seconds"].items()])
            show("a trial, derived", [{"what": name, "": value} for name, value in one["trial"].items()])
    if options.output:
        where = {"environment": environment(options.device), "load_at_end": os.getloadavg()[0]}
        options.output.write_text(json.dumps(where | {"results": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

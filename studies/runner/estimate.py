"""What the trials of a study cost: from records of the same work, else from steps and probes timed here."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import torch

from analysis.verdicts.costs import (
    FINE_TUNING,
    HOUR,
    PROBES,
    TRAINING,
    CostEstimate,
    CostModel,
    Part,
    hours_text,
    total,
    with_configs,
)
from analysis.verdicts.number_format import count
from cluster.resources import Resources
from cluster.scheduling.run import open_trials
from jbot import TRAINER_VERSION
from jbot.config import Config, override
from jbot.data import CLASSES, JetData, jets_needed
from jbot.data.splits import TARGETS
from jbot.evaluation.evaluator import Evaluator
from jbot.store.record import Record, TrialSpec, load_records, not_reused
from jbot.store.storage import Storage
from jbot.trainer.engines.select import find_engine
from jbot.trainer.finetune import LabeledRows, finetune_step, init_finetune, runs_of, stack_hyper
from jbot.trainer.inputs import prepare
from jbot.trainer.loop import VIEW_JETS, TrialFailed, run_steps
from jbot.trainer.model import init_weights
from jbot.trainer.pack import Pack
from jbot.trainer.state import init_state
from jbot.trainer.workload import curve_epochs
from jbot.trial.reuse import plain

REPEATS = 5
"""Timings of a unit of work, after a first one that warms up. The median counts: other programs may be running."""
PROBED_JETS = 4_000
"""Test jets at most that probes are timed on; what more of them cost is computed from this number and its half."""


class Costs:
    """Device seconds of trials on the resources that one pack holds.

    Parameters
    ----------
    records : sequence of Record
        Those of :func:`ended_records`.
    timing : bool
        Time what no record knows; a trial is then never without a cost.
    """

    def __init__(self, records: Sequence[Record], resources: Resources, timing: bool = True):
        self.resources = resources
        self.device = torch.device("cuda" if resources.gpus > 0 and torch.cuda.is_available() else "cpu")
        self.model = CostModel(records, self._weight, self._time if timing else None, where=self._where())
        self.encoders = {plain(config) for config, _ in with_configs(records)}
        """Trials whose encoder there is; of other jets perhaps, which is the rare case."""

    def of(self, config: Config, before: Collection[Config] = (), fresh: bool = False) -> CostEstimate | None:
        """The cost of one trial; None where no record knows and nothing is timed.

        Parameters
        ----------
        before : collection of Config
            Plain trials (:func:`jbot.trial.reuse.plain`) that will have ended by then, besides those with a record.
        fresh : bool
            A trial like this one that reuses no encoder, whatever there is: at another seed, say.
        """
        there = plain(config) in self.encoders or plain(config) in before
        return self.model.estimate(config, encoder_reused=there and not fresh and not config.train.until)

    def total(
        self, configs: Iterable[Config], before: Collection[Config] = (), fresh: bool = False
    ) -> CostEstimate | None:
        """The cost of some trials together, see :meth:`of`; None where one of them has no cost."""
        found = [self.of(config, before, fresh) for config in configs]
        known = [cost for cost in found if cost is not None]
        return total(known) if len(known) == len(found) else None

    def hours(self, seconds: float) -> float:
        """Device hours: of GPUs where a pack holds one or a part of it, else of CPU cores."""
        return seconds * (self.resources.gpus or self.resources.cpus) / HOUR

    @property
    def unit(self) -> str:
        """What device hours are hours of."""
        return "GPU" if self.resources.gpus > 0 else "core"

    def words(self, hours: float, price: float | None = None) -> str:
        """``0.9 core hours (0.05 USD)``, at so many USD an hour."""
        money = "" if price is None else f" ({hours_text(hours * price)} USD)"
        return f"{hours_text(hours, self.unit)}{money}"

    def _weight(self, record: Record) -> float | None:
        """One; None for a record of another kind of device, or number of threads, than trials will have here."""
        if not str(record.hardware.get("device", "")).startswith(self.resources.device):
            return None
        return 1.0 if self.resources.gpus > 0 or record.hardware.get("threads") == self.resources.threads else None

    def _time(self, part: Part, config: Config) -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(self.resources.threads if self.device.type == "cpu" else before)
        try:
            return TIMERS[part](config, self.device, self.resources.engine)
        finally:
            torch.set_num_threads(before)

    def _where(self) -> str:
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, one trial alone"
        threads = "one CPU thread" if self.resources.threads == 1 else f"{self.resources.threads} CPU threads"
        return f"{threads}, not on the GPU it wants" if self.resources.gpus > 0 else threads


def ended_records(storage: Storage) -> list[Record]:
    """Every record of a storage; what cannot be read is left out."""
    # Damaged, or of other code: the study that needs it says so.
    return [record for record in load_records(storage, storage.names("trials"), lenient=True).values() if record]


def reusable_configs(records: Iterable[Record]) -> set[Config]:
    """Configs of complete trials of this trainer version: no study runs them again on the same jets."""
    return {config for config, record in with_configs(records) if record.trainer_version == TRAINER_VERSION}


class Expected:
    """What the trials that are left were expected to cost, before any of them ran."""

    def __init__(self, specs: Sequence[TrialSpec], storage: Storage, resources: Resources):
        self.left = open_trials(specs, storage)
        records = ended_records(storage) if self.left else []
        self.older = not_reused(records)
        """What the storage holds of other trainer versions, in words."""
        # Timing takes seconds on a CPU; on a GPU steps are compiled first, which takes a minute.
        self.costs = Costs(records, resources, timing=resources.gpus == 0)
        self.seconds = {spec.trial_id: cost.seconds for spec in self.left if (cost := self.costs.of(spec.config))}

    def against(self, storage: Storage) -> str | None:
        """One line: estimated and spent, of the trials that are complete by now; None where nothing was estimated."""
        records = load_records(storage, self.seconds).values()
        ended = [record for record in records if record and record.state == "complete"]
        if not ended:
            return None
        estimated = sum(self.seconds[record.trial_id] for record in ended)
        spent = sum(record.own_seconds for record in ended)
        before, after = (hours_text(self.costs.hours(seconds)) for seconds in (estimated, spent))
        ratio = f"{spent / max(estimated, 1e-9):.2f} times the estimate"
        return f"{self.costs.unit} hours of {count(len(ended), 'trial')}: {before} estimated, {after} spent, {ratio}"

    def saved(self, specs: Sequence[TrialSpec]) -> str:
        """What trials that need not run would have cost."""
        known = [self.seconds[spec.trial_id] for spec in specs if spec.trial_id in self.seconds]
        hours = f", some {self.costs.words(self.costs.hours(sum(known)))}" if known else ""
        return f"{count(len(specs), 'trial')} of the plan need not run{hours}"


# --- timing a unit of work ------------------------------------------------------------------------------------------


def random_jets(count: int, slots: int) -> torch.Tensor:
    """(jet, slot, 4) with falling shares of pT that sum to 1; the same each time."""
    generator = torch.Generator().manual_seed(0)
    jets = torch.ones(count, slots, 4)
    jets[..., :2] = 0.1 * torch.randn(count, slots, 2, generator=generator)
    shares = torch.empty(count, slots).exponential_(generator=generator) + 1e-3
    jets[..., 2] = (shares / shares.sum(1, keepdim=True)).sort(1, descending=True).values
    return jets


def seconds_a_step(config: Config, device: torch.device, engine: str) -> float:
    """Wall seconds of one training step, on random jets."""
    state, pack = init_state(config, [0], device), Pack([config], device)
    forward = find_engine(engine, config, device).forward
    batch = config.train.batch
    ahead = max(1, VIEW_JETS[device.type] // batch)  # steps whose views are made together
    jets = random_jets(ahead * batch, config.data.particles).view(ahead, 1, batch, -1, 4).to(device)
    lr, momentum = torch.tensor([[1e-3], [0.99]], dtype=torch.float64, device=device)
    return (
        repeated(lambda: run_steps(state, jets, pack, (0,), lr, momentum, forward)[0].item())  # waits for the device
        / ahead
    )


def repeated(work: Callable[[], object]) -> float:
    """Median wall seconds."""
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))


def seconds_a_finetune_step(config: Config, device: torch.device, engine: str = "auto") -> float:
    """Wall seconds of one step of one fine-tuning, on random jets."""
    batch, classes = config.finetune.batch, len(TARGETS[config.data.task])
    targets = torch.arange(batch, device=device) % classes
    jets = LabeledRows(rows=torch.arange(batch, device=device), targets=targets)
    whole = override(config, {"finetune.fractions": [1.0]})
    (run, *_) = runs_of(whole, init_weights(config.model, 0), jets, jets)
    state, hyper = init_finetune([run], device), stack_hyper([run], device)
    particles = random_jets(batch, config.data.particles)[None].to(device)
    return repeated(lambda: finetune_step(state, particles, targets[None], hyper)["loss"].item())


def seconds_to_probe(config: Config, device: torch.device, engine: str = "auto") -> float:
    """Wall seconds of all probes of a trial, on random jets: points of its curve, and the last evaluation."""
    share = min(1.0, PROBED_JETS / config.data.test_jets)
    whole = _seconds_to_probe(config, device, share)
    if share == 1:
        return whole
    # A line and a square (neighbours: bank x jets) through two sizes.
    half = _seconds_to_probe(config, device, share / 2)
    square = max(0.0, 2 * (whole - 2 * half) / share**2)
    return (whole - square * share**2) / share + square


def _seconds_to_probe(config: Config, device: torch.device, share: float) -> float:
    """Wall seconds of all probes on a share of the jets."""
    fewest = max(100, config.probe.knn_k)
    sizes = {"data.train_jets": config.bank_jets, "data.val_jets": config.data.val_jets}
    sizes = {name: min(count, max(fewest, round(share * count))) for name, count in sizes.items()}
    sizes["data.test_jets"] = max(min(fewest, config.data.test_jets), round(share * config.data.test_jets))
    small = override(config, sizes | {"data.labeled_jets": 0, "finetune.fractions": []})
    evaluator, state = _evaluator(small, device), init_state(small, [0], device)
    seconds = []
    for evaluate in (
        lambda: evaluator.curve_point(state),
        lambda: evaluator.curve_point(state),
        lambda: evaluator.final(state, folds=False),
        lambda: evaluator.final(state, scan=config.anomaly.scan),
    ):
        started = time.perf_counter()
        with contextlib.suppress(TrialFailed):  # no anomaly score can use this embedding: the rest is timed
            evaluate()
        seconds.append(time.perf_counter() - started)
    return len(curve_epochs(config)) * seconds[1] + seconds[2] + seconds[3]  # the first one warms up


def _evaluator(config: Config, device: torch.device) -> Evaluator:
    wanted = config.data
    counts = jets_needed(**wanted.sizes)
    labels = np.concatenate([np.full(count, CLASSES.index(name)) for name, count in counts.items()])
    particles = random_jets(len(labels), wanted.particles)
    particles[..., :2] *= torch.from_numpy(1 + labels)[:, None, None]  # something for the probes to find
    jets = np.zeros((len(labels), 4), np.float32)
    data = JetData(particles=particles.numpy(), labels=labels, jets=jets, fingerprint="random", source="random")
    _, probed = prepare(wanted, config.probe.bank_jets, data=data, particles=particles.to(device))
    forward = find_engine("fused", override(config, {"train.precision": "fp32"}), device).forward
    return Evaluator(config, probed["bank"], probed["val"], probed["test"], probed["signal"], forward)


TIMERS: dict[Part, Callable[[Config, torch.device, str], float]] = {
    TRAINING: seconds_a_step,
    PROBES: seconds_to_probe,
    FINE_TUNING: seconds_a_finetune_step,
}


# --- where it runs --------------------------------------------------------------------------------------------------


def cores() -> int:
    """Cores of this machine, as far as this process may use them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slots_here(resources: Resources) -> int:
    """Packs that Ray would run at once on this machine."""
    most = int(cores() / resources.cpus)
    return min(most, int(torch.cuda.device_count() / resources.gpus)) if resources.gpus > 0 else most


def slots_at(address: str, resources: Resources) -> int:
    """Packs that a Ray cluster runs at once.

    Raises
    ------
    ClusterError
        When there is no cluster at the address.
    """
    from cluster.connection import connected
    from cluster.scheduling.nodes import slots

    with connected(address):
        return slots(resources)

"""What trials cost: device seconds from records of the same work, else from steps and probes timed here.

A trial is training steps, probes and fine-tunings, and a record has the seconds of each. Equal trials (all but the
seed) cost what their records say. Else each part is taken from records in which it is the same, training by the step,
and what no record knows is timed here. A trial whose encoder another one has trained is judged alone. Not counted:
starting up, loading jets, pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cluster.resources import Resources
from jbot import TRAINER_VERSION
from jbot.config import Config, ConfigError, from_dict, override
from jbot.data import CLASSES, JetData, jets_needed
from jbot.data.splits import TARGETS
from jbot.evaluation.evaluator import Evaluator
from jbot.evaluation.metrics_registry import fine_tunings
from jbot.store.record import Record, Storage, load_records
from jbot.trainer.engines.select import find_engine
from jbot.trainer.finetune import LabeledRows, finetune_step, init_finetune, runs_of, stack_hyper
from jbot.trainer.inputs import prepare
from jbot.trainer.loop import VIEW_JETS, TrialFailed, is_probed, run_steps
from jbot.trainer.model import init_weights
from jbot.trainer.pack import Pack
from jbot.trainer.state import init_state
from jbot.trial.reuse import plain

REPEATS = 5
"""Of what is timed, after a first one that warms up. The median counts: other programs may be running."""
JUDGED_JETS = 4_000
"""Test jets at most that probes are timed on; more are reckoned from this number and its half."""
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one trial."""

    seconds: float
    """Device seconds, as a record counts them."""
    basis: tuple[str, ...]
    """What that rests on."""
    measured: bool
    """Whether all of it comes from records."""


@dataclass(frozen=True, kw_only=True)
class Bill:
    """Of several trials."""

    trials: int
    seconds: float
    longest: float
    """Seconds of the most expensive trial: no number of machines takes less."""
    basis: tuple[str, ...]
    measured: bool


class Costs:
    """Device seconds of trials on the resources that one pack holds.

    Parameters
    ----------
    records : sequence of Record
        Those of :func:`ended_records`.
    timing : bool
        Time what no record knows; a trial is then never without a cost.
    """

    def __init__(self, records: Sequence[Record], held: Resources, timing: bool = True):
        self.held, self.timing = held, timing
        self.device = torch.device("cuda" if held.gpus > 0 and torch.cuda.is_available() else "cpu")
        configs = with_configs(records)
        self.records = [(config, record) for config, record in configs if self._alike(record)]
        self.encoders = {plain(config) for config, _ in configs}
        """Trials whose encoder there is; of other jets perhaps, which is the rare case."""
        self._known: dict[tuple[Config, bool], Cost | None] = {}
        self._timed: dict[Hashable, float] = {}

    def of(self, config: Config, before: Collection[Config] = (), fresh: bool = False) -> Cost | None:
        """Of one trial; None where no record knows and nothing is timed.

        Parameters
        ----------
        before : collection of Config
            Plain trials (:func:`jbot.trial.reuse.plain`) that will have ended by then, besides those with a record.
        fresh : bool
            A trial like this one that shares no encoder, whatever there is: at another seed, say.
        """
        there = plain(config) in self.encoders or plain(config) in before
        lent = there and not fresh and not config.train.until
        key = (dataclasses.replace(config, seed=0), lent)
        if key not in self._known:
            self._known[key] = self._find(*key)
        return self._known[key]

    def bill(self, configs: Iterable[Config], before: Collection[Config] = (), fresh: bool = False) -> Bill | None:
        """Of some trials together, see :meth:`of`; None where one of them has no cost."""
        found = [self.of(config, before, fresh) for config in configs]
        costs = [cost for cost in found if cost is not None]
        if len(costs) < len(found):
            return None
        return Bill(
            trials=len(costs),
            seconds=sum(cost.seconds for cost in costs),
            longest=max((cost.seconds for cost in costs), default=0.0),
            basis=tuple(dict.fromkeys(line for cost in costs for line in cost.basis)),
            measured=all(cost.measured for cost in costs),
        )

    def hours(self, seconds: float) -> float:
        """Device hours: of GPUs where a pack holds one or a part of it, else of CPU cores."""
        return seconds * (self.held.gpus or self.held.cpus) / HOUR

    def _alike(self, record: Record) -> bool:
        """Whether it ran on the kind of device, and as many threads, as trials will here."""
        hardware = record.hardware
        if not str(hardware.get("device", "")).startswith(self.held.device):
            return False
        return self.held.gpus > 0 or hardware.get("threads") == self.held.threads

    def _find(self, config: Config, lent: bool) -> Cost | None:
        parts = [part for part in PARTS if part.work(config) and not (lent and part.name == TRAINING)]
        equal = [record for other, record in self.records if same_but_seed(other, config)]
        if equal:
            whole = [sum(part.seconds(record) for part in parts) for record in equal]
            return Cost(seconds=float(np.median(whole)), basis=("records of equal trials",), measured=True)
        seconds, basis = 0.0, []
        if lent:
            basis.append("encoders that there are by then are judged, not trained again")
        for part in parts:
            key = part.key(config)
            known = [
                part.seconds(record) / part.work(other) for other, record in self.records if part.key(other) == key
            ]
            if not known and not self.timing:
                return None
            if not known and (part.name, key) not in self._timed:
                self._timed[part.name, key] = self._time(part, config)
            each = float(np.median(known)) if known else self._timed[part.name, key]
            seconds += each * part.work(config)
            basis.append(f"{part.name}: {'records of the same work' if known else 'timed here on ' + self._where()}")
        return Cost(seconds=seconds, basis=tuple(basis), measured=not any("timed" in line for line in basis))

    def _time(self, part: Part, config: Config) -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(self.held.threads if self.device.type == "cpu" else before)
        try:
            return part.time(config, self.device, self.held.engine)
        finally:
            torch.set_num_threads(before)

    def _where(self) -> str:
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, one trial alone"
        threads = "one CPU thread" if self.held.threads == 1 else f"{self.held.threads} CPU threads"
        return f"{threads}, not on the GPU it wants" if self.held.gpus > 0 else threads


def ended_records(storage: Storage) -> list[Record]:
    """Every record of a storage; what cannot be read is left out."""
    # Damaged, or of other code: the study that needs it says so.
    return [record for record in load_records(storage, storage.names("trials"), lenient=True).values() if record]


def with_configs(records: Iterable[Record]) -> list[tuple[Config, Record]]:
    """Complete records and their Configs; without those of code with other fields."""
    found = []
    for record in records:
        with contextlib.suppress(ConfigError):
            if record.state == "complete":
                found.append((from_dict(record.config), record))
    return found


def reusable_configs(records: Iterable[Record]) -> set[Config]:
    """Configs of complete trials of this trainer version: no study runs them again on the same jets."""
    return {config for config, record in with_configs(records) if record.trainer_version == TRAINER_VERSION}


def same_but_seed(one: Config, other: Config) -> bool:
    """Whether two trials differ in their seed alone."""
    return dataclasses.replace(one, seed=other.seed) == other


# --- parts of a trial -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of work in a trial."""

    name: str
    key: Callable[[Config], Hashable]
    """Trials with equal keys need the same seconds for each unit of this work."""
    work: Callable[[Config], float]
    """Units of a trial."""
    seconds: Callable[[Record], float]
    """Of all units, as a record has them."""
    time: Callable[[Config, torch.device, str], float]
    """Of a unit here, on a device with an engine."""


def train_steps(config: Config) -> int:
    """Of pre-training."""
    return config.train.last_epoch * -(-config.data.train_jets // config.train.batch)


def curve_points(config: Config) -> int:
    """Probed epochs."""
    return sum(is_probed(epoch, config) for epoch in range(config.train.last_epoch + 1))


def finetune_steps(config: Config) -> int:
    """Of all fine-tunings and twins of a trial, if none ends early."""
    wanted, jets = config.finetune, config.data.train_jets
    return sum(wanted.epochs * -(-round(share * jets) // wanted.batch) for share in fine_tunings(config).values())


def _judging(config: Config) -> Hashable:
    data = config.data
    sizes = (config.bank_jets, data.val_jets, data.test_jets, data.particles)
    probes = (config.probe.knn_k, config.probe.jet_pts, curve_points(config))
    return (config.model, data.task, sizes, probes, config.anomaly)


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


def seconds_to_judge(config: Config, device: torch.device, engine: str = "auto") -> float:
    """Wall seconds of all probes of a trial, on random jets: points of its curve, and the last judgement."""
    share = min(1.0, JUDGED_JETS / config.data.test_jets)
    whole = _seconds_to_judge(config, device, share)
    if share == 1:
        return whole
    # A line and a square (neighbours: bank x jets) through two sizes.
    half = _seconds_to_judge(config, device, share / 2)
    square = max(0.0, 2 * (whole - 2 * half) / share**2)
    return (whole - square * share**2) / share + square


def _seconds_to_judge(config: Config, device: torch.device, share: float) -> float:
    """Of probes on a share of the jets."""
    least = max(100, config.probe.knn_k)
    sizes = {"data.train_jets": config.bank_jets, "data.val_jets": config.data.val_jets}
    sizes = {name: min(count, max(least, round(share * count))) for name, count in sizes.items()}
    sizes["data.test_jets"] = max(min(least, config.data.test_jets), round(share * config.data.test_jets))
    small = override(config, sizes | {"data.labeled_jets": 0, "finetune.fractions": []})
    evaluator, state = _evaluator(small, device), init_state(small, [0], device)
    seconds = []
    for judge in (
        lambda: evaluator.curve_point(state),
        lambda: evaluator.curve_point(state),
        lambda: evaluator.final(state, folds=False),
        lambda: evaluator.final(state, scan=config.anomaly.scan),
    ):
        started = time.perf_counter()
        with contextlib.suppress(TrialFailed):  # no anomaly score can use this embedding: the rest is timed
            judge()
        seconds.append(time.perf_counter() - started)
    return curve_points(config) * seconds[1] + seconds[2] + seconds[3]  # the first one warms up


def _evaluator(config: Config, device: torch.device) -> Evaluator:
    wanted = config.data
    counts = jets_needed(task=wanted.task, train=wanted.train_jets, val=wanted.val_jets, test=wanted.test_jets)
    labels = np.concatenate([np.full(count, CLASSES.index(name)) for name, count in counts.items()])
    particles = random_jets(len(labels), wanted.particles)
    particles[..., :2] *= torch.from_numpy(1 + labels)[:, None, None]  # something for the probes to find
    jets = np.zeros((len(labels), 4), np.float32)
    data = JetData(particles=particles.numpy(), labels=labels, jets=jets, fingerprint="random", source="random")
    _, judged = prepare(wanted, config.probe.bank_jets, data=data, particles=particles.to(device))
    forward = find_engine("fused", override(config, {"train.precision": "fp32"}), device).forward
    return Evaluator(config, judged["bank"], judged["val"], judged["test"], forward)


def pretraining_seconds(record: Record) -> float:
    """Of training steps alone."""
    return record.device_seconds - record.probe_seconds - record.finetune_seconds


TRAINING = "training"
PARTS = (
    Part(
        name=TRAINING,
        key=lambda config: (config.model, config.train.batch, config.train.precision, config.data.particles),
        work=train_steps,
        seconds=pretraining_seconds,
        time=seconds_a_step,
    ),
    Part(
        name="probes",
        key=_judging,
        work=lambda config: 1.0,
        seconds=lambda record: record.probe_seconds,
        time=seconds_to_judge,
    ),
    Part(
        name="fine-tuning",
        key=lambda config: (config.model, config.finetune.batch, config.finetune.twin, config.data.particles),
        work=finetune_steps,
        seconds=lambda record: record.finetune_seconds,
        time=seconds_a_finetune_step,
    ),
)


# --- where it runs --------------------------------------------------------------------------------------------------


def cores() -> int:
    """Of this machine, as far as this process may use them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def places_here(held: Resources) -> int:
    """Packs that Ray would run at once on this machine."""
    most = int(cores() / held.cpus)
    return min(most, int(torch.cuda.device_count() / held.gpus)) if held.gpus > 0 else most


def places_at(address: str, held: Resources) -> int:
    """Packs that a Ray cluster runs at once.

    Raises
    ------
    ClusterError
        When there is no cluster at the address.
    """
    from cluster.connection import connected
    from cluster.scheduling.nodes import slots

    with connected(address):
        return slots(held)

"""What trials cost, from the records of those that have run: for dry runs, the overview and the index alike.

A trial is training steps, probes and fine-tunings, and a record has the seconds of each. Equal trials (all but the
seed) cost what their records say. Else each part is taken from records in which it is the same, training by the step.
Not counted: starting up, loading jets, pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from jbot.config import Config, ConfigError, from_dict, override
from jbot.store.plan import Plan
from jbot.store.record import Record
from jbot.trainer.workload import curve_epochs, finetune_steps, train_steps

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """The device seconds of one or more trials."""

    trials: int
    seconds: float
    longest: float
    """Seconds of the most expensive trial: no number of machines takes less."""
    basis: tuple[str, ...]
    """What the seconds rest on."""
    measured: bool
    """Whether all of them come from records."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of work in a trial."""

    name: str
    key: Callable[[Config], Hashable]
    """Trials with equal keys need the same seconds for each unit of this work."""
    units: Callable[[Config], float]
    """Units of a trial."""
    seconds: Callable[[Record], float]
    """Seconds of all units, as a record has them."""


TRAINING = Part(
    name="training",
    key=lambda config: (config.model, config.train.batch, config.train.precision, config.data.particles),
    units=train_steps,
    seconds=lambda record: record.device_seconds - record.probe_seconds - record.finetune_seconds,
)
PROBES = Part(
    name="probes",
    key=lambda config: (
        *(config.model, config.data.task, config.anomaly),
        *(config.bank_jets, config.data.val_jets, config.data.test_jets, config.data.signal_jets),
        *(config.data.particles, config.probe.knn_k, config.probe.jet_pts, len(curve_epochs(config))),
    ),
    units=lambda config: 1.0,
    seconds=lambda record: record.probe_seconds,
)
FINE_TUNING = Part(
    name="fine-tuning",
    key=lambda config: (config.model, config.finetune.batch, config.finetune.twin, config.data.particles),
    units=finetune_steps,
    seconds=lambda record: record.finetune_seconds,
)
PARTS = (TRAINING, PROBES, FINE_TUNING)


class CostModel:
    """Device seconds of trials.

    Parameters
    ----------
    records : iterable of Record
        Only complete ones count.
    weight : callable
        Record -> what its seconds are multiplied with; None for one that ran on another kind of device.
    time_unit : callable, optional
        (part, Config) -> seconds of a unit, for what no record knows.
    where : str
        On what units are timed.
    """

    def __init__(
        self,
        records: Iterable[Record],
        weight: Callable[[Record], float | None] = lambda record: 1.0,
        time_unit: Callable[[Part, Config], float] | None = None,
        where: str = "",
    ):
        weighed = [(config, record, weight(record)) for config, record in with_configs(records)]
        self.records = [(config, record, factor) for config, record, factor in weighed if factor is not None]
        self._time_unit, self._where = time_unit, where
        self._timed: dict[Hashable, float] = {}
        self._estimates: dict[tuple[Config, bool], CostEstimate | None] = {}

    def estimate(self, config: Config, encoder_reused: bool = False) -> CostEstimate | None:
        """The cost of one trial, which trains its encoder unless another trial has; None where nobody knows."""
        key = (dataclasses.replace(config, seed=0), encoder_reused)
        if key not in self._estimates:
            self._estimates[key] = self._estimate(*key)
        return self._estimates[key]

    def _estimate(self, config: Config, encoder_reused: bool) -> CostEstimate | None:
        parts = [part for part in PARTS if part.units(config) and not (encoder_reused and part is TRAINING)]
        equal = [(record, factor) for other, record, factor in self.records if same_but_seed(other, config)]
        if equal:
            whole = [factor * sum(part.seconds(record) for part in parts) for record, factor in equal]
            return _one(float(np.median(whole)), ["records of equal trials"])
        basis = ["encoders that there are by then are evaluated, not trained again"] if encoder_reused else []
        seconds, measured = 0.0, True
        for part in parts:
            key, units = part.key(config), part.units(config)
            alike = [(other, record, factor) for other, record, factor in self.records if part.key(other) == key]
            if alike:
                known = [factor * part.seconds(record) / part.units(other) for other, record, factor in alike]
                each, source = float(np.median(known)), "records of the same work"
            elif self._time_unit:
                if (part.name, key) not in self._timed:
                    self._timed[part.name, key] = self._time_unit(part, config)
                each, source, measured = self._timed[part.name, key], f"timed here on {self._where}", False
            else:
                return None
            seconds += each * units
            basis.append(f"{part.name}: {source}")
        return _one(seconds, basis, measured)


def _one(seconds: float, basis: list[str], measured: bool = True) -> CostEstimate:
    return CostEstimate(trials=1, seconds=seconds, longest=seconds, basis=tuple(basis), measured=measured)


def total(estimates: Iterable[CostEstimate]) -> CostEstimate:
    """The cost of trials together."""
    every = list(estimates)
    return CostEstimate(
        trials=sum(one.trials for one in every),
        seconds=sum(one.seconds for one in every),
        longest=max((one.longest for one in every), default=0.0),
        basis=tuple(dict.fromkeys(line for one in every for line in one.basis)),
        measured=all(one.measured for one in every),
    )


def with_configs(records: Iterable[Record]) -> list[tuple[Config, Record]]:
    """Complete records and their Configs; without those of code with other fields."""
    found = []
    for record in records:
        with contextlib.suppress(ConfigError):
            if record.state == "complete":
                found.append((from_dict(record.config), record))
    return found


def same_but_seed(one: Config, other: Config) -> bool:
    """Whether two trials differ in their seed alone."""
    return dataclasses.replace(one, seed=other.seed) == other


# --- in hours, of records of any device ------------------------------------------------------------------------------


def device_hours(record: Record) -> tuple[float, str]:
    """Hours of a trial, and of what: ``core`` or ``GPU``. In a pack it is the trial's share."""
    unit = "core" if str(record.hardware.get("device", "cpu")).startswith("cpu") else "GPU"
    return record.device_seconds * _weight(record, unit) / HOUR, unit


def _weight(record: Record, unit: str) -> float:
    return float(record.hardware.get("threads", 1)) if unit == "core" else 1.0


class Prices:
    """Core hours or GPU hours of arms, from records alone."""

    def __init__(self, records: Iterable[Record]):
        complete = [record for record in records if record.state == "complete"]
        units = Counter(device_hours(record)[1] for record in complete)
        self.unit = units.most_common(1)[0][0] if units else "core"
        self._models = {
            unit: CostModel(
                [record for record in complete if device_hours(record)[1] == unit],
                functools.partial(_weight, unit=unit),
            )
            for unit in ("core", "GPU")
        }

    def of_block(self, plan: Plan, unit: str) -> dict[str, float | None]:
        """Device hours of every arm of a plan; None where no record tells."""
        try:
            base = from_dict(plan.base)
            costs = {arm: self._models[unit].estimate(override(base, own)) for arm, own in plan.arms.items()}
        except ConfigError:  # a plan of code with other fields
            return dict.fromkeys(plan.arms)
        return {arm: None if cost is None else cost.seconds / HOUR for arm, cost in costs.items()}


def hours_text(hours: float, unit: str = "") -> str:
    """``0.034 core hours``, ``310 GPU hours``; the number alone without a unit."""
    number = f"{hours:,.0f}" if hours >= 10 else f"{float(f'{hours:.2g}'):g}"
    return f"{number} {unit} hours" if unit else number

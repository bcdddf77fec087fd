"""What trials without a record would cost, from those that have one: device hours, and of which device.

Rougher than a dry run (studies/runner/estimate.py), which times what no record knows: here that has no price.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jbot.config import ConfigError, from_dict, override, to_dict
from jbot.store.plan import Plan
from jbot.store.record import Record

HOUR = 3600.0


def device_hours(record: Record) -> tuple[float, str]:
    """Hours of a trial, and of what: ``core`` or ``GPU``. In a pack it is the trial's share."""
    if not str(record.hardware.get("device", "cpu")).startswith("cpu"):
        return record.device_seconds / HOUR, "GPU"
    return record.device_seconds * float(record.hardware.get("threads", 1)) / HOUR, "core"


class Prices:
    """Device hours of trials: of equal ones (all but the seed), else by the jets that pass the same model.

    Parameters
    ----------
    records : iterable of Record
        Only complete ones count.
    """

    def __init__(self, records: Iterable[Record]):
        self._equal: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._a_pass: dict[tuple[str, str], list[float]] = defaultdict(list)
        units: Counter[str] = Counter()
        for record in records:
            if record.state != "complete":
                continue
            hours, unit = device_hours(record)
            units[unit] += 1
            self._equal[unit, _key(record.config)].append(hours)
            if passes := jet_passes(record.config):
                self._a_pass[unit, _model(record.config)].append(hours / passes)
        self.unit = units.most_common(1)[0][0] if units else "core"

    def of_block(self, plan: Plan, unit: str) -> dict[str, float | None]:
        """Device hours of every arm of a plan; None where no record tells."""
        try:
            base = from_dict(plan.base)
            configs = {arm: to_dict(override(base, changes)) for arm, changes in plan.arms.items()}
        except ConfigError:  # a plan of code with other fields
            return dict.fromkeys(plan.arms)
        return {arm: self._of(config, unit) for arm, config in configs.items()}

    def _of(self, config: Mapping[str, Any], unit: str) -> float | None:
        if equal := self._equal.get((unit, _key(config))):
            return float(np.median(equal))
        like = self._a_pass.get((unit, _model(config)))
        return float(np.median(like)) * jet_passes(config) if like else None


def jet_passes(config: Mapping[str, Any]) -> float:
    """Jets that a training sees, each as often as it does."""
    return float(config["data"]["train_jets"]) * float(config["train"]["epochs"])


def _key(config: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in config.items() if name != "seed"}, sort_keys=True)


def _model(config: Mapping[str, Any]) -> str:
    return json.dumps([config["model"], config["train"]["batch"], config["data"]["particles"]], sort_keys=True)


def hours_text(hours: float, unit: str) -> str:
    """``0.034 core hours``, ``310 GPU hours``."""
    number = f"{hours:,.0f}" if hours >= 10 else f"{float(f'{hours:.2g}'):g}"
    return f"{number} {unit} hours"

"""What may vary: a named axis over one Config field, with its bounds and the reason for them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from jbot.config import FIELDS, Config, ConfigError, override


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One dotted Config field and what it may be: a list of values, or a range. Whole numbers between whole bounds."""

    field: str
    values: tuple[Any, ...] = ()
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    complement: bool = False
    """A search moves in 1 - value: what is close to 1, like a momentum, has its scale there."""
    reason: str
    """Why these bounds."""

    def __post_init__(self) -> None:
        if bool(self.values) != math.isnan(self.low):
            raise ConfigError(f"axis {self.field}: give either values, or low and high")
        for value in self.values or (self.low, self.high):
            override(Config(), {self.field: value})
        if not self.values and not self.low < self.high:
            raise ConfigError(f"axis {self.field}: low must be below high, got [{self.low:g}, {self.high:g}]")

    @property
    def coordinate(self) -> str:
        """What a search calls it: the field, or ``1 - field``."""
        return f"1 - {self.field}" if self.complement else self.field

    def holds(self, value: Any) -> bool:
        """Whether a value is on this axis."""
        return value in self.values if self.values else bool(self.low <= value <= self.high)

    def arm(self, value: Any) -> dict[str, Any]:
        """The overrides of the arm at one value of this axis.

        Raises
        ------
        ConfigError
            When the value is not on the axis.
        """
        if not self.holds(value):
            allowed = ", ".join(map(str, self.values)) if self.values else f"[{self.low:g}, {self.high:g}]"
            raise ConfigError(f"axis {self.field}: {value!r} is not in {allowed}")
        return {self.field: value}

    def distribution(self) -> Any:
        """The Optuna distribution of this axis, in its `coordinate`."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.values:
            return CategoricalDistribution(self.values)
        if FIELDS[self.field].kind is int:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        low, high = (1 - self.high, 1 - self.low) if self.complement else (self.low, self.high)
        return FloatDistribution(round(low, 12), round(high, 12), log=self.log)

    def described(self) -> dict[str, Any]:
        """This axis as JSON can hold it, for the ledger of a search."""
        from optuna.distributions import distribution_to_json

        known = json.loads(distribution_to_json(self.distribution()))
        return {"coordinate": self.coordinate, "field": self.field, "reason": self.reason, "distribution": known}

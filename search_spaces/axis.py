"""What may vary: a named axis over one Config field, with its bounds and the reason for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jbot.config import Config, ConfigError, override


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One dotted Config field and what it may be: a list of values, or a range."""

    field: str
    values: tuple[Any, ...] = ()
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    reason: str
    """Why these bounds."""

    def __post_init__(self) -> None:
        if bool(self.values) != math.isnan(self.low):
            raise ConfigError(f"axis {self.field}: give either values, or low and high")
        for value in self.values or (self.low, self.high):
            override(Config(), {self.field: value})

    def arm(self, value: Any) -> dict[str, Any]:
        """The overrides of the arm at one value of this axis.

        Raises
        ------
        ConfigError
            When the value is not on the axis.
        """
        on_axis = value in self.values if self.values else self.low <= value <= self.high
        if not on_axis:
            allowed = ", ".join(map(str, self.values)) if self.values else f"[{self.low:g}, {self.high:g}]"
            raise ConfigError(f"axis {self.field}: {value!r} is not in {allowed}")
        return {self.field: value}

    def distribution(self) -> Any:
        """The Optuna distribution of this axis."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        if self.values:
            return CategoricalDistribution(self.values)
        return FloatDistribution(self.low, self.high, log=self.log)

"""One field of a Config: what it may be, what it is called, and whether the trials of a pack share it.

A field is declared once, where its dataclass is defined, by `per_trial` or by `shared`. Checks, packs, reports and help
read it from there.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

MAX_COUNT = 10**9
"""Largest whole number of a field (heuristic): far beyond any training, small enough for costs to be computed."""


class ConfigError(ValueError):
    """A Config field that is unknown, of the wrong type, or out of its range."""


EXAMPLES = {float: "[0.1, 1]", str: '["4 optim.lr=0.001"]'}
"""Values of the fields that are lists."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a Config, declared where it is defined, by `per_trial` or `shared`."""

    name: str
    """Dotted, ``mask.scheme``."""
    kind: Any
    """Its annotation."""
    default: Any
    label: str
    """What it sets, in words, with a place for the value: ``rotation up to {:.3g}``."""
    shared: bool
    """Whether the trials of a pack must agree in it: it decides tensor shapes, which operations a step is made of, or
    which jets lie on the device. Other fields may differ from trial to trial."""
    low: float
    high: float
    above: float | None
    """An excluded lower bound, in the place of `low`."""
    unit: str
    """What the value is measured in; stands behind the label."""
    names: Mapping[Any, str]
    """Values that have words of their own, in the place of label and unit."""

    def check(self, value: Any, name: str = "") -> None:
        """Raise a ConfigError that names rule and value, unless the field may have this value."""
        name = name or self.name
        if self.is_list and not isinstance(value, list | tuple):
            raise ConfigError(f"{name} must be a list like {EXAMPLES[self.item]}, got {value!r}")
        for one in value if self.is_list else [value]:
            kind = self.item
            if typing.get_origin(kind) is Literal:
                if one not in typing.get_args(kind):
                    raise ConfigError(f"{name} must be {self.range}, got {one!r}")
                continue
            accepted = (int, float) if kind is float else kind
            if not isinstance(one, accepted) or (isinstance(one, bool) and kind is not bool):
                raise ConfigError(f"{name} must be {kind.__name__}, got {one!r} ({type(one).__name__})")
            if kind in (int, float) and not self.holds(one):
                raise ConfigError(f"{name} must be finite and in {self.range}, got {one!r}")

    def fits(self, value: Any) -> bool:
        """Whether the field may have this value."""
        try:
            self.check(value)
        except ConfigError:
            return False
        return True

    def as_kind(self, value: Any) -> Any:
        """A number for a float field as a float, so that 1 and 1.0 are one Config; a list (of JSON) as a tuple."""
        if self.is_list:
            return tuple(float(one) + 0.0 if self.item is float else one for one in value)
        return float(value) + 0.0 if self.kind is float else value  # -0 is 0

    def words(self, value: Any) -> str:
        """This field at a value: ``rotation up to 3.14 rad``, ``no rotation``.

        Raises TypeError, ValueError for a value of another type.
        """
        self.check(value)
        value = self.as_kind(value)
        if value in self.names:
            return self.names[value]
        shown = ", ".join(f"{one:g}" if isinstance(one, float) else one for one in value) if self.is_list else value
        return f"{self.label.format(shown)} {self.unit}".rstrip()

    @property
    def is_list(self) -> bool:
        """Whether it has several values: ``tuple[float, ...]`` or ``tuple[str, ...]``."""
        return typing.get_origin(self.kind) is tuple

    @property
    def item(self) -> Any:
        """The type of one of its values."""
        return typing.get_args(self.kind)[0] if self.is_list else self.kind

    @property
    def range(self) -> str:
        """What a value may be: ``[0, 3.14159]``, ``one of learned, zero, none``."""
        if typing.get_origin(self.item) is Literal:
            return f"one of {', '.join(typing.get_args(self.item))}"
        if self.item not in (int, float):
            return self.item.__name__
        left = f"({self.above:g}" if self.above is not None else f"[{self.low:g}"
        return f"{left}, {self._highest:g}]"

    @property
    def _highest(self) -> float:
        return min(self.high, MAX_COUNT) if self.item is int else self.high

    def holds(self, number: float) -> bool:
        """Whether a number is finite and in the range."""
        inside = (number > self.above if self.above is not None else number >= self.low) and number <= self._highest
        return inside and -sys.float_info.max <= number <= sys.float_info.max


def _declare(
    default: Any,
    label: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    shared: bool,
    above: float | None = None,
    unit: str = "",
    names: Mapping[Any, str] | None = None,
) -> Any:
    """A field with an inclusive range ``[low, high]``, or ``(above, high]``; see :class:`Field`."""
    known = {"label": label, "shared": shared, "low": low, "high": high, "above": above, "unit": unit}
    return dataclasses.field(default=default, metadata=known | {"names": names or {}})


per_trial = functools.partial(_declare, shared=False)
shared = functools.partial(_declare, shared=True)


def collect_fields(kind: Any, prefix: str = "") -> dict[str, Field]:
    """Every field of a Config class by its dotted name, in the order of the classes.

    Raises TypeError for one that is declared neither by `per_trial` nor by `shared`, and so has no label.
    """
    fields: dict[str, Field] = {}
    hints = typing.get_type_hints(kind)
    for one in dataclasses.fields(kind):
        name, hint = f"{prefix}{one.name}", hints[one.name]
        if dataclasses.is_dataclass(hint):
            fields |= collect_fields(hint, f"{name}.")
        else:
            fields[name] = Field(name=name, kind=hint, default=one.default, **one.metadata)
    return fields

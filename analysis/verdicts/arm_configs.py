"""What the arms of a plan differ in: the whole Config of each, flat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jbot.config import flatten
from jbot.store.plan import Plan

FlatConfig = dict[str, Any]
"""A whole Config, flat: dotted field -> value. Two that are equal are one Config."""


def arm_configs(plan: Plan) -> dict[str, FlatConfig]:
    """The Config of every arm, without its seed."""
    return {arm: base_config(plan) | flat_values(changes) for arm, changes in plan.arms.items()}


def base_config(plan: Plan) -> FlatConfig:
    """The Config that arms are changes of, without its seed."""
    return {name: _plain(value) for name, value in flatten(plan.base).items() if name != "seed"}


def flat_values(overrides: Mapping[str, Any]) -> FlatConfig:
    """Overrides as :func:`arm_configs` has them."""
    return {field: _plain(value) for field, value in overrides.items()}


def _plain(value: Any) -> Any:
    """1 and 1.0 are one value, and a list can be a key."""
    if isinstance(value, list | tuple):
        return tuple(_plain(one) for one in value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def without(one: FlatConfig, fields: Iterable[str]) -> tuple[tuple[str, Any], ...]:
    """All of a Config but some fields, as a key."""
    left = set(fields)
    return tuple(sorted((name, value) for name, value in one.items() if name not in left))

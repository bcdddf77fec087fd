"""Whether what was read from a file is what a dataclass says it holds: JSON of other hands may be anything."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any


def check_types(instance: Any) -> None:
    """Check the fields of a dataclass against their annotations, all that JSON can hold.

    Raises
    ------
    TypeError
        Naming field, rule and value of the first that is of another type.
    """
    kind: Any = type(instance)
    for name, hint in _hints(kind).items():
        value = getattr(instance, name)
        if not fits(value, hint):
            raise TypeError(f"{name} must be {_words(hint)}, got {_short(value)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type. Whole numbers are numbers, truth values are not."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return value in inner
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(one, inner[0]) for one in value)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool) and _is_moderate(value)
    return isinstance(value, hint)


def _is_moderate(value: float) -> bool:
    """A whole number of JSON has any length; arrays and tables take those of 64 bits."""
    return not isinstance(value, int) or -(2**63) <= value < 2**63


@functools.cache  # classes
def _hints(kind: Any) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint).replace("typing.", "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."

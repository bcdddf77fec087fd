"""Whether what was read from a file is what a dataclass says it holds: JSON of other hands may be anything."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Instance = TypeVar("Instance")


def check_types(instance: Instance) -> Instance:
    """Return a dataclass whose fields are what their annotations say, all that JSON can hold.

    Raises TypeError naming field, rule and value of the first that is of another type.
    """
    kind: Any = type(instance)
    for name, hint in _hints(kind).items():
        if wrong := misfit(getattr(instance, name), hint, name):
            raise TypeError(wrong)
    return instance


def misfit(value: Any, hint: Any, name: str) -> str | None:
    """Which rule a value of this name breaks, or the first thing in it that does; None when it is of its type.

    In lists and in what JSON holds of named types (TypedDict, dataclasses) it is looked for, and named with its place.
    """
    as_object = isinstance(hint, type) and dataclasses.is_dataclass(hint) and not isinstance(value, hint)
    if typing.is_typeddict(hint) or as_object:
        if not isinstance(value, dict):
            return f"{name or 'it'} must be an object, got {_short(value)}"
        begin = f"{name}." if name else ""
        if missing := sorted(_needed(hint) - set(value)):
            return f"{begin}{missing[0]} is missing"
        inner = ((value[key], kind, f"{begin}{key}") for key, kind in _hints(hint).items() if key in value)
    elif typing.get_origin(hint) is list and isinstance(value, list):
        (kind,) = typing.get_args(hint)
        inner = ((one, kind, f"{name}[{place}]") for place, one in enumerate(value))
    else:
        return None if fits(value, hint) else f"{name} must be {_words(hint)}, got {_short(value)}"
    return next((wrong for one, kind, where in inner if (wrong := misfit(one, kind, where))), None)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type. Whole numbers are numbers, truth values are not."""
    return _test(hint)(value)


@functools.cache
def _test(hint: Any) -> Callable[[Any], bool]:
    """What decides for one type: made once, as a record has hundreds of numbers, and a study thousands of records."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: True
    if origin is typing.Literal:
        return lambda value: value in inner
    if origin in (typing.Union, types.UnionType):
        tests = [_test(one) for one in inner]
        return lambda value: any(test(value) for test in tests)
    if origin is dict:
        key, item = map(_test, inner)
        return lambda value: isinstance(value, dict) and all(map(key, value)) and all(map(item, value.values()))
    if origin is list or typing.is_typeddict(hint):
        kind = origin or dict
        return lambda value: isinstance(value, kind) and misfit(value, hint, "") is None
    if origin is tuple:
        one = _test(inner[0])
        return lambda value: isinstance(value, tuple) and all(map(one, value))
    if hint is int:
        return _is_whole
    if hint is float:
        return lambda value: isinstance(value, float) or _is_whole(value)
    return lambda value: isinstance(value, hint)


def _is_whole(value: Any) -> bool:
    """A whole number of JSON has any length; arrays and tables take those of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


@functools.cache
def _hints(kind: Any) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    return (
        {field.name: hints[field.name] for field in dataclasses.fields(kind)}
        if dataclasses.is_dataclass(kind)
        else hints
    )


@functools.cache
def _needed(kind: Any) -> frozenset[str]:
    """Keys of a TypedDict that must be there. Its own `__required_keys__` is wrong where annotations are strings."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return frozenset(name for name, hint in hints.items() if typing.get_origin(hint) is not typing.NotRequired)


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint).replace("typing.", "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."

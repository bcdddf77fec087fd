"""Train, validation and test jets of a task: fixed by the task and the sizes, the same for every trial and seed.

Each class's jets are handed out in file order, test first, then validation, then training; the rows of a part are
interleaved in units of the task's composition. So a larger training set begins with the smaller one, and test and
validation jets stay the same, even when more jets are generated or loaded for it.
"""

from dataclasses import dataclass

import numpy as np

from jbot.data.jets import CLASSES, DataError

PARTS = ("test", "val", "train", "signal")
"""Order in which a class's jets are handed out."""

COMPOSITION: dict[str, dict[str, tuple[str, ...]]] = {
    "all": dict.fromkeys(PARTS[:-1], CLASSES),
    "tqg": dict.fromkeys(PARTS[:-1], ("q", "g", "t", "t")),
    "qg": {"train": ("q", "g"), "val": ("q", "g"), "test": CLASSES, "signal": ("w", "z", "t")},
}
"""Smallest unit of jets of each part: five-class; top tagging (q 25%, g 25%, t 50%); anomaly detection, which trains
on q and g and tests on all (jBOT, arXiv:2601.11719), and may follow other signal jets while it trains."""

TARGETS: dict[str, dict[str, tuple[str, ...]]] = {
    "all": {name: (name,) for name in CLASSES},
    "tqg": {"qcd": ("q", "g"), "t": ("t",)},
    "qg": {"q": ("q",), "g": ("g",)},
}
"""What a classifier of each task tells apart, in the order of its outputs. Of two, the second is the signal."""

_SHUFFLE_SEED = 20_260_119  # any fixed number: the order of classes inside a unit must never depend on a trial's seed


@dataclass(frozen=True, kw_only=True)
class Split:
    """Row numbers into the arrays of a `JetData`; no row is in two parts."""

    train: np.ndarray
    """(train,) int64"""
    val: np.ndarray
    """(val,) int64"""
    test: np.ndarray
    """(test,) int64"""
    signal: np.ndarray
    """(signal,) int64"""


def split(labels: np.ndarray, *, task: str = "all", train: int, val: int, test: int, signal: int = 0) -> Split:
    """Choose the jets of a task.

    Parameters
    ----------
    labels : (jet,) int array
        Positions in `CLASSES`.
    task : {"all", "tqg", "qg"}
        See `COMPOSITION`.
    train, val, test, signal : int
        Jets of each part. Where a size is no multiple of the unit, classes differ by at most one unit's share.

    Raises
    ------
    DataError
        For an unknown task, a negative size, a part that the task does not have, or too few jets, with the counts
        needed and available.
    """
    sizes = {"test": test, "val": val, "train": train, "signal": signal}
    needed = jets_needed(task=task, **sizes)
    rows = {name: np.flatnonzero(np.asarray(labels) == CLASSES.index(name)) for name in needed}
    if any(len(rows[name]) < count for name, count in needed.items()):
        counts = ", ".join(f"{name} {len(rows[name])} of {count}" for name, count in needed.items())
        raise DataError(f"too few jets for task {task!r}: {counts} needed")
    parts = {part: np.empty(0, np.int64) for part in PARTS}
    for part, size in sizes.items():
        if not size:
            continue
        unit = COMPOSITION[task][part]
        taken = {name: count for name, count in _taken(unit, size).items() if count}
        parts[part] = _interleave(unit, {name: rows[name][:count] for name, count in taken.items()}, size, part)
        rows |= {name: rows[name][count:] for name, count in taken.items()}
    return Split(**parts)


def targets(labels: np.ndarray, task: str) -> np.ndarray:
    """Position in `TARGETS` of each jet's class, (jet,) int64; -1 where the task's classifier does not know it."""
    positions = np.full(len(CLASSES), -1)
    for position, names in enumerate(TARGETS[task].values()):
        positions[[CLASSES.index(name) for name in names]] = position
    return positions[labels]


def jets_needed(*, task: str, train: int, val: int, test: int, signal: int = 0) -> dict[str, int]:
    """Jets of each class that `split` uses or sets aside, in class order; classes the task does not use are left out.

    Raises
    ------
    DataError
        For an unknown task, a negative size, a part that the task does not have, or all sizes zero.
    """
    sizes = {"train": train, "val": val, "test": test, "signal": signal}
    if task not in COMPOSITION:
        raise DataError(f"task must be one of {', '.join(COMPOSITION)}, got {task!r}")
    for part, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 0:
            raise DataError(f"{part} must be an integer >= 0, got {size!r}")
        if size and part not in COMPOSITION[task]:
            raise DataError(f"task {task!r} has no {part} jets, got {part} = {size}")
    taken = [_taken(COMPOSITION[task][part], size) for part, size in sizes.items() if size]
    needed = {name: sum(part.get(name, 0) for part in taken) for name in CLASSES}
    if not any(needed.values()):
        raise DataError("one of train, val and test must be > 0")
    return {name: count for name, count in needed.items() if count}


def _taken(unit: tuple[str, ...], size: int) -> dict[str, int]:
    """Jets of each class set aside for a part: whole units, so that the last, cut unit may end on any class."""
    units = -(-int(size) // len(unit))
    return {name: units * unit.count(name) for name in dict.fromkeys(unit)}


def _interleave(unit: tuple[str, ...], rows: dict[str, np.ndarray], size: int, part: str) -> np.ndarray:
    """Lay rows out unit by unit, classes in random order inside each unit; (size,) int64.

    Row-major draws make the order of the first units independent of how many follow.
    """
    columns = [rows[name].reshape(-1, unit.count(name)) for name in rows]
    units = np.concatenate(columns, axis=1)  # (unit, jet of the unit)
    rng = np.random.default_rng([_SHUFFLE_SEED, PARTS.index(part)])
    order = np.argsort(rng.random(units.shape), axis=1)
    return np.take_along_axis(units, order, axis=1).reshape(-1)[:size].astype(np.int64)

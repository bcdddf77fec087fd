"""Splits: composition, no shared jet, and a training set that grows without touching validation or test."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jbot.data import CLASSES, DataError, jets_needed, split
from jbot.data.splits import COMPOSITION

TASKS = st.sampled_from(sorted(COMPOSITION))
SIZES = st.integers(0, 60)


def labels_of(counts: dict[str, int]) -> np.ndarray:
    return np.repeat(np.arange(5), [counts.get(name, 0) for name in CLASSES])


@given(task=TASKS, train=st.integers(1, 90), val=SIZES, test=SIZES)
def test_jets_needed_are_enough_and_parts_are_disjoint(task: str, train: int, val: int, test: int) -> None:
    labels = labels_of(jets_needed(task=task, train=train, val=val, test=test))
    parts = split(labels, task=task, train=train, val=val, test=test)
    rows = np.concatenate([parts.train, parts.val, parts.test])
    assert (len(parts.train), len(parts.val), len(parts.test)) == (train, val, test)
    assert len(np.unique(rows)) == len(rows)
    assert rows.dtype == np.int64


@given(task=TASKS, units=st.integers(1, 12))
def test_composition_of_whole_units(task: str, units: int) -> None:
    sizes = {part: units * len(unit) for part, unit in COMPOSITION[task].items()}
    labels = labels_of(jets_needed(task=task, **sizes))
    parts = split(labels, task=task, **sizes)
    for part, unit in COMPOSITION[task].items():
        expected = [units * unit.count(name) for name in CLASSES]
        assert np.bincount(labels[getattr(parts, part)], minlength=5).tolist() == expected


@given(task=TASKS, small=st.integers(1, 60), more=st.integers(0, 60), spare=st.integers(0, 20))
def test_growing_training_sets_are_nested(task: str, small: int, more: int, spare: int) -> None:
    """The same jets, even when the larger training set needs more jets to be loaded."""
    large = small + more
    chosen = []
    for train in (small, large):
        needed = jets_needed(task=task, train=train, val=10, test=15)
        labels = labels_of({name: count + spare * (train == large) for name, count in needed.items()})
        parts = split(labels, task=task, train=train, val=10, test=15)
        number = np.concatenate([np.arange(np.sum(labels == label)) for label in range(5)])  # of the jet in its class
        chosen.append(
            [list(zip(labels[rows], number[rows], strict=True)) for rows in (parts.train, parts.val, parts.test)]
        )
    first, second = chosen
    assert second[0][:small] == first[0]
    assert second[1:] == first[1:]


def test_paper_sizes() -> None:
    assert jets_needed(task="all", train=700_000, val=50_000, test=95_000) == dict.fromkeys(CLASSES, 169_000)
    assert jets_needed(task="tqg", train=285_000, val=20_000, test=50_000) == {"q": 88_750, "g": 88_750, "t": 177_500}
    anomaly = jets_needed(task="qg", train=260_000, val=0, test=203_500)
    assert anomaly == {"q": 170_700, "g": 170_700, "w": 40_700, "z": 40_700, "t": 40_700}


def test_classes_are_mixed_and_the_same_each_time() -> None:
    labels = labels_of(dict.fromkeys(CLASSES, 100))
    first, second = (split(labels, train=300, val=100, test=100) for _ in range(2))
    np.testing.assert_array_equal(first.train, second.train)
    assert len({tuple(labels[first.train[i : i + 5]]) for i in range(0, 300, 5)}) > 20


def test_bad_requests() -> None:
    labels = labels_of({"q": 3, "g": 5, "t": 9})
    with pytest.raises(DataError, match=r"too few jets for task 'tqg': q 3 of 4, g 5 of 4, t 9 of 8 needed"):
        split(labels, task="tqg", train=8, val=4, test=4)
    with pytest.raises(DataError, match="task must be one of all, tqg, qg, got 'tops'"):
        split(labels, task="tops", train=8, val=4, test=4)
    with pytest.raises(DataError, match="val must be an integer >= 0, got -4"):
        jets_needed(task="all", train=8, val=-4, test=4)
    with pytest.raises(DataError, match="one of train, val and test must be > 0"):
        jets_needed(task="all", train=0, val=0, test=0)

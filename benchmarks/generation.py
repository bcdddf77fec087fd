"""Jets made a second on one core, against Pythia's bare event loop on the same events."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from benchmarks.steps import Setting
from benchmarks.timing import Row, quartiles, value_row
from jbot.data import pythia
from jbot.data.jets import CLASSES


def generation(setting: Setting) -> list[Row]:
    """CPU time of the whole recipe a jet, and its ratio to `next()` alone.

    Two generators of one seed make the same events, one batch each in turn: one is only asked for events, of the other
    the jets are made. Starting Pythia is left out of both.
    """
    classes = ("q", "t") if setting.quick else CLASSES
    rounds = 3 if setting.quick else 5
    rows = []
    for name in classes:
        rows += _class_rows(name, rounds)
        if setting.advance:
            setting.advance()
    return rows


def _class_rows(name: str, rounds: int) -> list[Row]:
    settings = pythia.Settings()
    bare, _hook = _start(name, settings)
    whole, _other_hook = _start(name, settings)
    detector = np.random.default_rng(1)
    _bare(bare), _jets(whole, settings, detector)  # tables are built with the first events
    costs, rates = [], []
    for number in range(rounds):
        if number % 2 == 0:
            alone, (jets, seconds) = _bare(bare), _jets(whole, settings, detector)
        else:
            (jets, seconds), alone = _jets(whole, settings, detector), _bare(bare)
        costs.append(seconds / alone)
        rates.append(jets / seconds)
    row = value_row(f"{name} jets", "jets/CPU s", rates, note=f"{pythia.BATCH} events a round")
    cost = quartiles(costs)
    what = {"class": name, "cost_of_bare_next": cost}
    note = f"costs {cost[0]:.2f} ({cost[1]:.2f} to {cost[2]:.2f}) times next() alone"
    speed = (1 / cost[0], 1 / cost[2], 1 / cost[1])
    return [dataclasses.replace(row, cpu_ratio=speed, base="bare next()", note=f"{row.note}; {note}", settings=what)]


def _start(name: str, settings: pythia.Settings) -> tuple[object, object]:
    return pythia.start_pythia(name, settings, np.random.SeedSequence(1), np.random.default_rng(1))


def _bare(generator: object) -> float:
    """CPU seconds of a batch of events."""
    started = time.process_time()
    for _ in range(pythia.BATCH):
        generator.next()  # type: ignore[attr-defined]
    return time.process_time() - started


def _jets(generator: object, settings: pythia.Settings, detector: np.random.Generator) -> tuple[int, float]:
    """Jets of a batch of events, and CPU seconds of making them."""
    started = time.process_time()
    particles, pdg_id = pythia.final_state(generator.nextBatch(pythia.BATCH))  # type: ignore[attr-defined]
    measured = pythia.simulate(particles, pdg_id, detector)
    rows, _ = pythia.jet_features(*pythia.leading_jets(measured, settings))
    return len(rows), time.process_time() - started

"""Jets made a second on one core, against Pythia's bare event loop on the same events."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.steps import Setting
from benchmarks.timing import Row, Variant, ratios, value_row
from jbot.data import pythia
from jbot.data.jets import CLASSES


def generation(setting: Setting) -> list[Row]:
    """CPU time of the whole recipe a jet, and its ratio to `next()` alone.

    Two generators of one seed make the same events, one batch each in turn: one is only asked for events, of the other
    the jets are made. Starting Pythia is left out of both; tables are built with the first events, the warm-up.
    """
    return [_row(setting, name) for name in (("q", "t") if setting.quick else CLASSES)]


def _row(setting: Setting, name: str) -> Row:
    settings, detector = pythia.Settings(), np.random.default_rng(1)
    (bare, _), (whole, _) = (_start(name, settings) for _ in range(2))
    jets: list[int] = []

    def only_events() -> None:
        for _ in range(pythia.BATCH):
            bare.next()

    def make_jets() -> None:
        particles, pdg_id = pythia.final_state(whole.nextBatch(pythia.BATCH))
        measured = pythia.simulate(particles, pdg_id, detector)
        rows, _ = pythia.jet_features(*pythia.leading_jets(measured, settings))
        jets.append(len(rows))

    variants = [Variant(name="bare", run=only_events), Variant(name="jets", run=make_jets)]
    samples = setting.timed(variants, rounds=5, budget=600)
    alone, made = ([sample.cpu for sample in samples[variant.name]] for variant in variants)
    cost = ratios(made, alone)
    return value_row(
        f"{name} jets",
        "jets/CPU s",
        [count / seconds for count, seconds in zip(jets[-len(made) :], made, strict=True)],
        cpu_ratio=ratios(alone, made),
        base="bare next()",
        note=f"{pythia.BATCH} events a round; costs {cost[0]:.2f} ({cost[1]:.2f} to {cost[2]:.2f}) times next() alone",
        settings={"class": name, "cost_of_bare_next": cost},
    )


def _start(name: str, settings: pythia.Settings) -> Any:
    return pythia.start_pythia(name, settings, np.random.SeedSequence(1), np.random.default_rng(1))

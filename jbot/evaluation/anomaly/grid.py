"""Anomaly detection by one encoder over scores, their settings, sizes and draws of the bank, and signals.

    make_grid(AnomalyGrid(), spec, data, storage)
    rows = storage.read_rows(grid_file(AnomalyGrid(), spec.trial_id))

A row has `trained` (or before training), `score`, `settings` (JSON), `bank_jets`, `draw`, `signal`, `auc`, `error` (of
so many test jets), `published` (the settings), and `chosen`: the settings of the score that separate the synthetic
signal best, among all of this bank. The oracle's are those of the highest `auc`. An `auc` is missing where the bank
cannot carry the score. Nothing is trained; what is there is not computed again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from jbot.config import Config, override
from jbot.data import Jets
from jbot.evaluation.anomaly.detect import Truth, truth_of
from jbot.evaluation.anomaly.grid_settings import AnomalyGrid
from jbot.evaluation.anomaly.scores import MIN_BANK, SCORES, AnomalyError, Bank, Embedded, Settings, draw_bank
from jbot.evaluation.anomaly.synthetic_signal import SelectionSignal, selection_auc
from jbot.evaluation.evaluator import Evaluator
from jbot.evaluation.metrics import rank_auc
from jbot.evaluation.metrics_registry import SIGNALS
from jbot.store.record import TrialSpec, trial_folder
from jbot.store.storage import Storage
from jbot.trainer.engines.select import find_engine
from jbot.trainer.inputs import prepare, resident
from jbot.trainer.model import pack
from jbot.trainer.state import init_state

Row = dict[str, Any]


def grid_file(grid: AnomalyGrid, trial: str) -> str:
    """Where the rows of a trial lie."""
    return f"{trial_folder(trial)}/anomaly_grid-{grid.hash}.parquet"


def bank_sizes(grid: AnomalyGrid, config: Config) -> tuple[int, ...]:
    """Jets of the banks, largest first: the largest has `anomaly.bank_jets`, but at most half of the training jets.

    Otherwise its draws would be the same jets.
    """
    largest = min(config.anomaly.bank_jets, config.data.train_jets // 2)
    return tuple(dict.fromkeys(max(MIN_BANK, round(share * largest)) for share in grid.shares))


def make_grid(grid: AnomalyGrid, spec: TrialSpec, data: Jets, storage: Storage, device: str = "cpu") -> None:
    """Leave the rows of a complete trial in its folder, if they are not there.

    Jets are embedded on `device`; scores are made on the CPU, with as many threads as torch has. Raises AnomalyError
    when the trial is not of the task `qg` or has fewer than `MIN_BANK` training jets, RecordError when its weights are
    missing.
    """
    name = grid_file(grid, spec.trial_id)
    if storage.exists(name):
        return
    if spec.config.data.task != "qg":
        raise AnomalyError(f"an anomaly grid is of trials with data.task qg, got {spec.config.data.task}")
    config, torch_device = spec.config, torch.device(device)
    jets = data.at(config.data.jet_pt)
    particles = resident(jets, config.data.particles, torch_device)
    # All training jets, to draw banks from.
    _, splits = prepare(config.data, config.data.train_jets, data=jets, particles=particles)
    forward = find_engine("fused", override(config, {"train.precision": "fp32"}), torch_device).forward
    evaluator = Evaluator(config, splits["bank"], splits["val"], splits["test"], forward=forward)
    untrained = init_state(config, [config.seed], torch_device)
    weights = storage.read_arrays(f"{trial_folder(spec.trial_id)}/student.safetensors")
    trained = untrained.of({"student": pack(weights, config.model)[None].to(torch_device)}, untrained.progress)
    rows: list[Row] = []
    with threadpool_limits(torch.get_num_threads()):
        for state, draws in ((trained, grid.draws), (untrained, grid.floor_draws)):
            train, test, selection = evaluator.anomaly_jets(state)
            assert selection is not None
            for size, draw in itertools.product(bank_sizes(grid, config), range(draws)):
                where = {"bank_jets": size, "draw": draw, "trained": state is trained}
                rows += [row | where for row in bank_rows(grid, train, test, selection, size, draw)]
    storage.write_rows(name, rows)


def bank_rows(
    grid: AnomalyGrid, train: Embedded, test: Embedded, selection: SelectionSignal, bank_jets: int, draw: int
) -> list[Row]:
    """Every score and setting on one bank, on the unit sphere and as it is. All k share one search for neighbours.

    The values are those of :func:`jbot.evaluation.anomaly.detect.detect` at the same bank; `draw` is the seed of the
    bank and of the scores that draw.
    """
    truth = truth_of(test.labels, SIGNALS)
    rows: list[Row] = []
    bank: Bank | None
    for normalise in (True, False):
        try:
            bank = draw_bank(train, bank_jets, draw, normalise)
            points = (test.embedding, selection.background.embedding, selection.embedding)
            jets, background, signal = map(bank.jets, points)
        except AnomalyError:  # the whole bank looks alike to this encoder
            bank = None
        for name in grid.scores if normalise else [name for name in grid.scores if name in grid.as_it_is]:
            for settings in SCORES[name].grid:
                scores, area = None, None
                if bank is not None:
                    with contextlib.suppress(AnomalyError):  # a bank that cannot carry the score
                        fitted = bank.fit(name, **settings)
                        scores, area = fitted(jets), selection_auc(fitted, background, signal)
                rows += _rows(name, settings, normalise, truth, scores, area)
    for score in grid.scores:
        same = [row for row in rows if row["score"] == score]
        areas = [row["pilot_auc"] for row in same]
        best = max((area for area in areas if area is not None), default=None)
        first = same[areas.index(best)]["settings"] if best is not None else None
        for row in same:
            row["chosen"] = row["settings"] == first
    return rows


def _rows(
    name: str, settings: Settings, normalise: bool, truth: Truth, scores: np.ndarray | None, area: float | None
) -> Iterator[Row]:
    """A row for each signal."""
    published = normalise and settings == SCORES[name].defaults
    # Only the scores that are made both ways are named by it: cosines are always on the sphere.
    text = json.dumps(settings if normalise else settings | {"normalise": False}, sort_keys=True)
    for signal, mask in truth.signals.items():
        row = {"score": name, "settings": text, "signal": signal, "published": published, "pilot_auc": area}
        used = mask | truth.background
        measured = None if scores is None else rank_auc(scores[used], mask[used])
        yield row | {"auc": measured and measured.value, "error": measured and measured.error}


# Seconds of one core for a bank of n jets and m others, from a grid of 44.1 s (n = 1,250 and 5,000, m = 6,500) on
# one core of two: neighbours and distances go with n m, mixtures with n, the rest with m.
SECONDS_A_PAIR, SECONDS_A_BANK_JET, SECONDS_A_JET = 4e-8, 1.2e-3, 1.5e-4


def grid_seconds(grid: AnomalyGrid, config: Config) -> float:
    """About what the grid of one trial takes on one core, by its sizes; within a factor of two (assumed)."""
    jets = config.data.test_jets + 2 * config.data.val_jets
    each = (n * jets * SECONDS_A_PAIR + n * SECONDS_A_BANK_JET + jets * SECONDS_A_JET for n in bank_sizes(grid, config))
    return (grid.draws + grid.floor_draws) * sum(each)

"""Anomaly detection: how well scores find jets of kinds that neither encoder nor bank have seen (arXiv:2601.11719).

    found = detect(train, test, seed=0)                   published settings
    selection = overlay_signal(val, embed, seed=0)
    found = detect(train, test, seed=0, selection=selection)      and settings chosen blind to the signal

Settings are chosen in jbot.evaluation.anomaly.synthetic_signal, which sees no jet that is reported. The paper chose its
settings on the test labels; that number is here as the oracle, and what it gains by looking is the optimism.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from jbot.data.jets import CLASSES
from jbot.evaluation.anomaly.scores import (
    SCORES,
    STANDARD,
    AnomalyError,
    Bank,
    Embedded,
    Jets,
    Labels,
    Score,
    Settings,
    draw_bank,
)
from jbot.evaluation.anomaly.synthetic_signal import SelectionSignal, check_blind, choose_all
from jbot.evaluation.metrics import Measured, auc, auc_difference, detection, share_below
from jbot.evaluation.metrics_registry import ANOMALY_CURVE, BACKGROUND, COMBINED, SIGNALS, anomaly_name

Mask = Bool[np.ndarray, "jet"]

BANK_JETS = 20_000


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What scores found."""

    values: dict[str, Measured]
    """By `anomaly_<score>_<metric>`, with `_<signal>` behind it but for the combined signal."""
    scores: dict[str, Float[np.ndarray, "jet"]]
    """Scores of every test jet at published settings, by score."""
    chosen: dict[str, Settings] = field(default_factory=dict)
    """Settings chosen blind to the signal, by score."""
    oracle: dict[str, dict[str, Settings]] = field(default_factory=dict)
    """Best settings on the test jets, by score and signal."""


def detect(
    train: Embedded,
    test: Embedded,
    *,
    seed: int,
    bank_jets: int = BANK_JETS,
    selection: SelectionSignal | None = None,
    scores: Sequence[str] | None = None,
    signals: Sequence[str] = SIGNALS,
    normalise: bool = True,
    folds: bool = True,
) -> Detection:
    """Score test jets against a bank of training jets, and evaluate the scores on each signal.

    Parameters
    ----------
    train : Embedded
        Quark and gluon jets; the bank is drawn from them.
    test : Embedded
        Background and signal jets.
    seed : int
        Draws the bank, and starts the scores that draw.
    bank_jets : int
        As many jets are in the bank, fewer when there are fewer.
    selection : SelectionSignal, optional
        Also choose settings on it, and find the oracle's.
    scores : sequence of str, optional
        Names in `SCORES`. By default the standard ones; with a selection also LOF, isolation forest and, when there
        are particles, the autoencoder.
    signals : sequence of str
        What is reported, of `SIGNALS`.
    normalise : bool
        Embeddings on the unit sphere, as published.
    folds : bool
        With the spread over folds of the test jets.

    Raises
    ------
    AnomalyError
        For bad jets (see :class:`Bank`), a missing class, too few jets, or a selection signal that would be reported.
    """
    truth = truth_of(test.labels, signals)
    bank = draw_bank(train, bank_jets, seed, normalise)
    if selection is not None:
        check_blind(selection, signals)
        check_unseen(selection, test, truth)
    jets = bank.jets(test.embedding, test.particles)
    if scores is None:
        of_particles = selection is not None and all(
            some.particles is not None for some in (train, test, selection.background, selection)
        )
        every = SCORES if selection is not None else STANDARD
        scores = [name for name in every if of_particles or not SCORES[name].uses_particles]
    published = {name: bank.fit(name)(jets) for name in scores}
    values: dict[str, Measured] = {}
    for name, (signal, mask) in itertools.product(scores, truth.signals.items()):
        rows = mask | truth.background
        measured = detection(published[name][rows], mask[rows], folds)
        values |= {anomaly_name(name, metric, signal): measured[metric] for metric in ANOMALY_CURVE}
    chosen = {} if selection is None else choose_all(bank, selection, scores)
    oracle: dict[str, dict[str, Settings]] = {}
    for name in chosen:
        gap, oracle[name] = against_oracle(SCORES[name], bank, jets, chosen[name], truth)
        values |= gap
    single = {name: exact.astype(np.float32) for name, exact in published.items()}
    return Detection(values=values, scores=single, chosen=chosen, oracle=oracle)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Which test jets are what is reported."""

    background: Mask
    signals: dict[str, Mask]
    """By names of `SIGNALS`."""


def truth_of(labels: Labels, signals: Sequence[str]) -> Truth:
    """Background and signals among test jets; raises AnomalyError for an unknown or a missing one."""
    background = np.isin(labels, [CLASSES.index(name) for name in BACKGROUND])
    masks = {"background": background}
    for name in signals:
        if name not in SIGNALS:
            raise AnomalyError(f"signal must be one of {', '.join(SIGNALS)}, got {name!r}")
        masks[name] = ~background if name == COMBINED else labels == CLASSES.index(name)
    missing = [name for name, mask in masks.items() if not mask.any()]
    if missing:
        raise AnomalyError(f"the test jets must have {', '.join(masks)}, got no {missing[0]} among {len(labels)}")
    return Truth(background=masks.pop("background"), signals=masks)


def check_unseen(selection: SelectionSignal, test: Embedded, truth: Truth) -> None:
    """Raise AnomalyError when an embedding of the selection is that of a reported test jet, number for number."""
    reported = np.logical_or.reduce([truth.background, *truth.signals.values()])
    known = {row.tobytes() for row in np.asarray(test.embedding, np.float64)[reported]}
    for name, points in (("background", selection.background.embedding), ("signal", selection.embedding)):
        seen = sum(row.tobytes() in known for row in np.asarray(points, np.float64))
        if seen:
            raise AnomalyError(f"settings must not be chosen on reported jets, got {seen} of them as selection {name}")


def against_oracle(
    score: Score, bank: Bank, test: Jets, chosen: Settings, truth: Truth
) -> tuple[dict[str, Measured], dict[str, Settings]]:
    """AUC at the chosen settings, at the oracle's, and what the oracle gains by looking; and the oracle's settings.

    The oracle's are, for each signal, the settings of the grid with the best AUC on the very jets that are reported.
    """
    every = [bank.fit(score.name, **settings)(test) for settings in score.grid]
    below = [share_below(scores, scores[truth.background]) for scores in every]
    values, oracle = {}, {}
    for signal, mask in truth.signals.items():
        rows, best = mask | truth.background, int(np.argmax([shares[mask].mean() for shares in below]))
        ours, highest = every[score.grid.index(chosen)][rows], every[best][rows]
        values[anomaly_name(score.name, "chosen_auc", signal)] = auc(ours, mask[rows])
        values[anomaly_name(score.name, "oracle_auc", signal)] = auc(highest, mask[rows])
        values[anomaly_name(score.name, "optimism", signal)] = auc_difference(highest, ours, mask[rows])
        oracle[signal] = score.grid[best]
    return values, oracle

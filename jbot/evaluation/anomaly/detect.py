"""Anomaly detection: how well scores find jets of kinds that neither encoder nor bank have seen (arXiv:2601.11719).

    found = detect(train, test, seed=0)                   published settings
    pilot = overlay_pilot(val, embed, seed=0)
    found = detect(train, test, seed=0, pilot=pilot)      and settings chosen behind the firewall

The firewall: settings are chosen by :func:`choose`, which is handed background jets and a pilot signal and nothing
else. The paper chose its settings on the test labels; that number is here as the oracle, and what it gains by looking
is the optimism.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from jbot.data.jets import CLASSES
from jbot.evaluation.anomaly.scores import (
    LEAST_BANK,
    PUBLISHED,
    SCORES,
    AnomalyError,
    Bank,
    Fitted,
    Jets,
    Labels,
    Particles,
    Points,
    Score,
    Scores,
    Settings,
    check_background,
    draw_rows,
    find_score,
)
from jbot.evaluation.anomaly.synthetic_signal import RADIUS, overlay
from jbot.evaluation.metrics import Measured, auc, auc_difference, detection, share_below
from jbot.evaluation.metrics_registry import ANOMALY_CURVE, BACKGROUND, COMBINED, SIGNALS, anomaly_name
from jbot.trainer.rng import numpy_generator

Mask = Bool[np.ndarray, "jet"]

BANK_JETS = 20_000

__all__ = [
    "LEAST_BANK",
    "SCORES",
    "AnomalyError",
    "Bank",
    "Detection",
    "Embedded",
    "Pilot",
    "choose",
    "detect",
    "overlay_pilot",
]


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Labeled jets by their embedding."""

    embedding: Points
    labels: Labels
    """Positions in `CLASSES`."""
    particles: Particles | None = None
    """For the autoencoder."""

    def __post_init__(self) -> None:
        for name, array in (("labels", self.labels), ("particles", self.particles)):
            if array is not None and len(array) != len(self.embedding):
                raise AnomalyError(f"{name} must be of the same {len(self.embedding)} jets, got {len(array)}")
        if not np.isin(self.labels, range(len(CLASSES))).all():
            raise AnomalyError(f"labels must be positions in {', '.join(CLASSES)}, got {np.unique(self.labels)}")


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """All that settings may be chosen on: background jets and a signal that is not reported."""

    background: Embedded
    """Jets of neither bank nor test, say the validation jets."""
    embedding: Points
    """Of the pilot signal's jets."""
    particles: Particles | None = None
    signal: str | None = None
    """None: made of background (:func:`overlay_pilot`), good for every signal. Else a class of real signal jets,
    which then cannot be reported, nor can the combined signal, which has it inside."""

    def __post_init__(self) -> None:
        check_background(self.background.labels, "background of the pilot")


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What scores found."""

    values: dict[str, Measured]
    """By `anomaly_<score>_<metric>`, with `_<signal>` behind it but for the combined signal."""
    scores: dict[str, Float[np.ndarray, "jet"]]
    """Of every test jet at published settings, by score."""
    chosen: dict[str, Settings] = field(default_factory=dict)
    """Settings chosen behind the firewall, by score."""
    oracle: dict[str, dict[str, Settings]] = field(default_factory=dict)
    """Best settings on the test jets, by score and signal."""


def detect(
    train: Embedded,
    test: Embedded,
    *,
    seed: int,
    bank_jets: int = BANK_JETS,
    pilot: Pilot | None = None,
    scores: Sequence[str] | None = None,
    signals: Sequence[str] = SIGNALS,
    normalise: bool = True,
    folds: bool = True,
) -> Detection:
    """Score test jets against a bank of training jets, and judge the scores on each signal.

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
    pilot : Pilot, optional
        Also choose settings on it, and find the oracle's.
    scores : sequence of str, optional
        Names in `SCORES`. By default the published ones; with a pilot also LOF, isolation forest and, when there are
        particles, the autoencoder.
    signals : sequence of str
        What is reported, of `SIGNALS`.
    normalise : bool
        Embeddings on the unit sphere, as published.
    folds : bool
        With the spread over folds of the test jets.

    Raises
    ------
    AnomalyError
        For bad jets (see :class:`Bank`), a missing class, too few jets, or a pilot signal that would be reported.
    """
    truth = truth_of(test.labels, signals)
    bank = draw_bank(train, bank_jets, seed, normalise)
    if pilot is not None:
        check_firewall(pilot, signals)
        check_unseen(pilot, test, truth)
    jets = bank.jets(test.embedding, test.particles)
    names = tuple(scores) if scores is not None else _default_scores(train, test, pilot)
    published = {name: bank.fit(name)(jets) for name in names}
    values = {key: value for name in names for key, value in _published(name, published[name], truth, folds).items()}
    chosen = {} if pilot is None else choose_all(bank, pilot, names)
    oracle: dict[str, dict[str, Settings]] = {}
    for name in chosen:
        gap, oracle[name] = against_oracle(SCORES[name], bank, jets, chosen[name], truth)
        values |= gap
    kept = {name: found.astype(np.float32) for name, found in published.items()}
    return Detection(values=values, scores=kept, chosen=chosen, oracle=oracle)


def draw_bank(train: Embedded, bank_jets: int, seed: int, normalise: bool = True) -> Bank:
    """A bank of training jets, drawn without replacement from the stream "bank" of the seed."""
    rows = draw_rows(len(train.embedding), bank_jets, numpy_generator(seed, "bank"))
    particles = None if train.particles is None else train.particles[rows]
    return Bank(train.embedding[rows], train.labels[rows], particles, seed=seed, normalise=normalise)


# What chooses: no argument of these holds a jet that is reported.


def choose(score: Score, bank: Bank, background: Jets, pilot: Jets) -> Settings:
    """Settings of the grid that separate the pilot signal from background best, by AUC; of equal ones the first.

    Parameters
    ----------
    score : Score
    bank : Bank
    background, pilot : Jets
        Prepared by :meth:`Bank.jets`.
    """
    fits = [bank.fit(score.name, **settings) for settings in score.grid]
    return score.grid[int(np.argmax([pilot_area(fitted, background, pilot) for fitted in fits]))]


def pilot_area(fitted: Fitted, background: Jets, pilot: Jets) -> float:
    """How well a score separates the pilot signal from background: the AUC."""
    return float(share_below(fitted(pilot), fitted(background)).mean())


def choose_all(bank: Bank, pilot: Pilot, names: Sequence[str] = PUBLISHED) -> dict[str, Settings]:
    """Settings of each score, chosen on the pilot."""
    background = bank.jets(pilot.background.embedding, pilot.background.particles)
    signal = bank.jets(pilot.embedding, pilot.particles)
    return {name: choose(find_score(name), bank, background, signal) for name in names}


def overlay_pilot(
    background: Embedded, embed: Callable[[Particles], Points], seed: int, radius: float = RADIUS
) -> Pilot:
    """A pilot signal of overlaid background jets, drawn from the stream "pilot" of the seed.

    The same jets are the background that it is told from.

    Parameters
    ----------
    background : Embedded
        With particles; jets of neither bank nor test.
    embed : callable
        The encoder: particles (jet, particle, 4) to embeddings (jet, dim).
    radius : float
        Of the jets.
    """
    if background.particles is None or len(background.particles) < 2:
        raise AnomalyError("a pilot of overlays needs the particles of at least 2 background jets")
    particles = overlay(background.particles, numpy_generator(seed, "pilot"), radius)
    return Pilot(background=background, embedding=embed(particles), particles=particles)


def check_firewall(pilot: Pilot, signals: Sequence[str]) -> None:
    """A signal that settings are chosen on cannot be reported.

    Raises
    ------
    AnomalyError
        When it would be, alone or in the combined signal.
    """
    if pilot.signal is None:
        return
    if pilot.signal not in SIGNALS[:-1]:
        raise AnomalyError(f"the pilot signal must be one of {', '.join(SIGNALS[:-1])} or None, got {pilot.signal!r}")
    barred = [name for name in signals if name in (pilot.signal, COMBINED)]
    if barred:
        rest = [name for name in SIGNALS[:-1] if name != pilot.signal]
        raise AnomalyError(
            f"settings chosen on {pilot.signal} cannot be reported for {' and '.join(barred)}: report"
            f" {', '.join(rest)}, or choose on overlays of background"
        )


def check_unseen(pilot: Pilot, test: Embedded, truth: Truth) -> None:
    """No jet that is reported may be among those that settings are chosen on.

    Raises
    ------
    AnomalyError
        When an embedding of the pilot is that of a reported test jet, number for number.
    """
    reported = np.logical_or.reduce([truth.background, *truth.signals.values()])
    known = {row.tobytes() for row in np.asarray(test.embedding, np.float64)[reported]}
    for name, points in (("background", pilot.background.embedding), ("signal", pilot.embedding)):
        seen = sum(row.tobytes() in known for row in np.asarray(points, np.float64))
        if seen:
            raise AnomalyError(f"settings must not be chosen on reported jets, got {seen} of them as pilot {name}")


# What looks at the reported signals.


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Which test jets are what is reported."""

    background: Mask
    signals: dict[str, Mask]
    """By names of `SIGNALS`."""


def truth_of(labels: Labels, signals: Sequence[str]) -> Truth:
    """Background and signals among test jets.

    Raises
    ------
    AnomalyError
        For an unknown signal, or when one of them or the background is missing.
    """
    background = np.isin(labels, [CLASSES.index(name) for name in BACKGROUND])
    found = {"background": background}
    for name in signals:
        if name not in SIGNALS:
            raise AnomalyError(f"signal must be one of {', '.join(SIGNALS)}, got {name!r}")
        found[name] = ~background if name == COMBINED else labels == CLASSES.index(name)
    missing = [name for name, mask in found.items() if not mask.any()]
    if missing:
        raise AnomalyError(f"the test jets must have {', '.join(found)}, got no {missing[0]} among {len(labels)}")
    return Truth(background=found.pop("background"), signals=found)


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
        best = int(np.argmax([shares[mask].mean() for shares in below]))
        rows = mask | truth.background
        ours, highest = (auc(every[row][rows], mask[rows]) for row in (score.grid.index(chosen), best))
        values[anomaly_name(score.name, "chosen_auc", signal)] = ours
        values[anomaly_name(score.name, "oracle_auc", signal)] = highest
        gain = auc_difference(every[best][rows], every[score.grid.index(chosen)][rows], mask[rows])
        values[anomaly_name(score.name, "optimism", signal)] = gain
        oracle[signal] = score.grid[best]
    return values, oracle


def _published(name: str, scores: Scores, truth: Truth, folds: bool) -> dict[str, Measured]:
    """Metrics of one score for every signal."""
    found: dict[str, Measured] = {}
    for signal, mask in truth.signals.items():
        rows = mask | truth.background
        measured = detection(scores[rows], mask[rows], folds)
        found |= {anomaly_name(name, metric, signal): measured[metric] for metric in ANOMALY_CURVE}
    return found


def _default_scores(train: Embedded, test: Embedded, pilot: Pilot | None) -> tuple[str, ...]:
    if pilot is None:
        return PUBLISHED
    particles = all(some.particles is not None for some in (train, test, pilot.background, pilot))
    return tuple(name for name, score in SCORES.items() if particles or not score.uses_particles)

"""A synthetic signal made of background alone, and the choice of anomaly-score settings on it: blind to real signal.

Two background jets, laid over each other as the two prongs of one jet, look like the decay of something heavy, of no
particular mass. No signal jet is used, so settings chosen on it may be reported for every signal. No argument of a
function that chooses holds a jet that is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jbot.config import Config
from jbot.data import JetData, split
from jbot.evaluation.anomaly.scores import (
    STANDARD,
    AnomalyError,
    Bank,
    Embedded,
    Fitted,
    Jets,
    Particles,
    Points,
    Score,
    Settings,
    check_background,
    draw_bank,
    find_score,
)
from jbot.evaluation.metrics import share_below
from jbot.evaluation.metrics_registry import COMBINED, SIGNALS
from jbot.trainer.rng import numpy_generator

ETA, PHI, PT, VALID = range(4)
RADIUS = 0.4
"""Radius of JetNet's jets at 1 TeV, anti-kT (arXiv:2106.11535)."""
MIN_SHARE = 0.1
"""Share of the momentum that the softer prong has: the z_cut of the soft-drop grooming that the jets passed."""
MIN_SEPARATION = 0.25
"""Distance of the prongs, in units of the radius: 0.1 at 1 TeV, below W (2 m / pT = 0.16) and top (0.35)."""


def overlay(particles: Particles, generator: np.random.Generator, radius: float = RADIUS) -> Particles:
    """Two-prong jets, each of two different background jets.

    - Jets are paired at random, each used twice; the first takes the share z of the momentum, uniform in [0.1, 0.5].
    - The axes lie Delta R apart, uniform in [radius / 4, radius], at a random angle, their centre of momentum on the
      axis of the new jet: m = pT Delta R sqrt(z (1 - z)) is 30 to 200 GeV at 1 TeV.
    - A prong keeps its particles within Delta R of its axis: what decays has no colour and radiates inside its opening
      angle. Particles beyond the radius of the new jet are outside it.
    - pt_rel is relative to the momentum that is kept, the axis is the kept particles' centre, and the hardest
      particles fill the slots, hardest first.

    Parameters
    ----------
    particles : float array (jet, particle, 4)
        Background jets, at least two: eta_rel, phi_rel, pt_rel, valid.
    generator : numpy Generator
    radius : float
        Of the jets, in radians.

    Returns
    -------
    float32 array (jet, particle, 4)
        As many jets as came in; padding is zero.
    """
    jets, slots, _ = particles.shape
    if jets < 2:
        raise ValueError(f"an overlay needs at least 2 background jets, got {jets}")
    order = generator.permutation(jets)
    share = generator.uniform(MIN_SHARE, 0.5, jets)
    apart = generator.uniform(MIN_SEPARATION * radius, radius, jets)
    angle = generator.uniform(-math.pi, math.pi, jets)
    pair = np.stack((particles[order], particles[np.roll(order, 1)]), axis=1).astype(np.float64)
    prongs = _placed(pair, share, apart, angle).reshape(jets, 2 * slots, 4)
    return _as_jet(prongs, radius)[:, :slots].astype(np.float32)


def _placed(
    pair: Float[np.ndarray, "jet 2 particle 4"],
    share: Float[np.ndarray, "jet"],
    apart: Float[np.ndarray, "jet"],
    angle: Float[np.ndarray, "jet"],
) -> Float[np.ndarray, "jet 2 particle 4"]:
    """Prongs at their places with their shares of the momentum; what they do not keep is padding."""
    away = np.hypot(pair[..., ETA], pair[..., PHI])
    kept = pair[..., VALID] * (away <= apart[:, None, None])
    # The hardest particle stays, so that no prong is empty.
    kept[..., 0] = pair[..., 0, VALID]
    shares = np.stack((share, 1 - share), axis=1)
    side = np.stack((1 - share, -share), axis=1) * apart[:, None]
    eta = pair[..., ETA] + (side * np.cos(angle)[:, None])[..., None]
    phi = pair[..., PHI] + (side * np.sin(angle)[:, None])[..., None]
    return np.stack((eta, phi, pair[..., PT] * shares[..., None], np.ones_like(eta)), axis=-1) * kept[..., None]


def _as_jet(particles: Float[np.ndarray, "jet particle 4"], radius: float) -> Float[np.ndarray, "jet particle 4"]:
    """What lies inside the radius, relative to its own momentum and centre, hardest first."""
    inside = np.hypot(particles[..., ETA], particles[..., PHI]) <= radius
    inside |= particles[..., PT] == particles[..., PT].max(1, keepdims=True)  # so that no jet is empty
    particles = particles * inside[..., None]
    momentum = particles[..., PT].sum(1)[:, None]
    pt = particles[..., PT] / momentum
    centre = (particles[..., :2] * pt[..., None]).sum(1, keepdims=True)
    moved = (particles[..., :2] - centre) * particles[..., VALID, None]
    jets = np.concatenate((moved, pt[..., None], particles[..., VALID, None]), axis=-1)
    return np.take_along_axis(jets, np.argsort(-pt, axis=1, kind="stable")[..., None], axis=1)


@dataclass(frozen=True, kw_only=True)
class SelectionSignal:
    """All that settings may be chosen on: background jets, and a signal that is not reported."""

    background: Embedded
    """Jets of neither bank nor test, say the validation jets."""
    embedding: Points
    """The signal's jets, by their embedding."""
    particles: Particles | None = None
    signal: str | None = None
    """None: made of background (:func:`overlay_signal`), good for every signal. Else a class of real signal jets,
    which then cannot be reported, nor can the combined signal, which has it inside."""

    def __post_init__(self) -> None:
        check_background(self.background.labels, "background of the selection")


def choose(score: Score, bank: Bank, background: Jets, selection: Jets) -> Settings:
    """Settings of the grid that separate the selection signal from background best, by AUC; of equal ones the first."""
    fits = (bank.fit(score.name, **settings) for settings in score.grid)
    return score.grid[int(np.argmax([selection_auc(fitted, background, selection) for fitted in fits]))]


def selection_auc(fitted: Fitted, background: Jets, selection: Jets) -> float:
    """How well a score separates the selection signal from background: the AUC."""
    return float(share_below(fitted(selection), fitted(background)).mean())


def choose_all(bank: Bank, selection: SelectionSignal, names: Sequence[str] = STANDARD) -> dict[str, Settings]:
    """Settings of each score, chosen on this signal."""
    background = bank.jets(selection.background.embedding, selection.background.particles)
    signal = bank.jets(selection.embedding, selection.particles)
    return {name: choose(find_score(name), bank, background, signal) for name in names}


def overlay_signal(
    background: Embedded, embed: Callable[[Particles], Points], seed: int, radius: float = RADIUS
) -> SelectionSignal:
    """A synthetic signal of overlaid background jets, drawn from the stream "pilot" of the seed.

    The same jets are the background it is separated from: jets of neither bank nor test, with particles. `embed` is
    the encoder: particles (jet, particle, 4) to embeddings (jet, dim). Another name of the stream would give other
    draws.
    """
    if background.particles is None or len(background.particles) < 2:
        raise AnomalyError("a synthetic signal needs the particles of at least 2 background jets")
    particles = overlay(background.particles, numpy_generator(seed, "pilot"), radius)
    return SelectionSignal(background=background, embedding=embed(particles), particles=particles)


def check_blind(selection: SelectionSignal, signals: Sequence[str]) -> None:
    """Raise AnomalyError when the signal that settings are chosen on is reported, alone or in the combined signal."""
    if selection.signal is None:
        return
    if selection.signal not in SIGNALS[:-1]:
        raise AnomalyError(
            f"the selection signal must be one of {', '.join(SIGNALS[:-1])} or None, got {selection.signal!r}"
        )
    barred = [name for name in signals if name in (selection.signal, COMBINED)]
    if barred:
        rest = [name for name in SIGNALS[:-1] if name != selection.signal]
        raise AnomalyError(
            f"settings chosen on {selection.signal} cannot be reported for {' and '.join(barred)}: report"
            f" {', '.join(rest)}, or choose on overlays of background"
        )


def overlay_aucs(
    train: Embedded, selection: SelectionSignal, bank_jets: int, seed: int, names: Sequence[str] = STANDARD
) -> dict[str, float]:
    """AUC of scores at published settings on a selection signal, by score; the bank is drawn from `train`."""
    bank = draw_bank(train, bank_jets, seed)
    background, signal = bank.jets(selection.background.embedding), bank.jets(selection.embedding)
    return {name: selection_auc(bank.fit(name), background, signal) for name in names}


def synthetic_signal_auc(embed: Callable[[Particles], Points], data: JetData, config: Config) -> float:
    """AUC of the published k-NN score: overlays of validation jets against the validation jets themselves.

    An anomaly metric to choose an encoder by: neither a signal jet nor a test jet has a part in it. `embed` is the
    encoder, as for :func:`overlay_signal`; `data` and `config` are the jets and the Config of its trial, of task `qg`.
    Raises AnomalyError when the embedding cannot be scored: constant, or not finite.
    """
    wanted = config.data
    parts = split(data.labels, **wanted.sizes)

    def embedded(rows: np.ndarray) -> Embedded:
        particles = data.particles[rows][:, : wanted.particles]
        return Embedded(embedding=embed(particles), labels=data.labels[rows], particles=particles)

    train = embedded(parts.train[: config.probe.bank_jets])
    selection = overlay_signal(embedded(parts.val), embed, config.seed)
    return overlay_aucs(train, selection, config.anomaly.bank_jets, config.seed, ("knn",))["knn"]

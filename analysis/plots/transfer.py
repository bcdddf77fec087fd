"""Encoders against the energy of the test jets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.plots.style import MARKERS, MUTED, canvas, legend_above, styled, upright
from analysis.stats import paired
from jbot.store.arm_colours import arm_colour

Scores = Sequence[NDArray[np.float64]]
"""One array (seed,) per energy, empty where there is none."""


@dataclass(frozen=True, kw_only=True)
class EncoderScores:
    """An arm over the energies."""

    arm: str
    own: int
    """Which of the energies it was pre-trained at."""
    refitted: Scores
    """By probes of the energy of the test jets."""
    shifted: Scores
    """By probes of its own energy."""


@styled
def scores_by_energy(encoders: Sequence[EncoderScores], baseline: Scores, pts: Sequence[float], label: str) -> Figure:
    """One line per encoder, means with standard errors; dashed for probes of the encoder's own energy.

    Parameters
    ----------
    baseline : sequence of float array (seed,)
        Scores of the untrained encoder, by energy.
    pts : sequence of float
        Jet pT in GeV.
    """
    figure, axes = canvas(3.3)
    for number, encoder in enumerate(encoders):
        x = np.arange(len(pts)) + 0.04 * (number - (len(encoders) - 1) / 2)
        look: dict[str, Any] = {"color": arm_colour(number), "marker": MARKERS[number % len(MARKERS)]}
        _line(axes, x, encoder.shifted, look | {"ls": "--", "mfc": "none"})
        _line(axes, x, encoder.refitted, look | {"label": encoder.arm.lstrip("_")})
        if len(own := encoder.refitted[encoder.own]):
            axes.plot(x[encoder.own], own.mean(), "o", ms=11, mfc="none", color=look["color"])
    _line(axes, np.arange(len(pts)), baseline, {"color": MUTED, "marker": "", "ls": ":", "label": "untrained"})
    axes.set_xticks(range(len(pts)), [f"{pt:g}" for pt in pts])
    axes.tick_params(axis="x", which="minor", bottom=False, top=False)
    axes.set_xlabel("jet pT of the test jets [GeV]")
    upright(axes, label, 36)
    legend_above(figure, 2)
    return figure


def _line(axes: Axes, x: NDArray[Any], scores: Scores, look: dict[str, Any]) -> None:
    means = [paired.mean_interval(one) for one in scores]
    bars = [mean.standard_error if mean.n > 1 else 0.0 for mean in means]
    axes.errorbar(x, [mean.mean for mean in means], bars, elinewidth=0.9, **look)

"""The figures of a report, one function each. They draw what they are given and compute nothing but means and bands.

Widths are for a phone held upright: text stays readable when a figure is scaled to 330 px.
"""

from __future__ import annotations

import functools
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import matplotlib as mpl
import mplhep
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoMinorLocator, MaxNLocator
from numpy.typing import NDArray

from analysis.report import headline
from analysis.stats import paired as statistics
from analysis.verdicts import wording
from analysis.verdicts.decide import Verdict
from jbot.data.jets import CLASS_LABELS

INK, MUTED, FAINT, BAND = "#1d2329", "#68727d", "#d3d9df", "#e9edf0"
# Petroff, arXiv:2107.02270: ten colours told apart in colour-vision deficiency, the sequence HEP experiments use.
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#94a4a2", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
MASKED = PALETTE[2]
CLASS_COLOURS = (*PALETTE[:4], INK)
"""Of q, g, W, Z, t: the palette's fifth is too pale for letters."""
OUTCOMES = {
    "better": PALETTE[0],
    "worse": PALETTE[6],
    "equivalent": PALETTE[3],
    "undecided": PALETTE[8],
    "failed": PALETTE[2],
}
MARKERS = "osD^vP<X>p"

STYLE: Any = dict(mplhep.style.ATLAS) | {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.labelpad": 5,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.xmargin": 0.03,
    "axes.autolimit_mode": "data",
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 4.5,
    "ytick.major.size": 4.5,
    "xtick.minor.size": 2.5,
    "ytick.minor.size": 2.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.fontsize": 8.5,
    "legend.borderpad": 0.2,
    "legend.handlelength": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
LEAST_BAND = 4
"""Seeds from which on a t interval is drawn (assumed): that of three is 2.5 standard deviations to either side, and
says more about Student's t than about the curve. Fewer seeds are drawn one by one."""
WIDTH = 4.6
"""Inches."""
FOREST_LINE, FOREST_ROW, FOREST_LETTERS = 0.19, 0.36, 44
"""Of a forest plot: inches for a line of a name and for the interval below it; letters that fit beside an outcome."""
MARK = "mark:"
"""How the id of an artist begins that has something to tell."""

Draw = TypeVar("Draw", bound=Callable[..., Figure])


def styled(draw: Draw) -> Draw:
    """Draw in the style of the reports, and leave the caller's matplotlib settings alone."""

    @functools.wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def tell(artist: Artist, tips: Sequence[str], arm: str = "") -> None:
    """What a page says of its points, in their order, and the arm it belongs to: :mod:`analysis.plots.svg` reads it."""
    artist.set_gid(MARK + quote(json.dumps({"arm": arm, "tips": list(tips)}, ensure_ascii=False), safe=""))


def colours(arms: Sequence[str]) -> dict[str, str]:
    """One colour per arm, the same in all figures of a study; repeated after ten."""
    return {arm: PALETTE[i % len(PALETTE)] for i, arm in enumerate(arms)}


@styled
def paired_differences(
    verdicts: Sequence[Verdict], gaps: Mapping[str, Sequence[float]], margin: float, metric: str
) -> Figure:
    """Forest plot: one row per contrast with mean, t interval and one dot per seed, over the band that does not matter.

    Parameters
    ----------
    verdicts : sequence of Verdict
    gaps : mapping
        Contrast name -> differences (seed,), in units of the metric.
    margin : float
        Half-width of the band.
    metric : str
        Key of the metric.
    """
    quantities = {wording.quantity(verdict.contrast.metric or metric) for verdict in verdicts}
    # What all rows share stands at the axis, not in each of them.
    shared = f"{quantities.copy().pop()} " if len(quantities) == 1 else ""
    names = [_wrapped(wording.contrast(verdict.contrast.name).replace(f"({shared}", "(")) for verdict in verdicts]
    tops = np.cumsum([0.0, *(FOREST_LINE * len(lines) + FOREST_ROW for lines in names)])
    figure = Figure(figsize=(WIDTH, 0.7 + max(FOREST_ROW, float(tops[-1]))), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-margin, margin, color=BAND, lw=0, zorder=0)
    axes.axvline(0, color=MUTED, lw=0.8, zorder=1)
    for top, lines, verdict in zip(tops[:-1], names, verdicts, strict=True):
        _forest_row(axes, float(top), lines, verdict, gaps.get(verdict.contrast.name, ()), metric)
    metrics = {verdict.contrast.metric or metric for verdict in verdicts}
    what = wording.quantity_on(metrics.pop()) if len(metrics) == 1 else shared
    axes.set(ylim=(max(FOREST_ROW, float(tops[-1])), 0), xlabel=f"difference in {what}" if what else "difference")
    axes.set_yticks([])
    _widen_to(axes, 1.3 * margin)
    axes.tick_params(axis="y", which="both", left=False, right=False)
    return figure


def legend_above(figure: Figure, columns: int, handles: Iterable[Any] = (), names: Iterable[str] = ()) -> None:
    """A legend in so many columns, or fewer where names are long; without handles, of all that is drawn."""
    handles, names = list(handles), list(names)
    given = {"handles": handles, "labels": names or [handle.get_label() for handle in handles]} if handles else {}
    for number in range(columns, 0, -1):
        legend = figure.legend(**given, loc="outside upper left", ncols=number, columnspacing=1.2)
        if number == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def upright(label: str, most: int = 27) -> str:
    """The label of a vertical axis in lines that are no longer than a low panel is high."""
    return textwrap.fill(label, most)


def _wrapped(name: str) -> list[str]:
    """A name in as many lines as it takes, so that none is cut and none runs into the outcome beside it."""
    lines = textwrap.wrap(" ".join(name.split()), FOREST_LETTERS, max_lines=4, placeholder=" …")
    return [literal(line, FOREST_LETTERS) for line in lines] or ["?"]


def _forest_row(
    axes: Axes, top: float, lines: Sequence[str], verdict: Verdict, gaps: Sequence[float], metric: str
) -> None:
    """`top` in inches from the top of the plot: so is its vertical axis."""
    difference, outcome = verdict.difference, headline.standing(verdict)
    colour, name = OUTCOMES[outcome], wording.contrast(verdict.contrast.name)
    row = top + FOREST_LINE * len(lines) + 0.15
    dots = axes.plot(gaps, np.full(len(gaps), row + 0.11), "o", ms=3.4, mfc="none", mec=MUTED, mew=0.8, zorder=2)
    tell(dots[0], [f"{name}: {wording.number(gap, sign=True)} at one seed" for gap in gaps])
    if difference.n:
        axes.plot(verdict.ends, [row, row], color=colour, lw=2.2, solid_capstyle="butt", zorder=3)
        fill = colour if verdict.contrast.primary else "none"
        mean = axes.plot([difference.mean], [row], "D", mfc=fill, mec=colour, mew=1.3, ms=5.2, zorder=4)
        tell(mean[0], [f"{name}, {outcome}\n{headline.numbers(verdict, metric)}"])
    place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    for i, line in enumerate(lines):
        axes.text(0.015, top + FOREST_LINE * (i + 0.6), line, ha="left", **place)
    axes.text(0.985, top + FOREST_LINE * 0.6, outcome, ha="right", color=MUTED, fontsize=8.5, **place)


def _widen_to(axes: Axes, reach: float) -> None:
    """Show zero and the whole margin, whatever the data."""
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -reach), max(high, reach))
    axes.xaxis.set_major_locator(MaxNLocator(5))


@styled
def learning_curves(curves: pd.DataFrame, metric: str, arms: Sequence[str], all_arms: Sequence[str]) -> Figure:
    """Mean over complete trials with the 95% t interval as a band, or few seeds one by one, against epoch.

    Parameters
    ----------
    curves : DataFrame
        `arm`, `seed`, `state`, `epoch` and the metric, a row per trial and epoch.
    arms : sequence of str
        To draw.
    all_arms : sequence of str
        All arms of the study: they fix the colours.
    """
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.subplots()
    complete = curves[curves["state"] == "complete"].dropna(subset=[metric])
    for arm in arms:
        _curve(axes, complete[complete["arm"] == arm], metric, arm, list(all_arms), arm)
    _finish_curves(figure, axes, wording.quantity_on(metric))
    return figure


@styled
def paired_curves(
    gaps: pd.DataFrame, metric: str, control: str, arms: Sequence[str], all_arms: Sequence[str]
) -> Figure:
    """Mean paired difference to a control arm with its 95% t interval, or few seeds one by one, against epoch.

    Parameters
    ----------
    gaps : DataFrame
        `arm`, `seed`, `state`, `epoch` and the metric, there as arm minus control at one seed and epoch.
    """
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=MUTED, lw=0.8)
    for arm in arms:
        _curve(axes, gaps[gaps["arm"] == arm], metric, arm, list(all_arms), arm)
    _finish_curves(figure, axes, f"{wording.quantity(metric)}, minus {control}")
    return figure


def _finish_curves(figure: Figure, axes: Axes, label: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(upright(label, 36), parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_minor_locator(AutoMinorLocator())
    legend_above(figure, 3)


def _curve(axes: Axes, curves: pd.DataFrame, metric: str, label: str, all_arms: Sequence[str], arm: str) -> None:
    if curves.empty:
        return
    points = [(epoch, statistics.mean_interval(group[metric])) for epoch, group in curves.groupby("epoch")]
    epochs = np.array([epoch for epoch, _ in points], dtype=float)
    mean, low, high = (np.array([getattr(point, name) for _, point in points]) for name in ("mean", "low", "high"))
    colour, marker = colours(all_arms)[arm], MARKERS[list(all_arms).index(arm) % len(MARKERS)]
    by_seed = curves.sort_values("epoch").groupby("seed")
    if len(by_seed) >= LEAST_BAND:
        tell(axes.fill_between(epochs, low, high, color=colour, alpha=0.14, lw=0), (), arm)
    else:
        for _, trial in by_seed:
            thin = axes.plot(trial["epoch"], trial[metric], color=colour, lw=0.7, alpha=0.5)
            tell(thin[0], (), arm)
    line = axes.plot(epochs, mean, marker=marker, color=colour, label=literal(label), mew=0)
    told = zip(epochs, mean, (len(group) for _, group in curves.groupby("epoch")), strict=True)
    tell(line[0], [f"{label}, epoch {epoch:g}: {wording.compact(y, 4)}, mean of {n}" for epoch, y, n in told], arm)


@styled
def scores_by_seed(
    scores: pd.DataFrame, metric: str, arms: Sequence[str], floor: pd.Series | None = None, paired: bool = True
) -> Figure:
    """Every trial: one row per arm, one grey line per seed that joins its block.

    Parameters
    ----------
    scores : DataFrame (seed, arm)
        NaN where a trial has no score.
    arms : sequence of str
        To draw.
    floor : Series (arm,), optional
        Mean of the untrained encoder, drawn as a tick.
    paired : bool
        Join the blocks: not where arms are not compared.
    """
    figure = Figure(figsize=(WIDTH, 0.75 + 0.36 * len(arms)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(arms))
    for _, block in scores[list(arms)].iterrows() if paired else ():
        axes.plot(block.to_numpy(dtype=float), rows, color=FAINT, lw=0.8, zorder=1)
    palette = colours(list(scores.columns))
    for row, arm in enumerate(arms):
        values = scores[arm].dropna().to_numpy(dtype=float)
        dots = axes.plot(
            values, np.full(len(values), row), "o", color=palette[arm], ms=4.5, alpha=0.85, mew=0, zorder=2
        )
        seeds = scores[arm].dropna().index
        tell(dots[0], [f"{arm}, seed {s}: {wording.number(v)}" for s, v in zip(seeds, values, strict=True)], arm)
        axes.plot(values.mean() if len(values) else np.nan, row, "|", color=INK, ms=15, mew=1.8, zorder=3)
        if floor is not None and math.isfinite(floor[arm]):
            axes.plot(floor[arm], row, "|", color=MUTED, ms=11, mew=1.2, zorder=2)
    axes.set_yticks(rows, [literal(arm) for arm in arms])
    axes.tick_params(axis="y", which="minor", left=False, right=False)
    axes.set(ylim=(len(arms) - 0.4, -0.6), xlabel=wording.quantity_on(metric))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


@styled
def embedding_map(points: NDArray[np.float64], labels: NDArray[np.int64]) -> Figure:
    """t-SNE map of one encoder: every jet is the letter of its class.

    Parameters
    ----------
    points : float array (jet, 2)
    labels : int array (jet,)
        0 to 4: q, g, W, Z, t.
    """
    figure = Figure(figsize=(3.0, 3.0), layout="constrained")
    axes = figure.subplots()
    for label in np.unique(labels):
        name = CLASS_LABELS[label] if 0 <= label < len(CLASS_LABELS) else str(label)
        chosen = points[labels == label]
        marker, colour = rf"$\mathrm{{{name}}}$", CLASS_COLOURS[int(label) % len(CLASS_COLOURS)]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=28, marker=marker, color=colour, lw=0, alpha=0.9)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.minorticks_off()
    axes.margins(0.04)
    return figure


@styled
def example_jets(
    particles: NDArray[np.float32], masked: NDArray[Any], labels: NDArray[np.int64], columns: int = 3
) -> Figure:
    """Jets in the (eta, phi) plane, masked particles in red, area by transverse momentum.

    Parameters
    ----------
    particles : float array (jet, particle, feature)
        eta_rel, phi_rel, pt_rel (share of the jet's), valid.
    masked : array (jet, particle)
        1 where hidden from the student.
    labels : int array (jet,)
    columns : int
        Jets drawn beside each other; all are drawn.
    """
    rows = -(-len(particles) // columns)
    figure = Figure(figsize=(WIDTH, 1.85 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, jet, hidden, label in zip(panels.flat, particles, masked.astype(bool), labels, strict=False):
        _jet(axes, jet[jet[:, 3] > 0.5], hidden[jet[:, 3] > 0.5])
        name = CLASS_LABELS[label] if 0 <= label < len(CLASS_LABELS) else str(label)
        axes.set_title(f"{name} jet", loc="left", pad=4)
    for axes in panels[:, 0]:
        axes.set_ylabel(r"$\phi_\mathrm{rel}$")
    for axes in panels.flat[len(particles) :]:
        axes.set_axis_off()
    return figure


def _jet(axes: Axes, jet: NDArray[np.float32], masked: NDArray[np.bool_]) -> None:
    size = 4 + 900 * np.clip(jet[:, 2], 0, 1)
    for chosen, colour, alpha in ((~masked, PALETTE[8], 0.5), (masked, MASKED, 0.75)):
        axes.scatter(jet[chosen, 0], jet[chosen, 1], s=size[chosen], color=colour, alpha=alpha, lw=0)
    reach = max(0.05, 1.25 * float(np.abs(jet[:, :2]).max(initial=0.0)))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel=r"$\eta_\mathrm{rel}$")
    axes.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))
    axes.yaxis.set_major_locator(MaxNLocator(3, symmetric=True))
    axes.tick_params(labelsize=7.5)


def literal(text: str, most: int = 34) -> str:
    """A name from a record, shown as it is: one line, no mathtext, not so long that it pushes the plot aside."""
    line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    short = line if len(line) <= most else line[: most - 1] + "…"
    # A label that starts with an underscore is hidden from legends.
    return short.replace("$", r"\$").lstrip("_") or "?"


@styled
def variance_shares(shares: Sequence[tuple[str, float]]) -> Figure:
    """Horizontal bars, single factors dark and interactions pale, in the order given.

    Parameters
    ----------
    shares : sequence of (name, share)
    """
    figure = Figure(figsize=(WIDTH, 0.75 + 0.27 * len(shares)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(shares))
    pale = [" × " in name or name.startswith("all other") for name, _ in shares]
    colours = [PALETTE[4] if one else PALETTE[0] for one in pale]
    axes.barh(rows, [100 * share for _, share in shares], height=0.62, color=colours, lw=0)
    axes.set_yticks(rows, [literal(name, 44) for name, _ in shares])
    axes.tick_params(axis="y", which="both", left=False, right=False)
    axes.set(ylim=(len(shares) - 0.4, -0.6), xlabel="share of the variance [%]", xlim=(0, None))
    return figure


@styled
def score_ranges(scores: Mapping[str, Mapping[str, float]]) -> Figure:
    """A row a score: the range over settings as a bar, and marks at single ones.

    Parameters
    ----------
    scores : mapping
        Name -> `low` and `high` of the bar, `published`, `chosen`, `oracle`, `untrained`; NaN is not drawn.
    """
    figure = Figure(figsize=(WIDTH, 1.1 + 0.36 * len(scores)), layout="constrained")
    axes = figure.subplots()
    marks = {"published": ("o", PALETTE[0]), "chosen": ("D", PALETTE[6]), "oracle": ("^", INK)}
    for row, one in enumerate(scores.values()):
        axes.plot([one["low"], one["high"]], [row, row], color=FAINT, lw=5, solid_capstyle="butt", zorder=1)
        axes.plot(one["untrained"], row, "|", color=MUTED, ms=12, mew=1.4, zorder=2)
    for name, (marker, colour) in marks.items():
        values = [one[name] for one in scores.values()]
        axes.plot(values, np.arange(len(values)), marker, color=colour, ms=5.5, mew=0, label=name, zorder=3)
    axes.set_yticks(np.arange(len(scores)), [literal(name) for name in scores])
    axes.tick_params(axis="y", which="both", left=False, right=False)
    axes.set(ylim=(len(scores) - 0.4, -0.6), xlabel="AUC")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    legend_above(figure, 3)
    return figure


@styled
def against_each(
    points: pd.DataFrame, columns: Mapping[str, str], quantity: str, label: str, log: Sequence[str] = ()
) -> Figure:
    """One number against others, a panel each; a point an encoder.

    Parameters
    ----------
    points : DataFrame
        arm, trained (bool), the quantity and the columns.
    columns : mapping
        Column -> its label.
    log : sequence of str
        Columns with a logarithmic axis.
    """
    rows = -(-len(columns) // 2)
    figure = Figure(figsize=(WIDTH, 0.5 + 1.75 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False, sharey=True)
    palette = colours(list(dict.fromkeys(points["arm"])))
    for axes, (column, name) in zip(panels.flat, columns.items(), strict=False):
        for arm, colour in palette.items():
            for trained, fill in ((True, colour), (False, "none")):
                some = points[(points["arm"] == arm) & (points["trained"] == trained)]
                label_of = literal(arm) if trained and axes is panels.flat[0] else None
                axes.plot(some[column], some[quantity], "o", ms=4.2, mfc=fill, mec=colour, mew=0.9, label=label_of)
        axes.set_xlabel(literal(name))
        if column in log and (points[column] > 0).any():
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in panels[:, 0]:
        axes.set_ylabel(literal(label))
    for axes in panels.flat[len(columns) :]:
        axes.set_axis_off()
    legend_above(figure, 3)
    return figure

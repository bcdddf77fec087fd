"""The look of all figures: colours, matplotlib settings, labels, legends and what a page shows at a point.

Widths are for a phone held upright: text stays readable when a figure is scaled to 330 px.
"""

from __future__ import annotations

import functools
import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import matplotlib as mpl
import mplhep
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from jbot.data.jets import CLASS_LABELS
from jbot.store.arm_colours import PALETTE

INK, MUTED, FAINT, BAND = "#1d2329", "#68727d", "#d3d9df", "#e9edf0"
MASKED = PALETTE[2]
MARKERS = "osD^vP<X>p"
CLASS_COLOURS = (*PALETTE[:4], INK)
"""Colours of the classes: the palette's fifth is too pale for letters."""
OUTCOMES = {
    "better": PALETTE[0],
    "worse": PALETTE[6],
    "equivalent": PALETTE[3],
    "undecided": PALETTE[8],
    "failed": PALETTE[2],
    "noise floor": PALETTE[8],
}
WIDTH = 4.6
"""Inches."""
MARK = "mark:"
"""How the id of an artist begins that has tooltips."""

STYLE: Any = {
    **mplhep.style.ATLAS,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("font.size", "axes.labelsize"), 9),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8.5),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.7),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 4.5),
    **dict.fromkeys(("xtick.minor.size", "ytick.minor.size"), 2.5),
    "font.sans-serif": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 9.5,
    "axes.labelpad": 5,
    "axes.axisbelow": True,
    "axes.xmargin": 0.03,
    "axes.autolimit_mode": "data",
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.borderpad": 0.2,
    "legend.handlelength": 1.6,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}

Draw = TypeVar("Draw", bound=Callable[..., Figure])


def styled(draw: Draw) -> Draw:
    """Draw in the style of the reports, and leave the caller's matplotlib settings alone."""

    @functools.wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def canvas(height: float) -> tuple[Figure, Axes]:
    """A figure of one panel; inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def panels(used: int, columns: int, top: float, height: float, **shared: Any) -> tuple[Figure, Any]:
    """A figure of small multiples, (row, column), of which the first `used` are drawn in; inches above and per row."""
    rows = -(-used // columns)
    figure = Figure(figsize=(WIDTH, top + height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    for axes in grid.flat[used:]:
        axes.set_axis_off()
    return figure, grid


def label_rows(axes: Axes, names: Sequence[str], most: int = 34) -> NDArray[np.int64]:
    """Rows from the top down with their names at the left; returns where they stand."""
    rows = np.arange(len(names))
    axes.set_yticks(rows, [literal(name, most) for name in names])
    axes.tick_params(axis="y", which="both", left=False, right=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    return rows


def few_ticks(axis: Axis, most: int = 5, **options: bool) -> None:
    """At most so many intervals between major ticks."""
    axis.set_major_locator(MaxNLocator(most, **options))


def literal(text: str, most: int = 34) -> str:
    """A name from a record, shown as it is: one line, no mathtext, not so long that it pushes the plot aside."""
    line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    short = line if len(line) <= most else line[: most - 1] + "…"
    # A label that starts with an underscore is hidden from legends.
    return short.replace("$", r"\$").lstrip("_") or "?"


def upright(axes: Axes, label: str, most: int = 27) -> None:
    """Label a vertical axis, in lines that are no longer than a low panel is high."""
    axes.set_ylabel(textwrap.fill(label, most), parse_math=False)


def class_name(label: int) -> str:
    """The letter of a class, or a label's number where it is none."""
    return CLASS_LABELS[label] if 0 <= label < len(CLASS_LABELS) else str(label)


def class_colour(label: int) -> str:
    """Colour of a class."""
    return CLASS_COLOURS[int(label) % len(CLASS_COLOURS)]


def legend_above(
    figure: Figure, columns: int, handles: Iterable[Any] = (), names: Iterable[str] = (), **look: Any
) -> None:
    """A legend in so many columns, or fewer where names are long; without handles, of all that is drawn."""
    handles, names = list(handles), list(names)
    look = {"columnspacing": 1.2} | look
    given = {"handles": handles, "labels": names or [handle.get_label() for handle in handles]} if handles else {}
    for number in range(columns, 0, -1):
        legend = figure.legend(**given, loc="outside upper left", ncols=number, **look)
        if number == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def attach_tooltips(artist: Artist, tips: Sequence[str], arm: str = "") -> None:
    """What a page says of its points, in their order, and the arm it belongs to: :mod:`analysis.plots.svg` reads it."""
    artist.set_gid(MARK + quote(json.dumps({"arm": arm, "tips": list(tips)}, ensure_ascii=False), safe=""))


def zero_line(axes: Axes) -> None:
    """Where there is no difference."""
    axes.axhline(0, color=MUTED, lw=0.8, zorder=1)


def reference_line(axes: Axes, x: float) -> None:
    """A dashed line upright: the base's value, the largest size measured."""
    axes.axvline(x, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)

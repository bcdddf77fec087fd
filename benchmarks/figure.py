"""bench.png: a panel for each section that can be drawn. Needs the extra [report]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.plots.style import INK, MARKERS, PALETTE, STYLE
from benchmarks.report import Section, number

Rows = list[dict[str, Any]]


def draw(folder: Path, sections: Mapping[str, Section]) -> Path | None:
    """Write bench.png; None when there is nothing to draw."""
    panels = [panel for panel in PANELS if _drawable(sections.get(panel[0]))]
    if not panels:
        return None
    with mpl.rc_context(STYLE):
        across = min(2, len(panels))
        down = -(-len(panels) // across)
        figure = Figure(figsize=(5.2 * across, 3.4 * down), layout="constrained", dpi=150)
        grid = figure.subplots(down, across, squeeze=False).flatten()
        for (name, title, drawer), axes in zip(panels, grid, strict=False):
            drawer(axes, _measured(sections[name]))
            axes.set_title(title, loc="left")
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        path = folder / "bench.png"
        figure.savefig(path)
    return path


def _measured(section: Section) -> Rows:
    return [row for row in section["rows"] if row["median"] is not None]


def _drawable(section: Section | None) -> bool:
    return section is not None and bool(_measured(section))


def _bars(axes: Axes, labels: Sequence[str], values: Sequence[Sequence[float]], colours: Sequence[str]) -> None:
    """Horizontal bars from the top down, with quartiles as thin lines; a value is (median, low, high)."""
    places = list(range(len(labels)))[::-1]
    middle = [value[0] for value in values]
    error = [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
    axes.barh(places, middle, xerr=error, color=colours, height=0.65, error_kw={"ecolor": INK, "elinewidth": 0.8})
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", which="both", length=0)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    top = max(value[2] for value in values)
    axes.set_xlim(0, 1.18 * top)
    for place, value in zip(places, values, strict=True):
        axes.text(value[2] + 0.015 * top, place, _short(value[0]), va="center", fontsize=8)


def _short(value: float) -> str:
    """Two digits behind the point, none from ten on."""
    return f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def _one(row: Mapping[str, Any]) -> Sequence[float]:
    """Its ratio; what others are held against has 1."""
    return row["ratio"] or (1.0, 1.0, 1.0)


def _best(row: Mapping[str, Any]) -> Sequence[float]:
    """The ratio that other load disturbs least: by CPU seconds for one thread of a CPU, else by wall seconds."""
    return _one(row) if row["settings"]["device"] != "cpu" else row["cpu_ratio"] or (1.0, 1.0, 1.0)


def _seconds(rows: Rows) -> str:
    return ", by CPU seconds" if rows[0]["settings"]["device"] == "cpu" else ""


def _colour(model: str) -> str:
    return PALETTE[0] if model == "S" else PALETTE[1]


def _draw_step(axes: Axes, rows: Rows) -> None:
    """Speed against plain fp32 of the same model: the only figure that carries from machine to machine."""
    steps = [row for row in rows if row["unit"] == "jets/s"]
    labels = [f"{row['what']}\n{number(row['median'])} jets/s" for row in steps]
    _bars(axes, labels, [_best(row) for row in steps], [_colour(row["settings"]["model"]) for row in steps])
    axes.axvline(1.0, color="black", linewidth=0.7, linestyle=":")
    axes.set_xlabel(f"speed against plain fp32 of the same model{_seconds(steps)}")


def _draw_shares(axes: Axes, rows: Rows) -> None:
    """How near each step comes to the limits of the machine."""
    names = {"GEMM_share": ("GEMM", PALETTE[3]), "memory_share": ("memory", PALETTE[4])}
    found = [(row, key) for row in rows for key in names if key in row["settings"]]
    labels = [f"{row['what']}, {names[key][0]}" for row, key in found]
    percent = [[100 * value for value in row["settings"][key]] for row, key in found]
    _bars(axes, labels, percent, [names[key][1] for _, key in found])
    axes.set_xlabel("share of the limit in the same rounds [%]")


def _draw_parts(axes: Axes, rows: Rows) -> None:
    """Shares of the step, a bar a model."""
    models = list(dict.fromkeys(row["settings"]["model"] for row in rows))
    names = [name for name in dict.fromkeys(row["settings"]["part"] for row in rows) if name != "whole"]
    share = {(row["settings"]["model"], row["settings"]["part"]): _best(row)[0] for row in rows}
    places = list(range(len(models)))[::-1]
    left = [0.0] * len(models)
    for name, colour in zip(names, PALETTE, strict=False):
        width = [share[model, name] for model in models]
        axes.barh(places, width, left=left, color=colour, height=0.55, label=name)
        for place, start, value in zip(places, left, width, strict=True):
            if value > 0.06:
                axes.text(
                    start + value / 2, place, f"{100 * value:.0f}%", ha="center", va="center", color="white", fontsize=8
                )
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.set_yticks(places, models)
    axes.tick_params(axis="y", which="both", length=0)
    axes.set_ylim(-0.5, len(models) + 0.3)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel(f"share of the sum of parts{_seconds(rows)}")
    axes.legend(ncols=4, loc="upper center", fontsize=7.5, frameon=False, columnspacing=1.0, handlelength=1.0)


def _draw_threads(axes: Axes, rows: Rows) -> None:
    _bars(
        axes,
        [row["what"] for row in rows],
        [_one(row) for row in rows],
        [_colour(row["settings"]["model"]) for row in rows],
    )
    axes.set_xlabel("jets/s against 1 thread")


def _draw_packs(axes: Axes, rows: Rows) -> None:
    """Gain by pack size, a line a batch."""
    for place, batch in enumerate(dict.fromkeys(row["settings"]["batch"] for row in rows)):
        mine = [row for row in rows if row["settings"]["batch"] == batch]
        gains = [_best(row) for row in mine]
        error = [[gain[0] - gain[1] for gain in gains], [gain[2] - gain[0] for gain in gains]]
        style: dict[str, Any] = {"color": PALETTE[place], "marker": MARKERS[place], "markersize": 4, "linewidth": 1.2}
        sizes = [row["settings"]["pack"] for row in mine]
        axes.errorbar(sizes, [gain[0] for gain in gains], error, label=f"batch {batch}", elinewidth=0.8, **style)
    axes.legend(fontsize=8, frameon=False)
    axes.axhline(1.0, color="black", linewidth=0.7, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted({row["settings"]["pack"] for row in rows})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_ylim(0, 1.25 * max(_best(row)[2] for row in rows))
    axes.set_xlabel("trials in a pack")
    axes.set_ylabel(f"speed against the same trials one\nafter another{_seconds(rows)}")


def _draw_memory(axes: Axes, rows: Rows) -> None:
    labels = [row["what"] for row in rows]
    _bars(axes, labels, [_spread(row) for row in rows], [_colour(row["settings"]["model"]) for row in rows])
    axes.set_xlabel("peak growth of the process [MiB]")


def _draw_growth(axes: Axes, rows: Rows) -> None:
    """Cost against size, both relative to the smallest, and the fitted exponents."""
    exponents = [row for row in rows if "exponent_of" in row["settings"]]
    for place, row in enumerate(exponents):
        name = row["settings"]["exponent_of"]
        points = [other for other in rows if other["settings"].get("sweep") == name]
        smallest = points[0]["settings"]["size"]
        sizes = [point["settings"]["size"] / smallest for point in points]
        cost = [point["ratio"][0] for point in points]
        label = f"{name}: {row['median']:.2f}"
        style: dict[str, Any] = {"color": PALETTE[place], "marker": MARKERS[place], "markersize": 4, "linewidth": 1.2}
        axes.loglog(sizes, cost, label=label, **style)
    axes.set_xlabel("size against the smallest")
    axes.set_ylabel("seconds a step against the smallest")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([1, 2, 4, 8, 16]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    axes.legend(title="exponent of", fontsize=8, title_fontsize=8, frameon=False)


def _draw_generation(axes: Axes, rows: Rows) -> None:
    _bars(
        axes, [row["settings"]["class"] for row in rows], [row["cpu_ratio"] for row in rows], [PALETTE[7]] * len(rows)
    )
    axes.axvline(1.0, color="black", linewidth=0.7, linestyle=":")
    axes.set_xlabel("speed against bare next(), by CPU seconds")


def _spread(row: Mapping[str, Any]) -> tuple[float, float, float]:
    return row["median"], row["low"], row["high"]


PANELS = (
    ("step", "training steps, one thread", _draw_step),
    ("step", "shares of the machine's limits", _draw_shares),
    ("parts", "parts of the step", _draw_parts),
    ("threads", "threads and processes", _draw_threads),
    ("packs", "packs of trials", _draw_packs),
    ("memory", "memory of a pack", _draw_memory),
    ("growth", "growth of the cost of a step", _draw_growth),
    ("generation", "jets made by Pythia", _draw_generation),
)

"""What the benchmark leaves behind: bench.json, bench.md and bench.png, of the sections that there are."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
COLUMNS = ("what", "median", "quartiles", "unit", "n", "ratio", "by CPU s", "to", "wall s", "CPU s", "note")
ENGINE_SECTIONS = ("parts", "threads", "packs", "memory", "growth")
"""Sections of one engine, which --engine chooses."""
RIGHT = ("median", "n", "wall s", "CPU s")

HEAD = """# Benchmark

Medians and quartiles over n interleaved rounds; "wall s" and "CPU s" are medians of one timed run. Ratios are taken
within each round: on a shared machine they hold where absolute times do not, and those by CPU seconds best for one
thread. Shares of limits are by CPU seconds of one thread (on a GPU by wall seconds) against limits measured in the same
rounds: products of cache-sized matrices in the same precision for the FLOP that are needed, a triad for what the eager
operations move; more than 100% of the memory limit is what caches give. Made by `make bench`."""

Section = dict[str, Any]
"""title, when, seconds, quick, engine, environment, load_averages, rows."""


# --- files ----------------------------------------------------------------------------------------------------------


def load(folder: Path) -> dict[str, Section]:
    """Sections measured before, by name; none when the file is missing, damaged or of another schema."""
    try:
        content = json.loads((folder / "bench.json").read_text())
        return dict(content["sections"]) if content["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def save(folder: Path, sections: Mapping[str, Section]) -> None:
    """Write bench.json and bench.md, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"schema": SCHEMA, "sections": dict(sections)}
    _write(folder / "bench.json", json.dumps(content, indent=1, allow_nan=False))
    _write(folder / "bench.md", markdown(sections))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text + "\n")
    partial.replace(path)


# --- table ----------------------------------------------------------------------------------------------------------


def markdown(sections: Mapping[str, Section]) -> str:
    """All sections as tables, readable as they stand."""
    return "\n\n".join([HEAD, *(section_text(name, section) for name, section in sections.items())])


def section_text(name: str, section: Section) -> str:
    """One section: title, where it ran, table."""
    table = _table([_cells(row) for row in section["rows"]])
    return f"## {name}: {section['title']}\n\n{_where(name, section)}\n\n{table}"


def _where(name: str, section: Section) -> str:
    """Hardware, versions, load, duration in one line."""
    there = section["environment"]
    hardware, libraries = there["hardware"], there["libraries"]
    loads = " to ".join(f"{load[0]:.1f}" for load in section["load_averages"])
    processor = hardware["gpu"] if "gpu" in hardware else f"{hardware['cores']} x {hardware['cpu']}"
    parts = [
        processor,
        f"torch {libraries.get('torch', '?')}",
        f"commit {(there['git_commit'] or '?')[:9]}{'+' * str(there['git_commit']).endswith('+')}",
        f"load {loads}",
        f"{section['when']}, {section['seconds']:.0f} s{', --quick' * section['quick']}",
    ]
    if name in ENGINE_SECTIONS:
        parts.insert(0, f"engine {section['engine']}, fp32")
    return "; ".join(parts)


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    there = row["median"] is not None
    return {
        "what": row["what"],
        "median": number(row["median"]) if there else row["state"],
        "quartiles": f"{number(row['low'])} to {number(row['high'])}" if there and row["n"] > 1 else "",
        "unit": row["unit"] if there else "",
        "n": str(row["n"]) if there else "",
        "ratio": _ratio(row["ratio"]),
        "by CPU s": _ratio(row["cpu_ratio"]),
        "to": row["base"] or "",
        "wall s": "" if row["wall_seconds"] is None else number(row["wall_seconds"]),
        "CPU s": "" if row["cpu_seconds"] is None else number(row["cpu_seconds"]),
        "note": ("derived: " if row["state"] == "derived" else "") + row["note"],
    }


def _ratio(ratio: Sequence[float] | None) -> str:
    return f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})" if ratio else ""


def number(value: float) -> str:
    """Three digits, no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _table(cells: Sequence[Mapping[str, str]]) -> str:
    shown = [column for column in COLUMNS if any(line[column] for line in cells)]
    width = {column: max(len(column), *(len(line[column]) for line in cells)) for column in shown}

    def line(values: Mapping[str, str]) -> str:
        text = (
            values[c].rjust(width[c]) if c in RIGHT and values is not head else values[c].ljust(width[c]) for c in shown
        )
        return f"| {' | '.join(text)} |"

    head = {column: column for column in shown}
    rule = f"|{'|'.join('-' * (width[c] + 1) + (':' if c in RIGHT else '-') for c in shown)}|"
    return "\n".join([line(head), rule, *(line(values) for values in cells)])


# --- figure ---------------------------------------------------------------------------------------------------------


def draw(folder: Path, sections: Mapping[str, Section]) -> Path | None:
    """bench.png with a panel for each section that can be drawn; None when there is none.

    Raises
    ------
    ImportError
        Without matplotlib, which is in the extra [report].
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from analysis.figures import STYLE

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


def _measured(section: Section) -> list[dict[str, Any]]:
    return [row for row in section["rows"] if row["median"] is not None]


def _drawable(section: Section | None) -> bool:
    return section is not None and bool(_measured(section))


def _bars(axes: Any, labels: Sequence[str], values: Sequence[Sequence[float]], colours: Sequence[str]) -> None:
    """Horizontal bars from the top down, with quartiles as thin lines; a value is (median, low, high)."""
    from analysis.figures import INK

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


def _colour(model: str) -> str:
    from analysis.figures import PALETTE

    return PALETTE[0] if model == "S" else PALETTE[1]


def _draw_step(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Speed against plain fp32 of the same model: the only figure that carries from machine to machine."""
    steps = [row for row in rows if row["unit"] == "jets/s"]
    labels = [f"{row['what']}\n{number(row['median'])} jets/s" for row in steps]
    _bars(axes, labels, [_one(row) for row in steps], [_colour(row["settings"]["model"]) for row in steps])
    axes.axvline(1.0, color="black", linewidth=0.7, linestyle=":")
    axes.set_xlabel("speed against plain fp32 of the same model")


def _draw_shares(axes: Any, rows: list[dict[str, Any]]) -> None:
    """How near each step comes to the limits of the machine."""
    from analysis.figures import PALETTE

    names = {"GEMM_share": ("GEMM", PALETTE[3]), "memory_share": ("memory", PALETTE[4])}
    found = [(row, key) for row in rows for key in names if key in row["settings"]]
    labels = [f"{row['what']}, {names[key][0]}" for row, key in found]
    percent = [[100 * value for value in row["settings"][key]] for row, key in found]
    _bars(axes, labels, percent, [names[key][1] for _, key in found])
    axes.set_xlabel("share of the limit in the same rounds [%]")


def _draw_parts(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Shares of the step, a bar a model."""
    from analysis.figures import PALETTE

    models = list(dict.fromkeys(row["settings"]["model"] for row in rows))
    names = [name for name in dict.fromkeys(row["settings"]["part"] for row in rows) if name != "whole"]
    share = {(row["settings"]["model"], row["settings"]["part"]): row["ratio"][0] for row in rows}
    places = list(range(len(models)))[::-1]
    left = [0.0] * len(models)
    for name, colour in zip(names, PALETTE, strict=False):
        width = [share[model, name] for model in models]
        axes.barh(places, width, left=left, color=colour, height=0.55, label=name)
        for place, start, value in zip(places, left, width, strict=True):
            if value > 0.06:
                axes.text(start + value / 2, place, f"{100 * value:.0f}%", ha="center", va="center", fontsize=8)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.set_yticks(places, models)
    axes.tick_params(axis="y", which="both", length=0)
    axes.set_ylim(-0.5, len(models) + 0.3)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("share of the sum of parts (medians)")
    axes.legend(ncols=4, loc="upper center", fontsize=7.5, frameon=False, columnspacing=1.0, handlelength=1.0)


def _draw_threads(axes: Any, rows: list[dict[str, Any]]) -> None:
    _bars(
        axes,
        [row["what"] for row in rows],
        [_one(row) for row in rows],
        [_colour(row["settings"]["model"]) for row in rows],
    )
    axes.set_xlabel("jets/s against 1 thread")


def _draw_packs(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Gain by pack size, a line a batch."""
    from matplotlib.ticker import FixedLocator, NullLocator

    from analysis.figures import MARKERS, PALETTE

    for place, batch in enumerate(dict.fromkeys(row["settings"]["batch"] for row in rows)):
        mine = [row for row in rows if row["settings"]["batch"] == batch]
        gains = [_one(row) for row in mine]
        error = [[gain[0] - gain[1] for gain in gains], [gain[2] - gain[0] for gain in gains]]
        style = {"color": PALETTE[place], "marker": MARKERS[place], "markersize": 4, "linewidth": 1.2}
        sizes = [row["settings"]["pack"] for row in mine]
        axes.errorbar(sizes, [gain[0] for gain in gains], error, label=f"batch {batch}", elinewidth=0.8, **style)
    axes.legend(fontsize=8, frameon=False)
    axes.axhline(1.0, color="black", linewidth=0.7, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted({row["settings"]["pack"] for row in rows})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_ylim(0, 1.25 * max(_one(row)[2] for row in rows))
    axes.set_xlabel("trials in a pack")
    axes.set_ylabel("jets/s against one at a time")


def _draw_memory(axes: Any, rows: list[dict[str, Any]]) -> None:
    labels = [row["what"] for row in rows]
    _bars(axes, labels, [_spread(row) for row in rows], [_colour(row["settings"]["model"]) for row in rows])
    axes.set_xlabel("peak growth of the process [MiB]")


def _draw_growth(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Cost against size, both relative to the smallest, and the fitted exponents."""
    from matplotlib.ticker import FixedLocator, NullLocator

    from analysis.figures import MARKERS, PALETTE

    exponents = [row for row in rows if "exponent_of" in row["settings"]]
    for place, row in enumerate(exponents):
        name = row["settings"]["exponent_of"]
        points = [other for other in rows if other["settings"].get("sweep") == name]
        smallest = points[0]["settings"]["size"]
        sizes = [point["settings"]["size"] / smallest for point in points]
        cost = [point["ratio"][0] for point in points]
        label = f"{name}: {row['median']:.2f}"
        style = {"color": PALETTE[place], "marker": MARKERS[place], "markersize": 4, "linewidth": 1.2}
        axes.loglog(sizes, cost, label=label, **style)
    axes.set_xlabel("size against the smallest")
    axes.set_ylabel("seconds a step against the smallest")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([1, 2, 4, 8, 16]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    axes.legend(title="exponent of", fontsize=8, title_fontsize=8, frameon=False)


def _draw_generation(axes: Any, rows: list[dict[str, Any]]) -> None:
    from analysis.figures import PALETTE

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

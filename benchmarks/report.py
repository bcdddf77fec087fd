"""What the benchmark leaves behind: bench.json, and bench.md made of it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jbot.store.storage import atomic_write

SCHEMA = 1
COLUMNS = ("what", "median", "quartiles", "unit", "n", "ratio", "by CPU s", "to", "wall s", "CPU s", "note")
ENGINE_SECTIONS = ("parts", "threads", "packs", "growth")
"""Sections of one engine, which --engine chooses."""
RIGHT = ("median", "n", "wall s", "CPU s")

HEAD = """# Benchmark

Medians and quartiles over n interleaved rounds; "wall s" and "CPU s" are medians of one step, or of one timed run.
Ratios are taken within each round: on a shared machine they hold where absolute times do not, and those by CPU seconds
best for one thread. Shares of limits are by CPU seconds of one thread (on a GPU by wall seconds) against limits
measured in the same rounds: products of cache-sized matrices in the same precision for the FLOP that are needed, a
triad for what moves between operations. What an engine computes beyond what is needed, or twice, is not counted. More
than 100% of the memory limit is what caches give. Made by `make bench`."""

Row = dict[str, Any]
Section = dict[str, Any]
"""title, when, seconds, quick, engine, environment, load_averages, rows."""


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
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n")


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


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a section whose rows all have the same columns, of any names, as a table."""
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(table)

"""What a benchmark leaves behind: a JSON file of its sections, and the same as Markdown tables beside it."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing import NotAvailable, Row
from jbot.data import DataError
from jbot.store.storage import atomic_write
from jbot.trial.provenance import git_commit, hardware, library_versions

SCHEMA = 2

Cells = Mapping[str, Any]
"""Column -> what stands there: text, a number, (median, first, third quartile), or nothing (None, empty)."""
Section = dict[str, Any]
"""title, when, seconds, environment, load_averages, notes (how it was run), rows."""


def measure(title: str, rows_of: Callable[[], Sequence[Row | Cells]], device: str = "cpu", notes: str = "") -> Section:
    """The rows that a function returns, when and where it ran; what this machine lacks is a row with the reason."""
    before, started, when = os.getloadavg(), time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    try:
        rows = rows_of()
    except (NotAvailable, DataError) as reason:
        rows = [Row(what=title, note=str(reason))]
    return {
        "title": title,
        "when": when,
        "seconds": round(time.perf_counter() - started, 1),
        "environment": {
            "hardware": hardware(torch.device(device)),
            "libraries": library_versions(),
            "git_commit": git_commit(),
        },
        "load_averages": [[round(load, 2) for load in loads] for loads in (before, os.getloadavg())],
        "notes": notes,
        "rows": [dataclasses.asdict(row) if isinstance(row, Row) else dict(row) for row in rows],
    }


def load(path: Path) -> dict[str, Section]:
    """Sections measured before, by name; none when the file is missing, damaged or of another schema."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["sections"]) if content["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def save(path: Path, sections: Mapping[str, Section], head: str) -> None:
    """Write the JSON file, and a page that begins with `head` beside it, each whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = "\n\n".join([head, *(section_text(name, section) for name, section in sections.items())])
    content = json.dumps({"schema": SCHEMA, "sections": dict(sections)}, indent=1, allow_nan=False)
    for target, text in ((path, content), (path.with_suffix(".md"), page)):
        with atomic_write(target) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def section_text(name: str, section: Section) -> str:
    """One section: title, where it ran, table."""
    there, loads = section["environment"], [f"{load[0]:.1f}" for load in section["load_averages"]]
    machine, commit = there["hardware"], there["git_commit"] or "?"
    where = [
        machine["gpu"] if "gpu" in machine else f"{machine['cores']} x {machine['cpu']}",
        f"torch {there['libraries'].get('torch', '?')}",
        f"commit {commit[:9]}{'+' * commit.endswith('+')}",
        f"load {' to '.join(loads)}",
        f"{section['when']}, {section['seconds']:.0f} s",
        *filter(None, [section["notes"]]),
    ]
    rows = [_shown(row) if "median" in row else row for row in section["rows"]]
    return f"## {name}: {section['title']}\n\n{'; '.join(where)}\n\n{table(rows)}"


def _shown(row: Cells) -> Cells:
    """The columns of a :class:`Row`."""
    there = row["median"] is not None
    return {
        "what": row["what"],
        "median (quartiles)": (row["median"], row["low"], row["high"]) if there else "not measured",
        "unit": row["unit"] if there else "",
        "n": row["n"] if there else "",
        "ratio": row["ratio"],
        "by CPU s": row["cpu_ratio"],
        "to": row["base"],
        "wall s": row["wall_seconds"],
        "CPU s": row["cpu_seconds"],
        "note": row["note"],
    }


def table(rows: Sequence[Cells]) -> str:
    """Rows as a Markdown table, readable as it stands; columns in which nothing stands are left out."""
    made = Table(box=box.MARKDOWN)
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    shown = {name: texts for name in names if any(texts := [_text(row.get(name)) for row in rows])}
    for name in shown:
        numbers = all(isinstance(row.get(name), int | float | None) for row in rows)
        made.add_column(name, justify="right" if numbers else "left", no_wrap=True)
    for cells in zip(*shown.values(), strict=True):
        made.add_row(*cells)
    console = Console(file=io.StringIO(), width=10_000, markup=False, highlight=False, emoji=False)
    console.print(made)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        if len(set(value)) == 1:
            return number(value[0])
        return f"{number(value[0])} ({number(value[1])} to {number(value[2])})"
    return value or "" if isinstance(value, str | None) else number(value)


def number(value: float) -> str:
    """Three digits, no exponent; whole numbers as they are."""
    if isinstance(value, int) or value == 0 or not math.isfinite(value):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"

"""A bar that counts jets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Jets per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} jets/s" if task.speed else "- jets/s")


@contextmanager
def progress_bar(what: str, n_jets: int, console: Console | None) -> Iterator[Callable[[int], None]]:
    """Yield the function that advances a bar by a number of jets; nothing is shown without a console."""
    if console is None or not n_jets:
        yield lambda _: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, speed_estimate_period=300) as bar:
        task = bar.add_task(what, total=n_jets)
        yield lambda done: bar.advance(task, done)

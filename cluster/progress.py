"""Live progress of a study: blocks and trials done, running, failed, time left."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from jbot.evaluation.metrics_registry import fine_tunings
from jbot.messages import last_line
from jbot.store.record import Record, TrialSpec
from jbot.store.search_ledger import SearchPlan

LOG_SECONDS = 15.0
"""Between lines where there is no terminal to draw a bar in."""
STYLED = re.compile(r"\[(bold|red|yellow)\](.*?)\[/\]", re.DOTALL)


def styled(line: str) -> Text:
    """``[red]these words[/] in red``, or bold or yellow. All else is shown as it is: rich's own markup would leave out
    brackets in paths and errors, or raise."""
    text, end = Text(), 0
    for match in STYLED.finditer(line):
        text.append(line[end : match.start()]).append(match[2], match[1])
        end = match.end()
    return text.append(line[end:])


class Bar:
    """A bar with a line of text, drawn by rich on a terminal; elsewhere the line is printed now and then.

    Parameters
    ----------
    done : float
        What was there before: it says nothing about speed.
    time_left : bool
        Whether the total is known well enough for a time left.
    """

    def __init__(
        self, title: str, total: float, done: float = 0.0, *, console: Console | None = None, time_left: bool = True
    ):
        self.console, self.logged, self.line = console or Console(stderr=True), -math.inf, ""
        columns = [TextColumn("[bold]{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[line]}")]
        times = [TimeElapsedColumn(), *([TimeRemainingColumn()] if time_left else [])]
        self.progress = Progress(
            *columns,
            *times,
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=math.inf,  # an epoch may take minutes
        )
        self.time_left = time_left
        self.task = self.progress.add_task(title, total=total, completed=done, line="")  # type: ignore[arg-type]
        self.progress.start()

    def show(self, done: float, line: str) -> None:
        """Move the bar."""
        self.progress.update(self.task, completed=done, line=line)
        self.line = f"{line} {self.left()}".rstrip()
        if time.monotonic() - self.logged > LOG_SECONDS:
            self._log()

    def left(self) -> str:
        """``0:04:10 left``, once a trial has shown how fast it goes."""
        seconds = self.progress.tasks[0].time_remaining if self.time_left else None
        return f"{timedelta(seconds=seconds)} left" if seconds else ""

    def close(self) -> None:
        """Leave the last state to be seen."""
        if self.line:
            self._log()
        self.progress.stop()

    def _log(self) -> None:
        if not self.console.is_terminal:
            self.logged, line, self.line = time.monotonic(), self.line, ""
            self.console.print(line, highlight=False)


def epochs_of(spec: TrialSpec) -> float:
    """Epochs of a trial over all its jets; one of fine-tuning counts as its share of the labels."""
    return spec.config.train.last_epoch + spec.config.finetune.epochs * sum(fine_tunings(spec.config).values())


class StudyProgress:
    """A bar over all epochs of all trials, and a line that counts blocks and trials."""

    def __init__(self, specs: list[TrialSpec], done: list[Record], console: Console | None = None):
        self.running: set[str] = set()
        known = {spec.trial_id: spec for spec in specs}
        # Sums are kept up to date, as every event asks for them: computed again they would cost each event all trials.
        self.whole = {trial: epochs_of(spec) for trial, spec in known.items()}
        self.epochs = dict.fromkeys(self.whole, 0.0)
        self.work = 0.0
        self.states: dict[str, str] = {}
        self.failed, self.trials = 0, len(specs)
        self.open_in_block = Counter(spec.config.seed for spec in known.values())
        self.blocks = len(self.open_in_block)
        for record in done:
            self._settle(known[record.trial_id], record.state)
        self.bar = self.make_bar(console)

    def make_bar(self, console: Console | None) -> Bar:
        """The bar, as far as it has come when the run begins."""
        return Bar("trials", sum(self.whole.values()), self.work, console=console)

    def started(self, spec: TrialSpec) -> None:
        """Count it as running."""
        self.running.add(spec.trial_id)
        self._show()

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        """Move the bar."""
        if "epoch" in row:
            self._reach(spec, max(self.epochs[spec.trial_id], row["epoch"]))
        else:  # a row of a fine-tuning, which sees a share of the jets
            share = next(share for name, share in fine_tunings(spec.config).items() if f"{name}/epoch" in row)
            self._reach(spec, self.epochs[spec.trial_id] + share)
        self._show()

    def interrupted(self, spec: TrialSpec) -> None:
        """Count it as waiting."""
        self.running.discard(spec.trial_id)
        self._say(f"[yellow]{spec.arm}, seed {spec.config.seed} lost its worker[/] and will be started again")

    def ended(self, spec: TrialSpec, record: Record) -> None:
        """Count it as done or failed."""
        self.running.discard(spec.trial_id)
        self._settle(spec, record.state)
        if record.state == "failed":
            self._say(f"[yellow]{spec.arm}, seed {spec.config.seed} failed:[/] {record.reason}")
        self._show()

    def lost(self, spec: TrialSpec, error: str) -> None:
        """Say why."""
        self.running.discard(spec.trial_id)
        why = last_line(error) if error.strip() else "worker died"
        self._say(f"[red]{spec.arm}, seed {spec.config.seed} was given up:[/] {why}")

    def close(self) -> None:
        """Draw the last state."""
        self._show()
        self.bar.close()

    def done(self) -> float:
        """Epochs that are done, of all trials together."""
        return self.work

    def summary(self) -> str:
        """``blocks 3/6 · trials 14/24 done · 2 running · 0 failed``."""
        closed = self.blocks - len(self.open_in_block)
        return (
            f"blocks {closed}/{self.blocks} · trials {len(self.states)}/{self.trials} done · "
            f"{len(self.running)} running · {self.failed} failed"
        )

    def _reach(self, spec: TrialSpec, epochs: float) -> None:
        """A trial has come so far; one that has ended stays there."""
        if spec.trial_id not in self.states:
            self.work += epochs - self.epochs[spec.trial_id]
            self.epochs[spec.trial_id] = epochs

    def _settle(self, spec: TrialSpec, state: str) -> None:
        """A trial has ended, however far it came."""
        trial, block = spec.trial_id, spec.config.seed
        if trial in self.whole and trial not in self.states:  # a search may end what was not planned when it began
            self._reach(spec, self.whole[trial])
            self.open_in_block[block] -= 1
            if not self.open_in_block[block]:
                del self.open_in_block[block]
        self.failed += (state == "failed") - (self.states.get(trial) == "failed")
        self.states[trial] = state

    def _say(self, line: str) -> None:
        self.bar.console.print(styled(line))
        self._show()

    def _show(self) -> None:
        self.bar.show(self.done(), self.summary())


class SearchProgress(StudyProgress):
    """A bar over the points of a search, of which only those that have started are known."""

    def __init__(
        self, plan: SearchPlan, points: int, entries: Sequence[dict[str, Any]], console: Console | None = None
    ):
        self.plan, self.points = plan, points
        self.before_this = sum(entry["state"] != "open" for entry in entries)
        super().__init__([], [], console)

    def make_bar(self, console: Console | None) -> Bar:
        """Without a time left: nobody knows what will be pruned."""
        return Bar("points", self.points, self.done(), console=console, time_left=False)

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        """The line is printed now and then."""
        self._show()

    def done(self) -> int:
        """Points whose last trial has a record."""
        per_point = 2 if "anomaly" in self.plan.objectives else 1
        gave_up = sum(state != "complete" for state in self.states.values())
        return self.before_this + gave_up + (len(self.states) - gave_up) // per_point

    def summary(self) -> str:
        """``points 14/24 done · 2 running · 6 pruned · 0 failed``."""
        counts = {state: list(self.states.values()).count(state) for state in ("pruned", "failed")}
        return (
            f"points {self.done()}/{self.points} done · {len(self.running)} running · "
            f"{counts['pruned']} pruned · {counts['failed']} failed"
        )

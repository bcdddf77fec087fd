"""Live progress of a study: blocks and trials done, running, failed, time left."""

from __future__ import annotations

import re
import time
from collections import Counter
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from jbot.evaluation.evaluator import fine_tunings
from jbot.store.record import Record, last_line
from jbot.trial.run import TrialSpec

LOG_SECONDS = 15.0
"""Between lines where there is no terminal to draw a bar in."""
STYLED = re.compile(r"\[(bold|red|yellow)\](.*?)\[/\]", re.DOTALL)


def styled(line: str) -> Text:
    """``[red]these words[/] in red``, or bold or yellow. All else is shown as it is: rich's own markup would leave out
    brackets in paths and errors, or raise."""
    text, end = Text(), 0
    for found in STYLED.finditer(line):
        text.append(line[end : found.start()]).append(found[2], found[1])
        end = found.end()
    return text.append(line[end:])


class TimeLeft(ProgressColumn):
    """Time left, from the epochs done in this run."""

    def render(self, task: Task) -> Text:
        """``4:10 left``, once there is something to judge by."""
        return Text(task.fields["left"], style="cyan")


def epochs_of(spec: TrialSpec) -> float:
    """Epochs of a trial over all its jets; one of fine-tuning counts as its share of the labels."""
    return spec.config.train.last_epoch + spec.config.finetune.epochs * sum(fine_tunings(spec.config).values())


class StudyProgress:
    """A bar over all trials, moved by every reported epoch."""

    def __init__(self, specs: list[TrialSpec], done: list[Record], console: Console | None = None):
        self.console = console or Console(stderr=True)
        self.specs = specs
        self.running: set[str] = set()
        # Sums are kept up to date, as every event asks for them: made anew they would cost each event all trials.
        self.whole = {spec.trial_id: epochs_of(spec) for spec in specs}
        self.epochs = dict.fromkeys(self.whole, 0.0)
        self.total, self.work = sum(self.whole.values()), 0.0
        self.states: dict[str, str] = {}
        self.failed = 0
        known = {spec.trial_id: spec for spec in specs}
        self.open_in_block = Counter(spec.config.seed for spec in known.values())
        self.blocks = len(self.open_in_block)
        for record in done:
            self._settle(known[record.trial_id], record.state)
        self.begun, self.logged = time.monotonic(), 0.0
        self.before = self.work
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeLeft(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("trials", total=len(specs), completed=len(self.states), detail="", left="")
        self.bar.start()

    def started(self, spec: TrialSpec) -> None:
        """Count it as running."""
        self.running.add(spec.trial_id)
        self._show()

    def point(self, spec: TrialSpec, row: dict[str, Any]) -> None:
        """Move the bar."""
        if "epoch" in row:
            self._reach(spec, max(self.epochs[spec.trial_id], row["epoch"]))
        else:  # of a fine-tuning, which sees a share of the jets
            share = next(share for name, share in fine_tunings(spec.config).items() if f"{name}/epoch" in row)
            self._reach(spec, self.epochs[spec.trial_id] + share)
        self._show()

    def interrupted(self, spec: TrialSpec) -> None:
        """Count it as waiting."""
        self.running.discard(spec.trial_id)
        self._say(f"[yellow]{spec.arm}, seed {spec.config.seed} lost its worker[/] and will be started again")
        self._show()

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
        self._show()

    def close(self) -> None:
        """Draw the last state."""
        self.logged = 0.0
        self._show()
        self.bar.stop()

    def summary(self) -> str:
        """``block 3 of 6, 14 of 24 trials done, 2 running, 0 failed``."""
        closed = self.blocks - len(self.open_in_block)
        return (
            f"blocks {closed}/{self.blocks} · trials {len(self.states)}/{len(self.specs)} done · "
            f"{len(self.running)} running · {self.failed} failed"
        )

    def time_left(self) -> str:
        """From the share of all epochs done since this run began."""
        gained, seconds = self.work - self.before, time.monotonic() - self.begun
        if gained <= 0 or len(self.states) == len(self.specs):
            return ""
        left = int(seconds * (self.total - self.work) / gained)
        return f"{timedelta(seconds=left)} left"

    def _reach(self, spec: TrialSpec, epochs: float) -> None:
        """So far has it come; one that has ended stays there."""
        if spec.trial_id not in self.states:
            self.work += epochs - self.epochs[spec.trial_id]
            self.epochs[spec.trial_id] = epochs

    def _settle(self, spec: TrialSpec, state: str) -> None:
        """It has ended, however far it came."""
        trial, block = spec.trial_id, spec.config.seed
        if trial in self.whole and trial not in self.states:  # a search may end what was not planned when it began
            self._reach(spec, self.whole[trial])
            self.open_in_block[block] -= 1
            if not self.open_in_block[block]:
                del self.open_in_block[block]
        self.failed += (state == "failed") - (self.states.get(trial) == "failed")
        self.states[trial] = state

    def _say(self, line: str) -> None:
        self.console.print(styled(line))

    def _show(self) -> None:
        summary, left = self.summary(), self.time_left()
        self.bar.update(self.task, completed=len(self.states), detail=summary, left=left)
        if not self.console.is_terminal and time.monotonic() - self.logged > LOG_SECONDS:
            self.logged = time.monotonic()
            self.console.print(f"{summary} {left}".rstrip(), highlight=False)

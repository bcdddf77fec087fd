"""A run as people see it: lines on stderr, the progress bar, and the MLflow view."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from cluster.events import Listener
from cluster.mirror import default_tracking_uri, see
from cluster.progress import styled
from cluster.scheduling.run import run_inline
from jbot.data import Jets
from jbot.messages import first_line, without_secret
from jbot.store.plan import Plan
from jbot.store.record import TrialSpec
from jbot.store.storage import Storage
from studies.runner.options import NO_VIEW, RunOptions

console = Console(stderr=True)


def say(line: str) -> None:
    """A line on stderr, styled, that is never broken: paths and commands can be copied."""
    console.print(styled(without_secret(line)), soft_wrap=True)


def run_specs(
    specs: Sequence[TrialSpec],
    data: Jets,
    storage: Storage,
    listeners: Sequence[Listener],
    options: RunOptions,
) -> None:
    """Run those that have no record yet, under Ray or inline."""
    if options.inline:
        run_inline(specs, data, storage, listeners, options.resources)
    else:
        from cluster.scheduling.tune import run_ray

        run_ray(specs, data, storage, listeners, address=options.address, resources=options.resources)


@contextmanager
def watched(
    progress: Listener, plan: Plan, data: Jets, storage: Storage, options: RunOptions
) -> Iterator[tuple[list[Listener], Any]]:
    """The listeners of a run, and the MLflow view among them, None without one; both are closed when the run ends.

    At the end the view is made whole from the records. Not when the run is stopped: a grace period is for the report,
    and the same command, or cluster.mirror, makes it whole.
    """
    uri = view_uri(options, storage)
    view = None if uri is None else _live_view(plan, data, storage, uri)
    listeners: list[Listener] = [progress, *([view] if view else [])]
    ended = False
    try:
        yield listeners, view
        ended = True
    finally:
        if view and not ended:
            view.stopped()
        for listener in listeners:
            listener.close()
        if view and ended:
            _finish(view, plan, storage)
        elif view and view.error:
            say_lost(view, plan, storage)


def say_lost(view: Any, plan: Plan, storage: Storage) -> None:
    """Say how to rebuild the view when the server was down."""
    say(f"[yellow]the MLflow view is not whole[/] ({view.error}); nothing is lost, rebuild it with")
    words = [sys.executable, "-m", "cluster.mirror", f"{storage.uri}/{plan.study}"]
    say(f"  {shlex.join([*words, '--tracking-uri', without_secret(view.uri)])}")


def _finish(view: Any, plan: Plan, storage: Storage) -> None:
    from cluster.tracking.publish import rebuild

    try:  # a server that was down for a while is back by now, or costs some seconds more
        rebuild(storage, plan.study, view.uri, files=False)
        view.error = None
    except Exception as error:  # whatever MLflow, SQLAlchemy or the network raise: the records are complete
        view.error = f"{type(error).__name__}: {first_line(error)}"
    if view.error:
        say_lost(view, plan, storage)
    else:
        say(see(view.uri, storage, plan.study))


def view_uri(options: RunOptions, storage: Storage) -> str | None:
    """The tracking server that a study is shown on; None without one. Raises RecordError where none can be named."""
    if options.inline if options.tracking_uri is None else options.tracking_uri == NO_VIEW:
        return None
    return options.tracking_uri or default_tracking_uri(storage)


def _live_view(plan: Plan, data: Jets, storage: Storage, uri: str) -> Any:
    from cluster.tracking.pages import StudyInfo
    from cluster.tracking.publish import LiveView

    info = StudyInfo(
        name=plan.study,
        question=plan.question,
        preset=plan.preset,
        plan_hash=plan.hash,
        metric=plan.metric,
        source=data.source,
        higher_is_better=plan.higher_is_better,
        arms=tuple(plan.arms),
    )
    return LiveView(uri, info, storage)

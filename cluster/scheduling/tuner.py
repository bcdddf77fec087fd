"""One run of Ray Tune over numbered places. Neither files nor signal handlers of Tune stay behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray import tune

from cluster.scheduling.run import scratch_place
from jbot.store.record import Storage


class Relay(tune.Callback):
    """Counts places that have ended, and hears the Ctrl-C that Tune catches. Those for studies and for searches tell
    listeners what Tune's events mean."""

    def __init__(self) -> None:
        self.settled = 0
        """Places that have ended or were given up."""
        self.interrupted = False

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return (tune.Callback, ())  # Tune pickles its callbacks; listeners live in this process alone

    def setup(self, *args: Any, **info: Any) -> None:
        """Tune has just set its handler, which stops its trials in order; a second Ctrl-C then stops Tune itself."""
        theirs = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(theirs):
            return

        def hear(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            theirs(number, frame)

        signal.signal(signal.SIGINT, hear)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A place is free."""
        self.settled += 1

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Given up after the last retry."""
        self.settled += 1


def run_tune(
    trainable: Any,
    field: str,
    places: int,
    relay: Relay,
    storage: Storage,
    *,
    scratch: str,
    max_retries: int,
    folders: Callable[[Any], str],
    names: Callable[[Any], str] | None = None,
) -> None:
    """Run a trainable once for each place, in order, on actors that are reused.

    Parameters
    ----------
    field : str
        Under which the trainable finds the number of its place, from 0.
    scratch : str
        Folder for what Tune itself must write. One driver a study and storage: a second would take it away.
    max_retries : int
        How often a place is begun again when its worker dies.
    folders, names : callable
        What Tune calls the folder and the name of its trial.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, when Tune has stopped its trials: it returns as if nothing had happened.
    """
    where = scratch_place(storage)
    where.remove(scratch)
    tuner = tune.Tuner(
        trainable,
        # Grid search keeps its order: blocks are filled one after another.
        param_space={field: tune.grid_search(list(range(places)))},
        tune_config=tune.TuneConfig(reuse_actors=True, trial_name_creator=names, trial_dirname_creator=folders),
        run_config=tune.RunConfig(
            name=scratch,
            storage_path=where.uri,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=max_retries),
            callbacks=[relay],
        ),
    )
    with _own_handlers():
        tuner.fit()
    where.remove(scratch)
    if relay.interrupted or relay.settled < places:
        raise KeyboardInterrupt


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Tune puts back what it found when a signal has come, and else never: the next one, long after, would be lost."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)

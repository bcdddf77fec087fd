"""SIGTERM, with which clouds, queues and containers announce that a machine goes: the driver stops as at Ctrl-C."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from jbot.cli import INTERRUPTED, end_soon

TERMINATED = 128 + signal.SIGTERM
"""Exit code, as shells count it: 143, as INTERRUPTED is 130."""


@contextmanager
def stopped_by_sigterm() -> Iterator[Callable[[], int]]:
    """While it lasts, SIGTERM does what Ctrl-C does; gives what tells the exit code of a command that was stopped.

    What the command has done is done then: while Python ends, no signal changes its exit code.
    """
    came = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        came.set()
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells start what runs in the background of a script
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)  # Tune catches that one, and stops its trials in order

    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield lambda: INTERRUPTED
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield lambda: TERMINATED if came.is_set() else INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
        end_soon()
        atexit.unregister(_ignore_signals)
        atexit.register(_ignore_signals)  # last, so it is the first to be called


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C or SIGTERM is behind an error: a file that is closed while it is written says so its own way."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def interrupt() -> None:
    """Stop this process as Ctrl-C does, from any of its threads. (`_thread.interrupt_main` would not wake a wait.)"""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGINT)


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Processes that are started meanwhile do not hear SIGTERM, and what others set for it here does not stay.

    For ray.init, which would have this process end at once. A queue sends the signal to all processes of a job: Ray's
    must live on until the driver has stopped its trials and ends them. (Ray does the same for Ctrl-C.)
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, deaf = signal.getsignal(signal.SIGTERM), {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, deaf)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, deaf)


@contextmanager
def held_back() -> Iterator[None]:
    """A first Ctrl-C or SIGTERM is heard at its end, a second at once: for what must not be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler is not None}  # set from Python
    came: list[int] = []

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hear(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            give_back()
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        give_back()
        if len(came) == 1:
            signal.raise_signal(came[0])

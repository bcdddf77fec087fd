"""What every program of this repository answers to bad input: one line on stderr, and exit code 2."""

from __future__ import annotations

import argparse
import ast
import atexit
import functools
import gc
import os
import sys
from pathlib import Path
from typing import Any, NoReturn, Protocol

from jbot.messages import one_line

BAD_INPUT, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """As argparse has it; a bad option is one line too, without the usage before it.

    As a sub-command of `jbot`, which leaves ``jbot <name>`` in `sys.argv`, it goes by that name; a sub-command of that
    has its own word after it.
    """

    def __init__(self, *, prog: str | None = None, **how: Any):
        called = sys.argv[0]
        own = called.startswith("jbot ") and not (prog or "").startswith(f"{called} ")
        super().__init__(prog=called if own else prog, **how)

    def error(self, message: str) -> NoReturn:
        """End the program."""
        sys.exit(bad_input(f"{message}; {self.prog} --help lists what there is"))


def docstring(file: str) -> str:
    """The docstring of a module, from its file: `python -OO` leaves it out of the module itself."""
    return ast.get_docstring(ast.parse(Path(file).read_text("utf-8"))) or ""


def bad_input(problem: BaseException | str) -> int:
    """Print the one line and return the exit code.

    Parameters
    ----------
    problem : exception or str
        What is wrong: the rule, and the value received.
    """
    print(f"error: {one_line(problem)}", file=sys.stderr)
    return BAD_INPUT


class Main(Protocol):
    """A program: its command line, as words, gives an exit code."""

    def __call__(self, arguments: list[str] | None = None) -> int:
        """Run it; without arguments, on those of this process."""


def program(main: Main) -> Main:
    """The main function of a program that reads files: whatever they hold, its answer to bad ones is one line.

    ValueError and OSError say what is wrong. Any other error is of a file that no check foresaw, or a mistake of ours:
    JBOT_TRACEBACK=1 in the environment shows where.
    """

    @functools.wraps(main)
    def answering(arguments: list[str] | None = None) -> int:
        end_soon()
        try:
            return main(arguments)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except (ValueError, OSError) as error:
            return bad_input(error)
        except Exception as error:
            if os.environ.get("JBOT_TRACEBACK"):
                raise
            words = f"{type(error).__name__}: {error}"
            return bad_input(f"what was read cannot be used, {words}; JBOT_TRACEBACK=1 shows where")

    return answering


def end_soon() -> None:
    """Have Python not look for garbage, among all that torch and others have imported, before it ends this process
    (measured: 0.5 s of a report's --help, 1.8 s of a study)."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)

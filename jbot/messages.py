"""What is said of an error: short, on one line, and without a secret."""

from __future__ import annotations

import re

MAX_MESSAGE = 2_000
"""Characters of a message: a value may be of any length (heuristic)."""
SECRET_USER = re.compile(r"(?<=://)(?:[^/\s]*@|[^/\s:@]*:(?!\d+/)\S*@)")
"""User and password before a host. The second form is of a key with a slash in it, as AWS gives them."""
SECRET_QUERY = re.compile(
    r"([?&](?:[\w.-]*(?:password|secret|token|signature|credential)|(?:[\w.-]*[_.-])?(?:key|sig)|\w*(?:api|access|account)key)=)"
    r"[^&\s]*",
    re.IGNORECASE,
)


def one_line(problem: BaseException | str) -> str:
    """What an error says in one line that is safe to show: no secret, and nothing that a terminal would obey."""
    text = str(problem) or type(problem).__name__
    if isinstance(problem, KeyError):  # says the key alone
        text = f"{text} is missing"
    words = " ".join(without_secret(text).split())
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)
    return shown if len(shown) <= MAX_MESSAGE else f"{shown[:MAX_MESSAGE]} ... ({len(shown):,} characters)"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without secrets, or its kind when it says nothing."""
    return without_secret(next(iter(str(error).splitlines()), type(error).__name__))


def last_line(error: object) -> str:
    """The last line of what an error of a worker says, where a traceback comes first; safe to show, as the first."""
    return without_secret(next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "no word"))


def without_secret(text: str) -> str:
    """A URI, or words that hold one, without user and password before its host and in its query: safe to show."""
    return SECRET_QUERY.sub(r"\1***", SECRET_USER.sub("***@", text))


def without_user(address: str) -> str:
    """An http address without user and password, as a page may lead to it: the browser asks for them."""
    scheme, _, rest = without_secret(address).partition("://")
    return f"{scheme}://{rest.removeprefix('***@')}"

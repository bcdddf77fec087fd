"""JSON that holds its own digest: a bit that a disk has flipped is no result."""

from __future__ import annotations

from typing import Any

from jbot.config import digest

SEAL = "seal"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content and its digest."""
    return content | {SEAL: digest(content)}


def unsealed(content: Any) -> Any:
    """The content alone.

    Raises
    ------
    TypeError
        When it is not what was sealed. Content without a digest, of before there were any, is taken as it is.
    """
    if not isinstance(content, dict) or SEAL not in content:
        return content
    rest = {name: value for name, value in content.items() if name != SEAL}
    try:
        same = content[SEAL] == digest(rest)
    except ValueError:  # NaN, which is never sealed
        same = False
    if not same:
        raise TypeError("it is not what was written")
    return rest

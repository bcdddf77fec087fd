"""JSON that holds its own digest: a bit that a disk has flipped is no result."""

from __future__ import annotations

from typing import Any

from jbot.config import digest

KEY = "seal"


def with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """The content and its digest."""
    return content | {KEY: digest(content)}


def without_checksum(content: Any, *, required: bool = False) -> Any:
    """The content alone.

    Raises TypeError when it is not what was written. Content without a digest, of before there were any, is taken as it
    is, unless it is `required`: a flipped bit may have hit the name of the digest.
    """
    if not isinstance(content, dict) or KEY not in content:
        if required:
            raise TypeError("it has no checksum")
        return content
    rest = {name: value for name, value in content.items() if name != KEY}
    try:
        same = content[KEY] == digest(rest)
    except ValueError:  # NaN, which is never written
        same = False
    if not same:
        raise TypeError("it is not what was written")
    return rest

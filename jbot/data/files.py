"""Where jets are cached, and how a file is written so that a killed run leaves nothing to trust by mistake."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STALE_SECONDS = 86_400
"""Age after which a temporary file can only be a killed run's leftover (assumed: no file takes a day to write)."""


def cache_folder(cache: Path | None = None) -> Path:
    """The folder given, or $JBOT_CACHE, or ~/.cache/jbot. Not created here."""
    if cache is not None:
        return Path(cache)
    return Path(os.environ.get("JBOT_CACHE") or Path.home() / ".cache" / "jbot")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` in one step, on failure it is removed.

    Two processes may write the same path at once: each has its own temporary file and the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed run left more than a day ago; younger ones may be in use."""
    for partial in folder.glob("*.part"):
        try:
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()
        except FileNotFoundError:  # another process was quicker
            continue

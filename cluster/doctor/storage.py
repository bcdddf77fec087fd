"""Is the storage the same everywhere, and can it be written?"""

from __future__ import annotations

from cluster.doctor.finding import Finding, Node
from cluster.resources import ClusterError
from jbot.messages import first_line, one_line
from jbot.store.storage import RecordError, Storage, temporary_name

CONTENT = b"seen"
"""What a token holds."""


def check_storage(storage: Storage) -> str:
    """Write and read back a token, so that a wrong path fails before any training. Returns the token's name.

    Raises
    ------
    ClusterError
        When it cannot be written.
    """
    name = temporary_name(".token")
    try:
        storage.write(name, CONTENT)
        if storage.read(name) != CONTENT:
            raise OSError("read back something else")
    except OSError as error:
        why = one_line(error.strerror or error)  # without the name of a file of ours
        raise ClusterError(f"storage {storage.uri} must be writable: {why}") from None
    return name


def probe(storage: Storage, token: str) -> str:
    """Empty when the token is there and another file can be written, else what went wrong."""
    own = temporary_name(".seen")
    try:
        if not storage.exists(token):
            return "is not seen"
        if storage.read(token) != CONTENT:
            return "has another content than here"
        storage.write(own, CONTENT)
        storage.remove_file(own)
    except (OSError, RecordError) as error:
        return f"fails ({first_line(error)})"
    return ""


def evaluate(node: Node, storage: Storage) -> Finding:
    """Whether a node reads and writes the driver's storage."""
    if wrong := node.facts["storage"]:  # the rule and the value in one line, as it stands alone in an error
        remedy = "use a folder that all nodes share at this path, or s3:// with credentials on each"
        says = f"{storage.uri} {wrong} by this node"
        return Finding(what="storage", where=node.address, says=says, remedy=remedy)
    return Finding(what="storage", where=node.address, says=f"{storage.uri} is read and written")

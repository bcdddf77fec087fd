"""What a process on a node can say of it: storage, code, libraries, disks, memory, files, GPUs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster.resources import ClusterError
from jbot.messages import first_line, one_line
from jbot.store.storage import RecordError, Storage, temporary_name

TOKEN_CONTENT = b"seen"
SHAPES_RESULTS = ("torch", "numpy", "scipy", "scikit-learn")
"""Libraries of which another version gives other numbers: one study must not mix them."""
LIBRARIES = (*SHAPES_RESULTS, "pyarrow", "safetensors", "h5py")
"""The others read what another node wrote: other versions are worth a warning."""
GROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Where control groups (versions 2 and 1) tell of memory: folder, limit, use, and what of it is files not in use."""


def probe_node(storage: Storage, token: str) -> dict[str, Any]:
    """Facts about a node, from a process on it. `token` is what :func:`check_storage` has written."""
    return {
        "storage": probe_storage(storage, token),
        "code": code_digest(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        "gpus": gpus(),
        "disks": disks(storage),
        "memory": memory(),
        "files": open_files(),
    }


# --- storage and code ---------------------------------------------------------------------------------------------


def check_storage(storage: Storage) -> str:
    """Write and read back a token, so that a wrong path fails before any training. Returns the token's name.

    Raises ClusterError when it cannot be written.
    """
    name = temporary_name(".token")
    try:
        storage.write(name, TOKEN_CONTENT)
        if storage.read(name) != TOKEN_CONTENT:
            raise OSError("read back something else")
    except OSError as error:
        why = one_line(error.strerror or error)  # without the name of a file of ours
        raise ClusterError(f"storage {storage.uri} must be writable: {why}") from None
    return name


def probe_storage(storage: Storage, token: str) -> str:
    """Empty when the token is there and another file can be written, else what went wrong."""
    own = temporary_name(".seen")
    try:
        if not storage.exists(token):
            return "is not seen"
        if storage.read(token) != TOKEN_CONTENT:
            return "has another content than here"
        storage.write(own, TOKEN_CONTENT)
        storage.remove_file(own)
    except (OSError, RecordError) as error:
        return f"fails ({first_line(error)})"
    return ""


def code_digest() -> str:
    """Digest of the packages that run a trial, as they are imported here."""
    import cluster
    import jbot

    digest = hashlib.sha256()
    for package in (jbot, cluster):
        root = Path(str(package.__file__)).parent
        for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".cpp")):
            digest.update(f"{root.name}/{path.relative_to(root).as_posix()}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _version(name: str) -> str:
    if name == "torch":  # its build, too: +cpu and +cu128 are not the same library
        import torch

        return str(torch.__version__)
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


# --- the machine --------------------------------------------------------------------------------------------------


def disks(storage: Storage) -> dict[str, tuple[int, int]]:
    """Bytes free and in all, where records and where Ray's files go."""
    folders = {"Ray's files": os.environ.get("RAY_TMPDIR") or "/tmp"}
    if storage.local:
        folders["storage"] = storage.uri
    space = {}
    for name, folder in folders.items():
        there = next((path for path in (Path(folder), *Path(folder).parents) if path.exists()), Path("/"))
        usage = shutil.disk_usage(there)
        space[name] = (usage.free, usage.total)
    return space


def memory() -> tuple[int, int]:
    """Bytes available and in all; within a container or a queue's job, of what their limit leaves."""
    import psutil

    machine = psutil.virtual_memory()
    limits = group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return min([(machine.available, machine.total), *limits])


def group_limits(own: Path, root: Path) -> Iterator[tuple[int, int]]:
    """Bytes available and in all of this process's control group and of those around it, where they have a limit."""
    with contextlib.suppress(OSError):  # another system than Linux
        for line in own.read_text().splitlines():
            _, kind, name = line.split(":", 2)
            if kind not in GROUPS:
                continue
            folder, most, now, idle = GROUPS[kind]
            inner = root / folder / name.strip("/")
            for group in (inner, *inner.parents):
                with contextlib.suppress(OSError, ValueError):  # not there, or the word max
                    limit, used = int((group / most).read_text()), int((group / now).read_text())
                    counts = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
                    yield max(0, limit - used + int(counts[idle])), limit  # files that nobody reads make room


def open_files() -> int | None:
    """Number of files a process may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def gpus() -> list[dict[str, Any]]:
    """Name, free and total memory [bytes] of each GPU; none without NVIDIA's own tool.

    No GPU context is made: that would take the memory of a trial.
    """
    command = ["nvidia-smi", "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        table = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []

    def in_bytes(mebibytes: str) -> int | None:
        return int(float(mebibytes) * 2**20) if mebibytes.replace(".", "", 1).isdigit() else None  # MIG says [N/A]

    rows = [[part.strip() for part in line.split(",")] for line in table.splitlines() if line.strip()]
    return [{"name": name, "free": in_bytes(free), "total": in_bytes(total)} for name, free, total in rows]

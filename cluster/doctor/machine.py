"""Has a node room on its disks, memory, files and GPUs, and the right time?"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.doctor.finding import Finding, Node
from jbot.store.storage import Storage

MIN_DISK = 2.0e9
"""Bytes free where records and Ray's own files go (assumed): a trial of jBOT-S leaves some 5 MB."""
MAX_DISK_USED = 0.95
"""Share of a disk from which Ray spills nothing any more, and tasks fail."""
MIN_MEMORY = 0.6e9
"""Bytes of a process that trains jBOT-S on a core, most of them libraries (docs/performance.md)."""
MIN_FILES = 4096
"""Open files a process may have; Ray's own daemons hold thousands on a busy node."""
MAX_SKEW_S, FATAL_SKEW_S = 30.0, 900.0
"""Seconds by which a node's clock may differ (assumed), and from which object stores refuse its requests."""
GROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Where control groups (versions 2 and 1) tell of memory: folder, limit, use, and what of it is files not in use."""


# --- on the node --------------------------------------------------------------------------------------------------


def disks(storage: Storage) -> dict[str, tuple[int, int]]:
    """Bytes free and in all, where records and where Ray's files go."""
    folders = {"Ray's files": os.environ.get("RAY_TMPDIR") or "/tmp"}
    if storage.local:
        folders["storage"] = storage.uri
    found = {}
    for name, folder in folders.items():
        there = next((path for path in (Path(folder), *Path(folder).parents) if path.exists()), Path("/"))
        usage = shutil.disk_usage(there)
        found[name] = (usage.free, usage.total)
    return found


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
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in said.splitlines() if line.strip()]
    return [{"name": name, "free": _mebibytes(free), "total": _mebibytes(total)} for name, free, total in rows]


def _mebibytes(text: str) -> int | None:
    return int(float(text) * 2**20) if text.replace(".", "", 1).isdigit() else None  # a MIG host says [N/A]


# --- what it means ------------------------------------------------------------------------------------------------


def evaluate(node: Node) -> Iterator[Finding]:
    """Everything about a node that does not depend on the others."""
    for name, (free, total) in node.facts["disks"].items():
        yield _disk(node, name, free, total)
    yield _memory(node)
    yield _clock(node)
    if node.gpus_promised or node.facts["gpus"]:
        yield _gpus(node)
    if (files := node.facts["files"]) is not None:
        remedy = f"ulimit -n {16 * MIN_FILES} before ray start" if files < MIN_FILES else ""
        yield Finding(what="open files", where=node.address, says=f"up to {files:,}", remedy=remedy, fatal=False)


def _disk(node: Node, name: str, free: int, total: int) -> Finding:
    used = 1 - free / max(total, 1)
    small = free < MIN_DISK or (name != "storage" and used > MAX_DISK_USED)
    remedy = f"free some: {MIN_DISK / 1e9:g} GB and {1 - MAX_DISK_USED:.0%} must be left" if small else ""
    says = f"{free / 1e9:,.1f} GB free, {used:.0%} used"
    return Finding(what=f"disk of {name}", where=node.address, says=says, remedy=remedy, fatal=free < MIN_DISK / 10)


def _memory(node: Node) -> Finding:
    free, total = node.facts["memory"]
    says, remedy = f"{free / 1e9:,.1f} GB available of {total / 1e9:,.1f}", ""
    if free < node.slots * MIN_MEMORY:
        says += f", {node.slots} trials at once"
        remedy = f"give trials more CPUs (--cpus), or Ray fewer: a trial takes {MIN_MEMORY / 1e9:g} GB at least"
    return Finding(what="memory", where=node.address, says=says, remedy=remedy, fatal=False)


def _clock(node: Node) -> Finding:
    says, remedy = "as here", ""
    if abs(node.skew) > MAX_SKEW_S:
        says = f"{node.skew:+,.0f} s against this machine"
        remedy = "set it by NTP (chrony): MLflow's times would be wrong, and object stores refuse 15 minutes"
    return Finding(what="clock", where=node.address, says=says, remedy=remedy, fatal=abs(node.skew) > FATAL_SKEW_S)


def _gpus(node: Node) -> Finding:
    there, remedy = node.facts["gpus"], ""
    names = Counter(gpu["name"] for gpu in there)
    says = ", ".join(f"{n} x {name}" for name, n in names.items()) or "none"
    if free := [gpu["free"] for gpu in there if gpu["free"] is not None]:
        says += f", least free memory {min(free) / 2**30:.1f} GiB"
    if len(there) < node.gpus_promised:
        says += f", Ray promises {node.gpus_promised:g}"
        remedy = "start Ray there with --num-gpus of what is there, or look at nvidia-smi and the driver"
    return Finding(what="GPUs", where=node.address, says=says, remedy=remedy)

"""What the facts about nodes mean: what is wrong with them, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.doctor.facts import SHAPES_RESULTS
from jbot.store.storage import Storage

HERE = "this machine"
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


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the cluster, as it describes itself."""

    address: str
    slots: int
    """Packs that it can run at once."""
    gpus_promised: float
    """What Ray believes to be there."""
    facts: dict[str, Any]
    """From :func:`cluster.doctor.facts.probe_node`."""
    skew: float
    """Seconds by which its clock is ahead, after the time the question may have taken."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    what: str
    where: str
    """Address of the node, or `this machine`."""
    says: str
    """What was found."""
    remedy: str = ""
    """What to do; empty when all is well."""
    fatal: bool = True
    """No study may start; else it is worth a warning."""

    @property
    def ok(self) -> bool:
        """Nothing is to be done."""
        return not self.remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.says}" + (f"; {self.remedy}" if self.remedy else "")


def evaluate(nodes: Sequence[Node], storage: Storage, code: str) -> list[Finding]:
    """Run every check on what the nodes have said, in their order; `code` is the `code_digest` of the driver."""
    own = [finding for node in nodes for finding in (*_software(node, storage, code), *_machine(node))]
    return own + _same_libraries(nodes)


def _software(node: Node, storage: Storage, code: str) -> Iterator[Finding]:
    """Whether a node reads and writes the driver's storage, and runs the code that Ray has shipped."""
    finding = partial(Finding, where=node.address)
    if wrong := node.facts["storage"]:  # the rule and the value in one line, as it stands alone in an error
        remedy = "use a folder that all nodes share at this path, or s3:// with credentials on each"
        yield finding(what="storage", says=f"{storage.uri} {wrong} by this node", remedy=remedy)
    else:
        yield finding(what="storage", says=f"{storage.uri} is read and written")
    says, remedy = f"version {node.facts['code']}", ""
    if node.facts["code"] != code:
        says += f", here {code}"
        remedy = "Ray did not ship this checkout: restart the node, and look for jbot in PYTHONPATH"
    yield finding(what="code", says=says, remedy=remedy)


def _machine(node: Node) -> Iterator[Finding]:
    """Whether a node has room on its disks, memory, files and GPUs, and the right time."""
    facts, finding = node.facts, partial(Finding, where=node.address)
    for name, (free, total) in facts["disks"].items():
        used = 1 - free / max(total, 1)
        small = free < MIN_DISK or (name != "storage" and used > MAX_DISK_USED)
        remedy = f"free some: {MIN_DISK / 1e9:g} GB and {1 - MAX_DISK_USED:.0%} must be left" if small else ""
        says = f"{free / 1e9:,.1f} GB free, {used:.0%} used"
        yield finding(what=f"disk of {name}", says=says, remedy=remedy, fatal=free < MIN_DISK / 10)
    free, total = facts["memory"]
    says, remedy = f"{free / 1e9:,.1f} GB available of {total / 1e9:,.1f}", ""
    if free < node.slots * MIN_MEMORY:
        says += f", {node.slots} trials at once"
        remedy = f"give trials more CPUs (--cpus), or Ray fewer: a trial takes {MIN_MEMORY / 1e9:g} GB at least"
    yield finding(what="memory", says=says, remedy=remedy, fatal=False)
    says, remedy = "as here", ""
    if abs(node.skew) > MAX_SKEW_S:
        says = f"{node.skew:+,.0f} s against this machine"
        remedy = "set it by NTP (chrony): MLflow's times would be wrong, and object stores refuse 15 minutes"
    yield finding(what="clock", says=says, remedy=remedy, fatal=abs(node.skew) > FATAL_SKEW_S)
    if node.gpus_promised or facts["gpus"]:
        says, remedy = _gpus(facts["gpus"]), ""
        if len(facts["gpus"]) < node.gpus_promised:
            says += f", Ray promises {node.gpus_promised:g}"
            remedy = "start Ray there with --num-gpus of what is there, or look at nvidia-smi and the driver"
        yield finding(what="GPUs", says=says, remedy=remedy)
    if (files := facts["files"]) is not None:
        remedy = f"ulimit -n {16 * MIN_FILES} before ray start" if files < MIN_FILES else ""
        yield finding(what="open files", says=f"up to {files:,}", remedy=remedy, fatal=False)


def _gpus(gpus: Sequence[dict[str, Any]]) -> str:
    names, free = Counter(gpu["name"] for gpu in gpus), [gpu["free"] for gpu in gpus if gpu["free"] is not None]
    says = ", ".join(f"{n} x {name}" for name, n in names.items()) or "none"
    return says + (f", least free memory {min(free) / 2**30:.1f} GiB" if free else "")


def _same_libraries(nodes: Sequence[Node]) -> list[Finding]:
    """Compare libraries of the nodes that train: a head without a GPU may have another torch."""
    trains = [node for node in nodes if node.slots] or list(nodes)
    findings = []
    for name in trains[0].facts["versions"]:
        by = {node.address: node.facts["versions"][name] for node in trains}
        most, _ = Counter(by.values()).most_common(1)[0]
        fatal = name in SHAPES_RESULTS
        remedy = f"install the same on every node{', or trials of one study differ by it' if fatal else ''}"
        odd = [
            Finding(what=name, where=address, says=f"{its}, other nodes {most}", remedy=remedy, fatal=fatal)
            for address, its in by.items()
            if its != most
        ]
        findings += odd or [Finding(what=name, where="all nodes that train", says=most)]
    return findings

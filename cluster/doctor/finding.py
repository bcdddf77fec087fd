"""The subject and the result of a check: Node and Finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HERE = "this machine"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the cluster, as it describes itself."""

    address: str
    slots: int
    """Packs that it can run at once."""
    gpus_promised: float
    """What Ray believes to be there."""
    facts: dict[str, Any]
    """From :func:`cluster.doctor.nodes.probe_node`."""
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

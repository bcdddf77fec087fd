"""Do all nodes run the same code, with the same libraries?"""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cluster.doctor.finding import Finding, Node

SHAPES_RESULTS = ("torch", "numpy", "scipy", "scikit-learn")
"""Libraries of which another version gives other numbers: one study must not mix them."""
MUST_READ = ("pyarrow", "safetensors", "h5py")
"""Libraries that read what another node wrote: other versions are worth a warning."""


def code_digest() -> str:
    """Digest of the packages that run a trial, as they are imported here."""
    import cluster
    import jbot

    found = hashlib.sha256()
    for package in (jbot, cluster):
        root = Path(str(package.__file__)).parent
        for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".cpp")):
            found.update(f"{root.name}/{path.relative_to(root).as_posix()}".encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Version of Python and of each library that matters, as imported here."""
    return {"python": platform.python_version()} | {name: _version(name) for name in (*SHAPES_RESULTS, *MUST_READ)}


def _version(name: str) -> str:
    if name == "torch":  # its build, too: +cpu and +cu128 are not the same library
        import torch

        return str(torch.__version__)
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def same_code(node: Node, here: str) -> Finding:
    """Whether Ray has shipped the driver's code, whose digest is `here`."""
    says, remedy = f"version {node.facts['code']}", ""
    if node.facts["code"] != here:
        says += f", here {here}"
        remedy = "Ray did not ship this checkout: restart the node, and look for jbot in PYTHONPATH"
    return Finding(what="code", where=node.address, says=says, remedy=remedy)


def same_libraries(nodes: Sequence[Node]) -> list[Finding]:
    """Compare libraries of the nodes that train: a head without a GPU may have another torch."""
    trains = [node for node in nodes if node.slots] or list(nodes)
    found = []
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
        found += odd or [Finding(what=name, where="all nodes that train", says=most)]
    return found

"""Can these machines run a study? Every node is asked, before any training; a line per failure says what to do.

    python -m cluster.doctor                                        # this machine
    python -m cluster.doctor --address auto --storage s3://bucket/results --tracking-uri http://127.0.0.1:5000
    python -m cluster.doctor --address auto --data jets.h5          # the jets arrive on every node as they are here

Studies ask the same of every node when they connect, without the jets and MLflow. Exit codes: 0 all is well (warnings
may be printed), 1 something must be remedied, 2 no such cluster, storage or data.
"""

from __future__ import annotations

import argparse
import contextlib
import uuid
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.doctor.facts import check_storage, code_digest, probe_node
from cluster.doctor.findings import HERE, Finding, Node, evaluate
from cluster.doctor.nodes import alive_nodes, ask_nodes, on_each
from cluster.resources import ClusterError
from jbot.cli import Parser, bad_input, docstring, program
from jbot.data.jets import CLASSES, JetData, content_fingerprint
from jbot.data.load import load_cached
from jbot.messages import first_line, without_secret
from jbot.store.storage import Storage

JETS = 100
"""Jets of each class that are read and sent to show that they arrive."""


def examine(storage: Storage, address: str | None, source: str | None, tracking_uri: str | None) -> list[Finding]:
    """Run every check.

    Raises ClusterError or DataError when there is no cluster or there are no such jets, or the storage cannot be
    written from here.
    """
    token = check_storage(storage)
    connection: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if address is not None:
        from cluster.connection import connected

        connection = connected(address)
    try:
        with connection:
            if address:
                nodes = ask_nodes(storage, token, _slots)
            else:
                nodes = [Node(address=HERE, slots=1, gpus_promised=0.0, facts=probe_node(storage, token), skew=0.0)]
            findings = evaluate(nodes, storage, code_digest())
            if source:
                findings.append(check_jets(source, nodes=bool(address)))
    finally:
        storage.remove_file(token)
    return findings + ([check_tracking(tracking_uri)] if tracking_uri else [])


def _slots(node: dict[str, Any]) -> int:
    """A trial for each GPU, or for each CPU where there is none: as presets have it."""
    return int(node["Resources"].get("GPU") or node["Resources"].get("CPU", 0))


def check_tracking(uri: str) -> Finding:
    """Whether MLflow answers there, and takes what is written. The experiment that is made for it is deleted again."""
    shown = without_secret(uri)
    try:
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=uri)
        client.delete_experiment(client.create_experiment(f"doctor-{uuid.uuid4().hex[:8]}"))
    except Exception as error:  # whatever MLflow, SQLAlchemy or the network raise
        says = f"{shown} fails ({type(error).__name__}: {without_secret(first_line(error))})"
        remedy = "start it, or look at its address and your rights; a study runs without it, and mirrors later"
        return Finding(what="MLflow", where=HERE, says=says, remedy=remedy, fatal=False)
    return Finding(what="MLflow", where=HERE, says=f"{shown} answers and takes runs")


def check_jets(source: str, nodes: bool) -> Finding:
    """Whether the jets can be read here, and arrive on every node as they are.

    Raises DataError for jets that cannot be used.
    """
    jets = load_cached(source, jets_per_class=dict.fromkeys(CLASSES, JETS))
    if jets is None:
        return Finding(what="jets", where=HERE, says=f"{source}: none here yet, a study gets them first")
    says = f"{jets.source}, fingerprint {jets.fingerprint[:12]}"
    if not nodes:
        return Finding(what="jets", where=HERE, says=says)
    import ray

    arrived = on_each(alive_nodes(), _fingerprint, ray.put(jets))
    wrong = [node["NodeManagerAddress"] for node, theirs in arrived if theirs != jets.fingerprint]
    remedy = "other bytes arrive than were sent: look at memory and network of these nodes" if wrong else ""
    return Finding(what="jets", where=", ".join(wrong) or "all nodes", says=says, remedy=remedy)


def _fingerprint(jets: JetData) -> str:
    return content_fingerprint(jets.particles, jets.labels, jets.jets)


def show(findings: Sequence[Finding]) -> None:
    """Print a row for each finding, and below them what to do."""
    table = Table("", "where", "what", "found", box=None, pad_edge=False, header_style="dim")
    for column in table.columns:
        column.overflow = "fold"
    for finding in findings:
        sign = "[green]ok[/]" if finding.ok else "[red]WRONG[/]" if finding.fatal else "[yellow]check[/]"
        table.add_row(sign, *(escape(text) for text in (finding.where, finding.what, finding.says)))
    console = Console()
    console.print(table)
    for finding in findings:
        if not finding.ok:
            line, style = f"{finding.where}, {finding.what}: {finding.remedy}", "bold" if finding.fatal else ""
            console.print(line, markup=False, highlight=False, soft_wrap=True, style=style)


@program
def main(arguments: list[str] | None = None) -> int:
    """Examine, print, and say by the exit code whether a study may start."""
    parser = Parser(
        prog="python -m cluster.doctor",
        description=docstring(__file__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--address", help="Ray cluster: auto, or host:port (default: this machine, without Ray)")
    parser.add_argument("--storage", default="results", help="folder or s3:// gs:// URI for records (default: results)")
    parser.add_argument("--data", help="jets that a study will use: pythia, jetnet, or a file or folder")
    parser.add_argument("--tracking-uri", help="MLflow server that a study will use")
    options = parser.parse_args(arguments)
    try:
        findings = examine(Storage(options.storage), options.address, options.data, options.tracking_uri)
    except ClusterError as error:
        return bad_input(error)
    show(findings)
    return int(any(finding.fatal and not finding.ok for finding in findings))

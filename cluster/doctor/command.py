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
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.doctor.code import code_digest
from cluster.doctor.finding import Finding
from cluster.doctor.nodes import ask_nodes, evaluate, this_machine
from cluster.doctor.services import check_jets, check_tracking
from cluster.doctor.storage import check_storage
from cluster.resources import ClusterError
from jbot.cli import Parser, bad_input, program
from jbot.store.storage import Storage


def examine(storage: Storage, address: str | None, source: str | None, tracking_uri: str | None) -> list[Finding]:
    """Run every check.

    Raises
    ------
    ClusterError, DataError
        When there is no cluster or there are no such jets, or the storage cannot be written from here.
    """
    token = check_storage(storage)
    found: list[Finding] = []
    try:
        with _perhaps_connected(address):
            nodes = ask_nodes(storage, token, _slots) if address else [this_machine(storage, token)]
            found += evaluate(nodes, storage, code_digest())
            if source:
                found.append(check_jets(source, nodes=bool(address)))
    finally:
        storage.remove_file(token)
    return found + ([check_tracking(tracking_uri)] if tracking_uri else [])


def _slots(node: dict[str, Any]) -> int:
    """A trial for each GPU, or for each CPU where there is none: as presets have it."""
    return int(node["Resources"].get("GPU") or node["Resources"].get("CPU", 0))


def _perhaps_connected(address: str | None) -> contextlib.AbstractContextManager[None]:
    if address is None:
        return contextlib.nullcontext()
    from cluster.connection import connected

    return connected(address)


def show(found: Sequence[Finding]) -> None:
    """Print a row for each finding, and below them what to do."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "where", "what", "found"):
        table.add_column(column, overflow="fold")
    for finding in found:
        sign = "[green]ok[/]" if finding.ok else "[red]WRONG[/]" if finding.fatal else "[yellow]check[/]"
        table.add_row(sign, *(escape(text) for text in (finding.where, finding.what, finding.says)))
    console = Console()
    console.print(table)
    for finding in found:
        if not finding.ok:
            words = f"{finding.where}, {finding.what}: {finding.remedy}"
            console.print(words, markup=False, highlight=False, soft_wrap=True, style="bold" if finding.fatal else "")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        prog="python -m cluster.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--address", help="Ray cluster: auto, or host:port (default: this machine, without Ray)")
    made.add_argument("--storage", default="results", help="folder or s3:// gs:// URI for records (default: results)")
    made.add_argument("--data", help="jets that a study will use: pythia, jetnet, or a file or folder")
    made.add_argument("--tracking-uri", help="MLflow server that a study will use")
    return made


@program
def main(arguments: list[str] | None = None) -> int:
    """Examine, print, and say by the exit code whether a study may start."""
    options = parser().parse_args(arguments)
    try:
        found = examine(Storage(options.storage), options.address, options.data, options.tracking_uri)
    except ClusterError as error:
        return bad_input(error)
    show(found)
    return int(any(finding.fatal and not finding.ok for finding in found))

"""Jets by Pythia on all nodes of a Ray cluster: the chunks of `jbot.data.chunks`, made by Ray tasks.

    python -m cluster.generate --address auto --jets 2000000 [--classes q g w z t] [--pt 1000] [--out FILE]

A task needs one free CPU and sends its chunk, half a megabyte, to this process, which writes it into the cache of this
machine; nodes need no shared disk. A node that dies has its chunks made elsewhere, a node that joins gets its share.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.connection import connected
from cluster.doctor.nodes import alive_nodes, on_each
from cluster.resources import ClusterError
from jbot.cli import bad_input, docstring, program
from jbot.data import DataError, generate, pythia
from jbot.data.chunks import Chunk, Executor, Made, generate_chunk, save_chunk
from jbot.messages import first_line

RETRIES = 3
"""Times a chunk is made again after its worker or node died."""
WAITING_PER_CPU = 2
"""Chunks in flight for each CPU of the cluster: one being made, one made or about to be. It bounds what finished
chunks take in the object store, half a megabyte each, however slow this process is to write them."""


def cluster_executor(address: str | None, at_once: int | None = None) -> Executor:
    """Make chunks on the cluster at this address (None: on Ray started here); it is only contacted when called.

    No more than `at_once` chunks are in flight, so that others find free CPUs too; default twice the cluster's CPUs.
    """

    def run(chunks: Sequence[Chunk]) -> Generator[int, None, None]:
        with ExitStack() as stack:  # a cluster that is not there is said now, before a progress bar is drawn
            stack.enter_context(connected(address))
            finished = on_nodes(chunks, at_once)
            return _while_open(stack.pop_all(), finished)

    return run


def _while_open(stack: ExitStack, finished: Generator[int, None, None]) -> Generator[int, None, None]:
    with stack, closing(finished):
        yield from finished


def on_nodes(
    chunks: Sequence[Chunk], at_once: int | None = None, make: Callable[[Chunk], Made] = generate_chunk
) -> Generator[int, None, None]:
    """Make chunks on the nodes of the connected cluster, which are checked at once; `make` is called there.

    The generator yields the jets of each chunk when its file is written; closed early, what still runs ends with the
    connection to the cluster.

    Raises
    ------
    ClusterError
        When a node lacks the generators or has other versions of them, or no node has a CPU.
    DataError
        When a chunk was tried `RETRIES` times again and its worker died each time.
    """
    versions = pythia.generator_versions()
    check_generators(versions)
    task = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(made_here)
    return _gather(chunks, lambda chunk: task.remote(chunk, versions, make), at_once)


def _gather(chunks: Sequence[Chunk], submit: Callable[[Chunk], Any], at_once: int | None) -> Generator[int, None, None]:
    """Keep a bounded number of tasks in flight, and write what they send.

    Stopped early, nothing is cancelled: what still runs ends with this process's connection to the cluster. A task of
    Ray 2.60 that is cancelled in the moment it ends can take the process down with it.
    """
    waiting = iter(chunks)
    running: dict[Any, Chunk] = {}
    while True:
        cpus = int(ray.cluster_resources().get("CPU", 0))  # asked again each time: nodes come and go
        room = (at_once or max(1, WAITING_PER_CPU * cpus)) - len(running)
        for _, chunk in zip(range(room), waiting, strict=False):  # the range first: it must not eat a chunk
            running[submit(chunk)] = chunk
        if not running:
            return
        for finished in ray.wait(list(running))[0]:
            chunk = running.pop(finished)
            save_chunk(chunk, _result(finished))
            yield chunk.n_jets


def _result(finished: Any) -> Made:
    """Arrays of a finished task; its own error as it was raised there."""
    try:
        return ray.get(finished)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, DataError | ClusterError) else error from None
    except RayError as error:
        raise DataError(
            f"a chunk was given up after {RETRIES} retries ({type(error).__name__}: {first_line(error)}); "
            "the same command continues"
        ) from None


def made_here(chunk: Chunk, versions: dict[str, str], make: Callable[[Chunk], Made]) -> Made:
    """The task: make a chunk on this node, which is checked again as it may have joined after the first check."""
    if problem := wrong_generators(versions):
        raise ClusterError(f"node {ray.util.get_node_ip_address()} {problem}")
    return make(chunk)


# --- versions -----------------------------------------------------------------------------------------------------


def check_generators(versions: dict[str, str]) -> None:
    """Every node that offers CPUs must have the generators of this process: others make other jets.

    Raises ClusterError in one line naming the nodes and what they have.
    """
    nodes = [node for node in alive_nodes() if node["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise ClusterError("generating jets needs a node with a CPU, and this cluster has none")
    answers = on_each(nodes, wrong_generators, versions)
    if problems := {node["NodeManagerAddress"]: problem for node, problem in answers if problem}:
        named = "; ".join(f"node {address} {problem}" for address, problem in problems.items())
        raise ClusterError(f"{named}. Every node needs: pip install {' '.join(map('=='.join, versions.items()))}")


def wrong_generators(versions: dict[str, str]) -> str | None:
    """Difference between this node's generators and those wanted, or None."""
    installed = {}
    for package in versions:
        try:
            installed[package] = pythia.installed_version(package)
        except DataError:
            return f"has no {package}"
    wrong = [package for package in versions if installed[package] != versions[package]]
    return "; ".join(f"has {name} {installed[name]}, this machine {versions[name]}" for name in wrong) or None


# --- command line -------------------------------------------------------------------------------------------------


@program
def main(arguments: list[str] | None = None) -> int:
    """Generate jets on a cluster and say where they are. Exit codes: 0, 2 (bad request or cluster), 130."""
    parser = generate.parser("python -m cluster.generate", docstring(__file__))
    parser.add_argument("--address", help="Ray cluster: auto, or host:port (default: Ray started on this machine)")
    options = parser.parse_args(arguments)
    try:
        return generate.run(options, cluster_executor(options.address, options.workers))
    except ClusterError as error:
        return bad_input(error)


if __name__ == "__main__":
    sys.exit(main())

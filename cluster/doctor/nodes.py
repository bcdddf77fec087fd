"""Ask every node of a cluster what it is, and say what of it is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cluster.doctor import machine
from cluster.doctor import storage as shared
from cluster.doctor.code import code_digest, same_code, same_libraries, versions
from cluster.doctor.finding import HERE, Finding, Node
from cluster.resources import ClusterError
from jbot.messages import last_line
from jbot.store.storage import Storage


def probe_node(storage: Storage, token: str) -> dict[str, Any]:
    """Facts about a node, from a process on it."""
    return {
        "storage": shared.probe(storage, token),
        "code": code_digest(),
        "versions": versions(),
        "gpus": machine.gpus(),
        "disks": machine.disks(storage),
        "memory": machine.memory(),
        "files": machine.open_files(),
    }


def evaluate(nodes: Sequence[Node], storage: Storage, code: str) -> list[Finding]:
    """Run every check on what the nodes have said, in their order.

    Parameters
    ----------
    code : str
        :func:`cluster.doctor.code.code_digest` of the driver.
    """
    found: list[Finding] = []
    for node in nodes:
        found += [shared.evaluate(node, storage), same_code(node, code), *machine.evaluate(node)]
    return found + same_libraries(nodes)


def this_machine(storage: Storage, token: str) -> Node:
    """This process as a node, without Ray."""
    return Node(address=HERE, slots=1, gpus_promised=0.0, facts=probe_node(storage, token), skew=0.0)


def ask_nodes(storage: Storage, token: str, slots: Callable[[dict[str, Any]], int]) -> list[Node]:
    """Probe every node of the connected cluster.

    Parameters
    ----------
    slots : callable
        Packs that a node, as `ray.nodes` describes it, can run at once.

    Raises
    ------
    ClusterError
        When a node cannot answer: it cannot import this code, say.
    """
    return [
        Node(
            address=node["NodeManagerAddress"],
            slots=slots(node),
            gpus_promised=node["Resources"].get("GPU", 0.0),
            facts=facts,
            skew=clock_skew(partial(_time_on, node)),
        )
        for node, facts in on_each(alive_nodes(), probe_node, storage, token)
    ]


def on_each(nodes: Sequence[dict[str, Any]], function: Callable[..., Any], *arguments: Any) -> list[tuple[Any, Any]]:
    """Run a function on each node, all at once: (node, what it returned). Those that have gone meanwhile are left out.

    Raises
    ------
    ClusterError
        Naming the nodes that are there and cannot run it, or when none is left.
    """
    import ray
    from ray.exceptions import RayError

    task, found, problems = ray.remote(num_cpus=0)(function), [], []
    refs = [(node, task.options(scheduling_strategy=on_node(node)).remote(*arguments)) for node in nodes]
    for node, ref in refs:
        try:
            found.append((node, ray.get(ref)))
        except RayError as error:
            if node["NodeID"] in {other["NodeID"] for other in alive_nodes()}:
                problems.append(f"node {node['NodeManagerAddress']} cannot be asked: {last_line(error)}")
    if problems or not found:
        raise ClusterError("; ".join(problems) or "every node has gone while it was asked")
    return found


def on_node(node: dict[str, Any]) -> Any:
    """The scheduling strategy that runs something on this node, nowhere else."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def alive_nodes() -> list[dict[str, Any]]:
    """The live nodes of the connected cluster, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def clock_skew(ask: Callable[[], float]) -> float:
    """Seconds by which another clock is ahead of what ours showed while it was asked; 0 within that time."""
    before = time.time()
    theirs = ask()
    after = time.time()
    return min(theirs - before, 0.0) or max(theirs - after, 0.0)


def _time_on(node: dict[str, Any]) -> float:
    """A node's clock [s since 1970]; ours where the node has gone."""
    import ray
    from ray.exceptions import RayError

    try:
        return float(ray.get(ray.remote(num_cpus=0)(_clock).options(scheduling_strategy=on_node(node)).remote()))
    except RayError:
        return _clock()


def _clock() -> float:
    return time.time()

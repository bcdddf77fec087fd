"""Ask every node of a cluster what it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cluster.doctor.facts import probe_node
from cluster.doctor.findings import Node
from cluster.resources import ClusterError
from jbot.messages import last_line
from jbot.store.storage import Storage


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

    Raises ClusterError naming the nodes that are there and cannot run it, or when none is left.
    """
    import ray
    from ray.exceptions import RayError

    task, answers, problems = ray.remote(num_cpus=0)(function), [], []
    refs = [(node, task.options(scheduling_strategy=on_node(node)).remote(*arguments)) for node in nodes]
    for node, ref in refs:
        try:
            answers.append((node, ray.get(ref)))
        except RayError as error:
            if node["NodeID"] in {other["NodeID"] for other in alive_nodes()}:
                problems.append(f"node {node['NodeManagerAddress']} cannot be asked: {last_line(error)}")
    if problems or not answers:
        raise ClusterError("; ".join(problems) or "every node has gone while it was asked")
    return answers


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

    clock = ray.remote(num_cpus=0)(lambda: time.time())
    try:
        return float(ray.get(clock.options(scheduling_strategy=on_node(node)).remote()))
    except RayError:
        return time.time()

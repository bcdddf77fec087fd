"""Slots of a cluster's nodes, each for one pack of trials, and memory of their GPUs."""

from __future__ import annotations

import math
import sys
import time
from functools import partial
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from cluster.doctor.facts import check_storage, code_digest
from cluster.doctor.findings import evaluate
from cluster.doctor.nodes import alive_nodes, ask_nodes, on_node
from cluster.resources import ClusterError, Resources
from cluster.scheduling.packs import free_gpu_bytes
from jbot.messages import first_line
from jbot.store.storage import Storage

POLL_S, REMIND_S = 2.0, 600.0
"""Between questions whether a first node has come, and between lines that say so (assumed)."""


def check_nodes(storage: Storage, resources: Resources) -> None:
    """Some node must be able to hold one trial, and every live node be in order: see :mod:`cluster.doctor`.

    A cluster that grows (`resources.grow_to`) is asked for a first such node, and waited for. Raises ClusterError when
    none can, or one is not.
    """
    if resources.grow_to:
        _wait_for_slot(resources)
    if present_slots(resources) == 0:
        raise ClusterError(f"no node offers what one trial needs: {_described(resources)}")
    token = check_storage(storage)
    try:
        nodes = ask_nodes(storage, token, partial(slots_on, resources=resources))
    finally:
        storage.remove_file(token)
    wrong = [finding for finding in evaluate(nodes, storage, code_digest()) if not finding.ok]
    for finding in wrong:
        if not finding.fatal:
            print(f"warning: {finding}", file=sys.stderr)
    if fatal := [str(finding) for finding in wrong if finding.fatal]:
        raise ClusterError("\n".join(fatal))


def slots_on(node: dict[str, Any], resources: Resources) -> int:
    """Packs that a node can run at once."""
    return min(int(node["Resources"].get(name, 0) / amount) for name, amount in _wanted(resources).items())


def present_slots(resources: Resources) -> int:
    """Packs that the nodes which are there now can run at once."""
    return sum(slots_on(node, resources) for node in alive_nodes())


def slots(resources: Resources) -> int:
    """Packs that the cluster can run at once, when it has grown as far as it was said to."""
    return max(present_slots(resources), resources.grow_to or 0)


def free_bytes(resources: Resources) -> int | None:
    """Bytes that one pack may take of a GPU's memory, on the node that has least; None where trials run on CPUs."""
    if resources.gpus == 0:
        return None
    measure: Any = ray.remote(num_cpus=0, num_gpus=resources.gpus)(free_gpu_bytes)
    nodes = [node for node in alive_nodes() if slots_on(node, resources)]
    answers = [measure.options(scheduling_strategy=on_node(node)).remote(resources.gpus) for node in nodes]
    if ray.wait(answers, num_returns=len(answers), timeout=60)[1]:
        print("waiting until each node has a GPU free to be measured; --pack N does without", file=sys.stderr)
    try:
        return min(ray.get(answers))
    except RayError as error:
        problem = f"the memory of a GPU was not measured, --pack N does without: {first_line(error)}"
        raise ClusterError(problem) from None


def _wanted(resources: Resources) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", resources.cpus), ("GPU", resources.gpus)) if amount > 0}


def _described(resources: Resources) -> str:
    return f"{resources.cpus:g} CPUs and {resources.gpus:g} GPUs"


def _wait_for_slot(resources: Resources) -> None:
    """Ask the autoscaler, if there is one, for a node that holds a pack, until one has come. A queue may take hours,
    and nothing but the head is paid meanwhile, so there is no limit: Ctrl-C ends it."""
    said = -math.inf
    try:
        while present_slots(resources) == 0:
            if time.monotonic() - said > REMIND_S:
                said = time.monotonic()
                wanted = _described(resources)
                print(f"waiting for a first node with {wanted}; on the head, ray status says why", file=sys.stderr)
                request_resources(bundles=[_wanted(resources)])
            time.sleep(POLL_S)
    finally:
        if said > -math.inf:
            request_resources(bundles=[])  # or it would keep that node for ever, after Ctrl-C too

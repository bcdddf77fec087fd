"""Anomaly grids of the trials of a study, when they have ended: on Ray's workers, or one after another here.

Each grid is a file of its trial (:mod:`jbot.evaluation.anomaly.grid`): what is there is not made again, so whatever
stops this, the same command continues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from rich.console import Console

from cluster.progress import Bar, styled
from cluster.resources import Resources
from jbot.data import Jets
from jbot.evaluation.anomaly.grid import AnomalyGrid, grid_file, make_grid
from jbot.messages import first_line
from jbot.store.record import TrialSpec, load_record
from jbot.store.storage import Storage


def open_grids(grid: AnomalyGrid, specs: Sequence[TrialSpec], storage: Storage) -> list[TrialSpec]:
    """Complete trials without a grid, once each, in the order given."""
    unique = {spec.trial_id: spec for spec in specs if not storage.exists(grid_file(grid, spec.trial_id))}
    return [spec for trial, spec in unique.items() if (r := load_record(storage, trial)) and r.state == "complete"]


def run_grids(
    grid: AnomalyGrid,
    specs: Sequence[TrialSpec],
    data: Jets,
    storage: Storage,
    resources: Resources,
    *,
    inline: bool = False,
    address: str | None = None,
    console: Console | None = None,
) -> int:
    """Make the grids that are missing, in this process or on Ray; returns how many could not be made.

    Trials that are not complete are left out. Raises ClusterError when there is no cluster at the address (as for
    :func:`cluster.scheduling.tune.run_ray`), or no GPU here where one is asked for.
    """
    todo, lost = open_grids(grid, specs, storage), 0
    if not todo:
        return 0
    work = (grid, data, storage, resources)
    ended = _inline(todo, *work) if inline else _ray(todo, *work, address)
    with closing(Bar("anomaly grids", len(todo), console=console)) as bar:
        for done, (spec, error) in enumerate(ended, 1):
            if error is not None:
                lost += 1
                words = f"[red]no anomaly grid of {spec.arm}, seed {spec.config.seed}:[/] {first_line(error)}"
                bar.console.print(styled(words))
            bar.show(done, f"anomaly grids {done}/{len(todo)} done")
    return lost


Ended = Iterator[tuple[TrialSpec, Exception | None]]


def _inline(todo: list[TrialSpec], grid: AnomalyGrid, data: Jets, storage: Storage, resources: Resources) -> Ended:
    """One after another. A bug is raised, for a debugger."""
    resources.begin_inline("grids")
    for spec in todo:
        make_grid(grid, spec, data, storage, resources.device)
        yield spec, None


def _ray(
    todo: list[TrialSpec], grid: AnomalyGrid, data: Jets, storage: Storage, resources: Resources, address: str | None
) -> Ended:
    """Tasks that hold what a pack holds, in the order in which they end."""
    import ray

    from cluster.connection import connected
    from cluster.scheduling.nodes import check_nodes

    with connected(address):
        check_nodes(storage, resources)
        make: Any = ray.remote(_task)
        held = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": resources.max_retries}
        shared, task = ray.put(data), make.options(**held)
        running: dict[Any, TrialSpec] = {task.remote(spec, shared, grid, storage, resources): spec for spec in todo}
        while running:
            (ready,), _ = ray.wait(list(running))
            try:
                ray.get(ready)
                error = None
            except (ray.exceptions.RayTaskError, ray.exceptions.RayError) as failure:
                error = getattr(failure, "cause", None) or failure
            yield running.pop(ready), error


def _task(spec: TrialSpec, data: Jets, grid: AnomalyGrid, storage: Storage, resources: Resources) -> None:
    torch.set_num_threads(resources.threads)
    make_grid(grid, spec, data, storage, resources.device)

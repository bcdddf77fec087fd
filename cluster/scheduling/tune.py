"""Ray Tune: one Tune trial for each pack of open trials of the study, in block order, on actors that are reused."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import ray
import torch
from ray import tune
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from cluster.doctor.check import ask_nodes, code_digest, judge, on_node
from cluster.events import Deaths, Listener, tell_end
from cluster.scheduling.connection import connected
from cluster.scheduling.packs import form_packs, free_gpu_bytes
from cluster.scheduling.run import ClusterError, Resources, check_storage, open_trials
from cluster.scheduling.tuner import Relay, run_tune
from jbot.data import JetData, Jets
from jbot.store.attempts import attempts_begun
from jbot.store.record import Record, Storage, first_line
from jbot.trial.run import TrialSpec, run_pack

PATIENCE_S, REMIND_S = 2.0, 600.0
"""Between looks whether a first node has come, and between lines that say so (assumed)."""


def run_ray(
    specs: Sequence[TrialSpec],
    data: Jets | JetData,
    storage: Storage,
    listeners: Sequence[Listener],
    *,
    address: str | None = None,
    resources: Resources | None = None,
) -> None:
    """Run the open trials under Ray Tune.

    Parameters
    ----------
    address : str, optional
        `auto` or the address of a running cluster; None starts Ray on this machine and stops it again.

    Raises
    ------
    ClusterError
        When there is no cluster at the address, a node does not see the storage, or a trial can never be placed.
    KeyboardInterrupt
        After Ctrl-C, when Tune has stopped its trials.
    """
    resources = resources or Resources()
    todo = open_trials(specs, storage)
    if not todo:
        return
    with connected(address):
        check_nodes(storage, resources)
        # To measure a GPU is to wait for a share of it on every node: not for a number that is given already.
        free = free_bytes(resources) if resources.pack is None else None
        packs = form_packs(todo, size=resources.pack, free_bytes=free, places=places(resources))
        _fit(packs, data, storage, listeners, resources)


def check_nodes(storage: Storage, resources: Resources) -> None:
    """Some node must be able to hold one trial, and every live node be in order: see :mod:`cluster.doctor.check`.

    A cluster that grows (`resources.grow_to`) is asked for a first such node, and waited for.
    """
    if resources.grow_to:
        _wait_for_place(resources)
    if present_places(resources) == 0:
        raise ClusterError(f"no node offers what one trial needs: {resources.cpus:g} CPUs and {resources.gpus:g} GPUs")
    token = check_storage(storage)
    try:
        told = ask_nodes(storage, token, partial(places_on, resources=resources))
    finally:
        storage.remove_file(token)
    wrong = [finding for finding in judge(told, storage, code_digest()) if not finding.ok]
    for finding in wrong:
        if not finding.fatal:
            print(f"warning: {finding}", file=sys.stderr)
    if fatal := [str(finding) for finding in wrong if finding.fatal]:
        raise ClusterError("\n".join(fatal))


def places_on(node: dict[str, Any], resources: Resources) -> int:
    """Packs that a node can run at once."""
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus}
    return min(int(node["Resources"].get(name, 0) / held) for name, held in wanted.items() if held > 0)


def present_places(resources: Resources) -> int:
    """Packs that the nodes which are there now can run at once."""
    return sum(places_on(node, resources) for node in ray.nodes() if node["Alive"])


def places(resources: Resources) -> int:
    """Packs that the cluster can run at once, when it has grown as far as it was said to."""
    return max(present_places(resources), resources.grow_to or 0)


def _wait_for_place(resources: Resources) -> None:
    """Ask the autoscaler, if there is one, for a node that holds a pack, until one has come. A queue may take hours,
    and nothing but the head is paid meanwhile, so there is no limit: Ctrl-C ends it."""
    wanted = {name: held for name, held in (("CPU", resources.cpus), ("GPU", resources.gpus)) if held > 0}
    said = -math.inf
    try:
        while present_places(resources) == 0:
            if time.monotonic() - said > REMIND_S:
                said = time.monotonic()
                asked = f"{resources.cpus:g} CPUs and {resources.gpus:g} GPUs"
                print(f"waiting for a first node with {asked}; on the head, ray status says why", file=sys.stderr)
                request_resources(bundles=[wanted])
            time.sleep(PATIENCE_S)
    finally:
        if said > -math.inf:
            request_resources(bundles=[])  # or it would keep that node for ever, after Ctrl-C too


def free_bytes(resources: Resources) -> int | None:
    """What one pack may take of a GPU's memory, on the node that has least; None where trials run on CPUs."""
    if resources.gpus == 0:
        return None
    nodes = [node for node in ray.nodes() if node["Alive"] and places_on(node, resources)]
    measure: Any = ray.remote(num_cpus=0, num_gpus=resources.gpus)(free_gpu_bytes)
    asked = [measure.options(scheduling_strategy=on_node(node)).remote(resources.gpus) for node in nodes]
    if ray.wait(asked, num_returns=len(asked), timeout=60)[1]:
        print("waiting until each node has a GPU free to be measured; --pack N does without", file=sys.stderr)
    try:
        return min(ray.get(asked))
    except RayError as error:
        raise ClusterError(
            f"the memory of a GPU was not measured, --pack N does without: {first_line(error)}"
        ) from None


def _fit(
    packs: list[list[TrialSpec]],
    data: Jets | JetData,
    storage: Storage,
    listeners: Sequence[Listener],
    resources: Resources,
) -> None:
    shelf = Shelf(packs)
    trainable = tune.with_resources(
        tune.with_parameters(train_pack, packs=shelf, data=data, storage=storage, resources=resources),
        {"cpu": resources.cpus, "gpu": resources.gpus},
    )
    relay, names = StudyRelay(packs, storage, listeners), Names(packs)
    scratch, retries = f".ray-{packs[0][0].study}", resources.max_retries
    run_tune(
        trainable, "pack", len(packs), relay, storage, scratch=scratch, max_retries=retries, folders=names, names=names
    )


class Shelf:
    """Packs by number, in the object store. A worker fetches those around the one it asks for, not all of them: Tune
    hands its parameters to each trial anew, and reading all packs would cost every trial time in proportion to all."""

    SIZE = 64

    def __init__(self, packs: list[list[TrialSpec]]):
        self.parts = [ray.put(packs[begin : begin + self.SIZE]) for begin in range(0, len(packs), self.SIZE)]

    def __getitem__(self, number: int) -> list[TrialSpec]:
        part: list[list[TrialSpec]] = ray.get(self.parts[number // self.SIZE])
        return part[number % self.SIZE]


class Names:
    """What Tune's trials are called. Tune saves what gives names with every trial: with all packs in it, the state of
    2,000 trials would be gigabytes."""

    def __init__(self, packs: list[list[TrialSpec]]):
        self.names = [_name(pack) for pack in packs]

    def __call__(self, trial: Any) -> str:
        return self.names[trial.config["pack"]]

    def __reduce__(self) -> tuple[type[Names], tuple[list[list[TrialSpec]]]]:
        return (Names, ([],))  # names have been given by then

    def __copy__(self) -> Names:
        return self  # Tune copies its settings before it begins, by the way above

    def __deepcopy__(self, memo: dict[int, Any]) -> Names:
        return self


def _name(pack: list[TrialSpec]) -> str:
    first, others = pack[0], f"-and-{len(pack) - 1}" if len(pack) > 1 else ""
    return f"{first.arm}-seed{first.config.seed}-{first.trial_id[:6]}{others}"


def train_pack(
    config: dict[str, int], packs: Shelf, data: Jets | JetData, storage: Storage, resources: Resources
) -> None:
    """What a Ray worker does with one Tune trial, which is a pack of ours."""
    torch.set_num_threads(resources.threads)
    pack = packs[config["pack"]]
    place = {spec.trial_id: number for number, spec in enumerate(pack)}

    def report(rows: list[tuple[TrialSpec, dict[str, Any]]]) -> None:
        tune.report({"points": [(place[spec.trial_id], row) for spec, row in rows]})

    def ended(spec: TrialSpec, record: Record) -> None:
        tune.report({"ended": place[spec.trial_id]})

    run_pack(pack, data, storage, resources.device, report, ended, engine=resources.engine)
    tune.report({"records": len(pack)})  # Tune wants a word even where every record was there already


class StudyRelay(Relay):
    """Tells the listeners, trial by trial and in the words of the study, what Tune's events are."""

    def __init__(self, packs: list[list[TrialSpec]], storage: Storage, listeners: Sequence[Listener]):
        super().__init__()
        self.packs, self.storage, self.listeners = packs, storage, listeners
        self.told: set[str] = set()
        """Trials whose end the listeners know."""
        begun, specs = set(storage.names("trials")), [spec for pack in packs for spec in pack]
        self.deaths = Deaths(storage)
        self.deaths.attempts = {s.trial_id: attempts_begun(storage, s.trial_id) for s in specs if s.trial_id in begun}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """For the first time, or again after a crash."""
        for spec in self._open(trial):
            for listener in self.listeners:
                listener.started(spec)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Rows of learning curves, or the end of a trial whose pack goes on."""
        pack = self.packs[trial.config["pack"]]
        for place, row in result.get("points", ()):
            for listener in self.listeners:
                listener.point(pack[place], row)
        if "ended" in result:
            self._end(pack[result["ended"]])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The pack has ended: records say how."""
        super().on_trial_complete(iteration, trials, trial, **info)
        for spec in self._open(trial):
            self._end(spec)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its worker died, and it has a retry left."""
        for spec in self._open(trial):
            self.deaths.died(spec.trial_id)
            for listener in self.listeners:
                listener.interrupted(spec)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Given up after the last retry."""
        super().on_trial_error(iteration, trials, trial, **info)
        error = str(trial.get_error() or "")
        for spec in self._open(trial):
            self.deaths.died(spec.trial_id)
            for listener in self.listeners:
                listener.lost(spec, error)

    def _open(self, trial: Any) -> list[TrialSpec]:
        """The trials of a pack that have not ended yet."""
        return [spec for spec in self.packs[trial.config["pack"]] if spec.trial_id not in self.told]

    def _end(self, spec: TrialSpec) -> None:
        self.told.add(spec.trial_id)
        tell_end(self.listeners, self.storage, spec)

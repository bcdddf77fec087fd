"""Ray Tune: one Tune trial for each pack of open trials of the study, in block order, on actors that are reused."""

from __future__ import annotations

import os
import signal
import sys
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
import torch
from ray import tune

from cluster.connection import connected
from cluster.events import Listener, Listeners
from cluster.resources import Resources
from cluster.scheduling.nodes import check_nodes, free_bytes, slots
from cluster.scheduling.packs import form_packs
from cluster.scheduling.run import open_trials, scratch_storage
from jbot.data import JetData, Jets
from jbot.messages import first_line
from jbot.store.attempts import attempts_begun, note_attempt
from jbot.store.record import Record, TrialSpec, load_whole
from jbot.store.storage import RecordError, Storage
from jbot.trial.run import run_pack

# --- Tune itself, for studies and searches ------------------------------------------------------------------------


class TuneCallback(tune.Callback):
    """Passes Tune's events on to listeners, counts trials of Tune that are over, hears the Ctrl-C that Tune catches."""

    def __init__(self, storage: Storage, listeners: Sequence[Listener]) -> None:
        self.storage, self.listeners = storage, Listeners(listeners)
        self.attempts: dict[str, int] = {}
        """Trial id -> attempts that had started before the one that now runs."""
        self.settled = 0
        """Tune trials that have ended or were given up."""
        self.interrupted = False

    @abstractmethod
    def running(self, trial: Any) -> list[TrialSpec]:
        """Our trials that a Tune trial runs or is going to run."""

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return (tune.Callback, ())  # Tune pickles its callbacks; listeners live in this process alone

    def setup(self, *args: Any, **info: Any) -> None:
        """Tune has just set its handler, which stops its trials in order; a second Ctrl-C then stops Tune itself."""
        theirs = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(theirs):
            return

        def hear(number: int, frame: FrameType | None) -> None:
            if not self.interrupted:  # Tune is silent until its trials have stopped; a handler may not call print()
                os.write(2, b"stopping: running trials keep their last checkpoint, Ctrl-C again does not wait\n")
            self.interrupted = True
            theirs(number, frame)

        signal.signal(signal.SIGINT, hear)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The worker is done: records say how the trials ended that it has not spoken of."""
        self.settled += 1
        for spec in self.running(trial):
            self.end(spec)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its worker died, and it has a retry left."""
        for spec in self.running(trial):
            self.count_lost(spec.trial_id)
            self.listeners.interrupted(spec)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Given up after the last retry."""
        self.settled += 1
        for spec in self.running(trial):
            self.count_lost(spec.trial_id)
            self.listeners.lost(spec, str(trial.get_error() or ""))

    def count_lost(self, trial: str) -> None:
        """The worker of a trial has died, perhaps before it could note that this attempt had started: note it now."""
        number = self.attempts[trial] = self.attempts.get(trial, 0) + 1
        try:
            if attempts_begun(self.storage, trial) < number and load_whole(self.storage, trial) is None:
                note_attempt(self.storage, trial, number)
        except (OSError, RecordError) as error:
            print(f"warning: attempt {number} at trial {trial} is not noted: {first_line(error)}", file=sys.stderr)

    def end(self, spec: TrialSpec) -> None:
        """One of our trials has ended."""
        self.listeners.ended_elsewhere(spec, self.storage)


def run_tune(
    function: Callable[..., None],
    given: dict[str, Any],
    field: str,
    count: int,
    callback: TuneCallback,
    resources: Resources,
    *,
    scratch: str,
    folders: Callable[[Any], str],
    names: Callable[[Any], str] | None = None,
) -> None:
    """Run a function `count` times, in order, on actors that are reused. Neither files nor signal handlers of Tune stay
    behind.

    Parameters
    ----------
    function : callable
        Called with ``{field: number}``, numbers from 0, and what is `given`.
    scratch : str
        Folder for what Tune itself must write. One driver a study and storage: a second would take it away.
    folders, names : callable
        What Tune calls the folder and the name of its trial.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, when Tune has stopped its trials: it returns as if nothing had happened.
    """
    where = scratch_storage(callback.storage)
    where.remove(scratch)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(function, **given), {"cpu": resources.cpus, "gpu": resources.gpus}),
        # Grid search keeps its order: blocks are filled one after another.
        param_space={field: tune.grid_search(list(range(count)))},
        tune_config=tune.TuneConfig(reuse_actors=True, trial_name_creator=names, trial_dirname_creator=folders),
        run_config=tune.RunConfig(
            name=scratch,
            storage_path=where.uri,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=resources.max_retries),
            callbacks=[callback],
        ),
    )
    with _own_handlers():
        tuner.fit()
    where.remove(scratch)
    if callback.interrupted or callback.settled < count:
        raise KeyboardInterrupt


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Tune puts back what it found when a signal has come, and else never: the next one, long after, would be lost."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


# --- the packs of a study -----------------------------------------------------------------------------------------


def run_ray(
    specs: Sequence[TrialSpec],
    data: Jets | JetData,
    storage: Storage,
    listeners: Sequence[Listener],
    *,
    address: str | None = None,
    resources: Resources | None = None,
) -> None:
    """Run the open trials under Ray Tune, at `auto` or the address of a running cluster; None starts Ray here.

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
        packs = form_packs(todo, size=resources.pack, free_bytes=free, slots=slots(resources))
        _run_packs(packs, data, storage, listeners, resources)


def _run_packs(
    packs: list[list[TrialSpec]],
    data: Jets | JetData,
    storage: Storage,
    listeners: Sequence[Listener],
    resources: Resources,
) -> None:
    given = {"packs": PackRefs(packs), "data": data, "storage": storage, "resources": resources}
    names, scratch = TrialNames(packs), f".ray-{packs[0][0].study}"
    callback = StudyCallback(packs, storage, listeners)
    run_tune(train_pack, given, "pack", len(packs), callback, resources, scratch=scratch, folders=names, names=names)


def train_pack(
    config: dict[str, int], packs: PackRefs, data: Jets | JetData, storage: Storage, resources: Resources
) -> None:
    """Run one Tune trial, which is a pack of ours, in a Ray worker."""
    torch.set_num_threads(resources.threads)
    pack = packs[config["pack"]]
    position = {spec.trial_id: number for number, spec in enumerate(pack)}

    def report(rows: list[tuple[TrialSpec, dict[str, Any]]]) -> None:
        tune.report({"points": [(position[spec.trial_id], row) for spec, row in rows]})

    def ended(spec: TrialSpec, record: Record) -> None:
        tune.report({"ended": position[spec.trial_id]})

    run_pack(pack, data, storage, resources.device, report, ended, engine=resources.engine)
    tune.report({"records": len(pack)})  # Tune wants a word even where every record was there already


class PackRefs:
    """Packs by number, in the object store. A worker fetches those around the one it asks for, not all of them: Tune
    hands its parameters to each trial again, and reading all packs would cost every trial time in proportion to all."""

    SIZE = 64

    def __init__(self, packs: list[list[TrialSpec]]):
        self.parts = [ray.put(packs[begin : begin + self.SIZE]) for begin in range(0, len(packs), self.SIZE)]

    def __getitem__(self, number: int) -> list[TrialSpec]:
        part: list[list[TrialSpec]] = ray.get(self.parts[number // self.SIZE])
        return part[number % self.SIZE]


class TrialNames:
    """Gives Tune's trials their names. Tune saves what gives names with every trial: with all packs in it, the state of
    2,000 trials would be gigabytes."""

    def __init__(self, packs: list[list[TrialSpec]]):
        self.names = []
        for first, *others in packs:
            name = f"{first.arm}-seed{first.config.seed}-{first.trial_id[:6]}"
            self.names.append(name + (f"-and-{len(others)}" if others else ""))

    def __call__(self, trial: Any) -> str:
        return self.names[trial.config["pack"]]

    def __reduce__(self) -> tuple[type[TrialNames], tuple[list[list[TrialSpec]]]]:
        return (TrialNames, ([],))  # names have been given by then

    def __copy__(self) -> TrialNames:
        return self  # Tune copies its settings before it begins, by the way above

    def __deepcopy__(self, memo: dict[int, Any]) -> TrialNames:
        return self


class StudyCallback(TuneCallback):
    """The events of a study, whose Tune trials are packs."""

    def __init__(self, packs: list[list[TrialSpec]], storage: Storage, listeners: Sequence[Listener]):
        super().__init__(storage, listeners)
        self.packs = packs
        self.ended: set[str] = set()
        there, specs = set(storage.names("trials")), [spec for pack in packs for spec in pack]
        begun = {s.trial_id: attempts_begun(storage, s.trial_id) for s in specs if s.trial_id in there}
        self.attempts = begun

    def running(self, trial: Any) -> list[TrialSpec]:
        """The trials of a pack that have not ended yet."""
        return [spec for spec in self.packs[trial.config["pack"]] if spec.trial_id not in self.ended]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """For the first time, or again after a crash."""
        for spec in self.running(trial):
            self.listeners.started(spec)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Rows of learning curves, or the end of a trial whose pack goes on."""
        pack = self.packs[trial.config["pack"]]
        self.listeners.points((pack[position], row) for position, row in result.get("points", ()))
        if "ended" in result:
            self.end(pack[result["ended"]])

    def end(self, spec: TrialSpec) -> None:
        """One of our trials has ended, whatever of the others in its pack."""
        self.ended.add(spec.trial_id)
        super().end(spec)

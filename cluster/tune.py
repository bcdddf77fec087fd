"""Ray Tune: one Tune trial for each pack of open trials of the study, in block order, on actors that are reused."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray import tune
from ray.autoscaler.sdk import request_resources
from ray.exceptions import AuthenticationError, RayError, RayTaskError

from cluster.doctor import ask_nodes, code_digest, judge, on_node
from cluster.events import Deaths, Listener, tell_end
from cluster.packs import form_packs, free_gpu_bytes
from cluster.run import ClusterError, Resources, check_storage, open_trials
from cluster.stop import held_back, own_sigterm
from cluster.tuner import Relay, run_tune
from jbot.attempts import attempts_begun
from jbot.command_line import one_line
from jbot.data import JetData, Jets
from jbot.processes import is_pending
from jbot.record import Record, Storage, first_line, is_left_over, temporary_name
from jbot.trial import TrialSpec, run_pack

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what they mean in the driver
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our records replace Tune's CSV, JSON and TensorBoard files
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # Tune runs each trial in a new thread, and glibc would give each a heap of its own, of some 60 MB, for good.
    "MALLOC_ARENA_MAX": "1",
}

TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file ~/.ray/auth_token to what its nodes have"
PATIENCE_S, REMIND_S = 2.0, 600.0
"""Between looks whether a first node has come, and between lines that say so (assumed)."""
ENDING_S = 10.0
"""Ray's own processes have so long to end when they are killed, and then their files to go (assumed)."""


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
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
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


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray, started here or found at an address; a cluster that was there before is left running."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    folder = None
    if address is None:
        folder = _session_folder()
        options |= {"include_dashboard": False, "address": "local", "_temp_dir": str(folder)}
    else:
        check_address(address)
        import cluster
        import jbot

        # Every node runs this checkout's code, whatever is installed there.
        heap = {"MALLOC_ARENA_MAX": QUIET["MALLOC_ARENA_MAX"]}
        code = [str(Path(str(module.__file__)).parent) for module in (jbot, cluster)]
        options |= {"address": address, "runtime_env": {"py_modules": code, "env_vars": heap}}
    logging.getLogger("ray.tune.execution.tune_controller").addFilter(_in_one_line)
    try:
        _join(options)
        yield
    finally:
        with held_back():
            # Tune leaves object references in cycles. One that a thread of MLflow frees while Ray shuts down ends this
            # process ("core worker has already been shutdown"), so they are freed before.
            gc.collect()
            own = _processes_of(folder) if folder else []
            with _hastened(own):
                ray.shutdown()
            if folder:
                _end(own)
                _remove(folder)


def _in_one_line(said: logging.LogRecord) -> bool:
    """Of a worker or node that died Tune logs its own stack too, which helps nobody. Keeps every message."""
    error = said.exc_info[1] if said.exc_info else None
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):  # the latter is an error in our code
        said.msg, said.args, said.exc_info = f"{said.getMessage()}: {first_line(error)}", (), None
    return True


def _session_folder() -> Path:
    """Where a Ray of this process alone keeps sockets and logs; those of drivers that were killed are taken away.

    The path is short, as those of sockets must be.
    """
    root = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
    for path in root.glob("jbot.*.tmp"):
        if is_left_over(path.name):
            shutil.rmtree(path, ignore_errors=True)
    return root / temporary_name("jbot")


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Of the Ray that keeps its session there: those this process has started, which are called with its path, and
    all that they have started."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            if str(folder) in " ".join(child.cmdline()):
                found += [*child.children(recursive=True), child]
    return found


@contextmanager
def _hastened(processes: list[psutil.Process]) -> Iterator[None]:
    """Kill at once what Ray tells to end: these processes do not hear SIGTERM (see `own_sigterm`), and Ray would wait a
    second for each of the five before it kills it."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.02):
            for process in processes:
                if is_pending(process.pid, signal.SIGTERM):
                    with contextlib.suppress(psutil.Error):
                        process.kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _end(processes: list[psutil.Process]) -> None:
    """Idle workers see only after seconds that their node is gone, and of a Ray whose start was interrupted
    ray.shutdown knows nothing."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=ENDING_S)


def _remove(folder: Path) -> None:
    """What was just ending may still write."""
    until = time.monotonic() + ENDING_S
    while folder.exists() and time.monotonic() < until:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


def _join(options: dict[str, Any]) -> None:
    """ray.init, with one line for what may go wrong. Ray tells a refused token to stderr alone, for 20 seconds."""
    address = options["address"]
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            with held_back(), own_sigterm():  # stopped half way, it leaves processes, or crashes
                ray.init(**options)
        except AuthenticationError:
            raise ClusterError(f"there is no token for the Ray cluster at address {address!r}: {TOKEN}") from None
        except ConnectionError:
            said.seek(0)
            if b"InvalidAuthToken" in said.read():
                raise ClusterError(f"the Ray cluster at address {address!r} wants its token: {TOKEN}") from None
            raise ClusterError(f"no Ray cluster at address {address!r}; start one with: ray start --head") from None
        except Exception as error:
            if address == "local":  # as Ray raises it when its processes are not there after half a minute
                busy = "; this machine may be too busy, so run the command again"
                raise ClusterError(f"Ray did not start on this machine: {first_line(error)}{busy}") from None
            if not isinstance(error, RayError | RuntimeError | ValueError):
                raise
            # Above all other versions of Ray or Python than here, which it says in seven lines.
            raise ClusterError(f"the Ray cluster at address {address!r} cannot be used: {one_line(error)}") from None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def check_address(address: str) -> None:
    """Something must listen there: Ray itself waits for minutes."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if not colon:
        if address != "auto":
            raise ClusterError(f"address must be auto or host:port, got {address!r}")
        return  # Ray looks for a cluster on this machine and answers at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Ray cluster at address {address!r}: {error}") from None


def check_nodes(storage: Storage, resources: Resources) -> None:
    """Some node must be able to hold one trial, and every live node be in order: see :mod:`cluster.doctor`.

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

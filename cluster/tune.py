"""Ray Tune: one Tune trial for each open trial of the study, in block order, on actors that are reused."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.events import Listener
from cluster.run import ClusterError, Resources, check_storage, open_trials
from jbot.data import JetData
from jbot.record import RecordError, Storage, load_record
from jbot.trial import TrialSpec, run_pack

CURVE_COLUMNS = ("epoch", "step", "device_seconds")

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what they mean in the driver
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our records replace Tune's CSV, JSON and TensorBoard files
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


def run_ray(
    specs: Sequence[TrialSpec],
    data: JetData,
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
        _fit(todo, data, storage, listeners, resources)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray, started here or found at an address; a cluster that was there before is left running."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"include_dashboard": False, "address": "local"}
    else:
        check_address(address)
        import cluster
        import jbot

        # Every node runs this checkout's code, whatever is installed there.
        options |= {"address": address, "runtime_env": {"py_modules": [jbot, cluster]}}
    try:
        ray.init(**options)
    except ConnectionError:
        raise ClusterError(f"no Ray cluster at address {address!r}; start one with: ray start --head") from None
    try:
        yield
    finally:
        # Tune leaves object references in cycles. One that a thread of MLflow frees while Ray shuts down ends this
        # process ("core worker has already been shutdown"), so they are freed before.
        gc.collect()
        ray.shutdown()


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
    """Every live node must see the storage, and some node must be able to hold one trial."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus}
    if not any(all(node["Resources"].get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
        raise ClusterError(f"no node offers what one trial needs: {resources.cpus:g} CPUs and {resources.gpus:g} GPUs")
    token = check_storage(storage)
    see = ray.remote(num_cpus=0)(_sees)
    try:
        on_node = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        answers = ray.get([see.options(scheduling_strategy=where).remote(storage, token) for where in on_node])
        blind = [node["NodeManagerAddress"] for node, seen in zip(nodes, answers, strict=True) if not seen]
    finally:
        storage.remove_file(token)
    if blind:
        raise ClusterError(
            f"storage {storage.uri} is not seen by node {', '.join(blind)}: use a shared folder or s3://"
        )


def _sees(storage: Storage, token: str) -> bool:
    return storage.exists(token)


def _fit(
    todo: list[TrialSpec], data: JetData, storage: Storage, listeners: Sequence[Listener], resources: Resources
) -> None:
    trainable = tune.with_resources(
        tune.with_parameters(train_one, specs=todo, data=data, storage=storage, resources=resources),
        {"cpu": resources.cpus, "gpu": resources.gpus},
    )
    scratch = f".ray-{todo[0].study}"  # one driver a study and storage: a second would take it away
    storage.remove(scratch)
    relay = Relay(todo, storage, listeners)
    tuner = tune.Tuner(
        trainable,
        # Grid search keeps its order: blocks are filled one after another.
        param_space={"trial": tune.grid_search(list(range(len(todo))))},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            trial_name_creator=lambda trial: _name(todo[trial.config["trial"]]),
            trial_dirname_creator=lambda trial: _name(todo[trial.config["trial"]]),
        ),
        run_config=tune.RunConfig(
            name=scratch,
            storage_path=storage.uri,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=resources.max_retries),
            callbacks=[relay],
        ),
    )
    tuner.fit()
    storage.remove(scratch)
    if relay.settled < len(todo):
        raise KeyboardInterrupt  # Tune stops its trials on Ctrl-C, and then returns as if nothing had happened


def _name(spec: TrialSpec) -> str:
    return f"{spec.arm}-seed{spec.config.seed}-{spec.trial_id[:6]}"


def train_one(
    config: dict[str, int], specs: list[TrialSpec], data: JetData, storage: Storage, resources: Resources
) -> None:
    """What a Ray worker does with one Tune trial."""
    torch.set_num_threads(resources.threads)
    spec = specs[config["trial"]]
    (record,) = run_pack([spec], data, storage, resources.device, report=lambda spec, row: tune.report(row))
    tune.report({"record_state": record.state})


class Relay(tune.Callback):
    """Tells the listeners, in the words of the study, what Tune's events are."""

    def __init__(self, todo: list[TrialSpec], storage: Storage, listeners: Sequence[Listener]):
        self.todo, self.storage, self.listeners = todo, storage, listeners
        self.settled = 0
        """Trials that have ended or were given up."""

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return (tune.Callback, ())  # Tune pickles its callbacks; listeners live in this process alone

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """For the first time, or again after a crash."""
        for listener in self.listeners:
            listener.started(self.todo[trial.config["trial"]])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A row of the learning curves, among Tune's own entries."""
        if "epoch" not in result:
            return
        row = {name: value for name, value in result.items() if name in CURVE_COLUMNS or "/" in name}
        for listener in self.listeners:
            listener.point(self.todo[trial.config["trial"]], row)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial has ended: its record says how."""
        self.settled += 1
        spec = self.todo[trial.config["trial"]]
        try:
            record, problem = load_record(self.storage, spec.trial_id), "it ended without a record"
        except (RecordError, OSError) as error:
            record, problem = None, str(error)
        for listener in self.listeners:
            if record is None:
                listener.lost(spec, problem)
            else:
                listener.ended(spec, record)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its worker died, and it has a retry left."""
        for listener in self.listeners:
            listener.interrupted(self.todo[trial.config["trial"]])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Given up after the last retry."""
        self.settled += 1
        error = trial.get_error()
        for listener in self.listeners:
            listener.lost(self.todo[trial.config["trial"]], str(error or ""))

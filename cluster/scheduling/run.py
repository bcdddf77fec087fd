"""Run the trials of a study that have no record yet, under Ray Tune or inline, in block order.

Records are the truth: a study continues by running what has no record, and a trial continues from its checkpoint in
the storage. Ray's own experiment state is not needed for that and is thrown away.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.events import Listener
from cluster.scheduling.packs import form_packs, free_gpu_bytes
from jbot.cli import one_line
from jbot.config import digest
from jbot.data import JetData, Jets
from jbot.store.attempts import checkpoint_folder
from jbot.store.record import Record, Storage, for_each, load_whole_records, temporary_name
from jbot.trial.run import TrialSpec, run_pack


class ClusterError(RuntimeError):
    """The machines cannot run this study: no cluster at the address, storage not shared, resources never free."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one pack of trials holds while it runs; fractions share a device."""

    cpus: float = 1.0
    gpus: float = 0.0
    max_retries: int = 3
    """Starts after a crash of worker or node, each from the last checkpoint."""
    pack: int | None = None
    """Trials of a pack; None leaves it to :func:`cluster.scheduling.packs.form_packs`."""
    grow_to: int | None = None
    """Packs that a growing cluster will run at once: a first node is waited for, and trials are spread over so many
    places. None: only the nodes that are there count."""
    engine: str = "auto"
    """What computes encoder and head, see :mod:`jbot.trainer.engines.select`."""

    @property
    def device(self) -> str:
        """The torch device of a worker."""
        return "cuda" if self.gpus > 0 else "cpu"

    @property
    def threads(self) -> int:
        """torch threads of a worker."""
        return max(1, int(self.cpus))


def open_trials(specs: Sequence[TrialSpec], storage: Storage) -> list[TrialSpec]:
    """Trials without a record, and those a search has pruned, once each, in the order given."""
    unique = {spec.trial_id: spec for spec in specs}
    there = load_whole_records(storage, unique)
    return [spec for trial, spec in unique.items() if trial not in there]


def tidy(specs: Sequence[TrialSpec], storage: Storage, study: str) -> None:
    """Take away what a driver or worker that was killed has left: for the driver that holds the study."""
    for scratch in (f".ray-{study}", f".ray-{study}-search"):
        scratch_place(storage).remove(scratch)
    for folder in ("", "encoders", "floors", study):
        storage.sweep(folder)
    there = set(storage.names("trials"))
    ended = load_whole_records(storage, [spec.trial_id for spec in specs if spec.trial_id in there])
    # Of attempts that were killed between record and tidying.
    for_each(storage, [checkpoint_folder(trial) for trial in ended], storage.remove)


def scratch_place(storage: Storage) -> Storage:
    """Where Tune keeps the state of its experiment, which nobody reads: beside the records, or on this machine where
    those are in an object store, to which it would be sent whole again and again."""
    if storage.local:
        return storage
    return Storage(Path(tempfile.gettempdir()) / f"jbot-{os.getuid()}" / digest(storage.uri, 8))


def run_inline(
    specs: Sequence[TrialSpec],
    data: Jets | JetData,
    storage: Storage,
    listeners: Sequence[Listener],
    resources: Resources,
) -> None:
    """One pack after another in this process: for a debugger, or a machine without Ray."""
    if resources.gpus > 0 and not torch.cuda.is_available():
        raise ClusterError(f"trials ask for {resources.gpus:g} GPUs and there is none here; use --gpus 0")
    torch.set_num_threads(resources.threads)

    def report(rows: list[tuple[TrialSpec, dict[str, Any]]]) -> None:
        for spec, row in rows:
            for listener in listeners:
                listener.point(spec, row)

    def ended(spec: TrialSpec, record: Record) -> None:
        for listener in listeners:
            listener.ended(spec, record)

    free = free_gpu_bytes() if resources.gpus > 0 else None
    for pack in form_packs(open_trials(specs, storage), size=resources.pack, free_bytes=free):
        for spec in pack:
            for listener in listeners:
                listener.started(spec)
        run_pack(pack, data, storage, resources.device, report, ended, engine=resources.engine)


def check_storage(storage: Storage) -> str:
    """Write and read back a token, so that a wrong path fails before any training. Returns the token's name.

    Raises
    ------
    ClusterError
        When it cannot be written.
    """
    name = temporary_name(".token")
    try:
        storage.write(name, b"seen")
        if storage.read(name) != b"seen":
            raise OSError("read back something else")
    except OSError as error:
        why = one_line(error.strerror or error)  # without the name of a file of ours
        raise ClusterError(f"storage {storage.uri} must be writable: {why}") from None
    return name

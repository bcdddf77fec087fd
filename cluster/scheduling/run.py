"""Which trials of a study have no record yet, and those run inline, in block order.

Records are the truth: a study continues by running what has no record, and a trial continues from its checkpoint in
the storage. Ray's own experiment state is not needed for that and is thrown away.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cluster.events import Listener, Listeners
from cluster.resources import Resources
from cluster.scheduling.packs import form_packs, free_gpu_bytes
from jbot.config import digest
from jbot.data import JetData, Jets
from jbot.store.attempts import checkpoint_folder
from jbot.store.record import TrialSpec, load_whole_records
from jbot.store.storage import Storage, for_each
from jbot.trial.run import run_pack


def open_trials(specs: Sequence[TrialSpec], storage: Storage) -> list[TrialSpec]:
    """Trials without a record, and those a search has pruned, once each, in the order given."""
    unique = {spec.trial_id: spec for spec in specs}
    there = load_whole_records(storage, unique)
    return [spec for trial, spec in unique.items() if trial not in there]


def cleanup(specs: Sequence[TrialSpec], storage: Storage, study: str) -> None:
    """Remove what a driver or worker that was killed has left: for the driver that holds the study."""
    for scratch in (f".ray-{study}", f".ray-{study}-search"):
        scratch_storage(storage).remove(scratch)
    for folder in ("", "encoders", "floors", study):
        storage.remove_stale_files(folder)
    there = set(storage.names("trials"))
    ended = load_whole_records(storage, [spec.trial_id for spec in specs if spec.trial_id in there])
    # Checkpoints of attempts that were killed after they wrote the record.
    for_each(storage, [checkpoint_folder(trial) for trial in ended], storage.remove)


def scratch_storage(storage: Storage) -> Storage:
    """Storage for the state of Tune's experiment, which nobody reads: beside the records, or on this machine where
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
    """One pack after another in this process: for a debugger, or a machine without Ray.

    Raises ClusterError when a GPU is asked for and there is none here.
    """
    resources.begin_inline("trials")
    events = Listeners(listeners)
    free = free_gpu_bytes() if resources.gpus > 0 else None
    for pack in form_packs(open_trials(specs, storage), size=resources.pack, free_bytes=free):
        for spec in pack:
            events.started(spec)
        run_pack(pack, data, storage, resources.device, events.points, events.ended, engine=resources.engine)

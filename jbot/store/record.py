"""What a trial leaves behind, and where. Records are the truth: reports and the MLflow view are made from them.

<storage>/trials/<trial id>/record.json            written last: a trial with this file has ended
                            curves.parquet         learning curves, one row per probed epoch
                            student.safetensors    final weights
                            embedding.safetensors  test jets for the pictures: cls, label
                            scores.safetensors     what classifiers and scores say of each test jet, and its label
                            student-<epoch>.safetensors     weights at epochs 0, 1, 10 and 50
                            embedding-<epoch>.safetensors   the same jets then
                            examples.safetensors   a jet of each class: views, masks, attention (see
                            jbot.trial.snapshots) anomaly_grid-<hash>.parquet    AUC over scores, settings, banks (see
                            jbot.evaluation.anomaly.grid)
                            figures/               drawn afterwards: <name>.svg (see analysis.plots.trial_details)
                            card.md                model card, for people
                            finetune.parquet       learning curves of fine-tunings: run, epoch, losses, accuracies
                            classifier_<run>.safetensors  a fine-tuning's best weights: encoder, and head (classifier.*)
                            state.safetensors      of a trial that stops early (train.until): student, teacher, moments,
                                                   centres, step; longer trials with this beginning start from it
                            state.json             progress and learning curves of that state, and its sha256
                            checkpoint/            only while the trial is unfinished, or was pruned
<storage>/floors/raw-<hash>.json                   metrics without an encoder, shared by trials with the same jets
<storage>/encoders/<trial id>.json                 which trial has the encoder that this plain one would train
<storage>/<study name>/study.json                  the plan and its trials
                       search.json                 the points of a hyperparameter search, see jbot.store.search_ledger
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from jbot import TRAINER_VERSION
from jbot.config import Config, differences, digest, with_defaults
from jbot.store.checksum import SEAL, sealed, unsealed
from jbot.store.processes import is_alive, place
from jbot.store.validation import check_types, fits

State = Literal["complete", "failed", "pruned"]
Result = TypeVar("Result")
SCHEMA = 1


SECRET_USER = re.compile(r"(?<=://)(?:[^/\s]*@|[^/\s:@]*:(?!\d+/)\S*@)")
"""User and password before a host. The second form is of a key with a slash in it, as AWS gives them."""
SECRET_QUERY = re.compile(
    r"([?&](?:[\w.-]*(?:password|secret|token|signature|credential)|(?:[\w.-]*[_.-])?(?:key|sig)|\w*(?:api|access|account)key)=)"
    r"[^&\s]*",
    re.IGNORECASE,
)
AT_ONCE = 32
"""Files of an object store that are read at the same time: each waits some 10 to 50 ms for its first byte (assumed)."""


class RecordError(ValueError):
    """A record, plan or table that is missing, damaged or of another schema."""


class NotThereError(RecordError):
    """A file that is missing."""


class UnreadableError(RecordError, OSError):
    """A file that is there, in a storage that fails to give it: nobody knows what it holds. Later it may do better."""


TEMPORARY = re.compile(r"\.(?P<pid>\d+)-(?P<place>[0-9a-f]{8})-[0-9a-f]{8}\.tmp")
"""What ends the name of a file that is being written: by which process, and where that number means one process."""
DAY_S = 86_400.0


def temporary_name(name: str) -> str:
    """A name for what this process alone uses, from which others can tell whether it lives."""
    return f"{name}.{os.getpid()}-{place()}-{uuid.uuid4().hex[:8]}.tmp"


def is_left_over(name: str) -> bool | None:
    """Whether the process that gave a temporary name is dead; None when it is of another machine, or nobody's."""
    found = TEMPORARY.search(name)
    if found is None or found["place"] != place():
        return None
    return not is_alive(int(found["pid"]))


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without secrets, or its kind when it says nothing."""
    return without_secret(next(iter(str(error).splitlines()), type(error).__name__))


def last_line(error: object) -> str:
    """The last line of what an error of a worker says, where a traceback comes first; safe to show, as the first."""
    return without_secret(next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "no word"))


def without_secret(text: str) -> str:
    """A URI, or words that hold one, without user and password before its host and in its query: safe to show."""
    return SECRET_QUERY.sub(r"\1***", SECRET_USER.sub("***@", text))


def without_user(address: str) -> str:
    """An http address without user and password, as a page may lead to it: the browser asks for them."""
    scheme, _, rest = without_secret(address).partition("://")
    return f"{scheme}://{rest.removeprefix('***@')}"


def open_folder(folder: str) -> tuple[Storage, str]:
    """The storage and the name of a study's folder, ``<storage>/<study>``."""
    address = Storage(folder).address if "://" in folder else str(Path(folder).expanduser().resolve())
    root, _, study = address.rstrip("/").rpartition("/")
    return Storage(root or "/"), study


class Storage:
    """Files under one root: a folder, or any URI that pyarrow.fs knows (s3://, gs://, hdfs://).

    A file is there whole or not at all: local writes go through a temporary name, object stores upload atomically.

    Attributes
    ----------
    address : str
        What opens it again; may hold a password, so it is never shown.
    uri : str
        The same without secrets, for messages and files.
    """

    def __init__(self, uri: str | os.PathLike[str]):
        self.address = os.fspath(uri)
        if "://" in self.address:
            if "?" in self.address:
                words = (
                    f"storage {self.address} must have nothing after '?': AWS_ENDPOINT_URL says where another store is"
                )
                raise RecordError(without_secret(words))
            try:
                self._fs, self._root = _open(self.address)
            except (ValueError, NotImplementedError, OSError) as error:  # of pyarrow, and of its file systems
                words = f"storage {self.address} cannot be opened: {first_line(error)}"
                raise RecordError(without_secret(words)) from None
        else:
            self.address = str(Path(self.address).expanduser().absolute())
            self._fs, self._root = pafs.LocalFileSystem(), self.address
        self.local = isinstance(self._fs, pafs.LocalFileSystem)
        if not self._root:
            raise RecordError(f"storage must name a bucket or folder, got {without_secret(self.address)}")
        if self.local:
            self.address = self._root
        self.uri = self.address if self.local else without_secret(self.address)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Storage, (self.address,))

    def exists(self, name: str) -> bool:
        """Whether a file or folder of this name is there."""
        return bool(self._fs.get_file_info(self._path(name)).type != pafs.FileType.NotFound)

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises
        ------
        NotThereError
            When there is none.
        UnreadableError
            When the storage fails.
        """
        try:
            with self._fs.open_input_stream(self._path(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            raise NotThereError(f"no {name} in {self.uri}") from None
        except OSError as error:
            raise UnreadableError(f"{self.uri}/{name} cannot be read: {first_line(error)}") from None

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file, atomically."""
        path = self._path(name)
        if not self.local:
            # Any closing of the stream makes a file of what is written so far; signals interrupt the main thread only.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(self._upload, path, content).result()
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(temporary_name(f".{target.name}"))
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _upload(self, path: str, content: bytes) -> None:
        with self._fs.open_output_stream(path) as stream:
            stream.write(content)

    def names(self, folder: str = "") -> list[str]:
        """Names directly under a folder, sorted; none when the folder is missing."""
        selector = pafs.FileSelector(self._path(folder), allow_not_found=True)
        return sorted(info.base_name for info in self._fs.get_file_info(selector))

    def remove_file(self, name: str) -> None:
        """Delete one file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._path(name))

    def remove(self, folder: str) -> None:
        """Delete a folder and all in it, if it is there."""
        if self.local:
            shutil.rmtree(self._path(folder), ignore_errors=True)
        elif self.exists(folder):
            self._fs.delete_dir(self._path(folder))

    def sweep(self, folder: str = "") -> None:
        """Take away what writes that died have left directly in a folder: of dead processes of this machine at once,
        of other machines' after a day."""
        for path in Path(self._path(folder)).glob(".*.tmp") if self.local else ():
            dead = is_left_over(path.name)
            with contextlib.suppress(FileNotFoundError):
                if dead or (dead is None and time.time() - path.stat().st_mtime > DAY_S):
                    path.unlink()

    def read_json(self, name: str) -> Any:
        """A JSON file; a damaged one is a RecordError."""
        try:
            return json.loads(self.read(name))
        except RecordError:
            raise
        except (ValueError, RecursionError) as error:  # also for whole numbers of thousands of digits
            raise RecordError(f"{self.uri}/{name} is not valid JSON: {error}") from None

    def write_json(self, name: str, content: Any) -> None:
        """Write JSON that any parser reads: no NaN."""
        self.write(name, json.dumps(content, indent=1, allow_nan=False).encode())

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Named arrays of a safetensors file."""
        try:
            return load_arrays(self.read(name))
        except RecordError:
            raise
        except Exception as error:  # safetensors has one exception class per binding version
            raise RecordError(f"{self.uri}/{name} is not a valid safetensors file: {error}") from None

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> str:
        """Write named arrays as safetensors; returns the file's sha256."""
        content = save_arrays({key: np.ascontiguousarray(value) for key, value in arrays.items()})
        self.write(name, content)
        return hashlib.sha256(content).hexdigest()

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of a Parquet table."""
        content = self.read(name)
        try:
            table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
            return list(table.to_pylist())
        except (pa.ArrowException, ValueError, OSError, OverflowError, MemoryError) as error:  # as the damage is
            raise RecordError(f"{self.uri}/{name} is not a valid Parquet file: {first_line(error)}") from None

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows as Parquet; a column is there when any row has it."""
        columns = {key: None for row in rows for key in row}
        sink = io.BytesIO()
        table = pa.table({key: [row.get(key) for row in rows] for key in columns})
        pq.write_table(table, sink, write_page_checksum=True)
        self.write(name, sink.getvalue())

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}".rstrip("/")


def _open(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI, and the path in it."""
    if not uri.startswith("s3://"):
        return pafs.FileSystem.from_uri(uri)
    if os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        # Many stores that are not Amazon's refuse the checksums which its newer clients send after the content.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    # What is smaller than a part is one request, not three.
    return pafs.FileSystem.from_uri(f"{uri}?allow_delayed_open=true")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One ended trial."""

    trial_id: str
    state: State
    reason: str | None = None
    """Why a failed or pruned trial ended; None for a complete one."""
    study: str
    """The study that ran it. Others may share it."""
    arm: str
    """Its arm in that study."""
    plan_hash: str
    config: dict[str, Any]
    """The nested Config; `config["seed"]` is the block."""
    data: dict[str, Any]
    """`fingerprint` and `source` of the jets."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Final metrics, ``<split>/<probe>_<metric>``; those of the untrained encoder start with ``untrained/``,
    those of probes on the particles themselves with ``raw/``."""
    uncertainties: dict[str, dict[str, float]] = field(default_factory=dict)
    """By metric: `error` from the number of test jets, `fold_sd` over ten folds of them, where there is one."""
    missing: dict[str, str] = field(default_factory=dict)
    """Fine-tunings without metrics, and why: those that diverged, which is an outcome too."""
    anomaly_settings: dict[str, Any] = field(default_factory=dict)
    """Where they were scanned: `chosen` by score, and the `oracle`'s by score and signal."""
    trainer_version: str
    git_commit: str | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    """Where the last attempt ran."""
    resources: dict[str, Any] = field(default_factory=dict)
    """What its pack used in the last attempt: `pack` (trials in it), `peak_memory_bytes`, `utilisation` (a share, or
    None where nobody knows), `engine`, and `engine_why` when it is not the one wanted; empty in records from before
    there were packs."""
    started: str
    """First start, UTC, ISO 8601."""
    wall_seconds: float
    """Of all attempts together."""
    device_seconds: float
    """Seconds of training steps, fine-tunings and probes, of all attempts together; in a pack its share of them."""
    probe_seconds: float = 0.0
    """The share of device_seconds that went into probes."""
    finetune_seconds: float = 0.0
    """The share of device_seconds that went into fine-tunings and their twins."""
    attempts: int = 1
    """Starts it took: one more than the times it was interrupted."""
    continues: str | None = None
    """Id of the trial whose last state it started from: its own beginning, or, where the two differ in what is judged
    alone, its own encoder (jbot.trial.reuse)."""
    shared_seconds: float = 0.0
    """The share of device_seconds that the trial it continues has spent."""
    schema: int = SCHEMA
    from_defaults: tuple[str, ...] = field(default=(), compare=False)
    """Config fields that the file does not have, as it is older than they are; not written."""

    def __post_init__(self) -> None:
        check_types(self)
        if not fits(self.config.get("seed"), int):
            raise TypeError(f"config.seed must be a whole number, got {self.config.get('seed')!r}")

    @property
    def own_seconds(self) -> float:
        """Device seconds that were spent for this trial: those of several trials can be added."""
        return self.device_seconds - self.shared_seconds

    @property
    def seed(self) -> int:
        """The block."""
        return int(self.config["seed"])


def trial_id(config: Config, data_fingerprint: str, trainer_version: str) -> str:
    """The name of a trial: equal trials of different studies have the same one, whatever fields a Config has later."""
    return digest([differences(config), data_fingerprint, trainer_version])


def trial_folder(trial: str) -> str:
    """Where a trial's files lie in the storage."""
    return f"trials/{trial}"


def save_record(storage: Storage, record: Record) -> None:
    """Write a record. Its other files must be there already: this one says that the trial has ended."""
    content = dataclasses.asdict(record)
    del content["from_defaults"]
    storage.write_json(f"{trial_folder(record.trial_id)}/record.json", sealed(content))


def load_record(storage: Storage, trial: str, strict: bool = False) -> Record | None:
    """The record of a trial that has ended, or None.

    Raises
    ------
    RecordError
        When the file is damaged or of another schema; `strict` as in :func:`read_record`.
    """
    try:
        return read_record(storage, f"{trial_folder(trial)}/record.json", strict)
    except NotThereError:
        return None


def load_records(storage: Storage, trials: Iterable[str], *, lenient: bool = False) -> dict[str, Record | None]:
    """The records of many trials, in the order given; from an object store many at once.

    Parameters
    ----------
    lenient : bool
        None for one that cannot be read, too.

    Raises
    ------
    RecordError
        When one is damaged or of another schema.
    """

    def load(trial: str) -> Record | None:
        try:
            return load_record(storage, trial)
        except RecordError:
            if lenient:
                return None
            raise

    return _load_many(storage, trials, load)


def _load_many(
    storage: Storage, trials: Iterable[str], load: Callable[[str], Record | None]
) -> dict[str, Record | None]:
    names = list(dict.fromkeys(trials))
    return dict(zip(names, for_each(storage, names, load), strict=True))


def for_each(storage: Storage, names: Sequence[str], do: Callable[[str], Result]) -> list[Result]:
    """What a function of the storage gives for each name, in order; on an object store many at once."""
    if storage.local:
        return [do(name) for name in names]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(do, names))


def load_whole(storage: Storage, trial: str) -> Record | None:
    """The record of a trial that has run to its end, or None: a pruned one can go on from its checkpoint.

    Raises
    ------
    RecordError
        When the file is damaged, of another schema, or not what was written: nothing is to be built on it.
    """
    return load_whole_records(storage, [trial]).get(trial)


def load_whole_records(storage: Storage, trials: Iterable[str]) -> dict[str, Record]:
    """Of many trials, the records of those that have run to their end; see :func:`load_whole`."""
    found = _load_many(storage, trials, functools.partial(_load_strictly, storage)).items()
    return {trial: record for trial, record in found if record is not None and record.state != "pruned"}


def _load_strictly(storage: Storage, trial: str) -> Record | None:
    try:
        return load_record(storage, trial, strict=True)
    except UnreadableError:  # it may be whole
        raise
    except RecordError as error:
        mend = f"move {trial_folder(trial)} away, and the same command runs that trial again"
        raise RecordError(f"{error}: {mend}") from None


def read_record(storage: Storage, name: str, strict: bool = False) -> Record:
    """The record in a file of this name.

    Parameters
    ----------
    strict : bool
        Refuse one that somebody, or a disk, has changed since it was written.

    Raises
    ------
    RecordError
        When there is none, or it is damaged or of another schema.
    """
    content = storage.read_json(name)
    try:
        content = unsealed(content)
    except TypeError as error:
        if strict:
            raise RecordError(f"{storage.uri}/{name}: {error}") from None
        content.pop(SEAL)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise RecordError(f"{storage.uri}/{name} must be a record of schema {SCHEMA}")
    if isinstance(content.get("config"), dict):
        content["config"], content["from_defaults"] = with_defaults(content["config"])
    try:
        return Record(**content)
    except TypeError as error:
        raise RecordError(f"{storage.uri}/{name} is not a record: {error}") from None


def not_reused(records: Iterable[Record]) -> list[str]:
    """What of a storage no study of this program takes for its own trials, one line for each trainer version."""
    counts = Counter(record.trainer_version for record in records if record.trainer_version != TRAINER_VERSION)
    return [
        f"{n} trial{'s' * (n > 1)} of trainer version {version} (this is {TRAINER_VERSION}): reports read them, but no"
        " study reuses them"
        for version, n in sorted(counts.items())
    ]


def load_finetune_curves(storage: Storage, trial: str) -> list[dict[str, Any]]:
    """Learning curves of a trial's fine-tunings as they were reported, by ``finetune_10/epoch``; empty without any."""
    name = f"{trial_folder(trial)}/finetune.parquet"
    rows = _curve_rows(storage, name, {"run": str, "epoch": int})
    return [{f"{row['run']}/{key}": value for key, value in row.items() if key != "run"} for row in rows]


def load_curves(storage: Storage, trial: str) -> list[dict[str, Any]]:
    """Learning curves of a trial, by epoch: `epoch`, `device_seconds`, and metrics; empty when it left none."""
    name = f"{trial_folder(trial)}/curves.parquet"
    return _curve_rows(storage, name, {"epoch": int})


def _curve_rows(storage: Storage, name: str, columns: Mapping[str, type]) -> list[dict[str, Any]]:
    """Rows of learning curves: these columns, and numbers or nothing in all others."""
    rows = storage.read_rows(name) if storage.exists(name) else []
    for row in rows:
        for key in {**columns, **row}:
            if not fits(row.get(key), columns.get(key, float | None)):
                raise RecordError(f"{storage.uri}/{name} is no learning curve: {key} is {row.get(key)!r} in a row")
    return rows

"""What a trial leaves behind, and where. Records are the truth: reports and the MLflow view are made from them.

<storage>/trials/<trial id>/record.json            written last: a trial with this file has ended
                            curves.parquet         learning curves, one row per probed epoch
                            student.safetensors    final weights
                            embedding.safetensors  test jets for the pictures: cls, label
                            scores.safetensors     what classifiers and scores say of each test jet, and its label
                            student-<epoch>.safetensors     weights at epochs 0, 1, 10 and 50
                            embedding-<epoch>.safetensors   the same jets then
                            examples.safetensors   a jet of each class: views, masks, attention (jbot.trial.snapshots)
                            anomaly_grid-<hash>.parquet  AUC over scores, settings, banks (jbot.evaluation.anomaly.grid)
                            figures/               drawn afterwards: <name>.svg (see analysis.pictures)
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

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jbot import TRAINER_VERSION
from jbot.config import FIELDS, Config, ConfigError, differences, digest, flatten, from_dict, with_defaults
from jbot.store.checksum import KEY, with_checksum, without_checksum
from jbot.store.storage import NotThereError, RecordError, Storage, UnreadableError, for_each
from jbot.store.validation import check_types, fits

State = Literal["complete", "failed", "pruned"]
SCHEMA = 1


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
    """Wall time of all attempts together."""
    device_seconds: float
    """Seconds of training steps, fine-tunings and probes, of all attempts together; in a pack its share of them."""
    probe_seconds: float = 0.0
    """The share of device_seconds that went into probes."""
    finetune_seconds: float = 0.0
    """The share of device_seconds that went into fine-tunings and their supervised baselines."""
    attempts: int = 1
    """Starts it took: one more than the times it was interrupted."""
    continues: str | None = None
    """Id of the trial whose last state it started from: its own beginning, or, where the two differ in their
    evaluation alone, its own encoder (jbot.trial.reuse)."""
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


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One arm at one seed that is to be run, as a study hands it to a worker."""

    study: str
    arm: str
    plan_hash: str
    config: Config
    data_fingerprint: str
    """That of the jets it uses (:meth:`jbot.data.Jets.fingerprint`), whatever else its study loads."""
    git_commit: str | None = None
    """The driver's: a worker may run a copy of the code without its history."""

    @functools.cached_property
    def trial_id(self) -> str:
        """Hash of Config, data and trainer version."""
        return trial_id(self.config, self.data_fingerprint, TRAINER_VERSION)


def trial_folder(trial: str) -> str:
    """Where a trial's files lie in the storage."""
    return f"trials/{trial}"


def save_record(storage: Storage, record: Record) -> None:
    """Write a record. Its other files must be there already: this one says that the trial has ended."""
    content = dataclasses.asdict(record)
    del content["from_defaults"]
    storage.write_json(f"{trial_folder(record.trial_id)}/record.json", with_checksum(content))


def load_record(storage: Storage, trial: str, strict: bool = False) -> Record | None:
    """The record of a trial that has ended, or None.

    Raises RecordError when the file is damaged or of another schema; `strict` as in :func:`read_record`.
    """
    try:
        record = read_record(storage, f"{trial_folder(trial)}/record.json", strict)
    except NotThereError:
        return None
    if record.trial_id != trial:
        rule = f"the record of trial {record.trial_id} lies in the folder of {trial}"
        raise RecordError(f"{storage.uri}/{trial_folder(trial)}/record.json: {rule}")
    return record


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

    names = list(dict.fromkeys(trials))
    return dict(zip(names, for_each(storage, names, load), strict=True))


def load_whole(storage: Storage, trial: str) -> Record | None:
    """The record of a trial that has run to its end, or None: a pruned one can go on from its checkpoint.

    Raises RecordError when the file is damaged, of another schema, or not what was written: nothing is to be built on
    it.
    """
    try:
        record = load_record(storage, trial, strict=True)
    except UnreadableError:  # it may be whole
        raise
    except RecordError as error:
        remedy = f"move {trial_folder(trial)} away, and the same command runs that trial again"
        raise RecordError(f"{error}: {remedy}") from None
    return None if record is None or record.state == "pruned" else record


def load_whole_records(storage: Storage, trials: Iterable[str]) -> dict[str, Record]:
    """The records of those trials that have run to their end; see :func:`load_whole`."""
    names = list(dict.fromkeys(trials))
    records = zip(names, for_each(storage, names, functools.partial(load_whole, storage)), strict=True)
    return {trial: record for trial, record in records if record is not None}


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
        content = without_checksum(content)
    except TypeError as error:
        if strict:
            raise RecordError(f"{storage.uri}/{name}: {error}") from None
        content.pop(KEY)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise RecordError(f"{storage.uri}/{name} must be a record of schema {SCHEMA}")
    if isinstance(content.get("config"), dict):
        content["config"], content["from_defaults"] = with_defaults(content["config"])
    try:
        record = Record(**content)
    except TypeError as error:
        raise RecordError(f"{storage.uri}/{name} is not a record: {error}") from None
    if wrong := next((rule for holds, rule in _rules(record) if not holds), None):
        raise RecordError(f"{storage.uri}/{name} is not a record: {wrong}")
    return record


def _rules(record: Record) -> Iterator[tuple[bool, str]]:
    """What holds for every record, sealed or not, and what to say where it does not."""
    for name in ("wall_seconds", "device_seconds", "probe_seconds", "finetune_seconds", "shared_seconds", "attempts"):
        value = getattr(record, name)
        yield 0 <= value < math.inf, f"{name} must be finite and not negative, got {value:g}"
    for name, value in record.metrics.items():
        yield math.isfinite(value), f"metric {name} must be finite, got {value}"
    yield bool(record.metrics) or record.state != "complete", "a complete trial must have metrics, got none"
    yield fits(record.data.get("fingerprint"), str), "data.fingerprint must be text"
    # Ids of other versions were made otherwise, and a younger program's fields have defaults that are not known here.
    if record.trainer_version == TRAINER_VERSION and set(flatten(record.config)) <= set(FIELDS):
        try:
            own = trial_id(from_dict(record.config), record.data["fingerprint"], TRAINER_VERSION)
        except ConfigError as error:
            yield False, str(error)
        else:
            yield own == record.trial_id, f"config and jets make it trial {own}, but it says {record.trial_id}"


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

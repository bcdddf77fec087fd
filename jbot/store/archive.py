"""Finished trials as one file, restored anywhere: with it unpacked, the study that left them trains nothing.

An archive is a tar file compressed by xz: ``manifest.json``, then the files that it names, in its order. It has what a
study and its report need of trials that have ended; no checkpoints, pages or MLflow database. The same trials give the
same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

from jbot.messages import first_line
from jbot.store.checksum import with_checksum, without_checksum
from jbot.store.plan import FILE, NAME, StudyRecords, load_study
from jbot.store.record import Record, load_record, trial_folder
from jbot.store.search_ledger import LEDGER, load_ledger
from jbot.store.storage import RecordError, Storage, atomic_write, for_each, open_folder
from jbot.store.validation import misfit

SUFFIX, MANIFEST, FORMAT = ".tar.xz", "manifest.json", 1
RECORD, ENCODERS, RELEASED = "record.json", "encoders", "released"
NUMBERS = re.compile(r"record\.json|[\w-]+\.parquet", re.ASCII)
"""Files of a trial without which a study would run something again: record, learning curves, anomaly grids."""
REPORTED = re.compile(rf"{NUMBERS.pattern}|(student|scores)\.safetensors", re.ASCII)
"""Those, the weights, and what the report reads of every trial."""
DRAWN = re.compile(rf"{REPORTED.pattern}|(embedding(-\d+)?|examples)\.safetensors", re.ASCII)
"""Those, and what the report draws of one trial of each arm."""
MERGED = re.compile(r"[\w-]+\.(json|parquet|safetensors|md)", re.ASCII)
"""All files of a trial that has ended, but for its figures."""
PACKED = re.compile(
    rf"trials/{NAME.pattern}/{MERGED.pattern}|{ENCODERS}/{NAME.pattern}"
    rf"|(?!trials/|{ENCODERS}/){NAME.pattern}/({re.escape(FILE)}|{re.escape(LEDGER)}|{RELEASED}/{NAME.pattern})",
    re.ASCII,
)
"""What a file of an archive may be called: no name leads out of the storage."""
MAX_BYTES = 2**28
"""Bytes of one file of an archive (heuristic: scores of 95,000 test jets take a tenth)."""
MAX_RATIO, MIN_TOTAL = 200, 2**26
"""All files of an archive have at most so many times its bytes, or MIN_TOTAL (heuristic: records alone reach 16)."""


class Entry(TypedDict):
    """A file of an archive."""

    size: int
    sha256: str


class Manifest(TypedDict):
    """The first file of an archive: each study with its plan hash, trainer version and jets, and every other file."""

    format: int
    studies: dict[str, dict[str, Any]]
    files: dict[str, Entry]


class Source(NamedTuple):
    """Studies of a storage."""

    storage: Storage
    studies: list[str]
    """Names of their folders."""


# --- what a storage holds -------------------------------------------------------------------------------------------


def find_studies(folder: str) -> Source:
    """The study of a study's folder, or all studies of a storage.

    Raises RecordError when there is none.
    """

    def has_study(storage: Storage, study: str) -> bool:
        return storage.exists(f"{study}/{FILE}") or storage.exists(f"{study}/{LEDGER}")

    storage, study = open_folder(folder)
    if study and has_study(storage, study):
        return Source(storage, [study])
    storage = Storage(folder)
    studies = [name for name in storage.names() if has_study(storage, name)]
    if not studies:
        raise RecordError(f"{storage.uri} holds no study: it must be a study's folder, or one with such folders")
    return Source(storage, studies)


def planned(source: Source, study: str) -> tuple[StudyRecords | None, list[str]]:
    """A study as found, None for a search that has no winner yet; and the ids of its trials, those of a search too."""
    storage, ids = source.storage, []
    if ledger := load_ledger(storage, study):
        ids = [trial["trial_id"] for point in ledger["points"] for trial in point["trials"]]
    found = load_study(f"{storage.address}/{study}") if storage.exists(f"{study}/{FILE}") else None
    ids += [trial.trial_id for trial in found.trials] if found else []
    if wrong := next((trial for trial in ids if not NAME.fullmatch(trial)), None):
        raise RecordError(f"trials of {study} must be letters, digits, dots, - and _, got {wrong!r}")
    return found, list(dict.fromkeys(ids))


def load_ended(storage: Storage, trials: Sequence[str]) -> dict[str, Record]:
    """The records of those trials that have ended. Raises RecordError when one is not what was written."""
    found = for_each(storage, trials, lambda trial: load_record(storage, trial, strict=True))
    return {trial: record for trial, record in zip(trials, found, strict=True) if record is not None}


def study_files(storage: Storage, study: str) -> list[str]:
    """What a study leaves beside its trials: plan, search, the authors' checkpoints as they were evaluated."""
    names = [f"{study}/{name}" for name in (FILE, LEDGER) if storage.exists(f"{study}/{name}")]
    return [*names, *(f"{study}/{RELEASED}/{name}" for name in storage.names(f"{study}/{RELEASED}"))]


def trial_files(storage: Storage, trial: str, wanted: re.Pattern[str]) -> list[str]:
    """The files of a trial whose names match."""
    return [f"{trial_folder(trial)}/{name}" for name in storage.names(trial_folder(trial)) if wanted.fullmatch(name)]


def encoder_files(storage: Storage, trials: Iterable[str]) -> list[str]:
    """The files that say which of these trials has an encoder for others (:mod:`jbot.trial.reuse`)."""
    names, known = [f"{ENCODERS}/{name}" for name in storage.names(ENCODERS)], set(trials)
    published = zip(names, for_each(storage, names, storage.read_json), strict=True)
    return [name for name, content in published if isinstance(content, dict) and content.get("trial") in known]


def drawn(study: StudyRecords) -> set[str]:
    """One complete trial of each arm, of the seed that most arms have: those that a report draws."""
    complete = [t for t in study.trials if (r := study.records[t.trial_id]) is not None and r.state == "complete"]
    seeds, found = Counter(trial.seed for trial in complete), dict[str, str]()
    for trial in sorted(complete, key=lambda trial: -seeds[trial.seed]):
        found.setdefault(trial.arm, trial.trial_id)
    return set(found.values())


def identity(storage: Storage, study: str) -> dict[str, Any]:
    """What a study's trials must share with those of others to be counted together, as its plan has it."""
    content = storage.read_json(f"{study}/{FILE}")
    known = {"plan_hash": content.get("plan_hash"), "trainer_version": content["plan"].get("trainer_version", "")}
    return known | {"jets": content["data"].get("fingerprint")}


# --- pack -----------------------------------------------------------------------------------------------------------


def pack(source: Source, out: Path, *, records_only: bool = False) -> int:
    """Write the archive of some studies; returns the number of its trials.

    Parameters
    ----------
    records_only : bool
        Leave out weights, scores and what the report draws: it has no figures of single trials then.

    Raises
    ------
    RecordError
        When a plan, search or record is damaged, or no trial has ended.
    """
    storage, names, ended, shown = source.storage, list[str](), dict[str, Record](), set[str]()
    studies = {}
    for study in source.studies:
        found, ids = planned(source, study)
        ended |= load_ended(storage, ids)
        names += study_files(storage, study)
        if found:
            studies[study] = identity(storage, study)
            shown |= drawn(found)
    if not ended:
        raise RecordError(f"no trial of {', '.join(source.studies)} in {storage.uri} has ended")
    for trial in ended:
        wanted = NUMBERS if records_only else DRAWN if trial in shown else REPORTED
        names += trial_files(storage, trial, wanted)
    names += [] if records_only else encoder_files(storage, ended)
    if wrong := next((name for name in names if not PACKED.fullmatch(name)), None):
        raise RecordError(f"names of files must be letters, digits, dots, - and _, got {wrong!r}")
    names.sort(key=lambda name: (name.rpartition("/")[2], name))  # what is alike together: records take a third so
    entries = dict(zip(names, for_each(storage, names, lambda name: _entry(storage.read(name))), strict=True))
    manifest = Manifest(format=FORMAT, studies=studies, files=entries)
    with atomic_write(out) as temporary, tarfile.open(temporary, "w:xz") as tar:
        _add(tar, MANIFEST, json.dumps(with_checksum(dict(manifest)), indent=1).encode())
        for name in names:
            content = storage.read(name)
            if _entry(content) != entries[name]:
                raise RecordError(f"{storage.uri}/{name} has changed meanwhile: pack when no study runs")
            _add(tar, name, content)
    return len(ended)


def _entry(content: bytes) -> Entry:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file of nobody, of 1970: the archive says nothing of who made it, and when."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


# --- unpack ---------------------------------------------------------------------------------------------------------


def unpack(archive: Path, target: Storage) -> list[Record]:
    """Restore an archive; returns the records that it holds.

    Raises RecordError when it is damaged, or a file in the storage is another one: nothing is written then.
    """
    with tempfile.TemporaryDirectory(prefix="jbot-") as folder:
        staged = Storage(folder)
        names = extract(archive, staged)
        there = [name for name in names if target.exists(name)]
        others = [name for name in there if target.read(name) != staged.read(name) and not name.startswith(ENCODERS)]
        if others:
            what = f"{target.uri} holds other files than {archive}: {_some(others)}"
            raise RecordError(f"{what}; nothing was written, `jbot store merge` keeps those and adds the others")
        copy([(staged, name) for name in names if name not in there], target)
        return list(load_ended(staged, staged.names("trials")).values())


def extract(archive: Path, empty: Storage) -> list[str]:
    """Write the files of an archive into an empty folder, each checked; returns their names.

    Raises RecordError when it is not as :func:`pack` makes them.
    """
    if not archive.is_file():
        raise RecordError(f"no archive {archive}: it must be a file that `jbot store pack` has made")
    try:
        with _Stream(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            manifest = _manifest(_read(tar, MANIFEST), archive.stat().st_size)
            for name, entry in manifest["files"].items():
                content = _read(tar, name)
                if _entry(content) != entry:
                    raise RecordError(f"{name} must have the size and SHA-256 of the manifest")
                empty.write(name, content)
            if (more := tar.next()) is not None:
                raise RecordError(f"{more.name!r} is not in the manifest")
        _check(empty, manifest)
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError, TypeError, OverflowError, MemoryError) as error:
        words = first_line(error).replace(f"{empty.uri}/", "")
        raise RecordError(f"{archive} is damaged, or no archive of `jbot store pack`: {words}") from None
    return list(manifest["files"])


class _Stream(lzma.LZMAFile):
    """What a file of xz holds, never too much at once: headers of a tar file may ask for any number of bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_BYTES:
            raise RecordError(f"a file must have at most {MAX_BYTES:,} bytes")
        return super().read(size)


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    """The next file, which must have this name. Links, devices and files with holes are none."""
    member = tar.next()
    if member is None or member.name != name or not member.isreg() or member.issparse():
        raise RecordError(f"{name} must come next, got {'the end' if member is None else ascii(member.name)}")
    content = tar.extractfile(member)
    assert content is not None  # it is a regular file
    return content.read()


def _manifest(content: bytes, archive_bytes: int) -> Manifest:
    try:
        manifest = without_checksum(json.loads(content), required=True)
    except RecursionError:
        raise RecordError(f"{MANIFEST} is nested too deeply") from None
    if wrong := misfit(manifest, Manifest, ""):
        raise RecordError(f"{MANIFEST}: {wrong}")
    if manifest["format"] != FORMAT:
        raise RecordError(f"format must be {FORMAT}, got {manifest['format']}")
    if wrong := next((name for name in manifest["files"] if not PACKED.fullmatch(name)), None):
        raise RecordError(f"a file must be of a trial or study, got {wrong!a}")
    total = sum(abs(entry["size"]) for entry in manifest["files"].values())
    if total > (most := max(MIN_TOTAL, MAX_RATIO * archive_bytes)):
        raise RecordError(f"its files must have at most {most:,} bytes, the manifest says {total:,}")
    return cast(Manifest, manifest)


def _check(storage: Storage, manifest: Manifest) -> None:
    """Raise RecordError unless plans and records can be read, and are of what the manifest says."""
    found = find_studies(storage.address)
    for study in found.studies:
        planned(found, study)
    studies = {study: identity(storage, study) for study in found.studies if storage.exists(f"{study}/{FILE}")}
    if studies != manifest["studies"]:
        raise RecordError("plans must have the hash, trainer version and jets of the manifest")
    trials = storage.names("trials")
    if missing := set(trials) - set(load_ended(storage, trials)):
        raise RecordError(f"trial {min(missing)} has no record")


def copy(files: Sequence[tuple[Storage, str]], target: Storage) -> None:
    """Copy files that the target lacks. What fails midway leaves none of them; what is killed, no record of a part."""
    order = sorted(files, key=lambda file: (not file[1].startswith("trials/"), file[1].endswith((RECORD, FILE))))
    folders = {"/".join(name.split("/")[:depth]) for _, name in files for depth in range(name.count("/") + 1)}
    new = [folder for folder in sorted(folders) if not target.exists(folder)]
    try:
        for source, name in order:
            target.write(name, source.read(name))
    except BaseException:
        for _, name in files:
            target.remove_file(name)
        for folder in new:
            target.remove(folder)
        raise


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

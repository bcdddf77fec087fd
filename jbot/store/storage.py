"""Files: written whole or not at all, in a folder or in an object store (S3, Google Cloud Storage, HDFS)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from jbot.messages import first_line, without_secret
from jbot.store.processes import host_id, is_alive

Result = TypeVar("Result")
AT_ONCE = 32
"""Files of an object store that are read at once: each waits some 10 to 50 ms for its first byte (heuristic)."""


class RecordError(ValueError):
    """A record, plan or table that is missing, damaged or of another schema."""


class NotThereError(RecordError):
    """A file that is missing."""


class UnreadableError(RecordError, OSError):
    """A file that is there, in a storage that fails to give it: nobody knows what it holds. Later it may do better."""


TEMPORARY = re.compile(r"\.(?P<pid>\d+)-(?P<host>[0-9a-f]{8})-[0-9a-f]{8}\.tmp")
"""What ends the name of a file that is being written: by which process, and where that number means one process."""
DAY_S = 86_400.0


def temporary_name(name: str) -> str:
    """A name for what this process alone uses, from which others can tell whether it lives."""
    return f"{name}.{os.getpid()}-{host_id()}-{uuid.uuid4().hex[:8]}.tmp"


def is_stale(name: str) -> bool | None:
    """Whether the process that gave a temporary name is dead; None when it is of another machine, or nobody's."""
    match = TEMPORARY.search(name)
    if match is None or match["host"] != host_id():
        return None
    return not is_alive(int(match["pid"]))


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which replaces it when the block ends: whole, on disk, in one step.

    When the block fails, nothing is left. Of two processes that write the same path, the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(f".{path.name}"))
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_stale_files(folder: Path) -> None:
    """Delete what writes that died have left directly in a folder: of dead processes of this machine at once, of other
    machines' after a day."""
    for path in folder.glob(".*.tmp"):
        dead = is_stale(path.name)
        with contextlib.suppress(FileNotFoundError):
            if dead or (dead is None and time.time() - path.stat().st_mtime > DAY_S):
                path.unlink()


def cache_folder(cache: Path | None = None) -> Path:
    """The folder given, or $JBOT_CACHE, or ~/.cache/jbot. Not created here."""
    return Path(cache or os.environ.get("JBOT_CACHE") or Path.home() / ".cache" / "jbot")


def open_folder(folder: str) -> tuple[Storage, str]:
    """The storage and the name of a study's folder, ``<storage>/<study>``."""
    address = Storage(folder).address if "://" in folder else str(Path(check_address(folder)).expanduser().resolve())
    root, _, study = address.rstrip("/").rpartition("/")
    return Storage(root or "/"), study


def check_address(address: str) -> str:
    """A folder or URI as it is. Raises RecordError for nothing, and for what no record or page could write."""
    if not (address.strip() and address.isprintable()):
        raise RecordError(f"storage must name a bucket or folder, got {address!r}")
    return address


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
        self.address = check_address(os.fspath(uri))
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

        Raises NotThereError when there is none. Raises UnreadableError when the storage fails, or it is no file.
        """
        try:
            path = Path(self._path(name))
            if self.local and path.exists() and not path.is_file():
                raise OSError("it is no file")  # a pipe would be waited for
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
        with atomic_write(Path(path)) as temporary:
            temporary.write_bytes(content)

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

    def remove_stale_files(self, folder: str = "") -> None:
        """Delete what writes that died have left directly in a folder, see :func:`remove_stale_files`."""
        if self.local:
            remove_stale_files(Path(self._path(folder)))

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


def for_each(storage: Storage, names: Sequence[str], do: Callable[[str], Result]) -> list[Result]:
    """What a function of the storage gives for each name, in order; on an object store many at once."""
    if storage.local:
        return [do(name) for name in names]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(do, names))

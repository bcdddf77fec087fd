"""Can these machines run a study? Every node is asked, before any training; a line per failure says what mends it.

    python -m cluster.doctor                                        # this machine
    python -m cluster.doctor --address auto --storage s3://bucket/results --tracking-uri http://127.0.0.1:5000
    python -m cluster.doctor --address auto --data jets.h5          # the jets arrive on every node as they are here

Studies ask the same of every node when they connect, without the jets and the GPUs' arithmetic. Exit codes: 0 all is
well (warnings may be printed), 1 something must be mended, 2 no such cluster, storage or data.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.scheduling.run import ClusterError, check_storage
from jbot.cli import Parser, bad_input, program
from jbot.data.jets import CLASSES, JetData, content_fingerprint
from jbot.data.load import load_cached
from jbot.store.record import RecordError, Storage, first_line, last_line, temporary_name, without_secret

SHAPES_RESULTS = ("torch", "numpy", "scipy", "scikit-learn")
"""Libraries of which another version gives other numbers: one study must not mix them."""
MUST_READ = ("pyarrow", "safetensors", "h5py")
"""Libraries that read what another node wrote: other versions are worth a warning."""
SKEW = 30.0
"""Seconds by which a node's clock may differ (assumed). Object stores refuse a request that is 15 minutes off."""
LEAST_DISK = 2.0e9
"""Bytes free where records and Ray's own files go (assumed): a trial of jBOT-S leaves some 5 MB."""
FULLEST = 0.95
"""Share of a disk from which Ray spills nothing any more, and tasks fail."""
JETS = 100
"""Of each class, that are read and sent to show that they arrive."""
LEAST_MEMORY = 0.6e9
"""Bytes of a process that trains jBOT-S on a core, most of them libraries (docs/performance.md)."""
GROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Where control groups (versions 2 and 1) tell of memory: folder, limit, use, and what of it is files not in use."""
LEAST_FILES = 4096
"""Open files a process may have; Ray's own daemons hold thousands on a busy node."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    where: str
    """Address of the node, or `this machine`."""
    says: str
    """What was found."""
    mend: str = ""
    """What to do; empty when all is well."""
    fatal: bool = True
    """No study may start; else it is worth a warning."""

    @property
    def ok(self) -> bool:
        """Nothing is to be mended."""
        return not self.mend

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.says}" + (f"; {self.mend}" if self.mend else "")


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a node tells of itself."""

    address: str
    places: int
    """Packs that it can run at once."""
    gpus_promised: float
    """What Ray believes to be there."""
    told: dict[str, Any]
    """From :func:`look`."""
    skew: float
    """Seconds by which its clock is ahead, after the time the question may have taken."""


# --- on a node ----------------------------------------------------------------------------------------------------


def look(storage: Storage, token: str) -> dict[str, Any]:
    """What a process on a node sees of it. No GPU context is made: that would take the memory of a trial."""
    return {
        "storage": _storage(storage, token),
        "code": code_digest(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in (*SHAPES_RESULTS, *MUST_READ)},
        "gpus": gpus(),
        "disks": _disks(storage),
        "memory": _memory(),
        "files": _open_files(),
    }


def _storage(storage: Storage, token: str) -> str:
    """Empty when the token is there and another file can be written, else what went wrong."""
    own = temporary_name(".seen")
    try:
        if not storage.exists(token):
            return "is not seen"
        if storage.read(token) != b"seen":
            return "has another content than here"
        storage.write(own, b"seen")
        storage.remove_file(own)
    except (OSError, RecordError) as error:
        return f"fails ({first_line(error)})"
    return ""


def code_digest() -> str:
    """Of the packages that run a trial, as they are imported here."""
    import cluster
    import jbot

    found = hashlib.sha256()
    for package in (jbot, cluster):
        root = Path(str(package.__file__)).parent
        for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".cpp")):
            found.update(f"{root.name}/{path.relative_to(root).as_posix()}".encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def _version(name: str) -> str:
    if name == "torch":  # its build, too: +cpu and +cu128 are not the same library
        import torch

        return str(torch.__version__)
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def gpus() -> list[dict[str, Any]]:
    """Name, driver, free and total memory [bytes] of each GPU; none without NVIDIA's own tool."""
    wanted = ["name", "driver_version", "memory.free", "memory.total"]
    command = ["nvidia-smi", f"--query-gpu={','.join(wanted)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in said.splitlines() if line.strip()]
    return [
        {"name": name, "driver": driver, "free": _mebibytes(free), "total": _mebibytes(total)}
        for name, driver, free, total in rows
    ]


def _mebibytes(text: str) -> int | None:
    return int(float(text) * 2**20) if text.replace(".", "", 1).isdigit() else None  # a MIG host says [N/A]


def _disks(storage: Storage) -> dict[str, tuple[int, int]]:
    """Bytes free and in all, where records and where Ray's files go."""
    places = {"Ray's files": os.environ.get("RAY_TMPDIR") or "/tmp"}
    if storage.local:
        places["storage"] = storage.uri
    found = {}
    for name, folder in places.items():
        there = next((path for path in (Path(folder), *Path(folder).parents) if path.exists()), Path("/"))
        usage = shutil.disk_usage(there)
        found[name] = (usage.free, usage.total)
    return found


def _memory() -> tuple[int, int]:
    """Bytes available and in all; within a container or a queue's job, of what their limit leaves."""
    import psutil

    machine = psutil.virtual_memory()
    return min([(machine.available, machine.total), *_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _limits(own: Path, root: Path) -> Iterator[tuple[int, int]]:
    """Bytes available and in all of this process's control group and of those around it, where they have a limit."""
    with contextlib.suppress(OSError):  # another system than Linux
        for line in own.read_text().splitlines():
            _, kind, name = line.split(":", 2)
            if kind not in GROUPS:
                continue
            folder, most, now, idle = GROUPS[kind]
            inner = root / folder / name.strip("/")
            for group in (inner, *inner.parents):
                with contextlib.suppress(OSError, ValueError):  # not there, or the word max
                    limit, used = int((group / most).read_text()), int((group / now).read_text())
                    counts = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
                    yield max(0, limit - used + int(counts[idle])), limit  # files that nobody reads make room


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


# --- what it means ------------------------------------------------------------------------------------------------


def judge(nodes: Sequence[Node], storage: Storage, code: str) -> list[Finding]:
    """Everything that was found of the nodes, in the order of the questions.

    Parameters
    ----------
    code : str
        :func:`code_digest` of the driver.
    """
    found: list[Finding] = []
    for node in nodes:
        found += [_seen(node, storage), _same_code(node, code), *_room(node), _memory_of(node), _in_time(node)]
        found += [_promised(node)] if node.gpus_promised or node.told["gpus"] else []
        found += [_files(node)] if node.told["files"] is not None else []
    return found + _same_libraries(nodes)


def _seen(node: Node, storage: Storage) -> Finding:
    wrong = node.told["storage"]
    shared = "" if not wrong else "use a folder that all nodes share at this path, or s3:// with credentials on each"
    if wrong:  # the rule and the value in one line, as it stands alone in an error
        return Finding(what="storage", where=node.address, says=f"{storage.uri} {wrong} by this node", mend=shared)
    return Finding(what="storage", where=node.address, says=f"{storage.uri} is read and written")


def _same_code(node: Node, code: str) -> Finding:
    theirs = node.told["code"]
    mend = "" if theirs == code else "Ray did not ship this checkout: restart the node, and look for jbot in PYTHONPATH"
    says = f"version {theirs}" + ("" if theirs == code else f", here {code}")
    return Finding(what="code", where=node.address, says=says, mend=mend)


def _room(node: Node) -> Iterable[Finding]:
    for name, (free, total) in node.told["disks"].items():
        full = 1 - free / max(total, 1)
        small = free < LEAST_DISK or (name != "storage" and full > FULLEST)
        mend = f"free some: {LEAST_DISK / 1e9:g} GB and {1 - FULLEST:.0%} must be left" if small else ""
        says = f"{free / 1e9:,.1f} GB free, {full:.0%} used"
        yield Finding(what=f"disk of {name}", where=node.address, says=says, mend=mend, fatal=free < LEAST_DISK / 10)


def _memory_of(node: Node) -> Finding:
    free, total = node.told["memory"]
    says = f"{free / 1e9:,.1f} GB available of {total / 1e9:,.1f}"
    mend = ""
    if free < node.places * LEAST_MEMORY:
        says += f", {node.places} trials at once"
        mend = f"give trials more CPUs (--cpus), or Ray fewer: a trial takes {LEAST_MEMORY / 1e9:g} GB at least"
    return Finding(what="memory", where=node.address, says=says, mend=mend, fatal=False)


def _in_time(node: Node) -> Finding:
    late = abs(node.skew) > SKEW
    mend = "set it by NTP (chrony): MLflow's times would be wrong, and object stores refuse 15 minutes" if late else ""
    says = f"{node.skew:+,.0f} s against this machine" if late else "as here"
    return Finding(what="clock", where=node.address, says=says, mend=mend, fatal=abs(node.skew) > 900)


def _promised(node: Node) -> Finding:
    there, promised = node.told["gpus"], node.gpus_promised
    names = Counter(gpu["name"] for gpu in there)
    says = ", ".join(f"{n} x {name}" for name, n in names.items()) or "none"
    free = [gpu["free"] for gpu in there if gpu["free"] is not None]
    says += f", least free memory {min(free) / 2**30:.1f} GiB" if free else ""
    mend = ""
    if len(there) < promised:
        says += f", Ray promises {promised:g}"
        mend = "start Ray there with --num-gpus of what is there, or look at nvidia-smi and the driver"
    return Finding(what="GPUs", where=node.address, says=says, mend=mend)


def _files(node: Node) -> Finding:
    few = node.told["files"] < LEAST_FILES
    mend = f"ulimit -n {16 * LEAST_FILES} before ray start" if few else ""
    return Finding(what="open files", where=node.address, says=f"up to {node.told['files']:,}", mend=mend, fatal=False)


def _same_libraries(nodes: Sequence[Node]) -> list[Finding]:
    """Of the nodes that train: a head without a GPU may have another torch."""
    trains = [node for node in nodes if node.places] or list(nodes)
    found = []
    for name in ("python", *SHAPES_RESULTS, *MUST_READ):
        by = {node.address: node.told["python"] if name == "python" else node.told["versions"][name] for node in trains}
        most, _ = Counter(by.values()).most_common(1)[0]
        fatal = name in SHAPES_RESULTS
        odd = [address for address, its in by.items() if its != most]
        found += [
            Finding(
                what=name, where=address, says=f"{by[address]}, other nodes {most}", fatal=fatal,
                mend=f"install the same on every node{', or trials of one study differ by it' if fatal else ''}",
            )
            for address in odd
        ]  # fmt: skip
        if not odd:
            found.append(Finding(what=name, where="all nodes that train", says=most))
    return found


# --- asking -------------------------------------------------------------------------------------------------------


def ask_nodes(storage: Storage, token: str, places: Callable[[dict[str, Any]], int]) -> list[Node]:
    """Of every node of the connected cluster, what it tells of itself; `places` as of
    :func:`cluster.scheduling.tune.places_on`.

    Raises
    ------
    ClusterError
        When a node cannot answer: it cannot import this code, say.
    """
    return [
        Node(
            address=node["NodeManagerAddress"],
            places=places(node),
            gpus_promised=node["Resources"].get("GPU", 0.0),
            told=answer,
            skew=_skew(partial(_time_on, node)),
        )
        for node, answer in on_each(_alive(), look, storage, token)
    ]


def on_each(nodes: Sequence[dict[str, Any]], function: Callable[..., Any], *arguments: Any) -> list[tuple[Any, Any]]:
    """Run a function on each node, all at once: (node, what it returned). Those that have gone meanwhile are left out.

    Raises
    ------
    ClusterError
        Naming the nodes that are there and cannot run it, or when none is left.
    """
    import ray
    from ray.exceptions import RayError

    task, found, problems = ray.remote(num_cpus=0)(function), [], []
    asked = [(node, task.options(scheduling_strategy=on_node(node)).remote(*arguments)) for node in nodes]
    for node, answer in asked:
        try:
            found.append((node, ray.get(answer)))
        except RayError as error:
            if node["NodeID"] in {other["NodeID"] for other in _alive()}:
                problems.append(f"node {node['NodeManagerAddress']} cannot be asked: {last_line(error)}")
    if problems or not found:
        raise ClusterError("; ".join(problems) or "every node has gone while it was asked")
    return found


def on_node(node: dict[str, Any]) -> Any:
    """How Ray is told to run something on this node, nowhere else."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _clock() -> float:
    return time.time()


def _time_on(node: dict[str, Any]) -> float:
    """Of a node's clock [s since 1970]; of ours where the node has gone."""
    import ray
    from ray.exceptions import RayError

    try:
        return float(ray.get(ray.remote(num_cpus=0)(_clock).options(scheduling_strategy=on_node(node)).remote()))
    except RayError:
        return _clock()


def _skew(ask: Callable[[], float]) -> float:
    """Seconds by which another clock is ahead of what ours showed while it was asked; 0 within that time."""
    before = time.time()
    theirs = ask()
    after = time.time()
    return min(theirs - before, 0.0) or max(theirs - after, 0.0)


def this_machine(storage: Storage, token: str) -> Node:
    """The same of this process, without Ray."""
    return Node(address="this machine", places=1, gpus_promised=0.0, told=look(storage, token), skew=0.0)


def check_tracking(uri: str) -> Finding:
    """Whether MLflow answers there, and takes what is written. The experiment that is made for it is deleted again."""
    import cluster.tracking.view  # noqa: F401 - sets MLflow's timeouts before MLflow is imported

    name = f"doctor-{uuid.uuid4().hex[:8]}"
    try:
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=uri)
        client.delete_experiment(client.create_experiment(name))
    except Exception as error:  # whatever MLflow, SQLAlchemy or the network raise
        says = f"{without_secret(uri)} fails ({type(error).__name__}: {without_secret(first_line(error))})"
        mend = "start it, or look at its address and your rights; a study runs without it, and mirrors later"
        return Finding(what="MLflow", where="this machine", says=says, mend=mend, fatal=False)
    return Finding(what="MLflow", where="this machine", says=f"{without_secret(uri)} answers and takes runs")


def check_jets(source: str, nodes: bool) -> Finding:
    """Whether the jets can be read here, and arrive on every node as they are.

    Raises
    ------
    DataError
        For jets that cannot be used.
    """
    counts = dict.fromkeys(CLASSES, JETS)
    jets = load_cached(source, jets_per_class=counts)
    if jets is None:
        return Finding(what="jets", where="this machine", says=f"{source}: none here yet, a study gets them first")
    says = f"{jets.source}, fingerprint {jets.fingerprint[:12]}"
    if nodes:
        import ray

        arrived = on_each(_alive(), _fingerprint, ray.put(jets))
        if wrong := [node["NodeManagerAddress"] for node, theirs in arrived if theirs != jets.fingerprint]:
            names = ", ".join(wrong)
            mend = "other bytes arrive than were sent: look at memory and network of these nodes"
            return Finding(what="jets", where=names, says=says, mend=mend)
    return Finding(what="jets", where="all nodes" if nodes else "this machine", says=says)


def _fingerprint(jets: JetData) -> str:
    return content_fingerprint(jets.particles, jets.labels, jets.jets)


def examine(storage: Storage, address: str | None, source: str | None, tracking_uri: str | None) -> list[Finding]:
    """All questions of the command.

    Raises
    ------
    ClusterError, DataError
        When there is no cluster or there are no such jets, or the storage cannot be written from here.
    """
    token = check_storage(storage)
    found: list[Finding] = []
    try:
        with _perhaps_connected(address):
            nodes = ask_nodes(storage, token, _places) if address else [this_machine(storage, token)]
            found += judge(nodes, storage, code_digest())
            if source:
                found.append(check_jets(source, nodes=bool(address)))
    finally:
        storage.remove_file(token)
    return found + ([check_tracking(tracking_uri)] if tracking_uri else [])


def _places(node: dict[str, Any]) -> int:
    """A trial a GPU, or a CPU where there is none: as presets have it."""
    return int(node["Resources"].get("GPU") or node["Resources"].get("CPU", 0))


def _perhaps_connected(address: str | None) -> contextlib.AbstractContextManager[None]:
    if address is None:
        return contextlib.nullcontext()
    from cluster.scheduling.connection import connected

    return connected(address)


def show(found: Sequence[Finding]) -> None:
    """A row for each finding, and below them what is to be mended."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "where", "what", "found"):
        table.add_column(column, overflow="fold")
    for finding in found:
        sign = "[green]ok[/]" if finding.ok else "[red]WRONG[/]" if finding.fatal else "[yellow]check[/]"
        table.add_row(sign, *(escape(text) for text in (finding.where, finding.what, finding.says)))
    console = Console()
    console.print(table)
    for finding in found:
        if not finding.ok:
            words = f"{finding.where}, {finding.what}: {finding.mend}"
            console.print(words, markup=False, highlight=False, soft_wrap=True, style="bold" if finding.fatal else "")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        prog="python -m cluster.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--address", help="Ray cluster: auto, or host:port (default: this machine, without Ray)")
    made.add_argument("--storage", default="results", help="folder or s3:// gs:// URI for records (default: results)")
    made.add_argument("--data", help="jets that a study will use: pythia, jetnet, or a file or folder")
    made.add_argument("--tracking-uri", help="MLflow server that a study will use")
    return made


@program
def main(arguments: list[str] | None = None) -> int:
    """Examine, print, and say by the exit code whether a study may start."""
    options = parser().parse_args(arguments)
    try:
        found = examine(Storage(options.storage), options.address, options.data, options.tracking_uri)
    except ClusterError as error:
        return bad_input(error)
    show(found)
    return int(any(finding.fatal and not finding.ok for finding in found))

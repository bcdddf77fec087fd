"""What thousands of trials, and jets by the million, cost besides training and physics.

    python -m benchmarks.scale                              2,000 trials and all sections: 45 minutes on two cores
    python -m benchmarks.scale --trials 200 --only path,pages,mlflow
    python -m benchmarks.scale --scratch /data/scale        records are kept there; the same command continues
    python -m benchmarks.scale --only chunks,file           jets alone

Trials are real and as small as they can be (benchmarks/scale_study.py): what they cost is what every trial pays. Times
are of this machine, as loaded as it is: compare within a run, and CPU seconds rather than seconds of the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.scale_jets import chunks, one_file
from benchmarks.scale_study import ARMS, study
from cluster.tracking.pages import page
from jbot.cli import Parser, docstring
from jbot.data.chunks import CHUNK
from jbot.store.record import load_records
from jbot.store.storage import Storage

ROOT = Path(__file__).parent.parent
STUDY = study.plan("smoke").study
NODES = (1, 2, 4)

Cells = dict[str, Any]


# --- the whole path -------------------------------------------------------------------------------------------------


def whole_path(options: argparse.Namespace, storage: Path) -> list[Cells]:
    """The study by its command line: Ray on this machine, live view in SQLite, report, index."""
    return [run_study("all", options, storage, options.trials, options.places)]


def unwatched(options: argparse.Namespace, storage: Path) -> list[Cells]:
    """As many trials as a cluster of the section nodes runs, with a live view and without."""
    views = {"live view": (), "no view": ("--tracking-uri", "none")}
    trials, places = options.node_trials, options.places
    return [
        run_study(name, options, storage / name.replace(" ", "_"), trials, places, *more)
        for name, more in views.items()
    ]


def run_study(what: str, options: argparse.Namespace, storage: Path, trials: int, places: int, *more: str) -> Cells:
    """One study as a process of its own, and what it took.

    `overhead` is what a place was held for a trial beyond its training and probes [s]; start and end of the driver, Ray
    among them, apart.
    """
    storage.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.scale_study", "--preset", "smoke", "--seeds", str(trials // ARMS)]
    command += ["--data", str(ROOT / "tests/data/jets_sample.h5"), "--storage", str(storage), "--figures", "none"]
    command += ["--pack", str(options.pack), *more]
    before, started = len(list(storage.glob("trials/*/record.json"))), time.time()
    done = run(command)
    files = [path for path in storage.glob("trials/*/record.json") if path.stat().st_mtime >= started]
    names = [path.parent.name for path in files]
    records = [record for record in load_records(Storage(storage), names).values() if record]
    if not records:
        return {"what": what, "trials": 0, "found": before, **done}
    first = min(datetime.fromisoformat(record.started).timestamp() for record in records)
    last = max(path.stat().st_mtime for path in files)
    training = sum(record.device_seconds for record in records)
    return {
        "what": what,
        "trials": len(records),
        "pack": options.pack,
        "start s": first - started,
        "trials s": last - first,
        "end s": started + done["wall s"] - last,
        "training s/trial": training / len(records),
        "overhead s/trial": ((last - first) * places - training) / len(records),
        "retries": sum(record.attempts - 1 for record in records),
        **done,
    }


def run(command: list[str]) -> Cells:
    """A program's wall seconds, its own CPU seconds (user and system, all threads), and its peak memory [MB]."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=sys.stderr)
    peak, used = 0.0, 0.0
    while process.poll() is None:
        peak, used = (max(pair) for pair in zip((peak, used), usage(process.pid), strict=True))
        time.sleep(0.25)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return {"wall s": time.perf_counter() - started, "CPU s": used, "peak MB": peak}


def usage(pid: int) -> tuple[float, float]:
    """Peak resident memory [MB] and CPU seconds of a process so far, without its children; zeros when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    peak = next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), 0.0)
    return peak, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- what is made of records ----------------------------------------------------------------------------------------


def pages(options: argparse.Namespace, storage: Path) -> list[Cells]:
    """Report, index and view from the records alone, each a process."""
    folder, again = str(storage / STUDY), storage / "again.db"
    again.unlink(missing_ok=True)
    commands = {
        "report": ["analysis.report", folder],
        "index of all questions": ["analysis.index", str(storage)],
        "view, nothing to add": ["cluster.mirror", folder],
        "view, from nothing": ["cluster.mirror", folder, "--tracking-uri", f"sqlite:///{again}"],
    }
    rows = [{"what": name, **run([sys.executable, "-m", *command])} for name, command in commands.items()]
    started, cpu = time.perf_counter(), time.process_time()
    records = [record for record in load_records(Storage(storage), Storage(storage).names("trials")).values() if record]
    took = {"wall s": time.perf_counter() - started, "CPU s": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    rows.append({"what": f"{len(records)} records read", **took, "peak MB": peak})
    return [row | {"ms a trial": 1000 * row["CPU s"] / len(records)} for row in rows]


def sizes(options: argparse.Namespace, storage: Path) -> list[Cells]:
    """Bytes on the disk."""
    count, files = len(Storage(storage).names("trials")), list(storage.glob("trials/*/*"))
    bytes_of = {
        "all of a trial, mean": sum(path.stat().st_size for path in files) / count,
        "record.json, mean": sum(path.stat().st_size for path in files if path.name == "record.json") / count,
        "report.html": (storage / STUDY / "report.html").stat().st_size,
        "study.json": (storage / STUDY / "study.json").stat().st_size,
        "mlflow.db, a trial": (storage / "mlflow.db").stat().st_size / count,
    }
    rows = [{"what": name, "bytes": value} for name, value in bytes_of.items()]
    return [*rows, {"what": "files of a trial, mean", "files": len(files) / count}]


# --- MLflow ---------------------------------------------------------------------------------------------------------


def mlflow(options: argparse.Namespace, storage: Path) -> list[Cells]:
    """Seconds until all runs are listed: by the API, and until the first are seen in a real browser."""
    import mlflow as library

    uri = f"sqlite:///{storage}/mlflow.db"
    client = library.MlflowClient(tracking_uri=uri)
    experiment = json.loads((storage / STUDY / "mlflow.json").read_text(encoding="utf-8"))["experiment_id"]
    started, count, token = time.perf_counter(), 0, None
    while True:
        runs = client.search_runs([experiment], "tags.role = 'trial'", max_results=1000, page_token=token)
        count, token = count + len(runs), runs.token
        if not token:
            break
    rows = [{"what": f"search_runs of {count} runs, in pages of 1000", "wall s": time.perf_counter() - started}]
    return rows + [
        {"what": f"the page of {view}, in Chromium", "wall s": seconds}
        for view, seconds in seen(uri, experiment, options.out.parent).items()
    ]


def seen(uri: str, experiment: str, pictures: Path) -> dict[str, float]:
    """Seconds until a reader sees runs, by saved view; a picture of each is left beside the result."""
    import shutil
    import socket

    from playwright.sync_api import sync_playwright

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    pictures.mkdir(parents=True, exist_ok=True)
    times: dict[str, float] = {}
    try:
        wait_for(f"{address}/health", 300)
        with ExitStack() as stack:
            browser = stack.enter_context(sync_playwright()).chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            stack.enter_context(closing(browser))
            for view, row in {"arms": "koleo_9 (arm)", "trials": "seed "}.items():
                tab = browser.new_page(viewport={"width": 1400, "height": 900})
                started = time.perf_counter()
                tab.goto(page(address, experiment, view))
                tab.get_by_text(row).first.wait_for(timeout=240_000)
                times[view] = time.perf_counter() - started
                tab.screenshot(path=pictures / f"scale_{view}.png")
    finally:
        os.killpg(server.pid, 9)
        server.wait()
    return times


def wait_for(address: str, seconds: float) -> None:
    """Ask until there is an answer; OSError after so many seconds without one."""
    until = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


# --- nodes ----------------------------------------------------------------------------------------------------------


def nodes(options: argparse.Namespace, storage: Path) -> list[Cells]:
    """The same on clusters of 1, 2 and 4 nodes with a CPU each. They share the cores of this machine: what is measured
    is no speed but what more nodes cost."""
    from ray.cluster_utils import Cluster

    rows = []
    for count in NODES:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            for _ in range(count - 1):
                cluster.add_node(num_cpus=1)
            more = ("--address", cluster.address, "--grow-to", str(count))
            name, folder = f"{count} node{'s' * (count > 1)}", storage / f"nodes_{count}"
            rows.append(run_study(name, options, folder, options.node_trials, count, *more))
        finally:
            cluster.shutdown()
    return rows


# --- command line -----------------------------------------------------------------------------------------------------

SECTIONS = {
    "path": ("a study by its command line", whole_path),
    "unwatched": ("the live view", unwatched),
    "pages": ("what is made of records", pages),
    "sizes": ("bytes on the disk", sizes),
    "mlflow": ("MLflow's pages", mlflow),
    "nodes": ("clusters on this machine", nodes),
    "chunks": ("chunks of jets without physics", chunks),
    "file": ("one file of jets", one_file),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the sections asked for, print a table of each, and write all rows as JSON."""
    made = parser()
    options = made.parse_args(arguments)
    wanted = options.only.split(",")
    if unknown := [name for name in wanted if name not in SECTIONS]:
        made.error(f"sections are {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    for name, step in (("trials", ARMS), ("node_trials", ARMS), ("file_jets", 5 * CHUNK)):
        if (value := getattr(options, name)) < step or value % step:
            made.error(f"--{name.replace('_', '-')} must be a multiple of {step}, got {value}")
    if min(options.pack, options.places) < 1:
        made.error(f"--pack and --places must be at least 1, got {options.pack} and {options.places}")
    sections = report.load(options.out)
    with ExitStack() as stack:
        scratch = options.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jbot-scale-")))
        scratch.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            title, section = SECTIONS[name]
            sections[name] = report.measure(title, partial(section, options, scratch.resolve()))
            report.save(options.out, sections, "# Scale")
            print(report.section_text(name, sections[name]), end="\n\n", flush=True)
    print(options.out)
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(prog="benchmarks.scale", description=docstring(__file__).splitlines()[0], allow_abbrev=False)
    made.add_argument("--trials", type=int, default=2000, help=f"a multiple of {ARMS} (default: 2000)")
    made.add_argument(
        "--node-trials", type=int, default=200, help="of each study of the sections nodes and unwatched (default: 200)"
    )
    made.add_argument("--pack", type=int, default=1, help="trials of a pack (default: 1, as on any CPU)")
    made.add_argument("--places", type=int, default=os.cpu_count() or 1, help="packs at once (default: this machine's)")
    made.add_argument("--file-jets", type=int, default=10_000_000, help="of the section file (default: 10,000,000)")
    made.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas (default: all)")
    made.add_argument("--scratch", type=Path, help="folder for records, kept (default: a new one, removed)")
    made.add_argument("--out", type=Path, default=Path("results/benchmarks/scale.json"), help="file of the result")
    return made


if __name__ == "__main__":
    sys.exit(main())

"""Where a result comes from: the commit of the code, the versions of the libraries, the machine and its usage."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch


@functools.cache
def git_commit() -> str | None:
    """Commit of the checkout this code runs from, with ``+`` when it is changed; None outside a checkout."""
    run = functools.partial(subprocess.run, capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
    try:
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        return commit + ("+" if run(["git", "status", "--porcelain", "-uno"]).stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of what a result may depend on."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "numpy", "scikit-learn", "ray", "mlflow"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware(device: torch.device) -> dict[str, Any]:
    """Host, processor and, on CUDA, GPU that this process computes on."""
    facts: dict[str, Any] = {"host": platform.node(), "machine": platform.machine(), "cores": os.cpu_count()}
    facts |= {"device": str(device), "threads": torch.get_num_threads(), "cpu": _cpu_name()}
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


class ResourceUsage:
    """Memory and utilisation of its device from the moment this is made, for the records."""

    def __init__(self, device: torch.device):
        self.device = device
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        self.samples: list[float] = []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def sample(self) -> None:
        """Ask a GPU how busy it was in its last sampling period (below a second)."""
        if self.device.type == "cuda":
            try:
                self.samples.append(torch.cuda.utilization(self.device) / 100)
            except Exception:  # no NVML, an old driver, a part of a GPU: then nobody knows
                return

    def read(self) -> dict[str, Any]:
        """`peak_memory_bytes`, of the process on a CPU, of torch's allocations on a GPU; `utilisation`, a share.

        Utilisation is CPU seconds over wall seconds and threads; on a GPU the mean of the samples, None without any.
        """
        if self.device.type == "cuda":
            busy = sum(self.samples) / len(self.samples) if self.samples else None
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            wall = time.perf_counter() - self.wall
            busy = (time.process_time() - self.cpu) / max(wall, 1e-9) / torch.get_num_threads()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"peak_memory_bytes": int(peak), "utilisation": None if busy is None else round(busy, 3)}

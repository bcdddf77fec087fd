"""Where a result comes from: the commit of the code, the versions of the libraries, the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
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
    found: dict[str, Any] = {"host": platform.node(), "machine": platform.machine(), "cores": os.cpu_count()}
    found |= {"device": str(device), "threads": torch.get_num_threads(), "cpu": _cpu_name()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())

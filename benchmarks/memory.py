"""Memory of a trial: how far a process grows that runs a pack from its start to its records.

python -m benchmarks.memory --model S --batch 256 --pack 4     one such process, as the benchmark starts them
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.steps import Setting
from benchmarks.timing import NotAvailable, Row, no_row, value_row
from benchmarks.trainer import MODELS, enough, read_jets, run_trials
from jbot.cli import Parser
from jbot.config import Config, override
from jbot.trainer.engines.select import ENGINES

ROOT = Path(__file__).parent.parent
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
STEPS = 3
JUDGED = {"data.val_jets": 250, "data.test_jets": 500, "probe.bank_jets": 1_000}
"""Few, since each trial of a pack is judged by itself: the peak is that of the steps. The jets themselves are shared by
the trials of a node, and not counted."""
MIB = 2**20


def memory(setting: Setting, sizes: tuple[int, ...] = (1, 2, 4, 8), path: Path | None = None) -> list[Row]:
    """Peak memory by pack size, and the share of each trial."""
    path = path or ROOT / "tests/data/jets_sample.h5"
    batch = 64 if setting.quick else 256
    wanted = [("S", batch, size) for size in (sizes[::2] if setting.quick else sizes)]
    if not setting.quick:
        wanted += [("S", 1024, 1), ("B", 1024, 1)]
    rows = []
    for model, jets, size in wanted:
        what = f"{model} batch {jets}, pack of {size}"
        settings = {"model": model, "batch": jets, "pack": size, "device": setting.device.type}
        try:
            peak = peak_growth(setting.device, model, jets, size, path, setting.engine) / MIB
        except NotAvailable as reason:
            rows.append(no_row(what, "MiB", str(reason), "not available", settings=settings))
            continue
        note = f"{peak / size:.0f} MiB a trial"
        rows.append(value_row(what, "MiB", [peak], note=note, settings=settings | {"mib_a_trial": peak / size}))
        if setting.advance:
            setting.advance()
    return rows


def peak_growth(device: torch.device, model: str, batch: int, size: int, path: Path, engine: str = "auto") -> int:
    """Bytes: device memory on CUDA; else what a fresh process of one thread grows by, from imports to the peak."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        config = short_config(model, batch)
        records = run_trials(config, enough(read_jets(path), config), size, device, engine)
        return int(records[0].resources["peak_memory_bytes"] - before)
    if not STATUS.exists():
        raise NotAvailable("peak memory is read from /proc, which this system has not")
    command = [sys.executable, "-m", "benchmarks.memory", "--model", model, "--batch", str(batch), "--pack", str(size)]
    done = subprocess.run(
        [*command, "--data", str(path), "--engine", engine], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotAvailable((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return int(json.loads(done.stdout)["growth"])


def short_config(model: str, batch: int) -> Config:
    """A few steps, and small probes."""
    return override(
        MODELS[model], {**JUDGED, "data.train_jets": STEPS * batch, "train.batch": batch, "train.epochs": 1}
    )


def _status(name: str) -> int:
    """A value of /proc/self/status in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def main(arguments: list[str] | None = None) -> None:
    """Train in this process and print by how many bytes it grew."""
    parser = Parser(prog="python -m benchmarks.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), default="S")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--pack", type=int, default=1)
    parser.add_argument("--data", type=Path, default=ROOT / "tests/data/jets_sample.h5")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    config = short_config(options.model, options.batch)
    data = enough(read_jets(options.data), config)
    small = override(config, {"data.train_jets": 40, "data.val_jets": 10, "data.test_jets": 10, "train.batch": 10})
    run_trials(small, data, 1, cpu, options.engine)  # libraries that are loaded on first use belong to no trial
    CLEAR.write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    run_trials(config, data, options.pack, cpu, options.engine)
    print(json.dumps({"before": before, "growth": max(0, _status("VmHWM") - before)}))


if __name__ == "__main__":
    main()

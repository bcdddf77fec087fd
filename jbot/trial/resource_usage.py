"""Resources that a pack used of its device: memory and utilisation, for the records."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch


class ResourceUsage:
    """Usage from the moment this is made."""

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

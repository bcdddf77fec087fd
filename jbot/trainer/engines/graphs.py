"""Training steps as CUDA graphs: one replay in the place of hundreds of kernels launched one by one from Python.

A step reads no number on the host and, with a capacity for its masked rows, has no shape that depends on data; its
state stays at one address. So it can be recorded once for each batch size and capacity.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3
"""Steps before recording: cuBLAS, autograd and torch.compile prepare themselves in the first."""
BUCKETS = 16
"""Capacities are rounded up to a share of all particles, so that few graphs serve all steps."""


def row_capacity(masked: Tensor) -> int:
    """Room for the masked rows of any step of (step, trial, view, jet, particle), rounded up."""
    most = int(masked.sum(dim=(2, 3, 4)).max())
    share = -(-masked[0, 0].numel() // BUCKETS)
    return min(-(-most // share) * share, masked[0, 0].numel())


class StepGraphs:
    """Calls a step, recorded at its first call with these shapes and this state."""

    def __init__(self) -> None:
        self._recorded: dict[tuple[int, torch.Size, int | None], tuple[Any, tuple[Tensor, ...], dict[str, Tensor]]] = {}
        self._pool: Any = None
        self.why: str | None = None
        """Why steps are not recorded."""

    def __call__(
        self,
        step: Callable[..., dict[str, Tensor]],
        state: Any,
        inputs: tuple[Tensor, ...],
        capacity: int | None = None,
    ) -> dict[str, Tensor]:
        """step(state, *inputs): its terms, which the next call overwrites."""
        if self.why:
            return step(state, *inputs)
        key = (next(iter(state.tensors().values())).data_ptr(), inputs[0].shape, capacity)
        if key not in self._recorded:
            try:
                self._recorded[key] = self._record(step, state, tuple(x.clone() for x in inputs))
            except RuntimeError as error:  # an operation that cannot be recorded, or no memory for it
                self.why = f"no CUDA graph: {str(error).splitlines()[0]}"
                warnings.warn(f"{self.why}; steps are launched one by one", stacklevel=2)
                return step(state, *inputs)
        graph, held, terms = self._recorded[key]
        for mine, new in zip(held, inputs, strict=True):
            mine.copy_(new)
        graph.replay()
        return terms

    def _record(self, step: Any, state: Any, inputs: tuple[Tensor, ...]) -> Any:
        before = {name: value.clone() for name, value in state.tensors().items()}
        aside = torch.cuda.Stream()
        try:
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    step(state, *inputs)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self._pool):
                terms = step(state, *inputs)
        finally:  # warming up were steps, recording was none
            for name, value in state.tensors().items():
                value.copy_(before[name])
        return graph, inputs, terms

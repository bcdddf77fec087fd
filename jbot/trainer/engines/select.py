"""Engines that compute encoder and head in a training step: plain torch, our C++ kernel, or torch.compile.

They compute the same; which one is a matter of the machine, like the device, and no part of a Config. The record names
it, and why it was not the one that was asked for.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jbot.config import Config
from jbot.trainer import model
from jbot.trainer.engines import ENGINES, fused

Forward = Callable[..., tuple[Tensor, Tensor]]
"""Arguments and results as those of `jbot.trainer.model.forward`."""


@dataclass
class Engine:
    """A forward function by name."""

    name: str
    forward: Forward
    why: str | None = None
    """Why it is not the engine that was wanted."""


def find_engine(wanted: str, config: Config, device: torch.device, dtype: torch.dtype = torch.float32) -> Engine:
    """The engine for a trial's shape on this machine: of ENGINES the wanted one, or plain torch, and why.

    In bf16 each computes what `jbot.trainer.model.bf16_linear` says, whatever the machine has.
    """
    if wanted not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {wanted!r}")
    if wanted == "auto":
        wanted = "compiled" if device.type == "cuda" else "fused"
    precision = config.train.precision
    bf16 = functools.partial(model.forward, linear=model.bf16_linear)
    engine = Engine("plain", bf16 if precision == "bf16" else model.forward)
    if wanted == "fused":
        try:
            engine = Engine("fused", fused.find(config.model, config.data.particles, device, dtype, precision))
        except fused.Unavailable as reason:
            engine.why = str(reason)
    elif wanted == "compiled":
        engine.name = "compiled"
        engine.forward = Compiled(engine)
    return engine


class Compiled:
    """The plain engine by torch.compile, at the first call; as it was, with a warning, when that fails."""

    def __init__(self, engine: Engine):
        self._engine, self._plain, self._forward = engine, engine.forward, torch.compile(engine.forward)
        self._tried = False

    def __call__(self, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Raw and projected outputs."""
        if not self._tried:
            self._tried = True
            try:
                return self._forward(*arguments, **named)
            except Exception as error:  # whatever inductor, Triton or a compiler raise: plain torch computes the same
                line = (str(error).strip() or type(error).__name__).splitlines()[0]
                self._engine.name, self._engine.why = "plain", f"torch.compile failed: {line}"
                warnings.warn(f"{self._engine.why}; plain torch is used", stacklevel=2)
                self._forward = self._plain
        return self._forward(*arguments, **named)

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

    In bf16, what encoder and head compute with autocast is converted to float32.
    """
    if wanted not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {wanted!r}")
    if wanted == "auto":
        wanted = "compiled" if device.type == "cuda" else "fused"
    bf16 = config.train.precision == "bf16"
    engine = Engine("plain", model.forward)
    if wanted == "fused":
        try:
            if bf16:
                raise fused.Unavailable("the C++ kernel computes in float32, not bf16")
            engine = Engine("fused", fused.find(config.model, config.data.particles, device, dtype))
        except fused.Unavailable as reason:
            engine.why = str(reason)
    elif wanted == "compiled":
        engine.name = "compiled"
        engine.forward = Compiled(engine)
    if bf16:
        engine.forward = functools.partial(_in_bf16, engine.forward)
    return engine


class Compiled:
    """`model.forward` by torch.compile, at the first call; plain, with a warning, when that fails."""

    def __init__(self, engine: Engine):
        self._engine, self._forward = engine, torch.compile(model.forward)
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
                self._forward = model.forward
        return self._forward(*arguments, **named)


def _in_bf16(forward: Forward, flat: Tensor, particles: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast(flat.device.type, dtype=torch.bfloat16):
        raw, projected = forward(flat, particles, *rest, **named)
    return raw.to(flat.dtype), projected.to(flat.dtype)

"""The trainer as the benchmarks see it. All they know of jbot's training code is in this file.

A `StepGroup` is what the trainer does in one call: consecutive steps of some trials, whole (`run`) or part by part
(`run_parts`, in the order of PARTS, by the trainer's own functions). A test holds one against the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.timing import NotAvailable
from jbot.config import JBOT_B, Config, override
from jbot.trainer.augment import Particles, augment
from jbot.trainer.engines import fused
from jbot.trainer.engines.select import Forward, find_engine
from jbot.trainer.loop import VIEW_JETS, run_steps, step_groups, views_of_steps
from jbot.trainer.masking import Masked, mask_views
from jbot.trainer.model import cls_rows
from jbot.trainer.pack import Pack
from jbot.trainer.rng import Draws
from jbot.trainer.state import init_state
from jbot.trainer.step import losses, masked_rows, update

PARTS = ("gather", "augment", "mask", "teacher", "student", "losses", "backward", "update")
MODELS = {"S": Config(), "B": override(Config(), JBOT_B)}
LEARNING_RATE, MOMENTUM = 5e-4, 0.996
MAX_STEPS = 64
"""Steps of one group. On a CPU the trainer's have no more from batch 4 on; on a GPU they have up to 1024 at batch 16,
whose seconds a round are not worth what little is left to save."""
COMPILED_SHAPES = 256

Timed = Callable[..., Any]
"""timed(part, function, *arguments, **named): the function's result."""


class StepGroup:
    """Consecutive steps of trials of one Config at seeds 0 ... K-1, on jets that lie on the device.

    Parameters
    ----------
    config : Config
        Its batch is the number of jets a step and trial.
    jets : float tensor (jet, particle, 4)
        Drawn from with repetition. Particles beyond the Config's are left out.
    engine : str
        See :mod:`jbot.trainer.engines.select`.

    Raises
    ------
    NotAvailable
        When an engine asked for by name cannot be had here; `auto` takes what there is.
    """

    def __init__(
        self,
        config: Config,
        jets: Tensor,
        *,
        size: int = 1,
        device: torch.device | None = None,
        engine: str = "auto",
        max_steps: int = MAX_STEPS,
    ):
        self.config, self.size, self.wanted = config, size, engine
        self.device = device or torch.device("cpu")
        # One compiled function serves all shapes of a run; beyond torch's limit of eight, it would be plain unsaid.
        torch._dynamo.config.recompile_limit = COMPILED_SHAPES
        self.engine = find_engine(engine, config, self.device)
        self.check_engine()
        self.jets = jets[:, : config.data.particles].contiguous().to(self.device)
        self.members = tuple(range(size))
        self.pack = Pack([dataclasses.replace(config, seed=seed) for seed in self.members], self.device)
        self.state = init_state(config, list(self.members), self.device)
        self.lr, self.momentum = (
            torch.full((size,), value, dtype=torch.float64, device=self.device) for value in (LEARNING_RATE, MOMENTUM)
        )
        self.steps = min(steps_at_once(config.train.batch, size, self.device), max_steps)
        self._generator = np.random.default_rng(0)
        self.choose_jets()

    @property
    def jets_a_step(self) -> int:
        """Jets of one step of all trials together."""
        return self.size * self.config.train.batch

    def check_engine(self) -> None:
        """NotAvailable when it is not the one that was asked for by name; torch.compile fails at its first step."""
        if self.wanted != "auto" and self.engine.why:
            raise NotAvailable(self.engine.why)

    def choose_jets(self) -> None:
        """Which jets the next steps take: new ones for every trial."""
        shape = (self.steps, self.size, self.config.train.batch)
        self._index = torch.from_numpy(self._generator.integers(len(self.jets), size=shape)).to(self.device)

    def run(self) -> None:
        """All steps, as the trainer makes them."""
        self._run(self.engine.forward)

    def _run(self, forward: Forward) -> None:
        run_steps(self.state, self._gather(), self.pack, self.members, self.lr, self.momentum, forward)

    def run_parts(self, timed: Timed) -> None:
        """All steps, each part of them through `timed`; on CUDA without a graph."""
        state, forward, model = self.state, self.engine.forward, self.config.model
        hyper = self.pack.hyper(self.members)
        batches = timed("gather", self._gather)
        for views, masked in zip(*self._views(batches, timed), strict=True):
            particles = views.flatten(1, 2)
            rows, weight = timed("mask", _student_rows, views, masked)
            with torch.no_grad():
                _, taught = timed("teacher", forward, state.teacher, particles, model)
            student = state.student.detach().requires_grad_()
            raw, predicted = timed("student", forward, student, particles, model, masked.flatten(1, 2), rows)
            terms = timed("losses", losses, state, raw, predicted, taught, rows, weight, hyper)
            (gradient,) = timed("backward", torch.autograd.grad, terms["loss"].sum(), student)
            with torch.no_grad():
                timed("update", update, state, gradient, taught, views[..., 3], hyper, self.lr, self.momentum)

    def _gather(self) -> Tensor:
        return self.jets.index_select(0, self._index.flatten()).unflatten(0, self._index.shape)

    def _views(self, batches: Tensor, timed: Timed) -> tuple[Tensor, Tensor]:
        """What :func:`jbot.trainer.loop.views_of_steps` does, in its two parts."""
        hyper = self.pack.hyper(self.members, self.steps)
        steps = self.state.step + torch.arange(self.steps, device=self.device)[:, None]
        seeds: Any = hyper.seed
        draws = Draws(seeds, steps.flatten())
        views = timed("augment", augment, batches.flatten(0, 1), draws, hyper.augment)
        masked = timed("mask", mask_views, views, draws, hyper.mask)
        return views.unflatten(0, steps.shape), masked.unflatten(0, steps.shape)

    def used_share(self) -> float:
        """Share of the student's tokens that the loss looks at, in the jets that are chosen."""
        hyper = self.pack.hyper(self.members, self.steps)
        _, masked = views_of_steps(self._gather(), self.state.step, hyper)
        of_views = masked[..., 0].numel()
        return (of_views + int(masked.sum())) / (of_views * (masked.shape[-1] + 1))

    def traffic(self) -> float | None:
        """Bytes that one step reads and writes between operations, were nothing cached; None where nobody knows.

        Of the C++ kernel: what it is given and what it gives, for each of its passes.
        """
        if self.engine.name == "compiled":
            return None
        with Traffic() as counted:
            kernel = self.engine.forward
            self._run(_counting(kernel, counted) if isinstance(kernel, fused.Kernel) else kernel)
        return counted.bytes / self.steps


def steps_at_once(batch: int, size: int, device: torch.device) -> int:
    """Steps that the trainer makes in one call."""
    most = VIEW_JETS[device.type]
    epoch = dict.fromkeys(range(size), batch * max(1, most // batch))
    _, _, steps, _ = next(step_groups(epoch, batch, most))
    return steps


def _student_rows(views: Particles, masked: Masked) -> tuple[Tensor, Tensor]:
    """The student's tokens that the loss looks at, and the weights of the masked ones."""
    trials, _, jets, slots, _ = views.shape
    masked_tokens, weight = masked_rows(masked)
    return torch.cat((cls_rows(trials, 2 * jets, slots, views.device), masked_tokens), dim=1), weight


class Traffic(TorchDispatchMode):
    """Counts bytes while it is active: each operation reads its inputs and writes its outputs once.

    What operations that are not fused move between themselves, had they no cache. An operation written in place is
    read and written. Views move nothing; a broadcast input counts once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and add its bytes."""
        result = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False) and "empty" not in str(func):
            self.bytes += tensor_bytes((args, kwargs, result))
        return result


def tensor_bytes(tree: Any) -> int:
    """Bytes of all tensors in nested tuples, lists and dicts."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return sum(min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()) for tensor in tensors)


def _counting(kernel: fused.Kernel, counted: Traffic) -> Forward:
    """The kernel, whose memory traffic is added to what is counted of the operations around it."""

    def forward(flat: Tensor, particles: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        outputs = kernel(flat, particles, *rest, **named)
        moved = tensor_bytes((flat, particles, rest, named, outputs))
        # The backward pass reads the inputs again and the outputs' gradients, and writes that of the weights.
        counted.bytes += 2 * moved + tensor_bytes(flat) if flat.requires_grad else moved
        return outputs

    return forward

"""The encoder and projection head in C++ for CPUs: the same numbers as `model.forward`, several times as fast.

fused.cpp is compiled once for each model shape and precision and kept in the cache folder. Where that is not possible
(no compiler, another device) `find` says why and the plain version is used.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jbot.config import ModelConfig, Precision
from jbot.store.storage import atomic_write, cache_folder
from jbot.trainer.model import FFN_WIDTH, HEAD_WIDTH, weight_count

SOURCE = Path(__file__).with_name("fused.cpp")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fPIC", "-shared", "-w")
NATIVE = ("-march=native",)
"""What this machine's CPU has. Tests compile for less of it."""
NO_AMX = ("-mno-amx-bf16",)
MAX_SLOTS = 63
"""A row of a panel must fit into the registers."""

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Weights (trial, weight), particles (trial, jet, slot, 4), masked (trial, jet, slot); for each token its row among
the wanted ones or -1, int32 (trial, jet * token and one more); and what dropout multiplies with, (trial, value)."""


class Unavailable(RuntimeError):  # noqa: N818 - not an error: the plain version is used
    """Why there is no compiled kernel."""


class Kernel:
    """The compiled kernel of one model shape and precision; called like :func:`jbot.trainer.model.forward`.

    Raises Unavailable when it cannot be compiled here.
    """

    def __init__(
        self, config: ModelConfig, slots: int, precision: Precision = "fp32", instructions: tuple[str, ...] = NATIVE
    ):
        self.shape, self.slots = config, slots
        library = _load(_library(config, slots, precision, instructions))
        if not library.jbot_ready():  # the CPU has AMX, but the operating system does not lend it
            library = _load(_library(config, slots, precision, instructions + NO_AMX))
        self._forward, self._backward = library.jbot_forward, library.jbot_backward
        self._forward.restype = self._backward.restype = None
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._forward.argtypes = [pointer] * 5 + [number] * 3 + [pointer] * 2
        self._backward.argtypes = [pointer] * 5 + [number] * 3 + [pointer] * 3
        library.jbot_group.restype = number
        self._group = library.jbot_group()

    def __call__(
        self,
        flat: Tensor,
        particles: Tensor,
        config: ModelConfig,
        masked: Tensor | None = None,
        rows: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Raw and projected outputs of the wanted rows, as :func:`jbot.trainer.model.forward`."""
        if config != self.shape or particles.shape[2] != self.slots:
            raise ValueError(f"this kernel is for {self.shape} and {self.slots} particles")
        return _Fused.apply(self, flat, particles, masked, rows, factors)

    def forward(self, inputs: Inputs, rows: int) -> tuple[Tensor, Tensor]:
        """Raw and projected outputs, (trial, row, dim) and (trial, row, projection)."""
        flat, particles, *_ = inputs
        trials, jets = particles.shape[:2]
        raw = flat.new_zeros(trials, rows, self.shape.dim)  # rows that are no token stay zero
        projected = flat.new_zeros(trials, rows, self.shape.projection)

        def work(_: int, begin: int, end: int) -> None:
            for t in range(trials):
                at = (_at(x, t) for x in inputs)
                self._forward(*at, jets, begin, end, _at(raw, t), _at(projected, t))

        self._in_parts(work, jets)
        return raw, projected

    def backward(self, inputs: Inputs, d_raw: Tensor, d_projected: Tensor) -> Tensor:
        """Gradient of the weights, (trial, weight). Activations are made again: quicker than reading them."""
        flat, particles, *_ = inputs
        trials, jets = particles.shape[:2]
        gradients = flat.new_zeros(self._threads(jets), *flat.shape)

        def work(thread: int, begin: int, end: int) -> None:
            for t in range(trials):
                at = (_at(x, t) for x in inputs)
                outputs = (_at(x, t) for x in (d_raw, d_projected, gradients[thread]))
                self._backward(*at, jets, begin, end, *outputs)

        self._in_parts(work, jets)
        return gradients[0] if len(gradients) == 1 else gradients.sum(0)

    def _threads(self, jets: int) -> int:
        return max(1, min(torch.get_num_threads(), jets // (2 * self._group)))

    def _in_parts(self, work: Callable[[int, int, int], None], jets: int) -> None:
        """work(thread, begin, end) for parts of the jets in whole groups; C++ runs without Python's lock."""
        threads = self._threads(jets)
        groups = -(-jets // self._group)
        bounds = [min(jets, groups * i // threads * self._group) for i in range(threads + 1)]
        if threads == 1:
            work(0, 0, jets)
        else:
            list(_pool(threads).map(work, range(threads), bounds, bounds[1:]))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Kernel, flat: Tensor, particles: Tensor, masked: Any, rows: Any, factors: Any) -> Any:
        trials, jets, slots, _ = particles.shape
        flat, particles = flat.contiguous(), particles.contiguous()
        masked, factors = (None if x is None else x.contiguous() for x in (masked, factors))
        row_of_token, count = None, jets * (slots + 1)
        if rows is not None:
            tokens, count = count, rows.shape[1]
            row_of_token = torch.full((trials, tokens + 1), -1, dtype=torch.int32)
            # Row -1, no token, goes to a column that the kernel does not reach.
            row_of_token.scatter_(1, rows % (tokens + 1), torch.arange(count, dtype=torch.int32).expand(trials, -1))
        ctx.kernel, ctx.inputs = kernel, (flat, particles, masked, row_of_token, factors)
        return kernel.forward(ctx.inputs, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_raw: Tensor, d_projected: Tensor) -> Any:
        gradient = ctx.kernel.backward(ctx.inputs, d_raw.contiguous(), d_projected.contiguous())
        return None, gradient, None, None, None, None


def _at(x: Tensor | None, trial: int) -> int | None:
    """Address of a trial's part of a contiguous tensor."""
    return None if x is None else x.data_ptr() + trial * x.stride(0) * x.element_size()


_pool = functools.cache(functools.partial(ThreadPoolExecutor, thread_name_prefix="jbot"))
_kernel = functools.cache(Kernel)


def find(
    config: ModelConfig, slots: int, device: torch.device, dtype: torch.dtype, precision: Precision = "fp32"
) -> Kernel:
    """The kernel for this shape; raises Unavailable with the reason."""
    if device.type != "cpu":
        raise Unavailable(f"the C++ kernel is for CPUs, the device is {device}")
    if dtype != torch.float32:
        raise Unavailable(f"the C++ kernel computes in float32, not {dtype}")
    if slots > MAX_SLOTS:
        raise Unavailable(f"the C++ kernel holds at most {MAX_SLOTS} particles per jet, got {slots}")
    return _kernel(config, slots, precision)


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # torn by a crash of the machine, or on a disk from which nothing may run
        raise Unavailable(f"{path} cannot be loaded, remove it or set JBOT_CACHE: {error}") from None


def _library(config: ModelConfig, slots: int, precision: Precision, instructions: tuple[str, ...]) -> Path:
    """The compiled library, from the cache or made now."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise Unavailable("no C++ compiler found (c++, g++, clang++, or CXX); install one, e.g. the package g++")
    program = shlex.split(compiler)  # CXX may be "ccache g++"
    command = [*program, *FLAGS, *instructions, *definitions(config, slots, precision)]
    text = "\n".join([*command, _compile([*program, "--version"]), _cpu(), SOURCE.read_text()])
    path = cache_folder() / "kernels" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not all(map(_only_ours, (path.parent, path))):  # what another user may have put there is not executed
            path = _private_folder() / path.name
        if not path.exists():
            with atomic_write(path) as made:
                _compile([*command, str(SOURCE), "-o", str(made)])
                made.chmod(0o755)
    except OSError as error:  # a full or read-only disk
        raise Unavailable(f"the compiled kernel cannot be kept: {error}; set JBOT_CACHE to another folder") from None
    return path


def _only_ours(path: Path) -> bool:
    """Whether nobody but this user or root can have written it, or nobody has."""
    if not path.exists():
        return True
    about = path.stat()
    return about.st_uid in (os.getuid(), 0) and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@functools.cache
def _private_folder() -> Path:
    """A folder of this process, which is removed when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="jbot-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def definitions(config: ModelConfig, slots: int, precision: Precision) -> list[str]:
    """The constants that fused.cpp is compiled with, as options of a compiler."""
    sizes = {
        "SLOTS": slots,
        "DIM": config.dim,
        "HEADS": config.heads,
        "HEAD_DIM": config.head_dim,
        "LAYERS": config.layers,
        "PROJECTION": config.projection,
        "FFN": FFN_WIDTH * config.dim,
        "HIDDEN": HEAD_WIDTH * config.projection,
        "HIDE_PADDING": int(config.padding != "reference"),
        "WEIGHTS": weight_count(config),
        "BF16": int(precision == "bf16"),
    }
    return [f"-D{name}={size}" for name, size in sizes.items()]


def _compile(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or ["no message"]
        raise Unavailable(f"{command[0]} cannot compile {SOURCE.name}: {lines[0]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} does not run: {error}") from None


def _cpu() -> str:
    """A name for what -march=native depends on: machines of a cluster may share one cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())

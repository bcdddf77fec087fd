"""The C++ kernel, compiled for each set of instructions, against float64: here where the CPU has them, ARM emulated.

In bf16 the reference rounds the same operands and sums exactly. What is left is rounding: a float32 sum in another
order may put an operand on the other side of a tie. Plain torch in float32 has that too, and is the measure.
"""

import functools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_jets

from jbot.config import JBOT_B, Config, override
from jbot.trainer import model
from jbot.trainer.engines import fused
from jbot.trainer.model import init_weights

CPU_FLAGS = set(fused._cpu().split())
INSTRUCTIONS = {
    "AVX2": (("-march=x86-64-v3",), {"avx2", "fma"}),
    "AVX-512": (("-march=x86-64-v4",), {"avx512f", "avx512bw", "avx512vl", "avx512dq"}),
    "AVX512-BF16": (("-march=cooperlake",), {"avx512_bf16", "avx512_vnni"}),
    "AMX": (("-march=sapphirerapids",), {"amx_bf16", "avx512_fp16"}),
    "this CPU": (fused.NATIVE, set()),
}
"""Options of the compiler, and flags of a CPU that runs what it makes."""
LINEAR = {"fp32": model.linear, "bf16": model.bf16_linear}
ARM = "aarch64-linux-gnu-g++", "qemu-aarch64"
SHAPES = {
    "S": ({}, 30, 9),
    "B": (JBOT_B, 30, 9),
    "1 jet": ({}, 30, 1),
    "2 particles": ({}, 2, 9),
    "all padded": ({}, 30, 5),
    "63 particles": ({}, 63, 5),
    "odd widths": ({"model.dim": 21, "model.heads": 3, "model.layers": 1, "model.projection": 5}, 11, 9),
    "sees padding": ({"model.padding": "reference", "model.layers": 3}, 30, 5),
}
"""Changes of the Config, particles of a jet, jets."""
FEW = ("all padded", "odd widths")
"""For the sets of instructions that this CPU would not choose."""


@functools.cache
def make_case(name):
    """Weights, particles, masked, rows and the gradients at them, of one trial."""
    changes, slots, jets = SHAPES[name]
    shape = override(Config(), changes).model
    generator = torch.Generator().manual_seed(3)
    flat = init_weights(shape, 1)[None]
    flat = flat + 0.05 * torch.randn(flat.shape, generator=generator)
    particles = torch.from_numpy(make_jets(jets, slots=slots, least=1))[None]
    if name == "all padded":
        particles = torch.zeros_like(particles)
    masked = (torch.rand(particles.shape[:3], generator=generator) < 0.4) & (particles[..., 3] > 0)
    tokens = torch.nn.functional.pad(masked, (1, 0), value=True).flatten(1)  # [CLS], and what is masked
    rows = tokens[0].nonzero().T
    of_raw, of_projected = (
        torch.randn(1, rows.shape[1], n, generator=generator) for n in (shape.dim, shape.projection)
    )
    return shape, flat, particles, masked, rows, of_raw, of_projected


def results(forward, case, dtype=torch.float32):
    """Raw and projected outputs, and the gradient by the name of the weight, in float64."""
    shape, flat, particles, masked, rows, of_raw, of_projected = case
    flat, particles, of_raw, of_projected = (x.to(dtype) for x in (flat, particles, of_raw, of_projected))
    flat = flat.detach().clone().requires_grad_()
    raw, projected = forward(flat, particles, shape, masked, rows)
    (gradient,) = torch.autograd.grad([raw, projected], flat, [of_raw, of_projected])
    found = {"raw": raw, "projected": projected} | model.unpack(gradient, shape)
    return {name: value.detach().double() for name, value in found.items()}


@functools.cache
def references(name, precision):
    """What float64 gives for a case, and plain torch in float32."""
    forward = functools.partial(model.forward, linear=LINEAR[precision])
    return results(forward, make_case(name), torch.float64), results(forward, make_case(name))


def check(found, name, precision):
    """Each weight's gradient within its own scale; in bf16 as near as float32 comes, on average over its numbers."""
    exact, plain = references(name, precision)
    typical = max(
        float(value.square().mean().sqrt()) for part, value in exact.items() if part not in ("raw", "projected")
    )
    for part, wanted in exact.items():
        scale = 1.0 if part in ("raw", "projected") else max(float(wanted.abs().max()), 1e-3 * typical)
        if precision == "fp32":
            assert float((found[part] - wanted).abs().max()) < 1e-4 * scale, part
        else:
            error, usual = (float((x[part] - wanted).square().mean().sqrt()) for x in (found, plain))
            assert error < 3 * usual + 1e-3 * scale, part


def kernel(case, precision, instructions):
    """The kernel for these instructions, where this CPU runs them."""
    options, needed = INSTRUCTIONS[instructions]
    if missing := needed - CPU_FLAGS:
        pytest.skip(f"this CPU has no {', '.join(sorted(missing))}")
    return fused.Kernel(case[0], case[2].shape[2], precision, options)


@pytest.mark.parametrize("precision", LINEAR)
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_of_float64(name, precision):
    case = make_case(name)
    check(results(kernel(case, precision, "this CPU"), case), name, precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", LINEAR)
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("instructions", [name for name in INSTRUCTIONS if name != "this CPU"])
def test_each_set_of_instructions_gives_the_same(instructions, name, precision):
    case = make_case(name)
    check(results(kernel(case, precision, instructions), case), name, precision)


def test_one_precision_is_one_arithmetic():
    """bf16 with and without its instructions: one layer, few sums, so nearly no operand lies near a tie."""
    case = make_case("odd widths")
    portable, native = (fused.Kernel(case[0], 11, "bf16", options) for options in (("-O2",), fused.NATIVE))
    found, wanted = (results(forward, case) for forward in (portable, native))
    coarse = results(kernel(case, "fp32", "this CPU"), case)
    for part in ("raw", "projected"):
        near, far = (float((x[part] - wanted[part]).norm()) for x in (found, coarse))
        assert near < 1e-2 * far, part


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_compiles_for_what_this_cpu_lacks(instructions, tmp_path):
    options, needed = INSTRUCTIONS[instructions]
    if needed <= CPU_FLAGS:
        pytest.skip("this CPU runs it")
    compiler = shutil.which("g++")
    if (
        compiler is None
        or "x86_64" not in subprocess.run([compiler, "-dumpmachine"], capture_output=True, text=True).stdout
    ):
        pytest.skip("no g++ for x86-64")
    sizes = fused.definitions(Config().model, 30, "bf16")
    subprocess.run([compiler, *fused.FLAGS, *options, *sizes, fused.SOURCE, "-o", tmp_path / "x.so"], check=True)


@pytest.mark.parametrize("precision", LINEAR)
def test_arm(precision, tmp_path):
    """NEON, under qemu."""
    if missing := [tool for tool in ARM if shutil.which(tool) is None]:
        pytest.skip(f"{' and '.join(missing)} not found: install g++-aarch64-linux-gnu and qemu-user")
    case = make_case("odd widths")
    shape, flat, particles, masked, rows, of_raw, of_projected = case
    jets, slots, count = particles.shape[1], particles.shape[2], rows.shape[1]
    program = tmp_path / "kernel"
    sizes = [*fused.definitions(shape, slots, precision), f"-I{fused.SOURCE.parent}"]
    source = str(Path(__file__).with_name("kernel_program.cpp"))
    subprocess.run([ARM[0], "-std=c++17", "-O2", "-w", "-static", *sizes, source, "-o", program], check=True)
    place = torch.full((jets * (slots + 1),), -1, dtype=torch.int32)
    place[rows[0]] = torch.arange(count, dtype=torch.int32)
    inputs = (flat, particles, masked, place, of_raw, of_projected)
    given = b"".join(x.numpy().tobytes() for x in inputs)
    done = subprocess.run([ARM[1], program, str(jets), str(count)], input=given, capture_output=True, check=True)
    sums = torch.from_numpy(np.frombuffer(done.stdout, np.float32).copy()).double()
    raw, projected, gradient = sums.split([count * shape.dim, count * shape.projection, flat.shape[1]])
    found = {"raw": raw.view(1, count, -1), "projected": projected.view(1, count, -1)}
    check(found | model.unpack(gradient[None], shape), "odd widths", precision)

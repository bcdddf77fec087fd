"""The C++ kernel computes what the plain model computes, forward and backward, for any shape."""

import functools
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import make_jets

from jbot.config import JBOT_B, Config, override
from jbot.trainer import model
from jbot.trainer.dropout import step_factors
from jbot.trainer.engines import fused
from jbot.trainer.engines.fused import Kernel, Unavailable
from jbot.trainer.masking import mask_views
from jbot.trainer.model import cls_rows, init_weights
from jbot.trainer.rng import Draws
from jbot.trainer.step import masked_rows

SHAPES = {
    "S": {},
    "B": JBOT_B,
    "odd widths": {"model.dim": 21, "model.heads": 3, "model.layers": 1, "model.projection": 5},
    "floored head": {"model.dim": 16, "model.heads": 5, "model.layers": 3, "model.projection": 2},
    "sees padding": {"model.padding": "reference"},
    "few particles": {"data.particles": 11},
}


def _case(changes, jets=19, trials=3, slots=None):
    """Weights away from their initial values, two views with masks, the rows a step wants, and gradients at them."""
    config = override(Config(), changes)
    slots = slots or config.data.particles
    generator = torch.Generator().manual_seed(7)
    flat = torch.stack([init_weights(config.model, seed) for seed in range(trials)])
    flat = flat + 0.1 * torch.randn(flat.shape, generator=generator)
    particles = (
        torch.from_numpy(make_jets(trials * jets, slots=slots))
        .view(trials, 1, jets, slots, 4)
        .expand(-1, 2, -1, -1, -1)
    )
    masked = mask_views(particles, Draws(torch.arange(trials), 3), config.mask)
    wanted, _ = masked_rows(masked)
    rows = torch.cat((cls_rows(trials, 2 * jets, slots, flat.device), wanted), dim=1)
    d_raw = torch.randn(trials, rows.shape[1], config.model.dim, generator=generator)
    d_projected = torch.randn(trials, rows.shape[1], config.model.projection, generator=generator)
    used = (rows >= 0)[..., None]  # the others fill up a trial that wants fewer
    return config.model, flat, particles.flatten(1, 2), masked.flatten(1, 2), rows, d_raw * used, d_projected * used


def _kernel(shape, slots, precision="fp32"):
    return fused.find(shape, slots, torch.device("cpu"), torch.float32, precision)


def _factors(case, rates=(0.3, 0.0, 0.7)):
    """Dropout factors, with another rate for each trial."""
    shape, flat, particles, _, rows, *_ = case
    trials, jets, slots, _ = particles.shape
    step, rates = torch.full((trials,), 5), torch.tensor(rates[:trials], dtype=torch.float64)
    wanted = jets * (slots + 1), rows.shape[1]
    return step_factors(torch.arange(trials), step, rates, shape, *wanted, flat.dtype)


def _both(forward, case, factors=None):
    shape, flat, particles, masked, rows, d_raw, d_projected = case
    flat = flat.clone().requires_grad_()
    raw, projected = forward(flat, particles, shape, masked, rows, factors)
    (gradient,) = torch.autograd.grad([raw, projected], flat, [d_raw, d_projected])
    used = (rows >= 0)[..., None]
    assert raw.isfinite().all()
    assert projected.isfinite().all()
    return raw.detach() * used, projected.detach() * used, gradient


def _in_threads(kernel, case, factors=None):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        return _both(kernel, case, factors)
    finally:
        torch.set_num_threads(threads)


def _close(found, wanted, tolerance=2e-5):
    scale = wanted.abs().max().item()
    assert (found - wanted).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize("name", [*SHAPES, "50 particles"])
def test_the_kernel_is_the_model(name):
    case = _case({}, slots=50) if name == "50 particles" else _case(SHAPES[name])
    kernel = _kernel(case[0], case[2].shape[2])
    for found, wanted in zip(_both(kernel, case), _both(model.forward, case), strict=True):
        _close(found, wanted)


@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_is_the_model_with_dropout(name):
    case = _case(SHAPES[name])
    factors, kernel = _factors(case), _kernel(case[0], case[2].shape[2])
    dropped = _both(model.forward, case, factors)
    for found, wanted, whole in zip(_both(kernel, case, factors), dropped, _both(model.forward, case), strict=True):
        _close(found, wanted, 5e-5)
        assert (wanted[0] - whole[0]).abs().max() > 0.1 * whole.abs().max()
        _close(found[1], whole[1])  # the trial without dropout


def test_dropout_feels_neither_threads_nor_the_pack():
    case = _case({}, jets=67)
    kernel, factors = _kernel(case[0], 30), _factors(case)
    together, split = _both(kernel, case, factors), _in_threads(kernel, case, factors)
    assert torch.equal(together[0], split[0])
    _close(split[2], together[2], 1e-5)
    shape, *rest = case
    alone = _both(kernel, (shape, *(x[2:3] for x in rest)), factors[2:3])
    assert all(torch.equal(a[2:3], b) for a, b in zip(together, alone, strict=True))


def test_all_tokens_can_have_dropout():
    shape, flat, particles, masked, *_ = _case({})
    tokens = particles.shape[1] * 31
    factors = step_factors(
        torch.arange(3), torch.zeros(3).long(), torch.full((3,), 0.4).double(), shape, tokens, tokens, flat.dtype
    )
    found = _kernel(shape, 30)(flat, particles, shape, masked, None, factors)
    wanted = model.forward(flat, particles, shape, masked, None, factors)
    valid = torch.nn.functional.pad(particles[..., 3] > 0.5, (1, 0), value=True).flatten(1)
    for a, b in zip(found, wanted, strict=True):
        _close(a[valid], b[valid])


@pytest.mark.parametrize("name", ["S", "sees padding"])
def test_gaps_between_particles(name):
    """The kernel is the model also where soft dropout has left gaps, and that as if the particles stood together."""
    shape, flat, particles, masked, rows, *gradients = _case(SHAPES[name])
    particles, masked = particles.clone(), masked.clone()
    particles[..., 1::3, :] = 0.0
    masked &= particles[..., 3] > 0.5
    case = (shape, flat, particles, masked, rows, *gradients)
    for found, wanted in zip(_both(_kernel(shape, 30), case), _both(model.forward, case), strict=True):
        _close(found, wanted)
    order = torch.argsort(particles[..., 3], dim=-1, descending=True, stable=True)
    together = particles.gather(2, order[..., None].expand(particles.shape))
    jets = cls_rows(3, particles.shape[1], 30, flat.device)
    ours, theirs = (
        model.forward(flat, x, shape, m, jets)[0] for x, m in ((particles, masked), (together, masked.gather(2, order)))
    )
    _close(ours, theirs)


@pytest.mark.parametrize("name", ["S", "odd widths", "few particles"])
def test_all_tokens_agree_at_valid_particles(name):
    shape, flat, particles, *_ = _case(SHAPES[name])
    found = _kernel(shape, particles.shape[2])(flat, particles, shape)
    wanted = model.forward(flat, particles, shape)
    valid = torch.nn.functional.pad(particles[..., 3] > 0.5, (1, 0), value=True).flatten(1)
    for a, b in zip(found, wanted, strict=True):
        _close(a[valid], b[valid])


def test_each_weight_has_its_gradient():
    """By name, each within its own scale: a wrong small one would hide behind a large one."""
    case = _case({})
    found = model.unpack(_both(_kernel(case[0], 30), case)[2], case[0])
    wanted = model.unpack(_both(model.forward, case)[2], case[0])
    for name in wanted:
        _close(found[name], wanted[name], 1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_change_nothing_but_rounding(precision):
    """In bf16 each thread packs the weights and, with AMX, sets up its tiles."""
    case = _case({}, jets=67)
    kernel = _kernel(case[0], 30, precision)
    together, split = _both(kernel, case), _in_threads(kernel, case)
    assert torch.equal(together[0], split[0])
    _close(split[2], together[2], 1e-5)


@pytest.mark.skipif("x86_64" not in platform.machine(), reason="AMX is an extension of x86")
def test_a_system_that_does_not_lend_amx_gets_the_kernel_without(monkeypatch):
    loaded, load = [], fused._load

    def refuse_first(path):
        loaded.append(path)
        library = load(path)
        if len(loaded) == 1:
            library.jbot_ready = lambda: 0
        return library

    case = _case({})
    lent = _both(_kernel(case[0], 30, "bf16"), case)
    monkeypatch.setattr(fused, "_load", refuse_first)
    without = _both(Kernel(case[0], 30, "bf16"), case)
    assert len(set(loaded)) == 2
    # One arithmetic, but for the order of sums: seldom a factor then rounds to its neighbour, 2^-8 apart.
    _close(without[0], lent[0], 2**-8)
    assert (without[0] - lent[0]).abs().median() < 1e-5
    _close(without[2], lent[2], 2**-6)


def test_a_trial_does_not_see_its_pack():
    case = _case({})
    kernel = _kernel(case[0], 30)
    together = _both(kernel, case)
    shape, *rest = case
    alone = _both(kernel, (shape, *(x[1:2] for x in rest)))
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))


def test_weights_that_are_not_numbers_are_not_hidden():
    shape, flat, particles, *_ = _case({})
    flat[1, 5] = float("nan")
    raw, _ = _kernel(shape, 30)(flat, particles, shape)
    assert raw[0].isfinite().all()
    assert raw[1].isnan().any()


@pytest.mark.parametrize("name", ["embed.bias", "block0.qkv.bias", "block1.qkv.weight", "head1.bias"])
def test_a_weight_that_is_no_number_is_hidden_nowhere(name):
    """The first number of a weight: of qkv, it reaches the scores alone, behind which a softmax might hide it."""
    shape, flat, particles, *_ = _case({}, trials=1)
    model.unpack(flat, shape)[name].flatten()[0] = float("nan")
    found, wanted = _kernel(shape, 30)(flat, particles, shape), model.forward(flat, particles, shape)
    valid = torch.nn.functional.pad(particles[..., 3] > 0.5, (1, 0), value=True).flatten(1)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a[valid].isfinite(), b[valid].isfinite())


def test_a_second_derivative_is_refused():
    shape, flat, particles, *_ = _case({}, trials=1)
    flat = flat.requires_grad_()
    (gradient,) = torch.autograd.grad(
        _kernel(shape, 30)(flat, particles, shape)[0].square().sum(), flat, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_cache_folder_that_cannot_be_used(monkeypatch, tmp_path):
    shape = Config().model
    (tmp_path / "file").touch()
    monkeypatch.setenv("JBOT_CACHE", str(tmp_path / "file"))
    with pytest.raises(Unavailable, match=r"the compiled kernel cannot be kept: .*file"):
        Kernel(shape, 30)
    library = tmp_path / "torn.so"
    library.write_bytes(b"torn")
    monkeypatch.setattr(fused, "_library", lambda *_: library)
    with pytest.raises(Unavailable, match=r"torn\.so cannot be loaded, remove it"):
        Kernel(shape, 30)


def test_saying_why_not(monkeypatch, tmp_path):
    shape = Config().model
    with pytest.raises(Unavailable, match="computes in float32"):
        fused.find(shape, 30, torch.device("cpu"), torch.float64)
    with pytest.raises(Unavailable, match="the device is meta"):
        fused.find(shape, 30, torch.device("meta"), torch.float32)
    with pytest.raises(Unavailable, match="at most 63 particles"):
        fused.find(shape, 64, torch.device("cpu"), torch.float32)
    monkeypatch.setenv("JBOT_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(Unavailable, match="does not run"):
        Kernel(shape, 30)
    broken = tmp_path / "cxx"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "x.cpp:1: error: no vectors" >&2; exit 1; }\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(Unavailable, match="no vectors"):
        Kernel(shape, 30)
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("what", ["folder", "library"])
def test_a_library_that_another_user_may_have_written_is_not_executed(monkeypatch, tmp_path, what):
    monkeypatch.setenv("JBOT_CACHE", str(tmp_path))
    fused._private_folder.cache_clear()
    made = []

    def compile_it(command):
        if "-o" in command:
            made.append(Path(command[-1]))
            made[-1].write_bytes(b"compiled")
        return "1"

    monkeypatch.setattr(fused, "_compile", compile_it)
    library = functools.partial(fused._library, Config().model, 30, "fp32", fused.NATIVE)
    kept = library()
    assert (kept.parent, kept.parent.stat().st_mode & 0o777) == (tmp_path / "kernels", 0o700)
    assert (library(), len(made)) == (kept, 1)
    (kept.parent if what == "folder" else kept).chmod(0o777)
    own = library()
    assert (own.name, len(made)) == (kept.name, 2)
    assert own.parent not in (kept.parent, *kept.parents)
    assert own.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_processes_that_compile_at_once(tmp_path):
    """Two workers meet an empty cache: each ends with the same library."""
    code = "from jbot.config import Config; from jbot.trainer.engines.fused import Kernel; Kernel(Config().model, 29)"
    environment = {"JBOT_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
    workers = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert len(list(tmp_path.rglob("*"))) == 2  # the folder and one library

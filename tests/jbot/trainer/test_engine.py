"""Which engine is found, that it computes the same, and that the reason is said where it is another one."""

import subprocess
import sys

import pytest
import torch
from helpers import make_jets

from jbot.config import Config, override
from jbot.trainer import model
from jbot.trainer.engines.select import find_engine

CPU = torch.device("cpu")
BF16 = override(Config(), {"train.precision": "bf16"})


@pytest.fixture
def inputs():
    flat = torch.stack([model.init_weights(Config().model, seed) for seed in range(2)])
    return flat, torch.from_numpy(make_jets(24)).view(2, 12, 30, 4), Config().model


def gradient(forward, inputs):
    flat = inputs[0].clone().requires_grad_()
    raw, projected = forward(flat, *inputs[1:])
    return torch.autograd.grad((raw.square().sum() + projected[..., 0].sum()), flat)[0]


@pytest.mark.parametrize("config", [Config(), BF16])
def test_a_cpu_has_the_kernel(config):
    engine = find_engine("auto", config, CPU)
    assert (engine.name, engine.why) == ("fused", None)


def test_what_cannot_be_is_said():
    double = find_engine("auto", Config(), CPU, torch.float64)
    assert (double.name, double.forward) == ("plain", model.forward)
    assert "float32" in double.why
    assert find_engine("plain", Config(), CPU).why is None
    with pytest.raises(ValueError, match="engine must be one of auto, plain, fused, compiled, got 'fast'"):
        find_engine("fast", Config(), CPU)


@pytest.mark.parametrize("engine", ["plain", "fused"])
def test_bf16_is_coarser_and_returns_float32(engine, inputs):
    fine, coarse = (find_engine(engine, config, CPU).forward(*inputs) for config in (Config(), BF16))
    for a, b in zip(fine, coarse, strict=True):
        assert b.dtype == torch.float32
        assert 1e-4 < float((a - b).abs().max()) < 0.1
    found = gradient(find_engine(engine, BF16, CPU).forward, inputs)
    wanted = gradient(model.forward, inputs)
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.99


def test_the_nearest_bf16():
    x = torch.cat((torch.randn(10_000), torch.tensor([0.0, -0.0, 3e38, 3.4e38, 1e-40, torch.inf, -torch.inf])))
    assert torch.equal(model.to_bf16(x), x.bfloat16())
    assert model.to_bf16(torch.tensor([torch.nan, 1.0])).isnan().tolist() == [True, False]


def test_bf16_rounds_the_factors_of_products_alone():
    """By hand: 1 + 2^-9 is half way between two bf16 and goes to the even one, 1; sums and bias keep their digits."""
    tie = 1 + 2**-9
    x, weight = torch.tensor([[[tie, 3.0]]], requires_grad=True), torch.tensor([[[tie], [2**-12]]], requires_grad=True)
    bias = torch.tensor([[tie]], requires_grad=True)
    y = model.bf16_linear(x, weight, bias)
    assert y.item() == 1 + 3 * 2**-12 + tie
    y.backward(torch.tensor([[[tie]]]))
    assert x.grad.tolist() == [[[1.0, 2**-12]]]
    assert weight.grad.tolist() == [[[1.0], [3.0]]]
    assert bias.grad.tolist() == [[tie]]


COMPILED = """
import torch
from jbot.trainer import model
from jbot.config import Config, override
from jbot.trainer.engines.select import find_engine

for precision, tolerance in (("fp32", 1e-5), ("bf16", 1e-2)):
    config = override(Config(), {"model.dim": 8, "model.layers": 1, "train.precision": precision})
    engine, plain = (find_engine(name, config, torch.device("cpu")) for name in ("compiled", "plain"))
    flat, jets = model.init_weights(config.model, 0)[None].requires_grad_(), torch.rand(1, 12, 30, 4)
    factors = (torch.rand(1, 2 * 8 * 12 * 31) > 0.3) / 0.7
    for dropped in ((), (None, None, factors)):
        arguments = (flat, jets, config.model, *dropped)
        both = engine.forward(*arguments), plain.forward(*arguments)
        for found, wanted in zip(*both):
            torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)
        found, wanted = (torch.autograd.grad(raw.square().sum() + y[..., 0].sum(), flat)[0] for raw, y in both)
        assert (found - wanted).norm() < tolerance * wanted.norm()
    assert (engine.name, engine.why) == ("compiled", None), engine
"""


@pytest.mark.slow
def test_compiled_is_the_model():
    """In a process of its own: here, shapes are checked by code that cannot be compiled."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


def test_a_compiler_that_fails_leaves_the_plain_engine(inputs, monkeypatch):
    def broken(function):
        def call(*arguments, **named):
            raise RuntimeError("no working compiler\nand a long trace")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    engine = find_engine("compiled", Config(), CPU)
    with pytest.warns(UserWarning, match="torch.compile failed: no working compiler; plain torch is used"):
        found = engine.forward(*inputs)
    assert torch.equal(found[0], model.forward(*inputs)[0])
    assert (engine.name, engine.why) == ("plain", "torch.compile failed: no working compiler")

"""The jBOT encoder and projection head (arXiv:2601.11719), as functions of one flat weight buffer per trial.

Axes: (trial, jet, token, dim); token 0 is [CLS], the others are particles. Every weight has a leading trial axis.
All weights of a trial lie in one row, so the optimiser and the teacher's average are single operations on (trial, n).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from jbot.config import ModelConfig
from jbot.trainer.rng import numpy_generator

FEATURES = 4
FFN_WIDTH = 4  # FFN: d -> 4d -> d
HEAD_WIDTH = 8  # projection head: d -> 8p -> p
NORM_EPS = 1e-6

Flat = Float[Tensor, "trial weight"]
Weights = dict[str, Tensor]
Drop = Callable[[str, Tensor], Tensor]
"""Dropout of the outputs of the layer of this name."""
Linear = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x @ weight + bias: `linear`, or `bf16_linear`."""


def dense(name: str, fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a dense layer."""
    return {f"{name}.weight": (fan_in, fan_out), f"{name}.bias": (fan_out,)}


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of one trial, in the order of the flat buffer."""
    d, inner, hidden = config.dim, config.heads * config.head_dim, HEAD_WIDTH * config.projection
    shapes = dense("embed", FEATURES, d) | {"cls_token": (d,), "mask_token": (d,)}
    for layer in range(config.layers):
        block = f"block{layer}"
        shapes |= dense(f"{block}.qkv", d, 3 * inner) | dense(f"{block}.out", inner, d)
        shapes |= {f"{block}.norm1.weight": (d,), f"{block}.norm1.bias": (d,)}
        shapes |= dense(f"{block}.ffn1", d, FFN_WIDTH * d) | dense(f"{block}.ffn2", FFN_WIDTH * d, d)
        shapes |= {f"{block}.norm2.weight": (d,), f"{block}.norm2.bias": (d,)}
    return shapes | dense("head1", d, hidden) | dense("head2", hidden, config.projection)


def weight_count(config: ModelConfig) -> int:
    """Weights of one trial."""
    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def unpack(flat: Flat, config: ModelConfig) -> Weights:
    """Views of the flat buffer, by name, each (trial, *shape)."""
    return split_weights(flat, weight_shapes(config))


def split_weights(flat: Flat, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """Views of the columns of `flat` by the names of `shapes`, which they fill in order; each (trial, *shape)."""
    parts = flat.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: part.view(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def weight_slice(name: str, config: ModelConfig) -> slice:
    """Columns of a weight in the flat buffer."""
    shapes = weight_shapes(config)
    begin = sum(math.prod(shapes[before]) for before in list(shapes)[: list(shapes).index(name)])
    return slice(begin, begin + math.prod(shapes[name]))


def named_weights(flat: Flat, config: ModelConfig) -> dict[str, np.ndarray]:
    """The first trial's weights by name, as arrays, without the trial axis."""
    return first_trial(unpack(flat, config))


def first_trial(weights: Weights) -> dict[str, np.ndarray]:
    """The first trial's weights as arrays, without the trial axis."""
    return {name: value[0].detach().cpu().numpy() for name, value in weights.items()}


def pack(weights: dict[str, np.ndarray], config: ModelConfig) -> Float[Tensor, "weight"]:
    """One trial's named weights as a row of the flat buffer."""
    return join_weights(weights, weight_shapes(config))


def join_weights(weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> Float[Tensor, "weight"]:
    """Named weights as one row in the order of `shapes`, which are checked."""
    rows = []
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ValueError(f"weight {name} must have shape {shape}, got {weights[name].shape}")
        rows.append(torch.from_numpy(np.ascontiguousarray(weights[name], dtype=np.float32)).reshape(-1))
    return torch.cat(rows)


def init_weights(config: ModelConfig, seed: int) -> Float[Tensor, "weight"]:
    """Initial weights of one trial, as Keras draws them; each weight from its own stream, so arms share what they can.

    Glorot uniform, biases and [CLS] zero, mask token Normal(0, 0.02). Keras takes the fans of its three-dimensional
    attention kernels as those of a convolution: (d, heads, k) has limit sqrt(6 / (d (heads + k))) and
    (heads, k, d) has sqrt(6 / (heads (k + d))).
    """
    d, heads, k = config.dim, config.heads, config.head_dim
    attention_fans = {"qkv.weight": d * (heads + k), "out.weight": heads * (k + d)}  # fan_in + fan_out
    weights = {}
    for name, shape in weight_shapes(config).items():
        generator = numpy_generator(seed, f"init/{name}")
        if name.endswith(("norm1.weight", "norm2.weight")):
            value = np.ones(shape)
        elif name == "mask_token":
            value = generator.normal(0.0, 0.02, shape)
        elif name.endswith("weight"):
            limit = math.sqrt(6.0 / attention_fans.get(name.partition(".")[2], sum(shape)))
            value = generator.uniform(-limit, limit, shape)
        else:
            value = np.zeros(shape)
        weights[name] = value.astype(np.float32)
    return pack(weights, config)


def linear(x: Float[Tensor, "trial row fan_in"], weight: Tensor, bias: Tensor) -> Float[Tensor, "trial row fan_out"]:
    """x @ weight + bias, each trial with its own."""
    return torch.baddbmm(bias[:, None, :], x, weight)


def bf16_linear(
    x: Float[Tensor, "trial row fan_in"], weight: Tensor, bias: Tensor
) -> Float[Tensor, "trial row fan_out"]:
    """`linear` with the products of `train.precision=bf16`, forward and backward.

    Both factors of each product are rounded to bf16 (to the nearest, ties to even): x and weight, in the backward pass
    the gradient of the result as well. Products of two bf16 are exact in float32, and are added up there. So one
    precision is one arithmetic on all machines, but for the order of sums.
    """
    return _Bf16Linear.apply(x, weight, bias)


def to_bf16(x: Tensor) -> Tensor:
    """The nearest bf16, of two the even one. By its bits: torch.compile leaves out conversions there and back."""
    bits = x.float().view(torch.int32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF).view(torch.float32)
    return torch.where(x.isnan(), x.float(), nearest).bfloat16()


class _Bf16Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x16, weight16 = to_bf16(x), to_bf16(weight)
        ctx.save_for_backward(x16, weight16)
        return _wide_product(x16, weight16, x.dtype) + bias[:, None, :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x16, weight16 = ctx.saved_tensors
        gradient16, dtype = to_bf16(gradient), gradient.dtype
        of_x = _wide_product(gradient16, weight16.transpose(1, 2), dtype)
        return of_x, _wide_product(x16.transpose(1, 2), gradient16, dtype), gradient.sum(1)


def _wide_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b of bf16, summed up and returned in `dtype`; on a GPU by its bf16 units."""
    if a.is_cuda and dtype == torch.float32:
        return torch.bmm(a, b, out_dtype=dtype)
    return torch.bmm(a.to(dtype), b.to(dtype))


def encode(
    weights: Weights,
    particles: Float[Tensor, "trial jet particle 4"],
    config: ModelConfig,
    masked: Bool[Tensor, "trial jet particle"] | None = None,
    rows: Int64[Tensor, "trial row"] | None = None,
    attentions: list[Tensor] | None = None,
    drop: Drop | None = None,
    linear: Linear = linear,
) -> Float[Tensor, "trial row dim"]:
    """Raw encoder outputs, for all tokens or only for those that are used.

    Parameters
    ----------
    particles : float tensor (trial, jet, particle, 4)
        eta_rel, phi_rel, pt_rel, valid.
    masked : bool tensor (trial, jet, particle), optional
        Particles whose embedding is replaced by the mask token.
    rows : int64 tensor (trial, row), optional
        Tokens wanted, each at most once, numbered jet * (particle + 1) + token with [CLS] as token 0; all when None.
        The last block works on these alone: the same numbers for less work. Outputs at padding, and at rows of
        number -1, which fill up a trial that wants fewer than its pack, mean nothing but are finite.
    attentions : list, optional
        Receives each block's attention, (trial, jet, head, query, key).
    drop : callable, optional
        Dropout behind each block's two updates.
    linear : callable
        Of every layer but the embedding, whose inputs are coordinates: rounded, they would be other jets.
    """
    x, hidden = tokens(weights, particles, config, masked)
    jets, last = particles.shape[1], config.layers - 1
    for layer in range(config.layers):
        wanted = rows if layer == last else None
        x = block(weights, f"block{layer}", x, jets, hidden, config, wanted, attentions, drop, linear)
    return x


def encode_cls(
    weights: Weights, particles: Float[Tensor, "trial jet particle 4"], config: ModelConfig, drop: Drop | None = None
) -> Float[Tensor, "trial jet dim"]:
    """Raw [CLS] outputs, as those of :func:`encode` but for rounding; with dropout, if wanted, as in fine-tuning.

    The last block attends with [CLS] alone, which takes no keys and values of the other tokens: the query is taken
    back through the key kernel, and the values are made of the attention's mean token.
    """
    x, hidden = tokens(weights, particles, config)
    jets, last = particles.shape[1], config.layers - 1
    for layer in range(last):
        x = block(weights, f"block{layer}", x, jets, hidden, config, None, None, drop)
    x = x.unflatten(1, (jets, -1))
    mixed = cls_attention(weights, f"block{last}", x, hidden, config)
    return after_attention(weights, f"block{last}", x[:, :, 0], mixed, drop)


def tokens(
    weights: Weights,
    particles: Float[Tensor, "trial jet particle 4"],
    config: ModelConfig,
    masked: Bool[Tensor, "trial jet particle"] | None = None,
) -> tuple[Float[Tensor, "trial token dim"], Tensor | None]:
    """Input of the first block, [CLS] before each jet's particles; and what hides padding, see :func:`hidden_keys`."""
    trials, jets, slots, _ = particles.shape
    x = linear(particles.reshape(trials, jets * slots, FEATURES), weights["embed.weight"], weights["embed.bias"])
    x = x.view(trials, jets, slots, config.dim)
    if masked is not None:
        x = torch.where(masked[..., None], weights["mask_token"][:, None, None, :], x)
    cls = weights["cls_token"][:, None, None, :].expand(-1, jets, -1, -1)
    hidden = None if config.padding == "reference" else hidden_keys(particles[..., 3] < 0.5)
    return torch.cat((cls, x), dim=2).flatten(1, 2), hidden


def block(
    weights: Weights,
    name: str,
    x: Float[Tensor, "trial token dim"],
    jets: int,
    hidden: Tensor | None,
    config: ModelConfig,
    rows: Tensor | None,
    attentions: list[Tensor] | None,
    drop: Drop | None = None,
    linear: Linear = linear,
) -> Float[Tensor, "trial row dim"]:
    """One post-norm transformer block; all of it behind the attention only for `rows`."""
    heads, k = config.heads, config.head_dim
    qkv = linear(x, weights[f"{name}.qkv.weight"], weights[f"{name}.qkv.bias"])
    # (trial, jet * token, 3 * head * k) -> 3 of (trial, jet, head, token, k)
    query, key, value = qkv.view(len(x), jets, -1, 3, heads, k).permute(3, 0, 1, 4, 2, 5)
    scores = (query * k**-0.5) @ key.transpose(-1, -2)
    attention = torch.softmax(scores if hidden is None else scores + hidden, dim=-1)
    if attentions is not None:
        attentions.append(attention)
    mixed = (attention @ value).transpose(2, 3).reshape(len(x), x.shape[1], heads * k)
    if rows is not None:
        x, mixed = take_rows(x, rows), take_rows(mixed, rows)
    return after_attention(weights, name, x, mixed, drop, linear)


def cls_attention(
    weights: Weights,
    name: str,
    x: Float[Tensor, "trial jet token dim"],
    hidden: Tensor | None,
    config: ModelConfig,
) -> Float[Tensor, "trial jet inner"]:
    """The mean of the values by the attention of [CLS], heads side by side, before the output kernel.

    score[head, token] = (query_head K_head^T) . x[token], up to a constant; mixed_head = (attention_head x) V_head.
    """
    heads, k = config.heads, config.head_dim
    kernels, biases = (weights[f"{name}.qkv.{kind}"].unflatten(-1, (3, heads, k)) for kind in ("weight", "bias"))
    query_kernel, key_kernel, value_kernel = kernels.permute(2, 0, 3, 1, 4)  # each (trial, head, dim, k)
    query = x[:, None, :, 0] @ query_kernel + biases[:, 0, :, None]  # (trial, head, jet, k)
    back = (query * k**-0.5) @ key_kernel.transpose(-1, -2)  # (trial, head, jet, dim)
    scores = back.transpose(1, 2) @ x.transpose(-1, -2)  # (trial, jet, head, token)
    attention = torch.softmax(scores if hidden is None else scores + hidden[:, :, 0], dim=-1)
    mean = (attention @ x).transpose(1, 2)  # (trial, head, jet, dim)
    return (mean @ value_kernel + biases[:, 2, :, None]).transpose(1, 2).flatten(2)


def after_attention(
    weights: Weights,
    name: str,
    x: Float[Tensor, "trial row dim"],
    mixed: Float[Tensor, "trial row inner"],
    drop: Drop | None = None,
    linear: Linear = linear,
) -> Float[Tensor, "trial row dim"]:
    """The rest of a block: output kernel, feed-forward network, both with residual and norm."""
    update = linear(mixed, weights[f"{name}.out.weight"], weights[f"{name}.out.bias"])
    x = layer_norm(x + (drop(f"{name}.out", update) if drop else update), weights, f"{name}.norm1")
    inner = F.gelu(linear(x, weights[f"{name}.ffn1.weight"], weights[f"{name}.ffn1.bias"]))
    update = linear(inner, weights[f"{name}.ffn2.weight"], weights[f"{name}.ffn2.bias"])
    return layer_norm(x + (drop(f"{name}.ffn2", update) if drop else update), weights, f"{name}.norm2")


def cls_rows(trials: int, jets: int, slots: int, device: torch.device) -> Int64[Tensor, "trial jet"]:
    """Row numbers of the [CLS] tokens."""
    return (torch.arange(jets, device=device) * (slots + 1)).expand(trials, -1)


def take_rows(x: Float[Tensor, "trial token width"], rows: Int64[Tensor, "trial row"]) -> Tensor:
    """Rows of each trial's tokens; for -1, some row."""
    rows = rows.clamp(min=0)
    if len(x) == 1:  # a pack of one, the ordinary case: no index as large as the result
        return x[0].index_select(0, rows[0])[None]
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def project(
    weights: Weights, x: Float[Tensor, "trial token dim"], linear: Linear = linear
) -> Float[Tensor, "trial token projection"]:
    """The projection head, shared by [CLS] and particles: points on the unit sphere."""
    hidden = F.gelu(linear(x, weights["head1.weight"], weights["head1.bias"]))
    return F.normalize(linear(hidden, weights["head2.weight"], weights["head2.bias"]), dim=-1, eps=1e-6)


def forward(
    flat: Flat,
    particles: Float[Tensor, "trial jet particle 4"],
    config: ModelConfig,
    masked: Bool[Tensor, "trial jet particle"] | None = None,
    rows: Int64[Tensor, "trial row"] | None = None,
    factors: Float[Tensor, "trial value"] | None = None,
    linear: Linear = linear,
) -> tuple[Float[Tensor, "trial row dim"], Float[Tensor, "trial row projection"]]:
    """Raw and projected outputs, for all tokens or for those of `rows`: see :func:`encode`.

    What a training step needs of the model; jbot.trainer.engines.fused has the same function for CPUs in C++.
    `factors` are those of dropout, see :func:`by_layer`.
    """
    weights = unpack(flat, config)
    drop = None if factors is None else by_layer(factors, config, particles.shape[1] * (particles.shape[2] + 1))
    raw = encode(weights, particles, config, masked, rows, drop=drop, linear=linear)
    return raw, project(weights, raw, linear)


def by_layer(factors: Float[Tensor, "trial value"], config: ModelConfig, tokens: int) -> Drop:
    """Dropout that multiplies with given factors.

    They lie block by block as (row, update, dim), the update that of the attention, then of the feed-forward network;
    the rows are all `tokens`, in the last block the wanted ones.
    """
    sizes = [2 * config.dim * tokens] * (config.layers - 1)
    named = {}
    for layer, part in enumerate(factors.split([*sizes, factors.shape[1] - sum(sizes)], dim=1)):
        named[f"block{layer}.out"], named[f"block{layer}.ffn2"] = part.view(len(part), -1, 2, config.dim).unbind(2)
    return lambda name, values: values * named[name]


def layer_norm(x: Float[Tensor, "trial row dim"], weights: Weights, name: str) -> Float[Tensor, "trial row dim"]:
    """Layer normalisation, each trial with its own gain and bias."""
    gain, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    if len(gain) == 1:  # a pack of one, the ordinary case, has the fused kernel
        return F.layer_norm(x, x.shape[-1:], gain[0], bias[0], NORM_EPS)
    return torch.addcmul(bias[:, None], F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), gain[:, None])


def hidden_keys(padding: Bool[Tensor, "trial jet particle"]) -> Float[Tensor, "trial jet 1 1 token"]:
    """Added to the attention scores: -inf for padding, 0 for [CLS] and valid particles."""
    hidden = torch.zeros(padding.shape, device=padding.device).masked_fill(padding, -math.inf)
    return F.pad(hidden, (1, 0))[:, :, None, None, :]


def relative_entropy(
    attention: Float[Tensor, "trial jet head query key"], hidden: Float[Tensor, "trial jet 1 1 key"] | None
) -> Float[Tensor, "trial head"]:
    """Entropy of the [CLS] attention as a fraction of uniform attention's, averaged over jets."""
    visible = torch.ones_like(attention[:, :, :1, :1]) if hidden is None else torch.isfinite(hidden)
    uniform = torch.log(visible.sum(-1).to(attention))[:, :, 0]
    return (torch.special.entr(attention[..., 0, :]).sum(-1) / uniform).mean(1)

"""Fine-tuning: its step by hand, its settings alive, and no run that feels another or a crash."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import make_jets
from make_parity import CLASSES, DATA, MODELS, formula_weights, keras_backbone, keras_head, write_hdf5
from safetensors.numpy import load_file

from jbot.config import Config, FinetuneConfig, ModelConfig, override
from jbot.data import DataError
from jbot.encoder.keras_weights import frozen_student, load_backbone, load_head
from jbot.trainer.classifier import (
    classifier_logits,
    classifier_shapes,
    init_classifier,
    pack_classifier,
    unpack_classifier,
)
from jbot.trainer.engines.select import find_engine
from jbot.trainer.finetune import (
    FinetuneProgress,
    FinetuneState,
    LabeledRows,
    Run,
    adam,
    class_logits,
    decay_factors,
    dropout_sizes,
    finetune,
    finetune_dropout,
    finetune_step,
    finish_epoch,
    has_ended,
    init_finetune,
    stack_hyper,
)
from jbot.trainer.model import Drop, cls_rows, encode, encode_cls, init_weights, unpack, weight_count, weight_shapes
from jbot.trainer.rng import Draws
from jbot.trainer.state import epoch_order, furthest_behind, join_states

CPU = torch.device("cpu")
TUNED = {"finetune.epochs": 3, "finetune.batch": 16, "finetune.lr": 1e-2}
JETS, VAL = 44, 20


@pytest.fixture
def tuned(tiny: Config) -> Config:
    """A tiny fine-tuning."""
    return override(tiny, TUNED)


@pytest.fixture(scope="module")
def particles() -> torch.Tensor:
    """Jets of two classes, of unlike width: first those to train on, then those to judge on; float64."""
    jets = make_jets(JETS + VAL, 5)
    jets[1::2, :, :2] *= 4
    return torch.from_numpy(jets).double()


def make_run(config: Config, name: str = "finetune_100", jets: int = JETS, layer_decay: float | None = None) -> Run:
    rows, decay = torch.arange(JETS + VAL), config.finetune.layer_decay if layer_decay is None else layer_decay
    return Run(
        name=name, config=config, encoder=init_weights(config.model, config.seed), layer_decay=decay, classes=2,
        train=LabeledRows(rows=rows[:jets], targets=rows[:jets] % 2),
        val=LabeledRows(rows=rows[JETS:], targets=rows[JETS:] % 2),
    )  # fmt: skip


def train(runs: list[Run], particles: torch.Tensor, state: FinetuneState | None = None, after=lambda runs: None):
    state = state or init_finetune(runs, CPU, particles.dtype)
    return finetune(runs, particles, state, after)


def step_of(run: Run, particles: torch.Tensor, count: int = 1) -> FinetuneState:
    state, hyper = init_finetune([run], CPU, particles.dtype), stack_hyper([run], CPU, particles.dtype)
    for _ in range(count):
        finetune_step(state, particles[None, :12], run.train.targets[None, :12], hyper)
    return state


def test_adam_by_hand(tuned):
    state = init_finetune([make_run(tuned)], CPU, torch.float64)
    before, gradient = state.weights.clone(), torch.full_like(state.weights, 0.5)
    rates = torch.full_like(before, 0.1)
    rates[:, 0] = 0.05
    adam(state, gradient, rates)
    # m = 0.1 g, v = 0.001 g^2, step size lr sqrt(0.001) / 0.1: the step is lr, whatever the size of the gradient.
    update = math.sqrt(0.001) / 0.1 * 0.05 / (math.sqrt(0.001) * 0.5 + 1e-7)
    torch.testing.assert_close(state.weights, before - rates * update, rtol=0, atol=1e-14)
    adam(state, -gradient, rates)
    correction = math.sqrt(1 - 0.999**2) / (1 - 0.9**2)
    moment1, moment2 = 0.9 * 0.05 - 0.1 * 0.5, (0.999 * 0.001 + 0.001) * 0.25
    update += correction * moment1 / (math.sqrt(moment2) + 1e-7)
    torch.testing.assert_close(state.weights, before - rates * update, rtol=0, atol=1e-14)
    assert state.step.tolist() == [2]


def test_the_decay_is_one_of_step_sizes(tuned):
    """The released code multiplies gradients, which Adam's first step undoes: there every weight moves by lr."""
    run = dataclasses.replace(make_run(override(tuned, {"finetune.dropout": 0.0})), layer_decay=0.5)
    start = init_finetune([run], CPU, torch.float64).weights
    moved = (step_of(run, torch.from_numpy(make_jets(12, 1)).double()).weights - start).abs()
    encoder, head = unpack_classifier(moved, run.config.model, 2)
    lr = run.config.finetune.lr
    for name, share in {
        "embed.weight": 0.25,
        "cls_token": 0.25,
        "block0.ffn1.weight": 0.5,
        "block1.ffn1.weight": 1,
    }.items():
        assert float(encoder[name].max()) == pytest.approx(share * lr, rel=1e-3), name
    assert float(head["hidden1.weight"].max()) == pytest.approx(lr, rel=1e-3)
    for name in ("mask_token", "head1.weight", "head2.bias"):  # no part of a classifier
        assert float(encoder[name].max()) == 0


def test_decay_factors_by_group():
    model = ModelConfig(dim=8, heads=2, layers=3, projection=4)
    factors = decay_factors(model, 5, 0.5)
    assert len(factors) == weight_count(model) + sum(math.prod(s) for s in classifier_shapes(8, 5).values())
    encoder, head = unpack_classifier(factors[None], model, 5)
    wanted = {"embed": 0.125, "cls_token": 0.125, "block0": 0.25, "block1": 0.5, "block2": 1.0}
    for name, factor in encoder.items():
        assert factor.unique().tolist() == [wanted.get(name.split(".")[0], 1.0)], name
    assert all(factor.unique().tolist() == [1.0] for factor in head.values())
    assert decay_factors(model, 5, 1.0).unique().tolist() == [1.0]


def test_the_head_starts_as_keras_has_it():
    _, head = unpack_classifier(
        F.pad(init_classifier(32, 5, 0), (weight_count(ModelConfig()), 0))[None], ModelConfig(), 5
    )
    assert {name: tuple(value.shape[1:]) for name, value in head.items()} == classifier_shapes(32, 5)
    for name, (fan_in, fan_out) in {"hidden1": (32, 64), "hidden2": (64, 32), "output": (32, 5)}.items():
        limit = math.sqrt(6 / (fan_in + fan_out))
        assert 0.9 * limit < float(head[f"{name}.weight"].abs().max()) < limit
        assert float(head[f"{name}.bias"].abs().max()) == 0
    assert not torch.equal(init_classifier(32, 5, 0), init_classifier(32, 5, 1))
    # Each weight from its own stream: another number of classes leaves the hidden layers as they are.
    assert torch.equal(init_classifier(32, 5, 0)[:4000], init_classifier(32, 2, 0)[:4000])


def test_the_cls_encoder_is_the_encoder(tiny, jets):
    """The same numbers and gradients for less work, with padding hidden and seen, and for one block."""
    for changes in ({}, {"model.padding": "reference"}, {"model.layers": 1}, {"model.dim": 9}):
        model = override(tiny, changes).model
        flat = torch.stack([init_weights(model, seed) for seed in (0, 1)]).double().requires_grad_()
        flat.data += 0.1 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        both = torch.cat((jets, jets.flip(1))).double()
        wanted = encode(unpack(flat, model), both, model, rows=cls_rows(2, 12, 30, CPU))
        found = encode_cls(unpack(flat, model), both, model)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        gradients = [torch.autograd.grad(x.square().sum(), flat)[0] for x in (wanted, found)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


def dropout(rates: list[float], tuned: Config, sizes: dict[str, int], step: int = 0) -> Drop:
    runs = [make_run(override(tuned, {"finetune.dropout": rate, "seed": 3})) for rate in rates]
    return finetune_dropout(Draws(torch.tensor([3] * len(rates)), step), stack_hyper(runs, CPU), sizes)


def test_dropout_keeps_its_share_and_the_mean(tuned):
    sizes = {"a": 40_000, "b": 20_003}
    drop = dropout([0.2, 0.5, 0.0], tuned, sizes)
    for name, rows in (("a", 400), ("b", 83)):
        ones = torch.ones(3, rows, sizes[name] // rows)
        some = drop(name, ones)
        for run, rate in enumerate((0.2, 0.5, 0.0)):
            values = some[run].unique().tolist()
            assert values == pytest.approx([0.0, 1 / (1 - rate)] if rate else [1.0], rel=1e-4)
            share = float((some[run] > 0).double().mean())
            assert share == pytest.approx(1 - rate, abs=5 * math.sqrt(rate * (1 - rate) / sizes[name]) + 1e-5)
    # Neither the size of a later layer nor the pack moves a draw; another step does.
    alone, one = dropout([0.5], tuned, {"a": 40_000}), torch.ones(1, 40_000)
    assert torch.equal(alone("a", one), drop("a", one.expand(3, -1))[1:2])
    assert not torch.equal(dropout([0.5], tuned, {"a": 40_000}, 1)("a", one), alone("a", one))


def test_dropout_is_drawn_for_each_value_alone(tuned):
    """No two of the four values of a hash go together, nor those of neighbouring hashes."""
    kept = (dropout([0.5], tuned, {"a": 200_000})("a", torch.ones(1, 200_000))[0] > 0).double() - 0.5
    for lag in (1, 2, 3, 4, 32):
        assert abs(float((kept[lag:] * kept[:-lag]).mean())) < 5 * 0.25 / math.sqrt(200_000)


def test_dropout_acts_where_the_paper_has_it(tuned, jets):
    """On both updates of each block and behind both hidden layers: with one of them zeroed, the rest by hand."""
    model = tuned.model
    weights = unpack(init_weights(model, 0)[None].double(), model)
    flat = init_classifier(model.dim, 2, 0)[None].double()
    _, head = unpack_classifier(F.pad(flat, (weight_count(model), 0)), model, 2)
    places, sizes = [], dropout_sizes(model, 12, 30)

    def seen(name, values):
        places.append(name)
        assert values.numel() == sizes[name]
        return values

    logits = classifier_logits(head, encode_cls(weights, jets.double(), model, seen), seen)
    torch.testing.assert_close(logits, classifier_logits(head, encode_cls(weights, jets.double(), model)))
    assert places == list(sizes) == ["block0.out", "block0.ffn2", "block1.out", "block1.ffn2", "hidden1", "hidden2"]
    # Without any update a block only normalises, twice; here with the gains 1 and biases 0 of the start.
    bare = encode_cls(weights, jets.double(), model, lambda name, values: values * 0)
    assert float(bare.abs().max()) == 0  # [CLS] starts at zero
    only_bias = classifier_logits(head, bare + 1, lambda name, values: values * (name != "hidden2"))
    assert torch.equal(only_bias, head["output.bias"][:, None].expand_as(only_bias))


def test_the_gradient_with_dropout(tiny):
    """Against finite differences, in float64."""
    model = override(tiny, {"model.dim": 4, "data.particles": 3, "model.projection": 2}).model
    jets = torch.from_numpy(make_jets(2, 1, slots=3)).double()[None]
    run = make_run(override(tiny, {"finetune.dropout": 0.3}))
    hyper = dataclasses.replace(stack_hyper([run], CPU, torch.float64), model=model)
    drop = finetune_dropout(Draws(hyper.seeds, 0), hyper, dropout_sizes(model, 2, 3))
    start = torch.cat((init_weights(model, 0), init_classifier(4, 2, 0)))[None].double()

    def loss(flat):
        encoder, head = unpack_classifier(flat, model, 2)
        logits = classifier_logits(head, encode_cls(encoder, jets, model, drop), drop)
        return F.cross_entropy(logits[0], torch.tensor([0, 1]))

    assert torch.autograd.gradcheck(loss, start.requires_grad_(), atol=1e-6)


def test_a_step_is_that_of_the_plain_model(tuned, particles):
    """Without dropout: torch's own cross-entropy and Adam, whose eps stands inside the bias correction."""
    run = make_run(override(tuned, {"finetune.dropout": 0.0, "finetune.lr": 1e-3}), layer_decay=1.0)
    flat = init_finetune([run], CPU, torch.float64).weights.clone().requires_grad_()
    optimizer = torch.optim.Adam([flat], lr=1e-3)
    for step in range(3):
        optimizer.param_groups[0]["eps"] = 1e-7 / math.sqrt(1 - 0.999 ** (step + 1))
        encoder, head = unpack_classifier(flat, run.config.model, 2)
        cls = encode(encoder, particles[None, :12], run.config.model, rows=cls_rows(1, 12, 30, CPU))
        loss = F.cross_entropy(classifier_logits(head, cls)[0], run.train.targets[:12])
        optimizer.zero_grad()
        loss.backward()
        # What has no gradient, or one that is zero but for rounding, must not move.
        flat.grad[flat.grad.abs() < 1e-12] = 0
        optimizer.step()
    moved = step_of(run, particles, 3).weights
    torch.testing.assert_close(moved, flat.detach(), rtol=0, atol=1e-11)


def test_the_best_validation_accuracy_is_kept(tuned):
    run = make_run(override(tuned, {"finetune.tolerance": 0.02, "finetune.patience": 2, "finetune.epochs": 9}))
    state = init_finetune([run], CPU)
    (progress,) = state.progress
    history = []
    for epoch, accuracy in enumerate((0.50, 0.51, 0.53, 0.55, 0.54)):
        state.weights.fill_(epoch)
        means = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": accuracy}
        finish_epoch(run, state, means, seconds=2.0)
        history.append((float(state.best[0, 0]), progress.since_best, progress.best_accuracy))
    # 0.51 is not better than 0.50 by more than the tolerance, 0.53 is; 0.55 is not, up to rounding.
    assert history == [(0, 0, 0.5), (0, 1, 0.5), (2, 0, 0.53), (2, 1, 0.53), (2, 2, 0.53)]
    assert (progress.epoch, progress.seconds, progress.reason) == (5, 10.0, None)
    assert progress.curves[1] == {
        "epoch": 2, "device_seconds": 4.0,
        "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.51,
    }  # fmt: skip

    def left(*progress: FinetuneProgress) -> list[int]:
        return furthest_behind(progress, [has_ended(run, one) for one in progress])

    assert left(progress) == []  # out of patience
    assert left(FinetuneProgress(epoch=2), FinetuneProgress(epoch=1)) == [1]
    assert left(FinetuneProgress(epoch=9), FinetuneProgress(reason="diverged")) == []


def test_what_is_kept_is_what_was_judged(tuned, particles):
    """The best weights give the best accuracy of the curves, without dropout."""
    run = make_run(override(tuned, {"finetune.epochs": 8}))
    state = train([run], particles)
    accuracies = [row["val_accuracy"] for row in state.progress[0].curves]
    chance = class_logits(state.best, particles, run.val.rows, run.config, 2).softmax(1)
    assert float((chance.argmax(1) == run.val.targets).double().mean()) == max(accuracies)
    torch.testing.assert_close(chance.sum(1), torch.ones(VAL))
    assert torch.equal(chance, class_logits(state.best, particles, run.val.rows, run.config, 2).softmax(1))


def test_it_learns(tuned, particles):
    state = train([make_run(override(tuned, {"finetune.epochs": 25}))], particles)
    (progress,) = state.progress
    assert progress.best_accuracy > 0.8  # majority: 0.5
    assert progress.curves[-1]["train_loss"] < 0.7 * progress.curves[0]["train_loss"]


def test_an_epoch_takes_each_jet_once(tuned, particles):
    assert sorted(epoch_order(44, 0, 0, "finetune_order").tolist()) == list(range(44))
    assert not torch.equal(epoch_order(44, 0, 0, "finetune_order"), epoch_order(44, 0, 1, "finetune_order"))
    assert not torch.equal(epoch_order(44, 0, 0, "finetune_order"), epoch_order(44, 1, 0, "finetune_order"))
    # 16 16 1: the last, smaller batch is kept, even one jet.
    state = train([make_run(override(tuned, {"finetune.epochs": 2}), jets=33)], particles)
    assert state.step.tolist() == [6]


def test_label_fractions_are_the_head_of_the_jets():
    jets = LabeledRows(rows=torch.arange(100, 130), targets=torch.arange(30) % 3)
    assert jets.head(0.1, "abc").rows.tolist() == [100, 101, 102]
    assert len(jets.head(1.0, "abc").rows) == 30
    rule = r"finetune\.fractions must leave at least one labeled jet of each class, got 0\.05 of 30 .* without class c"
    with pytest.raises(DataError, match=rule):
        jets.head(0.05, "abc")


# Runs that differ in all that runs which step together may differ in.
DIFFERENT = [
    {},
    {"seed": 4, "finetune.lr": 3e-3, "finetune.dropout": 0.0, "finetune.epochs": 2},
    {"seed": 5, "finetune.layer_decay": 1.0, "finetune.dropout": 0.5, "finetune.patience": 1},
    {"seed": 6, "finetune.layer_decay": 0.3, "finetune.tolerance": 0.5},
]


def different(tuned: Config) -> list[Run]:
    return [make_run(override(tuned, changes)) for changes in DIFFERENT]


def assert_same_run(state: FinetuneState, row: int, alone: FinetuneState, atol: float = 1e-10) -> None:
    for name, value in alone.tensors().items():
        torch.testing.assert_close(state.tensors()[name][row], value[0], rtol=0, atol=atol)
    curves = [[{k: v for k, v in r.items() if k != "device_seconds"} for r in p.curves] for p in
              (state.progress[row], alone.progress[0])]  # fmt: skip
    assert len(curves[0]) == len(curves[1])
    for ours, theirs in zip(*curves, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_run_does_not_feel_its_pack(tuned, particles):
    runs, seen = different(tuned), []
    together = train(runs, particles, after=seen.append)
    assert seen[0] == [0, 1, 2, 3]
    assert [progress.epoch for progress in together.progress][:2] == [3, 2]
    for row, run in enumerate(runs):
        assert_same_run(together, row, train([run], particles))


class StopHereError(Exception):
    pass


def test_resuming_is_the_same_run_bit_for_bit(tuned, particles):
    runs = different(tuned)
    straight, state = train(runs, particles.float()), init_finetune(runs, CPU)

    def stop(members):
        if state.progress[0].epoch == 2:
            raise StopHereError

    with pytest.raises(StopHereError):
        train(runs, particles.float(), state, stop)
    resumed = train(runs, particles.float(), state)
    for name, value in straight.tensors().items():
        assert torch.equal(resumed.tensors()[name], value), name


def test_a_run_goes_on_in_another_pack(tuned, particles):
    """Stopped after one epoch in a pack of four; the first goes on with a newcomer, which catches up."""
    runs = different(tuned)
    newcomer = make_run(override(tuned, {"seed": 9}))
    state = init_finetune(runs, CPU, torch.float64)

    def stop(members):
        raise StopHereError

    with pytest.raises(StopHereError):
        train(runs, particles, state, stop)
    seen = []
    joined = join_states([init_finetune([newcomer], CPU, torch.float64), state.row(0)])
    train([newcomer, runs[0]], particles, joined, seen.append)
    assert seen == [[0], [0, 1], [0, 1]]
    for row, run in enumerate((newcomer, runs[0])):
        assert_same_run(joined, row, train([run], particles))


def test_a_run_that_diverges_ends_alone(tuned, particles):
    good = make_run(tuned)
    wild = make_run(override(tuned, {"seed": 4, "finetune.lr": 1e30}))
    state = train([good, wild], particles)
    assert state.progress[1].reason == "diverged: val_loss is not finite in epoch 1"
    assert [progress.epoch for progress in state.progress] == [3, 1]
    assert_same_run(state, 0, train([good], particles))


def test_runs_of_other_shapes_do_not_step_together(tuned, particles):
    with pytest.raises(ValueError, match="must agree in model, classes, batch and number of training jets"):
        train([make_run(tuned), make_run(tuned, jets=30)], particles)


# One other value of every field. The fractions and the twin make runs: see tests/jbot/trial/test_trial.py.
KNOBS = {
    "finetune.epochs": 2,
    "finetune.batch": 8,
    "finetune.lr": 1e-3,
    "finetune.layer_decay": 0.9,
    "finetune.dropout": 0.1,
    "finetune.patience": 1,
    "finetune.tolerance": 0.9,
}
COMPANIONS = {"finetune.patience": {"finetune.tolerance": 0.9}}  # no epoch is better than the first


def test_every_field_is_covered_by_the_live_knob_test():
    fields = {f"finetune.{field.name}" for field in dataclasses.fields(FinetuneConfig)}
    assert fields == set(KNOBS) | {"finetune.fractions", "finetune.twin"}


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_is_live(tuned, particles, knob):
    base = override(tuned, {"finetune.epochs": 6} | COMPANIONS.get(knob, {}))
    before, after = (train([make_run(override(base, c))], particles) for c in ({}, {knob: KNOBS[knob]}))
    assert not torch.equal(before.best, after.best) or before.step.tolist() != after.step.tolist()


def test_a_step_reads_nothing_on_the_host(tuned):
    """On the meta device there is no value to read: so a CUDA graph can hold the step."""
    meta, runs = torch.device("meta"), different(tuned)
    state, hyper = init_finetune(runs, meta), stack_hyper(runs, meta)
    jets = torch.empty(4, 8, 30, 4, device=meta)
    terms = finetune_step(state, jets, torch.empty(4, 8, dtype=torch.int64, device=meta), hyper)
    assert {name: tuple(value.shape) for name, value in terms.items()} == {"loss": (4,), "correct": (4,)}


def test_weights_that_a_classifier_does_not_use_may_be_unknown(tuned, particles):
    """As in released encoders, which come without mask token and projection head."""
    run, model = make_run(tuned), tuned.model
    encoder = unpack(run.encoder.clone()[None], model)
    for name in ("mask_token", "head1.weight", "head1.bias", "head2.weight", "head2.bias"):
        encoder[name].fill_(math.nan)
    flat = torch.cat([encoder[name].reshape(-1) for name in weight_shapes(model)])
    known, unknown = (train([r], particles) for r in (run, dataclasses.replace(run, encoder=flat)))
    assert unknown.progress[0].reason is None
    there = ~torch.isnan(unknown.best)
    assert int((~there).sum()) == int(torch.isnan(flat).sum()) > 0
    assert torch.equal(known.best[there], unknown.best[there])


@pytest.mark.parametrize("engine", ["plain", "fused"])
def test_a_released_classifier_gives_the_released_probabilities(tmp_path, engine):
    """Encoder and head through the importer, from files as Keras writes them; the numbers are those of its own code."""
    write_hdf5(tmp_path / "backbone.h5", keras_backbone(MODELS["S"], formula_weights(weight_shapes(MODELS["S"]))))
    write_hdf5(tmp_path / "head.h5", keras_head(formula_weights(classifier_shapes(MODELS["S"].dim, CLASSES))))
    model, backbone = load_backbone(tmp_path / "backbone.h5")
    head = load_head(tmp_path / "head.h5")
    weights = torch.cat((frozen_student(model, backbone), pack_classifier(head)[None]), dim=1)
    reference = {name: torch.from_numpy(value) for name, value in load_file(DATA).items()}
    jets, config = reference["views"][0], Config(model=model)
    forward = find_engine(engine, config, CPU).forward
    found = class_logits(weights, jets, torch.arange(len(jets)), config, CLASSES, forward).softmax(1)
    torch.testing.assert_close(found, reference["S/probability"], rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_takes_the_same_steps(tuned, particles):
    runs, cuda = different(tuned), torch.device("cuda")
    there = [
        dataclasses.replace(
            run,
            train=LabeledRows(rows=run.train.rows.cuda(), targets=run.train.targets.cuda()),
            val=LabeledRows(rows=run.val.rows.cuda(), targets=run.val.targets.cuda()),
        )
        for run in runs
    ]
    state = finetune(there, particles.cuda(), init_finetune(there, cuda, torch.float64), lambda runs: None)
    np.testing.assert_allclose(state.weights.cpu(), train(runs, particles).weights, atol=1e-5)

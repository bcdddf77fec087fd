import math

import pytest
import torch
from helpers import TINY, make_jets

from jbot.config import Config, OptimConfig, TeacherConfig, flatten, override
from jbot.evaluation.geometry import attention_entropy
from jbot.trainer.engines.select import find_engine
from jbot.trainer.loop import (
    MAX_ATTENTION_ENTROPY,
    TrialFailed,
    batch_sizes,
    collapse,
    ema_momentum,
    has_ended,
    learning_rate,
    run_steps,
    step_groups,
    train,
    views_of_steps,
)
from jbot.trainer.model import forward, init_weights, unpack, weight_slice
from jbot.trainer.pack import Pack, stack
from jbot.trainer.state import Progress, TrainState, epoch_order, furthest_behind, init_state, join_states
from jbot.trainer.step import TERMS, adamw, masked_rows, train_step
from jbot.trainer.workload import curve_epochs, may_collapse

CPU = torch.device("cpu")


def healthy(trial: int, state: TrainState) -> dict[str, float]:
    return {"val/spread": 0.5, "val/attention_entropy": 0.5}


def nothing(trials: list[int]) -> None:
    pass


def steps_of(configs: list[Config], jets: torch.Tensor, count: int = 2, dtype=torch.float64) -> TrainState:
    """The state after some steps on the same jets; centres, teacher and moments act from the second step on."""
    state = init_state(configs[0], [config.seed for config in configs], CPU, dtype)
    lr = torch.tensor([learning_rate(0, config.train.epochs, config.optim) for config in configs], dtype=torch.float64)
    momentum = torch.tensor([ema_momentum(1, 3, config.teacher) for config in configs], dtype=torch.float64)
    batches = jets.to(dtype).expand(count, len(configs), -1, -1, -1)
    plain = find_engine("plain", configs[0], CPU, dtype).forward
    run_steps(state, batches, Pack(configs, CPU, dtype), tuple(range(len(configs))), lr, momentum, plain)
    return state


def run(configs: list[Config], jets: torch.Tensor, counts=None, state=None, probe=healthy, after=nothing):
    """Train a pack on the first jets of `jets`; `counts` says how many each trial has."""
    state = state or init_state(configs[0], [config.seed for config in configs], CPU, jets.dtype)
    rows = [torch.arange(count) for count in (counts or [len(jets)] * len(configs))]
    return train(configs, jets, rows, state, probe, after)


def test_schedules():
    optim, teacher = OptimConfig(lr=1.0, warmup_epochs=4), TeacherConfig(ema_momentum=0.99)
    assert [learning_rate(e, 10, optim) for e in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert learning_rate(0, 10, OptimConfig(lr=1.0, warmup_epochs=0)) == 1.0
    falling_rate = OptimConfig(lr=2.0, warmup_epochs=1, final_lr=0.1)
    assert [learning_rate(e, 6, falling_rate) for e in (0, 1, 3, 5)] == pytest.approx([2.0, 2.0, 1.1, 0.2])
    assert learning_rate(1, 2, falling_rate) == 2.0  # one epoch behind the warm-up
    assert ema_momentum(0, 80, teacher) == pytest.approx(0.99)
    assert ema_momentum(40, 80, teacher) == pytest.approx(0.995)
    assert ema_momentum(79, 80, teacher) > 0.9999
    falling = TeacherConfig(ema_momentum=0.9, ema_final=0.5)
    assert [ema_momentum(e, 80, falling) for e in (0, 40, 80)] == pytest.approx([0.9, 0.7, 0.5])
    assert [ema_momentum(e, 3, TeacherConfig(ema_momentum=0.0, ema_final=0.0)) for e in range(3)] == [0.0] * 3


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [(8, 2, [0, 1, 2, 4, 6, 8]), (80, 20, [0, 1, 10, 20, 40, 50, 60, 80]), (1, 5, [0, 1]), (3, 2, [0, 1, 2, 3])],
)
def test_points_of_the_learning_curves(epochs, every, expected):
    config = override(Config(), {"train.epochs": epochs, "probe.every": every})
    assert sorted(curve_epochs(config)) == expected


def test_without_average_the_teacher_is_the_student(tiny):
    """After each step, to the bit; the next target is that of the student of before."""
    config = override(tiny, {"teacher.ema_momentum": 0.0, "teacher.ema_final": 0.0, "train.epochs": 2})
    state, jets, steps = init_state(config, [0], CPU), torch.from_numpy(make_jets(40, 2)), []

    def compare(flat, *arguments):
        steps.append(torch.equal(state.teacher, state.student))
        return forward(flat, *arguments)

    train([config], jets, [torch.arange(40)], state, healthy, nothing, compare)
    assert steps == [True] * 12  # teacher and student of six steps
    assert torch.equal(state.teacher, state.student)
    assert not torch.equal(state.student, init_state(config, [0], CPU).student)


def test_adamw_by_hand(tiny):
    state = init_state(tiny, [0], CPU, torch.float64)
    before, gradient = state.student.clone(), torch.full_like(state.student, 0.5)
    stacked = stack([override(tiny, {"optim.weight_decay": 0.01})], CPU)
    adamw(state, gradient, torch.tensor([0.1], dtype=torch.float64), stacked.optim)
    # First step: m = 0.1 g, v = 0.001 g^2, step size lr sqrt(0.001) / 0.1.
    update = 0.1 * math.sqrt(0.001) / 0.1 * 0.05 / (math.sqrt(0.001) * 0.5 + 1e-7)
    torch.testing.assert_close(state.student, before * (1 - 0.1 * 0.01) - update)


def test_batches_cover_each_jet_once_and_drop_no_more_than_one():
    order = epoch_order(50, 0, 0)
    assert sorted(order.tolist()) == list(range(50))
    assert batch_sizes(50, 16) == [16, 16, 16, 2]
    assert batch_sizes(33, 16) == [16, 16]  # KoLeo needs two jets
    assert batch_sizes(10, 16) == [10]
    assert not torch.equal(order, epoch_order(50, 0, 1))


def test_step_groups_are_of_batches_of_one_size():
    # Batches: 16 16 16 2, 16 16 8, 16 16 16 2.
    assert list(step_groups({0: 50, 1: 40, 2: 50}, 16, 96)) == [
        ((0, 1, 2), 0, 2, 16), ((0, 2), 2, 1, 16), ((1,), 2, 1, 8), ((0, 2), 3, 1, 2),
    ]  # fmt: skip
    assert list(step_groups({4: 64}, 16, 32)) == [((4,), 0, 2, 16), ((4,), 2, 2, 16)]
    assert list(step_groups({4: 64}, 64, 32)) == [((4,), 0, 1, 64)]


def test_trials_furthest_behind_go_first(tiny):
    progress = [Progress(epoch=2), Progress(epoch=1), Progress(epoch=0, reason="diverged"), Progress(epoch=1)]

    def left(epochs: int) -> list[int]:
        config = override(tiny, {"train.epochs": epochs})
        return furthest_behind(progress, [has_ended(config, one) for one in progress])

    assert left(3) == [1, 3]
    assert left(1) == []


def test_masked_rows_are_means_over_each_view():
    masked = torch.zeros(2, 2, 2, 3, dtype=torch.bool)
    masked[0, 0, 0, 1] = masked[0, 1, 1, 0] = masked[0, 1, 1, 2] = True  # one in view u, two in v
    masked[1, 0, 0, 0] = True
    rows, weight = masked_rows(masked)
    # Tokens: 4 a jet, jets 0, 1 of u then 0, 1 of v; particle p is token p + 1.
    assert rows[0].tolist() == [2, 13, 15]
    assert weight[0].tolist() == [0.5, 0.25, 0.25]
    assert weight[1].tolist() == [0.5, 0.0, 0.0]


def test_more_rows_than_masked_particles_have_no_weight():
    masked = torch.rand(2, 2, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    rows, weight = masked_rows(masked)
    more, more_weight = masked_rows(masked, capacity=28)
    for trial in range(2):
        assert (more[trial] >= 0).tolist() == (more_weight[trial] > 0).tolist()  # the others are no tokens
        assert rows[trial][weight[trial] > 0].tolist() == more[trial][more_weight[trial] > 0].tolist()
        assert more_weight[trial].sum() == pytest.approx(1.0)


# Trials that differ in every field a pack does not share; the second has no augmentation, the third no masks.
DIFFERENT = [
    {},
    {
        "seed": 4, "augment.rotation": 0.0, "augment.smear_sigma": 0.0, "augment.split_fraction": 0.0,
        "mask.scheme": "random", "mask.ratio_low": 0.1, "optim.lr": 5e-4, "loss.teacher_temp": 0.06,
        "loss.cls_weight": 0.7, "data.train_jets": 45, "optim.eps": 1e-6, "teacher.ema_final": 0.5,
    },
    {
        "seed": 6, "mask.scheme": "none", "loss.koleo_weight": 0.0, "optim.weight_decay": 0.01,
        "teacher.ema_momentum": 0.9, "augment.split_low": 0.1, "data.train_jets": 40, "optim.beta1": 0.8,
        "augment.boost": 0.5, "augment.soft_dropout": 0.7, "augment.soft_pt": 0.05, "train.dropout": 0.1,
    },
    {
        "seed": 7, "mask.scheme": "geometric", "mask.ratio_high": 0.9, "mask.probability": 0.5,
        "augment.rotation": 1.0, "augment.smear_sigma": 1e-3, "augment.split_fraction": 0.5,
        "loss.student_temp": 0.2, "loss.particle_weight": 0.5, "teacher.center_momentum": 0.5,
        "optim.beta2": 0.99, "optim.warmup_epochs": 3, "data.task": "tqg", "train.dropout": 0.3,
        "augment.translation": 0.2, "augment.pt_sigma": 0.05,
    },
]  # fmt: skip


def different(tiny: Config) -> list[Config]:
    return [override(tiny, changes) for changes in DIFFERENT]


def assert_same_rows(pack: TrainState, row: int, alone: TrainState, rtol: float = 1e-12) -> None:
    for name, value in alone.tensors().items():
        together = pack.tensors()[name][row]
        torch.testing.assert_close(together, value[0], rtol=0, atol=rtol * float(value.abs().max()) + 1e-300)


def test_a_trials_steps_do_not_feel_its_pack(tiny, jets):
    configs = different(tiny)
    together = steps_of(configs, jets, count=4)
    for row, config in enumerate(configs):
        assert_same_rows(together, row, steps_of([config], jets, count=4))


def test_a_trials_epochs_do_not_feel_its_pack(tiny):
    """Three epochs; train sets of different sizes, so that trials fall out of step within an epoch."""
    jets, configs = torch.from_numpy(make_jets(60, 2)).double(), different(tiny)
    counts = [config.data.train_jets for config in configs]
    together = run(configs, jets, counts)
    assert [progress.epoch for progress in together.progress] == [3, 3, 3, 3]  # none has collapsed
    for row, (config, count) in enumerate(zip(configs, counts, strict=True)):
        alone = run([config], jets, [count])
        assert_same_rows(together, row, alone, rtol=1e-10)  # Adam divides rounding by its size: chaos sets in
        for ours, theirs in zip(together.progress[row].curves[1:], alone.progress[0].curves[1:], strict=True):
            assert ours["step"] == theirs["step"]
            assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-10)


def test_trials_join_a_pack_from_different_epochs(tiny):
    """After a crash two trials go on together, one an epoch ahead of the other."""
    jets = torch.from_numpy(make_jets(40, 2)).double()
    configs = [override(tiny, {"seed": seed, "train.epochs": 4}) for seed in (1, 4)]
    halfway = []
    for config, epochs in zip(configs, (2, 1), strict=True):
        state = init_state(config, [config.seed], CPU, torch.float64)

        def stop(trials, state=state, epochs=epochs):
            if state.epoch == epochs:
                raise StopHereError

        with pytest.raises(StopHereError):
            run([config], jets, state=state, after=stop)
        halfway.append(state)
    rounds = []
    together = run(configs, jets, state=join_states(halfway), after=rounds.append)
    assert rounds == [[1], [0, 1], [0, 1]]
    for row, config in enumerate(configs):
        assert_same_rows(together, row, run([config], jets), rtol=1e-10)


def test_views_of_many_steps_are_those_of_each(tiny):
    """Bit for bit, for a pack and for one of its trials alone, also where another trial is augmented and it is not."""
    configs, trials = different(tiny), tuple(range(4))
    jets = torch.from_numpy(make_jets(6 * 4 * 8, 4)).view(6, 4, 8, 30, 4)
    pack, first = Pack(configs, CPU), torch.tensor([10, 20, 30, 40])
    views, masked = views_of_steps(jets, first, pack.hyper(trials, 6))
    for step in range(6):
        one, its_masked = views_of_steps(jets[step : step + 1], first + step, pack.hyper(trials))
        assert torch.equal(one[0], views[step])
        assert torch.equal(its_masked[0], masked[step])
    for row, config in enumerate(configs):
        alone, its_masked = views_of_steps(jets[:, row : row + 1], first[row : row + 1], stack([config] * 6, CPU))
        assert torch.equal(alone[:, 0], views[:, row])
        assert torch.equal(its_masked[:, 0], masked[:, row])
    assert torch.equal(views[:, 1], jets[:, 1, None].expand(-1, 2, -1, -1, -1))


def test_a_step_reads_nothing_on_the_host(tiny):
    """On the meta device there is no value to read: so a CUDA graph can hold the step."""
    meta, configs = torch.device("meta"), different(tiny)
    state, hyper = init_state(tiny, range(4), meta), stack(configs, meta)
    rates = torch.empty(4, dtype=torch.float64, device=meta)
    jets = torch.empty(1, 4, 8, 30, 4, device=meta)
    views, masked = views_of_steps(jets, state.step, hyper)
    terms = train_step(state, views[0], masked[0], hyper, rates, rates, capacity=100)
    assert {name: tuple(value.shape) for name, value in terms.items()} == dict.fromkeys(TERMS, (4,))


def test_the_engine_is_what_was_passed(tiny):
    """A faster forward takes the place of the plain one: for the teacher on all tokens, for the student on some."""
    calls = []

    def counted(flat, particles, config, masked=None, rows=None, factors=None):
        calls.append(None if rows is None else masked is not None)
        return forward(flat, particles, config, masked, rows, factors)

    jets, config = torch.from_numpy(make_jets(40, 2)), override(tiny, {"train.epochs": 1})
    state = init_state(config, [0], CPU)
    train([config], jets, [torch.arange(40)], state, healthy, nothing, forward=counted)
    assert calls == 3 * [None, True]
    assert torch.equal(state.student, run([config], jets).student)


def test_rooms_for_more_rows_change_nothing(tiny, jets):
    """As CUDA graphs have them; with dropout, whose draws are numbered by rows."""
    config = override(tiny, {"train.dropout": 0.3})
    states = []
    for capacity in (None, 300):
        state, hyper = init_state(config, [0], CPU, torch.float64), stack([config], CPU)
        views, masked = views_of_steps(jets[None].double(), state.step, hyper)
        rates = torch.tensor([0.01], dtype=torch.float64)
        train_step(state, views[0], masked[0], hyper, rates, 50 * rates, capacity=capacity)
        states.append(state)
    assert_same_rows(states[0], 0, states[1])


def test_the_student_alone_has_dropout(tiny):
    given = []

    def counted(flat, particles, config, masked=None, rows=None, factors=None):
        given.append(factors)
        return forward(flat, particles, config, masked, rows, factors)

    jets, config = torch.from_numpy(make_jets(32, 2)), override(tiny, {"train.epochs": 1, "train.dropout": 0.25})
    train([config], jets, [torch.arange(32)], init_state(config, [0], CPU), healthy, nothing, counted)
    assert given[::2] == [None, None]  # of the teacher, in two steps
    first, second = given[1::2]
    for one in (first, second):
        assert one.unique().tolist() == pytest.approx([0.0, 4 / 3])
        assert float((one == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    inner = 2 * 8 * 2 * 16 * 31  # both updates of the first block: two views of 16 jets of 31 tokens, 8 wide
    assert not torch.equal(first[:, :inner], second[:, :inner])


def test_dropout_behind_each_update(tiny, jets):
    """Factors 1 are no dropout; with 0 for one update of one block, that update is missing."""
    weights, model, tokens = init_weights(tiny.model, 3)[None].double(), tiny.model, 12 * 31
    ones = torch.ones(1, 2 * 2 * 8 * tokens, dtype=torch.float64)
    raw = forward(weights, jets.double(), model, None, None, ones)[0]
    torch.testing.assert_close(raw, forward(weights, jets.double(), model)[0], rtol=0, atol=0)
    for layer in range(2):
        for update, name in enumerate(("out", "ffn2")):
            factors = ones.clone()
            factors.view(2, tokens, 2, 8)[layer, :, update] = 0.0
            without = weights.clone()  # an update without its kernel and bias
            for kind in ("weight", "bias"):
                unpack(without, model)[f"block{layer}.{name}.{kind}"].zero_()
            ours = forward(weights, jets.double(), model, None, None, factors)
            torch.testing.assert_close(ours[0], forward(without, jets.double(), model)[0])


@pytest.mark.parametrize("wanted", ["plain", "fused"])
def test_a_token_of_zeros_stays_zero(tiny, wanted):
    jets, config = torch.from_numpy(make_jets(40, 2)), override(tiny, {"mask.token": "zero"})
    place = weight_slice("mask_token", tiny.model)
    engine, learned = find_engine(wanted, config, CPU), init_state(tiny, [0], CPU).student
    state = init_state(config, [0], CPU)
    assert (state.student == learned).sum() == learned.numel() - 8
    assert engine.name == wanted
    train([config], jets, [torch.arange(40)], state, healthy, nothing, engine.forward)
    for flat in (state.student, state.teacher, state.moment1, state.moment2):
        assert (flat[:, place] == 0).all()
    assert (unpack(state.student, tiny.model)["cls_token"] != 0).all()


@pytest.mark.parametrize("wanted", ["plain", "fused"])
def test_without_a_token_the_student_sees_what_its_loss_counts(tiny, jets, wanted):
    """The loss of the masked particles, from an encoder without masks."""
    config = override(tiny, {"mask.token": "none", "optim.weight_decay": 0.0})
    state, hyper, engine = init_state(config, [0], CPU), stack([config], CPU), find_engine(wanted, config, CPU)
    state.teacher += 0.1
    views, masked = views_of_steps(jets[None], state.step, hyper)
    token = state.student[:, weight_slice("mask_token", tiny.model)].clone()
    rows, weight = masked_rows(masked[0])
    with torch.no_grad():
        seen, taught = (
            forward(flat, views[0].flatten(1, 2), config.model)[1] for flat in (state.student, state.teacher)
        )
    targets = torch.softmax(taught[0, rows[0]] / 0.04, -1)
    by_hand = -(weight[0] * (targets * torch.log_softmax(seen[0, rows[0]] / 0.1, -1)).sum(-1)).sum()
    rates = torch.tensor([0.01], dtype=torch.float64)
    terms = train_step(state, views[0], masked[0], hyper, rates, rates, engine.forward)
    torch.testing.assert_close(terms["particle_loss"][0], by_hand, rtol=1e-4, atol=0)
    assert float(terms["masked_fraction"][0]) > 0.05
    assert torch.equal(state.student[:, weight_slice("mask_token", tiny.model)], token)


def test_arms_of_a_block_start_from_the_same_weights_and_data(tiny):
    other = override(tiny, {"mask.scheme": "none", "loss.koleo_weight": 0.0})
    assert torch.equal(init_state(tiny, [4], CPU).student, init_state(other, [4], CPU).student)
    assert not torch.equal(init_state(tiny, [4], CPU).student, init_state(tiny, [5], CPU).student)


@pytest.mark.parametrize("term", ["cls_weight", "particle_weight", "koleo_weight"])
def test_each_loss_term_can_be_switched_off_alone(tiny, jets, term):
    state = steps_of([override(tiny, {f"loss.{term}": 0.0})], jets)
    assert torch.isfinite(state.student).all()


# One other value of every field that a training step must feel. Fields of `data`, `probe` and the number of epochs act
# outside the step and have tests of their own.
KNOBS = {
    "augment.rotation": 1.0,
    "augment.smear_sigma": 1e-3,
    "augment.smear_variant": "reference",
    "augment.split_fraction": 0.5,
    "augment.split_low": 0.4,
    "augment.split_variant": "reference",
    "augment.translation": 0.2,
    "augment.boost": 0.3,
    "augment.pt_sigma": 0.02,
    "augment.soft_dropout": 0.5,
    "augment.soft_pt": 0.03,
    "mask.scheme": "random",
    "mask.ratio_low": 0.2,
    "mask.ratio_high": 0.8,
    "mask.probability": 0.5,
    "mask.token": "zero",
    "model.dim": 12,
    "model.heads": 4,
    "model.layers": 1,
    "model.projection": 6,
    "model.padding": "reference",
    "loss.cls_weight": 0.5,
    "loss.particle_weight": 0.5,
    "loss.koleo_weight": 0.1,
    "loss.student_temp": 0.2,
    "loss.teacher_temp": 0.07,
    "teacher.ema_momentum": 0.9,
    "teacher.ema_final": 0.5,
    "teacher.centering": False,
    "teacher.center_momentum": 0.5,
    "optim.lr": 1e-3,
    "optim.warmup_epochs": 5,
    "optim.weight_decay": 0.1,
    "optim.beta1": 0.8,
    "optim.beta2": 0.99,
    "optim.eps": 1e-3,
    "train.precision": "bf16",
    "train.dropout": 0.1,
    "seed": 1,
}
# Smeared padding is felt only where attention sees padding and no split particle takes its place.
COMPANIONS = {
    "augment.smear_variant": {"model.padding": "reference", "augment.split_fraction": 0.5},
    "augment.soft_pt": {"augment.soft_dropout": 0.5},
}
OUTSIDE = {"optim.final_lr", "train.epochs", "train.batch", "train.until", "train.schedule", "train.perturbation"}
"""Have tests of their own: test_schedule.py, and tests/analysis/verdicts/test_noise_floor.py for the last."""


def test_every_field_is_covered_by_the_live_knob_test():
    covered = set(KNOBS) | OUTSIDE
    rest = {name for name in flatten(Config()) if not name.startswith(("data.", "probe.", "finetune.", "anomaly."))}
    assert rest == covered


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_is_live(tiny, jets, knob):
    tiny = override(tiny, COMPANIONS.get(knob, {}))
    changed = override(tiny, {knob: KNOBS[knob]})
    before, after = (steps_of([config], jets, dtype=torch.float64) for config in (tiny, changed))
    same_shape = before.student.shape == after.student.shape
    assert not same_shape or not torch.equal(before.student, after.student)


@pytest.mark.parametrize("knob", ["train.epochs", "train.batch"])
def test_epochs_and_batch_are_live(tiny, knob):
    jets = torch.from_numpy(make_jets(40, 1))
    runs = []
    for value in (2, 3):
        config = override(tiny, {knob: value})
        runs.append(run([config], jets))
    assert not torch.equal(runs[0].student, runs[1].student)


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("changes", [{}, {"train.dropout": 0.3, "mask.token": "zero", "augment.soft_dropout": 0.5}])
def test_resuming_is_the_same_run_bit_for_bit(tiny, changes):
    jets, tiny = torch.from_numpy(make_jets(50, 2)), override(tiny, changes)
    straight = run([tiny], jets)
    state = init_state(tiny, [0], CPU)

    def stop_after_two(trials: list[int]) -> None:
        if state.epoch == 2:
            raise StopHereError

    with pytest.raises(StopHereError):
        run([tiny], jets, state=state, after=stop_after_two)
    resumed = run([tiny], jets, state=state)
    assert torch.equal(resumed.student, straight.student)
    assert torch.equal(resumed.moment2, straight.moment2)
    ours, theirs = resumed.progress[0].curves, straight.progress[0].curves
    assert [row["epoch"] for row in ours] == [0, 1, 2, 3]
    assert [row.get("train/loss") for row in ours] == [row.get("train/loss") for row in theirs]


def test_a_diverging_run_fails_with_its_reason(tiny):
    jets = torch.from_numpy(make_jets(40, 2))
    state = init_state(tiny, [0], CPU)
    state.student.fill_(float("nan"))
    run([tiny], jets, state=state)
    assert state.progress[0].reason == "diverged: train/loss is not finite in epoch 1"
    assert len(state.progress[0].curves) == 1
    assert state.epoch == 1


def test_a_collapse_fails_with_its_reason_and_keeps_the_point(tiny):
    jets = torch.from_numpy(make_jets(40, 2))

    def flat(trial: int, state: TrainState) -> dict[str, float]:
        return healthy(trial, state) | ({"val/spread": 1e-5} if state.epoch else {})

    (progress,) = run([tiny], jets, probe=flat).progress
    assert progress.reason == "collapsed: the spread of the embedding is 1e-05 after epoch 1"
    assert [row["epoch"] for row in progress.curves] == [0, 1]


def test_a_failure_ends_its_trial_alone(tiny):
    """One diverges in the first epoch, one fails at the probe of the second; the others are as without them."""
    jets = torch.from_numpy(make_jets(40, 2)).double()
    good = [override(tiny, {"seed": seed}) for seed in (0, 1)]
    wild = override(tiny, {"seed": 4, "optim.lr": 1e30, "optim.warmup_epochs": 0})
    seen = []

    def probe(trial: int, state: TrainState) -> dict[str, float]:
        if trial == 2 and state.epoch == 2:
            raise TrialFailed("diverged: the embedding is not finite after epoch 2")
        return healthy(trial, state)

    pack = run([good[0], wild, override(tiny, {"seed": 6}), good[1]], jets, probe=probe, after=seen.append)
    assert [progress.reason and progress.reason.split(" ")[0] for progress in pack.progress] == [
        None, "diverged:", "diverged:", None,
    ]  # fmt: skip
    assert seen == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 3], [0, 3]]
    for row, config in ((0, good[0]), (3, good[1])):
        assert_same_rows(pack, row, run([config], jets), rtol=1e-10)


def test_collapse_signatures():
    good = {"val/spread": 0.5, "train/teacher_entropy": 1.0, "val/attention_entropy": 0.5}
    assert collapse(good, good) is None
    assert "teacher" in collapse(good | {"train/teacher_entropy": 1e-5}, good)
    uniform = good | {"val/attention_entropy": 1.0}
    assert "uniform" in collapse(uniform, good)
    assert collapse(uniform, uniform) is None


def test_an_encoder_of_one_layer_begins_with_uniform_attention(tiny, jets):
    """[CLS] is zero at the start, so one layer looks at all particles alike: no collapse."""
    config = override(tiny, {"model.layers": 1})
    particles = jets.flatten(0, -3)
    assert attention_entropy(init_state(config, [0], jets.device).student, particles, config) > MAX_ATTENTION_ENTROPY
    assert attention_entropy(init_state(tiny, [0], jets.device).student, particles, tiny) < MAX_ATTENTION_ENTROPY


def test_the_student_learns_a_teacher_that_stands_still():
    still = {"teacher.ema_momentum": 1.0, "teacher.centering": False, "loss.koleo_weight": 0.0}
    config = override(Config(), TINY | still | {"train.epochs": 12, "optim.lr": 1e-2})
    jets = torch.from_numpy(make_jets(60, 2))
    losses = [row["train/loss"] for row in run([config], jets).progress[0].curves[1:]]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_takes_the_same_step(tiny, jets):
    configs, cuda = different(tiny), torch.device("cuda")
    on_cpu = steps_of(configs, jets)
    state = init_state(tiny, [config.seed for config in configs], cuda, torch.float64)
    lr = torch.tensor(
        [learning_rate(0, config.train.epochs, config.optim) for config in configs], dtype=torch.float64, device=cuda
    )
    momentum = torch.tensor([ema_momentum(1, 3, c.teacher) for c in configs], dtype=torch.float64, device=cuda)
    batches = jets.double().cuda().expand(2, 4, -1, -1, -1)
    run_steps(state, batches, Pack(configs, cuda, torch.float64), (0, 1, 2, 3), lr, momentum)
    torch.testing.assert_close(state.student.cpu(), on_cpu.student, atol=1e-5, rtol=0)


def test_a_collapse_after_the_first_epoch_may_pass():
    """The point is there for the eye; trials end at points of the grid, as they did before it was there."""
    config = override(Config(), {"train.epochs": 30, "probe.every": 10})
    assert [epoch for epoch in curve_epochs(config) if not may_collapse(epoch, config)] == [1]

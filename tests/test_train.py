import math

import pytest
import torch
from conftest import TINY, make_jets

from jbot.config import Config, OptimConfig, TeacherConfig, flatten, override
from jbot.streams import Draws
from jbot.train import (
    TrainState,
    TrialFailed,
    adamw,
    batches,
    collapse,
    ema_momentum,
    init_state,
    learning_rate,
    masked_rows,
    train,
    train_step,
)

CPU = torch.device("cpu")


def healthy(state: TrainState) -> dict[str, float]:
    return {"val/spread": 0.5, "val/attention_entropy": 0.5}


def two_steps(config: Config, seeds: list[int], jets: torch.Tensor, dtype=torch.float64) -> TrainState:
    state = init_state(config, seeds, CPU, dtype)
    for _ in range(2):  # centres, teacher and moments act from the second step on
        draws = Draws(torch.tensor(seeds), state.step)
        train_step(
            state, jets.to(dtype), draws, config, learning_rate(0, config.optim), ema_momentum(0, 3, config.teacher)
        )
    return state


def test_schedules():
    optim, teacher = OptimConfig(lr=1.0, warmup_epochs=4), TeacherConfig(ema_momentum=0.99)
    assert [learning_rate(e, optim) for e in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert learning_rate(0, OptimConfig(lr=1.0, warmup_epochs=0)) == 1.0
    assert ema_momentum(0, 80, teacher) == pytest.approx(0.99)
    assert ema_momentum(40, 80, teacher) == pytest.approx(0.995)
    assert ema_momentum(79, 80, teacher) > 0.9999


def test_adamw_by_hand(tiny):
    state = init_state(tiny, [0], CPU, torch.float64)
    before, gradient = state.student.clone(), torch.full_like(state.student, 0.5)
    adamw(state, gradient, 0.1, OptimConfig(weight_decay=0.01))
    # First step: m = 0.1 g, v = 0.001 g^2, step size lr sqrt(0.001) / 0.1.
    update = 0.1 * math.sqrt(0.001) / 0.1 * 0.05 / (math.sqrt(0.001) * 0.5 + 1e-7)
    torch.testing.assert_close(state.student, before * (1 - 0.1 * 0.01) - update)


def test_batches_cover_each_jet_once_and_drop_no_more_than_one():
    order = torch.cat(list(batches(50, 16, 0, 0)))
    assert sorted(order.tolist()) == list(range(50))
    assert [len(b) for b in batches(50, 16, 0, 0)] == [16, 16, 16, 2]
    assert [len(b) for b in batches(33, 16, 0, 0)] == [16, 16]  # KoLeo needs two jets
    assert not torch.equal(order, torch.cat(list(batches(50, 16, 0, 1))))


def test_masked_rows_are_means_over_each_view():
    masked = torch.zeros(2, 2, 2, 3, dtype=torch.bool)
    masked[0, 0, 0, 1] = masked[0, 1, 1, 0] = masked[0, 1, 1, 2] = True  # one in view u, two in v
    masked[1, 0, 0, 0] = True
    rows, weight = masked_rows(masked)
    # Tokens: 4 a jet, jets 0, 1 of u then 0, 1 of v; particle p is token p + 1.
    assert rows[0].tolist() == [2, 13, 15]
    assert weight[0].tolist() == [0.5, 0.25, 0.25]
    assert weight[1].tolist() == [0.5, 0.0, 0.0]


def test_a_trials_steps_do_not_feel_its_pack(tiny, jets):
    together = two_steps(tiny, [3, 8], jets.expand(2, -1, -1, -1))
    for row, seed in enumerate([3, 8]):
        alone = two_steps(tiny, [seed], jets)
        for name, value in alone.tensors().items():
            torch.testing.assert_close(value[0], together.tensors()[name][row], atol=1e-12, rtol=0)


def test_arms_of_a_block_start_from_the_same_weights_and_data(tiny):
    other = override(tiny, {"mask.scheme": "none", "loss.koleo_weight": 0.0})
    assert torch.equal(init_state(tiny, [4], CPU).student, init_state(other, [4], CPU).student)
    assert not torch.equal(init_state(tiny, [4], CPU).student, init_state(tiny, [5], CPU).student)


@pytest.mark.parametrize("term", ["cls_weight", "particle_weight", "koleo_weight"])
def test_each_loss_term_can_be_switched_off_alone(tiny, jets, term):
    state = two_steps(override(tiny, {f"loss.{term}": 0.0}), [0], jets)
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
    "mask.scheme": "random",
    "mask.ratio_low": 0.2,
    "mask.ratio_high": 0.8,
    "mask.probability": 0.5,
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
    "teacher.centering": False,
    "teacher.center_momentum": 0.5,
    "optim.lr": 1e-3,
    "optim.warmup_epochs": 5,
    "optim.weight_decay": 0.1,
    "optim.beta1": 0.8,
    "optim.beta2": 0.99,
    "optim.eps": 1e-3,
    "seed": 1,
}
# Smeared padding is felt only where attention sees padding and no split particle takes its place.
COMPANIONS = {"augment.smear_variant": {"model.padding": "reference", "augment.split_fraction": 0.5}}
OUTSIDE = {"train.epochs", "train.batch"}


def test_every_field_is_covered_by_the_live_knob_test():
    covered = set(KNOBS) | OUTSIDE
    rest = {name for name in flatten(Config()) if not name.startswith(("data.", "probe."))}
    assert rest == covered


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_is_live(tiny, jets, knob):
    tiny = override(tiny, COMPANIONS.get(knob, {}))
    changed = override(tiny, {knob: KNOBS[knob]})
    before, after = two_steps(tiny, [tiny.seed], jets), two_steps(changed, [changed.seed], jets)
    same_shape = before.student.shape == after.student.shape
    assert not same_shape or not torch.equal(before.student, after.student)


@pytest.mark.parametrize("knob", ["train.epochs", "train.batch"])
def test_epochs_and_batch_are_live(tiny, knob):
    jets = torch.from_numpy(make_jets(40, 1))
    runs = []
    for value in (2, 3):
        config = override(tiny, {knob: value})
        runs.append(train(config, jets, init_state(config, [0], CPU), healthy, lambda state: None))
    assert not torch.equal(runs[0].student, runs[1].student)


def test_resuming_is_the_same_run_bit_for_bit(tiny):
    jets = torch.from_numpy(make_jets(50, 2))
    straight = train(tiny, jets, init_state(tiny, [0], CPU), healthy, lambda state: None)

    class StopHereError(Exception):
        pass

    def stop_after_two(state: TrainState) -> None:
        if state.epoch == 2:
            raise StopHereError

    state = init_state(tiny, [0], CPU)
    with pytest.raises(StopHereError):
        train(tiny, jets, state, healthy, stop_after_two)
    resumed = train(tiny, jets, state, healthy, lambda state: None)
    assert torch.equal(resumed.student, straight.student)
    assert torch.equal(resumed.moment2, straight.moment2)
    assert [row["epoch"] for row in resumed.curves] == [0, 1, 2, 3]
    assert [row.get("train/loss") for row in resumed.curves] == [row.get("train/loss") for row in straight.curves]


def test_a_diverging_run_fails_with_its_reason(tiny):
    jets = torch.from_numpy(make_jets(40, 2))
    state = init_state(tiny, [0], CPU)
    state.student.fill_(float("nan"))
    with pytest.raises(TrialFailed, match=r"diverged: train/loss is not finite in epoch 1"):
        train(tiny, jets, state, healthy, lambda state: None)
    assert len(state.curves) == 1


def test_a_collapse_fails_with_its_reason_and_keeps_the_point(tiny):
    jets = torch.from_numpy(make_jets(40, 2))
    state = init_state(tiny, [0], CPU)

    def flat(state: TrainState) -> dict[str, float]:
        return healthy(state) | ({"val/spread": 1e-5} if state.epoch else {})

    with pytest.raises(TrialFailed, match="collapsed: the spread of the embedding is 1e-05 after epoch 1"):
        train(tiny, jets, state, flat, lambda state: None)
    assert [row["epoch"] for row in state.curves] == [0, 1]


def test_collapse_signatures():
    good = {"val/spread": 0.5, "train/teacher_entropy": 1.0, "val/attention_entropy": 0.5}
    assert collapse(good) is None
    assert "teacher" in collapse(good | {"train/teacher_entropy": 1e-5})
    assert "uniform" in collapse(good | {"val/attention_entropy": 1.0})


def test_the_student_learns_a_teacher_that_stands_still():
    still = {"teacher.ema_momentum": 1.0, "teacher.centering": False, "loss.koleo_weight": 0.0}
    config = override(Config(), TINY | still | {"train.epochs": 12, "optim.lr": 1e-2})
    jets = torch.from_numpy(make_jets(60, 2))
    state = train(config, jets, init_state(config, [0], CPU), healthy, lambda state: None)
    losses = [row["train/loss"] for row in state.curves[1:]]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_takes_the_same_step(tiny, jets):
    on_cpu = two_steps(tiny, [0], jets)
    state = init_state(tiny, [0], torch.device("cuda"), torch.float64)
    for _ in range(2):
        draws = Draws(torch.tensor([0], device="cuda"), state.step)
        lr, momentum = learning_rate(0, tiny.optim), ema_momentum(0, 3, tiny.teacher)
        train_step(state, jets.double().cuda(), draws, tiny, lr, momentum)
    torch.testing.assert_close(state.student.cpu(), on_cpu.student, atol=1e-5, rtol=0)

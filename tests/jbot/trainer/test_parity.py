"""Parity with the authors' released TensorFlow code, in the `reference` variants.

tests/data/parity.safetensors holds what their code computes on fixed inputs; tests/make_parity.py says how it was made.
"""

import copy
from pathlib import Path

import pytest
import torch
from make_parity import (
    CLASSES,
    DATA,
    EMA_MOMENTUM,
    EPOCHS,
    HISTORY,
    KOLEO_WEIGHT,
    LR,
    MODELS,
    PARTICLE_JETS,
    TEACHER_KEPT,
    WARMUP,
    WEIGHT_DECAY,
    formula_weights,
)
from safetensors.numpy import load_file
from torch import Tensor

from jbot.config import Config, LossConfig, OptimConfig, TeacherConfig, TrainConfig
from jbot.trainer.augment import rotate, smear, split
from jbot.trainer.classifier import classifier_logits, classifier_shapes
from jbot.trainer.engines.select import find_engine
from jbot.trainer.loop import ema_momentum, learning_rate
from jbot.trainer.masking import SCHEMES, Scene
from jbot.trainer.model import encode, init_weights, pack, unpack, weight_shapes
from jbot.trainer.pack import stack
from jbot.trainer.state import TrainState, init_state
from jbot.trainer.step import train_step

FORWARD = 1e-5
LOSS = 1e-4
Trained = tuple[dict[str, list[float]], dict[int, TrainState]]
CONFIG = Config(
    model=MODELS["S"],
    loss=LossConfig(koleo_weight=KOLEO_WEIGHT),
    teacher=TeacherConfig(ema_momentum=EMA_MOMENTUM),
    optim=OptimConfig(lr=LR, warmup_epochs=WARMUP, weight_decay=WEIGHT_DECAY),
    train=TrainConfig(epochs=EPOCHS),
)


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    """What the released code computed."""
    return {name: torch.from_numpy(value) for name, value in load_file(Path(DATA)).items()}


@pytest.fixture(scope="module", params=["plain", "fused"])
def trained(reference: dict[str, Tensor], request: pytest.FixtureRequest) -> Trained:
    """Our training, by each engine, on the views of the file with empty padding."""
    return train_on(reference["views"] * reference["views"][..., 3:], reference["masked"], request.param)


def train_on(views: Tensor, masked: Tensor, wanted: str) -> Trained:
    """Loss terms of each step, and the state after step 1 and after the last."""
    cpu = torch.device("cpu")
    state, stacked = init_state(CONFIG, [0], cpu), stack([CONFIG], cpu)
    engine = find_engine(wanted, CONFIG, cpu)
    assert engine.name == wanted
    row = pack(formula_weights(weight_shapes(CONFIG.model)), CONFIG.model)
    state.student.copy_(row)
    state.teacher.copy_(row)
    history: dict[str, list[float]] = {}
    states = {}
    for epoch in range(EPOCHS):
        rates = [learning_rate(epoch, EPOCHS, CONFIG.optim)], [ema_momentum(epoch, EPOCHS, CONFIG.teacher)]
        lr, momentum = torch.tensor(rates, dtype=torch.float64)
        for name, value in train_step(state, views[None], masked[None], stacked, lr, momentum, engine.forward).items():
            history.setdefault(name, []).append(float(value[0]))
        if epoch + 1 in (1, EPOCHS):
            states[epoch + 1] = copy.deepcopy(state)
    return history, states


def test_augmentation(reference: dict[str, Tensor]) -> None:
    """Rotation, smearing of padding too, and splitting that loses the second halves, on the same draws."""
    jets = reference["jets"][None, None].expand(-1, 2, -1, -1, -1)
    views = rotate(jets, reference["angle"][None])
    views = smear(views, reference["noise"][None], 3e-4, reference=True)
    views = split(views, reference["split_key"][None], reference["share"][None], reference=True)
    # Relative: smeared padding lies up to about 1000 away from the jet axis.
    torch.testing.assert_close(views[0], reference["views"], rtol=1e-6, atol=1e-6)


def test_momentum_masking(reference: dict[str, Tensor]) -> None:
    """The same particles are masked, for the same random order and ratio."""
    key = reference["mask_key"][None]
    masked = SCHEMES["momentum"](Scene(reference["views"][None], reference["ratio"][None], key, key))
    assert torch.equal(masked[0], reference["masked"])
    assert reference["masked"].any(-1).all(), "each view of the file has a masked particle"


@pytest.mark.parametrize("size", MODELS)
def test_forward(reference: dict[str, Tensor], size: str) -> None:
    """Raw [CLS] and particle tokens of the encoder, S and B."""
    config, jets = MODELS[size], reference["views"][:1]
    weights = unpack(pack(formula_weights(weight_shapes(config)), config)[None], config)
    tokens = encode(weights, jets, config)[0].unflatten(0, (jets.shape[1], -1))
    torch.testing.assert_close(tokens[:, 0], reference[f"{size}/cls"], rtol=0, atol=FORWARD)
    particle = tokens[: PARTICLE_JETS[size], 1:]
    torch.testing.assert_close(particle, reference[f"{size}/particle"], rtol=0, atol=FORWARD)


def test_classification_head(reference: dict[str, Tensor]) -> None:
    """Class probabilities from a [CLS] embedding."""
    weights = formula_weights(classifier_shapes(MODELS["S"].dim, CLASSES))
    logits = classifier_logits(
        {name: torch.from_numpy(value)[None] for name, value in weights.items()}, reference["S/cls"][None]
    )
    torch.testing.assert_close(torch.softmax(logits, -1)[0], reference["S/probability"], rtol=0, atol=FORWARD)


@pytest.mark.parametrize("term", HISTORY)
def test_loss_of_eight_steps(reference: dict[str, Tensor], trained: Trained, term: str) -> None:
    """Each term of the loss at each step, through warm-up and the rise of the EMA momentum."""
    ours = torch.tensor(trained[0][term])
    torch.testing.assert_close(ours, reference[f"history/{term}"], rtol=0, atol=LOSS)


@pytest.mark.parametrize("engine", ["plain", "fused"])
def test_loss_with_smeared_padding(reference: dict[str, Tensor], engine: str) -> None:
    """The first three steps on the views as the released code makes them."""
    history, _ = train_on(reference["views"], reference["masked"], engine)
    for term in HISTORY:
        theirs = reference[f"smeared/history/{term}"][:3]
        torch.testing.assert_close(torch.tensor(history[term][:3]), theirs, rtol=0, atol=LOSS)


@pytest.mark.parametrize("step", [1, EPOCHS])
def test_student_after_steps(
    reference: dict[str, Tensor], trained: Trained, step: int, request: pytest.FixtureRequest
) -> None:
    """AdamW: every weight of the student."""
    for name, ours in unpack(trained[1][step].student, CONFIG.model).items():
        # The softmax is blind to the key bias: its gradient is rounding alone, which AdamW divides by its size.
        # The C++ kernel rounds otherwise, and one more weight of 31,920 has such a gradient: it is off by 1.06e-5.
        slack = 2 if "fused" in request.node.name else 1
        atol = LOSS if name.endswith("qkv.bias") else slack * FORWARD
        torch.testing.assert_close(ours[0], reference[f"step{step}/{name}"], rtol=0, atol=atol)


@pytest.mark.parametrize("step", [1, EPOCHS])
def test_centers_after_steps(reference: dict[str, Tensor], trained: Trained, step: int) -> None:
    """The running means of the teacher's outputs; of particles, over all slots."""
    for name in ("cls_center", "particle_center"):
        ours = getattr(trained[1][step], name)[0]
        torch.testing.assert_close(ours, reference[f"step{step}/{name}"], rtol=0, atol=FORWARD)


def test_teacher_after_steps(reference: dict[str, Tensor], trained: Trained) -> None:
    """The exponential moving average of the student."""
    ours = unpack(trained[1][EPOCHS].teacher, CONFIG.model)
    for name in TEACHER_KEPT:
        torch.testing.assert_close(ours[name][0], reference[f"teacher{EPOCHS}/{name}"], rtol=0, atol=FORWARD)


@pytest.mark.parametrize("size", MODELS)
def test_initial_ranges(reference: dict[str, Tensor], size: str) -> None:
    """Kernels are drawn from the same range as in Keras, biases and [CLS] are 0, gains 1.

    The largest of n uniform values lies some 1/n below the limit; the smallest kernel has 128.
    """
    ours = unpack(init_weights(MODELS[size], 0)[None], MODELS[size])
    for name, value in ours.items():
        if name != "mask_token":
            theirs = float(reference[f"initial/{size}/{name}"])
            assert float(value.abs().max()) == pytest.approx(theirs, rel=0.05), name

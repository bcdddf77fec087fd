"""The trainer as the benchmarks see it. All they know of jbot's training code is in this file.

A `Pack` runs whole steps, or the same step part by part (PARTS, in this order). A test holds one against the other.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.counts import Traffic
from benchmarks.timing import NotAvailable
from jbot.augment import augment
from jbot.config import JBOT_B, Config, ModelConfig, override
from jbot.data import hdf5
from jbot.data.jetdata import JetData
from jbot.evaluate import Evaluator, LabeledJets
from jbot.loss import cls_loss, koleo_loss, particle_loss, teacher_targets
from jbot.masking import mask_views
from jbot.model import Flat, cls_rows, encode, project, take_rows, unpack
from jbot.streams import Draws
from jbot.train import adamw, init_state, masked_rows, train, train_step, update_centers

Engine = Literal["plain", "fused", "compiled"]
Precision = Literal["fp32", "bf16"]
ENGINES: tuple[Engine, ...] = ("plain", "compiled", "fused")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
PARTS = ("gather", "augment", "mask", "teacher", "student forward", "backward", "optimiser")
MODELS = {"S": Config(), "B": override(Config(), JBOT_B)}
LEARNING_RATE, MOMENTUM = 5e-4, 0.996

Forward = Callable[..., tuple[Tensor, Tensor]]
"""forward(flat, particles, model_config, masked=None, rows=None) -> (raw, projected)"""


# --- engines --------------------------------------------------------------------------------------------------------


def plain_forward(
    flat: Flat, particles: Tensor, config: ModelConfig, masked: Tensor | None = None, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Encoder and head by eager torch."""
    weights = unpack(flat, config)
    raw = encode(weights, particles, config, masked, rows)
    return raw, project(weights, raw)


@functools.cache
def compiled_forward() -> Forward:
    """The same through torch.compile; the number of masked particles may change from step to step."""
    compiled = torch.compile(plain_forward)

    def forward(
        flat: Flat, particles: Tensor, config: ModelConfig, masked: Tensor | None = None, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if rows is not None:
            torch._dynamo.mark_dynamic(rows, 1)
        return compiled(flat, particles, config, masked, rows)

    return forward


def engine_forward(engine: Engine, device: torch.device) -> Forward:
    """The forward pass of an engine.

    Raises
    ------
    NotAvailable
        When this checkout or this machine has it not.
    """
    if engine == "fused":
        raise NotAvailable("this checkout has no fused kernel")
    if engine == "compiled":
        return compiled_forward()
    return plain_forward


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in bf16, or nothing."""
    if precision == "fp32":
        return contextlib.nullcontext()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise NotAvailable("this GPU has no bf16")
    return torch.autocast(device.type, dtype=torch.bfloat16)


# --- one pack of trials ---------------------------------------------------------------------------------------------


class Pack:
    """Trials of one Config at seeds 0 ... K-1, on jets that lie on the device.

    Parameters
    ----------
    config : Config
        Its batch is the number of jets a step and trial.
    jets : float tensor (jet, particle, 4)
        Drawn from with repetition. Particles beyond the Config's are left out.

    Raises
    ------
    NotAvailable
        When the engine or the precision cannot be had here.
    """

    def __init__(
        self,
        config: Config,
        jets: Tensor,
        *,
        size: int = 1,
        device: torch.device | None = None,
        engine: Engine = "plain",
        precision: Precision = "fp32",
    ):
        self.config, self.size, self.engine, self.precision = config, size, engine, precision
        self.device = device or torch.device("cpu")
        self.forward = engine_forward(engine, self.device)
        self.autocast = functools.partial(autocast, precision, self.device)
        with self.autocast():
            pass
        self.jets = jets[:, : config.data.particles].contiguous().to(self.device)
        self.seeds = torch.arange(size, device=self.device)
        self.state = init_state(config, list(range(size)), self.device)
        self.used: list[float] = []
        self._generator = np.random.default_rng(0)
        self.parts = dict(
            zip(
                PARTS,
                (self._gather, self._augment, self._mask, self._teacher, self._student, self._backward, self._optimise),
                strict=True,
            )
        )
        self.choose_batch()

    @property
    def jets_a_step(self) -> int:
        """Of all trials together."""
        return self.size * self.config.train.batch

    def choose_batch(self) -> None:
        """Which jets the next step takes: new ones for every trial."""
        chosen = self._generator.integers(len(self.jets), size=(self.size, self.config.train.batch))
        self._index = torch.from_numpy(chosen).to(self.device)

    def step(self) -> None:
        """One whole training step."""
        if self.engine == "plain" and self.precision == "fp32":
            self._gather()
            draws = Draws(self.seeds, self.state.step)
            train_step(self.state, self._batch, draws, self.config, LEARNING_RATE, MOMENTUM)
        else:
            for part in self.parts.values():
                part()

    def _gather(self) -> None:
        self._batch = self.jets.index_select(0, self._index.flatten()).unflatten(0, self._index.shape)

    def _augment(self) -> None:
        self._draws = Draws(self.seeds, self.state.step)
        self._views = augment(self._batch, self._draws, self.config.augment)

    def _mask(self) -> None:
        self._masked = mask_views(self._views, self._draws, self.config.mask)
        trials, _, jets, slots, _ = self._views.shape
        self._cls = cls_rows(trials, 2 * jets, slots, self.device)
        self._particle, self._weight = masked_rows(self._masked)
        self._rows = torch.cat((self._cls, self._particle), dim=1)

    def _teacher(self) -> None:
        with torch.no_grad(), self.autocast():
            _, projected = self.forward(self.state.teacher, self._views.flatten(1, 2), self.config.model)
        self._teacher_out = projected.float()

    def _student(self) -> None:
        """The forward pass and the loss."""
        self._flat = self.state.student.detach().requires_grad_()
        views, masked = self._views.flatten(1, 2), self._masked.flatten(1, 2)
        with self.autocast():
            raw, student_out = self.forward(self._flat, views, self.config.model, masked, self._rows)
        self._loss = self._losses(raw.float(), student_out.float())

    def _losses(self, raw: Tensor, student_out: Tensor) -> Tensor:
        jets, loss = self.config.train.batch, self.config.loss
        student_cls = student_out[:, : 2 * jets].unflatten(1, (2, jets))
        teacher_cls = take_rows(self._teacher_out, self._cls).unflatten(1, (2, jets))
        teacher_particle = take_rows(self._teacher_out, self._particle)
        cls_targets = teacher_targets(teacher_cls, self.state.cls_center[:, None, None], loss.teacher_temp)
        targets = teacher_targets(teacher_particle, self.state.particle_center[:, None], loss.teacher_temp)
        student_particle = student_out[:, 2 * jets :]
        particle_term = particle_loss(targets, student_particle, self._weight, loss.student_temp)
        cls_term = cls_loss(cls_targets, student_cls, loss.student_temp)
        koleo_term = koleo_loss(raw[:, :jets])
        total = loss.cls_weight * cls_term + loss.particle_weight * particle_term + loss.koleo_weight * koleo_term
        return total.sum()

    def _backward(self) -> None:
        (self._gradient,) = torch.autograd.grad(self._loss, self._flat)

    def _optimise(self) -> None:
        """AdamW, the teacher's average, the centres."""
        _, _, jets, slots, _ = self._views.shape
        with torch.no_grad():
            adamw(self.state, self._gradient, LEARNING_RATE, self.config.optim)
            self.state.teacher.lerp_(self.state.student, 1.0 - MOMENTUM)
            teacher_out = self._teacher_out.unflatten(1, (2, jets, slots + 1))
            update_centers(self.state, teacher_out, self._views[..., 3], self.config)
        self.state.step += 1

    def used_share(self) -> float:
        """Share of the student's tokens that the loss looks at, in the batch that is chosen."""
        for part in PARTS[:3]:
            self.parts[part]()
        _, _, jets, slots, _ = self._views.shape
        masked = int(self._masked.sum())
        return (self.size * 2 * jets + masked) / (self.size * 2 * jets * (slots + 1))

    def traffic(self) -> int:
        """Bytes that the operations of one step read and write, were none of them fused or cached."""
        with Traffic() as counted:
            self.step()
        return counted.bytes


# --- a trial --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialParts:
    """Seconds of the parts that a trial is made of."""

    a_jet: float
    """Of one jet in one epoch."""
    probe: float
    """Of one point of the learning curves."""
    final: float
    """Of the final metrics."""
    cpu_per_wall: float
    """CPU seconds in a second of all that: below 1 where other load shares the core."""

    def whole(self, config: Config) -> float:
        """Seconds of a whole trial, derived."""
        epochs, every = config.train.epochs, config.probe.every
        points = 1 + epochs // every + (epochs % every > 0)
        # The final metrics are computed twice: for the trained and for the untrained encoder.
        return config.data.train_jets * epochs * self.a_jet + points * self.probe + 2 * self.final


def time_trial(config: Config, data: JetData, sample_jets: int, device: torch.device) -> TrialParts:
    """One epoch on some of the jets and the probes of a trial of this Config, really run.

    Jets are repeated up to the numbers of the Config, which changes what is learned but not what it costs.
    """
    jets = functools.partial(_repeated, data, device)
    wanted = config.data
    bank = jets(min(config.probe.bank_jets, wanted.train_jets))
    evaluator = Evaluator(config, bank, jets(wanted.val_jets), jets(wanted.test_jets))
    short = override(config, {"train.epochs": 1, "probe.every": 1})
    state = init_state(short, [short.seed], device)
    for _ in steps_of(Pack(config, bank.particles, device=device), 5):
        pass  # what is loaded with the first steps is no part of a trial
    wall, cpu = time.perf_counter(), time.process_time()
    train(short, jets(sample_jets).particles, state, evaluator.curve_point, lambda _: None)
    started = time.perf_counter()
    evaluator.final(state)
    final = time.perf_counter() - started
    busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
    return TrialParts(state.train_seconds / sample_jets, state.probe_seconds / len(state.curves), final, busy)


def _repeated(data: JetData, device: torch.device, count: int) -> LabeledJets:
    index = np.random.default_rng(0).permutation(len(data.labels))[np.arange(count) % len(data.labels)]
    return LabeledJets(particles=torch.from_numpy(data.particles[index]).to(device), labels=data.labels[index])


# --- jets -----------------------------------------------------------------------------------------------------------


def read_jets(path: Path) -> JetData:
    """Jets of a file in JetNet's layout; DataError names what is wrong with it."""
    return hdf5.read(path)


def steps_of(pack: Pack, count: int) -> Iterator[None]:
    """Some steps, each on other jets."""
    for _ in range(count):
        pack.choose_batch()
        pack.step()
        yield

"""Our side of against_reference.py: the only place of it that touches our trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from jbot.config import JBOT_B, Config, override
from jbot.encoder.keras_weights import load_backbone
from jbot.trainer.augment import PT, rotate, smear, split
from jbot.trainer.engines.select import Forward, find_engine
from jbot.trainer.flops import step_flop
from jbot.trainer.loop import ema_momentum, learning_rate, run_steps, views_of_steps
from jbot.trainer.masking import SCHEMES, Scene
from jbot.trainer.model import forward, pack
from jbot.trainer.pack import Pack
from jbot.trainer.state import epoch_order, init_state
from jbot.trainer.step import TERMS, train_step

SIZES = {"S": {}, "B": JBOT_B}
SIDES = {
    "plain torch fp32": ("plain", "fp32"),
    "plain torch bf16": ("autocast", "bf16"),
    "kernel fp32": ("fused", "fp32"),
    "kernel bf16": ("fused", "bf16"),
}
"""Engine and precision. Plain bf16 is torch.autocast, as a reader would write it: our own only rounds (no trainer uses
it where there is a kernel)."""
VARIANTS = ("model.padding", "augment.smear_variant", "augment.split_variant")
LOSSES = ("loss", "cls_loss", "particle_loss", "koleo_loss")


class Ours:
    """Our trainer with the released code's starting weights, on the benchmark's batch, in the `reference` variants.

    Parameters
    ----------
    size : str
        S or B.
    exchange : Path
        Folder with what the released side has left there: jets, draws, views, masks and weights. With jets alone,
        views, masks and initial weights are our own.
    side : str
        Of SIDES.
    """

    def __init__(self, size: str, batch: int, exchange: Path, side: str = "kernel fp32"):
        paper = {"train.batch": batch, "optim.lr": 5e-4 * batch / 256}
        cpu, (engine, precision) = torch.device("cpu"), SIDES[side]
        variants = dict.fromkeys(VARIANTS, "reference") | {"train.precision": precision}
        self.config = override(Config(), {**SIZES[size], **paper, **variants})
        self.jets = torch.from_numpy(np.load(exchange / "jets.npy"))
        self.state, self.pack = init_state(self.config, [0], cpu), Pack([self.config], cpu)
        self.forward: Forward = _autocast
        if engine != "autocast":
            self.forward = find_engine(engine, self.config, cpu).forward
        if not (exchange / "backbone.weights.h5").exists():
            views, masked = views_of_steps(self.jets[:batch][None, None], self.state.step, self.pack.hyper((0,), 1))
            self.views, self.masked = views[0, 0], masked[0, 0]
            return
        self.recorded = _tensors(exchange / "recorded.npz")
        self.views, self.masked = _tensors(exchange / "ready_made.npz").values()
        model, weights = load_backbone(exchange / "backbone.weights.h5")
        if model != self.config.model:
            raise ValueError(f"the released model is {model}, ours is {self.config.model}")
        row = pack(weights | dict(np.load(exchange / "head.npz")), model)
        self.state.student.copy_(row)
        self.state.teacher.copy_(row)

    def train(self, part: str) -> None:
        """Choose what the next steps are: `model` (on the ready-made views) or `whole`."""
        self.part = part
        rates = (
            learning_rate(0, self.config.train.epochs, self.config.optim),
            ema_momentum(0, self.config.train.epochs, self.config.teacher),
        )
        self.lr, self.momentum = (torch.tensor([rate], dtype=torch.float64) for rate in rates)
        self.order = iter(epoch_order(len(self.jets), self.config.seed, 0).split(self.config.train.batch))

    def step(self) -> dict[str, float]:
        """One step; returns its losses."""
        if self.part == "whole":  # the next batch, its views and masks, and the model: as jbot.trainer.loop.train does
            jets = self.jets.index_select(0, next(self.order))[None, None]
            sums = run_steps(self.state, jets, self.pack, (0,), self.lr, self.momentum, self.forward)
            terms = dict(zip(TERMS, sums, strict=True))
        else:
            views, masked, hyper = self.views[None], self.masked[None], self.pack.hyper((0,))
            terms = train_step(self.state, views, masked, hyper, self.lr, self.momentum, self.forward)
        return {name: float(terms[name][0]) for name in LOSSES}

    def gflop(self) -> float:
        """What a step on the ready-made views needs (:mod:`jbot.trainer.flops`)."""
        views = self.masked[..., 0].numel()
        used = (views + int(self.masked.sum())) / (views * (self.masked.shape[-1] + 1))
        return step_flop(self.config, used) * self.config.train.batch / 1e9

    def augmentation_parity(self) -> dict[str, float]:
        """Our views and masks from the numbers that the released code drew, against its own.

        `views`: largest difference, relative where a coordinate is beyond 1 (smeared padding lies up to 1000 away);
        `masks`: views of which another particle is masked.
        """
        theirs, config = self.recorded, self.config.augment
        jets = self.jets[: theirs["views"].shape[1]].expand(1, 2, -1, -1, -1)
        sigma = config.smear_sigma / jets[..., PT].clamp(min=1e-6)
        noise = (theirs["shift"] / sigma[..., None].double()).float()
        views = smear(rotate(jets, theirs["angle"].float()[None]), noise, config.smear_sigma, reference=True)
        key, share = theirs["split_key"].float()[None], theirs["share"].float()[None]
        views = split(views, key, share, config.split_fraction, reference=True)
        difference = (views[0] - theirs["views"]).abs() / theirs["views"].abs().clamp(min=1.0)
        order = theirs["mask_key"][None]
        masked = SCHEMES["momentum"](Scene(theirs["views"][None], theirs["ratio"][None], order, order))[0]
        return {
            "views": float(difference.max()),
            "masks": int((masked != theirs["masked"]).any(-1).sum()),
            "masked_particles": int(theirs["masked"].sum()),
        }


def _autocast(flat: torch.Tensor, *rest: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw, projected = forward(flat, *rest, **named)
    return raw.to(flat.dtype), projected.to(flat.dtype)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

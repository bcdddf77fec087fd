"""Worker of against_reference.py: our trainer, through the class `Ours`, the only place that touches it.

Started by the driver.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from worker_pipe import Pipe, Stopwatch

from jbot.config import JBOT_B, Config, override
from jbot.encoder.keras_weights import load_backbone
from jbot.trainer.augment import PT, rotate, smear, split
from jbot.trainer.engines.select import find_engine
from jbot.trainer.loop import ema_momentum, learning_rate, run_steps
from jbot.trainer.masking import SCHEMES, Scene
from jbot.trainer.model import pack
from jbot.trainer.pack import Pack
from jbot.trainer.state import epoch_order, init_state
from jbot.trainer.step import TERMS, train_step
from jbot.trial.provenance import git_commit, hardware, library_versions

SIZES = {"S": {}, "B": JBOT_B}
VARIANTS = ("model.padding", "augment.smear_variant", "augment.split_variant")
LOSSES = ("loss", "cls_loss", "particle_loss", "koleo_loss")


class Ours:
    """Our trainer on the benchmark's batch: starting weights, one step on ready-made views, one whole step.

    Parameters
    ----------
    size : str
        S or B.
    variant : str
        `reference` or `corrected`: what the timed steps compute. Parity is always of `reference`.
    """

    def __init__(self, size: str, variant: str, batch: int, exchange: Path):
        paper = {"train.batch": batch, "optim.lr": 5e-4 * batch / 256}
        base = override(Config(), SIZES[size] | paper)
        self.configs = {name: override(base, dict.fromkeys(VARIANTS, name)) for name in ("reference", variant)}
        self.config = self.configs["reference"]
        self.variant = variant
        self.jets = torch.from_numpy(np.load(exchange / "jets.npy"))
        self.recorded = _tensors(exchange / "recorded.npz")
        self.views, self.masked = _tensors(exchange / "ready_made.npz").values()
        self.state = init_state(self.config, [0], torch.device("cpu"))
        model, weights = load_backbone(exchange / "backbone.weights.h5")
        if model != self.config.model:
            raise ValueError(f"the released model is {model}, ours is {self.config.model}")
        row = pack(weights | dict(np.load(exchange / "head.npz")), model)
        self.state.student.copy_(row)
        self.state.teacher.copy_(row)

    def train(self, part: str) -> None:
        """Choose what the next steps are: `parity`, `model` (both on the ready-made views) or `whole`."""
        self.part = part
        self.config = self.configs["reference" if part == "parity" else self.variant]
        cpu = torch.device("cpu")
        self.pack, self.engine = Pack([self.config], cpu), find_engine("auto", self.config, cpu)
        rates = learning_rate(0, self.config.optim), ema_momentum(0, self.config.train.epochs, self.config.teacher)
        self.lr, self.momentum = (torch.tensor([rate], dtype=torch.float64) for rate in rates)
        self.order = iter(epoch_order(len(self.jets), self.config.seed, 0).split(self.config.train.batch))

    def step(self) -> dict[str, float]:
        """One step; returns its losses."""
        terms = self.whole_step() if self.part == "whole" else self.step_on_ready_made_views()
        return {name: float(terms[name][0]) for name in LOSSES}

    def step_on_ready_made_views(self) -> dict[str, torch.Tensor]:
        """The model part."""
        hyper = self.pack.hyper((0,))
        return train_step(
            self.state, self.views[None], self.masked[None], hyper, self.lr, self.momentum, self.engine.forward
        )

    def whole_step(self) -> dict[str, torch.Tensor]:
        """The next batch, its views and masks, and the model part: as jbot.trainer.loop.train does it."""
        jets = self.jets.index_select(0, next(self.order))[None, None]
        sums = run_steps(self.state, jets, self.pack, (0,), self.lr, self.momentum, self.engine.forward)
        return dict(zip(TERMS, sums, strict=True))

    def augmentation_parity(self) -> dict[str, float]:
        """Our views and masks from the numbers that the released code drew, against its own.

        `views`: largest difference, relative where a coordinate is beyond 1 (smeared padding lies up to 1000 away);
        `masks`: views of which another particle is masked.
        """
        theirs, config = self.recorded, self.configs["reference"].augment
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


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def prepare(size: str, variant: str, batch: int, exchange: str) -> tuple[Ours, dict[str, Any]]:
    """Our trainer with the released code's starting weights, and what to say of it."""
    ours = Ours(size, variant, batch, Path(exchange))
    return ours, {
        "augmentation": ours.augmentation_parity(),
        "libraries": library_versions(),
        "hardware": hardware(torch.device("cpu")),
        "git_commit": git_commit(),
        "threads": torch.get_num_threads(),
        "engine": find_engine("auto", ours.config, torch.device("cpu")).name,
    }


def main() -> None:
    """Serve the driver until it closes the pipe."""
    pipe = Pipe()
    parser = argparse.ArgumentParser(description="Worker of against_reference.py, which starts it.")
    parser.add_argument("--threads", type=int, required=True)
    torch.set_num_threads(parser.parse_args().threads)
    while True:
        request = pipe.receive()
        action = request.pop("do")
        if action == "prepare":
            ours, answer = prepare(**request)
            pipe.send(**answer)
        elif action == "train":
            ours.train(**request)
            pipe.send(**request)
        else:
            watch = Stopwatch()
            losses = ours.step()
            pipe.send(**watch.read(), losses=losses)


if __name__ == "__main__":
    main()

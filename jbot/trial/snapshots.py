"""The arrays a trial leaves for figures: embeddings of the same test jets over training, and a few jets up close.

They cost two or three forward passes of PICTURE_JETS jets and are never read by the trainer again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jbot.config import Config, MaskConfig, ModelConfig
from jbot.store.record import trial_folder
from jbot.store.storage import Storage
from jbot.trainer.augment import augment
from jbot.trainer.embed import embed
from jbot.trainer.engines.select import Forward
from jbot.trainer.inputs import LabeledJets
from jbot.trainer.masking import mask_views
from jbot.trainer.model import Flat, encode, forward, named_weights, unpack
from jbot.trainer.rng import Draws
from jbot.trainer.state import TrainState
from jbot.trainer.workload import SNAPSHOT_EPOCHS

PICTURE_JETS = 1_000


def save_snapshot(
    storage: Storage, trial: str, config: Config, state: TrainState, test: LabeledJets, forward: Forward = forward
) -> None:
    """The weights, and the embedding of some test jets, at one of SNAPSHOT_EPOCHS; nothing at other epochs.

    To be called before a checkpoint of the same epoch is written: then a trial that goes on from a checkpoint has
    all snapshots up to there, and makes the later ones itself. `state` is a pack of one.
    """
    if state.epoch in SNAPSHOT_EPOCHS and state.epoch < config.train.epochs:
        folder, epoch = trial_folder(trial), f"{state.epoch:04d}"
        storage.write_arrays(f"{folder}/student-{epoch}.safetensors", named_weights(state.student, config.model))
        _save_embedding(storage, f"{folder}/embedding-{epoch}", config, state, test, forward)


def save_pictures(
    storage: Storage, trial: str, config: Config, state: TrainState, test: LabeledJets, forward: Forward = forward
) -> None:
    """The embedding of some test jets after training, and one jet of each class: views, masks, attention.

    ``embedding.safetensors``: `cls` (jet, dim), `label` (jet,). ``examples.safetensors``: `particles`
    (jet, particle, 4) and `masked` (jet, particle), of the jet as it is; `views` (jet, 2, particle, 4) and
    `views_masked` (jet, 2, particle), as the student sees it in training; `attention` (jet, layer, head,
    particle + 1), that of [CLS], to itself first, on the jet as it is; `label` (jet,).
    """
    folder = trial_folder(trial)
    _save_embedding(storage, f"{folder}/embedding", config, state, test, forward)
    shown = first_of_each_class(test.labels)
    jets = test.take(torch.from_numpy(shown).to(test.rows.device))
    storage.write_arrays(
        f"{folder}/examples.safetensors",
        {name: value.cpu().numpy() for name, value in examples(jets, state.student, config).items()}
        | {"label": test.labels[shown].astype(np.int64)},
    )


def first_of_each_class(labels: np.ndarray) -> np.ndarray:
    """Index of the first jet of each class that is there, (class,) int64."""
    return np.unique(labels, return_index=True)[1]


def examples(jets: Tensor, student: Flat, config: Config) -> dict[str, Tensor]:
    """Jets (jet, particle, 4), as the arrays that :func:`save_pictures` names.

    Masks have the middle of the scheme's ratios, so that every figure shows a typical one.
    """
    middle = (config.mask.ratio_low + config.mask.ratio_high) / 2
    typical = MaskConfig(scheme=config.mask.scheme, ratio_low=middle, ratio_high=middle)
    draws = Draws(torch.tensor([config.seed], device=jets.device), 0)
    whole = jets[None, None].expand(-1, 2, -1, -1, -1)
    views = augment(jets[None], draws, config.augment)
    return {
        "particles": jets,
        "masked": mask_views(whole, draws, typical)[0, 0],
        "views": views[0].transpose(0, 1),
        "views_masked": mask_views(views, draws, typical)[0].transpose(0, 1),
        "attention": cls_attention(student, jets, config.model),
    }


def cls_attention(student: Flat, jets: Tensor, config: ModelConfig) -> Tensor:
    """Attention of [CLS] in every block, (jet, layer, head, particle + 1): shares that sum to 1, its own first."""
    attentions: list[Tensor] = []
    with torch.no_grad():
        encode(unpack(student[:1], config), jets[None], config, attentions=attentions)
    return torch.stack([attention[0, :, :, 0] for attention in attentions], dim=1).float()


def _save_embedding(
    storage: Storage, name: str, config: Config, state: TrainState, test: LabeledJets, forward: Forward
) -> None:
    some = test.take(slice(PICTURE_JETS))
    cls = embed(state.student, some, config, forward)
    labels = test.labels[: len(some)].astype(np.int64)
    storage.write_arrays(f"{name}.safetensors", {"cls": cls, "label": labels})

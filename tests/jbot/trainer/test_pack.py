import dataclasses

import pytest
import torch

from jbot.config import Config, override
from jbot.trainer.pack import Pack, PackError, column, pack_key, stack

CPU = torch.device("cpu")


def test_the_key_feels_what_is_shared_alone():
    base = pack_key(Config())
    assert base == pack_key(override(Config(), {"optim.lr": 1.0, "seed": 3, "mask.scheme": "none"}))
    assert base != pack_key(override(Config(), {"model.dim": 64}))
    assert base != pack_key(override(Config(), {"train.batch": 64}))


def test_a_pack_names_what_its_trials_must_share():
    with pytest.raises(PackError, match=r"trials of a pack must share model\.layers, got 2 and 4"):
        Pack([Config(), override(Config(), {"model.layers": 4})], CPU)


def test_a_stack_reads_like_a_config():
    configs = [Config(), override(Config(), {"loss.koleo_weight": 0.5, "mask.scheme": "none", "seed": 7})]
    stacked = stack(configs, CPU)
    torch.testing.assert_close(stacked.loss.koleo_weight, torch.tensor([0.01, 0.5]))
    assert stacked.optim.beta2.tolist() == [0.999, 0.999]  # float64: 1 - beta2 keeps its digits
    assert stacked.seed.tolist() == [0, 7]
    assert stacked.model == Config().model
    assert stacked.data.task == "all"
    assert {scheme: rows.tolist() for scheme, rows in stacked.mask.scheme.items()} == {"momentum": [0], "none": [1]}


def test_an_augmentation_is_a_number_only_where_it_is_off_in_all():
    off = override(Config(), {"augment.rotation": 0.0, "augment.smear_sigma": 0.0})
    both = stack([off, override(off, {"augment.smear_sigma": 1.0})], CPU)
    assert both.augment.rotation == 0.0
    assert both.augment.smear_sigma.tolist() == [0.0, 1.0]
    whole = dataclasses.replace(Config().augment, smear_sigma=0)  # a whole number is a float field's value too
    mixed = stack([dataclasses.replace(Config(), augment=whole), Config()], CPU)
    assert mixed.augment.smear_sigma.tolist() == [0.0, pytest.approx(Config().augment.smear_sigma)]


def test_stacks_are_made_once_and_repeat_step_by_step():
    pack = Pack([override(Config(), {"seed": seed}) for seed in (3, 4, 5)], CPU)
    assert pack.hyper((0, 2), 2).seed.tolist() == [3, 5, 3, 5]
    assert pack.hyper((0, 2), 2) is pack.hyper((0, 2), 2)


def test_columns():
    assert column(torch.arange(3.0), 2).shape == (3, 1, 1)
    assert column(0.5, 2) == 0.5

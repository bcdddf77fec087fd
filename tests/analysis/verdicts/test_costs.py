"""What trials cost, from records: hand-made ones of 1 s a step, 10 s of probes, 100 s of fine-tuning."""

from types import SimpleNamespace

import pytest

from analysis.verdicts.costs import HOUR, CostModel, Prices, hours_text, total
from jbot.config import Config, override, to_dict
from jbot.trainer.flops import training_flop
from jbot.trainer.workload import curve_epochs, finetune_steps, jet_passes, train_steps

BASE = override(Config(), {"data.train_jets": 1000, "train.batch": 100, "train.epochs": 20, "probe.every": 10})
TUNED = override(BASE, {"finetune.fractions": [1.0], "finetune.epochs": 5, "finetune.batch": 100})


def record_of(config: Config, device: str = "cpu", threads: int = 1, state: str = "complete") -> SimpleNamespace:
    finetune = 100.0 if config.finetune.fractions else 0.0
    return SimpleNamespace(
        config=to_dict(config), state=state, probe_seconds=10.0, finetune_seconds=finetune,
        device_seconds=train_steps(config) + 10.0 + finetune, hardware={"device": device, "threads": threads},
    )  # fmt: skip


def test_a_training_that_stops_early_has_less_to_do():
    short = override(BASE, {"train.until": 5})
    assert (train_steps(BASE), train_steps(short)) == (20 * 10, 5 * 10)
    assert (jet_passes(BASE), jet_passes(short)) == (20_000, 5_000)
    assert training_flop(short, 0.25) == pytest.approx(training_flop(BASE, 0.25) / 4)
    assert curve_epochs(short) == [0, 1, 5]


def test_a_training_that_stops_early_costs_less():
    short = override(BASE, {"train.until": 10})  # probed as often: at 0, 1, 10
    model = CostModel([record_of(short)])
    assert model.estimate(override(short, {"seed": 3})).seconds == 100 + 10
    longer = override(BASE, {"train.until": 10, "train.epochs": 40})
    assert model.estimate(longer).seconds == 100 + 10
    assert model.estimate(longer).basis == ("training: records of the same work", "probes: records of the same work")
    assert model.estimate(BASE) is None  # probed once more: no record knows
    assert CostModel([record_of(BASE)]).estimate(override(BASE, {"optim.lr": 1e-4})).seconds == 200 + 10


def test_parts_come_from_different_records():
    other = override(TUNED, {"finetune.fractions": [0.5], "optim.lr": 1e-4})
    model = CostModel([record_of(BASE), record_of(TUNED)])
    assert finetune_steps(TUNED) == 2 * finetune_steps(other)
    assert model.estimate(TUNED).seconds == 200 + 10 + 100
    assert model.estimate(other).seconds == 200 + 10 + 50
    assert model.estimate(TUNED, encoder_reused=True).seconds == 10 + 100


def test_what_no_record_knows_is_timed_once():
    asked = []

    def time_unit(part, config):
        asked.append(part.name)
        return 2.0

    model = CostModel([record_of(BASE, state="failed")], time_unit=time_unit, where="one CPU thread")
    costs = [model.estimate(override(BASE, {"optim.lr": lr})) for lr in (1e-3, 2e-3)]
    assert [cost.seconds for cost in costs] == [400 + 2.0] * 2
    assert asked == ["training", "probes"]
    whole = total(costs)
    assert (whole.trials, whole.seconds, whole.longest, whole.measured) == (2, 804.0, 402.0, False)
    assert whole.basis == ("training: timed here on one CPU thread", "probes: timed here on one CPU thread")


def test_hours_are_of_the_device_that_a_record_had():
    prices = Prices([record_of(BASE, threads=2), record_of(BASE, threads=2), record_of(BASE, device="cuda:0")])
    plan = SimpleNamespace(base=to_dict(BASE), arms={"base": {}, "wide": {"model.dim": 64}})
    assert prices.unit == "core"
    assert prices.of_block(plan, "core") == {"base": 2 * 210 / HOUR, "wide": None}
    assert prices.of_block(plan, "GPU") == {"base": 210 / HOUR, "wide": None}
    assert (hours_text(0.0341, "core"), hours_text(310.4)) == ("0.034 core hours", "310")

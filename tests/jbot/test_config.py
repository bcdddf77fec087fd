import dataclasses
import json

import pytest

from jbot.config import (
    FIELDS,
    JBOT_B,
    MIN_ANOMALY_BANK,
    Config,
    ConfigError,
    LossConfig,
    describe_fields,
    flatten,
    from_dict,
    override,
    parse_value,
    to_dict,
)
from jbot.evaluation.anomaly.scores import MIN_BANK
from jbot.field import collect_fields
from jbot.store.record import trial_id


def test_defaults_are_the_papers_recipe():
    flat = flatten(Config())
    assert flat["train.batch"] == 1024
    assert flat["train.epochs"] == 80
    assert flat["optim.lr"] == 5e-4 * 1024 / 256
    assert (flat["loss.teacher_temp"], flat["loss.student_temp"], flat["loss.koleo_weight"]) == (0.04, 0.1, 0.01)
    assert override(Config(), JBOT_B).model.head_dim == 10  # 64 // 6, as released


@pytest.mark.parametrize("known", FIELDS.values(), ids=lambda known: known.name)
def test_a_field_says_what_it_sets_in_which_range_and_for_whom(known):
    assert isinstance(known.shared, bool)
    said = known.words(known.default)
    assert said
    assert "{" not in said
    assert said != known.label
    for value, words in known.names.items():
        assert known.words(value) == words
    if known.item in (int, float):
        numbers = [known.low if known.above is None else known.above, known.high]
        assert -float("inf") < numbers[0] < numbers[1]
        assert known.unit == "" or known.unit in ("rad", "GeV", "epochs")


def test_a_field_without_label_is_none():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Forgetful(LossConfig):
        margin: float = 0.5

    with pytest.raises(TypeError, match=r"missing .* 'label', 'shared'"):
        collect_fields(Forgetful)


def test_fields_in_words():
    assert FIELDS["augment.rotation"].words(0.5) == "rotation up to 0.5 rad"
    assert FIELDS["augment.rotation"].words(0) == "no rotation"
    assert FIELDS["data.train_jets"].words(20_000) == "20,000 training jets"
    assert FIELDS["probe.jet_pts"].words([500, 2000]) == "evaluated also at 500, 2000 GeV"
    with pytest.raises(ConfigError, match=r"data\.train_jets must be int, got 'many'"):
        FIELDS["data.train_jets"].words("many")
    rows = {name: rest for name, *rest in describe_fields()}
    assert list(rows) == list(flatten(Config()))
    assert rows["optim.lr"] == ["(0, inf]", "learning rate 0.002"]
    assert rows["mask.token"] == ["one of learned, zero, none", "a learned mask token"]
    assert rows["finetune.fractions"] == ["list of (0, 1]", "not fine-tuned"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask.sceme": "random"}, "unknown Config field 'mask.sceme'; did you mean 'mask.scheme'?"),
        ({"mask.scheme": "spiral"}, "mask.scheme must be one of momentum, random"),
        ({"optim.lr": 0}, "optim.lr must be finite and in (0, inf], got 0"),
        ({"optim.lr": float("nan")}, "optim.lr must be finite"),
        ({"train.epochs": 2.5}, "train.epochs must be int, got 2.5 (float)"),
        ({"teacher.centering": 1}, "teacher.centering must be bool, got 1 (int)"),
        ({"mask.ratio_high": 1.5}, "mask.ratio_high must be finite and in [0, 1], got 1.5"),
        ({"mask.ratio_low": 0.9}, "mask.ratio_low must not exceed mask.ratio_high, got 0.9 > 0.5"),
        ({"finetune.fractions": 0.1}, "finetune.fractions must be a list like [0.1, 1], got 0.1"),
        ({"finetune.fractions": [0.1, 0]}, "finetune.fractions must be finite and in (0, 1], got 0"),
        ({"finetune.fractions": ["all"]}, "finetune.fractions must be float, got 'all' (str)"),
        ({"finetune.fractions": [1, 1.0]}, "finetune.fractions must differ in six digits, got (1.0, 1.0)"),
        (
            {"finetune.fractions": [0.1], "data.train_jets": 44},
            "at least 5 labeled jets, so that each class has one, got",
        ),
        ({"finetune.fractions": [1], "data.task": "qg"}, "finetune.fractions must be empty for data.task qg"),
        ({"data.task": "qg", "data.train_jets": 90}, "data.train_jets and probe.bank_jets must be at least 100"),
        (
            {"probe.knn_k": 31, "probe.bank_jets": 30},
            "must not exceed data.train_jets and probe.bank_jets, got 31 > 30",
        ),
        ({"model.dim": 2}, "model.dim must be at least model.heads, got 2 < 4"),
    ],
)
def test_bad_values_name_rule_and_value(changes, words):
    with pytest.raises(ConfigError) as error:
        override(Config(), changes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_least_bank_is_that_of_the_scores():
    assert MIN_ANOMALY_BANK == MIN_BANK


def test_flatten_gives_dotted_fields_of_any_dictionary():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "seed": 3}) == {"a.b": 1, "a.c.d": 2, "seed": 3}
    assert flatten(Config()) == {name: known.default for name, known in FIELDS.items()}


def test_round_trip_through_json_types():
    config = override(Config(), {"mask.scheme": "none", "finetune.fractions": [0.1, 1], "seed": 7})
    assert config.finetune.fractions == (0.1, 1.0)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert trial_id(config, "data", "1") == trial_id(from_dict(to_dict(config)), "data", "1")


def test_whole_number_for_a_float_is_the_same_trial():
    one, also_one = override(Config(), {"optim.lr": 1}), override(Config(), {"optim.lr": 1.0})
    assert trial_id(one, "data", "1") == trial_id(also_one, "data", "1")


def test_trial_id_feels_config_data_and_trainer():
    config = Config()
    ids = {
        trial_id(config, "data", "1"),
        trial_id(override(config, {"seed": 1}), "data", "1"),
        trial_id(config, "other data", "1"),
        trial_id(config, "data", "2"),
    }
    assert len(ids) == 4


def test_command_line_values():
    assert parse_value("train.epochs", "8") == 8
    assert parse_value("teacher.centering", "false") is False
    assert parse_value("mask.scheme", "random") == "random"
    assert parse_value("finetune.fractions", "[0.1, 1]") == [0.1, 1]
    with pytest.raises(ConfigError, match=r"train\.epochs must be int, got 'eight'"):
        override(Config(), {"train.epochs": parse_value("train.epochs", "eight")})

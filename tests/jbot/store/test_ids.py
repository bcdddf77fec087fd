"""Ids of trials, plans and searches: what moves them, and that a later field of a Config, Plan or Contrast does not."""

import dataclasses
import json

import pytest

import jbot
from analysis.verdicts import provenance
from jbot.config import JBOT_B, Config, LossConfig, differences, flatten, override, to_dict, with_defaults
from jbot.field import collect_fields, per_trial
from jbot.store.plan import Contrast, Plan, PlannedTrial, load_study, save_study
from jbot.store.record import Record, load_record, not_reused, read_record, save_record, trial_id
from jbot.store.search_ledger import SearchPlan
from jbot.store.storage import Storage

VERSION = "4"
GOLDEN = {
    "base": {},
    "jbot_b": JBOT_B,
    "random": {"mask.scheme": "random", "seed": 4},
    "no_koleo": {"loss.koleo_weight": 0, "train.epochs": 8},
    "schedule": {"train.schedule": ["4 optim.lr=0.001"], "probe.jet_pts": [500, 1000]},
}
IDS = {
    "base": "b305c01b21a3e3ab",
    "jbot_b": "133315f75d94be09",
    "random": "a6a642dcbc2ef0a8",
    "no_koleo": "8d57e7031b41c4d0",
    "schedule": "fad701bdacdd03f7",
    "plan": "fd2a16d4cd758e31",
}
DEFAULTS = {
    "data": {"task": "all", "train_jets": 700000, "labeled_jets": 0, "val_jets": 50000, "test_jets": 95000,
     "signal_jets": 0, "particles": 30, "jet_pt": 1000.0},
    "augment": {"rotation": 3.141592653589793, "smear_sigma": 0.0003, "smear_variant": "corrected",
     "split_fraction": 1.0, "split_low": 0.3, "split_variant": "corrected", "translation": 0.0, "boost": 0.0,
     "pt_sigma": 0.0, "soft_dropout": 0.0, "soft_pt": 0.01},
    "mask": {"scheme": "momentum", "ratio_low": 0.0, "ratio_high": 0.5, "probability": 1.0, "token": "learned"},
    "model": {"dim": 32, "heads": 4, "layers": 2, "projection": 16, "padding": "corrected"},
    "loss": {"cls_weight": 1.0, "particle_weight": 1.0, "koleo_weight": 0.01, "student_temp": 0.1,
     "teacher_temp": 0.04},
    "teacher": {"ema_momentum": 0.996, "ema_final": 1.0, "centering": True, "center_momentum": 0.9},
    "optim": {"lr": 0.002, "warmup_epochs": 10, "final_lr": 1.0, "weight_decay": 0.0001, "beta1": 0.9,
     "beta2": 0.999, "eps": 1e-07},
    "train": {"epochs": 80, "batch": 1024, "precision": "fp32", "dropout": 0.0, "until": 0, "schedule": [],
     "perturbation": 0.0},
    "probe": {"every": 10, "bank_jets": 50000, "knn_k": 30, "jet_pts": []},
    "finetune": {"fractions": [], "twin": True, "epochs": 100, "batch": 1024, "lr": 0.0004, "layer_decay": 0.65,
     "dropout": 0.2, "patience": 100, "tolerance": 0.0001},
    "anomaly": {"bank_jets": 20000, "scan": False},
    "seed": 0,
}  # fmt: skip
MOVED = (
    "{what} has moved. Every stored trial would be orphaned, or taken for one that trains otherwise: raise"
    " jbot.TRAINER_VERSION, and renew VERSION, IDS and DEFAULTS here"
)


def plan(**changes):
    fields = {
        "study": "s",
        "question": "Does it?",
        "preset": "smoke",
        "arms": {"base": {}, "random": {"mask.scheme": "random"}},
        "base": to_dict(override(Config(), {"train.epochs": 8})),
        "seeds": (0, 1),
        "metric": "test/knn_accuracy",
        "higher_is_better": True,
        "margin": 0.01,
        "contrasts": (Contrast(treatment="random", control="base", primary=True),),
        "trainer_version": VERSION,
    }
    return Plan(**fields | changes)


def search(**changes):
    fields = {
        "study": "s", "question": "Which?", "preset": "smoke", "base": to_dict(Config()), "space": (), "first": {},
        "objectives": ("accuracy",), "metric": "val/knn_accuracy", "seed": 1, "startup": 4, "first_rung": 1,
        "reduction": 2, "epochs": 8, "data": {"source": "x", "fingerprint": "f"},
    }  # fmt: skip
    return SearchPlan(**fields | changes)


@pytest.mark.parametrize("name", GOLDEN)
def test_ids_move_with_the_trainer_version_alone(name):
    assert trial_id(override(Config(), GOLDEN[name]), "jets", VERSION) == IDS[name], MOVED.format(what=name)
    assert jbot.TRAINER_VERSION == VERSION, "the trainer has another version: renew VERSION, IDS and DEFAULTS here"


def test_the_hash_of_a_plan_moves_with_the_trainer_version_alone():
    assert plan().hash == IDS["plan"], MOVED.format(what="the plan")
    assert plan(trainer_version="5").hash != plan().hash


def test_a_default_moves_with_the_trainer_version_alone():
    """An id holds no default: with another one, stored trials would be taken for what trains otherwise."""
    now, then = flatten(to_dict(Config())), flatten(DEFAULTS)
    assert {name: now[name] for name in then} == then, MOVED.format(what="a default")
    assert set(now) == set(then), "a new field belongs into DEFAULTS: its default must change nothing"


def test_differences_are_what_is_not_at_its_default():
    assert differences(Config()) == {}
    changed = override(Config(), {"loss.koleo_weight": 1, "probe.jet_pts": [500], "augment.boost": -0.0})
    assert differences(changed) == {"loss.koleo_weight": 1.0, "probe.jet_pts": (500.0,)}
    assert differences(to_dict(changed)) == differences(changed)
    whole = dataclasses.replace(Config(), loss=LossConfig(koleo_weight=1))  # past override(), which makes floats
    assert json.dumps(differences(whole)) == '{"loss.koleo_weight": 1.0}'


@pytest.fixture
def younger(monkeypatch):
    """A program with one more field in a Config, a Plan and a Contrast."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class YoungerLoss(LossConfig):
        ring_weight: float = per_trial(0.0, "ring weight {:g}", 0)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class YoungerConfig(Config):
        loss: YoungerLoss = dataclasses.field(default_factory=YoungerLoss)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class YoungerContrast(Contrast):
        side: str = "two"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class YoungerPlan(Plan):
        guards: dict = dataclasses.field(default_factory=dict)

    YoungerConfig.__annotations__["loss"] = YoungerLoss  # both are local names
    monkeypatch.setattr("jbot.config.FIELDS", collect_fields(YoungerConfig))
    return YoungerConfig, YoungerPlan, YoungerContrast


@pytest.mark.parametrize("name", GOLDEN)
def test_a_new_field_moves_no_id(younger, name):
    config = override(younger[0](), GOLDEN[name])
    assert "loss.ring_weight" in flatten(config)
    assert trial_id(config, "jets", VERSION) == IDS[name]
    assert trial_id(override(config, {"loss.ring_weight": 0.5}), "jets", VERSION) != IDS[name]


def test_a_new_field_moves_no_plan(younger):
    config, younger_plan, contrast = younger
    base = to_dict(override(config(), {"train.epochs": 8}))
    assert base["loss"]["ring_weight"] == 0.0
    contrasts = (contrast(treatment="random", control="base", primary=True),)
    one = younger_plan(**vars(plan(base=base, contrasts=contrasts)))
    assert one.hash == IDS["plan"]
    assert dataclasses.replace(one, guards={"x": 1}).hash != one.hash
    assert search(base=to_dict(config())).hash == search().hash
    assert search(base=to_dict(override(config(), {"loss.ring_weight": 0.5}))).hash != search().hash


def record(config, **changes):
    return Record(
        trial_id="abc", state="complete", study="s", arm="base", config=config,
        data={"fingerprint": "f", "source": "x"}, started="2026-01-01T00:00:00+00:00", wall_seconds=1.0,
        device_seconds=0.5, metrics={"test/knn_accuracy": 0.5},
        **{"plan_hash": "p", "trainer_version": VERSION} | changes,
    )  # fmt: skip


def test_an_older_record_and_plan_get_new_fields_and_say_which(tmp_path, younger):
    storage, own = Storage(tmp_path), plan()
    older = to_dict(override(Config(), {"seed": 0}))
    save_record(storage, record(older, plan_hash=own.hash))
    save_study(storage, own, {"source": "x", "fingerprint": "f"}, [PlannedTrial(arm="base", seed=0, trial_id="abc")])
    found = load_record(storage, "abc", strict=True)
    assert found.from_defaults == ("loss.ring_weight",)
    assert found.config["loss"] == older["loss"] | {"ring_weight": 0.0}
    study = load_study(str(tmp_path / "s"))
    assert study.plan.base["loss"]["ring_weight"] == 0.0
    assert study.plan.hash == own.hash
    assert provenance.facts(study)["At their defaults"] == "loss.ring_weight: younger than the files"
    assert provenance.deviations(study) == []
    save_record(storage, found)
    assert "from_defaults" not in storage.read_json("trials/abc/record.json")
    assert read_record(storage, "trials/abc/record.json").from_defaults == ()


def test_what_is_no_field_stays_and_what_is_no_group_too():
    filled, lacking = with_defaults({"loss": {"older": 1}, "mask": 3, "seed": 2})
    assert filled["loss"] == {"older": 1} | vars(LossConfig())
    assert (filled["mask"], filled["seed"]) == (3, 2)
    assert "loss.koleo_weight" in lacking
    assert not any(name.startswith("mask.") for name in lacking)
    assert with_defaults({"loss": {}})[0].get("seed") is None  # which seed it was, no default tells


def test_a_plan_of_an_older_program_keeps_the_hash_that_its_records_carry(tmp_path):
    """Before trainer version 3 a plan's hash was that of all its content, and the version did not stand in it."""
    storage = Storage(tmp_path)
    content = json.loads(json.dumps(dataclasses.asdict(plan())))
    for name in ("trainer_version", "looks"):
        del content[name]
    hashed = jbot.config.digest(content)
    trials = [{"arm": "base", "seed": 0, "trial_id": "abc"}]
    data = {"source": "x", "fingerprint": "f"}
    storage.write_json("s/study.json", {"plan": content, "plan_hash": hashed, "data": data, "trials": trials})
    save_record(storage, record(to_dict(Config()), plan_hash=hashed, trainer_version="2"))
    study = load_study(str(tmp_path / "s"))
    assert study.plan.trainer_version == ""
    assert study.plan.hash != plan().hash  # it is another plan: its trials are not those of this trainer
    assert provenance.deviations(study) == []
    content["margin"] = 0.02
    storage.write_json("s/study.json", {"plan": content, "plan_hash": hashed, "data": data, "trials": trials})
    assert "study.json was changed after it was written" in provenance.deviations(load_study(str(tmp_path / "s")))[0]


def test_what_a_storage_holds_of_other_trainers_is_said():
    ours, theirs = record(to_dict(Config())), record(to_dict(Config()), trainer_version="1")
    assert not_reused([ours]) == []
    assert not_reused([theirs, ours, theirs]) == [
        f"2 trials of trainer version 1 (this is {VERSION}): reports read them, but no study reuses them"
    ]

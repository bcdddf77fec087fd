"""Every study file at every preset: what it plans, shares and costs."""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, TINY

from analysis.report.sections.scaling import lines_over_jets, lines_over_models
from analysis.verdicts.component_design import added_alone, alias_lines, left_out
from jbot.config import Config, ConfigError, flatten, override
from jbot.store.record import TrialSpec, trial_folder
from jbot.store.storage import Storage
from jbot.trainer.model import weight_count
from jbot.trial.run import run_pack
from search_spaces import components
from search_spaces.augmentation import PAPER, PHYSICS, only
from search_spaces.scaling import MODELS, SIZES
from studies import main
from studies.presets import PRESETS, SMALL
from studies.runner.study import Study
from studies.runner.trials import trial_specs


def study_of(path: Path) -> Study | None:
    """The study that a file states; None for those that make studies."""
    found = getattr(importlib.import_module(f"studies.{path.stem}"), "study", None)
    return found if isinstance(found, Study) else None


STUDIES = {path.stem: study for path in sorted((ROOT / "studies").glob("*.py")) if (study := study_of(path))}
BASE_ARM = {
    "baseline": "base",
    "masking_ablation": "momentum",
    "text_vs_code": "text",
    "component_ablation": "base",
    "koleo_sweep": "koleo_0.01",
    "scaling": "S_x1",
}
QUICK_UNITS = {
    "baseline": 8,
    "masking_ablation": 24,
    "text_vs_code": 30,
    "component_ablation": 45,
    "augmentation_ablation": 30,
    "koleo_sweep": 24,
    "scaling": 53,
}
"""What each may cost at most in `quick`, in trials of its base, alone."""


def specs_of(name: str, preset: str, **options) -> list[TrialSpec]:
    plan = STUDIES[name].plan(preset, **options)
    return trial_specs(plan, None)


def units(config: Config, base: Config) -> float:
    """Work of pre-training in that of the base. By the share of weights to the power 0.77, B is 4.4 times S."""
    passes = config.train.epochs * config.data.train_jets / (base.train.epochs * base.data.train_jets)
    return passes * (weight_count(config.model) / weight_count(base.model)) ** 0.77


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_plans_at_every_preset(name, preset):
    plan = STUDIES[name].plan(preset)
    specs = specs_of(name, preset)
    assert STUDIES[name].name == name
    assert len({spec.trial_id for spec in specs}) == len(specs) == len(plan.arms) * len(plan.seeds)
    assert STUDIES[name].contrasts or STUDIES[name].search is not None
    most = max(spec.config.train.epochs * spec.config.data.train_jets for spec in specs)
    assert preset != "smoke" or most <= 2 * 600 * 3  # a minute proves the path


@pytest.mark.parametrize("preset", PRESETS)
def test_the_base_is_one_trial_of_all_studies(preset):
    found = {
        name: [spec.trial_id for spec in specs_of(name, preset, seeds=2) if spec.arm == arm]
        for name, arm in BASE_ARM.items()
    }
    assert len(set(map(tuple, found.values()))) == 1
    assert len(next(iter(found.values()))) == 2


def test_other_arms_are_shared_too():
    ids = {
        (name, spec.arm): spec.trial_id
        for name in ("component_ablation", "koleo_sweep", "text_vs_code")
        for spec in specs_of(name, "quick", seeds=1)
    }
    assert ids["component_ablation", "no_koleo"] == ids["koleo_sweep", "koleo_0"]
    assert ids["component_ablation", "no_attention_mask"] == ids["text_vs_code", "padding"]


@pytest.mark.parametrize("name", QUICK_UNITS)
def test_quick_costs_what_it_may(name):
    base = override(Config(), PRESETS["quick"].base)
    assert sum(units(spec.config, base) for spec in specs_of(name, "quick")) <= QUICK_UNITS[name]


@pytest.mark.parametrize("name", STUDIES)
def test_help_and_dry_run_of_every_study(name, tmp_path, capsys):
    for options, words in ((["--help"], "--dry-run"), (["--dry-run"], "nothing is started")):
        with pytest.raises(SystemExit) as stopped:
            main(STUDIES[name], ["--preset", "smoke", "--storage", str(tmp_path), *options])
        assert stopped.value.code == 0
        said = capsys.readouterr().out
        assert words in said
        assert " ".join(STUDIES[name].question.split()[:4]) in " ".join(said.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_file_says_where_it_comes_from_and_what_to_type(name):
    text = (ROOT / f"studies/{name}.py").read_text()
    for heading in ("Source ", "Design ", "Command ", "Read "):
        assert f"\n{heading}" in text
    assert f"python studies/{name}.py" in text
    assert name in (ROOT / "README.md").read_text()


def test_sizes_come_out_whole_in_the_presets_that_answer():
    for preset in ("quick", "laptop", "gpu", "paper"):
        base = STUDIES["scaling"].base_at(preset)
        passes = base.train.epochs * base.data.train_jets
        configs = {spec.arm: spec.config for spec in specs_of("scaling", preset, seeds=1)}
        for arm, config in configs.items():
            if arm.endswith("_steps"):
                size = config.data.train_jets / base.data.train_jets
                assert config.train.epochs * config.data.train_jets == passes
                warmup = base.optim.warmup_epochs
                assert size > 2 or config.optim.warmup_epochs * (size if warmup > 1 else 1) == warmup
                assert size > 2 or config.probe.every * size == base.probe.every
            else:
                assert config.train == base.train
        sizes = {config.data.train_jets for config in configs.values()}
        assert len(sizes) >= 7
        assert preset in SMALL or max(sizes) > 880_000
        assert len({config.model for config in configs.values()}) == len(MODELS) == 4
    steps = np.diff(np.log([float(size) for size in SIZES]))
    assert max(steps) / min(steps) < 1.4  # nearly even on a log axis


@pytest.mark.parametrize("preset", PRESETS)
def test_probes_have_equally_many_labels_at_every_size(preset):
    configs = [spec.config for spec in specs_of("scaling", preset, seeds=1)]
    assert len({min(config.data.set_aside, config.probe.bank_jets) for config in configs}) == 1


def test_no_arm_of_the_masking_share_lacks_its_control():
    plan = STUDIES["masking_ablation"].plan("gpu")
    ranges = [arm for arm in plan.arms if arm.startswith("momentum_")]
    assert len(ranges) >= 4
    for arm in ranges:
        control = arm.replace("momentum", "random_count")
        assert plan.arms[control] == plan.arms[arm] | {"mask.scheme": "random_count"}
        assert any((contrast.treatment, contrast.control) == (arm, control) for contrast in plan.contrasts)


def test_none_of_the_papers_augmentations_is_left_in_none():
    none = override(Config(), only()).augment
    assert (none.rotation, none.smear_sigma, none.split_fraction) == (0, 0, 0)
    assert only(*PAPER) == {}
    physics = STUDIES["augmentation_ablation"].plan("quick").arms["physics"]
    assert physics == {field: value for one in PHYSICS.values() for field, value in one.items()}
    assert all(flatten(Config())[field] == 0 for field in physics)


def test_leaving_a_component_out_is_one_change():
    assert set(components.leave_one_out()) == {"base", *(f"no_{name}" for name in components.COMPONENTS)}
    assert components.leave_one_out()["no_ema"] == {"teacher.ema_momentum": 0.0, "teacher.ema_final": 0.0}
    added = components.add_one_in()
    assert len(added) == 11
    assert set(added["only_cls_loss"]) - set(added["only_cls_loss-koleo"]) == {"loss.koleo_weight"}
    assert "loss.cls_weight" not in added["only_cls_loss-particle_loss"]
    assert "loss.cls_weight" in added["only_particle_loss"]


def test_the_half_fraction_by_hand():
    """With I = -ABCD an odd number of the four is out: the four single ones, and the four triples."""
    half = components.fraction(("particle_loss", "koleo", "rotation"), {"splitting": "-particle_loss*koleo*rotation"})
    assert list(half) == [
        "no_splitting", "no_rotation", "no_koleo", "no_koleo-rotation-splitting",
        "no_particle_loss", "no_particle_loss-rotation-splitting", "no_particle_loss-koleo-splitting",
        "no_particle_loss-koleo-rotation",
    ]  # fmt: skip
    whole = components.fraction(("koleo", "ema"), {})
    assert list(whole) == ["base", "no_ema", "no_koleo", "no_koleo-ema"]


def test_five_factors_separate_every_two():
    """Columns of main effects and of all pairs are orthogonal: resolution V."""
    factors = ("particle_loss", "koleo", "rotation", "splitting", "smearing")
    half = components.fraction(factors[:4], {"smearing": "-particle_loss*koleo*rotation*splitting"})
    lacks = [name.removeprefix("no_").split("-") for name in half]
    levels = np.array([[-1 if factor in out else 1 for factor in factors] for out in lacks])
    pairs = [levels[:, i] * levels[:, j] for i in range(5) for j in range(i)]
    columns = np.column_stack([np.ones(16), levels, *pairs])
    assert np.array_equal(columns.T @ columns, 16 * np.eye(16))


def test_the_report_finds_the_designs_of_the_components():
    quick, gpu = (STUDIES["component_ablation"].plan(preset) for preset in ("quick", "gpu"))
    assert len(left_out(quick)) == len(left_out(gpu)) == len(added_alone(gpu)) == len(components.COMPONENTS)
    assert added_alone(quick) == []
    worth = {one.component: (one.treatment, one.control) for one in added_alone(gpu)}
    assert worth["ema"] == ("only_cls_loss-ema", "only_cls_loss")
    assert worth["cls_loss"] == ("only_cls_loss-particle_loss", "only_particle_loss")
    assert "Aliased, only the sum is estimated: particle_loss × rotation − smearing × splitting." in alias_lines(quick)
    (line,) = alias_lines(gpu)
    assert "16 of the 32 combinations of 5 components" in line
    assert "resolution V" in line


def test_the_report_finds_the_lines_of_scaling():
    lines = lines_over_jets(STUDIES["scaling"].plan("quick"))
    assert {(line.kind, len(line.runs)) for line in lines} == {("fixed epochs", 7), ("fixed steps", 7)}
    assert [len(line.runs) for line in lines_over_models(STUDIES["scaling"].plan("quick"))] == [4]


def test_what_cannot_be_learned_is_no_arm():
    left = components.fraction(("cls_loss", "particle_loss"), {})
    assert list(left) == ["base", "no_particle_loss", "no_cls_loss"]
    with pytest.raises(ValueError, match=r"cls_loss and particle_loss cannot both be out: no distillation is left"):
        components.arm(("cls_loss", "particle_loss", "koleo"))
    with pytest.raises(ValueError, match=r"components are particle_loss, .*, got kolleo"):
        components.arm(("kolleo",))


def test_smeared_padding_that_nobody_sees_changes_nothing(tiny, tiny_data, tmp_path):
    """Why text_vs_code leaves `smear` alone out of its small presets."""
    storage, arms = Storage(tmp_path), STUDIES["text_vs_code"].arms
    changes = {
        name: {**arms[name], "augment.split_fraction": 0.5} for name in ("text", "smear", "padding", "smear_padding")
    }
    student = {}
    for name, change in changes.items():
        spec = TrialSpec(study="s", arm=name, plan_hash="p", config=override(tiny, change), data_fingerprint="d")
        run_pack([spec], tiny_data, storage)
        weights = storage.read_arrays(f"{trial_folder(spec.trial_id)}/student.safetensors")
        student[name] = np.concatenate([weights[key].ravel() for key in sorted(weights)])
    assert np.array_equal(student["text"], student["smear"])
    assert not np.array_equal(student["padding"], student["smear_padding"])


def test_sizes_too_small_to_train_on_are_one_line():
    with pytest.raises(ConfigError, match=r"data\.train_jets must be finite and in \[10, 1e\+09\], got 1"):
        dataclasses.replace(STUDIES["scaling"], arms_by_preset={}).plan("smoke", changes=TINY)

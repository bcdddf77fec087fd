import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SAMPLE, TINY

from analysis.verdicts.decide import decide_contrasts
from analysis.verdicts.tables import scores_and_states, trial_table
from analysis.verdicts.verdict import Verdict
from cluster.resources import Resources
from cluster.scheduling.run import run_inline
from jbot.config import Config, ConfigError, from_dict, override
from jbot.data import JetData, Jets
from jbot.store.plan import Contrast, PlanError, load_study, save_study
from jbot.store.storage import Storage
from jbot.trainer.workload import finetune_steps
from search_spaces.axis import Axis
from search_spaces.masking import SCHEME
from studies import main
from studies.masking_ablation import study
from studies.presets import PRESETS
from studies.runner.estimate import seconds_a_finetune_step
from studies.runner.execute import keep_other_plan
from studies.runner.study import Study
from studies.runner.trials import planned_trials, trial_specs


def specs_of(preset: str, **options):
    plan = study.plan(preset, **options)
    return plan, trial_specs(plan, None)


def test_quick_can_reach_a_verdict():
    plan, specs = specs_of("quick")
    assert len(plan.arms) >= 4
    assert len(plan.seeds) >= 6
    assert sum(contrast.primary for contrast in plan.contrasts) == 1
    assert len(specs) == len(plan.arms) * len(plan.seeds)


@pytest.mark.parametrize("preset", PRESETS)
def test_trials_come_block_by_block(preset):
    plan, specs = specs_of(preset, seeds=3)
    assert [spec.config.seed for spec in specs] == [seed for seed in range(3) for _ in plan.arms]
    assert [spec.arm for spec in specs[: len(plan.arms)]] == list(plan.arms)
    assert len({spec.trial_id for spec in specs}) == len(specs)


def test_arms_differ_by_their_overrides_alone():
    _, specs = specs_of("quick")
    for spec in specs[:4]:
        differing = {
            field.name for field in dataclasses.fields(spec.config)
            if getattr(spec.config, field.name) != getattr(specs[0].config, field.name)
        }  # fmt: skip
        assert differing <= {"mask"}


def test_the_plan_hash_feels_everything_declared():
    hashes = {
        specs_of("quick")[0].hash,
        specs_of("quick", seeds=7)[0].hash,
        specs_of("quick", changes={"train.epochs": 9})[0].hash,
        specs_of("smoke")[0].hash,
        dataclasses.replace(specs_of("quick")[0], margin=0.5).hash,
    }
    assert len(hashes) == 5


def make_study(arms, contrasts=()):
    return Study(name="x", question="?", arms=arms, contrasts=contrasts, margin=0.1)


def test_two_arms_with_one_config_are_an_error():
    same = make_study({"a": {"optim.lr": 1}, "b": {"optim.lr": 1.0}})
    with pytest.raises(ConfigError, match="arms 'a' and 'b' have the same Config"):
        same.plan("smoke")


def test_presets_name_arms_that_exist():
    lost = Study(name="x", question="?", arms={"a": {}}, contrasts=(), margin=0.1, arms_by_preset={"smoke": ("b",)})
    with pytest.raises(ConfigError, match="preset smoke names arms that study x lacks: b"):
        lost.plan("smoke")


def test_contrasts_need_their_arms():
    lone = make_study({"a": {}}, (Contrast(treatment="a", control="a"),))
    with pytest.raises(PlanError, match="compares an arm with itself"):
        lone.plan("smoke")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a/b"}, "names of studies and arms are letters, digits"),
        ({"arms": {"it's": {}}}, "names of studies and arms are letters, digits"),
        ({"contrasts": (Contrast(treatment="a", control="bb"),)}, "contrast 'a - bb': no arm 'bb'; arms are a, b"),
        ({"contrasts": (Contrast(treatment="a", control="b"),) * 2}, "study x has the same contrast twice"),
    ],
)
def test_a_study_checks_itself_before_anything_runs(changes, words):
    arms = {"a": {}, "b": {"mask.scheme": "none"}}
    fine = {"name": "x", "question": "?", "arms": arms, "contrasts": (), "margin": 0.1}
    with pytest.raises(ConfigError) as error:
        Study(**fine | changes)
    assert words in str(error.value)


def test_a_metric_must_be_measured_in_every_compared_arm():
    arms, contrasts = {"a": {}, "b": {"finetune.fractions": [0.1]}}, (Contrast(treatment="a", control="b"),)
    fine = {"name": "x", "question": "?", "arms": arms, "contrasts": contrasts, "margin": 0.1}
    with pytest.raises(ConfigError, match=r"metric 'test/knn_acuracy' is not measured in arm '.', which has test/knn_"):
        Study(**fine | {"metric": "test/knn_acuracy"}).plan("smoke")
    with pytest.raises(ConfigError, match="metric 'test/finetune_10_auc' is not measured in arm 'a'"):
        Study(**fine | {"metric": "test/finetune_10_auc"}).plan("smoke")
    assert Study(**fine | {"metric": "test/knn_eps_s_0.01_t"}).plan("smoke").contrasts == contrasts


def test_the_direction_of_a_metric_is_the_registrys():
    fine = {"name": "x", "question": "?", "arms": {"a": {}, "b": {"loss.koleo_weight": 0.0}}, "margin": 0.1}
    fine["contrasts"] = (Contrast(treatment="b", control="a", primary=True),)
    assert Study(**fine).plan("smoke").higher_is_better
    assert not Study(**fine | {"metric": "test/nc1"}).plan("smoke").higher_is_better
    with pytest.raises(ConfigError, match="must be False for metric 'test/nc1', got True"):
        Study(**fine | {"metric": "test/nc1", "higher_is_better": True}).plan("smoke")
    rank = fine | {"metric": "test/effective_rank"}
    with pytest.raises(ConfigError, match="neither better high nor low: state higher_is_better"):
        Study(**rank).plan("smoke")
    assert Study(**rank | {"higher_is_better": True}).plan("smoke").higher_is_better


def test_arms_cannot_set_the_seed():
    with pytest.raises(ConfigError, match="arm 'b' must not set the seed"):
        make_study({"a": {}, "b": {"seed": 5}}).plan("smoke")


def test_axes_check_their_values():
    assert SCHEME.arm("random") == {"mask.scheme": "random"}
    with pytest.raises(ConfigError, match=r"axis mask\.scheme: 'spiral' is not in momentum"):
        SCHEME.arm("spiral")
    with pytest.raises(ConfigError, match=r"optim\.lr must be finite"):
        Axis(field="optim.lr", low=-1.0, high=1.0, reason="too low")
    rate = Axis(field="optim.lr", low=1e-4, high=1e-2, log=True, reason="two decades around the paper's")
    assert rate.distribution().log


def call(*arguments) -> int:
    """The command line, in this process."""
    with pytest.raises(SystemExit) as stopped:
        main(study, [str(argument) for argument in arguments])
    return stopped.value.code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "mask.sceme=random"], "unknown Config field 'mask.sceme'; did you mean 'mask.scheme'?"),
        (["--set", "optim.lr"], "--set wants field=value, got 'optim.lr'"),
        (["--set", "seed=3"], "seed is set by the block"),
        (["--set", "mask.scheme=none"], "mask.scheme is what the arms set: changing the base does nothing"),
        (["--set", "optim.lr=1" + 400 * "0"], "optim.lr must be finite"),
        (["--set", "train.epochs=1" + 5000 * "0"], "train.epochs must be int"),
        (["--set", "data.test_jets=4"], "data.test_jets must be finite and in [10, 1e+09], got 4"),
        (["--seeds", "3000000000"], "seeds must be at least 1 and at most 10000"),
        (["--cpus", "nan"], "a trial needs CPUs > 0 and GPUs >= 0, got nan and 0"),
        (["--set", "optim.lr=-1"], "optim.lr must be finite and in (0, inf], got -1"),
        (["--seeds", "0"], "seeds must be at least 1 and at most 10000, got 0"),
        (["--pack", "0"], "a pack needs at least one trial, got 0"),
        (["--pack", "two"], "argument --pack: invalid int value: 'two'"),
        (["--cpus", "0"], "a trial needs CPUs > 0 and GPUs >= 0, got 0 and 0"),
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--data", "no/such/file.h5"], "no/such/file.h5"),
        (["--storage", "/proc/nowhere"], "storage /proc/nowhere must be writable"),
        (["--storage", "what://ever"], "what://ever"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, tmp_path, capsys):
    storage = [] if "--storage" in arguments else ["--storage", tmp_path]
    assert call(*arguments, *storage) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len([line for line in said.splitlines() if not line.startswith(("usage:", " "))]) == 1
    assert not list(tmp_path.iterdir())


def test_dry_run_says_what_a_design_can_answer(tmp_path, capsys):
    assert call("--dry-run", "--storage", tmp_path) == 0
    said = capsys.readouterr().out
    assert "24 = 4 arms x 6 seeds" in said
    assert "0.0312" in said
    assert "24 of at most 1 trial(s); CPUs a pack: 1, GPUs: 0" in said
    assert call("--dry-run", "--pack", "5", "--storage", tmp_path) == 0
    assert "5 of at most 5 trial(s)" in capsys.readouterr().out
    assert call("--dry-run", "--gpus", "1", "--storage", tmp_path) == 0
    assert "what fits on the GPU, some 9 MB a trial" in capsys.readouterr().out
    assert call("--dry-run", "--seeds", "5", "--storage", tmp_path) == 0
    assert "CANNOT say" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def verdicts_of(tiny_study: Study, data: JetData, folder: Path) -> list[Verdict]:
    """Run every trial of a study at six seeds inline, and judge."""
    plan = tiny_study.plan("smoke", seeds=6, changes=TINY | {"train.epochs": 1})
    storage, specs = Storage(folder), trial_specs(plan, Jets({1000: data}))
    save_study(storage, plan, {"source": data.source, "fingerprint": data.fingerprint}, planned_trials(specs))
    run_inline(specs, data, storage, [], Resources())
    table = trial_table(load_study(f"{folder}/{plan.study}"))
    return decide_contrasts(plan, *scores_and_states(table, plan))


def test_identical_arms_are_never_better(tiny_data, tmp_path):
    """Two arms that differ in a field the scheme does not read train to the same weights."""
    unmasked = {"mask.scheme": "none"}
    arms = {"one": unmasked, "other": unmasked | {"mask.ratio_high": 0.4}}
    contrast = Contrast(treatment="one", control="other", primary=True)
    (verdict,) = verdicts_of(make_study(arms, (contrast,)), tiny_data, tmp_path)
    assert verdict.outcome == "equivalent"
    assert verdict.difference.mean == 0


def test_other_jets_under_the_same_plan_lose_nothing(tiny_data, tmp_path):
    plan = make_study({"a": {}}).plan("smoke", changes=TINY)
    storage = Storage(tmp_path)
    first = {"source": "first jets", "fingerprint": "f1"}
    save_study(storage, plan, first, [])
    keep_other_plan(storage, plan, Jets({1000: dataclasses.replace(tiny_data, fingerprint="f1")}))
    assert storage.names() == [plan.study]
    keep_other_plan(storage, plan, Jets({1000: tiny_data}))
    (kept,) = set(storage.names()) - {plan.study}
    assert load_study(f"{tmp_path}/{kept}").data == first


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"plan": 1}', b"{"])
def test_a_damaged_study_file_is_one_line(content, tiny_data, tmp_path, capsys):
    storage = Storage(tmp_path)
    storage.write("masking_ablation_smoke/study.json", content)
    sample = SAMPLE
    assert (
        call("--preset", "smoke", "--inline", "--data", sample, "--storage", tmp_path, *["--set", "data.train_jets=40"])
        == 2
    )
    assert "study.json" in capsys.readouterr().err
    assert storage.read("masking_ablation_smoke/study.json") == content


def test_a_dry_run_counts_the_steps_of_fine_tunings():
    changes = {"data.train_jets": 1000, "finetune.fractions": [0.1, 1.0], "finetune.epochs": 3, "finetune.batch": 64}
    config = override(Config(), changes)
    assert finetune_steps(config) == 2 * 3 * (2 + 16)  # with twins; 100 and 1,000 jets in batches of 64
    assert finetune_steps(override(config, {"finetune.twin": False})) == 3 * (2 + 16)
    assert seconds_a_finetune_step(config, torch.device("cpu")) > 0


def test_noise_labels_decide_nothing(tiny_data, tmp_path):
    noise = np.random.default_rng(5).permutation(tiny_data.labels)
    data = dataclasses.replace(tiny_data, labels=noise, fingerprint="noise")
    arms = {"momentum": {}, "geometric": {"mask.scheme": "geometric"}, "none": {"mask.scheme": "none"}}
    contrasts = tuple(Contrast(treatment="momentum", control=arm, primary=True) for arm in ("geometric", "none"))
    for verdict in verdicts_of(make_study(arms, contrasts), data, tmp_path):
        assert verdict.outcome not in ("better", "worse")


def test_arms_may_be_in_proportion_to_the_base():
    def sizes(base: Config):
        return {f"x{scale}": {"data.train_jets": base.data.train_jets // scale} for scale in (2, 4)} | {"whole": {}}

    found = Study(
        name="x",
        question="?",
        arms=sizes,
        base={"train.batch": 25},
        contrasts=(Contrast(treatment="whole", control="x2"),),
        margin=0.1,
        arms_by_preset={"quick": ("whole", "x2")},
    )
    smoke, quick = found.plan("smoke"), found.plan("quick", changes={"data.train_jets": 4000})
    assert smoke.arms == {"x2": {"data.train_jets": 300}, "x4": {"data.train_jets": 150}, "whole": {}}
    assert quick.arms == {"whole": {}, "x2": {"data.train_jets": 2000}}
    assert from_dict(smoke.base).train.batch == 25
    with pytest.raises(ConfigError, match="no arm 'x8'; arms are x2, x4, whole"):
        dataclasses.replace(found, contrasts=(Contrast(treatment="whole", control="x8"),)).plan("smoke")


def test_metrics_of_a_contrast_must_be_measured():
    def with_floor(metric):
        return make_study({"a": {}}, (Contrast(treatment="a", control="a", control_metric=metric),))

    assert with_floor("untrained/test/knn_accuracy").plan("smoke").contrasts[0].name == "a - untrained a"
    with pytest.raises(ConfigError, match="metric 'untrained/test/knn_acuracy' is not measured in arm 'a'"):
        with_floor("untrained/test/knn_acuracy").plan("smoke")

"""The report from a folder of synthetic records: what it says, and what it must never say."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from simulated import complete_record

from analysis.plots import forest
from analysis.plots.style import FAINT
from analysis.report import build, headline, links, registry
from analysis.report.evidence import gather
from analysis.report.section import Section, Table
from analysis.report.sections import arms, curves, differences, other_metrics, single_trials, trials
from analysis.verdicts import convergence, provenance, tables
from analysis.verdicts import number_format as fmt
from jbot.config import Config, from_dict, override
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Contrast, Plan, PlannedTrial, load_study, save_study
from jbot.store.record import save_record, trial_folder, trial_id
from jbot.store.storage import Storage

ARMS = {"momentum": {}, "random": {"mask.scheme": "random"}, "none": {"mask.scheme": "none"}}
EFFECT = {"momentum": 0.02, "random": 0.0, "none": 0.0}
EPOCHS = (0, 2, 4, 6, 8, 10)


def make_plan(**changes):
    contrasts = (
        Contrast(treatment="momentum", control="random", primary=True),
        Contrast(treatment="momentum", control="none"),
        Contrast(treatment="none", control="random"),
    )
    plan = {
        "study": "masking",
        "question": "Does momentum-aware masking help?",
        "preset": "quick",
        "arms": ARMS,
        "base": dataclasses.asdict(Config()),
        "seeds": tuple(range(6)),
        "metric": "test/knn_accuracy",
        "higher_is_better": True,
        "margin": 0.01,
        "contrasts": contrasts,
    }
    return Plan(**plan | changes)


def planned_trials(plan):
    base = from_dict(plan.base)
    return [
        PlannedTrial(arm=arm, seed=seed, trial_id=trial_id(override(base, changes | {"seed": seed}), "jets", "1"))
        for seed in plan.seeds
        for arm, changes in plan.arms.items()
    ]


def make_record(plan, trial, rng, **changes):
    score = 0.45 + 0.05 * np.random.default_rng(trial.seed).normal() + EFFECT.get(trial.arm, 0) + 0.004 * rng.normal()
    metrics = {"test/knn_accuracy": score, "test/knn_auc": 0.5 + score / 2, "test/kmeans_ami": score / 3}
    metrics |= {"test/effective_rank": 9.0 + 20 * score, "untrained/test/knn_accuracy": 0.35}
    config = override(from_dict(plan.base), plan.arms[trial.arm] | {"seed": trial.seed})
    fields = {
        "metrics": metrics,
        "git_commit": "0123abc",
        "libraries": {"torch": "2.13.0", "numpy": "1.26.4"},
        "hardware": {"device": "cpu", "cpu": "2 cores"},
    }
    return complete_record(plan, trial, config, **fields | changes)


def write_files(storage, record, rng):
    """Curves, embedding and examples as the trainer leaves them."""
    folder = trial_folder(record.trial_id)
    last = record.metrics.get("test/knn_accuracy", 0.4)
    rows = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "device_seconds": 2.5 * epoch,
            "val/knn_accuracy": 0.35 + (last - 0.35) * (1 - np.exp(-epoch / 3)),
            "val/effective_rank": 5.0 + epoch,
            "val/spread": epoch / 10,  # has a long name
            "train/loss": None if epoch == 0 else 9.0 - epoch / 3,
            "train/teacher_entropy": None if epoch == 0 else 2.0,
        }
        for epoch in EPOCHS
    ]
    storage.write_rows(f"{folder}/curves.parquet", rows)
    labels = np.arange(40, dtype=np.int64) % 5
    cls = (rng.normal(size=(40, 8)) + 2 * labels[:, None]).astype(np.float32)
    storage.write_arrays(f"{folder}/embedding.safetensors", {"cls": cls, "label": labels})
    particles = rng.normal(scale=0.1, size=(4, 30, 4)).astype(np.float32)
    particles[..., 2] = rng.dirichlet(np.ones(30), size=4)
    particles[..., 3] = np.arange(30) < 20
    masked = (rng.random((4, 30)) < 0.3).astype(np.uint8)
    storage.write_arrays(
        f"{folder}/examples.safetensors", {"particles": particles, "masked": masked, "label": labels[:4]}
    )


def write_study(root, plan, trials=None, changes=None, files=False):
    """A study folder. `changes` maps (arm, seed) to fields of that record, or to None while it runs."""
    storage, rng = Storage(root), np.random.default_rng(7)
    trials = planned_trials(plan) if trials is None else trials
    save_study(storage, plan, {"source": "pythia", "fingerprint": "jets"}, trials)
    for trial in trials:
        changed = (changes or {}).get((trial.arm, trial.seed), {})
        if changed is not None:
            record = make_record(plan, trial, rng, **changed)
            if files:
                write_files(storage, record, rng)
            save_record(storage, record)
    return root / plan.study


FAILED = {"state": "failed", "reason": "loss is not finite at step 12", "metrics": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished study with one failed trial."""
    return write_study(tmp_path_factory.mktemp("results"), make_plan(), changes={("none", 5): FAILED}, files=True)


@pytest.fixture(scope="module")
def page(folder):
    return build.build_report(load_study(str(folder)), folder).read_text(encoding="utf-8")


class Links(html.parser.HTMLParser):
    """Collects what a browser would load, and whether every figure has a text."""

    def __init__(self):
        super().__init__()
        self.loads, self.figures, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        if tag in ("script", "img", "iframe", "link") or "src" in given:
            self.loads.append(given.get("src") or given.get("href") or tag)
        if tag == "svg":
            self.figures.append(given.get("aria-label", ""))


def parsed(page):
    links = Links()
    links.feed(page)
    return links


def test_page_answers_the_question_first(page):
    assert page.index("Does momentum-aware masking help?") < page.index("momentum is better than random by 0.0")
    assert page.index("momentum is better than random") < page.index('id="plan"')


def test_page_is_self_contained_and_every_figure_has_words(page):
    links = parsed(page)
    assert links.loads == ["data:,", "script"]
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page
    assert "@import" not in page
    assert len(links.figures) >= 11
    assert all(len(words) > 20 for words in links.figures)
    assert len(links.ids) == len(set(links.ids))


def test_failed_seed_is_counted_in_arm_and_verdict(folder, page):
    study = load_study(str(folder))
    arms = gather(study).arms.set_index("arm")
    assert (arms.loc["none", "n"], arms.loc["none", "failed"]) == (5, 1)
    assert arms.loc["none", "failure_low"] == pytest.approx(0.0301, abs=1e-4)
    assert arms.loc["none", "failure_high"] == pytest.approx(0.5635, abs=1e-4)
    assert "1 seed is left out because a trial failed: momentum failed in 0 of 6" in page
    assert "loss is not finite at step 12" in page


def test_files_hold_every_trial_and_metric(folder, page):
    csv = pd.read_csv(folder / "trials.csv")
    parquet = pd.read_parquet(folder / "trials.parquet")
    assert len(csv) == len(parquet) == 18
    assert {"study", "arm", "seed", "trial_id", "state", "reason", "test/knn_auc", "config.mask.scheme"} <= {
        *csv.columns
    }
    contrasts = pd.read_csv(folder / "contrasts.csv").set_index("contrast")
    assert contrasts.loc["momentum - random", "verdict"] == "better"
    scores = csv.pivot(index="seed", columns="arm", values="test/knn_accuracy")
    gaps = scores["momentum"] - scores["random"]
    assert contrasts.loc["momentum - random", "mean"] == pytest.approx(gaps.mean())
    assert contrasts.loc["momentum - random", "p"] == pytest.approx(2 / 64)
    assert {"figures/paired-differences.pdf", "figures/paired-differences.svg", "arms.csv", "report.md"} <= {
        str(path.relative_to(folder)) for path in folder.rglob("*")
    }


def test_losses_are_never_drawn(page):
    assert "teacher entropy" in page
    assert "train/loss" not in page
    assert "train loss" not in page.lower()


def test_same_records_same_page(tmp_path):
    plan = make_plan(arms={"momentum": {}}, contrasts=(), seeds=(0, 1))
    study = load_study(str(write_study(tmp_path, plan, files=True)))
    pages = [build.build_report(study, tmp_path / name).read_text(encoding="utf-8") for name in "ab"]
    assert pages[0] == pages[1]
    assert "states no contrast" in pages[0]


def test_unfinished_study_says_so_and_compares_whole_blocks_only(tmp_path):
    pending = dict.fromkeys([("none", 4), ("random", 5), ("none", 5)])
    study = load_study(str(write_study(tmp_path, make_plan(), changes=pending)))
    evidence = gather(study)
    status = "Unfinished: 15 of 18 trials have ended. Compared are the 4 blocks of 6 in which every arm has ended."
    assert headline.status(evidence) == status
    assert [item.difference.n for item in evidence.verdicts] == [4, 4, 4]
    assert all(item.interim for item in evidence.verdicts)
    assert status in build.build_report(study, tmp_path / "out").read_text(encoding="utf-8")


def test_study_without_any_record(tmp_path):
    trials = planned_trials(make_plan())
    nothing = dict.fromkeys((trial.arm, trial.seed) for trial in trials)
    study = load_study(str(write_study(tmp_path, make_plan(), changes=nothing)))
    text = build.build_report(study, tmp_path / "out").read_text(encoding="utf-8")
    assert "0 of 18 trials have ended" in text
    assert "no seed has a score of both arms" in text


def test_study_of_failures_only(tmp_path):
    changes = {(trial.arm, trial.seed): FAILED for trial in planned_trials(make_plan())}
    study = load_study(str(write_study(tmp_path, make_plan(), changes=changes, files=True)))
    text = build.build_report(study, tmp_path / "out").read_text(encoding="utf-8")
    assert "No complete trial has left a learning curve." in text
    assert "6 seeds are left out because a trial failed: momentum failed in 6 of 6 (95% interval 61% to 100%)" in text
    assert all(item.outcome == "undecided" for item in gather(study).verdicts)


def test_deviations_are_listed(tmp_path):
    other = {
        ("random", 0): {"plan_hash": "feed", "study": "older"},
        ("none", 1): {"libraries": {"torch": "2.12.0"}},
        ("none", 2): {"hardware": {"device": "NVIDIA H200"}},
        ("none", 3): {"git_commit": "beef"},
        ("none", 4): {"data": {"source": "jetnet", "fingerprint": "real"}},
    }
    study = load_study(str(write_study(tmp_path, make_plan(), changes=other)))
    found = "\n".join(provenance.deviations(study))
    assert "1 trial ran under another plan: study older, plan hash feed." in found
    for name in ("library versions", "hardware", "git commit", "data"):
        assert f"Trials differ in {name}" in found


def test_no_deviations_in_a_clean_study(folder):
    assert provenance.deviations(load_study(str(folder))) == []


def test_changed_study_file_is_a_deviation(tmp_path):
    folder = write_study(tmp_path, make_plan())
    content = json.loads((folder / "study.json").read_text())
    content["plan"]["margin"] = 0.5
    (folder / "study.json").write_text(json.dumps(content))
    assert "was changed after it was written" in provenance.deviations(load_study(str(folder)))[0]


HOSTILE = "<script>alert('x')</script> | `a` $x_1$ \"q\" & <!-- --> ]]>"


def test_hostile_strings_stay_text(tmp_path):
    plan = make_plan(
        question=HOSTILE,
        seeds=(0, 1),
        arms={HOSTILE: {}, "_under $\\frac$": {"mask.scheme": "none"}},
        contrasts=(Contrast(treatment=HOSTILE, control="_under $\\frac$", primary=True),),
    )
    changes = {(HOSTILE, 0): FAILED | {"reason": HOSTILE}, (HOSTILE, 1): {"git_commit": HOSTILE}}
    study = load_study(str(write_study(tmp_path, plan, changes=changes, files=True)))
    text = build.build_report(study, tmp_path / "out").read_text(encoding="utf-8")
    assert text.count("<script") == 1
    assert parsed(text).loads == ["data:,", "script"]
    script = (build.TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert f"<script>{script}</script>" in text
    assert "&lt;script&gt;alert" in text
    assert "<script" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8").replace(r"\<script", "")


def test_metric_that_is_not_finite_counts_as_failed(tmp_path):
    plan = make_plan()
    study = load_study(str(write_study(tmp_path, plan, changes={("random", 0): {"metrics": {"test/knn_auc": 0.5}}})))
    evidence = gather(study)
    first = evidence.verdicts[0]
    assert (first.difference.n, first.dropped, first.failures[1].failed) == (5, 1, 1)
    assert ["random", "0", "complete", "left no test/knn_accuracy: counted as failed"] in [
        list(row) for row in trials.failures(evidence).tables[0].rows
    ]


def test_command_line_writes_and_names_the_page(tmp_path, capsys):
    folder = write_study(tmp_path, make_plan(arms={"momentum": {}}, contrasts=(), seeds=(0,)))
    assert build.main([str(folder), "--out", str(tmp_path / "there")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "there" / "report.html")


@pytest.mark.parametrize("content", [None, "", "nonsense", "[]", "{}", '{"plan": {}, "trials": []}', '{"plan": 3}'])
def test_nonsense_gives_one_line_and_exit_code_2(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    assert build.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")


def test_module_runs_from_the_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "analysis.report", str(tmp_path / "missing")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("file", ["record.json", "curves.parquet", "embedding.safetensors"])
def test_damaged_file_gives_one_line(file, tmp_path, capsys):
    folder = write_study(tmp_path, make_plan(seeds=(0, 1)), files=True)
    damaged = planned_trials(make_plan(seeds=(0, 1)))[0].trial_id
    (tmp_path / "trials" / damaged / file).write_bytes(b"{")
    assert build.main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert damaged in error


def curves_of(values, arm="a", seed=0, state="complete"):
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "state": state,
            "epoch": epoch,
            "device_seconds": 2.0 * epoch,
            "val/knn_accuracy": value,
        }
        for epoch, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_threshold_is_half_way_of_the_control_arm_only():
    curves = pd.concat([curves_of([0.2, 0.3, 0.4]), curves_of([0.2, 0.9, 0.9], arm="b")])
    assert convergence.control_threshold(curves, "val/knn_accuracy", "a") == pytest.approx(0.3)


def test_time_to_threshold_by_hand():
    times, values = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.1, np.nan, 0.3, 0.5])
    assert convergence.time_to(times, values, 0.3, horizon=3.0) == (2.0, True)
    assert convergence.time_to(times, values, 0.6, horizon=3.0) == (3.0, False)
    assert convergence.time_to(times, values, 0.4, horizon=2.0) == (2.0, False)
    assert convergence.time_to(times, values, 0.1, horizon=3.0, higher_is_better=False) == (0.0, True)


def test_restricted_mean_is_the_mean_of_times_cut_at_the_horizon():
    times = np.array([1.0, 2.0, 4.0, 5.0])
    assert convergence.restricted_mean(times, 4.0) == pytest.approx((1 + 2 + 4 + 4) / 4)
    assert convergence.restricted_mean(np.array([0.0, 0.0]), 4.0) == 0
    assert convergence.restricted_mean(np.array([4.0]), 4.0) == 4


def test_normalised_area_by_hand():
    times, values = np.array([0.0, 2.0, 4.0]), np.array([0.0, 1.0, 1.0])
    assert convergence.normalised_area(times, values, 4.0) == pytest.approx((1.0 + 2.0) / 4)
    assert convergence.normalised_area(times, values, 1.0) == pytest.approx(0.25)
    assert np.isnan(convergence.normalised_area(times, values, 5.0))


def test_the_area_is_by_epochs_however_these_are_spaced():
    """Points at 0, 1, 2, 4, 8 of a curve that is straight between them: each piece counts with its length."""
    times, values = np.array([0.0, 1.0, 2.0, 4.0, 8.0]), np.array([0.0, 0.4, 0.4, 0.6, 0.6])
    by_hand = (0.2 + 0.4 + 2 * 0.5 + 4 * 0.6) / 8
    assert convergence.normalised_area(times, values, 8.0) == pytest.approx(by_hand)
    known = times != 2.0  # on a straight line, a point more or less changes nothing
    values[2] = 0.4 + 0.2 / 3
    assert convergence.normalised_area(times, values, 8.0) == pytest.approx(
        convergence.normalised_area(times[known], values[known], 8.0)
    )


def test_arms_are_compared_at_the_epochs_that_both_have():
    """Two equal curves, of which one was probed at epoch 1 too: no difference in time, none in area."""
    plan = make_plan(arms={"a": {}, "b": {"mask.scheme": "none"}}, contrasts=(Contrast(treatment="b", control="a"),))
    values = [0.2, 0.5, 0.55, 0.58, 0.6]
    curves = [curves_of(values, arm=arm, seed=seed) for arm in "ab" for seed in (0, 1)]
    curves[0] = curves[0][curves[0]["epoch"] != 1]
    found = convergence.converge(plan, pd.concat(curves))
    assert (found.contrasts[0].time.mean, found.contrasts[0].area.mean) == (0.0, 0.0)
    assert {arm.restricted_mean for arm in found.arms} == {2.0}
    whole = convergence.converge(plan, pd.concat(curves[1:]))
    assert {arm.restricted_mean for arm in whole.arms} == {1.0}
    shorter = [*curves[1:], curves_of(values[:3], arm="a", seed=0)]
    assert convergence.converge(plan, pd.concat(shorter)).horizon == 2.0


def test_failed_trials_count_as_never_reaching():
    plan = make_plan(arms={"a": {}, "b": {"mask.scheme": "none"}}, contrasts=(Contrast(treatment="b", control="a"),))
    curves = pd.concat(
        [
            curves_of([0.25, 0.4, 0.5]),
            curves_of([0.25, 0.5, 0.5], arm="b"),
            curves_of([0.25, 0.4, 0.5], seed=1),
            curves_of([0.25, 0.25], arm="b", seed=1, state="failed"),
        ]
    )
    found = convergence.converge(plan, curves)
    assert found.threshold == 0.375
    b = found.arms[1]
    assert (b.reached, b.n, b.restricted_mean) == (1, 2, 1.5)
    assert found.contrasts[0].time.mean == pytest.approx(((1 - 1) + (2 - 1)) / 2)


def test_arms_below_the_untrained_encoder_are_named(tmp_path, folder):
    metrics = {"test/knn_accuracy": 0.2, "untrained/test/knn_accuracy": 0.35}
    plan = make_plan(seeds=(0, 1))
    study = load_study(str(write_study(tmp_path, plan, changes={("none", s): {"metrics": metrics} for s in (0, 1)})))
    found = gather(study)
    said = headline.below_baseline(found.plan, found.arms)
    assert said == "No better than the untrained encoder on average: none. Comparisons with none say little."
    found = gather(load_study(str(folder)))
    assert headline.below_baseline(found.plan, found.arms) == ""


def test_tidy_table_keeps_trials_that_have_not_ended(tmp_path):
    study = load_study(str(write_study(tmp_path, make_plan(), changes={("none", 5): None})))
    table = tables.trial_table(study)
    assert len(table) == 18
    assert table["state"].value_counts().to_dict() == {"complete": 17, "pending": 1}


def test_baselines_are_those_of_the_task(tmp_path):
    arms = {"all": {}, "masked": {"mask.scheme": "none"}, "qg": {"data.task": "qg"}}
    plan = make_plan(arms=arms, contrasts=(), seeds=(0, 1))
    metrics = {"test/knn_accuracy": 0.5, "test/knn_auc": 0.7}
    base = {"all": 0.3, "masked": 0.4, "qg": 0.6}
    changes = {
        (arm, seed): {"metrics": metrics | {"untrained/test/knn_auc": base[arm]}} for arm in arms for seed in (0, 1)
    }
    evidence = gather(load_study(str(write_study(tmp_path, plan, changes=changes))))
    table = other_metrics.means_table(evidence, ["test/knn_auc"])
    assert table.head == ["arm", "k-NN AUC"]
    shown = {row[0]: float(row[1].split()[0]) for row in table.rows}
    assert shown["untrained encoder, task all"] == pytest.approx(0.35)
    assert shown["untrained encoder, task qg"] == pytest.approx(0.6)


def test_many_metrics_are_set_below_each_other_and_accuracies_first(tmp_path):
    plan = make_plan(seeds=(0,), contrasts=())
    names = [f"finetune_{share}_{what}" for share in (1, 10, 100, 5) for what in ("auc", "accuracy")]
    names += ["anomaly_gmm_auc", "anomaly_gmm_auc_t", "anomaly_gmm_oracle_auc", "anomaly_gmm_optimism", "alignment"]
    metrics = {f"test/{name}": 0.5 for name in [*names, "knn_accuracy"]}
    changes = {(arm, 0): {"metrics": metrics} for arm in plan.arms}
    evidence = gather(load_study(str(write_study(tmp_path, plan, changes=changes))))
    shown = tables.other_metrics(evidence.trials, plan)
    assert [name.removeprefix("test/") for name in shown] == [
        *(f"finetune_{share}_accuracy" for share in (1, 5, 10, 100)),
        *(f"finetune_{share}_auc" for share in (1, 5, 10, 100)),
        "anomaly_gmm_auc",
        "alignment",
    ]
    table = other_metrics.means_table(evidence, shown)
    assert table.head == ["metric", *plan.arms]
    assert table.rows[0][0] == "fine-tuning on 1% of labels, accuracy"


def test_without_contrasts_nothing_is_joined_or_warned_of(tmp_path):
    metrics = {"test/knn_accuracy": 0.2, "untrained/test/knn_accuracy": 0.35}
    plan = make_plan(seeds=(0, 1), contrasts=())
    changes = {("none", seed): {"metrics": metrics} for seed in (0, 1)}
    study = load_study(str(write_study(tmp_path, plan, changes=changes, files=True)))
    evidence = gather(study)
    assert (
        headline.below_baseline(evidence.plan, evidence.arms)
        == "No better than the untrained encoder on average: none."
    )
    (picture,) = arms.section(evidence).figures
    assert "join" not in picture.caption
    assert FAINT not in [line.get_color() for line in picture.figure.axes[0].lines]
    text = build.build_report(study, tmp_path / "out").read_text(encoding="utf-8")
    assert "There are no learning curves" not in text
    assert "No contrast of arms was planned, so there is no control arm" in text


@pytest.mark.parametrize(("seeds", "bands"), [(3, 0), (4, 3)])
def test_few_seeds_are_drawn_one_by_one(tmp_path, seeds, bands):
    plan = make_plan(seeds=tuple(range(seeds)), contrasts=())
    evidence = gather(load_study(str(write_study(tmp_path, plan, files=True))))
    picture = next(curves.pictures(evidence))
    (axes,) = picture.figure.axes
    assert len(axes.collections) == bands
    assert len(axes.lines) == len(plan.arms) * (1 if bands else 1 + seeds)
    assert ("band" in picture.caption, "thin lines" in picture.caption) == (bool(bands), not bands)
    drawn = evidence.curves["val/knn_accuracy"]
    if not bands:
        low, high = axes.get_ylim()
        assert high - low < 1.3 * (drawn.max() - drawn.min())


def test_jets_that_are_the_same_in_all_arms_are_drawn_once(tmp_path):
    plan = make_plan(seeds=(0,))
    root = write_study(tmp_path, plan, files=True)
    study = load_study(str(root))
    trials = {trial.arm: f"{trial_folder(trial.trial_id)}/examples.safetensors" for trial in study.trials}
    study.storage.write_arrays(trials["none"], study.storage.read_arrays(trials["momentum"]))
    captions = [picture.caption for picture in single_trials.example_jets(gather(study)).figures]
    assert [caption.partition(":")[0] for caption in captions] == ["momentum, none, seed 0", "random, seed 0"]


def test_single_trials_show_one_of_each_task(tmp_path, monkeypatch):
    arms = {"a": {}, "b": {"mask.scheme": "none"}, "c": {"data.task": "tqg"}}
    root = write_study(tmp_path, make_plan(arms=arms, contrasts=(), seeds=(0,)), files=True)
    study = load_study(str(root))
    rng = np.random.default_rng(0)
    for trial in study.trials:
        classes, labels = (2, np.tile([0, 4], 20)) if trial.arm == "c" else (5, np.arange(40) % 5)
        scores = {f"{probe}/probability": rng.dirichlet(np.ones(classes), size=40) for probe in ("knn", "linear")}
        scores = {name: one.astype(np.float32) for name, one in scores.items()} | {"label": labels}
        study.storage.write_arrays(f"{trial_folder(trial.trial_id)}/scores.safetensors", scores)
    monkeypatch.setattr(single_trials, "MAX_FIGURES", 4)
    drawn = single_trials.pictures(gather(study))
    assert {trial: [picture.name for picture in found] for trial, found in drawn.items()} == {
        "a, seed 0": ["training-a", "roc-knn-a"],
        "c, seed 0": ["training-c", "roc-knn-c"],
    }


def test_sections_of_their_own_are_in_both_reports(tmp_path, monkeypatch):
    def section(evidence):
        table = Table(label="Effects", head=["component", "effect"], rows=[["<b>", "0.1 ± 0.2"]])
        return Section(title="Components & more", sentences=["Plain words <i>."], tables=[table])

    monkeypatch.setattr(registry, "PARTS", {"Evidence": (section, lambda evidence: None)})
    study = load_study(str(write_study(tmp_path, make_plan())))
    page = build.build_report(study, tmp_path / "out").read_text(encoding="utf-8")
    assert '<h2 id="components-more">Components &amp; more</h2>' in page
    assert '<a href="#components-more">' in page
    assert "Plain words &lt;i&gt;." in page
    assert "&lt;b&gt;" in page
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "## Components & more" in text
    assert "| \\<b\\> | 0.1 ± 0.2 |" in text


def test_contrasts_that_came_out_alike_share_a_box(tmp_path):
    arms = {
        "base": {},
        "a": {"mask.scheme": "random"},
        "b": {"mask.scheme": "none"},
        "dead": {"loss.koleo_weight": 0.5},
    }
    contrasts = tuple(Contrast(treatment="base", control=arm, primary=True) for arm in ("a", "b", "dead"))
    plan = make_plan(arms=arms, contrasts=contrasts, seeds=(0, 1, 2), margin=1e-6)
    failed = {("dead", seed): FAILED for seed in plan.seeds}
    study = load_study(str(write_study(tmp_path, plan, changes=failed)))
    verdicts = gather(study).verdicts
    assert [v.outcome for v in verdicts] == ["undecided"] * 3
    found = headline.by_outcome(verdicts)
    assert [item.title for item in found] == ["Failed", "Undecided"]
    assert "dead failed in 3 of 3" in found[0].text
    assert [name for name, _ in found[1].pairs] == ["base − a", "base − b"]
    # What is true of both is said once, and numbers of single contrasts are with these.
    first, few, needed = found[1].notes
    assert first == "3 seeds cannot show a difference: the smallest p they can reach here is 0.75; it takes at least 7."
    assert few == "They are too few for equivalence, which takes at least 6."
    low, high = sorted(v.seeds_needed for v in verdicts if v.seeds_needed)
    assert needed == f"About {low} to {high} seeds would decide them, at this size and spread."
    assert headline.summary(verdicts) == "Of 3 primary contrasts: 1 failed, 2 undecided."
    text = build.build_report(study, tmp_path / "out").read_text(encoding="utf-8")
    assert text.count('<section class="verdict') == 2


def test_trials_lead_to_their_record_and_run(tmp_path):
    folder = write_study(tmp_path, make_plan())
    study = load_study(str(folder))
    trial = study.trials[0].trial_id
    view = {"tracking_uri": "sqlite:///x", "ui": "", "experiment_id": "7", "parent": "p", "runs": {trial: "feedbeef12"}}
    (folder / "mlflow.json").write_text(json.dumps(view))
    text = build.build_report(study, folder).read_text(encoding="utf-8")
    assert f'href="../trials/{trial}/record.json"' in text
    assert (folder / f"../trials/{trial}/record.json").exists()
    assert 'href="http://127.0.0.1:5000/#/experiments/7/runs/feedbeef12"' in text
    assert "once `mlflow ui` runs on this machine" in text
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "(http://127.0.0.1:5000/#/experiments/7/runs/feedbeef12)" in markdown


@pytest.mark.parametrize("ui", ["javascript:alert(1)", None, "file:///etc"])
def test_links_lead_to_web_pages_only(tmp_path, ui):
    folder = write_study(tmp_path, make_plan())
    (folder / "mlflow.json").write_text(json.dumps({"ui": ui, "experiment_id": 1, "runs": {"t": "r"}}))
    assert links.find(load_study(str(folder)), folder).run("r") == "http://127.0.0.1:5000/#/experiments/1/runs/r"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"runs": 3, "experiment_id": 1}', "null"])
def test_damaged_view_gives_no_links(tmp_path, content):
    folder = write_study(tmp_path, make_plan())
    (folder / "mlflow.json").write_text(content)
    assert links.find(load_study(str(folder)), folder).runs == {}


def test_latex_tables_have_a_column_for_every_cell(folder, page):
    for name, key in (("arms", "momentum"), ("contrasts", "momentum $-$ random")):
        text = (folder / f"{name}.tex").read_text(encoding="utf-8")
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1])
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}
        assert any(row.startswith(key) for row in rows)
        assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
        assert not re.search(r"[^\x00-\x7f]", "".join(rows))


def test_intervals_of_shares_stay_where_shares_can_be():
    within = find_metric("test/knn_accuracy").bounds
    assert fmt.interval(-0.31, 1.2, 0.05, within) == "0.00 to 1.00"
    assert find_metric("test_500/linear_auc_t").bounds == (0, 1)
    assert find_metric("test/knn_accuracy").difference_bounds == (-1, 1)
    assert (
        find_metric("test/effective_rank").bounds[1]
        == find_metric("test/knn_rejection_0.5_w").bounds[1]
        == float("inf")
    )


@pytest.mark.parametrize("letters", [3, 44, 45, 130, 600])
def test_no_name_of_a_contrast_runs_out_of_the_figure(letters):
    lines = forest._wrapped("w" * letters + " - none, anomaly detection at chosen settings, all signals")
    assert max(map(len, lines)) <= forest.LETTERS
    assert len(lines) <= 4


def test_a_level_is_not_rounded_to_all():
    levels = {0.05: "95%", 0.1: "90%", 0.01: "99%", 0.00499: "99.5%", 0.0324: "96.8%", 0.0002: "99.98%"}
    assert {alpha: fmt.level(alpha) for alpha in levels} == levels


def test_convergence_is_at_the_level_of_the_plan():
    """Four seeds whose times differ by 0, 1, 1 and 2 epochs: mean 1, standard error 0.408; t is 2.353 at 90%."""
    plan = make_plan(
        arms={"a": {}, "b": {"mask.scheme": "none"}}, contrasts=(Contrast(treatment="b", control="a"),), alpha=0.1
    )
    slow = ([0.2, 0.6, 0.6, 0.6], [0.2, 0.3, 0.6, 0.6], [0.2, 0.3, 0.6, 0.6], [0.2, 0.2, 0.3, 0.6])
    curves = [curves_of([0.2, 0.6, 0.6, 0.6], arm="a", seed=seed) for seed in range(4)]
    curves += [curves_of(values, arm="b", seed=seed) for seed, values in enumerate(slow)]
    time = convergence.converge(plan, pd.concat(curves)).contrasts[0].time
    assert (time.n, time.mean) == (4, 1.0)
    assert time.high == pytest.approx(1 + 2.353 * 0.4082, abs=1e-3)


def test_tables_name_the_level_of_the_plan_and_keep_their_columns(tmp_path):
    few = make_plan(arms={"momentum": {}, "random": ARMS["random"]}, contrasts=make_plan().contrasts[:1], alpha=0.1)
    evidence = gather(load_study(str(write_study(tmp_path, few))))
    shown = [arms.arms_table(evidence), differences.contrasts_table(evidence)]
    assert all("90% interval" in table.head and "95% interval" not in table.head for table in shown)
    columns = tables.contrasts_table(evidence.verdicts).columns
    assert list(tables.contrasts_table([]).columns) == list(columns)

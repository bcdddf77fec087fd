"""The paper's tables beside ours: from records, from released files, and from the study's command line."""

import dataclasses
import html.parser
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, make_data, write_jets
from make_parity import formula_weights, keras_backbone, keras_head, write_hdf5
from simulated import complete_record
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from analysis.paper import tables as paper
from analysis.paper.lines import compare
from analysis.report import build
from analysis.report.latex import tex
from analysis.verdicts import paper_values
from jbot.config import JBOT_B, Config, ModelConfig, from_dict, override
from jbot.data import CLASSES, DataError, Jets, jets_needed, split
from jbot.encoder.keras_weights import frozen_student, load_backbone, load_head
from jbot.store.plan import load_study, save_study
from jbot.store.record import save_record
from jbot.store.storage import RecordError, Storage
from jbot.trainer.classifier import classifier_logits, classifier_shapes
from jbot.trainer.embed import embed
from jbot.trainer.model import weight_shapes
from studies.paper_tables import study
from studies.runner.author_checkpoints import evaluate_checkpoints, find_checkpoints
from studies.runner.trials import load_plan_jets, planned_trials, trial_specs

JETNET = {"q": 170_679, "g": 177_252, "w": 177_172, "z": 176_952, "t": 177_945}
"""Jets of each class (SCIENCE: Zenodo 6975118)."""
TINY = {
    "data.train_jets": 280,
    "data.val_jets": 100,
    "data.test_jets": 95,
    "train.epochs": 1,
    "finetune.epochs": 1,
    "finetune.batch": 64,
    "probe.knn_k": 5,
    "probe.bank_jets": 100,
}


def configs_of(plan):
    return {arm: override(from_dict(plan.base), changes) for arm, changes in plan.arms.items()}


def test_the_paper_preset_is_the_papers_recipe():
    configs = configs_of(study.plan("paper"))
    assert list(configs) == ["S_all", "S_tqg", "S_qg", "B_all", "B_tqg", "B_qg"]
    sizes = {arm: (c.data.train_jets, c.data.val_jets, c.data.test_jets, c.train.epochs) for arm, c in configs.items()}
    assert sizes["S_all"] == sizes["B_all"] == (700_000, 50_000, 95_000, 80)
    assert sizes["S_tqg"] == sizes["B_tqg"] == (285_000, 20_000, 50_000, 80)
    assert sizes["S_qg"] == (250_000, 10_000, 203_000, 60)
    tuned = {arm: (c.finetune.lr, c.finetune.layer_decay, c.finetune.fractions) for arm, c in configs.items()}
    assert tuned["S_all"] == (4e-4, 0.65, (0.1, 1.0))
    assert tuned["B_all"] == (2e-4, 0.70, (0.1, 1.0))
    assert tuned["S_tqg"] == (4e-4, 0.80, (0.1, 1.0))
    assert tuned["B_tqg"] == (4e-4, 0.70, (0.1, 1.0))
    assert {(c.finetune.epochs, c.finetune.batch) for c in configs.values()} == {(100, 1024)}
    assert configs["S_qg"].anomaly.scan
    assert not configs["S_qg"].finetune.fractions
    assert configs["B_qg"].model == ModelConfig(dim=64, heads=6, layers=4, projection=32)


def test_jetnet_has_the_jets_of_every_arm():
    for config in configs_of(study.plan("paper")).values():
        data = config.data
        needed = jets_needed(task=data.task, train=data.train_jets, val=data.val_jets, test=data.test_jets)
        assert all(count <= JETNET[name] for name, count in needed.items())


def test_smaller_presets_keep_the_papers_proportions():
    configs = configs_of(study.plan("quick", changes={"data.train_jets": 14_000, "train.epochs": 4}))
    assert configs["S_tqg"].data.train_jets == 5_700  # 14,000 * 285 / 700
    assert configs["S_tqg"].data.val_jets == 600  # 1,500 * 20 / 50
    assert configs["S_tqg"].data.test_jets == 3_947  # 7,500 * 50 / 95
    assert configs["S_qg"].data.test_jets == 16_026  # 7,500 * 203 / 95
    assert (configs["S_qg"].train.epochs, configs["S_tqg"].train.epochs) == (3, 4)  # 4 * 60 / 80


def test_published_figures_are_those_of_the_paper():
    rows = {row.label: row.values for table in paper_values.TABLES for row in table.rows if row.values}
    assert rows["k-NN, B"] == {"accuracy": 0.8793, "auc": 0.9475, "eps_s_0.1": 0.8402, "eps_s_0.01": 0.3494}
    assert rows["jBOT S 100%"] == {"accuracy": 0.8875, "auc": 0.9554, "eps_s_0.1": 0.8712, "eps_s_0.01": 0.4814}
    assert rows["Sup. B 10%"] == {"accuracy": 0.8784, "auc": 0.9467, "eps_s_0.1": 0.8429, "eps_s_0.01": 0.4131}
    assert rows["Mahalanobis with q/g labels, S"] == {"auc_w": 0.7431, "auc_z": 0.7821, "auc_t": 0.8620, "auc": 0.7957}
    assert rows["LGAE, as the paper cites it"] == {"auc_w": 0.7489, "auc_z": 0.7909, "auc_t": 0.8669, "auc": 0.8313}
    for table in paper_values.TABLES:
        for row in table.rows:
            assert set(row.values) <= set(table.metrics)
            assert bool(row.probe) == (row.model is not None)


METRICS = {
    "S_tqg": ("knn", "linear", "finetune_10", "finetune_100", "supervised_10", "supervised_100"),
    "S_qg": ("anomaly_knn", "anomaly_knn_chosen", "anomaly_knn_oracle", "anomaly_lof"),
    "S_all": ("knn",),
}
VALUES = (0.80, 0.82, 0.87)


def make_record(plan, trial, data, **changes):
    """A record whose metrics are VALUES[seed], with the contract's names."""
    config = configs_of(plan)[trial.arm]
    tails = ("accuracy", "auc", "eps_s_0.1", "eps_s_0.01", "eps_s_0.001", "auc_w", "auc_z", "auc_t")
    names = [f"test/{probe}_{tail}" for probe in METRICS[trial.arm] for tail in tails]
    metrics = dict.fromkeys(names, VALUES[trial.seed]) | {"untrained/test/knn_accuracy": 0.5, "raw/test/knn_auc": 0.7}
    metrics |= {"test/anomaly_knn_optimism": 0.01, "test/anomaly_knn_optimism_w": 0.02} if trial.arm == "S_qg" else {}
    uncertainties = {name: {"error": 0.0123, "fold_sd": 0.0456} for name in names}
    fields = {"data": data, "metrics": metrics, "uncertainties": uncertainties}
    return complete_record(plan, trial, override(config, {"seed": trial.seed}), **fields | changes)


DATA = {"source": "jets <made> here", "fingerprint": "f00"}


def make_study(folder, changes=None):
    """A study of the three S arms at three seeds; `changes` maps (arm, seed) to fields of the record, None: pending."""
    plan = study.plan("smoke", seeds=3)
    storage = Storage(folder)
    trials = planned_trials(trial_specs(plan, None))
    save_study(storage, plan, DATA, trials)
    for trial in trials:
        changed = (changes or {}).get((trial.arm, trial.seed), {})
        if changed is not None:
            save_record(storage, make_record(plan, trial, DATA, **changed))
    return load_study(f"{folder}/{plan.study}")


def table_of(tables, name):
    return next(table for table in tables if table.published.name == name)


def lines_of(tables, name, label):
    row = next(row for row in table_of(tables, name).rows if row.label == label)
    return {line.kind: line for line in row.lines}


def test_ours_stands_beside_the_papers(tmp_path):
    lines = lines_of(compare(make_study(tmp_path)), "top_tagging", "k-NN, S")
    assert list(lines) == ["paper", "ours", "folds", "test jets", "untrained", "raw"]
    assert lines["raw"].cells == ["–", "0.7000", "–", "–", "–"]
    assert lines["paper"].cells == ["0.8777", "0.9447", "0.8352", "0.3337", "–"]
    ours = lines["ours"].entries["auc"]
    assert ours.value == pytest.approx(0.83)  # the mean of .80 .82 .87
    assert ours.seed_sd == pytest.approx(0.0360555)  # n - 1 in the denominator
    assert (ours.seeds, lines["ours"].label) == (3, "ours, 3 seeds")
    assert lines["ours"].cells[1] == "0.83 ± 0.04"
    assert (lines["folds"].entries["auc"].fold_sd, lines["test jets"].entries["auc"].error) == (0.0456, 0.0123)
    assert (lines["folds"].label, lines["folds"].cells[1]) == ("sd of 10 folds, seed 0", "0.05")
    assert (lines["test jets"].label, lines["test jets"].cells[1]) == ("error of test jets, seed 0", "0.012")
    assert lines["untrained"].entries["accuracy"].value == 0.5
    assert np.isnan(lines["untrained"].entries["auc"].value)


def test_anomaly_scores_show_what_was_chosen_and_the_optimism(tmp_path):
    tables = compare(make_study(tmp_path))
    kinds = ["paper", "ours", "folds", "test jets", "chosen", "oracle", "optimism"]
    assert list(lines_of(tables, "anomaly", "k-NN, S")) == kinds
    gap = lines_of(tables, "anomaly", "k-NN, S")["optimism"].entries
    assert (gap["auc_w"].value, gap["auc"].value) == (pytest.approx(0.02), pytest.approx(0.01))
    assert np.isnan(gap["auc_z"].value)
    assert list(lines_of(tables, "anomaly", "Local outlier factor, S")) == ["ours", "folds", "test jets"]
    assert list(lines_of(tables, "anomaly", "GNNAE, as the paper cites it")) == ["paper"]
    assert lines_of(tables, "anomaly", "Cosine, S")["ours"].label == "ours: none"


def test_what_is_missing_is_said(tmp_path):
    changes = {("S_tqg", 0): {"state": "failed", "reason": "diverged: loss is nan", "metrics": {}}, ("S_tqg", 2): None}
    tables = compare(make_study(tmp_path, changes))
    lines = lines_of(tables, "top_tagging", "jBOT S 10%")
    assert (lines["ours"].label, lines["ours"].cells[0]) == ("ours, 1 seed", "0.820 ± 0.012")
    assert lines["folds"].label == "sd of 10 folds, seed 1"
    notes = table_of(tables, "top_tagging").notes
    assert "Missing: S_tqg at seed 0 failed: diverged: loss is nan." in notes
    assert "Missing: S_tqg at seed 2 has not ended." in notes
    assert "jBOT-B is not trained for this task in this study (preset smoke)." in notes
    start = "None of 3 complete trials of S_all left the figures of: "
    absent = next(note for note in table_of(tables, "five_class").notes if note.startswith(start))
    assert absent.endswith("Linear, S; Sup. S 10%; jBOT S 10%; Sup. S 100%; jBOT S 100%.")
    assert any("79 background jets" in note and "εs(0.1) by 7.9" in note for note in notes)
    assert lines["ours"].cells[3:] == ["–", "–"]  # of one seed: 0.79 and 0.079 background jets
    assert lines["ours"].entries["eps_s_0.01"].value == pytest.approx(0.82)
    assert any("what fewer than 3 decide is not shown" in note for note in notes)


def test_classifiers_that_did_not_leave_chance_are_marked(tmp_path):
    usual = dict.fromkeys((f"test/{probe}_accuracy" for probe in METRICS["S_tqg"]), 0.8)
    stuck = {"metrics": usual | {"test/supervised_10_accuracy": 0.51}}  # within two errors of a half
    tables = compare(make_study(tmp_path, {("S_tqg", 0): stuck, ("S_tqg", 2): stuck}))
    lines = lines_of(tables, "top_tagging", "Sup. S 10%")
    assert lines["ours"].entries["accuracy"].at_chance == 2
    assert lines["ours"].cells[0].endswith(" †")
    assert not any("†" in cell for cell in lines_of(tables, "top_tagging", "jBOT S 10%")["ours"].cells)
    notes = table_of(tables, "top_tagging").notes
    assert [note for note in notes if "†" in note] == [
        "† Sup. S 10%: 2 of 3 seeds did not leave chance (accuracy 0.5)."
    ]


def test_raw_features_have_anomaly_scores_where_a_record_has_them(tmp_path):
    plan = study.plan("smoke", seeds=3)
    trial = next(t for t in planned_trials(trial_specs(plan, None)) if t.arm == "S_qg")
    metrics = make_record(plan, trial, DATA).metrics | {"raw/test/anomaly_knn_auc": 0.6}
    errors = {"uncertainties": {"raw/test/anomaly_knn_auc": {"error": 0.02}}}
    tables = compare(make_study(tmp_path, {("S_qg", 0): {"metrics": metrics, **errors}}))
    assert lines_of(tables, "anomaly", "k-NN, S")["raw"].cells == ["–", "–", "–", "0.600 ± 0.020"]


def test_a_fine_tuning_that_diverged_at_one_seed_is_said(tmp_path):
    kept = {f"test/{probe}_auc": 0.8 for probe in METRICS["S_tqg"] if probe != "finetune_10"}
    tables = compare(make_study(tmp_path, {("S_tqg", 1): {"metrics": kept, "missing": {"finetune_10": "diverged"}}}))
    assert lines_of(tables, "top_tagging", "jBOT S 10%")["ours"].label == "ours, 2 seeds"
    notes = table_of(tables, "top_tagging").notes
    assert "Missing: jBOT S 10% at seed 1: diverged." in notes
    assert "2 of 3 complete trials of S_tqg left the figures of: jBOT S 10%." in notes


def test_a_study_without_the_papers_models_has_no_tables(tmp_path, capsys):
    found = make_study(tmp_path)
    small = {arm: changes | {"model.dim": 8} for arm, changes in found.plan.arms.items()}
    with pytest.raises(RecordError, match="has no arm of the paper's models"):
        compare(dataclasses.replace(found, plan=dataclasses.replace(found.plan, arms=small)))
    twice = found.plan.arms | {"again": {"mask.scheme": "none"}}
    with pytest.raises(RecordError, match="one jBOT-S of task all, got arms S_all and again"):
        compare(dataclasses.replace(found, plan=dataclasses.replace(found.plan, arms=twice)))
    assert paper.main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: no nothing/study.json in ")


class Rows(html.parser.HTMLParser):
    """What a page would load, and the number of columns of each row."""

    def __init__(self):
        super().__init__()
        self.loads, self.columns, self.spanned = [], [], 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "src" in given or (tag == "link" and given.get("href") != "data:,"):
            self.loads.append(tag)
        if tag == "tr":
            self.columns.append(0)
        if tag in ("th", "td"):
            self.columns[-1] += 1


def test_files_say_the_same_and_are_made_from_records_alone(tmp_path, capsys):
    found = make_study(tmp_path)
    folder = tmp_path / found.plan.study
    assert paper.main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed  # no figure is cut
    assert {"paper_tables.html", "paper_tables.md", "paper_tables.tex", "paper_tables.csv"} <= set(
        Storage(folder).names()
    )
    page = (folder / "paper_tables.html").read_text()
    assert "jets &lt;made&gt; here" in page
    rows = Rows()
    rows.feed(page)
    assert not rows.loads
    assert max(rows.columns) == 7  # row, line, five metrics
    text = (folder / "paper_tables.md").read_text()
    assert "sd of 10 folds" not in printed
    assert printed.rstrip().endswith(f"on the page: {folder / 'paper_tables.html'}")
    assert "sd of 10 folds, seed 0" in text
    for words in ("0.83 ± 0.04", "0.9447", "0.8313"):
        assert words in printed
        assert words in text
        assert words.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}") in page
    assert {line.count("|") for line in text.splitlines() if line.startswith("| k-NN, S")} == {8, 7}


def test_latex_is_ascii_with_as_many_columns_as_it_declares(tmp_path):
    found = make_study(tmp_path)
    paper.write_tables(found, tmp_path)
    text = (tmp_path / "paper_tables.tex").read_text()
    code = [line for line in text.splitlines() if not line.startswith("%")]
    assert all(line.isascii() for line in code)
    assert r"$\varepsilon_s$(0.01)" in text
    assert r"0.83 $\pm$ 0.04" in text
    blocks = text.split(r"\begin{longtable}")[1:]
    assert len(blocks) == len(compare(found))
    for block in blocks:
        columns = block[1 : block.index("}")]
        lines = block[: block.index(r"\end{longtable}")].splitlines()
        body = [line for line in lines if line.endswith((r"\\", r"\\*")) and not line.startswith(r"\label")]
        assert len(body) >= 10
        assert {line.count("&") - line.count(r"\&") for line in body} == {len(columns) - 1}
    assert tex("50% of a_b & c ± 1 − 2") == r"50\% of a\_b \& c $\pm$ 1 $-$ 2"


def test_the_csv_is_unrounded(tmp_path):
    paper.write_tables(make_study(tmp_path), tmp_path)
    table = pd.read_csv(tmp_path / "paper_tables.csv").set_index(["table", "row", "line", "metric"])
    ours = table.loc["top_tagging", "Sup. S 100%", "ours", "eps_s_0.01"]
    assert ours["value"] == pytest.approx(np.mean(VALUES), rel=1e-12)
    assert ours["seed_sd"] == pytest.approx(np.std(VALUES, ddof=1), rel=1e-12)
    assert table.loc["top_tagging", "Sup. S 100%", "paper", "eps_s_0.01"]["value"] == 0.4474


def test_the_report_leads_to_the_tables(tmp_path):
    found = make_study(tmp_path)
    out = tmp_path / "out"
    build.build_report(found, out)
    assert "paper_tables.html" not in (out / "report.html").read_text()
    paper.write_tables(found, out)
    build.build_report(found, out)
    assert 'href="paper_tables.html"' in (out / "report.html").read_text()
    assert "(paper_tables.md)" in (out / "report.md").read_text()
    assert 'href="report.html"' in (out / "paper_tables.html").read_text()


def test_standing_names_what_differs_from_the_paper(tmp_path):
    found = make_study(tmp_path)
    assert paper.status_line(found).startswith(
        "Ours is trained on other jets than JetNet and with other numbers of jets"
    )
    plan = study.plan("paper", seeds=1)
    real = dataclasses.replace(found, plan=plan, data={"source": "JetNet (Zenodo 6975118)", "fingerprint": "f"})
    only_qg = "Ours is trained with other numbers of jets or epochs: the paper's"
    assert paper.status_line(real) == "" or paper.status_line(real).startswith(only_qg)


def write_released(folder: Path, size=(32, 4, 2), task="tqg", classes=2) -> None:
    """Files of the authors' names and layout, with weights of our own."""
    model = ModelConfig(dim=size[0], heads=size[1], layers=size[2], projection=size[0] // 2, padding="reference")
    tail = "_".join(map(str, size))
    folder.mkdir(exist_ok=True)
    backbone = keras_backbone(model, formula_weights(weight_shapes(model)))
    head = keras_head(formula_weights(classifier_shapes(size[0], classes)))
    write_hdf5(folder / f"{task}_backbone_pretrain_{tail}.weights.h5", backbone)
    write_hdf5(folder / f"{task}_backbone_ft_{tail}_data10.weights.h5", backbone)
    write_hdf5(folder / f"{task}_mlp_ft_{tail}_data10.weights.h5", head)
    write_hdf5(folder / f"{task}_mlp_standalone_{tail}.weights.h5", head)  # its backbone is not there


def judged(tmp_path, data, folder):
    plan = study.plan("smoke", seeds=1, changes=TINY)
    storage, said = Storage(tmp_path / "results"), []
    evaluate_checkpoints(folder, plan, Jets({1000: data}), storage, said.append)
    return plan, storage, said


def test_released_checkpoints_are_judged_on_our_jets(tmp_path):
    """k-NN by scikit-learn and the classifier by hand give the figures that stand in the tables."""
    data, folder = make_data(150), tmp_path / "models"
    write_released(folder)
    plan, storage, said = judged(tmp_path, data, folder)
    assert said == ["evaluating the released tqg S on 50 test jets"]
    found = storage.read_json(f"{plan.study}/released/tqg_S.json")
    config = configs_of(plan)["S_tqg"]
    sizes = config.data
    rows = split(data.labels, task="tqg", train=sizes.train_jets, val=sizes.val_jets, test=sizes.test_jets)
    model, weights = load_backbone(folder / "tqg_backbone_pretrain_32_4_2.weights.h5")
    of_model, student = dataclasses.replace(Config(), model=model), frozen_student(model, weights)
    top = data.labels == CLASSES.index("t")
    bank = rows.train[:100]
    cls = {
        name: embed(student, torch.from_numpy(data.particles[r]), of_model)
        for name, r in [("bank", bank), ("test", rows.test)]
    }
    votes = KNeighborsClassifier(5, algorithm="brute").fit(cls["bank"], top[bank]).predict_proba(cls["test"])[:, 1]
    assert found["metrics"]["test/knn_auc"] == pytest.approx(roc_auc_score(top[rows.test], votes), abs=1e-6)
    head = {
        name: torch.from_numpy(w)[None] for name, w in load_head(folder / "tqg_mlp_ft_32_4_2_data10.weights.h5").items()
    }
    logits = classifier_logits(head, torch.from_numpy(cls["test"])[None])[0].numpy()
    accuracy = float(np.mean(logits.argmax(1) == top[rows.test]))
    assert found["metrics"]["test/finetune_10_accuracy"] == pytest.approx(accuracy)
    assert "test/supervised_100_accuracy" not in found["metrics"]
    assert set(found["weights"]) == {path.name for path in folder.iterdir()} - {"tqg_mlp_standalone_32_4_2.weights.h5"}


def test_released_checkpoints_are_judged_once(tmp_path):
    data, folder = make_data(150), tmp_path / "models"
    write_released(folder)
    plan, _, _ = judged(tmp_path, data, folder)
    file = tmp_path / "results" / plan.study / "released/tqg_S.json"
    before = file.stat().st_mtime_ns
    assert judged(tmp_path, data, folder)[2] == []
    assert file.stat().st_mtime_ns == before
    assert len(judged(tmp_path, dataclasses.replace(data, fingerprint="others"), folder)[2]) == 1
    file.write_text("{")
    assert len(judged(tmp_path, data, folder)[2]) == 1


def rewrite(path, **arrays):
    """Change datasets of a weights file."""
    with h5py.File(path, "r+") as file:
        for name, value in arrays.items():
            file[name][...] = value


def test_a_damaged_or_foreign_released_file_is_found_before_anything_runs(tmp_path):
    plan, folder = study.plan("smoke", seeds=1, changes=TINY), tmp_path / "models"
    write_released(folder)
    find_checkpoints(folder, plan)
    write_released(tmp_path / "five", classes=5)
    head = "tqg_mlp_ft_32_4_2_data10.weights.h5"
    (folder / head).write_bytes((tmp_path / "five" / head).read_bytes())
    with pytest.raises(DataError, match=rf"{head}: must have 32 inputs and 2 outputs, got \(32, 5\)"):
        find_checkpoints(folder, plan)
    write_released(folder)
    wide, small = (folder / f"tqg_backbone_pretrain_{size}.weights.h5" for size in ("64_6_4", "32_4_2"))
    wide.write_bytes(small.read_bytes())
    with pytest.raises(DataError, match=r"must be \(64, 6, 4\) as in its name, got \(32, 4, 2\)"):
        find_checkpoints(folder, plan)
    wide.unlink()
    rewrite(small, **{"layers/dense/vars/1": np.nan})
    with pytest.raises(DataError, match="layers/dense/vars/1 must be finite"):
        find_checkpoints(folder, plan)


@pytest.mark.parametrize("task", ["tqg", "qg"])
def test_a_collapsed_released_encoder_is_a_line_and_the_others_are_judged(tmp_path, task):
    data, folder = make_data(150), tmp_path / "models"
    write_released(folder, task=task)
    encoder = folder / f"{task}_backbone_pretrain_32_4_2.weights.h5"

    with h5py.File(encoder, "r+") as file:
        file.visititems(lambda name, item: item.write_direct(np.zeros_like(item)) if hasattr(item, "shape") else None)
    plan, storage, said = judged(tmp_path, data, folder)
    assert len(said) == 2
    assert said[1].startswith(f"{encoder} cannot be evaluated: ")
    found = storage.read_json(f"{plan.study}/released/{task}_S.json")
    assert list(found["failed"]) == [encoder.name]
    assert "test/finetune_10_accuracy" in found["metrics"]
    assert "test/knn_auc" not in found["metrics"]
    assert judged(tmp_path, data, folder)[2] == said[1:]  # said again, not judged again


def test_released_encoders_have_chosen_settings_where_ours_have(tmp_path):
    data, folder = make_data(150), tmp_path / "models"
    write_released(folder, task="qg")
    plan, storage, _ = judged(tmp_path, data, folder)
    assert configs_of(plan)["S_qg"].anomaly.scan
    found = storage.read_json(f"{plan.study}/released/qg_S.json")["metrics"]
    assert {"test/anomaly_knn_chosen_auc_w", "test/anomaly_knn_oracle_auc", "test/anomaly_knn_optimism"} <= set(found)


def test_released_rows_need_the_jets_of_the_study(tmp_path):
    found = make_study(tmp_path)
    config = configs_of(found.plan)["S_tqg"]
    content = {"task": "tqg", "model": "B", "data": dataclasses.asdict(config.data), "fingerprint": "f00"}
    content |= {"metrics": {"test/knn_auc": 0.9012}, "uncertainties": {}, "weights": {}}
    name = f"{found.plan.study}/released/tqg_B.json"
    found.storage.write_json(name, content)
    lines = lines_of(compare(found), "top_tagging", "k-NN, B")
    assert list(lines) == ["paper", "released"]
    assert lines["released"].cells == ["–", "0.9012", "–", "–", "–"]
    for change in ({"fingerprint": "others"}, {"data": content["data"] | {"test_jets": 7}}):
        found.storage.write_json(name, content | change)
        assert list(lines_of(compare(found), "top_tagging", "k-NN, B")) == ["paper"]
    errors = {"test/knn_auc": {"error": 0.0041}, "test/knn_eps_s_0.01": {"error": 0.01}}
    measured = content["metrics"] | {"test/knn_eps_s_0.01": 0.3}
    found.storage.write_json(name, content | {"metrics": measured, "uncertainties": errors})
    assert lines_of(compare(found), "top_tagging", "k-NN, B")["released"].cells[1:4] == [
        "0.901 ± 0.004",
        "–",
        "–",
    ]
    found.storage.write_json(name, content | {"failed": {"tqg_mlp.h5": "collapsed"}})
    assert "Missing: released tqg_mlp.h5: collapsed." in table_of(compare(found), "top_tagging").notes
    for damaged in (
        {},
        [],
        content | {"metrics": [1]},
        content | {"metrics": {"test/knn_auc": "high"}},
        content | {"uncertainties": {"test/knn_auc": 0.1}},
    ):
        found.storage.write_json(name, damaged)
        with pytest.raises(RecordError, match=r"tqg_B\.json is not of a released checkpoint") as error:
            compare(found)
        assert "\n" not in str(error.value)


def test_load_jets_takes_what_the_hungriest_arm_needs(tmp_path):
    plan = study.plan("smoke", changes=TINY)
    write_jets(tmp_path / "jets.h5", make_data(400))
    found = load_plan_jets(plan, str(tmp_path / "jets.h5")).at(1000)
    counts = dict(zip(CLASSES, np.bincount(found.labels).tolist(), strict=True))
    # all: (280 + 100 + 95) / 5 a class; tqg: q and g (114 + 40 + 50) / 4 rounded up by part, t twice that;
    # qg: q and g (100 + 20) / 2 and, of every class, 203 / 5 rounded up.
    assert counts == {"q": 50 + 10 + 41, "g": 50 + 10 + 41, "w": 95, "z": 95, "t": 2 * (29 + 10 + 13)}


@pytest.mark.parametrize("released", [False, True])
def test_the_study_prints_the_tables_at_its_end(tmp_path, released):
    write_jets(tmp_path / "jets.h5", make_data(150))
    write_released(tmp_path / "models", task="all", classes=5)
    settings = [item for name, value in TINY.items() for item in ("--set", f"{name}={value}")]
    command = [sys.executable, ROOT / "studies/paper_tables.py", "--preset", "smoke", "--seeds", "1", "--inline"]
    command += ["--data", tmp_path / "jets.h5", "--storage", tmp_path, *settings]
    command += ["--released", tmp_path / "models"] if released else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Top tagging: t against q and g" in done.stdout
    folder = tmp_path / "paper_tables_smoke"
    assert 'href="paper_tables.html"' in (folder / "report.html").read_text()
    table = pd.read_csv(folder / "paper_tables.csv")
    measured = table[(table["line"] == "ours") & table["value"].notna()]
    assert {"k-NN, S", "Linear, S"} <= set(measured["row"])
    assert ("released" in set(table["line"])) == released
    plan = json.loads((folder / "study.json").read_text())["plan"]
    assert plan["contrasts"] == []


def test_a_folder_without_checkpoints_is_one_line(tmp_path):
    write_jets(tmp_path / "jets.h5", make_data(150))
    settings = [item for name, value in TINY.items() for item in ("--set", f"{name}={value}")]
    command = [sys.executable, ROOT / "studies/paper_tables.py", "--preset", "smoke", "--seeds", "1", "--inline"]
    command += ["--data", tmp_path / "jets.h5", "--storage", tmp_path / "out", "--released", tmp_path, *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no released checkpoint like all_backbone_pretrain_32_4_2.weights.h5" in done.stderr
    assert not (tmp_path / "out").exists()
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=False)
    assert (dry.returncode, dry.stderr) == (2, done.stderr)


def test_dry_run_costs_every_arm(tmp_path, capsys):
    from studies import main

    with pytest.raises(SystemExit) as stopped:
        main(study, ["--dry-run", "--preset", "smoke", "--storage", str(tmp_path)])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "600 jets x 2 epochs = 1,200 jet passes: S_all" in said
    assert "214 jets x 2 epochs = 428 jet passes: S_qg" in said
    assert "the plan states no contrast" in said
    assert override(Config(), JBOT_B).model == configs_of(study.plan("paper"))["B_all"].model

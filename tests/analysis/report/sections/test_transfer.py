"""The report's section on encoders evaluated at other jet energies, and the study that asks for it."""

import dataclasses

import numpy as np
import pytest

from analysis.report import build, registry
from analysis.report.evidence import gather
from analysis.report.sections import transfer
from analysis.verdicts import number_format as fmt
from jbot.config import from_dict, override, to_dict
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import PlannedTrial, load_study, save_study
from jbot.store.record import Record, save_record, trial_id
from jbot.store.storage import Storage
from studies.cross_energy import study

PTS = (500, 1000, 2000)


def value(own: float, pt: float, seed: int, moved: float = 0.0) -> float:
    """In-domain 0.60; each factor of two away costs 0.05 and, by seed, `moved`; seeds move all arms together."""
    return 0.6 - (0.05 + moved * seed) * abs(np.log2(pt / own)) + 0.001 * seed


def write_records(root, seeds=7, without=(), moved=0.0, **changes):
    """The study's records with numbers made by hand."""
    plan, storage = dataclasses.replace(study.plan("quick", seeds=seeds), **changes), Storage(root)
    trials = []
    for seed in range(seeds):
        for arm, changes in plan.arms.items():
            config = override(from_dict(plan.base), changes | {"seed": seed})
            own, metrics = config.data.jet_pt, {}
            for name in transfer.METRICS:
                metrics |= {f"test/{name}": value(own, own, seed), f"untrained/test/{name}": 0.3 + 0.001 * seed}
                for pt in PTS:
                    metrics[f"test_{pt}/{name}"] = value(own, pt, seed, moved)
                    metrics[f"untrained/test_{pt}/{name}"] = 0.3 + 0.001 * seed
                    metrics |= {f"shifted_{pt}/{name}": value(own, pt, seed) - 0.1} if pt != own else {}
            name = trial_id(config, "jets", "2")
            trials.append(PlannedTrial(arm=arm, seed=seed, trial_id=name))
            if (arm, seed) in without:
                continue
            record = Record(
                trial_id=name, state="complete", study=plan.study, arm=arm, plan_hash=plan.hash,
                config=to_dict(config), data={"source": "pythia", "fingerprint": "jets"}, metrics=metrics,
                trainer_version="2", started="2026-01-01T00:00:00+00:00", wall_seconds=1.0, device_seconds=1.0,
            )  # fmt: skip
            save_record(storage, record)
    save_study(storage, plan, {"source": "pythia", "fingerprint": "jets"}, trials)
    return load_study(f"{root}/{plan.study}")


def test_the_matrix_is_that_of_the_records(tmp_path):
    made = transfer.section(gather(write_records(tmp_path)))
    refitted, linear, shifted, _, costs = made.tables
    assert refitted.head == ["arm", "pre-trained at [GeV]", "n", "on 500 GeV", "on 1000 GeV", "on 2000 GeV"]
    assert refitted.label == "k-NN accuracy, probes refitted"
    assert linear.label == "linear-probe accuracy, probes refitted"
    assert [row[0] for row in refitted.rows] == ["pre_500", "pre_1000", "pre_2000", "untrained encoder"]
    # Seeds 0 to 6: mean +0.003, standard error 0.001 * sqrt(14 / 3 / 7) = 0.00082
    assert refitted.rows[0][2:] == ["7", "0.6030 ± 0.0008 (own)", "0.5530 ± 0.0008", "0.5030 ± 0.0008"]
    assert refitted.rows[3][3:] == ["0.3030 ± 0.0008"] * 3
    assert shifted.rows[2][3:] == ["0.4030 ± 0.0008", "0.4530 ± 0.0008", "0.6030 ± 0.0008 (own)"]
    assert len(costs.rows) == 6
    assert costs.rows[0][:3] == ["pre_1000 − pre_500", "500", "7"]
    assert costs.rows[0][3].startswith("−0.0500")
    assert (
        "Pre-trained at 500 GeV, evaluated at 2000 GeV: k-NN accuracy 0.5030 ± 0.0008, which is −0.100"
        in made.sentences[2]
    )
    (picture,) = made.figures
    assert len(picture.figure.axes) == 1
    assert "pre_2000: 0.5030 ± 0.0008 on 500 GeV" in picture.alt


def test_the_report_has_the_section_and_the_verdicts(tmp_path):
    found = write_records(tmp_path)
    page = build.build_report(found, tmp_path / "out")
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    assert "Transfer between jet energies" in text
    assert r"pre\_500 - pre\_1000 on test\_1000/knn\_accuracy" in text
    verdicts = {item.contrast.name: item for item in gather(found).verdicts}
    assert verdicts["pre_500 - pre_1000 on test_1000/knn_accuracy"].difference.mean == pytest.approx(-0.05)
    assert verdicts["pre_500 - pre_1000 on test_1000/knn_accuracy"].outcome == "worse"  # two primary, seven seeds
    baselines = [item for item in verdicts.values() if item.contrast.treatment == item.contrast.control]
    assert [item.difference.mean for item in baselines] == pytest.approx([0.25, 0.25])


def test_an_unfinished_study_shows_what_it_has(tmp_path):
    missing = {("pre_500", seed) for seed in range(7)} | {("pre_2000", 1)}
    made = transfer.section(gather(write_records(tmp_path, without=missing)))
    assert made.tables[0].rows[0][2:] == ["0", *[f"{fmt.MISSING}{own}" for own in (" (own)", "", "")]]
    assert made.tables[0].rows[2][2] == "6"


def test_other_studies_have_no_such_section(tmp_path):
    found = write_records(tmp_path, seeds=1)
    base = to_dict(override(from_dict(found.plan.base), {"probe.jet_pts": ()}))
    evidence = gather(dataclasses.replace(found, plan=dataclasses.replace(found.plan, base=base)))
    assert transfer.section(evidence) is None
    assert transfer.section in registry.PARTS["Evidence"]


def test_metrics_at_other_energies_are_named_in_words():
    assert find_metric("test_500/knn_accuracy").full_label == "k-NN accuracy on test jets of 500 GeV"
    assert find_metric("shifted_500/knn_auc").full_label.endswith(
        "on test jets of 500 GeV, by probes of another energy"
    )
    assert find_metric("test/knn_accuracy").full_label == "k-NN accuracy on test jets"


def test_what_transfer_costs_is_at_the_level_of_the_plan_and_of_whole_blocks(tmp_path):
    """Costs 0.05 + 0.001 seed at seeds 0 to 5: standard error 0.001 * sqrt(3.5 / 6) = 0.00076, t(5) at 90% 2.015.

    Seed 6 has lost an arm, so it is no block, though the two arms of this row have it.
    """
    found = gather(write_records(tmp_path, without={("pre_2000", 6)}, moved=0.001, alpha=0.1))
    costs = transfer.section(found).tables[-1]
    made = transfer.section(found)
    assert (
        "−0.1050 ± 0.0015 against the encoder pre-trained at 2000 GeV (90% interval −0.1081 to −0.1019, n = 6"
        in (made.sentences[2])
    )
    assert any("none is corrected for the others" in note for note in made.notes)
    assert costs.head[-1] == "90% interval"
    assert costs.rows[0] == ["pre_1000 − pre_500", "500", "6", "−0.0525 ± 0.0008", "−0.0540 to −0.0510"]

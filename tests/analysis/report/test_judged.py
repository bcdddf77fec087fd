"""From records to the page: every part of a report speaks of the blocks and the level that its verdicts rest on."""

import dataclasses

import numpy as np
import pytest
from simulated import FAILED, make_plan, seed_offset, simulate

from analysis.plots import forest
from analysis.report import build, headline
from analysis.report.evidence import gather
from analysis.report.sections import differences, other_metrics
from analysis.stats import paired
from analysis.verdicts import tables
from jbot.store.plan import Contrast, load_study
from jbot.store.record import save_record

TWO = {"base": {}, "more": {"mask.ratio_high": 0.8}}
PRIMARY = (Contrast(treatment="more", control="base", primary=True),)


def metrics(value):
    return {"test/kmeans_ami": value / 3, "untrained/test/knn_accuracy": 0.3}


def score_by_ratio(effects, noise=0.002):
    """A score by the masked share, with what all arms of a block share; `effects` may depend on the seed."""
    return lambda config, seed, rng: (
        0.5 + seed_offset(seed) + effects(config.mask.ratio_high, seed) + noise * rng.normal()
    )


def test_a_study_that_stopped_at_a_look_speaks_of_its_blocks_at_its_level(tmp_path):
    """Decided after 7 of 12 blocks; five more have ended since, and say the opposite."""
    plan = make_plan(TWO, seeds=12, contrasts=PRIMARY, looks=(7, 9, 12))
    turned = score_by_ratio(lambda ratio, seed: (ratio == 0.8) * (0.05 if seed < 7 else -0.4))
    found = simulate(tmp_path, plan, turned, more=metrics)
    (verdict,) = found.verdicts
    assert (verdict.outcome, verdict.look.blocks) == ("better", 7)
    assert list(found.compared.index) == list(range(7))
    assert list(found.arms["n"]) == [7, 7]
    assert found.alpha == pytest.approx(1 - verdict.confidence)
    assert found.alpha < plan.alpha
    section = other_metrics.section(found)
    (row,) = section.details[0].tables[0].rows
    assert row[section.details[0].tables[0].head.index("n")] == "7"
    assert float(row[2].split(" ")[0].replace("−", "-")) > 0
    table = differences.contrasts_table(found)
    assert "95% repeated interval" in table.head


def test_seeds_added_after_a_look_are_seen_and_said_beside_the_verdict(tmp_path):
    """Six blocks of an earlier plan, then nineteen of the same study: the first look is not paid for."""
    score = score_by_ratio(lambda ratio, seed: 0.01 * (ratio == 0.8), noise=0.01)
    few, many = (make_plan(TWO, seeds=n, contrasts=PRIMARY) for n in (6, 19))
    first = simulate(tmp_path, few, score)
    simulate(tmp_path, many, score)
    for record in first.study.records.values():  # they ran when there were six, and are not run again
        save_record(first.study.storage, record)
    folder = str(tmp_path / many.study)
    (verdict,) = gather(load_study(folder)).verdicts
    assert verdict.notes[0].startswith("6 blocks of 19 had ended under an earlier plan of this study.")
    assert "some 7% to 12% are then called better or worse, not 5%" in verdict.notes[0]
    page = build.build_report(load_study(folder), tmp_path / "out").with_name("report.md").read_text()
    assert "6 blocks of 19 had ended under an earlier plan" in page.split("\n## ")[0]
    # A plan whose looks have one there pays for it, and one plan alone has nothing to say.
    paid = dataclasses.replace(many, looks=(6, 12, 19))
    assert "earlier plan" not in " ".join(simulate(tmp_path / "paid", paid, score).verdicts[0].notes)
    assert "earlier plan" not in " ".join(first.verdicts[0].notes)


def test_failures_stand_on_the_first_screen_also_where_contrasts_share_a_box(tmp_path):
    """Two contrasts are better; one of their arms failed at 4 of 12 seeds, and is worse where it did not."""
    arms = TWO | {"most": {"mask.ratio_high": 0.9}}
    contrasts = tuple(Contrast(treatment=arm, control="base", primary=True) for arm in ("more", "most"))
    plan = make_plan(arms, seeds=12, contrasts=contrasts)
    effect = score_by_ratio(lambda ratio, seed: {0.5: 0.0, 0.8: 0.06, 0.9: 0.05}[ratio])
    found = simulate(tmp_path, plan, effect, {("most", seed): FAILED for seed in (1, 4)}, more=metrics)
    assert [verdict.outcome for verdict in found.verdicts] == ["better", "better"]
    (box, *_) = headline.answers(found, [])
    said = " ".join(box.notes)
    assert "most − base: 2 seeds are left out because a trial failed: most failed in 2 of 12" in said
    assert "it would stand if most had lost" in said
    equal = simulate(
        tmp_path / "equal", make_plan(arms, seeds=12, contrasts=contrasts), score_by_ratio(lambda ratio, seed: 0.0)
    )
    (box, *_) = headline.answers(equal, [])
    assert all("equivalence p = " in numbers for _, numbers in box.pairs)


def test_what_is_decided_is_drawn_first(tmp_path):
    """One of 60 contrasts is better: it is the first row of the figure, wherever the plan has it."""
    arms = {"base": {}} | {f"r{i}": {"mask.ratio_high": 0.5 + i / 200} for i in range(1, 61)}
    contrasts = tuple(Contrast(treatment=arm, control="base") for arm in arms if arm != "base")
    plan = make_plan(arms, seeds=12, contrasts=contrasts)
    found = simulate(tmp_path, plan, score_by_ratio(lambda ratio, seed: 0.2 * (ratio == 0.5 + 45 / 200), noise=0.02))
    drawn = differences._decided_first(found.verdicts)
    assert drawn[0].contrast.name == "r45 - base"
    assert drawn[0].outcome == "better"


def test_circles_that_would_lie_on_each_other_stand_apart():
    steps = forest._apart([0.1, 0.3, 0.1, 0.1, 0.2])
    assert list(steps) == [0, 0, 1, -1, 0]
    assert list(forest._apart([])) == []
    assert len(set(forest._apart(np.zeros(3)))) == 3


def test_an_outlier_is_found_by_hand():
    """Grubbs, 8 values, 1%: 2.274 standard deviations (NIST/SEMATECH e-Handbook, 1.3.5.17.1, two-sided)."""
    values = np.array([0.0, 0.1, -0.1, 0.05, -0.05, 0.02, -0.02, 0.0])
    assert paired.outlier(values) is None
    values[5] = 5.0
    assert paired.outlier(values) == 5


def test_a_noise_floor_is_in_no_list_of_verdicts(tmp_path):
    plan = make_plan(
        {"control": {}, "more": {"mask.ratio_high": 0.6}, "null": {"train.perturbation": 1e-6}},
        contrasts=(
            Contrast(treatment="more", control="control", primary=True),
            Contrast(treatment="null", control="control"),
        ),
    )
    found = simulate(tmp_path, plan, lambda config, seed, rng: 0.6 + seed_offset(seed) + 0.01 * rng.normal())
    text = (build.build_report(found.study, tmp_path / "out").parent / "report.md").read_text()
    assert "**Noise floor** (no verdict). control against itself" in text
    assert "null against control is undecided" not in text
    assert "erdicts in words" not in text  # the only verdict is on the first screen


def test_the_same_differences_have_one_p_value_throughout_a_report(tmp_path):
    """Above 20 seeds signs are drawn: what was tested before must not decide which."""
    plan = make_plan(TWO, seeds=24, contrasts=PRIMARY)
    effect = score_by_ratio(lambda ratio, seed: 0.01 * (ratio == 0.8), noise=0.02)
    twins = ("test/kmeans_ami", "test/linear_accuracy", "test/knn_auc")
    found = simulate(tmp_path, plan, effect, more=lambda value: dict.fromkeys(twins, value))
    table = tables.metric_differences(found.trials, plan, twins, found.judged, found.alpha)
    (verdict,) = found.verdicts
    assert 0.001 < verdict.p < 0.9  # other draws give another last digit
    assert list(table["p"]) == [verdict.p] * 3

"""Scans of simulated arms: which arms form one, what is said of it, and where an axis is logarithmic."""

import math

import numpy as np
import pandas as pd
import pytest
from simulated import FAILED, make_plan, seed_offset, simulate

from analysis.report import registry
from analysis.report.sections import sensitivity

KOLEO = (0.0, 0.001, 0.01, 0.1, 1.0)
RATIOS = {f"r{value:g}": {"mask.ratio_high": value} for value in (0.1, 0.3, 0.7, 0.9)}


def koleo_arms(batches=(1024,)):
    """The base has the weight 0.01."""
    arms = {"base": {}}
    for batch in batches:
        for weight in KOLEO:
            changes = {"loss.koleo_weight": weight} | ({"train.batch": batch} if batch != 1024 else {})
            if (weight, batch) != (0.01, 1024):
                arms[f"k{weight:g}_b{batch}"] = changes
    return arms


def peaked(config, seed, rng):
    """Best at the base's weight, 0.03 better than at 1; lower by 0.02 with large batches."""
    decades = math.log10(max(config.loss.koleo_weight, 1e-4)) + 2
    batch = 0.02 * (config.train.batch > 1024)
    return 0.5 + seed_offset(seed) + 0.015 * (1 - decades**2 / 2) - batch + 0.002 * rng.normal()


def flat(config, seed, rng):
    return 0.5 + seed_offset(seed) + 0.002 * rng.normal()


def test_scan_is_of_arms_that_else_agree_and_counts_the_base():
    plan = make_plan({"base": {}, "other": {"train.batch": 64, "mask.ratio_high": 0.2}, **RATIOS})
    (scan,) = sensitivity.scans(plan)
    assert (scan.field, scan.group, scan.base) == ("mask.ratio_high", "", 0.5)
    assert scan.arms == {0.1: "r0.1", 0.3: "r0.3", 0.5: "base", 0.7: "r0.7", 0.9: "r0.9"}


def test_scans_at_two_batch_sizes_are_groups_of_one_field():
    found = sensitivity.scans(make_plan(koleo_arms((1024, 2048))))
    assert [(scan.field, scan.group) for scan in found] == [
        ("loss.koleo_weight", "train.batch = 1024"),
        ("loss.koleo_weight", "train.batch = 2048"),
    ]
    assert all(list(scan.arms) == list(KOLEO) for scan in found)


@pytest.mark.parametrize(
    "arms",
    [
        {"base": {}, "more": {"mask.ratio_high": 0.7}},
        {"base": {}, "a": {"mask.scheme": "none"}, "b": {"mask.scheme": "random"}, "c": {"mask.scheme": "geometric"}},
        {"base": {}, "a": {"mask.ratio_high": 0.7, "train.batch": 64}, "b": {"mask.ratio_high": 0.9}},
        {f"d{jets}": {"data.train_jets": jets} for jets in (1000, 10_000, 100_000)},
    ],
    ids=["two values", "no number", "two fields at once", "shown under scaling"],
)
def test_what_is_no_scan(arms, tmp_path):
    plan = make_plan(arms, seeds=2)
    assert sensitivity.scans(plan) == []
    assert sensitivity.section(simulate(tmp_path, plan, flat)) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.001, 0.01, 0.1], True),
        ([0.0005, 0.001, 0.002, 0.004, 0.008], True),
        ([0, 0.01, 0.1], True),
        ([0.1, 0.3, 0.5, 0.7, 0.9], False),
        ([0, 0.25, 0.5, 1], False),
        ([0.1, 1, 2, 3, 4], False),
        ([-1, 10, 100], False),
        ([0], False),
    ],
)
def test_axis_follows_the_spacing(values, expected):
    assert sensitivity.is_logarithmic([float(value) for value in values]) is expected


def test_span_of_a_known_truth(tmp_path):
    plan = make_plan(koleo_arms(), seeds=5)
    evidence = simulate(tmp_path, plan, peaked)
    found = sensitivity.span(sensitivity.scans(plan)[0], evidence.scores)
    assert (found.n, found.highest[0]) == (5, 0.01)
    assert found.lowest[0] in (0.0, 1.0)
    assert found.size == pytest.approx(0.03, abs=0.004)
    assert found.by_chance < found.size
    assert found.p == 1 / (sensitivity.SHUFFLES + 1)
    text = sensitivity.section(evidence).sentences
    assert text[1].startswith("loss.koleo_weight from 0 to 1: the means lie 0.03")
    assert "(p = 0.0005, n = 5 seeds)" in text[1]


def test_shuffles_are_fair_where_nothing_matters():
    """The p-value is uniform when the arms are the same: of 60 studies, few fall below 0.1, and not none below 0.5."""
    plan, rng, p_values = make_plan(koleo_arms(), seeds=4), np.random.default_rng(5), []
    (scan,) = sensitivity.scans(plan)
    for _ in range(60):
        scores = pd.DataFrame(rng.normal(size=(4, 5)) + rng.normal(size=(4, 1)), columns=list(scan.arms.values()))
        p_values.append(sensitivity.span(scan, scores).p)
    assert np.mean(np.array(p_values) < 0.1) < 0.22
    assert 0.3 < np.mean(p_values) < 0.7


def test_ties_are_no_effect():
    (scan,) = sensitivity.scans(make_plan(koleo_arms()))
    found = sensitivity.span(scan, pd.DataFrame(0.5, index=range(6), columns=list(scan.arms.values())))
    assert (found.size, found.p) == (0, 1)


def test_no_effect_is_said_and_corrected_over_all_scans(tmp_path):
    plan = make_plan({**koleo_arms(), **RATIOS})
    text = sensitivity.section(simulate(tmp_path, plan, flat)).sentences
    assert len(text) == 3
    assert all("no effect is shown" in line and "over 2 scans" in line for line in text[1:])


def test_table_has_paired_differences_to_the_base(tmp_path):
    plan = make_plan(koleo_arms(), seeds=6)
    evidence = simulate(tmp_path, plan, peaked, {("k1_b1024", 2): FAILED})
    (table,) = sensitivity.section(evidence).tables
    rows = {row[1]: row for row in table.rows}
    assert [row[0] for row in table.rows] == ["0", "0.001", "0.01", "0.1", "1"]
    assert rows["base"][5:] == ["the base’s value", "–", "–", "–"]
    assert (rows["k1_b1024"][2], rows["k1_b1024"][7]) == ("5", "5")
    gaps = (evidence.scores["k0.1_b1024"] - evidence.scores["base"]).to_numpy()
    assert float(rows["k0.1_b1024"][5].split(" ")[0].replace("−", "-")) == pytest.approx(gaps.mean(), abs=5e-4)
    # 0.03125 is the smallest p of six seeds, 0.0625 of five: four differences corrected together.
    assert {row[8] for name, row in rows.items() if name != "base"} == {"0.042", "0.062"}


def test_arm_without_any_score_is_left_out_of_the_span(tmp_path):
    plan = make_plan(koleo_arms(), seeds=4)
    lost = {("k0_b1024", seed): FAILED for seed in plan.seeds}
    evidence = simulate(tmp_path, plan, peaked, lost)
    found = sensitivity.span(sensitivity.scans(plan)[0], evidence.scores)
    assert (found.n, found.lowest[0]) == (4, 1.0)
    assert sensitivity.section(evidence).tables[0].rows[0][2:4] == ["0", "–"]


def test_study_of_failures_only(tmp_path):
    plan = make_plan(koleo_arms(), seeds=2)
    lost = {(arm, seed): FAILED for arm in plan.arms for seed in plan.seeds}
    made = sensitivity.section(simulate(tmp_path, plan, peaked, lost))
    assert "nothing can be said yet" in made.sentences[1]
    assert {row[3] for row in made.tables[0].rows} == {"–"}


def test_one_seed_has_no_p(tmp_path):
    text = sensitivity.section(simulate(tmp_path, make_plan(koleo_arms(), seeds=1), peaked)).sentences
    assert "One seed has no spread" in text[1]


def test_unfinished_blocks_are_not_compared(tmp_path):
    plan = make_plan(koleo_arms(), seeds=2)
    running = {("base", seed): None for seed in plan.seeds}
    text = sensitivity.section(simulate(tmp_path, plan, peaked, running)).sentences
    assert "nothing can be said yet" in text[1]


def test_figure_has_a_zero_behind_a_gap_and_the_base_marked(tmp_path):
    plan = make_plan(koleo_arms((1024, 2048)), seeds=3)
    (picture,) = sensitivity.section(simulate(tmp_path, plan, peaked)).figures
    upper, lower = picture.figure.axes
    assert picture.name == "response-loss-koleo-weight"
    labels = [upper.xaxis.get_major_formatter()(at) for at in upper.xaxis.get_majorticklocs()]
    assert labels == ["0", "0.001", "0.01", "0.1", "1"]
    places = upper.xaxis.get_majorticklocs()
    assert places[0] < places[1] == -3
    assert lower.get_ylabel() == "minus the base’s value"
    assert any(list(line.get_xdata()) == [-2, -2] for line in upper.lines)
    # No line leads from the zero to the rest.
    assert not any(len(line.get_xdata()) == 5 and line.get_linestyle() == "-" for line in upper.lines)


def test_sections_are_in_the_report(tmp_path):
    evidence = simulate(tmp_path, make_plan(koleo_arms(), seeds=2), peaked)
    assert "Response to single settings" in [section.title for section in registry.gather(evidence)["Evidence"]]


def test_curves_are_drawn_at_the_level_that_their_caption_names(tmp_path):
    """Five seeds: t(4) is 2.132 at 90% and 2.776 at 95%."""
    lengths = []
    for alpha in (0.1, 0.05):
        plan = make_plan(koleo_arms(), seeds=5, alpha=alpha)
        (picture,) = sensitivity.section(simulate(tmp_path / f"{alpha}", plan, peaked)).figures
        assert f"with {1 - alpha:.0%} intervals" in picture.caption
        bars = picture.figure.axes[0].containers[0].lines[2][0].get_segments()
        lengths.append(bars[0][1][1] - bars[0][0][1])
    assert lengths[0] / lengths[1] == pytest.approx(2.132 / 2.776, abs=1e-3)

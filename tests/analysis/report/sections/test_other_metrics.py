"""The table of the other metrics, and their paired differences."""

import pytest
from simulated import make_plan, seed_offset, simulate

from analysis.report.sections import other_metrics
from jbot.store.plan import Contrast

ARMS = {"base": {}, "more": {"mask.ratio_high": 0.8}}
PRIMARY = (Contrast(treatment="more", control="base", primary=True),)


def metrics(value):
    return {"test/kmeans_ami": value / 3, "untrained/test/kmeans_ami": 0.0123456 * value}


def score(config, seed, rng):
    """What 0.8 is worth turns at the eighth seed."""
    gain = (config.mask.ratio_high == 0.8) * (0.06 if seed < 7 else -0.6)
    return 0.6 + seed_offset(seed) + gain + 0.003 * rng.normal()


def test_a_column_is_rounded_alike_and_ends_at_the_look(tmp_path):
    """Decided after 7 of 12 blocks: the others, which say the opposite, enter no mean."""
    found = simulate(tmp_path, make_plan(ARMS, seeds=12, contrasts=PRIMARY, looks=(7, 9, 12)), score, more=metrics)
    assert found.verdicts[0].look.blocks == 7
    rows = other_metrics.section(found).tables[0].rows
    assert [row[0] for row in rows] == ["base", "more", "untrained encoder"]
    base, more, _ = (float(row[1].split()[0]) for row in rows)
    assert more - base == pytest.approx(0.02, abs=0.003)
    assert len({len(row[1].split()[0].partition(".")[2]) for row in rows}) == 1


def test_the_null_is_no_difference_among_others(tmp_path):
    """It is not corrected with them either: of one question p is that of the question alone."""
    null = {"null": {"train.perturbation": 1e-6}}
    contrasts = (*PRIMARY, Contrast(treatment="null", control="base"))
    found = simulate(tmp_path, make_plan(ARMS | null, contrasts=contrasts), score, more=metrics)
    (table,) = other_metrics.section(found).details[0].tables
    assert [row[table.head.index("contrast")] for row in table.rows] == ["more − base"]
    assert table.rows[0][-1] == "0.031"

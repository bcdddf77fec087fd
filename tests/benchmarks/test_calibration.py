"""Calibration in small: our own statistics on simulated studies, and the command."""

import json
import re

import numpy as np
import pytest

from benchmarks import calibration, calibration_truths
from benchmarks.calibration_row import Row, row_of
from benchmarks.calibration_truths import Truth, decided


def row(kind, found, nominal=0.05, repeats=1000):
    events = round(found * repeats)
    return row_of("part", "claim", nominal, kind, [1.0] * events + [0.0] * (repeats - events))


def test_a_claim_stands_within_monte_carlo_error_alone():
    # 1000 studies at 5%: a standard error of 0.69%, 3.29 of them at 99.9%.
    assert row("at most", 0.06).ok
    assert not row("at most", 0.09).ok
    assert row("at most", 0.0).ok
    assert not row("at least", 0.7, 0.8).ok
    assert row("at least", 0.99, 0.8).ok
    assert not row("equal", 0.99, 0.95).ok
    assert row("shown", 0.99, 0.05).ok


def test_a_row_needs_a_study():
    with pytest.raises(ValueError, match="at least one simulated study, got none"):
        row_of("part", "claim", 0.05, "at most", [])


def test_simulated_pairs_have_the_stated_difference_and_spread():
    rng = np.random.default_rng(0)
    scores, states = calibration_truths.draw(Truth(seeds=4000, shifts=(0.5, 0.0), spreads=(1.0, 2.0)), rng)
    gaps = scores[["treatment_0", "treatment_1"]].sub(scores["control"], axis=0)
    assert gaps.mean().to_numpy() == pytest.approx([0.5, 0.0], abs=0.1)
    assert gaps.std().to_numpy() == pytest.approx([1.0, 2.0], rel=0.05)
    assert (states == "complete").all(axis=None)


@pytest.mark.parametrize("shape", ["skewed scores", "skewed differences", "rare collapse"])
def test_noise_has_mean_zero_and_spread_one(shape):
    drawn = calibration_truths.noise(Truth(seeds=1, shape=shape), np.random.default_rng(0), (400_000,))
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("failing", ["by chance", "low scores"])
def test_a_fifth_of_the_trials_fails(failing):
    scores, states = calibration_truths.draw(Truth(seeds=4000, failing=failing), np.random.default_rng(0))
    assert (states == "failed").to_numpy().mean() == pytest.approx(0.2, abs=0.02)
    assert scores.isna().equals(states == "failed")


def test_arms_alike_are_rarely_called_better_and_a_large_difference_is_found():
    rng = np.random.default_rng(1)
    # The floor of 6 seeds is 2/64 = 3.1%; of 200 studies 6 are expected, and more than 16 in one of 2,000 runs.
    assert decided("difference", Truth(seeds=6), rng, 200).sum() <= 16
    assert decided("difference", Truth(seeds=5), rng, 20).sum() == 0
    assert decided("better", Truth(seeds=8, shifts=(-6.0,)), rng, 20).mean() == 1.0
    assert decided("equivalence", Truth(seeds=10, shifts=(1.0,), margin=1.0), rng, 100).sum() <= 16
    assert decided("share", Truth(seeds=8, shifts=(6.0, 0.0), primary=False), rng, 20).mean() <= 0.25


def test_intervals_hold_the_truth_as_often_as_they_say():
    for method, simulate in {
        "t": lambda rng, n: calibration.cover_mean("t", "normal", 5, rng, n),
        "chi-square": lambda rng, n: calibration.cover_deviation(5, rng, n),
        "both levels": lambda rng, n: calibration.cover_levels("both", 5, 1.0, rng, n),
    }.items():
        values = simulate(np.random.default_rng(2), 1000)
        # Four standard errors of 0.69%.
        assert values.mean() == pytest.approx(0.95, abs=0.028), method


def test_what_is_no_good_is_seen_to_be_no_good():
    rng = np.random.default_rng(3)
    assert calibration.cover_mean("percentile bootstrap", "normal", 3, rng, 200).mean() < 0.85
    assert calibration.cover_levels("seeds alone", 10, 1.0, rng, 200).mean() < 0.7


def test_the_figures_do_not_depend_on_the_number_of_processes():
    checks = list(calibration.PARTS["intervals"]())[:2]
    alone = list(calibration.simulate(checks, 30, 5, workers=1))
    assert alone == list(calibration.simulate(checks, 30, 5, workers=2))
    assert alone != list(calibration.simulate(checks, 30, 6, workers=1))


def test_command_writes_a_page_and_says_whether_all_stands(tmp_path, capsys, monkeypatch):
    sound = calibration.Check(
        what="A part", claim="a sound claim", nominal=0.5, kind="at most", simulate=lambda rng, n: np.zeros(n)
    )
    monkeypatch.setattr(calibration, "PARTS", {"levels": lambda: iter([sound])})
    arguments = ["--only", "levels", "--repeats", "20", "--workers", "1", "--out", str(tmp_path)]
    assert calibration.main(arguments) == 0
    assert "All 1 claims stand" in capsys.readouterr().out
    page = (tmp_path / "calibration.md").read_text()
    assert re.search(r"^\| a sound claim +\| at most 50.0% +\| 0.0% ", page, re.MULTILINE)
    saved = json.loads((tmp_path / "calibration.json").read_text())
    assert Row(**{k: v for k, v in saved["rows"][0].items() if k != "ok"}).found == 0.0

    wrong = calibration.Check(
        what="A part", claim="too many", nominal=0.05, kind="at most", simulate=lambda rng, n: np.ones(n)
    )
    monkeypatch.setattr(calibration, "PARTS", {"levels": lambda: iter([wrong])})
    assert calibration.main(arguments) == 1
    assert "does not stand" in (tmp_path / "calibration.md").read_text()


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--only", "luck"], ["--seed", "-1"], ["--workers", "x"]])
def test_bad_input_is_one_clear_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        calibration.main(arguments)
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err

"""Planned looks: the error level holds over all of them, counted on every sign and by simulation."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from helpers import TINY
from scipy import stats
from simulated import make_plan as plan_of_records
from simulated import simulate

from analysis.stats import paired, sequential
from analysis.stats.sequential import InterimHistory, planned_history
from analysis.verdicts.decide import decide_contrasts, decided
from jbot.data.hdf5 import write
from jbot.store.plan import Contrast, Plan, PlanError, load_study
from jbot.store.storage import Storage
from studies import main
from studies.runner.cli import blocks_of
from studies.runner.looks import batches, describe_looks, with_looks
from studies.runner.study import Study
from studies.runner.trials import trial_specs

PAIR = (Contrast(treatment="a", control="b", primary=True),)


def make_plan(blocks, looks, contrasts=PAIR, margin=0.01):
    arms = {arm: {} for contrast in contrasts for arm in (contrast.control, contrast.treatment)}
    return Plan(
        study="s", question="?", preset="smoke", arms=arms, base={}, seeds=tuple(range(blocks)), metric="test/x",
        higher_is_better=True, margin=margin, contrasts=contrasts, looks=looks,
    )  # fmt: skip


def study_of(scores, looks, blocks, failed=(), **changes):
    """Verdicts after the blocks that have scores, of `blocks` planned."""
    frame = pd.DataFrame(scores, dtype=float)
    states = pd.DataFrame("complete", frame.index, frame.columns)
    for seed, arm in failed:
        states.loc[seed, arm], frame.loc[seed, arm] = "failed", math.nan
    every = range(blocks)
    plan = make_plan(blocks, looks, **changes)
    return decide_contrasts(plan, frame.reindex(every), states.reindex(every, fill_value="pending"))


# --- the tests ------------------------------------------------------------------------------------------------------


def course_p(d, looks, alpha=0.05, family=1):
    """The sequential p-value by the last look at which it could have stopped, a look at a time as a study does."""
    whole = planned_history(looks, looks[-1])
    found = []
    for k, n in enumerate(looks, start=1):
        course = InterimHistory(shares=whole.shares[:k], pairs=whole.pairs[:k])
        found.append(sequential.sign_flip_test(d[:n], course, alpha, family))
    return found


@pytest.mark.parametrize("sizes", [[1.0, 1.4, 0.3, 2.2, 0.9, 1.1, 0.7], [1.0] * 7, [1, 1, 2, 2, 0, 0, 3]])
def test_no_level_is_exceeded_over_all_signs_and_looks(sizes):
    """Given the sizes, every sign vector is equally likely: the chance of any p-value at any look is a count."""
    looks, sizes = (4, 5, 7), np.array(sizes, dtype=float)
    signed = [sizes * (1, *signs) for signs in itertools.product((1, -1), repeat=6)]
    each = np.array([course_p(d, looks) for d in signed])
    assert (np.diff(each, axis=1) <= 0).all()  # what was shown at a look stays shown
    best = each.min(axis=1)
    for level in np.unique([*best[best < 1], 0.05, 0.025, 0.01]):
        assert np.mean(best <= level) <= level * (1 + 1e-9)
        for look, n in enumerate(looks):
            spent = np.mean(each[:, : look + 1].min(axis=1) <= level)
            assert spent <= level * sequential.share_spent(n, 7) * (1 + 1e-9)


def test_nothing_of_the_level_is_wasted_but_one_atom():
    """What discrete p-values leave at an early look is spent at a later one."""
    sizes = np.random.default_rng(4).lognormal(size=9)
    signed = [sizes * (1, *signs) for signs in itertools.product((1, -1), repeat=8)]
    best = np.array([course_p(d, (7, 8, 9))[-1] for d in signed])
    assert 0.05 - 2 / 2**8 < np.mean(best <= 0.05) <= 0.05


def test_one_look_is_the_plain_test():
    d = np.random.default_rng(0).normal(0.6, 1, 9)
    plain = paired.sign_flip_test(d)
    found = sequential.sign_flip_test(d, planned_history((9,), 9), 0.05, 1)
    assert plain <= found * (1 + 1e-12) <= plain * 1.033
    assert sequential.confidence(planned_history((9,), 9), 0.05) == pytest.approx(0.95)


def test_sequential_p_by_hand():
    """Equal differences: by 7 of 12 blocks p is 2/2^7 over the share (7/12)^2; by the end it is 2/2^12."""
    first, last = course_p(np.ones(12), (7, 12))
    assert first == pytest.approx(2 / 2**7 / (7 / 12) ** 2)
    assert last == pytest.approx(2 / 2**12)
    assert sequential.min_p(planned_history((7,), 12)) == pytest.approx(first)
    assert sequential.min_p(planned_history((7, 12), 12)) == pytest.approx(last)


def test_random_signs_agree_with_all_signs(monkeypatch):
    d, course = np.random.default_rng(2).normal(0.6, 1, 12), planned_history((7, 9, 12), 12)
    exact = sequential.sign_flip_test(d, course, 0.05, 1)
    monkeypatch.setattr(sequential, "EXACT_UP_TO", 6)
    drawn = sequential.sign_flip_test(d, course, 0.05, 1)
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / paired.RESAMPLES) + 0.033 * exact)


def test_nominal_levels_agree_with_the_multivariate_t_in_the_limit_of_many_pairs():
    """With many pairs t is normal, and looks at n and 2n have correlation sqrt(1/2)."""
    course = planned_history((200, 400), 400)
    levels, nominal = sequential.nominal_levels(course, 2, 0.05, 1)
    first, last = nominal[:, np.searchsorted(levels, 0.05)]
    assert first == pytest.approx(0.05 / 4)
    low, high = (stats.norm.isf(p / 2) for p in (first, last))
    both = stats.multivariate_normal([0, 0], [[1, math.sqrt(0.5)], [math.sqrt(0.5), 1]])
    inside = sum(s * t * both.cdf([s * low, t * high]) for s in (1, -1) for t in (1, -1))
    assert 1 - inside == pytest.approx(0.05, abs=0.003)


def test_repeated_intervals_cover_at_all_looks_together():
    rng, looks, missed = np.random.default_rng(8), (6, 9, 12), 0
    quantile = []
    for k in (1, 2, 3):
        whole = planned_history(looks, 12)
        course = InterimHistory(shares=whole.shares[:k], pairs=whole.pairs[:k])
        quantile.append(stats.t.isf((1 - sequential.confidence(course, 0.05)) / 2, looks[k - 1] - 1))
    draws = rng.normal(size=(20_000, 12))
    for d in (draws[:, :n] for n in looks):
        t = d.mean(axis=1) / d.std(axis=1, ddof=1) * math.sqrt(d.shape[1])
        missed = missed | (np.abs(t) > quantile[looks.index(d.shape[1])])
    assert np.mean(missed) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 20_000) + 0.002)


def test_equivalence_is_paid_for_too():
    """At the margin itself, at most 5% of courses ever say equivalent."""
    rng, course, said = np.random.default_rng(9), planned_history((5, 7, 9), 9), 0
    for _ in range(600):
        said += sequential.tost(rng.normal(1.5, 1, 9), course, 1.5, 0.05, 1) <= 0.05
    assert said / 600 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.parametrize(
    ("blocks", "contrasts", "looks"),
    [(6, 1, (6,)), (8, 1, (7, 8)), (8, 3, (8,)), (12, 3, (9, 10, 11, 12)), (12, 1, (7, 9, 10, 12)), (3, 1, (3,))],
)
def test_default_looks_begin_where_a_difference_can_be_shown(blocks, contrasts, looks):
    found = sequential.default_looks(blocks, contrasts)
    assert found == looks
    for n in found[:-1]:
        assert contrasts * sequential.min_p(planned_history((n,), blocks)) <= 0.05


def test_outlook_agrees_with_judged_studies():
    """What a dry run promises, against studies that are judged as real ones are."""
    rng, looks, runs = np.random.default_rng(3), (7, 9, 12), 60
    ahead = sequential.outlook(looks, [1.2])
    taken = []
    for _ in range(runs):
        gap = rng.normal(1.2, 1, 12)
        (found,) = study_of({"a": gap, "b": np.zeros(12)}, looks, 12, margin=1e-6)
        taken.append((found.look.blocks, decided([found])))
    blocks, done = np.array(taken).T
    assert blocks.mean() == pytest.approx(ahead.blocks, abs=0.9)
    assert done.mean() == pytest.approx(ahead.decided, abs=0.16)
    assert sequential.outlook(looks, [0.0]).blocks > 11.8
    assert sequential.outlook(looks, [0.0], [2.0]).blocks < 8


# --- verdicts -------------------------------------------------------------------------------------------------------

BASE = np.resize([0.50, 0.38, 0.38, 0.43, 0.41, 0.47], 12)
NOISE = np.resize([0.004, -0.003, 0.001, -0.002, 0.003, -0.001, 0.002], 12)


def test_a_large_difference_stops_at_the_first_look():
    (found,) = study_of({"a": (BASE + 0.05 + NOISE)[:7], "b": BASE[:7]}, (7, 9, 12), 12)
    assert (found.outcome, found.interim, found.look.blocks, found.look.next) == ("better", False, 7, None)
    assert found.p_adjusted == found.min_p == pytest.approx(2 / 2**7 / (7 / 12) ** 2)
    assert "95% repeated interval" in found.sentence
    assert any("Stopped at the planned look after 7 of 12 blocks" in note for note in found.notes)
    fixed = paired.mean_interval((0.05 + NOISE)[:7])
    assert found.difference.low < fixed.low
    assert found.difference.high > fixed.high


def test_blocks_after_the_stop_are_not_judged():
    early = study_of({"a": (BASE + 0.05 + NOISE)[:7], "b": BASE[:7]}, (7, 9, 12), 12)[0]
    more = np.r_[(BASE + 0.05 + NOISE)[:7], BASE[7:] - 9.0]
    (late,) = study_of({"a": more, "b": BASE}, (7, 9, 12), 12)
    assert (late.outcome, late.difference) == (early.outcome, early.difference)
    assert any("5 blocks that ended after this look" in note for note in late.notes)


def test_between_looks_nothing_is_claimed():
    (found,) = study_of({"a": (BASE + 0.5)[:6], "b": BASE[:6]}, (7, 9, 12), 12)
    assert (found.outcome, found.p, found.interim) == ("undecided", 1.0, True)
    assert math.isnan(found.difference.low)
    assert "the first planned look is after 7 blocks, of which 6 have ended" in found.sentence
    eight = {"a": (BASE + 0.01 + 6 * NOISE)[:8], "b": BASE[:8]}
    seven = {arm: values[:7] for arm, values in eight.items()}
    one, other = (study_of(scores, (7, 9, 12), 12)[0] for scores in (eight, seven))
    assert (one.p, one.difference) == (other.p, other.difference)
    assert any("the next is after 9" in note for note in one.notes)


def test_a_block_that_is_missing_holds_back_the_looks_after_it():
    frame = pd.DataFrame({"a": BASE + 0.05 + NOISE, "b": BASE})
    states = pd.DataFrame("complete", frame.index, frame.columns)
    states.loc[3, "a"] = "pending"
    (found,) = decide_contrasts(make_plan(12, (7, 9, 12)), frame, states)
    assert (found.look.blocks, found.look.ended) == (0, 3)


def test_all_primary_contrasts_must_be_decided():
    contrasts = (*PAIR, Contrast(treatment="c", control="b", primary=True))
    scores = {"b": BASE, "a": BASE + 0.05 + NOISE, "c": BASE + 0.008 + 9 * NOISE}
    (first, second) = study_of({arm: v[:10] for arm, v in scores.items()}, (8, 10, 12), 12, contrasts=contrasts)
    assert first.outcome == "better"
    assert second.outcome == "undecided"
    assert not decided([first, second])
    assert (first.interim, first.look.next) == (True, 12)


def test_failed_trials_cost_information_not_error():
    failed = [(0, "a"), (1, "b"), (2, "b")]
    scores = {"a": (BASE + 0.05 + NOISE)[:9], "b": BASE[:9]}
    (found,) = study_of(scores, (7, 9, 12), 12, failed=failed)
    assert (found.difference.n, found.dropped) == (6, 3)
    assert found.min_p == pytest.approx(2 / 2**6 / (9 / 12) ** 2)
    assert found.outcome == "undecided"
    assert "3 seeds are left out because a trial failed: a failed in 1 of 9" in found.sentence


@pytest.mark.parametrize(
    ("failing", "failures", "outcome", "words"),
    [
        ("a", 6, "undecided", "It would not stand if a had lost"),
        ("a", 1, "better", "it would stand if a had lost"),
        ("b", 6, "better", None),
    ],
)
def test_a_verdict_that_hangs_on_failures_says_so(failing, failures, outcome, words):
    """Failures of the better arm may have hidden its worst seeds; those of the worse one have not."""
    scores = {"a": BASE + 0.05 + NOISE, "b": BASE}
    (found,) = study_of(scores, (), 12, failed=[(seed, failing) for seed in range(failures)])
    assert found.outcome == outcome
    said = " ".join([found.sentence, *found.notes])
    assert ("had lost by the largest" in said) == (words is not None)
    assert words is None or words in said


def test_equivalence_must_hold_at_the_look_that_is_reported():
    """Equivalent after 10 blocks; the four that follow, while the other contrast is still open, say the opposite."""
    contrasts = (*PAIR, Contrast(treatment="c", control="b", primary=True))
    ten, base = np.resize(NOISE, 10), np.resize(BASE, 14)
    drift = np.r_[ten, np.full(4, 0.1)] + base
    wide = np.r_[ten + 0.06 * np.resize([1, -1], 10), np.full(4, 0.5)] + base
    first = study_of({"a": drift[:10], "b": base[:10], "c": wide[:10]}, (10, 14), 14, margin=0.02, contrasts=contrasts)
    assert [one.outcome for one in first] == ["equivalent", "undecided"]
    last = study_of({"a": drift, "b": base, "c": wide}, (10, 14), 14, margin=0.02, contrasts=contrasts)
    assert last[0].look.blocks == 14
    assert last[0].difference.mean > 0.02
    assert last[0].outcome != "equivalent"


@pytest.mark.parametrize("gap", [0.5, 0.8])
def test_what_is_reported_as_equivalent_passes_the_plain_test(gap):
    """Two contrasts of true differences below a margin of one sd, with looks at 7, 9, 10 and 12 blocks."""
    rng, looks, claims = np.random.default_rng(31), (7, 9, 10, 12), 0
    contrasts = (*PAIR, Contrast(treatment="c", control="b", primary=True))
    for _ in range(40):
        scores = {"a": rng.normal(gap, 1, 12), "b": np.zeros(12), "c": rng.normal(0.3, 1, 12)}
        for found in study_of(scores, looks, 12, margin=1.0, contrasts=contrasts):
            if found.outcome == "equivalent":
                claims += 1
                d = scores[found.contrast.treatment][: found.look.blocks]
                assert paired.tost(d, 1.0) <= 0.05
    assert claims


def test_family_wise_error_holds_over_looks():
    """30 studies of three equal arms against one control: wrong claims at any look, at most 5% and three errors."""
    rng, wrong = np.random.default_rng(21), 0
    contrasts = tuple(Contrast(treatment=arm, control="z", primary=True) for arm in "abc")
    for _ in range(30):
        scores = dict(zip("zabc", rng.normal(0, 1, (4, 10)), strict=True))
        found = study_of(scores, (9, 10), 10, contrasts=contrasts, margin=1e-6)
        wrong += any(one.outcome != "undecided" for one in found)
    assert wrong / 30 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 30)


# --- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [(7, 9), (9, 7, 12), (7, 7, 12), (1, 12), (7, 13)])
def test_looks_ascend_to_the_last_block(looks):
    with pytest.raises(PlanError, match="looks must ascend from at least 2 to the last of 12 blocks, got"):
        make_plan(12, looks)


def test_the_hash_of_a_plan_feels_its_looks():
    assert make_plan(12, (7, 12)).hash != make_plan(12, ()).hash


def test_a_plan_with_looks_is_written_and_read(tmp_path):
    plan = plan_of_records({"a": {}, "b": {"optim.lr": 1e-4}}, seeds=8, contrasts=PAIR, looks=(7, 8))
    pending = {(arm, 7): None for arm in plan.arms}
    evidence = simulate(
        tmp_path, plan, lambda c, seed, rng: 0.5 + 0.1 * (c.optim.lr > 2e-4) + rng.normal(0, 1e-3), pending
    )
    found = load_study(str(tmp_path / "simulated")).plan
    assert (found.hash, found.looks) == (plan.hash, (7, 8))
    assert evidence.verdicts[0].outcome == "better"
    assert evidence.verdicts[0].look.decided


def test_options_become_looks():
    plan = make_plan(12, ())
    assert with_looks(plan, None) == plan
    assert with_looks(plan, blocks_of("default")).looks == (7, 9, 10, 12)
    assert with_looks(plan, blocks_of("5,8")).looks == (5, 8, 12)
    assert with_looks(make_plan(6, ()), ()).looks == ()
    undecidable = dataclasses.replace(plan, contrasts=())
    assert with_looks(undecidable, (5, 8)).looks == ()
    assert with_looks(undecidable, (5, 8), primary=1).looks == (5, 8, 12)  # a contrast that is to come
    for wrong in ("7;9", "x", "", "-3"):
        with pytest.raises(ValueError, match="--until-decided wants numbers of blocks, such as 7,9, got"):
            blocks_of(wrong)


def test_what_a_dry_run_says():
    plan = make_plan(12, (5, 7, 12))
    five, seven = describe_looks(plan, (5, 7), [1.0] * 12, [[]], "core hours")[1:3]
    assert "after 5: can show nothing yet: the smallest p of a difference is 0.36; would save 7 blocks, 7" in five
    assert "after 7: can show differences (smallest p 0.046) or equivalence; would save 5 blocks, 5 core hours" in seven
    early = describe_looks(make_plan(6, (5, 6)), (5,), [1.0] * 6, [[]], "core hours")[1]
    assert "after 5: can show equivalence alone: the smallest p of a difference is 0.09; would save 1 block, 1" in early
    (never,) = describe_looks(make_plan(6, ()), (), [1.0] * 6, [[]], "core hours")
    assert never.endswith("no look before the last of 6 blocks can show a difference; --seeds 7 or more could")
    pilot = describe_looks(plan, (5, 7), [1.0] * 12, [[0.05, 0.06, 0.055]], "core hours")
    (seen,) = [line for line in pilot if "earlier records" in line]
    assert "7.0 of 12 blocks, 7 of 12 core hours; decided in 100%" in seen


# --- a study that stops ---------------------------------------------------------------------------------------------


@pytest.fixture
def jets(tmp_path, tiny_data):
    groups = {
        name: (tiny_data.particles[tiny_data.labels == c], tiny_data.jets[tiny_data.labels == c])
        for c, name in enumerate("qgwzt")
    }
    write(tmp_path / "jets.h5", {name: (len(one[0]), [one]) for name, one in groups.items()}, {})
    return tmp_path / "jets.h5"


STUDY = Study(
    name="same",
    question="Does it matter how often one looks?",
    arms={"often": {}, "rarely": {"probe.every": 3}},
    contrasts=(Contrast(treatment="rarely", control="often", primary=True),),
    margin=0.02,
)


def run(tmp_path, jets, *options):
    settings = [item for name, value in TINY.items() for item in ("--set", f"{name}={value}")]
    settings += ["--set", "train.epochs=3", "--set", "finetune.fractions=[]"]
    where = [
        "--preset",
        "smoke",
        "--inline",
        "--data",
        str(jets),
        "--storage",
        str(tmp_path / "out"),
        "--engine",
        "plain",
    ]
    with pytest.raises(SystemExit) as ended:
        main(STUDY, [*where, *settings, *options])
    return ended.value.code


def test_a_study_stops_at_the_look_that_decides_it(tmp_path, jets, capsys):
    """Two arms with the same weights have the same scores: equivalent at 5 of 6 blocks, where (5/6)^2 may be spent."""
    wanted = ["--seeds", "6", "--until-decided", "5"]
    assert run(tmp_path, jets, *wanted, "--dry-run") == 0
    assert "decided after 5 and 6 blocks" in capsys.readouterr().out
    assert run(tmp_path, jets, *wanted) == 0
    said = capsys.readouterr().err
    assert "decided after 5 of 6 blocks" in said
    assert "2 trials of the plan need not run" in said
    storage = Storage(tmp_path / "out")
    assert len(storage.names("trials")) == 10
    assert storage.read_json("same_smoke/study.json")["needed"] == 10
    page = (tmp_path / "out/same_smoke/report.md").read_text()
    assert "Stopped at the planned look after 5 of 6 blocks" in page
    assert "2 of 12 planned trials were not needed" in page
    assert "Equivalent" in page
    assert run(tmp_path, jets, *wanted) == 0  # the same command has nothing left to do
    assert len(storage.names("trials")) == 10
    capsys.readouterr()
    assert run(tmp_path, jets, "--seeds", "6") == 0  # without looks it goes on to the end
    assert len(storage.names("trials")) == 12


def test_trials_wait_for_the_look_before_them():
    plan = make_plan(6, (3, 5, 6))
    specs = trial_specs(dataclasses.replace(STUDY.plan("smoke", seeds=6), looks=plan.looks), None)
    found = list(batches(plan, specs))
    assert [sorted({spec.config.seed for spec in batch}) for batch in found] == [[0, 1, 2], [3, 4], [5]]

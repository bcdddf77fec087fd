"""The page of all questions, from simulated studies whose truth is known."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from simulated import FAILED, make_plan, seed_offset, simulate

from analysis.index import entries
from analysis.index import page as index
from analysis.plots import sparklines
from analysis.report import headline
from analysis.report.build import build_report
from analysis.report.evidence import gather
from analysis.stats.paired import PairedDifference
from analysis.verdicts import noise_floor, summary
from analysis.verdicts.costs import Prices, hours_text
from analysis.verdicts.questions import FURTHER, OPEN
from analysis.verdicts.sentences import contrast_name, losses
from analysis.verdicts.study_index import load_index
from jbot.store.plan import Contrast, load_study
from jbot.store.record import save_record
from jbot.store.storage import Storage
from studies.presets import PRESETS
from studies.runner.campaign import find_studies

QUICK = PRESETS["quick"].base
MASKING = {"momentum": {}, "random_count": {"mask.scheme": "random_count"}}
PRIMARY = Contrast(treatment="momentum", control="random_count", primary=True)


def masking_plan(preset="quick", seeds=6, **changes):
    study = "masking_ablation" if preset == "quick" else f"masking_ablation_{preset}"
    base = dict(PRESETS[preset].base) | changes.pop("base", {})
    own = {"study": study, "preset": preset, "contrasts": (PRIMARY,), "question": "Does masking help?"}
    return make_plan(MASKING, seeds=seeds, base=base, **own | changes)


def helped(gain):
    """Momentum masking is worth `gain`."""
    return lambda config, seed, rng: (
        0.5 + seed_offset(seed) + gain * (config.mask.scheme == "momentum") + 1e-3 * rng.normal()
    )


def masking(storage):
    """What the third entry says."""
    index = load_index(Storage(storage))
    prices = Prices(one for found in index.studies for one in found.study.records.values() if one is not None)
    return entries.open_questions(index, prices)[2].parts[0]


class Page(HTMLParser):
    """Ids, links, and whether anything is asked from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.outside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if tag == "a" else []
        if tag in ("script", "link", "img") and not str(values.get("href", "")).startswith("data:"):
            self.outside.append(tag)


def page_of(storage):
    return index.build_index(Storage(storage)).read_text(encoding="utf-8")


def test_every_study_that_a_question_names_exists_and_all_of_ours_are_asked():
    named = {part.study for question in (*OPEN, *FURTHER) for part in question.parts}
    assert named == set(find_studies())
    assert {part.min_preset for question in OPEN for part in question.parts} <= set(PRESETS)


def test_the_arms_that_a_part_asks_for_are_in_the_preset_it_names():
    found = find_studies()
    for part in (part for question in OPEN for part in question.parts if part.arms):
        with_arms = {p: [a for a in found[part.study].plan(p).arms if re.fullmatch(part.arms, a)] for p in PRESETS}
        assert with_arms[part.min_preset], part
        smaller = [p for p in ("quick", "gpu") if p != part.min_preset and part.min_preset == "gpu"]
        assert not any(with_arms[p] for p in smaller if p == "quick"), part


def test_an_empty_storage_gives_every_question_with_a_command(tmp_path):
    text = page_of(tmp_path)
    assert "8 open questions of the paper: 8 without an answer" in text
    for part in (part for question in OPEN for part in question.parts):
        assert f"python studies/{part.study}.py" in text
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert not page.outside
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


def test_a_decided_question_says_so_with_size_data_and_n(tmp_path):
    simulate(tmp_path, masking_plan(), helped(0.05))
    entry = masking(tmp_path)
    assert (entry.word, entry.tone) == ("Better", "better")
    assert entry.sentences[0].startswith("momentum is better than random_count by 0.05")
    assert entry.where.endswith("preset quick, n = 6")
    # 16,000 jets x 8 epochs of the paper's 700,000 x 80.
    assert entry.facts["Size"] == "preset quick: 16,000 jets × 8 epochs, jBOT-S; 0.23% of the paper’s training"
    assert entry.facts["Seeds"] == "6 of 6 compared; ended: 12 of 12 trials"
    assert entry.facts["Took"] == hours_text(12 * 25 / 3600, "core")
    assert entry.missing == []
    text = page_of(tmp_path)
    assert "1 decided, 7 without an answer" in text
    assert "the largest training had 0.23% of its jet passes" in text


def test_smoke_size_is_never_quoted_as_an_answer(tmp_path):
    simulate(tmp_path, masking_plan("smoke"), helped(0.05))
    entry = masking(tmp_path)
    assert (entry.word, entry.tone) == ("Path proven", "open")
    assert not entry.sentences
    assert entry.sparklines is None
    assert "answers nothing" in entry.notices[0]
    assert entry.command == "python studies/masking_ablation.py"


def test_a_quick_preset_made_as_small_as_smoke_is_treated_as_smoke(tmp_path):
    simulate(tmp_path, masking_plan(base={"data.train_jets": 600, "train.epochs": 2}), helped(0.05))
    assert masking(tmp_path).word == "Path proven"


def test_a_larger_preset_answers_and_smaller_ones_stand_beside_it(tmp_path):
    simulate(tmp_path, masking_plan("smoke"), helped(-0.05))
    simulate(tmp_path, masking_plan(), helped(-0.05))
    simulate(tmp_path, masking_plan("gpu", seeds=8), helped(0.05))
    entry = masking(tmp_path)
    assert entry.word == "Better"
    assert "preset gpu, n = 8" in entry.where
    assert entry.others == [
        "preset quick: 12 of 12 trials ended; worse, n = 6",
        "preset smoke: 12 of 12 trials ended",
    ]


def test_a_larger_preset_that_has_only_started_hides_no_answer(tmp_path):
    simulate(tmp_path, masking_plan(), helped(0.05))
    running = {(arm, seed): None for arm in MASKING for seed in range(8)} | {("momentum", 0): {}}
    simulate(tmp_path, masking_plan("gpu", seeds=8), helped(0.05), running)
    entry = masking(tmp_path)
    assert entry.word == "Better"
    assert entry.others == ["preset gpu: 1 of 16 trials ended"]


def test_an_unfinished_study_is_interim_and_prices_what_is_missing(tmp_path):
    simulate(tmp_path, masking_plan(), helped(0.05), {("momentum", 5): None, ("random_count", 5): None})
    entry = masking(tmp_path)
    assert entry.word.endswith("so far")
    assert (
        "10 of 12 trials have ended. Compared are the 5 blocks of 6 in which every arm has ended." in entry.notices[0]
    )
    assert entry.missing[0] == f"2 trials that the plan has: about {hours_text(2 * 25 / 3600, 'core')}"


def test_a_study_without_any_ended_trial_is_no_answer(tmp_path):
    simulate(tmp_path, masking_plan(), helped(0), {(arm, seed): None for arm in MASKING for seed in range(6)})
    entry = masking(tmp_path)
    assert entry.word == "No answer yet"
    assert entry.missing[0] == "12 trials that the plan has: no record tells what they cost"


def test_an_undecided_contrast_says_what_would_decide_it_and_its_price(tmp_path):
    noisy = lambda config, seed, rng: 0.5 + 0.02 * (config.mask.scheme == "momentum") + 0.03 * rng.normal()  # noqa: E731
    found = simulate(tmp_path, masking_plan(), noisy)
    (verdict,) = found.verdicts
    assert verdict.outcome == "undecided"
    more = verdict.seeds_needed - 6
    cost = hours_text(more * 2 * 25 / 3600, "core")
    (line,) = masking(tmp_path).missing
    assert line.startswith(f"about {verdict.seeds_needed} seeds would decide it")
    assert line.endswith(f"{more} blocks beyond the plan, {cost}")


def test_failed_arms_are_named_and_not_called_undecided(tmp_path):
    lost = {("random_count", seed): FAILED for seed in range(6)}
    simulate(tmp_path, masking_plan(), helped(0.05), lost)
    entry = masking(tmp_path)
    assert entry.word == "Failed"
    assert "12 of 12 trials, 6 failed" in entry.facts["Seeds"]


SCENARIOS = {
    "better": {},
    "worse": {"gain": -0.05},
    "equivalent": {"gain": 0.0},
    "undecided": {"gain": 0.009, "noise": 0.02},
    "unfinished": {"changes": {("momentum", 5): None, ("random_count", 5): None}},
    "failed seeds": {"changes": {("random_count", 3): FAILED}, "seeds": 8},
    "undone by failures": {"changes": {("momentum", seed): FAILED for seed in (0, 1, 2)}, "seeds": 11},
    "failed": {"changes": {("random_count", seed): FAILED for seed in range(6)}},
    "apart": {"apart": 1.0, "seeds": 10},
    "stopped at a look": {"looks": (7, 9, 12), "seeds": 12},
    "stopped, the rest not run": {
        "looks": (7, 9, 12),
        "seeds": 12,
        "changes": {(arm, seed): None for arm in MASKING for seed in range(7, 12)},
    },
    "before the first look": {
        "looks": (7, 9, 12),
        "seeds": 12,
        "gain": 0.009,
        "noise": 0.02,
        "changes": {(arm, seed): None for arm in MASKING for seed in range(5, 12)},
    },
    "no better than untrained": {"more": lambda value: {"untrained/test/knn_accuracy": 0.9}},
    "noise floor": {"arms": MASKING | {"null": {"train.perturbation": 1e-6}}, "gain": 0.001},
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_entry_says_what_the_first_screen_of_the_report_says(tmp_path, name):
    given = {"gain": 0.05, "noise": 1e-3, "arms": MASKING, "seeds": 6, "apart": 0.0} | SCENARIOS[name]
    contrasts = [PRIMARY] + [Contrast(treatment="null", control="momentum")] * ("null" in given["arms"])
    plan = dataclasses.replace(
        masking_plan(seeds=given["seeds"]),
        arms=given["arms"],
        contrasts=tuple(contrasts),
        looks=given.get("looks", ()),
    )

    def score(config, seed, rng):
        gain = given["gain"] + given["apart"] * (seed == 4)
        return 0.3 + seed_offset(seed) + gain * (config.mask.scheme == "momentum") + given["noise"] * rng.normal()

    found = simulate(tmp_path, plan, score, given.get("changes"), given.get("more"))
    verdict = found.verdicts[0]
    assert verdict.undone_by_failures == (name == "undone by failures")
    assert bool(verdict.outlier) == (name == "apart")
    first = headline.answers(found, [])[0]
    entry = masking(tmp_path)
    said = " ".join([*entry.notices, *entry.sentences])
    # The word and its colour, the sentence with its numbers, and what may overturn it.
    assert entry.word == first.title
    assert entry.tone == verdict.outcome
    assert verdict.sentence in said
    assert all(warning in said for warning in verdict.warnings)
    assert headline.status(found) in said
    assert headline.below_baseline(found.plan, found.arms) in said
    assert all(line in said for line in noise_floor.sentences(found.verdicts))
    assert entry.where.endswith(f"n = {verdict.difference.n}")
    # What is missing is what the sentence says, and nothing of a study that is over.
    missing = " ".join(entry.missing)
    assert ("seeds would decide it" in missing) == ("seeds would decide it" in verdict.sentence)
    assert ("trials that the plan has" in missing) == first.title.endswith("so far")
    assert not any(row.name.startswith("null") for row in (entry.sparklines.rows if entry.sparklines else ()))


def test_a_look_that_is_not_paid_for_is_said_in_the_entry_too(tmp_path):
    few = simulate(tmp_path, masking_plan(seeds=6), helped(0.05))
    simulate(tmp_path, masking_plan(seeds=12), helped(0.05))
    for record in few.study.records.values():
        save_record(few.study.storage, record)
    (notice,) = masking(tmp_path).notices
    assert notice.startswith("6 blocks of 12 had ended under an earlier plan of this study.")
    assert gather(load_study(str(tmp_path / "masking_ablation"))).verdicts[0].notes[0] == notice


def test_of_several_contrasts_an_entry_says_what_may_overturn_each(tmp_path):
    arms = MASKING | {name: {"mask.scheme": name} for name in ("random", "geometric")}
    contrasts = tuple(Contrast(treatment="momentum", control=arm, primary=True) for arm in list(arms)[1:])
    plan = dataclasses.replace(masking_plan(seeds=12), arms=arms, contrasts=contrasts)
    found = simulate(tmp_path, plan, helped(0.05), {("geometric", 2): FAILED, ("momentum", 7): FAILED})
    entry = masking(tmp_path)
    assert entry.word == headline.answers(found, [])[0].title.replace("Better", "3 better")
    for verdict in found.verdicts:
        (line,) = (one for one in entry.sentences if one.startswith(f"{contrast_name(verdict.contrast.name)}: "))
        assert losses(verdict) in line
        assert verdict.warnings
        assert all(warning in line for warning in verdict.warnings)


def test_an_earlier_plan_is_listed_and_answers_only_while_the_new_one_cannot(tmp_path):
    old = masking_plan(margin=0.03)
    simulate(tmp_path, old, helped(0.05))
    shutil.move(tmp_path / "masking_ablation", tmp_path / "masking_ablation-0123abcd")
    simulate(tmp_path, masking_plan(), helped(0.05), {(arm, seed): None for arm in MASKING for seed in range(1, 6)})
    # The trials of both plans are the same records here, so the new plan would have them: take them away.
    entry = masking(tmp_path)
    assert entry.facts["Seeds"].startswith("6 of 6")
    assert entry.others[0].startswith("preset quick, an earlier plan (masking_ablation-0123abcd)")


def test_an_earlier_plan_that_has_more_to_say_is_quoted_as_such(tmp_path):
    simulate(tmp_path, masking_plan(), helped(0.05))
    shutil.move(tmp_path / "masking_ablation", tmp_path / "masking_ablation-0123abcd")
    nothing = {(arm, seed): None for arm in MASKING for seed in range(6)}
    simulate(tmp_path, masking_plan(base={"optim.lr": 3e-3}), helped(0), nothing)
    entry = masking(tmp_path)
    assert entry.word == "Better"
    assert "earlier plan, kept in masking_ablation-0123abcd" in entry.notices[0]
    assert entry.others == ["preset quick: 0 of 12 trials ended"]
    assert entry.links == []  # a folder that holds a plan alone has no report


def test_a_part_whose_arms_the_preset_lacks_names_the_preset_that_has_them(tmp_path):
    simulate(tmp_path, masking_plan(), helped(0.05))
    ratio = next(
        entry
        for entry in entries.open_questions(load_index(Storage(tmp_path)), Prices([]))[4].parts
        if entry.about == "masking ratio"
    )
    assert ratio.word == "Not run"
    assert ratio.command == "python studies/masking_ablation.py --preset gpu"


def test_own_studies_have_entries_and_damaged_ones_a_line(tmp_path):
    plan = make_plan(MASKING, base=QUICK, study="my_question", contrasts=(PRIMARY,), question="Is <b>mine</b> better?")
    simulate(tmp_path, plan, helped(0.05))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/study.json").write_text('{"plan": 3}')
    text = page_of(tmp_path)
    assert 'id="own-my_question"' in text
    assert "Is &lt;b&gt;mine&lt;/b&gt; better?" in text
    assert "studies/my_question.py" not in text
    assert "broken/study.json is not a study" in text


def test_a_damaged_record_hides_no_other_study(tmp_path):
    simulate(tmp_path, masking_plan(), helped(0.05))
    plan = make_plan({"slow": {"optim.lr": 1e-4}, "low": {"optim.lr": 1e-5}}, base=QUICK, study="my_question", seeds=2)
    simulate(tmp_path, plan, helped(0))
    trial = json.loads((tmp_path / "my_question/study.json").read_text())["trials"][1]["trial_id"]
    (tmp_path / f"trials/{trial}/record.json").write_text("{")
    text = page_of(tmp_path)
    assert "is not valid JSON" in text
    assert "momentum is better than random_count" in text


def test_a_search_without_a_winner_is_no_answer_yet(tmp_path):
    plan = {
        "study": "hyperparameters", "preset": "quick", "question": "Is there a better recipe?", "base": {"seed": 0},
        "space": [], "first": {}, "objectives": ["accuracy"], "metric": "val/knn_accuracy", "seed": 0, "startup": 4,
        "first_rung": 0, "reduction": 2, "epochs": 8, "data": {"source": "made up", "fingerprint": "0"},
    }  # fmt: skip
    point = {"params": {}, "overrides": {}, "reason": None, "points": [], "values": {"accuracy": 0.5}, "trials": []}
    states = ["complete", "pruned", "open"]
    ledger = {
        "schema": 1, "plan": plan, "plan_hash": "0", "sampler": "TPE", "rungs": [],
        "directions": {"accuracy": "maximize"}, "target": 24,
        "points": [point | {"number": number, "state": state} for number, state in enumerate(states)],
    }  # fmt: skip
    Storage(tmp_path).write_json("hyperparameters/search.json", ledger)
    text = page_of(tmp_path)
    assert "a search of preset quick: 2 of 24 points have ended; no winner yet" in text


def test_the_answer_of_a_section_is_quoted_from_a_report_of_the_same_records_only(tmp_path):
    arms = {f"koleo_{weight:g}": {"loss.koleo_weight": weight} for weight in (0.0, 0.001, 0.01, 0.1)}
    contrast = Contrast(treatment="koleo_0.01", control="koleo_0", primary=True)
    plan = make_plan(arms, base=QUICK | {"loss.koleo_weight": 0.5}, study="koleo_sweep", seeds=6, contrasts=(contrast,))
    simulate(tmp_path, plan, lambda config, seed, rng: 0.5 + config.loss.koleo_weight + 1e-3 * rng.normal())
    folder = tmp_path / "koleo_sweep"

    def koleo():
        return entries.open_questions(load_index(Storage(tmp_path)), Prices([]))[4].parts[0]

    assert any("a report of these records" in line for line in koleo().missing)
    assert not koleo().links
    build_report(load_study(str(folder)), folder)
    entry = koleo()
    assert any(line.startswith("loss.koleo_weight from 0 to 0.1: the means lie 0.1 apart") for line in entry.sentences)
    assert [link.href for link in entry.links] == [
        "koleo_sweep/report.html",
        "koleo_sweep/report.html#response-to-single-settings",
    ]
    changed = load_study(str(folder))
    first = next(iter(changed.records.values()))
    record = tmp_path / f"trials/{first.trial_id}/record.json"
    record.write_text(json.dumps(dataclasses.asdict(first) | {"device_seconds": 99.0}))
    stale = koleo()
    assert not any("the means lie" in line for line in stale.sentences)
    assert stale.links[0] == "report (perhaps of older records)"


def test_what_all_py_has_estimated_is_said_of_a_study_nobody_has_started(tmp_path):
    row = {"study": "cross_energy", "open": ["21 trials missing: 0.4 core hours"], "open_hours": 0.4}
    Storage(tmp_path).write_json("all_quick.json", [row])
    entry = entries.open_questions(load_index(Storage(tmp_path)), Prices([]))[5].parts[0]
    assert entry.missing == ["21 trials missing: 0.4 core hours (as studies/all.py has estimated)"]


def test_the_page_is_the_same_twice_and_links_lie_beside_it(tmp_path):
    simulate(tmp_path, masking_plan(), helped(0.05))
    folder = tmp_path / "masking_ablation"
    build_report(load_study(str(folder)), folder)
    text = page_of(tmp_path)
    assert text == page_of(tmp_path)
    outward = [link for link in Page(text).links if not link.startswith("#")]
    assert outward == ["masking_ablation/report.html"]
    assert (tmp_path / outward[0]).exists()


def test_trials_are_priced_by_equal_ones_then_by_jets_of_the_same_model(tmp_path):
    plan = masking_plan(seeds=1)
    found = simulate(tmp_path, plan, helped(0))
    prices = Prices(found.study.records.values())
    assert prices.of_block(plan, "core") == pytest.approx({"momentum": 25 / 3600, "random_count": 25 / 3600})
    longer = masking_plan(seeds=1, base={"data.train_jets": 32_000})
    assert prices.of_block(longer, "core")["momentum"] == pytest.approx(50 / 3600)
    assert prices.of_block(masking_plan(base={"model.dim": 64}), "core")["momentum"] is None
    assert prices.of_block(plan, "GPU")["momentum"] is None


def difference(mean, low, high, n=6):
    return PairedDifference(n=n, mean=mean, sd=0.01, low=low, high=high, correlation=0.9, variance_ratio=2.0)


def test_sparklines_share_a_scale_that_holds_the_margin_and_cut_long_intervals(tmp_path):
    (verdict,) = simulate(tmp_path, masking_plan(), helped(0.05)).verdicts
    wide = dataclasses.replace(verdict, difference=difference(0.01, -5.0, 5.0, n=2))
    drawn = sparklines.draw([entries.sparkline(one) for one in (verdict, wide)], margin=0.02, label="difference")
    right = float(drawn.ticks[2].replace("−", "-"))
    assert 0.05 <= right <= 0.3
    assert drawn.ticks[0] == drawn.ticks[2].replace("+", "−")
    assert drawn.rows[1].drawing.count('class="mean"') == 3  # the diamond and two arrows
    assert drawn.rows[0].drawing.count('class="mean"') == 1
    # The mean, 0.05 of `right`, as a place between the middle and the right end.
    place = float(re.search(r'd="M([\d.]+) ', drawn.rows[0].drawing)[1])
    assert place == pytest.approx(150 + 143 * verdict.difference.mean / right, abs=0.1)


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    simulate(tmp_path, masking_plan(), helped(0))
    for folder, words in (
        (tmp_path / "nowhere", "no folder"),
        (tmp_path / "masking_ablation", "give the folder above"),
    ):
        assert index.main([str(folder)]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert len(said.splitlines()) == 1


def test_a_summary_is_of_the_records_it_was_made_of(tmp_path):
    study = simulate(tmp_path, masking_plan(), helped(0)).study
    summary.write(study, [], tmp_path / "masking_ablation")
    assert summary.read(study, study.storage, "masking_ablation") == []
    other = dataclasses.replace(study, records=study.records | {study.trials[0].trial_id: None})
    assert summary.read(other, study.storage, "masking_ablation") is None

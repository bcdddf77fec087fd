"""A hyperparameter search: suggestions, pruning, restarts, records, the confirmation, and what the report says."""

import ast
import dataclasses
import json
import math
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import TINY, make_data

from analysis.report.sections.search import section
from analysis.verdicts.costs import CostEstimate
from cluster.resources import Resources
from cluster.scheduling.run import open_trials
from jbot.config import Config, ConfigError, flatten, override, to_dict
from jbot.data import Jets
from jbot.store.attempts import attempts_begun, note_attempt
from jbot.store.plan import StudyRecords
from jbot.store.record import TrialSpec, load_record, load_whole
from jbot.store.search_ledger import SearchPlan
from jbot.store.storage import RecordError, Storage
from jbot.trial.run import run_pack
from search_spaces.axis import Axis
from search_spaces.joint import COST, joint
from studies.hyperparameters import study
from studies.presets import PRESETS
from studies.runner import dry_run
from studies.runner import search as searching
from studies.runner.cli import changes_of, parser, run_options
from studies.runner.dry_run import search_left
from studies.runner.estimate import Costs
from studies.runner.options import SearchOptions
from studies.runner.study import Search, Study

optuna = pytest.importorskip("optuna")
from cluster.events import Listeners  # noqa: E402
from cluster.progress import SearchProgress  # noqa: E402
from cluster.search.point import Job, run_point, search_inline  # noqa: E402
from cluster.search.searcher import (  # noqa: E402
    MIN_COMPLETE,
    Searcher,
    history,
    importance,
    load_entries,
    overrides,
    pareto_front,
    winner,
)

# --- the space ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_the_joint_space_holds_the_base_and_nothing_but_configs(preset):
    base = study.base_at(preset)
    axes = joint(base) + COST
    assert all(axis.holds(flatten(base)[axis.field]) for axis in axes)
    made = history(plan_of(base, axes), []).sampler
    assert made is not None
    draw = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        params = draw.ask({axis.coordinate: axis.distribution() for axis in axes}).params
        config = override(base, overrides(params))  # raises where a field leaves its range, or two cross
        assert config.loss.teacher_temp <= config.loss.student_temp


def test_an_axis_close_to_one_moves_in_its_complement():
    axis = Axis(field="teacher.ema_momentum", low=0.9, high=0.9999, log=True, complement=True, reason="?")
    assert axis.coordinate == "1 - teacher.ema_momentum"
    assert (axis.distribution().low, axis.distribution().high) == (0.0001, 0.1)
    assert overrides({axis.coordinate: 0.004, "optim.lr": 1e-3}) == {"teacher.ema_momentum": 0.996, "optim.lr": 1e-3}


def test_whole_numbers_stay_whole():
    axis = Axis(field="optim.warmup_epochs", low=0, high=3, reason="?")
    assert axis.distribution() == optuna.distributions.IntDistribution(0, 3)
    with pytest.raises(ConfigError, match=r"axis optim.lr: low must be below high, got \[1, 1\]"):
        Axis(field="optim.lr", low=1, high=1, reason="?")


# --- suggestions and pruning --------------------------------------------------------------------------------------

AXES = (
    Axis(field="optim.lr", low=1e-4, high=1e-2, log=True, reason="?"),
    Axis(field="loss.koleo_weight", low=1e-3, high=1.0, log=True, reason="?"),
    Axis(field="mask.scheme", values=("momentum", "random", "none"), reason="?"),
)


def plan_of(base: Config, axes=AXES, **changes) -> SearchPlan:
    wanted = {
        "study": "s", "question": "?", "preset": "smoke", "base": to_dict(override(base, {"seed": 10_000})),
        "space": tuple(axis.described() for axis in axes), "first": {}, "objectives": ("accuracy",),
        "metric": "val/knn_accuracy", "seed": 0, "startup": 4, "first_rung": 2, "reduction": 2, "epochs": 8,
        "data": {"source": "made up", "fingerprint": "f"},
    }  # fmt: skip
    return SearchPlan(**wanted | changes)


def curve(entry, epoch: int) -> float:
    """A made-up accuracy with its best at lr 1e-3 and no KoLeo."""
    lr, koleo = entry["overrides"]["optim.lr"], entry["overrides"]["loss.koleo_weight"]
    return round(1 - 0.1 * abs(math.log10(lr) + 3) - 0.1 * koleo - 1 / (2 + epoch), 6)


def run_made_up(searcher: Searcher, events: int = 10**9, again=lambda searcher: searcher) -> Searcher:
    """Points of made-up curves until all have ended or so many events have passed; `again` is a restart."""
    while (entry := searcher.claim("0")) and events > 0:
        reason = None
        for epoch in (0, 2, 4, 6, 8):
            reason = reason or searcher.report(entry["number"], epoch, curve(entry, epoch))
            searcher, events = again(searcher), events - 1
            if reason or events == 0:
                break
        if events == 0:
            return searcher
        points = searcher.entries[entry["number"]]["points"]
        state, values = ("pruned", {}) if reason else ("complete", {"accuracy": points[-1][1]})
        searcher.tell(entry["number"], {"state": state, "reason": reason, "points": points, "values": values})
        searcher = again(searcher)
    return searcher


def seen(entries):
    """What must not depend on where and when it ran."""
    return [{name: value for name, value in entry.items() if name != "place"} for entry in entries]


@pytest.fixture
def undisturbed(tmp_path):
    searcher = Searcher(plan_of(Config()), 16, Storage(tmp_path / "undisturbed"), "one")
    return run_made_up(searcher)


def test_a_search_improves_prunes_and_finishes(undisturbed):
    states = [entry["state"] for entry in undisturbed.entries]
    assert len(states) == 16
    assert set(states) == {"complete", "pruned"}
    assert undisturbed.left() == 0
    best = winner(undisturbed.plan, undisturbed.entries)
    assert best["values"]["accuracy"] == max(e["values"]["accuracy"] for e in undisturbed.entries if e["values"])
    pruned = next(entry for entry in undisturbed.entries if entry["state"] == "pruned")
    assert "is not among the best 1/2 of" in pruned["reason"]


def test_a_search_that_is_begun_anew_at_every_event_is_the_same(undisturbed, tmp_path):
    storage = Storage(tmp_path / "broken")

    def again(searcher):
        return Searcher(searcher.plan, 16, storage, f"{searcher.session}+")

    broken = run_made_up(Searcher(undisturbed.plan, 16, storage, "a"), again=again)
    assert seen(broken.entries) == seen(undisturbed.entries)


@pytest.mark.parametrize("events", [1, 7, 23])
def test_a_search_that_was_killed_takes_up_its_open_points_first(undisturbed, tmp_path, events):
    storage = Storage(tmp_path / "killed")
    killed = run_made_up(Searcher(undisturbed.plan, 16, storage, "first"), events)
    open_before = [entry["number"] for entry in killed.entries if entry["state"] == "open"]
    second = Searcher(undisturbed.plan, 16, storage, "second")
    entry = second.claim("0")
    assert [entry["number"]] == (open_before or [len(killed.entries)])
    assert second.claim("0")["number"] == entry["number"]  # its worker died
    assert second.claim("1")["number"] == len(killed.entries) + (not open_before)  # another place, another point
    storage.remove("s")
    killed = run_made_up(Searcher(undisturbed.plan, 16, storage, "first"), events)
    whole = run_made_up(Searcher(undisturbed.plan, 16, storage, "second"))
    assert seen(whole.entries) == seen(undisturbed.entries)


def test_fewer_points_than_before_leave_the_others_open(tmp_path):
    plan, storage = plan_of(Config(), startup=1), Storage(tmp_path)
    more = Searcher(plan, 6, storage, "first")
    for place in range(6):
        more.claim(str(place))
    fewer = Searcher(plan, 2, storage, "second")
    assert fewer.left() == 2
    assert [fewer.claim(str(place))["number"] for place in range(2)] == [0, 1]
    assert fewer.claim("2") is None


def test_points_at_once_differ_and_are_no_function_of_the_place(tmp_path):
    searcher = Searcher(plan_of(Config(), startup=1), 6, Storage(tmp_path), "x")
    asked = [searcher.claim(str(place)) for place in range(6)]
    assert len({json.dumps(entry["overrides"]) for entry in asked}) == 6
    assert searcher.claim("7") is None


def test_pruning_is_that_of_optuna(undisturbed):
    """The same curves through a live Optuna study give the same decisions."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(2, 2)
    live = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    for entry in undisturbed.entries:
        trial, stopped = live.ask(), None
        for epoch in (0, 2, 4, 6):
            trial.report(curve(entry, epoch), epoch)
            if trial.should_prune():
                stopped = epoch
                break
        assert (entry["state"] == "pruned") == (stopped is not None)
        if stopped:
            assert entry["points"][-1][0] == stopped
            live.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            live.tell(trial, curve(entry, 8))


def test_optuna_hears_of_no_pruned_point_as_complete(undisturbed):
    failed = dict(undisturbed.entries[0]) | {"state": "failed", "values": {}}
    told = history(undisturbed.plan, [failed, *undisturbed.entries[1:]]).trials
    for entry, trial in zip(undisturbed.entries[1:], told[1:], strict=True):
        assert trial.state.name.lower() == entry["state"]
    assert told[0].state.name == "PRUNED"
    assert told[0].intermediate_values == {}  # the worst there is


def test_a_suggestion_can_be_typed(undisturbed):
    for entry in undisturbed.entries:
        lr = entry["overrides"]["optim.lr"]
        assert lr == float(f"{lr:.4g}")


def test_importance_is_of_complete_points_alone(undisturbed, tmp_path):
    few = importance(undisturbed.plan, undisturbed.entries[:3])
    assert few["n"] < MIN_COMPLETE
    assert "fanova" not in few
    many = run_made_up(Searcher(plan_of(Config(), first_rung=0), 24, Storage(tmp_path), "x"))
    found = importance(many.plan, many.entries)
    assert found["n"] == 24
    assert set(found["fanova"]) == set(found["ped_anova"]) == {axis.coordinate for axis in AXES}
    assert found["fanova"]["mask.scheme"] < found["fanova"]["optim.lr"]  # the curves do not feel the scheme
    lost = [dict(entry) | {"state": "pruned", "values": {}} for entry in many.entries[:8]]
    fewer = importance(many.plan, [*lost, *many.entries[8:]])
    assert fewer["n"] == 16
    assert fewer["fanova"] == importance(many.plan, many.entries[8:])["fanova"]


def test_the_front_and_its_winner():
    plan = plan_of(Config(), objectives=("accuracy", "cost"), first_rung=0)
    params = {"optim.lr": 1e-3, "loss.koleo_weight": 0.1, "mask.scheme": "none"}
    values = [(0.5, 3.0), (0.7, 9.0), (0.7, 8.0), (0.4, 4.0)]
    entries = [
        {"number": n, "state": "complete", "params": params, "points": [], "values": {"accuracy": v[0], "cost": v[1]}}
        for n, v in enumerate(values)
    ]  # fmt: skip
    assert sorted(pareto_front(plan, entries)) == [0, 2]
    assert winner(plan, entries)["number"] == 2
    assert winner(plan, []) is None


def test_a_ledger_of_another_search_is_refused(undisturbed):
    other = dataclasses.replace(undisturbed.plan, seed=1)
    with pytest.raises(RecordError, match="is of another search"):
        load_entries(undisturbed.storage, other)
    assert dataclasses.replace(undisturbed.plan, question="!").hash == undisturbed.plan.hash


# --- trials -------------------------------------------------------------------------------------------------------


def spec_of(data, **changes) -> TrialSpec:
    config = override(Config(), TINY | {"train.epochs": 6} | changes)
    return TrialSpec(study="s", arm="a", plan_hash="p", config=config, data_fingerprint=data.fingerprint)


def test_a_pruned_trial_keeps_its_checkpoint_and_ends_like_one_that_never_stopped(tiny_data, tmp_path):
    spec, there, whole = spec_of(tiny_data), Storage(tmp_path / "pruned"), Storage(tmp_path / "whole")
    (record,) = run_pack([spec], tiny_data, there, prune=lambda _, row: "enough" if row["epoch"] == 2 else None)
    assert (record.state, record.reason, record.metrics) == ("pruned", "enough", {})
    assert there.exists(f"trials/{spec.trial_id}/checkpoint/state.json")
    assert [row["epoch"] for row in there.read_rows(f"trials/{spec.trial_id}/curves.parquet")] == [0, 1, 2]
    assert open_trials([spec], there) == [spec]
    assert load_whole(there, spec.trial_id) is None
    (record,) = run_pack([spec], tiny_data, there)
    (undisturbed,) = run_pack([spec], tiny_data, whole)
    assert (record.state, record.attempts) == ("complete", 2)
    assert record.metrics == undisturbed.metrics
    assert not there.exists(f"trials/{spec.trial_id}/checkpoint")
    assert open_trials([spec], there) == []


def test_pruning_one_trial_of_a_pack_leaves_the_others(tiny_data, tmp_path):
    specs = [spec_of(tiny_data), spec_of(tiny_data, seed=1)]
    records = run_pack(specs, tiny_data, Storage(tmp_path), prune=lambda s, _: "no" if s is specs[0] else None)
    assert [record.state for record in records] == ["pruned", "complete"]


# --- a whole search -----------------------------------------------------------------------------------------------


def job_of(data, storage: Storage, **changes) -> Job:
    base = override(Config(), TINY | {"train.epochs": 4})
    plan = plan_of(base, first_rung=1, epochs=4, data={"source": "?", "fingerprint": data.fingerprint}, **changes)
    prints = dict.fromkeys(("all", "qg"), data.fingerprint)
    return Job(plan=plan, storage=storage, resources=Resources(), git_commit=None, fingerprints=prints)


class Stop(BaseException):  # what a test stops a run with, as Ctrl-C does
    pass


class Counting(SearchProgress):
    """Progress that counts, and stops after so many rows."""

    def __init__(self, plan, points, entries, rows=10**9):
        super().__init__(plan, points, entries)
        self.starts, self.rows = [], rows

    def started(self, spec):
        self.starts.append(spec.arm)
        super().started(spec)

    def point(self, spec, row):
        self.rows -= 1
        if self.rows < 0:
            raise Stop
        super().point(spec, row)


def timeless(entries):
    return [{k: v for k, v in entry.items() if k not in ("place", "device_seconds")} for entry in entries]


def test_an_inline_search_goes_on_where_it_was_stopped_and_trains_nothing_twice(tiny_data, tmp_path):
    job, other = job_of(tiny_data, Storage(tmp_path / "a")), job_of(tiny_data, Storage(tmp_path / "b"))
    log = Counting(job.plan, 6, [])
    search_inline(job, 6, tiny_data, [log])
    entries = load_entries(job.storage, job.plan)
    assert {entry["state"] for entry in entries} == {"complete", "pruned"}
    assert log.done() == 6
    assert log.summary().startswith("points 6/6 done · 0 running")
    for entry in entries:
        record = load_record(job.storage, entry["trials"][0]["trial_id"])
        assert (record.state, record.reason, record.seed) == (entry["state"], entry["reason"], 10_000)
    with pytest.raises(Stop):
        search_inline(other, 6, tiny_data, [Counting(job.plan, 6, [], rows=7)])
    search_inline(other, 6, tiny_data, [])
    assert timeless(load_entries(other.storage, other.plan)) == timeless(entries)
    again = Counting(job.plan, 6, entries)
    search_inline(job, 6, tiny_data, [again])
    assert again.starts == []
    search_inline(job, 7, tiny_data, [again])  # more points go on
    assert again.starts == ["point-006"]
    job.storage.remove("s")  # the ledger is lost: records are found, and the search takes the same way
    log = Counting(job.plan, 7, [])
    search_inline(job, 7, tiny_data, [log])
    assert log.starts == []
    assert timeless(load_entries(job.storage, job.plan))[:6] == timeless(entries)


def test_a_point_that_another_search_has_pruned_is_run_whole_where_nothing_is_pruned(tiny_data, tmp_path):
    job = job_of(tiny_data, Storage(tmp_path))
    search_inline(job, 6, tiny_data, [])
    entries = load_entries(job.storage, job.plan)
    pruned = next(entry for entry in entries if entry["state"] == "pruned")
    job.storage.remove("s")
    whole = dataclasses.replace(job, plan=dataclasses.replace(job.plan, first_rung=0))
    searcher = Searcher(whole.plan, 6, job.storage)
    searcher.entries = [pruned | {"number": 0, "state": "open", "reason": None, "points": [], "place": ""}]
    log = Counting(whole.plan, 1, [])
    run_point(searcher.claim("0"), whole, tiny_data, searcher, Listeners([log]))
    assert searcher.entries[0]["state"] == "complete"
    assert searcher.entries[0]["values"]["accuracy"] == searcher.entries[0]["points"][-1][1]
    assert log.starts == ["point-000"]


def test_several_objectives_are_measured_on_validation_jets(tiny_data, tmp_path):
    job = job_of(tiny_data, Storage(tmp_path), objectives=("accuracy", "anomaly", "cost"))
    job = dataclasses.replace(job, plan=dataclasses.replace(job.plan, first_rung=0, base=anomaly_base()))
    search_inline(job, 2, more_jets(), [])
    entries = load_entries(job.storage, job.plan)
    for entry in entries:
        assert entry["state"] == "complete"
        assert [trial["arm"].endswith("-anomaly") for trial in entry["trials"]] == [False, True]
        assert 0 <= entry["values"]["anomaly"] <= 1
        assert entry["values"]["cost"] > 0
        assert entry["values"]["accuracy"] == entry["points"][-1][1]


def anomaly_base():
    small = TINY | {"data.train_jets": 100, "probe.bank_jets": 100, "train.epochs": 2, "seed": 10_000}
    return to_dict(override(Config(), small))


def more_jets() -> Jets:
    return Jets({1000.0: make_data(200)})


def test_under_ray_all_points_end_and_a_second_run_trains_nothing(tiny_data, tmp_path):
    pytest.importorskip("ray")
    from cluster.search.tune import search_ray

    job = job_of(tiny_data, Storage(tmp_path))
    log = Counting(job.plan, 5, [])
    search_ray(job, 5, tiny_data, [log], address=None)
    entries = load_entries(job.storage, job.plan)
    assert len(entries) == 5
    assert all(entry["state"] in ("complete", "pruned") for entry in entries)
    assert sorted(log.starts) == [f"point-{number:03d}" for number in range(5)]
    assert log.done() == 5
    assert sorted(job.storage.names()) == ["encoders", "floors", "s", "trials"]  # nothing of Ray's own is left behind
    again = Counting(job.plan, 5, entries)
    search_ray(job, 5, tiny_data, [again], address=None)
    assert again.starts == []


def test_attempts_of_workers_that_died_before_they_could_say_so_are_counted(tiny_data, tmp_path):
    """In the words of Tune, whose workers die here at three moments."""
    pytest.importorskip("ray")
    from cluster.search.tune import SearchCallback

    job = job_of(tiny_data, Storage(tmp_path))
    entry = Searcher(job.plan, 1, job.storage).claim("0")
    callback, slot = SearchCallback(job, []), SimpleNamespace(trial_id="a", get_error=lambda: None)
    begun = {"entry": entry, "trial": 0}
    (trial,) = [spec.trial_id for spec in job.specs(entry)]
    seen = []
    callback.on_trial_result(0, [], slot, begun | {"started": 0})
    callback.on_trial_recover(0, [], slot)
    seen.append(attempts_begun(job.storage, trial))
    callback.on_trial_recover(0, [], slot)
    seen.append(attempts_begun(job.storage, trial))
    callback.on_trial_result(0, [], slot, begun | {"started": 2})
    note_attempt(job.storage, trial, 3)
    callback.on_trial_error(0, [], slot)
    seen.append(attempts_begun(job.storage, trial))
    assert seen == [1, 2, 3]


# --- the study ----------------------------------------------------------------------------------------------------

ONE_SECOND = CostEstimate(trials=1, seconds=1.0, longest=1.0, basis=(), measured=True)


def test_the_plan_of_a_preset_begins_with_the_base_and_has_rungs():
    plan = searching.search_plan(study, study.plan("quick"), SearchOptions(), None)
    assert overrides(plan.first)["teacher.ema_momentum"] == 0.996
    assert plan.rungs == [2, 4]
    assert searching.search_plan(study, study.plan("paper"), SearchOptions(), None).rungs == [20, 40]
    assert plan.base["seed"] == searching.SEED
    assert searching.expected_epochs(plan, 24) == 24 * (2 + 2 / 2 + 4 / 4)
    changed = study.plan("quick", changes={"loss.koleo_weight": 0.0})  # outside the space
    assert searching.search_plan(study, changed, SearchOptions(), None).first == {}
    front = searching.search_plan(study, study.plan("quick"), SearchOptions(objectives=("accuracy", "cost")), None)
    assert front.rungs == []
    assert "model.layers" in [axis["field"] for axis in front.space]


def test_the_winner_is_compared_with_the_base_on_fresh_seeds():
    found = searching.confirmation(study, {"optim.lr": 3e-3})
    plan = found.plan("quick")
    assert plan.arms == {"base": {}, "winner": {"optim.lr": 3e-3}}
    assert [(c.treatment, c.control, c.primary) for c in plan.contrasts] == [("winner", "base", True)]
    assert searching.SEED not in plan.seeds
    assert plan.metric.startswith("test/")
    assert searching.confirmation(study, {}).plan("quick").contrasts == ()


def test_a_dry_run_counts_the_trials_of_a_winner_that_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "cached_plan_jets", lambda plan, source: None)
    plan, costs = study.plan("quick"), Costs([], Resources())
    costs.of = lambda config, before=(), fresh=False: ONE_SECOND
    alone = dataclasses.replace(study, search=None)
    status = dry_run.estimate_remaining(alone, plan, Storage(tmp_path), "pythia", costs, [], (searching.CONFIRMATION,))
    assert (len(status.left), status.unknown, status.trials, status.seconds) == (6, 6, 12, 12.0)
    assert dry_run.packing(status, study.base_at("quick"), Resources()).startswith("12 of at most 1 trial(s)")
    assert "smallest p-value after Holm over 1 primary contrast(s) at n = 6: 0.0312" in dry_run.power_lines(status)


def test_what_is_left_of_a_search_ends_with_its_winner(tmp_path):
    storage, plan = Storage(tmp_path), study.plan("quick")
    wanted = searching.search_plan(study, plan, SearchOptions(), None)
    costs = Costs([], Resources())
    costs.of = lambda config, fresh: ONE_SECOND
    searcher = Searcher(wanted, 24, storage)
    assert search_left(study, plan, costs, storage).seconds == 24 + 6
    while entry := searcher.claim("0"):
        value = 0.9 if entry["number"] == 3 else 0.5 + 0.01 * entry["number"]
        searcher.tell(entry["number"], {"state": "complete", "values": {"accuracy": value}, "points": [[8, value]]})
    assert search_left(study, plan, costs, storage).seconds == 6
    assert search_left(study, study.plan("quick", changes={"train.epochs": 9}), costs, storage).seconds == 24 + 6
    searcher.tell(0, {"values": {"accuracy": 1.0}})
    assert search_left(study, plan, costs, storage) is None  # the base has won


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objectives", "speed"], "objectives must be among accuracy, anomaly, cost, got 'speed'"),
        (["--objectives", "cost,cost"], "objectives must be one or more, each once, got cost, cost"),
        (["--objectives", ""], "objectives must be one or more, each once, got none"),
        (["--points", "0"], "points must be at least 1 and at most 10000, got 0"),
    ],
)
def test_bad_options_are_said_in_one_line(arguments, words):
    with pytest.raises(ConfigError, match=words):
        run_options(parser(study).parse_args(arguments))


def test_bad_input_on_the_command_line_exits_with_2(tmp_path, capsys):
    from studies import main

    for arguments in (["--objectives", "speed"], ["--points", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(study, ["--preset", "smoke", "--inline", "--storage", str(tmp_path), *arguments])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "hyperparameters_smoke").exists()


def test_a_search_chooses_on_validation_jets():
    with pytest.raises(
        ConfigError, match=r"chooses on validation jets: metric must start with val/, got 'test/knn_acc"
    ):
        Search(space=AXES, metric="test/knn_accuracy")
    twice = Search(space=(*AXES, AXES[0]))
    with pytest.raises(ConfigError, match=r"two axes of a search are of optim\.lr"):
        twice.axes(Config(), ("accuracy",))


def test_another_search_moves_the_earlier_ledger_away(undisturbed, capsys):
    storage, other = undisturbed.storage, dataclasses.replace(undisturbed.plan, seed=1)
    searching.keep_other_search(storage, undisturbed.plan)
    assert storage.exists("s/search.json")
    searching.keep_other_search(storage, other)
    assert not storage.exists("s/search.json")
    assert storage.exists(f"s-search-{undisturbed.plan.hash[:8]}/search.json")


# --- views --------------------------------------------------------------------------------------------------------


def evidence_of(searcher: Searcher) -> SimpleNamespace:
    entry = winner(searcher.plan, searcher.entries)
    found = dataclasses.replace(study, name="s", search=None) if entry is None else None
    whole = found or searching.confirmation(Study(name="s", question="?", arms={"base": {}}, contrasts=(), margin=0.1),
                                            entry["overrides"])  # fmt: skip
    records = StudyRecords(
        plan=dataclasses.replace(whole.plan("quick"), study="s"), data={}, trials=(), records={},
        storage=searcher.storage,
    )  # fmt: skip
    return SimpleNamespace(study=records)


def test_the_report_shows_the_search(tmp_path):
    pytest.importorskip("matplotlib")
    searcher = run_made_up(Searcher(plan_of(Config()), 48, Storage(tmp_path), "x"))
    made = section(evidence_of(searcher))
    text = " ".join(made.sentences)
    assert "48 points were drawn by TPE" in text
    n = sum(entry["state"] == "complete" for entry in searcher.entries)
    assert n >= MIN_COMPLETE
    assert f"from the {n} points that ran to the end and no other" in text
    assert "a large share alone is no evidence" in text
    command, arm = made.code.values()
    changes = evidence_of(searcher).study.plan.arms["winner"]
    words = shlex.split(command.replace("\\\n", ""))
    assert changes_of(words[5::2]) == changes  # python studies/baseline.py --preset <preset> --set a=b --set ...
    assert ast.literal_eval("{" + arm + "}") == {"winner": changes}
    assert [picture.name for picture in made.figures] == ["search-history", "search-parallel", "search-slices"]
    region = made.tables[-1]
    assert region.head == ["axis", "searched", "winner", "PED-ANOVA", "fANOVA", "why this range"]
    assert {row[0] for row in region.rows} == {axis.coordinate for axis in AXES}
    few = run_made_up(Searcher(plan_of(Config(), seed=3), 6, Storage(tmp_path / "few"), "x"))
    assert "Importance is not given: it takes at least 10 points" in " ".join(section(evidence_of(few)).sentences)


def test_the_report_says_nothing_of_a_search_that_is_not_its_own(undisturbed):
    evidence = evidence_of(undisturbed)
    arms = {"base": {}, "winner": {"optim.lr": 0.5}}
    other = dataclasses.replace(evidence.study, plan=dataclasses.replace(evidence.study.plan, arms=arms))
    assert section(evidence) is not None
    assert section(SimpleNamespace(study=other)) is None
    undisturbed.storage.remove("s")
    assert section(evidence) is None


def test_mlflow_says_which_points_were_pruned(tiny_data, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    from cluster.mirror import main as mirror

    job = job_of(tiny_data, Storage(tmp_path))
    search_inline(job, 3, tiny_data, [])
    assert mirror([str(tmp_path / "s")]) == 0  # from the ledger and the records alone
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("s").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    for entry in load_entries(job.storage, job.plan):
        run = runs[f"point-{entry['number']:03d} seed 10000"]
        assert run.data.tags["state"] == entry["state"]
        assert run.info.status == {"complete": "FINISHED", "pruned": "KILLED"}[entry["state"]]
        assert run.data.params["optim.lr"] == str(entry["overrides"]["optim.lr"])
    assert np.isin(["complete", "pruned"], [run.data.tags["state"] for run in runs.values()]).all()

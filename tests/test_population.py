"""Population-based training: ranking, copying, changing; killed, repeated, under Ray; the winner at a fresh seed."""

import dataclasses

import numpy as np
import pytest
from test_schedule import train_one

from cluster.population import (
    FACTORS,
    drawn,
    explored,
    perturbed,
    population,
    winning_overrides,
)
from cluster.run import ClusterError, Resources, run_inline
from jbot.config import Config, ConfigError, flatten, override
from jbot.record import RecordError, Storage, load_record
from jbot.searches import Population, load_population, ranking
from jbot.trial import TrialSpec
from search_spaces.axis import Axis

LR = Axis(field="optim.lr", low=1e-4, high=1e-2, log=True, reason="for the tests")
KOLEO = Axis(field="loss.koleo_weight", values=(0.0, 0.01, 0.1, 1.0), reason="for the tests")
RATIO_LOW = Axis(field="mask.ratio_low", low=0.0, high=0.5, reason="for the tests")
RATIO_HIGH = Axis(field="mask.ratio_high", low=0.1, high=1.0, reason="for the tests")
SPACE = (LR, KOLEO, RATIO_LOW, RATIO_HIGH)


class Search:
    """A population on the tests' jets, inline; it counts the trials that run."""

    def __init__(self, base: Config, data, folder, **options):
        self.base, self.data, self.storage = base, data, Storage(folder)
        self.options = {"members": 4, "generations": 3, "seed": 5} | options
        self.ran: list[str] = []
        self.points = 0

    def started(self, spec):
        self.ran.append(spec.arm)

    def point(self, spec, row):
        self.points += 1

    def ended(self, spec, record):
        pass

    def run(self, specs):
        run_inline(specs, self.data, self.storage, [self], Resources())

    def spec_of(self, arm, config):
        return TrialSpec(study="search", arm=arm, plan_hash="p", config=config, data_fingerprint=self.data.fingerprint)

    def __call__(self, space=SPACE, **more) -> Population:
        options = {"run": self.run, "spec_of": self.spec_of, "study": "search", "storage": self.storage}
        return population(self.base, space, **options | self.options | more)


@pytest.fixture
def search(tiny, tiny_data, tmp_path) -> Search:
    return Search(tiny, tiny_data, tmp_path / "here")


def test_generations_copy_change_and_go_on(search, tiny, tiny_data, tmp_path):
    found = search()
    assert found.stops == (1, 2, 3)
    assert [row.generation for row in found.lineage] == [0] * 4 + [1] * 4 + [2] * 4
    first = found.lineage[0]
    assert first.knobs == {name: flatten(tiny)[name] for name in found.fields}  # the base itself is a member
    for row in found.lineage[4:]:
        before = found.lineage[4 * (row.generation - 1) : 4 * row.generation]
        order = ranking([one.value for one in before], True)
        record = load_record(search.storage, row.trial_id)
        assert record.continues == before[row.parent].trial_id  # nothing is trained again
        assert record.seed == tiny.seed
        if row.member == order[-1]:
            assert (row.came, row.parent) == ("copied", order[0])
            assert row.knobs != before[order[0]].knobs
            changes = row.overrides["train.schedule"]
            assert {change.split(" ")[0] for change in changes} <= {"1", "2"}
            assert any(change.startswith(f"{before[0].epoch} ") for change in changes)
        else:
            assert (row.came, row.parent, row.knobs) == ("kept", row.member, before[row.member].knobs)
    last = found.lineage[-4:]
    assert found.best == ranking([row.value for row in last], True)[0]
    # The winner again from zero, as an arm of any study would.
    winner = override(tiny, winning_overrides(found))
    alone = train_one(winner, tiny_data, Storage(tmp_path / "alone"))
    assert alone.trial_id == last[found.best].trial_id
    assert alone.metrics == load_record(search.storage, alone.trial_id).metrics
    assert override(winner, {"seed": 7}).train.schedule == winner.train.schedule


def test_a_second_run_trains_nothing_and_another_seed_searches_elsewhere(search):
    first, ran = search(), len(search.ran)
    assert ran == 12
    assert search() == first == load_population(search.storage, "search")
    assert len(search.ran) == ran
    assert search(seed=6, generations=1).lineage[1].knobs != first.lineage[1].knobs


def test_a_killed_search_goes_on_and_ends_the_same(search, tiny, tiny_data, tmp_path, monkeypatch):
    whole = search()
    killed = Search(tiny, tiny_data, tmp_path / "killed")
    monkeypatch.setattr(killed, "started", lambda spec: killed.ran.append(spec.arm) if len(killed.ran) < 6 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        killed()
    partial = load_population(killed.storage, "search")
    assert (len(partial.lineage), partial.best) == (4, None)
    with pytest.raises(ClusterError, match="generation 2 is missing"):
        winning_overrides(partial)
    again = Search(tiny, tiny_data, tmp_path / "killed")
    assert again() == whole
    assert len(again.ran) == 12 - 6


def test_failed_members_are_the_worst_and_copy(tiny, tiny_data, tmp_path):
    wild = Axis(field="optim.lr", values=(2e-3, 1e30), reason="the second diverges at once")
    search = Search(override(tiny, {"optim.warmup_epochs": 0}), tiny_data, tmp_path, generations=2, members=6, seed=1)
    found = search(space=(wild,))
    failed = [row for row in found.lineage[:6] if row.state == "failed"]
    assert len(failed) > 1  # more than a quarter
    assert all(row.value is None for row in failed)
    for row in failed:
        later = found.lineage[6 + row.member]
        assert later.came == "copied"
        assert found.lineage[later.parent].state == "complete"
    search.base = override(search.base, {"loss.koleo_weight": 0.02})
    with pytest.raises(ClusterError, match=r"every member of generation 0 has failed, e\.g\. diverged: "):
        search(space=(dataclasses.replace(wild, values=(1e30,)),))


def test_without_all_records_there_is_no_ranking(search):
    with pytest.raises(ClusterError, match="1 of 4 trials of generation 0 have no record: the same command continues"):
        search(run=lambda specs: search.run(specs[1:]))
    assert len(search().lineage) == 12


def test_ranking():
    assert ranking([0.5, None, 0.7, 0.5], True) == [2, 0, 3, 1]
    assert ranking([0.5, None, 0.7, 0.5], False) == [0, 3, 2, 1]


def test_knobs_stay_on_their_axes_and_move_by_the_factors():
    draws = np.random.default_rng(0)
    moved = [perturbed(LR, 1e-3, draws) for _ in range(400)]
    share = sum(value in (8e-4, 1.25e-3) for value in moved) / len(moved)
    assert 0.69 < share < 0.81  # three quarters
    assert {round(value / 1e-3, 9) for value in moved} >= set(FACTORS)
    assert all(1e-4 <= value <= 1e-2 for value in moved)
    assert {perturbed(KOLEO, 0.01, draws) for _ in range(99)} == {0.0, 0.01, 0.1, 1.0}
    assert max(perturbed(LR, 9e-3, draws) for _ in range(99)) == 1e-2
    spread = np.log10([drawn(LR, draws) for _ in range(400)])
    assert -4 <= spread.min() < -3.9 < -2.1 < spread.max() <= -2
    assert abs(spread.mean() + 3) < 0.1


def test_knobs_that_contradict_each_other_are_drawn_again(search, tiny):
    found = search(generations=1)
    tight = dataclasses.replace(found.lineage[0], epoch=1, overrides={}, knobs=found.lineage[0].knobs | {
        "mask.ratio_low": 0.45, "mask.ratio_high": 0.46})  # fmt: skip
    base = override(tiny, {"mask.ratio_low": 0.45, "mask.ratio_high": 0.46})
    for number in range(50):
        plan = explored(base, SPACE, tight, np.random.default_rng(number))
        assert override(base, plan).train.schedule


@pytest.mark.parametrize(
    ("space", "options", "words"),
    [
        ((Axis(field="model.layers", values=(1, 2), reason="r"),), {}, "that train.schedule may change, got model.lay"),
        ((), {}, "at least one axis"),
        (SPACE, {"members": 1}, "at least 2 members, got 1"),
        (SPACE, {"generations": 4}, "generations must be 1 to train.epochs = 3, got 4"),
        (SPACE, {"metric": "test/knn_accuracy"}, "must be ranked by the validation jets, val/..., got 'test/knn_acc"),
    ],
)
def test_bad_populations_name_rule_and_value(search, space, options, words):
    with pytest.raises(ConfigError) as error:
        search(space=space, **options)
    assert words in str(error.value)
    assert search.ran == []


def test_an_unknown_metric_names_those_there(search):
    with pytest.raises(ConfigError, match="'val/charm' is not in the learning curves, which have val/knn_accuracy, "):
        search(metric="val/charm", members=2, generations=1)


def test_a_damaged_file_is_no_population(search):
    search.storage.write("search/population.json", b'{"stops": [1]}')
    with pytest.raises(RecordError, match=r"population\.json is not a population"):
        load_population(search.storage, "search")


def test_a_population_under_ray_is_the_same(tiny, tiny_data, tmp_path):
    tune = pytest.importorskip("cluster.tune")
    inline, ray = (Search(tiny, tiny_data, tmp_path / name, generations=2, members=3) for name in ("inline", "ray"))

    def run(specs):
        tune.run_ray(specs, tiny_data, ray.storage, [])

    found = ray(run=run)
    assert found == inline()
    assert any(row.came == "copied" for row in found.lineage)
    continued = [load_record(ray.storage, row.trial_id).continues for row in found.lineage[3:]]
    assert all(continued)

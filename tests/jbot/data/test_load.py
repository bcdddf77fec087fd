"""The jets of a study: what a trial's fingerprint feels, where jets come from, and other jet pTs."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, TINY, make_data, write_jets

from jbot.config import Config, ConfigError, override
from jbot.data import CLASSES, DataError, JetData, Jets, chunks, jets_needed, load_jets, pythia
from jbot.data.hdf5 import read
from jbot.data.load import cached_jets, jets_used, needed_by
from jbot.evaluation.metrics_registry import metric_names
from jbot.store.plan import load_study
from jbot.store.record import TrialSpec
from jbot.store.storage import Storage
from jbot.trial.run import run_pack


def first(data: JetData, count: int) -> JetData:
    """The first jets of each class, and nothing behind them."""
    rows = np.concatenate([np.flatnonzero(data.labels == c)[:count] for c in range(5)])
    parts = {"particles": data.particles[rows], "labels": data.labels[rows], "jets": data.jets[rows]}
    return dataclasses.replace(data, **parts, fingerprint=f"first {count}")


# --- what a trial uses --------------------------------------------------------------------------------------------


def test_jets_used_are_those_of_its_splits_and_where_it_is_judged(tiny):
    config = override(tiny, {"probe.jet_pts": [500, 1000, 2000], "probe.bank_jets": 25})
    own = dict.fromkeys(CLASSES, (60 + 20 + 40) // 5)
    other = dict.fromkeys(CLASSES, (25 + 20 + 40) // 5)  # a bank for the probes, and the same val and test jets
    assert jets_used(config) == {500.0: other, 1000.0: own, 2000.0: other}
    both = needed_by([config, override(tiny, {"data.jet_pt": 500.0, "data.task": "tqg"})])
    assert both[500.0] == {"q": 30, "g": 30, "w": 17, "z": 17, "t": 60}  # of four jets two are t
    assert list(both) == [500.0, 1000.0, 2000.0]


def test_a_fingerprint_is_that_of_the_jets_used(tiny, tiny_data, tmp_path):
    count = jets_needed(task="all", train=60, val=20, test=40)["q"]
    write_jets(tmp_path / "few.h5", first(tiny_data, count))
    alone = read(tmp_path / "few.h5")
    assert Jets({1000: tiny_data}).fingerprint(tiny) == Jets({1000: alone}).fingerprint(tiny) == alone.fingerprint


def test_a_fingerprint_feels_each_jet_used_and_no_other(tiny, tiny_data):
    before = Jets({1000: tiny_data}).fingerprint(tiny)

    def after(row: int) -> str:
        particles = tiny_data.particles.copy()
        particles[row, 0, 0] += 0.01
        return Jets({1000: dataclasses.replace(tiny_data, particles=particles)}).fingerprint(tiny)

    assert after(23) != before  # the last q of 24
    assert after(24) == before
    assert Jets({1000: tiny_data, 500: tiny_data}).fingerprint(tiny) == before
    more = override(tiny, {"probe.jet_pts": [500]})
    assert Jets({1000: tiny_data, 500: tiny_data}).fingerprint(more) != before


def spec_of(config: Config, jets: Jets) -> TrialSpec:
    return TrialSpec(study="s", arm="a", plan_hash="p", config=config, data_fingerprint=jets.fingerprint(config))


@pytest.mark.parametrize("task", ["all", "tqg"])
def test_a_trial_is_the_same_in_a_study_of_more_jets(tiny, tmp_path, task):
    """Bit for bit: metrics, weights, and the id under which a record is found."""
    config = override(tiny, {"data.task": task, "train.epochs": 1})
    large = make_data(200)
    few = Jets({1000: first(large, 60)})
    more = Jets({1000: large, 500: make_data(40, seed=1)})
    (one,) = run_pack([spec_of(config, few)], few, Storage(tmp_path / "few"))
    (other,) = run_pack([spec_of(config, more)], more, Storage(tmp_path / "more"))
    assert one.trial_id == other.trial_id
    assert one.metrics == other.metrics
    assert one.data == other.data
    weights = [
        Storage(tmp_path / name).read_arrays(f"trials/{one.trial_id}/student.safetensors") for name in ("few", "more")
    ]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


SCALING = """
import sys
sys.path.insert(0, {root!r})
from studies import Study, main

main(Study(name={name!r}, question="How much do jets help?", arms={arms!r}, contrasts=(), margin=0.02))
"""


def run_study(folder: Path, name: str, arms: dict, *options: str) -> str:
    (folder / f"{name}.py").write_text(SCALING.format(root=str(ROOT), name=name, arms=arms))
    settings = [item for field, value in (TINY | {"train.epochs": 1}).items() for item in ("--set", f"{field}={value}")]
    command = [sys.executable, f"{name}.py", "--preset", "smoke", "--seeds", "1", "--inline", "--data", "jets.h5"]
    done = subprocess.run([*command, *settings, *options], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_studies_share_a_trial_though_one_loads_more_jets(tmp_path):
    write_jets(tmp_path / "jets.h5", make_data(200))
    run_study(tmp_path, "small", {"base": {}})
    said = run_study(tmp_path, "scaling", {"base": {}, "more": {"data.train_jets": 300}})
    assert "1 of 2 trials have a record already" in said
    small, scaling = (load_study(f"{tmp_path}/results/{name}_smoke") for name in ("small", "scaling"))
    assert small.data["fingerprint"] != scaling.data["fingerprint"]  # of all jets loaded
    (base,) = small.trials
    assert base.trial_id in {trial.trial_id for trial in scaling.trials}
    report = (tmp_path / "results/scaling_smoke/report.md").read_text()
    assert "Trials differ in data" not in report


# --- where jets come from -----------------------------------------------------------------------------------------


def test_a_path_may_name_the_jet_pt(tmp_path, tiny):
    for pt in (500, 1000):
        write_jets(tmp_path / f"jets_{pt}.h5", make_data(40, seed=pt), jet_pt_gev=f"{pt}")
    needed = needed_by([override(tiny, {"probe.jet_pts": [500]})])
    jets = load_jets(f"{tmp_path}/jets_{{pt}}.h5", needed)
    assert list(jets) == [500.0, 1000.0]
    assert len(jets.at(500).labels) == sum(needed[500.0].values())
    with pytest.raises(DataError, match="jets of 2000 GeV are needed, there are those of 500, 1000 GeV"):
        jets.at(2000)
    other_pt = override(tiny, {"data.jet_pt": 2000})
    with pytest.raises(DataError, match=r"holds jets of 500 GeV, needed are jets of 2000 GeV \(data\.jet_pt\)"):
        load_jets(f"{tmp_path}/jets_500.h5", needed_by([other_pt]))
    with pytest.raises(DataError, match="no such file"):
        load_jets(f"{tmp_path}/jets_{{pt}}.h5", needed_by([other_pt]))
    with pytest.raises(DataError, match="jetnet has jets of 1000 GeV, needed are jets of 2000 GeV"):
        load_jets("jetnet", needed_by([other_pt]))
    with pytest.raises(DataError, match=r"must be pythia or a path with \{pt\} in it, got 'jetnet.h5'"):
        load_jets("jetnet.h5", needed)


def test_one_file_for_several_energies_is_one_line_and_exit_code_2(tmp_path):
    write_jets(tmp_path / "jets.h5", make_data(40))
    with pytest.raises(AssertionError) as failed:
        run_study(tmp_path, "two", {"own": {}, "other": {"data.jet_pt": 500.0}})
    (line,) = str(failed.value).splitlines()[:1]
    assert "error: jets of 500, 1000 GeV are needed: --data must be pythia or a path with {pt} in it" in line


def generated(cache: Path, pt: float = 1000.0, **counts: int) -> JetData:
    return load_jets("pythia", {pt: counts}, workers=1, cache=cache, progress=False).at(pt)


def test_a_larger_request_begins_with_the_smaller_one_and_makes_no_jet_twice(tmp_path, fake):
    small = generated(tmp_path, q=15, t=7)
    assert fake == [("q", 10), ("q", 5), ("t", 7)]
    large = generated(tmp_path, q=35, t=20)
    assert fake[3:] == [("q", 10), ("q", 10), ("q", 5), ("t", 10), ("t", 10)]  # but for chunks that were cut short
    for label in (0, 4):
        rows = small.labels == label
        np.testing.assert_array_equal(small.particles[rows], large.particles[large.labels == label][: rows.sum()])
    again = generated(tmp_path, q=18, t=3)  # within what is there: nothing is made, not even a last, short chunk
    assert len(fake) == 8
    np.testing.assert_array_equal(again.particles[:18], large.particles[:18])
    assert small.source == large.source
    assert not list(tmp_path.rglob("jets_*.h5"))  # chunks alone: no copy a study


def test_generated_jets_are_those_of_the_file(tmp_path, fake):
    data = generated(tmp_path, q=15, t=7)
    path = chunks.generate_file({"q": 15, "t": 7}, pythia.Settings(), workers=1, cache=tmp_path, progress=False)
    of_file = read(path)
    assert (of_file.fingerprint, of_file.source, of_file.metadata.keys() - {"fingerprint"}) == (
        data.fingerprint, data.source, data.metadata.keys(),
    )  # fmt: skip


def test_cached_jets_are_found_and_none_are_made(tmp_path, fake, tiny):
    needed = {500.0: {"q": 12}, 1000.0: {"q": 12}}
    assert cached_jets("pythia", needed, cache=tmp_path) is None
    generated(tmp_path, pt=500.0, q=12)
    assert cached_jets("pythia", needed, cache=tmp_path) is None
    generated(tmp_path, pt=1000.0, q=14)
    made = len(fake)
    found = cached_jets("pythia", needed, cache=tmp_path)
    assert {pt: len(data.labels) for pt, data in found.items()} == {500.0: 12, 1000.0: 12}
    assert len(fake) == made
    assert cached_jets("jetnet", {1000.0: {"q": 12}}, cache=tmp_path) is None
    write_jets(tmp_path / "jets.h5", make_data(40))
    assert len(cached_jets(str(tmp_path / "jets.h5"), needed_by([tiny])).at(1000).labels) == 120


# --- judged at other energies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["all", "tqg", "qg"])
def test_an_encoder_is_judged_at_other_energies(tiny, tmp_path, task):
    sizes = {"data.train_jets": 200, "data.test_jets": 60, "probe.bank_jets": 100, "train.epochs": 1}
    config = override(tiny, sizes | {"data.task": task, "probe.jet_pts": [500, 1000, 2000]})
    own = make_data(150)
    jets = Jets({500: make_data(150, seed=1), 1000: own, 2000: own})
    (record,) = run_pack([spec_of(config, jets)], jets, Storage(tmp_path))
    metrics = record.metrics
    of_pts = {name for name in metric_names(config) if name.startswith(("test_", "shifted_"))}
    assert len(of_pts) == 20
    assert of_pts <= set(metrics)
    assert {f"untrained/{name}" for name in of_pts if name.startswith("test_")} <= set(metrics)
    assert not any(name.startswith("untrained/shifted_") for name in metrics)
    for probe in ("knn", "linear"):
        for number in ("accuracy", "auc"):
            name = f"{probe}_{number}"
            assert metrics[f"test_1000/{name}"] == metrics[f"test/{name}"]
            assert metrics[f"untrained/test_1000/{name}"] == metrics[f"untrained/test/{name}"]
            assert record.uncertainties[f"test_500/{name}"]["error"] > 0
            # Jets that are the same at another pT are judged the same; those of the bank too, as it is as long.
            assert metrics[f"shifted_2000/{name}"] == pytest.approx(metrics[f"test/{name}"])
            assert metrics[f"test_2000/{name}"] == pytest.approx(metrics[f"test/{name}"])
        # Two accuracies on 60 jets may be equal by chance.
        assert metrics[f"test_500/{probe}_auc"] != metrics[f"test/{probe}_auc"]
    plain = override(config, {"probe.jet_pts": []})
    (alone,) = run_pack([spec_of(plain, jets)], jets, Storage(tmp_path))
    assert alone.metrics == {
        name: value for name, value in metrics.items() if "est_" not in name and "fted_" not in name
    }


def test_jet_pts_are_checked():
    with pytest.raises(ConfigError, match=r"probe\.jet_pts must be finite and in \(0, inf\], got -5"):
        override(Config(), {"probe.jet_pts": [-5]})
    with pytest.raises(ConfigError, match=r"probe\.jet_pts must differ in six digits, got \(500\.0, 500\.0\)"):
        override(Config(), {"probe.jet_pts": [500, 500.0]})

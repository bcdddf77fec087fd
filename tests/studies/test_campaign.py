import json
from pathlib import Path

import pytest
from helpers import TINY, write_jets

from analysis.verdicts.costs import CostEstimate
from cluster.resources import Resources
from jbot.config import Config, from_dict, override
from jbot.data import JetData
from jbot.store.plan import Contrast, save_study
from jbot.store.storage import Storage
from jbot.trial.reuse import plain
from jbot.trial.run import PackRun
from studies.runner import campaign
from studies.runner.campaign import blocks_that_fit, chosen, decided_plan, find_studies, in_order
from studies.runner.cli import main_of_all
from studies.runner.estimate import Costs, ended_records
from studies.runner.study import Study

BASE, NONE, SOFT, WIDE = {}, {"mask.scheme": "none"}, {"mask.scheme": "softest"}, {"mask.ratio_high": 0.9}


def make_study(name: str, arms: dict, seeds: int = 2, primary: bool = True) -> Study:
    first, *others = arms
    contrasts = tuple(Contrast(treatment=arm, control=first, primary=primary) for arm in others)
    return Study(
        name=name, question=f"What of {name}?", arms=arms, contrasts=contrasts, margin=1e-6,
        seeds_by_preset={"smoke": seeds},
    )  # fmt: skip


STUDIES = {
    "other": make_study("other", {"base": BASE, "soft": SOFT}),
    "baseline": make_study("baseline", {"base": BASE}, seeds=3),
}


@pytest.fixture(scope="session")
def jets_file(tiny_data: JetData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jets(tmp_path_factory.mktemp("jets") / "jets.h5", tiny_data)


@pytest.fixture
def call(jets_file: Path, tmp_path: Path):
    """The command with tiny trials, in this process; returns the exit code."""
    settings = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    common = ["--preset", "smoke", "--inline", "--data", str(jets_file), "--storage", str(tmp_path / "out"), *settings]

    def run(*arguments: str, studies: dict[str, Study] = STUDIES) -> int:
        return main_of_all([*common, *arguments], studies)

    return run


def summary(folder: Path) -> dict[str, dict]:
    """The rows of the last table, by study."""
    return {row["study"]: row for row in json.loads((folder / "out/all_smoke.json").read_text())}


def trials(folder: Path) -> list:
    """(arm, seed) of every record, in the order in which they were written, with its file's time."""
    found = sorted((folder / "out/trials").rglob("record.json"), key=lambda path: path.stat().st_mtime_ns)
    return [(content["arm"], content["config"]["seed"]) for content in map(json.loads, map(Path.read_text, found))]


# --- order ----------------------------------------------------------------------------------------------------------


def order_of(*studies: Study) -> list[str]:
    return in_order({study.name: study.plan("smoke", changes=TINY) for study in studies})


def test_the_study_that_shares_most_comes_next():
    alone = make_study("a_alone", {"wide": WIDE, "none": NONE})
    base = make_study("b_base", {"base": BASE, "soft": SOFT})
    both = make_study("c_both", {"base": BASE, "soft": SOFT, "none": NONE})
    baseline = make_study("baseline", {"base": BASE})
    # After the baseline b and c share two trials each, by name b goes first; then c shares four; a two of c's.
    assert order_of(alone, both, base, baseline) == ["baseline", "b_base", "c_both", "a_alone"]


def test_of_studies_that_share_equally_the_worthier_comes_first():
    right = ["baseline", "masking_ablation", "text_vs_code", "augmentation_ablation", "scaling", "eta", "zeta"]
    found = [make_study(name, {"base": BASE, "x": {"optim.lr": 1e-5 * (n + 1)}}) for n, name in enumerate(right)]
    assert order_of(*reversed(found)) == right


def test_expensive_studies_run_when_they_are_named():
    found = find_studies()
    assert {"masking_ablation", "paper_tables", "precision"} <= set(found)
    assert not {"paper_tables", "precision"} & set(chosen(found, None))
    assert list(chosen(found, ("paper_tables",))) == ["paper_tables"]


# --- budget ---------------------------------------------------------------------------------------------------------


class Priced(Costs):
    """An hour a trial."""

    def __init__(self, measured: bool = True):
        super().__init__([], Resources())
        self.known = measured

    def total(self, configs):
        n = len(list(configs))
        return CostEstimate(trials=n, seconds=3600.0 * n, longest=3600.0, basis=(), measured=self.known or n == 0)


def blocks(seeds: int, arms: int) -> list[Config]:
    return [
        override(Config(), {"seed": seed, "optim.lr": 1e-3 * (1 + arm)}) for seed in range(seeds) for arm in range(arms)
    ]


@pytest.mark.parametrize(("hours", "seeds"), [(2.9, set()), (3, {0}), (8.9, {0, 1}), (9, {0, 1, 2}), (99, {0, 1, 2})])
def test_a_budget_holds_whole_blocks(hours, seeds):
    trials = blocks(3, 3)
    assert blocks_that_fit(trials, set(trials), Priced(), hours) == seeds


def test_trials_with_a_record_cost_nothing():
    trials = blocks(3, 3)
    assert blocks_that_fit(trials, set(trials[4:]), Priced(), 2.0) == {0, 1}
    assert blocks_that_fit(trials, set(), Priced(), 0.0) == {0, 1, 2}


def test_a_first_block_whose_cost_was_timed_runs_alone():
    trials = blocks(3, 3)
    assert blocks_that_fit(trials, set(trials), Priced(measured=False), 99) == {0}
    assert blocks_that_fit(trials, set(trials[3:]), Priced(measured=False), 99) == {0, 1}


def test_a_budget_stops_at_a_whole_block_and_the_next_one_goes_on(call, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Costs, "hours", lambda self, seconds: seconds)  # so that a trial's figure is above rounding
    monkeypatch.setattr(Costs, "of", lambda self, config, before=(), fresh=False: one_second(config))
    monkeypatch.setattr(
        campaign.Campaign, "spent", property(lambda self: len(ended_records(self.storage)) - len(self.known))
    )
    assert call("--budget", "4.5", "--figures", "none") == 1
    # Three of the baseline; the other study has one trial a block left: seed 0 fits, seed 1 does not.
    assert trials(tmp_path) == [("base", 0), ("base", 1), ("base", 2), ("soft", 0)]
    row = summary(tmp_path)["other_smoke"]
    assert (row["done"], row["planned"]) == (3, 4)
    assert row["open"][0].startswith("1 trial missing: 1 core hours")
    assert "(interim)" in row["verdicts"][0]
    capsys.readouterr()
    assert call("--budget", "1", "--figures", "none") == 0
    assert trials(tmp_path)[4:] == [("soft", 1)]
    assert summary(tmp_path)["other_smoke"]["done"] == 4


def one_second(config: Config):
    return CostEstimate(trials=1, seconds=1.0, longest=1.0, basis=("an hour each",), measured=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget-usd", "3"], "--budget-usd needs --price, the USD of a device hour"),
        (["--budget", "-1"], "--budget must be 0 or positive, and finite, got -1"),
        (["--price", "0"], "--price must be positive and finite, got 0"),
        (["--only", "nothing"], "--only names no study 'nothing'; studies are baseline, other"),
        (["--seeds", "0"], "seeds must be at least 1 and at most 10000, got 0"),
        (["--set", "no.field=1"], "unknown Config field 'no.field'"),
        (["--storage", "what://ever"], "what://ever"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(call, arguments, words, capsys):
    assert call(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


# --- a whole run ----------------------------------------------------------------------------------------------------


def test_all_studies_run_once_and_the_second_time_train_nothing(call, tmp_path, capsys):
    assert call("--price", "0.5") == 0
    said = capsys.readouterr()
    assert said.err.index("study 1 of 2: baseline") < said.err.index("study 2 of 2: other")
    assert "times the estimate" in said.err
    assert trials(tmp_path) == [("base", 0), ("base", 1), ("base", 2), ("soft", 0), ("soft", 1)]
    rows = summary(tmp_path)
    assert rows["baseline_smoke"]["verdicts"] == ["no primary contrast: its report describes"]
    assert rows["baseline_smoke"]["open"] == []
    # Two seeds cannot decide anything: the table says what would, and its price.
    assert "undecided" in rows["other_smoke"]["verdicts"][0]
    (line,) = rows["other_smoke"]["open"]
    assert "would decide it" in line
    assert "USD" in line or "not even" in line
    page = (tmp_path / "out/all_smoke.md").read_text()
    assert "What of other?" in page
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/trials").rglob("record.json")}
    (tmp_path / "out/other_smoke/report.md").unlink()
    assert call() == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/trials").rglob("record.json")}
    assert (tmp_path / "out/other_smoke/report.md").exists()
    assert call("--dry-run") == 0
    assert "together 0 core hours" in capsys.readouterr().out


def test_a_dry_run_counts_shared_trials_once_and_writes_nothing(call, tmp_path, capsys):
    assert call("--dry-run", "--price", "2") == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    table = {row[0].strip(): [cell.strip() for cell in row[1:5]] for row in rows}
    assert table["baseline"] == ["1 x 3", "0", "0", "3"]
    assert table["other"] == ["2 x 2", "0", "2", "2"]
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_a_table_and_the_same_command_continues(call, tmp_path, monkeypatch, capsys):
    real, pressed = PackRun.conclude, []

    def press(self, trial):
        if self.specs[trial].arm == "soft" and not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        real(self, trial)

    monkeypatch.setattr(PackRun, "conclude", press)
    assert call() == 130
    assert "interrupted" in capsys.readouterr().err
    rows = summary(tmp_path)
    assert (rows["baseline_smoke"]["done"], rows["other_smoke"]["done"]) == (3, 2)
    assert "2 trials missing" in rows["other_smoke"]["open"][0]
    assert call() == 0
    assert summary(tmp_path)["other_smoke"]["done"] == 4


def test_a_study_that_cannot_run_stops_no_other(call, tmp_path, capsys):
    greedy = make_study("greedy", {"base": {"data.train_jets": 10_000_000}, "none": NONE})
    odd = make_study("odd", {"base": BASE, "wide": {"optim.lr": -1.0}})
    studies = {"greedy": greedy, "odd": odd, "baseline": STUDIES["baseline"]}
    assert call("--figures", "none", studies=studies) == 1
    said = capsys.readouterr().err
    assert "odd could not run: optim.lr must be finite" in said
    assert "greedy could not run:" in said
    rows = summary(tmp_path)
    assert rows["baseline_smoke"]["done"] == 3
    assert rows["greedy_smoke"]["open"][0].startswith("could not run:")
    assert call("--figures", "none", studies={"greedy": greedy}) == 2


def test_records_price_what_is_left(call, tmp_path):
    """Of three kinds of work, each is taken from records in which it is the same."""
    assert call("--only", "baseline", "--figures", "none") == 0
    records = ended_records(Storage(tmp_path / "out"))
    costs = Costs(records, Resources(), timing=False)
    config = from_dict(STUDIES["baseline"].plan("smoke", changes=TINY).base)
    equal = costs.of(override(config, {"seed": 99}))
    assert equal is not None
    assert equal.measured
    assert equal.basis == ("records of equal trials",)
    assert min(r.device_seconds for r in records) <= equal.seconds <= max(r.device_seconds for r in records)
    other = costs.of(override(config, {"optim.lr": 1e-4, "mask.scheme": "none"}))
    assert other is not None
    assert other.basis == ("training: records of the same work", "probes: records of the same work")
    assert other.seconds == pytest.approx(equal.seconds, rel=1)
    longer = costs.of(override(config, {"data.train_jets": 6000, "probe.bank_jets": 60}))
    assert longer is not None
    train = min(r.device_seconds - r.probe_seconds for r in records)
    assert longer.seconds > 90 * train  # a hundred times the steps
    assert costs.of(override(config, {"model.dim": 16})) is None  # nobody has run this, and nothing is timed


def test_an_encoder_that_is_there_is_not_paid_again(call, tmp_path):
    """A trial that differs from another one in what is judged alone costs its judging; at a new seed it trains."""
    assert call("--only", "baseline", "--figures", "none") == 0
    records = ended_records(Storage(tmp_path / "out"))
    costs = Costs(records, Resources(), timing=False)
    config = from_dict(STUDIES["baseline"].plan("smoke", changes=TINY).base)
    seeds = [record.seed for record in records if from_dict(record.config) == override(config, {"seed": record.seed})]
    there, new = override(config, {"seed": seeds[0]}), override(config, {"seed": 99})
    judged, trained = costs.of(there), costs.of(new)
    training = [record.device_seconds - record.probe_seconds for record in records]
    assert min(training) <= trained.seconds - judged.seconds <= max(training)
    assert costs.of(there, fresh=True) == trained
    assert costs.of(new, before={plain(new)}) == judged
    assert costs.total([there, new]).seconds == pytest.approx(judged.seconds + trained.seconds)


def test_a_search_that_has_ended_is_read_from_its_own_plan_alone(tmp_path):
    storage, plan = Storage(tmp_path), STUDIES["baseline"].plan("smoke", changes=TINY)
    assert decided_plan(plan, storage) is None
    save_study(storage, plan, {}, [])
    assert decided_plan(plan, storage) == plan
    assert decided_plan(STUDIES["baseline"].plan("smoke", changes=TINY | {"train.epochs": 9}), storage) is None

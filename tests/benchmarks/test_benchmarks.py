"""The benchmark's arithmetic and its files; its speeds are not tested."""

import dataclasses
import json
import time

import numpy as np
import pytest
import torch
from helpers import TINY, make_data
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench, evaluation, report, steps
from benchmarks.steps import Setting
from benchmarks.timing import Clock, NotAvailable, Variant, interleave, quartiles, rate_row
from benchmarks.trainer import MODELS, PARTS, StepGroup, Traffic, steps_at_once
from jbot.config import Config, override
from jbot.trainer.engines import fused
from jbot.trainer.flops import step_flop
from jbot.trainer.state import init_state
from studies.presets import PRESETS

CPU = torch.device("cpu")


@pytest.fixture
def setting():
    return Setting(device=CPU, quick=True, data=make_data(8), batches={"S": 4, "B": 4}, max_steps=1)


# --- FLOP and bytes -------------------------------------------------------------------------------------------------


def test_flop_of_a_jet_by_hand():
    # d = 2, 1 head of 2, 1 layer, p = 2, 2 particles, 3 tokens.
    changes = {"data.particles": 2, "model.dim": 2, "model.heads": 1, "model.layers": 1, "model.projection": 2}
    config = override(Config(), changes)
    embed = 2 * (2 * 4 * 2)
    key_value = 2 * (2 * 2 * 2)
    behind = 2 * (2 * 2) + 2 * (2 * 3 * 2) + 2 * (2 * 2) + 2 * (8 * 2 * 2)
    head = 2 * (8 * 2 * 2 + 8 * 2 * 2)
    forward = embed + 3 * (key_value + behind + head)
    assert step_flop(config) == 2 * 4 * forward
    pruned = embed + 3 * (key_value + (behind + head) / 3)
    assert step_flop(config, used=1 / 3) == pytest.approx(2 * (forward + 3 * pruned))


@pytest.mark.parametrize(("model", "full", "needed"), [("S", 17.3, 11.6), ("B", 115, 94)])
def test_flop_of_the_papers_models(model, full, needed):
    assert step_flop(MODELS[model]) / 1e6 == pytest.approx(full, rel=5e-3)
    # The figures written down before were for 0.17 of the tokens.
    assert step_flop(MODELS[model], used=0.17) / 1e6 == pytest.approx(needed, rel=5e-3)


def test_flop_of_the_teacher_are_what_torch_counts(tiny, jets):
    group = StepGroup(tiny, jets[0], engine="plain")
    counted = []

    def timed(part, function, *arguments):
        with FlopCounterMode(display=False) as counter:
            result = function(*arguments)
        if part == "teacher":
            counted.append(counter.get_total_flops())
        return result

    group.run_parts(timed)
    assert counted == [step_flop(tiny) * group.jets_a_step / 4] * group.steps


def test_flop_refuse_a_share_above_one():
    with pytest.raises(ValueError, match=r"used must be in \[0, 1\], got 1.5"):
        step_flop(Config(), used=1.5)


def test_traffic_counts_each_input_and_output_once_and_no_views():
    x, y = torch.ones(10), torch.ones(5, 2)
    with Traffic() as counted:
        (x.view(5, 2).t().t() + y).sum()
    assert counted.bytes == (10 + 10 + 10) * 4 + (10 + 1) * 4


# --- the trainer's step, in parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3])
def test_parts_make_the_same_steps_as_the_trainer(tiny, jets, size):
    whole, split = (StepGroup(tiny, jets[0], size=size) for _ in range(2))
    called = []

    def timed(part, function, *arguments):
        called.append(part)
        return function(*arguments)

    for _ in range(2):
        whole.choose_jets()
        split.choose_jets()
        whole.run()
        split.run_parts(timed)
    assert whole.state.step.tolist() == split.state.step.tolist() == [2 * whole.steps] * size
    assert tuple(dict.fromkeys(called)) == PARTS
    for name, tensor in whole.state.tensors().items():
        assert torch.equal(tensor, split.state.tensors()[name]), name


@pytest.mark.parametrize(("batch", "size", "steps"), [(16, 1, 16), (16, 4, 4), (64, 1, 4), (256, 8, 1), (1024, 1, 1)])
def test_steps_at_once_are_those_of_the_trainer(batch, size, steps):
    """256 jets on a CPU, all trials and steps together."""
    assert steps_at_once(batch, size, CPU) == steps


def test_bf16_step_is_near_fp32(tiny, jets):
    exact, rough = (
        StepGroup(override(tiny, {"train.precision": precision}), jets[0], engine="plain")
        for precision in ("fp32", "bf16")
    )
    for group in (exact, rough):
        group.run()
    assert rough.state.moment1.dtype == torch.float32
    assert not torch.equal(exact.state.moment1, rough.state.moment1)
    assert float(torch.cosine_similarity(exact.state.moment1, rough.state.moment1)) > 0.98


def test_used_share_counts_cls_and_masked_particles(tiny, jets):
    unmasked = StepGroup(override(tiny, {"mask.scheme": "none"}), jets[0])
    assert unmasked.used_share() == pytest.approx(1 / 31)
    assert 1 / 31 < StepGroup(tiny, jets[0]).used_share() < 1


def test_an_engine_asked_for_by_name_that_is_missing_says_so(tiny, jets, monkeypatch):
    monkeypatch.setattr(fused, "MAX_SLOTS", 29)
    with pytest.raises(NotAvailable, match="at most 29 particles"):
        StepGroup(tiny, jets[0], engine="fused")
    assert StepGroup(tiny, jets[0], engine="auto").engine.name == "plain"


def test_the_kernel_moves_less_than_plain_operations(tiny, jets):
    plain, kernel = (StepGroup(tiny, jets[0], engine=engine) for engine in ("plain", "auto"))
    if kernel.engine.name != "fused":
        pytest.skip(kernel.engine.why)
    views = 2 * tiny.train.batch * 31 * tiny.model.projection * 4  # the teacher writes that
    assert 2 * views < kernel.traffic() < plain.traffic() / 2


# --- timing ---------------------------------------------------------------------------------------------------------


def test_rounds_alternate_their_order_and_stay_in_the_budget():
    order = []
    variants = [Variant(name=name, run=lambda name=name: order.append(name)) for name in "ab"]
    found = interleave(variants, rounds=3, budget=100, device=CPU, warmup=0)
    assert "".join(order) == "abbaab"
    assert [len(samples) for samples in found.values()] == [3, 3]
    assert len(interleave(variants, rounds=50, budget=0, device=CPU)["a"]) == 3


def test_cpu_seconds_of_other_processes_are_added():
    variant = Variant(name="a", run=lambda: 100.0)
    found = interleave([variant], rounds=1, budget=1, device=CPU)
    assert rate_row(variant, found, "1/s").cpu_seconds >= 100.0


def test_a_clock_adds_up_the_parts_of_a_run():
    clock = Clock(CPU)
    for seconds in (0.01, 0.02):
        assert clock("sleep", lambda seconds=seconds: time.sleep(seconds) or "slept") == "slept"
    assert clock.parts["sleep"].wall >= 0.03
    assert clock.parts["sleep"].each(2).wall == clock.parts["sleep"].wall / 2


def test_samples_are_of_one_of_the_pieces_of_a_run():
    variant = Variant(name="a", run=lambda: 4e6, pieces=4)  # CPU seconds of a helper
    (sample,) = interleave([variant], rounds=1, budget=1, device=CPU, warmup=0)["a"]
    assert sample.cpu == pytest.approx(1e6)


def test_quartiles_by_hand():
    assert quartiles([1, 2, 3, 4, 5]) == (3, 2, 4)


# --- sections and files ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two real sections at tiny sizes, through the command's own code."""
    folder = tmp_path_factory.mktemp("bench")
    options = bench.parser().parse_args(["--quick", "--out", str(folder)])
    setting = bench.make_setting(options, batches={"S": 4, "B": 2}, max_steps=1)
    return folder, bench.run(["step", "parts"], setting, folder)


def test_sections_leave_json_and_a_table(measured):
    folder, sections = measured
    content = json.loads((folder / "bench.json").read_text())
    assert list(content["sections"]) == ["step", "parts"]
    assert content["sections"]["step"]["rows"] == json.loads(json.dumps(sections["step"]["rows"]))
    text = (folder / "bench.md").read_text()
    for wanted in ("S plain fp32", "B fused bf16", "S backward", "% of GEMM limit", "not measured", "torch 2."):
        assert wanted in text


def test_every_measured_row_has_its_spread_and_every_other_its_reason(measured):
    _, sections = measured
    for section in sections.values():
        assert {"hardware", "libraries", "git_commit"} <= set(section["environment"])
        for row in section["rows"]:
            if row["median"] is None:
                assert row["note"]
            else:
                assert row["low"] <= row["median"] <= row["high"]
                assert row["n"] >= 3


def test_parts_add_up(measured):
    _, sections = measured
    for model in MODELS:
        rows = {row["what"].split(maxsplit=1)[1]: row for row in sections["parts"]["rows"] if row["what"][0] == model}
        assert set(rows) == {*PARTS, "whole step"}
        shares = [rows[part]["cpu_ratio"][0] for part in PARTS]
        assert all(0 <= share <= 1 for share in shares)
        assert 0.5 < sum(shares) < 1.5  # medians of shares: near 1 on a quiet machine


def test_packed_and_single_trials_are_timed_in_the_same_rounds(setting):
    alone, packed = steps.packs_of(setting, 64, (1, 2))
    assert (alone.ratio, alone.settings["pack"]) == (None, 1)
    assert (packed.base, packed.settings["pack"]) == ("2 one after another", 2)
    assert packed.ratio[1] <= packed.ratio[0] <= packed.ratio[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_packs_and_steps_are_measured_with_cuda(setting):
    there = dataclasses.replace(setting, device=torch.device("cuda"))
    rows = steps.packs_of(there, 4, (2,)) + steps.step(there)
    assert all(row.wall_seconds for row in rows if row.unit == "jets/s")


def test_the_papers_pretraining_is_derived_from_the_time_of_a_step(setting, monkeypatch):
    monkeypatch.setattr(steps, "PAPER_BATCH", 4)
    rows = {row.what: row for row in steps.step(setting)}
    row = rows["S plain fp32"]
    assert f"56M jet passes of the paper would take {56e6 / row.median / 3600:.3g} h" in row.note
    assert rows["S compiled fp32"].median is None


def test_every_part_of_an_evaluation_runs(tiny):
    rng = np.random.default_rng(0)
    jets = {name: evaluation.draw(make_data(8), 40, rng, CPU) for name in ("bank", "val", "test")}
    parts = evaluation.parts_of(tiny, init_state(tiny, [0], CPU).student, jets)
    assert {*evaluation.CURVE_PARTS, *evaluation.FINAL_PARTS} == set(parts)
    for part in parts.values():
        part()


def test_the_share_of_an_evaluation_by_hand():
    config = override(Config(), PRESETS["smoke"].base)  # 600 jets, two epochs, points at 0, 1 and 2
    seconds = dict.fromkeys((*evaluation.CURVE_PARTS, *evaluation.FINAL_PARTS), 1.0)
    row = evaluation.trial_share("smoke", seconds, config, jets_a_second=100.0)
    total, training = 3 * 5 + 2 * 7, 600 * 2 / 100
    assert row.median == pytest.approx(100 * total / (total + training))
    assert "29 s of evaluation with 3 curve points, 12 s of training" in row.note


def test_sections_of_an_earlier_run_stay(measured):
    folder, _ = measured
    options = bench.parser().parse_args(["--quick", "--out", str(folder)])
    setting = bench.make_setting(options, batches={"S": 4, "B": 2}, max_steps=1)
    before = report.load(folder / "bench.json")
    after = bench.run(["parts"], setting, folder)
    assert list(after) == list(before)
    assert json.loads(json.dumps(after["step"])) == before["step"]


def test_damaged_results_are_measured_anew(tmp_path):
    (tmp_path / "bench.json").write_text("{")
    assert report.load(tmp_path / "bench.json") == {}


def test_an_interrupted_run_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    def interrupt(setting):
        raise KeyboardInterrupt

    monkeypatch.setitem(bench.SECTIONS, "limits", ("limits", interrupt))
    assert bench.main(["--quick", "--only", "limits", "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    done_first = {"done": ("done", lambda setting: []), "limits": ("limits", interrupt)}
    monkeypatch.setattr(bench, "SECTIONS", done_first)
    assert bench.main(["--quick", "--out", str(tmp_path)]) == 130
    assert list(report.load(tmp_path / "bench.json")) == ["done"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "steps"], "sections are limits, step"),
        (["--data", "nowhere.h5"], "no such file or folder"),
    ],
)
def test_bad_requests_are_one_line(tmp_path, capsys, arguments, message):
    assert bench.main([*arguments, "--quick", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_growth_finds_the_exponent_of_a_known_cost(setting):
    class Fake:
        jets_a_step = 1
        steps = 1

        def __init__(self, size):
            self.seconds = 4e-3 * size

        def choose_jets(self):
            pass

        def run(self):
            until = time.process_time() + self.seconds
            while time.process_time() < until:
                pass

    rows = steps.sweep(setting, "size", {size: Fake(size) for size in (1, 2, 4)})
    assert rows[0].median == pytest.approx(1.0, abs=0.1)


def test_a_worker_process_steps_when_told(setting):
    config = override(setting.config("S", 4), {name: value for name, value in TINY.items() if "model" in name})
    setting = dataclasses.replace(setting, engine="plain")
    with steps.worker_processes(1, config, setting) as all_step:
        assert all_step() > 0


def test_numbers_are_short():
    shown = [report.number(value) for value in (0, 0.01234, 1.5, 12.345, 123456.0, 123456)]
    assert shown == ["0", "0.0123", "1.50", "12.3", "123,456", "123,456"]

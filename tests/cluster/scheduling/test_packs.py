"""Which trials train together."""

import pytest
import torch
from helpers import make_jets

from cluster.scheduling.packs import MEMORY_SHARE, fitting, form_packs, trial_bytes
from jbot.config import JBOT_B, Config, override
from jbot.store.record import TrialSpec
from jbot.trainer.loop import run_steps
from jbot.trainer.pack import Pack
from jbot.trainer.state import init_state


def specs_of(arms: dict[str, dict], seeds: int) -> list[TrialSpec]:
    return [
        TrialSpec(
            study="s", arm=arm, plan_hash="p", data_fingerprint="d", config=override(Config(), {**over, "seed": seed})
        )
        for seed in range(seeds)
        for arm, over in arms.items()
    ]


def names(packs: list[list[TrialSpec]]) -> list[str]:
    return [" ".join(f"{spec.arm}{spec.config.seed}" for spec in pack) for pack in packs]


ALIKE = {"a": {}, "b": {"mask.scheme": "none"}}
UNLIKE = ALIKE | {"wide": {"model.dim": 64}}


def test_on_a_cpu_each_trial_is_a_pack_in_block_order():
    specs = specs_of(UNLIKE, 2)
    assert form_packs(specs, slots=8) == [[spec] for spec in specs]


def test_packs_are_filled_in_block_order_with_what_can_share():
    assert names(form_packs(specs_of(ALIKE, 3), size=4)) == ["a0 b0 a1 b1", "a2 b2"]
    assert names(form_packs(specs_of(UNLIKE, 3), size=2)) == ["a0 b0", "wide0 wide1", "a1 b1", "a2 b2", "wide2"]
    unequal = specs_of({"a": {}, "less": {"data.train_jets": 100}}, 2)
    assert names(form_packs(unequal, size=4)) == ["a0 a1", "less0 less1"]


@pytest.mark.parametrize(("slots", "sizes"), [(1, [6]), (2, [3, 3]), (4, [1, 2, 1, 2]), (9, [1] * 6)])
def test_no_place_stays_empty(slots, sizes):
    packs = form_packs(specs_of(ALIKE, 3), free_bytes=10**12, slots=slots)
    assert [len(pack) for pack in packs] == sizes


def test_slots_are_shared_out_by_the_number_of_trials():
    packs = form_packs(specs_of(UNLIKE, 4), free_bytes=10**12, slots=3)
    assert names(packs) == ["a0 b0 a1 b1", "wide0 wide1 wide2 wide3", "a2 b2 a3 b3"]


def test_memory_limits_a_pack():
    specs = specs_of(ALIKE, 6)
    three = int(3.5 * trial_bytes(specs[0].config) / MEMORY_SHARE)
    assert fitting(specs[0].config, three) == 3
    assert [len(pack) for pack in form_packs(specs, free_bytes=three)] == [3, 3, 3, 3]
    assert fitting(specs[0].config, 10) == 1  # one is always tried


def peak_bytes(config: Config) -> int:
    """Most memory that was allocated at one time while a step was taken, and the state."""
    cpu = torch.device("cpu")
    state, pack = init_state(config, [0], cpu), Pack([config], cpu)
    jets, rates = torch.from_numpy(make_jets(config.train.batch, 1))[None, None], torch.ones(1, dtype=torch.float64)
    run_steps(state, jets, pack, (0,), rates * 1e-3, rates)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        run_steps(state, jets, pack, (0,), rates * 1e-3, rates)
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak + sum(value.nbytes for value in state.tensors().values())


@pytest.mark.parametrize("changes", [{"train.batch": 64}, {"train.batch": 256}, JBOT_B | {"train.batch": 32}])
def test_the_estimate_covers_what_a_step_takes(changes):
    config = override(Config(), changes)
    assert 1.1 < trial_bytes(config) / peak_bytes(config) < 2.0

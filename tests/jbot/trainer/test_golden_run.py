"""A short training run gives what it gave: bit for bit on the kind of machine it was recorded on, elsewhere nearly.

    python tests/jbot/trainer/test_golden_run.py        records this machine; needs another jbot.TRAINER_VERSION

The bits depend on instructions, compiler and torch, so the record names them.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jbot
from jbot.config import Config, override
from jbot.data import hdf5
from jbot.trainer.engines import fused
from jbot.trainer.engines.select import find_engine
from jbot.trainer.loop import run_steps
from jbot.trainer.pack import Pack
from jbot.trainer.state import init_state

DATA = Path(__file__).parents[2] / "data"
RECORD = DATA / "golden_run.json"
PRECISIONS = ("fp32", "bf16")
BATCH, STEPS = 16, 8


def short_run(precision):
    """Digest of the student's weights, and the sums of the steps' terms."""
    cpu = torch.device("cpu")
    config = override(Config(), {"train.batch": BATCH, "train.precision": precision, "train.dropout": 0.1})
    particles = torch.from_numpy(hdf5.read(DATA / "jets_sample.h5").particles)
    jets = particles[: STEPS * BATCH].view(STEPS, 1, BATCH, *particles.shape[1:])
    state, rate = init_state(config, [0], cpu), torch.ones(1, dtype=torch.float64)
    forward = find_engine("fused", config, cpu).forward
    terms = run_steps(state, jets, Pack([config], cpu), (0,), 1e-3 * rate, 0.99 * rate, forward)
    return hashlib.sha256(state.student.numpy().tobytes()).hexdigest()[:16], terms[:, 0].tolist()


def kind_of_machine():
    """What the bits depend on besides the program."""
    compiler = subprocess.run(["c++", "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
    flags = hashlib.sha256(fused._cpu().encode()).hexdigest()[:16]
    return {"cpu_flags": flags, "compiler": compiler, "torch": torch.__version__}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_short_run_gives_what_it_gave(precision):
    recorded = json.loads(RECORD.read_text())
    digest, terms = short_run(precision)
    assert terms == pytest.approx(recorded[precision]["terms"], rel=2e-3)
    assert recorded["trainer_version"] == jbot.TRAINER_VERSION
    if kind_of_machine() == recorded["machine"]:
        assert digest == recorded[precision]["weights"], (
            "results have moved: raise jbot.TRAINER_VERSION, and record again"
        )


if __name__ == "__main__":
    found = {precision: dict(zip(("weights", "terms"), short_run(precision), strict=True)) for precision in PRECISIONS}
    record = {"trainer_version": jbot.TRAINER_VERSION, "machine": kind_of_machine()} | found
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(print(RECORD))

"""How fast is a pre-training step of ours, against one of the authors' released TensorFlow code, and plain torch?

    git clone https://github.com/hftsoi/jbot authors
    python -m benchmarks.against_reference --reference authors --python tensorflow-env/bin/python
    python -m benchmarks.against_reference                                     without the released code's row

The released code lives in a worker process, ours in this one, with as many threads each: plain torch and our kernel,
each in fp32 and bf16. Their steps alternate, forwards and backwards in turn (ABBA), so all meet the same load of the
machine. Each step is timed in its own process: wall seconds, and processor seconds of all its threads. The result are
ratios; absolute times are of this machine at this hour. `of GEMM limit` is what a step needs in FLOP a CPU second,
against torch's products of cache-sized matrices in the same precision, in the same rounds.

    model   the step on ready-made views and masks: two encoders, losses, gradient, optimizer, the teacher's average
    whole   the step as trained: the next batch, its augmentation (the released code's goes jet by jet), and the model

Before anything is timed, parity is checked, in the same processes: from the released encoder weights, on views and
masks that the released code made, each term of the loss must agree within 1e-4 over eight steps (docs/performance.md),
and our augmentation and masking must give the same from the same random numbers. If not, no figure is printed and the
exit code is 1; bad input is one line and exit code 2. The timed steps compute what was compared, the `reference`
variants.

The interpreter of `--python` needs what the released code imports: tensorflow (its CPU build will do: the benchmark
is of the CPU), h5py, pandas, matplotlib, seaborn, scikit-learn. Cost: S some 3 minutes, B some 12, on one core each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks import machine, report
from benchmarks.our_side import SIDES, Ours
from benchmarks.timing import Sample, Variant, busy_rates, quartiles, ratios, time_once
from jbot.cli import Parser, bad_input
from jbot.data import DataError
from jbot.data.hdf5 import read

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")

RELEASED_FILES = {
    "utils.py": "def train_jbot(",
    "utils_model.py": "def build_backbone(",
    "jbot.ipynb": "train_jbot(",
    "models/all_backbone_pretrain_32_4_2.weights.h5": "",
    "models/all_backbone_pretrain_64_6_4.weights.h5": "",
}
"""Files of the released code that the benchmark drives, and what each must hold."""
SIZES = {
    "S": {"d_model": 32, "n_heads": 4, "n_layers": 2, "d_proj": 16},
    "B": {"d_model": 64, "n_heads": 6, "n_layers": 4, "d_proj": 32},
}
"""The two published sizes, by the names of the released notebook."""

RELEASED = "released code"
BASES = (RELEASED, "plain torch fp32", "kernel fp32")
"""Ratios are to these."""
PARITY_STEPS = 8
MAX_LOSS_DIFFERENCE = 1e-4
MAX_VIEW_DIFFERENCE = 1e-5
WARMUP = 3
PROTOCOL_STEPS = 15
"""Least steps of each worker behind a figure that is reported."""


class BenchmarkError(Exception):
    """The benchmark cannot run. Its message is one line: the rule and the value received."""


class NoParity(Exception):  # noqa: N818 - an outcome
    """The two codes do not compute the same. Its message is one line."""


def abba(names: Sequence[str], rounds: int) -> list[str]:
    """Whose step is next, each once a round: A B B A A B B A ..., so a steady drift of the machine cancels."""
    return [name for i in range(rounds) for name in (names if i % 2 == 0 else names[::-1])]


class Released:
    """The worker process that drives the released code: one answer to each request."""

    def __init__(self, options: argparse.Namespace, log: Path):
        self._log = log
        # Libraries below numpy have threads of their own. TensorFlow shall see no GPU: ours is timed on the CPU too.
        threads = str(options.threads)
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        command = [options.python, HERE / "reference_worker.py", "--reference", options.reference.resolve()]
        pipe = subprocess.PIPE
        try:
            with log.open("w") as stderr:
                self.process = subprocess.Popen(
                    [*map(str, command), "--threads", threads],
                    stdin=pipe, stdout=pipe, stderr=stderr, text=True,
                    env=os.environ | variables | {"CUDA_VISIBLE_DEVICES": "-1"},
                )  # fmt: skip
        except OSError as error:
            raise BenchmarkError(f"{options.python} cannot be run: {error.strerror}") from None

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The worker's answer.

        Raises
        ------
        BenchmarkError
            When the worker says what it lacks, or has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do} | request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = [text for text in self._log.read_text(errors="replace").splitlines() if text.strip()]
            raise BenchmarkError(f"the worker of the released code ended: {said[-1] if said else 'it said nothing'}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def check_parity(reference: Released, ours: Ours) -> str:
    """Eight steps of each on the same views and masks, from the same weights; returns what agrees, in words.

    Raises
    ------
    NoParity
        When a view, a mask or a loss differs by more than rounding.
    """
    augmented = ours.augmentation_parity()
    if not augmented["views"] <= MAX_VIEW_DIFFERENCE:
        raise NoParity(
            f"augmented views must agree within {MAX_VIEW_DIFFERENCE}, they differ by {augmented['views']:.2g}"
        )
    if augmented["masks"]:
        raise NoParity(f"masks must be the same, they differ in {augmented['masks']} views")
    reference.ask("train", part="model")
    ours.train("model")
    worst = 0.0
    for step in range(1, PARITY_STEPS + 1):
        theirs, mine = reference.ask("step")["losses"], ours.step()
        for name, value in mine.items():
            difference = abs(theirs[name] - value)
            if not difference <= MAX_LOSS_DIFFERENCE:
                raise NoParity(
                    f"{name} must agree within {MAX_LOSS_DIFFERENCE}, in step {step} "
                    f"the released code has {theirs[name]:.6f} and ours {value:.6f}"
                )
            worst = max(worst, difference)
    return (
        f"losses of {PARITY_STEPS} steps within {worst:.1e}, views within {augmented['views']:.1e}, "
        f"masks the same ({augmented['masked_particles']} particles)"
    )


def time_steps(sides: Mapping[str, Callable[[], Sample]], steps: int) -> dict[str, list[Sample]]:
    """Seconds of each step of all sides after warm-up; the i-th steps of all were neighbours."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for name in abba(list(sides), WARMUP + steps):
        samples[name].append(sides[name]())
    return {name: own[WARMUP:] for name, own in samples.items()}


def compare(base: Sequence[float], own: Sequence[float]) -> tuple[float, float, float]:
    """base / own: of the medians, with quartiles over neighbours."""
    return (quartiles(base)[0] / quartiles(own)[0], *ratios(base, own)[1:])


def side_rows(
    what: str, samples: Mapping[str, list[Sample]], gflop: float, limits: Mapping[str, str]
) -> list[report.Cells]:
    """A row for each side: seconds, ratios to the BASES by CPU seconds, and the share of its precision's limit.

    `limits` names the samples of products by precision, whose amounts are 1 GFLOP.
    """
    rows: list[report.Cells] = []
    for name in (RELEASED, *SIDES):
        if (own := samples.get(name)) is None:
            continue
        cpu = {which: [sample.cpu for sample in of] for which, of in samples.items()}
        cells: dict[str, Any] = {"what": f"{what}: {name}"}
        cells |= {f"{clock} s": quartiles([getattr(x, clock) for x in own]) for clock in ("wall", "cpu")}
        cells |= {f"{base} / this": compare(cpu[base], cpu[name]) for base in BASES if base in samples}
        limit = samples[limits[SIDES[name][1] if name in SIDES else "fp32"]]
        cells["of GEMM limit"] = ratios(busy_rates(own, gflop), busy_rates(limit, 1.0))
        cells["n"] = len(own)
        cells["note"] = "" if len(own) >= PROTOCOL_STEPS else f"n is below {PROTOCOL_STEPS}: not a figure to report"
        rows.append(cells)
    return rows


def run_size(size: str, options: argparse.Namespace, jets: np.ndarray, commit: str | None) -> list[report.Cells]:
    """Both parts of one model size, and what they rest on; parity first, where there is a released code."""
    probes = machine.probes(CPU, quick=False)
    limits = {name: f"limit {name}" for name in ("fp32", "bf16")}
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory())
        folder, reference = Path(name), None
        said: list[report.Cells] = []
        np.save(folder / "jets.npy", jets)
        if commit is not None:
            reference = stack.enter_context(closing(Released(options, folder / "reference.log")))
            theirs = reference.ask("prepare", exchange=name, sizes=SIZES[size], batch=options.batch, seed=0)
            said.append({"what": "parity", "note": check_parity(reference, Ours(size, options.batch, folder))})
            libraries = ", ".join(f"{name} {version}" for name, version in theirs["libraries"].items())
            threads = "intra-op {intra_op}, inter-op {inter_op}".format(**theirs["threads"])
            said.append({"what": RELEASED, "note": f"commit {commit[:10]}; {libraries}; threads: {threads}"})
        else:
            said.append({"what": RELEASED, "note": "not measured: needs --reference, --python with TensorFlow"})
        ours = {side: Ours(size, options.batch, folder, side) for side in SIDES}
        rows: list[report.Cells] = []
        for part in ("model", "whole"):
            sides: dict[str, Callable[[], Sample]] = {
                limit: partial(time_product, probes[precision]) for precision, limit in limits.items()
            }
            if reference is not None:
                reference.ask("train", part=part)
                sides[RELEASED] = partial(released_step, reference)
            for side, own in ours.items():
                own.train(part)
                sides[side] = partial(time_once, partial(own_step, own), CPU)
            samples = time_steps(sides, options.steps)
            rows += side_rows(f"{size} {part} step", samples, ours["kernel fp32"].gflop(), limits)
    return [*rows, *said]


def released_step(reference: Released) -> Sample:
    """One step of the released code, timed there."""
    answer = reference.ask("step")
    return Sample(answer["wall"], answer["cpu"])


def own_step(ours: Ours) -> None:
    """One step of ours."""
    ours.step()


def time_product(probe: Variant) -> Sample:
    """Matrix products, as seconds of one GFLOP."""
    sample = time_once(probe.run, CPU)
    return Sample(sample.wall / probe.amount, sample.cpu / probe.amount)


def draw_jets(path: Path, batch: int, steps: int) -> np.ndarray:
    """Enough real jets (jet, 30, 4) for every step, drawn with replacement when the file has too few."""
    particles = read(path).particles
    count = batch * (PARITY_STEPS + WARMUP + steps)
    generator = np.random.default_rng(0)
    rounds = -(-count // len(particles))
    order = np.concatenate([generator.permutation(len(particles)) for _ in range(rounds)])
    return np.asarray(particles[order[:count]])


def check_checkout(folder: Path) -> str:
    """Commit of the checkout of the released code (`unknown` when git does not know it).

    Raises
    ------
    BenchmarkError
        When the folder does not hold the released code.
    """
    rule = f"--reference must be a checkout of the released code, https://github.com/hftsoi/jbot: {folder}:"
    for name, content in RELEASED_FILES.items():
        path = folder / name
        if not path.is_file():
            raise BenchmarkError(f"{rule} {name} is missing")
        if content not in path.read_text(errors="replace"):
            raise BenchmarkError(f"{rule} {name} has no {content!r}")
    try:
        git = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return git.stdout.strip()


def run(options: argparse.Namespace) -> None:
    """Measure, write the report, and print its tables."""
    if options.steps < 2 or options.batch < 2 or options.threads < 1:
        raise BenchmarkError(
            "--steps and --batch must be at least 2 and --threads at least 1, "
            f"got {options.steps}, {options.batch} and {options.threads}"
        )
    commit = None if options.reference is None else check_checkout(options.reference)
    jets = draw_jets(options.jets, options.batch, options.steps)
    torch.set_num_threads(options.threads)
    notes = f"batch {options.batch}, {options.threads} thread(s) each, warm-up of {WARMUP} steps, ABBA"
    sections, out = {}, options.out / "against_reference.json"
    with threadpool_limits(options.threads):
        for size in "SB" if options.model == "both" else options.model:
            rows = partial(run_size, size, options, jets, commit)
            sections[size] = report.measure(f"jBOT-{size} against the released code", rows, notes=notes)
            report.save(out, sections, "# A training step against the released code")
            print(report.section_text(size, sections[size]), end="\n\n", flush=True)
    print(out.with_suffix(".md"), out, sep="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 2 and one line on stderr when the input is bad, 1 without parity."""
    parser = Parser(description="Time a training step against the authors' released code.")
    parser.add_argument(
        "--reference", type=Path, metavar="DIR", help="checkout of the released code (without: ours alone)"
    )
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="interpreter with TensorFlow (this)")
    parser.add_argument("--model", choices=("S", "B", "both"), default="both")
    parser.add_argument("--batch", type=int, default=1024, help="jets a step (1024)")
    parser.add_argument("--steps", type=int, default=PROTOCOL_STEPS, help="timed steps of each (15)")
    parser.add_argument("--threads", type=int, default=1, help="of each side (1)")
    parser.add_argument(
        "--jets",
        type=Path,
        default=HERE.parent / "tests/data/jets_sample.h5",
        metavar="FILE",
        help="jets in JetNet's layout",
    )
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder of the result")
    try:
        run(parser.parse_args(arguments))
    except NoParity as difference:
        print(f"no parity, so no figures: {difference}", file=sys.stderr)
        return 1
    except (BenchmarkError, DataError, OSError) as error:
        return bad_input(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())

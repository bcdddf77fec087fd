"""How fast is a pre-training step of ours, against one of the authors' released TensorFlow code?

    git clone https://github.com/hftsoi/jbot authors
    python benchmarks/against_reference.py --reference authors --python tensorflow-env/bin/python

Two worker processes, the released code and ours, live side by side with as many threads each; their steps alternate
ABBA, so both meet the same load of the machine. Each step is timed in its own process: wall seconds, and processor
seconds of all its threads. The result is a ratio, released / ours; absolute times are of this machine at this hour.

    model   the step on ready-made views and masks: two encoders, losses, gradient, optimizer, the teacher's average
    whole   the step as trained: the next batch, its augmentation (the released code's goes jet by jet), and the model

Before anything is timed, parity is checked, in the same processes: from the released encoder weights, on views and
masks that the released code made, each term of the loss must agree within 1e-4 over eight steps (docs/performance.md),
and our augmentation and masking must give the same from the same random numbers. If not, no figure is printed and the
exit code is 1; bad input is one line and exit code 2. The timed steps compute what was compared, the `reference`
variants, unless `--variant corrected` times the variants that our studies train with.

The interpreter of `--python` needs what the released code imports: tensorflow (its CPU build will do: the benchmark
is of the CPU), h5py, pandas, matplotlib, seaborn, scikit-learn. Cost: S about 2 minutes, B about 8, on one core each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from jbot.cli import Parser, bad_input
from jbot.data import DataError
from jbot.data.hdf5 import read

HERE = Path(__file__).resolve().parent
JETS = HERE.parent / "tests" / "data" / "jets_sample.h5"
OUT = Path("results/benchmarks/against_reference.json")

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

PARITY_STEPS = 8
MAX_LOSS_DIFFERENCE = 1e-4
MAX_VIEW_DIFFERENCE = 1e-5
WARMUP = 3
PROTOCOL_STEPS = 15
"""Least steps of each worker behind a figure that is reported."""

Sample = dict[str, list[float]]


class BenchmarkError(Exception):
    """The benchmark cannot run. Its message is one line: the rule and what was found."""


class NoParity(Exception):  # noqa: N818 - an outcome
    """The two codes do not compute the same. Its message is one line."""


def abba(steps: int) -> str:
    """Whose step is next, A or B, `steps` of each: A B B A A B B A ..., so a steady drift of the machine cancels."""
    return ("ABBA" * ((steps + 1) // 2))[: 2 * steps]


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """`n`, `median`, and the quartiles `q1` and `q3`, interpolated between values."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"n": len(values), "median": median, "q1": q1, "q3": q3}


def compare(reference: Sample, ours: Sample) -> dict[str, Any]:
    """Wall and CPU seconds of both, and their ratio reference / ours: of the medians, with quartiles over step pairs.

    Parameters
    ----------
    reference, ours : dict
        `wall` and `cpu`: seconds of each step, in the order run. The i-th steps of the two were neighbours.
    """
    result: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        a, b = quartiles(reference[clock]), quartiles(ours[clock])
        pairs = quartiles([x / y for x, y in zip(reference[clock], ours[clock], strict=True)])
        ratio = {"of_medians": a["median"] / b["median"], "q1": pairs["q1"], "q3": pairs["q3"]}
        result[clock] = {"reference": a, "ours": b, "ratio": ratio}
    return result | {"seconds": {"reference": reference, "ours": ours}}


class Worker:
    """A worker process: one answer to each request."""

    def __init__(self, name: str, command: Sequence[str | Path], threads: int, log: Path):
        self._name, self._log = name, log
        # Libraries below numpy have threads of their own. TensorFlow shall see no GPU: ours is timed on the CPU too.
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = os.environ | dict.fromkeys(variables, str(threads)) | {"CUDA_VISIBLE_DEVICES": "-1"}
        pipe = subprocess.PIPE
        try:
            with log.open("w") as stderr:
                self.process = subprocess.Popen(
                    [*map(str, command), "--threads", str(threads)],
                    stdin=pipe, stdout=pipe, stderr=stderr, text=True, env=environment,
                )  # fmt: skip
        except OSError as error:
            raise BenchmarkError(f"{command[0]} cannot be run: {error.strerror}") from None

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
            raise BenchmarkError(f"the worker of {self._name} ended: {said[-1] if said else 'it said nothing'}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers(options: argparse.Namespace, folder: Path) -> Iterator[tuple[Worker, Worker]]:
    """Both workers, alive at the same time."""
    reference = [options.python, HERE / "reference_worker.py", "--reference", options.reference.resolve()]
    with ExitStack() as stack:
        a = Worker("the released code", reference, options.threads, folder / "reference.log")
        stack.callback(a.close)
        b = Worker("our trainer", [sys.executable, HERE / "our_worker.py"], options.threads, folder / "ours.log")
        stack.callback(b.close)
        yield a, b


def check_parity(reference: Worker, ours: Worker, augmentation: dict[str, float]) -> dict[str, Any]:
    """Eight steps of each on the same views and masks, from the same weights.

    Raises
    ------
    NoParity
        When a view, a mask or a loss differs by more than rounding.
    """
    if not augmentation["views"] <= MAX_VIEW_DIFFERENCE:
        raise NoParity(
            f"augmented views must agree within {MAX_VIEW_DIFFERENCE}, they differ by {augmentation['views']:.2g}"
        )
    if augmentation["masks"]:
        raise NoParity(f"masks must be the same, they differ in {augmentation['masks']} views")
    reference.ask("train", part="model")
    ours.ask("train", part="parity")
    worst = dict.fromkeys(("loss", "cls_loss", "particle_loss", "koleo_loss"), 0.0)
    for step in range(1, PARITY_STEPS + 1):
        theirs, mine = reference.ask("step")["losses"], ours.ask("step")["losses"]
        for name, largest in worst.items():
            difference = abs(theirs[name] - mine[name])
            if not difference <= MAX_LOSS_DIFFERENCE:
                raise NoParity(
                    f"{name} must agree within {MAX_LOSS_DIFFERENCE}, in step {step} "
                    f"the released code has {theirs[name]:.6f} and ours {mine[name]:.6f}"
                )
            worst[name] = max(largest, difference)
    return {"steps": PARITY_STEPS, "largest_difference": worst, "augmentation": augmentation}


def time_steps(reference: Worker, ours: Worker, steps: int) -> tuple[Sample, Sample]:
    """Seconds of each step, alternated ABBA, after warm-up."""
    samples: dict[str, Sample] = {name: {"wall": [], "cpu": []} for name in "AB"}
    order = abba(WARMUP) + abba(steps)
    for i, name in enumerate(order):
        answer = (reference if name == "A" else ours).ask("step")
        if i >= 2 * WARMUP:
            for clock in ("wall", "cpu"):
                samples[name][clock].append(answer[clock])
    return samples["A"], samples["B"]


def run_size(size: str, options: argparse.Namespace, jets: np.ndarray) -> dict[str, Any]:
    """Parity and both parts of one model size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "jets.npy", jets)
        with workers(options, folder) as (reference, ours):
            theirs = reference.ask("prepare", exchange=name, sizes=SIZES[size], batch=options.batch, seed=0)
            mine = ours.ask("prepare", size=size, variant=options.variant, batch=options.batch, exchange=name)
            parity = check_parity(reference, ours, mine.pop("augmentation"))
            parts = {}
            for part in ("model", "whole"):
                if part == "whole":
                    reference.ask("train", part=part)
                ours.ask("train", part=part)
                before = os.getloadavg()[0]
                timed = compare(*time_steps(reference, ours, options.steps))
                parts[part] = timed | {"load": {"before": before, "after": os.getloadavg()[0]}}
    return {"parity": parity, "parts": parts, "reference": theirs, "ours": mine}


def draw_jets(path: Path, batch: int, steps: int) -> np.ndarray:
    """Enough real jets (jet, 30, 4) for every step, drawn with replacement when the file has too few."""
    particles = read(path).particles
    count = batch * (PARITY_STEPS + WARMUP + steps)
    generator = np.random.default_rng(0)
    rounds = -(-count // len(particles))
    order = np.concatenate([generator.permutation(len(particles)) for _ in range(rounds)])
    return np.asarray(particles[order[:count]])


def check_checkout(folder: Path) -> str | None:
    """Commit of the checkout of the released code (None when git does not know it).

    Raises
    ------
    BenchmarkError
        When the folder does not hold the released code.
    """
    for name, content in RELEASED_FILES.items():
        path = folder / name
        if not path.is_file():
            found = f"{name} is missing"
        elif content not in path.read_text(errors="replace"):
            found = f"{name} has no {content!r}"
        else:
            continue
        raise BenchmarkError(
            f"--reference must be a checkout of the released code, https://github.com/hftsoi/jbot: {folder}: {found}"
        )
    try:
        git = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return git.stdout.strip()


def table(report: dict[str, Any]) -> str:
    """The report as text: a row for each size, part and clock, and what the figures rest on."""
    lines = heading(report)
    lines += [
        "",
        f"{'size part   clock':19} {'released, s (quartiles)':32} {'ours, s (quartiles)':28} released / ours (pairs)",
    ]
    lines += [row for size, result in report["sizes"].items() for row in rows(size, result["parts"])]
    for size, result in report["sizes"].items():
        lines += ["", *(f"{size}: {line}" for line in footing(result))]
    if report["settings"]["steps"] < PROTOCOL_STEPS:
        lines += ["", f"n is below {PROTOCOL_STEPS}: not a figure to report"]
    return "\n".join(lines) + "\n"


def heading(report: dict[str, Any]) -> list[str]:
    """What was run, where."""
    settings, result = report["settings"], next(iter(report["sizes"].values()))
    reference, ours = result["reference"], result["ours"]
    theirs, mine = (side["libraries"] for side in (reference, ours))
    return [
        f"released code (commit {(report['reference_commit'] or 'unknown')[:10]}) "
        f"against ours (commit {(ours['git_commit'] or 'unknown')[:10]}, {settings['variant']} variants)",
        "{cpu}, {cores} cores".format(**ours["hardware"]),
        "released: tensorflow {tensorflow}, keras {keras}, python {python}; ".format(**theirs)
        + "threads: intra-op {intra_op}, inter-op {inter_op}".format(**reference["threads"]),
        "ours: torch {torch}, python {python}; threads: ".format(**mine) + str(ours["threads"]),
        f"batch {settings['batch']}, n = {settings['steps']} steps of each after {WARMUP} of warm-up, alternated ABBA",
    ]


def rows(size: str, parts: dict[str, Any]) -> Iterator[str]:
    """Rows of the table of one size."""
    for part, timed in parts.items():
        for clock in ("wall", "cpu"):
            a, b, ratio = (timed[clock][name] for name in ("reference", "ours", "ratio"))
            spreads = [f"{x['median']:.3f} ({x['q1']:.3f} to {x['q3']:.3f})" for x in (a, b)]
            ratios = f"{ratio['of_medians']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"
            yield f"{size:4} {part:6} {clock:7} {spreads[0]:32} {spreads[1]:28} {ratios}"


def footing(result: dict[str, Any]) -> list[str]:
    """What the figures of one size rest on."""
    parity, parts = result["parity"], result["parts"]
    loads = ("{part} {before:.1f} to {after:.1f}".format(part=part, **timed["load"]) for part, timed in parts.items())
    return [
        f"parity: losses of {parity['steps']} steps within {max(parity['largest_difference'].values()):.1e}, "
        "views within {views:.1e}, masks the same ({masked_particles} particles)".format(**parity["augmentation"]),
        f"load of the machine (1 minute mean, these workers among it): {'; '.join(loads)}",
    ]


def run(options: argparse.Namespace) -> str:
    """Measure, write the report, and return its table."""
    if options.steps < 2 or options.batch < 2 or options.threads < 1:
        raise BenchmarkError(
            "--steps and --batch must be at least 2 and --threads at least 1, "
            f"got {options.steps}, {options.batch} and {options.threads}"
        )
    if options.out.suffix != ".json":
        raise BenchmarkError(f"--out must end in .json (a table goes beside it, as .txt), got {options.out}")
    commit = check_checkout(options.reference)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    jets = draw_jets(options.jets, options.batch, options.steps)
    sizes = {size: run_size(size, options, jets) for size in ("SB" if options.model == "both" else options.model)}
    settings = {name: getattr(options, name) for name in ("batch", "steps", "threads", "variant")}
    settings |= {"jets": options.jets.name, "warmup": WARMUP}
    report = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "reference_commit": commit,
        "sizes": sizes,
    }
    text = table(report)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".txt").write_text(text)
    return f"{text}\n{options.out} and {options.out.with_suffix('.txt').name} written"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 2 and one line on stderr when the input is bad, 1 without parity."""
    parser = Parser(description="Time a training step against the authors' released code.")
    parser.add_argument("--reference", type=Path, required=True, metavar="DIR", help="checkout of the released code")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="interpreter with TensorFlow (this)")
    parser.add_argument("--model", choices=("S", "B", "both"), default="both")
    parser.add_argument("--batch", type=int, default=1024, help="jets a step (1024)")
    parser.add_argument("--steps", type=int, default=PROTOCOL_STEPS, help="timed steps of each (15)")
    parser.add_argument("--threads", type=int, default=1, help="of each worker (1)")
    parser.add_argument("--variant", choices=("reference", "corrected"), default="reference", help="what ours computes")
    parser.add_argument("--jets", type=Path, default=JETS, metavar="FILE", help="jets in JetNet's layout")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE.json")
    try:
        print(run(parser.parse_args(arguments)))
    except NoParity as difference:
        print(f"no parity, so no figures: {difference}", file=sys.stderr)
        return 1
    except (BenchmarkError, DataError, OSError) as error:
        return bad_input(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Hold a sample of jets against the published figures of JetNet, and say where it departs.

    python -m jbot.data.validate FILE [--against FILE] [--fpnd-jets 3000]

Each figure has a tolerance: four standard errors of this sample, plus 1.5 times what the recipe is known to miss, plus
the rounding of the published figure. FPND compares whole jets in a classifier's eyes (see `fpnd`); W1 distances to a
second sample are compared with those between random halves of both. Exit code 0: passes, 1: departs, 2: bad input.

The published figures are those of JetNet (30 particles, 1 TeV; arXiv:2106.11535). What the recipe is known to miss
comes from 22,000 jets of each class made with the recipe of `jbot.data.pythia` by independent code: W and Z jets have
pT 0.5% low, and the tails of the W mass are a little wide.
"""

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from jbot.cli import Parser, docstring, program
from jbot.data import hdf5
from jbot.data.jets import CLASSES, N_PARTICLES, DataError, JetData, is_number

SIGMAS = 4.0
"""Standard errors allowed: among 40 independent figures one departs by chance once in 400 samples."""
GAP_SCALE = 1.5
"""Allowance on the recipe's known gaps, which are themselves measured on a finite sample (assumed)."""
BELOW_30_GAP = 0.01
"""The share of jets below 30 particles is known to two digits."""
MAX_BEYOND = 1e-3
"""Share of jets allowed beyond the extremes of the real jets (assumed)."""
FPND_LIMIT = 0.1
"""For an infinite sample: the recipe gives 0.01 to 0.03, no multiparton interactions 0.23, other classes 1 to 60."""
FPND_NOISE = 300.0
"""The extrapolated FPND of n jets scatters by about 300 / n (measured on g jets in samples of 300 and 1,000)."""
W1_SPLITS = 20
W1_MAX_JETS = 10_000
W1_SIGMAS = 5.0
W1_FEATURES = ("eta_rel", "phi_rel", "pt_rel", "mass / pT")


# --- published figures -----------------------------------------------------------------------------------------------


FIGURES = (
    "pT mean [GeV]",
    "pT sd [GeV]",
    "mass mean [GeV]",
    "mass sd [GeV]",
    "particles mean",  # valid ones per jet, at most 30
    "eta_rel sd",  # over valid particles
    "phi_rel sd [rad]",
)
"""What is known of each class; the order of the tables below."""

REAL = {
    "q": (1019, 91, 58.9, 35.3, 27.40, 0.0925, 0.0904),
    "g": (1133, 197, 95.9, 47.8, 29.89, 0.0776, 0.0764),
    "w": (1041, 67, 79.7, 11.6, 28.88, 0.0779, 0.0774),
    "z": (1041, 65, 89.1, 13.9, 29.03, 0.0838, 0.0835),
    "t": (995, 90, 145.4, 36.8, 29.94, 0.1161, 0.1170),
}
"""The real jets, about 177,000 of each class."""

KNOWN_GAP = {
    "q": (2, 0, 1.3, 0.5, 0.15, 0.0013, 0.0004),
    "g": (8, 2, 0.9, 0.2, 0.01, 0.0002, 0.0008),
    "w": (4, 1, 0.3, 1.5, 0.12, 0.0021, 0.0021),
    "z": (7, 1, 1.0, 0.5, 0.21, 0.0008, 0.0010),
    "t": (1, 1, 1.3, 0.3, 0.01, 0.0007, 0.0006),
}
"""|recipe - real| for each figure."""

ROUNDING = (0.5, 0.5, 0.05, 0.05, 0.005, 0.0005, 0.0005)
"""Half the last digit published; for the spreads, 0.5% (assumed)."""

BELOW_30 = {"q": 0.35, "g": 0.02, "w": 0.20, "z": 0.15, "t": 0.01}
"""Share of jets with fewer than 30 particles: the recipe's, not published for the real jets."""

REAL_MIN_N = {"q": 6, "g": 7, "w": 6, "z": 5, "t": 11}
"""Fewest particles of any real jet."""

REAL_MAX_PT_REL = 0.8935
"""Largest pt_rel of any real particle."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One figure of one class beside what it should be."""

    name: str
    """Class."""
    figure: str
    ours: float
    expected: float
    tolerance: float
    one_sided: bool = False
    """Only values above `expected` count against the sample."""

    @property
    def passes(self) -> bool:
        """Whether ours lies within the tolerance; never for a value that is not a number."""
        deviation = self.ours - self.expected
        return deviation <= self.tolerance and (self.one_sided or deviation >= -self.tolerance)


# --- figures of a sample ------------------------------------------------------------------------------------------


def moments(values: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean and standard deviation of values (n,), each with its standard error.

    The standard deviation's error is sqrt((m4 - s^4) / (4 n s^2)), m4 the fourth central moment.
    """
    values = values.astype(np.float64)
    n, mean, sd = len(values), values.mean(), values.std()
    m4 = np.mean((values - mean) ** 4)
    sd_error = np.sqrt((m4 - sd**4) / (4 * n)) / sd if sd > 0 else 0.0
    return (float(mean), float(sd / np.sqrt(n))), (float(sd), float(sd_error))


def spread(coordinate: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    """Standard deviation of a coordinate (jet, 30) over valid particles (jet, 30), and its standard error.

    Particles of a jet are not independent: with d the sums of (x - mean)^2 - sd^2 in each jet, the error is
    sqrt(sum d^2) / (2 sd particles).
    """
    coordinate, valid = coordinate.astype(np.float64), valid > 0
    mean, sd = coordinate[valid].mean(), coordinate[valid].std()
    excess = np.where(valid, (coordinate - mean) ** 2 - sd**2, 0.0).sum(axis=1)
    return float(sd), float(np.sqrt(np.sum(excess**2)) / (2 * sd * valid.sum())) if sd > 0 else 0.0


def figures(particles: np.ndarray, jets: np.ndarray) -> list[tuple[float, float]]:
    """Values and standard errors of `FIGURES` for one class's jets (jet, 30, 4), (jet, 4)."""
    valid = particles[..., 3]
    spreads = (spread(particles[..., coordinate], valid) for coordinate in (0, 1))
    return [*moments(jets[:, 0]), *moments(jets[:, 2]), moments(valid.sum(axis=1))[0], *spreads]


# --- checks -------------------------------------------------------------------------------------------------------


def check_figures(name: str, particles: np.ndarray, jets: np.ndarray) -> Iterator[Check]:
    """Moments, multiplicities and extremes of one class beside the published ones."""
    published = zip(FIGURES, figures(particles, jets), REAL[name], KNOWN_GAP[name], ROUNDING, strict=True)
    for figure, (ours, error), expected, gap, rounding in published:
        tolerance = SIGMAS * error + GAP_SCALE * gap + rounding
        yield Check(name=name, figure=figure, ours=ours, expected=expected, tolerance=tolerance)
    n_valid = particles[..., 3].sum(axis=1)
    share = BELOW_30[name]
    yield Check(
        name=name,
        figure="jets below 30 particles (recipe)",
        ours=float(np.mean(n_valid < N_PARTICLES)),
        expected=share,
        tolerance=SIGMAS * float(np.sqrt(share * (1 - share) / len(jets))) + BELOW_30_GAP,
    )
    beyond = {
        f"jets with n < {REAL_MIN_N[name]}, the real minimum": n_valid < REAL_MIN_N[name],
        f"jets with pt_rel > {REAL_MAX_PT_REL}, the real maximum": particles[..., 2].max(axis=1) > REAL_MAX_PT_REL,
    }
    tolerance = MAX_BEYOND + SIGMAS * float(np.sqrt(MAX_BEYOND / len(jets)))
    for figure, jets_beyond in beyond.items():
        value = float(np.mean(jets_beyond))
        yield Check(name=name, figure=figure, ours=value, expected=0.0, tolerance=tolerance, one_sided=True)


def check_fpnd(name: str, particles: np.ndarray) -> Check:
    """FPND of one class against the real jets."""
    from jbot.data.fpnd import fpnd  # torch is slow to import and the table does without

    distance = fpnd(particles, name)
    return Check(
        name=name,
        figure=f"FPND, {distance.n_jets} jets (as measured {distance.value:.3f}), extrapolated",
        ours=distance.extrapolated,
        expected=0.0,
        tolerance=FPND_LIMIT + SIGMAS * FPND_NOISE / distance.n_jets,
        one_sided=True,
    )


def check_w1(name: str, ours: np.ndarray, others: np.ndarray) -> Iterator[Check]:
    """W1 distances between two samples (jet, 30, 4) of a class, beside those between random halves of both.

    At most 10,000 jets of each are used, as many of one as of the other. A distance departs when it lies more than
    five standard deviations above the mean of 20 random splits of the pooled jets.
    """
    try:
        from jetnet.evaluation import gen_metrics
    except ImportError:
        raise DataError("W1 distances need the jetnet package: pip install 'jbot-studies[jetnet]'") from None
    gen_metrics.rng = np.random.default_rng(0)  # jetnet draws jets from an unseeded generator of its own

    def w1(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        draws = {"num_eval_samples": len(first), "num_batches": 1}
        masks = {"mask1": first[..., 3], "mask2": second[..., 3]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it recommends 50,000 jets each time
            features, _ = gen_metrics.w1p(first[..., :3], second[..., :3], **masks, **draws)
            mass, _ = gen_metrics.w1m(first[..., :3], second[..., :3], **draws)
        return np.append(features, mass)

    n = min(len(ours), len(others), W1_MAX_JETS)
    pooled = np.concatenate([ours[:n], others[:n]])
    distance = w1(pooled[:n], pooled[n:])
    rng = np.random.default_rng(0)
    orders = [rng.permutation(2 * n) for _ in range(W1_SPLITS)]
    split = np.array([w1(pooled[order[:n]], pooled[order[n:]]) for order in orders])
    for feature, value, random in zip(W1_FEATURES, distance, split.T, strict=True):
        yield Check(
            name=name,
            figure=f"W1 {feature}, {n} jets (expected: random split)",
            ours=float(value),
            expected=float(random.mean()),
            tolerance=W1_SIGMAS * float(random.std(ddof=1)),
            one_sided=True,
        )


def validate(data: JetData, against: JetData | None = None, fpnd_jets: int = 3000) -> list[Check]:
    """All checks of a sample.

    Parameters
    ----------
    data : JetData
        Jets of 1 TeV, any classes.
    against : JetData, optional
        A second sample, for W1 distances; classes it lacks are an error.
    fpnd_jets : int
        Jets per class for FPND, 12 ms each on one core; 0 leaves it out.

    Raises
    ------
    DataError
        For jets of another pT, for which nothing is published, and for options that cannot be met.
    """
    jet_pt = data.metadata.get("jet_pt_gev", "1000")
    if not is_number(jet_pt, 1000):
        raise DataError(f"JetNet's figures are published for jets of 1000 GeV, these are of {jet_pt} GeV")
    present = [name for label, name in enumerate(CLASSES) if label in data.labels]
    if against and (missing := [name for name in present if CLASSES.index(name) not in against.labels]):
        raise DataError(f"the second sample lacks class {', '.join(missing)}")
    checks: list[Check] = []
    for name in present:
        rows = data.labels == CLASSES.index(name)
        particles = data.particles[rows]
        checks += check_figures(name, particles, data.jets[rows])
        if name in "gqt" and fpnd_jets:
            checks.append(check_fpnd(name, particles[:fpnd_jets]))
        if against:
            checks += check_w1(name, particles, against.particles[against.labels == CLASSES.index(name)])
    return checks


# --- command line -------------------------------------------------------------------------------------------------


def report(data: JetData, checks: list[Check], console: Console) -> None:
    """Print every check, and one line that sums up."""
    numeric = [Column(name, justify="right") for name in ("ours", "published", "deviation", "tolerance")]
    title = f"{data.source}: {len(data.labels)} jets beside JetNet, arXiv:2106.11535"
    table = Table("class", "figure", *numeric, "verdict", title=title)
    for check in checks:
        numbers = (check.ours, check.expected, check.ours - check.expected, check.tolerance)
        verdict = "ok" if check.passes else "[bold red]departs"
        table.add_row(check.name, check.figure, *(f"{number:.4g}" for number in numbers), verdict)
    console.print(table)
    departs = [f"{check.name} {check.figure}" for check in checks if not check.passes]
    if departs:
        console.print(f"departs in {len(departs)} of {len(checks)} figures: {'; '.join(departs)}")
    else:
        console.print(f"passes: all {len(checks)} figures lie within their tolerance")


@program
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0 passes, 1 departs, 2 bad input."""
    parser = Parser(prog="python -m jbot.data.validate", description=docstring(__file__).splitlines()[0])
    parser.add_argument("file", type=Path, help="a file in JetNet's layout, or a folder holding {q,g,w,z,t}.hdf5")
    parser.add_argument("--against", type=Path, help="second sample, for W1 distances")
    parser.add_argument("--fpnd-jets", type=int, default=3000, help="jets per class for FPND, at most 50000; 0: none")
    options = parser.parse_args(arguments)
    if options.fpnd_jets < 0:
        raise DataError(f"--fpnd-jets must be >= 0, got {options.fpnd_jets}")
    data = hdf5.read(options.file)
    against = hdf5.read(options.against) if options.against else None
    checks = validate(data, against, options.fpnd_jets)
    report(data, checks, Console())
    return 0 if all(check.passes for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())

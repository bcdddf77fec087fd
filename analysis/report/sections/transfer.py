"""Encoders evaluated at jet energies other than the one they were pre-trained at: who serves whom, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.plots import scores as plots
from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section, Table
from analysis.stats import paired
from analysis.stats.paired import MeanInterval
from analysis.verdicts import number_format as fmt
from jbot.config import from_dict, override
from jbot.evaluation.metrics_registry import find_metric, metric_key

METRICS = ("knn_accuracy", "linear_accuracy", "knn_auc", "linear_auc")
"""What records have at other energies (jbot.evaluation.evaluator)."""
HOW_TO_READ = (
    "Rows: the energy of pre-training. Columns: the energy of the test jets. The encoder is frozen; probes are "
    "refitted on labeled jets of the test energy, or, in the tables of shifted probes, fitted at the encoder's own "
    "energy and applied as they are. Errors are those of the mean over seeds. Compare within a column: columns "
    "differ in how hard their jets are to classify.",
    "Generated jets keep the cone in step with the energy, R = 0.4 × 1 TeV / pT, so that W, Z and t are as "
    "contained as at 1 TeV. What changes is the angular scale, and how much of the underlying event falls into the "
    "cone. With one radius for all energies, heavy jets below 1 TeV would lose decay products, and a loss seen "
    "here could not be separated from that.",
)

EACH_ALONE = (
    "Each interval is of its own difference, and none is corrected for the others: of simulated studies in which no "
    "encoder was better, one of six 95% intervals left out zero in 19% (7 seeds) and 26% (3 seeds). The verdicts are "
    "those of the paired differences."
)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """An arm whose encoders are evaluated at several energies."""

    arm: str
    own: float
    """Jet pT [GeV] of pre-training."""
    evaluated: tuple[float, ...]
    """Jet pTs [GeV] at which it is evaluated, its own among them."""
    records: pd.DataFrame
    """Its complete trials by seed."""
    compared: pd.Index
    """Seeds at which encoders are compared: those that the verdicts rest on."""
    alpha: float
    """1 minus the confidence of intervals."""

    def values(self, metric: str, pt: float, shifted: bool = False, untrained: bool = False) -> pd.Series:
        """A metric of its seeds at a jet pT; empty where it was not measured."""
        split = "test" if pt == self.own else f"{'shifted' if shifted else 'test'}_{pt:g}"
        column = metric_key(metric, split, "untrained" if untrained else "")
        return self.records[column].dropna() if column in self.records else pd.Series(dtype=float)


def section(evidence: Evidence) -> Section | None:
    """The matrix of pre-training energy against test energy; None where no encoder is evaluated at another energy."""
    encoders = _encoders(evidence)
    # The plan's metric where other energies have it, else the first that they have.
    name = find_metric(evidence.plan.metric).name
    metric = name if name in METRICS else METRICS[0]
    pts = sorted({pt for encoder in encoders for pt in encoder.evaluated})
    if not any(
        len(encoder.values(metric, pt)) for encoder in encoders for pt in encoder.evaluated if pt != encoder.own
    ):
        return None
    shown = list(dict.fromkeys([metric, *METRICS[:2]]))
    said = list(_widest_steps(encoders, metric))
    return Section(
        title="Transfer between jet energies",
        sentences=[*HOW_TO_READ, *said],
        answer=said,
        tables=[
            *(_matrix(encoders, one, pts) for one in shown),
            *(_matrix(encoders, one, pts, shifted=True) for one in shown),
            *_costs(encoders, metric, pts, evidence.level),
        ],
        notes=[EACH_ALONE],
        figures=[_picture(encoders, metric, pts)],
    )


def _encoders(evidence: Evidence) -> list[Encoder]:
    plan, trials = evidence.plan, evidence.trials[~evidence.late]
    base, found = from_dict(plan.base), []
    for arm, changes in plan.arms.items():
        config = override(base, changes)
        complete = trials[(trials["arm"] == arm) & (trials["state"] == "complete")].set_index("seed")
        own = config.data.jet_pt
        evaluated = tuple(sorted({own, *config.probe.jet_pts}))
        if len(evaluated) > 1:
            found.append(
                Encoder(
                    arm=arm,
                    own=own,
                    evaluated=evaluated,
                    records=complete,
                    compared=evidence.judged,
                    alpha=evidence.alpha,
                )
            )
    return found


def _widest_steps(encoders: Sequence[Encoder], metric: str) -> Iterator[str]:
    """Each encoder at the energy farthest from its own, in words."""
    for encoder in encoders:
        own = encoder.own
        far = max(encoder.evaluated, key=lambda pt: abs(pt - own) / min(pt, own))
        home = next((other for other in encoders if other.own == far), encoder)
        gap = _paired(encoder, home, metric, far)
        if home is not encoder and gap.n > 1:
            yield (
                f"Pre-trained at {own:g} GeV, evaluated at {far:g} GeV: {find_metric(f'test/{metric}').label} "
                f"{_cell(paired.mean_interval(encoder.values(metric, far)))}, which is "
                f"{fmt.with_error(gap.mean, gap.standard_error, sign=True)} against the encoder pre-trained at "
                f"{far:g} GeV ({fmt.level(encoder.alpha)} interval {fmt.interval_cell(gap)}, "
                f"n = {fmt.count(gap.n, 'seed')})."
            )


def _matrix(encoders: Sequence[Encoder], metric: str, pts: Sequence[float], shifted: bool = False) -> Table:
    """Mean and standard error over seeds; an encoder's own energy is marked."""
    rows = []
    for encoder in encoders:
        means = {pt: paired.mean_interval(encoder.values(metric, pt, shifted)) for pt in pts}
        cells = [_cell(mean) + " (own)" * (pt == encoder.own) for pt, mean in means.items()]
        rows.append([encoder.arm, f"{encoder.own:g}", str(max(mean.n for mean in means.values())), *cells])
    if not shifted:
        baselines = [paired.mean_interval(_untrained(encoders, metric, pt)) for pt in pts]
        rows.append(["untrained encoder", "", str(max(cell.n for cell in baselines)), *map(_cell, baselines)])
    how = "probes of the encoder's own energy" if shifted else "probes refitted"
    head = ["arm", "pre-trained at [GeV]", "n", *(f"on {pt:g} GeV" for pt in pts)]
    return Table(label=f"{find_metric(f'test/{metric}').label}, {how}", head=head, rows=rows)


def _costs(encoders: Sequence[Encoder], metric: str, pts: Sequence[float], level: str) -> Iterator[Table]:
    """Paired by seed: each encoder less the one pre-trained at the energy of the test jets."""
    pairs = [(pt, home, encoder) for pt in pts for home in encoders if home.own == pt for encoder in encoders]
    rows = []
    for pt, home, encoder in pairs:
        gap = _paired(encoder, home, metric, pt)
        if encoder is not home and gap.n:
            far = fmt.interval(gap.low, gap.high, gap.standard_error)
            rows.append([f"{encoder.arm} − {home.arm}", f"{pt:g}", str(gap.n), _cell(gap, sign=True), far])
    if rows:
        words = find_metric(f"test/{metric}").label
        label = f"What transfer costs: {words} less the in-domain encoder's, paired by seed"
        yield Table(label=label, head=["difference", "on [GeV]", "n", "mean", level], rows=rows)


def _paired(one: Encoder, other: Encoder, metric: str, pt: float) -> MeanInterval:
    gaps = (one.values(metric, pt) - other.values(metric, pt)).dropna()
    return paired.mean_interval(gaps[gaps.index.isin(one.compared)].to_numpy(dtype=float), 1 - one.alpha)


def _untrained(encoders: Sequence[Encoder], metric: str, pt: float) -> pd.Series:
    """The untrained encoder is that of the seed, whatever it would have been trained on: one value per seed."""
    found = [encoder.values(metric, pt, untrained=True) for encoder in encoders]
    return pd.concat(found).groupby(level=0).mean() if any(map(len, found)) else pd.Series(dtype=float)


def _cell(mean: MeanInterval, sign: bool = False) -> str:
    if not mean.n:
        return fmt.MISSING
    return fmt.with_error(mean.mean, mean.standard_error, sign) if mean.n > 1 else fmt.number(mean.mean)


def _picture(encoders: Sequence[Encoder], metric: str, pts: Sequence[float]) -> Picture:
    lines, said = [], []
    for encoder in encoders:
        refitted = [encoder.values(metric, pt).to_numpy(dtype=float) for pt in pts]
        shifted = [encoder.values(metric, pt, shifted=True).to_numpy(dtype=float) for pt in pts]
        lines.append(
            plots.EncoderScores(arm=encoder.arm, own=pts.index(encoder.own), refitted=refitted, shifted=shifted)
        )
        means = [f"{_cell(paired.mean_interval(one))} on {pt:g} GeV" for one, pt in zip(refitted, pts, strict=True)]
        said.append(f"{encoder.arm}: {', '.join(means)}")
    untrained = [_untrained(encoders, metric, pt).to_numpy(dtype=float) for pt in pts]
    words = find_metric(f"test/{metric}").label
    return Picture(
        name="transfer",
        figure=plots.scores_by_energy(lines, untrained, pts, words),
        alt=f"{words} against the energy of the test jets. {'; '.join(said)}.",
        caption="Full line: probes refitted at the energy of the test jets; dashed: probes of the encoder's own "
        "energy. Ring: in-domain. Grey: the untrained encoder. Bars: standard error over seeds.",
    )

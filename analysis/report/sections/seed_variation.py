"""A study of one arm: how far seeds alone move every metric, what so many seeds can detect, and what training brings.

What all other studies are planned by: the spread over seeds, and the correlation of paired arms, say how many seeds a
question costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.plots import curves as plots
from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section, Table, capitalised, picture
from analysis.report.sections.arms import jet_error
from analysis.report.sections.curves import comparable
from analysis.stats import Floats, paired, power
from analysis.stats.paired import MeanInterval
from analysis.verdicts import convergence, exploratory, tables
from analysis.verdicts import number_format as fmt
from analysis.verdicts.exploratory import Estimate
from analysis.verdicts.number_format import listed, mean_cell
from jbot.evaluation.metrics_registry import BASELINES, find_metric, metric_key
from jbot.store.plan import Plan, StudyRecords

SEEDS = (6, 8, 10, 20)
"""Sizes of a study for which the smallest difference that it would find is given; fewer than six find none."""
CORRELATIONS = (0.0, 0.5, 0.9, 0.99)
"""Correlations of two arms over seeds. Independent arms have 0; arms that share weights, order and noise had up to
0.997 in short runs."""
MILESTONES = (0, 1, 10, 50)
"""Epochs that are shown, beside the last one; those without a point are left out."""
CLUSTERING = ("knn_accuracy", "linear_accuracy", "kmeans_ami", "silhouette", "nc1", "effective_rank")
"""Metrics of clusters in the embedding."""
MAX_PANELS = 6


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One clustering metric before and after training, at the same seeds."""

    metric: str
    values: Floats
    """(seed, before and after)"""
    change: Estimate
    """After minus before."""
    outcome: str
    """`better`, `worse`, `larger`, `smaller`, or `not shown`."""


def section(evidence: Evidence) -> Section | None:
    """Spread over seeds, and emergence; None when the study has arms to compare, or no complete trial."""
    plan = evidence.plan
    values = metric_values(evidence.trials, plan)
    if len(plan.arms) != 1 or not values:
        return None
    gains, points = trained_gains(evidence.trials, plan), milestones(evidence.curves, plan)
    by_seeds, gained = list(_seed_sentences(plan, values, evidence.study)), list(_gain_sentences(plan, gains))
    return Section(
        title="Seeds and emergence",
        answer=[*by_seeds[:1], *gained],
        sentences=[*by_seeds, *gained, *_milestone_sentence(points)],
        tables=[*_seed_tables(values, evidence), *_gain_tables(gains, evidence), *_milestone_tables(points)],
        figures=[*_milestone_figures(points), *_gain_figures(gains)],
    )


def _of_only_arm(trials: pd.DataFrame, plan: Plan, metric: str) -> pd.Series:
    return tables.scores_and_states(trials, plan, metric)[0].iloc[:, 0]


def metric_values(trials: pd.DataFrame, plan: Plan) -> dict[str, Floats]:
    """Metric -> its values over the seeds of the only arm that have it; the primary metric first."""
    metrics = (plan.metric, *tables.other_metrics(trials, plan))
    found = {metric: _of_only_arm(trials, plan, metric).dropna().to_numpy(dtype=float) for metric in metrics}
    return {metric: values for metric, values in found.items() if len(values)}


def detectable(sd: float, n: int, correlation: float = 0.0) -> float:
    """The smallest difference of two arms that `n` paired seeds find with 80% power at p < 0.05, as a single contrast.

    Both arms vary by `sd` over seeds: their difference has the standard deviation sd * sqrt(2 (1 - correlation)).
    """
    return power.detectable_effect(n) * sd * math.sqrt(2 * (1 - correlation))


def _finds(sd: float, correlation: float = 0.0) -> list[str]:
    """What studies of SEEDS find, as cells."""
    return [fmt.compact(detectable(sd, n, correlation), 2) for n in SEEDS]


def milestones(curves: pd.DataFrame, plan: Plan) -> dict[str, pd.DataFrame]:
    """Curves of complete trials at the milestones and the end of the longest training: metric -> (seed, epoch).

    Metrics and epochs without any value are left out; the curve of the primary metric comes first.
    """
    complete = curves[curves["state"] == "complete"] if len(curves) else curves
    if complete.empty:
        return {}
    at = complete[complete["epoch"].isin({*MILESTONES, complete["epoch"].max()})]
    first = convergence.validation_metric(plan, curves)
    found = {
        metric: at.pivot_table(index="seed", columns="epoch", values=metric, aggfunc="last").astype(float)
        for metric in sorted(comparable(curves), key=lambda name: name != first)
    }
    return {metric: table for metric, table in found.items() if not table.empty}


def trained_gains(trials: pd.DataFrame, plan: Plan) -> list[Gain]:
    """Every clustering metric, trained minus untrained at the seeds that have both."""
    pairs = {}
    for name in CLUSTERING:
        keys = metric_key(name, baseline="untrained"), metric_key(name)
        both = pd.concat([_of_only_arm(trials, plan, key) for key in keys], axis=1).dropna().to_numpy(dtype=float)
        if len(both):
            pairs[name] = both
    gains = []
    for one in exploratory.estimates([(name, both[:, 1] - both[:, 0]) for name, both in pairs.items()], plan.alpha):
        higher = find_metric(one.name).higher_is_better
        words = {1: "larger", -1: "smaller"} if higher is None else {1: "better", -1: "worse"}
        outcome = words.get(-one.shown if higher is False else one.shown, "not shown")
        gains.append(Gain(metric=metric_key(one.name), values=pairs[one.name], change=one, outcome=outcome))
    return gains


def _deviation(values: MeanInterval, alpha: float) -> str:
    ends = paired.deviation_interval(values.sd, values.n, 1 - alpha)
    return " to ".join(fmt.compact(end, 2) for end in ends) if values.n > 1 else fmt.MISSING


def _seed_sentences(plan: Plan, values: dict[str, Floats], study: StudyRecords) -> Iterator[str]:
    metric = next(iter(values))
    spread, words = paired.mean_interval(values[metric]), find_metric(metric).full_label
    if spread.n < 2:
        yield f"One seed has ended: {words} {fmt.number(spread.mean)}. How far seeds move it takes two."
        return
    error, beside = jet_error(study, metric), ""
    if error > 0:
        beside = (
            f" The error of one trial from its test jets is {fmt.compact(error, 2)}: "
            f"seeds move it {fmt.compact(spread.sd / error, 2)} times as far."
        )
    yield (
        f"Seeds alone move {words} by {fmt.compact(spread.sd, 2)} (standard deviation over {spread.n} seeds, "
        f"{fmt.level(plan.alpha)} interval {_deviation(spread, plan.alpha)}) around "
        f"{mean_cell(spread)}.{beside}"
    )
    few, *_, many = _finds(spread.sd)
    yield (
        f"Two arms without any correlation over seeds must differ by {few} to be told apart by {SEEDS[0]} seeds, and "
        f"by {many} by {SEEDS[-1]} (80% power, one contrast). Pairing is what makes a study affordable: at a "
        f"correlation of {CORRELATIONS[-1]:g}, {SEEDS[1]} seeds find {_finds(spread.sd, CORRELATIONS[-1])[1]}."
    )


def _gain_sentences(plan: Plan, gains: Sequence[Gain]) -> Iterator[str]:
    directed = [gain for gain in gains if find_metric(gain.metric).higher_is_better is not None]
    if not directed:
        return
    n = max(gain.change.interval.n for gain in gains)
    parts = []
    for outcome, words in (("better", "better in"), ("worse", "worse in"), ("not shown", "not shown for")):
        names = [find_metric(gain.metric).label for gain in directed if gain.outcome == outcome]
        parts += [f"{words} {listed(names)}"] * bool(names)
    verdict = {"better": "Clustering emerges. ", "worse": "Training does not make clusters. "}
    outcomes = {gain.outcome for gain in directed}
    start = verdict.get(min(outcomes), "") if len(outcomes) == 1 else ""
    yield (
        f"{start}Against the untrained encoder at the same seed, the trained one is {'; '.join(parts)} "
        f"(sign-flip tests, Benjamini-Hochberg over {len(gains)} metrics, {fmt.count(n, 'seed')})."
    )
    smallest = paired.min_p(n)
    if n > 1 and smallest > plan.alpha:
        yield f"{n} seeds cannot show more: the smallest p they can reach is {fmt.p_value(smallest)}."


def _milestone_sentence(points: dict[str, pd.DataFrame]) -> Iterator[str]:
    """How much of the way training has gone at each milestone, in the first metric."""
    metric = next(iter(points), None)
    if metric is None:
        return
    means = points[metric].dropna().mean()
    if len(means) < 3 or means.index[0] != 0 or means.iloc[-1] == means.iloc[0]:
        return
    shares = (means - means.iloc[0]) / (means.iloc[-1] - means.iloc[0])
    gone = {epoch: f"{share:.0%}" if share > 0 else "nothing" for epoch, share in shares.items()}
    said = [f"{share} after {fmt.count(int(epoch), 'epoch')}" for epoch, share in gone.items()]
    first, last = (fmt.number(float(means.iloc[i]), 3) for i in (0, -1))
    yield (
        f"{find_metric(metric).full_label} goes from {first} before training to {last} after {means.index[-1]:g} "
        f"epochs; of that way it has gone {listed(said[1:-1])}."
    )


def _seed_tables(values: dict[str, Floats], evidence: Evidence) -> Iterator[Table]:
    """What seeds do, and find, in every metric; what they find in the primary one at several correlations."""
    spreads = {metric: paired.mean_interval(seeds) for metric, seeds in values.items()}
    rows = []
    for metric, one in spreads.items():
        mean, sd = fmt.number(one.mean, fmt.decimals_of(one.sd)), fmt.compact(one.sd, 2)
        error = fmt.compact(jet_error(evidence.study, metric), 2)
        known = [str(one.n), mean, sd, _deviation(one, evidence.alpha), error]
        rows.append([find_metric(metric).full_label, *known, *_finds(one.sd)])
    head = ["metric", "n", "mean", "sd over seeds", f"{evidence.level} of sd", "error of test jets"]
    label = "Spread over seeds, and the difference of uncorrelated arms that seeds find"
    yield Table(label=label, head=[*head, *(f"{n} seeds find" for n in SEEDS)], rows=rows)
    metric, first = next(iter(spreads.items()))
    if math.isfinite(first.sd):
        rows = [[f"{r:g}", *_finds(first.sd, r)] for r in CORRELATIONS]
        label = f"Difference in {find_metric(metric).label} that seeds find, by the correlation of the arms"
        yield Table(label=label, head=["correlation", *(f"{n} seeds" for n in SEEDS)], rows=rows)


def _gain_tables(gains: Sequence[Gain], evidence: Evidence) -> Iterator[Table]:
    rows = []
    for gain in gains:
        raw = metric_key(find_metric(gain.metric).name, baseline="raw")
        cells = [fmt.number(float(_of_only_arm(evidence.trials, evidence.plan, raw).mean()))]
        cells += [mean_cell(paired.mean_interval(one)) for one in gain.values.T]
        rows.append([find_metric(gain.metric).full_label, gain.outcome, *cells, *gain.change.cells])
    head = ["metric", "trained", BASELINES["raw"], "untrained", "trained", "difference", evidence.level]
    if rows:
        head += ["n", "p, corrected"]
        yield Table(label="Untrained against trained", head=head, rows=rows, text_columns=(0, 1))


def _epochs(points: Mapping[str, pd.DataFrame]) -> list[float]:
    return sorted({epoch for table in points.values() for epoch in table.columns})


def _milestone_tables(points: dict[str, pd.DataFrame]) -> Iterator[Table]:
    epochs, rows = _epochs(points), []
    for metric, table in points.items():
        means = table.reindex(columns=epochs)
        cells = [mean_cell(paired.mean_interval(means[epoch].dropna())) for epoch in epochs]
        rows.append([find_metric(metric).full_label, *cells])
    if rows:
        head = ["metric", *("untrained" if epoch == 0 else f"epoch {epoch:g}" for epoch in epochs)]
        yield Table(label="Emergence", head=head, rows=rows)


def _milestone_figures(points: dict[str, pd.DataFrame]) -> Iterator[Picture]:
    drawn = dict([(metric, table) for metric, table in points.items() if len(table.columns) > 1][:MAX_PANELS])
    if not drawn:
        return
    epochs = _epochs(drawn)
    caption = (
        f"Before training and after {listed([f'{epoch:g}' for epoch in epochs if epoch])} epochs: thick line, "
        "mean over seeds; faint lines, single seeds. Epochs are not to scale."
    )
    said = "; ".join(find_metric(metric).full_label for metric in drawn)
    panels = {capitalised(find_metric(metric).label): table for metric, table in drawn.items()}
    figure = plots.steps_by_seed(panels, {epoch: f"{epoch:g}" for epoch in epochs}, "epoch")
    yield Picture(name="emergence", figure=figure, alt=f"{said}. {caption}", caption=caption)


def _gain_figures(gains: Sequence[Gain]) -> Iterator[Picture]:
    if not gains:
        return
    panels = {capitalised(find_metric(gain.metric).label): pd.DataFrame(gain.values) for gain in gains[:MAX_PANELS]}
    caption = (
        "Clustering on test jets before and after training: each faint line is a seed, the thick one the mean. "
        "NC1 is lower, and all but the effective rank are higher, where classes are clearer."
    )
    said = "; ".join(f"{find_metric(gain.metric).label}: {gain.change}, {gain.outcome}" for gain in gains)
    figure = plots.steps_by_seed(panels, {0: "untrained", 1: "trained"}, "")
    yield picture("untrained-and-trained", figure, caption, said)

"""A study of one arm: how far seeds alone move every metric, what so many seeds can detect, and what training brings.

The pilot of all other studies: the spread over seeds, and the correlation of paired arms, say how many seeds a
question costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.plots import curves as curve_plots
from analysis.plots.picture import Picture
from analysis.report.evidence import Evidence
from analysis.report.section import Section, Table
from analysis.report.sections.curves import comparable
from analysis.stats import Floats, power
from analysis.stats import paired as statistics
from analysis.stats.paired import MeanInterval
from analysis.verdicts import convergence, design, tables
from analysis.verdicts import number_format as fmt
from jbot.evaluation.metrics_registry import BASELINES, find_metric, metric_key
from jbot.store.plan import Plan, StudyRecords

SEEDS = (6, 8, 10, 20)
"""Sizes of a study for which the smallest difference that it would find is given; fewer than six find none."""
CORRELATIONS = (0.0, 0.5, 0.9, 0.99)
"""Of two arms over seeds. Independent arms have 0; arms that share weights, order and noise had up to 0.997 in short
runs (masking pilot)."""
MILESTONES = (0, 1, 10, 50)
"""Epochs at which training is looked at, beside the last one; those without a point are left out."""
CLUSTERING = ("knn_accuracy", "linear_accuracy", "kmeans_ami", "silhouette", "nc1", "effective_rank")
"""Metrics of clusters in the embedding."""
MOST_PANELS = 6


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One clustering metric before and after training, at the same seeds."""

    metric: str
    before: Floats
    """(seed,)"""
    after: Floats
    interval: MeanInterval
    """Of after - before."""
    p: float
    """Sign-flip test, corrected over all gains; NaN below two seeds."""
    outcome: str
    """`better`, `worse`, `larger`, `smaller`, or `not shown`."""


def section(evidence: Evidence) -> Section | None:
    """Spread over seeds, and emergence; None when the study has arms to compare, or no complete trial."""
    plan = evidence.plan
    values = metric_values(evidence.trials, plan)
    if len(plan.arms) != 1 or not values:
        return None
    gains, points = trained_gains(evidence.trials, plan), milestones(evidence.curves, plan)
    spread = _spread_table(values, evidence.study)
    by_seeds, gained = list(_seed_sentences(plan, values, evidence.study)), list(_gain_sentences(plan, gains))
    return Section(
        title="Seeds and emergence",
        answer=[*by_seeds[:1], *gained],
        sentences=[
            *by_seeds,
            *gained,
            *_milestone_sentence(points),
        ],
        tables=[spread, *_power_tables(plan, values), *_gain_tables(gains, evidence), *_milestone_tables(points)],
        figures=[*_milestone_pictures(plan, points), *_gain_pictures(gains)],
    )


def metric_values(trials: pd.DataFrame, plan: Plan) -> dict[str, Floats]:
    """Metric -> its values over the seeds of the only arm that have it; the primary metric first."""
    arm = next(iter(plan.arms))
    found = {}
    for metric in (plan.metric, *tables.other_metrics(trials, plan)):
        values = tables.scores_and_states(trials, plan, metric)[0][arm].dropna().to_numpy(dtype=float)
        if len(values):
            found[metric] = values
    return found


def detectable(sd: float, n: int, correlation: float = 0.0) -> float:
    """The smallest difference between two arms that `n` paired seeds find with 80% power, at p < 0.05.

    Parameters
    ----------
    sd : float
        Of one arm over seeds, and of the other.
    correlation : float
        Of the two over seeds. The paired difference has the standard deviation sd * sqrt(2 (1 - correlation)).

    Returns
    -------
    float
        In units of the metric; of a single contrast, without any correction.
    """
    return power.detectable_effect(n) * sd * math.sqrt(2 * (1 - correlation))


def milestones(curves: pd.DataFrame, plan: Plan) -> dict[str, pd.DataFrame]:
    """Learning curves at the milestones and at the end of training: metric -> (seed, epoch), complete trials only.

    The last epoch is that of the longest training. Metrics and epochs without any value are left out; the curve of the
    primary metric comes first.
    """
    if curves.empty:
        return {}
    complete = curves[curves["state"] == "complete"]
    if complete.empty:
        return {}
    epochs = sorted({*MILESTONES, complete["epoch"].max()} & set(complete["epoch"]))
    at = complete[complete["epoch"].isin(epochs)]
    found = {}
    first = convergence.validation_metric(plan, curves)
    for metric in sorted(comparable(curves), key=lambda name: name != first):
        table = at.pivot_table(index="seed", columns="epoch", values=metric, aggfunc="last").astype(float)
        if not table.empty:
            found[metric] = table
    return found


def trained_gains(trials: pd.DataFrame, plan: Plan) -> list[Gain]:
    """Every clustering metric, trained minus untrained at the seeds that have both."""
    arm = next(iter(plan.arms))
    pairs = {}
    for name in CLUSTERING:
        columns = [
            tables.scores_and_states(trials, plan, key)[0][arm]
            for key in (metric_key(name, baseline="untrained"), metric_key(name))
        ]
        both = pd.concat(columns, axis=1).dropna().to_numpy(dtype=float)
        if len(both):
            pairs[name] = both
    p_values = design.corrected([design.sign_flip(both[:, 1] - both[:, 0]) for both in pairs.values()])
    return [_gain(plan, name, both, p) for (name, both), p in zip(pairs.items(), p_values, strict=True)]


def _gain(plan: Plan, name: str, both: Floats, p: float) -> Gain:
    interval = statistics.mean_interval(both[:, 1] - both[:, 0], 1 - plan.alpha)
    sign, higher_is_better = design.shown(interval, p, plan.alpha), find_metric(name).higher_is_better
    words = {1: "larger", -1: "smaller"} if higher_is_better is None else {1: "better", -1: "worse"}
    outcome = words.get(-sign if higher_is_better is False else sign, "not shown")
    return Gain(metric=metric_key(name), before=both[:, 0], after=both[:, 1], interval=interval, p=p, outcome=outcome)


def jet_error(study: StudyRecords, metric: str) -> float:
    """Mean error of a metric from the number of test jets, over complete trials; NaN where records have none."""
    complete = [record for record in study.records.values() if record is not None and record.state == "complete"]
    errors = [record.uncertainties.get(metric, {}).get("error", math.nan) for record in complete]
    known = [error for error in errors if isinstance(error, int | float) and math.isfinite(error)]
    return float(np.mean(known)) if known else math.nan


def _seed_sentences(plan: Plan, values: dict[str, Floats], study: StudyRecords) -> Iterator[str]:
    metric = next(iter(values))
    spread, words = statistics.mean_interval(values[metric]), find_metric(metric).full_label
    if spread.n < 2:
        yield f"One seed has ended: {words} {fmt.number(spread.mean)}. How far seeds move it takes two."
        return
    low, high = statistics.deviation_interval(spread.sd, spread.n, 1 - plan.alpha)
    error = jet_error(study, metric)
    beside = ""
    if error > 0:
        beside = (
            f" The error of one trial from its test jets is {fmt.compact(error, 2)}: "
            f"seeds move it {fmt.compact(spread.sd / error, 2)} times as far."
        )
    yield (
        f"Seeds alone move {words} by {fmt.compact(spread.sd, 2)} (standard deviation over {spread.n} seeds, "
        f"{1 - plan.alpha:.0%} interval {fmt.compact(low, 2)} to {fmt.compact(high, 2)}) around "
        f"{design.mean_cell(spread)}.{beside}"
    )
    few, many = (fmt.compact(detectable(spread.sd, n), 2) for n in (SEEDS[0], SEEDS[-1]))
    paired = fmt.compact(detectable(spread.sd, SEEDS[1], CORRELATIONS[-1]), 2)
    yield (
        f"Two arms without any correlation over seeds must differ by {few} to be told apart by {SEEDS[0]} seeds, and "
        f"by {many} by {SEEDS[-1]} (80% power, one contrast). Pairing is what makes a study affordable: at a "
        f"correlation of {CORRELATIONS[-1]:g}, {SEEDS[1]} seeds find {paired}."
    )


def _gain_sentences(plan: Plan, gains: Sequence[Gain]) -> Iterator[str]:
    judged = [gain for gain in gains if find_metric(gain.metric).higher_is_better is not None]
    if not judged:
        return
    n = max(gain.interval.n for gain in gains)
    parts = []
    for outcome in ("better", "worse", "not shown"):
        names = [find_metric(gain.metric).label for gain in judged if gain.outcome == outcome]
        if names:
            parts.append(
                f"{outcome} in {design.listed(names)}"
                if outcome != "not shown"
                else f"not shown for {design.listed(names)}"
            )
    verdict = {"better": "Clustering emerges.", "worse": "Training does not make clusters."}
    whole = {gain.outcome for gain in judged}
    start = f"{verdict[whole.pop()]} " if len(whole) == 1 and whole <= set(verdict) else ""
    yield (
        f"{start}Against the untrained encoder at the same seed, the trained one is {'; '.join(parts)} "
        f"(sign-flip tests, Benjamini-Hochberg over {len(gains)} metrics, {fmt.count(n, 'seed')})."
    )
    floor = statistics.min_p(n)
    if n > 1 and floor > plan.alpha:
        yield f"{n} seeds cannot show more: the smallest p they can reach is {fmt.p_value(floor)}."


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
        f"epochs; of that way it has gone {design.listed(said[1:-1])}."
    )


def _spread_table(values: dict[str, Floats], study: StudyRecords) -> Table:
    alpha = study.plan.alpha
    rows = []
    for metric, seeds in values.items():
        one = statistics.mean_interval(seeds)
        low, high = statistics.deviation_interval(one.sd, one.n, 1 - alpha)
        interval = f"{fmt.compact(low, 2)} to {fmt.compact(high, 2)}" if one.n > 1 else fmt.MISSING
        finds = [fmt.compact(detectable(one.sd, n), 2) for n in SEEDS]
        error = fmt.compact(jet_error(study, metric), 2)
        mean = fmt.number(one.mean, fmt.decimals_of(one.sd))
        rows.append([find_metric(metric).full_label, str(one.n), mean, fmt.compact(one.sd, 2), interval, error, *finds])
    head = ["metric", "n", "mean", "sd over seeds", f"{1 - alpha:.0%} interval of sd", "error of test jets"]
    head += [f"{n} seeds find" for n in SEEDS]
    return Table(
        label="Spread over seeds, and the difference of uncorrelated arms that seeds find",
        head=head,
        rows=rows,
    )


def _power_tables(plan: Plan, values: dict[str, Floats]) -> Iterator[Table]:
    """Of the primary metric, at several correlations."""
    metric, seeds = next(iter(values.items()))
    sd = statistics.mean_interval(seeds).sd
    if math.isfinite(sd):
        rows = [[f"{r:g}", *(fmt.compact(detectable(sd, n, r), 2) for n in SEEDS)] for r in CORRELATIONS]
        label = f"Difference in {find_metric(metric).label} that seeds find, by the correlation of the arms"
        yield Table(label=label, head=["correlation", *(f"{n} seeds" for n in SEEDS)], rows=rows)


def _gain_tables(gains: Sequence[Gain], evidence: Evidence) -> Iterator[Table]:
    if not gains:
        return
    plan, rows = evidence.plan, []
    for gain in gains:
        raw = (
            tables.scores_and_states(evidence.trials, plan, metric_key(find_metric(gain.metric).name, baseline="raw"))[
                0
            ]
            .stack()
            .mean()
        )
        before, after = (design.mean_cell(statistics.mean_interval(one)) for one in (gain.before, gain.after))
        cells = [find_metric(gain.metric).full_label, gain.outcome, fmt.number(float(raw)), before, after]
        cells += [design.mean_cell(gain.interval, sign=True), design.interval_cell(gain.interval)]
        rows.append([*cells, str(gain.interval.n), design.p_cell(gain.p, gain.interval.n)])
    head = [
        "metric",
        "trained",
        BASELINES["raw"],
        "untrained",
        "trained",
        "difference",
        f"{1 - plan.alpha:.0%} interval",
    ]
    yield Table(label="Untrained against trained", head=[*head, "n", "p, corrected"], rows=rows, text_columns=(0, 1))


def _milestone_tables(points: dict[str, pd.DataFrame]) -> Iterator[Table]:
    epochs = sorted({epoch for table in points.values() for epoch in table.columns})
    rows = []
    for metric, table in points.items():
        means = {epoch: statistics.mean_interval(table[epoch].dropna()) for epoch in table.columns}
        cells = [design.mean_cell(means[epoch]) if epoch in means else fmt.MISSING for epoch in epochs]
        rows.append([find_metric(metric).full_label, *cells])
    if rows:
        head = ["metric", *("untrained" if epoch == 0 else f"epoch {epoch:g}" for epoch in epochs)]
        yield Table(label="Emergence", head=head, rows=rows)


def _milestone_pictures(plan: Plan, points: dict[str, pd.DataFrame]) -> Iterator[Picture]:
    drawn = {metric: table for metric, table in points.items() if len(table.columns) > 1}
    drawn = dict(list(drawn.items())[:MOST_PANELS])
    if not drawn:
        return
    epochs = sorted({epoch for table in drawn.values() for epoch in table.columns})
    caption = (
        f"Before training and after {design.listed([f'{epoch:g}' for epoch in epochs if epoch])} epochs: thick line, "
        "mean over seeds; faint lines, single seeds. Epochs are not to scale."
    )
    said = "; ".join(find_metric(metric).full_label for metric in drawn)
    panels = {_title(metric): table for metric, table in drawn.items()}
    figure = curve_plots.steps_by_seed(panels, {epoch: f"{epoch:g}" for epoch in epochs}, "epoch")
    yield Picture(name="emergence", figure=figure, alt=f"{said}. {caption}", caption=caption)


def _gain_pictures(gains: Sequence[Gain]) -> Iterator[Picture]:
    if not gains:
        return
    panels = {_title(gain.metric): pd.DataFrame({0: gain.before, 1: gain.after}) for gain in gains[:MOST_PANELS]}
    caption = (
        "Clustering on test jets before and after training: each faint line is a seed, the thick one the mean. "
        "NC1 is lower, and all but the effective rank are higher, where classes are clearer."
    )
    said = "; ".join(
        f"{find_metric(gain.metric).label}: {design.mean_cell(gain.interval, sign=True)}, {gain.outcome}"
        for gain in gains
    )
    figure = curve_plots.steps_by_seed(panels, {0: "untrained", 1: "trained"}, "")
    yield Picture(name="untrained-and-trained", figure=figure, alt=f"{caption} {said}.", caption=caption)


def _title(metric: str) -> str:
    words = find_metric(metric).label
    return words[:1].upper() + words[1:] if not words.startswith("k-") else words

"""The evidence of a study and what each section of its report shows of it: tables of text, and pictures.

The templates only lay out what stands here, so HTML and Markdown say the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.plots import curves as curve_plots
from analysis.plots import forest, scores
from analysis.plots.style import Picture
from analysis.report import headline, trial_pictures
from analysis.report.links import Links
from analysis.stats import paired as statistics
from analysis.stats import power, sequential
from analysis.stats.paired import MeanInterval
from analysis.verdicts import arm_settings, convergence, decide, tables, wording
from analysis.verdicts import diagnostics as signatures
from analysis.verdicts.convergence import Convergence
from analysis.verdicts.decide import Verdict
from analysis.verdicts.diagnostics import Signatures
from analysis.verdicts.wording import NOTHING
from jbot.store.plan import Plan, PlannedTrial, StudyRecords

MOST_ARMS = 8
"""Arms drawn in one figure; more lines than this nobody tells apart (assumed)."""
MOST_CONTRASTS = 30
"""Contrasts drawn and told in words; the table has all."""
MOST_HEADLINE_ROWS = 10
"""Contrasts drawn on the first screen."""
MOST_COLUMNS = 8
"""Metrics beside each other in the table of the others; more are set one below the other, with arms across."""
MOST_TRIALS = 400
"""Rows of the table of trials in the page; all of them are in trials.csv."""
MOST_SIGNATURES, MOST_SEEDS = 60, 8
"""Rows of the table of failure signatures, and seeds named in each; all of them are in signatures.csv."""
MOST_CLOSE = 14
"""Figures of single trials in the page, the costliest part of a report to draw (assumed): those
of as many arms as fit, but of one of each task at least. Tasks that do not fit share them, see `CLOSE_FIRST`."""
CLOSE_FIRST = ("attention", "training", "finetuning", "roc-", "scores-")
"""How the names of these figures begin, in the order in which they are kept."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells of text. The first column names the row."""

    label: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    wordy: frozenset[int] = frozenset({0})
    """Columns of words, set flush left; the others are numbers."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A section that only some studies have, see :mod:`analysis.report.registry`."""

    title: str
    text: Sequence[str] = ()
    """Paragraphs, plain sentences."""
    method: Sequence[str] = ()
    """How the numbers are made, in paragraphs that are folded away."""
    code: Mapping[str, str] = field(default_factory=dict)
    """What it is -> lines to be copied as they are."""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    answer: Sequence[str] = ()
    """What of the text answers the question: the index shows it (analysis/verdicts/summary.py)."""

    @property
    def anchor(self) -> str:
        """Its place in the page."""
        return _slug(self.title)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything a report is made of, computed once."""

    study: StudyRecords
    trials: pd.DataFrame
    scores: pd.DataFrame
    states: pd.DataFrame
    arms: pd.DataFrame
    verdicts: list[Verdict]
    curves: pd.DataFrame
    compared_curves: pd.DataFrame
    """Those of blocks in which every arm has ended."""
    convergence: list[Convergence]
    signatures: Signatures
    shown: list[str] = field(default_factory=list)
    """Arms that are drawn."""


def gather(study: StudyRecords) -> Evidence:
    """Tables, verdicts and convergence of a study, finished or not.

    Raises
    ------
    RecordError
        When a file of a trial is damaged.
    """
    plan, trials = study.plan, tables.trial_table(study)
    scores, states = tables.scores_and_states(trials, plan)
    curves = convergence.curve_table(study)
    ended = states.index[~(states == tables.PENDING).any(axis=1)]
    compared = curves[curves["seed"].isin(ended)]
    clocks = (convergence.converge(plan, compared, clock) for clock in convergence.CLOCKS)
    return Evidence(
        study=study,
        trials=trials,
        scores=scores,
        states=states,
        arms=tables.arms_table(trials, plan),
        verdicts=decide.judge(plan, scores, states, tables.other_scores(trials, plan)),
        curves=curves,
        compared_curves=compared,
        convergence=[found for found in clocks if found is not None],
        signatures=signatures.look(study),
        shown=_shown_arms(study),
    )


def _shown_arms(study: StudyRecords) -> list[str]:
    """Arms of primary contrasts first, then the plan's order, at most MOST_ARMS; returned in the plan's order."""
    chosen = list(dict.fromkeys([*_primary_arms(study), *study.plan.arms]))[:MOST_ARMS]
    return [arm for arm in study.plan.arms if arm in chosen]


def _primary_arms(study: StudyRecords) -> list[str]:
    return [arm for c in study.plan.contrasts if c.primary for arm in (c.treatment, c.control)]


def status(evidence: Evidence) -> str:
    """Whether the study is finished, in one line; empty when it is."""
    n, pending = len(evidence.trials), int((evidence.trials["state"] == tables.PENDING).sum())
    look = evidence.verdicts[0].look if evidence.verdicts else None
    if look and look.decided and look.blocks < look.of:
        left = f"{pending} of {n} planned trials were not needed" if pending else "the others had run before"
        where = f"the planned look after {look.blocks} of {look.of} blocks"
        return f"Stopped at {where}, as every primary contrast is decided: {left}."
    if not pending:
        return ""
    if look:
        judged = f"the look after {look.blocks} blocks" if look.blocks else "no look yet"
        after = f"; the next is after {look.next}" if look.next else ""
        return f"Unfinished: {n - pending} of {n} trials have ended. Judged is {judged}{after}."
    blocks = int((~(evidence.states == tables.PENDING).any(axis=1)).sum())
    return (
        f"Unfinished: {n - pending} of {n} trials have ended. "
        f"Compared are the {wording.count(blocks, 'block')} of {len(evidence.states)} in which every arm has ended."
    )


def plan_lines(evidence: Evidence) -> dict[str, str]:
    """The design, as it was stated before the study ran: name -> one line."""
    plan = evidence.study.plan
    families = {kind: [wording.contrast(c.name) for c in plan.contrasts if c.primary is kind] for kind in (True, False)}
    return {
        "Primary metric": f"{wording.quantity_on(plan.metric)} ({plan.metric}), "
        f"{'higher' if plan.higher_is_better else 'lower'} is better",
        "Margin": f"{plan.margin:g}: smaller differences do not matter",
        "Primary contrasts": ", ".join(families[True]) or "none",
        "Exploratory contrasts": ", ".join(families[False]) or "none",
        "Arms and seeds": f"{wording.count(len(plan.arms), 'arm')} × {wording.count(len(plan.seeds), 'seed')}"
        f" = {wording.count(len(evidence.study.trials), 'trial')}",
        "Error level": f"{plan.alpha:g}, Holm over primary and Benjamini-Hochberg over exploratory contrasts",
        **({"Looks": _looks_line(plan)} if plan.looks else {}),
        "What it can find": _power_line(evidence),
        "Preset": plan.preset,
    }


def _looks_line(plan: Plan) -> str:
    """When the study is judged, and how that is paid for."""
    after = ", ".join(map(str, plan.looks))
    return (
        f"after {after} blocks, and no further than every primary contrast is decided; after a share s of the blocks at"
        " most s² of the error level is spent"
    )


def _power_line(evidence: Evidence) -> str:
    """Floor and power of the full design, before any data."""
    plan = evidence.study.plan
    if not plan.contrasts:
        return "nothing is compared: every figure comes with its spread over seeds"
    n, family = len(plan.seeds), max(1, sum(c.primary for c in plan.contrasts))
    floor = statistics.min_p(n, family)
    level = sequential.final_level(plan.looks, plan.alpha)
    effect = power.detectable_effect(n, level, family)
    if floor > plan.alpha:
        equal = power.min_seeds(plan.alpha, family)[1]
        best = "Equivalence at best." if n >= equal else f"Nor equivalence, which takes {equal} seeds."
        return f"no difference: with {n} seeds the smallest p is {wording.p_value(floor)}. {best}"
    return (
        f"smallest p {wording.p_value(floor)}; 80% power for {effect:.2f} standard deviations of the paired difference"
    )


def _level(evidence: Evidence) -> str:
    """Head of a column of intervals."""
    return f"{1 - evidence.study.plan.alpha:.0%} interval"


def arms_section(evidence: Evidence) -> Table:
    """Mean, spread and losses per arm, beside the floor."""
    references = [name for name in tables.REFERENCES if name in evidence.arms]
    names = [tables.REFERENCES[name] for name in references]
    head = [
        "arm",
        "what it changes",
        "n",
        "mean",
        "sd over seeds",
        _level(evidence),
        *names,
        "failed",
        "pruned",
        "device time",
    ]
    within = wording.bounds(evidence.study.plan.metric)
    rows = [_arm_row(evidence.study.plan, row, references, within) for _, row in evidence.arms.iterrows()]
    return Table(label="Arms", head=head, rows=rows, wordy=frozenset({0, 1}))


def _arm_row(plan: Plan, row: pd.Series, references: Sequence[str], within: wording.Bounds) -> list[str]:
    error = row["sd"] / math.sqrt(row["n"]) if row["n"] else math.nan
    decimals = wording.decimals_of(error)
    rate = f"{row['failed']} of {row['failed'] + row['n']}"
    if row["failed"]:
        rate += f" ({row['failure_low']:.0%} to {row['failure_high']:.0%})"
    return [
        row["arm"],
        arm_settings.words(plan.arms[row["arm"]]),
        str(row["n"]),
        wording.number(row["mean"], decimals),
        wording.number(row["sd"], decimals),
        wording.interval(row["low"], row["high"], error, within),
        *(wording.number(row[name], decimals) for name in references),
        rate,
        str(row["pruned"]),
        wording.duration(row["device_seconds"]),
    ]


def contrasts_section(evidence: Evidence) -> Table:
    """Paired differences and the verdict on each."""
    head = ["contrast", "verdict", "difference", _level(evidence), "n", "p, corrected", "seeds to decide"]
    rows = [_contrast_row(item) for item in evidence.verdicts]
    return Table(label="Paired differences", head=head, rows=rows, wordy=frozenset({0, 1}))


def _contrast_row(item: Verdict) -> list[str]:
    d, error = item.difference, item.difference.standard_error
    kind = "" if item.contrast.primary else " (exploratory)"
    return [
        wording.contrast(item.contrast.name),
        f"{headline.standing(item)}{kind}",
        wording.with_error(d.mean, error, sign=True) if d.n > 1 else wording.number(d.mean, sign=True),
        wording.interval(d.low, d.high, error, item.within),
        str(d.n),
        wording.p_value(item.p_adjusted, item.floor) if d.n > 1 else NOTHING,
        str(item.seeds_needed) if item.seeds_needed else NOTHING,
    ]


def checks_section(evidence: Evidence) -> Table:
    """What stands behind each verdict: both tests' limits, and what pairing gained."""
    head = ["contrast", "smallest p", "equivalence p", "detectable"]
    head += ["correlation", "gain of pairing", "seeds left out"]
    rows = [_check_row(item) for item in evidence.verdicts]
    return Table(label="Checks of the paired differences", head=head, rows=rows)


def _check_row(item: Verdict) -> list[str]:
    d = item.difference
    return [
        wording.contrast(item.contrast.name),
        wording.p_value(item.floor),
        wording.p_value(item.p_equivalent_adjusted) if d.n > 1 else NOTHING,
        wording.compact(item.detectable, 2),
        wording.number(d.correlation, 3),
        f"{wording.compact(d.variance_ratio, 2)}×" if math.isfinite(d.variance_ratio) else NOTHING,
        str(item.dropped + item.pruned),
    ]


def convergence_section(found: Convergence) -> tuple[Table, Table]:
    """Per arm and per contrast, on one clock."""
    arms = [
        [arm.arm, f"{arm.reached} of {arm.n}", wording.compact(arm.restricted_mean), _mean_and_error(arm.area)]
        for arm in found.arms
    ]
    pairs = [
        [wording.contrast(pair.contrast), *_mean_columns(pair.time), *_mean_columns(pair.area), str(pair.time.n)]
        for pair in found.contrasts
    ]
    unit = found.unit
    return (
        Table(label=f"Convergence in {unit}", head=["arm", "reached", f"mean {unit}", "mean of the curve"], rows=arms),
        Table(
            label=f"Paired convergence in {unit}",
            head=["contrast", f"{unit}, difference", "95% interval", "curve, difference", "95% interval", "n"],
            rows=pairs,
        ),
    )


def _mean_columns(values: MeanInterval) -> list[str]:
    return [_mean_and_error(values, sign=True), wording.interval(values.low, values.high, values.standard_error)]


def _mean_and_error(values: MeanInterval, sign: bool = False) -> str:
    # The same number at every seed, such as that of the particles themselves, has no error of seeds.
    if values.n < 2 or values.standard_error == 0:
        return wording.number(values.mean, sign=sign)
    return wording.with_error(values.mean, values.standard_error, sign)


def metrics_section(evidence: Evidence, metrics: Sequence[str]) -> Table:
    """Mean ± standard error of the other final metrics per arm, then of their floors; arms across if that fits better.

    Arms with other data or another model have a floor of their own.
    """
    plan = evidence.study.plan
    columns = [tables.scores_and_states(evidence.trials, plan, metric)[0] for metric in metrics]
    rows = [[arm, *(_cell(column[arm]) for column in columns)] for arm in plan.arms]
    for name, words in tables.REFERENCES.items():
        floors = [tables.scores_and_states(evidence.trials, plan, f"{name}/{metric}")[0] for metric in metrics]
        for group, arms in tables.floor_groups(plan).items():
            if any(floor[arms].notna().any(axis=None) for floor in floors):
                cells = [_cell(floor[arms].mean(axis=1)) for floor in floors]
                rows.append([f"{words}, {group}" if group else words, *cells])
    names = [wording.quantity(name) if name.startswith("test/") else wording.quantity_on(name) for name in metrics]
    table = [["arm", *names], *rows]
    if len(metrics) > max(MOST_COLUMNS, len(rows)):
        table = [list(cells) for cells in zip(*table, strict=True)]
        table[0][0] = "metric"
    return Table(label="Other metrics", head=table[0], rows=table[1:])


def _cell(values: pd.Series) -> str:
    return _mean_and_error(statistics.mean_interval(values.dropna()))


def metric_differences_section(evidence: Evidence, metrics: Sequence[str]) -> Table:
    """Exploratory paired differences of the other metrics."""
    frame = tables.metric_differences(evidence.trials, evidence.study.plan, metrics)
    rows = []
    for _, row in frame.iterrows():
        error = row["sd"] / math.sqrt(row["n"])
        floor = statistics.min_p(int(row["n"]))
        within = wording.bounds(row["metric"], of_difference=True)
        interval = wording.interval(row["low"], row["high"], error, within)
        estimate = [wording.with_error(row["mean"], error, True), interval]
        names = [wording.quantity_on(row["metric"]), wording.contrast(row["contrast"])]
        rows.append([*names, *estimate, str(row["n"]), wording.p_value(row["p_adjusted"], floor)])
    head = ["metric", "contrast", "difference", _level(evidence), "n", "p, corrected"]
    return Table(label="Differences of other metrics", head=head, rows=rows, wordy=frozenset({0, 1}))


def equal_width(evidence: Evidence) -> bool:
    """Whether all arms embed in the same dimension: cluster metrics are comparable only then."""
    ended = [record for record in evidence.study.records.values() if record is not None]
    return len({tables.lookup(record.config, "model.dim") for record in ended}) <= 1


def failures_section(evidence: Evidence) -> Table:
    """Every trial that did not complete, with its reason."""
    lost = evidence.trials[evidence.trials["state"].isin(["failed", "pruned"])]
    rows = [
        [row["arm"], str(row["seed"]), row["state"], row["reason"] or "no reason given"] for _, row in lost.iterrows()
    ]
    complete = evidence.states == "complete"
    for seed, arm in (complete & evidence.scores.isna()).stack().loc[lambda cell: cell].index:
        rows.append([arm, str(seed), "complete", f"left no {evidence.study.plan.metric}: counted as failed"])
    return Table(label="Failures", head=["arm", "seed", "state", "reason"], rows=rows, wordy=frozenset({0, 2, 3}))


def signatures_section(evidence: Evidence) -> Table:
    """Named ways in which training went wrong, per arm: in which trials, and the numbers of the worst one."""
    rows = []
    for name, arm, subject, found, looked in signatures.by_arm(evidence.signatures):
        seeds = sorted(item.seed for item in found)
        named = ", ".join(map(str, seeds[:MOST_SEEDS])) + (", …" if len(seeds) > MOST_SEEDS else "")
        worst = f"{found[0].case.evidence}" + (f" (seed {found[0].seed})" if len(found) > 1 else "")
        rows.append([name, arm, subject, f"{len(found)} of {looked}", named, worst])
    head = ["signature", "arm", "where", "trials", "seeds", "evidence, of the worst trial"]
    return Table(label="Failure signatures", head=head, rows=rows[:MOST_SIGNATURES], wordy=frozenset({0, 1, 2, 4, 5}))


def trials_section(evidence: Evidence, links: Links) -> Table:
    """Every trial, up to MOST_TRIALS, with the ways to its record and its MLflow run."""
    metric = evidence.study.plan.metric
    head = ["trial, its record", "arm", "seed", "state", wording.quantity_on(metric), "device time", "attempts"]
    head += ["plan hash", *["MLflow run"] * bool(links.runs)]
    rows = [_trial_row(row, metric, links) for row in evidence.trials.head(MOST_TRIALS).to_dict("records")]
    return Table(label="All trials", head=head, rows=rows, wordy=frozenset({0, 1, 3, 7, 8}))


def _trial_row(row: dict[Any, Any], metric: str, links: Links) -> list[str]:
    pending = row["state"] == tables.PENDING
    trial, run = links.of_trial(str(row["trial_id"]))
    return [
        str(row["trial_id"]) if pending else trial,
        row["arm"],
        str(row["seed"]),
        row["state"],
        wording.number(_number(row, metric)),
        wording.duration(_number(row, "device_seconds")),
        wording.number(_number(row, "attempts"), 0),
        NOTHING if pending else str(row["plan_hash"]),
        *[run or NOTHING] * bool(links.runs),
    ]


def _number(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)


def differences_picture(evidence: Evidence, most: int, name: str) -> Picture | None:
    """The paired differences, primary contrasts first; None when nothing can be compared."""
    plan = evidence.study.plan
    drawn = sorted(evidence.verdicts, key=lambda v: not v.contrast.primary)[:most]
    if not any(item.difference.n for item in drawn):
        return None
    figure = forest.paired_differences(*headline.forest_rows(drawn, evidence.trials, plan), plan.margin)
    said = "; ".join(f"{item.contrast.name}: {_contrast_row(item)[2]}, {headline.standing(item)}" for item in drawn)
    more = (
        f" {len(drawn)} of {len(evidence.verdicts)} contrasts are drawn." if len(drawn) < len(evidence.verdicts) else ""
    )
    direction = f"{'right' if plan.higher_is_better else 'left'} of zero the first is better"
    hollow = " Open diamonds: exploratory." if len({item.contrast.primary for item in drawn}) == 2 else ""
    caption = (
        f"First-named arm minus the second, at the same seeds: {direction}. Diamond and bar: mean and "
        f"{1 - plan.alpha:.0%} interval; circles: seeds; shaded: differences below the margin of {plan.margin:g}."
        f"{hollow}{more}"
    )
    return Picture(name=name, figure=figure, alt=f"Paired differences. {said}.", caption=caption)


def scores_picture(evidence: Evidence) -> Picture | None:
    """Every trial's score."""
    if not evidence.scores.notna().any(axis=None):
        return None
    floors = evidence.arms.set_index("arm")["untrained"] if "untrained" in evidence.arms else None
    metric = evidence.study.plan.metric
    paired = any(contrast.of_arms for contrast in evidence.study.plan.contrasts)
    figure = scores.scores_by_seed(evidence.scores, metric, evidence.shown, floors, paired)
    means = ", ".join(f"{row.arm} {wording.number(row.mean)}" for row in evidence.arms.itertuples())
    caption = "Dots: trials; dark ticks: means" + ("; grey lines join the trials of a seed." if paired else ".")
    caption += " Grey ticks: the untrained encoder." if floors is not None else ""
    return Picture(
        name="scores-by-seed",
        figure=figure,
        alt=f"{wording.quantity_on(metric)} of every trial. Means: {means}.",
        caption=caption + _not_all(evidence),
    )


def curve_pictures(evidence: Evidence) -> Iterator[Picture]:
    """Learning curves of what may be compared between masking schemes: probes and entropies, no losses."""
    first = convergence.validation_metric(evidence.study.plan, evidence.curves)
    control = convergence.control_arm(evidence.study.plan)
    if first and control:
        yield from _paired_curve_picture(evidence, first, control)
    for metric in sorted(comparable_curves(evidence.curves), key=lambda name: name != first):
        figure = curve_plots.learning_curves(evidence.curves, metric, evidence.shown, list(evidence.study.plan.arms))
        words = wording.quantity_on(metric)
        complete = evidence.curves[evidence.curves["state"] == "complete"]
        caption = f"{words}: {_spread_words(complete, metric, 'complete trials')}.{_not_all(evidence)}"
        alt = f"Learning curves of {words} for {', '.join(evidence.shown)}."
        yield Picture(name=f"curves-{_slug(metric)}", figure=figure, alt=alt, caption=caption)


def _paired_curve_picture(evidence: Evidence, metric: str, control: str) -> Iterator[Picture]:
    """What the bands of single arms hide: they hold the spread over seeds, which pairs share."""
    all_arms = list(evidence.study.plan.arms)
    gaps = convergence.paired_curve_table(evidence.compared_curves, metric, control)
    if gaps.empty:
        return
    figure = curve_plots.paired_curves(gaps, metric, control, [a for a in evidence.shown if a != control], all_arms)
    words = wording.quantity_on(metric)
    spread = _spread_words(gaps, metric, "seeds")
    caption = f"Paired difference to {control} in {words}: {spread}.{_not_all(evidence)}"
    yield Picture(name="curves-paired", figure=figure, alt=f"Learning curves. {caption}", caption=caption)


def _spread_words(curves: pd.DataFrame, metric: str, over: str) -> str:
    """What curve_plots.learning_curves draws around a mean."""
    seeds = curves.dropna(subset=[metric]).groupby("arm")["seed"].nunique()
    bands, lines = bool((seeds >= curve_plots.MIN_BAND_SEEDS).any()), bool((seeds < curve_plots.MIN_BAND_SEEDS).any())
    parts = [f"mean over {over}", *["band: 95% interval"] * bands]
    parts += [f"thin lines: single seeds, where they are fewer than {curve_plots.MIN_BAND_SEEDS}"] * lines
    return ", ".join(parts)


def comparable_curves(curves: pd.DataFrame) -> list[str]:
    """Columns that mean the same in all arms: probes on validation jets, entropies of student and teacher."""
    names = [name for name in curves.columns if name.startswith("val/") or name.endswith("_entropy")]
    complete = curves[curves["state"] == "complete"]
    return [name for name in names if complete[name].notna().any()]


def _not_all(evidence: Evidence) -> str:
    drawn, n = len(evidence.shown), len(evidence.study.plan.arms)
    return f" {drawn} of {n} arms are drawn; the tables have all." if drawn < n else ""


def embedding_pictures(evidence: Evidence) -> Iterator[Picture]:
    """t-SNE maps over training, one trial per arm, all at one seed where possible."""
    for trial in _pictured_trials(evidence, "embedding"):
        for picture in trial_pictures.embedding_pictures(evidence.study.storage, trial.trial_id):
            yield _of_arm(picture, trial)


def example_pictures(evidence: Evidence) -> Iterator[Picture]:
    """A jet of each class, before and after augmentation, with what the student does not see in red.

    One figure for all arms that show the same: the same jets, views and masks.
    """
    alike: dict[bytes, list[PlannedTrial]] = {}
    for trial in _pictured_trials(evidence, "examples"):
        alike.setdefault(_shown_jets(evidence, trial), []).append(trial)
    for trials in alike.values():
        for picture in trial_pictures.jet_pictures(evidence.study.storage, trials[0].trial_id):
            yield _of_arm(picture, trials[0], ", ".join(trial.arm for trial in trials))


def _shown_jets(evidence: Evidence, trial: PlannedTrial) -> bytes:
    """Digest of what a figure of example jets is made of."""
    arrays, digest = evidence.study.arrays(trial.trial_id, "examples") or {}, hashlib.sha256()
    for name in trial_pictures.JETS:
        if name in arrays:
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.digest()


def closer_pictures(evidence: Evidence) -> dict[str, list[Picture]]:
    """What one trial of an arm can show beyond that, by "arm, seed": attention, ROC, scores, how training went."""
    found: dict[str, list[Picture]] = {}
    trials = _pictured_trials(evidence, "examples")
    trials.sort(key=lambda trial: trial.arm not in _primary_arms(evidence.study))
    first = {_task(evidence, trial): trial for trial in reversed(trials)}
    trials.sort(key=lambda trial: trial not in first.values())
    for trial in trials:
        record = evidence.study.records[trial.trial_id]
        most = max((len(of_arm) for of_arm in found.values()), default=0)
        if record is None or (len(found) >= len(first) and most * (len(found) + 1) > MOST_CLOSE):
            break
        drawn = list(trial_pictures.detail_pictures(evidence.study.storage, trial.trial_id, record))
        if len(first) > 1:
            drawn = sorted(drawn, key=_closeness)[: max(1, MOST_CLOSE // len(first))]
        found[f"{trial.arm}, seed {trial.seed}"] = [_of_arm(picture, trial) for picture in drawn]
    return {trial: drawn for trial, drawn in found.items() if drawn}


def _task(evidence: Evidence, trial: PlannedTrial) -> str:
    record = evidence.study.records[trial.trial_id]
    return "" if record is None else str(tables.lookup(record.config, "data.task"))


def _closeness(picture: Picture) -> int:
    return next((i for i, begin in enumerate(CLOSE_FIRST) if picture.name.startswith(begin)), len(CLOSE_FIRST))


def _of_arm(picture: Picture, trial: PlannedTrial, arms: str = "") -> Picture:
    """The figure of a trial, in words that name the arm, or the arms, it stands for."""
    return dataclasses.replace(
        picture,
        name=f"{picture.name}-{_slug(trial.arm)}",
        alt=f"Arm {arms or trial.arm}, seed {trial.seed}. {picture.alt}",
        caption=f"{arms or trial.arm}, seed {trial.seed}: {picture.caption}",
    )


def _pictured_trials(evidence: Evidence, name: str) -> list[PlannedTrial]:
    """One complete trial of each drawn arm that left these arrays, from the seed that most arms have."""
    complete = set(evidence.trials.loc[evidence.trials["state"] == "complete", "trial_id"])
    have = [t for t in evidence.study.trials if t.trial_id in complete and t.arm in evidence.shown]
    by_seed = sorted(have, key=lambda trial: -sum(other.seed == trial.seed for other in have))
    found: dict[str, PlannedTrial] = {}
    for trial in by_seed:
        if trial.arm not in found and evidence.study.arrays(trial.trial_id, name) is not None:
            found[trial.arm] = trial
    return [found[arm] for arm in evidence.shown if arm in found]


def below_floor(evidence: Evidence) -> str:
    """Names the arms that training did not help, in one line; empty when there is none."""
    arms, contrasts = evidence.arms, evidence.study.plan.contrasts
    if "untrained" not in arms:
        return ""
    gain = (arms["mean"] - arms["untrained"]) * (1 if evidence.study.plan.higher_is_better else -1)
    lost = [str(arm) for arm in arms.loc[gain <= 0, "arm"]]
    if not lost:
        return ""
    compared = [arm for arm in lost if any(arm in (c.treatment, c.control) for c in contrasts)]
    warning = f" Comparisons with {', '.join(compared)} say little." if compared else ""
    return f"No better than the untrained encoder on average: {', '.join(lost)}.{warning}"


def _slug(name: str) -> str:
    """A file name from any name of a record."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "unnamed"

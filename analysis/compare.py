"""Two result folders, say before and after a change of the code: are they the same, and if not, by how much?

    python -m analysis.compare before after                               all studies that both have
    python -m analysis.compare before/masking_ablation after/masking_ablation --out comparison

Trials are matched by study, arm and seed, whatever their ids: an id changes with the Config, the jets and the trainer
version. Times are reported and never part of the answer. Exit code: 0 all bit-equal, 1 something differs or is missing
on one side, 2 bad input. Differences are B minus A.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable

from analysis.report.section import Section, Table
from analysis.stats import paired
from analysis.stats.paired import MeanInterval
from analysis.verdicts import exploratory, provenance, tables
from analysis.verdicts import number_format as fmt
from analysis.verdicts.decide import decide_study
from analysis.verdicts.sentences import contrast_name, outcome_label
from analysis.verdicts.verdict import Verdict
from jbot.cli import Parser, program
from jbot.config import flatten
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import FILE, StudyRecords, load_study
from jbot.store.record import Record, load_curves, trial_folder
from jbot.store.storage import RecordError, Storage

EQUAL, DIFFERING = 0, 1
WEIGHTS = "student.safetensors"
MAX_ROWS = 12
"""Rows of a table on a terminal; compare.html has all."""
NARROW = 110
"""Columns of a terminal below which intervals are left out."""
FACTS = ("Data", "Plan hash", "Trainer", "Git commit", "Libraries", "Hardware")
"""Those of :func:`analysis.verdicts.provenance.facts` that may be the reason of a difference."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One trial on both sides; None where it has not ended, or is not planned."""

    arm: str
    seed: int
    a: Record | None
    b: Record | None
    curves_equal: bool | None
    """Learning curves without their times; None where a side has none."""
    weights_equal: bool | None
    """Final weights, byte for byte; None where a side has none."""

    @property
    def name(self) -> str:
        """Arm and seed, in words."""
        return f"{self.arm} at seed {self.seed}"

    @property
    def equal(self) -> bool:
        """Bit-equal in all that both sides have kept; also true where neither has ended."""
        if self.a is None or self.b is None:
            return self.a is self.b
        left, right = self.a.metrics, self.b.metrics
        same = all(_equal(left.get(name), right.get(name)) for name in {*left, *right})
        return self.a.state == self.b.state and same and False not in (self.curves_equal, self.weights_equal)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One study on both sides."""

    name: str
    a: StudyRecords
    b: StudyRecords
    pairs: tuple[Pair, ...]

    @property
    def equal(self) -> bool:
        """Whether all that has ended is bit-equal, and has ended on both sides."""
        return all(pair.equal for pair in self.pairs)

    @property
    def matched(self) -> list[tuple[Pair, Record, Record]]:
        """Trials that have ended on both sides."""
        return [(pair, pair.a, pair.b) for pair in self.pairs if pair.a is not None and pair.b is not None]


# --- matching -------------------------------------------------------------------------------------------------------


def find_studies(storage: Storage) -> dict[str, str]:
    """Study folders by name: of a storage all of them, of a study's folder itself.

    Raises RecordError when there is no study.
    """
    if storage.exists(FILE):
        return {storage.uri.rstrip("/").rpartition("/")[2]: storage.address}
    studies = {name: f"{storage.address}/{name}" for name in storage.names() if storage.exists(f"{name}/{FILE}")}
    if not studies:
        raise RecordError(f"{storage.uri} holds no study: it must be a study's folder, or one with such folders")
    return studies


def match(a: str, b: str) -> tuple[list[Comparison], list[str]]:
    """The studies that both folders have, and one line for each that only one has.

    Two study folders are compared whatever their names.

    Raises RecordError when a folder holds no study, both have none in common, or no trial has ended on both sides.
    """
    sides = [Storage(a), Storage(b)]
    left, right = (find_studies(side) for side in sides)
    single = [side.exists(FILE) for side in sides]
    if all(single):
        right = dict(zip(left, right.values(), strict=True))
    common = [name for name in left if name in right]
    if not common:
        raise RecordError(f"no study is in both: A has {', '.join(left)}; B has {', '.join(right)}")
    lonely = [f"only in A: study {name}" for name in left if name not in right and not single[1]]
    lonely += [f"only in B: study {name}" for name in right if name not in left and not single[0]]
    comparisons = [compare(load_study(left[name]), load_study(right[name]), name) for name in common]
    if not any(study.matched for study in comparisons):
        raise RecordError("no trial of the same arm and seed has ended on both sides")
    return comparisons, lonely


def compare(a: StudyRecords, b: StudyRecords, name: str) -> Comparison:
    """Match the trials of two studies by arm and seed, those of A first."""
    left, right = (
        {(trial.arm, trial.seed): study.records[trial.trial_id] for trial in study.trials} for study in (a, b)
    )
    pairs = []
    for key in dict.fromkeys([*left, *right]):
        one, other = left.get(key), right.get(key)
        same: list[bool | None] = [None, None]
        if one is not None and other is not None:
            kept = [(read(a.storage, one.trial_id), read(b.storage, other.trial_id)) for read in (_curves, _digest)]
            same = [x == y if x and y else None for x, y in kept]
        pairs.append(Pair(arm=key[0], seed=key[1], a=one, b=other, curves_equal=same[0], weights_equal=same[1]))
    return Comparison(name=name, a=a, b=b, pairs=tuple(pairs))


def _curves(storage: Storage, trial: str) -> str:
    """As text, so that NaN equals NaN and no bit of a number is lost; empty without curves."""
    rows = load_curves(storage, trial)
    return "\n".join(repr({key: value for key, value in row.items() if not key.endswith("seconds")}) for row in rows)


def _digest(storage: Storage, trial: str) -> str:
    name = f"{trial_folder(trial)}/{WEIGHTS}"
    return hashlib.sha256(storage.read(name)).hexdigest() if storage.exists(name) else ""


# --- what differs ---------------------------------------------------------------------------------------------------


def metric_table(study: Comparison) -> pd.DataFrame:
    """One row per trial and metric, all of them.

    Columns are study, arm, seed, metric, a, b, difference (B minus A, NaN where a side has no finite value), equal.
    """
    rows = []
    for pair, a, b in study.matched:
        for metric in dict.fromkeys([*a.metrics, *b.metrics]):
            one, other = a.metrics.get(metric), b.metrics.get(metric)
            left, right = tables.as_number(one), tables.as_number(other)
            rows.append([study.name, pair.arm, pair.seed, metric, left, right, right - left, _equal(one, other)])
    columns = ["study", "arm", "seed", "metric", "a", "b", "difference", "equal"]
    return pd.DataFrame(rows, columns=columns)


def _equal(one: object, other: object) -> bool:
    """NaN, which a record that others wrote may hold, equals NaN."""
    return one == other or (one != one and other != other)


def by_seed(frame: pd.DataFrame) -> pd.Series:
    """Mean difference at each seed: arms of a block share their noise, so a seed counts once."""
    return frame.groupby("seed")["difference"].mean().dropna()


def metrics_section(study: Comparison, frame: pd.DataFrame) -> Table:
    """Metrics that differ, the primary one first, then by how clearly they do; p by Benjamini-Hochberg.

    Without the many numbers of one ROC curve, and without baselines: compare.csv has them.
    """
    primary, rows = study.a.plan.metric, []
    shown = {primary, *tables.other_metrics(pd.DataFrame(columns=frame["metric"].unique()), study.a.plan)}
    for metric, trials in frame[frame["metric"].isin(shown)].groupby("metric"):
        if not trials["equal"].all():
            gaps = by_seed(trials)
            rows.append((str(metric), trials, paired.mean_interval(gaps), exploratory.sign_flip(gaps.to_numpy())))

    def place(row: tuple[str, pd.DataFrame, MeanInterval, float]) -> tuple[bool, bool, float]:
        metric, _, mean, _ = row
        clear = abs(mean.mean) / mean.standard_error if mean.n > 1 and mean.standard_error > 0 else 0.0
        return metric != primary, find_metric(metric).split != "test", -clear

    adjusted = exploratory.corrected([p for *_, p in rows])
    cells = []
    for (metric, trials, mean, _), p in sorted(zip(rows, adjusted, strict=True), key=lambda item: place(item[0])):
        equal = trials["equal"]
        largest = fmt.compact(float(trials.loc[~equal, "difference"].abs().max()), 2)
        how_many = f"{int(equal.sum())} of {len(trials)}"
        cells.append([metric, how_many, largest, *_mean_cells(mean), fmt.p_cell(p, mean.n)])
    head = ["metric", "bit-equal", "largest difference", "mean, B − A", "95% interval", "seeds", "p, corrected"]
    differing, every_metric = frame.loc[~frame["equal"], "metric"].nunique(), frame["metric"].nunique()
    label = f"metrics that differ ({differing} of {every_metric}; without those of baselines and single cuts)"
    return Table(label=f"{study.name}: {label}", head=head, rows=cells)


def _mean_cells(mean: MeanInterval) -> list[str]:
    """Mean and error, also where it is zero; interval; number of seeds."""
    error = mean.standard_error
    size = fmt.with_error(mean.mean, error, sign=True) if mean.n > 1 else fmt.number(mean.mean, sign=True)
    return [size, fmt.interval_cell(mean), str(mean.n)]


def arms_section(study: Comparison, frame: pd.DataFrame) -> Table:
    """The primary metric of every arm on both sides."""
    metric, rows = study.a.plan.metric, []
    for arm in dict.fromkeys(pair.arm for pair in study.pairs):
        trials = frame[(frame["metric"] == metric) & (frame["arm"] == arm)]
        both = trials.dropna(subset=["a", "b"])  # else the means are of other seeds, and their difference is not B − A
        means = [fmt.number(float(both[side].mean())) for side in ("a", "b")]
        how_many = f"{int(trials['equal'].sum())} of {len(trials)}"
        rows.append([arm, how_many, *means, *_mean_cells(paired.mean_interval(by_seed(trials)))])
    head = ["arm", "bit-equal", "mean of A", "mean of B", "B − A", "95% interval", "seeds"]
    return Table(label=f"{study.name}: {find_metric(metric).full_label}", head=head, rows=rows)


def verdicts_section(study: Comparison) -> Table:
    """What each side concludes on the contrasts that both plan."""
    left, right = ({one.contrast.name: one for one in decide_study(side).verdicts} for side in (study.a, study.b))
    rows = [
        [
            contrast_name(name),
            _verdict_cell(a),
            _verdict_cell(b),
            "same" if outcome_label(a) == outcome_label(b) else "CHANGED",
        ]
        for name, a in left.items()
        if (b := right.get(name))
    ]
    head = ["contrast", "A", "B", ""]
    return Table(label=f"{study.name}: verdicts", head=head, rows=rows, text_columns=range(4))


def _verdict_cell(verdict: Verdict) -> str:
    return f"{outcome_label(verdict)}, {_mean_cells(verdict.difference)[0]}, n = {verdict.difference.n}"


def reasons(study: Comparison) -> Iterator[str]:
    """What else is not the same on the two sides: it may be why their numbers differ."""
    left, right = provenance.facts(study.a), provenance.facts(study.b)
    for name in FACTS:
        if left.get(name) != right.get(name):
            yield f"{name}: A {left.get(name, 'not recorded')}; B {right.get(name, 'not recorded')}"
    renamed = sum(a.trial_id != b.trial_id for _, a, b in study.matched)
    if renamed:
        yield f"ids differ for {fmt.count(renamed, 'trial')}, matched by arm and seed"
    changed: Counter[str] = Counter()
    for _, *trials in study.matched:
        a, b = (flatten(trial.config) for trial in trials)
        fields = [(field, a.get(field, "none"), b.get(field, "none")) for field in sorted({*a, *b})]
        changed.update(f"{field}: A {one}, B {other}" for field, one, other in fields if one != other)
    for line, n in changed.items():
        yield f"Config of {fmt.count(n, 'trial')}, {line}"


def missing(study: Comparison) -> Iterator[str]:
    """Trials that only one side has, and those that ended otherwise."""
    only_a = [pair.name for pair in study.pairs if pair.a is not None and pair.b is None]
    only_b = [pair.name for pair in study.pairs if pair.a is None and pair.b is not None]
    for side, names in (("A", only_a), ("B", only_b)):
        if names:
            shown = ", ".join(names[:6]) + ", …" * (len(names) > 6)
            yield f"ended only in {side}: {fmt.count(len(names), 'trial')} ({shown})"
    for pair, *sides in study.matched:
        a, b = (record.state + (f" ({record.reason})" if record.reason else "") for record in sides)
        if sides[0].state != sides[1].state:
            yield f"{pair.name}: {a} in A, {b} in B"


def time_line(study: Comparison) -> str:
    """Device seconds of B over those of A, as a geometric mean over seeds."""
    timed = [(pair.seed, a.own_seconds, b.own_seconds) for pair, a, b in study.matched]
    ratios = [(seed, math.log(b / a)) for seed, a, b in timed if a > 0 and b > 0]
    logs = paired.mean_interval(pd.DataFrame(ratios, columns=["seed", "log"]).groupby("seed")["log"].mean())
    if not logs.n:
        return "device seconds: not known"
    spread = f" (95% interval {math.exp(logs.low):.2f} to {math.exp(logs.high):.2f})" if logs.n > 1 else ""
    machines = {tables.device_of(side) for _, *sides in study.matched for side in sides}
    where = "one kind of machine" if len(machines) == 1 else f"{len(machines)} kinds of machine: not comparable"
    trials = fmt.count(len(study.matched), "trial")
    return f"device seconds: B takes {math.exp(logs.mean):.2f} times A{spread}, {trials}, {where}"


def headline(study: Comparison) -> str:
    """The answer in one line."""
    pairs = [pair for pair, *_ in study.matched]
    curves, weights = [pair.curves_equal for pair in pairs], [pair.weights_equal for pair in pairs]
    if study.equal:
        kept = [(what, equal.count(True)) for what, equal in (("curves", curves), ("weights", weights)) if any(equal)]
        of = [what if n == len(pairs) else f"{what} of {n} that both sides have" for what, n in kept]
        also = f", and their {' and '.join(of)} too" if of else ""
        return f"{study.name}: EQUAL. All metrics of {fmt.count(len(pairs), 'trial')} are bit-equal{also}."
    alone = sum((pair.a is None) != (pair.b is None) for pair in study.pairs)
    return (
        f"{study.name}: DIFFERENT. {sum(pair.equal for pair in pairs)} of {len(pairs)} matched trials are bit-equal; "
        f"curves of {curves.count(False)} and final weights of {weights.count(False)} differ."
    ) + (f" {fmt.count(alone, 'trial')} ended on one side only." if alone else "")


# --- how it is shown ------------------------------------------------------------------------------------------------


def section(study: Comparison, frame: pd.DataFrame) -> Section:
    """All that is said of one study; of tables only verdicts where nothing differs."""
    shown = [] if bool(frame["equal"].all()) else [arms_section(study, frame), metrics_section(study, frame)]
    return Section(
        title=study.a.plan.question,
        key=study.name,
        answer=[headline(study)],
        notes=[*missing(study), *reasons(study), time_line(study)],
        tables=[table for table in (*shown, verdicts_section(study)) if table.rows],
    )


def show(studies: Sequence[Comparison], sections: Sequence[Section], lonely: Sequence[str], console: Console) -> None:
    """Print the comparison; tables only of what differs."""
    for study, part in zip(studies, sections, strict=True):
        console.print(f"[bold]{escape(part.answer[0])}[/]", highlight=False, soft_wrap=True)
        for line in part.notes:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        for table in part.tables if not study.equal else ():
            shown = [i for i, head in enumerate(table.head) if console.width >= NARROW or "interval" not in head]
            more = f" (first {MAX_ROWS} of {len(table.rows)}; --out writes all)" if len(table.rows) > MAX_ROWS else ""
            printed = TerminalTable(title=table.label + more, title_justify="left")
            for i in shown:
                side: Literal["left", "right"] = "left" if i in table.text_columns else "right"
                printed.add_column(table.head[i], justify=side, overflow="fold", no_wrap=i == 0)
            for row in table.rows[:MAX_ROWS]:
                printed.add_row(*(escape(row[i]) for i in shown))
            console.print(printed)
    for line in lonely:
        console.print(line, highlight=False, markup=False)


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when all is bit-equal, 1 when something differs, 2 for bad input."""
    parser = Parser(
        prog="python -m analysis.compare",
        description="Are the results of two folders the same? Before and after a change of the code, say.",
    )
    parser.add_argument("a", help="results of one side: a study's folder, or one with several; s3:// or gs:// too")
    parser.add_argument("b", help="of the other side")
    parser.add_argument("--out", type=Path, help="folder for compare.html and compare.csv")
    options = parser.parse_args(arguments)
    studies, lonely = match(options.a, options.b)
    frames = [metric_table(study) for study in studies]
    sections = [section(study, frame) for study, frame in zip(studies, frames, strict=True)]
    equal = all(study.equal for study in studies) and not lonely
    show(studies, sections, lonely, Console())
    if options.out:
        from analysis.report.build import environment, write  # drawing libraries: on a terminal none is needed

        content = {"a": options.a, "b": options.b, "equal": equal, "lonely": lonely, "sections": sections}
        write(options.out / "compare.csv", pd.concat(frames, ignore_index=True).to_csv(index=False))
        write(options.out / "compare.html", environment().get_template("compare.html.j2").render(content))
        print(options.out / "compare.html")
    return EQUAL if equal else DIFFERING


if __name__ == "__main__":
    sys.exit(main())

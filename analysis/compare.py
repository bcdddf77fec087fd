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
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable

from analysis.report.section import Section, Table
from analysis.stats import paired
from analysis.stats.paired import MeanInterval
from analysis.verdicts import exploratory, provenance, tables
from analysis.verdicts import number_format as fmt
from analysis.verdicts.decide import SEED, decide_study
from analysis.verdicts.sentences import contrast_name
from analysis.verdicts.verdict import Verdict
from jbot.cli import Parser, program
from jbot.config import flatten
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import FILE, PlannedTrial, StudyRecords, load_study
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
        names = {*self.a.metrics, *self.b.metrics}
        same = all(_equal(self.a.metrics.get(name), self.b.metrics.get(name)) for name in names)
        kept = self.curves_equal is not False and self.weights_equal is not False
        return self.a.state == self.b.state and same and kept


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


def find_studies(folder: str) -> dict[str, str]:
    """Study folders by name: of a storage all of them, of a study's folder itself.

    Raises
    ------
    RecordError
        When there is no study.
    """
    storage = _open(folder)
    if storage.exists(FILE):
        return {storage.uri.rstrip("/").rpartition("/")[2]: storage.address}
    found = {name: f"{storage.address}/{name}" for name in storage.names() if storage.exists(f"{name}/{FILE}")}
    if not found:
        raise RecordError(f"{storage.uri} holds no study: it must be a study's folder, or one with such folders")
    return found


def _open(folder: str) -> Storage:
    return Storage(folder if "://" in folder else Path(folder).expanduser())


def match(a: str, b: str) -> tuple[list[Comparison], list[str]]:
    """The studies that both folders have, and one line for each that only one has.

    Two study folders are compared whatever their names.

    Raises
    ------
    RecordError
        When a folder holds no study, both have none in common, or no trial has ended on both sides.
    """
    left, right = find_studies(a), find_studies(b)
    single = [_open(side).exists(FILE) for side in (a, b)]
    if all(single):
        right = dict(zip(left, right.values(), strict=True))
    common = [name for name in left if name in right]
    if not common:
        raise RecordError(f"no study is in both: A has {', '.join(left)}; B has {', '.join(right)}")
    lonely = [f"only in A: study {name}" for name in left if name not in right and not single[1]]
    lonely += [f"only in B: study {name}" for name in right if name not in left and not single[0]]
    found = [compare(load_study(left[name]), load_study(right[name]), name) for name in common]
    if not any(one.matched for one in found):
        raise RecordError("no trial of the same arm and seed has ended on both sides")
    return found, lonely


def compare(a: StudyRecords, b: StudyRecords, name: str = "") -> Comparison:
    """Match the trials of two studies by arm and seed, those of A first."""
    sides = [{(trial.arm, trial.seed): trial for trial in study.trials} for study in (a, b)]
    keys = list(dict.fromkeys([*sides[0], *sides[1]]))
    pairs = tuple(_pair(a, b, key, sides[0].get(key), sides[1].get(key)) for key in keys)
    return Comparison(name=name or a.plan.study, a=a, b=b, pairs=pairs)


def _pair(
    a: StudyRecords, b: StudyRecords, key: tuple[str, int], left: PlannedTrial | None, right: PlannedTrial | None
) -> Pair:
    one, other = (a.records[left.trial_id] if left else None), (b.records[right.trial_id] if right else None)
    curves = weights = None
    if one is not None and other is not None:
        curves = _same(_curves(a.storage, one.trial_id), _curves(b.storage, other.trial_id))
        weights = _same(_digest(a.storage, one.trial_id), _digest(b.storage, other.trial_id))
    return Pair(arm=key[0], seed=key[1], a=one, b=other, curves_equal=curves, weights_equal=weights)


def _same(one: object, other: object) -> bool | None:
    return None if not one or not other else one == other


def _curves(storage: Storage, trial: str) -> list[str]:
    """As text, so that NaN equals NaN and no bit of a number is lost."""
    rows = load_curves(storage, trial)
    return [repr({key: value for key, value in row.items() if not key.endswith("seconds")}) for row in rows]


def _digest(storage: Storage, trial: str) -> str:
    name = f"{trial_folder(trial)}/{WEIGHTS}"
    return hashlib.sha256(storage.read(name)).hexdigest() if storage.exists(name) else ""


# --- what differs ---------------------------------------------------------------------------------------------------


def metric_table(found: Comparison) -> pd.DataFrame:
    """One row per trial and metric, all of them.

    Returns
    -------
    DataFrame
        study, arm, seed, metric, a, b, difference (B minus A, NaN where a side has no finite value), equal.
    """
    rows = []
    for pair, a, b in found.matched:
        for metric in dict.fromkeys([*a.metrics, *b.metrics]):
            one, other = a.metrics.get(metric), b.metrics.get(metric)
            left, right = tables.as_number(one), tables.as_number(other)
            rows.append([found.name, pair.arm, pair.seed, metric, left, right, right - left, _equal(one, other)])
    columns = ["study", "arm", "seed", "metric", "a", "b", "difference", "equal"]
    return pd.DataFrame(rows, columns=columns)


def _equal(one: object, other: object) -> bool:
    """NaN, which a record that others wrote may hold, equals NaN."""
    return one == other or (one != one and other != other)


def over_seeds(differences: pd.DataFrame) -> MeanInterval:
    """Mean difference with its t interval over seeds: arms of a block share their noise, so a seed counts once."""
    return paired.mean_interval(differences.groupby("seed")["difference"].mean().dropna())


def metrics_section(found: Comparison, frame: pd.DataFrame) -> Table:
    """Metrics that differ, the primary one first, then by how clearly they do; p by Benjamini-Hochberg.

    Without the many numbers of one ROC curve, and without baselines: compare.csv has them.
    """
    rng, rows = np.random.default_rng(SEED), []
    whole = set(tables.other_metrics(pd.DataFrame(columns=frame["metric"].unique()), found.a.plan))
    shown = frame["metric"].isin(whole | {found.a.plan.metric})
    for metric, of_metric in frame[~frame["equal"] & shown].groupby("metric"):
        every = frame[frame["metric"] == metric]
        by_seed = every.groupby("seed")["difference"].mean().dropna()
        p = paired.sign_flip_test(by_seed, rng) if len(by_seed) > 1 else math.nan
        largest = float(of_metric["difference"].abs().max())
        rows.append((str(metric), len(every), len(every) - len(of_metric), largest, over_seeds(every), p))
    adjusted = exploratory.corrected([row[-1] for row in rows])
    ordered = sorted(zip(rows, adjusted, strict=True), key=lambda row: _clearness(found, row[0]))
    cells = [
        [metric, f"{equal} of {n}", fmt.compact(largest, 2), *_mean_cells(mean), _p(p, mean.n)]
        for (metric, n, equal, largest, mean, _), p in ordered
    ]
    head = ["metric", "bit-equal", "largest difference", "mean, B − A", "95% interval", "seeds", "p, corrected"]
    differing, every_metric = frame.loc[~frame["equal"], "metric"].nunique(), frame["metric"].nunique()
    label = f"metrics that differ ({differing} of {every_metric}; without those of baselines and single cuts)"
    return Table(label=f"{found.name}: {label}", head=head, rows=cells)


def _clearness(found: Comparison, row: tuple[str, int, int, float, MeanInterval, float]) -> tuple[bool, bool, float]:
    metric, mean = row[0], row[4]
    clear = abs(mean.mean) / mean.standard_error if mean.n > 1 and mean.standard_error > 0 else 0.0
    return metric != found.a.plan.metric, find_metric(metric).split != "test", -clear


def _p(p: float, n: int) -> str:
    return fmt.p_value(p, paired.min_p(n)) if n > 1 else fmt.MISSING


def _mean_cells(mean: MeanInterval) -> list[str]:
    if mean.n < 2:
        return [fmt.number(mean.mean, sign=True), fmt.MISSING, str(mean.n)]
    error = mean.standard_error
    return [fmt.with_error(mean.mean, error, sign=True), fmt.interval(mean.low, mean.high, error), str(mean.n)]


def arms_section(found: Comparison, frame: pd.DataFrame) -> Table:
    """The primary metric of every arm on both sides."""
    metric, rows = found.a.plan.metric, []
    of_metric = frame[frame["metric"] == metric]
    for arm in dict.fromkeys(pair.arm for pair in found.pairs):
        own = of_metric[of_metric["arm"] == arm]
        both = own.dropna(subset=["a", "b"])  # else the means are of other seeds, and their difference is not B − A
        means = [fmt.number(float(both[side].mean())) for side in ("a", "b")]
        rows.append([arm, f"{int(own['equal'].sum())} of {len(own)}", *means, *_mean_cells(over_seeds(own))])
    head = ["arm", "bit-equal", "mean of A", "mean of B", "B − A", "95% interval", "seeds"]
    return Table(label=f"{found.name}: {find_metric(metric).full_label}", head=head, rows=rows)


def verdicts_section(found: Comparison) -> Table:
    """What each side concludes on the contrasts that both plan."""
    one, other = ({item.contrast.name: item for item in decide_study(study).verdicts} for study in (found.a, found.b))
    rows = [
        [
            contrast_name(name),
            _verdict_cell(one[name]),
            _verdict_cell(other[name]),
            "same" if one[name].outcome == other[name].outcome else "CHANGED",
        ]
        for name in one
        if name in other
    ]
    head = ["contrast", "A", "B", ""]
    return Table(label=f"{found.name}: verdicts", head=head, rows=rows, text_columns=range(4))


def _verdict_cell(item: Verdict) -> str:
    d = item.difference
    size = fmt.with_error(d.mean, d.standard_error, sign=True) if d.n > 1 else fmt.number(d.mean, sign=True)
    return f"{item.outcome}, {size}, n = {d.n}"


def reasons(found: Comparison) -> Iterator[str]:
    """What else is not the same on the two sides: it may be why their numbers differ."""
    one, other = (provenance.facts(study) for study in (found.a, found.b))
    for name in FACTS:
        if one.get(name) != other.get(name):
            yield f"{name}: A {one.get(name, 'not recorded')}; B {other.get(name, 'not recorded')}"
    renamed = sum(a.trial_id != b.trial_id for _, a, b in found.matched)
    if renamed:
        yield f"ids differ for {fmt.count(renamed, 'trial')}, matched by arm and seed"
    changed = Counter(line for _, a, b in found.matched for line in _changes(a.config, b.config))
    for line, n in changed.items():
        yield f"Config of {fmt.count(n, 'trial')}, {line}"


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Fields of two Configs that differ."""
    left, right = flatten(a), flatten(b)
    for field in sorted({*left, *right}):
        one, other = (side.get(field, "none") for side in (left, right))
        if one != other:
            yield f"{field}: A {one}, B {other}"


def missing(found: Comparison) -> Iterator[str]:
    """Trials that only one side has, and those that ended otherwise."""
    only = {
        "A": [pair.name for pair in found.pairs if pair.a is not None and pair.b is None],
        "B": [pair.name for pair in found.pairs if pair.a is None and pair.b is not None],
    }
    for side, names in only.items():
        if names:
            shown = ", ".join(names[:6]) + ", …" * (len(names) > 6)
            yield f"ended only in {side}: {fmt.count(len(names), 'trial')} ({shown})"
    for pair, a, b in found.matched:
        if a.state != b.state:
            yield f"{pair.name}: {_ending(a)} in A, {_ending(b)} in B"


def _ending(record: Record) -> str:
    return record.state + (f" ({record.reason})" if record.reason else "")


def time_line(found: Comparison) -> str:
    """Device seconds of B over those of A, as a geometric mean over seeds."""
    ratios: dict[int, list[float]] = defaultdict(list)
    for pair, a, b in found.matched:
        if a.own_seconds > 0 and b.own_seconds > 0:
            ratios[pair.seed].append(math.log(b.own_seconds / a.own_seconds))
    logs = paired.mean_interval([float(np.mean(values)) for values in ratios.values()])
    if not logs.n:
        return "device seconds: not known"
    spread = f" (95% interval {math.exp(logs.low):.2f} to {math.exp(logs.high):.2f})" if logs.n > 1 else ""
    machines = {tables.device_of(side) for _, *sides in found.matched for side in sides}
    where = "one kind of machine" if len(machines) == 1 else f"{len(machines)} kinds of machine: not comparable"
    trials = fmt.count(len(found.matched), "trial")
    return f"device seconds: B takes {math.exp(logs.mean):.2f} times A{spread}, {trials}, {where}"


def headline(found: Comparison) -> str:
    """The answer in one line."""
    pairs = [pair for pair, *_ in found.matched]
    curves, weights = [pair.curves_equal for pair in pairs], [pair.weights_equal for pair in pairs]
    if found.equal:
        kept = [what for what, equal in (("curves", curves), ("weights", weights)) if any(equal)]
        also = f", and their {' and '.join(kept)} too" if kept else ""
        return f"{found.name}: EQUAL. All metrics of {fmt.count(len(pairs), 'trial')} are bit-equal{also}."
    alone = sum((pair.a is None) != (pair.b is None) for pair in found.pairs)
    return (
        f"{found.name}: DIFFERENT. {sum(pair.equal for pair in pairs)} of {len(pairs)} matched trials are bit-equal; "
        f"curves of {curves.count(False)} and final weights of {weights.count(False)} differ."
    ) + (f" {fmt.count(alone, 'trial')} ended on one side only." if alone else "")


# --- how it is shown ------------------------------------------------------------------------------------------------


def section(found: Comparison, frame: pd.DataFrame) -> Section:
    """All that is said of one study; of tables only verdicts where nothing differs."""
    shown = [] if bool(frame["equal"].all()) else [arms_section(found, frame), metrics_section(found, frame)]
    return Section(
        title=found.a.plan.question,
        key=found.name,
        answer=[headline(found)],
        notes=[*missing(found), *reasons(found), time_line(found)],
        tables=[table for table in (*shown, verdicts_section(found)) if table.rows],
    )


def show(found: Sequence[Comparison], sections: Sequence[Section], lonely: Sequence[str], console: Console) -> None:
    """Print the comparison; tables only of what differs."""
    for one, said in zip(found, sections, strict=True):
        console.print(f"[bold]{escape(said.answer[0])}[/]", highlight=False, soft_wrap=True)
        for line in said.notes:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        for table in said.tables if not one.equal else ():
            console.print(_terminal_table(table, narrow=console.width < NARROW))
    for line in lonely:
        console.print(line, highlight=False, markup=False)


def _terminal_table(table: Table, narrow: bool) -> TerminalTable:
    kept = [i for i, head in enumerate(table.head) if not (narrow and "interval" in head)]
    more = f" (first {MAX_ROWS} of {len(table.rows)}; --out writes all)" if len(table.rows) > MAX_ROWS else ""
    printed = TerminalTable(title=table.label + more, title_justify="left")
    for i in kept:
        left = i in table.text_columns
        printed.add_column(table.head[i], justify="left" if left else "right", overflow="fold", no_wrap=i == 0)
    for row in table.rows[:MAX_ROWS]:
        printed.add_row(*(escape(row[i]) for i in kept))
    return printed


def save(sections: Sequence[Section], frame: pd.DataFrame, out: Path, **said: Any) -> Path:
    """Write compare.html and compare.csv (one row per trial and metric); returns the page."""
    from analysis.report.build import environment, write  # drawing libraries: a comparison on a terminal needs none

    out.mkdir(parents=True, exist_ok=True)
    write(out / "compare.csv", frame.to_csv(index=False))
    write(out / "compare.html", environment().get_template("compare.html.j2").render(sections=sections, **said))
    return out / "compare.html"


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
    found, lonely = match(options.a, options.b)
    frames = [metric_table(one) for one in found]
    sections = [section(one, frame) for one, frame in zip(found, frames, strict=True)]
    equal = all(one.equal for one in found) and not lonely
    show(found, sections, lonely, Console())
    if options.out:
        said = {"a": options.a, "b": options.b, "equal": equal, "lonely": lonely}
        print(save(sections, pd.concat(frames, ignore_index=True), options.out, **said))
    return EQUAL if equal else DIFFERING


if __name__ == "__main__":
    sys.exit(main())

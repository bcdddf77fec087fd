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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable

from analysis.report.section import Table
from analysis.stats import paired
from analysis.stats.paired import MeanInterval
from analysis.verdicts import design, provenance, tables
from analysis.verdicts import number_format as fmt
from analysis.verdicts.decide import SEED, decide_study
from analysis.verdicts.sentences import contrast_name
from analysis.verdicts.verdict import Verdict
from jbot.cli import Parser, program
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import FILE, PlannedTrial, StudyRecords, load_study
from jbot.store.record import Record, RecordError, Storage, load_curves, trial_folder

EQUAL, DIFFERING = 0, 1
WEIGHTS = "student.safetensors"
MOST_METRICS = 12
"""Rows of a table on a terminal; compare.html has all."""
NARROW = 110
"""Columns of a terminal below which intervals are left out."""
FACTS = ("Data", "Plan hash", "Trainer", "Git commit", "Libraries", "Hardware")
"""Of :func:`analysis.verdicts.provenance.facts`: what may be the reason of a difference."""


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
    def both(self) -> bool:
        """Whether it has ended on both sides."""
        return self.a is not None and self.b is not None

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
    def matched(self) -> list[Pair]:
        """Trials that have ended on both sides."""
        return [pair for pair in self.pairs if pair.both]


# --- matching -------------------------------------------------------------------------------------------------------


def find_studies(folder: str) -> dict[str, str]:
    """Study folders by name: of a storage all of them, of a study's folder itself.

    Raises
    ------
    RecordError
        When there is no study.
    """
    storage = Storage(folder if "://" in folder else Path(folder).expanduser())
    if storage.exists(FILE):
        return {storage.uri.rstrip("/").rpartition("/")[2]: storage.address}
    found = {name: f"{storage.address}/{name}" for name in storage.names() if storage.exists(f"{name}/{FILE}")}
    if not found:
        raise RecordError(f"{storage.uri} holds no study: it must be a study's folder, or one with such folders")
    return found


def match(a: str, b: str) -> tuple[list[Comparison], list[str]]:
    """The studies that both folders have, and one line for each that only one has.

    Two study folders are compared whatever their names.

    Raises
    ------
    RecordError
        When a folder holds no study, both have none in common, or no trial has ended on both sides.
    """
    left, right = find_studies(a), find_studies(b)
    single = [Storage(side if "://" in side else Path(side).expanduser()).exists(FILE) for side in (a, b)]
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
    """A row per trial and metric, all of them.

    Returns
    -------
    DataFrame
        study, arm, seed, metric, a, b, difference (B minus A, NaN where a side has no finite value), equal.
    """
    rows = []
    for pair in found.matched:
        assert pair.a is not None
        assert pair.b is not None
        one, other = pair.a.metrics, pair.b.metrics
        for metric in dict.fromkeys([*one, *other]):
            left, right = (tables.as_number(side.get(metric)) for side in (one, other))
            row = {"study": found.name, "arm": pair.arm, "seed": pair.seed, "metric": metric, "a": left, "b": right}
            rows.append(row | {"difference": right - left, "equal": _equal(one.get(metric), other.get(metric))})
    columns = ["study", "arm", "seed", "metric", "a", "b", "difference", "equal"]
    return pd.DataFrame(rows, columns=columns)


def _equal(one: object, other: object) -> bool:
    """A record of other hands may hold NaN, which is then the same on both sides."""
    return one == other or (one != one and other != other)


def over_seeds(differences: pd.DataFrame) -> MeanInterval:
    """Mean difference with its t interval over seeds: arms of a block share their noise, so a seed counts once."""
    return paired.mean_interval(differences.groupby("seed")["difference"].mean().dropna())


def metrics_section(found: Comparison, frame: pd.DataFrame) -> Table:
    """Metrics that differ, the primary one first, then by how clearly they do; p by Benjamini-Hochberg.

    Without the many numbers of one ROC curve, and without floors: compare.csv has them.
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
    adjusted = design.corrected([row[-1] for row in rows])
    ordered = sorted(zip(rows, adjusted, strict=True), key=lambda row: _clearness(found, row[0]))
    cells = [
        [metric, f"{equal} of {n}", fmt.compact(largest, 2), *_mean_cells(mean), _p(p, mean.n)]
        for (metric, n, equal, largest, mean, _), p in ordered
    ]
    head = ["metric", "bit-equal", "largest difference", "mean, B − A", "95% interval", "seeds", "p, corrected"]
    differing, every_metric = frame.loc[~frame["equal"], "metric"].nunique(), frame["metric"].nunique()
    label = (
        f"{found.name}: metrics that differ ({differing} of {every_metric}; without those of floors and single cuts)"
    )
    return Table(label=label, head=head, rows=cells)


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
    rows = []
    for name in one:
        if name in other:
            same = "same" if one[name].outcome == other[name].outcome else "CHANGED"
            rows.append([contrast_name(name), _verdict_cell(one[name]), _verdict_cell(other[name]), same])
    words = range(4)
    return Table(label=f"{found.name}: verdicts", head=["contrast", "A", "B", ""], rows=rows, text_columns=words)


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
    changed: Counter[str] = Counter()
    for pair in found.matched:
        assert pair.a is not None
        assert pair.b is not None
        left, right = flat(pair.a.config), flat(pair.b.config)
        for field in sorted({*left, *right}):
            if left.get(field) != right.get(field):
                changed[f"{field}: A {left.get(field, 'none')}, B {right.get(field, 'none')}"] += 1
    for line, n in changed.items():
        yield f"Config of {fmt.count(n, 'trial')}, {line}"


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested Config by dotted fields."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def missing(found: Comparison) -> Iterator[str]:
    """Trials that only one side has, and those that ended otherwise."""
    for side, has, lacks in (("A", "a", "b"), ("B", "b", "a")):
        alone = [p for p in found.pairs if getattr(p, has) is not None and getattr(p, lacks) is None]
        if alone:
            named = ", ".join(f"{pair.arm} at seed {pair.seed}" for pair in alone[:6]) + ", …" * (len(alone) > 6)
            yield f"ended only in {side}: {fmt.count(len(alone), 'trial')} ({named})"
    for pair in found.matched:
        if pair.a and pair.b and pair.a.state != pair.b.state:
            yield f"{pair.arm} at seed {pair.seed}: {_ending(pair.a)} in A, {_ending(pair.b)} in B"


def _ending(record: Record) -> str:
    return record.state + (f" ({record.reason})" if record.reason else "")


def time_line(found: Comparison) -> str:
    """Device seconds of B over those of A, as a geometric mean over seeds."""
    ratios: dict[int, list[float]] = {}
    machines = {tables.device_of(side) for pair in found.matched for side in (pair.a, pair.b) if side}
    for pair in found.matched:
        if pair.a and pair.b and pair.a.own_seconds > 0 and pair.b.own_seconds > 0:
            ratios.setdefault(pair.seed, []).append(math.log(pair.b.own_seconds / pair.a.own_seconds))
    logs = paired.mean_interval([float(np.mean(values)) for values in ratios.values()])
    if not logs.n:
        return "device seconds: not known"
    spread = f" (95% interval {math.exp(logs.low):.2f} to {math.exp(logs.high):.2f})" if logs.n > 1 else ""
    where = "one kind of machine" if len(machines) == 1 else f"{len(machines)} kinds of machine: not comparable"
    return (
        f"device seconds: B takes {math.exp(logs.mean):.2f} times A{spread}, "
        f"{fmt.count(len(found.matched), 'trial')}, {where}"
    )


def headline(found: Comparison) -> str:
    """The answer in one line."""
    n = len(found.matched)
    if found.equal:
        kept = [what for what in ("curves", "weights") if any(getattr(p, f"{what}_equal") for p in found.matched)]
        also = f", and their {' and '.join(kept)} too" if kept else ""
        return f"{found.name}: EQUAL. All metrics of {fmt.count(n, 'trial')} are bit-equal{also}."
    same = sum(pair.equal for pair in found.matched)
    curves, weights = (
        sum(getattr(pair, f"{what}_equal") is False for pair in found.matched) for what in ("curves", "weights")
    )
    alone = sum(not pair.both and not pair.equal for pair in found.pairs)
    lacking = f" {fmt.count(alone, 'trial')} ended on one side only." if alone else ""
    return (
        f"{found.name}: DIFFERENT. {same} of {n} matched trials are bit-equal; curves of {curves} and final weights of "
        f"{weights} differ.{lacking}"
    )


# --- how it is shown ------------------------------------------------------------------------------------------------


def sections_of(found: Comparison, frame: pd.DataFrame) -> list[Table]:
    """The tables of one study; only verdicts where nothing differs."""
    shown = [] if bool(frame["equal"].all()) else [arms_section(found, frame), metrics_section(found, frame)]
    return [table for table in (*shown, verdicts_section(found)) if table.rows]


def show(found: Sequence[Comparison], frames: Sequence[pd.DataFrame], lonely: Sequence[str], console: Console) -> None:
    """Print the comparison."""
    for one, frame in zip(found, frames, strict=True):
        console.print(f"[bold]{escape(headline(one))}[/]", highlight=False, soft_wrap=True)
        for line in (*missing(one), *reasons(one), time_line(one)):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        if not one.equal:
            for table in sections_of(one, frame):
                console.print(_terminal_table(table, narrow=console.width < NARROW))
    for line in lonely:
        console.print(line, highlight=False, markup=False)


def _terminal_table(table: Table, narrow: bool) -> TerminalTable:
    kept = [i for i, head in enumerate(table.head) if not (narrow and "interval" in head)]
    title = table.label
    if len(table.rows) > MOST_METRICS:
        title += f" (first {MOST_METRICS} of {len(table.rows)}; --out writes all)"
    made = TerminalTable(title=title, title_justify="left")
    for i in kept:
        made.add_column(
            table.head[i], justify="left" if i in table.text_columns else "right", overflow="fold", no_wrap=i == 0
        )
    for row in table.rows[:MOST_METRICS]:
        made.add_row(*(escape(row[i]) for i in kept))
    return made


def save(
    found: Sequence[Comparison],
    frames: Sequence[pd.DataFrame],
    lonely: Sequence[str],
    names: tuple[str, str],
    out: Path,
) -> Path:
    """Write compare.html and compare.csv (a row per trial and metric); returns the page."""
    from analysis.report.build import environment, write  # drawing libraries: a comparison on a terminal needs none

    out.mkdir(parents=True, exist_ok=True)
    write(out / "compare.csv", pd.concat(frames, ignore_index=True).to_csv(index=False))
    studies = [
        {
            "name": one.name,
            "question": one.a.plan.question,
            "equal": one.equal,
            "headline": headline(one).partition(": ")[2],
            "lines": [*missing(one), *reasons(one), time_line(one)],
            "tables": sections_of(one, frame),
        }
        for one, frame in zip(found, frames, strict=True)
    ]
    equal = all(one.equal for one in found) and not lonely
    content = {"studies": studies, "lonely": lonely, "a": names[0], "b": names[1], "equal": equal}
    write(out / "compare.html", environment().get_template("compare.html.j2").render(content))
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
    show(found, frames, lonely, Console())
    if options.out:
        print(save(found, frames, lonely, (options.a, options.b), options.out))
    return EQUAL if all(one.equal for one in found) and not lonely else DIFFERING


if __name__ == "__main__":
    sys.exit(main())

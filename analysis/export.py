"""Every trial of a storage as one tidy table, for pandas, R or a spreadsheet.

    python -m analysis.export results --out all.parquet            one row per trial and metric
    python -m analysis.export results --out trials.csv --wide      one row per trial; metrics and Config as columns
    python -m analysis.export results --out curves.parquet --curves    one row per trial, probed epoch and metric

In Python: ``from analysis.export import tidy; frame = tidy("results")``. A trial that several studies share stands once
for each of them: drop duplicates of trial_id and metric to count trials.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.verdicts.tables import PENDING, device_of
from jbot.cli import Parser, program
from jbot.config import flatten
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import FILE, load_study
from jbot.store.record import Record, load_curves, load_finetune_curves, load_record
from jbot.store.storage import RecordError, Storage, atomic_write

TRIAL = ("folder", "study", "preset", "arm", "seed", "trial_id", "state", "reason")
"""Columns that say which trial a row is of."""
NUMBERS = ("split", "metric", "reference", "value", "error", "fold_sd")
"""Columns of a number: see :func:`tidy`."""
ENDINGS = (".parquet", ".csv")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trial as one study has it."""

    folder: str
    """The study's; empty for a record that no study of the storage plans any more."""
    study: str
    preset: str
    arm: str
    seed: int
    trial_id: str
    record: Record | None
    """None while it has not ended."""

    @property
    def named(self) -> dict[str, Any]:
        """The columns of TRIAL."""
        ended = {"state": self.record.state, "reason": self.record.reason} if self.record else {"state": PENDING}
        own = {name: getattr(self, name) for name in TRIAL[:6]}
        return own | {"reason": None} | ended


def tidy(storage: Storage | str | os.PathLike[str]) -> pd.DataFrame:
    """One row per trial and final metric, of all studies of a storage.

    Parameters
    ----------
    storage : Storage, str or path
        The folder or address of the results.

    Returns
    -------
    DataFrame
        folder, study, preset, arm, seed, trial_id, state (`complete`, `failed`, `pruned`, `pending`), reason;
        split (`test`, `val`, `test_500`, ...), metric (`knn_accuracy`, ...), reference (`untrained`, `raw`,
        `supervised`, or empty for the trained encoder), value, error (from the number of test jets, NaN where there is
        none) and fold_sd (over ten folds of them). A trial without metrics has one row with an empty metric, so that
        failures are not lost.

    Raises
    ------
    RecordError
        When the folder is not there, or a study or record in it is damaged.
    """
    rows = [number for row in _rows(_open(storage)) for number in _numbers(row)]
    return _typed(pd.DataFrame(rows, columns=[*TRIAL, *NUMBERS]))


def wide(storage: Storage | str | os.PathLike[str]) -> pd.DataFrame:
    """One row per trial: where it ran and what it took, ``config.<field>`` of every Config field, every metric.

    Parameters and errors as of :func:`tidy`; lists in a Config are text.
    """
    made = []
    for row in _rows(_open(storage)):
        record = row.record
        cells = row.named
        if record is not None:
            ran = ("started", "wall_seconds", "device_seconds", "own_seconds", "attempts", "plan_hash", "git_commit")
            cells |= {name: getattr(record, name) for name in (*ran, "trainer_version")}
            cells |= {"device": device_of(record), "fingerprint": record.data.get("fingerprint")}
            cells |= {f"config.{field}": _cell(value) for field, value in flatten(record.config).items()}
            cells |= {name: _number(value) for name, value in record.metrics.items()}
        made.append(cells)
    return _typed(pd.DataFrame(made) if made else pd.DataFrame(columns=list(TRIAL)))


def curves(storage: Storage | str | os.PathLike[str]) -> pd.DataFrame:
    """One row per trial, probed epoch and metric: learning curves of pre-training and of fine-tunings.

    Parameters and errors as of :func:`tidy`.

    Returns
    -------
    DataFrame
        The columns of a trial, run (`pretraining`, or `finetune_10` and so on), epoch, device_seconds (NaN where the
        curve has none), metric, value.
    """
    opened, made, read = _open(storage), [], {}
    for row in _rows(opened):
        if row.record is not None:
            if row.trial_id not in read:  # studies share trials
                read[row.trial_id] = list(_points(opened, row.trial_id))
            made += [row.named | point for point in read[row.trial_id]]
    return _typed(pd.DataFrame(made, columns=[*TRIAL, "run", "epoch", "device_seconds", "metric", "value"]))


# --- reading --------------------------------------------------------------------------------------------------------


def _open(storage: Storage | str | os.PathLike[str]) -> Storage:
    if not isinstance(storage, Storage):
        text = os.fspath(storage)
        storage = Storage(text if "://" in text else Path(text).expanduser())
    if not storage.exists("") or storage.exists(FILE):
        raise RecordError(f"{storage.uri} must be the folder of the results, with studies and trials/ in it")
    return storage


def _rows(storage: Storage) -> Iterator[Row]:
    """Trials of every study, then records that no study plans: points of a search, trials of a plan that has gone."""
    planned = set()
    for folder in storage.names():
        if storage.exists(f"{folder}/{FILE}"):
            study = load_study(f"{storage.address}/{folder}")
            for trial in study.trials:
                planned.add(trial.trial_id)
                yield Row(
                    folder=folder,
                    study=study.plan.study,
                    preset=study.plan.preset,
                    arm=trial.arm,
                    seed=trial.seed,
                    trial_id=trial.trial_id,
                    record=study.records[trial.trial_id],
                )
    for name in storage.names("trials"):
        record = load_record(storage, name) if name not in planned else None
        if record is not None:
            yield Row(
                folder="",
                study=record.study,
                preset="",
                arm=record.arm,
                seed=record.seed,
                trial_id=name,
                record=record,
            )


def _numbers(row: Row) -> Iterator[dict[str, Any]]:
    record = row.record
    if record is None or not record.metrics:
        yield row.named | {"split": "", "metric": "", "reference": ""}
        return
    for key, value in record.metrics.items():
        metric = find_metric(key)
        spread = record.uncertainties.get(key, {})
        cells = {"split": metric.split, "metric": metric.name, "reference": metric.baseline, "value": _number(value)}
        yield row.named | cells | {name: _number(spread.get(name)) for name in ("error", "fold_sd")}


def _points(storage: Storage, trial: str) -> Iterator[dict[str, Any]]:
    for point in load_curves(storage, trial):
        yield from _long("pretraining", point)
    for point in load_finetune_curves(storage, trial):
        runs = dict.fromkeys(key.partition("/")[0] for key in point)
        for run in runs:
            yield from _long(run, {key.partition("/")[2]: v for key, v in point.items() if key.startswith(f"{run}/")})


def _long(run: str, point: dict[str, Any]) -> Iterator[dict[str, Any]]:
    head = {"run": run, "epoch": point.get("epoch"), "device_seconds": _number(point.get("device_seconds"))}
    for key, value in point.items():
        if key not in ("epoch", "device_seconds") and isinstance(value, int | float):
            yield head | {"metric": key, "value": _number(value)}


def _cell(value: Any) -> Any:
    return str(value) if isinstance(value, list | tuple) else value


def _number(value: Any) -> float:
    return math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """One type per column, whatever is missing: what Parquet asks for."""
    numbers = [name for name in ("value", "error", "fold_sd", "device_seconds") if name in frame]
    frame = frame.astype(dict.fromkeys(numbers, float) | {"seed": "int64"})
    for name in [name for name in frame.columns if frame[name].dtype == object]:
        there = frame[name].dropna()
        if there.map(type).nunique() > 1:
            plain = there.map(lambda value: isinstance(value, int | float) and not isinstance(value, bool)).all()
            frame[name] = pd.to_numeric(frame[name]) if plain else frame[name].map(str, na_action="ignore")
    return frame


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when the table was written, 2 for bad input."""
    parser = Parser(prog="python -m analysis.export", description="All trials as one tidy table.")
    parser.add_argument("storage", help="folder of the results, or an s3:// or gs:// address")
    parser.add_argument("--out", type=Path, required=True, help=f"file to write, {' or '.join(ENDINGS)}")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--wide", action="store_true", help="one row per trial, with its Config")
    kind.add_argument("--curves", action="store_true", help="learning curves: one row per trial, epoch and metric")
    options = parser.parse_args(arguments)
    if options.out.suffix not in ENDINGS:
        raise RecordError(f"--out must end with {' or '.join(ENDINGS)}, got {options.out.name}")
    frame = (curves if options.curves else wide if options.wide else tidy)(options.storage)
    _write(frame, options.out)
    print(f"{options.out}: {len(frame):,} rows, {len(frame.columns)} columns, {frame['trial_id'].nunique()} trials")
    return 0


def _write(frame: pd.DataFrame, out: Path) -> None:
    with atomic_write(out) as temporary:
        if out.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False)


if __name__ == "__main__":
    sys.exit(main())

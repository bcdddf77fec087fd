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


def tidy(storage: Storage | str | os.PathLike[str]) -> pd.DataFrame:
    """One row per trial and final metric, of all studies of a storage.

    `storage` is the folder or address of the results.

    Returns
    -------
    DataFrame
        folder, study, preset, arm, seed, trial_id, state (`complete`, `failed`, `pruned`, `pending`), reason;
        split (`test`, `val`, `test_500`, ...), metric (`knn_accuracy`, ...), reference (`untrained`, `raw`,
        `supervised`, or empty for the trained encoder), value, error (from the number of test jets, NaN where there is
        none) and fold_sd (over ten folds of them). A trial without metrics has one row with an empty metric, so that
        failures are not lost.

    Raises RecordError when the folder is not there, or a study or record in it is damaged.
    """
    rows = []
    for trial, record in _trials(_open(storage)):
        if record is None or not record.metrics:
            rows.append(trial | {"split": "", "metric": "", "reference": ""})
            continue
        for key, value in record.metrics.items():
            metric, spread = find_metric(key), record.uncertainties.get(key, {})
            cells = {
                "split": metric.split,
                "metric": metric.name,
                "reference": metric.baseline,
                "value": _number(value),
            }
            rows.append(trial | cells | {name: _number(spread.get(name)) for name in ("error", "fold_sd")})
    return _typed(pd.DataFrame(rows, columns=[*TRIAL, *NUMBERS]))


def wide(storage: Storage | str | os.PathLike[str]) -> pd.DataFrame:
    """One row per trial: where it ran and what it took, ``config.<field>`` of every Config field, every metric.

    Parameters and errors as of :func:`tidy`; lists in a Config are text.
    """
    rows = []
    for trial, record in _trials(_open(storage)):
        cells = dict(trial)
        if record is not None:
            ran = ("started", "wall_seconds", "device_seconds", "own_seconds", "attempts", "plan_hash", "git_commit")
            cells |= {name: getattr(record, name) for name in (*ran, "trainer_version")}
            cells |= {"device": device_of(record), "fingerprint": record.data.get("fingerprint")}
            config = flatten(record.config).items()
            cells |= {f"config.{field}": str(v) if isinstance(v, list | tuple) else v for field, v in config}
            cells |= {name: _number(value) for name, value in record.metrics.items()}
        rows.append(cells)
    return _typed(pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(TRIAL)))


def curves(storage: Storage | str | os.PathLike[str]) -> pd.DataFrame:
    """One row per trial, probed epoch and metric: learning curves of pre-training and of fine-tunings.

    Parameters and errors as of :func:`tidy`.

    Columns are those of a trial, run (`pretraining`, or `finetune_10` and so on), epoch, device_seconds (NaN where the
    curve has none), metric, value.
    """
    opened, rows = _open(storage), []
    points: dict[str, list[dict[str, Any]]] = {}
    for trial, record in _trials(opened):
        if record is not None:
            name = trial["trial_id"]
            if name not in points:  # studies share trials
                points[name] = list(_points(opened, name))
            rows += [trial | point for point in points[name]]
    return _typed(pd.DataFrame(rows, columns=[*TRIAL, "run", "epoch", "device_seconds", "metric", "value"]))


# --- reading --------------------------------------------------------------------------------------------------------


def _open(results: Storage | str | os.PathLike[str]) -> Storage:
    storage = results if isinstance(results, Storage) else Storage(results)
    if not storage.exists("") or storage.exists(FILE):
        raise RecordError(f"{storage.uri} must be the folder of the results, with studies and trials/ in it")
    return storage


def _trials(storage: Storage) -> Iterator[tuple[dict[str, Any], Record | None]]:
    """The columns of TRIAL, and the record, None while it has not ended: trials of every study, then records that no
    study plans, points of a search and trials of a plan that has gone."""
    planned = set()
    for folder in storage.names():
        if storage.exists(f"{folder}/{FILE}"):
            study = load_study(f"{storage.address}/{folder}")
            head = {"folder": folder, "study": study.plan.study, "preset": study.plan.preset}
            for trial in study.trials:
                planned.add(trial.trial_id)
                record = study.records[trial.trial_id]
                state, reason = (record.state, record.reason) if record else (PENDING, None)
                yield head | vars(trial) | {"reason": reason, "state": state}, record
    for name in storage.names("trials"):
        record = load_record(storage, name) if name not in planned else None
        if record is not None:
            own = {"folder": "", "preset": "", "trial_id": name}
            columns = (*TRIAL[:6], "reason", "state")
            yield {key: own[key] if key in own else getattr(record, key) for key in columns}, record


def _points(storage: Storage, trial: str) -> Iterator[dict[str, Any]]:
    """Columns of a curve, one row per probed epoch and metric."""
    runs = [("pretraining", point) for point in load_curves(storage, trial)]
    for point in load_finetune_curves(storage, trial):
        for run in dict.fromkeys(key.partition("/")[0] for key in point):
            runs.append((run, {k.removeprefix(f"{run}/"): v for k, v in point.items() if k.startswith(f"{run}/")}))
    for run, point in runs:
        head = {"run": run, "epoch": point.get("epoch"), "device_seconds": _number(point.get("device_seconds"))}
        for key, value in point.items():
            if key not in ("epoch", "device_seconds") and isinstance(value, int | float):
                yield head | {"metric": key, "value": _number(value)}


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
    with atomic_write(options.out) as temporary:
        (frame.to_csv if options.out.suffix == ".csv" else frame.to_parquet)(temporary, index=False)
    print(f"{options.out}: {len(frame):,} rows, {len(frame.columns)} columns, {frame['trial_id'].nunique()} trials")
    return 0


if __name__ == "__main__":
    sys.exit(main())

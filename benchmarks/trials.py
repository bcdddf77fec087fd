"""Trials an hour of the masking study: read from the records of a finished one, or derived from a short trial."""

from __future__ import annotations

import dataclasses
from datetime import datetime

from analysis.plan import load_study
from benchmarks.steps import Setting, one_thread
from benchmarks.timing import Row, no_row, value_row
from benchmarks.trainer import TrialParts, time_trial
from jbot.config import Config, override
from jbot.record import Record
from studies.presets import PRESETS

PRESET = "quick"


def trials(setting: Setting) -> list[Row]:
    """From records when a study is given, and from a short trial on one core."""
    return [*(recorded(setting.study) if setting.study else []), *calibrated(setting)]


def recorded(folder: str) -> list[Row]:
    """What a finished study took.

    Raises
    ------
    RecordError
        When the folder holds no study.
    """
    study = load_study(folder)
    records = [record for record in study.records.values() if record is not None and record.state == "complete"]
    what = f"trials an hour, as {study.plan.study} ran"
    if not records:
        return [no_row(what, "1/h", f"{folder} has no complete trial")]
    starts = [datetime.fromisoformat(record.started).timestamp() for record in records]
    ends = [start + record.wall_seconds for start, record in zip(starts, records, strict=True)]
    hours = (max(ends) - min(starts)) / 3600
    hardware = records[0].hardware
    at_once = sum(record.wall_seconds for record in records) / 3600 / hours
    note = f"{len(records)} trials in {60 * hours:.1f} min, {at_once:.1f} at once, on {hardware.get('cores')} cores"
    if at_once < 0.8:
        note += "; the study stood still in between"
    whole = value_row(what, "1/h", [len(records) / hours], note=note, settings={"study": study.plan.study})
    arms = {record.arm: [r for r in records if r.arm == record.arm] for record in records}
    return [whole, *(_arm_row(arm, found) for arm, found in sorted(arms.items()))]


def _arm_row(arm: str, records: list[Record]) -> Row:
    share = sum(record.probe_seconds for record in records) / sum(record.wall_seconds for record in records)
    seconds = [record.wall_seconds for record in records]
    return value_row(f"one trial of {arm}", "s", seconds, note=f"probes {100 * share:.0f}% of it")


def calibrated(setting: Setting) -> list[Row]:
    """A trial of the quick preset from one short epoch and its probes, one thread."""
    config = override(Config(), PRESETS[PRESET].base)
    sample, repeats = (500, 1) if setting.quick else (2_500, 3)
    found: list[TrialParts] = []
    with one_thread(setting.device):
        for _ in range(repeats):
            found.append(time_trial(config, setting.data, sample, setting.device))
            if setting.advance:
                setting.advance()
    jets = config.data.train_jets
    how = f"{sample} of {jets} jets of an epoch, one probe of each kind"
    training = [jets * config.train.epochs * parts.a_jet for parts in found]
    whole = [parts.whole(config) for parts in found]
    rows = [
        value_row(f"one trial of preset {PRESET}", "s", whole, note=f"from {how}"),
        value_row("of it training steps", "s", training, note="the same"),
    ]
    if setting.device.type == "cpu":
        cpu = [seconds * parts.cpu_per_wall for seconds, parts in zip(whole, found, strict=True)]
        rows.append(value_row("the trial in CPU seconds", "s", cpu, note="what it takes on a core of its own"))
        rows.append(value_row("trials an hour and core", "1/h", [3600 / s for s in cpu], note="from CPU seconds"))
    else:
        rows.append(value_row("trials an hour, one at a time", "1/h", [3600 / s for s in whole], note="the same"))
    return [dataclasses.replace(row, state="derived", settings={"device": setting.device.type}) for row in rows]

"""Trials an hour of the masking study: read from the records of a finished one, or derived from short ones."""

from __future__ import annotations

import dataclasses
from datetime import datetime

from benchmarks.steps import Setting, one_thread
from benchmarks.timing import Row, no_row, value_row
from benchmarks.trainer import enough, time_pack
from jbot.config import Config, override
from jbot.data.jets import JetData
from jbot.store.plan import load_study
from jbot.store.record import Record
from studies.presets import PRESETS

PRESET = "quick"


def trials(setting: Setting) -> list[Row]:
    """From records when a study is given, and from short ones on one core."""
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
    """Packs of the quick preset's trials from ones of a single epoch, one thread."""
    config = override(Config(), PRESETS[PRESET].base)
    if setting.quick:
        config = override(config, {"data.train_jets": 2_000, "probe.bank_jets": 2_000})
    data = enough(setting.data, config)
    sizes = (1,) if setting.quick else (1, 4)
    with one_thread(setting.device):
        setting.stretch(config).run()  # what is loaded with the first steps is no part of a trial
        return [row for size in sizes for row in _calibrated(setting, config, data, size)]


def _calibrated(setting: Setting, config: Config, data: JetData, size: int) -> list[Row]:
    parts = time_pack(config, data, size, setting.device, setting.engine)
    if setting.advance:
        setting.advance()
    what = "one trial" if size == 1 else f"pack of {size}"
    about = f"{what} of preset {PRESET}" + f", {config.data.train_jets} jets" * setting.quick
    how = f"from one epoch of {config.train.epochs}, with its probes, final metrics and records"
    whole, training = parts.whole(config), parts.training(config)
    found = [
        (about, "s", whole, how),
        (f"{what}: training steps", "s", training, "the rest is probes, final metrics and files"),
    ]
    if setting.device.type == "cpu":
        cpu = whole * parts.cpu_per_wall / size
        found.append((f"{what}: CPU seconds a trial", "s", cpu, "what it takes on a core of its own"))
        found.append((f"{what}: trials an hour and core", "1/h", 3600 / cpu, "from CPU seconds"))
    else:
        found.append((f"{what}: trials an hour", "1/h", 3600 * size / whole, how))
    settings = {"device": setting.device.type, "pack": size}
    rows = [value_row(name, unit, [value], note=note, settings=settings) for name, unit, value, note in found]
    return [dataclasses.replace(row, state="derived") for row in rows]

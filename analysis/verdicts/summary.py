"""What a report has found beyond its verdicts, in few words, beside it: ``<study>/summary.json``.

The index reads it, so that it need not compute whole reports again. The file says of which records it was made: a
report that is older than its records is not quoted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jbot.config import digest
from jbot.store.plan import StudyRecords
from jbot.store.storage import RecordError, Storage, atomic_write

FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Section:
    """One of the sections that only some studies have (:mod:`analysis.report.registry`)."""

    title: str
    anchor: str
    answer: tuple[str, ...]
    """Its answer, plain sentences."""
    figure: str
    """Name of its first figure, ``figures/<name>.svg``; empty without one."""
    alt: str


def state_of(study: StudyRecords) -> str:
    """Digest of the plan, the data and what has ended: equal as long as a report of it would be."""
    ended = [
        [trial.arm, trial.seed, trial.trial_id, record and [record.state, record.started, record.device_seconds]]
        for trial in study.trials
        for record in [study.records[trial.trial_id]]
    ]
    return digest([study.plan.hash, study.data.get("fingerprint"), ended])


def write(study: StudyRecords, sections: Sequence[Section], out: Path) -> None:
    """Beside a report that was made of these records."""
    content = {"made_of": state_of(study), "sections": [asdict(section) for section in sections]}
    with atomic_write(out / FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read(study: StudyRecords, storage: Storage, folder: str) -> list[Section] | None:
    """Sections of the report in a study's folder; None where there is no report, or one of other records."""
    try:
        content = storage.read_json(f"{folder}/{FILE}")
        if content["made_of"] != state_of(study):
            return None
        return [Section(**one | {"answer": tuple(one["answer"])}) for one in content["sections"]]
    except (RecordError, KeyError, TypeError):
        return None

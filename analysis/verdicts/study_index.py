"""The studies that a storage holds, each decided from its records, for the index: no report is computed again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from analysis.verdicts import arm_settings, summary, tables
from analysis.verdicts.decide import DecidedStudy, decide_study
from analysis.verdicts.summary import Section
from jbot.store.plan import FILE, Plan, load_study
from jbot.store.record import Record
from jbot.store.search_ledger import load_ledger
from jbot.store.storage import RecordError, Storage

SMOKE_PASSES = 10_000
"""Jet passes below which a training tests the program and answers nothing (assumed): smoke has 1,200, quick 80,000."""


@dataclass(frozen=True, kw_only=True)
class StudySummary(DecidedStudy):
    """One study folder with its verdicts."""

    folder: str
    sections: list[Section] | None
    """Sections of its report; None where it has none, or one of other records."""

    @property
    def plan(self) -> Plan:
        """What it asks."""
        return self.study.plan

    @property
    def name(self) -> str:
        """The study's, without its preset."""
        return base_name(self.plan.study, self.plan.preset)

    @property
    def current(self) -> bool:
        """Whether this is the plan of the study's own folder; earlier ones have moved to ``<study>-<hash>``."""
        return self.folder == self.plan.study

    @cached_property
    def ended_records(self) -> list[Record]:
        """Records of its trials, in the plan's order."""
        return [record for record in self.study.records.values() if record is not None]

    @property
    def ended(self) -> int:
        """Trials with a record."""
        return len(self.ended_records)

    @cached_property
    def blocks(self) -> int:
        """Seeds at which every arm has ended: what is compared."""
        return int(tables.ended_blocks(self.states).sum())

    @cached_property
    def passes(self) -> int:
        """Jets that training the base sees."""
        return math.prod(arm_settings.trained(self.plan.base))

    @property
    def is_smoke_test(self) -> bool:
        """Whether it is too small to be an answer."""
        return self.plan.preset == "smoke" or self.passes < SMOKE_PASSES

    @property
    def rank(self) -> tuple[bool, bool, float, bool, int]:
        """Larger is nearer to an answer: whether it is one at all, then its scale, then the plan that stands now."""
        return (not self.is_smoke_test, self.blocks >= 2, self.passes, self.current, self.blocks)


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search of hyperparameters that has no winner yet, so no study."""

    name: str
    preset: str
    question: str
    ended: int
    points: int


@dataclass(frozen=True, kw_only=True)
class StudyIndex:
    """Every study and search of a storage."""

    storage: Storage
    studies: list[StudySummary] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    """Folders that cannot be read, and why."""

    @property
    def names(self) -> list[str]:
        """Studies with a plan in the storage, each once."""
        return list(dict.fromkeys([*(one.name for one in self.studies), *(one.name for one in self.searches)]))

    def of(self, name: str) -> list[StudySummary]:
        """Plans of one study, the one nearest to an answer first."""
        return sorted((one for one in self.studies if one.name == name), key=lambda one: one.rank, reverse=True)


def base_name(study: str, preset: str) -> str:
    """``scaling`` for ``scaling_gpu``."""
    return study.removesuffix(f"_{preset}")


def load_index(storage: Storage) -> StudyIndex:
    """Read and decide every study of a storage.

    Raises RecordError when the storage cannot be listed.
    """
    index = StudyIndex(storage=storage)
    try:
        folders = storage.names()
    except OSError as error:
        raise RecordError(f"{storage.uri} cannot be listed: {error}") from None
    for folder in folders:
        try:
            if storage.exists(f"{folder}/{FILE}"):
                study = load_study(f"{storage.address}/{folder}")
                sections = summary.read(study, storage, folder)
                index.studies.append(StudySummary(**vars(decide_study(study)), folder=folder, sections=sections))
            elif ledger := load_ledger(storage, folder):
                plan, points = ledger["plan"], ledger["points"]
                index.searches.append(
                    Search(
                        name=base_name(plan["study"], plan["preset"]),
                        preset=plan["preset"],
                        question=plan["question"],
                        ended=sum(point["state"] != "open" for point in points),
                        points=ledger["target"],
                    )
                )
        except (RecordError, ValueError, KeyError, TypeError) as error:  # one damaged study hides no other
            index.errors[folder] = " ".join(str(error).split()) or type(error).__name__
    return index

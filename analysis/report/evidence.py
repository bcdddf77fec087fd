"""All that a report is made of, read and computed once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from analysis.report import links
from analysis.report.links import Links
from analysis.verdicts import convergence, diagnostics
from analysis.verdicts import number_format as fmt
from analysis.verdicts.convergence import Convergence
from analysis.verdicts.decide import decide_study
from analysis.verdicts.diagnostics import Diagnosis
from analysis.verdicts.verdict import Verdict
from jbot.store.plan import Plan, PlannedTrial, StudyRecords

MAX_ARMS = 8
"""Arms drawn in one figure; more lines than this nobody tells apart (assumed)."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Records of a study, tables of them, verdicts, and where its trials are found."""

    study: StudyRecords
    trials: pd.DataFrame
    """One row per planned trial."""
    scores: pd.DataFrame
    """The primary metric, (seed, arm)."""
    states: pd.DataFrame
    """(seed, arm)"""
    late: pd.Series
    """Whether each planned trial ran beyond the look that the study is decided at, and so enters no mean."""
    arms: pd.DataFrame
    """One row per arm."""
    verdicts: list[Verdict]
    judged: pd.Index
    """Seeds that the verdicts rest on; every comparison of a report is of them."""
    alpha: float
    """1 minus the confidence of their intervals: the plan's error level, or what looks leave of it."""
    curves: pd.DataFrame
    convergence: list[Convergence]
    diagnosis: Diagnosis
    links: Links

    @property
    def plan(self) -> Plan:
        """The study's plan."""
        return self.study.plan

    @property
    def judged_plan(self) -> Plan:
        """The plan with the error level that its looks leave to a single test."""
        return dataclasses.replace(self.plan, alpha=self.alpha)

    @property
    def level(self) -> str:
        """Head of a column of intervals, ``95% interval``."""
        return f"{fmt.level(self.alpha)} interval"

    @property
    def compared(self) -> pd.DataFrame:
        """Scores (seed, arm) of the blocks that the verdicts rest on: what may be compared."""
        return self.scores.loc[self.judged]

    @cached_property
    def shown(self) -> list[str]:
        """Arms that are drawn, in the plan's order: at most MAX_ARMS, those of primary contrasts before others."""
        chosen = list(dict.fromkeys([*self.primary_arms, *self.plan.arms]))[:MAX_ARMS]
        return [arm for arm in self.plan.arms if arm in chosen]

    @property
    def primary_arms(self) -> list[str]:
        """Arms that primary contrasts compare."""
        return [arm for c in self.plan.contrasts if c.primary for arm in (c.treatment, c.control)]

    @property
    def not_all_drawn(self) -> str:
        """End of a caption that says so where not all arms are drawn."""
        drawn, n = len(self.shown), len(self.plan.arms)
        return f" {drawn} of {n} arms are drawn; the tables have all." if drawn < n else ""

    def drawn_trials(self, arrays: str) -> list[PlannedTrial]:
        """One complete trial of each drawn arm that left such arrays, from the seed that most arms have."""
        complete = set(self.trials.loc[self.trials["state"] == "complete", "trial_id"])
        have = [trial for trial in self.study.trials if trial.trial_id in complete and trial.arm in self.shown]
        found: dict[str, PlannedTrial] = {}
        for trial in sorted(have, key=lambda trial: -sum(other.seed == trial.seed for other in have)):
            if trial.arm not in found and self.study.arrays(trial.trial_id, arrays) is not None:
                found[trial.arm] = trial
        return [found[arm] for arm in self.shown if arm in found]


def gather(study: StudyRecords, out: Path | None = None) -> Evidence:
    """Tables, verdicts and convergence of a study, finished or not; `out` is where links to records start.

    Raises RecordError when a file of a trial is damaged.
    """
    plan, found = study.plan, decide_study(study)
    trials, scores, states = found.trials, found.scores, found.states
    curves = convergence.curve_table(study)
    compared = curves[curves["seed"].isin(found.judged)]
    judged_plan = dataclasses.replace(plan, alpha=found.alpha)
    speeds = (convergence.converge(judged_plan, compared, clock) for clock in convergence.CLOCKS)
    return Evidence(
        study=study,
        trials=trials,
        scores=scores,
        states=states,
        late=found.late,
        arms=found.arms,
        verdicts=found.verdicts,
        judged=found.judged,
        alpha=found.alpha,
        curves=curves,
        convergence=[speed for speed in speeds if speed is not None],
        diagnosis=diagnostics.diagnose(study),
        links=links.find(study, out or Path()),
    )

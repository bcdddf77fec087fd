"""What a study says about one contrast: a verdict, its numbers and its words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analysis.stats import paired
from analysis.stats.paired import MeanInterval, PairedDifference
from jbot.evaluation.metrics_registry import Bounds
from jbot.store.plan import Contrast

Outcome = Literal["better", "worse", "equivalent", "undecided"]


@dataclass(frozen=True, kw_only=True)
class FailureRate:
    """Failed trials of an arm among those that ended; pruned trials are neither."""

    arm: str
    failed: int
    ended: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson, 95%."""
        return paired.wilson(self.failed, self.ended)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.arm} failed in {self.failed} of {self.ended} (95% interval {low:.0%} to {high:.0%})"


@dataclass(frozen=True, kw_only=True)
class Look:
    """Which of its planned looks a study was decided at."""

    blocks: int
    """After which the look was planned; 0 before the first."""
    ended: int
    """Blocks that have ended, in the plan's order without a gap; those after the look are left out."""
    planned: tuple[int, ...]
    """All looks of the plan."""
    decided: bool = False
    """Every primary contrast is decided: the study stops here."""

    @property
    def of(self) -> int:
        """Blocks of the whole plan."""
        return self.planned[-1]

    @property
    def next(self) -> int | None:
        """The look that comes after this one, if the study goes on."""
        return None if self.decided else next((look for look in self.planned if look > self.blocks), None)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a study says about one contrast. Differences are treatment minus control in units of the metric."""

    contrast: Contrast
    outcome: Outcome
    difference: PairedDifference
    p: float
    """Sign-flip test, uncorrected."""
    p_adjusted: float
    """Corrected over the family."""
    min_p: float
    """The smallest p_adjusted this number of seeds can reach."""
    p_equivalent: float
    """TOST, uncorrected."""
    p_equivalent_adjusted: float
    min_p_equivalent: float
    """The smallest p that an exact test of equivalence of this number of seeds can reach, corrected."""
    family: int
    """Contrasts corrected together."""
    dropped: int
    """Seeds taken out because a trial of the pair failed."""
    pruned: int
    """Seeds taken out because a trial of the pair was pruned."""
    failures: tuple[FailureRate, FailureRate]
    """Treatment's and control's."""
    detectable: float
    """What a verdict finds with 80% power at this n and spread, corrected over the family, were it the only difference;
    in units of the metric, infinite where no p-value of so few seeds is small enough."""
    seeds_needed: int | None
    """What would probably decide it; None when it is decided, or no number up to MAX_SEEDS would do."""
    seeds_range: tuple[int, int | None] | None
    """Between what numbers that lies, as the seeds so far know mean and spread only so well; of primary contrasts."""
    outlier: tuple[int, MeanInterval] | None
    """The seed whose difference lies apart from all others, and their mean without it."""
    null: bool
    """An arm against itself, its initial weights perturbed: the noise floor, which is no verdict."""
    interim: bool
    """The study goes on: it has trials that have not ended, and was not stopped at a look."""
    look: Look | None
    """None where the plan has no looks."""
    confidence: float
    """Level of the t interval: 1 - alpha, or the nominal one of a repeated interval."""
    p_with_losses: float
    """The corrected p if each seed that the better arm alone lost by a failure were its largest defeat; NaN if there is
    none."""
    undone_by_failures: bool
    """The seeds that are left show a difference, which that p does not: undecided for this reason."""
    within: Bounds
    """What a difference of this metric can be: intervals in words end there."""
    sentence: str
    """The verdict in plain words."""
    notes: tuple[str, ...] = ()
    """What a careful reader must know besides."""
    warnings: tuple[str, ...] = ()
    """Those of the notes that may overturn it: failures, a seed that lies apart, a test and an interval that differ."""

    @property
    def ends(self) -> tuple[float, float]:
        """Ends of the t interval as it is drawn: no further than a difference of this metric can be."""
        return max(self.difference.low, self.within[0]), min(self.difference.high, self.within[1])


def clear_of_zero(difference: PairedDifference) -> bool:
    """Whether the t interval excludes zero."""
    return difference.low > 0 or difference.high < 0

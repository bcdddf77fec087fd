"""From scores to verdicts: better, worse, equivalent or undecided, each with a sentence that says why.

The rules, in this order, for every contrast of a plan:

1. Only seeds enter at which every arm of the study has ended, and both arms of the contrast gave a score. A failed
   trial takes its seed out of the difference and is counted; a pruned one is no outcome and enters nothing.
2. Each claim is corrected over its family: Holm over the primary contrasts, Benjamini-Hochberg over the exploratory
   ones. A family has the size the plan gives it, whatever data arrived. "Differs" and "equivalent" are corrected
   apart: each kind of claim has the error level over its family. Of a single contrast at most one of the two can be
   false, so the level holds for both together; of a family both together can be false more often, at most twice it.
3. *equivalent*: two one-sided t-tests put the mean difference inside the margin, and the seeds are enough for an exact
   test to say so (`paired.min_p_equivalent`: five for a single contrast at 5%). It goes before 4: the plan has
   said that smaller differences do not matter, so one that is significant and yet inside the margin is equivalent,
   with a note that it is not zero.
4. *better* or *worse*: the sign-flip test is significant and the t interval clear of zero. Where the better arm failed
   and the other did not, the test must be significant also with each such seed as the better arm's largest defeat:
   who fails because it is worse leaves only the seeds that flatter it.
5. *undecided* otherwise, with the number of seeds that would probably decide it.

A plan with looks (:mod:`analysis.stats.sequential`) is decided at each look that its blocks have reached, in order,
and its verdict is that of the first look at which every primary contrast is decided: p-values are sequential and
intervals repeated ones, over all looks up to that one. Before the first look there is no verdict.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.stats import Floats, paired, power, sequential
from analysis.stats.paired import MeanInterval, PairedDifference
from analysis.stats.sequential import InterimHistory
from analysis.verdicts import tables
from analysis.verdicts.provenance import unpaid_look
from analysis.verdicts.sentences import in_words
from analysis.verdicts.verdict import FailureRate, Look, Outcome, Verdict, clear_of_zero
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Contrast, Plan, StudyRecords

Mask = NDArray[np.bool_]
"""(seed,)"""


@dataclass(frozen=True, kw_only=True)
class DecidedStudy:
    """A study's records as tables, and its verdicts."""

    study: StudyRecords
    trials: pd.DataFrame
    """:func:`analysis.verdicts.tables.trial_table`."""
    scores: pd.DataFrame
    """(seed, arm): the primary metric of complete trials."""
    states: pd.DataFrame
    """(seed, arm)"""
    verdicts: list[Verdict]
    """On every contrast, in the plan's order."""

    @property
    def primary(self) -> list[Verdict]:
        """On the contrasts that the plan calls primary."""
        return [verdict for verdict in self.verdicts if verdict.contrast.primary]

    @property
    def judged(self) -> pd.Index:
        """Seeds that the verdicts rest on: of a plan with looks those up to the one it was decided at.

        Of others all at which every arm has ended.
        """
        if self.look and self.look.blocks:
            return self.states.index[: self.look.blocks]
        return self.states.index[tables.ended_blocks(self.states)]

    @property
    def late(self) -> pd.Series:
        """Whether each trial ran beyond the look, and so enters no mean. Without looks an unfinished block does."""
        trials = self.trials
        return ~trials["seed"].isin(self.judged) & (trials["state"] == "complete") & bool(self.look)

    @property
    def arms(self) -> pd.DataFrame:
        """:func:`analysis.verdicts.tables.arms_table` of the others."""
        return tables.arms_table(self.trials[~self.late], self.study.plan)

    @property
    def alpha(self) -> float:
        """1 minus the confidence of the verdicts' intervals: the plan's, or a smaller one that pays for the looks."""
        return 1 - self.verdicts[0].confidence if self.look else self.study.plan.alpha

    @property
    def look(self) -> Look | None:
        """The planned look it was decided at; None where the plan has none."""
        return self.verdicts[0].look if self.verdicts else None


def decide_study(study: StudyRecords) -> DecidedStudy:
    """Every verdict of a study, finished or not: the one place where records become verdicts."""
    plan, trials = study.plan, tables.trial_table(study)
    scores, states = tables.scores_and_states(trials, plan)
    verdicts = decide_contrasts(plan, scores, states, tables.other_scores(trials, plan))
    if note := unpaid_look(study):
        verdicts = [dataclasses.replace(verdict, notes=(note, *verdict.notes)) for verdict in verdicts]
    return DecidedStudy(study=study, trials=trials, scores=scores, states=states, verdicts=verdicts)


def decide_contrasts(
    plan: Plan, scores: pd.DataFrame, states: pd.DataFrame, others: Mapping[str, pd.DataFrame] | None = None
) -> list[Verdict]:
    """The verdict on every contrast of a plan, in the plan's order.

    Parameters
    ----------
    scores : DataFrame (seed, arm)
        Primary metric of complete trials, NaN elsewhere.
    states : DataFrame (seed, arm)
        `complete`, `failed`, `pruned` or `pending`; a complete trial without a score counts as failed.
    others : mapping, optional
        Scores like `scores` of the metrics that single contrasts name, by metric.

    Raises ValueError when scores and states have different seeds or arms, or the scores of a contrast's metric are
    missing.
    """
    known = {**(others or {}), plan.metric: scores}
    if any(not (one.index.equals(states.index) and one.columns.equals(states.columns)) for one in known.values()):
        raise ValueError("scores and states must have the same seeds and arms")
    if missing := {name for c in plan.contrasts for name in c.metrics(plan.metric)} - set(known):
        raise ValueError(f"no scores of {', '.join(sorted(missing))}")
    pending = (states == "pending").any(axis=1).to_numpy()
    if not plan.looks:
        return _decide_blocks(plan, known, states, ~pending, None)
    ended = int(pending.argmax()) if pending.any() else len(pending)
    place = np.arange(len(pending))
    found: list[Verdict] = []
    for blocks in plan.looks:
        if blocks > ended:
            break
        look = Look(blocks=blocks, ended=ended, planned=plan.looks)
        found = _decide_blocks(plan, known, states, place < blocks, look)
        if decided(found):
            stopped = dataclasses.replace(look, decided=True)
            return [in_words(plan, dataclasses.replace(one, look=stopped, interim=False)) for one in found]
    before_the_first = Look(blocks=0, ended=ended, planned=plan.looks)
    return found or _decide_blocks(plan, known, states, place < ended, before_the_first)


def decided(verdicts: Sequence[Verdict]) -> bool:
    """Whether every primary contrast is; not without any."""
    primary = [verdict.outcome for verdict in verdicts if verdict.contrast.primary]
    return bool(primary) and "undecided" not in primary


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """One contrast before the correction over its family."""

    contrast: Contrast
    difference: PairedDifference
    p: float
    p_equivalent: float
    dropped: int
    pruned: int
    failures: tuple[FailureRate, FailureRate]
    interim: bool
    look: Look | None
    course: InterimHistory | None
    """The looks so far; None where the plan has none, or none has been reached."""
    confidence: float
    p_with_losses: float
    outlier: tuple[int, MeanInterval] | None


def _decide_blocks(
    plan: Plan, scores: Mapping[str, pd.DataFrame], states: pd.DataFrame, used: Mask, look: Look | None
) -> list[Verdict]:
    """Verdicts on some of the blocks; of a plan with looks, at one of them."""
    evidence = [_gather(plan, contrast, scores, states, used, look) for contrast in plan.contrasts]
    verdicts: dict[Contrast, Verdict] = {}
    families = (
        ([item for item in evidence if item.contrast.primary], paired.holm),
        (
            [item for item in evidence if not item.contrast.primary and item.contrast != plan.null],
            paired.benjamini_hochberg,
        ),
        ([item for item in evidence if item.contrast == plan.null], paired.holm),
    )
    for family, correct in families:
        differ = correct([item.p for item in family]) if family else ()
        equal = correct([item.p_equivalent for item in family]) if family else ()
        lost = correct([np.fmax(item.p, item.p_with_losses) for item in family]) if family else ()
        for item, p, p_equal, p_lost in zip(family, differ, equal, lost, strict=True):
            verdict = _conclude(plan, item, float(p), float(p_equal), float(p_lost), len(family))
            verdicts[item.contrast] = in_words(plan, verdict)
    return [verdicts[contrast] for contrast in plan.contrasts]


def _gather(
    plan: Plan,
    contrast: Contrast,
    scores: Mapping[str, pd.DataFrame],
    states: pd.DataFrame,
    used: Mask,
    look: Look | None,
) -> _Evidence:
    """The evidence on one contrast, over the blocks that are used."""
    arms = [contrast.treatment, contrast.control]
    sides = zip(contrast.metrics(plan.metric), arms, strict=True)
    values = np.stack([scores[metric][arm].to_numpy(dtype=float) for metric, arm in sides], axis=1)[used]
    states = states[used]
    pruned = (states[arms] == "pruned").any(axis=1).to_numpy()
    whole = np.isfinite(values) & (states[arms] == "complete").to_numpy()  # (seed, 2)
    scored = whole.all(axis=1)
    pairs = values[scored]
    differences = pairs[:, 0] - pairs[:, 1]
    course, waits = _course(plan, look, scored), look is not None and not look.blocks
    confidence = sequential.confidence(course, plan.alpha) if course else 1 - plan.alpha
    difference = paired.paired_difference(pairs[:, 0], pairs[:, 1], confidence)
    if waits:  # before the first look nothing is claimed
        difference = dataclasses.replace(difference, low=math.nan, high=math.nan)
    if course:
        p_equivalent = sequential.tost(differences, course, plan.margin, plan.alpha, _family(plan, contrast))
    else:
        p_equivalent = paired.tost(differences, plan.margin)
    return _Evidence(
        contrast=contrast,
        difference=difference,
        p=1.0 if waits else _p_differs(plan, contrast, differences, course),
        p_equivalent=1.0 if waits else p_equivalent,
        dropped=int((~scored & ~pruned).sum()),
        pruned=int(pruned.sum()),
        failures=(_failure_rate(states[arms[0]], whole[:, 0]), _failure_rate(states[arms[1]], whole[:, 1])),
        interim=not bool(used.all()),
        look=look,
        course=course,
        confidence=confidence,
        p_with_losses=math.nan if waits else _p_with_losses(plan, contrast, differences, whole, pruned, look),
        outlier=_outlier(differences, states.index[scored], confidence),
    )


def _course(plan: Plan, look: Look | None, scored: Mask) -> InterimHistory | None:
    """The looks up to this one; None without any. `scored` are the blocks with a score of both arms."""
    if look is None or not look.blocks:
        return None
    looks = [one for one in plan.looks if one <= look.blocks]
    return InterimHistory(
        shares=tuple(sequential.share_spent(one, look.of) for one in looks),
        pairs=tuple(int(scored[:one].sum()) for one in looks),
    )


def _p_differs(plan: Plan, contrast: Contrast, differences: Floats, course: InterimHistory | None) -> float:
    if course is None:
        return paired.sign_flip_test(differences)
    return sequential.sign_flip_test(differences, course, plan.alpha, _family(plan, contrast))


def _family(plan: Plan, contrast: Contrast) -> int:
    if contrast == plan.null:
        return 1
    return sum(other.primary is contrast.primary and other != plan.null for other in plan.contrasts)


def _p_with_losses(
    plan: Plan, contrast: Contrast, differences: Floats, whole: NDArray[np.bool_], pruned: Mask, look: Look | None
) -> float:
    """The sign-flip p if failures of the better arm alone were defeats by as much as the largest difference.

    Who fails where the other does not may do so because it is worse: then the differences that are left flatter it.
    """
    mean = float(differences.mean()) if len(differences) else 0.0
    better = 0 if (mean > 0) == plan.higher_is_better else 1
    lost = whole[:, 1 - better] & ~whole[:, better] & ~pruned
    if mean == 0 or not lost.any():
        return math.nan
    scored = whole.all(axis=1)
    filled = np.full(len(whole), -math.copysign(float(np.abs(differences).max()), mean))
    filled[scored] = differences
    return _p_differs(plan, contrast, filled[scored | lost], _course(plan, look, scored | lost))


def _failure_rate(states: pd.Series, whole: Mask) -> FailureRate:
    """The failures of one arm, `whole` where it left a score."""
    failed = (states == "failed").to_numpy() | ((states == "complete").to_numpy() & ~whole)
    return FailureRate(arm=str(states.name), failed=int(failed.sum()), ended=int((states != "pruned").sum()))


def _conclude(
    plan: Plan, evidence: _Evidence, p_adjusted: float, p_equivalent: float, p_lost: float, family: int
) -> Verdict:
    """The verdict, still without words."""
    difference, course, n = evidence.difference, evidence.course, evidence.difference.n
    # Benjamini-Hochberg leaves the smallest p of a family as it is when all are equal; Holm multiplies it.
    corrected = family if evidence.contrast.primary else 1
    smallest = sequential.min_p(course) if course else paired.min_p(n)
    inside = corrected * (sequential.min_p_equivalent(course) if course else paired.min_p_equivalent(n))
    survivors = _outcome(plan, difference, p_adjusted, max(p_equivalent, inside))
    undone = survivors in ("better", "worse") and p_lost > plan.alpha
    outcome: Outcome = "undecided" if undone else survivors
    null, needed, span = evidence.contrast == plan.null, None, None
    if outcome == "undecided" and not undone and not null:
        needed, span = _seeds_needed(plan, evidence, family)
    detectable = math.nan
    if n > 1:
        effect = power.detectable_effect(n, 1 - evidence.confidence if course else plan.alpha, family)
        detectable = effect * difference.sd if math.isfinite(effect) else math.inf
    found = {name: value for name, value in vars(evidence).items() if name != "course"}
    return Verdict(
        **found | {"p_with_losses": p_lost if math.isfinite(evidence.p_with_losses) else math.nan},
        outcome=outcome,
        undone_by_failures=undone,
        null=null,
        p_adjusted=p_adjusted,
        p_equivalent_adjusted=p_equivalent,
        min_p=min(1.0, corrected * smallest),
        min_p_equivalent=min(1.0, inside),
        family=family,
        detectable=detectable,
        seeds_needed=needed,
        seeds_range=span,
        within=find_metric(evidence.contrast.metric or plan.metric).difference_bounds,
        sentence="",
    )


def _outcome(plan: Plan, difference: PairedDifference, p_adjusted: float, p_equivalent: float) -> Outcome:
    if difference.n < 2:
        return "undecided"
    if p_equivalent <= plan.alpha:
        return "equivalent"
    if p_adjusted <= plan.alpha and clear_of_zero(difference):
        return "better" if (difference.mean > 0) == plan.higher_is_better else "worse"
    return "undecided"


def _seeds_needed(plan: Plan, evidence: _Evidence, family: int) -> tuple[int | None, tuple[int, int | None] | None]:
    """Seeds that would probably decide it; of a primary contrast also between what numbers they lie."""
    difference = evidence.difference
    needed = power.seeds_to_decide(difference.mean, difference.sd, plan.margin, plan.alpha, family)
    # More than it has, however good its chance was, and never fewer than a difference takes.
    corrected = family if evidence.contrast.primary else 1
    least = max(difference.n + 1, power.min_seeds(plan.alpha, corrected)[0])
    span = None
    if evidence.contrast.primary and difference.sd > 0:
        low, high = power.seeds_to_decide_range(
            difference.mean, difference.sd, difference.n, plan.margin, plan.alpha, family
        )
        span = max(low, least), None if high is None else max(high, least)
    return None if needed is None else max(needed, least), span


def _outlier(differences: Floats, seeds: pd.Index, confidence: float) -> tuple[int, MeanInterval] | None:
    """The seed that lies apart from all others, and what they say without it."""
    place = paired.outlier(differences)
    if place is None:
        return None
    return int(seeds[place]), paired.mean_interval(np.delete(differences, place), confidence)

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
4. *better* or *worse*: the sign-flip test is significant and the t interval clear of zero.
5. *undecided* otherwise, with the number of seeds that would probably decide it.

A plan with looks (:mod:`analysis.stats.sequential`) is judged at each look that its blocks have reached, in order,
and its
verdict is that of the first look at which every primary contrast is decided: p-values are sequential and intervals
repeated ones, over all looks up to that one. Before the first look there is no verdict.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.stats import Floats, paired, power, sequential
from analysis.stats.paired import PairedDifference
from analysis.stats.sequential import InterimHistory
from analysis.verdicts import wording
from jbot.store.plan import Contrast, Plan

Mask = NDArray[np.bool_]
"""(seed,)"""
Outcome = Literal["better", "worse", "equivalent", "undecided"]
SEED = 20_260_101
"""Of Monte Carlo tests, so that a report made twice says the same."""


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
    """Where in the course of its planned looks a study was judged."""

    blocks: int
    """After which the look was planned; 0 before the first."""
    ended: int
    """Blocks that have ended, in the plan's order without a gap; those after the look are not judged."""
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
    floor: float
    """The smallest p_adjusted this number of seeds can reach."""
    p_equivalent: float
    """TOST, uncorrected."""
    p_equivalent_adjusted: float
    floor_equivalent: float
    """The smallest p that an exact test of equivalence of this number of seeds can reach, corrected."""
    family: int
    """Contrasts corrected together."""
    dropped: int
    """Seeds taken out because a trial of the pair failed."""
    pruned: int
    """Seeds taken out because a trial of the pair was pruned."""
    failures: tuple[FailureRate, FailureRate]
    """Of treatment and control."""
    detectable: float
    """What a verdict finds with 80% power at this n and spread, corrected over the family, were it the only difference;
    in units of the metric, infinite where no p-value of so few seeds is small enough."""
    seeds_needed: int | None
    """Of an undecided contrast; None when it is decided, or no number up to MOST_SEEDS would do."""
    interim: bool
    """The study goes on: it has trials that have not ended, and was not stopped at a look."""
    look: Look | None
    """Of a plan with looks."""
    confidence: float
    """Of the t interval: 1 - alpha, or the nominal one of a repeated interval."""
    p_with_losses: float
    """The uncorrected p if each seed that the better arm alone lost by a failure were its largest defeat; NaN if
    there is none."""
    within: wording.Bounds
    """What a difference of this metric can be: intervals in words end there."""
    sentence: str
    """The verdict in plain words."""
    notes: tuple[str, ...] = ()
    """What a careful reader must know besides."""

    @property
    def ends(self) -> tuple[float, float]:
        """Of the t interval as it is drawn: no further than a difference of this metric can be."""
        return max(self.difference.low, self.within[0]), min(self.difference.high, self.within[1])


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
    course: InterimHistory | None
    """Of a plan with looks, once one has been reached."""
    confidence: float
    p_with_losses: float


def judge(
    plan: Plan, scores: pd.DataFrame, states: pd.DataFrame, others: Mapping[str, pd.DataFrame] | None = None
) -> list[Verdict]:
    """The verdict on every contrast of a plan, in the plan's order.

    Parameters
    ----------
    plan : Plan
    scores : DataFrame (seed, arm)
        Primary metric of complete trials, NaN elsewhere.
    states : DataFrame (seed, arm)
        `complete`, `failed`, `pruned` or `pending`; a complete trial without a score counts as failed.
    others : mapping, optional
        Scores like `scores` of the metrics that single contrasts name, by metric.

    Raises
    ------
    ValueError
        When scores and states have different seeds or arms, or the scores of a contrast's metric are missing.
    """
    known = {**(others or {}), plan.metric: scores}
    if any(not (one.index.equals(states.index) and one.columns.equals(states.columns)) for one in known.values()):
        raise ValueError("scores and states must have the same seeds and arms")
    if missing := {name for c in plan.contrasts for name in c.metrics(plan.metric)} - set(known):
        raise ValueError(f"no scores of {', '.join(sorted(missing))}")
    if plan.looks:
        return _judge_looks(plan, known, states)
    ended = ~(states == "pending").any(axis=1)
    return _judge_blocks(plan, known, states, ended.to_numpy(), None)


def decided(verdicts: Sequence[Verdict]) -> bool:
    """Whether every primary contrast is; not without any."""
    primary = [verdict.outcome for verdict in verdicts if verdict.contrast.primary]
    return bool(primary) and "undecided" not in primary


def _judge_looks(plan: Plan, scores: Mapping[str, pd.DataFrame], states: pd.DataFrame) -> list[Verdict]:
    """At the first look that decides every primary contrast, else at the last that was reached."""
    pending = (states == "pending").any(axis=1).to_numpy()
    ended = int(pending.argmax()) if pending.any() else len(pending)
    place = np.arange(len(pending))
    reached = [blocks for blocks in plan.looks if blocks <= ended]
    if not reached:
        return _judge_blocks(plan, scores, states, place < ended, Look(blocks=0, ended=ended, planned=plan.looks))
    for blocks in reached:
        look = Look(blocks=blocks, ended=ended, planned=plan.looks)
        found = _judge_blocks(plan, scores, states, place < blocks, look)
        if decided(found):
            stopped = dataclasses.replace(look, decided=True)
            return [_in_words(plan, dataclasses.replace(one, look=stopped, interim=False)) for one in found]
    return found


def _judge_blocks(
    plan: Plan, scores: Mapping[str, pd.DataFrame], states: pd.DataFrame, judged: Mask, look: Look | None
) -> list[Verdict]:
    """On the blocks that are judged; of a plan with looks, at one of them."""
    interim = not bool(judged.all())
    rng = np.random.default_rng(SEED)
    evidence = [
        _weigh(plan, contrast, _sides(plan, contrast, scores)[judged], states[judged], look, rng)
        for contrast in plan.contrasts
    ]
    verdicts = {
        item.contrast: verdict
        for primary in (True, False)
        for item, verdict in _judge_family(plan, [e for e in evidence if e.contrast.primary is primary], interim, look)
    }
    return [verdicts[contrast] for contrast in plan.contrasts]


def _sides(plan: Plan, contrast: Contrast, scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Scores of treatment and control, (seed, 2), each of its metric."""
    metrics = contrast.metrics(plan.metric)
    arms = (contrast.treatment, contrast.control)
    return pd.concat([scores[metric][arm] for metric, arm in zip(metrics, arms, strict=True)], axis=1, keys=(0, 1))


def _weigh(
    plan: Plan,
    contrast: Contrast,
    values: pd.DataFrame,
    states: pd.DataFrame,
    look: Look | None,
    rng: np.random.Generator,
) -> _Evidence:
    """The evidence on one contrast, over blocks that are judged; `values` from :func:`_sides`."""
    arms = [contrast.treatment, contrast.control]
    pruned = (states[arms] == "pruned").any(axis=1).to_numpy()
    whole = np.isfinite(values.to_numpy(dtype=float)) & (states[arms] == "complete").to_numpy()
    scored = whole.all(axis=1)
    pairs = values[scored].to_numpy(dtype=float)
    gaps = pairs[:, 0] - pairs[:, 1]
    course = _course(plan, look, scored)
    confidence = sequential.confidence(course, plan.alpha) if course else 1 - plan.alpha
    difference = paired.paired_difference(pairs[:, 0], pairs[:, 1], confidence)
    waits = look is not None and course is None
    return _Evidence(
        contrast=contrast,
        difference=_without_intervals(difference) if waits else difference,
        p=1.0 if waits else _p_differs(plan, contrast, gaps, course, rng),
        p_equivalent=1.0 if waits else _p_equivalent(plan, contrast, gaps, course),
        dropped=int((~scored & ~pruned).sum()),
        pruned=int(pruned.sum()),
        failures=(_failure_rate(states[arms[0]], whole[:, 0]), _failure_rate(states[arms[1]], whole[:, 1])),
        course=course,
        confidence=confidence,
        p_with_losses=math.nan if waits else _p_with_losses(plan, contrast, gaps, whole, pruned, look),
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


def _p_differs(
    plan: Plan, contrast: Contrast, gaps: Floats, course: InterimHistory | None, rng: np.random.Generator
) -> float:
    if course is None:
        return paired.sign_flip_test(gaps, rng)
    return sequential.sign_flip_test(gaps, course, plan.alpha, _family(plan, contrast))


def _p_equivalent(plan: Plan, contrast: Contrast, gaps: Floats, course: InterimHistory | None) -> float:
    if course is None:
        return paired.tost(gaps, plan.margin)
    return sequential.tost(gaps, course, plan.margin, plan.alpha, _family(plan, contrast))


def _family(plan: Plan, contrast: Contrast) -> int:
    return sum(other.primary is contrast.primary for other in plan.contrasts)


def _p_with_losses(
    plan: Plan,
    contrast: Contrast,
    gaps: Floats,
    whole: NDArray[np.bool_],
    pruned: Mask,
    look: Look | None,
) -> float:
    """The sign-flip p if failures of the better arm alone were defeats by as much as the largest difference.

    Who fails where the other does not may do so because it is worse: then the differences that are left flatter it.
    """
    mean = float(gaps.mean()) if len(gaps) else 0.0
    better = 0 if (mean > 0) == plan.higher_is_better else 1
    lost = whole[:, 1 - better] & ~whole[:, better] & ~pruned
    if mean == 0 or not lost.any():
        return math.nan
    scored = whole.all(axis=1)
    filled = np.full(len(whole), -math.copysign(float(np.abs(gaps).max()), mean))
    filled[scored] = gaps
    rng = np.random.default_rng(SEED)  # its own: what the others draw does not depend on failures
    return _p_differs(plan, contrast, filled[scored | lost], _course(plan, look, scored | lost), rng)


def _without_intervals(difference: PairedDifference) -> PairedDifference:
    return dataclasses.replace(difference, low=math.nan, high=math.nan)


def _failure_rate(states: pd.Series, whole: Mask) -> FailureRate:
    """Of one arm, `whole` where it left a score."""
    failed = (states == "failed").to_numpy() | ((states == "complete").to_numpy() & ~whole)
    return FailureRate(arm=str(states.name), failed=int(failed.sum()), ended=int((states != "pruned").sum()))


def _judge_family(
    plan: Plan, family: Sequence[_Evidence], interim: bool, look: Look | None
) -> list[tuple[_Evidence, Verdict]]:
    """Verdicts on contrasts that are corrected together."""
    if not family:
        return []
    correct = paired.holm if family[0].contrast.primary else paired.benjamini_hochberg
    differ = correct([item.p for item in family])
    equal = correct([item.p_equivalent for item in family])
    return [
        (e, _conclude(plan, e, float(d), float(q), len(family), interim, look))
        for e, d, q in zip(family, differ, equal, strict=True)
    ]


def _conclude(
    plan: Plan,
    evidence: _Evidence,
    p_adjusted: float,
    p_equivalent: float,
    family: int,
    interim: bool,
    look: Look | None,
) -> Verdict:
    difference, course = evidence.difference, evidence.course
    # Benjamini-Hochberg leaves the smallest p of a family as it is when all are equal; Holm multiplies it.
    corrected = family if evidence.contrast.primary else 1
    n = difference.n
    smallest = sequential.min_p(course) if course else paired.min_p(n)
    inside = corrected * (sequential.min_p_equivalent(course) if course else paired.min_p_equivalent(n))
    outcome = _outcome(plan, difference, p_adjusted, max(p_equivalent, inside))
    found = {name: value for name, value in vars(evidence).items() if name != "course"}
    verdict = Verdict(
        **found,
        outcome=outcome,
        p_adjusted=p_adjusted,
        p_equivalent_adjusted=p_equivalent,
        floor=min(1.0, corrected * smallest),
        floor_equivalent=min(1.0, inside),
        family=family,
        detectable=_detectable(difference, 1 - evidence.confidence if course else plan.alpha, family),
        seeds_needed=_seeds_needed(plan, difference, family) if outcome == "undecided" else None,
        interim=interim,
        look=look,
        within=wording.bounds(evidence.contrast.metric or plan.metric, of_difference=True),
        sentence="",
    )
    return _in_words(plan, verdict)


def _outcome(plan: Plan, difference: PairedDifference, p_adjusted: float, p_equivalent: float) -> Outcome:
    if difference.n < 2:
        return "undecided"
    if p_equivalent <= plan.alpha:
        return "equivalent"
    if p_adjusted <= plan.alpha and clear_of_zero(difference):
        return "better" if (difference.mean > 0) == plan.higher_is_better else "worse"
    return "undecided"


def _seeds_needed(plan: Plan, difference: PairedDifference, family: int) -> int | None:
    needed = power.seeds_to_decide(difference.mean, difference.sd, plan.margin, plan.alpha, family)
    # An undecided study needs more than it has, however good its chance was.
    return None if needed is None else max(needed, difference.n + 1)


def clear_of_zero(difference: PairedDifference) -> bool:
    """Whether the t interval excludes zero."""
    return difference.low > 0 or difference.high < 0


def _detectable(difference: PairedDifference, alpha: float, family: int) -> float:
    if difference.n < 2:
        return math.nan
    effect = power.detectable_effect(difference.n, alpha, family)
    return effect * difference.sd if math.isfinite(effect) else math.inf


def _in_words(plan: Plan, verdict: Verdict) -> Verdict:
    """The same verdict with its sentence and its notes."""
    sentence = " ".join(part for part in (_finding(plan, verdict), _losses(verdict)) if part)
    return dataclasses.replace(verdict, sentence=sentence, notes=tuple(_notes(plan, verdict)))


def _finding(plan: Plan, verdict: Verdict) -> str:
    d, (treatment, control) = verdict.difference, _named(verdict.contrast)
    if verdict.look and not verdict.look.blocks:
        first, ended = verdict.look.planned[0], verdict.look.ended
        wait = f"the first planned look is after {first} blocks, of which {ended} have ended"
        return f"{treatment} against {control} is undecided: {wait}."
    if d.n < 2:
        found = "no seed has" if d.n == 0 else "only one seed has"
        return f"{treatment} against {control} is undecided: {found} a score of both arms, and a spread takes two."
    if d.mean == 0 and d.sd == 0:
        found = f"{treatment} against {control} is {verdict.outcome}: identical scores at all {d.n} seeds."
        return f"{found} {_what_would_decide(verdict)}" if verdict.outcome == "undecided" else found
    if verdict.outcome in ("better", "worse"):
        return f"{treatment} is {verdict.outcome} than {control} by {_size(plan, verdict)}."
    if verdict.outcome == "equivalent":
        p = wording.p_value(verdict.p_equivalent_adjusted)
        return (
            f"{treatment} and {control} are equivalent: the difference is {_size(plan, verdict)}, "
            f"less than the margin of {plan.margin:g} (equivalence p = {p})."
        )
    found = f"{treatment} against {control} is undecided: the difference is {_size(plan, verdict)}."
    return f"{found} {_what_would_decide(verdict)}"


def _named(contrast: Contrast) -> tuple[str, str]:
    """Treatment and control with what tells them apart, or what both are compared in."""
    on = wording.quantity_on(contrast.metric) if contrast.metric else ""
    if contrast.control_metric and not contrast.floor:
        treatment = f"{contrast.treatment} ({on})" if on else contrast.treatment
        return treatment, f"{contrast.control} ({wording.quantity_on(contrast.control_metric)})"
    return contrast.treatment, f"{contrast.floor} {contrast.control}".strip() + (f" in {on}" if on else "")


def _size(plan: Plan, verdict: Verdict) -> str:
    """``0.021 ± 0.006 (95% interval 0.008 to 0.034, n = 6 seeds, p = 0.031)``; how much better is positive."""
    d, error = verdict.difference, verdict.difference.standard_error
    named = verdict.outcome in ("better", "worse")  # the word gives the direction
    low, high = (-d.high, -d.low) if named and d.mean < 0 else (d.low, d.high)
    size = wording.with_error(abs(d.mean) if named else d.mean, error, sign=not named)
    family = f" after {_correction(verdict)}" if verdict.family > 1 else ""
    p = wording.p_value(verdict.p_adjusted, verdict.floor)
    kind = "repeated interval" if verdict.look else "interval"
    level = f"{1 - plan.alpha:.0%} {kind} {wording.interval(low, high, error, verdict.within)}"
    return f"{size} ({level}, n = {d.n} seeds, p = {p}{family})"


def _correction(verdict: Verdict) -> str:
    method = "Holm" if verdict.contrast.primary else "Benjamini-Hochberg"
    return f"{method} over {verdict.family} contrasts"


def _what_would_decide(verdict: Verdict) -> str:
    if verdict.seeds_needed is None:
        return f"At this size and spread not even {power.MAX_SEEDS} seeds would decide it."
    return f"About {verdict.seeds_needed} seeds would decide it at this size and spread."


def _losses(verdict: Verdict) -> str:
    """Failed and pruned trials, in the sentence itself: the difference is of the survivors."""
    text = ""
    if verdict.dropped:
        are = "is" if verdict.dropped == 1 else "are"
        rates = "; ".join(str(rate) for rate in verdict.failures)
        text = f"{wording.count(verdict.dropped, 'seed')} {are} left out because a trial failed: {rates}."
    if verdict.pruned:
        were = "was" if verdict.pruned == 1 else "were"
        text += f" {wording.count(verdict.pruned, 'seed')} {were} pruned and enter nothing."
    return text.strip()


def _notes(plan: Plan, verdict: Verdict) -> Iterator[str]:
    """What a careful reader must know besides the sentence."""
    d = verdict.difference
    if verdict.look:
        yield from _look_notes(verdict.look)
    elif verdict.interim:
        yield "Interim: the study is not finished, and its error level holds for the last look only."
    if d.n < 2 or (verdict.look and not verdict.look.blocks):
        return
    if verdict.outcome in ("better", "worse") and math.isfinite(verdict.p_with_losses):
        yield _loss_note(plan, verdict)
    yield from _too_few_notes(plan, verdict)
    if verdict.outcome == "equivalent" and verdict.p_adjusted <= plan.alpha:
        p = wording.p_value(verdict.p_adjusted, verdict.floor)
        yield f"The difference is not zero (p = {p}), but below the margin that the plan set."
    if verdict.outcome in ("better", "worse") and min(abs(d.low), abs(d.high)) < plan.margin:
        yield f"Differences smaller than the margin of {plan.margin:g} are not excluded."
    if verdict.outcome == "undecided" and verdict.p_adjusted <= plan.alpha:
        yield "The permutation test is significant, but the t interval includes zero: no claim."
    if verdict.outcome == "undecided" and d.sd > 0 and math.isfinite(verdict.detectable):
        yield f"This design had 80% power for a difference of {wording.compact(verdict.detectable, 2)}."
    if not verdict.contrast.primary:
        yield "Exploratory: a lead to follow on fresh seeds, not a finding."


def _too_few_notes(plan: Plan, verdict: Verdict) -> Iterator[str]:
    """What so few seeds cannot show, whatever they are, and how many could."""
    differ, equal = power.min_seeds(plan.alpha, verdict.family if verdict.contrast.primary else 1)
    # Of a plan with looks no number is enough by itself: it depends on when the next look is.
    if verdict.floor > plan.alpha:
        takes = "" if verdict.look else f"; it takes at least {differ}"
        floor = wording.p_value(verdict.floor)
        yield (
            f"{verdict.difference.n} seeds cannot show a difference: the smallest p they can reach here is "
            f"{floor}{takes}."
        )
    if verdict.floor_equivalent > plan.alpha:
        takes = "" if verdict.look else f", which takes at least {equal}"
        yield f"They are too few for equivalence{takes}."
        if verdict.p_equivalent_adjusted <= plan.alpha:
            p = wording.p_value(verdict.p_equivalent_adjusted)
            yield f"T-tests alone would call it equivalent (p = {p}), from how close the seeds happen to lie."


def _look_notes(look: Look) -> Iterator[str]:
    """Where the study was judged, and what its p-values and intervals are."""
    if not look.blocks:
        return
    paid = "p-values and intervals allow for every look so far"
    where = f"at the planned look after {look.blocks} of {look.of} blocks"
    if look.next:
        yield f"Judged {where}; the next is after {look.next}; {paid}."
    elif look.blocks < look.of:
        yield f"Stopped {where}; {paid}."
        yield "A study that stops early finds differences somewhat larger than they are, on average."
    else:
        planned = ", ".join(map(str, look.planned))
        yield f"Judged at the last of the planned looks ({planned} blocks); {paid}."
    if look.ended > look.blocks:
        yield f"Not judged: {wording.count(look.ended - look.blocks, 'block')} that ended after this look."


def _loss_note(plan: Plan, verdict: Verdict) -> str:
    """Whether the claim would stand if the better arm had lost where it failed."""
    corrected = min(1.0, verdict.p_with_losses * (verdict.family if verdict.contrast.primary else 1))
    stands = "would stand" if corrected <= plan.alpha else "would not stand"
    better = verdict.contrast.treatment if verdict.outcome == "better" else verdict.contrast.control
    return (
        f"The verdict is of the seeds that are left: it {stands} if {better} had lost by the largest difference"
        f" wherever it alone failed (p = {wording.p_value(corrected)})."
    )

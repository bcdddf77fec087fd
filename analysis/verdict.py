"""From scores to verdicts: better, worse, equivalent or undecided, each with a sentence that says why.

The rules, in this order, for every contrast of a plan:

1. Only seeds enter at which every arm of the study has ended, and both arms of the contrast gave a score. A failed
   trial takes its seed out of the difference and is counted; a pruned one is no outcome and enters nothing.
2. Each claim is corrected over its family: Holm over the primary contrasts, Benjamini-Hochberg over the exploratory
   ones. A family has the size the plan gives it, whatever data arrived. The correction covers both claims, "differs"
   and "equivalent": of one contrast at most one of the two can be false.
3. *equivalent*: two one-sided t-tests put the mean difference inside the margin. It goes before 4: the plan has said
   that smaller differences do not matter, so one that is significant and yet inside the margin is equivalent, with a
   note that it is not zero.
4. *better* or *worse*: the sign-flip test is significant and the t interval clear of zero.
5. *undecided* otherwise, with the number of seeds that would probably decide it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis import statistics, wording
from analysis.plan import Contrast, Plan
from analysis.statistics import PairedDifference

Outcome = Literal["better", "worse", "equivalent", "undecided"]
SEED = 20_260_101
"""Of the bootstrap and of Monte Carlo tests, so that a report made twice says the same."""


@dataclass(frozen=True, kw_only=True)
class FailureRate:
    """Failed trials of an arm among those that ended; pruned trials are neither."""

    arm: str
    failed: int
    ended: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson, 95%."""
        return statistics.wilson(self.failed, self.ended)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.arm} failed in {self.failed} of {self.ended} (95% interval {low:.0%} to {high:.0%})"


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
    family: int
    """Contrasts corrected together."""
    dropped: int
    """Seeds taken out because a trial of the pair failed."""
    pruned: int
    """Seeds taken out because a trial of the pair was pruned."""
    failures: tuple[FailureRate, FailureRate]
    """Of treatment and control."""
    detectable: float
    """Minimum detectable difference at this n and spread (80% power, level alpha / family), in units of the metric."""
    seeds_needed: int | None
    """Of an undecided contrast; None when it is decided, or no number up to MOST_SEEDS would do."""
    interim: bool
    """The study has trials that have not ended."""
    sentence: str
    """The verdict in plain words."""
    notes: tuple[str, ...] = ()
    """What a careful reader must know besides."""


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
    ended = ~(states == "pending").any(axis=1)
    interim = not bool(ended.all())
    rng = np.random.default_rng(SEED)
    evidence = [
        _weigh(plan, contrast, _sides(plan, contrast, known)[ended], states[ended], rng) for contrast in plan.contrasts
    ]
    verdicts = {
        item.contrast: verdict
        for primary in (True, False)
        for item, verdict in _judge_family(plan, [e for e in evidence if e.contrast.primary is primary], interim)
    }
    return [verdicts[contrast] for contrast in plan.contrasts]


def _sides(plan: Plan, contrast: Contrast, scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Scores of treatment and control, (seed, 2), each of its metric."""
    metrics = contrast.metrics(plan.metric)
    arms = (contrast.treatment, contrast.control)
    return pd.concat([scores[metric][arm] for metric, arm in zip(metrics, arms, strict=True)], axis=1, keys=(0, 1))


def _weigh(
    plan: Plan, contrast: Contrast, values: pd.DataFrame, states: pd.DataFrame, rng: np.random.Generator
) -> _Evidence:
    """The evidence on one contrast, over blocks that have ended; `values` from :func:`_sides`."""
    arms = [contrast.treatment, contrast.control]
    pair_states = states[arms]
    pruned = (pair_states == "pruned").any(axis=1)
    scored = values.notna().all(axis=1) & (pair_states == "complete").all(axis=1)
    pairs = values[scored].to_numpy(dtype=float)
    difference = statistics.paired_difference(pairs[:, 0], pairs[:, 1], rng, confidence=1 - plan.alpha)
    gaps = pairs[:, 0] - pairs[:, 1]
    return _Evidence(
        contrast=contrast,
        difference=difference,
        p=statistics.sign_flip_test(gaps, rng),
        p_equivalent=statistics.tost(gaps, plan.margin),
        dropped=int((~scored & ~pruned).sum()),
        pruned=int(pruned.sum()),
        failures=(_failure_rate(arms[0], values[0], states), _failure_rate(arms[1], values[1], states)),
    )


def _failure_rate(arm: str, scores: pd.Series, states: pd.DataFrame) -> FailureRate:
    failed = (states[arm] == "failed") | ((states[arm] == "complete") & scores.isna())
    return FailureRate(arm=arm, failed=int(failed.sum()), ended=int((states[arm] != "pruned").sum()))


def _judge_family(plan: Plan, family: Sequence[_Evidence], interim: bool) -> list[tuple[_Evidence, Verdict]]:
    """Verdicts on contrasts that are corrected together."""
    if not family:
        return []
    correct = statistics.holm if family[0].contrast.primary else statistics.benjamini_hochberg
    differ = correct([item.p for item in family])
    equal = correct([item.p_equivalent for item in family])
    return [
        (e, _conclude(plan, e, float(d), float(q), len(family), interim))
        for e, d, q in zip(family, differ, equal, strict=True)
    ]


def _conclude(
    plan: Plan, evidence: _Evidence, p_adjusted: float, p_equivalent: float, family: int, interim: bool
) -> Verdict:
    difference = evidence.difference
    outcome = _outcome(plan, difference, p_adjusted, p_equivalent)
    # Benjamini-Hochberg leaves the smallest p of a family as it is when all are equal; Holm multiplies it.
    corrected = family if evidence.contrast.primary else 1
    verdict = Verdict(
        **vars(evidence),
        outcome=outcome,
        p_adjusted=p_adjusted,
        p_equivalent_adjusted=p_equivalent,
        floor=statistics.p_floor(difference.n, corrected),
        family=family,
        detectable=_detectable(difference, plan.alpha / family),
        seeds_needed=_seeds_needed(plan, difference, family) if outcome == "undecided" else None,
        interim=interim,
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
    needed = statistics.seeds_to_decide(difference.mean, difference.sd, plan.margin, plan.alpha, family)
    # An undecided study needs more than it has, however good its chance was.
    return None if needed is None else max(needed, difference.n + 1)


def clear_of_zero(difference: PairedDifference) -> bool:
    """Whether the t interval excludes zero."""
    return difference.low > 0 or difference.high < 0


def _detectable(difference: PairedDifference, alpha: float) -> float:
    if difference.n < 2:
        return math.nan
    return statistics.minimum_detectable_effect(difference.n, alpha=alpha) * difference.sd


def _in_words(plan: Plan, verdict: Verdict) -> Verdict:
    """The same verdict with its sentence and its notes."""
    sentence = " ".join(part for part in (_finding(plan, verdict), _losses(verdict)) if part)
    return dataclasses.replace(verdict, sentence=sentence, notes=tuple(_notes(plan, verdict)))


def _finding(plan: Plan, verdict: Verdict) -> str:
    d, (treatment, control) = verdict.difference, _named(verdict.contrast)
    if d.n < 2:
        found = "no seed has" if d.n == 0 else "only one seed has"
        return f"{treatment} against {control} is undecided: {found} a score of both arms, and a spread takes two."
    if d.mean == 0 and d.sd == 0:
        return f"{treatment} against {control} is {verdict.outcome}: identical scores at all {d.n} seeds."
    if verdict.outcome in ("better", "worse"):
        return f"{treatment} is {verdict.outcome} than {control} by {_size(plan, verdict)}."
    if verdict.outcome == "equivalent":
        p = wording.p_value(verdict.p_equivalent_adjusted)
        return (
            f"{treatment} and {control} are equivalent: they differ by {_size(plan, verdict)}, "
            f"less than the margin of {plan.margin:g} (equivalence p = {p})."
        )
    found = f"{treatment} against {control} is undecided: they differ by {_size(plan, verdict)}."
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
    level = f"{1 - plan.alpha:.0%} interval {wording.interval(low, high, error)}"
    return f"{size} ({level}, n = {d.n} seeds, p = {p}{family})"


def _correction(verdict: Verdict) -> str:
    method = "Holm" if verdict.contrast.primary else "Benjamini-Hochberg"
    return f"{method} over {verdict.family} contrasts"


def _what_would_decide(verdict: Verdict) -> str:
    if verdict.seeds_needed is None:
        return f"At this size and spread not even {statistics.MOST_SEEDS} seeds would decide it."
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
    if verdict.interim:
        yield "Interim: the study is not finished, and its error level holds for the last look only."
    if d.n < 2:
        return
    if verdict.floor > plan.alpha:
        floor = wording.p_value(verdict.floor)
        yield f"{d.n} seeds cannot show a difference: the smallest p they can reach here is {floor}."
    if verdict.outcome == "equivalent" and verdict.p_adjusted <= plan.alpha:
        p = wording.p_value(verdict.p_adjusted, verdict.floor)
        yield f"The difference is not zero (p = {p}), but below the margin that the plan set."
    if verdict.outcome in ("better", "worse") and min(abs(d.low), abs(d.high)) < plan.margin:
        yield f"Differences smaller than the margin of {plan.margin:g} are not excluded."
    if verdict.outcome == "undecided" and verdict.p_adjusted <= plan.alpha:
        yield "The permutation test is significant, but the t interval includes zero: no claim."
    if math.isfinite(d.check_low) and clear_of_zero(d) != (d.check_low > 0 or d.check_high < 0):
        low_high = wording.interval(d.check_low, d.check_high, d.standard_error)
        yield f"The bootstrap-t interval, {low_high}, disagrees with the t interval about zero."
    if verdict.outcome == "undecided" and d.sd > 0:
        yield f"This design had 80% power for a difference of {wording.compact(verdict.detectable, 2)}."
    if not verdict.contrast.primary:
        yield "Exploratory: a lead to follow on fresh seeds, not a finding."

"""Verdicts and contrasts in plain words: the sentence of each, and what a careful reader must know besides."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from analysis.stats import paired, power
from analysis.verdicts import number_format as fmt
from analysis.verdicts.arm_settings import words
from analysis.verdicts.verdict import Look, Verdict, clear_of_zero
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Contrast, Plan

FAILED = "failed"
"""Outcome of a contrast that has no difference because trials of an arm failed. The verdict on it is undecided; the
failure is what was found."""
NOISE_FLOOR = "noise floor"
"""In the place of an outcome, of an arm against itself."""
ORDER = ("better", "worse", "equivalent", FAILED, "undecided", NOISE_FLOOR)
"""Outcomes as the first screen lists them."""


def outcome_label(verdict: Verdict) -> str:
    """The outcome; `noise floor` of a null, `failed` where fewer than two seeds are left because trials failed."""
    if verdict.null:
        return NOISE_FLOOR
    return FAILED if verdict.difference.n < 2 and verdict.dropped else verdict.outcome


def numbers(verdict: Verdict) -> str:
    """``+0.120 ± 0.023 (0.022 to 0.218), n = 3, p = 1.00``, and how many seeds an undecided one takes."""
    d, error = verdict.difference, verdict.difference.standard_error
    if d.n < 2:
        return f"n = {d.n}"
    p = fmt.p_value(verdict.p_adjusted, verdict.min_p)
    if verdict.outcome == "equivalent":
        p = fmt.p_value(verdict.p_equivalent_adjusted)
    estimate = f"{fmt.with_error(d.mean, error, sign=True)} ({fmt.interval(d.low, d.high, error, verdict.within)})"
    span = f" ({seeds_span(verdict)})" if seeds_span(verdict) else ""
    needed = f", about {verdict.seeds_needed} seeds{span} decide" if verdict.seeds_needed else ""
    kind = "equivalence p" if verdict.outcome == "equivalent" else "p"
    return f"{estimate}, n = {d.n}, {kind} = {p}{needed}"


def seeds_span(verdict: Verdict) -> str:
    """``15 to 109``: seeds that may decide it, as those so far know size and spread only so well; empty if no range."""
    low, high = verdict.seeds_range or (0, 0)
    return "" if low == high else f"{low} or more" if high is None else f"{low} to {high}"


def contrast_name(name: str) -> str:
    """The name of a contrast with a true minus sign and its metric in words."""
    first, *others = name.split(" on ")  # no name of an arm has a space, and behind " on " stands a metric
    keys = [other.partition(" ") for other in others]
    labels = [find_metric(key).full_label.removesuffix(" on test jets") for key, _, _ in keys]
    words = "".join(f" ({label}){space}{rest}" for label, (_, space, rest) in zip(labels, keys, strict=True))
    return f"{first}{words}".replace(" on test jets of ", " at ").replace(" - ", " − ")


def in_words(plan: Plan, verdict: Verdict) -> Verdict:
    """The same verdict with its sentence and its notes."""
    sentence = " ".join(part for part in (_finding(plan, verdict), losses(verdict)) if part)
    notes, warnings = tuple(_notes(plan, verdict)), tuple(_warnings(plan, verdict))
    return dataclasses.replace(verdict, sentence=sentence, notes=notes, warnings=warnings)


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
        found += _changed_nothing(plan, verdict.contrast)
        return f"{found} {_what_would_decide(verdict)}" if verdict.outcome == "undecided" else found
    if verdict.outcome in ("better", "worse"):
        return f"{treatment} is {verdict.outcome} than {control} by {_size(plan, verdict)}."
    if verdict.outcome == "equivalent":
        p = fmt.p_value(verdict.p_equivalent_adjusted)
        return (
            f"{treatment} and {control} are equivalent: the difference is {_size(plan, verdict)}, "
            f"less than the margin of {plan.margin:g} (equivalence p = {p})."
        )
    found = f"{treatment} against {control} is undecided: the difference is {_size(plan, verdict)}."
    if verdict.undone_by_failures:
        ahead = treatment if (d.mean > 0) == plan.higher_is_better else control
        p = fmt.p_value(verdict.p_with_losses)
        return f"{found} It would not stand if {ahead} had lost by the largest one wherever it alone failed (p = {p})."
    return f"{found} {_what_would_decide(verdict)}"


def _changed_nothing(plan: Plan, contrast: Contrast) -> str:
    """What the arms differ in, where nothing came of it."""
    if not contrast.of_arms:
        return ""
    treatment, control = (dict(plan.arms[arm]) for arm in (contrast.treatment, contrast.control))
    differs = {field: value for field, value in treatment.items() if control.get(field) != value}
    dropped = [field for field in control if field not in treatment]
    said = ", ".join([*([words(differs)] if differs else []), *(f"{field} as in the base" for field in dropped)])
    return f" What {contrast.treatment} changes had no effect: {said}."


def _named(contrast: Contrast) -> tuple[str, str]:
    """Treatment and control with what tells them apart, or what both are compared in."""
    on = find_metric(contrast.metric).full_label if contrast.metric else ""
    if contrast.control_metric and not contrast.baseline:
        treatment = f"{contrast.treatment} ({on})" if on else contrast.treatment
        return treatment, f"{contrast.control} ({find_metric(contrast.control_metric).full_label})"
    return contrast.treatment, f"{contrast.baseline} {contrast.control}".strip() + (f" in {on}" if on else "")


def _size(plan: Plan, verdict: Verdict) -> str:
    """``0.021 ± 0.006 (95% interval 0.008 to 0.034, n = 6 seeds, p = 0.031)``; how much better is positive."""
    d, error = verdict.difference, verdict.difference.standard_error
    named = verdict.outcome in ("better", "worse")  # the word gives the direction
    low, high = (-d.high, -d.low) if named and d.mean < 0 else (d.low, d.high)
    size = fmt.with_error(abs(d.mean) if named else d.mean, error, sign=not named)
    method = "Holm" if verdict.contrast.primary else "Benjamini-Hochberg"
    family = f" after {method} over {verdict.family} contrasts" if verdict.family > 1 else ""
    p = fmt.p_value(verdict.p_adjusted, verdict.min_p)
    kind = "repeated interval" if verdict.look else "interval"
    level = f"{fmt.level(plan.alpha)} {kind} {fmt.interval(low, high, error, verdict.within)}"
    return f"{size} ({level}, n = {d.n} seeds, p = {p}{family})"


def _what_would_decide(verdict: Verdict) -> str:
    if verdict.seeds_needed is None:
        return f"At this size and spread not even {power.MAX_SEEDS} seeds would decide it."
    span = seeds_span(verdict)
    leaves = f" ({verdict.difference.n} seeds leave {span} open)" if span else ""
    return f"About {verdict.seeds_needed} seeds would decide it at this size and spread{leaves}."


def losses(verdict: Verdict) -> str:
    """Failed and pruned trials, in the sentence itself: the difference is of the survivors."""
    lines, failed, pruned = [], verdict.dropped, verdict.pruned
    if failed:
        rates = "; ".join(str(rate) for rate in verdict.failures)
        are = "is" if failed == 1 else "are"
        lines.append(f"{fmt.count(failed, 'seed')} {are} left out because a trial failed: {rates}.")
    if pruned:
        lines.append(f"{fmt.count(pruned, 'seed')} {'was' if pruned == 1 else 'were'} pruned and enter nothing.")
    return " ".join(lines)


def _notes(plan: Plan, verdict: Verdict) -> Iterator[str]:
    """What a careful reader must know besides the sentence."""
    d = verdict.difference
    if verdict.look:
        yield from _look_notes(verdict.look)
    elif verdict.interim:
        yield "Interim: the study is not finished, and its error level holds for the last look only."
    if d.n < 2 or (verdict.look and not verdict.look.blocks):
        return
    yield from _warnings(plan, verdict)
    yield from _too_few_notes(plan, verdict)
    if verdict.outcome == "equivalent" and verdict.p_adjusted <= plan.alpha:
        p = fmt.p_value(verdict.p_adjusted, verdict.min_p)
        yield f"The difference is not zero (p = {p}), but below the margin that the plan set."
    if verdict.outcome in ("better", "worse") and min(abs(d.low), abs(d.high)) < plan.margin:
        yield f"Differences smaller than the margin of {plan.margin:g} are not excluded."
    if verdict.outcome == "undecided" and d.sd > 0 and math.isfinite(verdict.detectable):
        least, most = (
            fmt.compact(verdict.detectable * end / d.sd, 2) for end in paired.deviation_interval(d.sd, d.n, 0.8)
        )
        yield (
            f"This design had 80% power for a difference of {fmt.compact(verdict.detectable, 2)} ({least} to {most}: "
            f"{d.n} seeds know the spread only so well)."
        )
    if verdict.outcome in ("better", "worse") and abs(d.mean) < verdict.detectable:
        times = power.exaggeration(d.n, plan.alpha, verdict.family)
        if times > 1:
            yield (
                f"Probably smaller than it looks: a difference that {d.n} seeds show in half of studies looks "
                f"{fmt.compact(times, 2)} times as large where it is shown."
            )
    if not verdict.contrast.primary and not verdict.null:
        yield "Exploratory: a lead to follow on fresh seeds, not a finding."


def _warnings(plan: Plan, verdict: Verdict) -> Iterator[str]:
    """What may overturn the verdict."""
    d = verdict.difference
    if d.n < 2 or (verdict.look and not verdict.look.blocks):
        return
    if verdict.outcome in ("better", "worse") and math.isfinite(verdict.p_with_losses):
        better = verdict.contrast.treatment if verdict.outcome == "better" else verdict.contrast.control
        yield (
            f"The verdict is of the seeds that are left; it would stand if {better} had lost by the largest difference"
            f" wherever it alone failed (p = {fmt.p_value(verdict.p_with_losses)})."
        )
    if verdict.outcome == "undecided" and verdict.p_adjusted <= plan.alpha and not clear_of_zero(d):
        yield "The permutation test is significant, but the t interval includes zero: no claim."
    if verdict.outcome == "undecided" and clear_of_zero(d) and verdict.p_adjusted > plan.alpha:
        p = fmt.p_value(verdict.p_adjusted, verdict.min_p)
        yield f"The interval excludes zero, but the permutation test does not (p = {p}): no claim."
    if verdict.outlier:
        seed, others = verdict.outlier
        yield (
            f"Seed {seed} lies apart from all others (Grubbs’ test at 1%): without it the difference is "
            f"{fmt.mean_cell(others, sign=True)}. Intervals and equivalence are for differences without such seeds."
        )


def _too_few_notes(plan: Plan, verdict: Verdict) -> Iterator[str]:
    """What so few seeds cannot show, whatever they are, and how many could."""
    differ, equal = power.min_seeds(plan.alpha, verdict.family if verdict.contrast.primary else 1)
    # Of a plan with looks no number is enough by itself: it depends on when the next look is.
    if verdict.min_p > plan.alpha:
        takes = "" if verdict.look else f"; it takes at least {differ}"
        smallest = fmt.p_value(verdict.min_p)
        yield (
            f"{verdict.difference.n} seeds cannot show a difference: the smallest p they can reach here is "
            f"{smallest}{takes}."
        )
    if verdict.min_p_equivalent > plan.alpha:
        takes = "" if verdict.look else f", which takes at least {equal}"
        yield f"They are too few for equivalence{takes}."
        if verdict.p_equivalent_adjusted <= plan.alpha:
            p = fmt.p_value(verdict.p_equivalent_adjusted)
            yield f"T-tests alone would call it equivalent (p = {p}), from how close the seeds happen to lie."


def _look_notes(look: Look) -> Iterator[str]:
    """Where the study was decided, and what its p-values and intervals are."""
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
        yield f"Left out of the verdict: {fmt.count(look.ended - look.blocks, 'block')} that ended after this look."

"""What a report says of one contrast: how it came out, and its numbers in one line."""

from __future__ import annotations

from analysis.verdicts import number_format as fmt
from analysis.verdicts.verdict import Verdict

FAILED = "failed"
"""Outcome of a contrast that has no difference because trials of an arm failed. The verdict on it is undecided; the
failure is what was found."""
ORDER = ("better", "worse", "equivalent", FAILED, "undecided")
"""Outcomes as the first screen lists them."""


def outcome_label(verdict: Verdict) -> str:
    """The outcome, or `failed` where fewer than two seeds are left because trials failed."""
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
    needed = f", about {verdict.seeds_needed} seeds decide" if verdict.seeds_needed else ""
    return f"{estimate}, n = {d.n}, p = {p}{needed}"

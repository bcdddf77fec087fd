"""What the section on scaling says of laws: sentences, tables and a figure of :mod:`analysis.stats.scaling_law`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.plots import responses as plots
from analysis.report.section import Picture, Table, picture
from analysis.stats import scaling_law
from analysis.stats.curve_fit import JOINT, MAX_EXPONENT, MIN_EXPONENT, POWER, REPEATED, Form
from analysis.stats.paired import SEED
from analysis.stats.scaling_law import AHEAD, Comparison, Estimate, Law
from analysis.verdicts import number_format as fmt
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Plan

MAX_PANELS = 4
"""Lines drawn; all are in the table."""
ROUNDING = 1e-6
"""An irreducible error below it is none: the search ends about there."""
MIN_AICC_GAIN = 2.0
"""AICc must fall by so much for a further term to be reported (assumed)."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Forms at one line, or at one plane of sizes."""

    name: str
    kind: str
    errors: pd.DataFrame
    """(seed, size): all that was measured."""
    comparison: Comparison
    left_out: str
    """A sentence on what the fit leaves out; empty when nothing."""

    @property
    def where(self) -> str:
        """``jBOT-S, fixed epochs``."""
        return f"{self.name}, {self.kind}"


def fitted(
    plan: Plan, name: str, kind: str, sizes: Sequence[tuple[float, ...]], errors: pd.DataFrame, forms: Sequence[Form]
) -> Fitted | None:
    """Forms at errors (seed, size), whose columns lie at `sizes` on their axes; None when too few sizes have seeds."""
    whole = complete(errors)
    points = [sizes[i] for i in whole.columns]
    if len(whole) < 1 or len(points) < max(form.parameters for form in forms) + 2:
        return None
    # Few draws at once for a plane, more in a row: what is drawn must not depend on which lines came before.
    rng, models = np.random.default_rng(SEED), [size[0] for size in points] if JOINT in forms else None
    found = scaling_law.compare(points, whole.to_numpy(), rng, forms=forms, groups=models, alpha=plan.alpha)
    return Fitted(name=name, kind=kind, errors=errors, comparison=found, left_out=_left_out(errors, whole, sizes))


def complete(errors: pd.DataFrame) -> pd.DataFrame:
    """The seeds and sizes between which nothing is missing, columns numbered as they were.

    What misses the largest share is left out first: of 7 sizes at 3 seeds a failed trial costs its size, not its seed.
    """
    kept = errors.set_axis(range(errors.shape[1]), axis=1)
    kept = kept.where(kept > 0).dropna(axis=0, how="all").dropna(axis=1, how="all")
    while kept.isna().any(axis=None):
        of_seeds, of_sizes = kept.isna().mean(axis=1), kept.isna().mean(axis=0)
        if of_seeds.max() >= of_sizes.max():
            kept = kept.drop(index=of_seeds.idxmax())
        else:
            kept = kept.drop(columns=of_sizes.idxmax())
    return kept


def _left_out(errors: pd.DataFrame, whole: pd.DataFrame, sizes: Sequence[tuple[float, ...]]) -> str:
    seeds = [str(seed) for seed in errors.index if seed not in whole.index and errors.loc[seed].notna().any()]
    lost = [sizes[i] for i in range(errors.shape[1]) if i not in whole.columns]
    by_noun = {"size": [" / ".join(f"{x:,.0f}" for x in size) for size in lost], "seed": seeds}
    said = [f"{noun}{'s' * (len(names) > 1)} {fmt.listed(names)}" for noun, names in by_noun.items() if names]
    return f"Left out, as trials are missing or without an error: {' and '.join(said)}." if said else ""


def sentences(lines: Sequence[Fitted]) -> Iterator[str]:
    """One paragraph per line: which form it follows, and what that predicts."""
    for one in lines:
        yield " ".join(filter(None, [*_answer(one), _predicted(one), one.left_out]))


def _answer(one: Fitted) -> Iterator[str]:
    found, named = one.comparison, one.comparison.named
    design_words = f"{fmt.count(len(found.sizes), 'size')}, {fmt.count(found.seeds, 'seed')}"
    if named:
        others = [law for law in found.laws if law not in found.standing]
        p_values = [_p(law.p) for law in others]
        if len(set(p_values)) == 1:
            p_values = [f"{p_values[0]}{' each' if len(others) > 1 else ''}"]
        rejected = f"{fmt.listed([law.form.name for law in others])} (p {' and '.join(p_values)})"
        words = f"{named.form.name}, {_parameters(named, found.alpha, ', ')}"
        yield f"{one.where}: {words} ({design_words}; rejected: {rejected})."
        if found.best_predictor is not named:
            yield f"The largest two sizes alone are predicted better by the {found.best_predictor.form.name} form."
        if named.form is POWER and named.parameters["E"].low < ROUNDING:
            yield "That it has no irreducible error (E = 0) is not excluded."
    elif found.seeds < 2:
        yield (
            f"{one.where}: not separable, as one seed has no second one to separate noise from law ({design_words}). "
            f"AICc, with the scatter about the best form for noise, prefers the {found.best.form.name} form."
        )
    elif found.none_fits:
        nearest = found.best
        yield (
            f"{one.where}: none of the forms describes the means within their noise ({design_words}; the nearest, "
            f"{nearest.form.name}, p {_p(nearest.p_fit)})."
        )
    else:
        standing = fmt.listed([law.form.name for law in found.standing])
        yield (
            f"{one.where}: not separable ({design_words}). Not rejected: {standing}; AICc prefers "
            f"{found.best.form.name}."
        )


def _p(p: float) -> str:
    """A p-value of `NULLS` simulated studies, never below what they can show."""
    smallest = 1 / (scaling_law.NULLS + 1)
    if not math.isfinite(p):
        return fmt.MISSING
    return f"≤ {smallest:g}" if p <= smallest * 1.001 else f"= {fmt.p_value(p)}"


def _predicted(one: Fitted) -> str:
    found = one.comparison
    if found.none_fits:
        return "So none predicts anything."
    most = float(found.sizes[:, 0].max())
    laws = [found.named] if found.named else list(found.standing)
    ahead = [law.at(AHEAD * most) for law in laws]
    at = f"At {AHEAD * most:,.0f} jets, {AHEAD:g} times the most here,"
    if len(laws) == 1:
        return f"{at} it predicts an error of {_estimate(ahead[0])}, if it goes on to hold."
    if found.seeds > 1:
        # An error ends at 1, wherever a form goes on to.
        low, high = (min(1.0, end) for end in (min(x.low for x in ahead), max(x.high for x in ahead)))
        between = f"between {fmt.compact(low, 2)} and {fmt.compact(high, 2)}"
        return f"{at} they predict an error {between}, if one of them goes on to hold."
    each = [f"{fmt.compact(x.value, 2)} ({law.form.name})" for law, x in zip(laws, ahead, strict=True)]
    return f"{at} they predict an error of {fmt.listed(each)}."


def _parameters(law: Law, alpha: float, between: str = "; ") -> str:
    return between.join(
        f"{name} = {_estimate(_known(law, value, alpha), name)}"
        for name, value in law.parameters.items()
        if name not in "AB"
    )


def _known(law: Law, one: Estimate, alpha: float) -> Estimate:
    """Without an interval where the form is rejected: a law that is not there has no parameters to be sure of."""
    rejected = law.p <= alpha or law.p_fit <= alpha
    return Estimate(value=one.value, low=math.nan, high=math.nan) if rejected else one


def _estimate(one: Estimate, name: str = "") -> str:
    """``0.25 (0.21 to 0.29)``; the value alone with one seed. Exponents end where they are not fitted any more."""
    value, low, high = (fmt.compact(0.0 if name == "E" and x < ROUNDING else x) for x in (one.value, one.low, one.high))
    if not math.isfinite(one.low):
        return value
    if name in ("α", "β"):
        low = f"≤ {MIN_EXPONENT:g}" if one.low <= MIN_EXPONENT * 1.001 else low
        high = f"≥ {MAX_EXPONENT:g}" if one.high >= MAX_EXPONENT * 0.999 else high
    return f"{value} ({low} to {high})"


def method(alpha: float) -> str:
    """How the forms were separated."""
    return (
        "Laws are fitted to the means over seeds of the logarithm of the error. A form is named only when simulations "
        f"of every other form, with the noise of the seeds, reject it at {alpha:.0%}, and AICc agrees. Intervals are "
        "of whole seeds (Student’s t with n − 1 degrees of freedom, carried through the fit), and of the mean over "
        "seeds; what all seeds share, such as the same jets, they do not see. The numbers of a form that is rejected, "
        "or that does not fit, stand without an interval: they are those of its nearest curve."
    )


def plane_sentence(one: Fitted) -> str:
    """The joint law over models and jets."""
    law, found = one.comparison.laws[0], one.comparison
    weights, jets = found.sizes.max(axis=0)
    n = f"{fmt.count(len(found.sizes), 'point')}, {fmt.count(found.seeds, 'seed')}"
    said = f"Models and jets together, {one.kind}: {law.form.formula} with {_parameters(law, found.alpha, ', ')} ({n})."
    if law.p_fit <= found.alpha:
        said += f" The means do not lie on it within their noise (p {_p(law.p_fit)}): it predicts nothing."
    else:
        ahead = law.at(float(weights), AHEAD * float(jets))
        said += f" With {weights:,.0f} weights and {AHEAD * jets:,.0f} jets it predicts an error of {_estimate(ahead)}."
    return f"{said} {one.left_out}".rstrip()


def repetition_sentence(one: Fitted) -> str | None:
    """The value of a further pass over the same jets; None where it is like new jets, or like nothing."""
    found = one.comparison
    best = found.best
    if found.seeds < 2 or best.p_fit <= found.alpha:
        return None
    others = [law.aicc for law in found.laws if law is not best]
    if min(others) - best.aicc < MIN_AICC_GAIN or any(law.p > found.alpha for law in found.laws if law is not best):
        return None
    said = f"{one.name}, both ways together: {best.form.name}"
    if best.form is REPEATED:
        value = best.parameters["R"]
        said += (
            f" (D′ = D (1 + R (1 − exp(−(passes − 1)/R))), R = {_estimate(value)}): however often the same jets are "
            f"seen, they count as at most {1 + value.value:.3g} times their number in jets seen once"
        )
    return f"{said} ({fmt.count(len(found.sizes), 'point')}, {fmt.count(found.seeds, 'seed')})."


def tables(lines: Sequence[Fitted], planes: Sequence[Fitted], repeats: Sequence[Fitted]) -> Iterator[Table]:
    """Every form at every line; nothing when nothing was fitted."""
    rows = []
    for one in [*lines, *planes]:
        *others, jets = one.comparison.sizes.max(axis=0)
        for law in one.comparison.laws:
            off = f"{math.expm1(law.left_out):.1%}" if math.isfinite(law.left_out) else fmt.MISSING
            ahead = _known(law, law.at(*map(float, others), AHEAD * float(jets)), one.comparison.alpha)
            row = {"line": one.name} | _cells(one, law)
            row |= {"two largest off by": "below 0" if math.isinf(law.left_out) else off}
            rows.append(row | {"error at ten times": _estimate(ahead)})
    if rows:
        yield Table.of("Laws of the error", rows, words=("held", "form", "parameters"))
    rows = [{"model": one.name} | _cells(one, law) for one in repeats for law in one.comparison.laws]
    if rows:
        yield Table.of("Passes over the same jets", rows, words=("held", "form", "parameters"))


def _cells(one: Fitted, law: Law) -> dict[str, str]:
    return {
        "held": one.kind,
        "form": f"{law.form.name}: {law.form.formula}",
        "parameters": _parameters(law, one.comparison.alpha),
        "AICc above best": fmt.number(law.aicc - one.comparison.best.aicc, 1),
        "p": _p(law.p).removeprefix("= "),
        "p of the fit": _p(law.p_fit).removeprefix("= "),
    }


def pictures(plan: Plan, lines: Sequence[Fitted]) -> Iterator[Picture]:
    """All forms over the errors, out to ten times the most jets."""
    if not lines:
        return
    panels, said = {}, []
    for one in lines[:MAX_PANELS]:
        found = one.comparison
        panels[one.where] = (one.errors, found)
        says = found.named.form.name if found.named else "none fits" if found.none_fits else "not separable"
        said.append(f"{one.where}: {says}")
    caption = (
        "Laws of the error, drawn to ten times the most jets; the dashed line is the most that were trained on. Full "
        f"lines, with {fmt.level(plan.alpha)} bands over seeds, are forms that are not rejected, dotted ones are. "
        "Small dots are seeds, large ones their means."
    )
    figure = plots.law_lines(panels, "training jets", f"1 − {find_metric(plan.metric).label}")
    yield picture("scaling-laws", figure, caption, "; ".join(said))

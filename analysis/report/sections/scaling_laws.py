"""What the section on scaling says of laws: sentences, tables and a figure of :mod:`analysis.stats.scaling_law`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.plots import scaling as plots
from analysis.plots.picture import Picture
from analysis.report.section import Table
from analysis.stats import scaling_law
from analysis.stats.curve_fit import JOINT, MAX_EXPONENT, MIN_EXPONENT, POWER, REPEATED, REPETITION, Form
from analysis.stats.scaling_law import AHEAD, Comparison, Estimate, Law
from analysis.verdicts import number_format as fmt
from analysis.verdicts.decide import SEED
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
    left: str
    """What the fit leaves out, in words; empty when nothing."""

    @property
    def where(self) -> str:
        """``jBOT-S, fixed epochs``."""
        return f"{self.name}, {self.kind}"


def fitted(
    plan: Plan, name: str, kind: str, sizes: Sequence[tuple[float, ...]], errors: pd.DataFrame, forms: Sequence[Form]
) -> Fitted | None:
    """Forms at the errors (seed, size); None when too few sizes have seeds.

    Parameters
    ----------
    sizes : sequence
        Place of every column of `errors` on the axes of the forms.
    """
    whole = complete(errors)
    points = [sizes[i] for i in whole.columns]
    if len(whole) < 1 or len(points) < max(form.parameters for form in forms) + 2:
        return None
    # Few draws at once for a plane, more in a row: what is drawn must not depend on which lines came before.
    found = scaling_law.compare(points, whole.to_numpy(), np.random.default_rng(SEED), forms=forms, alpha=plan.alpha)
    return Fitted(name=name, kind=kind, errors=errors, comparison=found, left=_left(errors, whole, sizes))


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


def _left(errors: pd.DataFrame, whole: pd.DataFrame, sizes: Sequence[tuple[float, ...]]) -> str:
    seeds = [str(seed) for seed in errors.index if seed not in whole.index and errors.loc[seed].notna().any()]
    places = [sizes[i] for i in range(errors.shape[1]) if i not in whole.columns]
    said = (
        [f"{'size' if len(places) == 1 else 'sizes'} {fmt.listed([_place(one) for one in places])}"] if places else []
    )
    said += [f"{'seed' if len(seeds) == 1 else 'seeds'} {fmt.listed(seeds)}"] if seeds else []
    return " and ".join(said)


def _place(size: tuple[float, ...]) -> str:
    return " / ".join(f"{one:,.0f}" for one in size)


def sentences(lines: Sequence[Fitted]) -> Iterator[str]:
    """One paragraph per line: which form it follows, and what that predicts."""
    for one in lines:
        yield " ".join([*_answer(one), *_predicted(one), *_left_out_words(one)])


def _answer(one: Fitted) -> Iterator[str]:
    found, named = one.comparison, one.comparison.named
    design_words = f"{fmt.count(len(found.sizes), 'size')}, {fmt.count(found.seeds, 'seed')}"
    if named:
        others = [law for law in found.laws if law is not named]
        rejected = f"{fmt.listed([law.form.name for law in others])} {_p_words(others)}"
        law = f"{named.form.name}, {_parameters(named, found.alpha, ', ')}"
        yield f"{one.where}: {law} ({design_words}; rejected: {rejected})."
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


def _p_words(others: Sequence[Law]) -> str:
    values = sorted({_p(law.p) for law in others})
    return (
        f"(p {values[0]}{' each' if len(others) > 1 else ''})"
        if len(values) == 1
        else (f"(p {' and '.join(_p(law.p) for law in others)})")
    )


def _p(p: float) -> str:
    """A p-value of `NULLS` simulated studies, never below what they can show."""
    smallest = 1 / (scaling_law.NULLS + 1)
    if not math.isfinite(p):
        return fmt.MISSING
    return f"≤ {smallest:g}" if p <= smallest * 1.001 else f"= {fmt.p_value(p)}"


def _predicted(one: Fitted) -> Iterator[str]:
    found = one.comparison
    if found.none_fits:
        yield "So none predicts anything."
        return
    most = float(found.sizes[:, 0].max())
    laws = [found.named] if found.named else list(found.standing)
    ahead = [law.at(AHEAD * most) for law in laws]
    at = f"At {AHEAD * most:,.0f} jets, {AHEAD:g} times the most here,"
    if len(laws) == 1:
        yield f"{at} it predicts an error of {_estimate(ahead[0])}."
    elif found.seeds > 1:
        # An error ends at 1, wherever a form goes on to.
        low, high = (min(1.0, end) for end in (min(x.low for x in ahead), max(x.high for x in ahead)))
        yield f"{at} they predict an error between {fmt.compact(low, 2)} and {fmt.compact(high, 2)}."
    else:
        each = [f"{fmt.compact(x.value, 2)} ({law.form.name})" for law, x in zip(laws, ahead, strict=True)]
        yield f"{at} they predict an error of {fmt.listed(each)}."


def _left_out_words(one: Fitted) -> Iterator[str]:
    if one.left:
        yield f"Left out, as trials are missing or without an error: {one.left}."


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
    return " ".join([said, *_left_out_words(one)])


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


def tables(lines: Sequence[Fitted], planes: Sequence[Fitted], repeats: Sequence[Fitted]) -> list[Table]:
    """Every form at every line; empty when nothing was fitted."""
    head = [
        "line",
        "held",
        "form",
        "parameters",
        "AICc above best",
        "p",
        "p of the fit",
        "two largest off by",
        "error at ten times",
    ]
    rows = [_row(one, law, _ahead(one, law)) for one in [*lines, *planes] for law in one.comparison.laws]
    found = [Table(label="Laws of the error", head=head, rows=rows, text_columns=(0, 1, 2, 3))] if rows else []
    rows = [_row(one, law, "")[:-2] for one in repeats for law in one.comparison.laws]
    if rows:
        head = ["model", "held", *head[2:-2]]
        found.append(Table(label="Passes over the same jets", head=head, rows=rows, text_columns=(0, 1, 2, 3)))
    return found


def _ahead(one: Fitted, law: Law) -> str:
    *others, jets = one.comparison.sizes.max(axis=0)
    ahead = law.at(*map(float, others), AHEAD * float(jets))
    return _estimate(_known(law, ahead, one.comparison.alpha))


def _row(one: Fitted, law: Law, ahead: str) -> list[str]:
    off = "below 0" if math.isinf(law.left_out) else f"{math.expm1(law.left_out):.1%}"
    return [
        one.name,
        one.kind,
        f"{law.form.name}: {law.form.formula}",
        _parameters(law, one.comparison.alpha),
        fmt.number(law.aicc - one.comparison.best.aicc, 1),
        _p(law.p).removeprefix("= "),
        _p(law.p_fit).removeprefix("= "),
        off if math.isfinite(law.left_out) or math.isinf(law.left_out) else fmt.MISSING,
        ahead,
    ]


def pictures(plan: Plan, lines: Sequence[Fitted]) -> Iterator[Picture]:
    """All forms over the errors, out to ten times the most jets."""
    if not lines:
        return
    drawn = list(lines[:MAX_PANELS])
    panels = {one.where: plots.LawPanel(errors=one.errors, curves=list(_curves(one.comparison))) for one in drawn}
    caption = (
        "Laws of the error, drawn to ten times the most jets; the dashed line is the most that were trained on. Full "
        f"lines, with {1 - plan.alpha:.0%} bands over seeds, are forms that are not rejected, dotted ones are. "
        "Small dots are seeds, large ones their means."
    )
    figure = plots.law_lines(panels, "training jets", f"1 − {find_metric(plan.metric).label}")
    said = "; ".join(f"{one.where}: {_short(one.comparison)}" for one in drawn)
    yield Picture(name="scaling-laws", figure=figure, alt=f"{caption} {said}.", caption=caption)


def _short(found: Comparison) -> str:
    return found.named.form.name if found.named else "none fits" if found.none_fits else "not separable"


def _curves(found: Comparison) -> Iterator[plots.LawCurve]:
    sizes = np.geomspace(found.sizes[0, 0], AHEAD * found.sizes[-1, 0], 60)
    for law in found.laws:
        value, low, high = law.curve(sizes[:, None])
        yield plots.LawCurve(
            name=law.form.name, stands=law in found.standing, sizes=sizes, value=value, low=low, high=high
        )


def joint(plan: Plan, kind: str, points: Sequence[tuple[float, ...]], errors: pd.DataFrame) -> Fitted | None:
    """The joint law at (weights, jets)."""
    return fitted(plan, "all models", kind, points, errors, (JOINT,))


def repetition(plan: Plan, name: str, points: Sequence[tuple[float, ...]], errors: pd.DataFrame) -> Fitted | None:
    """The value of passes, at (jets, passes over each)."""
    return fitted(plan, name, "both", points, errors, REPETITION)

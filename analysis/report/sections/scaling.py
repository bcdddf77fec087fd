"""Error against unlabeled jets and against model size, on logarithmic axes: laws, and slopes.

The error is 1 - metric, for metrics that 1 bounds: accuracies and areas under ROC curves. Lines of one model over at
least MIN_SIZES training sets are of two kinds, never mixed, because they answer different questions:

    fixed epochs    train.epochs is the same: more jets are also more optimiser steps
    fixed steps     train.epochs * data.train_jets is the same: fewer jets are repeated more often

An arm may lie on both. What is counted in epochs (warm-up, probes) may differ along a line, all else is equal.
Laws (:mod:`analysis.stats.scaling_law`) are fitted to every line apart; the joint one to all models of one kind, and
the value of repeated passes over the same jets to both lines of one model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.plots import responses as plots
from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section, Table, picture
from analysis.report.sections import scaling_laws
from analysis.report.sections.scaling_laws import Fitted
from analysis.stats import Floats, paired
from analysis.stats.curve_fit import FORMS, JOINT, REPETITION
from analysis.stats.paired import MeanInterval
from analysis.stats.scaling_law import AHEAD, Law
from analysis.verdicts import arm_configs
from analysis.verdicts import number_format as fmt
from analysis.verdicts.arm_configs import FlatConfig
from jbot.config import JBOT_B, ModelConfig
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Plan

MIN_SIZES = 3
"""Two training sets give a ratio, no line."""
FIT_SIZES, FIT_SEEDS = 7, 3
"""What a fit of competing laws needs: simulated, five sizes and one seed choose the logarithm in all cases though the
truth is a power law with an irreducible error; seven log-spaced sizes and three seeds are right in all."""
MIN_MODELS, MIN_JOINT_SIZES = 3, 5
"""Models and training sets of a joint law (assumed)."""
COUNTED_IN_EPOCHS = ("train.epochs", "train.until", "optim.warmup_epochs", "probe.every")
SIZES = ("data.train_jets", "data.labeled_jets", "data.val_jets", *COUNTED_IN_EPOCHS)
"""What may differ along a line."""
STEPS_TOLERANCE = 0.1
"""Relative, of the steps along a line of fixed steps, beside the rounding to whole epochs (assumed)."""
EPOCHS, STEPS = "fixed epochs", "fixed steps"
MAX_LINES = 6
"""Lines drawn in one panel, and described in sentences."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """An arm as a point of the plane of sizes."""

    arm: str
    jets: int
    epochs: float
    """Passes over each jet."""
    steps: int
    parameters: int
    """Weights of encoder and projection head."""
    labeled: float = math.inf
    """Jets among which the probes' bank is drawn."""

    @property
    def passed(self) -> float:
        """Jets that a training sees, each as often as it does."""
        return self.epochs * self.jets

    def as_long_as(self, other: Run) -> bool:
        """Whether both see as many jets, up to the rounding to whole epochs."""
        epochs = other.passed / self.jets
        return abs(self.epochs - epochs) <= max(0.5, STEPS_TOLERANCE * epochs)


@dataclass(frozen=True, kw_only=True)
class Line:
    """Arms along which one size grows."""

    kind: str
    """EPOCHS, STEPS, or what both axes of a line over models are held at."""
    name: str
    runs: tuple[Run, ...]
    """Ascending in that size."""
    over: str = "jets"
    """The size that grows: `jets` or `weights`."""

    @property
    def sizes(self) -> list[int]:
        """Jets or weights of each run."""
        return [run.parameters if self.over == "weights" else run.jets for run in self.runs]

    def errors(self, errors: pd.DataFrame) -> pd.DataFrame:
        """Errors (seed, arm) as (seed, size)."""
        return errors[[run.arm for run in self.runs]].set_axis(self.sizes, axis=1)

    def slope(self, errors: pd.DataFrame, alpha: float) -> MeanInterval:
        """Mean slope of log error against log size over seeds."""
        return paired.mean_interval(slopes(self.runs, self.sizes, errors), 1 - alpha)


def has_error(metric: str) -> bool:
    """Whether 1 - metric is an error: an accuracy or an area under a ROC curve."""
    return find_metric(metric).measure.endswith(("accuracy", "auc"))


def weights(config: FlatConfig) -> int:
    """Trained numbers of an arm's student, counted from the shapes of its weights."""
    # Imported here: it brings torch along, which reports of other studies do without.
    from jbot.trainer.model import weight_count

    dim, heads, layers, projection = (int(config[f"model.{n}"]) for n in ("dim", "heads", "layers", "projection"))
    return weight_count(ModelConfig(dim=dim, heads=heads, layers=layers, projection=projection))


def lines_over_jets(plan: Plan) -> list[Line]:
    """Lines of one model over training sets: those of fixed epochs first, small models first."""
    groups = _groups(plan, SIZES)
    found = []
    for name, arms in zip(_names([dict(key) for key in groups]), groups.values(), strict=True):
        runs = _runs(arms)
        for epochs in dict.fromkeys(run.epochs for run in runs):
            alike = _by_jets([run for run in runs if run.epochs == epochs])
            if len(alike) >= MIN_SIZES:
                found.append(Line(kind=EPOCHS, name=name, runs=alike))
        found += [Line(kind=STEPS, name=name, runs=alike) for alike in _same_steps(runs)]
    found.sort(key=lambda line: (line.kind != EPOCHS, line.runs[0].parameters))
    named = Counter((line.kind, line.name) for line in found)
    for i, line in enumerate(found):
        if named[line.kind, line.name] > 1:
            first = line.runs[0]
            held = f"{first.epochs:g} epochs" if line.kind == EPOCHS else f"{first.steps:,} steps"
            found[i] = replace(line, name=f"{line.name}, {held}")
    return found


def lines_over_models(plan: Plan) -> list[Line]:
    """Lines over models at one training set and one number of epochs."""
    configs = arm_configs.arm_configs(plan)
    model = {field for config in configs.values() for field in config if field.startswith(("model.", "optim."))}
    found = []
    for arms in _groups(plan, model).values():
        runs = sorted(_runs(arms), key=lambda run: run.parameters)
        if len({run.parameters for run in runs}) == len(runs) >= 2:
            held = f"{runs[0].jets:,} jets, {runs[0].epochs:g} epochs"
            found.append(Line(kind=held, name=held, runs=tuple(runs), over="weights"))
    return sorted(found, key=lambda line: (line.runs[0].jets, line.runs[0].epochs))


def _groups(plan: Plan, free: Collection[str]) -> dict[tuple[tuple[str, object], ...], dict[str, FlatConfig]]:
    """Arms that agree in all settings but the free ones."""
    groups: dict[tuple[tuple[str, object], ...], dict[str, FlatConfig]] = {}
    for arm, config in arm_configs.arm_configs(plan).items():
        groups.setdefault(arm_configs.without(config, free), {})[arm] = config
    return groups


def _runs(arms: Mapping[str, FlatConfig]) -> list[Run]:
    found = []
    for arm, config in arms.items():
        jets, epochs = int(config["data.train_jets"]), float(config["train.epochs"])
        steps = int(epochs * max(1, math.ceil(jets / config["train.batch"])))
        labeled = max(float(jets), float(config.get("data.labeled_jets", 0.0)))
        found.append(Run(arm=arm, jets=jets, epochs=epochs, steps=steps, parameters=weights(config), labeled=labeled))
    return found


def _same_steps(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """Runs of equal epochs * jets, up to the rounding of epochs, over enough training sets; the longest lines."""
    found = []
    for first in runs:
        # The nearest of the runs with one training set: some may lie on a line of fixed epochs.
        alike = [run for run in runs if run.as_long_as(first)]
        line = _by_jets(sorted(alike, key=lambda run: abs(run.passed - first.passed)))
        if len(line) >= MIN_SIZES and len({run.epochs for run in line}) == len(line):
            found.append(line)
    longest: list[tuple[Run, ...]] = []
    for line in sorted(found, key=len, reverse=True):
        if not any(len(set(line) & set(other)) > 1 for other in longest):
            longest.append(line)
    return longest


def _by_jets(runs: Sequence[Run]) -> tuple[Run, ...]:
    """One run per training set, the first of several; ascending."""
    first = {run.jets: run for run in reversed(runs)}
    return tuple(first[jets] for jets in sorted(first))


def _names(configs: Sequence[FlatConfig]) -> list[str]:
    """Models by their name, and what else tells the groups apart."""
    fields = sorted({field for config in configs for field in config if not field.startswith("model.")})
    differing = [field for field in fields if len({config.get(field) for config in configs}) > 1]
    return [
        ", ".join([_model(one), *(f"{field} = {fmt.value_words(one.get(field))}" for field in differing)])
        for one in configs
    ]


def _model(config: FlatConfig) -> str:
    sizes = {field.removeprefix("model."): value for field, value in config.items() if field.startswith("model.")}
    base = vars(ModelConfig())
    known = {"jBOT-S": base, "jBOT-B": base | {field.removeprefix("model."): v for field, v in JBOT_B.items()}}
    named = [name for name, one in known.items() if all(sizes[field] == value for field, value in one.items())]
    return named[0] if named else f"d = {sizes['dim']:g}, {fmt.count(int(sizes['layers']), 'block')}"


def slopes(runs: Sequence[Run], sizes: Sequence[float], errors: pd.DataFrame) -> Floats:
    """Slope of log error against log size (jets or parameters, one per run), by least squares: (seed,).

    Only seeds that have all runs in `errors` (seed, arm). A slope is the exponent of the size: at -0.2 ten times the
    size leaves 63% of the error.
    """
    rows = errors[[run.arm for run in runs]].dropna().to_numpy(dtype=float)
    rows = rows[(rows > 0).all(axis=1)]
    x = np.log(np.asarray(sizes, dtype=float))
    x = x - x.mean()
    return np.asarray(np.log(rows) @ x / (x @ x), dtype=float) if len(rows) else np.empty(0)


def section(evidence: Evidence) -> Section | None:
    """Scaling of the study; None when its metric is no 1 - error, or its arms lie on no line over training sets."""
    plan = evidence.judged_plan
    lines = lines_over_jets(plan) if has_error(plan.metric) else []
    if not lines:
        return None
    models = lines_over_models(plan)
    # Lines over models at the base's epochs: those of fixed steps have other ones at each training set.
    base_epochs = arm_configs.base_config(plan)["train.epochs"]
    of_base = [line for line in models if line.runs[0].epochs == base_epochs] or models
    errors = 1 - evidence.compared
    fits = [
        scaling_laws.fitted(plan, line.name, line.kind, [(float(x),) for x in line.sizes], line.errors(errors), FORMS)
        for line in lines
    ]
    found = [one for one in fits if one]
    planes = [one for kind in (EPOCHS, STEPS) if (one := _plane(plan, kind, errors))]
    repeats = list(_repetitions(plan, lines, errors))
    laws = list(scaling_laws.sentences(found[:MAX_LINES]))
    # A line whose law has a name has no slope besides: the two would give two rates of improvement.
    named = {(one.name, one.kind): one.comparison.named for one in found if one.comparison.named}
    shown = [*lines[:MAX_LINES], *_spread_out(of_base, 2)]
    metric = find_metric(plan.metric).full_label
    return Section(
        title="Scaling",
        answer=laws[:2],
        sentences=[
            f"The error is 1 − {metric}. On two logarithmic axes a power law is a straight line, and its slope is the "
            "exponent. Slopes are fitted at each seed; intervals are over seeds.",
            *laws,
            *(scaling_laws.plane_sentence(one) for one in planes),
            *(said for one in repeats if (said := scaling_laws.repetition_sentence(one))),
            *(_slope_words(plan, line, errors) for line in shown if (line.name, line.kind) not in named),
            *_warnings(plan, lines),
        ],
        method=[scaling_laws.method(plan.alpha)] if found else [],
        tables=[*scaling_laws.tables(found, planes, repeats), *_tables(evidence, lines, models, errors, named)],
        figures=[*scaling_laws.pictures(plan, found), *_pictures(plan, lines, of_base, errors)],
    )


def _plane(plan: Plan, kind: str, errors: pd.DataFrame) -> Fitted | None:
    """The joint law of all models that differ from the base in nothing else, at its epochs or at its steps."""
    configs, base = arm_configs.arm_configs(plan), arm_configs.base_config(plan)
    free = {*SIZES, *(field for config in configs.values() for field in config if field.startswith("model."))}
    key, origin = arm_configs.without(base, free), _runs({"": base})[0]
    alike = _runs({arm: config for arm, config in configs.items() if arm_configs.without(config, free) == key})
    held = [run for run in alike if (run.epochs == origin.epochs if kind == EPOCHS else run.as_long_as(origin))]
    runs = {(run.parameters, run.jets): run for run in held}
    if len({run.parameters for run in held}) < MIN_MODELS or len({run.jets for run in held}) < MIN_JOINT_SIZES:
        return None
    points = sorted(runs)
    sizes = [(float(parameters), float(jets)) for parameters, jets in points]
    return scaling_laws.fitted(plan, "all models", kind, sizes, errors[[runs[point].arm for point in points]], (JOINT,))


def _repetitions(plan: Plan, lines: Sequence[Line], errors: pd.DataFrame) -> Iterator[Fitted]:
    """Per model that has a line of each kind: both lines, over jets and passes."""
    for name in dict.fromkeys(line.name for line in lines):
        of_name = [line for line in lines if line.name == name]
        runs = list({(run.jets, run.epochs): run for line in of_name for run in line.runs}.values())
        points = [(float(run.jets), run.epochs) for run in runs]
        if {line.kind for line in of_name} == {EPOCHS, STEPS} and (
            found := scaling_laws.fitted(plan, name, "both", points, errors[[run.arm for run in runs]], REPETITION)
        ):
            yield found


def _slope_words(plan: Plan, line: Line, errors: pd.DataFrame) -> str:
    slope, kind = line.slope(errors, plan.alpha), f", {line.kind}" if line.over == "jets" else ""
    where = f"{line.name}{kind}, {line.sizes[0]:,} to {line.sizes[-1]:,} {line.over}"
    if not slope.n:
        return f"{where}: no seed has all sizes yet."
    left = f"ten times the {line.over} leave {10**slope.mean:.0%} of the error"
    if slope.n < 2:
        return f"{where}: slope {fmt.number(slope.mean, 3)}, {left} (one seed, no interval)."
    said = f"{where}: slope {fmt.mean_cell(slope, sign=True)}, {left}"
    clear = "" if slope.high < 0 or slope.low > 0 else "; that the error does not change is not excluded"
    interval = f"{fmt.level(plan.alpha)} interval {fmt.interval_cell(slope)}"
    return f"{said} ({interval}, n = {fmt.count(slope.n, 'seed')}{clear})."


def _warnings(plan: Plan, lines: Sequence[Line]) -> Iterator[str]:
    """What the lines do not show."""
    by_kind = {kind: [run for line in lines if line.kind == kind for run in line.runs] for kind in (EPOCHS, STEPS)}
    if by_kind[EPOCHS]:
        times = fmt.listed([_times(one) for one in sorted({run.epochs for run in by_kind[EPOCHS]})])
        yield (
            f"Data are repeated. At fixed epochs each jet is seen {times}, whatever their number, so that more jets "
            "are more optimiser steps too."
        )
    if by_kind[STEPS]:
        few, many = (end(by_kind[STEPS], key=lambda run: run.jets) for end in (min, max))
        yield (
            f"At fixed steps each jet is seen {_times(few.epochs)} with {few.jets:,} jets and {_times(many.epochs)} "
            f"with {many.jets:,}: the line also shows what repetition costs."
        )
    largest = max(len(line.runs) for line in lines)
    yield (
        "A slope does not say which law holds: a logarithm, a power law, and a power law that ends on an irreducible "
        f"error look alike over few sizes. Separating them takes a fit of all of them to at least {FIT_SIZES} sizes, "
        f"evenly spaced in the logarithm, at {FIT_SEEDS} seeds each; this study has {largest} sizes and "
        f"{fmt.count(len(plan.seeds), 'seed')}."
    )
    runs = [*by_kind[EPOCHS], *by_kind[STEPS]]
    bank = min(float(arm_configs.base_config(plan).get("probe.bank_jets", 0.0)), max(run.labeled for run in runs))
    small = sorted({run.jets for run in runs if run.labeled < bank})
    if small:
        yield (
            f"Up to {small[-1]:,} training jets the probes have fewer labels than the {bank:,.0f} elsewhere, as they "
            "are drawn from the training jets: there the error has a second reason to fall."
        )


def _times(epochs: float) -> str:
    return "once" if epochs == 1 else f"{epochs:g} times"


def _spread_out(lines: Sequence[Line], most: int) -> list[Line]:
    """So many of them, first and last among them."""
    chosen = np.unique(np.linspace(0, len(lines) - 1, min(most, len(lines))).round().astype(int)) if lines else []
    return [lines[i] for i in chosen]


def _tables(
    evidence: Evidence,
    lines: Sequence[Line],
    models: Sequence[Line],
    errors: pd.DataFrame,
    named: Mapping[tuple[str, str], Law | None],
) -> Iterator[Table]:
    alpha, level = evidence.alpha, evidence.level

    def cells(run: Run) -> dict[str, str]:
        mean = paired.mean_interval(errors[run.arm].dropna(), 1 - alpha)
        return {"n": str(mean.n), "error": fmt.mean_cell(mean), level: fmt.interval_cell(mean)}

    rows = [
        {"model": line.name, "held": line.kind, "jets": f"{run.jets:,}", "passes over each": f"{run.epochs:g}"}
        | {"steps": f"{run.steps:,}"}
        | cells(run)
        for line in lines
        for run in line.runs
    ]
    yield Table.of("Error against training jets", rows, words=("held",))
    rows = []
    for line in (*lines, *models):
        slope = line.slope(errors, alpha)
        row = {"line": line.name, "held": line.kind if line.over == "jets" else "both", "against": line.over}
        row |= {"sizes": str(len(line.runs)), "n": str(slope.n)}
        row |= {"slope": fmt.mean_cell(slope, sign=True), level: fmt.interval_cell(slope)}
        left = 10**slope.mean if slope.n else math.nan
        if law := named.get((line.name, line.kind)) if line.over == "jets" else None:
            left = law.at(AHEAD * line.sizes[-1]).value / law.at(line.sizes[-1]).value
        rows.append(row | {"error left at ten times": f"{left:.0%}" if math.isfinite(left) else fmt.MISSING})
    yield Table.of("Slopes of log error", rows, words=("held", "against"))
    if models:
        rows = [
            {"jets and epochs": line.name, "weights": f"{run.parameters:,}", "arm": run.arm} | cells(run)
            for line in models
            for run in line.runs
        ]
        yield Table.of("Error against model size", rows, words=("arm",))


def _pictures(plan: Plan, lines: Sequence[Line], models: Sequence[Line], errors: pd.DataFrame) -> Iterator[Picture]:
    """Lines that have a point on a logarithmic axis: those over jets by kind, and those over models."""
    drawn = [line for line in (*lines, *models) if (line.errors(errors) > 0).any(axis=None)]
    kinds = dict.fromkeys(line.kind for line in drawn if line.over == "jets")
    by_kind = {kind: [line for line in drawn if line.kind == kind] for kind in kinds}
    what = f"Error against unlabeled training jets, at {' and at '.join(kinds)}"
    yield from _picture(plan, "scaling-jets", "training jets", what, by_kind, errors)
    over_models = [line for line in drawn if line.over == "weights"]
    what = "Error against weights of encoder and head"
    yield from _picture(plan, "scaling-models", "weights", what, {"": over_models} if over_models else {}, errors)


def _picture(
    plan: Plan, name: str, size: str, what: str, panels: Mapping[str, Sequence[Line]], errors: pd.DataFrame
) -> Iterator[Picture]:
    if not panels:
        return
    points = {
        key: {line.name: line.errors(errors) for line in _spread_out(of, MAX_LINES)} for key, of in panels.items()
    }
    caption = (
        f"{what}: means over seeds with {fmt.level(plan.alpha)} intervals, faint lines: single seeds; both axes are "
        "logarithmic."
    )
    slopes = {line: line.slope(errors, plan.alpha) for of in panels.values() for line in of}
    said = "; ".join(f"{line.name}: slope {fmt.mean_cell(slope)}" for line, slope in slopes.items())
    figure = plots.error_lines(points, size, f"1 − {find_metric(plan.metric).label}", 1 - plan.alpha)
    yield picture(name, figure, caption, said)

"""How fast arms learn: time to a threshold, restricted mean, area under the learning curve; paired over seeds.

Only probe metrics of validation jets are compared. Losses of different masking schemes are different tasks.

The threshold. An absolute one may be given, fixed before the study. Without one it is `FRACTION` of the way from the
untrained encoder to the final value of the *control* arm, both means over seeds. So it knows nothing of the treatments,
and is the same number for all arms and seeds. Not a threshold per seed: a control trial would always reach a share of
its own final value, a treatment not, and two equal arms would seem to differ. Half-way, because the mean curve is steep
there, and a late threshold measures the noise of a plateau.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import integrate

from analysis.stats import Floats, paired
from analysis.stats.paired import MeanInterval
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Plan, StudyRecords

FRACTION = 0.5
"""Share of the control arm's gain; see the module's docstring."""
CLOCKS = ("epoch", "device_seconds")
"""Curve columns that measure the cost of training."""


@dataclass(frozen=True, kw_only=True)
class ArmConvergence:
    """One arm on one clock."""

    arm: str
    reached: int
    """Trials that reached the threshold."""
    n: int
    restricted_mean: float
    """Mean time to threshold up to the horizon, in units of the clock."""
    area: MeanInterval
    """Time average of the metric from the start to the horizon, over seeds."""


@dataclass(frozen=True, kw_only=True)
class PairedConvergence:
    """Treatment minus control on one clock; negative times are faster."""

    contrast: str
    time: MeanInterval
    area: MeanInterval


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """All arms of a study on one clock."""

    metric: str
    unit: str
    """What the clock counts: epochs or device seconds."""
    control: str
    threshold: float
    horizon: float
    """Time at which every curve is cut: the shortest training among the complete trials."""
    arms: tuple[ArmConvergence, ...]
    contrasts: tuple[PairedConvergence, ...]


def curve_table(study: StudyRecords) -> pd.DataFrame:
    """Learning curves of all ended trials: arm, seed, state and the columns of the curves, one row per trial and probed
    epoch, each epoch once."""
    rows = [
        {"arm": trial.arm, "seed": trial.seed, "state": record.state} | row
        for trial in study.trials
        if (record := study.records.get(trial.trial_id)) is not None
        for row in study.curves(trial.trial_id)
    ]
    if not rows:
        return pd.DataFrame(columns=["arm", "seed", "state", "epoch"])
    # A trial resumed after a crash may have reported an epoch twice: the later row belongs to the weights kept.
    return pd.DataFrame(rows).drop_duplicates(["arm", "seed", "epoch"], keep="last")


def validation_metric(plan: Plan, curves: pd.DataFrame) -> str | None:
    """The learning curve of the primary metric, on validation jets; None when the trials left none."""
    name = find_metric(plan.metric).on_validation
    return name if name in curves and curves[name].notna().any() else None


def paired_curve_table(curves: pd.DataFrame, metric: str, control: str) -> pd.DataFrame:
    """Arm minus control at every seed and epoch that both have, complete trials only: arm, seed, epoch, metric, without
    rows of the control arm."""
    complete = curves[curves["state"] == "complete"][["arm", "seed", "epoch", metric]].dropna()
    base = complete[complete["arm"] == control].drop(columns="arm").rename(columns={metric: "of control"})
    pairs = complete[complete["arm"] != control].merge(base, on=["seed", "epoch"])
    return pairs.assign(**{metric: pairs[metric] - pairs["of control"]}).drop(columns="of control")


def at_shared_epochs(curves: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of those epochs at which every complete trial has the metric.

    Where trials were probed at different epochs, the same curve would reach a threshold later, and have another area,
    in the trial that was probed less often. Of curves in seconds no two have a point in common: they stay whole.
    """
    complete = curves[curves["state"] == "complete"].dropna(subset=[metric])
    known = complete["epoch"].value_counts()
    return curves[curves["epoch"].isin(known.index[known == complete.groupby(["arm", "seed"]).ngroups])]


def control_threshold(curves: pd.DataFrame, metric: str, control: str) -> float:
    """The level `FRACTION` of the way from the untrained to the trained control arm, means over complete trials.

    In units of the metric, NaN without curves of the control arm.
    """
    chosen = curves[(curves["arm"] == control) & (curves["state"] == "complete")].dropna(subset=[metric])
    if chosen.empty:
        return math.nan
    ordered = chosen.sort_values("epoch").groupby("seed")[metric]
    first, last = float(ordered.first().mean()), float(ordered.last().mean())
    return first + FRACTION * (last - first)


def time_to(
    times: Floats, values: Floats, threshold: float, horizon: float, higher_is_better: bool = True
) -> tuple[float, bool]:
    """The first probed time at which a curve, times and values (probe,) in ascending order, reaches a threshold.

    Not interpolated: the resolution is the distance between probes. NaN values are skipped. Returns (time, True), or
    (horizon, False) when it was not reached by then: right-censored.
    """
    good = values >= threshold if higher_is_better else values <= threshold
    hits = np.flatnonzero(good & (times <= horizon))
    return (float(times[hits[0]]), True) if len(hits) else (float(horizon), False)


def restricted_mean(times: Floats, horizon: float) -> float:
    """Mean time to an event up to a horizon, times (trial,); NaN without trials.

    As every trial is followed to the horizon, the area under the Kaplan-Meier curve is the mean of times cut there.

    References
    ----------
    Kaplan & Meier (1958), doi:10.1080/01621459.1958.10501452; Royston & Parmar (2013), doi:10.1186/1471-2288-13-152.
    """
    return float(np.minimum(times, horizon).mean()) if len(times) else math.nan


def normalised_area(times: Floats, values: Floats, horizon: float) -> float:
    """Time average of a curve from its start to the horizon, by the trapezoidal rule; in units of the metric.

    Times and values (probe,) ascend; NaN values are skipped, the value at the horizon is interpolated.
    """
    known = np.isfinite(values)
    times, values = times[known], values[known]
    if len(times) < 2 or times[-1] < horizon or not horizon > times[0]:
        return math.nan
    grid = np.append(times[times < horizon], horizon)
    return float(integrate.trapezoid(np.interp(grid, times, values), grid) / (horizon - times[0]))


def converge(
    plan: Plan, curves: pd.DataFrame, clock: str = "epoch", threshold: float | None = None
) -> Convergence | None:
    """Convergence of every arm and contrast on one clock.

    Failed trials count: one that did not reach the threshold is censored at the horizon, as one that never will.
    Pruned trials do not.

    Parameters
    ----------
    plan : Plan
        Its error level is that of the intervals.
    curves : DataFrame
        From :func:`curve_table`.
    clock : str
        One of CLOCKS. None is returned when the curves do not hold it, or the metric.
    threshold : float, optional
        Fixed in advance, in units of the metric; else taken from the control arm of the first contrast.
    """
    metric, control = validation_metric(plan, curves), control_arm(plan)
    if metric is None or clock not in curves or control is None:
        return None
    level = control_threshold(curves, metric, control) if threshold is None else threshold
    curves = at_shared_epochs(curves, metric) if clock == "epoch" else curves
    complete = curves[curves["state"] == "complete"].dropna(subset=[metric, clock])
    if complete.empty or not math.isfinite(level):
        return None
    horizon = float(complete.groupby(["arm", "seed"])[clock].max().min())
    rows = []
    for (arm, seed), trial in curves[curves["state"] != "pruned"].groupby(["arm", "seed"]):
        times, values = trial.dropna(subset=[clock]).sort_values(clock)[[clock, metric]].to_numpy(dtype=float).T
        time, reached = time_to(times, values, level, horizon, plan.higher_is_better)
        rows.append([arm, seed, time, reached, normalised_area(times, values, horizon)])
    trials = pd.DataFrame(rows, columns=["arm", "seed", "time", "reached", "area"])
    # Times are cut at one horizon, so their mean difference is the difference of the restricted means.
    time, area = (trials.pivot(index="seed", columns="arm", values=name) for name in ("time", "area"))
    time, area = (by_arm.astype(float).reindex(columns=list(plan.arms)) for by_arm in (time, area))
    return Convergence(
        metric=metric,
        unit=find_metric(clock).unit or clock,
        control=control,
        threshold=level,
        horizon=horizon,
        arms=tuple(
            ArmConvergence(
                arm=arm,
                reached=int(trials.loc[trials["arm"] == arm, "reached"].sum()),
                n=int((trials["arm"] == arm).sum()),
                restricted_mean=restricted_mean(time[arm].dropna().to_numpy(), horizon),
                area=paired.mean_interval(area[arm].dropna()),
            )
            for arm in plan.arms
        ),
        contrasts=tuple(
            PairedConvergence(
                contrast=contrast.name,
                time=paired.mean_interval((time[contrast.treatment] - time[contrast.control]).dropna(), 1 - plan.alpha),
                area=paired.mean_interval((area[contrast.treatment] - area[contrast.control]).dropna(), 1 - plan.alpha),
            )
            for contrast in plan.contrasts
            if contrast.of_arms
        ),
    )


def control_arm(plan: Plan) -> str | None:
    """The control of the first primary contrast of arms, or of the first one when none is primary."""
    between = sorted((c for c in plan.contrasts if c.of_arms), key=lambda contrast: not contrast.primary)
    return between[0].control if between else None

"""Which point of a search is tried next, which is given up, and the ledger that remembers.

The ledger ``<storage>/<study>/search.json`` and the records of its trials are all there is: the Optuna study is made
from the ledger at every question, and the sampler of point n is seeded by (seed of the search, n). So a search that was
stopped goes on as it would have, given the same history, and no sampler is ever pickled.

    points   0: the base, if the space holds it; then `startup` at random; then by TPE (arXiv:2304.11127)
    pruning  ASHA (arXiv:1810.05934): at each rung, an epoch, a point goes on if it is among the best 1 / reduction of
             those that have come there. Only where there is one objective.

States of a point: open (running, or stopped with its driver), complete, pruned, failed. Optuna hears of a failed point
(diverged, collapsed) as one given up before its first value, the worst there is; with several objectives, as failed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, json_to_distribution
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from jbot.config import digest
from jbot.store.search_ledger import LEDGER, SCHEMA, SearchPlan, load_ledger
from jbot.store.storage import RecordError, Storage

DIGITS = 4
"""Significant digits of a suggested number: what is run is what is printed, and can be typed."""
MIN_COMPLETE = 10
"""Points below which importance is not computed (assumed); PED-ANOVA is steady from five times 1 / QUANTILE."""
QUANTILE = 0.25
"""The best share of points that PED-ANOVA tells from the others (assumed; Optuna's 0.1 needs 50 points)."""

Entry = dict[str, Any]
"""One point of the ledger: see :class:`jbot.store.search_ledger.Point`."""

optuna.logging.set_verbosity(optuna.logging.WARNING)
for _what in (optuna.exceptions.ExperimentalWarning, UserWarning):  # constant_liar; that PED-ANOVA minimises
    warnings.filterwarnings("ignore", category=_what, module="optuna")


class Searcher:
    """Gives out points, `points` in all, hears of their curves, and writes the ledger after each event.

    The session names this run of the program: slots of an earlier one hold nothing any more. Raises RecordError when
    the ledger is damaged or of another search.
    """

    def __init__(self, plan: SearchPlan, points: int, storage: Storage, session: str = ""):
        self.plan, self.points, self.storage, self.session = plan, points, storage, session
        self.entries = load_entries(storage, plan)
        self.space = distributions(plan)

    def claim(self, slot: str) -> Entry | None:
        """The point to run in a slot: the one it has, one that was left open, or a new one; None when all are out.

        Asking again is asking once, so that a worker that died gets its point again.
        """
        slot = f"{self.session}/{slot}"
        own = (entry for entry in self.entries[: self.points] if entry["state"] == "open")  # an earlier run had more
        left = [entry for entry in own if entry["place"] == slot or not entry["place"].startswith(f"{self.session}/")]
        left.sort(key=lambda entry: entry["place"] != slot)
        if not left and len(self.entries) < self.points:
            left = [self._suggest()]
            self.entries += left
        if not left:
            return None
        left[0]["place"] = slot
        self.save()
        return dict(left[0])

    def report(self, number: int, epoch: int, value: float) -> str | None:
        """A new value of a point's curve; why the point is given up, or None. Saying it again changes nothing."""
        entry = self.entries[number]
        if entry["reason"] is None and epoch not in [at for at, _ in entry["points"]]:
            entry["points"].append([epoch, value])
            if epoch < self.plan.epochs and self._prune(number):
                rung = max((at for at in self.plan.rungs if at <= epoch), default=0)
                rivals = sum(_first_at(other["points"], rung) is not None for other in self.entries)
                entry["reason"] = (
                    f"{self.plan.metric} {value:.4g} at rung {epoch} of {self.plan.epochs} epochs is not among the best"
                    f" 1/{self.plan.reduction} of {rivals}"
                )
            self.save()
        reason: str | None = entry["reason"]
        return reason

    def tell(self, number: int, outcome: Mapping[str, Any]) -> None:
        """Note how a point has ended: `state`, `reason`, `points`, `values` by objective and `trials`."""
        self.entries[number] |= outcome
        self.save()

    def left(self) -> int:
        """Points that have not ended, whether they have started or not."""
        return self.points - sum(entry["state"] != "open" for entry in self.entries[: self.points])

    def save(self) -> None:
        """Write the ledger, atomically. What is computed of its points stands in it too: readers need no Optuna."""
        plan, entries = self.plan, self.entries
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "plan": dataclasses.asdict(plan),
            "plan_hash": plan.hash,
            "sampler": plan.sampler,
            "rungs": plan.rungs,
            "directions": plan.directions,
            "target": self.points,
            "points": list(entries),
        }
        if len(entries) >= self.points and all(entry["state"] != "open" for entry in entries):
            best = winner(plan, entries)
            content |= {"importance": importance(plan, entries), "winner": best and best["number"]}
            content["front"] = pareto_front(plan, entries) if len(plan.objectives) > 1 else []
        self.storage.write_json(f"{plan.study}/{LEDGER}", content)

    def _suggest(self) -> Entry:
        number = len(self.entries)
        if number == 0 and self.plan.first:
            params = dict(self.plan.first)
        else:
            asked = history(self.plan, self.entries).ask(self.space)
            params = {name: _short(value, self.space[name]) for name, value in asked.params.items()}
        return {
            "number": number,
            "params": params,
            "overrides": overrides(params),
            "state": "open",
            "reason": None,
            "points": [],
            "values": {},
            "trials": [],
        }

    def _prune(self, number: int) -> bool:
        """Whether Optuna's pruner gives a point up at its last value."""
        if not self.plan.rungs:
            return False
        study = history(self.plan, self.entries, asking=number)
        pruner = SuccessiveHalvingPruner(self.plan.first_rung, self.plan.reduction)
        return bool(pruner.prune(study, study.trials[number]))


# --- Optuna -------------------------------------------------------------------------------------------------------


def distributions(plan: SearchPlan) -> dict[str, BaseDistribution]:
    """What Optuna draws from, by coordinate."""
    return {axis["coordinate"]: json_to_distribution(json.dumps(axis["distribution"])) for axis in plan.space}


def history(plan: SearchPlan, entries: Sequence[Entry], asking: int | None = None) -> optuna.Study:
    """The Optuna study that a ledger describes, with the sampler of its next point.

    The last value of the point `asking` is still to be held against the rungs.
    """
    sampler = TPESampler(
        seed=int(digest([plan.seed, len(entries)], 8), 16),
        n_startup_trials=plan.startup,
        multivariate=len(plan.objectives) == 1,
        constant_liar=True,
    )
    study = optuna.create_study(directions=list(plan.directions.values()), sampler=sampler)
    for entry in entries:
        study.add_trial(_trial(plan, entry, len(entry["points"]) - (entry["number"] == asking)))
    return study


def _trial(plan: SearchPlan, entry: Entry, compared: int) -> FrozenTrial:
    """A point as Optuna knows it; `compared` of its values have been held against the rungs."""
    state, single = entry["state"], len(plan.objectives) == 1
    rungs = ((rung, _first_at(entry["points"][:compared], epoch)) for rung, epoch in enumerate(plan.rungs))
    known = {f"completed_rung_{rung}": value for rung, value in rungs if value is not None}
    states = {"open": TrialState.RUNNING, "complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    return create_trial(
        state=states.get(state, TrialState.PRUNED if single else TrialState.FAIL),
        values=[entry["values"][name] for name in plan.objectives] if state == "complete" else None,
        params=entry["params"],
        distributions=distributions(plan),
        intermediate_values=dict(entry["points"]) if single and state != "failed" else None,
        system_attrs=known if single else None,
    )


def _first_at(points: Sequence[Sequence[float]], rung: int) -> float | None:
    """The value with which a point came to a rung; None before."""
    return next((value for epoch, value in points if epoch >= rung), None)


def _short(value: Any, distribution: BaseDistribution) -> Any:
    """A number with DIGITS digits, inside its bounds."""
    if not isinstance(distribution, FloatDistribution):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), distribution.low), distribution.high)


def overrides(params: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields of a point, from its coordinates: ``1 - <field>`` is taken back."""
    return {
        name.removeprefix("1 - "): round(1 - value, 12) if name.startswith("1 - ") else value
        for name, value in params.items()
    }


def importance(plan: SearchPlan, entries: Sequence[Entry]) -> dict[str, Any]:
    """Which axes decide the first objective, from points that ran to the end alone.

    See :class:`jbot.store.search_ledger.Importance`; the shares, by coordinate, only where there are enough points.
    """
    objective, complete = plan.objectives[0], [entry for entry in entries if entry["state"] == "complete"]
    result: dict[str, Any] = {"n": len(complete), "needed": MIN_COMPLETE, "objective": objective, "quantile": QUANTILE}
    if len(complete) < MIN_COMPLETE:
        return result
    study = history(plan, complete)
    # PED-ANOVA takes the lowest for the best, fANOVA does not care.
    sign = _sign(plan, objective)
    evaluators = {
        "ped_anova": PedAnovaImportanceEvaluator(target_quantile=QUANTILE),
        "fanova": FanovaImportanceEvaluator(seed=plan.seed),
    }
    for name, evaluator in evaluators.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that the lowest is taken for the best
                shares = get_param_importances(study, evaluator=evaluator, target=lambda trial: sign * trial.values[0])
        except (ValueError, RuntimeError):  # equal values of all points tell nothing of any axis
            continue
        result[name] = {axis: float(share) for axis, share in shares.items() if math.isfinite(share)}
    return result


def _sign(plan: SearchPlan, objective: str) -> float:
    """Factor that makes the lowest value of an objective the best."""
    return -1.0 if plan.directions[objective] == "maximize" else 1.0


def winner(plan: SearchPlan, entries: Sequence[Entry]) -> Entry | None:
    """The point that is run again: of those that ran to the end, the best by the first objective, which lies on the
    Pareto front; of equal ones the better in the next objective, then the earlier. None when none ran to the end."""

    def rank(entry: Entry) -> tuple[float, ...]:
        return (*(_sign(plan, name) * entry["values"][name] for name in plan.objectives), entry["number"])

    return min((entry for entry in entries if entry["state"] == "complete"), key=rank, default=None)


def pareto_front(plan: SearchPlan, entries: Sequence[Entry]) -> list[int]:
    """Numbers of the complete points that no other beats in every objective."""
    complete = [entry for entry in entries if entry["state"] == "complete"]
    return [complete[trial.number]["number"] for trial in history(plan, complete).best_trials] if complete else []


def load_entries(storage: Storage, plan: SearchPlan) -> list[Entry]:
    """The points of a ledger; none when there is no ledger yet.

    Raises RecordError when it is damaged, or of another search.
    """
    content = load_ledger(storage, plan.study)
    if content is None:
        return []
    if content["plan_hash"] != plan.hash:
        name = f"{storage.uri}/{plan.study}/{LEDGER}"
        raise RecordError(f"{name} is of another search ({content['plan_hash']}, this is {plan.hash})")
    return list(content["points"])

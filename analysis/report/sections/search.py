"""The report's section on the hyperparameter search a study began with, from its ledger ``search.json``.

Importance and front are computed by the search when it ends (cluster.search.searcher) and stand in the ledger.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.plots import search as plots
from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section, Table
from analysis.verdicts import number_format as fmt
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Plan
from jbot.store.search_ledger import load_ledger

UNITS = {"accuracy": "", "anomaly": "", "cost": " TFLOP"}
QUANTITIES = {"anomaly": "anomaly AUC on the synthetic signal", "cost": "training work in TFLOP"}
IMPORTANCE = {"ped_anova": "PED-ANOVA", "fanova": "fANOVA"}
MAX_POINTS = 10
"""Rows of the table of the best points; all are in the ledger."""

Point = Mapping[str, Any]
Ledger = Mapping[str, Any]


def section(evidence: Evidence) -> Section | None:
    """How the winner was found; None for a study without a search, or with one that has not ended.

    Raises RecordError when the ledger is damaged.
    """
    study = evidence.study
    ledger = load_ledger(study.storage, study.plan.study)
    if ledger is None or "winner" not in ledger or not _is_of(ledger, study.plan.arms):
        return None
    complete = [point for point in ledger["points"] if point["state"] == "complete"]
    return Section(
        title="The search",
        sentences=[*_story(ledger), _importance_words(ledger)],
        code=_recipe(study.plan),
        tables=[*_best_table(ledger, complete), _axes_table(ledger)],
        figures=list(_pictures(ledger, complete)),
    )


def _is_of(ledger: Ledger, arms: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the study's arms are what this search found: another search of the name may have come later."""
    if ledger["winner"] is None or "winner" not in arms:
        return set(arms) == {"base"}
    overrides = ledger["points"][ledger["winner"]]["overrides"]
    return all(overrides.get(field) == value for field, value in arms["winner"].items())


def _quantity(ledger: Ledger, objective: str) -> str:
    """An objective in words, for axes."""
    return QUANTITIES.get(objective) or find_metric(ledger["plan"]["metric"]).full_label


def _story(ledger: Ledger) -> list[str]:
    plan, points = ledger["plan"], ledger["points"]
    ended = Counter(point["state"] for point in points)
    complete, pruned, failed = (ended[state] for state in ("complete", "pruned", "failed"))
    seconds = sum(point.get("device_seconds", 0.0) for point in points)
    epochs = sum(point["points"][-1][0] for point in points if point["points"])
    whole = len(points) * plan["epochs"]
    objectives = " and ".join(_quantity(ledger, name) for name in ledger["directions"])
    how = (
        f"At epoch{'s' if len(ledger['rungs']) > 1 else ''} {', '.join(map(str, ledger['rungs']))} of"
        f" {plan['epochs']} a point went on if it was among the best 1/{plan['reduction']} of"
        " those that had come so far (asynchronous successive halving)"
        if ledger["rungs"]
        else "With several objectives no point is given up early"
    )
    words = [
        f"{len(points)} points were drawn by {ledger['sampler']}, search seed {plan['seed']}, the first"
        f" {plan['startup']} at random{', beginning with the base' if plan['first'] else ''}. All trained at seed"
        f" {plan['base']['seed']} and were compared by {objectives}; no test jet had a part in it.",
        f"{how}: {complete} ran to the end, {pruned} pruned, {failed} failed. They took {epochs} of {whole} epochs"
        f" and {fmt.duration(seconds)} of a device.",
    ]
    if ledger["winner"] is None:
        return [*words, "No point ran to its end, so there is no winner."]
    best = points[ledger["winner"]]
    values = ", ".join(f"{name} {value:.4g}{UNITS.get(name, '')}" for name, value in best["values"].items())
    chosen = "best by the first objective, and on the Pareto front" if len(ledger["directions"]) > 1 else "best"
    words.append(
        f"The {chosen}: point {best['number']}, {values}. That value is the largest of {complete} noisy ones and so"
        " biased: what counts is the comparison with the base on fresh seeds and test jets, above."
    )
    if best["number"] == 0 and plan["first"]:
        words.append("It is the base itself: the search found nothing better, and there is nothing to compare.")
    return words


def _importance_words(ledger: Ledger) -> str:
    found = ledger["importance"]
    if "fanova" not in found:
        return (
            f"Importance is not given: it takes at least {found['needed']} points that ran to the end, and there are"
            f" {found['n']}."
        )
    return (
        f"Importance for {_quantity(ledger, found['objective'])}, from the {found['n']} points that ran to the end and"
        " no other, within the ranges of the table alone. PED-ANOVA: what separates the best"
        f" {found['quantile']:.0%} from the rest. fANOVA: share of the variance. The points lie where the sampler went,"
        " not evenly, so a small share says little. Shares add up to 100% whether anything matters or not: of simulated"
        " searches of 5 axes and 10 to 40 points in which none did, the first axis had 38% to 52% (median). So a large"
        " share alone is no evidence of an effect either."
    )


def _recipe(plan: Plan) -> dict[str, str]:
    """The winner, to be copied: as a command, and as an arm of a study file."""
    changes = plan.arms.get("winner")
    if not changes:
        return {}
    typed = {field: value if isinstance(value, str) else json.dumps(value) for field, value in changes.items()}
    settings = [f"--set {shlex.quote(f'{field}={value}')}" for field, value in typed.items()]
    command = " \\\n  ".join([f"python studies/baseline.py --preset {plan.preset}", *settings])
    arm = ",\n".join(f"    {json.dumps(field)}: {value!r}" for field, value in changes.items())
    return {"Train the winner": command, "The winner as an arm of a study file": f'"winner": {{\n{arm},\n}}'}


def _best_table(ledger: Ledger, complete: Sequence[Point]) -> Iterator[Table]:
    """The best points, what they changed not included: that is drawn."""
    names = list(ledger["directions"])
    sign = -1.0 if ledger["directions"][names[0]] == "maximize" else 1.0
    rows = []
    for point in sorted(complete, key=lambda point: sign * point["values"][names[0]])[:MAX_POINTS]:
        row = {"point": str(point["number"])} | {name: f"{point['values'][name]:.4g}" for name in names}
        if len(names) > 1:
            row["on the front"] = "yes" if point["number"] in ledger["front"] else "no"
        rows.append(row | {"device time": fmt.duration(point.get("device_seconds", 0.0))})
    if rows:
        yield Table.of(f"Best points of {len(complete)} that ran to the end", rows)


def _axes_table(ledger: Ledger) -> Table:
    """The search region, and what importance says inside it."""
    found = ledger["importance"]
    heads = {name: head for name, head in IMPORTANCE.items() if name in found}
    axes = list(ledger["plan"]["space"])
    axes.sort(key=lambda axis: -found["ped_anova"].get(axis["coordinate"], 0.0) if heads else 0.0)
    best = {} if ledger["winner"] is None else ledger["points"][ledger["winner"]]["params"]
    rows = []
    for axis in axes:
        coordinate, value = axis["coordinate"], best.get(axis["coordinate"], "")
        row = {"axis": coordinate, "searched": _search_range(axis)}
        row |= {"winner": f"{value:.4g}" if isinstance(value, float) else str(value)}
        row |= {head: f"{found[name].get(coordinate, 0.0):.0%}" for name, head in heads.items()}
        rows.append(row | {"why this range": axis["reason"]})
    return Table.of("Search region", rows, words=("searched", "why this range"))


def _search_range(axis: Mapping[str, Any]) -> str:
    """``0.0002 to 0.01, log``, or the choices."""
    known = axis["distribution"]["attributes"]
    if "choices" in known:
        return ", ".join(map(str, known["choices"]))
    return f"{known['low']:g} to {known['high']:g}" + (", log" if known["log"] else "")


def _pictures(ledger: Ledger, complete: Sequence[Point]) -> Iterator[Picture]:
    if not complete:
        return
    points, axes, names = ledger["points"], ledger["plan"]["space"], list(ledger["directions"])
    objective, words = names[0], _quantity(ledger, names[0])
    best = f"{points[ledger['winner']]['values'][objective]:.4g}"
    yield Picture(
        name="search-history",
        figure=plots.history(points, objective, ledger["directions"][objective], words),
        alt=f"{words} of each point in the order in which they were tried; best {best}",
        caption="Points in their order. Filled: ran to the end. Hollow: pruned, at its last value. Line: the best so"
        " far.",
    )
    yield Picture(
        name="search-parallel",
        figure=plots.parallel_coordinates(points, axes, objective, words),
        alt=f"Each point as a line over its {len(axes)} coordinates and {words}",
        caption="Each line a point, from the low to the high end of every axis (log where the table says so)."
        " Coloured: ran to the end. Grey: pruned.",
    )
    yield Picture(
        name="search-slices",
        figure=plots.slices(points, axes, objective, words),
        alt=f"{words} against each of {len(axes)} coordinates",
        caption="One axis at a time, all others varying with it. Filled: ran to the end. Hollow: pruned, at its last"
        " value.",
    )
    if len(names) > 1:
        labels = {name: _quantity(ledger, name) for name in names}
        yield Picture(
            name="search-front",
            figure=plots.front(complete, ledger["front"], names, labels),
            alt=f"{' against '.join(labels.values())}; {len(ledger['front'])} points on the front",
            caption="Points that ran to the end. Filled: no other is better in every objective.",
        )

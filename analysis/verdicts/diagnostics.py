"""Named ways in which training goes wrong, found in the records: what to look at before believing a comparison.

A finding is a hint of where to look, no verdict: verdicts compare arms over seeds, diagnostics look at single trials.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.stats import paired
from analysis.verdicts import number_format as fmt
from analysis.verdicts import tables
from jbot.data.jets import CLASSES
from jbot.data.splits import COMPOSITION, TARGETS, targets
from jbot.evaluation.metrics_registry import class_label, classifier_label, find_metric
from jbot.store.plan import StudyRecords
from jbot.store.record import Record
from jbot.store.storage import RecordError

MIN_SPREAD = 0.01
"""Ten times what fails a trial (jbot.trainer.loop.MIN_SPREAD). Untrained encoders have 0.02 to 0.06, trained ones
0.7 to 0.9 (24 trials of jBOT-S on 10 thousand jets)."""
MIN_RANK = 1.1
"""Effective rank; 1 is a single direction (assumed). Untrained encoders have 1.2 to 1.5, trained ones 10 to 17."""
MAX_DIMENSIONS, MIN_ANISOTROPY = 2.0, 0.99
"""Effective rank below which, and mean cosine of two jets above which, an embedding is one direction (assumed)."""
MAX_ATTENTION_ENTROPY = 0.99
"""Entropy of the sharpest head, relative to uniform attention (assumed). What fails a trial is 0.9999; untrained
encoders have 0.999, trained ones 0.3 to 0.85."""
MAX_CONFUSION = 1 / 3
"""Share of the decisions between two classes that are wrong (assumed); 1/2 is a coin."""
ERRORS = 2.0
"""Standard errors by which one accuracy must fall below another: one would name every other tie."""

UNIFORM_REASON = "attention is uniform"
"""What the reason of a trial says that failed of it (jbot.trainer.loop.collapse)."""
FROZEN = ("knn", "linear")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One occurrence in one trial."""

    subject: str
    """What it is about, the same words in every trial: ``W and Z, linear probe``."""
    evidence: str
    """The numbers, in one line."""
    weight: float
    """How bad it is; the worst trial of an arm is the one shown."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check has found in a trial."""

    check: str
    """Its name, of CHECKS."""
    arm: str
    seed: int
    trial_id: str
    case: Case


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found, and what was looked for."""

    found: Sequence[Finding]
    looked: Mapping[str, Mapping[str, int]]
    """Check -> arm -> trials that left what the check takes."""


Check = Callable[[Record, StudyRecords], list[Case] | None]


def diagnose(study: StudyRecords) -> Diagnosis:
    """Run every check on every trial that has ended.

    Raises RecordError when the scores of a trial are damaged.
    """
    found: list[Finding] = []
    looked: dict[str, Counter[str]] = {name: Counter() for name in CHECKS}
    for trial in study.trials:
        record = study.records.get(trial.trial_id)
        for name, check in CHECKS.items():
            cases = check(record, study) if record else None
            if cases is not None:
                looked[name][trial.arm] += 1
                found += [Finding(check=name, **vars(trial), case=case) for case in cases]
    return Diagnosis(found=found, looked=looked)


def as_table(diagnosis: Diagnosis) -> pd.DataFrame:
    """One row per finding: signature, arm, seed, trial_id, subject, evidence."""
    rows = [[f.check, f.arm, f.seed, f.trial_id, f.case.subject, f.case.evidence] for f in diagnosis.found]
    return pd.DataFrame(rows, columns=["signature", "arm", "seed", "trial_id", "subject", "evidence"])


def collapse(record: Record, study: StudyRecords) -> list[Case] | None:
    """The embedding says nothing about its jets: the trial failed of it, or ended close to it."""
    if _collapsed(record):
        return [Case(subject="the trial failed", evidence=str(record.reason), weight=math.inf)]
    limits = {"spread": (MIN_SPREAD, "spread of the embedding"), "effective_rank": (MIN_RANK, "effective rank")}
    values = {metric: value for metric in limits if (value := _metric(record, f"test/{metric}")) is not None}
    cases = []
    for metric, value in values.items():
        minimum, words = limits[metric]
        if value < minimum:
            evidence = f"{words} {fmt.compact(value)}, below {minimum:g}"
            cases.append(Case(subject=words, evidence=evidence, weight=-value))
    # A trial that failed of something else has no final metrics, but its reason says that it was not this.
    return cases if values or record.state == "failed" else None


def dimensional_collapse(record: Record, study: StudyRecords) -> list[Case] | None:
    """The embedding uses one direction of all it has: its jets lie on a line, though not on a point."""
    rank, anisotropy = (_metric(record, f"test/{name}") for name in ("effective_rank", "anisotropy"))
    if rank is None or anisotropy is None:
        return None
    if rank >= MAX_DIMENSIONS or anisotropy <= MIN_ANISOTROPY:
        return []
    width = tables.lookup(record.config, "model.dim")
    evidence = f"effective rank {fmt.compact(rank)} of {width}, mean cosine of two jets {anisotropy:.4f}"
    return [Case(subject="the embedding", evidence=evidence, weight=-rank)]


def uniform_attention(record: Record, study: StudyRecords) -> list[Case] | None:
    """[CLS] looks at every particle alike, in every head: attention has not been learned."""
    if _collapsed(record) and UNIFORM_REASON in str(record.reason):
        return [Case(subject="every head", evidence=str(record.reason), weight=math.inf)]
    value = _metric(record, "test/attention_entropy")
    if value is None:
        return None
    if value <= MAX_ATTENTION_ENTROPY:
        return []
    evidence = f"sharpest head at {value:.4f} of uniform attention's entropy, above {MAX_ATTENTION_ENTROPY:g}"
    return [Case(subject="every head", evidence=evidence, weight=value)]


def class_confusion(record: Record, study: StudyRecords) -> list[Case] | None:
    """Pairs of classes that a probe or classifier hardly tells apart, if it is better than chance at all."""
    scores = study.arrays(record.trial_id, "scores") if record.state == "complete" else None
    if scores is None:
        return None
    task = tables.lookup(record.config, "data.task")
    if task not in TARGETS:
        raise RecordError(f"data.task of trial {record.trial_id} must be one of {', '.join(TARGETS)}, got {task!r}")
    label, names = np.asarray(scores.get("label", []), dtype=np.int64), [class_label(name) for name in TARGETS[task]]
    if not np.isin(label, range(len(CLASSES))).all():
        raise RecordError(f"scores of trial {record.trial_id}: label must be 0 to {len(CLASSES) - 1}")
    truth = targets(label, task)
    known = truth >= 0  # signal classes of the anomaly task are none of the classifier's
    classifiers = sorted(name for name in scores if "/probability" in name and name.split("/")[0] != "anomaly")
    cases = []
    for name in classifiers:
        probability, shape = scores[name], (len(label), len(names))
        if probability.shape != shape:
            raise RecordError(f"scores of trial {record.trial_id}: {name} must be {shape}, got {probability.shape}")
        counts = confusion_matrix(truth[known], probability[known].argmax(1), len(names))
        jets = max(1, int(counts.sum()))
        accuracy, chance = float(np.trace(counts)) / jets, float(counts.sum(axis=1).max()) / jets
        if accuracy <= chance + ERRORS * math.sqrt(accuracy * (1 - accuracy) / jets):
            continue  # no better than its most frequent class, it confuses all pairs, and none is news
        for (a, one), (b, other) in itertools.combinations(enumerate(names), 2):
            wrong, decided = mutual_confusion(counts, a, b)
            low, high = paired.wilson(wrong, decided)
            if decided and low > MAX_CONFUSION:
                share, subject = wrong / decided, classifier_label(name.removesuffix("/probability"))
                evidence = f"{wrong} of {decided} decisions between them wrong: {share:.1%} ({low:.1%} to {high:.1%})"
                cases.append(Case(subject=f"{one} and {other}, {subject}", evidence=evidence, weight=share))
    return cases if classifiers else None


def confusion_matrix(truth: NDArray[np.int64], said: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Jets of each true class (row) that were given each class (column); (class, class)."""
    return np.bincount(truth * classes + said, minlength=classes**2).reshape(classes, classes)


def mutual_confusion(counts: NDArray[np.int64], a: int, b: int) -> tuple[int, int]:
    """Jets of two classes that were given the other of the two, and all that were given one of them."""
    wrong = int(counts[a, b] + counts[b, a])
    return wrong, wrong + int(counts[a, a] + counts[b, b])


def at_chance(record: Record, study: StudyRecords) -> list[Case] | None:
    """A trained classifier that says no more than its most frequent class would: comparisons with it mean little."""
    runs = [run for kind in ("finetune", "supervised") for run in _runs(record, kind)]
    chance, cases = chance_of(str(tables.lookup(record.config, "data.task"))) if runs else 0.0, []
    for run in runs:
        accuracy = float(record.metrics[f"test/{run}_accuracy"])
        error = _error(record, f"test/{run}_accuracy", accuracy)
        if accuracy <= chance + ERRORS * error:
            evidence = f"accuracy {fmt.with_error(accuracy, error)}, and {chance:g} by chance"
            cases.append(Case(subject=classifier_label(run), evidence=evidence, weight=chance - accuracy))
    return cases if runs else None


def chance_of(task: str) -> float:
    """Share of the most frequent target among the test jets that a task's classifier knows."""
    unit = COMPOSITION[task]["test"]
    counts = [sum(unit.count(name) for name in names) for names in TARGETS[task].values()]
    return max(counts) / sum(counts)


def below_frozen(record: Record, study: StudyRecords) -> list[Case] | None:
    """Fine-tuning that ends below the better probe of the frozen embedding it started from."""
    frozen = {probe: value for probe in FROZEN if (value := _accuracy(record, probe)) is not None}
    best = f"test/{max(frozen, key=frozen.__getitem__)}_accuracy" if frozen else ""
    return _below(record, [(run, best) for run in _runs(record, "finetune")] if frozen else [])


def below_baseline(record: Record, study: StudyRecords) -> list[Case] | None:
    """Fine-tuning that ends below the same network trained from fresh weights on the same labels."""
    runs = {run: run.replace("finetune", "supervised") for run in _runs(record, "finetune")}
    known = [(run, f"test/{other}_accuracy") for run, other in runs.items() if _accuracy(record, other) is not None]
    return _below(record, known)


def below_untrained(record: Record, study: StudyRecords) -> list[Case] | None:
    """A probe that does worse on the trained encoder than on the one it started as."""
    pairs = [(probe, f"untrained/test/{probe}_accuracy") for probe in FROZEN if _accuracy(record, probe) is not None]
    return _below(record, [(probe, other) for probe, other in pairs if _metric(record, other) is not None])


def _below(record: Record, pairs: Sequence[tuple[str, str]]) -> list[Case] | None:
    """Cases of probes or classifiers whose accuracy lies below a metric, by more than ERRORS errors of the difference.

    Both are of the same jets and tend to err together: added in quadrature, their errors are rather too large.
    """
    cases = []
    for probe, upper in pairs:
        names = (f"test/{probe}_accuracy", upper)
        low, high = (float(record.metrics[name]) for name in names)
        error = math.hypot(_error(record, names[0], low), _error(record, upper, high))
        if high - low > ERRORS * error:
            metric, decimals = find_metric(upper), fmt.decimals_of(error)
            than = "untrained encoder" if metric.baseline else classifier_label(metric.source)
            evidence = (
                f"accuracy {fmt.number(low, decimals)} against {fmt.number(high, decimals)} ({than}): "
                f"{fmt.with_error(high - low, error)} lower"
            )
            cases.append(Case(subject=classifier_label(probe), evidence=evidence, weight=high - low))
    return cases if pairs else None


def _error(record: Record, name: str, accuracy: float) -> float:
    """Standard error from the number of test jets: as recorded, else sqrt(p (1 - p) / n), the binomial one."""
    recorded = record.uncertainties.get(name, {}).get("error")
    if recorded is not None and math.isfinite(recorded):
        return float(recorded)
    jets = tables.lookup(record.config, "data.test_jets")
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / jets) if isinstance(jets, int) and jets > 0 else 0.0


def _collapsed(record: Record) -> bool:
    return record.state == "failed" and str(record.reason).startswith("collapsed")


def _metric(record: Record, name: str) -> float | None:
    """A final metric of a complete trial: a failed one may have left metrics of its ruins."""
    value = record.metrics.get(name) if record.state == "complete" else None
    return float(value) if value is not None and math.isfinite(value) else None


def _accuracy(record: Record, probe: str) -> float | None:
    return _metric(record, f"test/{probe}_accuracy")


def _runs(record: Record, kind: str) -> list[str]:
    """``finetune_10``, ``finetune_100``: the runs of a kind that left an accuracy, by label fraction."""
    metrics = [find_metric(name) for name in record.metrics]
    runs = {one.source for one in metrics if one.kind == kind and one.measure == "accuracy" and not one.baseline}
    known = [run for run in runs if _accuracy(record, run) is not None]
    return sorted(known, key=lambda run: float(run.removeprefix(f"{kind}_")))


CHECKS: dict[str, Check] = {
    "collapse": collapse,
    "dimensional collapse": dimensional_collapse,
    "uniform attention": uniform_attention,
    "classifier at chance": at_chance,
    "fine-tuning below the frozen embedding": below_frozen,
    "fine-tuning below its supervised baseline": below_baseline,
    "trained encoder below the untrained one": below_untrained,
    "class confusion": class_confusion,
}
"""What is looked for, in the order of the report: what makes a trial useless first."""


def by_arm(diagnosis: Diagnosis) -> Iterator[tuple[str, str, str, list[Finding], int]]:
    """Check, arm, subject, its findings (worst first), and the trials of the arm that were looked at."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for item in diagnosis.found:
        groups.setdefault((item.check, item.arm, item.case.subject), []).append(item)
    for (name, arm, subject), found in sorted(groups.items(), key=lambda group: list(CHECKS).index(group[0][0])):
        found.sort(key=lambda item: -item.case.weight)
        yield name, arm, subject, found, diagnosis.looked[name][arm]


def absent_line(diagnosis: Diagnosis) -> str:
    """What was looked for and not found, and what could not be looked for; empty when all were found."""
    found = {item.check for item in diagnosis.found}
    trials = {name: sum(by_arm.values()) for name, by_arm in diagnosis.looked.items()}
    absent = [f"{name} ({fmt.count(n, 'trial')})" for name, n in trials.items() if n and name not in found]
    blind = [name for name, n in trials.items() if not n]
    head = "Looked for and not found" if found else "None found. Looked for"
    lines = [f"{head}: {', '.join(absent)}."] if absent else []
    lines += [f"Not looked for, because no trial left what it takes: {', '.join(blind)}."] if blind else []
    return " ".join(lines)

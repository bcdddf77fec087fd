"""Errors of seeds and of test jets, apart (:mod:`analysis.stats.two_level`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from analysis.report.evidence import Evidence
from analysis.report.section import Section, Table
from analysis.stats import Floats
from analysis.stats.two_level import Labels, Levels, jet_parts, levels
from analysis.verdicts import number_format as fmt
from analysis.verdicts import tables
from analysis.verdicts.sentences import contrast_name
from analysis.verdicts.verdict import Verdict
from jbot.evaluation.metrics_registry import find_metric

TOLERANCE = 1e-4
"""By how much the metric of the kept outcomes, which are float32, may miss the recorded one."""


Parts = dict[tuple[str, int], Floats]
"""Arm and seed -> what each jet adds to the metric (jet,)."""


def section(evidence: Evidence) -> Section | None:
    """Both errors of contrasts and arms; None where no per-jet outcomes of the primary metric are kept."""
    parts, labels = _kept(evidence)
    contrasts, arms = list(_contrasts(evidence, parts, labels)), list(_arms(evidence, parts, labels))
    if not contrasts and not arms:
        return None
    rows = []
    for found, sign in (*((found, True) for found, _ in contrasts), *((found, False) for found in arms)):
        seeds, error = found.seeds, found.seeds.standard_error
        decimals = fmt.decimals_of(error)
        rows.append(
            {
                "": found.name,
                "n": str(seeds.n),
                "test jets": str(found.jets),
                "mean": fmt.number(seeds.mean, decimals, sign),
                "error of seeds": fmt.number(error, decimals),
                "error of test jets": fmt.compact(found.jet_error, 2) if found.jet_error else "none seen",
                f"{evidence.level}, seeds": fmt.interval(seeds.low, seeds.high, error),
                f"{evidence.level}, both": fmt.interval(found.low, found.high, error),
            }
        )
    table = Table.of("Errors of seeds and of test jets", rows)
    return Section(title="Seeds and test jets", sentences=[*_sentences(contrasts, arms)], tables=[table])


def _kept(evidence: Evidence) -> tuple[Parts, Labels]:
    """Outcomes of the plan's metric that agree with the record, and the labels of the jets.

    None where none are kept, or trials were evaluated on different jets.
    """
    study, parts, jets = evidence.study, {}, {}
    for trial in study.trials if find_metric(study.plan.metric).measure in ("accuracy", "auc") else ():
        record = study.records[trial.trial_id]
        arrays = None if record is None or record.state != "complete" else study.arrays(trial.trial_id, "scores")
        if record is None or arrays is None or "label" not in arrays:
            continue
        found = jet_parts(study.plan.metric, arrays, str(tables.lookup(record.config, "data.task")))
        if found is not None and abs(found.value - record.metrics.get(study.plan.metric, math.nan)) <= TOLERANCE:
            labels = np.asarray(arrays["label"], dtype=np.int64)
            jets[record.data.get("fingerprint"), labels.tobytes()] = labels
            parts[trial.arm, trial.seed] = found.parts
    return (parts, next(iter(jets.values()))) if len(jets) == 1 else ({}, np.empty(0, dtype=np.int64))


def _contrasts(evidence: Evidence, parts: Parts, labels: Labels) -> Iterator[tuple[Levels, Verdict]]:
    """Paired differences at the seeds that the verdict compares, where outcomes of both arms are kept for all."""
    confidence = 1 - evidence.alpha
    compared = evidence.compared
    for item in evidence.verdicts:
        contrast = item.contrast
        gaps = (compared[contrast.treatment] - compared[contrast.control]).dropna()
        pairs = [((contrast.treatment, int(seed)), (contrast.control, int(seed))) for seed in gaps.index]
        if contrast.of_arms and len(gaps) > 1 and all(one in parts for pair in pairs for one in pair):
            outcomes = np.stack([parts[treatment] - parts[control] for treatment, control in pairs])
            values = gaps.to_numpy(dtype=float)
            yield levels(contrast_name(contrast.name), values, outcomes, labels, confidence), item


def _arms(evidence: Evidence, parts: Parts, labels: Labels) -> Iterator[Levels]:
    """Means of arms over the same seeds, where outcomes of all are kept."""
    for arm in evidence.plan.arms:
        scores = evidence.compared[arm].dropna()
        have = [(arm, int(seed)) for seed in scores.index]
        if len(have) > 1 and all(one in parts for one in have):
            outcomes = np.stack([parts[one] for one in have])
            values = scores.to_numpy(dtype=float)
            yield levels(arm, values, outcomes, labels, 1 - evidence.alpha)


def _sentences(contrasts: Sequence[tuple[Levels, Verdict]], arms: Sequence[Levels]) -> Iterator[str]:
    one = (arms or [found for found, _ in contrasts])[0]
    yield (
        f"All trials are evaluated on the same {one.jets:,} test jets. Intervals over seeds, and the verdicts, hold "
        "for these jets; more seeds do not make the error of test jets smaller. The last column adds it: other "
        "seeds and other test jets."
    )
    shown = [found for found, verdict in contrasts if verdict.outcome in ("better", "worse")]
    lost = [found.name for found in shown if found.low <= 0 <= found.high]
    if lost:
        yield f"Shown for these test jets, not for others: {fmt.listed(lost)}."
    larger = [found.name for found, _ in contrasts if found.jet_error > found.seeds.standard_error]
    if larger:
        yield f"Test jets make the larger error, so that more of them help more than more seeds: {fmt.listed(larger)}."

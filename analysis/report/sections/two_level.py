"""Errors of seeds and of test jets, apart (:mod:`analysis.stats.two_level`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


def section(evidence: Evidence) -> Section | None:
    """Both errors of contrasts and arms; None where no per-jet outcomes of the primary metric are kept."""
    kept = _kept(evidence)
    if kept is None:
        return None
    contrasts, arms = list(_contrasts(evidence, kept)), list(_arms(evidence, kept))
    if not contrasts and not arms:
        return None
    head = ["", "n", "test jets", "mean", "error of seeds", "error of test jets"]
    head += [f"{evidence.level}, seeds", f"{evidence.level}, both"]
    rows = [*(_row(found, True) for found, _ in contrasts), *(_row(found, False) for found in arms)]
    table = Table(label="Errors of seeds and of test jets", head=head, rows=rows)
    return Section(title="Seeds and test jets", sentences=[*_sentences(contrasts, arms)], tables=[table])


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Per-jet outcomes of complete trials that have them and agree with their records."""

    parts: dict[tuple[str, int], Floats]
    """By arm and seed, (jet,)."""
    labels: Labels
    """(jet,)"""


def _kept(evidence: Evidence) -> _Kept | None:
    """Outcomes of the plan's metric; None where none are kept, or trials were evaluated on different jets."""
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
    return _Kept(parts=parts, labels=next(iter(jets.values()))) if len(jets) == 1 else None


def _contrasts(evidence: Evidence, kept: _Kept) -> Iterator[tuple[Levels, Verdict]]:
    """Paired differences at the seeds that the verdict compares, where outcomes of both arms are kept for all."""
    confidence = 1 - evidence.plan.alpha
    compared = evidence.compared
    for item in evidence.verdicts:
        contrast = item.contrast
        gaps = (compared[contrast.treatment] - compared[contrast.control]).dropna()
        pairs = [((contrast.treatment, int(seed)), (contrast.control, int(seed))) for seed in gaps.index]
        if contrast.of_arms and len(gaps) > 1 and all(one in kept.parts for pair in pairs for one in pair):
            parts = np.stack([kept.parts[treatment] - kept.parts[control] for treatment, control in pairs])
            values = gaps.to_numpy(dtype=float)
            yield levels(contrast_name(contrast.name), values, parts, kept.labels, confidence), item


def _arms(evidence: Evidence, kept: _Kept) -> Iterator[Levels]:
    """Means of arms over complete trials, where outcomes of all are kept."""
    for arm in evidence.plan.arms:
        scores = evidence.scores[arm].dropna()
        have = [(arm, int(seed)) for seed in scores.index]
        if len(have) > 1 and all(one in kept.parts for one in have):
            parts = np.stack([kept.parts[one] for one in have])
            values = scores.to_numpy(dtype=float)
            yield levels(arm, values, parts, kept.labels, 1 - evidence.plan.alpha)


def _row(found: Levels, sign: bool) -> list[str]:
    seeds = found.seeds
    decimals = fmt.decimals_of(seeds.standard_error)
    return [
        found.name,
        str(seeds.n),
        str(found.jets),
        fmt.number(seeds.mean, decimals, sign),
        fmt.number(seeds.standard_error, decimals),
        fmt.compact(found.jet_error, 2),
        fmt.interval(seeds.low, seeds.high, seeds.standard_error),
        fmt.interval(found.low, found.high, seeds.standard_error),
    ]


def _sentences(contrasts: Sequence[tuple[Levels, Verdict]], arms: Sequence[Levels]) -> Iterator[str]:
    one = (arms or [found for found, _ in contrasts])[0]
    yield (
        f"All trials are evaluated on the same {one.jets:,} test jets. Intervals over seeds, and the verdicts, hold "
        "for these jets; more seeds do not make the error of test jets smaller. The last column adds it: other "
        "seeds and other test jets."
    )
    lost = [found.name for found, verdict in contrasts if verdict.outcome in ("better", "worse") and _spans(found)]
    if lost:
        yield f"Shown for these test jets, not for others: {fmt.listed(lost)}."
    larger = [found.name for found, _ in contrasts if found.jet_error > found.seeds.standard_error]
    if larger:
        yield f"Test jets make the larger error: more of them help more than more seeds. {fmt.listed(larger)}."


def _spans(found: Levels) -> bool:
    return found.low <= 0 <= found.high

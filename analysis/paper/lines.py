"""The paper's tables line by line: each published figure with ours, their baselines and the authors' beside it.

Each row has a line for each kind of figure, so that digits stand under digits:

    paper          the published figure (analysis/verdicts/paper_values.py)
    ours           mean over the seeds of this study, ± the standard deviation over seeds
    folds          of the first complete seed: standard deviation over 10 folds of its test jets, as in the paper
    test jets      of the same seed: standard error from the number of its test jets
    chosen, oracle, optimism    anomaly scores: settings of the signal-blind selection, best on the signal, the gap
    untrained      the encoder before training
    raw            the particles themselves, without an encoder
    released       the authors' checkpoint, trained by them on JetNet, on our test jets
    (studies/runner/author_checkpoints.py)

What stands on one seed or one checkpoint has the error of its test jets for its ±.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from analysis.stats import paired
from analysis.verdicts import diagnostics
from analysis.verdicts import number_format as fmt
from analysis.verdicts import paper_values as published
from analysis.verdicts.paper_values import PublishedRow, PublishedTable
from jbot.config import Config, from_dict, override
from jbot.evaluation.metrics_registry import BASELINES, REFERENCE_SCORES, classifier_label
from jbot.store.plan import StudyRecords
from jbot.store.record import Record
from jbot.store.storage import RecordError
from jbot.store.validation import check_types

TUNED = {"chosen": "chosen_", "oracle": "oracle_", "optimism": ""}
"""Lines of anomaly scores, and what their metrics have before the AUC's: ``test/anomaly_knn_chosen_auc_w``; where it is
not an AUC but a gain of it, ``test/anomaly_knn_optimism_w``."""
MAX_DECIMALS = 4
"""As the paper prints them."""
FEW_JETS = 10
"""Background jets below which an efficiency at a cut is read off next to nothing (heuristic)."""
MIN_JETS = 3
"""Background jets below which it is not shown of a single model (heuristic)."""
SPREADS = {"folds": "sd of 10 folds", "test jets": "error of test jets"}
"""Lines of one seed that show a spread in place of the value, and what they are called."""
AT_CHANCE = "†"
"""Marks the first cell of a classifier that did not leave chance at some seed, and the note that says so."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One figure of one line; NaN and empty where there is none."""

    value: float = math.nan
    seed_sd: float = math.nan
    """Standard deviation over seeds."""
    seeds: int = 0
    fold_sd: float = math.nan
    """Standard deviation over 10 folds of the test jets of one seed."""
    error: float = math.nan
    """Standard error from the number of test jets, of one seed."""
    few: bool = False
    """Decided by fewer than MIN_JETS background jets: shown as a mean over seeds only."""
    at_chance: int = 0
    """Seeds at which the classifier did not leave chance."""
    words: str = ""
    """In place of the value."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Figures of one kind for the metrics of a table."""

    kind: str
    label: str
    entries: dict[str, Entry]

    @property
    def cells(self) -> list[str]:
        """Text of each metric."""
        return [_text(self.kind, entry) for entry in self.entries.values()]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One evaluation of one model: the paper's figure and ours."""

    label: str
    lines: list[Line]


@dataclass(frozen=True, kw_only=True)
class ComparedTable:
    """A table of the paper with ours in it."""

    published: PublishedTable
    rows: list[Row]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Released:
    """What the authors' checkpoints of one task and size reach on our jets."""

    task: str
    model: str
    data: dict[str, Any]
    """The DataConfig they were evaluated with."""
    fingerprint: str
    metrics: dict[str, float]
    uncertainties: dict[str, dict[str, float]]
    failed: dict[str, str] = field(default_factory=dict)
    """File -> why it cannot be evaluated."""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What one row of a table is filled from."""

    study: StudyRecords
    table: PublishedTable
    row: PublishedRow
    arm: str | None
    """The arm of the row's model; None where the study has none."""
    released: Released | None
    few: Mapping[str, float]
    """Efficiency -> background jets of our test jets that decide it, on average."""

    @cached_property
    def records(self) -> list[Record]:
        """Complete records of the arm, in the order of its seeds."""
        return complete_records(self.study, self.arm) if self.arm else []

    @cached_property
    def stuck(self) -> list[int]:
        """Seeds at which a trained classifier says no more than its most frequent class would."""
        if not self.row.probe.startswith(("finetune", "supervised")):
            return []
        subject = classifier_label(self.row.probe)
        found = {record.seed: diagnostics.at_chance(record, self.study) or () for record in self.records}
        return [seed for seed, cases in found.items() if any(case.subject == subject for case in cases)]

    def too_few(self, metric: str) -> bool:
        """Whether a single model's figure would be decided by next to no background jets."""
        return self.few.get(metric, math.inf) < MIN_JETS


# --- arms of the paper's models, their records, released checkpoints ------------------------------------------------


def arms_by_kind(study: StudyRecords) -> dict[tuple[str, str], str]:
    """(task, model) -> the arm that pre-trains this model for this task."""
    arms: dict[tuple[str, str], str] = {}
    for arm in study.plan.arms:
        config = arm_config(study, arm)
        model = published.MODELS.get((config.model.dim, config.model.heads, config.model.layers))
        kind = (config.data.task, model or "")
        if kind in arms:
            other = arms[kind]
            raise RecordError(f"the paper has one jBOT-{model} of task {config.data.task}, got arms {other} and {arm}")
        if model:
            arms[kind] = arm
    if not arms:
        raise RecordError(f"study {study.plan.study} has no arm of the paper's models, jBOT-S and jBOT-B")
    return arms


def arm_config(study: StudyRecords, arm: str) -> Config:
    """The Config of an arm, at any seed."""
    return override(from_dict(study.plan.base), study.plan.arms[arm])


def load_released(study: StudyRecords, arms: Mapping[tuple[str, str], str]) -> Iterator[Released]:
    """Released checkpoints that were evaluated on the test jets of this study's arms."""
    wanted = {task: vars(arm_config(study, arm).data) for (task, _), arm in arms.items()}
    folder, fields = f"{study.plan.study}/{published.RELEASED}", Released.__dataclass_fields__
    for name in study.storage.names(folder):
        content = study.storage.read_json(f"{folder}/{name}")
        try:
            if not isinstance(content, dict):
                raise TypeError(f"must be an object, got {content!r}")
            found = Released(**{key: content[key] for key in fields if key in content})
        except TypeError as error:
            raise RecordError(f"{folder}/{name} is not of a released checkpoint: {error}") from None
        if found.data == wanted.get(found.task) and found.fingerprint == study.data.get("fingerprint"):
            yield found


def complete_records(study: StudyRecords, arm: str) -> list[Record]:
    """Complete records of an arm, in the order of its seeds."""
    records = [study.records.get(trial.trial_id) for trial in study.trials if trial.arm == arm]
    return sorted((r for r in records if r is not None and r.state == "complete"), key=lambda record: record.seed)


# --- the tables -----------------------------------------------------------------------------------------------------


def compare(study: StudyRecords) -> list[ComparedTable]:
    """The paper's tables that this study has an arm for, with ours beside the paper's figures.

    Raises RecordError when no arm is a model and task of the paper, two arms are the same one, or a file is damaged.
    """
    arms = arms_by_kind(study)
    released = {(one.task, one.model): one for one in load_released(study, arms)}
    tables = [table for table in published.TABLES if any(task == table.task for task, _ in arms)]
    return [_compare(study, table, arms, released) for table in tables]


def _compare(
    study: StudyRecords,
    table: PublishedTable,
    arms: Mapping[tuple[str, str], str],
    released: Mapping[tuple[str, str], Released],
) -> ComparedTable:
    first = next(arm for (task, _), arm in arms.items() if task == table.task)
    background = arm_config(study, first).data.test_jets * published.BACKGROUND[table.task]
    cuts = [metric for metric in table.metrics if metric in published.EFFICIENCY]
    few = {metric: background * float(metric.rpartition("_")[2]) for metric in cuts}
    rows, notes, sources = [], list(table.notes), []
    for row in table.rows:
        kind = (table.task, row.model or "")
        checkpoint = released.get(kind)
        source = _Source(study=study, table=table, row=row, arm=arms.get(kind), released=checkpoint, few=few)
        sources.append(source)
        lines = [*_paper_line(source), *_our_lines(source), *_released_lines(source)]
        rows += [Row(label=row.label, lines=lines)] if lines else []
        notes += _chance_note(source)
    thin = [f"{table.metrics[metric]} by {jets:.2g}" for metric, jets in few.items() if jets < FEW_JETS]
    if thin:
        hidden = (
            f"; of one model, what fewer than {MIN_JETS} decide is not shown" if min(few.values()) < MIN_JETS else ""
        )
        some = f"Of some {background:,.0f} background jets in our test jets"
        notes.append(f"{some} few decide: {', '.join(thin)} of them{hidden}.")
    for model in published.MODELS.values():
        notes += _missing(study, table, model, arms, [source for source in sources if source.row.model == model])
    for (task, _), checkpoint in released.items():
        failed = checkpoint.failed.items() if task == table.task else ()
        notes += [f"Missing: released {file}: {why.rstrip('.')}." for file, why in failed]
    return ComparedTable(published=table, rows=rows, notes=notes)


def _paper_line(source: _Source) -> Iterator[Line]:
    figures = source.row.values
    if figures:
        shown = {metric: figures.get(metric, math.nan) for metric in source.table.metrics}
        entries = {m: Entry(words=v) if isinstance(v, str) else Entry(value=v) for m, v in shown.items()}
        yield Line(kind="paper", label="paper", entries=entries)


def _our_lines(source: _Source) -> Iterator[Line]:
    """What the trials of an arm left; where it should have left something and has not, an empty line."""
    table, probe = source.table, source.row.probe
    if source.arm is None:
        return
    ours = _mean_line("ours", source, f"test/{probe}_")
    if ours is None:
        if source.row.values or _planned(source):
            yield Line(kind="ours", label="ours: none", entries=dict.fromkeys(table.metrics, Entry()))
        return
    first = next(iter(table.metrics))
    ours.entries[first] = replace(ours.entries[first], at_chance=len(source.stuck))
    yield ours
    for record in source.records:  # inner spreads of the first seed that has this row, one line each
        if any(f"test/{probe}_{metric}" in record.uncertainties for metric in table.metrics):
            entries = _single_entries("", source, record, f"test/{probe}_")
            for kind, words in SPREADS.items():
                yield Line(kind=kind, label=f"{words}, seed {record.seed}", entries=entries)
            break
    prefixes = {kind: f"test/{probe}_{tail}" for kind, tail in TUNED.items() if table is published.ANOMALY}
    prefixes |= {name: f"{name}/test/{probe}_" for name in BASELINES}
    yield from filter(None, (_mean_line(kind, source, prefix) for kind, prefix in prefixes.items()))


def _planned(source: _Source) -> bool:
    """Whether a complete trial of the arm measures the row."""
    config = arm_config(source.study, source.arm or "")
    kind, _, rest = source.row.probe.partition("_")
    if kind in ("finetune", "supervised"):
        shares = [f"{100 * share:g}" for share in config.finetune.fractions]
        return rest in shares and (kind == "finetune" or config.finetune.twin)
    return rest not in REFERENCE_SCORES or config.anomaly.scan


def _mean_line(kind: str, source: _Source, prefix: str) -> Line | None:
    """Mean and spread over seeds, of one seed the error of its test jets; None when no record has any of it."""
    entries = {}
    for metric in source.table.metrics:
        name = _metric_name(kind, prefix, metric)
        having = [record for record in source.records if name in record.metrics]
        mean = paired.mean_interval([record.metrics[name] for record in having])
        alone = having and (mean.n == 1 or kind == "raw")  # raw features know nothing of seeds
        error, few = _spread_of(having[0], name, "error") if alone else math.nan, source.too_few(metric)
        entries[metric] = Entry(value=mean.mean, seed_sd=mean.sd, seeds=mean.n, few=few, error=error)
    seeds = max(entry.seeds for entry in entries.values())
    label = BASELINES["raw"] if kind == "raw" else f"{kind}, {fmt.count(seeds, 'seed')}"
    return Line(kind=kind, label=label, entries=entries) if seeds else None


def _metric_name(kind: str, prefix: str, metric: str) -> str:
    return prefix + (metric.replace("auc", "optimism") if kind == "optimism" else metric)


def _spread_of(record: Record | Released, name: str, spread: str) -> float:
    return float(record.uncertainties.get(name, {}).get(spread, math.nan))


def _single_entries(kind: str, source: _Source, one: Record | Released, prefix: str) -> dict[str, Entry]:
    """Value and inner spreads of one model."""
    names = {metric: _metric_name(kind, prefix, metric) for metric in source.table.metrics}
    return {
        metric: Entry(
            value=one.metrics.get(name, math.nan),
            seeds=int(name in one.metrics),
            fold_sd=_spread_of(one, name, "fold_sd"),
            error=_spread_of(one, name, "error"),
            few=source.too_few(metric),
        )
        for metric, name in names.items()
    }


def _released_lines(source: _Source) -> Iterator[Line]:
    """What the authors' checkpoint reaches; of an anomaly score at chosen settings too."""
    if source.released is None or not source.row.probe:
        return
    for kind, tail in ({"": ""} | (TUNED if source.table is published.ANOMALY else {})).items():
        entries = _single_entries(kind, source, source.released, f"test/{source.row.probe}_{tail}")
        if any(entry.seeds for entry in entries.values()):
            words = f"released {kind}".strip()
            yield Line(kind=words, label=words.replace(" ", ", "), entries=entries)


def _chance_note(source: _Source) -> Iterator[str]:
    if source.arm and source.stuck:
        having = [record for record in source.records if f"test/{source.row.probe}_accuracy" in record.metrics]
        chance = diagnostics.chance_of(arm_config(source.study, source.arm).data.task)
        of = f"{len(source.stuck)} of {fmt.count(len(having), 'seed')}"
        yield f"{AT_CHANCE} {source.row.label}: {of} did not leave chance (accuracy {chance:.4g})."


def _missing(
    study: StudyRecords,
    table: PublishedTable,
    model: str,
    arms: Mapping[tuple[str, str], str],
    sources: Sequence[_Source],
) -> Iterator[str]:
    """A model that is not in the study, trials that gave no figures, and figures that complete trials did not give."""
    arm = arms.get((table.task, model))
    if arm is None:
        yield f"jBOT-{model} is not trained for this task in this study (preset {study.plan.preset})."
        return
    for trial in (trial for trial in study.trials if trial.arm == arm):
        record, name = study.records.get(trial.trial_id), f"{arm} at seed {trial.seed}"
        if record is None:
            yield f"Missing: {name} has not ended."
        elif record.state != "complete":
            yield f"Missing: {name} {record.state}: {(record.reason or 'no reason given').rstrip('.')}."
    seeds: dict[int, list[str]] = {}
    for source in sources:
        for record in source.records:
            if why := record.missing.get(source.row.probe):
                yield f"Missing: {source.row.label} at seed {record.seed}: {why.rstrip('.')}."
        if line := next(_our_lines(source), None):
            seeds.setdefault(max(entry.seeds for entry in line.entries.values()), []).append(source.row.label)
    complete = len(complete_records(study, arm))
    for n, labels in seeds.items():
        if n < complete:
            yield f"{n or 'None'} of {complete} complete trials of {arm} left the figures of: {'; '.join(labels)}."


def _text(kind: str, entry: Entry) -> str:
    """A figure as it stands in a cell: each ± is the one that the line's label names."""
    if entry.words:
        return entry.words
    if not math.isfinite(entry.value) or (entry.few and (entry.seeds <= 1 or kind == "raw")):
        return fmt.MISSING
    if kind in SPREADS:
        spread = entry.fold_sd if kind == "folds" else entry.error
        return fmt.number(spread, fmt.decimals_of(spread, MAX_DECIMALS))
    error = entry.seed_sd if entry.seeds > 1 and kind != "raw" else entry.error
    text = fmt.with_error(entry.value, error, max_decimals=MAX_DECIMALS) if error >= 0 else fmt.number(entry.value)
    return f"{text} {AT_CHANCE}" if entry.at_chance else text

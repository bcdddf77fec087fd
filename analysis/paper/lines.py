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
from dataclasses import dataclass, replace
from functools import cached_property

from analysis.paper.sources import Released, arm_config, arms_by_kind, complete_records, load_released
from analysis.stats import paired
from analysis.verdicts import diagnostics
from analysis.verdicts import number_format as fmt
from analysis.verdicts import paper_values as published
from analysis.verdicts.paper_values import PublishedRow, PublishedTable
from jbot.evaluation.metrics_registry import BASELINES, REFERENCE_SCORES, classifier_label
from jbot.store.plan import PlannedTrial, StudyRecords
from jbot.store.record import Record

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


def compare(study: StudyRecords) -> list[ComparedTable]:
    """The paper's tables that this study has an arm for, with ours beside the paper's figures.

    Raises
    ------
    RecordError
        When no arm is a model and task of the paper, two arms are the same one, or a file is damaged.
    """
    arms = arms_by_kind(study)
    released = {(found.task, found.model): found for found in load_released(study, arms)}
    tables = [table for table in published.TABLES if any(task == table.task for task, _ in arms)]
    return [_compare(study, table, arms, released) for table in tables]


def _compare(
    study: StudyRecords,
    table: PublishedTable,
    arms: Mapping[tuple[str, str], str],
    released: Mapping[tuple[str, str], Released],
) -> ComparedTable:
    few, sources = _few_jets(study, table, arms), []
    for row in table.rows:
        kind = (table.task, row.model or "")
        arm, checkpoint = arms.get(kind), released.get(kind)
        sources.append(_Source(study=study, table=table, row=row, arm=arm, released=checkpoint, few=few))
    filled = [[*_paper_line(source), *_our_lines(source), *_released_lines(source)] for source in sources]
    notes = [*table.notes, *(note for source in sources for note in _chance_note(source)), *_few_jets_note(table, few)]
    notes += [note for model in published.MODELS.values() for note in _missing(study, table, model, arms, sources)]
    notes += [
        f"Missing: released {file}: {why.rstrip('.')}."
        for (task, _), found in released.items()
        if task == table.task
        for file, why in found.failed.items()
    ]
    rows = [Row(label=row.label, lines=lines) for row, lines in zip(table.rows, filled, strict=True) if lines]
    return ComparedTable(published=table, rows=rows, notes=notes)


def _paper_line(source: _Source) -> list[Line]:
    if not source.row.values:
        return []
    figures = {metric: source.row.values.get(metric, math.nan) for metric in source.table.metrics}
    entries = {m: Entry(words=v) if isinstance(v, str) else Entry(value=v) for m, v in figures.items()}
    return [Line(kind="paper", label="paper", entries=entries)]


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
    yield from _one_seed_lines(source)
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
        found = paired.mean_interval([record.metrics[name] for record in having])
        alone = having and (found.n == 1 or kind == "raw")  # raw features know nothing of seeds
        error = _spread_of(having[0], name, "error") if alone else math.nan
        few = source.too_few(metric)
        entries[metric] = Entry(value=found.mean, seed_sd=found.sd, seeds=found.n, few=few, error=error)
    seeds = max(entry.seeds for entry in entries.values())
    label = BASELINES["raw"] if kind == "raw" else f"{kind}, {fmt.count(seeds, 'seed')}"
    return Line(kind=kind, label=label, entries=entries) if seeds else None


def _metric_name(kind: str, prefix: str, metric: str) -> str:
    return prefix + (metric.replace("auc", "optimism") if kind == "optimism" else metric)


def _spread_of(record: Record | Released, name: str, spread: str) -> float:
    return float(record.uncertainties.get(name, {}).get(spread, math.nan))


def _one_seed_lines(source: _Source) -> Iterator[Line]:
    """Inner spreads of the first seed that has this row, one line each."""
    prefix = f"test/{source.row.probe}_"
    for record in source.records:
        if any(prefix + metric in record.uncertainties for metric in source.table.metrics):
            for kind, words in SPREADS.items():
                entries = _single_entries("", source, record, prefix)
                yield Line(kind=kind, label=f"{words}, seed {record.seed}", entries=entries)
            return


def _single_entries(kind: str, source: _Source, found: Record | Released, prefix: str) -> dict[str, Entry]:
    """Value and inner spreads of one model."""
    names = {metric: _metric_name(kind, prefix, metric) for metric in source.table.metrics}
    return {
        metric: Entry(
            value=found.metrics.get(name, math.nan),
            seeds=int(name in found.metrics),
            fold_sd=_spread_of(found, name, "fold_sd"),
            error=_spread_of(found, name, "error"),
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


def _few_jets(study: StudyRecords, table: PublishedTable, arms: Mapping[tuple[str, str], str]) -> dict[str, float]:
    arm = next(arm for (task, _), arm in arms.items() if task == table.task)
    jets = arm_config(study, arm).data.test_jets * published.BACKGROUND[table.task]
    return {
        metric: jets * float(metric.rpartition("_")[2]) for metric in table.metrics if metric in published.EFFICIENCY
    }


def _few_jets_note(table: PublishedTable, few: Mapping[str, float]) -> Iterator[str]:
    """Efficiencies that a handful of background jets decide."""
    thin = [f"{table.metrics[metric]} by {jets:.2g}" for metric, jets in few.items() if jets < FEW_JETS]
    if thin:
        metric, jets = next(iter(few.items()))
        background = jets / float(metric.rpartition("_")[2])
        hidden = f"; of one model, what fewer than {MIN_JETS} decide is not shown"
        yield (
            f"Of some {background:,.0f} background jets in our test jets few decide: {', '.join(thin)} of them"
            f"{hidden if any(jets < MIN_JETS for jets in few.values()) else ''}."
        )


def _missing(
    study: StudyRecords,
    table: PublishedTable,
    model: str,
    arms: Mapping[tuple[str, str], str],
    sources: Sequence[_Source],
) -> Iterator[str]:
    """A model that is not in the study, trials that gave no figures, and figures that complete trials did not give."""
    arm, own = arms.get((table.task, model)), [source for source in sources if source.row.model == model]
    if arm is None:
        yield f"jBOT-{model} is not trained for this task in this study (preset {study.plan.preset})."
        return
    yield from filter(None, (_lost(study, trial) for trial in study.trials if trial.arm == arm))
    for source in own:
        for record in source.records:
            if why := record.missing.get(source.row.probe):
                yield f"Missing: {source.row.label} at seed {record.seed}: {why.rstrip('.')}."
    complete, seeds = len(complete_records(study, arm)), dict[int, list[str]]()
    for source in own:
        if line := next(_our_lines(source), None):
            seeds.setdefault(max(entry.seeds for entry in line.entries.values()), []).append(source.row.label)
    for n, labels in seeds.items():
        if n < complete:
            yield f"{n or 'None'} of {complete} complete trials of {arm} left the figures of: {'; '.join(labels)}."


def _lost(study: StudyRecords, trial: PlannedTrial) -> str:
    """Why a trial gave no figures; empty when it did."""
    record = study.records.get(trial.trial_id)
    if record is None:
        return f"Missing: {trial.arm} at seed {trial.seed} has not ended."
    why = (record.reason or "no reason given").rstrip(".")
    return "" if record.state == "complete" else f"Missing: {trial.arm} at seed {trial.seed} {record.state}: {why}."


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

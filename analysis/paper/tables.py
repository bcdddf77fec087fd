"""The paper's tables with ours beside them, from records alone: ``python -m analysis.paper <study folder>``.

Writes paper_tables.html, .md, .tex (longtable) and .csv beside the study or into ``--out``, and prints the lines that
matter most. An arm finds its rows by what it is, task and model size, so every study with an arm of the paper's has
tables.

Each row has a line for each kind of figure, so that digits stand under digits:

    paper          the published figure (analysis/verdicts/paper_values.py)
    ours           mean over the seeds of this study, ± the standard deviation over seeds
    folds          of the first complete seed: standard deviation over 10 folds of its test jets, as in the paper
    test jets      of the same seed: standard error from the number of its test jets
    chosen, oracle, optimism    anomaly scores: settings chosen behind the firewall, best on the signal, the gap
    untrained      the same judgement of the encoder before training: the floor
    raw            the same of the particles themselves, without an encoder
    released       the authors' checkpoint, trained by them on JetNet, judged on our test jets
    (studies/runner/author_checkpoints.py)

What stands on one seed or one checkpoint has the error of its test jets for its ±.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from analysis.report import build, latex
from analysis.report.latex import tex as tex
from analysis.stats import paired
from analysis.verdicts import diagnostics, provenance
from analysis.verdicts import number_format as fmt
from analysis.verdicts import paper_values as published
from analysis.verdicts.paper_values import PublishedRow, PublishedTable
from jbot.cli import Parser, program
from jbot.config import Config, from_dict, override
from jbot.evaluation.metrics_registry import BASELINES, REFERENCE_SCORES, classifier_label
from jbot.store.plan import PlannedTrial, StudyRecords, load_study
from jbot.store.record import Record, RecordError

FILE = "paper_tables"
TUNED = {"chosen": "chosen_", "oracle": "oracle_", "optimism": ""}
"""Lines of anomaly scores, and what their metrics have before the AUC's: ``test/anomaly_knn_chosen_auc_w``; where it is
not an AUC but a gain of it, ``test/anomaly_knn_optimism_w``."""
DECIMALS = 4
"""At most, as the paper prints them."""
WIDTH = 160
"""Columns the printed tables take; on a narrower terminal lines wrap, and no figure is cut."""
FEW_JETS = 10
"""Background jets below which an efficiency at a cut is read off next to nothing (assumed)."""
LEAST_JETS = 3
"""Background jets below which it is not shown of a single model (assumed)."""
SPREADS = {"folds": "sd of 10 folds", "test jets": "error of test jets"}
"""Lines of one seed that show a spread in place of the value, and what they are called."""
PRINTED = ("paper", "ours", "chosen", "released", "released chosen")
"""Lines that stand in the terminal; the page has all."""
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
    """Decided by fewer than LEAST_JETS background jets: shown as a mean over seeds only."""
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
    """One way of judging one model: the paper's figure and ours."""

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
    """The DataConfig they were judged with."""
    fingerprint: str
    metrics: dict[str, float]
    uncertainties: dict[str, dict[str, float]]
    failed: dict[str, str] = field(default_factory=dict)
    """File -> why it cannot be judged."""

    def __post_init__(self) -> None:
        for name in ("task", "model", "fingerprint"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a text, got {getattr(self, name)!r}")
        for name in ("data", "metrics", "uncertainties", "failed"):
            if not isinstance(getattr(self, name), dict):
                raise TypeError(f"{name} must be an object, got {getattr(self, name)!r}")
        _check_numbers("metrics", self.metrics)
        for name, spreads in self.uncertainties.items():
            if not isinstance(spreads, dict):
                raise TypeError(f"uncertainties of {name} must be an object, got {spreads!r}")
            _check_numbers(f"uncertainties of {name}", spreads)


def _check_numbers(what: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{what}: {name} must be a number, got {value!r}")


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


def arms_by_kind(study: StudyRecords) -> dict[tuple[str, str], str]:
    """(task, model) -> the arm that pre-trains this model for this task."""
    found: dict[tuple[str, str], str] = {}
    for arm in study.plan.arms:
        config = arm_config(study, arm)
        model = published.MODELS.get((config.model.dim, config.model.heads, config.model.layers))
        if model is None:
            continue
        if (config.data.task, model) in found:
            other = found[config.data.task, model]
            raise RecordError(f"the paper has one jBOT-{model} of task {config.data.task}, got arms {other} and {arm}")
        found[config.data.task, model] = arm
    if not found:
        raise RecordError(f"study {study.plan.study} has no arm of the paper's models, jBOT-S and jBOT-B")
    return found


def arm_config(study: StudyRecords, arm: str) -> Config:
    """The Config of an arm, at any seed."""
    return override(from_dict(study.plan.base), study.plan.arms[arm])


def load_released(study: StudyRecords, arms: Mapping[tuple[str, str], str]) -> Iterator[Released]:
    """Released checkpoints that were judged on the jets this study judges its own arms on."""
    wanted = {task: vars(arm_config(study, arm).data) for (task, _), arm in arms.items()}
    folder = f"{study.plan.study}/{published.RELEASED}"
    for name in study.storage.names(folder):
        content = study.storage.read_json(f"{folder}/{name}")
        fields = Released.__dataclass_fields__.keys()
        try:
            if not isinstance(content, dict):
                raise TypeError(f"must be an object, got {content!r}")
            found = Released(**{key: content[key] for key in fields if key in content})
        except TypeError as error:
            raise RecordError(f"{folder}/{name} is not of a released checkpoint: {error}") from None
        if found.data == wanted.get(found.task) and found.fingerprint == study.data.get("fingerprint"):
            yield found


def _compare(
    study: StudyRecords,
    table: PublishedTable,
    arms: Mapping[tuple[str, str], str],
    released: Mapping[tuple[str, str], Released],
) -> ComparedTable:
    rows, few, notes = [], _few_jets(study, table, arms), [*table.notes]
    for row in table.rows:
        arm = arms.get((table.task, row.model or ""))
        checkpoint = released.get((table.task, row.model or ""))
        stuck = _stuck_seeds(study, row, arm)
        lines = [*_paper_line(table, row), *_our_lines(study, table, row, arm, few, stuck)]
        lines += _released_lines(table, row, checkpoint, few)
        if lines:
            rows.append(Row(label=row.label, lines=lines))
        notes += _chance_note(study, row, arm, stuck)
    notes += [*_few_jets_note(table, few), *_missing(study, table, arms), *_unjudged(table, released)]
    return ComparedTable(published=table, rows=rows, notes=notes)


def _paper_line(table: PublishedTable, row: PublishedRow) -> list[Line]:
    if not row.values:
        return []
    figures = {metric: row.values.get(metric, math.nan) for metric in table.metrics}
    entries = {m: Entry(words=v) if isinstance(v, str) else Entry(value=v) for m, v in figures.items()}
    return [Line(kind="paper", label="paper", entries=entries)]


def _our_lines(
    study: StudyRecords,
    table: PublishedTable,
    row: PublishedRow,
    arm: str | None,
    few: Mapping[str, float],
    stuck: Sequence[int] = (),
) -> Iterator[Line]:
    """What the trials of an arm left; where it should have left something and has not, an empty line."""
    if arm is None:
        return
    records = complete_records(study, arm)
    ours = _mean_line("ours", table, records, f"test/{row.probe}_", few)
    if ours is None:
        if row.values or _planned(row, arm_config(study, arm)):
            yield Line(kind="ours", label="ours: none", entries=dict.fromkeys(table.metrics, Entry()))
        return
    first = next(iter(table.metrics))
    ours.entries[first] = replace(ours.entries[first], at_chance=len(stuck))
    yield ours
    yield from _one_seed_lines(table, row, records, few)
    for kind, tail in TUNED.items() if table is published.ANOMALY else ():
        yield from filter(None, [_mean_line(kind, table, records, f"test/{row.probe}_{tail}", few)])
    for name in BASELINES:
        yield from filter(None, [_mean_line(name, table, records, f"{name}/test/{row.probe}_", few)])


def _planned(row: PublishedRow, config: Config) -> bool:
    """Whether a complete trial of this Config measures the row."""
    kind, _, rest = row.probe.partition("_")
    if kind in ("finetune", "supervised"):
        shares = [f"{100 * share:g}" for share in config.finetune.fractions]
        return rest in shares and (kind == "finetune" or config.finetune.twin)
    return rest not in REFERENCE_SCORES or config.anomaly.scan


def complete_records(study: StudyRecords, arm: str) -> list[Record]:
    """Complete records of an arm, in the order of its seeds."""
    records = [study.records.get(trial.trial_id) for trial in study.trials if trial.arm == arm]
    return sorted((r for r in records if r is not None and r.state == "complete"), key=lambda record: record.seed)


def _mean_line(
    kind: str, table: PublishedTable, records: Sequence[Record], prefix: str, few: Mapping[str, float]
) -> Line | None:
    """Mean and spread over seeds, of one seed the error of its test jets; None when no record has any of it."""
    entries = {}
    for metric in table.metrics:
        name = _metric_name(kind, prefix, metric)
        having = [record for record in records if name in record.metrics]
        found = paired.mean_interval([record.metrics[name] for record in having])
        entry = Entry(value=found.mean, seed_sd=found.sd, seeds=found.n, few=few.get(metric, math.inf) < LEAST_JETS)
        alone = having and (found.n == 1 or kind == "raw")  # raw features know nothing of seeds
        entries[metric] = replace(entry, error=_spread_of(having[0], name, "error")) if alone else entry
    seeds = max(entry.seeds for entry in entries.values())
    label = BASELINES["raw"] if kind == "raw" else f"{kind}, {fmt.count(seeds, 'seed')}"
    return Line(kind=kind, label=label, entries=entries) if seeds else None


def _metric_name(kind: str, prefix: str, metric: str) -> str:
    return prefix + (metric.replace("auc", "optimism") if kind == "optimism" else metric)


def _spread_of(record: Record | Released, name: str, spread: str) -> float:
    return float(record.uncertainties.get(name, {}).get(spread, math.nan))


def _one_seed_lines(
    table: PublishedTable, row: PublishedRow, records: Sequence[Record], few: Mapping[str, float]
) -> Iterator[Line]:
    """Inner spreads of the first seed that has this row, a line each."""
    prefix = f"test/{row.probe}_"
    for record in records:
        if any(prefix + metric in record.uncertainties for metric in table.metrics):
            for kind, words in SPREADS.items():
                entries = _single_entries("", table, record, prefix, few)
                yield Line(kind=kind, label=f"{words}, seed {record.seed}", entries=entries)
            return


def _single_entries(
    kind: str, table: PublishedTable, found: Record | Released, prefix: str, few: Mapping[str, float]
) -> dict[str, Entry]:
    """Value and inner spreads of one model."""
    names = {metric: _metric_name(kind, prefix, metric) for metric in table.metrics}
    return {
        metric: Entry(
            value=found.metrics.get(name, math.nan),
            seeds=int(name in found.metrics),
            fold_sd=_spread_of(found, name, "fold_sd"),
            error=_spread_of(found, name, "error"),
            few=few.get(metric, math.inf) < LEAST_JETS,
        )
        for metric, name in names.items()
    }


def _released_lines(
    table: PublishedTable, row: PublishedRow, found: Released | None, few: Mapping[str, float]
) -> Iterator[Line]:
    """What the authors' checkpoint reaches; of an anomaly score at chosen settings too."""
    if found is None or not row.probe:
        return
    for kind, tail in ({"": ""} | (TUNED if table is published.ANOMALY else {})).items():
        entries = _single_entries(kind, table, found, f"test/{row.probe}_{tail}", few)
        if any(entry.seeds for entry in entries.values()):
            words = f"released {kind}".strip()
            yield Line(kind=words, label=words.replace(" ", ", "), entries=entries)


def _unjudged(table: PublishedTable, released: Mapping[tuple[str, str], Released]) -> Iterator[str]:
    """Released files that could not be judged."""
    for (task, _), found in released.items():
        if task == table.task:
            yield from (f"Missing: released {file}: {why.rstrip('.')}." for file, why in found.failed.items())


def _stuck_seeds(study: StudyRecords, row: PublishedRow, arm: str | None) -> list[int]:
    """Seeds at which a trained classifier says no more than its most frequent class would."""
    if arm is None or not row.probe.startswith(("finetune", "supervised")):
        return []
    subject = classifier_label(row.probe)
    return [
        record.seed
        for record in complete_records(study, arm)
        if any(case.subject == subject for case in diagnostics.at_chance(record, study) or ())
    ]


def _chance_note(study: StudyRecords, row: PublishedRow, arm: str | None, stuck: Sequence[int]) -> Iterator[str]:
    if arm is None or not stuck:
        return
    having = [r for r in complete_records(study, arm) if f"test/{row.probe}_accuracy" in r.metrics]
    chance = diagnostics.chance_of(arm_config(study, arm).data.task)
    seeds = fmt.count(len(having), "seed")
    yield f"{AT_CHANCE} {row.label}: {len(stuck)} of {seeds} did not leave chance (accuracy {chance:.4g})."


def _few_jets(study: StudyRecords, table: PublishedTable, arms: Mapping[tuple[str, str], str]) -> dict[str, float]:
    """Efficiency -> background jets of our test jets that decide it, on average."""
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
        hidden = f"; of one model, what fewer than {LEAST_JETS} decide is not shown"
        yield (
            f"Of some {background:,.0f} background jets in our test jets few decide: {', '.join(thin)} of them"
            f"{hidden if any(jets < LEAST_JETS for jets in few.values()) else ''}."
        )


def _missing(study: StudyRecords, table: PublishedTable, arms: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Models that are not in the study, trials that gave no figures, and figures that complete trials did not give."""
    for model in published.MODELS.values():
        arm = arms.get((table.task, model))
        if arm is None:
            yield f"jBOT-{model} is not trained for this task in this study (preset {study.plan.preset})."
            continue
        yield from filter(None, (_lost(study, trial) for trial in study.trials if trial.arm == arm))
        rows = [row for row in table.rows if row.model == model]
        yield from _diverged(complete_records(study, arm), rows)
        yield from _unmeasured(study, table, rows, arm)


def _diverged(records: Sequence[Record], rows: Sequence[PublishedRow]) -> Iterator[str]:
    """Fine-tunings that ended without figures."""
    for row in rows:
        for record in records:
            if row.probe in record.missing:
                yield f"Missing: {row.label} at seed {record.seed}: {record.missing[row.probe].rstrip('.')}."


def _unmeasured(study: StudyRecords, table: PublishedTable, rows: Sequence[PublishedRow], arm: str) -> Iterator[str]:
    """Rows that not every complete trial has."""
    complete, seeds = len(complete_records(study, arm)), dict[int, list[str]]()
    for row in rows:
        if line := next(_our_lines(study, table, row, arm, {}), None):
            seeds.setdefault(max(entry.seeds for entry in line.entries.values()), []).append(row.label)
    for n, labels in seeds.items():
        if n < complete:
            yield f"{n or 'None'} of {complete} complete trials of {arm} left the figures of: {'; '.join(labels)}."


def _lost(study: StudyRecords, trial: PlannedTrial) -> str:
    """Why a trial gave no figures; empty when it did."""
    record = study.records.get(trial.trial_id)
    if record is None:
        return f"Missing: {trial.arm} at seed {trial.seed} has not ended."
    if record.state == "complete":
        return ""
    return (
        f"Missing: {trial.arm} at seed {trial.seed} {record.state}: {(record.reason or 'no reason given').rstrip('.')}."
    )


def _text(kind: str, entry: Entry) -> str:
    """A figure as it stands in a cell: each ± is the one that the line's label names."""
    if entry.words:
        return entry.words
    if not math.isfinite(entry.value) or (entry.few and (entry.seeds <= 1 or kind == "raw")):
        return fmt.MISSING
    if kind in SPREADS:
        spread = entry.fold_sd if kind == "folds" else entry.error
        return fmt.number(spread, fmt.decimals_of(spread, DECIMALS))
    error = entry.seed_sd if entry.seeds > 1 and kind != "raw" else entry.error
    text = fmt.with_error(entry.value, error, max_decimals=DECIMALS) if error >= 0 else fmt.number(entry.value)
    return f"{text} {AT_CHANCE}" if entry.at_chance else text


def frame(tables: Sequence[ComparedTable]) -> pd.DataFrame:
    """Every figure, unrounded: one row a table, row, line and metric."""
    return pd.DataFrame([
        {"table": table.published.name, "row": row.label, "line": line.kind, "metric": metric, **vars(entry)}
        for table in tables
        for row in table.rows
        for line in row.lines
        for metric, entry in line.entries.items()
    ])  # fmt: skip


READING: Mapping[str, str] = {
    "paper": f"the published figure. {published.SPREAD}",
    "ours": "mean over seeds, each trained from fresh weights; ±: standard deviation over seeds, and of one seed the "
    "standard error from the number of its test jets",
    "sd of 10 folds": "standard deviation over 10 stratified folds of one seed's test jets, each a tenth of them, as "
    "in the paper",
    "error of test jets": "standard error from the number of one seed's test jets",
    "chosen, oracle, optimism": "anomaly scores: settings chosen without the reported signal; the best settings on it; "
    "and what that gains",
    "untrained, raw features": "the same judgement of the encoder before training, and of the particles themselves: "
    "what training must beat",
    "released": "the authors' checkpoints, trained by them on JetNet, judged on our test jets; ±: standard error from "
    "their number; k-NN, linear probe and anomaly scores are fitted on our training jets, classifiers are used as they "
    "were released",
}
"""What each line is."""


def facts(study: StudyRecords) -> dict[str, str]:
    """Where our figures come from: name -> one line."""
    found = provenance.facts(study)
    arms = arms_by_kind(study)
    lines = {"Data": found["Data"], "Preset": study.plan.preset, "Seeds": found["Seeds"]}
    for task in dict.fromkeys(task for task, _ in arms):
        config = arm_config(study, next(arm for (of, _), arm in arms.items() if of == task))
        ours = " / ".join(f"{n:,}" for n in (config.data.train_jets, config.data.val_jets, config.data.test_jets))
        epochs = f"{config.train.epochs} epochs in batches of {config.train.batch}"
        theirs = f"{published.PAPER_JETS[task]}, {published.RECIPES[task][published.EPOCHS]} epochs, 1024"
        lines[f"Jets, {task}"] = f"{ours} to train, validate, test; {epochs} (the paper: {theirs})"
    return lines | {"Plan hash": study.plan.hash, "Trainer": found["Trainer"]}


def standing(study: StudyRecords) -> str:
    """How far ours may be held against the paper's, in one line; empty when nothing differs."""
    jetnet = str(study.data.get("source", "")).startswith("JetNet")
    same = all(_as_in_paper(arm_config(study, arm)) for arm in arms_by_kind(study).values())
    why = [
        *([] if jetnet else ["on other jets than JetNet"]),
        *([] if same else ["with other numbers of jets or epochs"]),
    ]
    if not why:
        return ""
    return f"Ours is trained {' and '.join(why)}: the paper's figures are beside it for scale, not to be reproduced."


def _as_in_paper(config: Config) -> bool:
    have = {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in published.RECIPES["all"]}
    return have == dict(published.RECIPES[config.data.task])


def write_tables(study: StudyRecords, out: Path) -> tuple[list[ComparedTable], Path]:
    """Write the tables as HTML, Markdown, LaTeX and CSV; returns them and the path of the HTML page.

    Raises
    ------
    RecordError
        When the study has no arm of the paper's, or a file is damaged.
    """
    tables = compare(study)
    content = {"study": study, "plan": study.plan, "tables": tables, "facts": facts(study), "standing": standing(study)}
    content |= {"reading": READING}
    content |= {"paper": published.PAPER}
    out.mkdir(parents=True, exist_ok=True)
    environment = build.environment()
    for kind in ("md", "html"):
        build.write(out / f"{FILE}.{kind}", environment.get_template(f"{FILE}.{kind}.j2").render(content))
    build.write(out / f"{FILE}.tex", latex.environment(environment).get_template(f"{FILE}.tex.j2").render(content))
    build.write(out / f"{FILE}.csv", frame(tables).to_csv(index=False))
    return tables, out / f"{FILE}.html"


def show(tables: Sequence[ComparedTable], study: StudyRecords, console: Console, page: Path) -> None:
    """Print what the paper says and what we find; the page has the other lines, notes, and what each line is."""
    for table in tables:
        grid = Table(title=table.published.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        for _ in ("row", "line"):
            grid.add_column(no_wrap=True)
        for head in table.published.metrics.values():
            grid.add_column(head, justify="right", no_wrap=True)
        for row in table.rows:
            for number, line in enumerate(line for line in row.lines if line.kind in PRINTED):
                style = {"paper": "bold", "ours": "bold green"}.get(line.kind, "dim")
                grid.add_row(row.label if number == 0 else "", line.label, *line.cells, style=style)
        console.print(grid)
        for note in table.notes:
            if note.startswith((AT_CHANCE, "Missing: released")):
                console.print(f"  {note}", style="dim", highlight=False, markup=False)
    if said := standing(study):
        console.print(said, highlight=False, markup=False)
    words = f"Spreads, floors, notes and what each line is are on the page: {page}"
    console.print(words, highlight=False, markup=False, soft_wrap=True)


def console() -> Console:
    """Standard output, wide enough for the tables."""
    return Console(width=max(WIDTH, Console().width))


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when the tables were made, 2 when the input has none."""
    parser = Parser(
        prog="python -m analysis.paper", description="The paper's tables with a study's figures beside them."
    )
    parser.add_argument("folder", help="<storage>/<study>, a folder or an s3:// or gs:// address")
    parser.add_argument("--out", type=Path, help="where to write (default: the study folder, if it is on this machine)")
    options = parser.parse_args(arguments)
    study = load_study(options.folder)
    tables, path = write_tables(study, options.out or build.default_out(options.folder, study))
    show(tables, study, console(), path)
    return 0

"""The paper's tables with ours beside them, from records alone: ``python -m analysis.paper <study folder>``.

Writes paper_tables.html, .md, .tex (booktabs) and .csv beside the study or into ``--out``, and prints the tables. An
arm finds its rows by what it is, task and model size, so every study with an arm of the paper's has tables.

Each row has a line for each kind of figure, so that digits stand under digits:

    paper          the published figure (analysis/published.py)
    ours           mean over the seeds of this study, ± the standard deviation over seeds
    one seed       the two inner spreads of the first complete seed: over 10 folds of its test jets, as in the paper,
                   and the count-based standard error of all its test jets
    chosen, oracle, optimism    anomaly scores: settings chosen behind the firewall, best on the signal, the gap
    untrained      the same judgement of the encoder before training: the floor
    raw            the same of the particles themselves, without an encoder
    released       the authors' checkpoint, trained by them on JetNet, judged on our test jets (studies/released.py)
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from analysis import provenance, published, report, statistics, wording
from analysis.plan import PlannedTrial, StudyRecords, load_study
from analysis.published import PublishedRow, PublishedTable
from jbot.config import Config, from_dict, override
from jbot.record import Record, RecordError

FILE = "paper_tables"
TUNED = {"chosen": "chosen_", "oracle": "oracle_", "optimism": ""}
"""Lines of anomaly scores, and what their metrics have before the AUC's: ``test/anomaly_knn_chosen_auc_w``; where it is
not an AUC but a gain of it, ``test/anomaly_knn_optimism_w``."""
FLOORS = ("untrained", "raw")
"""Kinds of lines whose metrics have this prefix: ``untrained/test/knn_auc``."""
DECIMALS = 4
"""At most, as the paper prints them."""
WIDTH = 160
"""Columns the printed tables take; on a narrower terminal lines wrap, and no figure is cut."""
FEW_JETS = 10
"""Background jets below which an efficiency at a cut is read off next to nothing (assumed)."""


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
    uncertainties: dict[str, dict[str, float]] = field(default_factory=dict)


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
        try:
            found = Released(**{key: content[key] for key in Released.__dataclass_fields__})
        except (KeyError, TypeError) as error:
            raise RecordError(f"{folder}/{name} is not of a released checkpoint: {error!r}") from None
        if found.data == wanted.get(found.task) and found.fingerprint == study.data.get("fingerprint"):
            yield found


def _compare(
    study: StudyRecords,
    table: PublishedTable,
    arms: Mapping[tuple[str, str], str],
    released: Mapping[tuple[str, str], Released],
) -> ComparedTable:
    rows = []
    for row in table.rows:
        arm = arms.get((table.task, row.model or ""))
        lines = [*_paper_line(table, row), *_our_lines(study, table, row, arm)]
        lines += _released_line(table, row, released.get((table.task, row.model or "")))
        if lines:
            rows.append(Row(label=row.label, lines=lines))
    notes = [*table.notes, *_few_jets(study, table, arms), *_missing(study, table, arms)]
    return ComparedTable(published=table, rows=rows, notes=notes)


def _paper_line(table: PublishedTable, row: PublishedRow) -> list[Line]:
    if not row.values:
        return []
    figures = {metric: row.values.get(metric, math.nan) for metric in table.metrics}
    entries = {m: Entry(words=v) if isinstance(v, str) else Entry(value=v) for m, v in figures.items()}
    return [Line(kind="paper", label="paper", entries=entries)]


def _our_lines(study: StudyRecords, table: PublishedTable, row: PublishedRow, arm: str | None) -> Iterator[Line]:
    """What the trials of an arm left; where it should have left something and has not, an empty line."""
    if arm is None:
        return
    records = complete_records(study, arm)
    ours = _mean_line("ours", table, row, records, f"test/{row.probe}_")
    if ours is None:
        if row.values or _planned(row, arm_config(study, arm)):
            yield Line(kind="ours", label="ours: none", entries=dict.fromkeys(table.metrics, Entry()))
        return
    yield ours
    yield from _one_seed_line(table, row, records)
    for kind, tail in TUNED.items() if table is published.ANOMALY else ():
        yield from filter(None, [_mean_line(kind, table, row, records, f"test/{row.probe}_{tail}")])
    for floor in FLOORS:
        yield from filter(None, [_mean_line(floor, table, row, records, f"{floor}/test/{row.probe}_")])


def _planned(row: PublishedRow, config: Config) -> bool:
    """Whether a complete trial of this Config measures the row."""
    kind, _, rest = row.probe.partition("_")
    if kind in ("finetune", "supervised"):
        shares = [f"{100 * share:g}" for share in config.finetune.fractions]
        return rest in shares and (kind == "finetune" or config.finetune.twin)
    return rest not in published.SCANNED or config.anomaly.scan


def complete_records(study: StudyRecords, arm: str) -> list[Record]:
    """Complete records of an arm, in the order of its seeds."""
    records = [study.records.get(trial.trial_id) for trial in study.trials if trial.arm == arm]
    return sorted((r for r in records if r is not None and r.state == "complete"), key=lambda record: record.seed)


def _mean_line(
    kind: str, table: PublishedTable, row: PublishedRow, records: Sequence[Record], prefix: str
) -> Line | None:
    """Mean and spread over seeds; None when no record has any of it."""
    entries = {}
    for metric in table.metrics:
        name = prefix + metric.replace("auc", "optimism") if kind == "optimism" else prefix + metric
        values = [record.metrics[name] for record in records if name in record.metrics]
        found = statistics.mean_interval(values)
        entries[metric] = Entry(value=found.mean, seed_sd=found.sd, seeds=found.n)
    seeds = max(entry.seeds for entry in entries.values())
    label = "raw features" if kind == "raw" else f"{kind}, {wording.count(seeds, 'seed')}"
    return Line(kind=kind, label=label, entries=entries) if seeds else None


def _one_seed_line(table: PublishedTable, row: PublishedRow, records: Sequence[Record]) -> Iterator[Line]:
    """Inner spreads of the first seed that has this row."""
    names = {metric: f"test/{row.probe}_{metric}" for metric in table.metrics}
    for record in records:
        if any(name in record.uncertainties for name in names.values()):
            entries = {metric: _inner(record, name) for metric, name in names.items()}
            yield Line(kind="one seed", label=f"seed {record.seed}: folds; test jets", entries=entries)
            return


def _inner(record: Record | Released, name: str) -> Entry:
    spreads = record.uncertainties.get(name, {})
    fold_sd, error = (float(spreads.get(key, math.nan)) for key in ("fold_sd", "error"))
    return Entry(value=record.metrics.get(name, math.nan), seeds=1, fold_sd=fold_sd, error=error)


def _released_line(table: PublishedTable, row: PublishedRow, found: Released | None) -> list[Line]:
    if found is None or not row.probe:
        return []
    entries = {metric: _inner(found, f"test/{row.probe}_{metric}") for metric in table.metrics}
    if all(math.isnan(entry.value) for entry in entries.values()):
        return []
    return [Line(kind="released", label="released", entries=entries)]


def _few_jets(study: StudyRecords, table: PublishedTable, arms: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Efficiencies that a handful of background jets decide."""
    arm = next(arm for (task, _), arm in arms.items() if task == table.task)
    jets = arm_config(study, arm).data.test_jets * published.BACKGROUND[table.task]
    cuts = {
        head: float(metric.rpartition("_")[2])
        for metric, head in table.metrics.items()
        if metric in published.EFFICIENCY
    }
    thin = [f"{head} by {jets * cut:.2g}" for head, cut in cuts.items() if jets * cut < FEW_JETS]
    if thin:
        yield f"Of some {jets:,.0f} background jets in our test jets few decide: {', '.join(thin)} of them."


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
        if line := next(_our_lines(study, table, row, arm), None):
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
    if kind == "one seed":
        spreads = [wording.number(s, wording.decimals_of(s, DECIMALS)) for s in (entry.fold_sd, entry.error)]
        return "; ".join(spreads) if math.isfinite(entry.value) else wording.NOTHING
    if entry.seeds > 1 and kind != "raw":  # raw features know nothing of seeds
        return wording.with_error(entry.value, entry.seed_sd, most=DECIMALS)
    return wording.number(entry.value)


def frame(tables: Sequence[ComparedTable]) -> pd.DataFrame:
    """Every figure, unrounded: one row a table, row, line and metric."""
    return pd.DataFrame([
        {"table": table.published.name, "row": row.label, "line": line.kind, "metric": metric, **vars(entry)}
        for table in tables
        for row in table.rows
        for line in row.lines
        for metric, entry in line.entries.items()
    ])  # fmt: skip


def facts(study: StudyRecords) -> dict[str, str]:
    """Where our figures come from, and what each ± is: name -> one line."""
    found = provenance.facts(study)
    arms = arms_by_kind(study)
    lines = {"Data": found["Data"], "Preset": study.plan.preset, "Seeds": found["Seeds"]}
    for task in dict.fromkeys(task for task, _ in arms):
        config = arm_config(study, next(arm for (of, _), arm in arms.items() if of == task))
        ours = " / ".join(f"{n:,}" for n in (config.data.train_jets, config.data.val_jets, config.data.test_jets))
        epochs = f"{config.train.epochs} epochs in batches of {config.train.batch}"
        theirs = f"{published.PAPER_JETS[task]}, {published.RECIPES[task][published.EPOCHS]} epochs, 1024"
        lines[f"Jets, {task}"] = f"{ours} to train, validate, test; {epochs} (the paper: {theirs})"
    return lines | {
        "Spread over seeds": "ours, ±: standard deviation over seeds, each trained from fresh weights",
        "Spread over folds": "one seed, first figure: standard deviation over 10 stratified folds of its test jets, "
        "each a tenth of them, as in the paper",
        "Error of test jets": "one seed, second figure: standard error from the number of its test jets",
        "The paper's ±": published.SPREAD,
        "Released": "the authors' checkpoints, trained by them on JetNet, judged on our test jets; k-NN, linear probe "
        "and anomaly scores are fitted on our training jets, classifiers are used as they were released",
        "Untrained, raw": "the same judgement of the encoder before training, and of the particles themselves: what "
        "training must beat",
        "Plan hash": study.plan.hash,
        "Trainer": found["Trainer"],
    }


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
    content |= {"paper": published.PAPER}
    out.mkdir(parents=True, exist_ok=True)
    environment = report.environment()
    for kind in ("md", "html"):
        report.write(out / f"{FILE}.{kind}", environment.get_template(f"{FILE}.{kind}.j2").render(content))
    latex = environment.overlay(
        autoescape=False,
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
    )
    latex.filters |= {"tex": tex}
    report.write(out / f"{FILE}.tex", latex.get_template(f"{FILE}.tex.j2").render(content))
    report.write(out / f"{FILE}.csv", frame(tables).to_csv(index=False))
    return tables, out / f"{FILE}.html"


SIGNS = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
    "ε": r"$\varepsilon$",
    "’": "'",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def tex(text: object) -> str:
    """Text as LaTeX that pdflatex reads; εs(0.1) with its index."""
    line = "".join(SIGNS.get(sign, sign) for sign in " ".join(str(text).split()))
    return re.sub(r"\$\\varepsilon\$([sb])(?=\W)", r"$\\varepsilon_\1$", line)


def show(tables: Sequence[ComparedTable], study: StudyRecords, console: Console) -> None:
    """Print the tables: what the paper says, what we find, and what each line is."""
    for table in tables:
        grid = Table(title=table.published.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        for _ in ("row", "line"):
            grid.add_column(no_wrap=True)
        for head in table.published.metrics.values():
            grid.add_column(head, justify="right", no_wrap=True)
        for row in table.rows:
            for number, line in enumerate(row.lines):
                style = {"paper": "bold", "ours": "bold green"}.get(line.kind, "dim")
                grid.add_row(row.label if number == 0 else "", line.label, *line.cells, style=style)
        console.print(grid)
        for note in [f"Source: {table.published.source}.", *table.notes]:
            console.print(f"  {note}", style="dim", highlight=False, markup=False)
    if said := standing(study):
        console.print(said, highlight=False, markup=False)
    for name, fact in facts(study).items():
        console.print(f"  {name}: {fact}", highlight=False, markup=False)


def console() -> Console:
    """Standard output, wide enough for the tables."""
    return Console(width=max(WIDTH, Console().width))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when the tables were made, 2 when the input has none."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.paper", description="The paper's tables with a study's figures beside them."
    )
    parser.add_argument("folder", help="<storage>/<study>, a folder or an s3:// or gs:// address")
    parser.add_argument("--out", type=Path, help="where to write (default: the study folder, if it is on this machine)")
    options = parser.parse_args(arguments)
    try:
        study = load_study(options.folder)
        tables, path = write_tables(study, options.out or report.default_out(options.folder, study))
    except (RecordError, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    show(tables, study, console())
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

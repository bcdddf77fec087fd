"""The paper's tables with ours beside them, from records alone: ``python -m analysis.paper <study folder>``.

Writes paper_tables.html, .md, .tex (longtable) and .csv beside the study or into ``--out``, and prints the lines that
matter most. An arm finds its rows by what it is, task and model size, so every study with an arm of the paper's has
tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from analysis.paper.lines import AT_CHANCE, ComparedTable, arm_config, arms_by_kind, compare
from analysis.report import build, latex
from analysis.verdicts import paper_values as published
from analysis.verdicts import provenance
from jbot.cli import Parser, program
from jbot.config import flatten
from jbot.store.plan import StudyRecords, load_study

FILE = "paper_tables"
TEMPLATES = Path(__file__).with_name("templates")
WIDTH = 160
"""Columns the printed tables take; on a narrower terminal lines wrap, and no figure is cut."""
PRINTED = ("paper", "ours", "chosen", "released", "released chosen")
"""Lines that stand in the terminal; the page has all."""


def frame(tables: Sequence[ComparedTable]) -> pd.DataFrame:
    """Every figure, unrounded: one row per table, row, line and metric."""
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
    "untrained, raw features": "the encoder before training, and the particles themselves, evaluated alike: what "
    "training must beat",
    "released": "the authors' checkpoints, trained by them on JetNet, evaluated on our test jets; ±: standard error "
    "from their number; k-NN, linear probe and anomaly scores are fitted on our training jets, classifiers are used as "
    "they were released",
}
"""What each line is."""


def facts(study: StudyRecords) -> dict[str, str]:
    """Where our figures come from: name -> one line."""
    found = provenance.facts(study)
    lines = {"Data": found["Data"], "Preset": study.plan.preset, "Seeds": found["Seeds"]}
    arms: dict[str, str] = {}
    for (task, _), arm in arms_by_kind(study).items():
        arms.setdefault(task, arm)
    for task, arm in arms.items():
        config = arm_config(study, arm)
        ours = " / ".join(f"{n:,}" for n in (config.data.train_jets, config.data.val_jets, config.data.test_jets))
        epochs = f"{config.train.epochs} epochs in batches of {config.train.batch}"
        theirs = f"{published.PAPER_JETS[task]}, {published.RECIPES[task][published.EPOCHS]} epochs, 1024"
        lines[f"Jets, {task}"] = f"{ours} to train, validate, test; {epochs} (the paper: {theirs})"
    return lines | {"Plan hash": study.plan.hash, "Trainer": found["Trainer"]}


def status_line(study: StudyRecords) -> str:
    """How far ours may be held against the paper's, in one line; empty when nothing differs."""
    jetnet = str(study.data.get("source", "")).startswith("JetNet")
    recipes = {arm: published.RECIPES[task] for (task, _), arm in arms_by_kind(study).items()}
    same = all(recipe.items() <= flatten(arm_config(study, arm)).items() for arm, recipe in recipes.items())
    why = ["on other jets than JetNet"] * (not jetnet) + ["with other numbers of jets or epochs"] * (not same)
    if not why:
        return ""
    return f"Ours is trained {' and '.join(why)}: the paper's figures are beside it for scale, not to be reproduced."


def write_tables(study: StudyRecords, out: Path) -> tuple[list[ComparedTable], Path]:
    """Write the tables as HTML, Markdown, LaTeX and CSV; returns them and the path of the HTML page.

    Raises RecordError when the study has no arm of the paper's, or a file is damaged.
    """
    tables, status = compare(study), status_line(study)
    content = {"plan": study.plan, "tables": tables, "facts": facts(study), "status": status, "reading": READING}
    environment = build.environment(TEMPLATES)
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
    if status := status_line(study):
        console.print(status, highlight=False, markup=False)
    words = f"Spreads, baselines, notes and what each line is are on the page: {page}"
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

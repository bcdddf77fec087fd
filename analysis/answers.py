"""The answers to the paper's questions as pages of the documentation, made from archives of their records.

    python -m analysis.answers [docs/answers]       makes every page of the folder again from its archives

An archive is what ``jbot store pack`` writes of one study, named like its folder. Numbers, sentences and figures are
those of the report and of the page of all questions: nothing is typed by hand.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.index import entries, page
from analysis.index.entries import Entry
from analysis.plots import svg
from analysis.report import build, evidence, headline, registry
from analysis.report.section import Picture, Table
from analysis.report.sections.differences import contrasts_table
from analysis.verdicts.costs import Prices
from analysis.verdicts.questions import FURTHER, OPEN, Part
from analysis.verdicts.study_index import StudyIndex, base_name, load_index
from jbot.cli import Parser, program
from jbot.store.archive import SUFFIX, find_studies, unpack
from jbot.store.plan import load_study
from jbot.store.storage import RecordError, Storage

FOLDER = Path("docs/answers")


@dataclass(frozen=True, kw_only=True)
class Run:
    """The study behind a part of an answer."""

    figure: Picture | None
    file: str
    """Of the figure, from the page."""
    contrasts: Table | None
    plan_hash: str
    archive: str
    command: str
    """What makes it again, or continues it."""


def build_answers(folder: Path) -> list[Path]:
    """Write a page for each question and ``index.md``; returns them.

    Raises RecordError when the folder has no archive, or one is damaged.
    """
    archives = sorted(folder.glob(f"*{SUFFIX}"))
    if not archives:
        raise RecordError(f"no archive (*{SUFFIX}) in {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        storage = Storage(scratch)
        for archive in archives:
            unpack(archive, storage)
        runs = {study: _run(Path(scratch) / study, folder) for study in find_studies(scratch).studies}
        index = load_index(storage)
        prices = Prices(record for study in index.studies for record in study.ended_records)
        asked = entries.open_questions(index, prices)
        said = [*asked, *entries.further_questions(index, prices)]
        questions = [*OPEN, *(one for one in FURTHER if any(part.study in index.names for part in one.parts))]
        pages = {
            entry.anchor: _page(entry, [_run_of(part, index, runs) for part in question.parts])
            for entry, question in zip(said, questions, strict=True)
        }
        content = {"entries": said, "tally": page.tally(asked), "caution": page.caution(index)}
    pages["index"] = _render("answers", content | {"archives": [archive.name for archive in archives]})
    for name, text in pages.items():
        build.write(folder / f"{name}.md", text)
    return [folder / f"{name}.md" for name in pages]


def _page(entry: Entry, runs: Sequence[Run | None]) -> str:
    return _render("answer", {"entry": entry, "parts": list(zip(entry.parts, runs, strict=True))})


def _render(template: str, content: Mapping[str, object]) -> str:
    text = build.environment().get_template(f"{template}.md.j2").render(content)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _run(study: Path, folder: Path) -> Run:
    """A study as the pages need it; its figure is saved, and what the index quotes of its sections."""
    records = load_study(str(study))
    found, plan = evidence.gather(records), records.plan
    sections = registry.gather(found)["Evidence"]
    build.write_summary(records, sections, study)
    figure, _ = headline.lead(plan, sections)
    name = f"{study.name}-{figure.name}" if figure else ""
    if figure:
        svg.save(figure.figure, folder / "figures", name)
    options = " --null" * bool(plan.null) + " --until-decided" * bool(plan.looks)
    script = f"studies/{base_name(plan.study, plan.preset)}.py"
    return Run(
        figure=figure,
        file=f"figures/{name}.svg" if figure else "",
        contrasts=contrasts_table(found) if found.verdicts else None,
        plan_hash=plan.hash,
        archive=f"{study.name}{SUFFIX}",
        command=f"python {script} --preset {plan.preset} --seeds {len(plan.seeds)}{options}",
    )


def _run_of(part: Part, index: StudyIndex, runs: Mapping[str, Run]) -> Run | None:
    """The study that the index has chosen for a part; None where nobody has run it."""
    found = next(iter(index.of(part.study)), None)
    return runs[found.folder] if found and not found.is_smoke_test else None


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when the pages were written, 2 when the folder has no readable archive."""
    parser = Parser(prog="python -m analysis.answers", description="Make the pages of answers from their archives.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"of the archives (default: {FOLDER})")
    options = parser.parse_args(arguments)
    for written in build_answers(options.folder):
        print(written)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

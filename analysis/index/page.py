"""What is known: the paper's open questions, one entry each, from the records of a storage.

    python -m analysis.index results        writes results/index.html

Every study writes it again when it ends (studies/runner/execute.py). It decides from the records; of reports it quotes
what they say of themselves (analysis/verdicts/summary.py), and only where they are of the same records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from analysis.index import entries
from analysis.index.entries import Entry
from analysis.report.build import environment, write
from analysis.report.headline import SAME_SIZE
from analysis.verdicts.arm_settings import share_of_paper
from analysis.verdicts.costs import Prices
from analysis.verdicts.questions import FURTHER, OPEN
from analysis.verdicts.study_index import StudyIndex, load_index
from jbot.cli import Parser, program
from jbot.store.storage import RecordError, Storage

FILE = "index.html"
TEMPLATES = Path(__file__).with_name("templates")


def build_index(storage: Storage, out: Path | None = None) -> Path:
    """Write the page of all questions.

    Of an empty storage every entry says how to begin. Written and returned is `out`, or index.html in the storage, or
    in ``results`` where that is an object store.

    Raises RecordError when the storage cannot be listed.
    """
    index = load_index(storage)
    records = {record.trial_id: record for study in index.studies for record in study.ended_records}
    prices = Prices(records.values())
    asked = entries.open_questions(index, prices)
    content = {
        "asked": asked,
        "further": entries.further_questions(index, prices),
        "own": entries.own_studies(index, prices),
        "not_run": [part.study for one in FURTHER for part in one.parts if part.study not in index.names],
        "errors": index.errors,
        "tally": tally(asked),
        "caution": caution(index),
        "storage": storage.uri.rstrip("/").rpartition("/")[2] or storage.uri,
        "n_trials": len(records),
        "n_studies": len(index.studies),
    }
    page = out or (Path(storage.uri) if storage.local else Path("results")) / FILE
    write(page, environment(TEMPLATES).get_template(f"{FILE}.j2").render(content))
    return page


def tally(asked: Sequence[Entry]) -> str:
    """``8 open questions: 1 decided, 2 undecided, 1 described, 4 without an answer``."""
    states = Counter(map(_state, asked))
    shown = [name for name in ("decided", "undecided", "described", "without an answer") if states[name]]
    return f"{len(OPEN)} open questions of the paper: {', '.join(f'{states[name]} {name}' for name in shown)}"


def _state(entry: Entry) -> str:
    """How far a question is answered; of several parts, the least decided one counts."""
    answered = [part for part in entry.parts if part.sentences or part.sparklines]
    if not answered or len(answered) < len(entry.parts):
        return "without an answer" if not answered else "described"
    if any(part.tone == "undecided" for part in answered):
        return "undecided"
    return "decided" if all(part.tone != "open" for part in answered) else "described"


def caution(index: StudyIndex) -> str:
    """How far from the paper's size all of it is; empty where something has run at that size."""
    shares = [share_of_paper(found.plan) for found in index.studies if found.blocks and not found.is_smoke_test]
    if not shares or max(shares) >= SAME_SIZE:
        return ""
    return (
        f"Nothing here has run at the paper’s size: the largest training had {float(f'{100 * max(shares):.2g}'):g}% of "
        "its jet passes. Answers hold for the sizes named in the entries."
    )


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when the page was written, 2 when there is no such folder."""
    parser = Parser(
        prog="python -m analysis.index", description="The paper's open questions and what the records say of each."
    )
    parser.add_argument("storage", help="folder of the results, or an s3:// or gs:// address")
    parser.add_argument("--out", type=Path, help="file to write (default: index.html in the folder)")
    options = parser.parse_args(arguments)
    storage = Storage(options.storage)
    if not storage.exists(""):
        raise RecordError(f"no folder {storage.uri}")
    if storage.exists("study.json"):
        raise RecordError(f"{storage.uri} is a study: give the folder above it")
    print(build_index(storage, options.out))
    return 0

"""A study's report, from its records alone: ``python -m analysis.report <study folder>``.

Writes, beside the study or into ``--out``: report.html (one file that asks for nothing else), report.md, trials.csv,
trials.parquet, arms.csv, contrasts.csv, signatures.csv, arms.tex and contrasts.tex, and figures/ as SVG and PDF.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import jinja2
from markupsafe import Markup

from analysis.plots import style, svg
from analysis.report import evidence, headline, latex, links, registry
from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section
from analysis.report.sections.arms import arms_table
from analysis.report.sections.differences import contrasts_table
from analysis.verdicts import diagnostics, summary, tables
from analysis.verdicts import number_format as fmt
from analysis.verdicts.sentences import contrast_name
from jbot.cli import Parser, program
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import StudyRecords, load_study
from jbot.store.storage import Storage, atomic_write

TEMPLATES = Path(__file__).with_name("templates")


def build_report(study: StudyRecords, out: Path) -> Path:
    """Write the report of a study, finished or not, and return the path of its report.html.

    `out` is made if missing, earlier reports in it are replaced. Raises RecordError when a file of a trial is damaged.
    """
    found = evidence.gather(study, out)
    out.mkdir(parents=True, exist_ok=True)
    _write_tables(found, out)
    plan, parts = study.plan, registry.gather(found)
    sections = parts["Evidence"]
    lead, parts["Evidence"] = headline.lead(plan, sections)
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content = {
        "plan": plan,
        "status": headline.status(found),
        "warning": headline.below_baseline(found.plan, found.arms),
        "answers": headline.answers(found, sections),
        "summary": headline.summary(found.verdicts),
        "basis": headline.facts(study, found.arms),
        "compared": headline.changes(plan),
        "swatches": json.dumps([[a, f"var(--c{i % len(style.PALETTE)})"] for i, a in enumerate(plan.arms)]),
        # The page forbids every other script than its own.
        "script": Markup(script),
        "script_hash": Markup(f"sha256-{digest}"),
        "parts": parts,
        "lead": lead,
        "drawn": _draw([*([lead] if lead else []), *_pictures(chain.from_iterable(parts.values()))], out / "figures"),
        "paper_tables": (out / "paper_tables.html").exists(),
    }
    for name in ("report.md", "report.html"):
        write(out / name, environment().get_template(f"{name}.j2").render(content))
    write_summary(study, parts["Evidence"], out)
    return out / "report.html"


def write_summary(study: StudyRecords, sections: Iterable[Section], out: Path) -> None:
    """What the index of studies quotes of a report."""
    summary.write(study, [_in_short(one) for one in sections if one.answer], out)


def _pictures(sections: Iterable[Section]) -> Iterator[Picture]:
    """Every figure of the sections and of their details."""
    for one in sections:
        yield from one.figures
        yield from _pictures(one.details)


def _draw(pictures: Iterable[Picture], folder: Path) -> dict[str, Markup]:
    """Save figures as files; name -> the figure as an element of the page."""
    found = {}
    for one in pictures:
        drawn = svg.save(one.figure, folder, one.name, one.pdf)
        # The only markup that is not escaped: drawn by matplotlib, which escapes the text in it.
        found[one.name] = Markup(svg.inline(drawn, one.name, one.alt))
    return found


def _in_short(one: Section) -> summary.Section:
    """A section as the index of studies shows it."""
    name, alt = next(((picture.name, picture.alt) for picture in one.figures), ("", ""))
    return summary.Section(title=one.title, anchor=one.anchor, answer=tuple(one.answer), figure=name, alt=alt)


def _write_tables(found: Evidence, out: Path) -> None:
    """Tables as CSV and Parquet, and as LaTeX."""
    frames = {
        "trials": found.trials,
        "arms": found.arms,
        "contrasts": tables.contrasts_table(found.verdicts),
        "signatures": diagnostics.as_table(found.diagnosis),
    }
    for name, frame in frames.items():
        write(out / f"{name}.csv", frame.to_csv(index=False))
    with atomic_write(out / "trials.parquet") as temporary:
        found.trials.to_parquet(temporary, index=False)
    plan = found.plan
    source = f"Study {plan.study}, preset {plan.preset}, plan hash {plan.hash}."
    what = f"{find_metric(plan.metric).full_label}, {fmt.count(len(plan.seeds), 'seed')}, preset {plan.preset}"
    captions = {
        "arms": (arms_table(found), "Mean and spread over seeds of each arm"),
        "contrasts": (contrasts_table(found), "Paired differences, first-named arm minus second"),
    }
    for name, (table, says) in captions.items():
        text = latex.render(environment(), table, f"{plan.study}-{name}", f"{says}: {what}.", source)
        write(out / f"{name}.tex", text)


def write(path: Path, text: str) -> None:
    """Whole or not at all: a browser may be reading the last report."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def environment(*folders: Path) -> jinja2.Environment:
    """The templates of a page, from these folders besides ours: HTML is escaped, and a missing name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"markdown": markdown, "cell": cell, "unbroken": unbroken, "contrast": contrast_name}
    environment.filters |= {"capitalise": fmt.capitalise, "quantity": lambda metric: find_metric(metric).full_label}
    return environment


def markdown(text: object) -> str:
    """Text that stays text in Markdown and inside a Markdown table."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", line)


def cell(text: str) -> str:
    """A cell of a Markdown table, a link where it leads somewhere."""
    return f"[{markdown(text)}]({text.href})" if isinstance(text, links.Link) else markdown(text)


def unbroken(text: str) -> str:
    """No line break inside ``0.021 ± 0.006`` and ``p = 0.031``."""
    return re.sub(r" ([±=]) ", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)


def default_out(folder: str, study: StudyRecords) -> Path:
    """The study folder itself, or ``results/<study>`` when that is in an object store."""
    if Storage(folder).local:
        return Path(folder).expanduser()
    return Path("results") / (re.sub(r"[^\w.-]+", "_", study.plan.study).strip(".") or "study")


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when the report was written, 2 when the input is no study."""
    parser = Parser(prog="python -m analysis.report", description="Make a study's report from records.")
    parser.add_argument("folder", help="<storage>/<study>, a folder or an s3:// or gs:// address")
    parser.add_argument("--out", type=Path, help="where to write (default: the study folder, if it is on this machine)")
    options = parser.parse_args(arguments)
    study = load_study(options.folder)
    path = build_report(study, options.out or default_out(options.folder, study))
    print(path)
    return 0

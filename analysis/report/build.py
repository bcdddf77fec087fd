"""A study's report, from its records alone: ``python -m analysis.report <study folder>``.

Writes, beside the study or into ``--out``: report.html (one file that asks for nothing else), report.md, trials.csv,
trials.parquet, arms.csv, contrasts.csv, signatures.csv, arms.tex and contrasts.tex, and figures/ as SVG and PDF.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from analysis.plots import style, svg
from analysis.plots.style import Picture
from analysis.report import headline, latex, links, registry, section
from analysis.report.section import Evidence
from analysis.report.sections import two_level
from analysis.verdicts import diagnostics, provenance, summary, tables, wording
from analysis.verdicts.decide import Verdict
from analysis.verdicts.questions import judged_by_sections
from analysis.verdicts.study_index import base_name
from jbot.cli import Parser, program
from jbot.store.plan import Plan, StudyRecords, load_study
from jbot.store.record import Storage

MOST_PRIMARY = 2
"""Primary contrasts beside which the first screen also has what sections answer (assumed)."""
TEMPLATES = Path(__file__).with_name("templates")


def build_report(study: StudyRecords, out: Path) -> Path:
    """Write the report of a study, finished or not.

    Parameters
    ----------
    study : StudyRecords
        From :func:`jbot.store.plan.load_study`.
    out : Path
        Folder, made if missing; earlier reports in it are replaced.

    Returns
    -------
    Path
        Of report.html.

    Raises
    ------
    RecordError
        When a file of a trial is damaged.
    """
    evidence = section.gather(study)
    out.mkdir(parents=True, exist_ok=True)
    _write_tables(evidence, out)
    content = _content(evidence, out / "figures")
    content["paper_tables"] = (out / "paper_tables.html").exists()
    for name in ("report.md", "report.html"):
        write(out / name, environment().get_template(f"{name}.j2").render(content))
    summary.write(study, [_in_short(extra) for extra, _ in content["extras"]], out)
    return out / "report.html"


def _content(evidence: Evidence, folder: Path) -> dict[str, Any]:
    """Everything the templates lay out."""
    plan = evidence.study.plan
    metrics = tables.other_metrics(evidence.trials, plan)
    headlines = [v for v in evidence.verdicts if v.contrast.primary] or evidence.verdicts
    found = links.find(evidence.study, folder.parent)
    more = registry.gather(evidence)
    return {
        "study": evidence.study,
        "plan": plan,
        **_script(),
        "status": section.status(evidence),
        "below_floor": section.below_floor(evidence),
        "answers": _answers(evidence, more),
        "summary": headline.summary(evidence.verdicts),
        "basis": headline.facts(evidence.study, evidence.arms),
        "compared": headline.changes(plan),
        "more_verdicts": _in_words(evidence, headlines),
        "plan_lines": section.plan_lines(evidence),
        "arms": section.arms_section(evidence),
        "inner_error": two_level.trial_error(evidence),
        "contrasts": section.contrasts_section(evidence),
        "checks": section.checks_section(evidence),
        "extras": [(extra, [_saved(p, folder) for p in extra.pictures]) for extra in more],
        "convergence": [(found, *section.convergence_section(found)) for found in evidence.convergence],
        "metrics": section.metrics_section(evidence, metrics) if metrics else None,
        "metric_differences": section.metric_differences_section(evidence, metrics),
        "equal_width": section.equal_width(evidence),
        "signatures": section.signatures_section(evidence),
        "no_signatures": diagnostics.absent_line(evidence.signatures),
        "failures": section.failures_section(evidence),
        "facts": provenance.facts(evidence.study),
        "deviations": provenance.deviations(evidence.study),
        "trials": section.trials_section(evidence, found),
        "mlflow": found,
        "swatches": json.dumps([[a, f"var(--c{i % len(style.PALETTE)})"] for i, a in enumerate(plan.arms)]),
        "verdict_count": len(evidence.verdicts),
        "n_trials": len(evidence.trials),
        "pictures": _pictures(evidence, more, folder),
        "closer": _closer(evidence, folder),
    }


def _script() -> dict[str, Markup]:
    """The page's own script, and its hash: the page forbids every other."""
    text = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": Markup(f"sha256-{digest}")}


def _in_words(evidence: Evidence, headlines: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts that the first screen does not tell in a sentence: it does so with a single one."""
    told = [v for v in headlines if len(headlines) == 1 and headline.standing(v) != headline.FAILED]
    return [v for v in evidence.verdicts if v not in told][: section.MOST_CONTRASTS]


def _answers(evidence: Evidence, more: Sequence[section.Extra]) -> list[headline.Answer]:
    """Verdicts and what sections answer; these come first where the question asks for no winner."""
    plan = evidence.study.plan
    verdicts = headline.answers(evidence.verdicts, plan.metric) or headline.measured(plan, evidence.arms)
    said = [headline.described(extra.title, extra.anchor, extra.answer) for extra in more if extra.answer]
    if _by_sections(plan):
        return [*said, *verdicts]
    # Where many verdicts stand, what sections say of the same arms is not said twice.
    return [*verdicts, *said] if sum(contrast.primary for contrast in plan.contrasts) <= MOST_PRIMARY else verdicts


def _by_sections(plan: Plan) -> bool:
    name = base_name(plan.study, plan.preset)
    return judged_by_sections(name) or not any(contrast.primary for contrast in plan.contrasts)


def _in_short(extra: section.Extra) -> summary.Section:
    """A section as the index shows it."""
    first = next(iter(extra.pictures), None)
    name, alt = (first.name, first.alt) if first else ("", "")
    return summary.Section(title=extra.title, anchor=extra.anchor, answer=tuple(extra.answer), figure=name, alt=alt)


def _pictures(evidence: Evidence, more: Sequence[section.Extra], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The figures by section, saved as files on the way."""
    differences = section.differences_picture(evidence, section.MOST_HEADLINE_ROWS, "paired-differences")
    scores = section.scores_picture(evidence)
    lead = _lead(more) if _by_sections(evidence.study.plan) else None
    groups: dict[str, Iterable[Picture | None]] = {
        "headline": [lead or differences or scores],
        "differences": [*([differences] if lead else []), *_all_differences(evidence)],
        "scores": [scores] if lead or differences else [],
        "curves": section.curve_pictures(evidence),
        "embeddings": section.embedding_pictures(evidence),
        "jets": section.example_pictures(evidence),
    }
    return {group: [_saved(p, folder) for p in pictures if p is not None] for group, pictures in groups.items()}


def _lead(more: Sequence[section.Extra]) -> Picture | None:
    """The first figure of the first section that answers; it stands in the section, too, so under a name of its own."""
    first = next((extra.pictures[0] for extra in more if extra.answer and extra.pictures), None)
    return None if first is None else dataclasses.replace(first, name=f"lead-{first.name}")


def _closer(evidence: Evidence, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Figures of single trials, by trial. ``python -m analysis.pictures`` makes the PDFs, for all trials."""
    drawn = section.closer_pictures(evidence)
    return {trial: [_saved(picture, folder, pdf=False) for picture in found] for trial, found in drawn.items()}


def _all_differences(evidence: Evidence) -> list[Picture | None]:
    """A second, longer figure when the first screen does not hold all contrasts."""
    if len(evidence.verdicts) <= section.MOST_HEADLINE_ROWS:
        return []
    return [section.differences_picture(evidence, section.MOST_CONTRASTS, "paired-differences-all")]


def _saved(picture: Picture, folder: Path, pdf: bool = True) -> dict[str, Any]:
    drawn = svg.save(picture.figure, folder, picture.name, pdf)
    # The only markup that is not escaped: drawn by matplotlib, which escapes the text in it.
    element = Markup(svg.inline(drawn, picture.name, picture.alt))
    return {"name": picture.name, "svg": element, "alt": picture.alt, "caption": picture.caption}


def _write_tables(evidence: Evidence, out: Path) -> None:
    frames = {
        "trials": evidence.trials,
        "arms": evidence.arms,
        "contrasts": tables.contrasts_table(evidence.verdicts),
        "signatures": diagnostics.as_table(evidence.signatures),
    }
    for name, frame in frames.items():
        write(out / f"{name}.csv", frame.to_csv(index=False))
    _write_latex(evidence, out)
    _write_parquet(out / "trials.parquet", evidence.trials)


def _write_latex(evidence: Evidence, out: Path) -> None:
    plan = evidence.study.plan
    source = f"Study {plan.study}, preset {plan.preset}, plan hash {plan.hash}."
    what = f"{wording.quantity_on(plan.metric)}, {wording.count(len(plan.seeds), 'seed')}, preset {plan.preset}"
    captions = {
        "arms": (section.arms_section(evidence), "Mean and spread over seeds of each arm"),
        "contrasts": (section.contrasts_section(evidence), "Paired differences, first-named arm minus second"),
    }
    for name, (table, says) in captions.items():
        text = latex.render(environment(), table, f"{plan.study}-{name}", f"{says}: {what}.", source)
        write(out / f"{name}.tex", text)


def _write_parquet(path: Path, frame: pd.DataFrame) -> None:
    temporary = path.with_suffix(".tmp")
    frame.to_parquet(temporary, index=False)
    temporary.replace(path)


def write(path: Path, text: str) -> None:
    """Whole or not at all: a browser may be reading the last report."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def environment() -> jinja2.Environment:
    """The templates of all pages: text is escaped in HTML, and a name that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"markdown": markdown, "cell": cell, "unbroken": unbroken, "contrast": wording.contrast}
    environment.filters |= {"capitalise": wording.capitalise, "quantity": wording.quantity_on}
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

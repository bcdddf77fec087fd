"""Tables as LaTeX for papers, with booktabs: what a section of the report shows, in a file of its own."""

from __future__ import annotations

import re

import jinja2

from analysis.report.section import Table

SIGNS = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
    "†": r"\dag{}",
    "ε": r"$\varepsilon$",
    "χ": r"$\chi$",
    "…": r"\dots{}",
    "’": "'",
    "“": "``",
    "”": "''",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def tex(text: object) -> str:
    """Text as LaTeX that pdflatex reads; εs(0.1) with its index."""
    line = "".join(SIGNS.get(sign, sign) for sign in " ".join(str(text).split()))
    return re.sub(r"\$\\varepsilon\$([sb])(?=\W)", r"$\\varepsilon_\1$", line)


def comment(text: object) -> str:
    """Text for a line that begins with %: it cannot end the line."""
    return " ".join(str(text).split())


def environment(templates: jinja2.Environment) -> jinja2.Environment:
    """The templates with LaTeX's own brackets: braces are its grammar."""
    latex = templates.overlay(
        autoescape=False,
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
    )
    latex.filters = templates.filters | {"tex": tex, "comment": comment}
    return latex


def render(templates: jinja2.Environment, table: Table, label: str, caption: str, source: str) -> str:
    """One ``table`` environment ``tab:<label>`` (letters and dashes); `source` names study and plan in a comment."""
    content = {"table": table, "label": label, "caption": caption, "source": source}
    return environment(templates).get_template("table.tex.j2").render(content)

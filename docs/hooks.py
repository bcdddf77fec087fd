"""What the site has besides the pages of this folder: files that pages link to, one page per module, the notebook.

Links in docs/*.md are those of the repository, ``../jbot/config.py``, so that they work on its host; here they are led
to pages made of these files, below ``repository/``.
"""

from __future__ import annotations

import ast
import base64
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PACKAGES = ("studies", "analysis", "cluster", "search_spaces", "jbot")
OWN_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")
"""Files outside docs/ that the navigation names."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(?=[)#])")
"""Targets of relative links, without their anchors."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every page that is made."""
    for package in PACKAGES:
        for name, content in api_pages(package):
            files.append(_made(config, name, content))
    for notebook in sorted(ROOT.glob("notebooks/*.ipynb")):
        files.append(_made(config, f"notebooks/{notebook.stem}.md", notebook_page(json.loads(notebook.read_text()))))
    left = {*OWN_PAGES, *(path for page in files.documentation_pages() for path in outside(page))}
    while left:
        path = left.pop()
        files.append(page := _made(config, place(path), file_page(path)))
        left |= {found for found in outside(page) if not files.get_file_from_path(place(found))}
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links of the repository to their pages here."""
    here, at = repository_path(page.file.src_uri), posixpath.dirname(page.file.src_uri)
    if at == "studies":
        markdown = study_page((ROOT / "studies" / f"{posixpath.basename(here)[:-3]}.py").read_text(), markdown)

    def moved(link: re.Match[str]) -> str:
        target = resolve(here, link[0])
        return posixpath.relpath(place(target), at) if (ROOT / target).is_file() else link[0]

    return LINK.sub(moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Roles of docstrings, ``:func:`jbot.load` ``, are code like any other name."""
    return re.sub(r":(?:func|class|mod|meth|data|attr):(?=<code>)", "", html)


def study_page(code: str, markdown: str) -> str:
    """A study's page: its question, source, design, commands and reading from its file, then what the page has.

    Of the page itself the title and the line that points to the file go.
    """
    question, _, parts = (ast.get_docstring(ast.parse(code)) or "").partition("\n\n")
    shown = [f"# {question}"]
    for name, text in re.findall(r"^(\w+) +(.*(?:\n +.*)*)", parts, re.MULTILINE):
        lines = [line.strip() for line in text.split("\n")]
        if name == "Command":
            remarked = [re.sub(r"(?<=\S)( {2,})", r"\1# ", line, count=1) for line in lines]
            shown.append(fenced("\n".join(remarked), "bash"))
        else:
            shown.append(f"**{name}.** {' '.join(lines)}")
    return "\n\n".join([*shown, markdown.split("\n\n", 2)[2]])


def repository_path(src_uri: str) -> str:
    """Where in the repository a page of the site comes from."""
    if src_uri.startswith("repository/"):
        return src_uri.removeprefix("repository/")
    return src_uri if src_uri.startswith("notebooks/") else f"docs/{src_uri}"


def resolve(here: str, target: str) -> str:
    """The file of the repository that a link in `here` means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), target))


def place(path: str) -> str:
    """Where in the site a file of the repository stands."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(".ipynb"):
        return path.removesuffix(".ipynb") + ".md"
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def outside(file: File) -> Iterator[str]:
    """Files outside docs/ that a page links to; notebooks have their page already."""
    for target in LINK.findall(file.content_string):
        path = resolve(repository_path(file.src_uri), target)
        if not path.startswith("docs/") and not path.endswith(".ipynb") and (ROOT / path).is_file():
            yield path


def file_page(path: str) -> str:
    """Markdown as it is, anything else as code."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    return f"# {path}\n\n{fenced(text, Path(path).suffix.lstrip('.') or 'text')}"


def fenced(text: str, language: str) -> str:
    """A block of code, whatever stands in it."""
    fence = max(["```", *(found + "`" for found in re.findall(r"`{3,}", text))], key=len)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def api_pages(package: str) -> Iterator[tuple[str, str]]:
    """One page per module, and one that lists them. Studies of their own have no interface: they are shown whole."""
    rows = []
    for path in sorted((ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        text = path.read_text()
        about = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ")
        if path.name == "__init__.py":
            continue
        if "\nstudy = Study(" in text:
            rows.append(f"| [{module}](../../{package}/{path.name}) | {about} |")
        else:
            rows.append(f"| [{module}]({module}.md) | {about} |")
            yield f"api/{module}.md", f"# {module}\n\n::: {module}\n"
    head = (ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or "").replace(":func:", "")
    table = "\n".join(["| module | what it is |", "|---|---|", *rows])
    yield f"api/{package}.md", f"# {package}\n\n{head.replace(':class:', '')}\n\n{table}\n"


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as it was last run: nothing is run here."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [fenced(source, "python"), *(shown(output) for output in cell["outputs"])]
    return "\n\n".join(parts) + "\n"


def shown(output: dict[str, Any]) -> str:
    """What a cell gave, in the richest form a page can hold."""
    data = output.get("data", {})
    if "image/svg+xml" in data:
        # As an image of its own, so that ids of several figures in a page do not meet.
        image = base64.b64encode("".join(data["image/svg+xml"]).encode()).decode()
        return f'<img class="drawn" alt="Figure drawn by the cell above" src="data:image/svg+xml;base64,{image}">'
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>|\n\s*", "", "".join(data["text/html"]), flags=re.DOTALL)
        return re.sub(r' border="1" class="dataframe"', "", table)
    return fenced("".join(data.get("text/plain", output.get("text", ""))), "text")


def _made(config: MkDocsConfig, src_uri: str, content: str) -> File:
    return File.generated(config, src_uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV)

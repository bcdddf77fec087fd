"""Figures as files, and as SVG inside a page that follows the page's light or dark colours."""

from __future__ import annotations

import io
import json
import re
from html import escape
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis.plots import style

THEMED = {style.INK: "ink", style.MUTED: "muted", style.FAINT: "faint", style.BAND: "band"} | {
    colour: f"c{i}" for i, colour in enumerate(style.PALETTE)
}
"""Colours of the figures and the CSS variables of the page that stand for them."""

DRAWING = {"svg", "g", "use", "path", "text", "tspan", "defs", "style", "clipPath", "rect", "line", "circle", "polygon",
           "polyline", "image"}  # fmt: skip
"""Elements of matplotlib's figures."""


def save(figure: Figure, folder: Path, name: str, pdf: bool = True) -> str:
    """Write ``<name>.svg`` and perhaps ``<name>.pdf``, the same bytes for the same figure; returns the SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    svg = to_svg(figure)
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    if pdf:
        (folder / f"{name}.pdf").write_bytes(to_pdf(figure))
    return svg


def to_pdf(figure: Figure) -> bytes:
    """A figure as a PDF document."""
    content = io.BytesIO()
    figure.savefig(content, format="pdf", metadata={"CreationDate": None})
    return content.getvalue()


def to_svg(figure: Figure) -> str:
    """A figure as an SVG document. Its layout is found once and kept."""
    text = io.StringIO()
    # Ids are hashes of what they name: with a fixed salt the same figure gives the same file.
    with mpl.rc_context({"svg.hashsalt": "jbot", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    # Not "none": that leaves an empty engine, for which the next savefig draws twice.
    with mpl.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
    drawn = re.sub(r'(?<= )(d|x|y|points)="[^"]*"', _rounded, re.sub(r"^ +", "", text.getvalue(), flags=re.MULTILINE))
    return re.sub(rf'<g id="{style.MARK}([^"]*)">', _marked, drawn)


def _marked(group: re.Match[str]) -> str:
    """What :func:`analysis.plots.style.attach_tooltips` hid in an id, as attributes that a page's script reads."""
    hidden = json.loads(unquote(group[1]))
    attributes = {"data-arm": hidden["arm"], "data-tips": json.dumps(hidden["tips"], ensure_ascii=False)}
    written = [
        f' {name}="{escape(value, quote=True)}"' for name, value in attributes.items() if value not in ("", "[]")
    ]
    return f'<g class="mark"{"".join(written)}>'


def _rounded(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point: what matplotlib writes beyond that makes pages much larger."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0])


def is_harmless(svg: str) -> bool:
    """Whether an SVG file draws and does no more: others may write to a storage, and a page would run their scripts."""
    try:
        elements = [*ElementTree.fromstring(_element(svg)).iter()]
    except (ElementTree.ParseError, ValueError):
        return False
    return all(_only_draws(element) for element in elements)


def _only_draws(element: ElementTree.Element) -> bool:
    space, _, tag = str(element.tag).rpartition("}")
    if space != "{http://www.w3.org/2000/svg" or tag not in DRAWING:
        return False
    names = [name.rpartition("}")[2].lower() for name in element.attrib]
    targets = [value for name, value in zip(names, element.attrib.values(), strict=True) if name == "href"]
    fetched = re.search(r"@import|url\((?!#)", " ".join([element.text or "", *element.attrib.values()]))
    inside = all(value.startswith(("#", "data:image/png;")) for value in targets)
    return inside and not fetched and not any(name.startswith("on") for name in names)


def _element(svg: str) -> str:
    """The ``<svg>`` element of a file, without what no reader sees."""
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def inline(svg: str, name: str, alt: str) -> str:
    """The ``<svg>`` element of a page, from :func:`to_svg`, in the page's colours and font.

    `name` (letters, digits, dashes) is unique in the page and keeps the ids of several figures apart; `alt` is what a
    reader who does not see the figure must know.
    """
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", _element(svg))
    for colour, variable in THEMED.items():
        element = element.replace(colour, f"var(--{variable})")
    element = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: var(--sans)", element)
    head = f'<svg role="img" aria-label="{escape(alt, quote=True)}"'
    return re.sub(r'\s(width|height)="[\d.]+pt"', "", element.replace("<svg", head, 1), count=2)

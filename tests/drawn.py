"""What is written in a figure."""

import re
import xml.etree.ElementTree as ElementTree

from analysis.plots import svg


def texts(figure):
    """What is written in a figure, and that both formats can be made of it."""
    document = svg.to_svg(figure)
    ElementTree.fromstring(document)
    assert svg.to_pdf(figure).startswith(b"%PDF")
    return re.findall(r">([^<>]+)</(?:text|tspan)>", document)


def legend(figure):
    """Names of the lines that are drawn."""
    return [text.get_text() for text in figure.legends[0].get_texts()]

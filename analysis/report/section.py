"""What a report consists of: sections of sentences, figures and tables. The templates only lay them out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pages of words need no drawing library
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with its words."""

    name: str
    """File name without ending."""
    figure: Figure
    alt: str
    caption: str = ""
    pdf: bool = True
    """Saved as PDF too."""


def picture(name: str, figure: Figure, caption: str, said: str) -> Picture:
    """A figure whose alternative text is its caption and what it shows."""
    return Picture(name=name, figure=figure, alt=f"{caption} {said}.", caption=caption)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells of text. The first column names the row."""

    label: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Collection[int] = (0,)
    """Columns of words, set flush left; the others are numbers."""

    @classmethod
    def of(cls, label: str, rows: Sequence[Mapping[str, str]], words: Collection[str] = ()) -> Table:
        """A table of rows that map the head of a column to a cell, at least one; `words` beside the first column."""
        head = list(rows[0])
        text = (0, *(i for i, name in enumerate(head) if name in words))
        return cls(label=label, head=head, rows=[list(row.values()) for row in rows], text_columns=text)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report. Its contents are laid out in the order of the fields."""

    title: str
    key: str = ""
    """Anchor in the page; made from the title when empty."""
    sentences: Sequence[str] = ()
    """Paragraphs."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Term -> what is to be said of it."""
    method: Sequence[str] = ()
    """How the numbers are made: paragraphs that are folded away."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Heading -> lines to be copied as they are."""
    figures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    """Small print under the tables."""
    details: Sequence[Section] = ()
    """Parts that are folded away under their titles."""
    answer: Sequence[str] = ()
    """The sentences that answer the study's question: the first screen and the index of studies show them."""

    @property
    def anchor(self) -> str:
        """Its place in the page."""
        return self.key or slug(self.title)


def slug(name: str) -> str:
    """Part of a file name or an anchor, from any name of a record."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "unnamed"


def capitalised(label: str) -> str:
    """A label of the metrics registry at the start of a line: k-NN and k-means stay as they are."""
    return label if label.startswith("k-") else label[:1].upper() + label[1:]

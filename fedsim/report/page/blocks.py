"""What a page is made of, as plain data: sections of paragraphs, tables and figures. `shell` makes HTML of them.

Text is plain and is escaped where the page is put together; only a figure's drawing is markup already.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from fedsim.report.page.svg import Pen


class Name(NamedTuple):
    """A strategy's name with a swatch of its pen."""

    label: str
    pen: Pen


class Words(NamedTuple):
    """A paragraph."""

    text: str
    soft: bool = False  # a note
    lead: bool = False  # the answer
    kind: str = "words"


class Facts(NamedTuple):
    """Short texts by name."""

    rows: Sequence[tuple[str, str]]
    kind: str = "facts"


class Grid(NamedTuple):
    """A table. The first column names the rows; what is no name and in no column of `texts` is a number."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Name]]
    texts: Sequence[int] = ()  # columns of words, beside the first
    notes: Sequence[str] = ()
    strong: Collection[tuple[int, int]] = ()  # cells to be emphasised, by row and column
    kind: str = "grid"


class Figure(NamedTuple):
    """A drawing with its heading and how to read it."""

    title: str
    svg: str
    caption: str = ""
    kind: str = "figure"


class Figures(NamedTuple):
    """Figures side by side where there is room."""

    each: Sequence[Figure]
    small: bool = False
    kind: str = "figures"


def captioned(shown: Sequence[Figure]) -> list[Figure]:
    """The figures without captions that an earlier one of them has: how to read a band is said once."""
    said: set[str] = set()
    out = []
    for one in shown:
        out.append(one._replace(caption="") if one.caption in said else one)
        said.add(one.caption)
    return out


class Code(NamedTuple):
    """Text to copy; with a title it is folded away."""

    text: str
    title: str = ""
    kind: str = "code"


class Fold(NamedTuple):
    """Blocks folded away under a line."""

    title: str
    blocks: Sequence[Block]
    kind: str = "fold"


Block = Words | Facts | Grid | Figure | Figures | Code | Fold


class Section(NamedTuple):
    """A part of the page, `name` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Block]


class Page(NamedTuple):
    """All of it."""

    title: str
    under: str  # the line below the title
    names: Sequence[Name]  # all strategies
    sections: Sequence[Section]
    made: str  # the last line

"""Tables as data, and as CSV, Markdown and LaTeX: the same table gives the same bytes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Column(NamedTuple):
    """A column that is shown. A row may hold more, which only CSV writes."""

    key: str
    title: str
    unit: str = ""
    form: str = ""  # of a number, as in format(); empty: text
    scale: float = 1.0  # numbers are shown times this
    bounds: tuple[str, str] | None = None  # keys of the interval's ends
    brackets: bool = False  # as value [low, high], or that alone where the key is low's; else as value ± half of it
    strong: bool = False  # may be emphasised

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


class Table(NamedTuple):
    """Rows of plain data, and how they are shown."""

    title: str
    columns: list[Column]
    rows: list[dict[str, Any]]  # all with the same keys; "leads": whether the row is to be emphasised
    notes: list[str]  # what has to be known to read it: sentences


def text(column: Column, row: Row) -> str:
    """A cell for reading: "-" for nothing, a real minus, the interval where there is one."""
    value = row[column.key]
    if not column.form:
        return "-" if value is None or value == "" else str(value)
    if value is None or math.isnan(value):
        return "-"
    shown = _number(value, column)
    if column.bounds is None:
        return shown
    low, high = (row[key] for key in column.bounds)
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return shown
    if column.brackets:
        ends = f"[{_number(low, column)}, {_number(high, column)}]"
        return ends if column.key == column.bounds[0] else f"{shown} {ends}"
    return f"{shown} ± {_number((high - low) / 2, column).removeprefix('+')}"


def emphasised(column: Column, row: Row) -> bool:
    """Whether a cell is to stand out."""
    return column.strong and bool(row.get("leads"))


def _number(value: float, column: Column) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    shown = format(value * column.scale, column.form)
    if not float(shown.replace(",", "")):  # no minus before a nought
        shown = shown.replace("-", "+" if "+" in column.form else "")
    return shown.replace("-", "−")


def decimals(sizes: Sequence[float], default: int = 2, most: int = 8) -> int:
    """How many decimals show two digits of the typical (median) size of an uncertainty; `default` where there is
    none."""
    known = sorted(size for size in sizes if math.isfinite(size) and size > 0)
    if not known:
        return default
    return min(max(1 - math.floor(math.log10(known[len(known) // 2])), 0), most)


# Files ----------------------------------------------------------------------------------------------------------------


def as_csv(table: Table) -> str:
    """All that the rows hold, one line each, unscaled and unrounded; an empty cell where there is nothing."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    if table.rows:
        lines.writerow(table.rows[0])
        lines.writerows([_plain(value) for value in row.values()] for row in table.rows)
    return out.getvalue()


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(float(value)) if isinstance(value, float) else value


def as_markdown(table: Table) -> str:
    """The table as it is shown, with title and notes, in GitHub's Markdown."""
    head = "| " + " | ".join(_markdown(column.heading) for column in table.columns) + " |"
    rule = "| " + " | ".join("---:" if column.form else "---" for column in table.columns) + " |"
    lines = []
    for row in table.rows:
        cells = []
        for column in table.columns:
            cell = _markdown(text(column, row))
            cells.append(f"**{cell}**" if emphasised(column, row) else cell)
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"{_markdown(note)}  " for note in table.notes]
    return "\n".join([f"**{_markdown(table.title)}**", "", head, rule, *lines, "", *notes]).rstrip() + "\n"


def _markdown(cell: str) -> str:
    """Text in which Markdown sees nothing but text."""
    for mark in "\\`*_[]<>|#~":
        cell = cell.replace(mark, f"\\{mark}")
    return " ".join(cell.split())


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "−": "$-$", "±": r"$\pm$", "∞": r"$\infty$", "–": "--", "×": r"$\times$", "[": "{[}", "]": "{]}",
}  # fmt: skip


def as_latex(table: Table) -> str:
    """The table as it is shown, for \\usepackage{booktabs}, with title as caption and notes below."""
    form = "".join("r" if column.form else "l" for column in table.columns)
    head = " & ".join(_latex(column.heading) for column in table.columns)
    lines = []
    for row in table.rows:
        cells = []
        for column in table.columns:
            cell = _latex(text(column, row))
            cells.append(f"\\textbf{{{cell}}}" if emphasised(column, row) else cell)
        lines.append(" & ".join(cells) + r" \\")
    notes = [r"\par\footnotesize", *(_latex(note) for note in table.notes)] if table.notes else []
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}", rf"\begin{{tabular}}{{{form}}}",
        r"\toprule", rf"{head} \\", r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}", "",
    ])  # fmt: skip


def _latex(cell: str) -> str:
    """Text with every character that means something to LaTeX escaped."""
    return "".join(LATEX.get(letter, letter) for letter in " ".join(cell.split()))

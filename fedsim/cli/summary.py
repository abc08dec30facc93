"""What `fedsim run` says at its end: who stands where, and the paired differences, as wide as the terminal is."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table as Drawn

    from fedsim.report.table import Column, Table

# Columns of the rank table by what is looked for first; those the terminal has no room for are left to the report.
WANTED = (
    "rounds_to", "reached_of", "worst_class_accuracy", "worst_decile_accuracy",
    "worst_decile_loss", "drop", "bytes_to", "seconds_to", "least_decile_accuracy", "area",
)  # fmt: skip
PAIRED = ("first", "mean", "better", "worth", "correlation")
LABEL, GAP = 32, 2  # characters: of a name before it is folded, between columns


def print_summary(folder: Path, screen: Console) -> None:
    """Print the rank table and the paired differences of a run folder in which a run has finished."""
    from rich.text import Text

    from fedsim import speed
    from fedsim.record import read_result
    from fedsim.report.results import gather
    from fedsim.report.tables import paired_table, rank_table

    results = gather(folder)
    ranks, pairs = rank_table(results), paired_table(results)
    main = next(column.key for column in ranks.columns if column.strong and column.form)
    short = [column if column.key in ("strategy", main) else column._replace(bounds=None) for column in ranks.columns]
    wanted = _in_order(short, ["strategy", "place", main, *(key for key in WANTED if key != main)])
    shown = _fitting(ranks, wanted, screen.width)
    screen.print(_drawn(ranks, shown))
    compared = any(row["seeds"] > 1 for row in pairs.rows)
    screen.print()
    if compared:
        screen.print(_drawn(pairs, _fitting(pairs, _in_order(pairs.columns, PAIRED), screen.width)))
        screen.print()
    missing = [f"{c.title.capitalize()}:" for c in ranks.columns if c.key not in [each.key for each in shown]]
    for note in [*ranks.notes, *(pairs.notes[1:2] if compared else [])]:  # of the pairs, what worth is
        if not note.startswith(tuple(missing)):
            screen.print(Text(note, style="dim"))
    for line in speed.lines(read_result(folder)):
        screen.print(Text(line, style="dim"))


def _in_order(columns: Sequence[Column], keys: Sequence[str]) -> list[Column]:
    return sorted((column for column in columns if column.key in keys), key=lambda column: keys.index(column.key))


def _fitting(table: Table, columns: Sequence[Column], width: int) -> list[Column]:
    """The first columns that there is room for, at least three. A long name is folded."""
    fit: list[Column] = []
    room = width
    for column in columns:
        room -= min(max(map(len, [*_head(table, column), *_cells(table, column)])), LABEL) + GAP
        if room + GAP < 0 and len(fit) >= 3:
            break
        fit.append(column)
    return fit


def _cells(table: Table, column: Column) -> list[str]:
    from fedsim.report.table import text

    return [text(column, row) for row in table.rows]


def _head(table: Table, column: Column) -> list[str]:
    """The heading in lines about as wide as the cells, 10 letters at least."""
    if column.key == "first":  # a − b stays together
        return [column.heading]
    return textwrap.wrap(column.heading, max(10, *map(len, _cells(table, column))), break_long_words=False)


def _drawn(table: Table, columns: Sequence[Column]) -> Drawn:
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    from fedsim.report.table import emphasised

    drawn = Drawn(box=box.SIMPLE_HEAD, header_style="", show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for column in columns:
        head = Text("\n".join(_head(table, column)), justify="right" if column.form else "left")
        drawn.add_column(
            head, justify="right" if column.form else "left", overflow="fold", no_wrap=column is not columns[0],
            vertical="bottom",
        )  # fmt: skip
    styled = [
        [
            Text(cell, "bold" if emphasised(column, row) else "")
            for cell, row in zip(_cells(table, column), table.rows, strict=True)
        ]
        for column in columns
    ]
    for cells in zip(*styled, strict=True):
        drawn.add_row(*cells)
    return drawn

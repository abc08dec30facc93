"""What `fedsim bench` found, as a table: for the terminal, and as Markdown by `fedsim.report.table.as_markdown`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.bench.rivals import RIVALS
from fedsim.report.table import Column, Table

COLUMNS = [
    Column("workload", "Workload"),
    Column("rival", "Against"),
    Column("rival_setting", "its best setting"),
    Column("rival_seconds", "its round", "s", ".3g"),
    Column("seconds", "our round", "s", ".3g"),
    Column("ratio", "times as fast", form=".2f", strong=True),
    Column("cpu_ratio", "by CPU time", form=".2f"),
    Column("rival_peak_mb", "its memory", "MB", ".0f"),
    Column("peak_mb", "ours", "MB", ".0f"),
    Column("accuracy", "our accuracy", "%", ".1f", 100),
    Column("rival_accuracy", "its", "%", ".1f", 100),
]


def table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """One row for a workload and a rival."""
    rows, notes = [], []
    for entry in entries:
        row = {column.key: entry.get(column.key) for column in COLUMNS}
        name = RIVALS[entry["rival"]].title
        row["rival"] = name
        ours, theirs = entry.get("cpu_seconds"), entry.get("rival_cpu_seconds")
        row["cpu_ratio"] = theirs / ours if ours and theirs else None
        row["leads"] = bool(entry["ratio"] and entry["ratio"] > 1)
        rows.append(row)
        where = f"{entry['workload']}, {name}"
        if entry["failed"]:
            notes.append(f"{where}: {entry['failed']}.")
        elif not entry["same_quality"]:
            notes.append(f"{where}: accuracies are further apart than {entry['tolerance']:g}.")
        notes += [f"{where}, {one}: {why}." for one, why in entry.get("settings_failed", {}).items()]
        if "differs" in entry:
            notes.append(f"{where} differs: {entry['differs']}.")
    done = [entry for entry in entries if entry["ratio"] is not None]
    notes += [f"{name}: {line}." for name, line in {one["workload"]: one["workload_is"] for one in done}.items()]
    if done:
        notes.append(
            "Median seconds of a round, contenders in turns of a few rounds; everyone in its best setting; memory is "
            "the sum of the processes' peaks."
        )
        it = done[0]["machine"]
        notes.append(f"{it['processor']}, {it['cores']} cores, {it['system']}, Python {it['python']}, {it['time']}.")
        packages = {name: "; ".join(f"{k} {v}" for k, v in one.items())
                    for entry in done for name, one in entry["versions"].items()}  # fmt: skip
        notes.append("Versions: " + ". ".join(f"{name}: {text}" for name, text in packages.items()) + ".")
    return Table("Seconds per round beside other simulators", COLUMNS, rows, notes)


def lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table for a terminal, without memory and accuracy, and its notes."""
    from fedsim.report.table import text

    made = table(entries)
    made = made._replace(columns=made.columns[:7])
    grid = [[column.heading for column in made.columns]]
    grid += [[text(column, row) for column in made.columns] for row in made.rows]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    shown = [
        "  ".join(
            cell.rjust(width) if column.form else cell.ljust(width)
            for cell, width, column in zip(line, widths, made.columns, strict=True)
        ).rstrip()
        for line in grid
    ]
    return [*shown, "", *made.notes]

"""What a run folder says, at any moment and after any crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fedsim import reread
from fedsim.record.contents import COLUMNS, TIMES, check_format, read_whole_result


class Measurement(NamedTuple):
    """One line of metrics.csv."""

    strategy: str
    seed: int
    round: int
    metric: str
    value: float


def read_metrics(folder: str | Path) -> list[Measurement]:
    """All that a run has measured so far; a last line cut short by a crash is passed over. Raises ValueError for a
    folder of a format to come, and where the file is damaged."""
    check_format(Path(folder))
    path = Path(folder) / "metrics.csv"
    columns = dict(zip(COLUMNS, (reread.label, reread.whole, reread.count, reread.label, reread.number), strict=True))
    order, found = reread.Order(path), []
    for line, values in reread.table(path, columns):
        one = Measurement(*values)
        order(line, one.strategy, one.seed, one.round, one.metric)
        found.append(one)
    return found


def metric_lines(folder: Path) -> dict[tuple[str, int, int], bytes]:
    """The lines of metrics.csv by evaluation (strategy, seed, round), as they stand there. Raises ValueError where the
    file is damaged."""
    path = folder / "metrics.csv"
    columns = dict(zip(COLUMNS, (reread.label, reread.whole, reread.count, reread.label, reread.label), strict=True))
    found: dict[tuple[str, int, int], bytes] = {}
    for line, (strategy, seed, round, *_) in reread.table(path, columns):
        where = (strategy, seed, round)
        found[where] = found.get(where, b"") + line.raw.encode()
    return found


def read_times(folder: str | Path) -> dict[tuple[str, int, int], float]:
    """(strategy, seed, round) -> how many seconds the run had taken by then; a last line cut short is passed over.
    Raises ValueError where the file is damaged."""
    path = Path(folder) / "times.csv"
    if not path.exists():
        return {}
    columns = dict(zip(TIMES, (reread.label, reread.whole, reread.count, reread.number), strict=True))
    order, found = reread.Order(path), {}
    for line, (strategy, seed, round, seconds) in reread.table(path, columns):
        order(line, strategy, seed, round)
        if not 0 <= seconds < float("inf"):
            raise reread.spoilt(path, f"line {line.number}: {seconds} is no number of seconds")
        found[strategy, seed, round] = seconds
    return found


def read_clients(folder: str | Path) -> list[dict[str, str]]:
    """The lines of clients.csv, column by name, as text; none where no clients were measured. Raises ValueError where
    the file is damaged."""
    path = Path(folder) / "clients.csv"
    if not path.exists():
        return []
    lines = reread.lines(path)
    head, seen, found = next(lines).cells, set(), []
    if head[:2] != ["strategy", "seed"]:
        raise reread.spoilt(path, "it does not begin with the columns strategy, seed")
    for line in lines:
        one = dict(zip(head, line.cells, strict=True))
        try:
            key = reread.label(one["strategy"]), reread.whole(one["seed"]), one.get("client", line.number)
            for cell in line.cells[2:]:
                _ = reread.number(cell) if cell else None
        except (ValueError, OverflowError):
            raise reread.spoilt(path, f"line {line.number} holds something else than numbers") from None
        if key in seen:
            raise reread.spoilt(
                path, f"line {line.number}: client {key[2]} of {key[0]}, seed {key[1]} stands there twice"
            )
        seen.add(key)
        found.append(one)
    return found


def read_result(folder: str | Path) -> list[dict[str, Any]]:
    """The finished runs of a folder. Raises ValueError for a folder of a format to come, and where the file is
    damaged."""
    check_format(Path(folder))
    runs: list[dict[str, Any]] = read_whole_result(Path(folder))["runs"]
    return runs


def read_tuning(folder: str | Path) -> dict[str, Any] | None:
    """How a run's settings were chosen; None where they were not. Raises ValueError where the file is damaged."""
    from fedsim.record.shapes import Tuning

    path = Path(folder) / "tune.json"
    return reread.shaped(path, reread.document(path), Tuning) if path.exists() else None


def read_notes(folder: str | Path, name: str) -> list[dict[str, str]]:
    """The lines of absences.csv or replies.csv, column by name, as text; none where there is no such file."""
    path = Path(folder) / name
    if not path.exists():
        return []
    lines = reread.lines(path)
    head = next(lines).cells
    found = [dict(zip(head, line.cells, strict=True)) for line in lines]
    for number, one in enumerate(found, 1):
        try:
            reread.label(one["strategy"])
            reread.whole(one["seed"])
            reread.count(one["round"])
        except (KeyError, ValueError):
            raise reread.spoilt(path, f"entry {number} does not say of which strategy, seed and round") from None
    return found

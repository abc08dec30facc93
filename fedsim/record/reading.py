"""What a run folder says, at any moment and after any crash."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.record.contents import check_format


class Measurement(NamedTuple):
    """One line of metrics.csv."""

    strategy: str
    seed: int
    round: int
    metric: str
    value: float


def read_metrics(folder: str | Path) -> list[Measurement]:
    """All that a run has measured so far; a last line cut short by a crash is passed over. Raises ValueError for a
    folder of a format to come."""
    check_format(Path(folder))
    text = (Path(folder) / "metrics.csv").read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(io.StringIO(whole))
    return [
        Measurement(row["strategy"], int(row["seed"]), int(row["round"]), row["metric"], float(row["value"]))
        for row in rows
    ]


def read_times(folder: str | Path) -> dict[tuple[str, int, int], float]:
    """(strategy, seed, round) -> how many seconds the run had taken by then; a last line cut short is passed over."""
    path = Path(folder) / "times.csv"
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    return {(row["strategy"], int(row["seed"]), int(row["round"])): float(row["seconds"]) for row in rows}


def read_clients(folder: str | Path) -> list[dict[str, str]]:
    """The lines of clients.csv, column by name, as text; none where no clients were measured."""
    path = Path(folder) / "clients.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_result(folder: str | Path) -> list[dict[str, Any]]:
    """The finished runs of a folder. Raises ValueError for a folder of a format to come."""
    check_format(Path(folder))
    runs: list[dict[str, Any]] = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))["runs"]
    return runs


def read_tuning(folder: str | Path) -> dict[str, Any] | None:
    """How a run's settings were chosen; None where they were not."""
    path = Path(folder) / "tune.json"
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found

"""Sweep folders: what is swept, a run folder for every cell, and an index of all there is.

    sweep.toml               the experiment and its axes, resolved: sweeps again as it is
    000-alpha=0.1,beta=0.5/  the run folder of a cell; cell.json, written last, says that the cell is over
    index.csv                cell, the axes' values, status, strategy, seed, reason, metrics
    *.png, *.svg             figures

A metric in index.csv is its mean over the last fifth of the rounds. The index is made anew from the cells' own files:
it is the same whatever happened on the way.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim import reread
from fedsim.experiment.settings import show
from fedsim.files import write_atomically, writing
from fedsim.record.contents import read_whole_result
from fedsim.sweep.plan import Cell, Sweep, Work

FILE, INDEX, MARKER = "sweep.toml", "index.csv", "cell.json"
HEAD = ("status", "strategy", "seed", "reason")


def check(folder: Path, sweep: Sweep) -> bool:
    """Whether the folder holds the sweep already; False where there is nothing yet.

    Raises OSError where it is no folder or holds something else, ValueError where it holds another sweep.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, not a folder; choose another folder with --out")
    if not (folder / FILE).is_file():
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise FileExistsError(f"{folder} is not empty and holds no sweep; choose another folder with --out")
        return False
    differs = difference(reread.toml(folder / FILE), tomllib.loads(sweep.toml()))
    if differs is not None:
        raise ValueError(f"{folder} holds another sweep: {differs}; choose another folder with --out")
    return True


def difference(there: Any, here: Any, place: str = "") -> str | None:
    """The first thing in which two documents differ, in words; None where they are the same."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*there, *here]):
            inside = f"[sweep] {key}" if place == "sweep" else f"{place}.{key}".lstrip(".")
            if key not in there or key not in here:
                said = (
                    f"{show(there[key])} there and not given"
                    if key in there
                    else f"not given there and {show(here[key])}"
                )
                return f"{inside} is {said} here"
            if (found := difference(there[key], here[key], inside)) is not None:
                return found
        if list(there) != list(here) and place == "sweep":
            return f"its axes are in another order, {', '.join(there)}"
        return None
    many = isinstance(there, list) and isinstance(here, list) and len(there) == len(here)
    if many and any(isinstance(item, dict) for item in there):
        each = (difference(a, b, f"{place}.{i}") for i, (a, b) in enumerate(zip(there, here, strict=True)))
        return next((found for found in each if found is not None), None)
    return None if there == here else f"{place} is {show(there)} there and {show(here)} here"


@contextlib.contextmanager
def opened(folder: Path, sweep: Sweep) -> Iterator[None]:
    """The folder with sweep.toml in it, and nobody else at work there. Raises OSError."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        if not (folder / FILE).exists():
            write_atomically(folder / FILE, sweep.toml().encode())
    except OSError:
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()
        raise
    with open(folder / FILE, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of when this process ends, however it ends
        except OSError as error:
            raise OSError(f"another fedsim sweep is at work in {folder}") from error
        yield


def state(folder: Path, cell: Cell, work: Work) -> dict[str, Any] | None:
    """What a cell left in its result.json, and why it was "refused", if it was; None for a cell that is not over, or
    whose files make no sense: it runs anew."""
    path = folder / cell.name
    try:
        refused = reread.document(path / MARKER).get("refused")
        there = {"runs": []} if refused and not (path / "result.json").exists() else read_whole_result(path)
    except (FileNotFoundError, ValueError):
        return None
    runs = [(run["strategy"], run["seed"]) for run in (*there["runs"], *there.get("failed", ()))]
    if refused:
        return {**there, "refused": str(refused)}
    expected = {(strategy, seed) for strategy in work.strategies for seed in work.seeds}
    return there if len(runs) == work.runs and set(runs) <= expected else None


def clear(folder: Path, cell: Cell) -> None:
    """Take away what a cell that was cut short left."""
    path = folder / cell.name
    if path.exists():
        with writing(path):
            shutil.rmtree(path)


def mark(folder: Path, sweep: Sweep, cell: Cell, refused: str | None = None) -> None:
    """Note that a cell is over, or that it cannot be run and why."""
    with writing(folder / cell.name):
        (folder / cell.name).mkdir(exist_ok=True)
    said: dict[str, Any] = {
        "cell": cell.number,
        "values": {a.path: v for a, v in zip(sweep.axes, cell.values, strict=True)},
    }
    said |= {} if refused is None else {"refused": refused}
    write_atomically(folder / cell.name / MARKER, (json.dumps(said, indent=2) + "\n").encode())


def write_index(folder: Path, sweep: Sweep, states: Mapping[int, Mapping[str, Any]]) -> None:
    """Write index.csv from the results, by cell number, of the cells that are over."""
    metrics = list(
        dict.fromkeys(m for one in states.values() for run in one.get("runs", ()) for m in run["final_mean"])
    )
    lines: list[Sequence[Any]] = [("cell", *(each.path for each in sweep.axes), *HEAD, *metrics)]
    for cell, work in zip(sweep.cells, sweep.work, strict=True):
        first = [cell.name, *(value if isinstance(value, str) else show(value, 10**6) for value in cell.values)]
        for row in _rows(states.get(cell.number), work):
            values = row.pop("final_mean", {})
            numbers = ["" if values.get(m) is None else repr(values[m]) for m in metrics]
            lines.append([*first, *(row.get(name, "") for name in HEAD), *numbers])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_atomically(folder / INDEX, text.getvalue().encode())


def _rows(result: Mapping[str, Any] | None, work: Work) -> list[dict[str, Any]]:
    """A cell's lines: its runs in the order of the seeds and the strategies, or one line of why there are none."""
    if result is None:
        return [{"status": "waiting"}]
    rows = [{"status": "finished", **run} for run in result["runs"]]
    rows += [{"status": "failed", **run} for run in result.get("failed", ())]
    rows.sort(key=lambda row: (work.seeds.index(row["seed"]), work.strategies.index(row["strategy"])))
    return rows + ([{"status": "failed", "reason": result["refused"]}] if "refused" in result else [])


def read_index(folder: str | Path) -> list[dict[str, str]]:
    """The lines of index.csv, column by name, as text. Raises ValueError where the file is damaged."""
    path = Path(folder) / INDEX
    lines = reread.lines(path)
    head = next(lines).cells
    if head[:1] != ["cell"] or not set(HEAD) <= set(head):
        raise reread.spoilt(path, f"its columns are not cell, the swept keys, {', '.join(HEAD)}, metrics")
    metrics = head[head.index(HEAD[-1]) + 1 :]
    found = [(line, dict(zip(head, line.cells, strict=True))) for line in lines]
    for line, row in found:
        try:
            if row["status"] == "finished":
                reread.label(row["strategy"])
                reread.whole(row["seed"])
            for name in metrics:
                _ = reread.number(row[name]) if row[name] else None
        except (ValueError, OverflowError):
            raise reread.spoilt(path, f"line {line.number} has something else than numbers under its metrics") from None
    return [row for _, row in found]

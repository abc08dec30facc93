"""What is in a run folder, in which format, and whether it is all there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim import hashes, reread

FORMAT = 2  # of run folders: 1 had neither hashes.csv nor checkpoints, and did not say its number
COLUMNS = ("strategy", "seed", "round", "metric", "value")
TIMES = ("strategy", "seed", "round", "seconds")
GROWING = {"metrics.csv": COLUMNS, "times.csv": TIMES, hashes.FILE: hashes.HEAD}
NOTES = ("absences.csv", "replies.csv")  # there only where there is something to note
MAY_CHANGE = ("name", "task.data-dir", "run.device", "run.memory", "run.checkpoint-every")  # before a run goes on
OURS = ("experiment.toml", "environment.json", *GROWING, "clients.csv", "result.json", "tune.json")


def check_free(path: Path) -> None:
    """Raises FileExistsError if the folder holds a run, NotADirectoryError if it is none."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, not a folder; choose another folder with --out")
    held = [name for name in OURS if (path / name).exists()]
    if held:
        also = f", or go on with it: fedsim resume {path}" if (path / "checkpoints").is_dir() else ""
        raise FileExistsError(f"{path} already holds a run ({held[0]}); choose another folder with --out{also}")


def check_format(path: Path) -> int:
    """The format of a run folder. Raises ValueError for one of a fedsim to come."""
    found = read_environment(path).get("format", 1)
    if not isinstance(found, int) or isinstance(found, bool) or found > FORMAT:
        raise ValueError(f"{path} is a run folder of format {found}; this fedsim reads up to {FORMAT}: use a newer one")
    return found


def lacking(path: Path, there: Mapping[str, Any]) -> str:
    """What a folder has less of than there once was, in words; nothing where it has all."""
    for name, size in there["sizes"].items():
        found = (path / name).stat().st_size if (path / name).exists() else 0
        if found < size:
            return f"{path / name} has {found} bytes and had {size} at the checkpoint"
    return ""


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first setting of two experiments (their tables) that differs and decides numbers, in words; nothing where
    none does."""
    one, other = _flat(before), _flat(now)
    for key in {**one, **other}:
        if key not in MAY_CHANGE and one.get(key) != other.get(key):
            was, is_now = (
                "not set" if key not in each else json.dumps(each[key], default=str) for each in (one, other)
            )
            return f"{key} was {was} and is {is_now}"
    return ""


def _flat(table: Any, before: str = "") -> dict[str, Any]:
    """Tables in tables, and in lists, as one; keys joined by dots."""
    pairs = table.items() if isinstance(table, Mapping) else enumerate(table)
    out: dict[str, Any] = {}
    for key, value in pairs:
        inside = isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(v, Mapping) for v in value))
        out |= _flat(value, f"{before}{key}.") if inside else {f"{before}{key}": value}
    return out


def read_environment(folder: Path) -> dict[str, Any]:
    """What environment.json says; nothing where there is none. Raises ValueError where it makes no sense."""
    from fedsim.record.shapes import Environment

    path = folder / "environment.json"
    return reread.shaped(path, reread.document(path), Environment) if path.exists() else {}


def read_whole_result(folder: Path) -> dict[str, Any]:
    """What result.json says, of runs that finished and of those that failed. Raises ValueError where it makes no sense,
    or a run stands there twice; OSError."""
    from fedsim.record.shapes import Result

    path = folder / "result.json"
    found = reread.shaped(path, reread.document(path), Result)
    seen = set()
    for run in (*found["runs"], *found.get("failed", ())):
        if (name := (run["strategy"], run["seed"])) in seen:
            raise reread.spoilt(path, f"{name[0]}, seed {name[1]} stands there twice")
        seen.add(name)
    return found

"""What is in a run folder, in which format, and whether it is all there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim import hashes

FORMAT = 2  # of run folders: 1 had neither hashes.csv nor checkpoints, and did not say its number
COLUMNS = ("strategy", "seed", "round", "metric", "value")
TIMES = ("strategy", "seed", "round", "seconds")
GROWING = {"metrics.csv": COLUMNS, "times.csv": TIMES, hashes.FILE: hashes.HEAD}
NOTES = ("absences.csv", "replies.csv")  # there only where there is something to note
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
    found = (read_json(path / "environment.json") or {}).get("format", 1)
    if not isinstance(found, int) or found > FORMAT:
        raise ValueError(f"{path} is a run folder of format {found}; this fedsim reads up to {FORMAT}: use a newer one")
    return found


def lacking(path: Path, there: Mapping[str, Any]) -> str:
    """What a folder has less of than there once was, in words; nothing where it has all."""
    for name, size in there["sizes"].items():
        found = (path / name).stat().st_size if (path / name).exists() else 0
        if found < size:
            return f"{path / name} has {found} bytes and had {size} at the checkpoint"
    return ""


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is none, or half of one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None

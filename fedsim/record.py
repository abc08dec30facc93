"""Run folders: what a run was, what it measured, and the figures, readable at any moment and after any crash.

    experiment.toml    the resolved experiment: runs again as it is
    environment.json   versions, platform, threads, device
    schedule-seed1.npz who was present when, one per seed
    metrics.csv        strategy, seed, round, metric, value: a line as soon as it is measured
    times.csv          strategy, seed, round, seconds: how long the run had taken by then (no part of its results)
    clients.csv        strategy, seed, client, ...: how each fares at the end of a run, where clients are measured
    result.json        the finished runs, replaced as a whole after each
    tune.json          how the settings were chosen, where the experiment had a table [tune]
    *.png, *.svg       figures
    report.html        all of it as a page

What is added to metrics.csv is written whole or not at all, every other file is written beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.checkpoint import load_checkpoint, save_checkpoint
from fedsim.clients import LISTED

if TYPE_CHECKING:
    from fedsim.participation import Schedule

__all__ = [
    "Measurement", "RunFolder", "load_checkpoint", "read_clients", "read_metrics", "read_result", "read_times",
    "read_tuning", "save_checkpoint",
]  # fmt: skip

COLUMNS = ("strategy", "seed", "round", "metric", "value")
TIMES = ("strategy", "seed", "round", "seconds")
OURS = ("experiment.toml", "environment.json", "metrics.csv", "times.csv", "clients.csv", "result.json", "tune.json")


class CannotWrite(OSError):
    """A file or folder that cannot be written, in one line."""


class Measurement(NamedTuple):
    """One line of metrics.csv."""

    strategy: str
    seed: int
    round: int
    metric: str
    value: float


class RunFolder:
    """A run folder being written. Use as a context manager; every method raises OSError with one line."""

    def __init__(self, path: str | Path, experiment: str, environment: Mapping[str, Any]) -> None:
        """Creates the folder with the resolved experiment (TOML) and the environment in it, or leaves nothing behind.

        Raises FileExistsError when it already holds a run.
        """
        self.path = Path(path)
        self.runs: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self._columns: list[str] = []  # of clients.csv
        self._open: dict[str, io.FileIO] = {}
        check_free(self.path)
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._text("experiment.toml", experiment)
            self._text("environment.json", json.dumps(environment, indent=2) + "\n")
            self._result()
            for name, head in (("metrics.csv", COLUMNS), ("times.csv", TIMES)):
                with writing(self.path / name):
                    self._open[name] = open(self.path / name, "xb", buffering=0)  # noqa: SIM115  closed in `close`
                self._add(name, [head])
        except OSError:
            self._undo(made)
            raise

    def _undo(self, made: Sequence[Path]) -> None:
        """Take away what the constructor made."""
        self.close()
        with contextlib.suppress(OSError):
            for name in OURS:
                (self.path / name).unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is measured."""
        for name, file in self._open.items():
            with writing(self.path / name):
                file.close()

    def schedule(self, seed: int, schedule: Schedule) -> None:
        """Keep who was present when."""
        path = self.path / f"schedule-seed{seed}.npz"
        with writing(path):
            schedule.save(path)

    def measured(self, strategy: str, seed: int, round: int, metrics: Mapping[str, float]) -> None:
        """Add an evaluation to metrics.csv, at once."""
        self._add("metrics.csv", ((strategy, seed, round, metric, repr(float(v))) for metric, v in metrics.items()))

    def timed(self, strategy: str, seed: int, round: int, seconds: float) -> None:
        """Add how long a run had taken until an evaluation was over to times.csv, at once."""
        self._add("times.csv", [(strategy, seed, round, f"{seconds:.6g}")])

    def _add(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        self._append(self._open[name], self.path / name, _lines(rows))

    def clients(self, strategy: str, seed: int, table: Mapping[str, Any]) -> None:
        """Add a run's table of clients, columns [n] by name, to clients.csv; one of more than LISTED clients is passed
        over. Tables may have different columns: a cell that a run has nothing for is empty, and so is a NaN."""
        columns = {"strategy": strategy, "seed": seed} | {name: _cells(column) for name, column in table.items()}
        n = max((len(cells) for cells in columns.values() if isinstance(cells, list)), default=0)
        if not 0 < n <= LISTED:
            return
        path = self.path / "clients.csv"
        names = self._columns + [name for name in columns if name not in self._columns]
        if names != self._columns:  # a new head, and an empty cell in every line that is there
            lines = [[line.get(name, "") for name in names] for line in read_clients(self.path)]
            write_atomically(path, _lines([names, *lines]))
            self._columns = names
        cells = [columns.get(name, "") for name in names]
        rows = zip(*(cell if isinstance(cell, list) else [cell] * n for cell in cells), strict=True)
        with writing(path), open(path, "ab", buffering=0) as file:
            self._append(file, path, _lines(rows))

    def tuned(self, found: Mapping[str, Any]) -> None:
        """Keep how the strategies' settings were chosen."""
        write_json(self.path / "tune.json", found)

    def resolved(self, experiment: str) -> None:
        """Replace the experiment (TOML), now that more of it is decided."""
        self._text("experiment.toml", experiment)

    def finished(self, run: Mapping[str, Any]) -> None:
        """Add a finished run to result.json."""
        self.runs.append(dict(run))
        self._result()

    def failed(self, run: Mapping[str, Any]) -> None:
        """Add a run that ended early, and why, to result.json."""
        self.failures.append(dict(run))
        self._result()

    def _append(self, file: io.FileIO, path: Path, data: bytes) -> None:
        """All of `data` at the end of a file, or nothing: a full disk leaves no half a line."""
        end = file.tell()
        try:
            with writing(path):
                done = 0
                while done < len(data):
                    done += file.write(data[done:]) or 0
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise

    def _result(self) -> None:
        content: dict[str, Any] = {"runs": self.runs} | ({"failed": self.failures} if self.failures else {})
        write_json(self.path / "result.json", content)

    def _text(self, name: str, text: str) -> None:
        write_text(self.path / name, text)


def check_free(path: Path) -> None:
    """Raises FileExistsError if the folder holds a run, NotADirectoryError if it is none."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, not a folder; choose another folder with --out")
    held = [name for name in OURS if (path / name).exists()]
    if held:
        raise FileExistsError(f"{path} already holds a run ({held[0]}); choose another folder with --out")


def default_folder(name: str, now: datetime.datetime | None = None) -> Path:
    """runs/<name>-<date time>, with a number after it when that is taken."""
    stamp = (now or datetime.datetime.now()).strftime("%Y%m%d-%H%M%S")
    first = Path("runs") / f"{name}-{stamp}"
    path, number = first, 1
    while path.exists():
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever goes wrong with the file system inside becomes one line that names the path."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotWrite(f"cannot write {path}: {reason}; make room or choose another folder with --out") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file as a whole: a crash or a full disk leaves what was there before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a whole."""
    write_atomically(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file as a whole; NaN and infinities become null."""
    write_text(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def _lines(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _cells(column: Any) -> list[Any]:
    """A column as csv writes it: numbers so that they are read back the same, nothing for NaN."""
    values = column.tolist() if hasattr(column, "tolist") else list(column)
    return ["" if isinstance(value, float) and math.isnan(value) else value for value in values]


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(folder: str | Path) -> list[Measurement]:
    """All that a run has measured so far; a last line cut short by a crash is passed over."""
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
    """The finished runs of a folder."""
    runs: list[dict[str, Any]] = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))["runs"]
    return runs


def read_tuning(folder: str | Path) -> dict[str, Any] | None:
    """How a run's settings were chosen; None where they were not."""
    path = Path(folder) / "tune.json"
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found


def environment(device: str) -> dict[str, Any]:
    """What a run depends on beside its experiment. Imports torch."""
    import importlib.metadata
    import platform
    import sys

    import torch

    from fedsim import __version__

    versions = {"fedsim": __version__}
    for package in ("torch", "numpy", "networkx", "flwr"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    gpu = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else None
    return {
        "python": sys.version.split()[0],
        "packages": versions,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": device,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }

"""Run folders: what a run was, what it measured, and the figures, readable at any moment and after any crash.

    experiment.toml    the resolved experiment: runs again as it is
    environment.json   versions, platform, threads, device
    schedule-seed1.npz who was present when, one per seed
    metrics.csv        strategy, seed, round, metric, value: a line as soon as it is measured
    result.json        the finished runs, replaced as a whole after each
    *.png, *.svg       figures

A line of metrics.csv is written whole or not at all, every other file is written beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.checkpoint import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from fedsim.participation import Schedule

__all__ = ["Measurement", "RunFolder", "load_checkpoint", "read_metrics", "read_result", "save_checkpoint"]

COLUMNS = ("strategy", "seed", "round", "metric", "value")
OURS = ("experiment.toml", "environment.json", "metrics.csv", "result.json")


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
        check_free(self.path)
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._text("experiment.toml", experiment)
            self._text("environment.json", json.dumps(environment, indent=2) + "\n")
            self._result()
            with writing(self.path / "metrics.csv"):
                self._metrics = open(self.path / "metrics.csv", "xb", buffering=0)  # noqa: SIM115  closed in `close`
            self._append(_lines([COLUMNS]))
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
        if hasattr(self, "_metrics"):
            with writing(self.path / "metrics.csv"):
                self._metrics.close()

    def schedule(self, seed: int, schedule: Schedule) -> None:
        """Keep who was present when."""
        path = self.path / f"schedule-seed{seed}.npz"
        with writing(path):
            schedule.save(path)

    def measured(self, strategy: str, seed: int, round: int, metrics: Mapping[str, float]) -> None:
        """Add an evaluation to metrics.csv, at once."""
        self._append(_lines((strategy, seed, round, metric, repr(float(v))) for metric, v in metrics.items()))

    def finished(self, run: Mapping[str, Any]) -> None:
        """Add a finished run to result.json."""
        self.runs.append(dict(run))
        self._result()

    def failed(self, run: Mapping[str, Any]) -> None:
        """Add a run that ended early, and why, to result.json."""
        self.failures.append(dict(run))
        self._result()

    def _append(self, data: bytes) -> None:
        """All of `data` at the end of metrics.csv, or nothing: a full disk leaves no half a line."""
        path = self.path / "metrics.csv"
        end = self._metrics.tell()
        try:
            with writing(path):
                done = 0
                while done < len(data):
                    done += self._metrics.write(data[done:]) or 0
        except OSError:
            with contextlib.suppress(OSError):
                self._metrics.truncate(end)
            raise

    def _result(self) -> None:
        content: dict[str, Any] = {"runs": self.runs} | ({"failed": self.failures} if self.failures else {})
        self._text("result.json", json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")

    def _text(self, name: str, text: str) -> None:
        write_atomically(self.path / name, text.encode())


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


def _lines(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


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


def read_result(folder: str | Path) -> list[dict[str, Any]]:
    """The finished runs of a folder."""
    runs: list[dict[str, Any]] = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))["runs"]
    return runs


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

"""A run folder being written: each thing as soon as it is known, whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fedsim import hashes, reread
from fedsim.clients import LISTED
from fedsim.events import Absent, Heard
from fedsim.files import CannotWrite, write_atomically, write_json, write_text, writing
from fedsim.lock import Lock
from fedsim.record.contents import (
    FORMAT,
    GROWING,
    NOTES,
    OURS,
    changed,
    check_format,
    check_free,
    lacking,
    read_environment,
    read_whole_result,
)
from fedsim.record.reading import metric_lines, read_clients

if TYPE_CHECKING:
    from fedsim.participation import Schedule


class RunFolder:
    """A run folder being written. Use as a context manager; every method raises OSError with one line."""

    _lock: Lock | None

    def __init__(self, path: str | Path, experiment: str, environment: Mapping[str, Any]) -> None:
        """Creates the folder with the resolved experiment (TOML) and the environment in it, or leaves nothing behind.

        Raises FileExistsError when it already holds a run.
        """
        self._at(path)
        check_free(self.path)
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.path)
            check_free(self.path)  # of whoever was here until now
        except OSError:
            self._leave(made)
            raise
        try:
            self.resolved(experiment)
            self._text("environment.json", json.dumps({"format": FORMAT, **environment}, indent=2) + "\n")
            self._result()
            for name, head in GROWING.items():
                write_atomically(self.path / name, _lines([head]))  # so none is ever empty
                with writing(self.path / name):
                    self._open[name] = open(self.path / name, "ab", buffering=0)  # noqa: SIM115  closed in `close`
        except OSError:
            with contextlib.suppress(OSError):
                for name in OURS:
                    (self.path / name).unlink(missing_ok=True)
            self._leave(made)
            raise

    def _at(self, path: str | Path) -> None:
        self.path = Path(path)
        self.runs: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self._columns: list[str] = []  # of clients.csv
        self._open: dict[str, io.FileIO] = {}
        self._chains: dict[tuple[str, int], str] = {}  # where each run's stands, see `fedsim.hashes`
        self._experiment = ""  # the resolved one, TOML
        self._lock = None

    def _leave(self, made: Sequence[Path]) -> None:
        """Take away the folders that the constructor made."""
        with contextlib.suppress(OSError):
            self.close()
            for folder in made:
                folder.rmdir()

    @classmethod
    def reopened(
        cls, path: Path, there: Mapping[str, Any] | None, over: Collection[tuple[str, int]],
        environment: Mapping[str, Any],
    ) -> RunFolder:  # fmt: skip
        """A folder as it was when `mark` told what was `there` and the runs named had ended; None: when it was new.
        What came after is cut off. `environment` is that of who goes on, and is kept beside the first.

        Raises `lock.Taken` where another process is at work in it, ValueError where it has less than it had then, or
        something else.
        """
        self = cls.__new__(cls)
        self._at(path)
        self._lock = Lock(self.path)
        try:
            check_format(self.path)
            if there is not None and (short := lacking(self.path, there)):
                raise ValueError(short)
            tables = reread.toml(self.path / "experiment.toml")
            before = None if there is None else there.get("experiment")
            if before is not None and (other := changed(tomllib.loads(before), tables)):
                raise ValueError(
                    f"{self.path / 'experiment.toml'} was changed after the run began: {other}; change it back, or run "
                    "it anew in another folder"
                )
            self._experiment = (self.path / "experiment.toml").read_text(encoding="utf-8")
            for left in leftovers(self.path):
                left.unlink(missing_ok=True)
            sizes = {} if there is None else there["sizes"]
            for name in (*GROWING, *NOTES):
                with writing(self.path / name):
                    if name in NOTES and name not in sizes:
                        (self.path / name).unlink(missing_ok=True)
                    elif name in NOTES:
                        os.truncate(self.path / name, sizes[name])
                    else:
                        self._open[name] = open(self.path / name, "ab+", buffering=0)  # noqa: SIM115
                        self._open[name].truncate(sizes.get(name, 0))
                        self._open[name].seek(0, os.SEEK_END)
                if name in GROWING and name not in sizes:
                    self._add(name, [GROWING[name]])
            links = hashes.read(self.path)
            if links and (wrong := hashes.broken(links, metric_lines(self.path))):
                of = f"{wrong[0]}, seed {wrong[1]}, round {wrong[2]}"
                raise reread.spoilt(self.path / "metrics.csv", f"{of} is not what was recorded (hashes.csv)")
            self._chains = hashes.last(links)
            self._keep_clients([] if there is None else there["columns"], over)
            result = read_whole_result(self.path) if over else {}
            kept = [
                [run for run in result.get(each, ()) if (run["strategy"], run["seed"]) in over]
                for each in ("runs", "failed")
            ]
            self.runs, self.failures = kept
            if lost := set(over) - {(run["strategy"], run["seed"]) for runs in kept for run in runs}:
                raise reread.spoilt(self.path / "result.json", f"it lacks {len(lost)} runs that had ended")
            self._result()
            first = read_environment(self.path)
            first["resumed"] = [*first.get("resumed", ()), environment]
            write_json(self.path / "environment.json", first)
        except BaseException:
            self.close()
            raise
        return self

    def _keep_clients(self, columns: list[str], over: Collection[tuple[str, int]]) -> None:
        """clients.csv with the lines of the runs named, and these columns."""
        lines = [line for line in read_clients(self.path) if (line["strategy"], int(line["seed"])) in over]
        path, self._columns = self.path / "clients.csv", columns
        with writing(path):
            if not columns:
                path.unlink(missing_ok=True)
                return
        write_atomically(path, _lines([columns, *([line.get(name, "") for name in columns] for line in lines)]))

    def mark(self) -> dict[str, Any]:
        """What is there now, for `reopened`; it is on the disk when this returns."""
        for name, file in self._open.items():
            with writing(self.path / name):
                os.fsync(file.fileno())
        sizes = {name: (self.path / name).stat().st_size for name in (*GROWING, *NOTES) if (self.path / name).exists()}
        return {"sizes": sizes, "columns": self._columns, "experiment": self._experiment}

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is measured, and others may come."""
        try:
            for name, file in self._open.items():
                with writing(self.path / name):
                    file.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    def schedule(self, seed: int, schedule: Schedule) -> None:
        """Keep who was present when."""
        path = self.path / f"schedule-seed{seed}.npz"
        with writing(path):
            schedule.save(path)

    def measured(self, strategy: str, seed: int, round: int, metrics: Mapping[str, float], model: str = "") -> None:
        """Add an evaluation to metrics.csv, at once, and the hash of its model to hashes.csv."""
        lines = _lines((strategy, seed, round, metric, repr(float(v))) for metric, v in metrics.items())
        self._append(self._open["metrics.csv"], self.path / "metrics.csv", lines)
        if model:
            chain = hashes.link(self._chains.get((strategy, seed), hashes.START), lines, model)
            self._add(hashes.FILE, [(strategy, seed, round, model, chain)])
            self._chains[strategy, seed] = chain

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
        self._experiment = experiment
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
        """All of `data` at the end of a file, or nothing: a full disk leaves no half a line. Raises CannotWrite also
        where the file is not there any more, since what is written to it would be nowhere."""
        end = file.tell()
        there = False
        with contextlib.suppress(OSError):
            there = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        if not there:
            raise CannotWrite(f"{path} is not there any more: the folder was deleted or moved while a run wrote to it")
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


def leftovers(path: Path) -> list[Path]:
    """What a process that was killed while it wrote has left of files that were to replace others."""
    return [left for left in path.iterdir() if re.fullmatch(r"\..+\.\d+\.(tmp|partial)", left.name)]


def note(folder: Path, event: Absent | Heard) -> None:
    """Adds to a run folder's absences.csv or, one line per number, to its replies.csv."""
    if isinstance(event, Absent):
        path, columns, lines = folder / "absences.csv", list(event._fields), [list(event)]
    else:
        path, columns = folder / "replies.csv", [*event._fields[:3], "client", "metric", "value"]
        each = ((i, name, value) for i, said in event.replies.items() for name, value in said.items())
        lines = [[*event[:3], i, name, repr(value)] for i, name, value in each]
    with writing(path), open(path, "a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerows([columns] if file.tell() == 0 else [])
        rows.writerows(lines)


def _lines(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _cells(column: Any) -> list[Any]:
    """A column as csv writes it: numbers so that they are read back the same, nothing for NaN."""
    values = column.tolist() if hasattr(column, "tolist") else list(column)
    return ["" if isinstance(value, float) and math.isnan(value) else value for value in values]

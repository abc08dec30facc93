"""Run folders as reports read them, and the one rule of which go together.

Runs are compared seed by seed, so folders go together only where everything that the runs of a seed share is the same:
[task], [participation], [local], [finetune], and of [run] what decides what is measured when. [local] is among them
because it is part of what a label means: FedAvg at two learning rates is two strategies, and two folders of it would
pass for one with more seeds. Who wants them side by side gives each entry its own `local`. Then

    the same strategy, other seeds       its runs are put together
    other strategies                     stand side by side
    a label used for different settings  each gets its folder's name: "FedAvg (tuned)"
    the same strategy and seed twice     taken once where the measurements are the same, refused where they are not
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsim import record, reread
from fedsim.record import Measurement
from fedsim.record.contents import read_environment, read_whole_result
from fedsim.record.reading import read_notes

# of [run]: what changes no number, or only adds some
OTHERWISE = ("seeds", "device", "engine", "memory", "threads", "ledger", "optimum", "chunk", "together")
SHARED = ("task", "participation", "local", "finetune", "run")  # tables of the experiment that have to be the same


@dataclass(frozen=True)
class Folder:
    """A run folder as it was found."""

    path: Path
    document: Mapping[str, Any]  # the resolved experiment as tables
    measurements: Sequence[Measurement]
    runs: Sequence[Mapping[str, Any]]  # finished
    failed: Sequence[Mapping[str, Any]]
    times: Mapping[tuple[str, int, int], float]  # strategy, seed, round -> seconds
    absences: Sequence[Mapping[str, str]]
    environment: Mapping[str, Any]
    tune: Mapping[str, Any]
    apart: Sequence[str]  # labels of the runs that own their loop
    together: int | None  # how many runs advanced side by side
    schedules: Mapping[int, Path]  # seed -> file

    @property
    def entries(self) -> dict[str, Mapping[str, Any]]:
        """The strategies' tables by label."""
        return {str(entry["label"]): entry for entry in self.document.get("strategy", ())}

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 by file, of those that hold numbers: not of figures and pages, which are made of them."""
        made = {".png", ".svg", ".html", ".tex", ".md", ".tmp"}
        files = sorted(file for file in self.path.iterdir() if file.is_file() and file.suffix not in made)
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.name[0] != "."}

    @property
    def experiment(self) -> str:
        """The resolved experiment as text."""
        return (self.path / "experiment.toml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Pooled:
    """The runs of several folders as one. Labels are in order of appearance, which is the order of the colours."""

    folders: tuple[Folder, ...]
    entries: Mapping[str, Mapping[str, Any]]  # the strategies' tables by label
    measurements: Sequence[Measurement]
    runs: Sequence[Mapping[str, Any]]  # finished
    failed: Sequence[Mapping[str, Any]]
    times: Mapping[tuple[str, int, int], float]
    absences: Sequence[Mapping[str, str]]
    schedules: Mapping[int, Path]
    apart: Sequence[str] = ()

    @property
    def labels(self) -> list[str]:
        """The strategies, as the experiments name them."""
        return list(self.entries)


def read(path: str | Path) -> Folder:
    """A run folder's files. Raises OSError or ValueError, one line, where it is none or a file makes no sense."""
    from fedsim.record.shapes import Resolved

    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; give the one that `fedsim run` printed")
    for name in ("experiment.toml", "metrics.csv", "result.json"):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path} is no run folder: there is no {name} in it; give the one that `fedsim run` printed"
            )
    record.check_format(path)
    file = path / "experiment.toml"
    document, result = reread.shaped(file, reread.toml(file), Resolved), read_whole_result(path)
    measurements = record.read_metrics(path)
    named = ((re.fullmatch(r"schedule-seed(-?\d{1,19})\.npz", file.name), file) for file in sorted(path.iterdir()))
    schedules = {int(name[1]): file for name, file in named if name}
    return Folder(
        path,
        document,
        measurements,
        result["runs"],
        result.get("failed", ()),
        record.read_times(path),
        read_notes(path, "absences.csv"),
        read_environment(path),
        record.read_tuning(path) or {},
        result.get("apart") or _bundled(document),
        result.get("together"),
        schedules,
    )


def _bundled(document: Mapping[str, Any]) -> list[str]:
    """The labels of Flower's strategies, which own their loop."""
    entries = document.get("strategy", ())
    return [str(entry["label"]) for entry in entries if str(entry.get("name", "")).startswith("flwr:")]


# Several folders -----------------------------------------------------------------------------------------------------


def pooled(paths: Iterable[str | Path]) -> Pooled:
    """The runs of one run folder or several.

    Raises ValueError, one line that says what differs, where they are not runs of the same experiment, and as `read`.
    """
    folders = list(dict.fromkeys(Path(path) for path in paths))
    if not folders:
        raise ValueError("there is no run folder to read; give one or more")
    found = [read(path) for path in folders]
    for other in found[1:]:
        _comparable(found[0], other)
    found = _named_apart(found)
    entries: dict[str, Mapping[str, Any]] = {}
    for folder in found:
        entries |= {label: entry for label, entry in folder.entries.items() if label not in entries}
        for m in folder.measurements:  # files written by hand may measure what the experiment does not name
            entries.setdefault(m.strategy, {"name": m.strategy, "label": m.strategy})
    taken = _once(found)
    return Pooled(
        tuple(found),
        entries,
        [m for folder, mine in zip(found, taken, strict=True) for m in folder.measurements if mine(m.strategy, m.seed)],
        _of(found, taken, "runs"),
        _of(found, taken, "failed"),
        {key: s for f, mine in zip(found, taken, strict=True) for key, s in f.times.items() if mine(key[0], key[1])},
        _of(found, taken, "absences"),
        {seed: path for folder in reversed(found) for seed, path in folder.schedules.items()},
        list(dict.fromkeys(label for folder in found for label in folder.apart)),
    )


def _comparable(first: Folder, other: Folder) -> None:
    """Raises ValueError where runs of the two cannot be held against each other."""
    for table in SHARED:
        a, b = flat(first.document.get(table, {})), flat(other.document.get(table, {}))
        ignored = OTHERWISE if table == "run" else ("data-dir",)
        differ = [key for key in {**a, **b} if a.get(key) != b.get(key) and key not in ignored]
        if differ:
            said = ", ".join(f"{key} {_show(a.get(key))} and {_show(b.get(key))}" for key in differ[:3])
            more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
            raise ValueError(
                f"{first.path} and {other.path} are not runs of the same experiment: [{table}] differs in {said}{more}"
                "; make a report of each"
            )
    from fedsim.participation import Schedule

    for seed in first.schedules.keys() & other.schedules.keys():
        if Schedule.load(first.schedules[seed]).digest() != Schedule.load(other.schedules[seed]).digest():
            raise ValueError(
                f"{first.path} and {other.path} are not comparable: with seed {seed} other clients were present; "
                "make a report of each"
            )


def flat(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Tables in tables as one, keys joined by dots."""
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return out


def _show(value: Any) -> str:
    return "(not set)" if value is None else json.dumps(value, default=str)


def _named_apart(folders: list[Folder]) -> list[Folder]:
    """The same folders, a label that stands for different settings followed by its folder's name."""
    meant: dict[str, list[Mapping[str, Any]]] = {}
    for folder in folders:
        for label, entry in folder.entries.items():
            meant.setdefault(label, []).append(entry)
    clash = {label for label, entries in meant.items() if any(entry != entries[0] for entry in entries)}
    if not clash:
        return folders
    names = called(folders)
    return [
        _renamed(folder, {label: f"{label} ({name})" for label in clash})
        for folder, name in zip(folders, names, strict=True)
    ]


def called(folders: Sequence[Folder]) -> list[str]:
    """A name for each folder: its own, with those above it where that is not enough to tell them apart."""
    every = [folder.path.resolve().parts for folder in folders]
    for many in range(1, max(map(len, every)) + 1):
        names = ["/".join(parts[-many:]).lstrip("/") for parts in every]
        if len(set(names)) == len(names):
            break
    return names


def _renamed(folder: Folder, names: Mapping[str, str]) -> Folder:
    """A folder whose runs are called otherwise."""

    def under(line: Mapping[str, Any]) -> dict[str, Any]:
        return {**line, "strategy": names.get(line["strategy"], line["strategy"])}

    entries = [{**e, "label": names.get(e["label"], e["label"])} for e in folder.document.get("strategy", ())]
    return replace(
        folder,
        document={**folder.document, "strategy": entries},
        measurements=[m._replace(strategy=names.get(m.strategy, m.strategy)) for m in folder.measurements],
        runs=[under(run) for run in folder.runs],
        failed=[under(run) for run in folder.failed],
        times={(names.get(label, label), seed, t): s for (label, seed, t), s in folder.times.items()},
        absences=[under(line) for line in folder.absences],
        apart=[names.get(label, label) for label in folder.apart],
    )


class Mine:
    """Which runs are taken from a folder."""

    def __init__(self, left: set[tuple[str, int]]) -> None:
        self.left = left  # taken from an earlier one

    def __call__(self, strategy: str, seed: int) -> bool:
        """Whether this run is."""
        return (strategy, seed) not in self.left


def _once(folders: Sequence[Folder]) -> list[Mine]:
    """Every run from one folder. Raises ValueError where two folders have it with other numbers."""
    first: dict[tuple[str, int], tuple[Folder, list[Measurement]]] = {}
    out = []
    for folder in folders:
        by_run: dict[tuple[str, int], list[Measurement]] = {}
        for m in folder.measurements:
            by_run.setdefault((m.strategy, m.seed), []).append(m)
        left = set()
        for key, lines in by_run.items():
            if key in first:
                earlier, held = first[key]
                if [(*m[:4], repr(m.value)) for m in held] != [(*m[:4], repr(m.value)) for m in lines]:
                    raise ValueError(
                        f"{key[0]} with seed {key[1]} is in {earlier.path} and in {folder.path} with other numbers: "
                        "leave one of them out"
                    )
                left.add(key)
            else:
                first[key] = (folder, lines)
        out.append(Mine(left))
    return out


def _of(folders: Sequence[Folder], taken: Sequence[Mine], name: str) -> list[Mapping[str, Any]]:
    return [
        line
        for folder, mine in zip(folders, taken, strict=True)
        for line in getattr(folder, name)
        if mine(line["strategy"], int(line["seed"]))
    ]

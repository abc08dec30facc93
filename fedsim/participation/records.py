"""Presence that was recorded: tables and traces in files, replayed round by round."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedsim import keyed
from fedsim.guarded import arrays
from fedsim.participation.checks import Floats, choice, number, possible
from fedsim.participation.processes import Participation
from fedsim.participation.schedule import Lists, Schedule
from fedsim.participation.spells import Integers, affordable, counting, spread
from fedsim.resolve import nearest

UNKNOWN = 255  # in a recorded table: nobody knows
FINE = 2**24  # spells of a trace that are looked at though none of them need to be there in any round


class Spells(NamedTuple):
    """When devices were there: [begin, end) in units of the record's time, disjoint, by device and time."""

    device: Integers
    begin: Floats
    end: Floats
    devices: int
    span: float  # the record's length; it begins at 0


@dataclass(frozen=True)
class Matrix(Participation):
    """Who is there when, from a file: a table [T, n] of 0 and 1, one row per round, one column per client.

    .npy, .npz (its array `state`, or its only one) or .csv of numbers without a header. More rounds than rows are
    refused, or begin again from the first row (wrap = true). A relative path starts from the experiment file's folder;
    in Python, from the working folder.
    """

    file: Path | str
    wrap: bool = False

    def check(self, n: int) -> None:
        possible(n)
        self._table(n)

    def draw(self, n: int, rounds: int, seed: int, *, histogram: Any = None, sizes: Any = None) -> Schedule:
        possible(n, rounds)
        present = self._table(n)
        if rounds > len(present) and not self.wrap:
            raise ValueError(
                f"{self.file} holds {len(present)} rounds of the {rounds} to run; lower them or set wrap = true"
            )
        affordable(n, rounds, float(present.mean()) * n * rounds)
        lines = [np.flatnonzero(row).astype(np.int32) for row in present]
        turn = np.arange(rounds) % len(lines)
        first = np.concatenate([[0], np.cumsum(np.array([len(line) for line in lines], dtype=np.int64)[turn])])
        index = np.concatenate([np.empty(0, np.int32), *(lines[t] for t in turn)])
        return Schedule(n, rounds, Lists(first.astype(np.int64), index), probabilities=present.mean(0))

    def _table(self, n: int) -> npt.NDArray[np.bool_]:
        table = read_table(self.file)
        if table.shape[1] != n:
            raise ValueError(f"{self.file} has {table.shape[1]} columns but there are {n} clients; give one for each")
        if not np.all((table == 0) | (table == 1)):
            raise ValueError(f"{self.file} holds other numbers than 0 and 1; a recorded trace is replayed by `trace`")
        return np.asarray(table == 1)


@dataclass(frozen=True)
class Trace(Participation):
    """Replays a recorded trace of devices, resampled to rounds, clients mapped to devices by seed.

    The file is a table [times, devices] (.npz with an array `state` or only one, .npy, .csv of numbers without a
    header): 1 there, 0 not, 255 unknown, one unit of time per row. Or a .csv with the header `client,from,to`: devices
    by any name, there in [from, to), the record being as long as the last `to`.
    Round t looks at time `start` + t · `step`; after its end the record begins again. Unknown counts as "absent",
    "present", or as what was known "last" (absent before that). Client i is a device drawn by (seed, i), no device
    twice before every one is taken once; order = "file" takes them in the file's order instead, names sorted.
    A client's nominal probability is its device's share of the record. A relative path starts from the experiment
    file's folder; in Python, from the working folder.
    """

    file: Path | str
    step: float = 1.0
    start: float = 0.0
    unknown: Literal["absent", "present", "last"] = "absent"
    order: Literal["random", "file"] = "random"

    def __post_init__(self) -> None:
        number("step", self.step, 0, open_below=True)
        number("start", self.start, 0)
        choice("unknown", self.unknown, "absent", "present", "last")
        choice("order", self.order, "random", "file")

    def check(self, n: int) -> None:
        possible(n)
        self._spells()

    def draw(self, n: int, rounds: int, seed: int, *, histogram: Any = None, sizes: Any = None) -> Schedule:
        possible(n, rounds)
        spells = self._spells()
        time = np.bincount(spells.device, spells.end - spells.begin, minlength=spells.devices)
        device = self._devices(n, spells.devices, keyed.seed(seed, "participation", "trace"))
        p = np.minimum(time / spells.span, 1.0)[device]
        affordable(n, rounds, float(p.sum()) * rounds)
        # one line for every spell of every client, for every time that the record is gone through
        first = np.searchsorted(spells.device, np.arange(spells.devices + 1))
        many = np.diff(first)[device]
        cycles = (self.start + rounds * self.step) / spells.span  # how often the record is begun, whole and in part
        if not (cycles + 1) * float(many.sum()) <= FINE + 4 * float(p.sum()) * rounds:
            raise ValueError(
                f"{self.file} lasts {spells.span:g}: {rounds} rounds {self.step:g} apart from {self.start:g} go through"
                f" it {cycles:.1e} times, and almost all of its spells fall between rounds; lower step or start"
            )
        at = np.repeat(first[:-1][device], many) + counting(many)
        who = np.repeat(np.arange(n), many)
        times = math.ceil((self.start + rounds * self.step) / spells.span)
        again = np.arange(math.floor(self.start / spells.span), times)[:, None] * spells.span - self.start
        begin = self._round(spells.begin[at] + again).ravel()
        end = self._round(spells.end[at] + again).ravel()
        codes = np.sort(spread(np.tile(who, len(again)), begin, end - begin, n, rounds))
        t, index = np.divmod(codes, n)
        lists = Lists(np.searchsorted(t, np.arange(rounds + 1)).astype(np.int64), index.astype(np.int32))
        return Schedule(n, rounds, lists, probabilities=p)

    def _round(self, time: Floats) -> Integers:
        """The first round that looks at this time or later."""
        with np.errstate(over="ignore"):  # beyond all rounds is far enough
            return np.ceil(np.round(np.clip(time / self.step, -(2.0**52), 2.0**52), 9)).astype(np.int64)

    def _devices(self, n: int, devices: int, key: int) -> Integers:
        """[n] each client's device."""
        if self.order == "file":
            return np.arange(n) % devices
        turns = [keyed.permutation(keyed.fold(key, turn), devices).numpy() for turn in range(-(-n // devices))]
        return np.asarray(np.concatenate(turns)[:n])

    def _spells(self) -> Spells:
        if Path(self.file).suffix.lower() == ".csv" and (found := read_intervals(self.file)) is not None:
            return found
        table = read_table(self.file)
        if not np.all((table == 0) | (table == 1) | (table == UNKNOWN)):
            raise ValueError(f"{self.file} holds other numbers than 0, 1 and {UNKNOWN} (unknown); convert them")
        there = (table == 1) | ((table == UNKNOWN) & (self.unknown == "present"))
        if self.unknown == "last":
            known = np.where(table == UNKNOWN, 0, np.arange(len(table))[:, None])
            there = np.take_along_axis(there, np.maximum.accumulate(known), axis=0)
        edge = np.diff(np.pad(there.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        device, begin = np.nonzero(edge == 1)
        end = np.nonzero(edge == -1)[1]
        return Spells(device, begin.astype(float), end.astype(float), table.shape[1], float(len(table)))


def read_table(file: Path | str) -> npt.NDArray[Any]:
    """A table [rows, columns] of numbers. Raises ValueError if there is no such file, or none in it."""
    path = existing(file)
    try:
        if path.suffix.lower() == ".csv":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a file without numbers, which is refused below
                table = np.loadtxt(path, delimiter=",", ndmin=2)
        else:
            loaded = arrays(path)
            name = "state" if "state" in loaded else next(iter(loaded), "")
            if name != "state" and len(loaded) != 1:
                raise ValueError(f"its arrays are {', '.join(loaded) or 'none'}; name the table `state`")
            table = loaded[name]
        if table.ndim != 2 or not table.size or table.dtype.kind not in "buif":
            raise ValueError(f"it holds {table.dtype} of shape {table.shape}, not a table of numbers")
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file} is not a table of presence: {reason}; give .npy, .npz or .csv [times, devices]"
        ) from error
    return table


def read_intervals(file: Path | str) -> Spells | None:
    """A .csv of client,from,to; None if it has no such header. Overlapping intervals of a client are one."""
    found: dict[str, list[tuple[float, float]]] = {}
    with open(existing(file), newline="", encoding="utf-8-sig") as text:
        lines = _cells(file, text)
        if [word.strip().lower() for word in next(lines, (0, []))[1]] != ["client", "from", "to"]:
            return None
        for number, line in lines:
            if not line:
                continue
            try:
                name, begin, end = line[0].strip(), float(line[1]), float(line[2])
                if len(line) != 3 or not 0 <= begin <= end < math.inf:
                    raise ValueError
            except (ValueError, IndexError):
                what = f"{file}, line {number}: {','.join(line)[:200]!r}"
                raise ValueError(f"{what} is not client,from,to with 0 <= from <= to") from None
            found.setdefault(name, []).append((begin, end))
    span = max((end for spells in found.values() for _, end in spells), default=0.0)
    if not span:
        raise ValueError(f"{file} holds no interval of any length; give lines of client,from,to")
    names = sorted(found, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    merged: list[tuple[int, float, float]] = []
    for device, name in enumerate(names):
        for begin, end in sorted(found[name]):
            if merged and merged[-1][0] == device and begin <= merged[-1][2]:
                merged[-1] = (device, merged[-1][1], max(end, merged[-1][2]))
            else:
                merged.append((device, begin, end))
    table = np.array(merged)
    return Spells(table[:, 0].astype(np.int64), table[:, 1], table[:, 2], len(names), span)


def _cells(file: Path | str, text: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The lines of a .csv with their numbers. Raises ValueError, one line."""
    lines = csv.reader(text)
    try:
        for line in lines:
            yield lines.line_num, line
    except csv.Error as error:
        raise ValueError(f"{file}, line {lines.line_num}: {error}") from error


def read_speeds(file: Path | str, column: str | None = None) -> Floats:
    """[devices] how fast measured devices are, from .csv or .json as `Deadline` says.

    Raises ValueError, one line, if there is no such file, column or positive number.
    """
    path = existing(file, "a .csv or .json of device speeds")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    wanted = "speed" if column is None else column
    found: list[Any]
    if path.suffix.lower() == ".json":
        try:
            loaded = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        found = list(loaded.values()) if isinstance(loaded, dict) else loaded
        if not isinstance(found, list):
            raise ValueError(f"{file} holds neither a list nor a table of devices")
        several = bool(found) and all(isinstance(one, dict) for one in found)
        known = sorted(set().union(*found)) if several else []
    else:
        lines = [[word.strip() for word in line] for _, line in _cells(file, text.splitlines()) if line]
        several = bool(lines) and any(_positive(word) is None for word in lines[0])
        known = lines[0] if several else []
        found = [dict(zip(known, line, strict=False)) for line in lines[1:]] if several else []
        if not several:
            if any(len(line) != 1 for line in lines):
                raise ValueError(f"{file} has several columns and no header; name them in its first line")
            found = [line[0] for line in lines]
    if several and wanted not in known:
        raise ValueError(f'{file} has no column "{wanted}" (column names it){nearest(wanted, known)}')
    if column is not None and not several:
        raise ValueError(f"{file} is one list of numbers; leave column out")
    values = [_positive(one.get(wanted) if several else one) for one in found]
    if None in values:
        i = values.index(None)
        bad = found[i].get(wanted) if several else found[i]
        raise ValueError(f"{file}: device {i + 1} has the speed {bad!r}; give a number above 0")
    if not values:
        raise ValueError(f"{file} holds no device")
    return np.array(values, dtype=np.float64)


def _positive(value: Any) -> float | None:
    """A finite number above 0, or its text; None for anything else."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if 0 < found < math.inf else None


def existing(file: Path | str, what: str = "a table or trace of presence") -> Path:
    """The path of a file. Raises ValueError if there is none."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {file}; give the path of {what}")
    return path

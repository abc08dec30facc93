"""Files that fedsim wrote itself, read again: all of a file makes sense, or one line says where it does not.

Such a file is only ever damaged or changed by others, as it is replaced as a whole or grows by whole lines. What is
found is told in terms of the file, with what to do about it. Numbers that were changed into other numbers show only
in `fedsim verify`, and when a run goes on.
"""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import BaseModel

MEND = "it was damaged or changed after it was written: put back a copy of it, or run the experiment anew"


def spoilt(path: Path, what: object) -> ValueError:
    """The error for a file in which something is not as it was written."""
    return ValueError(f"{path}: {' '.join(str(what).split())[:300]}; {MEND}")


def text(path: Path) -> str:
    """A file's text. Raises ValueError for one that is none; OSError, one line, where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise spoilt(path, f"byte {error.start} is no text") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there: put back a copy of it, or run the experiment anew") from None
    except OSError as error:
        raise OSError(
            f"cannot read {path}: {error.strerror or error}; see that it is a file, and yours to read"
        ) from None


# Tables --------------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line of a table."""

    number: int  # in the file, from 1
    raw: str  # as it stands there
    cells: list[str]


def lines(path: Path, columns: Sequence[str] | None = None) -> Iterator[Line]:
    """The lines of a csv file, its head first, which has to be these columns where they are given. A last line that is
    not whole is passed over: whoever wrote it was killed.

    Raises ValueError where it has no head, or a line has more cells or fewer.
    """
    content = text(path)
    whole = content[: content.rfind("\n") + 1].split("\n")[:-1]
    if not whole:
        raise spoilt(path, "it is empty" if not content else "not one whole line is in it")
    reader = csv.reader((f"{line}\n" for line in whole), strict=True)
    before, head = 0, None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise spoilt(path, f"line {before + 1}: {error}") from None
        raw = "\n".join(whole[before : reader.line_num]) + "\n"
        if head is None:
            head = cells
            if columns is not None and cells != list(columns):
                raise spoilt(path, f"its columns are {_short(','.join(cells))} and not {','.join(columns)}")
            if len(set(cells)) < len(cells):
                raise spoilt(path, f"a column stands there twice: {_short(','.join(cells))}")
        elif len(cells) != len(head):
            raise spoilt(path, f"line {before + 1} has {len(cells)} cells for {len(head)} columns")
        yield Line(before + 1, raw, cells)
        before = reader.line_num


def table(path: Path, columns: Mapping[str, Callable[[str], Any]]) -> Iterator[tuple[Line, tuple[Any, ...]]]:
    """The lines below the head with their values, each cell read by its column's function. Raises ValueError."""
    found = lines(path, tuple(columns))
    next(found)
    for line in found:
        values = []
        for (name, read), cell in zip(columns.items(), line.cells, strict=True):
            try:
                values.append(read(cell))
            except (ValueError, OverflowError):
                raise spoilt(path, f'line {line.number}: {name} is "{_short(cell)}"') from None
        yield line, tuple(values)


def label(cell: str) -> str:
    """What names something. Raises ValueError where it is empty."""
    if not cell:
        raise ValueError
    return cell


def whole(cell: str) -> int:
    """A whole number of at most 64 bits, as Python writes it."""
    digits = cell.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise ValueError
    return int(cell)


def count(cell: str) -> int:
    """A whole number from 0."""
    found = whole(cell)
    if found < 0:
        raise ValueError
    return found


def number(cell: str) -> float:
    """A float as Python writes it; NaN and infinities are some."""
    if "_" in cell or cell.strip() != cell or not cell.isascii():
        raise ValueError
    return float(cell)


def digest(cell: str) -> str:
    """A SHA-256 in hexadecimal."""
    if not re.fullmatch(r"[0-9a-f]{64}", cell):
        raise ValueError
    return cell


class Order:
    """Holds that a run's evaluations come one after the other, and each thing of one once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: dict[tuple[str, int], tuple[int, set[str]]] = {}

    def __call__(self, line: Line, strategy: str, seed: int, round: int, what: str = "") -> None:
        """The next line. Raises ValueError where it stands there already, or comes too late."""
        last, seen = self._last.get((strategy, seed), (-1, set()))
        if round < last:
            raise spoilt(
                self._path, f"line {line.number}: round {round} of {strategy}, seed {seed} comes after round {last}"
            )
        if round > last:
            seen = set()
            self._last[strategy, seed] = round, seen
        if what in seen:
            named = f"{what} of {strategy}" if what else strategy
            raise spoilt(self._path, f"line {line.number}: {named}, seed {seed}, round {round} stands there twice")
        seen.add(what)


# Documents -----------------------------------------------------------------------------------------------------------


def document(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises ValueError where it is none, or has what JSON has no word for, or a key twice."""
    try:
        found = json.loads(text(path), parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _said(path, "JSON", error) from None
    return _table(path, found)


def toml(path: Path) -> dict[str, Any]:
    """A TOML file's tables, the same way."""
    try:
        found = tomllib.loads(text(path))
    except (ValueError, RecursionError) as error:
        raise _said(path, "TOML", error) from None
    return _table(path, found)


def shaped(path: Path, found: dict[str, Any], shape: type[BaseModel]) -> dict[str, Any]:
    """What was read, if it is of a shape. Raises ValueError, saying where it is not."""
    from pydantic import ValidationError

    try:
        shape.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise spoilt(path, f"{_short('.'.join(map(str, first['loc'])))}: {first['msg']}") from None
    return found


def _table(path: Path, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise spoilt(path, f"it holds a {type(found).__name__} and no table")
    return found


def _said(path: Path, form: str, error: ValueError | RecursionError) -> ValueError:
    if isinstance(error, RecursionError):
        return spoilt(path, "tables in tables without end")
    return error if str(error).endswith(MEND) else spoilt(path, f"not {form}: {error}")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'"{_short(next(key for key in keys if keys.count(key) > 1))}" stands there twice')
    return found


def _short(said: str) -> str:
    return said if len(said) <= 60 else f"{said[:57]}..."

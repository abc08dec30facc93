"""Axes: which keys of an experiment file are varied, and the values each of them takes.

    [sweep]
    "participation.probabilities.alpha" = { from = 0.1, to = 10.0, count = 3, scale = "log" }   # 0.1, 1, 10
    "strategy.FedStale.beta" = [0.0, 0.5, 1.0]
    "strategy.*.local.lr" = [0.05, 0.1]                    # one value for every strategy
    "task.partition" = ["iid", { name = "dirichlet", alpha = 0.1 }]

Paths are those of --set, with * for every strategy. A range has its ends, exactly, and `count` values in all, evenly
spaced or, with scale = "log", in a constant ratio.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from fedsim import resolve
from fedsim.experiment.overrides import put, steps
from fedsim.experiment.settings import Mistake, Place, show

RANGE = ("from", "to", "count", "scale")
SCALES = ("linear", "log")
MOST = 10_000  # cells, and values of an axis
_HOW = "give a list of values, or a range such as { from = 0.0, to = 1.0, count = 5 }"


class Axis(NamedTuple):
    """A key that is varied."""

    path: str  # as it was said: "strategy.FedStale.beta"
    places: tuple[Place, ...]  # where that is in the file; with * in the path there may be several
    values: tuple[Any, ...]  # as TOML has them, in the order given


def declared(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The paths of [sweep] and what is said of each; an unquoted path, which TOML takes for tables, is the same."""
    for key, value in table.items():
        path = f"{before}{key}"
        if isinstance(value, dict) and any(isinstance(item, (dict, list)) for item in value.values()):
            yield from declared(value, f"{path}.")
        else:
            yield path, value


def axis(document: dict[str, Any], path: str, given: Any, change: str) -> Axis:
    """The axis that a path and its list or range make, with its first value put into the document.

    `change` is what a mistake begins with. Raises `Mistake`.
    """
    keys = steps(path)
    if not all(keys):
        raise Mistake((), f"{change}: a path is keys with dots between them, such as run.rounds")
    if keys[0] in ("strategy", "sweep") and len(keys) == 1:
        raise Mistake((), f"{change}: {path} itself cannot be swept; every strategy runs in every cell")
    found = values(given, change)
    several = [keys]
    if keys[:2] == ["strategy", "*"]:
        entries = document.get("strategy")
        several = [["strategy", str(i), *keys[2:]] for i in range(len(entries) if isinstance(entries, list) else 0)]
    return Axis(path, tuple(put(document, keys, found[0], change) for keys in several), found)


def values(given: Any, change: str) -> tuple[Any, ...]:
    """The values of a list or of a range. Raises `Mistake`."""
    if isinstance(given, dict):
        return _range(given, change)
    if not isinstance(given, list):
        raise Mistake((), f"{change}: {_HOW}; got {show(given)}")
    if not given:
        raise Mistake((), f"{change}: the list is empty; {_HOW}")
    if len(given) > MOST:
        raise Mistake((), f"{change}: {len(given)} values are more than the {MOST} there may be")
    for i, value in enumerate(given):
        if any(_same(value, other) for other in given[:i]):
            raise Mistake((), f"{change}: {show(value)} is there twice: the same cells")
    return tuple(given)


def _same(a: Any, b: Any) -> bool:
    """Whether two values mean the same; 1 and 1.0 do, 1 and true do not."""
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _range(given: Mapping[str, Any], change: str) -> tuple[Any, ...]:
    for key in given:
        if key not in RANGE:
            raise Mistake((), f"{change}: unknown key {show(key)} of a range{resolve.nearest(key, RANGE)}")
    for key in RANGE[:3]:
        if key not in given:
            raise Mistake((), f"{change}: the range has no {show(key)}; {_HOW}")
    start, stop, count, scale = (given.get(key, "linear") for key in RANGE)
    for key, end in (("from", start), ("to", stop)):
        if not _number(end) or not math.isfinite(end):
            raise Mistake((), f"{change}: {key} must be a finite number, got {show(end)}")
    if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= MOST:
        raise Mistake((), f"{change}: count must be a whole number from 2 to {MOST}, got {show(count)}")
    if scale not in SCALES:
        raise Mistake((), f'{change}: scale must be "linear" or "log", got {show(scale)}')
    if start == stop:
        raise Mistake((), f"{change}: from and to are both {show(start)}")
    if scale == "log" and min(start, stop) <= 0:
        raise Mistake((), f"{change}: a logarithmic range lies above 0, and this one goes to {show(min(start, stop))}")
    return between(start, stop, count, scale == "log")


def between(start: float, stop: float, count: int, log: bool = False) -> tuple[int | float, ...]:
    """`count` numbers from start to stop, both ends exact.

    The decimals given are taken at their word: 0.0 to 0.3 in steps of a tenth has 0.1 and 0.2 in it, and no
    0.30000000000000004. Between whole ends all are whole numbers where they come out whole, such as 1, 2, 4, 8.
    """
    if log:
        ratio = math.log(stop / start) / (count - 1)
        inner = [float(f"{start * math.exp(ratio * i):.12g}") for i in range(1, count - 1)]
    else:
        first, last = Fraction(repr(start)), Fraction(repr(stop))
        inner = [float(first + (last - first) * i / (count - 1)) for i in range(1, count - 1)]
    whole = isinstance(start, int) and isinstance(stop, int)
    if whole and all(value.is_integer() for value in inner):
        return (start, *map(int, inner), stop)
    return (float(start), *inner, float(stop))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------------------------------
# How axes and their values are called
# ---------------------------------------------------------------------------------------------------------------------


def short(paths: Sequence[str]) -> list[str]:
    """A short name for each path: its last key, with as many of the keys before it as tell it from the others."""
    names = []
    for path in paths:
        keys = steps(path)
        others = [steps(other) for other in paths if other != path]
        length = next((n for n in range(1, len(keys)) if all(keys[-n:] != other[-n:] for other in others)), len(keys))
        names.append(".".join(keys[-length:]))
    return names


def title(path: str) -> str:
    """A path for the eye: its last key, with the one before where it lies deep, such as FedStale.beta."""
    keys = steps(path)
    return ".".join(keys[-2:] if len(keys) > 2 else keys[-1:])


def word(value: Any) -> str:
    """A value in a few letters, for the eye: a number, a name, or a name with its settings."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        rest = ", ".join(f"{key} {word(item)}" for key, item in value.items() if key != "name")
        return f"{value['name']} ({rest})" if rest else value["name"]
    if isinstance(value, dict):
        return ", ".join(f"{key} {word(item)}" for key, item in value.items())
    return value if isinstance(value, str) else show(value)


def folder_name(number: int, cells: int, names: Sequence[str], values: Sequence[Any]) -> str:
    """What a cell's folder is called, such as 003-alpha=0.1,beta=0.5: letters, digits and -._=+, alone."""
    said = ",".join(f"{_safe(name)}={_safe(word(value))}" for name, value in zip(names, values, strict=True))
    return f"{number:0{max(3, len(str(cells - 1)))}d}-{said[:80].rstrip('-.,')}"


def _safe(text: str) -> str:
    """Text with everything else than letters, digits and ._+- as a -, within it; a number keeps its sign."""
    found = re.sub(r"[^A-Za-z0-9._+-]+", "-", text)
    return found if found == text else found.strip("-")


def ordered(values: Sequence[Any]) -> list[int]:
    """The places of the values in the order to draw them: numbers ascending, anything else as given."""
    places = list(range(len(values)))
    return sorted(places, key=lambda i: values[i]) if all(map(_number, values)) else places


def numeric(values: Sequence[Any]) -> bool:
    """Whether all values are finite numbers, which have distances."""
    return all(_number(value) and math.isfinite(value) for value in values)


def geometric(values: Sequence[Any]) -> bool:
    """Whether numbers belong on a logarithmic axis: above 0, and more evenly spaced there than on a plain one."""
    if not numeric(values) or len(values) < 2 or min(values) <= 0:
        return False
    rising = sorted(values)
    if len(rising) == 2:
        return bool(rising[1] >= 10 * rising[0])
    plain = [b - a for a, b in itertools.pairwise(rising)]
    logs = [math.log(b / a) for a, b in itertools.pairwise(rising)]
    return bool(max(logs) / min(logs) < max(plain) / min(plain))

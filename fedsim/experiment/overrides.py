"""--set key=value: changes to an experiment's document before it is read."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from fedsim.experiment.settings import Mistake, Place, show


def override(document: dict[str, Any], change: str) -> Place:
    """Make the change "key.key=value" and return where; the value is TOML, or text where it is no TOML.

    Raises `Mistake` where the path leads nowhere. What the keys and values mean is for the reader to say.
    """
    path, equals, text = change.partition("=")
    if not equals or not all(steps(path)):
        raise Mistake((), f"--set {change}: write key=value, such as --set run.rounds=50")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return put(document, steps(path), value, f"--set {change}")


def steps(path: str) -> list[str]:
    """The keys of a path, from the outside in."""
    return [key.strip() for key in path.split(".")]


def put(document: dict[str, Any], keys: Sequence[str], value: Any, change: str) -> Place:
    """Set what the keys lead to and return where that is; `change` is what a mistake begins with. Raises `Mistake`."""
    place: list[str | int] = []
    inside: Any = document
    for key in keys[:-1]:
        place.append(_step(inside, key, change))
        found = inside.setdefault(key, {}) if isinstance(inside, dict) else inside[place[-1]]
        if isinstance(found, str):  # partition = "dirichlet" has a name already; give it settings
            found = inside[place[-1]] = {"name": found}
        if not isinstance(found, (dict, list)):
            raise Mistake((), f"{change}: {'.'.join(map(str, place))} is {show(found)}, not a table")
        inside = found
    place.append(_step(inside, keys[-1], change))
    inside[place[-1]] = value
    return tuple(place)


def _step(inside: dict[str, Any] | list[Any], key: str, change: str) -> str | int:
    """A key of a table, or which of several tables: by number from 0, or by label or name."""
    if isinstance(inside, dict):
        return key
    called = [entry.get("label", entry.get("name")) if isinstance(entry, dict) else None for entry in inside]
    if key in called:
        return called.index(key)
    if key.isdecimal() and int(key) < len(inside):
        return int(key)
    known = ", ".join(str(i) if name is None else f"{i} ({name})" for i, name in enumerate(called))
    which = f"number {key}" if key.isdecimal() else f'"{key}"'
    raise Mistake((), f"{change}: there is no {which}; there are {known or 'none'}")

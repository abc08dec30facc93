"""--set key=value: changes to an experiment's document before it is read."""

from __future__ import annotations

import tomllib
from typing import Any

from fedsim.experiment.settings import Mistake, Place, show


def override(document: dict[str, Any], change: str) -> Place:
    """Make the change "key.key=value" and return where; the value is TOML, or text where it is no TOML.

    Raises `Mistake` where the path leads nowhere. What the keys and values mean is for the reader to say.
    """
    path, equals, text = change.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise Mistake((), f"--set {change}: write key=value, such as --set run.rounds=50")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    place: list[str | int] = []
    inside: Any = document
    for key in keys[:-1]:
        place.append(_step(inside, key, change))
        found = inside.setdefault(key, {}) if isinstance(inside, dict) else inside[place[-1]]
        if isinstance(found, str):  # partition = "dirichlet" has a name already; give it settings
            found = inside[place[-1]] = {"name": found}
        if not isinstance(found, (dict, list)):
            raise Mistake((), f"--set {change}: {'.'.join(map(str, place))} is {show(found)}, not a table")
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
    raise Mistake((), f"--set {change}: there is no number {key}; there are {known or 'none'}")

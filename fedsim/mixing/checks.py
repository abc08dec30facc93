"""What settings of mixings have to be."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def share(name: str, value: float) -> None:
    """Raises ValueError unless a value is between 0 and 1; NaN is not."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


def whole(name: str, value: Any, least: int = 1) -> None:
    """Raises ValueError unless a value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def count(nodes: int | None, name: str) -> int:
    """n, of the mixing called that. Raises ValueError where nobody said, or what cannot be."""
    if nodes is None:
        raise ValueError(f"{name} mixing needs to know how many nodes there are: {name}(nodes=n)")
    whole("nodes", nodes)
    return nodes

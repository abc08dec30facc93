"""What settings and sizes have to be, said in one line where they are not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself, read-only from now on."""
    array.flags.writeable = False
    return array


def possible(n: int, rounds: int = 1) -> None:
    """Raises ValueError unless n clients and that many rounds can be."""
    for name, value, least in (("n", n, 1), ("rounds", rounds, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value < 2**31:
            raise ValueError(f"{name} must be a whole number from {least} to 2^31 - 1, got {value!r}")


def within(values: Any, n: int) -> Floats:
    """A new float64 [n] of probabilities. Raises ValueError on another length, NaN, or a value outside 0..1."""
    found = np.array(values, dtype=np.float64)
    if found.shape != (n,):
        raise ValueError(
            f"{len(found) if found.ndim == 1 else found.shape} probabilities for {n} clients; give one each"
        )
    wrong = np.flatnonzero(~((found >= 0) & (found <= 1)))
    if len(wrong):
        raise ValueError(f"the probability of client {wrong[0]} must be between 0 and 1, got {found[wrong[0]]}")
    return found


def number(name: str, value: Any, least: float, most: float = math.inf, *, open_below: bool = False) -> None:
    """Raises ValueError unless value is a plain number within its bounds; NaN and booleans are not."""
    plain = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not plain or not math.isfinite(value) or not least <= value <= most or (open_below and value == least):
        above = f"above {least:g}" if open_below else f"at least {least:g}"
        bounds = above if most == math.inf else f"{above} and at most {most:g}"
        raise ValueError(f"{name} must be a number {bounds}, got {value!r}")


def whole(name: str, value: Any, least: int = 1) -> None:
    """Raises ValueError unless value is a plain whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def choice(name: str, value: Any, *options: str) -> None:
    """Raises ValueError unless value is one of the options."""
    if value not in options:
        listed = ", ".join(f'"{option}"' for option in options[:-1]) + f' or "{options[-1]}"'
        raise ValueError(f"{name} must be {listed}, got {value!r}")

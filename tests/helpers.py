"""What the tests of the strategies are made of: the world of `fedsim.testing`, and scripts of who is there when."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim import cli
from fedsim.testing.clients import Bowl, Frozen, Honest, quadratics
from fedsim.testing.loop import drive, last, models, round_of, row, uniform
from fedsim.testing.states import close, contents, copied, same

__all__ = [
    "F64",
    "Bowl",
    "Frozen",
    "Honest",
    "bernoulli",
    "chance",
    "close",
    "command",
    "contents",
    "copied",
    "drive",
    "everyone",
    "last",
    "models",
    "quadratics",
    "round_of",
    "row",
    "same",
    "subsets",
    "uniform",
]

F64 = torch.float64

# The command line -----------------------------------------------------------------------------------------------------


def command(*arguments: str | Path) -> int:
    """The exit code of a command in this process."""
    with pytest.raises(SystemExit) as exit:
        cli.main([str(argument) for argument in arguments])
    code: int = exit.value.code  # type: ignore[assignment]
    return code


# Presence ------------------------------------------------------------------------------------------------------------


def subsets(n: int) -> list[tuple[int, ...]]:
    """All 2^n of them."""
    return [s for k in range(n + 1) for s in itertools.combinations(range(n), k)]


def chance(subset: Sequence[int], p: Sequence[float]) -> float:
    """How likely exactly these are present, each independently with its p_i."""
    return float(np.prod([p[i] if i in subset else 1 - p[i] for i in range(len(p))]))


def everyone(n: int, rounds: int) -> list[list[int]]:
    return [list(range(n)) for _ in range(rounds)]


def bernoulli(p: float | Sequence[float], n: int, rounds: int, seed: int = 0) -> list[list[int]]:
    """Who is present when, each independently."""
    there = np.random.default_rng(seed).random((rounds, n)) < np.asarray(p)
    return [np.flatnonzero(r).tolist() for r in there]

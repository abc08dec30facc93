"""What the tests of the strategies are made of: the world of `fedsim.testing`, and scripts of who is there when."""

from __future__ import annotations

import itertools
import re
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
    "LIGHT",
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
    "small",
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


LIGHT = """
import sys
from fedsim.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = [name for name in ("torch", "flwr", "matplotlib", "sklearn", "ray") if name in sys.modules]
    assert not heavy, heavy
"""  # a program: the command, and nothing heavy imported for it
SMALL = """\
name = "small"
[task]
data = { name = "clusters", classes = 3, dimension = 4, examples = 60, test-examples = 30 }
clients = 6
TASK
[participation]
PRESENCE
[local]
lr = 0.1
steps = 2
batch = 4
STRATEGIES
[run]
RUN
"""


def small(
    *strategies: str, run: str, task: str = 'model = "logistic"',
    presence: str = 'name = "bernoulli"\nprobabilities = 0.5',
) -> str:  # fmt: skip
    """An experiment file that runs in a moment: six clients with ten examples each of three clusters. What is given are
    lines of its tables; a strategy may be just a name."""
    entries = [f'name = "{entry}"' if re.fullmatch(r"\w+", entry) else entry for entry in strategies]
    tables = "\n".join(f"[[strategy]]\n{entry}" for entry in entries)
    parts = {"TASK": task, "PRESENCE": presence, "STRATEGIES": tables, "RUN": run}
    return re.sub("TASK|PRESENCE|STRATEGIES|RUN", lambda part: parts[part.group()].strip("\n"), SMALL)


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

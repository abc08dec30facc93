"""What the tests of the strategies are made of: the world of `fedsim.testing`, and scripts of who is there when."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import cli, native
from fedsim.task import Task
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
    "load_benchmark",
    "models",
    "needs_operators",
    "noise",
    "quadratics",
    "round_of",
    "row",
    "same",
    "slope",
    "small",
    "subsets",
    "uniform",
]

F64 = torch.float64

needs_operators = pytest.mark.skipif(native.operators() is None, reason=f"operators are {native.told()}")

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


# Benchmarks ----------------------------------------------------------------------------------------------------------


def load_benchmark(name: str) -> ModuleType:
    """benchmarks/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


# Local steps, by hand ------------------------------------------------------------------------------------------------


def noise(task: Task, seed: int, rows: int | None = None) -> Tensor:
    """A tenth of standard normal draws [rows or n, P]."""
    shape = task.n if rows is None else rows, task.layout.size
    return 0.1 * torch.randn(shape, dtype=task.dtype, generator=torch.Generator().manual_seed(seed))


def slope(task: Task, y: Tensor, rows: Tensor, key: Tensor) -> Tensor:
    """The minibatch gradient [P] at y."""
    y = y.clone().requires_grad_()
    task.losses(task.layout.views(y), task.inputs[rows], task.targets[rows], key).mean().backward()
    assert y.grad is not None
    return y.grad


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

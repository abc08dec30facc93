"""What `simulate` is given, looked at before anything runs: what cannot be is said in one line, and what to give."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from fedsim.local import LocalSGD
from fedsim.participation import Participation
from fedsim.strategy import Strategy

if TYPE_CHECKING:
    from fedsim.task import Task


def check(task: Task, strategy: Any, schedule: Any, local: Any, engine: Any, p: Any) -> None:
    """Raises ValueError for what is no strategy, schedule, local training, engine or weights of an objective."""
    if not isinstance(strategy, Strategy):
        hint = f"give an object, {strategy.__name__}()" if isinstance(strategy, type) else "give FedAvg(), or your own"
        raise ValueError(f"{_shown(strategy)} is no strategy; {hint}")
    _parts(strategy, task.n, type(strategy).__name__)
    if isinstance(schedule, Participation):
        hint = f"{type(schedule).__name__}(...).draw({task.n}, rounds=100, seed=1)"
        raise ValueError(f"a {type(schedule).__name__} is a process, which draws schedules; give {hint}")
    if not isinstance(local, LocalSGD):
        raise ValueError(f"local must be a LocalSGD, such as LocalSGD(lr=0.1, steps=5), got {_shown(local)}")
    if engine is not None and not callable(engine):
        raise ValueError(f"engine must be an object such as Stacked(8) or Loop(), or left out, got {_shown(engine)}")
    if p is not None and len(p) == task.n and not (bool((p >= 0).all()) and abs(float(p.sum()) - 1) <= 1e-3):
        raise ValueError(f"p must be weights of at least 0 that sum to 1, and these sum to {float(p.sum()):g}")


def _parts(setting: Any, n: int, where: str) -> None:
    """Raises ValueError for a part of a strategy that is a class or a name, and for a graph of another size."""
    for field in fields(setting):
        value = getattr(setting, field.name)
        if isinstance(value, type):
            raise ValueError(f"{where}: {field.name} is the class {value.__name__}; give an object, {value.__name__}()")
        if isinstance(value, str) and is_dataclass(field.default):
            raise ValueError(f"{where}: {field.name} is {value!r}; give an object, such as {field.default!r}")
        if field.name == "graph" and value is not None and len(value) != n:
            raise ValueError(f"{where}: the graph has {len(value)} nodes but the task has {n} clients; give one of {n}")
        if is_dataclass(value):
            _parts(value, n, f"{where}, {field.name}")


def _shown(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else repr(value)

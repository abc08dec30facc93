"""fedsim's own loop around clients whose answers are known, round by round, with scripted presence."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fedsim.local import LocalSGD
from fedsim.participation import Row
from fedsim.simulation import play
from fedsim.strategy import Round, Strategy


def uniform(n: int) -> Tensor:
    """Equal weights."""
    return torch.full((n,), 1.0 / n, dtype=torch.float64)


def row(who: Sequence[int], n: int) -> Row:
    """A round in which everybody is available and `who` are chosen."""
    return Row(torch.arange(n), torch.tensor(sorted(who), dtype=torch.int64), torch.ones(len(who)))


def drive(
    strategy: Strategy, engine: Any, presence: Sequence[Sequence[int]], *, n: int, x: Tensor | None = None,
    p: Tensor | None = None, local: LocalSGD | None = None, state: Any = None, t: int = 0, seed: int = 0,
    before: Callable[[Any], Any] = lambda state: state, device: str = "cpu",
) -> Iterator[tuple[Any, Round]]:  # fmt: skip
    """Plays rounds t, t + 1, ... of a scripted presence with fedsim's own loop; `before` sees every state first."""
    task: Any = SimpleNamespace(device=torch.device(device))
    local = LocalSGD(lr=0.05, steps=3, batch=None) if local is None else local
    if state is None:
        assert x is not None
        state = strategy.init(x, uniform(n) if p is None else p, 7)
    for now in range(t, len(presence)):
        state, round = play(task, strategy, engine, local, row(presence[now], n), before(state), now, seed)
        yield state, round


def models(strategy: Strategy, engine: Any, presence: Sequence[Sequence[int]], **settings: Any) -> Tensor:
    """The model after every round, [T, P] or [T, n, P]."""
    return torch.stack([strategy.model(s).clone() for s, _ in drive(strategy, engine, presence, **settings)])


def last(strategy: Strategy, engine: Any, presence: Sequence[Sequence[int]], **settings: Any) -> Any:
    """The state after the last round."""
    ((state, _),) = deque(drive(strategy, engine, presence, **settings), maxlen=1)
    return state


def round_of(t: int, who: Sequence[int], delta: Tensor, lr: float | None = None, start: Tensor | None = None) -> Round:
    """A round in which `who` answered with `delta` [k, P], for strategies that are stepped by hand."""
    k = len(who)
    start = torch.zeros_like(delta) if start is None else start
    return Round(
        t,
        torch.tensor(who, dtype=torch.int64),
        start,
        delta,
        delta.new_full((k,), lr or 0.0),
        delta.new_zeros(k),
        lr=lr,
    )

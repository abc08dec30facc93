"""What the tests of the strategies are made of: clients whose answers are known, and the real loop around them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import LocalSGD, make_task
from fedsim.engine import Answer
from fedsim.participation import Row
from fedsim.rows import Rows
from fedsim.simulation import play
from fedsim.strategy import Round, Strategy, Work
from fedsim.task import Task

F64 = torch.float64

# Engines whose answers are known -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Frozen:
    """Clients that always answer the same d_i, whatever they are told."""

    d: Tensor  # [n, P]

    def __call__(
        self,
        task: Any,
        who: Tensor,
        work: Work,
        keys: Tensor,
        local: LocalSGD,
        t: int = 0,
        effort: Tensor | None = None,
    ) -> Answer:
        delta = self.d[who].to(work.start.dtype, copy=True)
        k = len(who)
        told = {"loss-at-start": 0.5 * delta.square().sum(1)} if "loss-at-start" in work.ask else {}
        if "gradient-at-start" in work.ask:
            told["gradient-at-start"] = -delta
        if "mean-gradient" in work.ask:
            told["mean-gradient"] = -delta
        return Answer(who, delta, delta.new_full((k,), (local.steps or 1) * local.lr_at(t)), delta.new_zeros(k), told)


@dataclass(frozen=True, eq=False)
class Honest:
    """Clients with F_i(y) = ½ Σ_j a_ij (y_j − b_ij)² that take the steps of `Work`'s docstring, written out plainly."""

    a: Tensor  # [n, P]
    b: Tensor  # [n, P]
    steps: tuple[int, ...] | None = None  # [n]  of each client; None: the local training's

    def __call__(
        self,
        task: Any,
        who: Tensor,
        work: Work,
        keys: Tensor,
        local: LocalSGD,
        t: int = 0,
        effort: Tensor | None = None,
    ) -> Answer:
        lr, start = local.lr_at(t), work.start
        a, b = self.a[who].to(start.dtype), self.b[who].to(start.dtype)
        steps = [self.steps[i] if self.steps else local.steps or 1 for i in who.tolist()]
        y = start.clone()
        v = torch.zeros_like(y) if work.velocity is None else work.velocity.clone()
        second = 0.0 if work.other is None else work.against * a * (work.other - b)
        raw = torch.zeros_like(y)
        for s in range(max(steps, default=0)):
            busy = (torch.tensor(steps) > s)[:, None]
            force = work.scale * a * (y - b) - second + work.mu * (y - start) + work.shift
            raw = raw + torch.where(busy, a * (y - b), 0.0)
            v = torch.where(busy, local.momentum * v + force, v)
            y = torch.where(busy, y - lr * v, y)
        span = torch.tensor([local.span(s, t, work.mu) for s in steps], dtype=y.dtype) * work.scale
        told = {"velocity": v} if local.momentum and "velocity" in work.ask else {}
        if "loss-at-start" in work.ask:
            told["loss-at-start"] = 0.5 * (a * (start - b) ** 2).sum(1)
        if "mean-gradient" in work.ask:
            told["mean-gradient"] = raw / torch.tensor(steps, dtype=y.dtype)[:, None]
        if "gradient-at-start" in work.ask:
            told["gradient-at-start"] = a * (start - b)
        return Answer(who, y - start, span, y.new_zeros(len(who)), told)


# The real loop around them -------------------------------------------------------------------------------------------


def row(who: Sequence[int], n: int) -> Row:
    """A round in which everybody is available and `who` are chosen."""
    return Row(torch.arange(n), torch.tensor(sorted(who), dtype=torch.int64), torch.ones(len(who)))


def drive(
    strategy: Strategy, engine: Any, presence: Sequence[Sequence[int]], *, n: int, x: Tensor | None = None,
    p: Tensor | None = None, local: LocalSGD | None = None, state: Any = None, t: int = 0, seed: int = 0,
    before: Callable[[Any], Any] = lambda state: state,
) -> Iterator[tuple[Any, Round]]:  # fmt: skip
    """Plays rounds t, t + 1, ... of a scripted presence with fedsim's own loop; `before` sees every state first."""
    task: Any = SimpleNamespace(device=torch.device("cpu"))
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


# Presence ------------------------------------------------------------------------------------------------------------


def uniform(n: int) -> Tensor:
    """Equal weights."""
    return torch.full((n,), 1.0 / n, dtype=F64)


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


# Tasks and states ----------------------------------------------------------------------------------------------------


class Bowl(nn.Module):
    """x [P]; its output on an example (a, b) is the loss Σ_j a_j/2 (x_j − b_j)²."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(size, dtype=F64))

    def forward(self, inputs: Tensor) -> Tensor:
        a, b = inputs.chunk(2, dim=1)
        return 0.5 * (a * (self.x - b) ** 2).sum(1)


def quadratics(a: Tensor, b: Tensor) -> Task:
    """A real task: client i holds the one example (a_i, b_i), both [n, P]."""
    n, inputs, targets = len(b), torch.cat([a.expand_as(b), b], dim=1), torch.zeros(len(b), dtype=torch.int64)
    data = SimpleNamespace(
        name="bowls",
        inputs=inputs,
        targets=targets,
        test_inputs=inputs,
        test_targets=targets,
        classes=0,
        mean=None,
        std=None,
    )
    parts = SimpleNamespace(
        rows=torch.arange(n), first=torch.arange(n), size=torch.ones(n, dtype=torch.int64), targets=None, moved=0
    )
    return make_task(data, parts, Bowl(b.shape[1]), dtype=F64)  # type: ignore[arg-type]


def contents(state: Any, at: str = "") -> dict[str, Any]:
    """All a state holds, by where it is: tensors copied, tables of rows written out."""
    if isinstance(state, Rows):
        return {
            f"{at}.rows": state.dense().clone(),
            f"{at}.mean": state.mean.clone(),
            f"{at}.seen": state.seen().clone(),
        }
    if isinstance(state, Tensor):
        return {at: state.detach().clone()}
    if hasattr(state, "_fields"):
        return {k: v for name in state._fields for k, v in contents(getattr(state, name), f"{at}.{name}").items()}
    return {at: state}


def same(a: Any, b: Any) -> None:
    """Two states, or two `contents`, are equal bit for bit."""
    close(a, b, 0.0)


def close(a: Any, b: Any, tolerance: float) -> None:
    """Two states, or two `contents`, or two tensors are equal to a relative tolerance, and of the same kinds."""
    one, other = (s if isinstance(s, dict) else contents(s) for s in (a, b))
    assert list(one) == list(other)
    for name, value in one.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(
                value, other[name], rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m, at=name: f"{at}: {m}"
            )
        else:
            assert value == other[name], name


def copied(state: Any) -> Any:
    """A state that shares no memory with the one given."""
    if isinstance(state, Rows):
        return state.copy()
    if isinstance(state, Tensor):
        return state.clone()
    if hasattr(state, "_fields"):
        return type(state)(*(copied(value) for value in state))
    return state

"""The bias ledger: with what weight every client's updates have entered the model.

A strategy that is linear in the deltas leaves x_T = x_0 + Σ_i Σ_t w_i(t) Δ_i(t), with weights that follow from who was
present when. They are read off a twin: the same strategy on a model of n numbers, where client i always answers the
unit vector e_i. After T rounds the twin's model is W, W_i = Σ_t w_i(t), exactly, memory and waiting and mixing
included. W / Σ W is the objective that the run has really been working on; the p of the experiment is the one it was
meant to.

    twin = ledger.open(strategy, p, key)                  # before round 0
    twin = ledger.enter(strategy, twin, round, column)    # after every round, with what reached the strategy
    w = ledger.shares(strategy, twin)                     # [n], sum 1

More than `COLUMNS` clients are entered in groups of neighbours by participation rate: the weight of a group is exact.
`Book` keeps the ledger of one run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fedsim.strategy import GossipStrategy, Round, Strategy, core

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

COLUMNS = 1024  # so many numbers has the twin's model at most


def columns(rates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[n] int64: the entry of the twin's model that stands for each client, from their participation rates [n].

    Up to `COLUMNS` clients have one each; more share `COLUMNS` groups, equally large to within one, in order of rate.
    """
    import numpy as np

    n = len(rates)
    if n <= COLUMNS:
        return np.arange(n)
    column = np.empty(n, dtype=np.int64)
    column[np.argsort(rates, kind="stable")] = np.arange(n) * COLUMNS // n
    return column


def open(strategy: Strategy, p: Tensor, key: int = 0, width: int | None = None) -> Any:
    """The twin before round 0: the strategy's state on a model of `width` zeros (default: n), in float64.

    `key` is the strategy's own, so that what it draws the twin draws. Raises ValueError for a strategy whose weights
    depend on the deltas.
    """
    import torch

    if not strategy.linear:
        raise ValueError(f"{type(strategy).__name__} is not linear in the updates: they have no weights to enter")
    n = len(p)
    shape = (n, width or n) if isinstance(core(strategy), GossipStrategy) else (width or n,)
    return strategy.init(torch.zeros(shape, dtype=torch.float64, device=p.device), p, key)


def enter(strategy: Strategy, twin: Any, round: Round, column: Tensor) -> Any:
    """The twin after a round in which each client answered the unit vector of its column [n]; consumes the twin."""
    import torch

    width = twin.x.shape[-1]
    delta = torch.zeros((len(round.who), width), dtype=torch.float64, device=twin.x.device)
    delta.scatter_(1, column[round.who][:, None], 1.0)
    start = strategy.send(twin, round.who).start
    told = {  # vectors of the model's size say nothing about the twin, numbers do
        name: value if value.ndim == 1 else torch.zeros_like(delta) for name, value in round.told.items()
    }
    span = None if round.span is None else round.span.to(torch.float64)
    return strategy.step(twin, round._replace(start=start, delta=delta, span=span, told=told))


def weights(strategy: Strategy, twin: Any) -> Tensor:
    """W [width]: what all updates of each client, or group of clients, have counted so far; in gossip, over the mean
    model."""
    model = strategy.model(twin)
    return model.mean(0) if model.ndim == 2 else model


def shares(strategy: Strategy, twin: Any) -> Tensor:
    """W / Σ W [width]: the weights of the objective worked on so far. Zeros while nothing has entered.

    Memory that is taken back can make some of it negative for a while.
    """
    import torch

    W = weights(strategy, twin)
    total = W.sum()
    return torch.where(total.abs() > 1e-12, W / total, torch.zeros_like(W))


def meant(p: Tensor, column: Tensor, width: int) -> Tensor:
    """p [n] summed by column: what `shares` would be without bias, [width]."""
    import torch

    return torch.zeros(width, dtype=torch.float64, device=p.device).index_add_(0, column, p.to(torch.float64))


def distance(w: Tensor, p: Tensor) -> float:
    """Total variation ½ Σ |w_i − p_i|: the share of the weight that lies with the wrong clients, 0 to 1 where w ≥ 0."""
    return float((w - p).abs().sum() / 2)


class Book:
    """The ledger of one run: entered after every round, read at any."""

    def __init__(self, strategy: Strategy, p: Tensor, rates: np.ndarray[Any, Any], key: int = 0) -> None:
        """For the objective's weights p [n], clients that take part at these rates [n], and the strategy's own key.

        Raises ValueError for a strategy that has no weights to enter, or that a twin cannot be made of.
        """
        import torch

        self.strategy, self.p = strategy.twin(), p
        self.column = torch.from_numpy(columns(rates)).to(p.device)
        width = int(self.column.max()) + 1
        self.meant = meant(p, self.column, width)
        self.members = torch.bincount(self.column, minlength=width)
        with self._followed():
            self.twin = open(self.strategy, p, key, width)

    def enter(self, round: Round) -> None:
        """A round is over. Raises ValueError where the twin cannot follow it."""
        with self._followed():
            self.twin = enter(self.strategy, self.twin, round, self.column)

    def shares(self) -> Tensor | None:
        """Every client's share [n] of the weight that has entered, sum 1, a group's spread evenly over its clients;
        None while nothing has entered."""
        found = shares(self.strategy, self.twin)
        return (found / self.members)[self.column] if bool(found.any()) else None

    def distance(self) -> float | None:
        """How far the objective worked on is from the one meant, see `distance`; None while nothing has entered."""
        found = shares(self.strategy, self.twin)
        return distance(found, self.meant) if bool(found.any()) else None

    @contextlib.contextmanager
    def _followed(self) -> Iterator[None]:
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            name = type(self.strategy).__name__
            raise ValueError(
                f"the bias ledger cannot follow {name}: {error}; set ledger = false in [run], or its `linear` to False"
            ) from error

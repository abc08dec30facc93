"""What the gossip strategies share: nodes side by side, local momentum that is kept, a momentum or a correction beside
every model, moves as mean gradients, and which averaging an algorithm needs. No paper of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.mixing import Metropolis, Mixing
from fedsim.strategy import Averaging, Round, Work

if TYPE_CHECKING:
    from torch import Tensor


def one_each(x: Tensor, p: Tensor) -> Tensor:
    """A model per node [n, P], from one for all [P] or one for each [n, P]."""
    return x if x.ndim == 2 else x.expand(len(p), -1).clone()


def of(table: Tensor, who: Tensor) -> Tensor:
    """The rows [k, P] of nodes, who ascend, in a table [n, P]; if they are all, the table itself."""
    return table if len(who) == len(table) else table[who]


def begin(s: Any, who: Tensor, keep_momentum: bool) -> Work:
    """What nodes are told that begin from their models x [n, P], and from the local momentum they are left with."""
    velocity = None if s.velocity is None else of(s.velocity, who)
    return Work(of(s.x, who), velocity=velocity, ask=frozenset({"velocity"}) if keep_momentum else frozenset())


def left(s: Any, r: Round) -> Tensor | None:
    """The local momentum [n, P] that nodes are left with after a round, written into the state's; None until a client
    reports one."""
    velocity: Tensor | None = s.velocity
    if "velocity" in r.told:
        velocity = s.x.new_zeros(s.x.shape) if velocity is None else velocity
        velocity[r.who] = r.told["velocity"]
    return velocity


def adapted(x: Tensor, r: Round) -> Tensor:
    """The nodes' models [n, P] after the moves of those present; a new tensor."""
    return x + r.delta if len(r.who) == len(x) else x.index_add(0, r.who, r.delta)


def spread(value: Tensor, r: Round, n: int) -> Tensor:
    """[n, P] with what the present nodes have, `value` [k, P]; 0 for the others."""
    return value.new_zeros((n, value.shape[1])).index_copy_(0, r.who, value)


def spans(name: str, r: Round) -> Tensor:
    """Round.span as a column [k, 1]. Raises ValueError when clipping has made it unknown."""
    if r.span is None:
        raise ValueError(f"{name} needs delta = -span * mean gradient, which clipping breaks: leave out `clip`")
    return r.span[:, None]


def longest(name: str, r: Round) -> Tensor:
    """The largest span [] of the round, 0 when nobody is there: one scale for all nodes, so that a sum over nodes that
    is kept in units of moves is kept in units of gradients too."""
    span = spans(name, r)
    return span.max() if len(span) else span.sum()


def per(value: Tensor, span: Tensor) -> Tensor:
    """value / span; 0 where no step was taken and nothing is known."""
    import torch

    return torch.where(span > 0, value / span, 0.0)


def is_mixing(name: str, mixing: Any) -> None:
    """Raises ValueError for what is no mixing, such as the name of one, which only an experiment file turns into it."""
    if not hasattr(mixing, "averaging"):
        raise ValueError(f"{name} needs a mixing such as fedsim.mixing.Metropolis(), got {mixing!r}")


def keeps_the_mean(name: str, mixing: Mixing) -> None:
    """Raises ValueError unless the mixing is doubly stochastic, whoever is absent."""
    is_mixing(name, mixing)
    if mixing.averaging != "doubly stochastic":
        raise ValueError(
            f"{name} needs doubly stochastic weights, and {type(mixing).__name__} is {mixing.averaging}; "
            "take mixing = metropolis"
        )


def averages(name: str, mixing: Mixing) -> None:
    """Raises ValueError for a mixing that passes shares on: without push-sum's weights these do not average."""
    is_mixing(name, mixing)
    if mixing.averaging == "column-stochastic":
        raise ValueError(
            f"{name} needs weights whose rows sum to 1, and {type(mixing).__name__} is column-stochastic; take SGP"
        )


class Rolling(NamedTuple):
    x: Tensor  # [n, P]
    m: Tensor  # [n, P]
    key: int


@dataclass(frozen=True)
class Momentum(Averaging):
    """Nodes with a momentum m_i of their own, 0 at first."""

    mixing: Mixing = Metropolis()
    beta: float = 0.9

    def __post_init__(self) -> None:
        averages(type(self).__name__, self.mixing)
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must be in [0, 1), got {self.beta}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Rolling:
        x = one_each(x, p)
        return Rolling(x, x.new_zeros(x.shape), key)


class Tracked(NamedTuple):
    x: Tensor  # [n, P]
    c: Tensor  # [n, P]  what is added to the node's gradients; sums to 0 over the nodes
    key: int


@dataclass(frozen=True)
class Corrected(Averaging):
    """Nodes that add a correction c_i of their own to every local gradient, 0 at first."""

    mixing: Mixing = Metropolis()

    def __post_init__(self) -> None:
        keeps_the_mean(type(self).__name__, self.mixing)

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Tracked:
        x = one_each(x, p)
        return Tracked(x, x.new_zeros(x.shape), key)

    def send(self, s: Tracked, who: Tensor) -> Work:
        return Work(of(s.x, who), shift=of(s.c, who))

"""Gossip learning on ticks, with buffers. Tian, Al-Ars, Kitsak, Hofstee, 2024. https://arxiv.org/abs/2404.04616

A round is a tick. A node that trains in it sends its model to all neighbours, which lay it into their buffers; one's
own model is never in one's buffer. Whose buffer then holds at least R · degree models averages and empties it:

    x_i <- β x_i + (1 − β) (1/|B_i|) Σ_{x ∈ B_i} x

β = `self_weight`, R = `fill`. Several messages of a tick may make a buffer overflow; all of them count. Who trains when
is the schedule's to say (`ticks`): a node that does not train is not away, its buffer fills and is emptied. An isolated
node trains on by itself. As in the authors' simulator at the time of the paper, whose text was not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fedsim.mixing import Edges, senders
from fedsim.strategies.gossip import begin, left
from fedsim.strategy import GossipStrategy, Round, Traffic, Work

if TYPE_CHECKING:
    from networkx import Graph
    from torch import Tensor


class Correction(Protocol):
    """What may be done to an average, by numbers that travel with the models."""

    def tags(self, models: Tensor) -> Tensor:
        """The numbers [m, L] that go with models [m, P]."""

    def after(self, mixed: Tensor, own: Tensor, received: Tensor, self_weight: float) -> Tensor:
        """Averages [m, P] put right, from one's own tags and the mean tags received [m, L]."""


class State(NamedTuple):
    x: Tensor  # [n, P]
    total: Tensor  # [n, P]  sum of the models in each buffer
    held: Tensor  # [n] int64  how many they are
    tags: Tensor | None  # [n, L]  sum of what came with them
    velocity: Tensor | None  # [n, P]  local momentum; None until a client reports one


@dataclass(frozen=True)
class BufferedGossip(GossipStrategy):
    """Nodes that train at their own pace and average when enough models came. Tian et al., 2024 (2404.04616)"""

    graph: Graph | None = field(default=None, repr=False)  # left out: the experiment's topology
    self_weight: float = 0.5
    fill: float = 1.0
    keep_momentum: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.self_weight <= 1:
            raise ValueError(f"self_weight must be between 0 and 1, got {self.self_weight}")
        if not self.fill > 0:
            raise ValueError(f"fill must be above 0 (times the degree), got {self.fill}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        import torch

        x = (x if x.ndim == 2 else x.expand(len(p), -1)).clone()  # ticks write into it
        none = torch.arange(0, device=x.device)
        if len(self.edges(none).diagonal) != len(p):
            raise ValueError(f"the graph has {len(self.edges(none).diagonal)} nodes for {len(p)} clients")
        return State(x, torch.zeros_like(x), torch.zeros(len(p), dtype=torch.int64, device=x.device), None, None)

    def send(self, s: State, who: Tensor) -> Work:
        return begin(s, who, self.keep_momentum)._replace(start=s.x[who])  # a copy: ticks write into x

    def edges(self, who: Tensor) -> Edges:
        """Whose models reach whom when `who` [k] send: the neighbours, with weight 1, and diagonal the degrees [n]."""
        return senders(self.graph, who)

    def step(self, s: State, r: Round) -> State:
        return self.tick(s, r)

    def tick(self, s: State, r: Round, correction: Correction | None = None) -> State:
        """The next state; a correction is applied to every average."""
        import torch

        s = s._replace(velocity=left(s, r))
        if not len(r.who):
            return s
        x = s.x.index_add_(0, r.who, r.delta)
        sent = self.edges(r.who)
        i, j, degree = sent.i, sent.j, sent.diagonal
        reached, place = i.unique_consecutive(return_inverse=True)  # i ascends: sums in a fixed order
        total, held = s.total, s.held
        total.index_add_(0, reached, bags(x, j, place, len(reached)))
        held.index_add_(0, i, torch.ones_like(i))
        tags = s.tags
        if correction is not None:
            own = correction.tags(x[r.who])  # [k, L]
            tags = x.new_zeros(len(x), own.shape[1]) if tags is None else tags
            tags[reached] += bags(x.new_zeros(len(x), own.shape[1]).index_copy(0, r.who, own), j, place, len(reached))
        due = ((held >= self.fill * degree) & (held > 0)).nonzero()[:, 0]
        if len(due):
            share = (1 - self.self_weight) / held[due, None].to(x.dtype)
            mixed = self.self_weight * x[due] + share * total[due]
            if correction is not None and tags is not None:
                received = tags[due] / held[due, None].to(x.dtype)
                mixed = correction.after(mixed, correction.tags(x[due]), received, self.self_weight)
                tags[due] = 0.0
            x[due], total[due], held[due] = mixed, 0.0, 0
        return s._replace(x=x, total=total, held=held, tags=tags)

    def traffic(self, s: State, r: Round) -> Traffic:
        return Traffic(up=len(self.edges(r.who).i) * s.x.shape[1] * s.x.element_size() * 8, down=0)


def bags(x: Tensor, j: Tensor, place: Tensor, m: int) -> Tensor:
    """[m, ...] the sum of the rows j [e] of x in each bag; `place` [e] ascends."""
    import torch
    from torch.nn.functional import embedding_bag

    return embedding_bag(j, x, torch.searchsorted(place, torch.arange(m, device=x.device)), mode="sum")

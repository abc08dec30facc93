"""MIFA. Gu, Huang, Zhang, Huang, NeurIPS 2021. https://arxiv.org/abs/2106.04159

    G_i <- Δ_i / γ  for i ∈ S        (remember the latest update of every client, per unit of local learning rate γ)
    x   <- x + η γ Σ_i p_i G_i       (and always average all of them, in an empty round too)

The table starts at 0. With `wait`, x stays until every client has been heard once, as the authors' default trainer
does; it then has them all compute one more update from the first model, here their latest one stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedsim.rows import Rows
from fedsim.strategy import Round, ServerStrategy

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [P]
    G: Rows  # [n, P]  latest update of each client, 0 before; G.mean = Σ_i p_i G_i


@dataclass(frozen=True)
class MIFA(ServerStrategy):
    """The mean of every client's latest update, in every round. Gu et al., NeurIPS 2021 (2106.04159)"""

    lr: float = 1.0  # η
    wait: bool = False  # no step before every client has been heard

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(x, Rows(p, x))

    def step(self, s: State, r: Round) -> State:
        gamma = 1.0 if r.lr is None else r.lr
        if gamma:  # at rate 0 there is nothing to learn about anybody
            s.G[r.who] = r.delta / gamma
        move = self.lr * gamma * s.G.mean
        if self.wait:
            move = move * s.G.seen().all()
        return State(s.x + move, s.G)

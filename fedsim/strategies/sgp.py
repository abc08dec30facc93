"""Stochastic Gradient Push. Assran, Loizou, Ballas, Rabbat, ICML 2019. https://arxiv.org/abs/1811.10792

On a directed graph a node may hear from more neighbours than it tells, or fewer, and averaging drifts to those that are
heard most. So a node passes on shares of what it has, P column-stochastic, and of a weight beside it, w = 1 at first;
the ratio of the two is the average:

    u_i <- Σ_j P_ij (u_j + Δ_j)           w_i <- Σ_j P_ij w_j           z_i = u_i / w_i

Δ_i is moved from z_i, by any number of local steps. What is kept as x is z, the model, with u = w z; then the above is
averaging with the row-stochastic weights P_ij w_j / w_i⁺ of the models z_j + Δ_j / w_j.

Σ_i w_i = n always, and Σ_i w_i z_i changes by Σ_i Δ_i alone: an absent node keeps both. At a constant learning rate a
bias is left, which a falling one takes away. Doubly stochastic weights leave w = 1: D-PSGD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from fedsim.mixing import Edges, Mixing, Push
from fedsim.strategies.gossip import is_mixing, one_each
from fedsim.strategy import Averaging, Exchange, Round, Traffic

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [n, P]  z
    w: Tensor  # [n] float64  sums to n
    key: int


@dataclass(frozen=True)
class SGP(Averaging):
    """Gossip on directed graphs by passing shares on, push-sum. Assran et al., ICML 2019 (1811.10792)"""

    mixing: Mixing = Push()
    plain: ClassVar[str | None] = "its weights belong to plain averages"

    def __post_init__(self) -> None:
        is_mixing("SGP", self.mixing)
        if self.mixing.averaging == "row-stochastic":
            raise ValueError(
                f"SGP needs weights whose columns sum to 1, and {type(self.mixing).__name__} is row-stochastic; "
                "take mixing = push"
            )

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        import torch

        x = one_each(x, p)
        return State(x, torch.ones(len(x), dtype=torch.float64, device=x.device), key)

    def edges(self, s: State, r: Round) -> Edges:
        P = self.mixing(r.t, r.who, s.key)
        w = P.apply(s.w)
        return Edges(P.i, P.j, P.w * s.w[P.j] / w[P.i], P.diagonal * s.w / w)

    def exchange(self, s: State, r: Round) -> tuple[Exchange, State]:
        models = s.x.index_add(0, r.who, r.delta / s.w[r.who, None].to(s.x.dtype))
        exchange = Exchange(models, self.edges(s, r), None)
        return exchange, s._replace(w=self.mixing(r.t, r.who, s.key).apply(s.w))

    def traffic(self, s: State, r: Round) -> Traffic:
        models = self.mixing(r.t, r.who, s.key).sent()
        return Traffic(up=models * (s.x.shape[1] * s.x.element_size() * 8 + 64), down=0)

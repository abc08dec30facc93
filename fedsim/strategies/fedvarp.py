"""FedVARP. Jhunjhunwala, Sharma, Nagarkatti, Joshi, UAI 2022. https://arxiv.org/abs/2207.14130

    x   <- x + η ( Σ_i p_i h_i + Σ_{i ∈ S} w_i (Δ_i − h_i) )        w_i = 1/|S|
    h_i <- Δ_i  for i ∈ S        (after x has moved; h = 0 at the start)

Published for cohorts of a fixed size drawn uniformly. FedStale's authors use w_i = p_i/π_i for clients that differ:
`weights = known`, or `fedau` where π is unknown. In an empty round x moves by the mean memory; released code skips
such rounds instead (`skip_empty`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.rows import Rows
from fedsim.strategy import Round, ServerStrategy
from fedsim.weights import Equal, Weights

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [P]
    h: Rows  # [n, P]  latest update of each client; h.mean = Σ_i p_i h_i
    weights: Any


@dataclass(frozen=True)
class FedVARP(ServerStrategy):
    """Fresh updates corrected by the latest of every client. Jhunjhunwala et al., UAI 2022 (2207.14130)"""

    lr: float = 1.0  # η
    weights: Weights = Equal()
    skip_empty: bool = False  # leave x alone when nobody is present

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(x, Rows(p, x), self.weights.init(p))

    def step(self, s: State, r: Round) -> State:
        w, weights = self.weights.step(s.weights, r)
        if self.skip_empty and not len(r.who):
            return s._replace(weights=weights)
        mean = s.h.mean
        fresh, stale = s.h.exchange(r.who, r.delta, w)  # Σ w_i Δ_i and Σ w_i h_i; h_i <- Δ_i
        return State(s.x + self.lr * (mean + (fresh - stale).to(s.x.dtype)), s.h, weights)

"""FedAvg. McMahan, Moore, Ramage, Hampson, Agüera y Arcas, AISTATS 2017. https://arxiv.org/abs/1602.05629

    x <- x + η Σ_{i ∈ S} w_i Δ_i        w_i = p_i / Σ_{j ∈ S} p_j

An empty round leaves x where it is. Other weights give the usual baselines: `equal` (average participating), `all`
(average all), `known` (inverse probability weighting).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.strategy import Round, ServerStrategy
from fedsim.weights import Present, Weights, total

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [P]
    weights: Any


@dataclass(frozen=True)
class FedAvg(ServerStrategy):
    """The weighted mean of the present clients' updates. McMahan et al., AISTATS 2017 (1602.05629)"""

    lr: float = 1.0  # η
    weights: Weights = Present()

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(x, self.weights.init(p))

    def step(self, s: State, r: Round) -> State:
        w, weights = self.weights.step(s.weights, r)
        return State(s.x + self.lr * total(w, r.delta), weights)

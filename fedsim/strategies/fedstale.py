"""FedStale. Rodio & Neglia, 2024. https://arxiv.org/abs/2405.04171

    x   <- x + η ( Σ_{i ∈ S} w_i Δ_i + β ( Σ_i p_i h_i − Σ_{i ∈ S} w_i h_i ) )        w_i = p_i/π_i
    h_i <- Δ_i  for i ∈ S        (after x has moved; h = 0 at the start)

β weighs fresh against stale: 0 is FedAvg and 1 FedVARP, both with the same weights. Unknown π_i are replaced by 1/ω_i
of FedAU, as the authors' code does; `weights = known` takes them as given. This is the one rule that FedAvg, FedAU,
FedVARP and MIFA (β = 1, `weights = all`) are cases of. In an empty round x moves by β times the mean memory; the
released code skips such rounds instead (`skip_empty`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.rows import Rows
from fedsim.strategy import Round, ServerStrategy
from fedsim.weights import Interval, Weights, total

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [P]
    h: Rows  # [n, P]  latest update of each client; h.mean = Σ_i p_i h_i
    weights: Any


@dataclass(frozen=True)
class FedStale(ServerStrategy):
    """A convex combination of fresh and stale updates, weighted by β. Rodio & Neglia, 2024 (2405.04171)"""

    lr: float = 1.0  # η
    beta: float = 0.5  # β
    weights: Weights = Interval()
    skip_empty: bool = False  # leave x alone when nobody is present

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be between 0 (FedAvg) and 1 (FedVARP), got {self.beta}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(x, Rows(p, x), self.weights.init(p))

    def step(self, s: State, r: Round) -> State:
        w, weights = self.weights.step(s.weights, r)
        if self.skip_empty and not len(r.who):
            return s._replace(weights=weights)
        fresh = total(w, r.delta)
        stale = s.h.mean - total(w, s.h[r.who])
        x = s.x + self.lr * (fresh + self.beta * stale)
        s.h[r.who] = r.delta
        return State(x, s.h, weights)

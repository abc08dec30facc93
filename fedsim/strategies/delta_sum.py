"""Average the models, add up the moves. Goethals et al., 2025. https://arxiv.org/abs/2512.01549

    x_i <- Σ_j W_ij x_j + s (Δ_i + Σ_{j ∈ N_i} Δ_j)          over those present

Averaged moves shrink with the number of neighbours as independent ones do; their sum does not. s = `scale` takes back
what agreeing moves gain: 1/(d + 1) makes it D-PSGD, adapt then combine, on a regular graph. The rule is the abstract's,
the paper's text was not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.mixing import Edges, Mixing, Neighbour
from fedsim.strategies.dpsgd import State
from fedsim.strategies.gossip import begin, left, one_each, spread
from fedsim.strategy import Averaging, Exchange, Round, Work

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DeltaSum(Averaging):
    """Gossip that averages models and sums moves. Goethals et al., 2025 (2512.01549)"""

    mixing: Mixing = Neighbour()
    scale: float = 1.0
    keep_momentum: bool = True

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, got {self.scale}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(one_each(x, p), None, key)

    def send(self, s: State, who: Tensor) -> Work:
        return begin(s, who, self.keep_momentum)

    def exchange(self, s: State, r: Round) -> tuple[Exchange, State]:
        import torch

        edges = self.edges(s, r)
        moves = spread(r.delta, r, len(s.x))
        every = Edges(edges.i, edges.j, (edges.i != edges.j).to(torch.float64), torch.ones_like(edges.diagonal))
        return Exchange(s.x, edges, self.scale * every.apply(moves)), s._replace(velocity=left(s, r))

"""FedDyn. Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, ICLR 2021. https://arxiv.org/abs/2111.04263

    client i minimises F_i(y) − ⟨λ_i, y⟩ + α/2 ‖y − x‖²,   by steps  y <- y − γ ( ∇f_i(y) − λ_i + α (y − x) )
    λ_i <- λ_i − α Δ_i  for i ∈ S          (∇F_i at where it ended, had it ended in the minimum; 0 at the start)
    h   <- h − α/n Σ_{i ∈ S} Δ_i
    x   <- x + 1/|S| Σ_{i ∈ S} Δ_i − h/α

h is always the mean of all λ_i, so the table of λ_i keeps it. A client keeps λ_i itself: x goes down, its model up. The
authors' code divides α by a client's share of the data and also reports the mean of the models heard, without h; here α
is the same for all, as in the paper, and x is evaluated. An empty round changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedsim.rows import Rows
from fedsim.strategy import Round, ServerStrategy, Work
from fedsim.weights import Equal, Static, total

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [P]
    lam: Rows  # [n, P]  λ_i; lam.mean = h


@dataclass(frozen=True)
class FedDyn(ServerStrategy):
    """Local objectives regularised so that their minima agree. Acar et al., ICLR 2021 (2111.04263)"""

    alpha: float = 0.01  # α

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        import torch

        return State(x, Rows(torch.full_like(p, 1.0 / len(p)), x))

    def send(self, s: State, who: Tensor) -> Work:
        return Work(s.x.expand(len(who), -1), shift=-s.lam[who], mu=self.alpha)

    def step(self, s: State, r: Round) -> State:
        if not len(r.who):
            return s
        w, _ = Equal().step(Static(s.lam.p), r)
        s.lam[r.who] = s.lam[r.who] - self.alpha * r.delta
        return State(s.x + total(w, r.delta) - s.lam.mean / self.alpha, s.lam)

"""FedDyn. Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, ICLR 2021. https://arxiv.org/abs/2111.04263

    client i minimises F_i(y) − ⟨λ_i, y⟩ + α/2 ‖y − x‖²,   by steps  y <- y − γ ( ∇f_i(y) − λ_i + α (y − x) )
    λ_i <- λ_i − α Δ_i  for i ∈ S          (∇F_i at where it ended, had it ended in the minimum; 0 at the start)
    h   <- h − α/n Σ_{i ∈ S} Δ_i
    x   <- x + 1/|S| Σ_{i ∈ S} Δ_i − h/α

h is always the mean of all λ_i, so the table of λ_i keeps it. A client keeps λ_i itself: x goes down, its model up. The
authors' code also reports the mean of the models heard, without h; here x is evaluated. An empty round changes nothing.

The paper's α is the same for all, and x settles where Σ_i ∇F_i = 0, everybody counting alike. The authors' code
(alpemreacar/FedDyn) divides it by a client's share of the data: `by_weight` has α_i = α/(n p_i) in place of α, with
the objective's weights p. That code keeps the sum G_i of a client's moves, and its x is the mean of the models heard
plus the mean of all G_i: −α_i G_i is λ_i here, so h = Σ_i p_i λ_i and the other lines stay. x then settles where
Σ_i p_i ∇F_i = 0. It also clips gradients at norm 10, which `clip` in [local] does.
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
    by_weight: bool = False  # α_i = α/(n p_i), as the authors' code has it

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        import torch

        if self.by_weight and bool((p <= 0).any()):
            raise ValueError("by_weight divides alpha by clients' weights, and one of them weighs 0")
        return State(x, Rows(p if self.by_weight else torch.full_like(p, 1.0 / len(p)), x))

    def pull(self, s: State, who: Tensor) -> Tensor | float:
        """α_i [k, 1], or α where it is the same for all."""
        if not self.by_weight:
            return self.alpha
        return (self.alpha / (len(s.lam.p) * s.lam.p[who])).to(s.x.dtype)[:, None]

    def send(self, s: State, who: Tensor) -> Work:
        return Work(s.x.expand(len(who), -1), shift=-s.lam[who], mu=self.pull(s, who))

    def step(self, s: State, r: Round) -> State:
        if not len(r.who):
            return s
        w, _ = Equal().step(Static(s.lam.p), r)
        s.lam[r.who] = s.lam[r.who] - self.pull(s, r.who) * r.delta
        return State(s.x + total(w, r.delta) - s.lam.mean / self.alpha, s.lam)

"""FedNova. Wang, Liu, Liang, Joshi, Poor, NeurIPS 2020. https://arxiv.org/abs/2007.07481

    d_i = −Δ_i / (η ‖a_i‖₁)                  the mean gradient of client i, a_i the weights its gradients entered with
    x <- x − lr η τ_eff Σ_{i ∈ S} w_i d_i    τ_eff = Σ_{i ∈ S} w_i ‖a_i‖₁ / Σ_{i ∈ S} w_i,   w_i = p_i / Σ_{j ∈ S} p_j

So clients count by their weights, however many steps each takes. ‖a_i‖₁ is K_i for plain SGD, and what `span` says for
local momentum and for a pull towards the start (FedProx around it). With equal numbers of steps it is FedAvg. The
uplink carries d_i and ‖a_i‖₁. The paper's server momentum is another wrapper's business. The paper's text was not at
hand: the rule is as its authors' code and others have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.strategy import Objection, Round, ServerStrategy, Traffic, clipped
from fedsim.weights import Present, Weights, total

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.participation import Participation


class State(NamedTuple):
    x: Tensor  # [P]
    weights: Any


@dataclass(frozen=True)
class FedNova(ServerStrategy):
    """Updates averaged per unit of work, then scaled to the mean work. Wang et al., NeurIPS 2020 (2007.07481)"""

    lr: float = 1.0
    weights: Weights = Present()

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(x, self.weights.init(p))

    def step(self, s: State, r: Round) -> State:
        import torch

        w, weights = self.weights.step(s.weights, r)
        span = r.spans("FedNova")
        d = torch.where(span > 0, -r.delta / span, 0.0)  # at rate 0 nobody moves
        effective = (w @ span[:, 0].to(w.dtype)) / w.sum().clamp(min=torch.finfo(w.dtype).tiny)  # η τ_eff
        return State(s.x - self.lr * effective.to(s.x.dtype) * total(w, d), weights)

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        return clipped("FedNova", local)

    def traffic(self, s: State, r: Round) -> Traffic:
        up, down = ServerStrategy.traffic(self, s, r)
        return Traffic(up + len(r.who) * r.delta.element_size() * 8, down)

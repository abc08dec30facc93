"""FedCM, or FedAvg-M. Xu, Wang, Wang, Yao, 2021. https://arxiv.org/abs/2106.10874
Cheng, Huang, Wu, Yuan, ICLR 2024, https://arxiv.org/abs/2306.16504, whose letters these are but for their β, which is
the first paper's α; γ = ηK · lr:

    local step:   y_i <- y_i − η ( α ∇f_i(y_i) + (1 − α) g )
    g <- −1/(ηK) Σ_{i ∈ S} w_i Δ_i        w_i = 1/|S|, g = 0 at the start
    x <- x − γ g                          (so x moves by lr times the clients' mean move)

Momentum that every client takes along, while it stays stateless; α = 1 is FedAvg. Not to be confused with momentum on
the server alone, which Flower calls FedAvgM. Where clients take different numbers of steps, ηK is the mean over those
present, so that both lines for x hold. An empty round changes nothing. The papers' texts were not at hand: the rule
follows the project's specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.strategy import Objection, Round, ServerStrategy, Traffic, Work, clipped
from fedsim.weights import Equal, Weights, total

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.participation import Participation


class State(NamedTuple):
    x: Tensor  # [P]
    g: Tensor  # [P]  the last round's mean direction
    weights: Any


@dataclass(frozen=True)
class FedCM(ServerStrategy):
    """FedAvg-M: every local step goes along the last round's direction too. Xu et al., 2021 (2106.10874)"""

    lr: float = 1.0  # γ/(ηK)
    alpha: float = 0.1  # α, of the client's own gradient
    weights: Weights = Equal()

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be above 0 and at most 1 (FedAvg), got {self.alpha}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(x, x.new_zeros(x.shape), self.weights.init(p))

    def send(self, s: State, who: Tensor) -> Work:
        return Work(s.x.expand(len(who), -1), shift=(1 - self.alpha) * s.g[None], scale=self.alpha)

    def step(self, s: State, r: Round) -> State:
        w, weights = self.weights.step(s.weights, r)
        move = total(w, r.delta)
        return State(s.x + self.lr * move, direction(s.g, move, r, self.alpha, "FedCM"), weights)

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        return clipped("FedCM", local) + twice("FedCM", local)

    def traffic(self, s: State, r: Round) -> Traffic:
        up, down = ServerStrategy.traffic(self, s, r)
        return Traffic(up, 2 * down)


def twice(strategy: str, local: LocalSGD) -> list[Objection]:
    """The objection of a strategy that has momentum to local momentum."""
    why = f"{strategy} has momentum already, and its theorem is of plain local steps: set momentum = 0 in [local]"
    return [Objection(why)] if local.momentum else []


def direction(g: Tensor, move: Tensor, r: Round, scale: float, strategy: str) -> Tensor:
    """The clients' mean move [P] per unit of ηK, downhill; the g before where nobody took a step."""
    import torch

    if not len(r.who):
        return g
    horizon = r.spans(strategy).mean() / scale  # ηK: span is that of the gradients, which are scaled
    return torch.where(horizon > 0, -move / horizon, g)

"""FedAvg-M-VR. Cheng, Huang, Wu, Yuan, ICLR 2024. https://arxiv.org/abs/2306.16504

    local step:   y_i <- y_i − η ( ∇f_i(y_i; ξ) + (1 − β) ( g − ∇f_i(x⁻; ξ) ) )     x⁻ is x of the round before
    g <- −1/(ηK |S|) Σ_{i ∈ S} Δ_i        g = 0 and x⁻ = x at the start
    x <- x − γ g                          (γ = ηK · lr: x moves by lr times the clients' mean move)

FedAvg-M whose momentum is brought up to date on the minibatch ξ at hand, as in STORM: where FedAvg-M's g lags behind
the gradient, g − ∇f(x⁻) here shrinks by 1 − β a round. Two gradients a step, one of them at a point that stays; β = 1
is FedAvg. x⁻ = x + γ g need not be sent where γ is known, so the downlink carries x and g. Deviations: the paper starts
g from an initial batch; where clients take different numbers of steps, ηK is the mean over those present. An empty
round changes nothing. The paper's text was not at hand: the rule follows the project's specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedsim.strategies.fedcm import direction, twice
from fedsim.strategy import Objection, Round, ServerStrategy, Traffic, Work, clipped

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.participation import Participation


class State(NamedTuple):
    x: Tensor  # [P]
    before: Tensor  # [P]  x⁻
    g: Tensor  # [P]  the last round's mean direction


@dataclass(frozen=True)
class FedAvgMVR(ServerStrategy):
    """FedAvg-M with its momentum brought up to date in every step. Cheng et al., ICLR 2024 (2306.16504)"""

    lr: float = 1.0  # γ/(ηK)
    beta: float = 0.1  # β, of the gradient that is not corrected

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must be above 0 and at most 1 (FedAvg), got {self.beta}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(x, x.clone(), x.new_zeros(x.shape))

    def send(self, s: State, who: Tensor) -> Work:
        k, kept = len(who), 1 - self.beta
        return Work(s.x.expand(k, -1), shift=kept * s.g[None], other=s.before.expand(k, -1), against=kept)

    def step(self, s: State, r: Round) -> State:
        if not len(r.who):
            return s
        move = r.delta.mean(0)
        return State(s.x + self.lr * move, s.x, direction(s.g, move, r, 1.0, "FedAvgMVR"))

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        return clipped("FedAvgMVR", local) + twice("FedAvgMVR", local)

    def traffic(self, s: State, r: Round) -> Traffic:
        up, down = ServerStrategy.traffic(self, s, r)
        return Traffic(up, 2 * down)

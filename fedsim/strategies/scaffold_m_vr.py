"""SCAFFOLD-M-VR. Cheng, Huang, Wu, Yuan, ICLR 2024. https://arxiv.org/abs/2306.16504

    local step:   y_i <- y_i − η ( ∇f_i(y_i; ξ) − β ( c_i − c ) + (1 − β) ( g − ∇f_i(x⁻; ξ) ) )
    c_i⁺ = 1/K Σ_k ∇f_i(y_i,k; ξ_k)
    g <- −1/(ηK |S|) Σ_{i ∈ S} Δ_i,   x <- x − γ g        (γ = ηK · lr; x⁻ is x of the round before)
    c <- c + 1/N Σ_{i ∈ S} (c_i⁺ − c_i),   c_i <- c_i⁺

SCAFFOLD-M whose momentum is brought up to date on the minibatch ξ at hand: see FedAvg-M-VR. β = 1 is SCAFFOLD, option
II. Δ_i holds the gradients at both points, so c_i⁺ cannot be told from it: the uplink carries two vectors, the downlink
x, c and g, as x⁻ = x + γ g. Deviations: the paper starts g from an initial batch, here g = 0 and x⁻ = x at the start;
where clients take different numbers of steps, ηK is the mean over those present. The paper's text was not at hand: the
rule follows the project's specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedsim.rows import Rows
from fedsim.strategies.fedcm import direction, twice
from fedsim.strategy import Objection, Round, ServerStrategy, Traffic, Work, clipped

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.participation import Participation


class State(NamedTuple):
    x: Tensor  # [P]
    before: Tensor  # [P]  x⁻
    c: Rows  # [n, P]  control variates c_i; c.mean = c
    g: Tensor  # [P]  the last round's mean direction


@dataclass(frozen=True)
class SCAFFOLDMVR(ServerStrategy):
    """SCAFFOLD-M with its momentum brought up to date in every step. Cheng et al., ICLR 2024 (2306.16504)"""

    lr: float = 1.0  # γ/(ηK)
    beta: float = 0.1  # β, of the control variates

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must be above 0 and at most 1 (SCAFFOLD), got {self.beta}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        import torch

        return State(x, x.clone(), Rows(torch.full_like(p, 1.0 / len(p)), x), x.new_zeros(x.shape))

    def send(self, s: State, who: Tensor) -> Work:
        k, kept = len(who), 1 - self.beta
        return Work(
            s.x.expand(k, -1), shift=self.beta * (s.c.mean - s.c[who]) + kept * s.g, ask=frozenset({"mean-gradient"}),
            other=s.before.expand(k, -1), against=kept,
        )  # fmt: skip

    def step(self, s: State, r: Round) -> State:
        if not len(r.who):
            return s
        move = r.delta.mean(0)
        s.c[r.who] = r.told["mean-gradient"]
        return State(s.x + self.lr * move, s.x, s.c, direction(s.g, move, r, 1.0, "SCAFFOLDMVR"))

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        return clipped("SCAFFOLDMVR", local) + twice("SCAFFOLDMVR", local)

    def traffic(self, s: State, r: Round) -> Traffic:
        up, down = ServerStrategy.traffic(self, s, r)
        return Traffic(2 * up, 3 * down)

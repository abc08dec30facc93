"""SCAFFOLD-M. Cheng, Huang, Wu, Yuan, ICLR 2024. https://arxiv.org/abs/2306.16504

    local step:   y_i <- y_i − η ( β ( ∇f_i(y_i) − c_i + c ) + (1 − β) g )
    c_i⁺ = 1/K Σ_k ∇f_i(y_i,k)  =  c_i − c − ( Δ_i/(ηK) + (1 − β) g ) / β
    g <- −1/(ηK |S|) Σ_{i ∈ S} Δ_i,   x <- x − γ g        (γ = ηK · lr)
    c <- c + 1/N Σ_{i ∈ S} (c_i⁺ − c_i),   c_i <- c_i⁺

SCAFFOLD with momentum that every client takes along; β = 1 is SCAFFOLD, option II. c_i⁺ − c_i needs Δ_i alone, so the
uplink carries one vector (`shortcut`), or Δ_i and c_i⁺ − c_i without; the downlink carries x, c and g. Where clients
take different numbers of steps, g is made with the mean ηK of those present. The paper's text was not at hand: the rule
follows the project's specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedsim.rows import Rows
from fedsim.strategies.fedcm import direction, twice
from fedsim.strategy import Objection, Round, ServerStrategy, Traffic, Work, clipped
from fedsim.weights import Equal, Static, total

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.participation import Participation


class State(NamedTuple):
    x: Tensor  # [P]
    c: Rows  # [n, P]  control variates c_i; c.mean = c
    g: Tensor  # [P]  the last round's mean direction


@dataclass(frozen=True)
class SCAFFOLDM(ServerStrategy):
    """SCAFFOLD with momentum in the local steps. Cheng et al., ICLR 2024 (2306.16504)"""

    lr: float = 1.0  # γ/(ηK)
    beta: float = 0.1  # β, of the corrected gradient
    shortcut: bool = True  # the server makes c_i⁺ − c_i itself

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must be above 0 and at most 1 (SCAFFOLD), got {self.beta}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        import torch

        return State(x, Rows(torch.full_like(p, 1.0 / len(p)), x), x.new_zeros(x.shape))

    def send(self, s: State, who: Tensor) -> Work:
        shift = self.beta * (s.c.mean - s.c[who]) + (1 - self.beta) * s.g
        return Work(s.x.expand(len(who), -1), shift=shift, scale=self.beta)

    def step(self, s: State, r: Round) -> State:
        import torch

        w, _ = Equal().step(Static(s.c.p), r)
        move, span = total(w, r.delta), r.spans("SCAFFOLDM")  # span = β ηK
        change = -s.c.mean - r.delta / span - (1 - self.beta) / self.beta * s.g
        change = torch.where(span > 0, change, 0.0)  # no step taken: nothing learned
        s.c[r.who] = s.c[r.who] + change
        return State(s.x + self.lr * move, s.c, direction(s.g, move, r, self.beta, "SCAFFOLDM"))

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        return clipped("SCAFFOLDM", local) + twice("SCAFFOLDM", local)

    def traffic(self, s: State, r: Round) -> Traffic:
        up, down = ServerStrategy.traffic(self, s, r)
        return Traffic(up if self.shortcut else 2 * up, 3 * down)

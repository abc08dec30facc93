"""MimeLite with SGD and momentum. Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, NeurIPS 2021 (as "Breaking the
centralized barrier for cross-device federated learning"). https://arxiv.org/abs/2008.03606

    local step:   y_i <- y_i − η ( (1 − β) ∇f_i(y_i) + β m )        m stays as it is during the round
    m <- (1 − β) Σ_{i ∈ S} w_i ∇F_i(x) + β m                       of whole data, where the round began
    x <- x + lr Σ_{i ∈ S} w_i Δ_i                                  w_i = 1/|S|, m = 0 at the start

The server's momentum is made of gradients at its own model and applied in every local step. β = 0 is FedAvg. A client
makes one more pass over its data and sends Δ_i and ∇F_i(x); it is sent x and m. Of the paper's optimisers this is
SGDm; Mime itself, which also corrects the local gradients, and Adam are not here. google/fedjax weighs clients by their
examples: `weights = present`. An empty round changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.strategies.fedcm import twice
from fedsim.strategy import Objection, Round, ServerStrategy, Traffic, Work
from fedsim.weights import Equal, Weights, total

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.participation import Participation


class State(NamedTuple):
    x: Tensor  # [P]
    m: Tensor  # [P]  the server's momentum
    weights: Any


@dataclass(frozen=True)
class MimeLite(ServerStrategy):
    """The server's momentum, of whole gradients, in every local step. Karimireddy et al., NeurIPS 2021 (2008.03606)"""

    lr: float = 1.0
    momentum: float = 0.9  # β
    weights: Weights = Equal()

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 (FedAvg) and below 1, got {self.momentum}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(x, x.new_zeros(x.shape), self.weights.init(p))

    def send(self, s: State, who: Tensor) -> Work:
        return Work(
            s.x.expand(len(who), -1), shift=self.momentum * s.m[None], scale=1 - self.momentum,
            ask=frozenset({"gradient-at-start"}),
        )  # fmt: skip

    def step(self, s: State, r: Round) -> State:
        w, weights = self.weights.step(s.weights, r)
        if not len(r.who):
            return s._replace(weights=weights)
        m = (1 - self.momentum) * total(w, r.told["gradient-at-start"]) + self.momentum * s.m
        return State(s.x + self.lr * total(w, r.delta), m, weights)

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        return twice("MimeLite", local)

    def traffic(self, s: State, r: Round) -> Traffic:
        up, down = ServerStrategy.traffic(self, s, r)
        return Traffic(2 * up, 2 * down)

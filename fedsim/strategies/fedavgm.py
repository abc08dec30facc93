"""FedAvgM. Hsu, Qi, Brown, 2019. https://arxiv.org/abs/1909.06335

    Δ <- what the inner strategy would move x by
    v <- β v + Δ
    x <- x + η v               with `nesterov`: x + η (Δ + β v)

Wraps any server strategy; v starts at 0. The steps are those of torch.optim.SGD on the gradient −Δ, without dampening,
and without Nesterov those of Flower's FedAvgM, whose momentum is 0 (plain FedAvg) unless it is given. In an empty round
Δ is what the inner strategy makes of nobody, and v goes on pushing. A β near 1 takes steps 1/(1 − β) times as long: set
η lower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.strategies.fedavg import FedAvg
from fedsim.strategies.fedopt import moved, needs_a_server
from fedsim.strategy import Round, Strategy, Wrapper

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [P]
    inner: Any
    v: Tensor  # [P]


@dataclass(frozen=True)
class FedAvgM(Wrapper):
    """Momentum on the server, fed by any strategy's move. Hsu, Qi & Brown, 2019 (1909.06335)"""

    inner: Strategy = FedAvg()
    lr: float = 1.0  # η
    momentum: float = 0.9  # β
    nesterov: bool = False

    def __post_init__(self) -> None:
        needs_a_server(self)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        inner = self.inner.init(x, p, key)
        return State(inner.x, inner, v=inner.x.new_zeros(inner.x.shape))

    def step(self, s: State, r: Round) -> State:
        inner, delta = moved(self, s, r)
        v = self.momentum * s.v + delta
        move = delta + self.momentum * v if self.nesterov else v
        return State(s.x + self.lr * move, inner, v)

"""FedAdagrad, FedAdam, FedYogi. Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, ICLR 2021.
https://arxiv.org/abs/2003.00295

    Δ <- what the inner strategy would move x by
    m <- β₁ m + (1 − β₁) Δ
    v <- v + Δ²                                FedAdagrad
    v <- β₂ v + (1 − β₂) Δ²                    FedAdam
    v <- v − (1 − β₂) Δ² sign(v − Δ²)          FedYogi
    x <- x + η m / (√v + τ)

They wrap any server strategy. m starts at 0 and v at `initial`: the paper has at least τ² there, Flower 0, which is the
default here. In an empty round Δ is what the inner strategy makes of nobody, and m goes on pushing; Flower's own skip
such a round.

With the defaults a round is that of Flower's strategies of these names, but for one thing: Flower's FedAdam scales η by
√(1 − β₂ᵗ)/(1 − β₁ᵗ) with t = 2, 3, ... (so its first step is not Adam's, whose t starts at 1), which the paper leaves
out. `bias_correction` does as Flower. FedYogi's default η is a tenth of the others', as it is there.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.strategies.fedavg import FedAvg
from fedsim.strategy import GossipStrategy, Round, Strategy, Wrapper, core

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [P]
    inner: Any
    m: Tensor  # [P]
    v: Tensor  # [P]
    steps: int


def moved(wrapper: Wrapper, s: Any, r: Round) -> tuple[Any, Tensor]:
    """The inner state after the round, and Δ [P], what the inner strategy moved x by."""
    x = s.x.clone()  # the inner step may write into its own
    inner = wrapper.inner.step(wrapper.within(s), r)
    return inner, inner.x - x


def needs_a_server(wrapper: Wrapper) -> None:
    """Refuses gossip: an optimiser on a server steps for all, absent nodes included."""
    if isinstance(core(wrapper.inner), GossipStrategy):
        raise ValueError(
            f"{type(wrapper).__name__} wraps a strategy with a server, and {type(core(wrapper.inner)).__name__} has"
            " none; for momentum at the nodes set momentum in [local]"
        )


@dataclass(frozen=True)
class Adaptive(Wrapper):
    """What the three have in common: all but the rule for v."""

    inner: Strategy = FedAvg()
    lr: float = 0.1  # η
    beta1: float = 0.9  # β₁
    tau: float = 1e-3  # τ
    initial: float = 0.0  # v before the first round

    def __post_init__(self) -> None:
        needs_a_server(self)
        if not (0 <= self.beta1 < 1 and 0 <= getattr(self, "beta2", 0.0) < 1 and self.tau > 0):
            raise ValueError("beta1 and beta2 must be in [0, 1) and tau positive")
        if not self.initial >= 0:
            raise ValueError(f"initial must not be negative, got {self.initial}")

    @abstractmethod
    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The next v [P], from v and Δ² [P]."""

    def rate(self, t: int) -> float:
        """η of the optimiser's step t = 1, 2, ..."""
        return self.lr

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        inner = self.inner.init(x, p, key)
        m = inner.x.new_zeros(inner.x.shape)
        return State(inner.x, inner, m, v=m + self.initial, steps=0)

    def step(self, s: State, r: Round) -> State:
        inner, delta = moved(self, s, r)
        m = self.beta1 * s.m + (1 - self.beta1) * delta
        v = self.second(s.v, delta**2)
        x = s.x + self.rate(s.steps + 1) * m / (v.sqrt() + self.tau)
        return State(x, inner, m, v, s.steps + 1)

    @property
    def linear(self) -> bool:
        return False


@dataclass(frozen=True)
class FedAdagrad(Adaptive):
    """Adagrad on the server, fed by any strategy's move. Reddi et al., ICLR 2021 (2003.00295)"""

    beta1: float = 0.0  # β₁

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


@dataclass(frozen=True)
class FedAdam(Adaptive):
    """Adam on the server, fed by any strategy's move. Reddi et al., ICLR 2021 (2003.00295)"""

    beta2: float = 0.99  # β₂
    bias_correction: bool = False  # as Flower's

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * square

    def rate(self, t: int) -> float:
        if not self.bias_correction:
            return self.lr
        return float(self.lr * (1 - self.beta2 ** (t + 1)) ** 0.5 / (1 - self.beta1 ** (t + 1)))


@dataclass(frozen=True)
class FedYogi(Adaptive):
    """Yogi on the server, fed by any strategy's move. Reddi et al., ICLR 2021 (2003.00295)"""

    lr: float = 0.01  # η
    beta2: float = 0.99  # β₂

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.beta2) * square * (v - square).sign()

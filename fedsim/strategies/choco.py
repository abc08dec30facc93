"""Choco-SGD. Koloskova, Stich, Jaggi, ICML 2019. https://arxiv.org/abs/1902.00340

Everybody keeps a public copy x̂_j of each neighbour's model and of its own, and only what the copies lack is sent,
compressed:

    x½_i = x_i + Δ_i           q_i = Q(x½_i − x̂_i)           x̂_i <- x̂_i + q_i, sent           (x̂ = 0 at first)
    x_i <- x½_i + γ Σ_j W_ij (x̂_j − x̂_i)

The copies are the same at all who keep them, so one x̂_i is kept here. The network's mean is that of plain averaging,
whatever Q is; with Q = identity and γ = 1 the whole is D-PSGD, adapt then combine. γ has to be small enough for Q.

An absent node keeps x_i and x̂_i; on its return it is taken to have received what the others sent meanwhile, which is
not counted as traffic again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from fedsim import keyed
from fedsim.compress import Compressor, TopK
from fedsim.mixing import Edges, Metropolis, Mixing
from fedsim.strategies.gossip import adapted, keeps_the_mean, one_each
from fedsim.strategy import Averaging, Exchange, Round, Traffic

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [n, P]
    hat: Tensor  # [n, P]  public copies
    key: int


@dataclass(frozen=True)
class ChocoSGD(Averaging):
    """Gossip that sends compressed differences from public copies. Koloskova et al., ICML 2019 (1902.00340)"""

    mixing: Mixing = Metropolis()
    compressor: Compressor = TopK()
    gamma: float = 0.1  # step of the averaging
    plain: ClassVar[str | None] = "the public copies belong to plain averages"

    def __post_init__(self) -> None:
        keeps_the_mean("ChocoSGD", self.mixing)
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be above 0 and at most 1, got {self.gamma}")

    @property
    def linear(self) -> bool:
        return self.compressor.exact

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        x = one_each(x, p)
        return State(x, x.new_zeros(x.shape), key)

    def exchange(self, s: State, r: Round) -> tuple[Exchange, State]:
        W, half = self.edges(s, r), adapted(s.x, r)
        q = self.compressor(half[r.who] - s.hat[r.who], keyed.fold(s.key, "compress", r.t, r.who))
        s.hat.index_add_(0, r.who, q)
        damped = Edges(W.i, W.j, self.gamma * W.w, 1 - self.gamma * (1 - W.diagonal))  # I + γ (W − I)
        return Exchange(s.hat, damped, half - s.hat), s

    def settle(self, s: State, r: Round, x: Tensor) -> State:
        return s._replace(x=s.x.index_copy(0, r.who, x[r.who]))  # x̂ + (x − x̂) of the absent is x but for rounding

    def traffic(self, s: State, r: Round) -> Traffic:
        bits = self.compressor.bits(s.x.shape[1], s.x.element_size() * 8)
        return Traffic(up=self.edges(s, r).sent() * bits, down=0)

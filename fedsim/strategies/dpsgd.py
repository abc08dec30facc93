"""D-PSGD. Lian, Zhang, Zhang, Hsieh, Zhang, Liu, NeurIPS 2017. https://arxiv.org/abs/1705.09056

    x_i <- Σ_j W_ij x_j + Δ_i          Δ_i = −γ g_i(x_i): combine, then adapt ("cta", as published)
    x_i <- Σ_j W_ij (x_j + Δ_j)        adapt, then combine ("atc")

Δ_i may be any number of local steps. W comes from `mixing` over the nodes present; an absent node keeps its model.
Local momentum, if there is any, stays with its node from round to round (`keep_momentum`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from fedsim.mixing import Metropolis, Mixing
from fedsim.strategies.gossip import adapted, averages, begin, left, one_each, spread
from fedsim.strategy import Averaging, Exchange, Round, Work

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [n, P]
    velocity: Tensor | None  # [n, P]  local momentum; None until a client reports one
    key: int


@dataclass(frozen=True)
class DPSGD(Averaging):
    """Local steps and averaging with the neighbours, no server. Lian et al., NeurIPS 2017 (1705.09056)"""

    mixing: Mixing = Metropolis()
    order: Literal["cta", "atc"] = "cta"
    keep_momentum: bool = True

    def __post_init__(self) -> None:
        averages("DPSGD", self.mixing)
        if self.order not in ("cta", "atc"):
            raise ValueError(
                f"order must be 'cta' (combine, then adapt) or 'atc' (adapt, then combine), got {self.order!r}"
            )

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(one_each(x, p), None, key)

    def send(self, s: State, who: Tensor) -> Work:
        return begin(s, who, self.keep_momentum)

    def exchange(self, s: State, r: Round) -> tuple[Exchange, State]:
        if self.order == "atc":
            models, rest = adapted(s.x, r), None
        else:
            models, rest = s.x, spread(r.delta, r, len(s.x))
        return Exchange(models, self.edges(s, r), rest), s._replace(velocity=left(s, r))

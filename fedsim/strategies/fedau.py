"""FedAU. Wang & Ji, ICLR 2024. https://arxiv.org/abs/2306.03401

    x <- x + η Σ_{i ∈ S} p_i ω_i Δ_i        p_i = 1/N: divided by all clients, never by |S|

    for every client i, present or not:                  (the interval estimate, `fedsim.weights.Interval`)
        S_i += 1
        if i ∈ S or S_i = K:   ω_i <- (M_i ω_i + S_i)/(M_i + 1);  M_i += 1;  S_i = 0

The weight used in a round knows only the rounds before it; ω_i = 1 until client i's first interval ends. The
published objective is uniform, p_i = 1/N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedsim.strategy import Round, ServerStrategy
from fedsim.weights import Interval, Intervals, total

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [P]
    intervals: Intervals  # [n] M, S, ω


@dataclass(frozen=True)
class FedAU(ServerStrategy):
    """FedAvg weighted by each client's mean interval between participations. Wang & Ji, ICLR 2024 (2306.03401)"""

    lr: float = 1.0  # η
    cutoff: int | None = None  # K, in rounds; None: infinity

    def __post_init__(self) -> None:
        Interval(self.cutoff)  # refuses an impossible K

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(x, Interval(self.cutoff).init(p))

    def step(self, s: State, r: Round) -> State:
        w, intervals = Interval(self.cutoff).step(s.intervals, r)
        return State(s.x + self.lr * total(w, r.delta), intervals)

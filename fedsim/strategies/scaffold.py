"""SCAFFOLD, option II. Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, ICML 2020. https://arxiv.org/abs/1910.06378

    local step:   y_i <- y_i − η_l ( ∇f_i(y_i) − c_i + c )
    c_i⁺ = c_i − c − Δ_i / (K η_l)        (the mean of client i's raw gradients)
    x <- x + η/|S| Σ_{i ∈ S} Δ_i
    c <- c + 1/N Σ_{i ∈ S} (c_i⁺ − c_i),   c_i <- c_i⁺

c is always the mean of all c_i, so the table of c_i keeps it. c_i⁺ − c_i needs Δ_i alone, so the server can form it and
the uplink carries one vector; the downlink carries x and c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedsim.rows import Rows
from fedsim.strategy import Round, ServerStrategy, Traffic, Work
from fedsim.weights import Equal, Static, total

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [P]
    c: Rows  # [n, P]  control variates c_i; c.mean = c


@dataclass(frozen=True)
class SCAFFOLD(ServerStrategy):
    """Local steps corrected by control variates, option II. Karimireddy et al., ICML 2020 (1910.06378)"""

    lr: float = 1.0  # η

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        import torch

        return State(x, Rows(torch.full_like(p, 1.0 / len(p)), x))

    def send(self, s: State, who: Tensor) -> Work:
        return Work(s.x.expand(len(who), -1), shift=s.c.mean - s.c[who])

    def step(self, s: State, r: Round) -> State:
        import torch

        if r.span is None:
            raise ValueError("SCAFFOLD needs delta = -span * mean gradient, which clipping breaks: leave out `clip`")
        w, _ = Equal().step(Static(s.c.p), r)
        x = s.x + self.lr * total(w, r.delta)
        span = r.span[:, None]
        change = torch.where(span > 0, -s.c.mean - r.delta / span, 0.0)  # no step taken: nothing learned
        s.c[r.who] = s.c[r.who] + change
        return State(x, s.c)

    def traffic(self, s: State, r: Round) -> Traffic:
        up, down = ServerStrategy.traffic(self, s, r)
        return Traffic(up, 2 * down)

"""FedStale. Rodio & Neglia, 2024. https://arxiv.org/abs/2405.04171

    x   <- x + η ( Σ_{i ∈ S} w_i Δ_i + β ( Σ_i p_i h_i − Σ_{i ∈ S} w_i h_i ) )        w_i = p_i/π_i
    h_i <- Δ_i  for i ∈ S        (after x has moved; h = 0 at the start)

β weighs fresh against stale: 0 is FedAvg and 1 FedVARP, both with the same weights. Unknown π_i are replaced by 1/ω_i
of FedAU, as the authors' code does; `weights = known` takes them as given. This is the one rule that FedAvg, FedAU,
FedVARP and MIFA (β = 1, `weights = all`) are cases of. In an empty round x moves by β times the mean memory; the
released code skips such rounds instead (`skip_empty`).

`beta = "auto"` is ours, not the paper's. For independent presence the move has the variance Σ_i c_i ‖Δ_i − β h_i‖² with
c_i = p_i² (1 − π_i)/π_i, which is least at

    β* = Σ_i c_i <Δ_i, h_i> / Σ_i c_i ‖h_i‖²          clipped to [0, 1]

Both sums are estimated over those present, weighted by c_i/π_i = w_i (w_i − p_i), and kept as running sums in which a
round with anybody present counts 0.99 times as much as the next. β is made from the rounds before only (0 until
somebody was heard twice): if it knew who is present now, the move would no longer be unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fedsim.rows import Rows
from fedsim.strategy import Round, ServerStrategy
from fedsim.weights import All, Interval, Weights

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 0.99  # of the running sums, a round


class State(NamedTuple):
    x: Tensor  # [P]
    h: Rows  # [n, P]  latest update of each client; h.mean = Σ_i p_i h_i
    weights: Any
    sums: Tensor  # [2]  running Σ c <Δ, h> and Σ c ‖h‖², float64; 0 where β is given


@dataclass(frozen=True)
class FedStale(ServerStrategy):
    """A convex combination of fresh and stale updates, weighted by β. Rodio & Neglia, 2024 (2405.04171)"""

    lr: float = 1.0  # η
    beta: float | Literal["auto"] = 0.5  # β
    weights: Weights = Interval()
    skip_empty: bool = False  # leave x alone when nobody is present

    def __post_init__(self) -> None:
        if isinstance(self.beta, str):
            if self.beta != "auto":
                raise ValueError(f"beta must be a number from 0 to 1, or 'auto', got {self.beta!r}")
            if isinstance(self.weights, All):
                raise ValueError("beta 'auto' needs weights that tell how likely clients are: known or fedau, not all")
        elif not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be between 0 (FedAvg) and 1 (FedVARP), got {self.beta}")

    @property
    def linear(self) -> bool:
        return self.beta != "auto"

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        import torch

        return State(x, Rows(p, x), self.weights.init(p), torch.zeros(2, dtype=torch.float64, device=x.device))

    def step(self, s: State, r: Round) -> State:
        w, weights = self.weights.step(s.weights, r)
        if self.skip_empty and not len(r.who):
            return s._replace(weights=weights)
        mean, sums = s.h.mean, s.sums
        beta: float | Tensor
        if isinstance(self.beta, str):
            beta = best(s.sums).to(s.x.dtype)
            sums = learn(s.sums, w, s.h.p[r.who], r.delta, s.h[r.who])
        else:
            beta = self.beta
        fresh, stale = (part.to(s.x.dtype) for part in s.h.exchange(r.who, r.delta, w))  # of Δ_i and h_i; h_i <- Δ_i
        x = s.x + self.lr * (fresh + beta * (mean - stale))
        return State(x, s.h, weights, sums)


def best(sums: Tensor) -> Tensor:
    """β* [] of the sums [2], float64; 0 where nothing is known of it."""
    import torch

    along, size = sums
    return torch.where(size > 0, along / torch.where(size > 0, size, 1.0), 0.0).clamp(0, 1)


def learn(sums: Tensor, w: Tensor, p: Tensor, delta: Tensor, h: Tensor) -> Tensor:
    """The sums [2] with a round in them: weights w [k] and p [k], updates and memories [k, P]."""
    import torch

    if not len(w):
        return sums
    c = w * (w - p).clamp(min=0)
    seen = torch.stack([torch.linalg.vecdot(delta, h), torch.linalg.vecdot(h, h)], dim=1).to(c.dtype)
    return KEPT * sums + c @ seen

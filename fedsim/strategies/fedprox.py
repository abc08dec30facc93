"""FedProx. Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, MLSys 2020. https://arxiv.org/abs/1812.06127

    client i minimises F_i(y) + μ/2 ‖y − x‖²:   y <- y − γ ( ∇f_i(y) + μ (y − x) )

Only the local work changes, so it wraps any strategy; the authors' code averages with the objective's weights,
renormalised over those present, which is the default here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.strategies.fedavg import FedAvg
from fedsim.strategy import Strategy, Work, Wrapper

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FedProx(Wrapper):
    """A pull towards the start in every local step, under any strategy. Li et al., MLSys 2020 (1812.06127)"""

    inner: Strategy = FedAvg()
    mu: float = 0.01  # μ

    def __post_init__(self) -> None:
        if self.mu < 0:
            raise ValueError(f"mu must not be negative, got {self.mu}")

    def send(self, s: Any, who: Tensor) -> Work:
        work = self.inner.send(self.within(s), who)
        return work._replace(mu=work.mu + self.mu)

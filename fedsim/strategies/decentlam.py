"""DecentLaM. Yuan, Chen, Huang, Zhang, Pan, Xu, Yin, ICCV 2021. https://arxiv.org/abs/2104.11981

    g̃ = (x − W (x − γ g(x))) / γ           m <- β m + g̃           x <- x − γ m

Momentum of what the node really does, averaging included: the limit is that of D-PSGD, adapt then combine, at γ itself,
where DmSGD's is that at γ/(1 − β). The same in one line, with m = (x of last time − x) / γ:

    x_i <- Σ_j W_ij (x_j + Δ_j) − γ β m_i

γ is the round's largest span: the learning rate with one local step; with several, Δ is the whole turn and m still in
units of gradients. An absent node keeps x_i and m_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsim.strategies.gossip import Momentum, Rolling, adapted, longest, per, spread
from fedsim.strategy import Exchange, Round

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DecentLaM(Momentum):
    """Momentum of steps and averaging together, which adds no bias. Yuan et al., ICCV 2021 (2104.11981)"""

    plain: ClassVar[str | None] = "its momentum holds what plain averaging does"

    def exchange(self, s: Rolling, r: Round) -> tuple[Exchange, Rolling]:
        rolling = -longest("DecentLaM", r) * self.beta * s.m[r.who]
        return Exchange(adapted(s.x, r), self.edges(s, r), spread(rolling, r, len(s.x))), s

    def settle(self, s: Rolling, r: Round, x: Tensor) -> Rolling:
        import torch

        span = longest("DecentLaM", r)
        s.m[r.who] = torch.where(span > 0, per(s.x[r.who] - x[r.who], span), s.m[r.who])
        return s._replace(x=x)

"""DmSGD: decentralised SGD with momentum that stays at home, as it stands beside DecentLaM in Yuan, Chen, Huang, Zhang,
Pan, Xu, Yin, ICCV 2021. https://arxiv.org/abs/2104.11981

    m_i <- β m_i + g_i(x_i)           x_i <- Σ_j W_ij (x_j − γ m_j)

Its limit is that of D-PSGD, adapt then combine, with γ/(1 − β): momentum makes the bias from unlike data larger.

With several local steps m_i stands still during the turn (it is the shift, β m_i) and g_i is the turn's mean gradient.
For momentum that moves with every step take DPSGD, order "atc", and momentum in the local training; with one step the
two are the same. An absent node keeps x_i and m_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.strategies.gossip import Momentum, Rolling, adapted, spans
from fedsim.strategy import Exchange, Round, Work

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DmSGD(Momentum):
    """Decentralised SGD with momentum that is not averaged. See Yuan et al., ICCV 2021 (2104.11981)"""

    def send(self, s: Rolling, who: Tensor) -> Work:
        return Work(s.x[who], shift=self.beta * s.m[who])

    def exchange(self, s: Rolling, r: Round) -> tuple[Exchange, Rolling]:
        import torch

        span = spans("DmSGD", r)
        s.m[r.who] = torch.where(span > 0, -r.delta / span, s.m[r.who])  # β m + g
        return Exchange(adapted(s.x, r), self.edges(s, r), None), s

"""Quasi-global momentum, QG-DSGDm. Lin, Karimireddy, Stich, Jaggi, ICML 2021. https://arxiv.org/abs/2102.04761

    x½ = x − γ (β m + g(x))           x⁺ = W x½           m <- β m + (1 − β) (x − x⁺) / γ

The momentum follows the model's way through the network instead of the node's own gradients.

γ is the round's largest span: the learning rate with one local step. With several, m stands still during the turn (it
is the shift, β m) and x − x⁺ is the whole turn's way. An absent node keeps x_i and m_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.strategies.gossip import Momentum, Rolling, adapted, longest, per
from fedsim.strategy import Exchange, Round, Work

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class QGDSGDm(Momentum):
    """Momentum of the model's way through the network, QG-DSGDm. Lin et al., ICML 2021 (2102.04761)"""

    def send(self, s: Rolling, who: Tensor) -> Work:
        return Work(s.x[who], shift=self.beta * s.m[who])

    def exchange(self, s: Rolling, r: Round) -> tuple[Exchange, Rolling]:
        return Exchange(adapted(s.x, r), self.edges(s, r), None), s

    def settle(self, s: Rolling, r: Round, x: Tensor) -> Rolling:
        import torch

        span, m = longest("QGDSGDm", r), s.m[r.who]
        way = self.beta * m + (1 - self.beta) * per(s.x[r.who] - x[r.who], span)
        s.m[r.who] = torch.where(span > 0, way, m)
        return s._replace(x=x)

"""Exact Diffusion. Yuan, Ying, Zhao, Sayed, 2018. https://arxiv.org/abs/1702.05122

    ψ⁺ = x − γ g(x)           adapt
    φ  = ψ⁺ + x − ψ           correct           ψ = x at first
    x  <- (I + W)/2 φ         combine           ψ <- ψ⁺

The correction x − ψ is what the last combination did after the node had adapted. It is kept in units of gradients,
c_i = (ψ_i − x_i) / s with s the round's largest span (γ with one step), and taken along in the local steps, so that
they end at φ and not at ψ⁺. With one step that is the above; with several, or unequally many, x* with c_i = −∇f_i(x*)
stays where it is: no bias. Σ_i c_i = 0 always; an absent node keeps x_i and c_i.

It is D² with (I + W)/2 for W, which has no eigenvalue below 0: any symmetric W will do. That is how it is written here.
As with D², it converged with 60 % of the nodes there at a time and diverged, if slowly, with 20 %; gradient tracking is
safer then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.mixing import Edges
from fedsim.strategies.d2 import D2
from fedsim.strategies.gossip import Corrected, Tracked
from fedsim.strategy import Round

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ExactDiffusion(D2):
    """Adapt, correct, combine: no bias on any symmetric graph. Yuan, Ying, Zhao & Sayed, 2018 (1702.05122)"""

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Tracked:
        return Corrected.init(self, x, p, key)

    def edges(self, s: Tracked, r: Round) -> Edges:
        w = D2.edges(self, s, r)
        return w._replace(w=w.w / 2, diagonal=(1 + w.diagonal) / 2)

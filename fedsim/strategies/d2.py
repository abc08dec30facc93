"""D². Tang, Lian, Yan, Zhang, Liu, ICML 2018. https://arxiv.org/abs/1803.07068

    x^{t+1} = W (2 x^t − x^{t−1} − γ g^t + γ g^{t−1})           x^1 = W (x^0 − γ g^0)

What the averaging did to a node is remembered and undone in its next steps, so that only the mean gradient is left to
move it. In units of gradients, s being the round's largest span (γ with one step):

    φ_i = x_i + Δ_i, steps taken with c_i added to every gradient           x_i <- Σ_j W_ij φ_j
    c_i <- c_i + (φ_i − x_i) / s                                            from c = 0

With one local step this is the recursion above. With several, or unequally many, x* with c_i = −∇f_i(x*) stays where it
is: no bias. Σ_i c_i = 0 always; an absent node keeps x_i and c_i. If γ changes, c is in units that stay right.

W has to be symmetric with all eigenvalues above −1/3, checked before round 0 with everybody there. Where presence
changes from round to round nothing is proven: in our tests it converged with 60 % of the nodes there at a time and
diverged with 20 %, where gradient tracking still converged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsim.mixing import Edges
from fedsim.strategies.gossip import Corrected, Tracked, adapted, longest, per
from fedsim.strategy import Exchange, Round

if TYPE_CHECKING:
    from torch import Tensor


def smallest_eigenvalue(edges: Edges) -> float:
    """λ_min of a symmetric W. Raises ValueError if it is not symmetric."""
    from fedsim.spectrum import as_matrix, bottom

    W = as_matrix(edges)
    if abs(W - W.T).max() > 1e-12:
        raise ValueError("D2 needs symmetric weights, and these are not; take mixing = metropolis")
    return bottom(W)


@dataclass(frozen=True)
class D2(Corrected):
    """Undoes what averaging did to a node's own gradient: no bias. Tang et al., ICML 2018 (1803.07068)"""

    plain: ClassVar[str | None] = "it takes back what plain averaging did"

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Tracked:
        import torch

        least = smallest_eigenvalue(self.mixing(0, torch.arange(len(p), device=x.device), key))
        if least <= -1 / 3 + 1e-9:
            raise ValueError(
                f"D2 needs weights whose smallest eigenvalue is above -1/3, here it is {least:.5f}: take "
                "ExactDiffusion, which is D2 with (I + W)/2, or another topology"
            )
        return Corrected.init(self, x, p, key)

    def exchange(self, s: Tracked, r: Round) -> tuple[Exchange, Tracked]:
        return Exchange(adapted(s.x, r), self.edges(s, r), None), s

    def settle(self, s: Tracked, r: Round, x: Tensor) -> Tracked:
        undone = s.x[r.who] + r.delta - x[r.who]  # φ − x
        return s._replace(x=x, c=s.c.index_add_(0, r.who, per(undone, longest(type(self).__name__, r))))

"""FedRep. Collins, Hassani, Mokhtari, Shakkottai, ICML 2021. https://arxiv.org/abs/2102.07078

    client i, first:   h_i <- h_i − η ∇_h f_i(φ, h_i)       its head, for a share `head` of its steps; φ stands still
    and then:          φ_i <- φ_i − η ∇_φ f_i(φ_i, h_i)     the representation, for the rest; h_i stands still
    φ <- Σ_i w_i φ_i  over those present

Of Personal's two parts the local one, h_i, is trained first and the shared one, φ, then: FedPer trains both at once. So
it goes around Personal, which says what is kept (`keep`) and what the server makes of φ (`inner`), at any depth. What
stands still is neither stepped nor decayed nor pulled, and its local momentum waits, as with requires_grad = False in
torch; clipping is of the gradient of what moves. Every step computes the whole gradient all the same.

In the paper's analysis φ is linear and one step of it follows a head fitted exactly: φ gets as near to the true
subspace as one likes, geometrically, from clients whose data differ. `head` rounds down, so a turn ends with a step of
φ at least; who does a part of its work does that part of both. The default stands for ten local epochs of the head and
one of the representation. An empty round changes nothing. The paper's text and its authors' code were not at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.strategies.personal import Personal
from fedsim.strategy import Objection, Phase, Strategy, Work, Wrapper

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.participation import Participation


@dataclass(frozen=True)
class FedRep(Wrapper):
    """Clients train the part they keep first, then the shared one. Collins et al., ICML 2021 (2102.07078)"""

    inner: Strategy = Personal()
    head: float = 10 / 11  # share of a client's steps that train the part it keeps

    def __post_init__(self) -> None:
        if not 0 <= self.head < 1:
            raise ValueError(f"head must be at least 0 and below 1, a share of a client's steps, got {self.head}")
        self.parts  # noqa: B018  there are any

    @property
    def parts(self) -> Personal:
        """Who says what clients keep."""
        inner = self.inner
        while isinstance(inner, Wrapper) and not isinstance(inner, Personal | FedRep):
            inner = inner.inner
        if not isinstance(inner, Personal):
            raise ValueError(
                'FedRep trains the part that clients keep, then the rest: put Personal inside, inner = "Personal"'
            )
        return inner

    def send(self, s: Any, who: Tensor) -> Work:
        import torch

        work = self.inner.send(self.within(s), who)
        kept = torch.zeros(s.x.shape, dtype=torch.bool, device=s.x.device)
        kept = kept.index_fill(0, self.parts.split(s.x).meant, True)
        return work._replace(phases=(Phase(self.head, kept, counts=False), Phase(1 - self.head, ~kept)))

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        found = Wrapper.objections(self, local, participation)
        if self.head and local.steps is not None and math.floor(self.head * local.steps + 1e-6) == 0:
            why = (
                f"FedRep: a share of {self.head:.3g} of {local.steps} local steps is none, so heads stay as they began"
            )
            found.append(Objection(f"{why}: take more steps, or epochs"))
        return found

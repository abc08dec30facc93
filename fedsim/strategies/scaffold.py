"""SCAFFOLD. Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, ICML 2020. https://arxiv.org/abs/1910.06378

    local step:   y_i <- y_i − η_l ( ∇f_i(y_i) − c_i + c )
    option I:     c_i⁺ = ∇F_i(x)                       (another pass over the client's data)
    option II:    c_i⁺ = c_i − c − Δ_i / (K η_l)       (the mean of client i's raw gradients)
    x <- x + η/|S| Σ_{i ∈ S} Δ_i
    c <- c + 1/N Σ_{i ∈ S} (c_i⁺ − c_i),   c_i <- c_i⁺

c is always the mean of all c_i, so the table of c_i keeps it. The downlink carries x and c. The uplink carries Δ_i and
c_i⁺ − c_i, as published; in option II the latter is −c − Δ_i/(K η_l), without c_i, so a server that knows K η_l forms
it from Δ_i and half the uplink is saved: `shortcut`, which is taken where it can be unless told otherwise. It changes
what is sent, and no number. K η_l is `span`, so clients may take different numbers of steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from fedsim.rows import Rows
from fedsim.strategy import Objection, Round, ServerStrategy, Traffic, Work, clipped
from fedsim.weights import Equal, Static, total

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.participation import Participation


HEAVY = (
    "SCAFFOLD's theorem is of plain local steps; with local momentum the first gradients of a turn weigh more than the"
    " last, in control variates and in moves: set momentum = 0, or use SCAFFOLDM, whose momentum is the server's"
)


class State(NamedTuple):
    x: Tensor  # [P]
    c: Rows  # [n, P]  control variates c_i; c.mean = c


@dataclass(frozen=True)
class SCAFFOLD(ServerStrategy):
    """Local steps corrected by control variates, options I and II. Karimireddy et al., ICML 2020 (1910.06378)"""

    lr: float = 1.0  # η
    option: Literal["I", "II"] = "II"  # what a control variate is made of
    shortcut: bool | None = None  # whether the server makes c_i⁺ − c_i itself; None: in option II

    def __post_init__(self) -> None:
        if self.option not in ("I", "II"):
            raise ValueError(f"option must be I or II, got {self.option!r}")
        if self.shortcut and self.option == "I":
            raise ValueError("shortcut needs option II: a gradient at the start cannot be told from how far one moved")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        import torch

        return State(x, Rows(torch.full_like(p, 1.0 / len(p)), x))

    def send(self, s: State, who: Tensor) -> Work:
        ask = frozenset({"gradient-at-start"}) if self.option == "I" else frozenset[str]()
        return Work(s.x.expand(len(who), -1), shift=s.c.mean - s.c[who], ask=ask)

    def step(self, s: State, r: Round) -> State:
        import torch

        w, _ = Equal().step(Static(s.c.p), r)
        x = s.x + self.lr * total(w, r.delta)
        if self.option == "I":
            if len(r.who):
                s.c[r.who] = r.told["gradient-at-start"]
            return State(x, s.c)
        span = r.spans("SCAFFOLD, option II,")
        change = torch.where(span > 0, -s.c.mean - r.delta / span, 0.0)  # no step taken: nothing learned
        s.c[r.who] = s.c[r.who] + change
        return State(x, s.c)

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        found = clipped("SCAFFOLD, option II,", local) if self.option == "II" else []
        if local.momentum:
            found.append(Objection(HEAVY))
        return found

    def traffic(self, s: State, r: Round) -> Traffic:
        up, down = ServerStrategy.traffic(self, s, r)
        saved = self.option == "II" and self.shortcut is not False
        return Traffic(up if saved else 2 * up, 2 * down)

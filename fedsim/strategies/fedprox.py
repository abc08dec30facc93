"""FedProx. Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, MLSys 2020. https://arxiv.org/abs/1812.06127

    client i minimises h_i(y; x) = F_i(y) + μ/2 ‖y − x‖²:   y <- y − γ ( ∇f_i(y) + μ (y − x) )

until ‖∇h_i(y; x)‖ ≤ γ_i ‖∇h_i(x; x)‖, or for as long as it has time. Only the local work changes, so it wraps any
strategy. Who is asked and who counts how much differ between the paper and its authors' code (litian96/FedProx):

                         asked                                      counts                   `scheme`
    the paper            K clients, each with probability n_i/n     1/K                      "paper"
    the authors' code    K clients uniformly                        n_i / Σ_{j ∈ S} n_j      "code"

`scheme` gives the FedAvg inside these weights; who is asked is the participation's: `selected` by size, or `uniform`.
Clients that do part of their work (`partial-work`) are the paper's stragglers: it keeps them, and what it calls FedAvg
drops them. `stragglers = "drop"` does so with any strategy inside, for which they were then absent: they are sent the
model and send nothing back. So FedProx(mu=0, stragglers="drop") is that FedAvg, on the schedule that FedProx has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from fedsim.strategies.fedavg import FedAvg
from fedsim.strategies.feddyn import FedDyn
from fedsim.strategy import Objection, Round, Strategy, Traffic, Work, Wrapper, core
from fedsim.weights import Equal, Present, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.participation import Participation

ALIKE = (
    'scheme "paper" counts everyone alike because the server picks by size, and this one does not: use'
    ' participation = {name = "selected", of = "everyone", k = 10, by = "size"}, or scheme "code"'
)
SCHEMES: dict[str, Weights] = {"paper": Equal(), "code": Present()}


@dataclass(frozen=True)
class FedProx(Wrapper):
    """A pull towards the start in every local step, under any strategy. Li et al., MLSys 2020 (1812.06127)"""

    inner: Strategy = FedAvg()
    mu: float = 0.01  # μ
    scheme: Literal["paper", "code"] | None = None  # whose weights; None: those of `inner`
    stragglers: Literal["keep", "drop"] = "keep"  # who did part of the work only

    def __post_init__(self) -> None:
        if self.mu < 0:
            raise ValueError(f"mu must not be negative, got {self.mu}")
        if self.stragglers not in ("keep", "drop"):
            raise ValueError(f"stragglers must be keep or drop, got {self.stragglers!r}")
        if self.scheme is None:
            return
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme must be paper or code, got {self.scheme!r}")
        own = SCHEMES[self.scheme]
        if not isinstance(self.inner, FedAvg) or self.inner.weights not in (Present(), own):
            raise ValueError(f"scheme {self.scheme} sets the weights of FedAvg, and inner has its own: leave one out")
        object.__setattr__(self, "inner", replace(self.inner, weights=own))

    def send(self, s: Any, who: Tensor) -> Work:
        work = self.inner.send(self.within(s), who)
        return work._replace(mu=work.mu + self.mu)

    def surveyed(self, s: Any, r: Round) -> Any:
        return Wrapper.surveyed(self, s, self.heard(r))

    def step(self, s: Any, r: Round) -> Any:
        return Wrapper.step(self, s, self.heard(r))

    def heard(self, r: Round) -> Round:
        """The round as far as it counts."""
        return r if self.stragglers == "keep" or r.effort is None else r.only(r.effort >= 1)

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        found = Wrapper.objections(self, local, participation)
        if self.mu and isinstance(core(self), FedDyn):
            why = "FedDyn learns its gradients from its own pull alone: raise its alpha instead of putting mu around it"
            found.append(Objection(why))
        if self.scheme and participation is not None:
            by_size = picks_by_size(participation)
            if self.scheme == "paper" and not by_size:
                found.append(Objection(ALIKE))
            if self.scheme == "code" and by_size:
                found.append(
                    Objection('scheme "code" weighs by size who was picked by size already: use scheme "paper"')
                )
        return found

    def traffic(self, s: Any, r: Round) -> Traffic:
        inner = self.within(s)
        return Traffic(self.inner.traffic(inner, self.heard(r)).up, self.inner.traffic(inner, r).down)


def picks_by_size(participation: Any) -> bool:
    """Whether a server picks clients by their size, at any stage of a participation."""
    while participation is not None:
        if getattr(participation, "by", None) == "size":
            return True
        participation = getattr(participation, "of", None)
    return False

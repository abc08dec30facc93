"""Mime and MimeLite. Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, NeurIPS 2021 (as "Breaking the centralized
barrier for cross-device federated learning"). https://arxiv.org/abs/2008.03606

    MimeLite      y_i <- y_i − η U(∇f_i(y_i; ξ))
    Mime          y_i <- y_i − η U(∇f_i(y_i; ξ) − ∇f_i(x; ξ) + c)      c = Σ_{i ∈ S} w_i ∇F_i(x), of whole data
    U(g) = ((1 − β) g + β m) / (√v + τ)      m and v stay as they are during the round;  over 1 without a v
    m <- (1 − β) c + β m                     the server's statistics, of gradients at its own model
    v <- β₂ v + (1 − β₂) c²   (adam, rmsprop),   v + c²   (adagrad)
    x <- x + lr Σ_{i ∈ S} w_i Δ_i            w_i = 1/|S|, m = 0 and v = `initial` at the start

Clients take the steps of a centralised optimiser, `base`, whose statistics are the server's: SGD with momentum, Adam,
RMSProp (Adam with β = 0) or Adagrad (β = 0). With β = 0 and no v MimeLite is FedAvg. A client makes one more pass over
its data and sends Δ_i and ∇F_i(x); it is sent x and what `base` has of m and v, by Mime c as well. That c is known
before anybody trains takes Mime a second exchange in the round, and its correction a second gradient in every step; in
return clients whose data differ do not pull x away from where ∇f = 0.

google/fedjax weighs clients by their examples (`weights = present`) and has its optimiser take in every local gradient;
here the statistics stand still, as the paper says. Bias is not corrected: v starts at `initial` instead. Mime's
correction is of the data's gradients alone and so goes without weight decay. An empty round changes nothing. The
paper's text was not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fedsim.strategies.fedcm import twice
from fedsim.strategy import Objection, Round, ServerStrategy, Traffic, Work
from fedsim.weights import Equal, Weights, total

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.participation import Participation

BETAS = {"momentum": 0.9, "adam": 0.9, "rmsprop": 0.0, "adagrad": 0.0}  # β where it is left out
AVERAGES = ("adam", "rmsprop")  # whose v is a moving average
PLAIN = (
    "Mime's correction is of the data's gradients alone: set weight-decay = 0 in [local] (it would pull to where a turn"
    " began) and leave out clip (it would not know which gradient is meant), or use MimeLite"
)


class State(NamedTuple):
    x: Tensor  # [P]
    m: Tensor  # [P]  the server's momentum
    v: Tensor  # [P]  its second moment; not in use with base = "momentum"
    c: Tensor  # [P]  the last mean gradient at the server's model
    weights: Any


@dataclass(frozen=True)
class Mimicry(ServerStrategy):
    """What the two have in common: the optimiser that clients mimic, and its statistics."""

    lr: float = 1.0
    momentum: float | None = None  # β; left out: 0.9, of rmsprop and adagrad 0
    weights: Weights = Equal()
    base: Literal["momentum", "adam", "rmsprop", "adagrad"] = "momentum"
    beta2: float | None = None  # β₂, of adam and rmsprop; left out: 0.99
    tau: float | None = None  # τ, of all but momentum; left out: 0.001
    initial: float | None = None  # v at the start; left out: 0.1

    def __post_init__(self) -> None:
        if self.base not in BETAS:
            raise ValueError(f"base must be one of {', '.join(BETAS)}, got {self.base!r}")
        usual = {"momentum": BETAS[self.base]}
        usual |= {"beta2": 0.99} if self.base in AVERAGES else {}
        usual |= {"tau": 1e-3, "initial": 0.1} if self.base != "momentum" else {}
        for name in ("momentum", "beta2", "tau", "initial"):
            given = getattr(self, name)
            if given is not None and (name not in usual or (name == "momentum" and given and not BETAS[self.base])):
                raise ValueError(f'base = "{self.base}" knows no {name}: leave it out')
            value = usual.get(name, 0.0) if given is None else given
            if not 0 <= value < (float("inf") if name in ("tau", "initial") else 1):
                raise ValueError(
                    f"{name} must be at least 0{' and below 1' * (name in ('momentum', 'beta2'))}, got {value}"
                )
            object.__setattr__(self, name, value if name in usual else None)
        if self.tau == self.initial == 0:
            raise ValueError("tau and initial must not both be 0: the first steps would be divided by 0")

    @property
    def carried(self) -> float:
        """β."""
        return self.momentum or 0.0

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        nothing = x.new_zeros(x.shape)
        return State(x, nothing, nothing + (self.initial or 0.0), nothing.clone(), self.weights.init(p))

    def worth(self, s: State) -> Tensor | float:
        """1/(√v + τ) [1, P]."""
        return 1.0 if self.base == "momentum" else 1.0 / (s.v[None].sqrt() + (self.tau or 0.0))

    def track(self, s: State, c: Tensor, move: Tensor, weights: Any) -> State:
        """The next state, from the clients' mean gradient at x [P] and their mean move [P]."""
        kept = 1.0 if self.beta2 is None else self.beta2
        v = s.v if self.base == "momentum" else kept * s.v + (1 - kept if self.base in AVERAGES else 1.0) * c**2
        return State(s.x + self.lr * move, (1 - self.carried) * c + self.carried * s.m, v, c, weights)

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        return twice(type(self).__name__, local)

    def traffic(self, s: State, r: Round) -> Traffic:
        up, down = ServerStrategy.traffic(self, s, r)
        sent = 1 + (self.carried > 0) + (self.base != "momentum") + isinstance(self, Mime)
        return Traffic(2 * up, sent * down)


@dataclass(frozen=True)
class MimeLite(Mimicry):
    """The server's momentum or Adam, of whole gradients, in every local step. Karimireddy et al., 2021 (2008.03606)"""

    def send(self, s: State, who: Tensor) -> Work:
        worth, ask = self.worth(s), frozenset({"gradient-at-start"})
        return Work(s.x.expand(len(who), -1), self.carried * s.m[None] * worth, (1 - self.carried) * worth, ask=ask)

    def step(self, s: State, r: Round) -> State:
        w, weights = self.weights.step(s.weights, r)
        if not len(r.who):
            return s._replace(weights=weights)
        return self.track(s, total(w, r.told["gradient-at-start"]), total(w, r.delta), weights)


@dataclass(frozen=True)
class Mime(Mimicry):
    """MimeLite's steps, corrected as in SVRG by the clients' mean gradient. Karimireddy et al., 2021 (2008.03606)"""

    def survey(self, s: State, who: Tensor) -> Work:
        return Work(s.x.expand(len(who), -1), ask=frozenset({"gradient-at-start"}))

    def surveyed(self, s: State, r: Round) -> State:
        w, _ = self.weights.step(s.weights, r)
        return s._replace(c=total(w, r.told["gradient-at-start"])) if len(r.who) else s

    def send(self, s: State, who: Tensor) -> Work:
        x, worth = s.x.expand(len(who), -1), self.worth(s)
        own = (1 - self.carried) * worth
        return Work(x, self.carried * s.m[None] * worth + own * s.c[None], own, other=x, against=own)

    def step(self, s: State, r: Round) -> State:
        w, weights = self.weights.step(s.weights, r)
        return self.track(s, s.c, total(w, r.delta), weights) if len(r.who) else s._replace(weights=weights)

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        found = Mimicry.objections(self, local, participation)
        return found + ([Objection(PLAIN, refused=True)] if local.weight_decay or local.clip is not None else [])

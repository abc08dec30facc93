"""The protocol: what a strategy tells the present clients, what it hears, and what it makes of it.

Every federated and every gossip algorithm is three verbs over an explicit state:

    init(x, p) -> state          send(state, who) -> Work          step(state, round) -> state

Four letters everywhere: n clients, k present, P parameters, T rounds. A server strategy keeps one model `x [P]`, a
gossip strategy a stack `x [n, P]`. A strategy is a frozen dataclass of plain settings; all memory is in its state, a
NamedTuple of tensors with a field `x`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.mixing import Edges, Mixing
    from fedsim.participation import Participation

CLIPPED = "{} needs delta = -span * mean gradient, which clipping breaks: leave out clip"
EXTRAS = frozenset({"gradient-at-start", "loss-at-start", "mean-gradient", "velocity"})


class Phase(NamedTuple):
    """A part of a client's turn, in which some parameters stand still: no step, no decay, their momentum waits."""

    share: float  # of the client's steps, rounded down; the last phase has the rest
    free: Tensor  # [P]  bool: which parameters move
    counts: bool = True  # whether its steps are those of `Round.span` and of the mean gradient


class Work(NamedTuple):
    """What the present clients are told. A client takes the steps

    y <- y - lr (scale * grad f_i(y; batch) - against * grad f_i(other_i; batch) + mu (y - start_i) + shift_i)
    """

    start: Tensor  # [k, P]  where each begins
    shift: Tensor | float = 0.0  # [k, P]  added to every local gradient (SCAFFOLD, FedDyn, tracking); broadcasts
    scale: Tensor | float = 1.0  #         multiplies every local gradient (FedAvg-M, SCAFFOLD-M); a number
    #        or [k, 1]; or for each parameter (Mime with Adam) [k, P] or [1, P]
    mu: Tensor | float = 0.0  #         pull towards start (FedProx, FedDyn); [k, 1] or a number
    velocity: Tensor | None = None  # [k, P]  local momentum kept across rounds (gossip with momentum)
    ask: frozenset[str] = frozenset()  # extras to report, of EXTRAS
    other: Tensor | None = None  # [k, P]  a second point, which stays where it is (FedAvg-M-VR); twice the gradients
    against: Tensor | float = 0.0  # how much the gradient there, on the same minibatch, counts against the first
    phases: tuple[Phase, ...] = ()  # one after the other (FedRep); none: all parameters move in all steps


class Round(NamedTuple):
    """What reached the strategy in round t. All tensors live where the state's do."""

    t: int
    who: Tensor  # [k]     clients that answered, ascending
    start: Tensor  # [k, P]  where each began
    delta: Tensor  # [k, P]  how far each moved: end - start
    span: Tensor | None  # [k]     sum of the coefficients with which gradients entered delta (plain SGD: steps * lr),
    #        so delta ~ -span * mean gradient; None when clipping makes that untrue
    loss: Tensor  # [k]     mean local training loss
    available: Tensor | None = None  # [m]     clients that could have been chosen
    lr: float | None = None  #         local learning rate of the round; None: unknown
    age: Tensor | None = None  # [k]     rounds since each was told (asynchrony)
    told: Mapping[str, Tensor] = {}  #         answers to `ask`, each [k] or [k, P]; never written to
    chance: Tensor | None = None  # [k]     how likely each was to be there this round, where that changes from round to
    #        round; None: it does not, or nobody knows
    effort: Tensor | None = None  # [k]     share of its local work that each did; None: all did all of it

    def only(self, keep: Tensor) -> Round:
        """The round as if only those with keep [k] (bool) had been there."""
        each = ("who", "start", "delta", "span", "loss", "age", "chance", "effort")
        left = {name: value[keep] for name in each if (value := getattr(self, name)) is not None}
        return self._replace(**left, told={name: value[keep] for name, value in self.told.items()})

    def spans(self, strategy: str) -> Tensor:
        """span [k, 1], for a strategy that cannot do without. Raises ValueError where it is unknown."""
        if self.span is None:
            raise ValueError(CLIPPED.format(strategy))
        return self.span[:, None]


class Traffic(NamedTuple):
    """Bits an algorithm really sends in a round, over all clients."""

    up: int  # clients to the server; in gossip, nodes to their neighbours
    down: int  # the server to clients


class CombinationWarning(UserWarning):
    """A strategy, a local training and a participation that run together, and of which the paper promises nothing."""


class Objection(NamedTuple):
    """What speaks against a combination, and what to do instead, on one line."""

    text: str
    refused: bool = False  # it cannot work; else it runs, but not as the paper says


def clipped(strategy: str, local: LocalSGD) -> list[Objection]:
    """The objection of a strategy that reads gradients off the clients' moves to a clip that breaks this."""
    return [] if local.clip is None else [Objection(CLIPPED.format(strategy), refused=True)]


class Strategy(ABC):
    """What all strategies can do. Derive from `ServerStrategy`, `Averaging` or `Wrapper`."""

    @abstractmethod
    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        """The state before round 0, from a first model x [P] (gossip: or one per node, [n, P]) and the objective's
        weights p [n] with sum 1. Takes x as its own: hand it a copy."""

    def pick(self, state: Any, available: Tensor, chosen: Tensor) -> Tensor:
        """Who is asked to train [k], out of the available [m]; by default whom the schedule chose."""
        return chosen

    def survey(self, state: Any, who: Tensor) -> Work | None:
        """What the clients `who` [k] are asked before they are told anything: its `ask`, at its `start`. None: nothing.
        Nobody trains for that; the answers come to `surveyed`. Reads the state only."""
        return None

    def surveyed(self, state: Any, round: Round) -> Any:
        """The state that `send` is given, from one and the answers to `survey` in round.told. Consumes the state."""
        return state

    @abstractmethod
    def send(self, state: Any, who: Tensor) -> Work:
        """What the clients `who` [k] are told. Reads the state only."""

    @abstractmethod
    def step(self, state: Any, round: Round) -> Any:
        """The next state. Consumes the one it is given: may write into its tensors."""

    def model(self, state: Any) -> Tensor:
        """What is evaluated: [P], or [n, P] in gossip."""
        x: Tensor = state.x
        return x

    def own(self, state: Any, who: Tensor) -> Tensor:
        """The models [k, P] that the clients `who` [k] use themselves: what is evaluated, in gossip each its node's."""
        x = self.model(state)
        return x[who] if x.ndim == 2 else x.expand(len(who), -1)

    @abstractmethod
    def traffic(self, state: Any, round: Round) -> Traffic:
        """What the round cost, told of the state after it."""

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        """What speaks against running with this local training, and this participation where it is known."""
        return []

    def twin(self) -> Strategy:
        """The strategy that `fedsim.ledger` follows in place of this one: without what clients keep to themselves."""
        return self

    @property
    def personal(self) -> bool:
        """Whether clients of a server have models of their own (`own`), which they are measured with."""
        return False

    @property
    def linear(self) -> bool:
        """Whether the model is x_0 plus a weighted sum of all deltas, the weights depending on who was present when
        and not on the deltas. `fedsim.ledger` finds these weights."""
        return True


class ServerStrategy(Strategy):
    """One model x [P] on a server."""

    def send(self, state: Any, who: Tensor) -> Work:
        return Work(state.x.expand(len(who), -1))

    def traffic(self, state: Any, round: Round) -> Traffic:
        bits = round.delta.numel() * round.delta.element_size() * 8
        return Traffic(up=bits, down=bits)


class Exchange(NamedTuple):
    """What a gossip round averages: the next models are `edges.apply(models) + rest`."""

    models: Tensor  # [n, P]  what the nodes send
    edges: Edges  #         who averages with whom, absent nodes with themselves
    rest: Tensor | None  # [n, P]  added after the averaging; None: nothing


class GossipStrategy(Strategy):
    """One model per node, x [n, P], and no server. Derive from `Averaging` where every round ends in an average."""

    plain: ClassVar[str | None] = None  # why nothing may be done to the average before it settles; None: anything may

    def send(self, state: Any, who: Tensor) -> Work:
        return Work(state.x[who])


class Averaging(GossipStrategy):
    """Nodes that average with their neighbours in every round, by `mixing` unless `edges` says otherwise.

    A subclass says what is exchanged; averaging it, and anything done to the average, is the same for all.
    """

    mixing: Mixing

    @abstractmethod
    def exchange(self, state: Any, round: Round) -> tuple[Exchange, Any]:
        """What is averaged this round, and the state with the old x still. Consumes the state."""

    def step(self, state: Any, round: Round) -> Any:
        exchange, state = self.exchange(state, round)
        return self.settle(state, round, finish(exchange, exchange.edges.apply(exchange.models)))

    def settle(self, state: Any, round: Round, x: Tensor) -> Any:
        """The next state, from the one that `exchange` gave, which still has the old x, and the new x [n, P]."""
        return state._replace(x=x)

    def traffic(self, state: Any, round: Round) -> Traffic:
        models = self.edges(state, round).sent()
        return Traffic(up=models * state.x.shape[1] * state.x.element_size() * 8, down=0)

    def edges(self, state: Any, round: Round) -> Edges:
        """The mixing weights of this round."""
        return self.mixing(round.t, round.who, state.key)


def finish(exchange: Exchange, mixed: Tensor) -> Tensor:
    """The next models [n, P] from the averaged ones."""
    return mixed if exchange.rest is None else mixed + exchange.rest


class Wrapped(NamedTuple):
    """State of a wrapper that keeps nothing of its own. `x` is the truth; the inner state's is overwritten by it."""

    x: Tensor  # [P] or [n, P]
    inner: Any


@dataclass(frozen=True)
class Wrapper(Strategy):
    """A strategy changed: forwards everything to `inner`. Its state has the fields `x`, the truth, and `inner`, and
    the inner strategy sees x through its own state before each of its calls."""

    inner: Strategy

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        inner = self.inner.init(x, p, key)
        return Wrapped(inner.x, inner)

    def within(self, state: Any) -> Any:
        """The inner state, holding x."""
        return state.inner._replace(x=state.x)

    def pick(self, state: Any, available: Tensor, chosen: Tensor) -> Tensor:
        return self.inner.pick(self.within(state), available, chosen)

    def survey(self, state: Any, who: Tensor) -> Work | None:
        return self.inner.survey(self.within(state), who)

    def surveyed(self, state: Any, round: Round) -> Any:
        return state._replace(inner=self.inner.surveyed(self.within(state), round))

    def send(self, state: Any, who: Tensor) -> Work:
        return self.inner.send(self.within(state), who)

    def step(self, state: Any, round: Round) -> Any:
        inner = self.inner.step(self.within(state), round)
        return state._replace(x=inner.x, inner=inner)

    def model(self, state: Any) -> Tensor:
        return self.inner.model(self.within(state))

    def own(self, state: Any, who: Tensor) -> Tensor:
        return self.inner.own(self.within(state), who)

    def traffic(self, state: Any, round: Round) -> Traffic:
        return self.inner.traffic(self.within(state), round)

    def objections(self, local: LocalSGD, participation: Participation | None = None) -> list[Objection]:
        return self.inner.objections(local, participation)

    def twin(self) -> Strategy:
        return replace(self, inner=self.inner.twin())

    @property
    def personal(self) -> bool:
        return self.inner.personal

    @property
    def linear(self) -> bool:
        return self.inner.linear


def scrutinise(
    strategy: Strategy, local: LocalSGD, participation: Participation | None = None, whose: str = ""
) -> None:
    """Warns of a combination of which a paper promises nothing, naming `whose` it is; raises ValueError for one that
    cannot work."""
    for text, refused in strategy.objections(local, participation):
        if refused:
            raise ValueError(text)
        warnings.warn(whose + text, CombinationWarning, stacklevel=2)


def core(strategy: Any) -> Any:
    """The strategy inside all wrappers; what is not of ours is itself."""
    while isinstance(strategy, Wrapper):
        strategy = strategy.inner
    return strategy


def complete(setting: Any, **known: Any) -> Any:
    """A frozen dataclass whose settings named in `known` and left out (None) are filled in, at any depth.

    So `FedAvg(weights=Known())` gets its probabilities from the schedule and `VarianceCorrection()` its layout from
    the task. A value of None in `known` fills nothing.
    """
    if not is_dataclass(setting) or isinstance(setting, type):
        return setting
    new = {}
    for field in fields(setting):
        value = getattr(setting, field.name)
        better = known.get(field.name) if value is None else complete(value, **known)
        if better is not value:
            new[field.name] = better
    return replace(setting, **new) if new else setting

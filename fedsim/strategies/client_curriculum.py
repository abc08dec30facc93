"""Clients by difficulty, around any strategy. Vahidian et al., ICCV 2023. https://arxiv.org/abs/2212.12712

    in round t those may be asked whose latest loss is among the g(t) lowest of the available, g growing to all of them

After the paper's idea of selecting clients in an order of difficulty; the rule is ours. A client's difficulty is the
mean loss of its latest local training, and it is 0 before the first, so that everybody is heard. Of those that may be
asked as many as the schedule chose are taken: the schedule's own choice as far as it is among them, the rest drawn.
`order = "hard-first"` begins with the highest losses, those never heard still first, and "random" keeps an order drawn
once. From round `rounds` on, and with `start = 1`, it is the strategy inside, on the schedule's choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fedsim import keyed
from fedsim.curricula import Pacing, paced
from fedsim.strategies.fedavg import FedAvg
from fedsim.strategy import Round, Strategy, Wrapper

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    x: Tensor  # [P] or [n, P]
    inner: Any
    loss: Tensor  # [n]  of the latest local training, float64
    heard: Tensor  # [n]  bool: whether there was one
    t: int  # the round to come
    key: int


@dataclass(frozen=True)
class ClientCurriculum(Wrapper):
    """Asks the easiest clients first, then more and more of them. After Vahidian et al., ICCV 2023 (2212.12712)"""

    inner: Strategy = FedAvg()
    order: Literal["easy-first", "hard-first", "random"] = "easy-first"
    rounds: int = 50  # until all may be asked
    start: float = 0.2  # the share of the available that may be asked in round 0
    pacing: Pacing = "linear"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be a whole number from 1, got {self.rounds}")
        if not 0 <= self.start <= 1:
            raise ValueError(f"start must be between 0 and 1, got {self.start}")
        if self.order not in ("easy-first", "hard-first", "random"):
            raise ValueError(f"order must be 'easy-first', 'hard-first' or 'random', got {self.order!r}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        import torch

        inner = self.inner.init(x, p, key)
        loss = torch.zeros_like(p, dtype=torch.float64)
        return State(inner.x, inner, loss, torch.zeros_like(p, dtype=torch.bool), 0, key)

    def pick(self, state: State, available: Tensor, chosen: Tensor) -> Tensor:
        import torch

        share = self.start + (1 - self.start) * paced(self.pacing, state.t / self.rounds)
        if share >= 1 or not len(available):
            return self.inner.pick(self.within(state), available, chosen)
        may = math.ceil(max(share * len(available), 1) - 1e-9)
        first = available[torch.sort(self.difficulty(state, available), stable=True).indices[:may]]
        wanted = torch.isin(first, chosen)
        drawn = keyed.uniform(keyed.fold(state.key, "client-curriculum", state.t).to(first.device), first)
        taken = torch.sort(drawn - wanted.to(drawn.dtype), stable=True).indices[: len(chosen)]
        return self.inner.pick(self.within(state), available, first[taken].sort().values)

    def difficulty(self, state: State, who: Tensor) -> Tensor:
        """What clients are asked in ascending order of [k]."""
        import torch

        if self.order == "random":
            return keyed.uniform(keyed.fold(state.key, "client-curriculum").to(who.device), who)
        loss = state.loss[who] if self.order == "easy-first" else -state.loss[who]
        return torch.where(state.heard[who], loss, -torch.inf)

    def step(self, state: State, round: Round) -> State:
        inner = self.inner.step(self.within(state), round)
        state.loss[round.who] = round.loss.to(state.loss.dtype)
        state.heard[round.who] = True
        return State(inner.x, inner, state.loss, state.heard, round.t + 1, state.key)

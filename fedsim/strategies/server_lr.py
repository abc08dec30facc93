"""A learning rate on the server that changes from round to round, around any strategy.

    x <- x + s_t (what the inner strategy would move x by)        s_t: the schedule's factor in round t = 0, 1, ...

For a strategy with a learning rate η of its own that is η s_t in place of η, exactly: FedAvg, MIFA, SCAFFOLD and the
optimisers around them (FedAvgM, FedAdam, ...) put η last. It goes outermost then: inside FedAdam it would scale what
Adam is fed. s_t depends on t alone, so a run that is resumed is the uninterrupted one. What the server's rate does
beside the clients': Charles & Konečný, 2020. https://arxiv.org/abs/2007.00878
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim.lr_schedules import Constant, LRSchedule
from fedsim.strategies.fedavg import FedAvg
from fedsim.strategies.fedopt import moved, needs_a_server
from fedsim.strategy import Round, Strategy, Wrapper


@dataclass(frozen=True)
class ServerLR(Wrapper):
    """A schedule of the server's learning rate, around any strategy. See Charles & Konečný, 2020 (2007.00878)"""

    inner: Strategy = FedAvg()
    schedule: LRSchedule = Constant()

    def __post_init__(self) -> None:
        needs_a_server(self)

    def step(self, s: Any, r: Round) -> Any:
        factor = self.schedule.factor(r.t)
        if factor == 1.0:
            return Wrapper.step(self, s, r)  # bit for bit the inner strategy
        x = s.x.clone()
        inner, delta = moved(self, s, r)
        return s._replace(x=x + factor * delta, inner=inner)

"""Models of which every client keeps a part to itself, under any server strategy.

    local, shared = the parameters that `keep` names, the others
    client i starts at (x_shared, h_i) and trains both; h_i <- where its local part ended, and stays with it
    x_shared <- what the inner strategy makes of the clients' moves, of which it sees the shared part alone

FedPer keeps the last layers. Arivazhagan, Aggarwal, Singh, Choudhary, 2019. https://arxiv.org/abs/1912.00818
With `keep = ["head"]`, the default, that is the last one. FedBN (Li, Jiang, Zhang, Kamp, Dou, ICLR 2021,
https://arxiv.org/abs/2102.07623) keeps the normalising layers: `keep = ["norm"]`, here of groups or layers, for batch
normalisation is no function of one example. LG-FedAvg (Liang et al., 2020, https://arxiv.org/abs/2001.01523) keeps the
first layers and shares the head. pFedPara keeps one of the factors of every weight: see `fedsim.models.fedpara`.

h_i is where client i was last; for who never came it is the first model's part, which x keeps. Only the shared part
travels, is remembered by the inner strategy and counted as traffic. What scales a local gradient or pulls a client to
its start (FedProx) does so to the local part too; what shifts it (SCAFFOLD) does not. `model` is the shared part with
the mean local part, Σ_i p_i h_i; the clients' own models are `own`, and these are what clients are measured with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim import parts
from fedsim.rows import Rows
from fedsim.strategies.fedavg import FedAvg
from fedsim.strategies.fedopt import needs_a_server
from fedsim.strategy import Round, Strategy, Traffic, Work, Wrapper, core

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.task import Layout


UNKNOWN = (
    "{} tells clients {}, and of the part that they keep nobody knows what that would be; take another strategy inside"
    " Personal"
)
KNOWN = ("start", "shift", "scale", "mu", "ask")  # what of a Work is understood for the local part


class State(NamedTuple):
    x: Tensor  # [P]  shared part, and the first model's local one: of who never came
    inner: Any
    h: Rows  # [n, P_l]  local parts


@dataclass(frozen=True)
class Personal(Wrapper):
    """Clients keep a part of the model to themselves, under any server strategy. FedPer, 2019 (1912.00818)"""

    inner: Strategy = FedAvg()
    keep: tuple[str, ...] = ("head",)  # names of parameters, patterns such as "blocks.3.*", or "head", "norm"
    layout: Layout | None = None  # left out: the task's

    def __post_init__(self) -> None:
        needs_a_server(self)
        if self.keep and self.inner.personal:
            raise ValueError("Personal around Personal: name all that clients keep in one, in its keep")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        split = self.split(x)
        inner = self.inner.init(x[split.others], p, key)
        return State(split.join(inner.x, x[split.meant]), inner, Rows(p, x[split.meant]))

    def split(self, x: Tensor) -> parts.Split:
        """Which entries of a model [..., P] are shared (`others`), and which local (`meant`)."""
        import torch

        if not self.keep:
            every = torch.arange(x.shape[-1], device=x.device)
            return parts.Split(every, every[:0])
        if self.layout is None:
            raise ValueError("Personal needs to know the layers: Personal(layout=task.layout)")
        try:
            return parts.split(self.layout, self.keep, x.device)
        except ValueError as error:
            raise ValueError(f"keep: {error}") from error

    def within(self, state: State) -> Any:
        return state.inner._replace(x=state.x[self.split(state.x).others])

    def survey(self, state: State, who: Tensor) -> Work | None:
        work = self.inner.survey(self.within(state), who)
        if work is not None and self.keep:
            raise ValueError(UNKNOWN.format(type(core(self.inner)).__name__, "a gradient of all"))
        return work

    def send(self, state: State, who: Tensor) -> Work:
        import torch

        work = self.inner.send(self.within(state), who)
        if not self.keep:
            return work
        for name in work._fields:
            value = getattr(work, name)
            plain = value is None or isinstance(value, (int, float)) or (name == "phases" and not value)
            if not plain and (name not in KNOWN or (name == "scale" and value.shape[-1] > 1)):
                raise ValueError(UNKNOWN.format(type(core(self.inner)).__name__, f"a {name}"))
        split, h = self.split(state.x), self.kept(state, who)
        shift = work.shift
        if not isinstance(shift, (int, float)):
            shift = split.join(torch.broadcast_to(shift, work.start.shape), torch.zeros_like(h))
        return work._replace(start=split.join(work.start, h), shift=shift)

    def step(self, state: State, round: Round) -> State:
        split = self.split(state.x)
        start, delta = (vectors[:, split.meant] for vectors in (round.start, round.delta))
        inner = self.inner.step(self.within(state), self.shared(round, split))
        state.h[round.who] = start + delta
        return State(split.join(inner.x, state.x[split.meant]), inner, state.h)

    def shared(self, round: Round, split: parts.Split) -> Round:
        """What the inner strategy hears of a round."""
        if not self.keep:
            return round
        told = {name: value if value.ndim == 1 else value[:, split.others] for name, value in round.told.items()}
        return round._replace(start=round.start[:, split.others], delta=round.delta[:, split.others], told=told)

    def kept(self, state: State, who: Tensor) -> Tensor:
        """h_i [k, P_l]."""
        import torch

        return torch.where(state.h.seen(who)[:, None], state.h[who], state.x[self.split(state.x).meant])

    def mean(self, state: State) -> Tensor:
        """Σ_i p_i h_i [P_l]."""
        import torch

        unseen = torch.where(state.h.seen(), 0.0, state.h.p).sum()
        return state.h.mean + unseen.to(state.x.dtype) * state.x[self.split(state.x).meant]

    def model(self, state: State) -> Tensor:
        return self.split(state.x).join(self.inner.model(self.within(state)), self.mean(state))

    def own(self, state: State, who: Tensor) -> Tensor:
        return self.split(state.x).join(self.inner.own(self.within(state), who), self.kept(state, who))

    def traffic(self, state: State, round: Round) -> Traffic:
        size = len(self.split(state.x).others)
        return self.inner.traffic(
            self.within(state), round._replace(start=round.start[:, :size], delta=round.delta[:, :size])
        )

    def twin(self) -> Strategy:
        return Personal(self.inner.twin(), ())

    @property
    def personal(self) -> bool:
        return bool(self.keep) or self.inner.personal

    @property
    def linear(self) -> bool:
        return not self.keep and self.inner.linear  # what is local enters nobody else's model; see `twin`

"""The small world in which laws are tried: a few clients, a few parameters, a script of who is there when."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from fedsim.local import LocalSGD
from fedsim.strategy import GossipStrategy, Strategy, complete, core
from fedsim.task import Layout
from fedsim.testing.clients import Honest

MOST, WIDEST = 6, 8  # clients and parameters of the full stage; smaller ones are its first clients and parameters
SCRIPT = ((), (0, 2), (1, 3, 4), (), (0, 5), (2, 3), (0, 1, 2, 3, 4, 5), (), (1,), (0, 4, 5))
SHARES = (1, 2, 3, 1, 2, 1)
RATES = (0.9, 0.5, 0.7, 0.3, 0.8, 0.6)
LOCAL = LocalSGD(lr=0.05, steps=3, batch=None)
MOMENTUM = LocalSGD(lr=0.05, steps=3, batch=None, momentum=0.5)


@dataclass(frozen=True)
class Stage:
    """n clients with quadratic losses of P parameters, different weights and rates, on a graph that is not regular."""

    n: int = MOST
    size: int = WIDEST  # P
    presence: tuple[tuple[int, ...], ...] = SCRIPT  # who is there in each round; rounds 0, 3 and 7 are empty
    dtype: torch.dtype = torch.float64
    local: LocalSGD = LOCAL
    tree: bool = False  # whether the graph is one

    @functools.cached_property
    def p(self) -> Tensor:
        """The objective's weights [n], float64."""
        shares = torch.tensor(SHARES[: self.n], dtype=torch.float64)
        return shares / shares.sum()

    @functools.cached_property
    def clients(self) -> Honest:
        """Whose answers are known."""
        g = torch.Generator().manual_seed(0)
        a = torch.rand(MOST, WIDEST, dtype=torch.float64, generator=g) + 0.5
        b = 3 * torch.randn(MOST, WIDEST, dtype=torch.float64, generator=g)
        return Honest(a[: self.n, : self.size].clone(), b[: self.n, : self.size].clone())

    @functools.cached_property
    def layout(self) -> Layout:
        """The model's tensors: a matrix and a vector, where there are enough parameters."""
        if self.size == WIDEST:
            return Layout(("weight", "bias"), (torch.Size([2, 3]), torch.Size([2])))
        if self.size == 1:
            return Layout(("weight",), (torch.Size([1]),))
        return Layout(("weight", "bias"), (torch.Size([self.size - 1]), torch.Size([1])))

    @functools.cached_property
    def graph(self) -> nx.Graph:
        """A ring with a chord, or a tree with two forks; what there is of it with fewer nodes."""
        if self.tree:
            return nx.Graph([(0, 1), (1, 2), (1, 3), (3, 4), (3, 5)]).subgraph(range(self.n)).copy()
        if self.n < 3:
            return nx.path_graph(self.n)
        return nx.Graph([*nx.cycle_graph(self.n).edges, *([(0, 3)] if self.n > 4 else [])])

    def ready(self, part: Any) -> Any:
        """A strategy or mixing with what it left out filled in, as an experiment's builder does."""
        return complete(
            part,
            layout=self.layout,
            probabilities=RATES[: self.n],
            graph=self.graph,
            nodes=self.n,
            sizes=tuple(10 * share for share in SHARES[: self.n]),
        )

    def start(self, strategy: Strategy, shared: bool = False) -> Tensor:
        """A first model [P]; in gossip one for each node [n, P] unless shared."""
        g = torch.Generator().manual_seed(5)
        x = torch.randn(MOST, WIDEST, dtype=torch.float64, generator=g)[: self.n, : self.size].to(self.dtype)
        return x.clone() if is_gossip(strategy) and not shared else x[0].clone()

    def settings(self, strategy: Strategy, **more: Any) -> dict[str, Any]:
        """What `drive` wants to know."""
        return {"n": self.n, "p": self.p, "x": self.start(strategy), "local": self.local} | more

    def training(self, strategy: Strategy) -> LocalSGD:
        """The local training, with momentum in gossip, where nodes may keep theirs."""
        return MOMENTUM if is_gossip(strategy) and self.local is LOCAL else self.local

    @property
    def tolerance(self) -> float:
        """What rounding may make of a number, relatively."""
        return 1e-12 if self.dtype == torch.float64 else 2e-5


def is_gossip(strategy: Strategy) -> bool:
    """Whether every client has a model of its own."""
    return isinstance(core(strategy), GossipStrategy)


def changed(setting: Any, name: str, rule: Callable[[Any], Any]) -> Any:
    """A strategy whose settings of that name, at any depth, follow a rule."""
    change: dict[str, Any] = {}
    for field in dataclasses.fields(setting):
        value = getattr(setting, field.name)
        if field.name == name and value is not None:
            change[name] = rule(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, (type, Layout)):
            change[field.name] = changed(value, name, rule)
    return dataclasses.replace(setting, **change) if change else setting

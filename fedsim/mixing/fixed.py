"""Weights that stay the same from round to round, but for who is absent."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from fedsim.mixing.checks import count, share, whole
from fedsim.mixing.edges import Average, Edges, Mixing
from fedsim.mixing.links import link_sums, links, present

if TYPE_CHECKING:
    import torch
    from networkx import Graph
    from torch import Tensor


@dataclass(frozen=True)
class Alone(Mixing):
    """Nobody averages: every node trains by itself, whatever the topology. What working together is compared with.

    Doubly stochastic: W = I. No models are sent.
    """

    nodes: int | None = None  # n; left out: the task's
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.nodes is not None:
            whole("nodes", self.nodes)

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        n = count(self.nodes, "Alone")
        w = torch.zeros(0, dtype=torch.float64, device=who.device)
        return Edges(who[:0], who[:0], w, torch.ones(n, dtype=torch.float64, device=who.device))


@dataclass(frozen=True)
class Complete(Mixing):
    """Everybody present averages with everybody present: W = 11ᵀ/k, whatever the topology.

    Doubly stochastic. The list of edges has k (k - 1) entries, but applying it costs a plain mean.
    """

    nodes: int | None = None  # n; left out: the task's
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.nodes is not None:
            whole("nodes", self.nodes)

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        n, k = count(self.nodes, "Complete"), len(who)
        one = torch.arange(k, device=who.device)[:, None]
        other = torch.arange(max(k - 1, 0), device=who.device)[None, :]
        other = other + (other >= one)  # [k, k - 1] everybody but oneself, in order
        w = torch.full((k * max(k - 1, 0),), 1.0 / max(k, 1), dtype=torch.float64, device=who.device)
        diagonal = torch.ones(n, dtype=torch.float64, device=who.device).index_fill(0, who, 1.0 / max(k, 1))
        i = who[:, None].expand(other.shape).reshape(-1)
        return Edges(i, who[other.reshape(-1)], w, diagonal, Average(who, w, diagonal) if k else None)


@dataclass(frozen=True)
class Metropolis(Mixing):
    """W_ij = 1/(1 + max(d_i, d_j)) on the edges; what is left of each row stays at home.

    d_i counts i's present neighbours. Doubly stochastic and symmetric, so the network's mean is kept.
    """

    graph: Graph | None = field(default=None, repr=False)  # left out: the experiment's topology
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        edges = links(self.graph, who.device, "Metropolis")
        if edges.complete:  # the same matrix, with its shortcut
            return Complete(edges.n)(t, who, key)
        live, degree = present(edges, who)
        w = torch.where(live, 1.0 / (1.0 + torch.maximum(degree[edges.i], degree[edges.j])), 0.0)
        return Edges(edges.i, torch.where(live, edges.j, edges.i), w, 1.0 - link_sums(edges, w))


@dataclass(frozen=True)
class Neighbour(Mixing):
    """All neighbours count the same, whatever their degree: the plain average of oneself and them, or of β and 1 - β.

    self_weight left out: W_ij = 1/(d_i + 1), for oneself too; self_weight = β: W_ii = β and W_ij = (1 - β)/d_i. A node
    with no present neighbour keeps its model. Row-stochastic: nodes with many neighbours weigh more in the limit.
    """

    graph: Graph | None = field(default=None, repr=False)  # left out: the experiment's topology
    self_weight: float | None = None
    averaging: ClassVar[str] = "row-stochastic"

    def __post_init__(self) -> None:
        if self.self_weight is not None:
            share("self_weight", self.self_weight)

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        edges = links(self.graph, who.device, "Neighbour")
        if edges.complete and self.self_weight is None:
            return Complete(edges.n)(t, who, key)
        live, degree = present(edges, who)
        if self.self_weight is None:
            diagonal = 1.0 / (degree + 1.0)
            each = diagonal
        else:
            diagonal = torch.where(degree > 0, self.self_weight, 1.0).to(torch.float64)
            each = (1.0 - self.self_weight) / degree.clamp(min=1.0)
        w = torch.where(live, each[edges.i], 0.0)
        return Edges(edges.i, torch.where(live, edges.j, edges.i), w, diagonal)


@dataclass(frozen=True)
class MaxDegree(Mixing):
    """The same weight 1/(d_max + 1) on every edge: W = I − L/(d_max + 1).

    d_max is the largest number of present neighbours anybody has; every node has to know it. Doubly stochastic and
    symmetric; on regular graphs the same as metropolis, which has larger weights on others.
    """

    graph: Graph | None = field(default=None, repr=False)  # left out: the experiment's topology
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        edges = links(self.graph, who.device, "MaxDegree")
        if edges.complete:
            return Complete(edges.n)(t, who, key)
        live, degree = present(edges, who)
        w = torch.where(live, 1.0 / (1.0 + degree.max()), 0.0)
        return Edges(edges.i, torch.where(live, edges.j, edges.i), w, 1.0 - link_sums(edges, w))


@dataclass(frozen=True)
class BestConstant(Mixing):
    """The fastest of all W = I − αL with the same weight on every edge: α = 2/(λ_max + λ_2) of the Laplacian L.

    Doubly stochastic and symmetric; a node's own weight may be negative. SLEM (λ_max − λ_2)/(λ_max + λ_2). Xiao and
    Boyd, Systems & Control Letters 2004. α is the whole graph's, whoever is absent: what is left of the graph has no
    larger λ_max, so the averaging still settles, only no longer as fast as could be. Raises ValueError for a graph that
    is not connected.
    """

    graph: Graph | None = field(default=None, repr=False)  # left out: the experiment's topology
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        from fedsim.spectrum import best_constant

        edges = links(self.graph, who.device, "BestConstant")
        live, degree = present(edges, who)
        weight = best_constant(self.graph)
        w = weight * live.to(torch.float64)
        return Edges(edges.i, torch.where(live, edges.j, edges.i), w, 1.0 - weight * degree)


@dataclass(frozen=True)
class DecAvg(Mixing):
    """Everybody counts by how much data it has: W_ij = |D_j| / Σ_k |D_k| over the present neighbours k and i itself.

    self_weight = β: W_ii = β and W_ij = (1 - β) |D_j| / Σ_k |D_k| over the present neighbours k, with ε = 1 - β
    the CFA of Savazzi et al., 2020 (1912.13163): D-PSGD in the order "atc" cuts its cycle after the mixing.
    Row-stochastic. A node that has no data counts for nothing; where nobody in reach has any, a node keeps its model.
    The averaging of decentralised federated learning in Badie-Modiri et al., 2024 (2403.15855).
    """

    graph: Graph | None = field(default=None, repr=False)  # left out: the experiment's topology
    sizes: tuple[int, ...] | None = field(default=None, repr=False)  # [n] examples of each; left out: the task's
    self_weight: float | None = None
    averaging: ClassVar[str] = "row-stochastic"

    def __post_init__(self) -> None:
        if self.self_weight is not None:
            share("self_weight", self.self_weight)

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        edges = links(self.graph, who.device, "DecAvg")
        if self.sizes is None:
            raise ValueError("DecAvg mixing needs to know how much data everybody has: DecAvg(sizes=task.sizes)")
        if len(self.sizes) != edges.n:
            raise ValueError(f"DecAvg has {len(self.sizes)} sizes for {edges.n} nodes; give one each")
        sizes = _on(self.sizes, who.device)
        live, _ = present(edges, who)
        w = torch.where(live, sizes[edges.j], 0.0)
        beside = link_sums(edges, w)
        total = beside if self.self_weight is not None else sizes + beside
        known = torch.where(total > 0, total, 1.0)
        own = sizes / known if self.self_weight is None else torch.full_like(known, self.self_weight)
        w = w / known[edges.i] * (1.0 if self.self_weight is None else 1.0 - self.self_weight)
        return Edges(edges.i, torch.where(live, edges.j, edges.i), w, torch.where(total > 0, own, 1.0))


@functools.lru_cache(maxsize=8)
def _on(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Sizes [n] on a device, float64. Raises ValueError for a negative one."""
    import torch

    if min(sizes) < 0:
        raise ValueError(f"DecAvg's sizes must not be negative, got {min(sizes)}")
    return torch.tensor(sizes, dtype=torch.float64, device=device)


@dataclass(frozen=True)
class Push(Mixing):
    """Everybody splits what it has among its present neighbours and itself: W_ij = 1/(d_j + 1), d_j of the sender.

    On a directed graph d_j counts the neighbours that j's edges lead to. Column-stochastic: the sum over the nodes is
    kept, and push-sum makes the average of it by sending a weight along; averaging alone does not.
    """

    graph: Graph | None = field(default=None, repr=False)  # left out: the experiment's topology
    averaging: ClassVar[str] = "column-stochastic"
    directed: ClassVar[bool] = True

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        edges = links(self.graph, who.device, "Push", directed=True)
        live, _ = present(edges, who)
        out = torch.zeros(edges.n, dtype=torch.int64, device=who.device).index_add(0, edges.j, live.to(torch.int64))
        share = 1.0 / (out.to(torch.float64) + 1.0)
        return Edges(edges.i, torch.where(live, edges.j, edges.i), torch.where(live, share[edges.j], 0.0), share)

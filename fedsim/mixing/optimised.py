"""Weights and matchings that convex programs find (`fedsim.fastest`): as fast as the graph allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from fedsim import keyed
from fedsim.mixing.edges import Edges, Mixing
from fedsim.mixing.links import Links, link_sums, links, present

if TYPE_CHECKING:
    from networkx import Graph
    from torch import Tensor

_THERE: WeakKeyDictionary[Graph, dict[Any, Tensor]] = WeakKeyDictionary()  # by device, and whose they are


@dataclass(frozen=True)
class Fastest(Mixing):
    """The weights of smallest SLEM that a symmetric W ≥ 0 on the graph can have. Boyd et al., SIAM Review 2004

    Doubly stochastic and symmetric: the fastest mixing Markov chain, never slower than metropolis or max-degree;
    best-constant may be, or be faster by negative weights. The weights are the whole graph's, whoever is absent: what
    an absent node does not give and take stays with the others. Found once per graph, in seconds for some hundreds of
    edges. Raises ValueError for a graph that is not connected, or too large.
    """

    graph: Graph | None = field(default=None, repr=False)  # left out: the experiment's topology
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        from fedsim.fastest import fastest

        edges = links(self.graph, who.device, "Fastest")
        live, _ = present(edges, who)
        here = links(self.graph, torch.device("cpu"), "Fastest")
        w = torch.where(live, _each(self.graph, here, "weights", fastest(self.graph), who.device), 0.0)
        return Edges(edges.i, torch.where(live, edges.j, edges.i), w, 1.0 - link_sums(edges, w))


@dataclass(frozen=True)
class Matcha(Mixing):
    """MATCHA: the graph's matchings, each used in a round by a probability of its own. Wang et al., 2019 (1905.09435)

    W = I − α Σ_{j used} L_j, with `budget` of the matchings used on average, those that join the graph best most often,
    and the α of fastest agreement in expectation. Doubly stochastic and symmetric in every round; a node's own weight
    may be negative. With budget 1 it is best-constant. Probabilities and α are the whole graph's, whoever is absent.
    Raises ValueError for a graph that is not connected, or too large.
    """

    graph: Graph | None = field(default=None, repr=False)  # left out: the experiment's topology
    budget: float = 0.5  # share of the matchings, and so of the time a round's messages take
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget must be above 0 and at most 1, got {self.budget}")

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        from fedsim.fastest import matcha

        edges = links(self.graph, who.device, "Matcha")
        plan = matcha(self.graph, self.budget)
        here = links(self.graph, torch.device("cpu"), "Matcha")
        matching = _each(self.graph, here, f"matching {self.budget}", plan.matching, who.device)
        p = _each(self.graph, None, f"p {self.budget}", plan.p, who.device)
        live, _ = present(edges, who)
        if len(p):
            used = keyed.uniform(key, "matcha", t, torch.arange(len(p), device=who.device)) < p
            live = live & used[matching]
        w = plan.alpha * live.to(torch.float64)
        return Edges(edges.i, torch.where(live, edges.j, edges.i), w, 1.0 - link_sums(edges, w))


def _each(graph: Graph | None, edges: Links | None, name: str, values: Any, device: Any) -> Tensor:
    """Values [m] of a graph's undirected edges as those of its links [e], or without links as they are, put on the
    device once."""
    import torch

    assert graph is not None
    known = _THERE.setdefault(graph, {})
    if (device, name) not in known:
        found = torch.from_numpy(values)
        if edges is not None:
            low, high = torch.minimum(edges.i, edges.j), torch.maximum(edges.i, edges.j)
            place = low * edges.n + high
            found = found[torch.searchsorted(place[edges.i < edges.j], place)]  # ascending, as `fastest.links` has them
        known[device, name] = found.to(device)
    return known[device, name]

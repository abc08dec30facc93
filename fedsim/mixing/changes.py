"""Mixings made of other mixings, and of a function of the round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fedsim import keyed, resolve
from fedsim.mixing.checks import share
from fedsim.mixing.edges import Edges, Mixing, row_sums
from fedsim.mixing.fixed import BestConstant, MaxDegree, Metropolis, Neighbour, Push

if TYPE_CHECKING:
    from networkx import Graph
    from torch import Tensor

_WEIGHTS: dict[str, Any] = {
    "metropolis": Metropolis,
    "max-degree": MaxDegree,
    "best-constant": BestConstant,
    "neighbour": Neighbour,
    "push": Push,
}


@dataclass(frozen=True)
class Lazy(Mixing):
    """Half of oneself, half of another mixing: W ← λI + (1 − λ)W, λ = `keep`.

    Stochastic as the other is. With λ = ½ all eigenvalues of a symmetric W become positive, which D² and others need.
    """

    inner: Mixing = Metropolis()
    keep: float = 0.5

    def __post_init__(self) -> None:
        share("keep", self.keep)

    @property
    def averaging(self) -> str:  # type: ignore[override]
        return self.inner.averaging

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        return self.inner.symmetric

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        edges = self.inner(t, who, key)
        share = 1.0 - self.keep
        return edges._replace(w=share * edges.w, diagonal=self.keep + share * edges.diagonal)


@dataclass(frozen=True)
class LinkFailures(Mixing):
    """Another mixing whose links fail, each with the same probability, both ways at once and anew every round.

    What would have come over a link that fails, the receiver takes of itself: rows still sum to 1, and a symmetric
    matrix stays doubly stochastic; one that is not becomes row-stochastic. A column-stochastic mixing's sender keeps
    what it cannot send: columns still sum to 1.
    """

    inner: Mixing = Metropolis()
    probability: float = 0.1

    def __post_init__(self) -> None:
        share("probability", self.probability)

    @property
    def averaging(self) -> str:  # type: ignore[override]
        if self.inner.averaging == "doubly stochastic" and not self.inner.symmetric:
            return "row-stochastic"
        return self.inner.averaging

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        return self.inner.symmetric

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        edges = self.inner(t, who, key)
        i, j, n = edges.i, edges.j, len(edges.diagonal)
        if not len(i):
            return edges
        draw = keyed.uniform(key, "link-failures", t, torch.minimum(i, j), torch.maximum(i, j))
        failed = draw < self.probability
        lost = torch.where(failed, edges.w, 0.0)
        if self.averaging == "column-stochastic":
            by_sender = torch.argsort(j, stable=True)
            kept = row_sums(j[by_sender], lost[by_sender], n)
        else:
            kept = row_sums(i, lost, n)
        return Edges(i, torch.where(failed, i, j), edges.w - lost, edges.diagonal + kept)


@dataclass(frozen=True)
class Changing(Mixing):
    """A graph of one's own for every round, from a function of the round t.

    The function is called with t, and with n and seed if it has parameters of these names, and returns a networkx graph
    with nodes 0..n-1; `seed` depends on the run and on t. Returning the same object again saves reading it again. In an
    experiment file it is mixing = "mine.py:function", or a table with that name and `weights`.
    """

    function: Callable[..., Graph] = field(repr=False)
    weights: Literal["metropolis", "max-degree", "best-constant", "neighbour", "push"] = "metropolis"
    nodes: int | None = None  # n; left out: the task's

    def __post_init__(self) -> None:
        if self.weights not in _WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(_WEIGHTS)}, got {self.weights!r}")

    @property
    def averaging(self) -> str:  # type: ignore[override]
        found: str = _WEIGHTS[self.weights].averaging
        return found

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        return bool(_WEIGHTS[self.weights].symmetric)

    directed: ClassVar[bool] = True

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import networkx as nx

        name = f"the graphs of {getattr(self.function, '__name__', 'a function')}"
        offered = {"t": t, "n": self.nodes, "seed": keyed.seed(key, "graph", t) % 2**32}
        graph = resolve.call(name, self.function, offered, {})
        if not isinstance(graph, nx.Graph):
            raise ValueError(f"{name}: round {t} gave {type(graph).__name__} instead of a networkx graph; return one")
        if self.nodes is not None and len(graph) != self.nodes:
            raise ValueError(f"{name}: round {t} gave {len(graph)} nodes instead of {self.nodes}; return all of them")
        edges: Edges = _WEIGHTS[self.weights](graph)(t, who, key)
        return edges

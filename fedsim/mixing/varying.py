"""Graphs that change from round to round, drawn or scheduled.

All but EdgeMatching and Pairwise need no topology: they join the k nodes present as if these were nodes 0..k-1 of k.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedsim import keyed
from fedsim.mixing.checks import count, whole
from fedsim.mixing.edges import Edges, Mixing
from fedsim.mixing.links import links, present
from fedsim.mixing.sequence import base

if TYPE_CHECKING:
    import torch
    from networkx import Graph
    from torch import Tensor


@dataclass(frozen=True)
class StaticExponential(Mixing):
    """Node r sends to r + 1, r + 2, r + 4, ... of the k present, all weights 1/(τ + 1), τ = ⌈log2 k⌉.

    Doubly stochastic, not symmetric. The exponential graph of Ying et al., NeurIPS 2021 (2110.13363): SLEM
    (τ − 1)/(τ + 1) for even k.
    """

    nodes: int | None = None  # n; left out: the task's
    averaging: ClassVar[str] = "doubly stochastic"

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        return _shifts(count(self.nodes, "StaticExponential"), who, [2**s for s in range(_log2(len(who)))])


@dataclass(frozen=True)
class OnePeerExponential(Mixing):
    """In round t node r sends to r + 2^(t mod τ) of the k present, weights ½ and ½, τ = ⌈log2 k⌉.

    Doubly stochastic, not symmetric. Ying et al., NeurIPS 2021 (2110.13363): with k = 2^τ present throughout, τ rounds
    are an exact average; for no other k.
    """

    nodes: int | None = None  # n; left out: the task's
    averaging: ClassVar[str] = "doubly stochastic"

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        rounds = _log2(len(who))
        return _shifts(count(self.nodes, "OnePeerExponential"), who, [2 ** (t % rounds)] if rounds else [])


@dataclass(frozen=True)
class Base(Mixing):
    """The Base-(m+1) graphs, at most m peers a round: exact averaging in few rounds, whatever the number of nodes.

    Doubly stochastic and symmetric. Takezawa et al., NeurIPS 2023 (2305.11420). The rounds of the sequence for the k
    present follow each other as t counts; while the same k are present, every such sequence is an exact average. At
    most 2 log_{m+1} k + 2 rounds.
    """

    peers: int = 1  # m
    nodes: int | None = None  # n; left out: the task's
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("peers", self.peers)

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        n, rounds = count(self.nodes, "Base"), base(len(who), self.peers)
        if not rounds:
            return alone(n, who)
        i, j, w, diagonal = _round(len(who), self.peers, t % len(rounds), who.device)
        return ranked(n, who, i, j, w, diagonal)


@dataclass(frozen=True)
class RandomMatching(Mixing):
    """Those present meet in random pairs, new ones every round, and average: weights ½ and ½.

    Doubly stochastic and symmetric. With an odd number of them one is left over.
    """

    nodes: int | None = None  # n; left out: the task's
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        n, k, device = count(self.nodes, "RandomMatching"), len(who), who.device
        if not k:
            return alone(n, who)
        here = torch.zeros((), dtype=torch.int64, device=device)
        order = keyed.permutation(keyed.fold(key, "random-matching", t, here), k)
        one, other = order[0 : k - 1 : 2], order[1:k:2]
        partner = torch.arange(k, device=device).index_copy(0, one, other).index_copy(0, other, one)
        return _pairs(n, who, partner)


@dataclass(frozen=True)
class EdgeMatching(Mixing):
    """Random pairs of neighbours, new ones every round, average: weights ½ and ½. Nobody is in two pairs.

    Doubly stochastic and symmetric. Every edge between nodes present draws a number and the smallest among its
    neighbours wins, again among those left, as often as it takes with near certainty (Luby, SIAM J. Comput. 1986): the
    pairs cannot be added to.
    """

    graph: Graph | None = field(default=None, repr=False)  # left out: the experiment's topology
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        edges = links(self.graph, who.device, "EdgeMatching")
        free, _ = present(edges, who)
        low, high = torch.minimum(edges.i, edges.j), torch.maximum(edges.i, edges.j)
        draw = keyed.uniform(key, "edge-matching", t, low, high)
        chosen = torch.zeros_like(free)
        nobody = draw.new_full((edges.n,), 2.0)
        for _ in range(2 * _log2(edges.n) + 4):
            left = torch.where(free, draw, 2.0)
            best = nobody.scatter_reduce(0, edges.i, left, "amin")
            won = free & (left == best[edges.i]) & (left == best[edges.j])
            chosen = chosen | won
            taken = torch.zeros(edges.n, dtype=torch.int64, device=who.device).index_add(0, edges.i, won.long()) > 0
            free = free & ~taken[edges.i] & ~taken[edges.j]
        step = torch.where(chosen, edges.j - edges.i, 0)
        node = torch.arange(edges.n, device=who.device)
        return _pairs(edges.n, node, node.index_add(0, edges.i, step))


@dataclass(frozen=True)
class Pairwise(Mixing):
    """A round is one event: a random node present and a random present neighbour of it average, weights ½ and ½.

    Doubly stochastic and symmetric. Randomised gossip, Boyd et al., IEEE Trans. Inf. Theory 2006: on a d-regular graph
    the expected squared disagreement along the slowest eigenvector shrinks by 1 − λ_2(L)/(n d) an event.
    """

    graph: Graph | None = field(default=None, repr=False)  # left out: the experiment's topology
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        edges = links(self.graph, who.device, "Pairwise")
        k, node = len(who), torch.arange(edges.n, device=who.device)
        live, _ = present(edges, who)
        if not k or not len(live):
            return alone(edges.n, who)
        here = torch.zeros(1, dtype=torch.int64, device=who.device)
        one = who.index_select(0, (keyed.uniform(key, "pairwise", t, here) * k).long())  # [1]
        draw = keyed.uniform(key, "pairwise-neighbour", t, torch.arange(len(live), device=who.device))
        best = torch.where(live & (edges.i == one), draw, -1.0).max(dim=0, keepdim=True)
        other = torch.where(best.values >= 0, edges.j.index_select(0, best.indices), one)  # nobody there: alone
        return _pairs(edges.n, node, torch.where(node == one, other, torch.where(node == other, one, node)))


@dataclass(frozen=True)
class RandomRegular(Mixing):
    """A fresh random graph in which each of those present has `degree` neighbours, all weights 1/(degree + 1).

    Doubly stochastic and symmetric. With k ≤ degree present everybody meets everybody; where k · degree is odd, one
    node has a neighbour less and keeps that weight. The graph is drawn on the host.
    """

    degree: int = 4
    nodes: int | None = None  # n; left out: the task's
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("degree", self.degree)

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        import torch

        n, k = count(self.nodes, "RandomRegular"), len(who)
        degree = max(min(self.degree, k - 1), 0)
        i, j = regular(k, degree, np.random.default_rng(keyed.seed(key, "random-regular", t)))
        own = 1.0 - np.bincount(i, minlength=k) / (degree + 1.0)
        rank, peer, diagonal = (torch.from_numpy(a).to(who.device, non_blocking=True) for a in (i, j, own))
        return ranked(n, who, rank, peer, torch.full_like(rank, 1.0 / (degree + 1.0), dtype=torch.float64), diagonal)


def regular(k: int, degree: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random simple graph on 0..k-1 with this degree (below k), as its directed edges (i, j) by ascending i.

    Stubs are paired at random; a pair that is a loop or there already then swaps ends with random others until all is
    well. Every relabelling is as likely as every other. Where k · degree is odd, one random node has a neighbour less.
    """
    if degree >= k - 1:
        i, j = np.divmod(np.arange(k * k), max(k, 1))
        return i[i != j], j[i != j]
    if 2 * degree > k:  # easier to say who does not meet
        i, j = regular(k, k - 1 - degree, random)
        met = ~np.eye(k, dtype=bool)
        met[i, j] = False
        for over in np.flatnonzero(met.sum(1) > degree):  # whom the other graph left short
            given_up = random.choice(np.flatnonzero(met[over]))
            met[over, given_up] = met[given_up, over] = False
        i, j = np.nonzero(met)
        return i, j
    while True:
        stubs = random.permutation(np.repeat(np.arange(k), degree))
        pairs = stubs[: len(stubs) // 2 * 2].reshape(-1, 2)
        if _mended(pairs, k, random):
            both = np.concatenate([pairs, pairs[:, ::-1]])
            both = both[np.argsort(both[:, 0] * k + both[:, 1])]
            return np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1])


def _mended(pairs: np.ndarray, k: int, random: np.random.Generator) -> bool:
    """Swaps ends, in place, until no pair is a loop or there twice; False if that leads nowhere."""
    names = pairs.min(1) * k + pairs.max(1)
    first = np.zeros(len(pairs), dtype=bool)
    first[np.unique(names, return_index=True)[1]] = True
    known = set(names.tolist())
    for bad in np.flatnonzero((pairs[:, 0] == pairs[:, 1]) | ~first).tolist():
        for other in random.integers(len(pairs), size=100 + 10 * k).tolist():
            (a, b), (c, d) = pairs[bad].tolist(), pairs[other].tolist()
            new = {min(a, d) * k + max(a, d), min(c, b) * k + max(c, b)}
            if a != d and c != b and len(new) == 2 and not new & known:
                pairs[bad], pairs[other] = (a, d), (c, b)
                now = pairs.min(1) * k + pairs.max(1)
                known = set(now.tolist())
                break
        else:
            return False
    return True


def _log2(k: int) -> int:
    """⌈log2 k⌉, 0 for nobody."""
    return (k - 1).bit_length() if k > 1 else 0


def alone(n: int, who: Tensor) -> Edges:
    """Everybody keeps its model."""
    import torch

    none = torch.zeros(0, dtype=torch.int64, device=who.device)
    return Edges(none, none, none.double(), torch.ones(n, dtype=torch.float64, device=who.device))


def ranked(n: int, who: Tensor, i: Tensor, j: Tensor, w: Tensor, diagonal: Tensor) -> Edges:
    """Weights among ranks 0..k-1 as weights among those present [k]; `i` ascends, `diagonal` is [k]."""
    import torch

    return Edges(who[i], who[j], w, torch.ones(n, dtype=torch.float64, device=who.device).index_copy(0, who, diagonal))


def _shifts(n: int, who: Tensor, shifts: list[int]) -> Edges:
    """Rank r sends to r + each shift, all weights the same."""
    import torch

    k, each = len(who), 1.0 / (len(shifts) + 1.0)
    rank = torch.arange(k, device=who.device)
    j = torch.stack([(rank - shift) % k for shift in shifts], 1).view(-1) if shifts and k else rank[:0]
    i = rank.repeat_interleave(len(shifts), output_size=len(j))
    own = torch.full((k,), each, dtype=torch.float64, device=who.device)
    return ranked(n, who, i, j, torch.full((len(j),), each, dtype=torch.float64, device=who.device), own)


def _pairs(n: int, who: Tensor, partner: Tensor) -> Edges:
    """Half and half with one's partner [k] (a rank); who is its own partner keeps its model."""
    import torch

    met = partner != torch.arange(len(who), device=who.device)
    w = torch.where(met, 0.5, 0.0).to(torch.float64)
    own = torch.ones(n, dtype=torch.float64, device=who.device).index_copy(0, who, 1.0 - w)
    return Edges(who, who[partner], w, own)


@functools.lru_cache(maxsize=256)
def _round(k: int, peers: int, step: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Edges and diagonal of one round of Base, on the device."""
    import torch

    pairs = base(k, peers)[step]
    table = sorted([(i, j, w) for (i, j), w in pairs.items()] + [(j, i, w) for (i, j), w in pairs.items()])
    own = np.ones(k)
    for row, _, weight in table:
        own[row] -= weight
    rows, peer = (torch.tensor([line[c] for line in table], dtype=torch.int64, device=device) for c in (0, 1))
    weights = torch.tensor([line[2] for line in table], dtype=torch.float64, device=device)
    return rows, peer, weights, torch.from_numpy(own).to(device)

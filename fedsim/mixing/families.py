"""Families of graphs that mix as fast however many nodes there are: EquiTopo, and averaging in the groups of a grid.

They join the k nodes present as if these were nodes 0..k-1 of k.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedsim import keyed
from fedsim.mixing.checks import count, share, whole
from fedsim.mixing.edges import Edges, Mixing
from fedsim.mixing.varying import alone, ranked

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class EquiStatic(Mixing):
    """EquiTopo, one graph for the whole run: everybody takes from those `peers` random distances ahead, all the same.

    With S_a the matrix that takes from a places ahead, W is the mean over M = `peers` distances a, drawn with
    replacement, of B_a = I/k + (k − 1)/k S_a. Doubly stochastic; directed, or symmetric: (W + Wᵀ)/2. Song et al.,
    NeurIPS 2022 (2210.07881): how fast it mixes depends on M, not on the number of nodes.
    """

    peers: int = 4  # M
    undirected: bool = False
    nodes: int | None = None  # n; left out: the task's
    averaging: ClassVar[str] = "doubly stochastic"

    def __post_init__(self) -> None:
        whole("peers", self.peers)

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        return self.undirected

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        n, k = count(self.nodes, "EquiStatic"), len(who)
        if k < 2:
            return alone(n, who)
        shifts = [1 + keyed.seed(key, "equi-static", m) % (k - 1) for m in range(self.peers)]
        if self.undirected:
            shifts += [k - a for a in shifts]
        distances, times = np.unique(shifts, return_counts=True)
        i = np.repeat(np.arange(k), len(distances))
        w = np.tile(times / len(shifts) * (k - 1) / k, k)
        return _placed(n, who, i, (i + np.tile(distances, k)) % k, w, np.full(k, 1.0 / k))


@dataclass(frozen=True)
class EquiDynamic(Mixing):
    """EquiTopo with one peer a round: W = (1 − η)I + ηB, B = I/k + (k − 1)/k P, P new every round.

    P takes from a places ahead, a random distance; undirected: random pairs at that distance, found by going round from
    a random start (who stays single keeps its model). Doubly stochastic; undirected symmetric. Song et al., NeurIPS
    2022 (2210.07881): with η = ½ the expected squared disagreement shrinks to at most ½ (undirected ⅔) a round,
    whatever the number of nodes.
    """

    eta: float = 0.5
    undirected: bool = False
    nodes: int | None = None  # n; left out: the task's
    averaging: ClassVar[str] = "doubly stochastic"

    def __post_init__(self) -> None:
        share("eta", self.eta)

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        return self.undirected

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        n, k = count(self.nodes, "EquiDynamic"), len(who)
        if k < 2:
            return alone(n, who)
        ahead = 1 + keyed.seed(key, "equi-dynamic", t, 0) % (k - 1)
        peer = (np.arange(k) + ahead) % k
        if self.undirected:
            peer = _paired(k, ahead, keyed.seed(key, "equi-dynamic", t, 1) % k)
        given = np.where(peer != np.arange(k), self.eta * (k - 1) / k, 0.0)
        return _placed(n, who, np.arange(k), peer, given, 1.0 - given)


@dataclass(frozen=True)
class GridGroups(Mixing):
    """Moshpit averaging: nodes sit on a grid of side M, and in round t all in line along axis t mod d average.

    M = `side` and d = ⌈log_M k⌉. Doubly stochastic and symmetric; with k = M^d present throughout, d rounds are an
    exact average. Ryabinin et al., NeurIPS 2021 (2103.03239).
    """

    side: int = 4  # M
    nodes: int | None = None  # n; left out: the task's
    averaging: ClassVar[str] = "doubly stochastic"
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("side", self.side, 2)

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Edges:
        n, k, axes = count(self.nodes, "GridGroups"), len(who), 0
        while self.side**axes < k:
            axes += 1
        if not axes:
            return alone(n, who)
        return ranked(n, who, *_line(k, self.side, self.side ** (t % axes), who.device))


def _paired(k: int, ahead: int, start: int) -> np.ndarray:
    """Everybody's partner, going round from the start and pairing i with i + ahead where both are free."""
    peer = list(range(k))
    for i in (*range(start, k), *range(start)):
        other = (i + ahead) % k
        if peer[i] == i and peer[other] == other:
            peer[i], peer[other] = other, i
    return np.array(peer)


def _placed(n: int, who: Tensor, i: np.ndarray, j: np.ndarray, w: np.ndarray, own: np.ndarray) -> Edges:
    """Weights among ranks, computed on the host."""
    import torch

    order = np.argsort(i, kind="stable")
    sides = (torch.from_numpy(side).to(who.device, non_blocking=True) for side in (i[order], j[order], w[order], own))
    return ranked(n, who, *sides)


@functools.lru_cache(maxsize=64)
def _line(k: int, side: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Edges and diagonal that average over all who differ only in the digit with this stride."""
    import torch

    rank = np.arange(k)[:, None]
    others = rank + (np.arange(side)[None] - rank // stride % side) * stride  # [k, side]
    there, self_too = others < k, others == rank
    each = 1.0 / there.sum(1)
    i, place = np.nonzero(there & ~self_too)
    arrays = (i, others[i, place], each[i], each)
    return tuple(torch.from_numpy(a).to(device) for a in arrays)  # type: ignore[return-value]

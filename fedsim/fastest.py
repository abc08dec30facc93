"""Averaging weights that are as fast as a graph allows, and matchings worth their messages: convex programs.

    fastest(graph)            Boyd, Diaconis, Xiao, SIAM Review 2004: the fastest mixing Markov chain
    matcha(graph, budget)     Wang, Sahu, Yang, Joshi, Kar, 2019 (1905.09435): matchings, drawn by probability

Both optimise an extreme eigenvalue of a matrix that is linear in what is sought: a semidefinite program, solved here by
a barrier method (scipy has none), whose answer is within GAP of the best there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    from networkx import Graph
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

GAP = 1e-9  # how far an eigenvalue may be from the best
LARGEST = 2**22  # numbers that the matrices of a program may have: about a minute
_FASTEST: WeakKeyDictionary[Graph, Array] = WeakKeyDictionary()
_MATCHA: WeakKeyDictionary[Graph, dict[float, Matcha]] = WeakKeyDictionary()


class Matcha(NamedTuple):
    """What MATCHA works out beforehand."""

    matching: NDArray[np.int64]  # [m]  which matching every edge is in; edges as `links` lists them
    p: Array  # [M]  how likely each matching is to be used in a round
    alpha: float  # the weight of an edge that is used
    rho: float  # by how much a round shrinks squared disagreement, in expectation, at worst


def links(graph: Graph) -> list[tuple[int, int]]:
    """The edges (i, j), i < j, ascending, without loops. Raises ValueError for a graph that nothing averages."""
    import networkx as nx

    if not nx.is_connected(graph):
        raise ValueError("optimised averaging needs a connected graph: nothing averages one that is not")
    return sorted({(min(i, j), max(i, j)) for i, j in graph.edges() if i != j})


def fastest(graph: Graph) -> Array:
    """The weights [m] of the edges (as `links` lists them) of the symmetric W ≥ 0 of smallest SLEM. Cached.

    minimise t  over w and t:   −t I ⪯ W − 11ᵀ/n ⪯ t I,   W = I − Σ_l w_l (e_i − e_j)(e_i − e_j)ᵀ,   w ≥ 0,   W_ii ≥ 0

    Raises ValueError for a graph that is not connected, or too large.
    """
    if graph not in _FASTEST:
        _FASTEST[graph] = _fastest(links(graph), graph.number_of_nodes())
    return _FASTEST[graph]


def _fastest(edges: list[tuple[int, int]], n: int) -> Array:
    m = len(edges)
    if not m:
        return np.zeros(0)
    fitting(m * n * n, f"{m} edges of {n} nodes")
    i, j = np.array(edges).T
    degree = np.bincount(np.concatenate([i, j]), minlength=n)
    metropolis = 1.0 / (1.0 + np.maximum(degree[i], degree[j]))
    parts = np.stack([laplacian(np.eye(1, m, k)[0], edges, n) for k in range(m)] + [np.eye(n)])
    still, mean = np.eye(n), np.full((n, n), 1.0 / n)
    turned = parts * np.r_[-np.ones(m), 1.0][:, None, None]
    at_node = np.zeros((n, m + 1))
    at_node[i, np.arange(m)] = at_node[j, np.arange(m)] = 1.0
    limits = np.vstack([at_node, -np.eye(m, m + 1)]), np.concatenate([np.ones(n), np.zeros(m)])
    found = barrier(
        np.r_[np.zeros(m), 1.0], [(mean - still, parts), (still - mean, turned)], *limits, np.r_[metropolis, 2.0]
    )
    return found[:-1]


def matcha(graph: Graph, budget: float) -> Matcha:
    """Matchings that decompose the graph, probabilities that use a share of them in a round, and the weight.

    maximise λ_2(Σ_j p_j L_j)  over  0 ≤ p ≤ 1,  Σ_j p_j ≤ budget · M;    then α minimises ρ = ‖E[W²] − 11ᵀ/n‖, where
    W = I − α Σ_{j used} L_j  and so  E[W²] = I − 2α L̄ + α² (L̄² + 2 Σ_j p_j (1 − p_j) L_j),  L̄ = Σ_j p_j L_j

    Cached. Raises ValueError for a graph that is not connected, or too large.
    """
    known = _MATCHA.setdefault(graph, {})
    if budget not in known:
        known[budget] = _matcha(links(graph), graph.number_of_nodes(), budget)
    return known[budget]


def _matcha(edges: list[tuple[int, int]], n: int, budget: float) -> Matcha:
    from scipy.optimize import minimize_scalar

    if not edges:
        return Matcha(np.zeros(0, dtype=np.int64), np.zeros(0), 0.0, 0.0)
    colour = coloured(edges, n)
    M = int(colour.max()) + 1
    fitting(M * n * n, f"{M} matchings of {n} nodes")
    parts = np.stack([laplacian((colour == j).astype(float), edges, n) for j in range(M)])
    p = np.ones(M)
    if budget < 1:
        top = 2.0 * n  # lifts the eigenvalue 0 of 1 above λ_2, which is at most n
        matrices = np.concatenate([parts, -np.eye(n)[None]])
        bounds = np.vstack([np.eye(M, M + 1), -np.eye(M, M + 1), np.r_[np.ones(M), 0.0][None]])
        sides = np.concatenate([np.ones(M), np.zeros(M), [budget * M]])
        start = np.r_[np.full(M, 0.5 * budget), -1.0]
        p = barrier(np.r_[np.zeros(M), -1.0], [(np.full((n, n), top / n), matrices)], bounds, sides, start)[:-1]
    mean = np.tensordot(p, parts, 1)
    spread = mean @ mean + 2.0 * np.tensordot(p * (1 - p), parts, 1)
    off = np.eye(n) - 1.0 / n

    def rho(alpha: float) -> float:
        return float(np.linalg.eigvalsh(off - 2 * alpha * mean + alpha**2 * spread)[-1])

    most = 2.0 / np.linalg.eigvalsh(mean)[1]
    found = minimize_scalar(rho, bounds=(0.0, most), method="bounded", options={"xatol": GAP})
    return Matcha(colour, p, float(found.x), float(found.fun))


def laplacian(w: Array, edges: list[tuple[int, int]], n: int) -> Array:
    """Σ_l w_l (e_i − e_j)(e_i − e_j)ᵀ [n, n], of edges without doubles."""
    i, j = np.array(edges).T
    L = np.zeros((n, n))
    L[i, j] = L[j, i] = -np.asarray(w)
    L[np.diag_indices(n)] = -L.sum(1)
    return L


def fitting(numbers: int, what: str) -> None:
    """Refuses a program that would not fit."""
    if numbers > LARGEST:
        raise ValueError(f"optimising {what} takes too long and too much memory; use metropolis or best-constant")


def coloured(edges: list[tuple[int, int]], n: int) -> NDArray[np.int64]:
    """A colour [m] for every edge so that edges that meet differ: at most one more than the largest degree.

    Misra and Gries, 1992. One colour is a matching.
    """
    at: list[dict[int, int]] = [{} for _ in range(n)]  # colour -> the neighbour along it
    colour: dict[tuple[int, int], int] = {}

    def paint(u: int, v: int, c: int | None) -> None:
        old = colour.pop((min(u, v), max(u, v)), None)
        if old is not None:
            for a, b in ((u, v), (v, u)):
                if at[a].get(old) == b:
                    del at[a][old]
        if c is not None:
            colour[min(u, v), max(u, v)] = at[u][c] = at[v][c] = c
            at[u][c], at[v][c] = v, u

    def free(u: int) -> int:
        return next(c for c in range(n + 1) if c not in at[u])

    for u, first in edges:
        fan = [first]  # neighbours of u: the colour of the edge to each is free at the one before
        while True:
            following = next((v for c, v in sorted(at[u].items()) if v not in fan and c not in at[fan[-1]]), None)
            if following is None:
                break
            fan.append(following)
        c, d = free(u), free(fan[-1])
        path, here, turn = [], u, d  # c and d change places along the path from u that alternates d, c, d, ...
        while turn in at[here]:
            path.append((here, at[here][turn], turn))
            here, turn = at[here][turn], c + d - turn
        for a, b, _ in path:
            paint(a, b, None)
        for a, b, old in path:
            paint(a, b, c + d - old)
        for last, w in enumerate(fan):  # the shortest fan whose end has d free, and is still a fan
            if d not in at[w]:
                break
            if last + 1 < len(fan) and colour[min(u, fan[last + 1]), max(u, fan[last + 1])] in at[w]:
                break
        shifted = [colour[min(u, v), max(u, v)] for v in fan[1 : last + 1]]
        for v in fan[1 : last + 1]:
            paint(u, v, None)
        for v, shade in zip(fan[:last], shifted, strict=True):
            paint(u, v, shade)
        paint(u, fan[last], d)
    return np.array([colour[edge] for edge in edges], dtype=np.int64)


def barrier(
    cost: Array, blocks: list[tuple[Array, Array]], rows: Array, sides: Array, start: Array
) -> Array:  # fmt: skip
    """The z [d] of smallest cost · z, to GAP, with F_0 + Σ_i z_i F_i ⪰ 0 for all `blocks` (F_0 [n, n], F [d, n, n]) and
    rows [k, d] z ≤ sides [k], from a z that holds all of these strictly. Newton's method on a logarithmic barrier."""
    z, weight = start.astype(float), 1.0
    terms = sum(len(zero) for zero, _ in blocks) + len(sides)

    def inside(z: Array) -> tuple[float, list[Array]] | None:
        """The barrier, and every block's inverse Cholesky factor; None outside."""
        slack = sides - rows @ z
        if slack.min(initial=1.0) <= 0:
            return None
        value, factors = -float(np.log(slack).sum()), []
        for zero, each in blocks:
            try:
                lower = np.linalg.cholesky(zero + np.tensordot(z, each, 1))
            except np.linalg.LinAlgError:
                return None
            value -= 2.0 * float(np.log(np.diag(lower)).sum())
            factors.append(np.linalg.inv(lower))
        return value, factors

    while True:
        for _ in range(100):
            here = inside(z)
            assert here is not None
            slack = rows / (sides - rows @ z)[:, None]
            gradient, hessian = weight * cost + slack.sum(0), slack.T @ slack
            for (_, each), factor in zip(blocks, here[1], strict=True):
                turned = (factor @ each @ factor.T).reshape(len(z), -1)
                gradient = gradient - turned.reshape(len(z), *factor.shape).trace(axis1=1, axis2=2)
                hessian = hessian + turned @ turned.T
            step = -np.linalg.solve(hessian, gradient)
            decrement = -float(gradient @ step)
            if decrement < 1e-6:
                break
            length, before = 1.0, here[0] + weight * float(cost @ z)
            while length > 1e-12:
                there = inside(z + length * step)
                if there is not None and there[0] + weight * float(cost @ (z + length * step)) < before:
                    break
                length /= 2
            else:
                break  # as near as these numbers go
            z = z + length * step
        if terms / weight < GAP:
            return z
        weight *= 20.0

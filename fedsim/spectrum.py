"""How fast a network agrees: eigenvalues of mixing matrices and Laplacians, sparse where the network is large.

numpy up to 500 nodes. Above, Lanczos (ARPACK), which is quick where a network mixes well; where it does not settle in
time the network is thin (a ring, a grid, a tree), and shift-invert is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    from networkx import Graph
    from scipy.sparse import csr_array

DENSE = 500  # nodes up to which all eigenvalues are computed

_BEST: WeakKeyDictionary[Graph, float] = WeakKeyDictionary()


def slem(mixing: Any) -> float:
    """The second largest eigenvalue modulus of a mixing matrix: by how much a round of averaging shrinks disagreement
    in the long run; 0 for one node.

    mixing: [n, n], rows sum to 1 (numpy, scipy.sparse, a CPU tensor), or `mixing.Edges`. For a matrix that is not
    symmetric this is the asymptotic rate; a single round may do worse. Raises ValueError for a matrix of another shape
    or row sum.
    """
    matrix = as_matrix(mixing)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.shape[0]:
        raise ValueError(f"a mixing matrix is square, got shape {matrix.shape}")
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    if not np.allclose(sums, 1, rtol=0, atol=1e-6):
        worst = int(np.argmax(np.abs(sums - 1)))
        raise ValueError(f"the rows of a mixing matrix sum to 1, but row {worst} sums to {sums[worst]:.6g}")
    if isinstance(matrix, np.ndarray):
        symmetric = np.allclose(matrix, matrix.T, rtol=0, atol=1e-12)
        values = np.linalg.eigvalsh(matrix) if symmetric else np.linalg.eigvals(matrix)
        others = np.delete(values, np.argmin(np.abs(values - 1)))
        return float(np.abs(others).max(initial=0.0))
    if abs(matrix - matrix.T).max() > 1e-12:
        return _arnoldi(matrix)
    above = abs(top(matrix))
    return above if -_bound(matrix) <= above else max(above, abs(bottom(matrix)))


def spectral_gap(mixing: Any) -> float:
    """1 - `slem`: the larger, the faster the network agrees; 0 if it never does."""
    return 1.0 - slem(mixing)


def best_constant(graph: Graph) -> float:
    """α = 2/(λ_max + λ_2) of the graph's Laplacian, with which I − αL averages fastest; 0 for one node. Cached.

    Raises ValueError for a graph that is not connected.
    """
    import networkx as nx

    if graph not in _BEST:
        if not nx.is_connected(graph):
            raise ValueError("best-constant weights need a connected graph: nothing averages one that is not")
        _BEST[graph] = _best_constant(adjacency(graph))
    return _BEST[graph]


def _best_constant(links: csr_array) -> float:
    from scipy import sparse

    n = links.shape[0]
    if n == 1:
        return 0.0
    laplacian = sparse.diags_array(links.sum(axis=1)).tocsr() - links
    if n <= DENSE:
        values = np.linalg.eigvalsh(laplacian.toarray())
        return float(2.0 / (values[-1] + values[1]))
    most = 2.0 * float(laplacian.diagonal().max())  # λ_max is at most this, so I − L/most is like a mixing matrix
    likened = sparse.eye_array(n, format="csr") - laplacian / most
    return float(2.0 / (most * (1.0 - bottom(likened) + 1.0 - top(likened))))


def adjacency(graph: Graph) -> csr_array:
    """The adjacency matrix of a graph with nodes 0..n-1: 0 and 1, no loops; entry (i, j): i receives from j."""
    from scipy import sparse

    n = graph.number_of_nodes()
    pairs = np.array([(a, b) for a, b in graph.edges() if a != b], dtype=np.int64).reshape(-1, 2)
    if not graph.is_directed():
        pairs = np.concatenate([pairs, pairs[:, ::-1]])
    return sparse.csr_array((np.ones(len(pairs)), (pairs[:, 1], pairs[:, 0])), shape=(n, n))


def metropolis(links: csr_array) -> csr_array:
    """The matrix of Metropolis weights [n, n] on an adjacency matrix."""
    from scipy import sparse

    degree = links.sum(axis=1)
    pairs = links.tocoo()
    i, j = pairs.coords
    weights = sparse.csr_array((1.0 / (1.0 + np.maximum(degree[i], degree[j])), (i, j)), shape=links.shape)
    return (weights + sparse.diags_array(1.0 - weights.sum(axis=1))).tocsr()


def push(links: csr_array) -> csr_array:
    """The matrix of push weights [n, n], columns summing to 1, on an adjacency matrix."""
    from scipy import sparse

    with_self = links + sparse.eye_array(links.shape[0])
    return (with_self @ sparse.diags_array(1.0 / np.asarray(with_self.sum(axis=0)).ravel())).tocsr()


def diameter(links: csr_array) -> int:
    """The longest of all shortest paths of a connected adjacency matrix, directed if that is not symmetric.

    A breadth-first search from every node: seconds for 10,000.
    """
    from scipy.sparse.csgraph import breadth_first_order

    n = int(links.shape[0])
    if links.nnz == 2 * n and (np.diff(links.indptr) == 2).all() and not (links - links.T).nnz:
        return n // 2  # a ring, whose long paths take long to walk back
    longest = 0
    for start in range(n):
        order, before = breadth_first_order(links, start)
        last, steps = order[-1], 0
        while last != start:
            last, steps = before[last], steps + 1
        longest = max(longest, steps)
    return longest


def top(matrix: csr_array) -> float:
    """The second largest eigenvalue of a symmetric matrix whose largest is 1, once."""
    n = matrix.shape[0]
    if n <= DENSE:
        return float(np.linalg.eigvalsh(matrix.toarray())[-2])
    return float(_modes(matrix, 1.0)[0][1])


def bottom(matrix: Any) -> float:
    """The smallest eigenvalue of a symmetric matrix, as `as_matrix` gives it."""
    if isinstance(matrix, np.ndarray):
        return float(np.linalg.eigvalsh(matrix)[0])
    if matrix.shape[0] <= DENSE:
        return float(np.linalg.eigvalsh(matrix.toarray())[0])
    return -float(_modes(-matrix, -_bound(matrix))[0][0])


def _bound(matrix: csr_array) -> float:
    """No eigenvalue of a symmetric matrix is smaller (Gershgorin)."""
    own = matrix.diagonal()
    return float((own - (np.asarray(abs(matrix).sum(axis=1)).ravel() - abs(own))).min())


def _modes(matrix: csr_array, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """The three largest eigenvalues, descending, of a symmetric matrix that has none above the bound, and their
    vectors [n, 3].

    One more than anybody asks for: Lanczos may step over one of a close pair, seldom over two.
    """
    from scipy import sparse
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh, splu

    n = matrix.shape[0]
    how = {"k": 3, "which": "LA", "v0": _start(n)}
    try:
        values, vectors = eigsh(matrix, ncv=48, maxiter=40, tol=1e-10, **how)
    except ArpackNoConvergence:
        near = bound + 1e-9
        factors = splu(
            (sparse.eye_array(n) * near - matrix).tocsc(),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        inverse = LinearOperator((n, n), matvec=factors.solve, dtype=float)
        values, vectors = eigsh(inverse, **how)
        values = near - 1.0 / values
    order = np.argsort(values)[::-1]
    return values[order], vectors[:, order]


def directions(links: csr_array) -> np.ndarray:
    """The two slowest modes [n, 2] of Metropolis weights on a connected adjacency matrix of at least 3 nodes: along
    them disagreement lives longest, so that nodes far apart in the network are far apart in them."""
    matrix = metropolis(links)
    if matrix.shape[0] <= DENSE:
        found: np.ndarray = np.linalg.eigh(matrix.toarray())[1][:, [-2, -3]]
        return found
    return _modes(matrix, 1.0)[1][:, 1:]


def _arnoldi(matrix: csr_array) -> float:
    """The second largest eigenvalue modulus of a matrix that is not symmetric."""
    from scipy.sparse.linalg import ArpackNoConvergence, eigs

    try:
        values = eigs(matrix, k=2, which="LM", ncv=48, v0=_start(matrix.shape[0]), return_eigenvectors=False)
    except ArpackNoConvergence as error:
        raise ValueError(f"the eigenvalues of these {matrix.shape[0]} nodes were not found: {error}") from error
    return float(np.sort(np.abs(values))[0])


def _start(n: int) -> np.ndarray:
    """Where the iterations begin: always the same, so that the same network gives the same digits."""
    return np.random.default_rng(0).standard_normal(n)


def as_matrix(mixing: Any) -> Any:
    """A mixing matrix as numpy has it, or as scipy.sparse does where it is large."""
    if hasattr(mixing, "diagonal") and hasattr(mixing, "apply"):  # Edges
        n = len(mixing.diagonal)
        if n <= DENSE:
            return np.asarray(mixing.dense().cpu(), float)
        from scipy import sparse

        i, j, w, own = (side.cpu().numpy() for side in mixing[:4])
        return sparse.csr_array((w, (i, j)), shape=(n, n)) + sparse.diags_array(own)
    if hasattr(mixing, "tocsr"):
        return mixing.toarray() if mixing.shape[0] <= DENSE else mixing.tocsr()
    return np.asarray(mixing, float)

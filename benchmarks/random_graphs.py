"""Claim: graphs that are drawn anew every round mix as fast as their closed forms say.

What is left of the squared disagreement after one round, ‖W x − x̄‖²/‖x − x̄‖² with x̄ the mean before, averaged over
many draws of W, is predicted exactly:

    epidemic oracle    1/(s + 1) (1 − s/(n − 1))                        de Vos et al., NeurIPS 2023
    epidemic local     1/s (1 − (1 − s/(n − 1))^n) − 1/(n − 1)
    equal groups       (r − 1)/(n − 1)                                  n nodes split at random into r groups of n/r
    drawn groups       (r (1 − (1 − 1/r)^n) − 1)/(n − 1)                everybody draws one of r groups by itself
    matching           (n/2 − 1)/(n − 1)                                groups of two
    regular            as the oracle                                    a fresh random s-regular graph
    equi-dynamic       a² + b² − 2ab/(n − 1), a = 1 − η + η/n, b = η(n − 1)/n     Song et al., NeurIPS 2022
    pairwise           1 − λ_2(L)/(n d) per event, d-regular, x along the slowest eigenvector

The matrices are those that strategies and experiments use: EpidemicLearning's own, the mixings of fedsim.mixing, and
for groups `Changing`, a user's function of the round, with Metropolis weights. Every mean has to be within three
standard errors of what is predicted; where there is no chance in it, equal to rounding.

    python benchmarks/random_graphs.py           # results/random_graphs.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import torch
from common import machine
from torch import Tensor

from fedsim.mixing import Changing, EquiDynamic, Mixing, Pairwise, RandomMatching, RandomRegular
from fedsim.strategies import EpidemicLearning

RESULTS = Path(__file__).parent / "results" / "random_graphs.json"
N = 16
FIRST = 100  # draws that a test makes again


class Case(NamedTuple):
    """A mixing, the models it starts from [n] and what it should leave."""

    mixing: Mixing
    x: Tensor
    predicted: float


def start(n: int) -> Tensor:
    """Models [n] in no special direction."""
    return torch.from_numpy(np.random.default_rng(0).normal(size=n))


def epidemic(s: int, variant: Any) -> Mixing:
    """What the strategy averages with."""
    return EpidemicLearning(sends=s, variant=variant).among(N).mixing


def groups(r: int, equal: bool) -> Mixing:
    """Averages within r random groups, as a user's function of the round: cliques."""

    def cliques(n: int, seed: int) -> nx.Graph:
        random = np.random.default_rng(seed)
        group = random.permutation(np.arange(n) % r) if equal else random.integers(r, size=n)
        graph = nx.empty_graph(n)
        graph.add_edges_from((i, j) for i in range(n) for j in range(i) if group[i] == group[j])
        return graph

    return Changing(cliques, nodes=N)


def pairwise(graph: nx.Graph) -> Case:
    """One event along the slowest eigenvectors."""
    n = len(graph)
    values, vectors = np.linalg.eigh(nx.laplacian_matrix(graph, nodelist=range(n)).toarray())
    slowest = vectors[:, np.isclose(values, values[1])]  # the part of x in their span: whatever basis eigh has picked
    x = torch.from_numpy(slowest @ (slowest.T @ start(n).numpy()))
    return Case(Pairwise(graph), x, 1 - float(values[1]) / (n * graph.degree[0]))


def cases() -> dict[str, Case]:
    """All of them."""
    x, found = start(N), {}
    for s in (1, 2, 4, 7):
        oracle = (1 - s / (N - 1)) / (s + 1)
        found[f"epidemic oracle, s = {s}"] = Case(epidemic(s, "oracle"), x, oracle)
        local = (1 - (1 - s / (N - 1)) ** N) / s - 1 / (N - 1)
        found[f"epidemic local, s = {s}"] = Case(epidemic(s, "local"), x, local)
    for r in (2, 4, 8):
        found[f"equal groups, r = {r}"] = Case(groups(r, True), x, (r - 1) / (N - 1))
        drawn = (r * (1 - (1 - 1 / r) ** N) - 1) / (N - 1)
        found[f"drawn groups, r = {r}"] = Case(groups(r, False), x, drawn)
    found["matching"] = Case(RandomMatching(nodes=N), x, (N / 2 - 1) / (N - 1))
    found["regular, s = 4"] = Case(RandomRegular(4, nodes=N), x, (1 - 4 / (N - 1)) / 5)
    for eta in (0.5, 1.0):
        a, b = 1 - eta + eta / N, eta * (N - 1) / N
        found[f"equi-dynamic, η = {eta}"] = Case(EquiDynamic(eta, nodes=N), x, a * a + b * b - 2 * a * b / (N - 1))
    found["pairwise, ring of 12"] = pairwise(nx.cycle_graph(12))
    found["pairwise, 4-regular of 20"] = pairwise(nx.random_regular_graph(4, 20, seed=0))
    found["pairwise, complete of 16"] = pairwise(nx.complete_graph(16))
    return found


def left(case: Case, draws: int) -> list[float]:
    """What each draw leaves of the squared disagreement about the mean before."""
    who, about = torch.arange(len(case.x)), case.x - case.x.mean()
    whole = about.square().sum()
    return [float(case.mixing(t, who, 0).apply(about[:, None]).square().sum() / whole) for t in range(draws)]


def measured(case: Case, draws: int) -> dict[str, Any]:
    """A case, and whether it holds."""
    found = left(case, draws)
    mean, error = statistics.fmean(found), statistics.stdev(found) / math.sqrt(draws)
    return {
        "predicted": case.predicted,
        "measured": mean,
        "standard_error": error,
        "errors_off": (mean - case.predicted) / error if error > 1e-12 else 0.0,
        "within": abs(mean - case.predicted) <= 3 * error + 1e-12,
        "first": statistics.fmean(found[:FIRST]),
    }


def main(say: Callable[[str], Any] = sys.stderr.write) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/random_graphs.py", *sys.argv[1:]]),
        "machine": machine("torch", "numpy", "networkx"),
        "nodes": N,
        "draws": given.draws,
        "cases": {},
    }
    cpu = time.process_time()
    for name, case in cases().items():
        found = result["cases"][name] = measured(case, given.draws)
        off = found["errors_off"]
        say(f"{name:28} predicted {found['predicted']:.5f}, measured {found['measured']:.5f}, {off:+.2f} errors off\n")
    result["cpu_s"] = time.process_time() - cpu
    result["all_within"] = all(found["within"] for found in result["cases"].values())
    with tempfile.NamedTemporaryFile("w", dir=given.out.parent, delete=False, suffix=".json") as file:
        file.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    os.replace(file.name, given.out)
    say(f"{'all' if result['all_within'] else 'NOT all'} within three standard errors; {given.out}\n")


if __name__ == "__main__":
    main()

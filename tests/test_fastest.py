"""The fastest weights against closed forms and another search; MATCHA's matchings, probabilities and expectations."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import command
from scipy.optimize import minimize

from fedsim import fastest, spectrum, topology
from fedsim.mixing import BestConstant, Fastest, Matcha, MaxDegree, Metropolis, Mixing
from fedsim.testing import check_mixing

KARATE = topology.load("karate")
GRAPHS = {
    "karate": KARATE,
    "barbell": nx.barbell_graph(4, 1),
    "tree": nx.Graph([(0, 1), (1, 2), (1, 3), (3, 4), (3, 5)]),
    "grid": topology.load("torus", 9),
    "random": nx.gnp_random_graph(14, 0.35, seed=3),
    "lollipop": nx.lollipop_graph(4, 3),
    "loops": nx.Graph([(0, 0), (0, 1), (1, 2), (2, 0), (2, 3)]),
}
graphs = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def matrix(mixing: Mixing, n: int, t: int = 0, key: int = 0) -> np.ndarray:
    return mixing(t, torch.arange(n), key).dense().numpy()


# The fastest weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_on_a_path_every_link_has_one_half(n: int) -> None:
    """Boyd, Diaconis, Sun & Xiao, 2006: SLEM cos(π/n)."""
    w = matrix(Fastest(nx.path_graph(n)), n)
    np.testing.assert_allclose(np.diag(w, 1), 0.5, atol=1e-4)
    assert spectrum.slem(w) == pytest.approx(abs(math.cos(math.pi / n)), abs=1e-8)


@pytest.mark.parametrize(
    ("graph", "slem"),
    [
        (nx.complete_graph(6), 0.0),
        (nx.star_graph(6), 1 - 1 / 6),
        (nx.complete_bipartite_graph(3, 3), 1 / 3),
        (nx.hypercube_graph(3), 1 / 2),
        (nx.petersen_graph(), 3 / 7),
        *((nx.cycle_graph(n), None) for n in (4, 7, 10)),
    ],
    ids=str,
)
def test_where_all_links_are_alike_they_weigh_the_same(graph: nx.Graph, slem: float | None) -> None:
    """Then it is the best constant, (λ_max − λ_2)/(λ_max + λ_2), unless that has negative weights, as a star's."""
    graph = nx.convert_node_labels_to_integers(graph)
    n = len(graph)
    values = np.sort(nx.laplacian_spectrum(graph))
    if slem is None:
        slem = (values[-1] - values[1]) / (values[-1] + values[1])
    w = matrix(Fastest(graph), n)
    off = w[~np.eye(n, dtype=bool)]
    assert spectrum.slem(w) == pytest.approx(slem, abs=1e-8)
    assert np.ptp(off[off > 1e-12]) < 1e-4


@graphs
def test_it_is_a_mixing_and_never_slower_than_others(graph: nx.Graph) -> None:
    n = len(graph)
    w = matrix(Fastest(graph), n)
    assert w.min() >= 0
    np.testing.assert_array_equal(w, w.T)
    np.testing.assert_allclose(w.sum(1), 1, atol=1e-14)
    here = spectrum.slem(w)
    for other in (Metropolis(graph), MaxDegree(graph)):
        assert here <= spectrum.slem(matrix(other, n)) + 1e-8
    constant = matrix(BestConstant(graph), n)
    if constant.min() >= 0:
        assert here <= spectrum.slem(constant) + 1e-8
    assert not np.allclose(w, matrix(Metropolis(graph), n), atol=1e-3)


@pytest.mark.parametrize("name", ["tree", "lollipop", "loops"])
def test_nothing_faster_is_found_by_another_search(name: str) -> None:
    """SciPy's SLSQP from many starts, on the eigenvalues themselves: it comes as near and no nearer."""
    graph = GRAPHS[name]
    edges, n = fastest.links(graph), len(graph)
    m = len(edges)

    def slem(w: np.ndarray) -> float:
        return float(np.abs(np.linalg.eigvalsh(np.eye(n) - fastest.laplacian(w, edges, n) - 1 / n)).max())

    sums = np.zeros((n, m))
    for k, (i, j) in enumerate(edges):
        sums[i, k] = sums[j, k] = 1
    rng, found = np.random.default_rng(0), []
    for _ in range(12):
        start = rng.random(m) / 4
        held = {"type": "ineq", "fun": lambda w: 1 - sums @ w}
        result = minimize(slem, start, method="SLSQP", bounds=[(0, 1)] * m, constraints=[held])
        if (sums @ result.x).max() < 1 + 1e-9:
            found.append(slem(result.x))
    ours = slem(fastest.fastest(graph))
    assert ours - 1e-7 <= min(found) < ours + 2e-3


def test_absent_nodes_keep_their_share() -> None:
    whole = matrix(Fastest(KARATE), 34)
    who = torch.tensor([i for i in range(34) if i % 3])
    left = Fastest(KARATE)(0, who).dense().numpy()
    for i, j in itertools.product(range(34), repeat=2):
        if i != j:
            assert left[i, j] == (whole[i, j] if i % 3 and j % 3 else 0.0)
    np.testing.assert_allclose(left.sum(1), 1, atol=1e-14)


# Matchings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_edges_that_meet_have_other_colours_and_one_more_than_the_degree_is_enough(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = nx.gnp_random_graph(int(rng.integers(2, 25)), float(rng.uniform(0.1, 1)), seed=seed)
    edges = sorted((min(e), max(e)) for e in graph.edges)
    if not edges:
        return
    colour = fastest.coloured(edges, len(graph))
    assert colour.min() == 0
    assert colour.max() <= max(dict(graph.degree).values())
    for c in range(int(colour.max()) + 1):
        ends = [node for edge, mine in zip(edges, colour, strict=True) if mine == c for node in edge]
        assert ends
        assert len(set(ends)) == len(ends)


@graphs
@pytest.mark.parametrize("budget", [0.2, 0.5, 0.9])
def test_the_budget_is_used_and_better_than_evenly(graph: nx.Graph, budget: float) -> None:
    edges, n = fastest.links(graph), len(graph)
    plan = fastest.matcha(graph, budget)
    M = len(plan.p)
    assert plan.p.sum() == pytest.approx(budget * M, abs=1e-6)
    assert plan.p.min() >= 0
    assert plan.p.max() <= 1
    parts = [fastest.laplacian((plan.matching == j).astype(float), edges, n) for j in range(M)]

    def joined(p: np.ndarray) -> float:
        return float(np.linalg.eigvalsh(np.tensordot(p, np.stack(parts), 1))[1])

    assert joined(plan.p) > 0  # everybody is reached: the paper's theorem
    assert joined(plan.p) >= joined(np.full(M, budget)) - 1e-9
    rng = np.random.default_rng(1)
    for _ in range(60):  # nor is anything near it better
        other = np.clip(plan.p + rng.normal(0, 0.05, M), 0, 1)
        other *= min(1.0, budget * M / other.sum())
        assert joined(other) <= joined(plan.p) + 1e-7


@pytest.mark.parametrize("name", ["barbell", "tree", "loops", "grid"])
@pytest.mark.parametrize("budget", [0.3, 0.6])
def test_rho_is_the_expectation_over_all_draws(name: str, budget: float) -> None:
    """E[W²] over all 2^M sets of matchings, and no other α does better; without the variance of the draws it would be
    something else."""
    graph = GRAPHS[name]
    edges, n = fastest.links(graph), len(graph)
    plan = fastest.matcha(graph, budget)
    M = len(plan.p)
    parts = [fastest.laplacian((plan.matching == j).astype(float), edges, n) for j in range(M)]

    def rho(alpha: float) -> float:
        mean = np.zeros((n, n))
        for used in itertools.product((0, 1), repeat=M):
            chance = np.prod(np.where(used, plan.p, 1 - plan.p))
            w = np.eye(n) - alpha * sum(u * part for u, part in zip(used, parts, strict=True))
            mean += chance * w @ w
        return float(np.linalg.eigvalsh(mean - 1 / n)[-1])

    assert rho(plan.alpha) == pytest.approx(plan.rho, abs=1e-9)
    assert plan.rho < 1
    for factor in (0.8, 0.95, 1.05, 1.2):
        assert rho(factor * plan.alpha) > plan.rho
    mean = np.eye(n) - plan.alpha * np.tensordot(plan.p, np.stack(parts), 1) - 1 / n
    assert np.linalg.eigvalsh(mean @ mean)[-1] < plan.rho - 1e-3


def test_with_the_whole_budget_it_is_the_best_constant() -> None:
    for graph in GRAPHS.values():
        plan = fastest.matcha(graph, 1.0)
        n = len(graph)
        constant = matrix(BestConstant(graph), n)
        np.testing.assert_allclose(matrix(Matcha(graph, 1.0), n, t=5), constant, atol=1e-6)
        assert plan.rho == pytest.approx(spectrum.slem(constant) ** 2, abs=1e-7)


def test_matchings_are_drawn_as_often_as_said_and_independently() -> None:
    graph = GRAPHS["barbell"]
    n, rounds = len(graph), 4000
    plan, edges = fastest.matcha(graph, 0.5), fastest.links(graph)
    drawn = np.zeros((rounds, len(plan.p)))
    mixed, squared = np.zeros((n, n)), np.zeros((n, n))
    for t in range(rounds):
        w = matrix(Matcha(graph), n, t, key=9)
        np.testing.assert_allclose(w.sum(1), 1, atol=1e-14)
        np.testing.assert_array_equal(w, w.T)
        for (i, j), c in zip(edges, plan.matching, strict=True):
            assert w[i, j] in (0.0, plan.alpha)
            drawn[t, c] = w[i, j] > 0
        mixed, squared = mixed + w / rounds, squared + w @ w / rounds
    error = 4 * np.sqrt(plan.p * (1 - plan.p) / rounds) + 1e-9
    assert (np.abs(drawn.mean(0) - plan.p) <= error).all()
    unsure = (plan.p > 0.02) & (plan.p < 0.98)
    together = np.corrcoef(drawn[:, unsure].T)
    assert np.abs(together - np.eye(len(together))).max() < 4 / math.sqrt(rounds)
    expected = np.eye(n) - plan.alpha * fastest.laplacian(plan.p[plan.matching], edges, n)
    np.testing.assert_allclose(mixed, expected, atol=0.03)
    assert np.linalg.eigvalsh(squared - 1 / n)[-1] == pytest.approx(plan.rho, abs=0.02)
    assert not np.array_equal(matrix(Matcha(graph), n, 0, key=9), matrix(Matcha(graph), n, 1, key=9))


def test_half_the_matchings_cost_half_the_messages_and_less_than_half_the_speed() -> None:
    """On karate, in the long run: per message MATCHA agrees faster than all links in every round."""
    whole, half = (fastest.matcha(KARATE, budget) for budget in (1.0, 0.5))
    sent = [float((plan.p[plan.matching]).sum()) for plan in (whole, half)]
    assert sent[0] == 78
    assert math.log(half.rho) / sent[1] < math.log(whole.rho) / sent[0]
    assert Matcha(KARATE, 1.0)(0, torch.arange(34)).sent() == 2 * 78
    seen = [Matcha(KARATE)(t, torch.arange(34), 1).sent() for t in range(400)]
    assert np.mean(seen) == pytest.approx(2 * sent[1], rel=0.05)


# What is refused, and the command line --------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.5, float("nan")])
def test_a_budget_is_a_share(budget: float) -> None:
    with pytest.raises(ValueError, match="budget must be above 0 and at most 1"):
        Matcha(KARATE, budget)


@pytest.mark.parametrize("kind", [Fastest, Matcha])
def test_graphs_that_nothing_averages_are_refused(kind: type[Mixing]) -> None:
    for graph, words in (
        (nx.Graph([(0, 1), (2, 3)]), "needs a connected graph"),
        (nx.DiGraph([(0, 1), (1, 0)]), "needs an undirected graph"),
        (None, "mixing needs a graph"),
        (topology.load("ring", 2000), "takes too long and too much memory; use metropolis"),
    ):
        with pytest.raises(ValueError, match=words):
            kind(graph)(0, torch.arange(4))  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [Fastest, Matcha])
def test_one_node_keeps_its_model(kind: type[Mixing]) -> None:
    assert matrix(kind(topology.load("complete", 1)), 1).tolist() == [[1.0]]  # type: ignore[call-arg]


def test_an_experiment_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e.toml").write_text(
        """
[task]
clients = 12
[local]
lr = 0.1
steps = 1
[[strategy]]
name = "DPSGD"
label = "fastest"
mixing = "fastest"
topology = "ring"
[[strategy]]
name = "DPSGD"
label = "matcha"
mixing = { name = "matcha", budget = 0.4 }
topology = "ring"
[[strategy]]
name = "DPSGD"
label = "metropolis"
topology = "ring"
[run]
rounds = 30
threads = 1
"""
    )
    assert command("run", tmp_path / "e.toml", "--out", tmp_path / "run", "--quiet") == 0
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    sent = {row[0]: float(row[4]) for row in rows if row[2] == "30" and row[3] == "bytes_up"}
    assert sent["fastest"] == sent["metropolis"]
    assert sent["matcha"] == pytest.approx(0.4 * sent["metropolis"], rel=0.25)
    assert (
        command("run", tmp_path / "e.toml", "--set", "strategy.matcha.mixing.budget=2", "--out", tmp_path / "no") == 2
    )
    assert "budget must be above 0 and at most 1" in capsys.readouterr().err


@pytest.mark.parametrize("mixing", [Fastest(), Matcha(), Matcha(budget=0.2)], ids=repr)
def test_they_obey_the_laws_of_mixings(mixing: Mixing) -> None:
    check_mixing(mixing)

"""Graphs that change from round to round: what their matrices are, what their sequences do, what they depend on."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import topology
from fedsim.mixing import (
    NAMES,
    Base,
    Changing,
    EdgeMatching,
    Edges,
    EquiDynamic,
    EquiStatic,
    Fastest,
    GridGroups,
    Lazy,
    LinkFailures,
    Matcha,
    Metropolis,
    Mixing,
    Neighbour,
    OnePeerExponential,
    Pairwise,
    Push,
    RandomMatching,
    RandomRegular,
    StaticExponential,
)
from fedsim.mixing.sequence import base
from fedsim.mixing.varying import regular

F64 = torch.float64
KARATE = topology.load("karate")


def rules(n: int, graph: nx.Graph) -> dict[str, Mixing]:
    return {
        "static exponential": StaticExponential(n),
        "one peer": OnePeerExponential(n),
        "base 2": Base(1, n),
        "base 4": Base(3, n),
        "random matching": RandomMatching(n),
        "edge matching": EdgeMatching(graph),
        "pairwise": Pairwise(graph),
        "random regular": RandomRegular(3, n),
        "dense regular": RandomRegular(14, n),
        "equi static": EquiStatic(4, False, n),
        "equi static undirected": EquiStatic(4, True, n),
        "equi dynamic": EquiDynamic(0.5, False, n),
        "equi dynamic undirected": EquiDynamic(0.5, True, n),
        "grid groups": GridGroups(3, n),
        "fastest": Fastest(graph),
        "matcha": Matcha(graph),
        "failing metropolis": LinkFailures(Metropolis(graph), 0.3),
        "failing neighbour": LinkFailures(Neighbour(graph), 0.3),
        "failing push": LinkFailures(Push(graph), 0.3),
        "failing one peer": LinkFailures(OnePeerExponential(n), 0.3),
        "lazy matching": Lazy(RandomMatching(n)),
        "changing": Changing(lambda t: nx.cycle_graph(n) if t % 2 else graph, nodes=n),
    }


RULES = list(rules(34, KARATE))
each = pytest.mark.parametrize("rule", RULES)


def some(n: int, seed: int) -> Tensor:
    """Some nodes, ascending; all of them for seed 0, one for seed 1, none for seed 2, two for seed 3."""
    keep = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.6
    return torch.arange(n)[{0: slice(None), 1: slice(4, 5), 2: slice(0, 0), 3: slice(4, 6)}.get(seed, keep)]


def product(mixing: Mixing, who: Tensor, rounds: int, n: int) -> Tensor:
    w = torch.eye(n, dtype=F64)
    for t in range(rounds):
        w = mixing(t, who, 3).dense() @ w
    return w


def consensus(who: Tensor, n: int) -> Tensor:
    """11ᵀ/k among those present, the identity elsewhere."""
    wanted = torch.eye(n, dtype=F64)
    wanted[who[:, None], who] = 1 / max(len(who), 1)
    return wanted


# --- every rule -------------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("seed", range(7))
def test_the_matrix_is_what_the_rule_says_whoever_is_absent(rule: str, seed: int) -> None:
    mixing, who = rules(34, KARATE)[rule], some(34, seed)
    for t in range(5):
        edges = mixing(t, who, key=11)
        w = edges.dense()
        assert w.dtype == F64
        assert w.shape == (34, 34)
        assert isinstance(mixing, Matcha) or (w >= -1e-15).all()  # there a node's own weight may be negative
        if mixing.averaging != "column-stochastic":
            assert (w.sum(1) - 1).abs().max() < 1e-14
        if mixing.averaging != "row-stochastic":
            assert (w.sum(0) - 1).abs().max() < 1e-14
        if mixing.symmetric:
            assert (w - w.T).abs().max() < 1e-15
        absent = [i for i in range(34) if i not in who.tolist()]
        eye = torch.eye(34, dtype=F64)
        assert torch.equal(w[absent], eye[absent])
        assert torch.equal(w[:, absent], eye[:, absent])
        assert (edges.i.diff() >= 0).all()
        assert (edges.w[edges.i == edges.j] == 0).all()
        x = torch.randn(34, 9, dtype=F64, generator=torch.Generator().manual_seed(t))
        assert (edges.apply(x) - w @ x).abs().max() < 1e-14
        assert edges.sent() == int((w.fill_diagonal_(0) != 0).sum())


@each
def test_a_draw_depends_on_round_and_key_and_on_nothing_else(rule: str) -> None:
    """Whatever was asked before: a resumed run draws what the uninterrupted one did."""
    who = some(34, 5)
    forward = [rules(34, KARATE)[rule](t, who, key=7).dense() for t in range(6)]
    fresh = rules(34, KARATE)[rule]
    for t in reversed(range(6)):
        assert torch.equal(fresh(t, who, key=7).dense(), forward[t])
    drawn = not any(word in rule for word in ("exponential", "one peer", "base", "changing", "grid", "fastest"))
    drawn = drawn or "failing" in rule
    if drawn:
        assert not torch.equal(fresh(0, who, key=8).dense(), forward[0])
        assert torch.equal(forward[0], forward[1]) == ("equi static" in rule)  # drawn once for the run
    else:
        assert torch.equal(fresh(0, who, key=8).dense(), forward[0])


@each
def test_a_round_does_not_wait_for_the_device(rule: str) -> None:
    """On a device without numbers, whatever has to read one fails."""
    edges = rules(34, KARATE)[rule](1, torch.empty(20, dtype=torch.int64, device="meta"), 5)
    assert edges.apply(torch.empty(34, 10, device="meta")).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each
def test_cuda_draws_the_same_without_waiting(rule: str) -> None:
    mixing, who = rules(34, KARATE)[rule], some(34, 5)
    x = torch.randn(34, 1000)
    mixing(1, who.cuda(), 5)
    there, stack = who.cuda(), x.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        edges = mixing(1, there, 5)
        mixed = edges.apply(stack)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(edges.dense().cpu(), mixing(1, who, 5).dense())
    assert (mixed.cpu() - mixing(1, who, 5).apply(x)).abs().max() < 1e-6


def test_every_name_runs_with_what_the_builder_fills_in() -> None:
    from fedsim.strategy import complete

    for cls in NAMES.values():
        mixing = complete(cls(), graph=KARATE, nodes=34, sizes=(1,) * 34)
        assert len(mixing(3, some(34, 4), 1).diagonal) == 34


# --- exponential graphs, gossip.md 4.1 and 5.1.6 ----------------------------------------------------------------------


def test_static_exponential_spectrum() -> None:
    values = {8: 0.5, 16: 0.6, 32: 0.66667, 64: 0.71429, 100: 0.75, 128: 0.75}
    values |= {5: 0.25, 7: 0.35355, 17: 0.54762, 25: 0.51086, 33: 0.6078}
    for n, value in values.items():
        w = StaticExponential(n)(0, torch.arange(n)).dense()
        assert topology.slem(w) == pytest.approx(value, abs=6e-6)
        assert float(torch.linalg.matrix_norm(w - 1 / n, 2)) == pytest.approx(value, abs=6e-6)  # circulant: normal


def test_exponential_graphs_send_ahead() -> None:
    w = StaticExponential(6)(0, torch.arange(6)).dense()
    assert {j for j in range(6) if w[3, j]} == {3, 2, 1, 5}  # receives from 1, 2 and 4 before it
    assert {j for j in range(6) if OnePeerExponential(6)(4, torch.arange(6)).dense()[3, j]} == {3, 1}
    assert StaticExponential(100)(0, torch.arange(100)).sent() == 700  # n τ messages; 5.1.9
    assert OnePeerExponential(100)(5, torch.arange(100)).sent() == 100


@pytest.mark.parametrize("n", range(1, 34))
def test_one_peer_exponential_graphs_agree_exactly_for_powers_of_two_only(n: int) -> None:
    who, rounds = torch.arange(n), max(n - 1, 0).bit_length()
    residual = (product(OnePeerExponential(n), who, rounds, n) - 1 / n).abs().max()
    assert (float(residual) < 1e-15) == (n & (n - 1) == 0)
    if n in (6, 12):
        assert float(residual) == pytest.approx({6: 0.0833, 12: 0.0417}[n], abs=6e-5)


@pytest.mark.parametrize(
    "mixing", [OnePeerExponential(20), Base(1, 20), Base(2, 20)], ids=["one peer", "base", "base 3"]
)
def test_those_present_close_ranks(mixing: Mixing) -> None:
    """Eight of twenty present average exactly, whoever they are."""
    who = torch.tensor([0, 3, 4, 9, 10, 15, 18, 19])
    assert (
        product(mixing, who, 6 if mixing != Base(2, 20) else 2 * len(base(8, 2)), 20) - consensus(who, 20)
    ).abs().max() < 1e-15


# --- Base-(m+1), 5.1.6 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [1, 2, 3, 4])
def test_base_sequences_average_exactly_for_every_number_of_nodes(peers: int) -> None:
    for n in range(1, 100):
        rounds = base(n, peers)
        assert len(rounds) <= 2 * math.log(n) / math.log(peers + 1) + 2
        whole = np.eye(n)
        for links in rounds:
            w = np.eye(n)
            for (i, j), weight in links.items():
                assert 0 <= i < j < n
                assert weight > 0
                w[i, j] += weight
                w[j, i] += weight
                w[i, i] -= weight
                w[j, j] -= weight
            assert (w >= -1e-15).all()
            assert ((w > 1e-15).sum(1) - (w.diagonal() > 1e-15)).max() <= peers
            whole = w @ whole
        assert np.abs(whole - 1 / n).max() < 1e-15


@pytest.mark.parametrize(
    ("peers", "lengths"),
    [
        (1, (5, 4, 5, 8, 9, 11, 10, 13)),
        (2, (3, 2, 4, 6, 6, 6, 7, 7)),
        (3, (3, 2, 3, 5, 5, 5, 6, 6)),
        (4, (1, 2, 3, 4, 2, 5, 3, 6)),
    ],
)
def test_base_sequences_are_as_short_as_published_ones(peers: int, lengths: tuple[int, ...]) -> None:
    """gossip.md 2.6."""
    assert tuple(len(base(n, peers)) for n in (5, 6, 7, 22, 25, 33, 50, 99)) == lengths


def test_base_mixing_plays_its_sequence_round_after_round() -> None:
    mixing, who = Base(1, 7), torch.arange(7)
    rounds = len(base(7, 1))
    assert (product(mixing, who, rounds, 7) - 1 / 7).abs().max() < 1e-15
    assert (product(mixing, who, rounds - 1, 7) - 1 / 7).abs().max() > 1e-3
    assert torch.equal(mixing(2, who).dense(), mixing(2 + 3 * rounds, who).dense())
    assert not torch.equal(mixing(0, who).dense(), mixing(1, who).dense())


# --- matchings --------------------------------------------------------------------------------------------------------


def pairs(edges: Edges) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in zip(edges.i, edges.j, strict=True) if i < j}


@pytest.mark.parametrize("k", [2, 5, 6])
def test_random_matchings_join_every_pair_equally_often(k: int) -> None:
    who = torch.tensor([1, 2, 4, 5, 7, 8])[:k]
    count: Counter[tuple[int, int]] = Counter()
    rounds = 800
    for t in range(rounds):
        met = pairs(RandomMatching(9)(t, who, 3))
        assert len(met) == k // 2
        assert len({node for pair in met for node in pair}) == 2 * (k // 2)
        count.update(met)
    chance = (k // 2) / (k * (k - 1) / 2)
    assert len(count) == k * (k - 1) // 2
    for times in count.values():
        assert times / rounds == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / rounds) + 1e-12)


@pytest.mark.parametrize("name", ["karate", "ring", "star", "random-regular"])
def test_edge_matchings_are_maximal_and_use_every_edge(name: str) -> None:
    graph = topology.load(name, 34)
    seen: set[tuple[int, int]] = set()
    for t in range(250):
        who = some(34, t + 4) if t % 2 else torch.arange(34)
        met = pairs(EdgeMatching(graph)(t, who, 3))
        nodes = [node for pair in met for node in pair]
        assert len(nodes) == len(set(nodes))
        left = graph.subgraph(set(who.tolist()) - set(nodes))
        assert met <= {(min(e), max(e)) for e in graph.edges}
        assert not left.edges  # nobody left over has a neighbour left over
        seen |= met
    assert seen == {(min(e), max(e)) for e in graph.edges}


@pytest.mark.parametrize(
    ("graph", "predicted"),
    [
        (nx.cycle_graph(12), 0.988835),
        (nx.random_regular_graph(4, 20, seed=3), None),
        (nx.complete_graph(16), 1 - 1 / 15),
    ],
    ids=["ring", "regular", "complete"],
)
def test_pairwise_averaging_contracts_as_predicted(graph: nx.Graph, predicted: float | None) -> None:
    """5.1.3: 1 − λ_2(L)/(n d) an event from the Fiedler vector; on the complete graph 1 − 1/(n − 1)."""
    n = len(graph)
    values, vectors = np.linalg.eigh(nx.laplacian_matrix(graph, nodelist=range(n)).toarray())
    exact = 1 - values[1] / (n * graph.degree[0])
    assert predicted is None or exact == pytest.approx(predicted, abs=6e-7)
    x = torch.from_numpy(vectors[:, 1].copy())
    left = []
    for t in range(2500):
        edges = Pairwise(graph)(t, torch.arange(n), 1)
        ((i, j),) = pairs(edges)
        left.append(1 - float(x[i] - x[j]) ** 2 / 2)
    y = edges.apply(x[:, None])
    assert float(y.square().sum()) == pytest.approx(left[-1], abs=1e-12)
    assert np.mean(left) == pytest.approx(exact, abs=3 * np.std(left) / math.sqrt(len(left)))
    assert 1 - np.mean(left) > 0.5 * (1 - exact)


def test_a_pairwise_event_is_uniform_over_nodes_then_neighbours() -> None:
    """On a star of 4 with one leaf absent: either end of a present edge is drawn first, 0 among its two leaves."""
    graph, who = nx.star_graph(3), torch.tensor([0, 1, 3])
    count = Counter(next(iter(pairs(Pairwise(graph)(t, who, 9)))) for t in range(1000))
    assert set(count) == {(0, 1), (0, 3)}
    assert count[0, 1] / 1000 == pytest.approx(0.5, abs=0.06)
    assert not pairs(Pairwise(graph)(0, torch.tensor([1, 2]), 9))  # nobody has a present neighbour


# --- fresh random regular graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "degree"), [(0, 0), (1, 0), (2, 1), (5, 2), (5, 3), (7, 1), (12, 3), (11, 8), (11, 9), (9, 7), (40, 20)]
)
def test_random_regular_graphs_are_simple_and_regular(k: int, degree: int) -> None:
    odd = k * degree % 2
    for seed in range(20):
        i, j = regular(k, degree, np.random.default_rng(seed))
        graph = nx.Graph(zip(i.tolist(), j.tolist(), strict=True))
        assert len(i) == k * degree - odd
        assert len({*zip(i.tolist(), j.tolist(), strict=True)}) == len(i)
        assert not nx.number_of_selfloops(graph)
        counts = np.bincount(i, minlength=k)
        assert sorted(counts.tolist()) == sorted([degree - 1] * odd + [degree] * (k - odd))
        assert set(zip(i.tolist(), j.tolist(), strict=True)) == set(zip(j.tolist(), i.tolist(), strict=True))
        assert (np.diff(i) >= 0).all()


@pytest.mark.parametrize(("k", "degree", "kinds"), [(4, 2, 3), (4, 1, 3), (6, 1, 15), (5, 2, 12), (6, 3, 70)])
def test_every_regular_graph_comes_up(k: int, degree: int, kinds: int) -> None:
    """All labelled regular graphs of these sizes (OEIS A001205, A002829), none much more often than others."""
    count = Counter(
        frozenset(zip(*(side.tolist() for side in regular(k, degree, np.random.default_rng(s))), strict=True))
        for s in range(60 * kinds)
    )
    assert len(count) == kinds
    assert min(count.values()) > 20
    assert max(count.values()) < 120


@pytest.mark.parametrize(("s", "predicted"), [(1, 0.4667), (2, 0.2889), (4, 0.1467), (7, 0.0667)])
def test_fresh_regular_graphs_average_as_epidemic_learnings_oracle(s: int, predicted: float) -> None:
    """5.1.4: what is left of the squared disagreement, (1/(s+1)) (1 − s/(n−1)), n = 16."""
    x = torch.randn(16, 200, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(0)
    left = [float((RandomRegular(s, 16)(t, torch.arange(16), 5).apply(x)).square().sum()) for t in range(300)]
    ratios = np.array(left) / float(x.square().sum())
    assert (1 / (s + 1)) * (1 - s / 15) == pytest.approx(predicted, abs=6e-5)
    assert ratios.mean() == pytest.approx(predicted, abs=3 * ratios.std() / math.sqrt(300) + 1e-12)


def test_few_present_meet_everybody() -> None:
    who = torch.tensor([2, 5, 6])
    assert (RandomRegular(4, 9)(0, who, 1).dense() - consensus(who, 9)).abs().max() < 1e-15


# --- EquiTopo and the grid, 5.1.5 and 5.1.7 ---------------------------------------------------------------------------


def test_the_mean_over_all_distances_is_the_plain_mean() -> None:
    """EquiDynamic with η = 1 takes all n − 1 distances, equally often."""
    who = torch.arange(8)
    found = {}
    for t in range(200):
        w = EquiDynamic(1.0, False, 8)(t, who, 3).dense()
        found[int(w[0, 1:].argmax())] = w
    assert len(found) == 7
    assert (sum(found.values()) / 7 - 1 / 8).abs().max() < 1e-15


@pytest.mark.parametrize(
    ("eta", "undirected", "predicted"), [(0.5, False, 0.46875), (1.0, False, 0.875), (0.5, True, 0.5185)]
)
def test_one_peer_equi_graphs_shrink_disagreement_as_predicted(eta: float, undirected: bool, predicted: float) -> None:
    """5.1.7: a² + b² − 2ab/(n − 1), a = 1 − η + η/n, b = η(n − 1)/n; n = 16."""
    x = torch.randn(16, 40, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(0)
    mixing = EquiDynamic(eta, undirected, 16)
    ratios = np.array(
        [float(mixing(t, torch.arange(16), 5).apply(x).square().sum() / x.square().sum()) for t in range(900)]
    )
    if not undirected:
        a, b = 1 - eta + eta / 16, eta * 15 / 16
        assert a * a + b * b - 2 * a * b / 15 == pytest.approx(predicted)
    assert ratios.mean() == pytest.approx(predicted, abs=3 * ratios.std() / 30 + 1e-4 * undirected)


@pytest.mark.parametrize(("peers", "norm"), [(4, 0.756), (8, 0.530), (16, 0.382)])
def test_static_equi_graphs_mix_as_measured(peers: int, norm: float) -> None:
    """5.1.7: mean ‖W − J‖₂ of the directed ones, n = 16."""
    norms = [
        float(torch.linalg.matrix_norm(EquiStatic(peers, False, 16)(0, torch.arange(16), key).dense() - 1 / 16, 2))
        for key in range(300)
    ]
    assert np.mean(norms) == pytest.approx(norm, abs=3 * np.std(norms) / math.sqrt(300) + 5e-3)


@pytest.mark.parametrize(("side", "axes"), [(2, 4), (4, 2), (3, 3), (16, 1), (5, 2)])
def test_the_lines_of_a_full_grid_average_exactly(side: int, axes: int) -> None:
    n = side**axes
    who = torch.arange(n)
    assert (product(GridGroups(side, n), who, axes, n) - 1 / n).abs().max() < 1e-15
    assert axes == 1 or (product(GridGroups(side, n), who, axes - 1, n) - 1 / n).abs().max() > 1e-3
    assert GridGroups(side, n)(0, who).sent() == n * (side - 1)
    scattered = torch.arange(0, 2 * n, 2)
    assert (product(GridGroups(side, 2 * n), scattered, axes, 2 * n) - consensus(scattered, 2 * n)).abs().max() < 1e-15


# --- links that fail, functions of the round --------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [Metropolis(KARATE), Neighbour(KARATE), Push(KARATE), OnePeerExponential(34)])
def test_links_fail_as_often_as_said_both_ways_at_once(inner: Mixing) -> None:
    who = torch.arange(34)
    failed = total = 0
    for t in range(100):
        whole, left = inner(t, who, 3).dense(), LinkFailures(inner, 0.3)(t, who, 3).dense()
        on, off = whole.clone().fill_diagonal_(0) > 0, left.clone().fill_diagonal_(0) > 0
        assert not (off & ~on).any()
        assert torch.equal(left[off], whole[off])
        if inner.averaging != "doubly stochastic" or inner.symmetric:
            assert torch.equal(off, off.T)
        failed, total = failed + int((on & ~off).sum()), total + int(on.sum())
    assert failed / total == pytest.approx(0.3, abs=0.02)
    whole = inner(0, who, 3).dense()
    assert torch.equal(LinkFailures(inner, 0.0)(0, who, 3).dense(), whole)
    assert (LinkFailures(inner, 1.0)(0, who, 3).dense() - torch.eye(34, dtype=F64)).abs().max() < 1e-14


def test_what_failing_links_leave_of_a_matrix() -> None:
    kinds = {
        Metropolis(KARATE): ("doubly stochastic", True),
        Neighbour(KARATE): ("row-stochastic", False),
        Push(KARATE): ("column-stochastic", False),
        OnePeerExponential(34): ("row-stochastic", False),
        Base(1, 34): ("doubly stochastic", True),
    }
    for inner, (averaging, symmetric) in kinds.items():
        mixing = LinkFailures(inner, 0.5)
        assert (mixing.averaging, mixing.symmetric) == (averaging, symmetric)
    w = LinkFailures(OnePeerExponential(34), 0.5)(0, torch.arange(34), 1).dense()
    assert (w.sum(0) - 1).abs().max() > 0.4  # and columns really do not sum to 1


def test_a_ring_whose_links_fail_still_agrees() -> None:
    ring, x = topology.load("ring", 12), torch.randn(12, 2, dtype=F64)
    y = x
    for t in range(900):
        y = LinkFailures(Metropolis(ring), 0.5)(t, torch.arange(12), 3).apply(y)
    assert (y - x.mean(0)).abs().max() < 1e-9


def test_a_function_of_the_round_gives_its_graph() -> None:
    ring, star = topology.load("ring", 9), topology.load("star", 9)
    for weights in ("metropolis", "neighbour", "max-degree", "push"):
        mixing = Changing(lambda t: ring if t % 2 else star, weights, 9)
        for t, graph in ((0, star), (1, ring), (2, star)):
            fixed = dataclasses.replace(NAMES[weights](), graph=graph)  # type: ignore[call-arg]
            assert torch.equal(mixing(t, some(9, 4)).dense(), fixed(t, some(9, 4)).dense())
        assert mixing.averaging == NAMES[weights].averaging
    drawn = Changing(lambda t, n, seed: nx.gnp_random_graph(n, 0.5, seed=seed), nodes=9)
    assert torch.equal(drawn(3, some(9, 4), 5).dense(), drawn(3, some(9, 4), 5).dense())
    assert not torch.equal(drawn(3, some(9, 0), 5).dense(), drawn(4, some(9, 0), 5).dense())
    assert not torch.equal(drawn(3, some(9, 0), 5).dense(), drawn(3, some(9, 0), 6).dense())
    directed = Changing(lambda t: nx.cycle_graph(9, create_using=nx.DiGraph), "push", 9)
    assert directed(0, torch.arange(9)).dense()[1, 0] == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StaticExponential()(0, torch.arange(3)), r"how many nodes there are: StaticExponential\(nodes=n\)"),
        (lambda: Base()(0, torch.arange(3)), r"how many nodes there are: Base\(nodes=n\)"),
        (lambda: Base(nodes=0)(0, torch.arange(0)), "nodes must be at least 1, got 0"),
        (lambda: Base(0), "peers must be at least 1, got 0"),
        (lambda: RandomRegular(0), "degree must be at least 1, got 0"),
        (lambda: EquiStatic(0), "peers must be at least 1, got 0"),
        (lambda: EquiDynamic(2.0), "eta must be between 0 and 1, got 2"),
        (lambda: GridGroups(1), "side must be at least 2, got 1"),
        (lambda: GridGroups()(0, torch.arange(3)), r"GridGroups\(nodes=n\)"),
        (lambda: EdgeMatching()(0, torch.arange(3)), r"EdgeMatching mixing needs a graph"),
        (lambda: LinkFailures(probability=1.5), "probability must be between 0 and 1, got 1.5"),
        (lambda: LinkFailures(probability=math.nan), "probability must be between 0 and 1, got nan"),
        (lambda: Changing(lambda t: 3)(2, torch.arange(3)), "round 2 gave int instead of a networkx graph"),
        (
            lambda: Changing(lambda t: nx.path_graph(2), nodes=3)(0, torch.arange(3)),
            "round 0 gave 2 nodes instead of 3",
        ),
        (lambda: Changing(lambda t, p: 3)(0, torch.arange(3)), "needs the setting 'p'"),
        (lambda: Changing(len, weights="decavg"), "weights must be one of metropolis, .*, got 'decavg'"),
    ],
)
def test_mistakes_are_named_in_one_line(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)

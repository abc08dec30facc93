"""Gossip: what averaging with neighbours does to distances, means, variances and fixed points (specs/gossip.md §5)."""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import (
    F64,
    Frozen,
    Honest,
    bernoulli,
    close,
    drive,
    everyone,
    last,
    models,
    quadratics,
    round_of,
    uniform,
)
from torch import Tensor, nn

from fedsim import LocalSGD, Stacked, Strategy, data, federate, measure, mixing, simulate
from fedsim.data.partition import IID
from fedsim.participation import Everyone
from fedsim.simulation import begin
from fedsim.strategies import DPSGD, MIFA, FedAvg, FedProx, VarianceCorrection
from fedsim.task import Layout

ONE = LocalSGD(lr=0.05, steps=1, batch=None)
ORDERS = pytest.mark.parametrize("order", ["cta", "atc"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def still(n: int, size: int) -> Frozen:
    """Clients that do not move."""
    return Frozen(torch.zeros(n, size, dtype=F64))


def distance(x: Tensor) -> Tensor:
    """‖X − 1 x̄ᵀ‖ of stacks [..., n, P]."""
    return (x - x.mean(-2, keepdim=True)).flatten(-2).norm(dim=-1)


# Distances and means -------------------------------------------------------------------------------------------------


def ring_slem(n: int) -> float:
    return 1 / 3 + 2 / 3 * math.cos(2 * math.pi / n)


@ORDERS
@pytest.mark.parametrize(("n", "value"), [(4, 0.33333), (5, 0.53934), (8, 0.80474), (16, 0.94925), (32, 0.98719)])
def test_a_ring_contracts_by_its_second_eigenvalue(order: Any, n: int, value: float) -> None:
    """From an eigenvector exactly ⅓ + ⅔ cos(2π/n) a round; from anywhere at most that, and in the end just that."""
    assert ring_slem(n) == pytest.approx(value, abs=1e-5)
    strategy = DPSGD(mixing.Metropolis(nx.cycle_graph(n)), order=order)
    wave = torch.cos(2 * math.pi * torch.arange(n, dtype=F64) / n)[:, None] + 3
    x = models(strategy, still(n, 1), everyone(n, 6), n=n, x=wave)
    rate = ring_slem(n) ** torch.arange(1, 7, dtype=F64)[:, None, None]
    close(x - 3, rate * (wave - 3), 1e-12)
    start = normal(n, 4)
    far = torch.cat([start[None], models(strategy, still(n, 4), everyone(n, 60), n=n, x=start.clone())])
    ratio = distance(far)[1:] / distance(far)[:-1]
    assert (ratio[distance(far)[:-1] > 1e-5] <= ring_slem(n) + 1e-9).all()
    if n == 16:
        assert ratio[-1].item() == pytest.approx(ring_slem(n), rel=1e-3)


@ORDERS
def test_the_network_mean_moves_by_the_moves_alone(order: Any) -> None:
    """Doubly stochastic W keeps the mean, whoever is absent: x̄ changes by Σ Δ_i / n."""
    n, graph = 12, nx.connected_watts_strogatz_graph(12, 4, 0.3, seed=1)
    strategy = DPSGD(mixing.Metropolis(graph), order=order)
    d, before = normal(n, 5, seed=1), normal(n, 5)
    run = drive(strategy, Frozen(d), bernoulli(0.6, n, 30), n=n, x=before.clone())
    mean = before.mean(0)
    for state, r in run:
        mean = mean + d[r.who].sum(0) / n
        close(state.x.mean(0), mean, 1e-12)


@ORDERS
def test_a_row_stochastic_mixing_tends_to_the_degree_weighted_mean(order: Any) -> None:
    graph = nx.star_graph(5)
    strategy = DPSGD(mixing.Neighbour(graph), order=order)
    start = normal(6, 3)
    x = last(strategy, still(6, 3), everyone(6, 300), n=6, x=start.clone()).x
    weight = torch.tensor([d + 1.0 for _, d in sorted(graph.degree)], dtype=F64)
    close(x, ((weight / weight.sum()) @ start).expand_as(x), 1e-12)


@ORDERS
def test_an_absent_node_keeps_its_model_bit_for_bit(order: Any) -> None:
    n, graph = 9, nx.random_regular_graph(4, 9, seed=0)
    for kind in (mixing.Metropolis(graph), mixing.Neighbour(graph), mixing.Complete(n), mixing.Neighbour(graph, 0.3)):
        strategy = VarianceCorrection(DPSGD(kind, order=order), layout=Layout(("w",), (torch.Size([2, 3]),)))
        before = normal(n, 6)
        for who in ([0, 3, 4], [7], [], [1, 2, 3, 4, 5, 6, 7, 8]):
            gone = [i for i in range(n) if i not in who]
            state = strategy.init(before.clone(), uniform(n))
            after = strategy.step(state, round_of(0, who, normal(len(who), 6, seed=2), start=before[who])).x
            assert torch.equal(after[gone], before[gone])
            assert not who or not torch.equal(after[who], before[who])


def test_a_present_node_without_present_neighbours_trains_on() -> None:
    """And does not stop the others: nodes 0 and 3 of a path of 6 are alone, 4 and 5 are not."""
    strategy = DPSGD(mixing.Metropolis(nx.path_graph(6)), order="atc")
    before, d = normal(6, 2), normal(6, 2, seed=1)
    after = last(strategy, Frozen(d), [[0, 2, 4, 5]], n=6, x=before.clone()).x
    close(after[[0, 2]], before[[0, 2]] + d[[0, 2]], 0.0)
    close(after[[4, 5]], (before + d)[[4, 5]].mean(0).expand(2, -1), 1e-12)


@pytest.mark.parametrize("graph", [nx.path_graph(7), nx.cycle_graph(7), nx.star_graph(6)], ids=["line", "ring", "star"])
def test_sparse_graphs_reach_consensus(graph: nx.Graph) -> None:
    x = last(DPSGD(mixing.Metropolis(graph)), still(7, 2), everyone(7, 900), n=7, x=normal(7, 2)).x
    close(x, normal(7, 2).mean(0).expand_as(x), 1e-10)


# Fixed points --------------------------------------------------------------------------------------------------------

A8 = 1 + 2 * torch.arange(8, dtype=F64)[:, None] / 8
B8 = torch.from_numpy(3 * np.random.default_rng(0).normal(size=(8, 3)))
W8 = mixing.Metropolis(nx.cycle_graph(8))(0, torch.arange(8)).dense()
BOWLS = Honest(A8.expand(8, 3), B8)


@pytest.mark.parametrize(("order", "bias"), [("cta", 0.9997), ("atc", 0.8215)])
def test_dpsgd_fixed_points(order: Any, bias: float) -> None:
    """CTA (I − W + γA) x = γAb, ATC (I − W + γWA) x = γWAb; mean distance to x* as tabled."""
    gamma, eye, a = 0.05, torch.eye(8, dtype=F64), torch.diag(A8[:, 0])
    pull = eye if order == "cta" else W8
    fixed = torch.linalg.solve(eye - W8 + gamma * pull @ a, gamma * pull @ (A8 * B8))
    strategy = DPSGD(mixing.Metropolis(nx.cycle_graph(8)), order=order)
    x = last(strategy, BOWLS, everyone(8, 700), n=8, x=torch.zeros(3, dtype=F64), local=ONE).x
    close(x, fixed, 1e-12)
    best = (A8 * B8).sum(0) / A8.sum()
    assert (x - best).norm(dim=1).mean().item() == pytest.approx(bias, abs=5e-5)


@ORDERS
def test_with_equal_curvature_the_mean_hits_the_optimum_and_the_nodes_stay_apart(order: Any) -> None:
    strategy = DPSGD(mixing.Metropolis(nx.cycle_graph(8)), order=order)
    x = last(strategy, Honest(torch.ones_like(B8), B8), everyone(8, 900), n=8, x=torch.zeros(3, dtype=F64), local=ONE).x
    close(x.mean(0), B8.mean(0), 1e-12)
    assert distance(x) > 0.1


@pytest.mark.parametrize("beta", [0.0, 0.9])
@pytest.mark.parametrize("order", ["atc", "cta"])
def test_the_complete_graph_is_centralised_sgd(order: Any, beta: float) -> None:
    """From one init, adapting then combining with W = 11ᵀ/n is heavy-ball SGD on the mean loss; combining first not."""
    local = LocalSGD(lr=0.05, steps=1, batch=None, momentum=beta)
    strategy = DPSGD(mixing.Complete(8), order=order)
    x = models(strategy, BOWLS, everyone(8, 50), n=8, x=torch.zeros(3, dtype=F64), local=local)
    y, v = torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)
    worst = 0.0
    for t in range(50):
        v = beta * v + (A8 * (y - B8)).mean(0)
        y = y - 0.05 * v
        worst = max(worst, (x[t] - y).abs().max().item())
    if order == "atc":
        assert worst < 2e-14
    else:
        assert worst > 1e-2


def test_the_complete_graph_is_fedavg_through_the_real_engine() -> None:
    """Also with several local steps, and bit for bit the same client answers."""
    task = quadratics(A8.expand(8, 3), B8)
    local = LocalSGD(lr=0.05, steps=4, batch=None)
    schedule = Everyone().draw(8, 15, 0)
    gossip = simulate(task, DPSGD(mixing.Complete(8), order="atc"), schedule, local, engine=Stacked(chunk=3))
    server = simulate(task, FedAvg(), schedule, local, engine=Stacked(chunk=3))
    for a, b in zip(gossip, server, strict=True):
        close(a.model, b.model.expand(8, -1), 1e-13)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_one_node_alone_is_plain_sgd(beta: float) -> None:
    """To one rounding a round: the node's model is start + (end − start)."""
    local = LocalSGD(lr=0.05, steps=1, batch=None, momentum=beta)
    alone = Honest(A8[:1].expand(1, 3), B8[:1])
    for kind in (mixing.Complete(1), mixing.Metropolis(nx.empty_graph(1)), mixing.Neighbour(nx.empty_graph(1))):
        for order in ("atc", "cta"):
            x = models(DPSGD(kind, order=order), alone, everyone(1, 40), n=1, x=torch.zeros(3, dtype=F64), local=local)
            y, v = torch.zeros(1, 3, dtype=F64), torch.zeros(1, 3, dtype=F64)
            for t in range(40):
                v = beta * v + A8[:1] * (y - B8[:1])
                y = y - 0.05 * v
                close(x[t], y, 1e-14)


@ORDERS
def test_without_edges_every_node_runs_by_itself(order: Any) -> None:
    """W = I: bit for bit what each node does alone, momentum included."""
    local = LocalSGD(lr=0.05, steps=2, batch=None, momentum=0.9)
    start, presence = normal(8, 3), bernoulli(0.7, 8, 30)
    strategy = DPSGD(mixing.Metropolis(nx.empty_graph(8)), order=order)
    together = last(strategy, BOWLS, presence, n=8, x=start.clone(), local=local).x
    for i in range(8):
        one = Honest(A8[i : i + 1].expand(1, 3), B8[i : i + 1])
        mine = [[0] if i in who else [] for who in presence]
        alone = last(DPSGD(mixing.Complete(1), order=order), one, mine, n=1, x=start[i : i + 1].clone(), local=local).x
        assert torch.equal(together[i], alone[0])


def test_zero_learning_rate_is_pure_gossip() -> None:
    local = LocalSGD(lr=0.0, steps=3, batch=None)
    strategy, start = DPSGD(mixing.Metropolis(nx.cycle_graph(8)), order="atc"), normal(8, 3)
    x = last(strategy, BOWLS, everyone(8, 7), n=8, x=start.clone(), local=local).x
    close(x, torch.linalg.matrix_power(W8, 7) @ start, 1e-12)


def test_momentum_stays_with_its_node() -> None:
    """Never averaged, kept through absence, started from zero, and dropped every round if so set."""
    local = LocalSGD(lr=0.05, steps=2, batch=None, momentum=0.9)
    presence = [[0, 1, 2], [1, 2], [], [0, 3], [0, 1, 2, 3, 4, 5, 6, 7]]
    graph = mixing.Metropolis(nx.cycle_graph(8))
    for wrap in (lambda s: s, lambda s: FedProx(s, mu=0.0)):
        start, kept = normal(8, 3), torch.zeros(8, 3, dtype=F64)
        for state, r in drive(wrap(DPSGD(graph)), BOWLS, presence, n=8, x=start, local=local):
            for row, i in enumerate(r.who.tolist()):
                y, v = r.start[row], kept[i]
                for _ in range(2):
                    v = 0.9 * v + A8[i] * (y - B8[i])
                    y = y - 0.05 * v
                close(r.delta[row], y - r.start[row], 1e-12)
                kept[i] = v
            inner = getattr(state, "inner", state)
            close(inner.velocity if inner.velocity is not None else 0 * kept, kept, 1e-12)
    for state, r in drive(DPSGD(graph, keep_momentum=False), BOWLS, presence, n=8, x=normal(8, 3), local=local):
        assert state.velocity is None
        assert not r.told


def test_a_server_starts_from_the_shared_model_beside_nodes_that_each_have_their_own() -> None:
    task = quadratics(A8.expand(8, 3), B8)
    schedule = Everyone().draw(8, 2, 0)
    for strategy in (FedAvg(), FedProx(MIFA())):
        apart = list(simulate(task, strategy, schedule, ONE, init="independent"))[-1].model
        assert torch.equal(apart, list(simulate(task, strategy, schedule, ONE))[-1].model)
    assert begin(FedProx(DPSGD()), task, init="independent").x.shape == (8, 3)


def test_gossip_fills_in_how_many_nodes_there_are() -> None:
    task = quadratics(A8.expand(8, 3), B8)
    step = next(iter(simulate(task, DPSGD(mixing.Complete()), Everyone().draw(8, 2, 0), ONE)))
    assert step.model.shape == (8, 3)


# Variance ------------------------------------------------------------------------------------------------------------

LAYOUT = Layout(
    ("first", "bias", "second", "scalar"), (torch.Size([6, 7]), torch.Size([6]), torch.Size([3, 6]), torch.Size([1]))
)
TALL = nx.barabasi_albert_graph(14, 2, seed=3)


def layers(x: Tensor) -> dict[str, Tensor]:
    """[n, N_l] of every layer."""
    return {name: view.flatten(1) for name, view in LAYOUT.views(x).items()}


def variance(x: Tensor, unbiased: bool = False) -> dict[str, Tensor]:
    return {name: layer.var(dim=1, unbiased=unbiased) for name, layer in layers(x).items() if layer.shape[1] > 1}


def mixed(strategy: Strategy, x: Tensor, who: Any = None) -> Tensor:
    """One round of averaging, nobody moving."""
    who = list(range(len(x))) if who is None else who
    state = strategy.init(x.clone(), uniform(len(x)))
    nothing = torch.zeros(len(who), x.shape[1], dtype=x.dtype)
    return strategy.step(state, round_of(0, who, nothing, start=x[who])).x  # type: ignore[no-any-return]


def corrected(kind: Any, **settings: Any) -> VarianceCorrection:
    return VarianceCorrection(DPSGD(kind, order="atc"), layout=LAYOUT, **settings)


@pytest.mark.parametrize("k", [2, 4, 8, 16])
def test_averaging_k_independent_models_divides_the_variance_by_k(k: int) -> None:
    x = normal(k, 100_000)
    averaged = mixed(DPSGD(mixing.Complete(k), order="atc"), x)[0]
    assert averaged.var().item() == pytest.approx(1 / k, rel=0.02)


@pytest.mark.parametrize(("k", "share"), [(1, 0.5), (2, 0.375), (4, 0.3125), (8, 0.28125)])
def test_keeping_half_of_oneself_leaves_a_quarter_and_a_share(k: int, share: float) -> None:
    """β² + (1 − β)²/k."""
    x = normal(k + 1, 100_000)
    averaged = mixed(DPSGD(mixing.Neighbour(nx.star_graph(k), self_weight=0.5), order="atc"), x)[0]
    assert averaged.var().item() == pytest.approx(share, rel=0.02)


def test_plain_gossip_loses_variance_by_the_rows_of_the_matrix() -> None:
    """Var_i(t) = σ² ‖row_i(Mᵗ)‖², down to σ² ‖π‖²."""
    kind = mixing.Neighbour(TALL, self_weight=0.5)
    m, x = kind(0, torch.arange(14)).dense(), normal(14, 60_000)
    for t in range(1, 7):
        x = mixed(DPSGD(kind, order="atc"), x)
        close(x.var(dim=1), torch.linalg.matrix_power(m, t).square().sum(1), 0.03)


def others(kind: Any, who: Any = None) -> Tensor:
    """N: how the neighbours share in the target, own model excluded; absent and lone nodes keep to themselves."""
    w = kind(0, torch.arange(14) if who is None else torch.tensor(who)).dense()
    own = torch.diag(w)
    n = (w - torch.diag(own)) / torch.where(own < 1, 1 - own, torch.ones_like(own))[:, None]
    return torch.where((own == 1)[:, None], torch.eye(14, dtype=F64), n)


KINDS = [mixing.Neighbour(TALL, self_weight=0.5), mixing.Metropolis(TALL), mixing.Neighbour(TALL), mixing.Complete(14)]


@pytest.mark.parametrize("target", ["others", "mixing", "self", "conservative"])
@pytest.mark.parametrize("kind", KINDS, ids=["half", "metropolis", "neighbour", "complete"])
def test_variance_recursion(kind: Any, target: Any) -> None:
    """Var(t+1) = N Var(t) exactly, layer by layer; layer means and everything with one dimension follow W alone."""
    x = normal(14, LAYOUT.size) * torch.linspace(0.5, 3, 14, dtype=F64)[:, None] + normal(14, 1, seed=1)
    strategy = corrected(kind, target=target)
    for t in range(12):
        who = list(range(14)) if t % 3 else [0, 1, 2, 3, 5, 7, 8, 9, 11, 12]
        w, n, eye = kind(0, torch.tensor(who)).dense(), others(kind, who), torch.eye(14, dtype=F64)
        own = torch.diag(torch.diag(w))
        matrix = {"others": n, "mixing": w, "self": eye, "conservative": own + (eye - own) @ n}[target]
        before, x = x, mixed(strategy, x, who)
        for name, old in variance(before).items():
            if name != "bias":
                close(variance(x)[name], matrix @ old, 1e-12)
                close(layers(x)[name].mean(1), w @ layers(before)[name].mean(1), 1e-12)
        for name in ("bias", "scalar"):
            close(layers(x)[name], w @ layers(before)[name], 1e-12)


def test_variance_tends_to_its_degree_weighted_mean() -> None:
    x = normal(14, LAYOUT.size) * torch.linspace(0.5, 3, 14, dtype=F64)[:, None]
    first = variance(x)["first"]
    strategy = corrected(mixing.Neighbour(TALL, self_weight=0.5))
    for _ in range(300):
        x = mixed(strategy, x)
    degree = torch.tensor([d for _, d in sorted(TALL.degree)], dtype=F64)
    close(variance(x)["first"], (degree @ first / degree.sum()).expand(14), 1e-9)


PRESETS = {
    "paper": mixing.Neighbour(TALL, self_weight=0.5),
    "dfl-torch": mixing.Neighbour(TALL, self_weight=0.0),
    "flocky": mixing.Neighbour(TALL),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_follow_their_table(preset: Any) -> None:
    """Each against the table of specs/gossip.md §1.2, written out node by node and layer by layer."""
    kind = PRESETS[preset]
    x = 0.05 * normal(14, LAYOUT.size) + 0.01
    found, w = layers(mixed(corrected(kind, preset=preset), x)), kind(0, torch.arange(14)).dense()
    for i in range(14):
        neighbours = sorted(TALL[i])
        for name, layer in layers(x).items():
            if preset == "paper":
                a = 0.5 * layer[i] + 0.5 * layer[neighbours].mean(0)
            elif preset == "dfl-torch":
                a = layer[neighbours].mean(0)
            else:
                a = layer[[i, *neighbours]].mean(0)
            close(a, w[i] @ layer, 1e-12)
            if layer.shape[1] > 1 and (preset != "paper" or name in ("first", "second")):
                unbiased = preset == "dfl-torch"
                listed = [i, *neighbours] if preset == "flocky" else neighbours
                t, c = layer[listed].var(dim=1, unbiased=unbiased).mean(), a.var(unbiased=unbiased)
                if preset == "dfl-torch":
                    t, c = t + 1e-4, c + 1e-4
                elif preset == "flocky":
                    c = c + 1e-6
                a = a.mean() + (a - a.mean()) * (t / c).sqrt()
            close(found[name][i], a, 1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_correction_does_nothing_to_equal_models(preset: Any) -> None:
    x = 3 * normal(1, LAYOUT.size).expand(14, -1).clone()
    close(mixed(corrected(PRESETS[preset], preset=preset), x), x, 1e-12 if preset != "flocky" else 1e-6)


def test_correction_goes_along_with_scale_and_shift() -> None:
    """All models times c, and a constant added to a layer: the outcome likewise (no stabiliser)."""
    x, strategy = normal(14, LAYOUT.size), corrected(mixing.Neighbour(TALL, self_weight=0.5))
    close(mixed(strategy, 7.5 * x), 7.5 * mixed(strategy, x), 1e-12)
    shift = torch.cat([torch.full((42,), 3.0), torch.zeros(6), torch.full((18,), -2.0), torch.zeros(1)]).to(F64)
    close(mixed(strategy, x + shift), mixed(strategy, x) + shift, 1e-12)


@pytest.mark.parametrize("s", [0.01, 0.1, 1.0])
def test_correction_switches_itself_off_as_models_agree(s: float) -> None:
    """Models c + s·noise are rescaled by √((1 + s²)/(1 + s² ‖row‖²)): 1.003 at s = 0.1 on an 8-regular graph."""
    n, size = 32, 60_000
    kind = mixing.Neighbour(nx.random_regular_graph(8, n, seed=1), self_weight=0.5)
    x = normal(1, size, seed=2) + s * normal(n, size)
    strategy = VarianceCorrection(DPSGD(kind, order="atc"), layout=Layout(("w",), (torch.Size([size, 1]),)))
    plain, fixed = mixed(DPSGD(kind, order="atc"), x), mixed(strategy, x)
    factor = (fixed.var(dim=1) / plain.var(dim=1)).sqrt()
    row = 0.25 + 0.25 / 8
    close(factor, torch.full((n,), math.sqrt((1 + s**2) / (1 + s**2 * row)), dtype=F64), 0.01 if s == 1 else 1e-3)
    if s == 0.1:
        assert factor.mean().item() == pytest.approx(1.003, abs=1.5e-3)


@pytest.mark.parametrize(("target", "achieved"), [(2e-2, 0.9663), (1e-3, 0.6111), (5e-5, 0.1765)])
def test_a_stabiliser_of_1e_4_is_not_small(target: float, achieved: float) -> None:
    """Eight orthogonal models of equal variance t average to t/8 exactly; dfl-torch then reaches (t+e)/(c+e) · c/t."""
    hadamard = torch.ones(1, 1, dtype=F64)
    for _ in range(4):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    rows = hadamard[1:9]
    rows = rows * (target / rows.var(dim=1, keepdim=True)).sqrt()
    x = torch.cat([torch.zeros(1, 16, dtype=F64), rows])
    kind = mixing.Neighbour(nx.star_graph(8), self_weight=0.0)
    strategy = VarianceCorrection(
        DPSGD(kind, order="atc"), preset="dfl-torch", layout=Layout(("w",), (torch.Size([4, 4]),))
    )
    assert mixed(DPSGD(kind, order="atc"), x)[0].var().item() == pytest.approx(target / 8, rel=1e-12)
    ratio = mixed(strategy, x)[0].var().item() / target
    assert ratio == pytest.approx(achieved, abs=5e-5)
    exact = VarianceCorrection(DPSGD(kind, order="atc"), layout=Layout(("w",), (torch.Size([4, 4]),)))
    assert mixed(exact, x)[0].var().item() == pytest.approx(target, rel=1e-12)


def test_a_layer_without_variance_is_left_alone() -> None:
    """Zero variance before or after averaging: no division by it."""
    x = torch.zeros(14, LAYOUT.size, dtype=F64)
    strategy = corrected(mixing.Neighbour(TALL, self_weight=0.5))
    close(mixed(strategy, x), x, 0.0)
    x[1::2] = 1.0  # every model constant
    assert mixed(strategy, x).isfinite().all()
    opposed = torch.cat([normal(1, LAYOUT.size), -normal(1, LAYOUT.size)])
    pair = corrected(mixing.Complete(2))
    close(mixed(pair, opposed), torch.zeros_like(opposed), 1e-15)


def test_correction_comes_before_the_move_when_combining_first() -> None:
    """In the order "cta" only what was averaged is rescaled; the local move is added as it is."""
    kind, x, d = mixing.Neighbour(TALL, self_weight=0.5), normal(14, LAYOUT.size), normal(14, LAYOUT.size, seed=1)
    strategy = VarianceCorrection(DPSGD(kind, order="cta"), layout=LAYOUT)
    found = last(strategy, Frozen(d), everyone(14, 1), n=14, x=x.clone()).x
    close(found, mixed(corrected(kind), x) + d, 1e-12)


def test_correction_leaves_momentum_alone() -> None:
    local = LocalSGD(lr=0.05, steps=1, batch=None, momentum=0.9)
    g = torch.Generator().manual_seed(0)
    engine = Honest(torch.rand(14, LAYOUT.size, dtype=F64, generator=g) + 0.5, normal(14, LAYOUT.size))
    for state, r in drive(
        corrected(mixing.Metropolis(TALL)), engine, everyone(14, 3), n=14, x=normal(14, LAYOUT.size), local=local
    ):
        assert torch.equal(state.inner.velocity, r.told["velocity"])


def test_correction_writes_to_nobody_elses_tensors() -> None:
    """The averaged models are corrected in place; what they were averaged from is not."""
    x = normal(14, LAYOUT.size)
    for order in ("cta", "atc"):
        for kind in (mixing.Metropolis(nx.empty_graph(14)), mixing.Complete(14), mixing.Metropolis(TALL)):
            kept = x.clone()
            strategy = VarianceCorrection(DPSGD(kind, order=order), layout=LAYOUT)  # type: ignore[arg-type]
            strategy.step(strategy.init(x, uniform(14)), round_of(0, list(range(14)), torch.zeros_like(x), start=x))
            assert torch.equal(x, kept)


# The plateau ---------------------------------------------------------------------------------------------------------


def perceptron() -> nn.Module:
    """64-128-128-128-128-10 with ReLU, Xavier-uniform weights and zero biases."""
    widths, parts = (64, 128, 128, 128, 128, 10), []
    for fan_in, fan_out in itertools.pairwise(widths):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def test_plain_averaging_of_unrelated_models_never_learns_and_corrected_averaging_does() -> None:
    """The toy of specs/gossip.md §1.6: 32 nodes on an 8-regular graph, own inits, one batch a tick, momentum 0.9."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        clusters = data.Clusters(classes=10, dimension=64, examples=6400, test_examples=500).load()
        task = federate(clusters, clients=32, partition=IID(), model=perceptron)
        half = mixing.Neighbour(nx.random_regular_graph(8, 32, seed=1), self_weight=0.5)
        alone = mixing.Neighbour(nx.empty_graph(32), self_weight=0.5)
        local = LocalSGD(lr=0.02, steps=1, batch=32, momentum=0.9)
        first = "4.weight"  # the third layer, 128 x 128: Xavier's variance is 1/128

        def outcome(strategy: Strategy, ticks: int, init: str) -> tuple[float, float]:
            schedule = Everyone().draw(32, ticks, 0)
            steps = simulate(task, strategy, schedule, local, init=init, engine=Stacked(chunk=32))
            (step,) = deque(steps, maxlen=1)  # keeping all would keep all models
            figures = measure.test(task, step.model[::4])
            return figures["test_accuracy"], measure.layer_variance(step.model, task.layout)[first]

        plain, sunk = outcome(DPSGD(half, order="atc"), 300, "independent")
        fixed, kept = outcome(VarianceCorrection(DPSGD(half, order="atc")), 300, "independent")
        solo, own = outcome(DPSGD(alone, order="atc"), 30, "independent")
        shared, same = outcome(DPSGD(half, order="atc"), 30, "shared")
    finally:
        torch.set_num_threads(threads)
    assert plain < 0.2
    assert sunk < 1 / 128 / 20
    for accuracy, spread in ((fixed, kept), (solo, own), (shared, same)):
        assert accuracy > 0.9
        assert spread == pytest.approx(1 / 128, rel=0.15)

"""Decentralised algorithms whose messages are more than models: push-sum on directed graphs, compressed differences,
relayed sums, and random peers (specs/gossip.md §5.1 and §5.3)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import F64, Frozen, Honest, bernoulli, close, drive, everyone, last, models, quadratics, uniform
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedsim import LocalSGD, Stacked, Strategy, compress, keyed, mixing, simulate
from fedsim.local import Inverse, Power
from fedsim.mixing import Push
from fedsim.participation import Everyone
from fedsim.strategies import (
    D2,
    DPSGD,
    SGP,
    ChocoSGD,
    DecentLaM,
    DmSGD,
    EpidemicLearning,
    ExactDiffusion,
    GossipPGA,
    GradientTracking,
    QGDSGDm,
    RelaySGD,
    VarianceCorrection,
)
from fedsim.strategy import Round

N = 8
A8 = 1 + 2 * torch.arange(N, dtype=F64)[:, None] / N
B8 = torch.from_numpy(3 * np.random.default_rng(0).normal(size=(N, 3)))
BEST = (A8 * B8).sum(0) / A8.sum()
BOWLS = Honest(A8.expand(N, 3), B8)
ZERO = torch.zeros(3, dtype=F64)
ONE = LocalSGD(lr=0.05, steps=1, batch=None)
PRESENCE = [*everyone(N, 3), *bernoulli(0.6, N, 25, seed=2), [], [3], *everyone(N, 3)]
RING = mixing.Metropolis(nx.cycle_graph(N))
# a ring one way, and three short cuts: who is heard by many and who hears many are not the same
ONEWAY = nx.DiGraph([*((i, (i + 1) % N) for i in range(N)), (0, 3), (0, 5), (2, 6)])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def still(n: int, size: int) -> Frozen:
    return Frozen(torch.zeros(n, size, dtype=F64))


def far(x: Tensor) -> float:
    return (x - BEST).abs().max().item()


# Push-sum ------------------------------------------------------------------------------------------------------------


def push(graph: nx.DiGraph, who: list[int]) -> Tensor:
    """P, column by column."""
    P = torch.eye(len(graph), dtype=F64)
    for j in who:
        told = [i for i in graph[j] if i in who]
        P[:, j] = 0.0
        for i in [*told, j]:
            P[i, j] = 1 / (len(told) + 1)
    return P


def test_the_push_matrix() -> None:
    for who in PRESENCE:
        found = Push(ONEWAY)(0, torch.tensor(who, dtype=torch.int64)).dense()
        close(found, push(ONEWAY, who), 1e-15)
        close(found.sum(0), torch.ones(N, dtype=F64), 1e-15)


def test_pushed_shares_tend_to_the_mean_and_pushing_alone_does_not() -> None:
    start = normal(N, 3)
    state = last(SGP(Push(ONEWAY)), still(N, 3), everyone(N, 150), n=N, x=start.clone())
    close(state.x, start.mean(0).expand(N, -1), 1e-13)
    close(state.w.sum(), torch.tensor(float(N), dtype=F64), 1e-13)
    alone = torch.linalg.matrix_power(push(ONEWAY, list(range(N))), 150) @ start
    assert (alone - start.mean(0)).abs().max() > 0.03


class Forgets(SGP):
    """Pushes shares, but takes the weights for 1."""

    def exchange(self, s: Any, r: Round) -> Any:
        return SGP.exchange(self, s._replace(w=torch.ones_like(s.w)), r)


def sgp_twin(x: Tensor, presence: list[list[int]], gamma: float) -> Tensor:
    """u, w and z as in the paper."""
    u, w, out = x.clone(), torch.ones(N, 1, dtype=F64), []
    for who in presence:
        P, z = push(ONEWAY, who), u / w
        for i in who:
            u[i] = u[i] - gamma * A8[i] * (z[i] - B8[i])
        u, w = P @ u, P @ w
        out.append(u / w)
    return torch.stack(out)


def sgp_agrees(strategy: Strategy) -> None:
    start = normal(N, 3, seed=4)
    close(models(strategy, BOWLS, PRESENCE, n=N, x=start.clone(), local=ONE), sgp_twin(start, PRESENCE, 0.05), 1e-12)


def test_sgp_twin() -> None:
    """Numerators and weights apart, absences included."""
    sgp_agrees(SGP(Push(ONEWAY)))
    with pytest.raises(AssertionError):
        sgp_agrees(Forgets(Push(ONEWAY)))
    task = quadratics(A8.expand(N, 3), B8)
    steps = simulate(task, SGP(Push(ONEWAY)), Everyone().draw(N, 15, 0), ONE, engine=Stacked(chunk=3))
    close(torch.stack([s.model for s in steps]), sgp_twin(torch.zeros(N, 3, dtype=F64), everyone(N, 15), 0.05), 1e-12)


def test_sgp_keeps_weights_and_mass() -> None:
    """Σ w = n, and Σ w z moves by Σ Δ alone, whoever is absent."""
    start = normal(N, 3, seed=4)
    mass = start.sum(0)
    for state, r in drive(SGP(Push(ONEWAY)), BOWLS, PRESENCE, n=N, x=start.clone(), local=ONE):
        mass = mass + r.delta.sum(0)
        close(state.w.sum(), torch.tensor(float(N), dtype=F64), 1e-13)
        close((state.w[:, None] * state.x).sum(0), mass, 1e-12)


def test_sgp_is_biased_at_a_constant_rate_and_not_at_a_falling_one() -> None:
    """It ends where w z = P (w z − γ A (z − b)), w the chain's own weights; γ → 0 takes that to x*."""
    P, run = push(ONEWAY, list(range(N))), {"n": N, "x": ZERO}
    value, vector = torch.linalg.eig(P)
    w = vector[:, value.real.argmax()].real
    w = N * w / w.sum()
    fixed = torch.linalg.solve(
        (torch.eye(N, dtype=F64) - P) @ torch.diag(w) + 0.05 * P @ torch.diag(A8[:, 0]), 0.05 * P @ (A8 * B8)
    )
    found = last(SGP(Push(ONEWAY)), BOWLS, everyone(N, 700), local=ONE, **run).x
    close(found, fixed, 1e-12)
    assert far(found) > 0.2
    falling = LocalSGD(lr=0.3, steps=1, batch=None, lr_schedule=Inverse(0.2))
    assert far(last(SGP(Push(ONEWAY)), BOWLS, everyone(N, 3000), local=falling, **run).x) < 0.02


def test_with_doubly_stochastic_weights_sgp_is_dpsgd() -> None:
    one = models(SGP(RING), BOWLS, PRESENCE, n=N, x=normal(N, 3), local=ONE)
    close(one, models(DPSGD(RING, order="atc"), BOWLS, PRESENCE, n=N, x=normal(N, 3), local=ONE), 1e-12)


@pytest.mark.parametrize("kind", [DPSGD, DmSGD, GossipPGA])
def test_averaging_needs_rows_that_sum_to_one_and_pushing_columns(kind: Any) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} needs weights whose rows sum to 1"):
        kind(mixing=Push(ONEWAY))
    with pytest.raises(ValueError, match="SGP needs weights whose columns sum to 1, and Neighbour is row-stochastic"):
        SGP(mixing.Neighbour())
    with pytest.raises(ValueError, match="Push mixing needs a graph"):
        last(SGP(), BOWLS, everyone(N, 1), n=N, x=ZERO)


@pytest.mark.parametrize("kind", [DPSGD, SGP, ChocoSGD])
def test_a_name_is_no_mixing(kind: Any) -> None:
    """As files write it: in Python it is an object."""
    with pytest.raises(ValueError, match=f"{kind.__name__} needs a mixing such as .*, got 'metropolis'"):
        kind(mixing="metropolis")


# Compressed differences ----------------------------------------------------------------------------------------------

X = normal(4, 200, seed=9)
KEYS = keyed.fold(3, torch.arange(4))


@pytest.mark.parametrize(
    ("kind", "delta"),
    [
        (compress.Identity(), 1.0),
        (compress.TopK(0.1), 0.1),
        (compress.RandomK(0.1), 0.1),
        (compress.Sign(), 0.0),
        (compress.QSGD(1), 1 / (1 + 200**0.5)),
        (compress.QSGD(8), 1 / (1 + 200**0.5 / 8)),
        (compress.QSGD(16), 1 / (1 + 200 / 256)),
    ],
    ids=str,
)
def test_compressors_are_contractions(kind: Any, delta: float) -> None:
    """E‖Q(x) − x‖² ≤ (1 − δ)‖x‖²; the sign's δ is ‖x‖₁²/(P ‖x‖₂²). Drawn from the key alone, in x's precision."""
    errors = []
    for t in range(200):
        q = kind(X, keyed.fold(KEYS, t))
        assert torch.equal(q, kind(X, keyed.fold(KEYS, t)))
        errors.append((q - X).square().sum(1))
    share = torch.stack(errors).mean(0) / X.square().sum(1)
    bound = 1 - X.abs().sum(1) ** 2 / (200 * X.square().sum(1)) if isinstance(kind, compress.Sign) else 1 - delta
    assert (share <= bound + (0.01 if isinstance(kind, compress.RandomK) else 1e-12)).all()
    assert kind(X.float(), KEYS).dtype == torch.float32
    assert not kind(torch.zeros_like(X), KEYS).any()
    close(kind(X, KEYS)[2:], kind(X[2:], KEYS[2:]), 0.0)  # a row is compressed by itself


def test_top_k_keeps_the_largest_and_random_k_so_many() -> None:
    x = torch.tensor([[3.0, -5.0, 1.0, 0.5]], dtype=F64)
    assert compress.TopK(0.5)(x, KEYS[:1]).tolist() == [[3.0, -5.0, 0.0, 0.0]]
    for t in range(20):
        q = compress.RandomK(0.1)(X, keyed.fold(KEYS, t))
        assert ((q != 0).sum(1) == 20).all()
        assert torch.equal(q[q != 0], X[q != 0])
    often = sum((compress.RandomK(0.1)(X, keyed.fold(KEYS, t)) != 0).double() for t in range(2000)) / 2000
    assert (often - 0.1).abs().max() < 5 * math.sqrt(0.09 / 2000)  # type: ignore[union-attr]


def test_sign_and_qsgd_values() -> None:
    x = torch.tensor([[3.0, -5.0, 1.0, -1.0]], dtype=F64)
    assert compress.Sign()(x, KEYS[:1]).tolist() == [[2.5, -2.5, 2.5, -2.5]]
    mean = sum(compress.QSGD(4)(X, keyed.fold(KEYS, t)) for t in range(3000)) / 3000 * (1 + 200**0.5 / 4)
    level = X.norm(dim=1, keepdim=True) / 4
    assert ((mean - X).abs() < 5 * level / 2 / math.sqrt(3000)).all()  # unbiased, but for τ


def test_compressed_bits() -> None:
    assert compress.Identity().bits(1000, 32) == 32_000
    assert compress.TopK(0.01).bits(1000, 32) == 10 * (32 + 10)
    assert compress.RandomK(0.01).bits(1000, 32) == 10 * 32 + 64
    assert compress.Sign().bits(1000, 32) == 1032
    assert compress.QSGD(15).bits(1000, 32) == 5 * 1000 + 32


def choco_twin(x: Tensor, W: Tensor, rounds: int, q: Any, step: float, gamma: float = 0.0) -> Tensor:
    hat, out = torch.zeros_like(x), []
    for _ in range(rounds):
        half = x - gamma * A8 * (x - B8) if gamma else x
        hat = hat + q(half - hat)
        x = half.clone()
        for i in range(len(x)):
            for j in range(len(x)):
                x[i] = x[i] + step * W[i, j] * (hat[j] - hat[i])
        out.append(x)
    return torch.stack(out)


def top(x: Tensor, k: int) -> Tensor:
    out = torch.zeros_like(x)
    for i, row in enumerate(x):
        for place in row.abs().argsort(descending=True)[:k]:
            out[i, place] = row[place]
    return out


def test_choco_twin() -> None:
    W, start = RING(0, torch.arange(N)).dense(), normal(N, 3, seed=4)
    strategy = ChocoSGD(RING, compress.TopK(0.34), gamma=0.3)
    twin = choco_twin(start, W, 20, lambda x: top(x, 1), 0.3, 0.05)
    close(models(strategy, BOWLS, everyone(N, 20), n=N, x=start.clone(), local=ONE), twin, 1e-12)
    for near in (dataclasses.replace(strategy, gamma=0.31), ChocoSGD(RING, compress.TopK(0.67), gamma=0.3)):
        with pytest.raises(AssertionError):
            close(models(near, BOWLS, everyone(N, 20), n=N, x=start.clone(), local=ONE), twin, 1e-12)


def test_choco_gossip_reaches_the_mean_and_naive_compression_stalls() -> None:
    """specs/gossip.md §5.3: ring of 8, 50 numbers, the 5 largest are sent, γ = 0.1."""
    start = torch.from_numpy(np.random.default_rng(0).normal(size=(N, 50)))
    mean, strategy = start.mean(0), ChocoSGD(RING, compress.TopK(0.1), gamma=0.1)
    path = models(strategy, still(N, 50), everyone(N, 1500), n=N, x=start.clone())
    error = (path - mean).flatten(1).norm(dim=1)
    assert (start - mean).norm().item() == pytest.approx(18.7, abs=0.1)
    assert error[499] < 1e-2
    assert error[999] < 1e-6
    assert error[1499] < 1e-10
    close(path.mean(1), mean.expand(1500, -1), 1e-13)
    x, W = start.clone(), RING(0, torch.arange(N)).dense()
    for _ in range(1500):
        q = top(x, 5)
        x = x + 0.1 * (W @ q - q)
    assert (x - mean).norm() > 1


@pytest.mark.parametrize("name", ["random-k", "sign", "qsgd"])
def test_choco_gossip_reaches_the_mean_with_the_other_compressors(name: str) -> None:
    kind: Any = {"random-k": compress.RandomK(0.2), "sign": compress.Sign(), "qsgd": compress.QSGD(4)}[name]
    start = normal(N, 20)
    x = last(ChocoSGD(RING, kind, gamma=0.1), still(N, 20), everyone(N, 900), n=N, x=start.clone()).x
    close(x, start.mean(0).expand(N, -1), 1e-4)


def test_choco_keeps_the_mean_with_absences_and_is_dpsgd_uncompressed() -> None:
    start = normal(N, 3, seed=4)
    mean = start.mean(0)
    for state, r in drive(ChocoSGD(RING, compress.Sign()), BOWLS, PRESENCE, n=N, x=start.clone(), local=ONE):
        mean = mean + r.delta.sum(0) / N
        close(state.x.mean(0), mean, 1e-12)
    exact = models(ChocoSGD(RING, compress.Identity(), 1.0), BOWLS, PRESENCE, n=N, x=start.clone(), local=ONE)
    close(exact, models(DPSGD(RING, order="atc"), BOWLS, PRESENCE, n=N, x=start.clone(), local=ONE), 1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChocoSGD(mixing.Neighbour()), "ChocoSGD needs doubly stochastic weights"),
        (lambda: ChocoSGD(gamma=0.0), "gamma must be above 0 and at most 1, got 0.0"),
        (lambda: compress.TopK(0.0), "share must be above 0 and at most 1, got 0.0"),
        (lambda: compress.RandomK(1.5), "share must be"),
        (lambda: compress.QSGD(0), "levels must be a whole number from 1, got 0"),
        (lambda: EpidemicLearning(sends=0), "sends must be a whole number from 1, got 0"),
        (lambda: EpidemicLearning(variant="both"), "variant must be 'oracle' or 'local', got 'both'"),
        (lambda: Power(0.0), "power must be positive"),
        *((lambda kind=kind: VarianceCorrection(kind()), "does not go with") for kind in (ChocoSGD, SGP, RelaySGD)),
    ],
)
def test_settings_are_checked(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# Relayed sums --------------------------------------------------------------------------------------------------------

PATH = nx.path_graph(N)


def relay_twin(x: Tensor, tree: nx.Graph, presence: list[list[int]], gamma: float) -> Tensor:
    """Messages in a dictionary, as in the paper; what comes to or from an absent node is lost."""
    m: dict[tuple[int, int], Tensor] = {}
    c: dict[tuple[int, int], int] = {}
    x, out = x.clone(), []
    for who in presence:
        half = {i: x[i] - gamma * A8[i] * (x[i] - B8[i]) for i in who}
        new, count = {}, {}
        for i in who:
            for j in tree[i]:
                if j in who:
                    behind = [(k, i) for k in tree[i] if k != j and (k, i) in m]
                    new[i, j] = half[i] + sum(m[k] for k in behind)
                    count[i, j] = 1 + sum(c[k] for k in behind)
        m, c, x = new, count, x.clone()
        for i in who:
            come = [(j, i) for j in tree[i] if (j, i) in m]
            x[i] = ((N - sum(c[k] for k in come)) * half[i] + sum(m[k] for k in come)) / N
        out.append(x)
    return torch.stack(out)


BUSHY = nx.Graph([*nx.path_graph(5).edges, (1, 5), (5, 6), (3, 7)])


@pytest.mark.parametrize("tree", [PATH, nx.star_graph(N - 1), BUSHY], ids=["path", "star", "bushy"])
def test_relaysgd_twin(tree: nx.Graph) -> None:
    start, strategy = normal(N, 3, seed=4), RelaySGD(tree)
    twin = relay_twin(start, tree, PRESENCE, 0.05)
    close(models(strategy, BOWLS, PRESENCE, n=N, x=start.clone(), local=ONE), twin, 1e-12)
    state = strategy.init(start.clone(), uniform(N))
    astray = state._replace(back=torch.arange(len(state.back)))  # what a node has told it is told back
    with pytest.raises(AssertionError):
        close(models(strategy, BOWLS, PRESENCE, n=N, state=astray, local=ONE), twin, 1e-12)


def test_relaysgd_delivers_every_model_once_and_late_by_the_distance() -> None:
    """Messages hold all that lies behind after as many rounds as the path is long, and no round sooner."""
    start = normal(N, 3)
    counts = [state.c for state, _ in drive(RelaySGD(PATH), still(N, 3), everyone(N, N), n=N, x=start.clone())]
    assert counts[N - 2].max() == N - 1
    assert counts[N - 3].max() == N - 2
    # what anybody has is always a mean of what there was, nobody counted twice
    weight = models(RelaySGD(PATH), still(N, N), everyone(N, 40), n=N, x=torch.eye(N, dtype=F64))
    close(weight.sum(2), torch.ones(40, N, dtype=F64), 1e-12)
    assert (weight >= -1e-12).all()


def test_relaysgd_reaches_the_optimum() -> None:
    """Path of 8, γ = 0.01, as tabled; D-PSGD does not."""
    local, run = LocalSGD(lr=0.01, steps=1, batch=None), {"n": N, "x": ZERO}
    assert far(last(RelaySGD(PATH), BOWLS, everyone(N, 3500), local=local, **run).x) < 1e-10
    assert far(last(DPSGD(mixing.Metropolis(PATH)), BOWLS, everyone(N, 2000), local=local, **run).x) > 0.3


def test_relaysgd_runs_alone_and_refuses_what_is_no_tree() -> None:
    one = Honest(A8[:1].expand(1, 3), B8[:1])
    alone = models(RelaySGD(nx.empty_graph(1)), one, everyone(1, 20), n=1, x=ZERO, local=ONE)
    close(alone, models(DPSGD(mixing.Complete(1)), one, everyone(1, 20), n=1, x=ZERO, local=ONE), 1e-15)
    for graph in (None, nx.cycle_graph(N), nx.path_graph(5), nx.empty_graph(N)):
        with pytest.raises(ValueError, match=r"needs a tree with the nodes 0\.\.7; take a spanning tree"):
            RelaySGD(graph).init(ZERO, uniform(N))


# Random peers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["oracle", "local"])
@pytest.mark.parametrize(("s", "oracle", "local"), [(1, 0.4667, 0.6018), (2, 0.2889, 0.3827), (4, 0.1467, 0.1816)])
def test_epidemic_contraction(variant: Any, s: int, oracle: float, local: float) -> None:
    """E[Ξ² about the old mean]/Ξ²: (1/(s+1))(1 − s/(n−1)), and (1/s)(1 − (1 − s/(n−1))ⁿ) − 1/(n−1)."""
    n = 16
    predicted = (1 - s / (n - 1)) / (s + 1) if variant == "oracle" else (1 - (1 - s / 15) ** 16) / s - 1 / 15
    assert predicted == pytest.approx(oracle if variant == "oracle" else local, abs=1e-4)
    x = normal(n, 20)
    x = x - x.mean(0)
    strategy, engine = EpidemicLearning(sends=s, variant=variant), still(n, 20)
    state = strategy.init(x.clone(), uniform(n), 5)
    ratio = []
    for t in range(500):
        ((after, _),) = drive(strategy, engine, everyone(n, t + 1), n=n, state=state._replace(x=x.clone()), t=t)
        ratio.append((after.x.square().sum() / x.square().sum()).item())
    error = np.std(ratio) / math.sqrt(len(ratio))
    assert np.mean(ratio) == pytest.approx(predicted, abs=4 * error)


@pytest.mark.parametrize("variant", ["oracle", "local"])
def test_epidemic_peers(variant: Any) -> None:
    """Among those present; the oracle's graph is regular both ways, local senders send s different models."""
    strategy = EpidemicLearning(sends=3, variant=variant)
    for t, who in enumerate([*PRESENCE, [1, 5], [0, 3, 6]]):
        there = torch.tensor(who, dtype=torch.int64)
        W = strategy.among(N).mixing(t, there, 7)
        s = min(3, len(who) - 1)
        s -= variant == "oracle" and s * len(who) % 2
        sent = (W.dense() > 0).double() - torch.eye(N, dtype=F64)
        expected = torch.zeros(N, dtype=F64).index_fill(0, there, float(max(s, 0)))
        close(sent.sum(0), expected, 0.0)
        if variant == "oracle":
            close(W.dense(), W.dense().T, 0.0)
        close(W.dense().sum(1), torch.ones(N, dtype=F64), 1e-15)
        assert len(W.i) == len(who) * max(s, 0)
    here = torch.arange(N)
    draws = [strategy.among(N).mixing(t, here, 7).dense() for t in range(3)]
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], strategy.among(N).mixing(0, here, 7).dense())


def test_epidemic_with_everybody_is_the_complete_graph() -> None:
    for variant in ("oracle", "local"):
        strategy = EpidemicLearning(sends=100, variant=variant)  # type: ignore[arg-type]
        one = models(strategy, BOWLS, PRESENCE, n=N, x=normal(N, 3), local=ONE)
        two = models(DPSGD(mixing.Complete(N), order="atc"), BOWLS, PRESENCE, n=N, x=normal(N, 3), local=ONE)
        close(one, two, 1e-12)


# The house -----------------------------------------------------------------------------------------------------------


class Apart(TorchDispatchMode):
    """Fails where a host tensor and a device tensor meet, other than in a copy made on purpose."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kinds = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim}
        assert len(kinds) < 2 or "copy" in func.__name__, f"{func} mixes {kinds}"
        return func(*args, **(kwargs or {}))


GOSSIP: dict[str, Strategy] = {
    "GradientTracking": GradientTracking(RING),
    "GradientTracking atc": GradientTracking(RING, order="atc"),
    "ExactDiffusion": ExactDiffusion(RING),
    "D2": D2(mixing.Complete(N)),
    "DmSGD": DmSGD(RING),
    "DecentLaM": DecentLaM(RING),
    "QGDSGDm": QGDSGDm(RING),
    "GossipPGA": GossipPGA(RING, every=1),
    "SGP": SGP(Push(ONEWAY)),
    "RelaySGD": RelaySGD(PATH),
    "EpidemicLearning": EpidemicLearning(sends=2),
    "EpidemicLearning local": EpidemicLearning(sends=2, variant="local"),
    **{f"ChocoSGD {name}": ChocoSGD(RING, kind()) for name, kind in compress.NAMES.items()},
}


@pytest.mark.parametrize("name", GOSSIP)
def test_a_round_does_not_wait_for_the_device(name: str) -> None:
    """On a device without numbers, whatever has to read one fails, and so does what was left on the host."""
    strategy = GOSSIP[name]
    away = {"device": "meta"}
    state = strategy.init(normal(N, 30), uniform(N), 7)
    state = type(state)(*(part.to("meta") if isinstance(part, Tensor) else part for part in state))
    who = torch.empty(5, dtype=torch.int64, **away)
    part = torch.empty(5, 30, dtype=F64, **away)
    span = torch.empty(5, dtype=F64, **away)
    with Apart():
        work = strategy.send(state, who)
        after = strategy.step(state, Round(3, who, work.start, part, span, span, lr=0.1))
    assert after.x.device.type == "meta"
    assert after.x.shape == (N, 30)

"""Strategies against client drift: FedCM, SCAFFOLD and SCAFFOLD-M, FedNova, FedDyn, MimeLite, and FedProx's stragglers.

Each against a twin written out from its pseudocode and near misses of it, through the real loop and both engines with
clients that are absent or do part of their work; then its fixed point on Q4 (specs, §5.2), its paper's promise, what it
reduces to, and what it sends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import F64, Honest, bernoulli, close, drive, everyone, last, models, quadratics
from torch import Tensor

from fedsim import LocalSGD, Strategy, simulate
from fedsim.engine import Loop, Stacked
from fedsim.participation import Schedule
from fedsim.strategies import (
    MIFA,
    SCAFFOLD,
    SCAFFOLDM,
    SCAFFOLDMVR,
    FedAU,
    FedAvg,
    FedAvgMVR,
    FedCM,
    FedDyn,
    FedNova,
    FedProx,
    FedStale,
    MimeLite,
)
from fedsim.strategy import Traffic
from fedsim.weights import Equal, Known, Present

N, P, LR, FULL = 5, 3, 0.05, 4


def noise(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


A, B = 0.5 + noise(1, N, P).sigmoid(), 3 * noise(2, N, P)
TASK = quadratics(A, B)
LOCAL = LocalSGD(lr=LR, steps=FULL, batch=None)
WHO = [[], *bernoulli(0.6, N, 8, seed=5), [0, 1, 2, 3, 4], [], [3]]
EFFORT = np.random.default_rng(3).choice([0.25, 0.5, 1.0], size=(len(WHO), N)).astype(np.float32)
TABLE = np.array([[i in who for i in range(N)] for who in WHO])
SCHEDULE = Schedule.from_matrix(TABLE, effort=EFFORT)


def slope(i: int, y: Tensor) -> Tensor:
    """∇F_i(y)."""
    return A[i] * (y - B[i])


def walk(i: int, x: Tensor, K: int, force: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """How far client i comes in K steps along `force`, and the mean of its raw gradients on the way."""
    y, raw = x, []
    for _ in range(K):
        raw.append(slope(i, y))
        y = y - LR * force(y)
    return y - x, torch.stack(raw).mean(0)


There = list[tuple[int, int]]  # who is there, and the number of steps each takes
Rule = Callable[[Tensor, There], Tensor]


def twin(rule: Rule) -> Tensor:
    """The model after every round [T, P], from 0."""
    x, out = torch.zeros(P, dtype=F64), []
    for t, who in enumerate(WHO):
        there = [(i, round(FULL * float(EFFORT[t, i]))) for i in who]
        x = rule(x, there) if there else x
        out.append(x)
    return torch.stack(out)


def real(strategy: Strategy, engine: Any, schedule: Schedule = SCHEDULE) -> Tensor:
    """The same through the real loop and engine."""
    from fedsim import simulation

    p = SHARES if getattr(strategy, "by_weight", False) else TASK.weights("uniform")
    state = simulation.prepare(strategy, TASK, schedule).init(torch.zeros(P, dtype=F64), p, 7)
    return torch.stack([s.model.clone() for s in simulate(TASK, strategy, schedule, LOCAL, engine=engine, state=state)])


# The twins -----------------------------------------------------------------------------------------------------------


def fedcm(alpha: float, lr: float, miss: str = "") -> Rule:
    g = torch.zeros(P, dtype=F64)

    def rule(x: Tensor, there: There) -> Tensor:
        nonlocal g
        own = 1.0 if miss == "own gradient whole" else alpha
        moves = [walk(i, x, K, lambda y, i=i: own * slope(i, y) + (1 - alpha) * g)[0] for i, K in there]
        mean = torch.stack(moves).mean(0)
        eta_K = LR * (FULL if miss == "full work" else sum(K for _, K in there) / len(there))
        g = -mean / (eta_K * (alpha if miss == "per unit of own" else 1.0))
        return x + lr * mean

    return rule


def scaffold(option: str, beta: float, lr: float, miss: str = "") -> Rule:
    """SCAFFOLD, and SCAFFOLD-M for beta < 1, with gradients added up as the client takes them."""
    c, g = torch.zeros(N, P, dtype=F64), torch.zeros(P, dtype=F64)

    def rule(x: Tensor, there: There) -> Tensor:
        nonlocal c, g
        mean_c = c.mean(0)
        turn = -1.0 if miss == "sign" else 1.0
        found = [
            walk(i, x, K, lambda y, i=i: beta * (slope(i, y) + turn * (mean_c - c[i])) + (1 - beta) * g)
            for i, K in there
        ]
        for (i, _), (_, raw) in zip(there, found, strict=True):
            c[i] = slope(i, x) if option == "I" else raw
        if miss == "forgets the absent":
            c[[i for i in range(N) if i not in dict(there)]] = 0.0
        mean = torch.stack([move for move, _ in found]).mean(0)
        g = -mean / (LR * sum(K for _, K in there) / len(there))
        return x + lr * mean

    return rule


def fednova(lr: float, miss: str = "") -> Rule:
    def rule(x: Tensor, there: There) -> Tensor:
        d = [-walk(i, x, K, lambda y, i=i: slope(i, y))[0] / (LR * K) for i, K in there]
        tau = FULL if miss == "full work" else sum(K for _, K in there) / len(there)
        return x - lr * tau * LR * torch.stack(d).mean(0)

    return rule


SHARES = torch.tensor([1.0, 4.0, 2.0, 2.0, 1.0], dtype=F64) / 10  # of the data


def feddyn_by_weight(alpha: float, miss: str = "") -> Rule:
    """The authors' code: plain sums of moves, α divided by the share times n, weight decay and a slope as the pull."""
    moved = torch.zeros(N, P, dtype=F64)

    def rule(x: Tensor, there: There) -> Tensor:
        shares = torch.full((N,), 1 / N, dtype=F64) if miss == "one alpha" else SHARES
        each = alpha / (N * shares)
        if miss == "multiplies":
            each = alpha * N * shares
        ends = [
            x + walk(i, x, K, lambda y, i=i: slope(i, y) + each[i] * y + each[i] * (moved[i] - x))[0] for i, K in there
        ]
        for (i, _), end in zip(there, ends, strict=True):
            moved[i] += (end - x) * (each[i] / alpha if miss == "scales the history" else 1.0)
        return torch.stack(ends).mean(0) + (SHARES @ moved if miss == "weighs twice" else moved.mean(0))

    return rule


def feddyn(alpha: float, miss: str = "") -> Rule:
    lam, h = torch.zeros(N, P, dtype=F64), torch.zeros(P, dtype=F64)

    def rule(x: Tensor, there: There) -> Tensor:
        nonlocal h
        ends = [x + walk(i, x, K, lambda y, i=i: slope(i, y) - lam[i] + alpha * (y - x))[0] for i, K in there]
        for (i, _), end in zip(there, ends, strict=True):
            lam[i] = lam[i] - alpha * (end - x)
        many = len(there) if miss == "divides by those present" else N
        h = h - alpha / many * torch.stack([end - x for end in ends]).sum(0)
        return torch.stack(ends).mean(0) - (0 if miss == "leaves out h" else h / alpha)

    return rule


def mimelite(beta: float, lr: float, miss: str = "") -> Rule:
    m = torch.zeros(P, dtype=F64)

    def rule(x: Tensor, there: There) -> Tensor:
        nonlocal m
        found = [walk(i, x, K, lambda y, i=i: (1 - beta) * slope(i, y) + beta * m) for i, K in there]
        whole = [
            raw if miss == "gradients on the way" else slope(i, x)
            for (i, _), (_, raw) in zip(there, found, strict=True)
        ]
        m = (1 - beta) * torch.stack(whole).mean(0) + beta * m
        return x + lr * torch.stack([move for move, _ in found]).mean(0)

    return rule


def corrected(controlled: bool, beta: float, lr: float, miss: str = "") -> Rule:
    """FedAvg-M-VR, and SCAFFOLD-M-VR if controlled."""
    c, g, before = torch.zeros(N, P, dtype=F64), torch.zeros(P, dtype=F64), torch.zeros(P, dtype=F64)

    def rule(x: Tensor, there: There) -> Tensor:
        nonlocal g, before
        mean_c = c.mean(0)
        back = x if miss == "corrects at x" else before

        def force(i: int) -> Callable[[Tensor], Tensor]:
            control = beta * (c[i] - mean_c) if controlled else 0.0
            return lambda y: slope(i, y) - control + (1 - beta) * (g - slope(i, back))

        found = [walk(i, x, K, force(i)) for i, K in there]
        if controlled:
            for (i, K), (move, raw) in zip(there, found, strict=True):
                c[i] = -move / (LR * K) if miss == "control variates of moves" else raw
        mean = torch.stack([move for move, _ in found]).mean(0)
        g, before = -mean / (LR * sum(K for _, K in there) / len(there)), x
        return x + lr * mean

    return rule


PAIRS: dict[str, tuple[Strategy, Callable[..., Rule]]] = {
    "FedCM": (FedCM(alpha=0.3), lambda **k: fedcm(0.3, 1.0, **k)),
    "FedCM lr": (FedCM(lr=0.7, alpha=0.6), lambda **k: fedcm(0.6, 0.7, **k)),
    "SCAFFOLD": (SCAFFOLD(), lambda **k: scaffold("II", 1.0, 1.0, **k)),
    "SCAFFOLD lr": (SCAFFOLD(lr=0.5, shortcut=False), lambda **k: scaffold("II", 1.0, 0.5, **k)),
    "SCAFFOLD I": (SCAFFOLD(option="I"), lambda **k: scaffold("I", 1.0, 1.0, **k)),
    "SCAFFOLDM": (SCAFFOLDM(beta=0.3), lambda **k: scaffold("II", 0.3, 1.0, **k)),
    "SCAFFOLDM lr": (SCAFFOLDM(lr=0.7, beta=0.6), lambda **k: scaffold("II", 0.6, 0.7, **k)),
    "FedAvgMVR": (FedAvgMVR(beta=0.3), lambda **k: corrected(False, 0.3, 1.0, **k)),
    "FedAvgMVR lr": (FedAvgMVR(lr=0.7, beta=0.6), lambda **k: corrected(False, 0.6, 0.7, **k)),
    "SCAFFOLDMVR": (SCAFFOLDMVR(beta=0.3), lambda **k: corrected(True, 0.3, 1.0, **k)),
    "SCAFFOLDMVR lr": (SCAFFOLDMVR(lr=0.7, beta=0.6), lambda **k: corrected(True, 0.6, 0.7, **k)),
    "FedNova": (FedNova(), lambda **k: fednova(1.0, **k)),
    "FedNova lr": (FedNova(lr=0.5), lambda **k: fednova(0.5, **k)),
    "FedDyn": (FedDyn(alpha=0.5), lambda **k: feddyn(0.5, **k)),
    "FedDyn by weight": (FedDyn(alpha=0.5, by_weight=True), lambda **k: feddyn_by_weight(0.5, **k)),
    "MimeLite": (MimeLite(), lambda **k: mimelite(0.9, 1.0, **k)),
    "MimeLite lr": (MimeLite(lr=0.5, momentum=0.4), lambda **k: mimelite(0.4, 0.5, **k)),
}  # fmt: skip


@pytest.mark.parametrize("engine", [Stacked(chunk=2), Loop()], ids=["stacked", "loop"])
@pytest.mark.parametrize("which", PAIRS)
def test_it_is_its_twin_through_the_real_engines(which: str, engine: Any) -> None:
    strategy, rule = PAIRS[which]
    close(real(strategy, engine), twin(rule()), 1e-11)


@pytest.mark.parametrize(
    ("which", "miss"),
    [
        ("FedCM", "own gradient whole"),
        ("FedCM", "full work"),
        ("FedCM", "per unit of own"),
        ("SCAFFOLD", "sign"),
        ("SCAFFOLD I", "forgets the absent"),
        ("SCAFFOLDM", "forgets the absent"),
        ("FedAvgMVR", "corrects at x"),
        ("SCAFFOLDMVR", "corrects at x"),
        ("SCAFFOLDMVR", "control variates of moves"),
        ("FedNova", "full work"),
        ("FedDyn", "divides by those present"),
        ("FedDyn", "leaves out h"),
        ("FedDyn by weight", "one alpha"),
        ("FedDyn by weight", "multiplies"),
        ("FedDyn by weight", "scales the history"),
        ("FedDyn by weight", "weighs twice"),
        ("MimeLite", "gradients on the way"),
    ],
)
def test_it_is_not_its_near_misses(which: str, miss: str) -> None:
    strategy, rule = PAIRS[which]
    assert not torch.allclose(real(strategy, Loop()), twin(rule(miss=miss)), atol=1e-3)


def test_options_one_and_two_differ_and_the_uplinks_do_not() -> None:
    one, two, both = (real(s, Loop()) for s in (SCAFFOLD(option="I"), SCAFFOLD(), SCAFFOLD(shortcut=False)))
    assert not torch.allclose(one, two, atol=1e-3)
    close(two, both, 0.0)


# What they reduce to -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "plain"),
    [
        (FedCM(lr=0.7, alpha=1.0), FedAvg(lr=0.7, weights=Equal())),
        (FedCM(alpha=1.0, weights=Known((0.5,) * N)), FedAvg(weights=Known((0.5,) * N))),
        (SCAFFOLDM(lr=0.7, beta=1.0), SCAFFOLD(lr=0.7)),
        (FedAvgMVR(lr=0.7, beta=1.0), FedAvg(lr=0.7, weights=Equal())),
        (SCAFFOLDMVR(lr=0.7, beta=1.0), SCAFFOLD(lr=0.7)),
        (MimeLite(lr=0.7, momentum=0.0), FedAvg(lr=0.7, weights=Equal())),
        (FedProx(SCAFFOLDM(beta=1.0), mu=0.2), FedProx(SCAFFOLD(), mu=0.2)),
    ],
    ids=repr,
)
def test_reductions(special: Strategy, plain: Strategy) -> None:
    close(real(special, Stacked(chunk=3)), real(plain, Stacked(chunk=3)), 1e-12)


def test_fednova_with_equal_work_is_fedavg() -> None:
    equal = Schedule.from_matrix(TABLE)
    close(real(FedNova(lr=0.7), Loop(), equal), real(FedAvg(lr=0.7), Loop(), equal), 1e-12)
    assert not torch.allclose(real(FedNova(), Loop()), real(FedAvg(), Loop()), atol=1e-3)


# Q4 ------------------------------------------------------------------------------------------------------------------

A4 = torch.tensor([[1.0], [0.5], [2.0], [1.5]], dtype=F64)
B4 = torch.tensor([[0.0], [10.0], [-4.0], [7.0]], dtype=F64)
FIVE = LocalSGD(lr=0.05, steps=5, batch=None)
PAIRS_OF_4 = list(itertools.combinations(range(4), 2))


def q4(strategy: Strategy, presence: Any, steps: tuple[int, ...] | None = None, local: LocalSGD = FIVE) -> Any:
    """The state that Q4 settles in."""
    return last(strategy, Honest(A4, B4, steps), presence, n=4, x=torch.zeros(1, dtype=F64), local=local)


def two_of_four(rounds: int) -> list[list[int]]:
    drawn = np.random.default_rng(1).integers(6, size=rounds)
    return [list(PAIRS_OF_4[j]) for j in drawn]


@pytest.mark.parametrize(("alpha", "fixed"), [(1.0, 1.680542), (0.5, 1.590210), (0.2, 1.536041)])
def test_fedcm_settles_where_fedavg_does_at_alpha_times_the_rate(alpha: float, fixed: float) -> None:
    state = q4(FedCM(alpha=alpha), everyone(4, 600))
    assert state.x.item() == pytest.approx(fixed, abs=5e-7)
    assert state.g.abs().item() < 1e-12
    slow = LocalSGD(lr=0.05 * alpha, steps=5, batch=None)
    assert q4(FedAvg(), everyone(4, 600), local=slow).x.item() == pytest.approx(fixed, abs=5e-7)


@pytest.mark.parametrize(
    "strategy",
    [
        SCAFFOLD(),
        SCAFFOLD(option="I"),
        *(kind(beta=beta) for kind in (SCAFFOLDM, SCAFFOLDMVR) for beta in (1.0, 0.5, 0.2)),
    ],
    ids=repr,
)
def test_control_variates_reach_the_true_optimum(strategy: Any) -> None:
    """Two of four clients a round: x = 1.5, c_i = ∇F_i(1.5), Σ c_i = 0, g = 0."""
    state = q4(strategy, two_of_four(1200))
    assert state.x.item() == pytest.approx(1.5, abs=1e-10)
    close(state.c.dense(), A4 * (1.5 - B4), 1e-9)
    assert state.c.mean.abs().item() < 1e-10
    if hasattr(state, "g"):
        assert state.g.abs().item() < 1e-9


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.2])
def test_fedavg_m_vr_settles_where_fedavg_does(beta: float) -> None:
    state = q4(FedAvgMVR(beta=beta), everyone(4, 600))
    assert state.x.item() == pytest.approx(1.680542, abs=5e-7)
    assert state.g.abs().item() < 1e-10


@pytest.mark.parametrize("beta", [0.5, 0.1])
def test_the_corrected_momentum_forgets_its_error_and_the_other_lags(beta: float) -> None:
    """One exact step a round: g − ∇f(x⁻) shrinks by 1 − β, however x moves; FedAvg-M's g stays behind a moving x."""
    one, x0 = LocalSGD(lr=0.05, steps=1, batch=None), torch.full((1,), 9.0, dtype=F64)

    def errors(strategy: Strategy) -> list[float]:
        return [
            (state.g - (A4 * (r.start - B4)).mean(0)).item()
            for state, r in drive(strategy, Honest(A4, B4), everyone(4, 12), n=4, x=x0.clone(), local=one)
        ]

    first = -(A4 * (9.0 - B4)).mean().item()
    assert errors(FedAvgMVR(beta=beta)) == pytest.approx([first * (1 - beta) ** (t + 1) for t in range(12)], rel=1e-9)
    assert errors(FedCM(alpha=beta))[-1] != pytest.approx(first * (1 - beta) ** 12, rel=0.2)


@pytest.mark.parametrize("strategy", [SCAFFOLD(option="I"), SCAFFOLDM(beta=0.3), SCAFFOLDMVR(beta=0.3)], ids=repr)
def test_c_is_the_mean_of_all_control_variates(strategy: Any) -> None:
    for state, _ in drive(strategy, Honest(A4, B4), two_of_four(40), n=4, x=torch.zeros(1, dtype=F64), local=FIVE):
        close(state.c.mean, state.c.dense().mean(0), 1e-12)


UNEVEN = (1, 5, 2, 8)


def test_fednova_takes_the_bias_of_uneven_work_away() -> None:
    """K = (1, 5, 2, 8): clients count by φ_i = κ_i/K_i and no longer by κ_i."""
    kappa = 1 - (1 - 0.05 * A4[:, 0]) ** torch.tensor(UNEVEN)
    b, K = B4[:, 0], torch.tensor(UNEVEN)
    nova, plain = (q4(s, everyone(4, 500), UNEVEN).x.item() for s in (FedNova(), FedAvg()))
    assert nova == pytest.approx(1.163398, abs=5e-7)
    assert nova == pytest.approx(float((kappa / K * b).sum() / (kappa / K).sum()), abs=1e-9)
    assert plain == pytest.approx(float((kappa * b).sum() / kappa.sum()), abs=1e-9)
    assert plain > 4
    one = q4(FedNova(), everyone(4, 500), (3, 3, 3, 3)).x.item()
    assert one == pytest.approx(q4(FedAvg(), everyone(4, 500), (3, 3, 3, 3)).x.item(), abs=1e-12)


def test_fednova_counts_local_momentum_and_the_pull_by_what_they_do() -> None:
    """‖a_i‖₁ of a client with a constant gradient is how far it moves: then all directions count alike."""

    class Slope:
        """Clients whose gradient is −d_i everywhere."""

        def __call__(
            self, task: Any, who: Tensor, work: Any, keys: Any, local: Any, t: int = 0, effort: Any = None
        ) -> Any:
            from fedsim.engine import Answer

            span = torch.tensor([local.span(UNEVEN[i], t, work.mu) for i in who.tolist()], dtype=F64)
            return Answer(who, span[:, None] * d[who], span, torch.zeros(len(who)), {})

    d = noise(4, 4, 2)
    heavy = LocalSGD(lr=0.05, steps=1, batch=None, momentum=0.9)
    for strategy in (FedNova(), FedProx(FedNova(), mu=0.5)):
        (x,) = models(strategy, Slope(), [[0, 1, 2, 3]], n=4, x=torch.zeros(2, dtype=F64), local=heavy)
        close(x / x.norm(), d.mean(0) / d.mean(0).norm(), 1e-12)


@pytest.mark.parametrize(
    "strategy",
    [FedNova(), FedCM(), SCAFFOLDM(), SCAFFOLD(option="I"), MimeLite(), FedDyn(), FedAvgMVR(), SCAFFOLDMVR()],
)
def test_a_learning_rate_that_has_fallen_to_zero_moves_nothing(strategy: Strategy) -> None:
    """And spoils no memory: the next step goes on from what was known."""
    from fedsim.local import Cosine

    local = LocalSGD(lr=0.1, steps=2, batch=None, lr_schedule=Cosine(rounds=3))
    presence = [*everyone(4, 3), [0], [], [1, 2]]
    x = models(strategy, Honest(A4, B4), presence, n=4, x=torch.ones(1, dtype=F64), local=local)
    assert local.lr_at(3) == 0
    assert x.isfinite().all()
    if not isinstance(strategy, FedDyn):  # x goes on moving by h, as its formula says
        close(x[3:], x[2].expand_as(x[3:]), 0.0)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_feddyn_reaches_the_true_optimum(alpha: float) -> None:
    """Whoever is there and however inexactly they minimise: λ_i = ∇F_i(1.5), h = 0."""
    state = q4(FedDyn(alpha=alpha), two_of_four(1200))
    assert state.x.item() == pytest.approx(1.5, abs=1e-8)
    close(state.lam.dense(), A4 * (1.5 - B4), 1e-7)
    assert state.lam.mean.abs().item() < 1e-8


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_feddyn_by_weight_reaches_the_optimum_of_the_weighted_objective(alpha: float) -> None:
    """Σ_i p_i ∇F_i(x) = 0, where one α for all stays with Σ_i ∇F_i(x) = 0."""
    p = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=F64)
    run: dict[str, Any] = {"n": 4, "x": torch.zeros(1, dtype=F64), "p": p, "local": FIVE}
    optimum = float((p[:, None] * A4 * B4).sum() / (p[:, None] * A4).sum())
    assert abs(optimum - 1.5) > 0.3
    state = last(FedDyn(alpha, by_weight=True), Honest(A4, B4), two_of_four(2500), **run)
    assert state.x.item() == pytest.approx(optimum, abs=1e-7)
    close(state.lam.dense(), A4 * (optimum - B4), 1e-6)
    plain = last(FedDyn(alpha), Honest(A4, B4), two_of_four(2500), **(run | {"x": torch.zeros(1, dtype=F64)}))
    assert plain.x.item() == pytest.approx(1.5, abs=1e-7)


def test_feddyn_by_weight_is_feddyn_where_all_weigh_the_same() -> None:
    run: dict[str, Any] = {"n": 4, "x": torch.ones(1, dtype=F64), "local": FIVE}
    one, two = (models(FedDyn(0.5, by_weight=b), Honest(A4, B4), two_of_four(30), **run) for b in (True, False))
    close(one, two, 1e-12)


def test_feddyns_gradients_are_those_at_the_local_minimum() -> None:
    """λ_i <- λ_i − α Δ_i is ∇F_i at where the client ended, if it minimised exactly."""
    exact = LocalSGD(lr=0.1, steps=600, batch=None)
    ((state, r),) = drive(FedDyn(alpha=0.7), Honest(A4, B4), [[0, 2]], n=4, x=torch.zeros(1, dtype=F64), local=exact)
    close(state.lam.dense()[[0, 2]], (A4 * (r.delta.new_zeros(4, 1).index_copy(0, r.who, r.delta) - B4))[[0, 2]], 1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_mimelite_settles_at_its_closed_form(beta: float) -> None:
    """m = ∇f(x), and Σ_i κ_i (x − b_i + β m/((1 − β) a_i)) = 0 with κ_i of the rate (1 − β) η."""
    a, b = A4[:, 0], B4[:, 0]
    kappa = 1 - (1 - 0.05 * (1 - beta) * a) ** 5
    pull = beta / (1 - beta) * kappa / a
    fixed = ((kappa * b).sum() + pull.sum() * (a * b).mean()) / (kappa.sum() + pull.sum() * a.mean())
    state = q4(MimeLite(momentum=beta), everyone(4, 900))
    assert state.x.item() == pytest.approx(fixed.item(), abs=1e-9)
    assert state.m.item() == pytest.approx(
        0.0 if beta == 0 else float((a * (fixed - b)).mean()), abs=1e-9 if beta else 3.0
    )
    assert abs(fixed.item() - 1.5) < 0.19 * (1 - beta) + 1e-12  # the larger β, the less drift


# Work that is not done -----------------------------------------------------------------------------------------------

RATES = (0.9, 0.3, 0.5, 0.2, 0.7)


def dropped() -> Schedule:
    """The schedule without those who do part of their work."""
    return Schedule.from_matrix(TABLE & (EFFORT == 1))


@pytest.mark.parametrize(
    "inner",
    [FedAvg(), FedAU(cutoff=3), MIFA(), FedStale(beta=0.4, weights=Known(RATES)), SCAFFOLD(), FedDyn(0.5)],
    ids=repr,
)
def test_a_dropped_straggler_was_absent(inner: Any) -> None:
    """FedProx(mu=0, stragglers="drop") does on the whole schedule what its inner strategy does without stragglers."""
    drop = FedProx(inner, mu=0.0, stragglers="drop")
    close(real(drop, Loop()), real(inner, Loop(), dropped()), 1e-12)
    assert not torch.allclose(real(drop, Loop()), real(inner, Loop()), atol=1e-3)


def test_a_dropped_straggler_is_sent_the_model_and_sends_nothing() -> None:
    state = None
    for step in simulate(TASK, FedProx(stragglers="drop"), SCHEDULE, LOCAL, engine=Loop()):
        t, who = step.t, WHO[step.t]
        assert step.traffic == Traffic(64 * P * int((EFFORT[t, who] == 1).sum()), 64 * P * len(who))
        state = step.state
    assert state is not None


def test_fedprox_hears_ten_and_fedavg_one() -> None:
    """The paper's 90 %: ten clients a round, nine of them late."""
    from fedsim.participation import PartialWork, Uniform

    schedule = PartialWork(Uniform(10), stragglers=0.9, high=0.95).draw(30, 20, 1)
    task = quadratics(1 + noise(6, 30, 2).sigmoid(), noise(7, 30, 2))
    local = LocalSGD(lr=0.05, steps=20, batch=None)
    for strategy, heard in ((FedProx(mu=1.0), 10), (FedProx(mu=0.0, stragglers="drop"), 1)):
        for step in simulate(task, strategy, schedule, local, engine=Stacked(chunk=10)):
            assert step.traffic == Traffic(64 * 2 * heard, 64 * 2 * 10)
            assert len(step.round.who) == 10


def test_both_of_fedproxs_schemes() -> None:
    """Paper: the plain mean. Code: by numbers of examples, over those present."""
    run: dict[str, Any] = {"n": 4, "x": torch.zeros(1, dtype=F64), "p": torch.tensor([1.0, 2, 3, 4], dtype=F64) / 10}
    presence = bernoulli(0.6, 4, 12)
    for scheme, weights in (("paper", Equal()), ("code", Present())):
        named = models(FedProx(mu=0.3, scheme=scheme), Honest(A4, B4), presence, **run)  # type: ignore[arg-type]
        close(named, models(FedProx(FedAvg(weights=weights), mu=0.3), Honest(A4, B4), presence, **run), 0.0)
    assert FedProx(FedAvg(lr=0.5), scheme="paper").inner == FedAvg(0.5, Equal())
    assert FedProx(FedProx(scheme="paper").inner, scheme="paper") == FedProx(scheme="paper")


@pytest.mark.parametrize(("mu", "steps"), [(0.1, 1), (1.0, 5), (5.0, 12)])
def test_fedproxs_inexactness_on_a_quadratic(mu: float, steps: int) -> None:
    """‖∇h_i(y; x)‖ / ‖∇h_i(x; x)‖ = |1 − γ(a + μ)|^E."""
    x, local = torch.full((1,), 3.0, dtype=F64), LocalSGD(lr=0.05, steps=steps, batch=None)
    ((_, r),) = drive(FedProx(mu=mu), Honest(A4, B4), [[0, 1, 2, 3]], n=4, x=x, local=local)
    reached = (A4 * (3.0 + r.delta - B4) + mu * r.delta).abs() / (A4 * (3.0 - B4)).abs()
    close(reached, (1 - 0.05 * (A4 + mu)).abs() ** steps, 1e-12)


# What is sent --------------------------------------------------------------------------------------------------------

WORD = 64 * P


@pytest.mark.parametrize(
    ("strategy", "up", "down"),
    [
        (FedAvg(), WORD, WORD),
        (FedProx(), WORD, WORD),
        (SCAFFOLD(), WORD, 2 * WORD),
        (SCAFFOLD(shortcut=False), 2 * WORD, 2 * WORD),
        (SCAFFOLD(option="I"), 2 * WORD, 2 * WORD),
        (SCAFFOLDM(), WORD, 3 * WORD),
        (SCAFFOLDM(shortcut=False), 2 * WORD, 3 * WORD),
        (FedCM(), WORD, 2 * WORD),
        (FedAvgMVR(), WORD, 2 * WORD),
        (SCAFFOLDMVR(), 2 * WORD, 3 * WORD),
        (FedNova(), WORD + 64, WORD),
        (FedDyn(), WORD, WORD),
        (MimeLite(), 2 * WORD, 2 * WORD),
    ],
    ids=repr,
)
def test_traffic(strategy: Strategy, up: int, down: int) -> None:
    """Vectors that the algorithm really sends, for each who is there (specs, §5.1)."""
    for step in simulate(TASK, strategy, SCHEDULE, LOCAL, engine=Loop()):
        k = len(WHO[step.t])
        assert step.traffic == Traffic(k * up, k * down)


# What they refuse ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FedCM(alpha=0.0), "alpha must be above 0"),
        (lambda: SCAFFOLDM(beta=1.5), "beta must be above 0 and at most 1"),
        (lambda: FedAvgMVR(beta=0.0), "beta must be above 0 and at most 1"),
        (lambda: SCAFFOLDMVR(beta=0.0), "beta must be above 0 and at most 1"),
        (lambda: MimeLite(momentum=1.0), "momentum must be at least 0 .* below 1"),
        (lambda: FedDyn(alpha=0.0), "alpha must be positive"),
        (lambda: FedDyn(by_weight=True).init(torch.zeros(2), torch.tensor([0.0, 1.0])), "one of them weighs 0"),  # type: ignore[return-value]
        (lambda: SCAFFOLD(option="III"), "option must be I or II, got 'III'"),  # type: ignore[arg-type]
        (lambda: SCAFFOLD(option="I", shortcut=True), "shortcut needs option II"),
        (lambda: FedProx(mu=-1.0), "mu must not be negative"),
        (lambda: FedProx(stragglers="late"), "stragglers must be keep or drop"),  # type: ignore[arg-type]
        (lambda: FedProx(scheme="other"), "scheme must be paper or code"),  # type: ignore[arg-type]
        (lambda: FedProx(MIFA(), scheme="paper"), "scheme paper sets the weights of FedAvg"),
        (lambda: FedProx(FedAvg(weights=Known()), scheme="code"), "leave one out"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(make: Callable[[], Strategy], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "strategy", [SCAFFOLD(), SCAFFOLDM(), FedCM(), FedNova(), FedAvgMVR(), SCAFFOLDMVR()], ids=repr
)
def test_clipped_updates_are_refused_by_who_needs_gradients(strategy: Strategy) -> None:
    clipped = LocalSGD(lr=LR, steps=FULL, batch=None, clip=0.1)
    with pytest.raises(ValueError, match=r"needs delta = -span \* mean gradient, which clipping breaks"):
        list(simulate(TASK, strategy, SCHEDULE, clipped, engine=Loop()))


@pytest.mark.parametrize("strategy", [SCAFFOLD(option="I"), FedDyn(), MimeLite()], ids=repr)
def test_the_others_can_do_with_clipped_updates(strategy: Strategy) -> None:
    clipped = LocalSGD(lr=LR, steps=FULL, batch=None, clip=0.1)
    *_, step = simulate(TASK, strategy, SCHEDULE, clipped, engine=Loop())
    assert step.model.isfinite().all()

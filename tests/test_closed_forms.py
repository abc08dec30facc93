"""Q4: four quadratics F_n(x) = a_n/2 (x − b_n)², whose fixed points are known for every strategy (specs, §5.2).

Five local steps of size 0.05 are linear, Δ_n = −κ_n (x − b_n), so with independent presence the expectation of a
strategy's whole state follows an exact linear recursion. It is read off the real `step`, over all 16 subsets, and
solved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import F64, Frozen, Honest, bernoulli, chance, close, everyone, last, models, round_of, subsets, uniform
from torch import Tensor

from fedsim import LocalSGD, Strategy, data, federate, measure, simulate
from fedsim.engine import Loop, Stacked
from fedsim.participation import Bernoulli, Everyone
from fedsim.rows import Rows
from fedsim.strategies import MIFA, SCAFFOLD, FedAU, FedAvg, FedProx, FedStale, FedVARP
from fedsim.weights import All, Equal, Known

A = torch.tensor([1.0, 0.5, 2.0, 1.5], dtype=F64)
B = torch.tensor([0.0, 10.0, -4.0, 7.0], dtype=F64)
PI = (0.9, 0.2, 0.5, 0.05)
LOCAL = LocalSGD(lr=0.05, steps=5, batch=None)
KAPPA = 1 - (1 - 0.05 * A) ** 5


def test_kappa() -> None:
    close(KAPPA, torch.tensor([0.226219, 0.118904, 0.409510, 0.322813], dtype=F64), 1e-6)


# The exact recursion -------------------------------------------------------------------------------------------------


def limit_of_omega(cutoff: int | None) -> Tensor:
    """FedAU's weights once they have settled, (1 − (1−π)^K)/π."""
    pi = torch.tensor(PI, dtype=F64)
    return 1 / pi if cutoff is None else (1 - (1 - pi) ** cutoff) / pi


def at(strategy: Strategy, x: float, h: Tensor) -> Any:
    """A state with that x, that memory [n, 1], and settled weights."""
    state = strategy.init(torch.full((1,), x, dtype=F64), uniform(4))
    for name, value in zip(state._fields, state, strict=True):
        if isinstance(value, Rows):
            value[torch.arange(4)] = h
        elif name == "intervals":
            state = state._replace(intervals=value._replace(omega=limit_of_omega(strategy.cutoff)))  # type: ignore[attr-defined]
    return state


def seen(state: Any) -> Tensor:
    """x and the memory, [5]."""
    table = [value for value in state if isinstance(value, Rows)]
    memory = table[0].dense()[:, 0] if table else torch.zeros(4, dtype=F64)
    return torch.cat([state.x, memory])


def expected_next(strategy: Strategy, z: Tensor) -> Tensor:
    """E[(x, h) after a round | before], over who may be present."""
    out = torch.zeros(5, dtype=F64)
    for s in subsets(4):
        state = at(strategy, z[0].item(), z[1:, None])
        delta = -(KAPPA * (z[0] - B))[list(s), None]
        out += chance(s, PI) * seen(strategy.step(state, round_of(0, s, delta, lr=0.05)))
    return out


def stationary_mean(strategy: Strategy) -> float:
    """E[x] of the stationary state: the fixed point of the affine map z ↦ E[z']."""
    zero = expected_next(strategy, torch.zeros(5, dtype=F64))
    matrix = torch.stack([expected_next(strategy, e) - zero for e in torch.eye(5, dtype=F64)], dim=1)
    assert torch.linalg.eigvals(matrix[:1, :1] if not matrix[1:].any() else matrix).abs().max() < 1
    point = torch.linalg.lstsq(torch.eye(5, dtype=F64) - matrix, zero[:, None]).solution[:, 0]
    close(matrix @ point + zero, point, 1e-10)
    return float(point[0])


LR = 0.1
UNBIASED = 1.680542


@pytest.mark.parametrize(
    ("strategy", "mean"),
    [
        (FedAvg(LR, All()), -1.044511),
        (FedAvg(LR), -1.005836),
        (FedAvg(LR, Equal()), -1.005836),
        (FedAvg(LR, Known(PI)), UNBIASED),
        (FedAU(LR), UNBIASED),
        (FedAU(LR, cutoff=50), 1.555003),
        (FedAU(LR, cutoff=10), 0.380782),
        (FedAU(LR, cutoff=5), -0.356038),
        (FedVARP(LR), UNBIASED),
        (FedVARP(LR, Known(PI)), UNBIASED),
        (MIFA(LR), UNBIASED),
        (FedStale(LR, 0.0, Known(PI)), UNBIASED),
        (FedStale(LR, 0.5, Known(PI)), UNBIASED),
        (FedStale(LR, 1.0, Known(PI)), UNBIASED),
        (FedStale(LR, 0.5, Equal()), 0.3713),
        (FedStale(LR, 0.3, All()), 0.3382),
        (FedVARP(LR, skip_empty=True), UNBIASED),
    ],
    ids=repr,
)
def test_stationary_mean(strategy: Strategy, mean: float) -> None:
    found = stationary_mean(strategy)
    digits = 5e-7 if mean not in (0.3713, 0.3382) else 5e-5
    assert found == pytest.approx(mean, abs=digits)


@pytest.mark.parametrize(("steps", "fixed"), [(5, UNBIASED), (1, 1.5)])
def test_full_participation_fixed_point(steps: int, fixed: float) -> None:
    """Client drift moves FedAvg's fixed point from Σ ab/Σ a = 1.5 to Σ κb/Σ κ."""
    local = LocalSGD(lr=0.05, steps=steps, batch=None)
    state = last(
        FedAvg(), Honest(A[:, None], B[:, None]), everyone(4, 600), n=4, x=torch.zeros(1, dtype=F64), local=local
    )
    assert state.x.item() == pytest.approx(fixed, abs=5e-7)


def test_clients_that_come_in_spells_settle_near_the_same_mean() -> None:
    """MIFA under presence that is not independent: the mean is unbiased as η -> 0."""
    from fedsim.participation import Markov

    presence = Markov((0.5, 0.3, 0.6, 0.4), memory=0.3).draw(4, 6_000, 0)
    rounds = [row.chosen.tolist() for row in presence]
    x = models(MIFA(0.02), Honest(A[:, None], B[:, None]), rounds, n=4, x=torch.full((1,), 1.5, dtype=F64), local=LOCAL)
    assert x[1000:].mean().item() == pytest.approx(UNBIASED, abs=0.05)


# The same through the real task, engine and loop ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def q4() -> Any:
    return federate(data.Quadratic().load(), clients=4, model="scalar", dtype=F64)


def test_the_task_is_q4(q4: Any) -> None:
    p = q4.weights("uniform")
    x = torch.full((1,), 1.5, dtype=F64)
    assert measure.objective(q4, x, p) == pytest.approx(float((A / 2 * (1.5 - B) ** 2).mean()), rel=1e-12)
    h = 1e-3
    assert measure.objective(q4, x + h, p) == pytest.approx(measure.objective(q4, x - h, p), rel=1e-9)


@pytest.mark.parametrize("engine", [Stacked(chunk=3), Loop()], ids=["stacked", "loop"])
@pytest.mark.parametrize(
    "strategy",
    [FedAvg(LR), FedAU(LR, cutoff=5), FedStale(LR, 0.5), FedVARP(LR), MIFA(LR), FedAvg(LR, Known())],
    ids=repr,
)
def test_simulated_rounds_follow_the_recursion(q4: Any, strategy: Any, engine: Any) -> None:
    """Engine and loop on the real task give, round by round, what Δ_n = −κ_n (x − b_n) and the rule give."""
    schedule = Bernoulli(PI).draw(4, 40, seed=2)
    steps = list(simulate(q4, strategy, schedule, LOCAL, seed=3, engine=engine))
    if isinstance(strategy, FedAvg) and isinstance(strategy.weights, Known):
        strategy = FedAvg(LR, Known(PI))  # what simulate takes from the schedule
    assert [step.t for step in steps] == list(range(40))
    x0 = q4.fresh(0)

    class Linear:
        def __call__(
            self, task: Any, who: Tensor, work: Any, keys: Any, local: Any, t: int = 0, effort: Any = None
        ) -> Any:
            delta = -(KAPPA[:, None] * (work.start[:1] - B[:, None])) if len(who) else torch.zeros(4, 1, dtype=F64)
            return Frozen(delta)(task, who, work, keys, local, t)

    rounds = [row.chosen.tolist() for row in schedule]
    close(
        torch.stack([step.model for step in steps]), models(strategy, Linear(), rounds, n=4, x=x0, local=LOCAL), 1e-11
    )
    assert all(step.traffic.up == 64 * len(who) for step, who in zip(steps, rounds, strict=True))


def test_simulated_average_of_those_present_is_biased_as_predicted(q4: Any) -> None:
    """End to end: fedsim's schedule, task, engine and loop; then 200,000 rounds of the recursion alone."""
    schedule = Bernoulli(PI).draw(4, 800, seed=1)
    values = [step.model.item() for step in simulate(q4, FedAvg(0.2), schedule, LOCAL, engine=Stacked(chunk=4))]
    assert np.mean(values[200:]) == pytest.approx(-1.0058, abs=0.3)  # the truth for everybody: 1.68
    there = Bernoulli(PI).draw(4, 200_000, seed=5).matrix().numpy()
    kappa, b = KAPPA.numpy(), B.numpy()
    share = there / np.maximum(there.sum(1, keepdims=True), 1)
    slope, pull = share @ kappa, share @ (kappa * b)
    x, total = 0.0, 0.0
    for t in range(len(there)):
        x += 0.1 * (pull[t] - slope[t] * x)
        total += x
    assert total / len(there) == pytest.approx(-1.005836, abs=0.02)


@pytest.mark.parametrize("engine", [Stacked(chunk=2), Loop(), None], ids=["stacked", "loop", "default"])
def test_scaffold_through_the_real_engines(q4: Any, engine: Any) -> None:
    """shift reaches the local steps: 1.5 and not 1.68."""
    *_, step = simulate(q4, SCAFFOLD(), Everyone().draw(4, 120, 0), LOCAL, engine=engine)
    assert step.model.item() == pytest.approx(1.5, abs=1e-9)


def test_fedprox_through_the_real_engine(q4: Any) -> None:
    """mu reaches the local steps."""
    *_, step = simulate(q4, FedProx(mu=1.0), Everyone().draw(4, 150, 0), LOCAL, engine=Stacked(chunk=4))
    k = A / (A + 1) * (1 - (1 - 0.05 * (A + 1)) ** 5)
    assert step.model.item() == pytest.approx(float((k * B).sum() / k.sum()), abs=1e-9)


def test_bernoulli_helper_is_independent() -> None:
    rate = np.mean([[i in who for i in range(4)] for who in bernoulli(PI, 4, 4000)], axis=0)
    assert rate == pytest.approx(PI, abs=0.03)

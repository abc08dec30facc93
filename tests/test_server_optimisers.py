"""Optimisers on the server: against torch's on the same moves, around other strategies, and from a checkpoint.

Against Flower's own on the same replies: test_flower.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import F64, Honest, close, drive, everyone, last, models, uniform

from fedsim.checkpoint import load_checkpoint, save_checkpoint
from fedsim.lr_schedules import Cosine, Step
from fedsim.strategies import (
    DPSGD,
    MIFA,
    SCAFFOLD,
    FedAdagrad,
    FedAdam,
    FedAU,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    ServerLR,
)

N, P = 5, 7
PRESENCE = [[0, 2], [1, 3, 4], [], [0, 4], [2, 3], [0, 1, 2, 3, 4], [1], [2, 4]]
g = torch.Generator().manual_seed(0)
CLIENTS = Honest(torch.rand(N, P, dtype=F64, generator=g) + 0.5, 3 * torch.randn(N, P, dtype=F64, generator=g))
X = torch.randn(P, dtype=F64, generator=g)


def run(strategy: Any, presence: Any = PRESENCE) -> torch.Tensor:
    return models(strategy, CLIENTS, presence, n=N, x=X.clone())


def moves(strategy: Any, xs: torch.Tensor) -> list[torch.Tensor]:
    """What the bare strategy moves each of these models by, everyone present."""
    out = []
    for x in xs:
        ((state, _),) = drive(strategy, CLIENTS, everyone(N, 1), n=N, x=x.clone())
        out.append(state.x - x)
    return out


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_torch_s_sgd_on_minus_the_move(nesterov: bool) -> None:
    found = run(FedAvgM(lr=0.3, momentum=0.7, nesterov=nesterov), everyone(N, 6))
    x = torch.nn.Parameter(X.clone())
    sgd = torch.optim.SGD([x], lr=0.3, momentum=0.7, nesterov=nesterov)
    for model in found:
        (move,) = moves(FedAvg(), x.detach()[None])
        x.grad = -move
        sgd.step()
        close(model, x.detach(), 1e-12)


def test_adagrad_is_torch_s_on_minus_the_move() -> None:
    """With v before the first round, and τ, where torch has them."""
    found = run(FedAdagrad(lr=0.3, tau=1e-3, initial=0.04), everyone(N, 6))
    x = torch.nn.Parameter(X.clone())
    adagrad = torch.optim.Adagrad([x], lr=0.3, eps=1e-3, initial_accumulator_value=0.04)
    for model in found:
        (move,) = moves(FedAvg(), x.detach()[None])
        x.grad = -move
        adagrad.step()
        close(model, x.detach(), 1e-12)


def test_yogi_s_v_goes_up_by_what_it_goes_down_by_in_adam() -> None:
    """(1 − β₂) Δ² either way, where Adam's step is proportional to v − Δ²."""
    yogi, v = FedYogi(beta2=0.9), torch.tensor([0.0, 0.5, 2.0], dtype=F64)
    square = torch.tensor([1.0, 1.0, 1.0], dtype=F64)
    close(yogi.second(v, square), v + torch.tensor([0.1, 0.1, -0.1], dtype=F64), 1e-15)
    assert float(yogi.second(square, square)[0]) == 1.0
    close(FedAdam(beta2=0.9).second(v, square), 0.9 * v + 0.1, 1e-15)


INNER = [FedAvg(), FedAvg(lr=0.3), MIFA(), FedAU(), SCAFFOLD(), FedProx(MIFA(), mu=0.1)]
AROUND = [FedAvgM, FedAdagrad, FedAdam, FedYogi]


@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_momentum_0_is_the_strategy_inside(inner: Any) -> None:
    close(run(FedAvgM(inner, momentum=0.0)), run(inner), 1e-12)
    assert torch.equal(run(ServerLR(inner)), run(inner))


@pytest.mark.parametrize("kind", AROUND)
@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_an_optimiser_is_fed_what_the_strategy_inside_would_move_by(kind: Any, inner: Any) -> None:
    """Written out again, with the inner strategy stepped from where the optimiser left x."""
    strategy = kind(inner, lr=0.2)
    state = strategy.init(X.clone(), uniform(N), 7)
    bare = inner.init(X.clone(), uniform(N), 7)
    x, m, v = X.clone(), torch.zeros(P, dtype=F64), torch.zeros(P, dtype=F64)
    for t in range(len(PRESENCE)):
        settings: dict[str, Any] = {"n": N, "t": t}
        ((state, _),) = drive(strategy, CLIENTS, PRESENCE[: t + 1], state=state, **settings)
        bare = bare._replace(x=x.clone())
        if hasattr(bare, "inner"):
            bare = bare._replace(inner=bare.inner._replace(x=x.clone()))
        ((bare, _),) = drive(inner, CLIENTS, PRESENCE[: t + 1], state=bare, **settings)
        d = bare.x - x
        if kind is FedAvgM:
            m = 0.9 * m + d
            x = x + 0.2 * m
        else:
            beta1 = 0.0 if kind is FedAdagrad else 0.9
            m = beta1 * m + (1 - beta1) * d
            if kind is FedAdagrad:
                v = v + d * d
            elif kind is FedAdam:
                v = 0.99 * v + 0.01 * d * d
            else:
                v = torch.where(v > d * d, v - 0.01 * d * d, torch.where(v < d * d, v + 0.01 * d * d, v))
            x = x + 0.2 * m / (v.sqrt() + 1e-3)
        close(state.x, x, 1e-11)


@pytest.mark.parametrize("inner", [FedAvg(), MIFA(), SCAFFOLD(), FedAdam(), FedAvgM(MIFA())], ids=repr)
def test_a_schedule_around_a_strategy_is_its_own_rate_changed(inner: Any) -> None:
    """lr s_t in place of lr in every round, whatever is inside: stepped with a strategy built anew for each round."""
    schedule = Cosine(6, 0.1)
    found = run(ServerLR(inner, schedule))
    state = inner.init(X.clone(), uniform(N), 7)
    for t, model in enumerate(found):
        now = dataclasses.replace(inner, lr=inner.lr * schedule.factor(t))
        ((state, _),) = drive(now, CLIENTS, PRESENCE[: t + 1], state=state, n=N, t=t)
        close(model, state.x, 1e-12)


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvgM(MIFA()),
        FedAdagrad(FedAU()),
        FedYogi(SCAFFOLD()),
        ServerLR(FedAdam(FedAvgM(MIFA()), bias_correction=True), Step(every=2)),
    ],
    ids=repr,
)
def test_a_checkpoint_goes_on_bit_for_bit(strategy: Any, tmp_path: Path) -> None:
    whole = last(strategy, CLIENTS, PRESENCE, n=N, x=X.clone())
    half = last(strategy, CLIENTS, PRESENCE[:4], n=N, x=X.clone())
    save_checkpoint(tmp_path / "half.safetensors", half, 4)
    state, t, _ = load_checkpoint(tmp_path / "half.safetensors", strategy.init(X.clone(), uniform(N), 7))
    assert t == 4
    assert torch.equal(last(strategy, CLIENTS, PRESENCE, n=N, state=state, t=4).x, whole.x)


@pytest.mark.parametrize("kind", [*AROUND, ServerLR])
def test_gossip_has_no_server(kind: Any) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} wraps a strategy with a server, and DPSGD has none"):
        kind(DPSGD())


def test_settings_out_of_range_are_refused() -> None:
    for make, said in (
        (lambda: FedAvgM(momentum=1.0), "momentum must be in"),
        (lambda: FedYogi(beta2=1.0), "beta1 and beta2"),
        (lambda: FedAdagrad(tau=0.0), "tau positive"),
        (lambda: FedAdam(initial=-1.0), "initial must not be negative"),
    ):
        with pytest.raises(ValueError, match=said):
            make()

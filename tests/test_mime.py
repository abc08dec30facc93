"""Mime and MimeLite, with every base optimiser: twins, near misses, what they reduce to, and where they settle.

Through the real loop and both engines, with clients that are absent or do part of their work, as in test_drift.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import F64, Honest, bernoulli, close, everyone, last, models
from test_drift import (
    A4,
    B4,
    FIVE,
    LOCAL,
    LR,
    SCHEDULE,
    TASK,
    WHO,
    WORD,
    P,
    Rule,
    There,
    dropped,
    real,
    slope,
    twin,
    walk,
)
from torch import Tensor

import fedsim
from fedsim import LocalSGD, Strategy, experiment, simulate
from fedsim.compare import compare
from fedsim.engine import Loop, Stacked
from fedsim.lockstep import advance
from fedsim.simulation import begin, prepare, rounds
from fedsim.strategies import FedAdam, FedAvg, FedProx, Mime, MimeLite, Personal
from fedsim.strategy import Traffic, scrutinise
from fedsim.weights import Equal

with warnings.catch_warnings():
    # typer, which flwr imports, uses a name that click 8.5 has renamed
    warnings.filterwarnings("ignore", message="'click.utils", category=DeprecationWarning)
    from fedsim.flower import FlowerStrategy

BASES = ("momentum", "adam", "rmsprop", "adagrad")


def mime(base: str, corrected: bool, lr: float = 1.0, beta: float | None = None, miss: str = "") -> Rule:
    """The clients' optimiser and its statistics, written out."""
    beta = {"momentum": 0.9, "adam": 0.9}.get(base, 0.0) if beta is None else beta
    m, v = torch.zeros(P, dtype=F64), torch.full((P,), 0.1, dtype=F64)
    stale = torch.zeros(P, dtype=F64)

    def rule(x: Tensor, there: There) -> Tensor:
        nonlocal m, v, stale
        c = torch.stack([slope(i, x) for i, _ in there]).mean(0)
        used = stale if miss == "the mean of the round before" else c
        if miss == "statistics first":
            track(c)
        root = 1.0 if base == "momentum" else v.sqrt() + 1e-3

        def step(i: int) -> Callable[[Tensor], Tensor]:
            def force(y: Tensor) -> Tensor:
                g = slope(i, y)
                if corrected:
                    turn = -1.0 if miss == "sign" else 1.0
                    g = g + turn * (used - slope(i, x))
                if miss == "statistics move":
                    return ((1 - beta) * g + beta * m) / ((0.99 * v + 0.01 * g**2).sqrt() + 1e-3)
                return (1 - beta) * g / root + beta * m / (1.0 if miss == "momentum is not scaled" else root)

            return force

        moves = [walk(i, x, K, step(i))[0] for i, K in there]
        if miss != "statistics first":
            track(c)
        stale = c
        return x + lr * torch.stack(moves).mean(0)

    def track(c: Tensor) -> None:
        nonlocal m, v
        m = (1 - beta) * c + beta * m
        v = v + c**2 if base == "adagrad" else 0.99 * v + 0.01 * c**2

    return rule


PAIRS: dict[str, tuple[Strategy, Rule]] = {
    **{f"MimeLite {base}": (MimeLite(base=base), mime(base, False)) for base in BASES},  # type: ignore[arg-type]
    **{f"Mime {base}": (Mime(base=base), mime(base, True)) for base in BASES},  # type: ignore[arg-type]
    "Mime lr": (Mime(lr=0.5, momentum=0.4), mime("momentum", True, 0.5, 0.4)),
    "Mime SVRG": (Mime(momentum=0.0), mime("momentum", True, beta=0.0)),
}


@pytest.mark.parametrize("which", PAIRS)
def test_it_is_its_twin_through_the_real_engines(which: str) -> None:
    strategy, rule = PAIRS[which]
    wanted = twin(rule)
    assert wanted.isfinite().all()
    assert wanted.abs().max() > 0.1
    for engine in (Stacked(chunk=2), Loop()):
        close(real(strategy, engine), wanted, 1e-10)


@pytest.mark.parametrize(
    ("strategy", "miss"),
    [
        (Mime(), "the mean of the round before"),
        (Mime(), "sign"),
        (Mime(base="adam"), "statistics first"),
        (Mime(base="adam"), "statistics move"),
        (MimeLite(base="adam"), "statistics first"),
        (MimeLite(base="adam"), "statistics move"),
        (MimeLite(base="adam"), "momentum is not scaled"),
    ],
    ids=repr,
)
def test_it_is_not_its_near_misses(strategy: Any, miss: str) -> None:
    wrong = twin(mime(strategy.base, isinstance(strategy, Mime), miss=miss))
    assert not torch.allclose(real(strategy, Loop()), wrong, atol=1e-3)


# What it reduces to, and where it settles -----------------------------------------------------------------------------

ONE = LocalSGD(lr=0.05, steps=1, batch=None)


def run(strategy: Strategy, presence: Any, local: LocalSGD = FIVE, clients: Any = None) -> Tensor:
    return models(strategy, clients or Honest(A4, B4), presence, n=4, x=torch.zeros(1, dtype=F64), local=local)


@pytest.mark.parametrize("base", BASES)
def test_with_one_local_step_and_everybody_mime_is_mimelite(base: Any) -> None:
    """At x the correction is nothing but the mean: one step goes along ∇f."""
    close(run(Mime(base=base), everyone(4, 30), ONE), run(MimeLite(base=base), everyone(4, 30), ONE), 1e-12)


@pytest.mark.parametrize("base", BASES)
def test_clients_that_are_all_alike_need_no_correction(base: Any) -> None:
    alike, presence = Honest(A4[:1].expand(4, 1), B4[3:].expand(4, 1)), bernoulli(0.6, 4, 30, seed=2)
    close(run(Mime(base=base), presence, clients=alike), run(MimeLite(base=base), presence, clients=alike), 1e-12)


@pytest.mark.parametrize("kind", [MimeLite, Mime])
def test_adam_is_rmsprop_with_momentum(kind: Any) -> None:
    presence = bernoulli(0.6, 4, 30, seed=2)
    one, two = (run(kind(base=base, momentum=0.0), presence) for base in ("adam", "rmsprop"))
    close(one, two, 0.0)


def test_without_statistics_mimelite_is_fedavg_and_mime_is_not() -> None:
    presence = bernoulli(0.6, 4, 30, seed=2)
    plain = run(FedAvg(lr=0.7, weights=Equal()), presence)
    close(run(MimeLite(lr=0.7, momentum=0.0), presence), plain, 1e-12)
    assert not torch.allclose(run(Mime(lr=0.7, momentum=0.0), presence), plain, atol=1e-2)


def test_a_step_of_everybody_is_torchs_own_optimiser() -> None:
    """One exact step of all clients a round is SGD with momentum on the mean objective. v stands still: with β₂ = 0 it
    is the square of the last round's gradient."""

    def central(make: Callable[[list[Tensor]], Any], state: dict[str, Any], rounds: int) -> Tensor:
        x = torch.zeros(1, dtype=F64, requires_grad=True)
        optimiser = make([x])
        optimiser.state[x] = state
        out = []
        for _ in range(rounds):
            optimiser.zero_grad()
            (0.5 * A4 * (x - B4) ** 2).mean(0).sum().backward()
            optimiser.step()
            out.append(x.detach().clone())
        return torch.stack(out)

    buffer = {"momentum_buffer": torch.zeros(1, dtype=F64)}
    sgd = central(lambda x: torch.optim.SGD(x, lr=0.05, momentum=0.8, dampening=0.8), buffer, 40)
    for strategy in (Mime(momentum=0.8), MimeLite(momentum=0.8)):
        close(run(strategy, everyone(4, 40), ONE), sgd, 1e-12)
    first = (A4 * (0 - B4)).mean(0)
    got = run(Mime(base="rmsprop", beta2=0.0, tau=1e-9, initial=float(first**2)), everyone(4, 2), ONE)
    close(got[0], -0.05 * first / first.abs(), 1e-7)


@pytest.mark.parametrize("base", BASES)
def test_mime_settles_at_the_true_optimum_and_mimelite_does_not(base: Any) -> None:
    """Everybody there, five local steps: at ∇f = 0 the corrected steps stand still whatever the clients' own minima."""
    local = LocalSGD(lr=0.05 if base == "momentum" else 0.02, steps=5, batch=None)
    wide: dict[str, Any] = {} if base == "momentum" else {"initial": 1.0, "tau": 0.1}
    here: dict[str, Any] = {"n": 4, "local": local}
    x = torch.zeros(1, dtype=F64)
    mime = last(Mime(base=base, **wide), Honest(A4, B4), everyone(4, 1500), x=x.clone(), **here)
    assert mime.x.item() == pytest.approx(1.5, abs=1e-6)
    assert mime.c.abs().item() < 1e-5
    lite = last(MimeLite(base=base, **wide), Honest(A4, B4), everyone(4, 1500), x=x.clone(), **here)
    assert abs(lite.x.item() - 1.5) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_adams_steps_do_not_depend_on_the_losss_scale(scale: float) -> None:
    """With β₂ = 0 and τ = 0 the second round's move is that of the loss times anything."""
    strategy = MimeLite(base="rmsprop", beta2=0.0, tau=0.0, initial=scale**2)
    got = run(strategy, everyone(4, 2), ONE, Honest(scale * A4, B4))
    close(got, run(MimeLite(base="rmsprop", beta2=0.0, tau=0.0, initial=1.0), everyone(4, 2), ONE), 1e-9)


def test_minibatches_cancel_what_they_have_in_common() -> None:
    """At x the minibatch gradients cancel exactly: the first step of a turn goes along the whole gradient."""
    task = fedsim.federate("digits", clients=5, model="logistic", seed=1, dtype=F64)
    schedule = fedsim.participation.Everyone().draw(5, 1, seed=1)
    local = LocalSGD(lr=0.1, steps=1, batch=4)
    x = begin(prepare(FedAvg(), task, schedule), task, seed=3).x
    from fedsim.engine.loop import rows_of, slope_of

    whole = torch.stack([slope_of(task, x, rows_of(task, i), None)[0] for i in range(5)]).mean(0)
    for engine in (Loop(), Stacked(2)):
        (step,) = simulate(task, Mime(momentum=0.5), schedule, local, seed=3, engine=engine)
        close(step.model - x, -0.1 * 0.5 * whole, 1e-10)


# Two exchanges a round ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [Mime(), Mime(base="adam"), FedAdam(FedProx(Mime(), mu=0.1))], ids=repr)
def test_many_runs_beside_each_other_are_what_each_is_alone(strategy: Strategy) -> None:
    engine, alone = Stacked(2), [real(one, Stacked(2)) for one in (strategy, FedAvg(weights=Equal()))]
    runs = {}
    for name, one in (("a", strategy), ("b", FedAvg(weights=Equal()))):
        state = prepare(one, TASK, SCHEDULE).init(torch.zeros(P, dtype=F64), TASK.weights("uniform"), 7)
        runs[name] = rounds(TASK, one, SCHEDULE, LOCAL, state=state)
    got: dict[str, list[Tensor]] = {"a": [], "b": []}
    for _ in WHO:
        for name, turn in advance(runs, engine):
            assert not isinstance(turn.step, Exception), turn.step
            got[name].append(turn.step.model.clone())
    for name, wanted in zip(("a", "b"), alone, strict=True):
        close(torch.stack(got[name]), wanted, 0.0)


def test_who_is_dropped_is_not_asked_either() -> None:
    drop = FedProx(Mime(), mu=0.0, stragglers="drop")
    close(real(drop, Loop()), real(Mime(), Loop(), dropped()), 1e-12)
    assert not torch.allclose(real(drop, Loop()), real(Mime(), Loop()), atol=1e-3)


@pytest.mark.parametrize(
    ("strategy", "up", "down"),
    [
        (MimeLite(), 2, 2),
        (MimeLite(momentum=0.0), 2, 1),
        (MimeLite(base="adam"), 2, 3),
        (MimeLite(base="adagrad"), 2, 2),
        (Mime(), 2, 3),
        (Mime(base="adam"), 2, 4),
        (Mime(base="rmsprop"), 2, 3),
    ],
    ids=repr,
)
def test_traffic(strategy: Strategy, up: int, down: int) -> None:
    """x, m and v as far as there are any, and c; a move and a gradient."""
    for step in simulate(TASK, strategy, SCHEDULE, LOCAL, engine=Loop()):
        k = len(WHO[step.t])
        assert step.traffic == Traffic(k * up * WORD, k * down * WORD)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base": "sgd"}, "base must be one of momentum, adam, rmsprop, adagrad, got 'sgd'"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1"),
        ({"beta2": 0.9}, 'base = "momentum" knows no beta2: leave it out'),
        ({"tau": 0.1}, 'base = "momentum" knows no tau'),
        ({"base": "adagrad", "beta2": 0.9}, 'base = "adagrad" knows no beta2'),
        ({"base": "rmsprop", "momentum": 0.9}, 'base = "rmsprop" knows no momentum'),
        ({"base": "adam", "beta2": 1.0}, "beta2 must be at least 0 and below 1, got 1"),
        ({"base": "adam", "tau": -1.0}, "tau must be at least 0, got -1"),
        ({"base": "adam", "initial": float("nan")}, "initial must be at least 0, got nan"),
        ({"base": "adam", "initial": 0.0, "tau": 0.0}, "tau and initial must not both be 0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [Mime, MimeLite])
def test_settings_that_make_no_sense_are_refused(kind: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**settings)


@pytest.mark.parametrize("local", [{"clip": 0.1}, {"weight_decay": 0.1}], ids=repr)
def test_what_mime_cannot_correct_is_refused(local: dict[str, float]) -> None:
    how = LocalSGD(lr=LR, steps=2, **local)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"correction is of the data's gradients alone: .* or use MimeLite"):
        scrutinise(Mime(), how)
    scrutinise(MimeLite(), how)


def test_parts_that_clients_keep_are_not_for_mime() -> None:
    schedule = fedsim.participation.Everyone().draw(4, 1, seed=1)
    task = fedsim.federate("digits", clients=4, model="mlp", seed=1)
    local = LocalSGD(lr=0.1, steps=1, batch=4)
    for inner, what in ((Mime(), "a gradient of all"), (MimeLite(base="adam"), "a scale")):
        with pytest.raises(ValueError, match=f"{type(inner).__name__} tells clients {what}, and of the part"):
            next(iter(simulate(task, Personal(inner), schedule, local)))
    next(iter(simulate(task, Personal(MimeLite()), schedule, local)))
    next(iter(simulate(task, Personal(Mime(), keep=()), schedule, local)))


def test_a_flower_strategy_has_one_exchange_a_round() -> None:
    with pytest.raises(
        ValueError, match=r"Mime asks its clients before .* one exchange a round; run it with fedsim.flo"
    ):
        FlowerStrategy(FedAdam(Mime()))


def test_an_experiment_names_them() -> None:
    made = experiment.parse(
        {
            "task": {"clients": 5},
            "local": {"lr": 0.05, "steps": 3, "batch": 8},
            "participation": {"name": "bernoulli", "probabilities": 0.6},
            "strategy": [
                {"name": "Mime", "base": "adam", "tau": 0.01},
                {"name": "MimeLite", "base": "adagrad"},
                {"name": "FedAdam", "inner": {"name": "Mime"}},
            ],
            "run": {"rounds": 6, "eval-every": 3, "device": "cpu", "chunk": 2},
        }
    )
    again = experiment.parse(made.document())
    assert [entry.strategy for entry in again.entries] == [entry.strategy for entry in made.entries]
    events = list(compare(made))
    assert not [e for e in events if type(e).__name__ == "Failed"]
    finals = {e.strategy: e.final for e in events if type(e).__name__ == "Finished"}
    assert len(finals) == 3
    assert len({final["test_loss"] for final in finals.values()}) == 3

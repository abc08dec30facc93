"""Ordered learning: the order of a client's examples, how many of them a round uses, and which clients are asked."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import F64

from fedsim import LocalSGD, compare, curricula, experiment, federate, keyed, measure, simulate
from fedsim.checkpoint import load_checkpoint, save_checkpoint
from fedsim.curricula import EasyFirst, HardFirst, RandomOrder, arranged, paced
from fedsim.engine import Loop, Stacked
from fedsim.engine.loop import batch_rows
from fedsim.participation import Everyone, Schedule
from fedsim.simulation import begin
from fedsim.strategies import MIFA, ClientCurriculum, FedAvg
from fedsim.strategy import Work
from fedsim.task import Task

N = 5
QUICK: dict[str, Any] = {"rounds": 6, "start": 0.3, "steps": 20}


@pytest.fixture(scope="module")
def task() -> Task:
    return federate("digits", clients=N, model="logistic", seed=1, dtype=F64)


def mine(task: Task, client: int) -> torch.Tensor:
    return task.rows[task.firsts[client] : task.firsts[client] + task.sizes[client]]


# Orders --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "sign"), [(EasyFirst, 1), (HardFirst, -1)])
def test_examples_are_in_the_order_of_their_loss(task: Task, kind: Any, sign: int) -> None:
    rule = kind(**QUICK)
    found = arranged(task, rule, 3)
    x = curricula.reference(task, rule, 3)
    for client in range(N):
        assert sorted(mine(found, client).tolist()) == sorted(mine(task, client).tolist())
        rows = mine(found, client)
        losses = sign * task.losses(task.layout.views(x), task.inputs[rows], task.targets[rows])
        assert (losses.diff() >= -1e-9).all()
        assert losses[0] < losses[-1]
    assert found.curriculum == rule
    assert task.curriculum is None


def test_the_reference_model_is_trained_on_everybody_s_examples(task: Task) -> None:
    """Against torch's SGD on minibatches of all rows."""
    rule = EasyFirst(rounds=1, steps=4, lr=0.2, batch=16)
    x = task.fresh(keyed.seed(5, "curriculum"))
    params = {name: view.clone().requires_grad_() for name, view in task.layout.views(x).items()}
    sgd = torch.optim.SGD(list(params.values()), lr=0.2)
    key = keyed.fold(5, "curriculum", torch.tensor(0))
    for s in range(4):
        # a task of one client with all rows; its largest client is all of them
        position = torch.arange(16 * s, 16 * s + 16)
        order = keyed.fold(key, "epoch", 0)
        here = task.rows[keyed.shuffled(order, position, torch.full_like(order, len(task.rows)))]
        sgd.zero_grad()
        task.losses(params, task.inputs[here], task.targets[here]).mean().backward()
        sgd.step()
    torch.testing.assert_close(curricula.reference(task, rule, 5), task.layout.flat(params).detach())
    before, after = (measure.example_losses(task, y, task.rows).mean() for y in (x, curricula.reference(task, rule, 5)))
    assert after < before


def test_a_random_order_is_drawn_from_the_seed_and_needs_no_model(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curricula, "reference", None)
    rule = RandomOrder(**QUICK)
    one, two = arranged(task, rule, 1), arranged(task, rule, 2)
    assert not torch.equal(one.rows, two.rows)
    assert arranged(task, rule, 1) is one  # found once
    for client in range(N):
        assert sorted(mine(one, client).tolist()) == sorted(mine(task, client).tolist())


def test_a_reference_that_diverges_is_refused(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curricula, "reference", lambda task, rule, seed: task.fresh(0) * math.nan)
    with pytest.raises(ValueError, match="reference model diverged: lower its lr"):
        arranged(task, EasyFirst(rounds=2), 0)
    with pytest.raises(ValueError, match="lr must be above 0"):
        EasyFirst(lr=0.0)


# Pacing --------------------------------------------------------------------------------------------------------------

FORMULAS: dict[str, Any] = {
    "linear": lambda u: u,
    "quadratic": lambda u: u * u,
    "root": lambda u: u**0.5,
    "exponential": lambda u: (math.exp(10 * u) - 1) / (math.exp(10) - 1),
    "logarithmic": lambda u: 1 + 0.1 * math.log(u + math.exp(-10)),
    "step": lambda u: math.floor(u),
}


@pytest.mark.parametrize("pacing", FORMULAS)
def test_pacing_goes_from_the_start_to_everything(pacing: Any) -> None:
    assert paced(pacing, 0.0) == pytest.approx(0.0, abs=1e-12)
    assert paced(pacing, 1.0) == paced(pacing, 7.0) == 1.0
    for u in (0.1, 0.35, 0.8):
        assert paced(pacing, u) == pytest.approx(FORMULAS[pacing](u))
    rule = EasyFirst(rounds=10, start=0.25, pacing=pacing)
    sizes = [rule.used(40, t) for t in range(15)]
    assert sizes[0] == 10
    assert sizes[10:] == [40] * 5
    assert sizes == sorted(sizes)
    assert EasyFirst(rounds=10, start=0.0).used(40, 0) == 1
    assert rule.used(1, 0) == 1


def test_a_step_of_the_local_training_counts_the_examples_in_use() -> None:
    local = LocalSGD(lr=0.1, epochs=2, batch=10, curriculum=EasyFirst(rounds=4, start=0.25))
    assert [local.used(40, t) for t in range(5)] == [10, 18, 25, 33, 40]
    assert [local.count(local.used(40, t)) for t in range(5)] == [2, 4, 6, 8, 8]


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [Loop(), Stacked(3)], ids=["loop", "stacked"])
@pytest.mark.parametrize("turn", [{"steps": 5}, {"epochs": 1}], ids=["steps", "epochs"])
def test_a_round_trains_on_the_first_examples_alone(task: Task, engine: Any, turn: Any) -> None:
    """Against torch's SGD on the first g(t) rows; and the others may hold anything."""
    rule = HardFirst(**QUICK)
    local = LocalSGD(lr=0.1, batch=8, curriculum=rule, **turn)
    here, t = arranged(task, rule, 3), 2
    who = torch.arange(N)
    keys, start = keyed.fold(9, who), task.fresh(1).expand(N, -1)
    answer = engine(here, who, Work(start), keys, local, t)
    for i in range(N):
        first = mine(here, i)[: local.used(task.sizes[i], t)]
        assert len(first) < task.sizes[i]
        params = {name: view.clone().requires_grad_() for name, view in task.layout.views(start[0]).items()}
        sgd = torch.optim.SGD(list(params.values()), lr=0.1)
        for s in range(local.count(len(first))):
            rows = batch_rows(here, local, first, keys[i], s)
            sgd.zero_grad()
            task.losses(params, task.inputs[rows], task.targets[rows]).mean().backward()
            sgd.step()
        moved = task.layout.flat(params).detach() - start[0]
        torch.testing.assert_close(answer.delta[i], moved, rtol=1e-9, atol=1e-11)


def test_without_a_curriculum_and_after_it_all_examples_are_used(task: Task) -> None:
    """From `rounds` on a client's turn is that of the same task without pacing, bit for bit."""
    rule = EasyFirst(**QUICK)
    here = arranged(task, rule, 3)
    who, start = torch.arange(N), task.fresh(1).expand(N, -1)
    keys = keyed.fold(9, who)
    local = LocalSGD(lr=0.1, epochs=1, batch=8, curriculum=rule)

    plain = dataclasses.replace(local, curriculum=None)
    for engine in (Loop(), Stacked(3)):
        late, early = (engine(here, who, Work(start), keys, local, t) for t in (6, 0))
        full = engine(here, who, Work(start), keys, plain, 6)
        assert torch.equal(late.delta, full.delta)
        assert not torch.equal(early.delta, full.delta)
        assert late.span is not None
        assert early.span is not None
        assert (early.span < late.span).all()


def test_a_task_in_another_order_is_refused(task: Task) -> None:
    local = LocalSGD(lr=0.1, steps=1, curriculum=EasyFirst(**QUICK))
    who = torch.arange(2)
    for engine in (Loop(), Stacked(2)):
        with pytest.raises(ValueError, match=r"not in its order; give it curricula.arranged"):
            engine(task, who, Work(task.fresh(0).expand(2, -1)), keyed.fold(0, who), local)


def test_a_run_resumes_bit_for_bit(task: Task, tmp_path: Path) -> None:
    local = LocalSGD(lr=0.1, epochs=1, batch=8, curriculum=EasyFirst(**QUICK))
    schedule = Everyone().draw(N, 5, seed=0)
    strategy = ClientCurriculum(MIFA(), rounds=5)
    run: dict[str, Any] = {"seed": 3, "engine": Stacked(2)}
    for step in simulate(task, strategy, schedule, local, **run):
        if step.t == 1:
            save_checkpoint(tmp_path / "c.safetensors", step.state, 2)
    whole = step.model
    state, t, _ = load_checkpoint(tmp_path / "c.safetensors", begin(strategy, task, seed=3))
    *_, last = simulate(task, strategy, schedule, local, state=state, t=t, **run)
    assert torch.equal(last.model, whole)


# Clients -------------------------------------------------------------------------------------------------------------


def asked(strategy: Any, losses: list[float], rounds: int, chosen: Any, heard: bool = True) -> list[list[int]]:
    """Whom a strategy asks of ten clients whose losses stand still."""
    p = torch.full((10,), 0.1, dtype=F64)
    state = strategy.init(torch.zeros(2, dtype=F64), p, 5)
    if heard:
        state = state._replace(loss=torch.tensor(losses, dtype=F64), heard=torch.ones(10, dtype=torch.bool))
    out = []
    for t in range(rounds):
        who = strategy.pick(state._replace(t=t), torch.arange(10), torch.tensor(chosen(t)))
        assert len(set(who.tolist())) == len(who)
        out.append(who.tolist())
    return out


def test_the_easiest_come_first_and_then_all() -> None:
    losses = [9.0, 1, 8, 2, 7, 3, 6, 4, 5, 0]
    easy = ClientCurriculum(rounds=10, start=0.3)
    found = asked(easy, losses, 12, lambda t: [0, 2, 4])
    assert found[0] == [1, 3, 9]  # g(0) = 3
    for t, who in enumerate(found[:10]):
        share = math.ceil((0.3 + 0.7 * t / 10) * 10 - 1e-9)
        assert all(sorted(losses).index(losses[i]) < share for i in who)
        assert {i for i in (0, 2, 4) if sorted(losses).index(losses[i]) < share} <= set(who)  # the schedule's own
        assert len(who) == 3
    assert found[10:] == [[0, 2, 4]] * 2
    hard = asked(ClientCurriculum(order="hard-first", rounds=10, start=0.3), losses, 1, lambda t: [0, 1, 3])
    assert hard == [[0, 2, 4]]


def test_who_was_never_heard_comes_first() -> None:
    for order in ("easy-first", "hard-first"):
        strategy = ClientCurriculum(order=order, rounds=10, start=0.2)  # type: ignore[arg-type]
        state = strategy.init(torch.zeros(2), torch.full((10,), 0.1), 0)
        heard = torch.tensor([True] * 8 + [False] * 2)
        state = state._replace(heard=heard, loss=torch.arange(10.0, dtype=F64))
        assert strategy.pick(state, torch.arange(10), torch.tensor([3, 4])).tolist() == [8, 9]


def test_a_random_order_of_clients_stands_still() -> None:
    strategy = ClientCurriculum(order="random", rounds=100, start=0.3)
    found = asked(strategy, [0.0] * 10, 2, lambda t: [0, 1, 2])
    assert found[0] == asked(strategy, [float(i) for i in range(10)], 1, lambda t: [5, 6, 7])[0]
    assert len(set(found[1]) & set(found[0])) >= 2


def test_it_learns_the_losses_from_the_rounds(task: Task) -> None:
    schedule = Schedule.from_matrix(torch.ones(4, N, dtype=torch.bool).numpy())
    strategy = ClientCurriculum(FedAvg(), rounds=100, start=0.4)
    counts = torch.zeros(N)
    for step in simulate(task, strategy, schedule, LocalSGD(lr=0.1, steps=2, batch=8), seed=1, engine=Stacked(2)):
        counts[step.round.who] += 1
        assert torch.equal(step.state.loss[step.round.who], step.round.loss.double())
        assert len(step.round.who) <= math.ceil((0.4 + 0.006 * step.t) * N)
    assert (counts > 0).all()  # those never heard first, so all were


# The file ------------------------------------------------------------------------------------------------------------


def tables(**curriculum: Any) -> dict[str, Any]:
    return {
        "task": {"clients": 4, "model": "logistic"},
        "local": {"lr": 0.1, "steps": 2, "batch": 8, "curriculum": curriculum},
        "run": {"rounds": 3, "device": "cpu", "chunk": 2},
        "strategy": [
            {"name": "FedAvg"},
            {"name": "FedAvg", "label": "hard", "local": {"curriculum": {"name": "anti-curriculum", "steps": 5}}},
            {"name": "ClientCurriculum", "rounds": 2},
            {"name": "FedAvg", "label": "all at once", "local": {"curriculum": math.inf}},
        ],
    }


def test_an_experiment_file_spells_it_and_every_entry_has_its_own() -> None:
    made = experiment.parse(tables(name="curriculum", rounds=3, pacing="root", steps=5))
    assert made.local.curriculum == EasyFirst(rounds=3, pacing="root", steps=5)
    assert made.entries[1].local.curriculum == HardFirst(steps=5)
    assert made.entries[3].local.curriculum is None
    again = experiment.parse(made.document())
    assert [entry.local for entry in again.entries] == [entry.local for entry in made.entries]
    events = list(compare.compare(made))
    finals = {event.strategy: event.final for event in events if type(event).__name__ == "Finished"}
    assert set(finals) == {"FedAvg", "hard", "ClientCurriculum", "all at once"}
    assert len({finals[label]["test_loss"] for label in ("FedAvg", "hard", "all at once")}) == 3
    alone = list(compare.compare(experiment.parse(tables(name="curriculum", rounds=3, pacing="root", steps=5)
                                                  | {"strategy": [{"name": "FedAvg"}]})))  # fmt: skip
    (final,) = [event.final for event in alone if type(event).__name__ == "Finished"]
    assert final == finals["FedAvg"]  # whoever runs beside it


@pytest.mark.parametrize(
    ("curriculum", "said"),
    [
        ({"name": "curiculum"}, "did you mean 'curriculum'"),
        ({"name": "curriculum", "pace": "root"}, 'unknown key "pace"'),
        ({"name": "curriculum", "pacing": "fast"}, 'pacing must be "linear" or'),
        ({"name": "random", "rounds": 0}, "rounds must be a whole number from 1"),
        ({"name": "random", "start": 2.0}, "start must be between 0 and 1"),
    ],
)
def test_mistakes_are_named(curriculum: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        experiment.parse(tables(**curriculum))

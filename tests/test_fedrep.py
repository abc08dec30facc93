"""FedRep: heads first, then the representation, held against torch; its promise on linear representations."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import F64, close
from test_personal import ENGINE, N, play
from torch import Tensor, nn

from fedsim import LocalSGD, experiment, federate, keyed, make_task, parts, simulate
from fedsim.compare import compare
from fedsim.engine import Loop, Stacked
from fedsim.engine.loop import batch_rows, rows_of
from fedsim.participation import Bernoulli, Everyone, PartialWork
from fedsim.simulation import begin, prepare
from fedsim.strategies import MIFA, SCAFFOLD, FedAdam, FedAvg, FedProx, FedRep, Mime, Personal
from fedsim.strategy import CombinationWarning, Strategy, scrutinise
from fedsim.task import Task


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(20, 6), nn.Tanh(), nn.Linear(6, 10))


@pytest.fixture(scope="module")
def task() -> Task:
    return federate("clusters", clients=N, model=network, seed=1, dtype=F64)


@pytest.fixture(scope="module")
def schedule() -> Any:
    return Bernoulli(0.4).draw(N, 5, seed=4)


LOCALS = [
    LocalSGD(lr=0.1, steps=6, batch=8),
    LocalSGD(lr=0.1, epochs=4, batch=32, momentum=0.5, weight_decay=0.01),
]


def by_hand(task: Task, schedule: Any, local: LocalSGD, head: float, miss: str = "") -> tuple[Tensor, Tensor]:
    """The shared body and the heads [N, P_l] in the end, with torch.optim.SGD and requires_grad."""
    split = parts.split(task.layout, ("head",), task.device)
    x = begin(prepare(FedAvg(), task, schedule), task, seed=3).x
    p, body, heads = task.weights(), x[split.others], x[split.meant].repeat(N, 1)
    for t in range(len(schedule)):
        who = schedule[t].chosen
        bodies = []
        for i in who.tolist():
            params = {
                name: view.clone().requires_grad_()
                for name, view in task.layout.views(split.join(body, heads[i])).items()
            }
            sgd = torch.optim.SGD(params.values(), local.lr, local.momentum, weight_decay=local.weight_decay)
            key, steps = keyed.fold(3, "client", t, torch.tensor([i]))[0], local.count(task.sizes[i])
            first = int(head * steps + 1e-6)
            for s in range(steps):
                heads_turn = (s < first) != (miss == "the other order")
                for name, value in params.items():
                    value.requires_grad_(name.startswith("3.") == heads_turn or miss == "both at once")
                    value.grad = None
                rows = batch_rows(task, local, rows_of(task, i), key, s)
                task.losses(params, task.inputs[rows], task.targets[rows]).mean().backward()
                sgd.step()
            end = task.layout.flat({name: value.detach() for name, value in params.items()})
            bodies.append(end[split.others])
            if miss != "heads forgotten":
                heads[i] = end[split.meant]
        if len(who):
            body = (p[who] / p[who].sum()) @ torch.stack(bodies)
    return body, heads


@pytest.mark.parametrize("engine", [Stacked(3), Loop()], ids=["stacked", "loop"])
@pytest.mark.parametrize("local", LOCALS, ids=["steps", "epochs, heavy"])
@pytest.mark.parametrize("head", [0.5, 10 / 11])
def test_it_is_two_phases_of_torchs_sgd(task: Task, schedule: Any, local: LocalSGD, engine: Any, head: float) -> None:
    ready = prepare(FedRep(head=head), task, schedule)
    *_, step = simulate(task, ready, schedule, local, seed=3, engine=engine)
    split = parts.split(task.layout, ("head",), task.device)
    own = ready.own(step.state, torch.arange(N))
    body, heads = by_hand(task, schedule, local, head)
    torch.testing.assert_close(own[:, split.meant], heads, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(own[0, split.others], body, rtol=1e-9, atol=1e-10)


def test_its_near_misses_are_something_else(task: Task, schedule: Any) -> None:
    ready = prepare(FedRep(head=0.5), task, schedule)
    *_, step = simulate(task, ready, schedule, LOCALS[0], seed=3, engine=Loop())
    split = parts.split(task.layout, ("head",), task.device)
    own = ready.own(step.state, torch.arange(N))
    for miss in ("both at once", "the other order", "heads forgotten"):
        wrong = by_hand(task, schedule, LOCALS[0], 0.5, miss)
        assert not torch.allclose(own[0, split.others], wrong[0], atol=1e-4), miss
        assert not torch.allclose(own[:, split.meant], wrong[1], atol=1e-4), miss


# The paper's promise --------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """⟨w, B z⟩, and its square error on an example (z, y) as the output."""

    def __init__(self) -> None:
        super().__init__()
        self.B = nn.Parameter(torch.zeros(K, D, dtype=F64))
        self.w = nn.Parameter(torch.zeros(K, dtype=F64))

    def forward(self, inputs: Tensor) -> Tensor:
        z, y = inputs[:, :-1], inputs[:, -1]
        return 0.5 * (z @ self.B.T @ self.w - y) ** 2


K, D, CLIENTS, EACH = 2, 8, 16, 30


def subspaces() -> tuple[Task, Tensor]:
    """Clients who share a representation of K of D dimensions [K, D] and have heads of their own; no noise."""
    g = torch.Generator().manual_seed(0)
    truth = torch.linalg.qr(torch.randn(D, K, dtype=F64, generator=g)).Q.T
    heads = torch.randn(CLIENTS, K, dtype=F64, generator=g)
    z = torch.randn(CLIENTS * EACH, D, dtype=F64, generator=g)
    y = (z @ truth.T * heads.repeat_interleave(EACH, 0)).sum(1)
    inputs, targets = torch.cat([z, y[:, None]], 1), torch.zeros(len(z), dtype=torch.int64)
    data: Any = SimpleNamespace(
        name="subspaces", inputs=inputs, targets=targets, test_inputs=inputs, test_targets=targets, classes=0,
        mean=None, std=None,
    )  # fmt: skip
    size = torch.full((CLIENTS,), EACH)
    split: Any = SimpleNamespace(
        rows=torch.arange(len(z)), first=EACH * torch.arange(CLIENTS), size=size, targets=None, moved=0
    )
    return make_task(data, split, Linear(), dtype=F64), truth


def distances(strategy: Strategy, rounds: int, local: LocalSGD) -> list[float]:
    """The sine of the largest angle between the shared representation and the true one, after every round."""
    world, truth = subspaces()
    schedule = Everyone().draw(CLIENTS, rounds, 1)
    ready = prepare(strategy, world, schedule)
    start = torch.randn(world.layout.size, dtype=F64, generator=torch.Generator().manual_seed(3)) * 0.5
    state = ready.init(start, world.weights(), 1)
    found = []
    for step in simulate(world, ready, schedule, local, state=state, engine=Stacked(CLIENTS)):
        B = world.layout.views(step.model)["B"]
        basis = torch.linalg.qr(B.T).Q
        found.append(float(torch.linalg.matrix_norm(truth @ (torch.eye(D, dtype=F64) - basis @ basis.T), 2)))
    return found


def test_the_true_subspace_is_found_geometrically() -> None:
    """Heads fitted (many steps), then a few steps of the representation: the distance falls as ρ^t as far as one likes.
    One common model, which is all that FedAvg has, stops on the way."""
    local = LocalSGD(lr=0.3, steps=40, batch=None)
    fedrep = distances(FedRep(Personal(keep=("w",)), head=35 / 40), 60, local)
    assert fedrep[0] > 0.5
    assert fedrep[-1] < 1e-4
    factors = [b / a for a, b in itertools.pairwise(fedrep[20:])]
    assert max(factors) < 0.9
    fedavg = distances(FedAvg(), 60, local)
    assert fedavg[-1] > 0.9 * fedavg[-10] > 20 * fedrep[-1]


# What it reduces to ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [FedAvg(), MIFA(), SCAFFOLD(), FedAdam()], ids=repr)
def test_with_nothing_kept_it_is_the_strategy_inside(task: Task, schedule: Any, inner: Strategy) -> None:
    _, ours = play(task, schedule, FedRep(Personal(inner, keep=()), head=0.0))
    _, theirs = play(task, schedule, inner)
    for (a, own, bits, _), (b, _, other, _) in zip(ours, theirs, strict=True):
        close(a, b, 1e-9)
        assert bits == other
        close(own, b.expand(N, -1), 1e-9)


def test_without_a_heads_turn_heads_stay_as_they_began(task: Task, schedule: Any) -> None:
    (_, state), _ = play(task, schedule, FedRep(head=0.0))
    split = parts.split(task.layout, ("head",), task.device)
    first = begin(prepare(FedAvg(), task, schedule), task, seed=3).x[split.meant]
    seen = state.inner.h.seen().nonzero()[:, 0]
    assert len(seen) > 2
    assert torch.equal(state.inner.h[seen], first.expand(len(seen), -1))


def test_what_is_sent_is_personals(task: Task, schedule: Any) -> None:
    _, ours = play(task, schedule, FedRep())
    _, theirs = play(task, schedule, Personal())
    assert [step[2] for step in ours] == [step[2] for step in theirs]


# Beside others --------------------------------------------------------------------------------------------------------


def test_control_variates_are_the_representations_mean_gradients(task: Task, schedule: Any) -> None:
    """SCAFFOLD inside hears of the body's steps alone: its span is theirs."""
    local = LocalSGD(lr=0.1, steps=5, batch=8)
    strategy = prepare(FedRep(Personal(SCAFFOLD()), head=0.6), task, schedule)
    split = parts.split(task.layout, ("head",), task.device)
    for step in simulate(task, strategy, schedule, local, seed=3, engine=ENGINE):
        who = step.round.who
        if len(who):
            torch.testing.assert_close(step.round.span, torch.full((len(who),), 0.2, dtype=F64))
            c = -step.round.delta[:, split.others] / 0.2  # nobody's c before: the mean of raw gradients
            torch.testing.assert_close(step.state.inner.inner.c[who], c, rtol=1e-9, atol=1e-12)
            break


def test_partial_work_is_partial_in_both() -> None:
    """A client that does half of its eight steps does half of six with its head and half of two with its body."""
    world = federate("digits", clients=6, model="mlp", seed=1, dtype=F64)
    half = PartialWork(Everyone(), stragglers=1.0, low=0.5, high=0.5).draw(6, 1, 3)
    whole = Everyone().draw(6, 1, 3)
    steps = []
    for count, plan in ((8, half), (4, whole)):
        strategy = prepare(FedRep(head=0.75), world, plan)
        local = LocalSGD(lr=0.1, steps=count, batch=8)
        (step,) = simulate(world, strategy, plan, local, seed=3, engine=ENGINE)
        steps.append(step)
    assert torch.equal(steps[0].round.delta, steps[1].round.delta)
    torch.testing.assert_close(steps[0].round.span, torch.full((6,), 0.1, dtype=F64))


def test_an_optimiser_outside_is_one_inside(task: Task, schedule: Any) -> None:
    (a, one), _ = play(task, schedule, FedAdam(FedRep(head=0.5)))
    (b, two), _ = play(task, schedule, FedRep(Personal(FedAdam()), head=0.5))
    who = torch.arange(N)
    assert torch.equal(a.own(one, who), b.own(two, who))
    assert a.personal


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FedRep(FedAvg()), 'put Personal inside, inner = "Personal"'),
        (lambda: FedRep(FedRep()), 'put Personal inside, inner = "Personal"'),
        (lambda: FedRep(head=1.0), "head must be at least 0 and below 1"),
        (lambda: FedRep(head=float("nan")), "head must be at least 0 and below 1"),
    ],
)
def test_mistakes_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_combinations_without_a_meaning_are_refused_or_warned_of(task: Task, schedule: Any) -> None:
    with pytest.warns(CombinationWarning, match=r"0.909 of 1 local steps is none, so heads stay"):
        scrutinise(FedAdam(FedRep()), LocalSGD(steps=1))
    scrutinise(FedRep(), LocalSGD(steps=2))
    scrutinise(FedRep(head=0.0), LocalSGD(steps=1))
    with pytest.raises(ValueError, match="Mime tells clients a gradient of all"):
        play(task, schedule, FedRep(Personal(Mime())))
    with pytest.raises(ValueError, match="Personal around Personal: name all that clients keep in one"):
        Personal(FedAdam(FedRep()))


def test_an_experiment_names_it() -> None:
    document = {
        "task": {"clients": 5, "holdout": 0.25},
        "local": {"lr": 0.1, "steps": 5, "batch": 8},
        "participation": {"name": "bernoulli", "probabilities": 0.7},
        "strategy": [
            {"name": "FedRep", "head": 0.8},
            {"name": "FedRep", "label": "norms", "inner": {"name": "Personal", "inner": "MIFA", "keep": ["*.bias"]}},
            {"name": "Personal"},
            {"name": "FedProx", "label": "pulled", "inner": {"name": "FedRep", "head": 0.8}},
        ],
        "run": {"rounds": 6, "eval-every": 3, "device": "cpu", "chunk": 2},
    }
    made = experiment.parse(copy.deepcopy(document))
    assert isinstance(made.entries[3].strategy, FedProx)
    assert experiment.parse(made.document()).entries[1].strategy == made.entries[1].strategy
    events = list(compare(made))
    assert not [e for e in events if type(e).__name__ == "Failed"]
    finals = {e.strategy: e.final for e in events if type(e).__name__ == "Finished"}
    assert len({final["personal_loss"] for final in finals.values()}) == 4
    assert finals["FedRep"]["bytes_up"] == finals["Personal"]["bytes_up"]

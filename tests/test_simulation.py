"""The loop: what reaches a strategy, what a run depends on, and that a resumed run is the uninterrupted one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim import LocalSGD, Loop, Stacked, federate, measure, simulate, strategies, weights
from fedsim.checkpoint import load_checkpoint, save_checkpoint
from fedsim.data.partition import Dirichlet
from fedsim.mixing import Complete, Metropolis, Neighbour
from fedsim.participation import Bernoulli, Everyone, Schedule, Uniform
from fedsim.simulation import begin, prepare
from fedsim.strategies import (
    D2,
    DPSGD,
    DeltaSum,
    FedAdam,
    FedAU,
    FedAvg,
    FedProx,
    FedStale,
    GainCorrection,
    RelaySGD,
    VarianceCorrection,
)
from fedsim.strategy import Round, Strategy, Work, complete
from fedsim.task import Task

LOCAL = LocalSGD(lr=0.1, steps=3, batch=8)
GRAPH = nx.random_regular_graph(4, 20, seed=1)


@pytest.fixture(scope="module")
def task() -> Task:
    return federate("digits", clients=20, partition=Dirichlet(alpha=0.3), model="logistic", seed=1)


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    """Twelve rounds with about four of twenty, and one in which nobody is there."""
    matrix = Bernoulli(0.2).draw(20, 12, seed=3).matrix().clone()
    matrix[5] = False
    return Schedule.from_matrix(matrix, probabilities=np.full(20, 0.2))


def run(task: Task, strategy: Strategy, schedule: Schedule, local: LocalSGD = LOCAL, **settings: Any) -> Tensor:
    settings.setdefault("engine", Stacked(4))
    model = None
    for step in simulate(task, strategy, schedule, local, **settings):
        model = step.model
    assert model is not None
    return model.clone()


EVERY: dict[str, Strategy] = {
    **{name: complete(cls(), graph=GRAPH) for name, cls in strategies.NAMES.items() if name != "VarianceCorrection"},
    "D2": D2(mixing=Complete(20)),  # on that graph it may diverge, and says so
    "RelaySGD": RelaySGD(nx.balanced_tree(2, 4).subgraph(range(20)).copy()),
    "DeltaSum": DeltaSum(Neighbour(GRAPH), scale=0.25),
    "GainCorrection": GainCorrection(DPSGD(mixing=Metropolis(GRAPH)), gain=1.5, warmup=2),
    "VarianceCorrection": VarianceCorrection(
        inner=DPSGD(mixing=Neighbour(GRAPH, self_weight=0.5), order="atc"), preset="flocky"
    ),
    "FedAvg, known": FedAvg(weights=weights.Known()),
    "a nest": FedAdam(inner=FedProx(inner=FedStale(beta=0.3)), lr=0.01),
}


@dataclass(frozen=True)
class Listening(FedAvg):
    """FedAvg that hands every round to a function."""

    hear: Any = None

    def step(self, s: Any, r: Round) -> Any:
        self.hear(r)
        return FedAvg.step(self, s, r)


def test_what_a_round_tells(task: Task, schedule: Schedule) -> None:
    rounds: list[Round] = []
    run(task, Listening(hear=rounds.append), schedule)
    assert [r.t for r in rounds] == list(range(12))
    for t, r in enumerate(rounds):
        row = schedule[t]
        assert torch.equal(r.who, row.chosen)
        assert r.available is not None
        assert torch.equal(r.available, row.available)
        assert r.start.shape == r.delta.shape == (len(r.who), task.layout.size)
        assert r.span is not None
        assert torch.allclose(r.span, torch.full((len(r.who),), 0.3))
        assert r.loss.shape == (len(r.who),)
        assert r.lr == 0.1
    assert not len(rounds[5].who)


def test_who_drops_out_is_absent_and_partial_work_is_partial(task: Task) -> None:
    matrix = torch.ones(2, 20, dtype=torch.bool)
    effort = torch.ones(2, 20)
    effort[0, ::2] = 0.0
    effort[1, 3] = 0.34
    rounds: list[Round] = []
    run(task, Listening(hear=rounds.append), Schedule.from_matrix(matrix, effort))
    assert rounds[0].who.tolist() == list(range(1, 20, 2))
    assert rounds[1].span is not None
    assert rounds[1].span[2:5].tolist() == pytest.approx([0.3, 0.2, 0.3])


def test_a_strategy_may_pick_among_the_available(task: Task) -> None:
    @dataclass(frozen=True)
    class Greedy(Listening):
        def pick(self, state: Any, available: Tensor, chosen: Tensor) -> Tensor:
            return available[-3:]

    rounds: list[Round] = []
    run(task, Greedy(hear=rounds.append), Uniform(5).draw(20, 3, seed=1))
    assert [r.who.tolist() for r in rounds] == [[17, 18, 19]] * 3


def test_whoever_does_not_answer_was_absent(task: Task) -> None:
    def lossy(
        task: Task, who: Tensor, work: Work, keys: Tensor, local: LocalSGD, t: int = 0, effort: Any = None
    ) -> Any:
        full = Loop()(task, who, work, keys, local, t, effort)
        kept = who % 3 != 0
        assert full.span is not None
        return full._replace(who=who[kept], delta=full.delta[kept], span=full.span[kept], loss=full.loss[kept])

    rounds: list[Round] = []
    lossless = run(task, Listening(hear=rounds.append), Everyone().draw(20, 2, seed=1), engine=lossy)
    assert rounds[0].who.tolist() == [i for i in range(20) if i % 3]
    assert len(rounds[0].start) == len(rounds[0].who)
    matrix = torch.arange(20).remainder(3).ne(0).expand(2, -1)
    torch.testing.assert_close(lossless, run(task, FedAvg(), Schedule.from_matrix(matrix), engine=Loop()))


@pytest.mark.parametrize("name", EVERY)
def test_same_seed_same_numbers(name: str, task: Task, schedule: Schedule) -> None:
    """Bit for bit with the same chunk; to rounding with another chunk or the loop engine; another seed, another run."""
    first = run(task, EVERY[name], schedule, seed=5)
    assert torch.equal(first, run(task, EVERY[name], schedule, seed=5))
    assert not torch.equal(first, run(task, EVERY[name], schedule, seed=6))
    for engine in (Stacked(7), Loop()):
        other = run(task, EVERY[name], schedule, seed=5, engine=engine)
        # FedAdam divides by the square root of its second moment, which magnifies rounding near 0
        torch.testing.assert_close(first, other, rtol=1e-4, atol=2e-5 if "Adam" in name or name == "a nest" else 2e-6)


@pytest.mark.parametrize("name", EVERY)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, task: Task, schedule: Schedule, tmp_path: Path) -> None:
    strategy = EVERY[name]
    local = replace(
        LOCAL, momentum=0.5 if name in ("BufferedGossip", "DPSGD", "DeltaSum", "VarianceCorrection") else 0.0
    )
    whole = run(task, strategy, schedule, local, seed=5)
    for at in (3, 6):  # after rounds with clients, and right after the empty one
        for step in simulate(task, strategy, schedule, local, seed=5, engine=Stacked(4)):
            if step.t == at - 1:
                save_checkpoint(tmp_path / "run.safetensors", step.state, at, {"seed": 5})
                break
        fresh = begin(prepare(strategy, task, schedule), task, seed=5)
        state, t, meta = load_checkpoint(tmp_path / "run.safetensors", fresh)
        assert (t, meta) == (at, {"seed": 5})
        assert torch.equal(whole, run(task, strategy, schedule, local, seed=5, state=state, t=t))


def test_nodes_start_alike_or_each_with_its_own_model(task: Task) -> None:
    strategy = DPSGD(mixing=Metropolis(GRAPH))
    shared = begin(strategy, task, seed=2).x
    own = begin(strategy, task, seed=2, init="independent").x
    assert shared.shape == own.shape == (20, task.layout.size)
    assert all(torch.equal(row, shared[0]) for row in shared)
    assert len({tuple(row.tolist()) for row in own}) == 20
    with pytest.raises(ValueError, match="init must be"):
        begin(strategy, task, init="random")


def test_gossip_traffic_counts_models_sent(task: Task) -> None:
    bits = task.layout.size * 32
    for present, models in ((20, 80), (1, 0)):
        matrix = torch.arange(20)[None] < present
        step = next(iter(simulate(task, DPSGD(mixing=Metropolis(GRAPH)), Schedule.from_matrix(matrix), LOCAL)))
        assert step.traffic.up == models * bits
    step = next(iter(simulate(task, FedAvg(), Uniform(5).draw(20, 1, seed=1), LOCAL)))
    assert step.traffic == (5 * bits, 5 * bits)
    step = next(iter(simulate(task, strategies.SCAFFOLD(), Uniform(5).draw(20, 1, seed=1), LOCAL)))
    assert step.traffic == (5 * bits, 10 * bits)


def test_the_wrong_schedule_is_refused(task: Task) -> None:
    with pytest.raises(ValueError, match="schedule has 30 clients but the task has 20; draw it with n=20"):
        next(iter(simulate(task, FedAvg(), Everyone().draw(30, 1, seed=1), LOCAL)))


@pytest.mark.parametrize(("change", "said"), [
    ({"strategy": FedAvg}, r"the class FedAvg is no strategy; give an object, FedAvg\(\)"),
    ({"strategy": FedAdam(inner=FedAvg)}, r"FedAdam: inner is the class FedAvg; give an object, FedAvg\(\)"),
    ({"strategy": FedAvg(weights="known")}, r"FedAvg: weights is 'known'; give an object, such as Present\(\)"),
    ({"strategy": DPSGD(Metropolis(nx.cycle_graph(5)))}, "DPSGD, mixing: the graph has 5 nodes but the task has 20"),
    ({"schedule": Bernoulli(0.5)}, r"a Bernoulli is a process, which draws schedules; give Bernoulli\(...\).draw\(20,"),
    ({"local": LocalSGD}, "local must be a LocalSGD, such as .*, got the class LocalSGD"),
    ({"engine": "loop"}, "engine must be an object such as .*, got 'loop'"),
    ({"p": torch.ones(20)}, "p must be weights of at least 0 that sum to 1, and these sum to 20"),
    ({"p": torch.full((20,), torch.nan)}, "p must be weights"),
])  # fmt: skip
def test_what_cannot_be_is_refused(change: dict[str, Any], said: str, task: Task, schedule: Schedule) -> None:
    given = {"task": task, "strategy": FedAvg(), "schedule": schedule, "local": LOCAL, **change}
    with pytest.raises(ValueError, match=f"^{said}"):
        next(simulate(**given))


@pytest.mark.parametrize(("change", "said"), [
    ({"partition": "iid"}, "partition must be an object such as .*, got 'iid'"),
    ({"partition": Dirichlet}, "partition must be an object such as .*, got the class Dirichlet"),
    ({"clients": 2.5}, "clients must be a whole number, got 2.5"),
])  # fmt: skip
def test_a_task_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        federate("digits", **{"clients": 20, "model": "logistic", **change})


def test_a_model_of_another_size_is_not_measured(task: Task) -> None:
    with pytest.raises(ValueError, match="the model has 3 numbers but the task's has 650 parameters"):
        measure.test(task, torch.zeros(3))


def test_divergence_is_not_silent(task: Task) -> None:
    wild = LocalSGD(lr=1e38, steps=5, batch=8)
    with pytest.raises(ValueError, match=r"round \d+: .*not finite.*lower the learning rate"):
        run(task, FedAU(), Everyone().draw(20, 5, seed=1), wild)


def test_missing_knowledge_is_asked_for(task: Task) -> None:
    matrix = torch.ones(2, 20, dtype=torch.bool)
    with pytest.raises(ValueError, match="need the participation probabilities"):
        run(task, FedAvg(weights=weights.Known()), Schedule.from_matrix(matrix))
    with pytest.raises(ValueError, match="graph"):
        run(task, DPSGD(), Schedule.from_matrix(matrix))
    with pytest.raises(ValueError, match="clipping"):
        run(task, strategies.SCAFFOLD(), Schedule.from_matrix(matrix), replace(LOCAL, clip=1.0))


def test_batch_norm_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match=r"BatchNorm.*GroupNorm"):
        federate("digits", clients=10, model=Net, seed=1)

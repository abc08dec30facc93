"""Many runs as one program: each is bit for bit what it is alone, in one engine call a round."""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from fedsim import compare, experiment, federate
from fedsim.data import Clusters, split
from fedsim.data.partition import Dirichlet, LabelSwap
from fedsim.engine import Loop, Stacked
from fedsim.engine.plan import Job
from fedsim.local import LocalSGD
from fedsim.lockstep import Together, Turn, advance
from fedsim.participation import Bernoulli, Equal, Schedule
from fedsim.playing import weight
from fedsim.simulation import Step, rounds, simulate
from fedsim.strategies import MIFA, FedAvg, FedProx
from fedsim.strategy import Strategy
from fedsim.task import Task, join, regroup

RING: dict[str, Any] = {"topology": "ring"}
ENTRIES: list[dict[str, Any]] = [
    {"name": "FedAvg"},
    {"name": "FedAvg", "label": "slower", "local": {"lr": 0.01}},
    {"name": "FedAvg", "label": "longer", "local": {"steps": 5}},
    {"name": "FedAvg", "label": "fading", "local": {"lr-schedule": {"name": "inverse", "decay": 0.3}}},
    {"name": "FedAvg", "label": "heavy", "local": {"momentum": 0.9}},
    {"name": "FedAvg", "label": "clipped", "local": {"clip": 0.5, "weight-decay": 0.01}},
    {"name": "FedAvg", "label": "whole", "local": {"batch": "all"}},
    {"name": "FedAU"},
    {"name": "FedStale"},
    {"name": "FedVARP"},
    {"name": "MIFA"},
    {"name": "FedProx", "mu": 0.3},
    {"name": "SCAFFOLD"},
    {"name": "FedAdam", "inner": {"name": "FedProx", "mu": 0.1, "inner": {"name": "MIFA"}}},
    {"name": "DPSGD", **RING},
    {"name": "GradientTracking", **RING},
    {"name": "DPSGD", "label": "keeping", "keep-momentum": True, "local": {"momentum": 0.5}, **RING},
]
TABLES: dict[str, Any] = {
    "task": {
        "data": {"name": "clusters", "classes": 3, "dimension": 6, "examples": 90, "test-examples": 30},
        "clients": 8,
        "model": {"name": "mlp", "hidden": [5]},
        "partition": {"name": "dirichlet", "alpha": 0.5},
    },
    "participation": {"name": "bernoulli", "probabilities": {"name": "equal", "p": 0.4}},
    "local": {"lr": 0.1, "steps": 3, "batch": 4},
    "run": {"rounds": 6, "seeds": [3, 4, 5], "eval-every": 2, "device": "cpu", "chunk": 4},
}


def compared(entries: list[dict[str, Any]], **run: Any) -> list[compare.Event]:
    """What comparing these entries gives."""
    return list(compare.compare(experiment.parse({**TABLES, "strategy": entries, "run": TABLES["run"] | run})))


def measured(found: list[compare.Event]) -> dict[tuple[str, int, int], dict[str, float]]:
    """All evaluations, by strategy, seed and round."""
    return {event[:3]: event.metrics for event in found if isinstance(event, compare.Measured)}


def test_every_run_is_what_it_is_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seventeen ways of training, three seeds: all metrics equal, in far fewer engine calls."""
    calls: list[int] = []
    together = Stacked.together

    def counted(self: Stacked, jobs: Any) -> Any:
        calls.append(len(jobs))
        return together(self, jobs)

    monkeypatch.setattr(Stacked, "together", counted)
    beside = measured(compared(ENTRIES))
    assert calls == [3 * len(ENTRIES)] * 6  # one call a round
    calls.clear()
    single = measured(compared(ENTRIES, together=1))
    assert calls == [1] * (6 * 3 * len(ENTRIES))
    assert beside == single
    assert len(beside) == 3 * len(ENTRIES) * 4


def test_the_lanes_are_shared_by_whoever_trains_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Different rates, numbers of steps, seeds and schedules: one program. Momentum, clipping and a pull: others."""
    sizes: list[int] = []
    train = Stacked._train

    def counted(self: Stacked, jobs: Any) -> Any:
        sizes.append(len(jobs))
        return train(self, jobs)

    monkeypatch.setattr(Stacked, "_train", counted)
    compared(ENTRIES[:4], rounds=1)
    assert sizes == [12]
    sizes.clear()
    compared(ENTRIES[:6], rounds=1)
    assert sorted(sizes) == [3, 3, 12]
    sizes.clear()
    compared([ENTRIES[0], ENTRIES[11], ENTRIES[12]], rounds=1)
    assert sorted(sizes) == [3, 6]  # FedProx and SCAFFOLD share the affine step


@pytest.mark.parametrize("memory", ["3KB", "6KB"])
def test_memory_bounds_how_many_go_side_by_side(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer states and moves at a time, and the same numbers."""
    entries = [ENTRIES[0], ENTRIES[8], ENTRIES[10]]
    calls: list[int] = []
    together = Stacked.together

    def counted(self: Stacked, jobs: Any) -> Any:
        held = sum(2 * job.work.start.numel() * job.work.start.element_size() for job in jobs)
        assert len(jobs) == 1 or held <= 1000 * int(memory[0])
        calls.append(len(jobs))
        return together(self, jobs)

    expected = measured(compared(entries))
    monkeypatch.setattr(Stacked, "together", counted)
    assert measured(compared(entries, memory=memory)) == expected
    assert max(calls) < 9


def test_a_state_is_weighed_with_the_rows_it_will_have() -> None:
    task = federate("clusters", clients=10, model="logistic")
    size = task.layout.size * 4
    plain, memory = (weight(one.init(task.fresh(0), task.weights()), 7) for one in (FedAvg(), MIFA()))
    assert plain == size + 10 * 8  # the model, and p
    assert memory == 8 * size


def test_together_is_at_most_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: set[int] = set()
    together = Stacked.together

    def counted(self: Stacked, jobs: Any) -> Any:
        calls.add(len(jobs))
        return together(self, jobs)

    monkeypatch.setattr(Stacked, "together", counted)
    assert measured(compared(ENTRIES[:3], together=2)) == measured(compared(ENTRIES[:3]))
    assert calls == {1, 2, 9}  # nine runs by two and two, then all nine


def test_the_chunk_is_chosen_once_for_all_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows from all cohorts of a round together, and stands in the experiment that comes first."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)

    def planned(**run: Any) -> int | None:
        tables = {**TABLES, "strategy": ENTRIES[:2], "run": {**TABLES["run"], **run}}
        if "chunk" not in run:
            del tables["run"]["chunk"]
        event = next(compare.compare(experiment.parse(tables)))
        assert isinstance(event, compare.Planned)
        again = experiment.parse(event.experiment.document())
        assert again.run.chunk == event.experiment.run.chunk
        return again.run.chunk

    assert planned(chunk=3) == 3
    assert planned(seeds=[1], together=1) == 3  # 8 clients * 0.4
    assert planned(seeds=[1]) == 6
    assert planned() == 15
    assert planned(seeds=list(range(9))) == 27  # two clients in every lane
    assert planned(engine="loop") is None
    asked: list[float] = []
    monkeypatch.setattr("fedsim.engine.fastest", lambda task, ways, cohort, memory: asked.append(cohort) or Stacked(5))
    assert planned(**{"measure-chunk": True}) == 5
    assert planned(**{"measure-chunk": True, "chunk": 3}) == 3
    assert len(asked) == 1


def test_a_run_that_fails_leaves_the_others_alone() -> None:
    wild = {"name": "FedAvg", "label": "wild", "local": {"lr": 1e30}}
    found = compared([ENTRIES[0], wild, ENTRIES[10]])
    assert {(e.strategy, e.seed) for e in found if isinstance(e, compare.Failed)} == {("wild", s) for s in (3, 4, 5)}
    assert all("not finite" in e.reason for e in found if isinstance(e, compare.Failed))
    rest = {at: value for at, value in measured(found).items() if at[0] != "wild"}
    assert rest == measured(compared([ENTRIES[0], ENTRIES[10]]))


# --- without experiments ----------------------------------------------------------------------------------------------


def world(seed: int, like: Task | None = None) -> tuple[Task, Schedule]:
    """A task of a seed, with the examples and the model of another's, and a schedule."""
    dataset = Clusters(classes=3, dimension=4, examples=60, test_examples=30).load()
    one = federate(dataset, clients=6, partition=Dirichlet(0.5), model="logistic", seed=seed)
    task = one if like is None else regroup(like, split(dataset, Dirichlet(0.5), 6, seed), seed=seed)
    return task, Bernoulli(Equal(0.5)).draw(6, 5, seed)


def raced(runs: Mapping[str, Any], engine: Any, *tasks: Task, **settings: Any) -> dict[str, list[Turn]]:
    """All turns of all runs."""
    found: dict[str, list[Turn]] = {name: [] for name in runs}
    together = Together(tasks)
    while turns := dict(advance(runs, engine, together, **settings)):
        for name, turn in turns.items():
            found[name].append(turn)
    return found


LOCAL = LocalSGD(lr=0.1, steps=2, batch=4)


def test_runs_of_different_length_and_empty_rounds() -> None:
    """A run that is over leaves; one with nobody present plays on."""
    task, schedule = world(1)
    short = Schedule.from_matrix(schedule.matrix()[:2])
    empty = Schedule.from_matrix(torch.zeros(4, 6, dtype=torch.bool))
    runs = {n: rounds(task, FedAvg(), s, LOCAL, seed=1) for n, s in (("s", short), ("e", empty), ("l", schedule))}
    found = raced(runs, Stacked(2), task)
    assert {name: len(turns) for name, turns in found.items()} == {"s": 2, "e": 4, "l": 5}
    alone = list(simulate(task, FedAvg(), schedule, LOCAL, seed=1, engine=Stacked(2)))
    for turn, step in zip(found["l"], alone, strict=True):
        assert isinstance(turn.step, Step)
        assert turn.step.round.who.equal(step.round.who)
        assert turn.step.round.delta.equal(step.round.delta)


def test_clients_of_other_seeds_are_found_on_the_joint_task() -> None:
    first, schedule = world(1)
    second, other = world(2, like=first)
    joint = join([first, second])
    assert joint is not None
    assert joint.n == 12
    for i in range(6):
        for task, at in ((first, i), (second, 6 + i)):
            rows = task.rows[task.first[i] : task.first[i] + task.size[i]]
            assert joint.rows[joint.first[at] : joint.first[at] + joint.size[at]].equal(rows)
    runs = {
        1: rounds(first, FedAvg(), schedule, LOCAL, seed=1),
        2: rounds(second, FedAvg(), other, LOCAL, seed=2),
    }
    together = Together([first, second])
    turns = dict(advance(runs, Stacked(3), together))
    for seed, task, presence in ((1, first, schedule), (2, second, other)):
        step = next(simulate(task, FedAvg(), presence, LOCAL, seed=seed, engine=Stacked(3)))
        found = turns[seed].step
        assert isinstance(found, Step)
        assert found.model.equal(step.model)
        assert found.round.who.equal(step.round.who)


def test_tasks_that_share_nothing_stay_apart() -> None:
    """Own copies of the examples, or labels of their own: no joint task, and still the right answers."""
    first, schedule = world(1)
    second, other = world(2)
    assert join([first, second]) is None
    dataset = Clusters(classes=3, dimension=4, examples=60, test_examples=30).load()
    swapped = regroup(first, split(dataset, LabelSwap(odd=(1, 2)), 6, 3))
    assert join([first, swapped]) is None
    runs = {1: rounds(first, FedAvg(), schedule, LOCAL, seed=1), 2: rounds(second, FedAvg(), other, LOCAL, seed=2)}
    found = raced(runs, Stacked(3), first, second)
    last = [*simulate(second, FedAvg(), other, LOCAL, seed=2, engine=Stacked(3))][-1]
    assert isinstance(found[2][-1].step, Step)
    assert found[2][-1].step.model.equal(last.model)


def test_a_batch_of_everything_keeps_its_own_width() -> None:
    """On the joint task the largest client is another: padding would differ, and with it the last bits."""
    first, schedule = world(1)
    second, _ = world(2, like=first)
    together = Together([first, second])
    whole = dataclasses.replace(LOCAL, batch=None)
    smaller = min((first, second), key=lambda task: max(task.sizes))
    larger = second if smaller is first else first
    assert max(smaller.sizes) < max(larger.sizes)
    for task, local, joined in ((smaller, whole, False), (larger, whole, True), (smaller, LOCAL, True)):
        job = next(rounds(task, FedAvg(), schedule, local, seed=1))
        assert isinstance(job, Job)
        assert (together(job).task is not task) == joined


@pytest.mark.parametrize("memory", [1, 2**30])
def test_moves_are_let_go_of_run_after_run(memory: int) -> None:
    """Whoever takes a turn and drops it leaves no client's moves behind but those of the cohorts trained with it."""
    task, schedule = world(1)
    runs = {i: rounds(task, FedAvg(), schedule, LOCAL, seed=1) for i in range(5)}
    seen: list[weakref.ref[Any]] = []
    alive = []
    for _ in range(3):
        for _, turn in advance(runs, Stacked(2), Together([task]), memory):
            assert isinstance(turn.step, Step)
            seen.append(weakref.ref(turn.step.round.delta))
            alive.append(sum(one() is not None for one in seen))
            del turn
    assert len(alive) == 15
    assert max(alive) == 1 if memory == 1 else max(alive) <= 5
    assert sum(one() is not None for one in seen) == 0


def test_where_memory_does_not_suffice_for_all_they_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    task, schedule = world(1)
    strategies: dict[str, Strategy] = {"a": FedAvg(), "b": MIFA(), "c": FedProx(mu=0.2)}
    expected = {n: list(simulate(task, s, schedule, LOCAL, seed=1, engine=Stacked(2))) for n, s in strategies.items()}
    together = Stacked.together

    def full(self: Stacked, jobs: Any) -> Any:
        if len(jobs) > 1:
            raise torch.OutOfMemoryError("too many")
        return together(self, jobs)

    monkeypatch.setattr(Stacked, "together", full)
    found = raced({n: rounds(task, s, schedule, LOCAL, seed=1) for n, s in strategies.items()}, Stacked(2), task)
    for name, turns in found.items():
        last = turns[-1].step
        assert isinstance(last, Step)
        assert last.model.equal(expected[name][-1].model)


def test_other_engines_train_one_cohort_after_the_other() -> None:
    task, schedule = world(1)
    calls: list[int] = []

    def engine(*job: Any) -> Any:
        calls.append(len(job[1]))
        return Loop()(*job)

    found = raced({n: rounds(task, FedAvg(), schedule, LOCAL, seed=1) for n in ("a", "b")}, engine, task)
    assert calls == [k for t in range(5) for k in [int(schedule.matrix()[t].sum())] * 2 if k]
    assert isinstance(found["a"][-1].step, Step)


def test_the_engines_time_is_shared_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs, one with four times the steps: four fifths of the call are its."""
    task, schedule = world(1)
    together = Stacked.together

    def slow(self: Stacked, jobs: Any) -> Any:
        time.sleep(0.2)
        return together(self, jobs)

    monkeypatch.setattr(Stacked, "together", slow)
    long = dataclasses.replace(LOCAL, steps=8)
    runs = {"short": rounds(task, FedAvg(), schedule, LOCAL, seed=1), "long": rounds(task, FedAvg(), schedule, long)}
    turns = dict(advance(runs, Stacked(2), Together([task])))
    assert turns["long"].training == pytest.approx(4 * turns["short"].training)
    assert turns["long"].training + turns["short"].training > 0.2
    assert turns["short"].own < 0.2

"""A chunk's program gives its function's numbers, in buffers that are there already."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import threading
import weakref
from typing import Any

import pytest
import torch
from helpers import needs_operators
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim import LocalSGD, Stacked, Work, federate, keyed, native
from fedsim.data import Dataset
from fedsim.engine import pools, rooms, workers
from fedsim.engine.gradients import gradients
from fedsim.engine.room import Room, Rule
from fedsim.engine.traced import program
from fedsim.engine.traced.program import Program, compiled
from fedsim.engine.traced.simpler import once
from fedsim.task import Task


class Residual(nn.Module):
    """A convolution added to what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.GroupNorm(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


class Words(nn.Module):
    """A recurrent classifier of the pictures' rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.out = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(len(x), 6, dtype=x.dtype)
        for row in x.flatten(1, 2).unbind(1):
            state = torch.tanh(self.first(row) + self.again(state))
        return self.out(state)


class Factors(nn.Module):
    """Weights that are products of matrices: the gradient of each is a product with the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 192))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ (self.left @ self.right).mT


MODELS: dict[str, Any] = {
    "logistic": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.ReLU(), nn.Linear(9, 4)),
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.Dropout(0.4), nn.GELU(), nn.Linear(9, 4)),
    "pooling": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(4, 4),
    ),
    "residual": lambda: nn.Sequential(Residual(), nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 4)),
    "recurrent": Words,
    "factors": Factors,
}  # fmt: skip


def task_of(name: str, dtype: torch.dtype = torch.float32, n: int = 6) -> Task:
    """Small pictures in four classes."""
    draw = torch.Generator().manual_seed(3)
    pictures = torch.randint(0, 255, (96, 3, 8, 8), dtype=torch.uint8, generator=draw)
    labels = torch.randint(0, 4, (96,), generator=draw)
    dataset = Dataset("noise", pictures, labels, pictures[:8], labels[:8], 4, mean=0.4, std=0.2)
    torch.manual_seed(1)
    return federate(dataset, clients=n, model=MODELS[name](), dtype=dtype, seed=1)


class Filled:
    """A room, and a way to fill it with the examples and models of a seed and run its program."""

    def __init__(self, task: Task, chunk: int, plain: bool = True) -> None:
        self.task, self.plain = task, plain
        self.room = rooms.take(task, chunk, 5, PLAIN if plain else Rule(momentum=0.9))

    def fill(self, seed: int) -> None:
        room, task, chunk = self.room, self.task, len(self.room.y)
        draw = torch.Generator().manual_seed(seed)
        room.y.copy_(task.fresh(0) + 0.1 * torch.randn(room.y.shape, generator=draw).to(task.dtype))
        self.place(torch.randint(0, 96, (chunk, 5), generator=draw))
        room._weights.copy_(torch.rand((1, chunk, 5), generator=draw))
        room._key.copy_(keyed.fold(seed, torch.arange(chunk)))
        room._rate.copy_(torch.rand((1, chunk, 1), generator=draw))

    def place(self, rows: torch.Tensor) -> None:
        for pool, part in zip((self.room._pool, self.task.targets), self.room._rows, strict=True):
            part.copy_(pool[rows.flatten()])

    def run(self, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """What the program gives, and what the function does."""
        self.fill(seed)
        room, task = self.room, self.task
        rows = [room._inputs, room._targets, room._weights[0], room._key[0], room._rate[0] if self.plain else None]
        y = room.y.clone()
        ready = room._pool is not task.inputs
        slopes, loss = gradients(task, ready=ready)(task.layout.views(y), *rows)
        found = [one.clone() for one in room._gradients()]
        if self.plain:  # taken off y
            return [room.y.clone(), *found], [y - task.layout.stack(slopes), loss]
        assert room.y.equal(y)
        return found, [*slopes.values(), loss]


PLAIN = Rule()


@pytest.mark.parametrize("own", [pytest.param(True, marks=needs_operators), False])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_are_the_functions(
    name: str, chunk: int, plain: bool, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For whatever it holds, also what it was not made with: by torch's operators the gradients of a small batch of
    models to the last bit; those of one model, weights that products of matrices are taken off, and what fedsim's own
    operators give, to rounding."""
    if not own:
        monkeypatch.setattr(native, "operators", lambda: None)
    filled = Filled(task_of(name), chunk, plain)
    exact = chunk > 1 and not plain and not own
    for seed in (1, 2, 1, 3):
        found, expected = filled.run(seed)
        assert filled.room.traced
        for a, b in zip(found, expected, strict=True):
            if exact:
                assert a.equal(b)
            else:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_nan_goes_through(name: str) -> None:
    """A model that has diverged gives NaN, and the next gives numbers."""
    filled = Filled(task_of(name), 3)
    before, _ = filled.run(1)
    filled.fill(2)
    filled.room.y.fill_(torch.nan)
    for one in filled.room._gradients():
        assert torch.isnan(one).any()
    after, _ = filled.run(1)
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))


class Seen(TorchDispatchMode):
    """Which operators are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_nothing_new_is_made(name: str) -> None:
    """Every call writes to a buffer that is there."""
    filled = Filled(task_of(name), 3)
    filled.run(1)
    with Seen() as seen:
        filled.room._gradients()
    assert 10 < len(seen.names) < 40
    in_place = ("out", "copy_", "grad_input", "_foreach_sub_", "fedsim.")
    assert all(any(part in name for part in in_place) for name in seen.names)


def test_buffers_are_taken_over() -> None:
    """A long chain of operators needs the memory of a few: what is over makes room for what comes."""
    x = torch.randn(1000, dtype=torch.float64)

    def chain(x: torch.Tensor) -> list[torch.Tensor]:
        for _ in range(50):
            x = torch.sin(x) + x.mean()
        return [x]

    program = Program(chain, [x])
    assert program.calls is not None
    outs = {
        value.untyped_storage().data_ptr()
        for _, args, named in program.calls
        for value in (*args, *named.values())
        if isinstance(value, torch.Tensor) and value.numel() == 1000
    }
    assert len(outs) <= 4
    for seed in (1, 2):
        x.copy_(torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
        assert program()[0].equal(chain(x.clone())[0])


def test_what_writes_in_place_is_written_again() -> None:
    def function(x: torch.Tensor) -> list[torch.Tensor]:
        total = torch.zeros(4)
        total += x
        total[1:] *= 2
        return [total, total.sum()]

    x = torch.arange(4.0)
    program = Program(function, [x])
    for factor in (1.0, 3.0, -2.0):
        x.copy_(factor * torch.arange(4.0))
        for a, b in zip(program(), function(x.clone()), strict=True):
            assert a.equal(b)


def test_a_function_with_a_will_of_its_own_runs_itself() -> None:
    """One that asks what a tensor holds, and one that is another every time."""
    count = itertools.count()

    def asks(x: torch.Tensor) -> list[torch.Tensor]:
        return [x * 2 if float(x.sum()) > 0 else x * 3]

    def counts(x: torch.Tensor) -> list[torch.Tensor]:
        return [x + next(count)]

    x = torch.ones(2)
    program = Program(asks, [x])
    assert program()[0].tolist() == [2.0, 2.0]
    x.neg_()
    assert program()[0].tolist() == [-3.0, -3.0]
    assert Program(counts, [x]).calls is None


def test_a_room_is_used_again_and_by_one_at_a_time() -> None:
    task = task_of("mlp")
    one = rooms.take(task, 3, 5, PLAIN)
    other = rooms.take(task, 3, 5, PLAIN)
    assert other is not one
    rooms.give_back(one)
    assert rooms.take(task, 3, 5, Rule(momentum=0.9)) is not one
    assert rooms.take(task, 4, 5, PLAIN) is not one
    assert rooms.take(dataclasses.replace(task, mean=torch.tensor(0.1)), 3, 5, PLAIN) is one  # normalised beforehand
    rooms.give_back(one)
    assert rooms.take(dataclasses.replace(task, criterion=lambda a, b: a.sum(1)), 3, 5, PLAIN) is not one
    assert rooms.take(task, 3, 5, PLAIN) is one


def test_rooms_go_with_their_model() -> None:
    """What waits for its next use keeps neither a model nor its examples alive."""
    task = task_of("mlp")
    keys = keyed.fold(1, torch.arange(2))
    for _ in range(3):
        Stacked(2)(task, torch.arange(2), Work(task.fresh(0).expand(2, -1)), keys, LocalSGD(lr=0.1, steps=3, batch=5))
    (room,) = rooms._waiting[task.outputs_of]
    assert room._recorded is not None
    assert all(feed._recorded is not None for feed in room._feeds.values())
    gone = [weakref.ref(each) for each in (task.outputs_of, task.inputs, task.targets, task.rows)]
    del task, room
    gc.collect()
    assert [one() for one in gone] == [None] * 4


def test_large_pools_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalised as a whole where there is room for it, else minibatch by minibatch, to the same numbers."""
    task = task_of("pooling")
    assert pools.examples(task) is pools.examples(task)
    assert pools.examples(task).equal(task.ready(task.inputs))
    found, _ = Filled(task, 3).run(1)
    monkeypatch.setattr(pools, "READY", 1000)
    assert pools.examples(task) is task.inputs
    again, _ = Filled(task, 3).run(1)
    assert all(a.equal(b) for a, b in zip(found, again, strict=True))


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("local", [LocalSGD(epochs=1, batch=5), LocalSGD(steps=3, batch=5, momentum=0.9, clip=0.1)])
@pytest.mark.parametrize("name", MODELS)
def test_who_trains_a_client_changes_nothing(name: str, local: LocalSGD, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thread of torch's or with three: the same bits."""
    task = task_of(name, n=11)
    who = torch.tensor([0, 1, 2, 4, 5, 7, 8, 9, 10])
    start = task.fresh(0) + 0.1 * torch.randn(9, task.layout.size, generator=torch.Generator().manual_seed(1))
    work = Work(start, mu=0.1 if local.momentum else 0.0, ask=frozenset({"velocity", "loss-at-start"}))
    threads = torch.get_num_threads()
    used: list[str] = []
    turns = Stacked._turns

    def watched(self: Stacked, *given: Any) -> None:
        used.append(threading.current_thread().name)
        assert torch.get_num_threads() == 1
        turns(self, *given)

    monkeypatch.setattr(Stacked, "_turns", watched)
    answers = []
    for many in (1, 3):
        torch.set_num_threads(many)
        try:
            answers.append(Stacked(2)(task, who, work, keyed.fold(2, who), local))
            assert torch.get_num_threads() == many
        finally:
            torch.set_num_threads(threads)
    assert sorted(name.startswith("fedsim") for name in used) == [False, False, True, True]  # one of three is ours
    a, b = answers
    assert a.delta.equal(b.delta)
    assert a.loss.equal(b.loss)
    assert a.told.keys() == b.told.keys()
    assert all(a.told[key].equal(b.told[key]) for key in a.told)


def test_clients_are_dealt_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    cpu, steps = torch.device("cpu"), [9, 1, 1, 1, 3, 3, 5, 1]
    dealt = workers.shares(steps, 2, cpu)
    assert sorted(j for part in dealt for j in part) == list(range(8))
    assert [sum(steps[j] for j in part) for part in dealt] == [9, 8, 7]
    assert workers.shares(steps, 8, cpu) == [list(range(8))]  # they fill one room's lanes
    assert workers.shares(steps, 1, torch.device("cuda")) == [list(range(8))]


def test_workers_and_a_model_that_cannot_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """One may trace while the other has given up on that and trains: a module holds one client's parameters at a time,
    and torch.fx changes nn.Module for all threads."""
    task, who = task_of("mlp"), torch.arange(6)
    work, keys, local = Work(task.fresh(0).expand(6, -1)), keyed.fold(0, who), LocalSGD(steps=3, batch=5)
    expected = Stacked(1)(task, who, work, keys, local).delta
    rooms.clear()

    def gives_up(*given: Any) -> None:
        compiled(*given)
        raise RuntimeError("no trace of this")

    monkeypatch.setattr(program, "compiled", gives_up)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(5):
            rooms.clear()
            found = Stacked(1)(task, who, work, keys, local).delta
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    finally:
        torch.set_num_threads(threads)
        rooms.clear()


def test_what_goes_wrong_in_a_worker_is_raised() -> None:
    task = federate("clusters", clients=6, model="logistic")

    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("this loss is broken")

    wrong = dataclasses.replace(task, criterion=broken)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    who = torch.arange(6)
    try:
        with pytest.raises(RuntimeError, match="this loss is broken"):
            Stacked(1)(wrong, who, Work(task.fresh(0).expand(6, -1)), keyed.fold(0, who), LocalSGD(steps=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_nothing_is_computed_twice() -> None:
    """Operators that are alike are one; those that draw are as many as there were."""
    x = torch.randn(50)

    def function(x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.sin(x) + 1, torch.sin(x) * 2, torch.sin(x + 1)]

    program = Program(function, [x])
    assert program.calls is not None
    assert sum(getattr(call, "__name__", "") == "sin.out" for call, _, _ in program.calls) == 2
    assert all(a.equal(b) for a, b in zip(program(), function(x), strict=True))

    def draws(x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.rand_like(x), torch.rand_like(x)]

    graph = make_fx(draws)(x).graph
    once(graph)
    assert sum(str(node.target) == "aten.rand_like.default" for node in graph.nodes) == 2


def test_out_of_memory_makes_the_chunk_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the numbers are those of the smaller chunk; where one client does not fit, it is an error."""
    task, who = task_of("mlp"), torch.arange(6)
    given = (task, who, Work(task.fresh(0).expand(6, -1)), keyed.fold(1, who), LocalSGD(lr=0.1, steps=3, batch=5))
    expected = Stacked(2)(*given)
    take, fits = rooms.take, 3

    def small(task: Task, chunk: int, *rest: Any) -> Room:
        if chunk > fits:
            raise torch.OutOfMemoryError("too large")
        return take(task, chunk, *rest)

    monkeypatch.setattr(rooms, "take", small)
    with pytest.warns(UserWarning, match="no memory for 4 clients side by side; going on with 2"):
        answer = Stacked(4)(*given)
    assert answer.delta.equal(expected.delta)
    assert answer.loss.equal(expected.loss)
    fits = 0
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="no memory"):
        Stacked(2)(*given)

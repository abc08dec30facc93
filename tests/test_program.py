"""A chunk's program gives its function's numbers, in buffers that are there already."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim import LocalSGD, Stacked, Work, federate, keyed, models
from fedsim.data import Dataset
from fedsim.engine import rooms, workers
from fedsim.engine.program import Program, once
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
}  # fmt: skip


def task_of(name: str, dtype: torch.dtype = torch.float32, n: int = 6) -> Task:
    """Small pictures in four classes."""
    draw = torch.Generator().manual_seed(3)
    pictures = torch.randint(0, 255, (96, 3, 8, 8), dtype=torch.uint8, generator=draw)
    labels = torch.randint(0, 4, (96,), generator=draw)
    dataset = Dataset("noise", pictures, labels, pictures[:8], labels[:8], 4, mean=0.4, std=0.2)
    torch.manual_seed(1)
    return federate(dataset, clients=n, model=MODELS[name](), dtype=dtype, seed=1)


def room_of(task: Task, chunk: int, plain: bool = True) -> tuple[rooms.Room, Any]:
    """A room of the task, and a way to fill it with the examples and models of a seed and run it."""
    room = rooms.take(task, chunk, 5, plain)

    def run(seed: int) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        room.y.copy_(task.fresh(0) + 0.1 * torch.randn(room.y.shape, generator=draw).to(task.dtype))
        rows = torch.randint(0, 96, (chunk, 5), generator=draw)
        weights = torch.rand((chunk, 5), generator=draw).to(task.dtype)
        keys = keyed.fold(seed, torch.arange(chunk))
        rates = torch.rand(chunk, generator=draw).to(task.dtype) if plain else None
        given = [task.inputs[rows], task.targets[rows], weights, keys, None if rates is None else rates[:, None]]
        y = room.y.clone()
        slopes, loss = rooms.gradients(task)(task.layout.views(y), *given)
        found = [one.clone() for one in room.gradients(rows, weights, keys, rates)]
        if plain:  # taken off y
            return [[room.y.clone(), *found], [y - task.layout.stack(slopes), loss]]  # type: ignore[list-item]
        assert room.y.equal(y)
        return [found, [*slopes.values(), loss]]  # type: ignore[list-item]

    return room, run


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_are_the_functions(name: str, chunk: int, plain: bool) -> None:
    """For whatever it holds, also what it was not made with: the gradients of a small batch of models to the last bit,
    those of one model, and weights that products of matrices are taken off, to rounding."""
    room, run = room_of(task_of(name), chunk, plain)
    exact = chunk > 1 and not plain
    for seed in (1, 2, 1, 3):
        found, expected = run(seed)
        assert room.traced
        for a, b in zip(found, expected, strict=True):
            if exact:
                assert a.equal(b)
            else:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_nan_goes_through(name: str) -> None:
    """A model that has diverged gives NaN, and the next gives numbers."""
    task = task_of(name)
    room, run = room_of(task, 3)
    before, _ = run(1)
    room.y.fill_(torch.nan)
    for one in room.gradients(torch.zeros((3, 5), dtype=torch.int64), torch.ones(3, 5), torch.arange(3), torch.ones(3)):
        assert torch.isnan(one).any()
    after, _ = run(1)
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
    room, run = room_of(task_of(name), 3)
    run(1)
    assert room._program is not None
    with Seen() as seen:
        room._program()
    assert 10 < len(seen.names) < 40
    in_place = ("out", "copy_", "grad_input", "_foreach_sub_")
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
    one = rooms.take(task, 3, 5, True)
    other = rooms.take(task, 3, 5, True)
    assert other is not one
    rooms.give_back(one)
    assert rooms.take(task, 3, 5, False) is not one
    assert rooms.take(task, 4, 5, True) is not one
    assert rooms.take(dataclasses.replace(task, mean=torch.tensor(0.1)), 3, 5, True) is one  # normalised beforehand
    rooms.give_back(one)
    assert rooms.take(dataclasses.replace(task, criterion=lambda a, b: a.sum(1)), 3, 5, True) is not one
    assert rooms.take(task, 3, 5, True) is one


def test_rooms_go_with_their_model() -> None:
    """What waits for its next use keeps neither a model nor its examples alive."""
    task = task_of("mlp")
    keys = keyed.fold(1, torch.arange(2))
    Stacked(2)(task, torch.arange(2), Work(task.fresh(0).expand(2, -1)), keys, LocalSGD(lr=0.1, steps=1, batch=5))
    gone = [weakref.ref(task.outputs_of), weakref.ref(task.inputs)]
    assert rooms._waiting[task.outputs_of]
    del task
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_large_pools_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalised as a whole where there is room for it, else minibatch by minibatch, to the same numbers."""
    task = task_of("pooling")
    assert rooms.examples(task) is rooms.examples(task)
    assert rooms.examples(task).equal(task.ready(task.inputs))
    _, run = room_of(task, 3)
    found, _ = run(1)
    monkeypatch.setattr(rooms, "READY", 1000)
    assert rooms.examples(task) is task.inputs
    _, run = room_of(task, 3)
    again, _ = run(1)
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
    assert len(used) == 4
    assert [name.startswith("fedsim") for name in used] == [False, True, True, True]
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


def test_models_of_ours_are_traced() -> None:
    """Every model with a name, on one client and on several."""
    for name in ("logistic", "mlp", "lenet5", "fedau-cnn"):
        shape = (1, 28, 28)
        dataset = Dataset(
            "blank", torch.rand(8, *shape), torch.arange(8) % 4, torch.rand(4, *shape), torch.arange(4), 4
        )
        task = federate(dataset, clients=2, model=models.build(name, shape, 4))
        for chunk in (1, 2):
            room = rooms.take(task, chunk, 2, True)
            room.y.copy_(task.fresh(0).expand(chunk, -1))
            rows = torch.arange(2 * chunk).reshape(chunk, 2)
            room.gradients(rows, torch.ones(chunk, 2), torch.arange(chunk), torch.ones(chunk))
            assert room.traced, (name, chunk)


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


class FakeGraph:
    """Stands for a CUDA graph that has captured the calls; it spoils a tensor if it is given one."""

    def __init__(self, calls: Any, spoils: torch.Tensor | None) -> None:
        self.calls, self.spoils, self.replays = calls, spoils, 0

    def replay(self) -> None:
        self.replays += 1
        for call, args, named in self.calls:
            call(*args, **named)
        if self.spoils is not None:
            self.spoils.add_(1.0)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    device = torch.device("cuda")


@pytest.mark.parametrize("right", [True, False])
def test_a_gpu_remembers_the_calls(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one graph, which is only used if it gives the same. (No GPU is at hand: its part is played by a double.)"""
    x, w = torch.randn(4, 3), torch.randn(3, 2)

    def function(x: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
        return [torch.mm(x.t(), torch.mm(x, w)).mul(0.1), torch.mm(x, w).sum()]

    program = Program(function, [x, w], [w])
    graph = FakeGraph(program.calls, None if right else w)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    before = w.clone()
    slope, value = function(x, before)
    program.inputs = (x.as_subclass(OnGpu), w)
    program._captured([before], [before - slope, value], False)
    w.copy_(before)
    assert (program.graph is graph) == right
    program()
    torch.testing.assert_close(w, before - slope)
    assert graph.replays == (2 if right else 1)


def test_out_of_memory_makes_the_chunk_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the numbers are those of the smaller chunk; where one client does not fit, it is an error."""
    task, who = task_of("mlp"), torch.arange(6)
    given = (task, who, Work(task.fresh(0).expand(6, -1)), keyed.fold(1, who), LocalSGD(lr=0.1, steps=3, batch=5))
    expected = Stacked(2)(*given)
    take, fits = rooms.take, 3

    def small(task: Task, chunk: int, *rest: Any) -> rooms.Room:
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

"""What is recorded gives the numbers of what it was recorded from, to the last bit."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_program import MODELS, PLAIN, task_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim import LocalSGD, Stacked, Work, federate, keyed, models
from fedsim.data import Dataset
from fedsim.engine import cohort, room, rooms
from fedsim.engine.traced import recorded as recording
from fedsim.engine.traced.recorded import Captured, Scripted, recorded
from fedsim.task import Task

# --- a round, recorded and not ----------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[LocalSGD, dict[str, Any]]] = {
    "plain": (LocalSGD(lr=0.1, epochs=2, batch=5), {}),
    "momentum": (LocalSGD(lr=0.1, steps=7, batch=5, momentum=0.9, clip=0.3, weight_decay=0.01), {"ask": {"velocity"}}),
    "terms": (LocalSGD(lr=0.1, steps=7, batch=5), {"mu": 0.1, "shift": "each", "scale": "all"}),
    "numbers": (LocalSGD(lr=0.1, steps=7, batch=5), {"mu": 0.1, "shift": 0.01, "scale": 0.5, "ask": {"mean-gradient"}}),
    "second": (LocalSGD(lr=0.1, steps=7, batch=5, weight_decay=0.01), {"other": "each", "against": 0.5}),
}


def trained(task: Task, chunk: int, local: LocalSGD, work: dict[str, Any], rounds: int = 3) -> list[torch.Tensor]:
    """All that comes of some rounds, one after the other."""
    who, found = torch.tensor([0, 1, 3, 4, 5]), []
    draw = torch.Generator().manual_seed(1)
    each = 0.1 * torch.randn(len(who), task.layout.size, generator=draw)
    given = {"each": each, "all": each[0]}
    terms: dict[str, Any] = {
        name: given[value] if isinstance(value, str) else frozenset(value) if name == "ask" else value
        for name, value in work.items()
    }
    for t in range(rounds):
        answer = Stacked(chunk)(task, who, Work(task.fresh(t).expand(5, -1), **terms), keyed.fold(t, who), local, t)
        found += [answer.delta, answer.loss, *answer.told.values()]
    return found


def by_hand(step: Callable[[], None], state: Any, loose: Any) -> None:
    """Stands for `recorded`: takes the step, and records nothing."""
    step()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often recorded steps were asked for how many steps."""
    seen: list[int] = []
    run = Scripted.__call__

    def watched(self: Scripted, times: int) -> None:
        seen.append(times)
        run(self, times)

    monkeypatch.setattr(Scripted, "__call__", watched)
    return seen


CASES = [(name, chunk, "plain") for name in MODELS for chunk in (1, 3)]
CASES += [("mlp", chunk, setting) for setting in SETTINGS if setting != "plain" for chunk in (1, 3)]
CASES += [("pooling", 1, "momentum"), ("dropout", 3, "second"), ("residual", 3, "terms")]


@pytest.mark.parametrize(("name", "chunk", "setting"), CASES)
def test_recorded_rounds_are_the_same(
    name: str, chunk: int, setting: str, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    local, work = SETTINGS[setting]
    found = trained(task_of(name), chunk, local, work)
    assert sum(counted) > 20
    monkeypatch.setattr("fedsim.engine.room.recorded", by_hand)
    monkeypatch.setattr("fedsim.engine.feed.recorded", by_hand)
    counted.clear()
    expected = trained(task_of(name), chunk, local, work)
    assert not counted
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("setting", SETTINGS)
def test_long_rows_are_moved_one_by_one(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same numbers as many short ones at once."""
    local, work = SETTINGS[setting]
    expected = trained(task_of("mlp"), 3, local, work)
    rows: list[int] = []
    monkeypatch.setattr(cohort, "LONG", 1)
    monkeypatch.setattr(cohort, "by_row", lambda table, by_row=cohort.by_row: rows.append(len(table)) or by_row(table))
    found = trained(task_of("mlp"), 3, local, work)
    assert rows
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


def test_who_takes_no_step_does_not_move() -> None:
    """Beside others who do: what is not written to is 0, and no memory that was there."""
    task, who = task_of("mlp"), torch.arange(4)
    effort = torch.tensor([1.0, 0.0, 1.0, 0.0])
    for _ in range(3):
        torch.full((4, task.layout.size), torch.nan)  # what the next tensor of that size may find
        given = (task, who, Work(task.fresh(0).expand(4, -1)), keyed.fold(1, who), LocalSGD(lr=0.1, steps=3, batch=5))
        answer = Stacked(2)(*given, effort=effort)
        assert torch.isfinite(answer.delta).all()
        assert (answer.delta.abs().sum(1) > 0).tolist() == [True, False, True, False]


def test_models_of_ours_are_recorded() -> None:
    """Every model with a name, on one client and on several, and those large enough for other ways to multiply."""
    makes: dict[str, Callable[[], nn.Module]] = {
        name: lambda name=name: models.build(name, (1, 28, 28), 4)  # type: ignore[misc]
        for name in ("logistic", "mlp", "lenet5", "fedau-cnn")
    }
    makes["wide"] = lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 4))
    for name, make in makes.items():
        data = Dataset(
            "blank", torch.rand(16, 1, 28, 28), torch.arange(16) % 4, torch.rand(4, 1, 28, 28), torch.arange(4), 4
        )
        task = federate(data, clients=2, model=make())
        for chunk in (1, 2):
            trained_room = rooms.take(task, chunk, 2, PLAIN)
            rooms.give_back(trained_room)
            who = torch.arange(2)
            Stacked(chunk)(task, who, Work(task.fresh(0).expand(2, -1)), keyed.fold(1, who), LocalSGD(steps=3, batch=2))
            assert trained_room.traced, (name, chunk)
            assert trained_room._recorded is not None, (name, chunk)


def test_a_room_trains_others_data(counted: list[int]) -> None:
    """Another task of the same kind brings its own examples, and who has which."""
    task = task_of("mlp")
    local = LocalSGD(lr=0.1, steps=6, batch=5)
    other = dataclasses.replace(task, inputs=task.inputs.flip(0), targets=task.targets.flip(0), rows=task.rows.flip(0))
    expected = trained(dataclasses.replace(other, outputs_of=task_of("mlp").outputs_of), 3, local, {})
    trained(task, 3, local, {})
    (before,) = rooms._waiting[task.outputs_of]
    counted.clear()
    found = trained(other, 3, local, {})
    assert rooms._waiting[task.outputs_of] == [before]
    assert sum(counted) == 3 * (2 * 6 + 1)  # all steps of two turns each, and their plan
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


# --- TorchScript ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_down_is_done_as_it_was() -> None:
    """And a step is taken once, whatever comes of it."""
    x, made = torch.ones(3), torch.empty(3, dtype=torch.complex64)

    def step() -> None:
        torch.full((3,), complex(2, 0), dtype=torch.complex64, out=made)
        x.mul_(2)

    assert recorded(step, [x], []) is None
    assert x.tolist() == [2.0] * 3


def test_what_draws_is_not_recorded() -> None:
    """A recorded step that gives other numbers is of no use."""
    x = torch.zeros(3)

    def step() -> None:
        x.add_(torch.rand(3))

    torch.manual_seed(3)
    assert recorded(step, [x], []) is None
    torch.manual_seed(3)
    assert x.equal(torch.rand(3))


def test_loose_tensors_are_exchanged_and_let_go() -> None:
    x, pool = torch.zeros(2), torch.arange(6.0).reshape(3, 2)
    at = torch.zeros(1, dtype=torch.int64)

    def step() -> None:
        x.add_(pool.index_select(0, at)[0])
        at.add_(1)

    made = recorded(step, [x, at], [pool])
    assert isinstance(made, Scripted)
    made(2)
    assert x.tolist() == [6.0, 9.0]
    made.bind([torch.full((5, 2), 10.0)])
    made(1)
    assert x.tolist() == [16.0, 19.0]
    made.release()
    with pytest.raises(RuntimeError):
        made(1)


def test_settings_of_the_user_stay() -> None:
    """TorchScript's own way of running what others have scripted is left as it was."""
    x = torch.zeros(2)

    def step() -> None:
        x.add_(1)

    made = recorded(step, [x], [])
    assert made is not None
    for before in (True, False):
        torch._C._set_graph_executor_optimize(before)
        try:
            made(1)
            assert torch._C._get_graph_executor_optimize() is before
        finally:
            torch._C._set_graph_executor_optimize(True)
    assert x.tolist() == [3.0, 3.0]


def test_pythons_lock_is_free_meanwhile() -> None:
    """Other threads run while a recorded stretch does: with the lock held, this one would only see its end."""
    x = torch.zeros(1000)

    def step() -> None:
        torch.add(x, 1, out=x)

    made = recorded(step, [x], [])
    assert made is not None
    begun, done = threading.Event(), threading.Event()

    def run() -> None:
        begun.set()
        made(300_000)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()
    seen = 0
    while not done.is_set():
        seen += 1
    thread.join()
    assert seen > 1000
    assert float(x[0]) == 300_001


@pytest.mark.parametrize("value", [
    3, -100, True, False, 0.1, -1e-12, 1e30, 2.0, float("inf"), "none", torch.float32, torch.bfloat16, torch.bool, None,
    torch.channels_last, torch.device("cpu"),
])  # fmt: skip
def test_constants(value: Any) -> None:
    """What is written down is what it was."""
    if value == float("inf"):
        with pytest.raises(TypeError, match="cannot be written down"):
            recording.constant(value)
        return
    kind, attribute = recording.constant(value)
    made = torch._C._create_function_from_graph(
        "it", torch._C.parse_ir(f"graph():\n  %x : {kind} = prim::Constant{attribute}()\n  return (%x)\n")
    )()
    if isinstance(value, torch.dtype):
        assert torch.empty(0, dtype=value).dtype == value
        assert recording.TYPES[made] == str(value).removeprefix("torch.")
    elif isinstance(value, torch.memory_format):
        assert recording.FORMATS[made] == "channels_last"
    else:
        assert made == value
        assert type(made) is type(value)


@pytest.mark.parametrize(
    "name", ["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool", "bfloat16"]
)
def test_numbers_of_types_are_torchs(name: str) -> None:
    """Those of torch's own enumeration, which TorchScript's graphs use."""
    graph = torch._C.parse_ir(
        "graph(%x : Tensor, %kind : int):\n"
        "  %no : bool = prim::Constant[value=0]()\n  %none : NoneType = prim::Constant()\n"
        "  %y : Tensor = aten::to(%x, %kind, %no, %no, %none)\n  return (%y)\n"
    )
    to = torch._C._create_function_from_graph("to", graph)
    assert to(torch.zeros(2), recording.TYPES.index(name)).dtype == getattr(torch, name)


# --- CUDA graphs, whose part is played by a double --------------------------------------------------------------------


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    device = torch.device("cuda")


class Double:
    """Stands for CUDA graphs: what is called while one is being captured is not done, but remembered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: list[torch.Tensor]) -> None:
        self.state, self.spoils = state, False
        self.made: list[Any] = []
        double = self

        class Graph:
            def __init__(self) -> None:
                self.calls: list[Any] = []
                self.replays = 0
                double.made.append(self)

            def replay(self) -> None:
                self.replays += 1
                for function, args, named, out in self.calls:
                    again = function(*args, **named)
                    if isinstance(out, torch.Tensor) and again.data_ptr() != out.data_ptr():
                        out.copy_(again)
                if double.spoils:
                    double.state[0].add_(1)

        class Watch(TorchDispatchMode):
            def __init__(self, graph: Graph) -> None:
                super().__init__()
                self.graph = graph

            def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = function(*args, **(kwargs or {}))
                self.graph.calls.append((function, args, kwargs or {}, out))
                return out

        @contextlib.contextmanager
        def capture(graph: Graph) -> Iterator[None]:
            before = [one.clone() for one in double.state]
            with Watch(graph):
                yield
            for one, old in zip(double.state, before, strict=True):
                one.copy_(old)

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", capture)


def counting(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor, Callable[[], None], Double]:
    x, by = torch.zeros(2), torch.ones(2)

    def step() -> None:
        torch.add(torch.mul(x, 2), by, out=x)

    return x, by, step, Double(monkeypatch, [x])


def test_a_gpu_remembers_a_step_and_stretches_that_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, by, step, double = counting(monkeypatch)
    made = recorded(step, [x.as_subclass(OnGpu)], [by])
    assert isinstance(made, Captured)
    assert x.tolist() == [1.0, 1.0]
    value, lengths = 1, []
    for times in (3, 3, 5, 3, 5):
        made(times)
        for _ in range(times):
            value = 2 * value + 1
        assert x.tolist() == [value, value]
        lengths.append(len(double.made))
    assert lengths == [1, 2, 2, 2, 3]  # the single step; three of them, the second time; five, the second time
    assert [len(graph.calls) for graph in double.made] == [2, 6, 10]
    assert double.made[0].replays == 1 + 3 + 5


def test_graphs_are_few_and_not_long(monkeypatch: pytest.MonkeyPatch) -> None:
    _, by, step, _ = counting(monkeypatch)
    by.zero_()
    made = Captured(step, [by])
    for times in (2, 3, 4, 5, 6, 7):
        made(times)
        made(times)
    assert set(made._graphs) == {1, 4, 5, 6, 7}
    made(130)  # 64 + 64 + 2
    assert max(made._graphs) == 64
    made.bind([by])
    assert made._graphs
    made.bind([by.clone()])
    assert not made._graphs


def test_a_graph_that_gives_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x, by, step, double = counting(monkeypatch)
    double.spoils = True
    assert recorded(step, [x.as_subclass(OnGpu)], [by]) is None
    assert x.tolist() == [1.0, 1.0]


def test_what_cannot_be_captured_is_done_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    x, by, step, _ = counting(monkeypatch)

    @contextlib.contextmanager
    def refuses(graph: Any) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuses)
    assert recorded(step, [x.as_subclass(OnGpu)], [by]) is None
    assert x.tolist() == [1.0, 1.0]


def test_on_a_device_of_another_kind_a_step_is_taken_as_it_is() -> None:
    class Elsewhere(torch.Tensor):
        device = torch.device("xpu")

    x = torch.zeros(2)

    def step() -> None:
        x.add_(1)

    assert recorded(step, [x.as_subclass(Elsewhere)], []) is None
    assert x.tolist() == [1.0, 1.0]


def test_a_gpus_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole round in graphs of a step and of stretches gives the round's numbers."""
    task, local = task_of("mlp"), LocalSGD(lr=0.1, steps=6, batch=5, momentum=0.5)
    expected = trained(task_of("mlp"), 3, local, {})
    state: list[torch.Tensor] = []
    double = Double(monkeypatch, state)

    def on_gpu(step: Any, those: Any, loose: Any) -> Any:
        state[:] = list(those)
        step()
        made = Captured(step, loose)

        def run(times: int) -> None:
            state[:] = list(those)
            made(times)

        run.bind, run.release = made.bind, made.release  # type: ignore[attr-defined]
        return run

    monkeypatch.setattr(room, "recorded", on_gpu)
    found = trained(task, 3, local, {})
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))
    assert len(double.made) >= 2


def test_a_gradient_of_whole_data_does_not_notice_the_others() -> None:
    """Whose sums are as long as those of the largest client in the chunk would be rounded otherwise beside another."""
    sizes = [5, 9, 14, 23, 37, 60, 97]
    draw = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(sum(sizes), 20, generator=draw), torch.randint(0, 10, (sum(sizes),), generator=draw)
    data = Dataset("uneven", inputs, targets, inputs[:9], targets[:9], 10)
    first = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
    task = federate(data, clients=7, model=nn.Linear(20, 10), seed=1)
    task = dataclasses.replace(task, rows=torch.arange(sum(sizes)), first=first, size=torch.tensor(sizes))

    def told(who: list[int]) -> dict[int, torch.Tensor]:
        clients = torch.tensor(who)
        work = Work(task.fresh(0).expand(len(who), -1), ask=frozenset({"gradient-at-start"}))
        answer = Stacked(3)(task, clients, work, keyed.fold(1, clients), LocalSGD(steps=1, batch=5))
        return dict(zip(who, answer.told["gradient-at-start"], strict=True))

    together = told(list(range(7)))
    for who in ([0], [0, 1], [0, 6], [1, 2, 3], [2, 5], [0, 3, 4, 6]):
        assert all(slope.equal(together[i]) for i, slope in told(who).items())

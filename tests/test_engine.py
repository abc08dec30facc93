"""The engines against a readable twin (a deepcopy and torch.optim.SGD), and what they promise of a client's numbers."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedsim import LocalSGD, Loop, Stacked, Work, federate, keyed, make_task, models
from fedsim.engine import choose
from fedsim.engine.lanes import Lanes
from fedsim.engine.room import Room
from fedsim.local import Cosine, Inverse, InverseSqrt, Step
from fedsim.task import Task

MODELS: dict[str, Any] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 5)),
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    ),
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Dropout(0.4), nn.ReLU(), nn.Linear(12, 5)),
}


def toy(
    model: Any = "mlp",
    n: int = 12,
    examples: int = 150,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    classes: int = 5,
) -> Task:
    """n clients with 1 to about 40 of the random images each."""
    g = torch.Generator().manual_seed(seed)
    inputs = torch.rand(examples, 1, 8, 8, generator=g)
    targets = torch.randint(0, 5, (examples,), generator=g)
    data = SimpleNamespace(
        name="toy",
        inputs=inputs,
        targets=targets,
        test_inputs=inputs,
        test_targets=targets,
        classes=classes,
        mean=0.5,
        std=0.3,
    )
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(1, examples), n - 1, replace=False))
    first = np.r_[0, cuts]
    size = np.diff(np.r_[first, examples])
    parts = SimpleNamespace(rows=rng.permutation(examples), first=first, size=size, targets=None, moved=0)
    factory = MODELS[model] if isinstance(model, str) else model
    return make_task(data, parts, factory(), seed_module=lambda s: models.fresh(factory, s), dtype=dtype)  # type: ignore[arg-type]


def train(engine: Any, task: Task, local: LocalSGD, who: Any = None, t: int = 0, seed: int = 3, **work: Any) -> Any:
    who = torch.arange(task.n) if who is None else torch.as_tensor(who)
    start = work.pop("start", task.fresh(1).expand(len(who), -1))
    effort = work.pop("effort", None)
    return engine(task, who, Work(start, **work), keyed.fold(seed, "client", t, who), local, t, effort)


# The twin ------------------------------------------------------------------------------------------------------------


def mix(x: int) -> int:
    mask = 2**64 - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def fold(key: int, word: int) -> int:
    return mix((key + 0x9E3779B97F4A7C15 * ((word & (2**64 - 1)) + 1)) & (2**64 - 1))


def shuffle(key: int, size: int) -> list[int]:
    """The swap-or-not shuffle in plain integers."""
    base = fold(key & (2**64 - 1), keyed._word("shuffle"))
    draws = [fold(base, i) for i in range(72)]
    order = []
    for x in range(size):
        for r in range(24):
            other = ((draws[r] & (2**62 - 1)) % size - x) % size
            if (max(x, other) * (draws[24 + r] | 1) + draws[48 + r]) & 2**63:
                x = other
        order.append(x)
    return order


def twin(
    task: Task, module: nn.Module, local: LocalSGD, client: int, key: int, x: torch.Tensor, t: int, **work: Any
) -> tuple[torch.Tensor, float]:
    """One client's turn as a user of torch would write it."""
    net = copy.deepcopy(module).to(task.dtype)
    for p, value in zip(net.parameters(), task.layout.views(x).values(), strict=True):
        p.data.copy_(value)
    start = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.SGD(net.parameters(), lr=local.lr_at(t), momentum=local.momentum)
    mine = task.rows[task.first[client] : task.first[client] + task.size[client]]
    batch = local.batch or len(mine)
    losses, epoch, done = [], 0, 0
    steps = local.count(len(mine), work.get("effort", 1.0))
    shift = None if "shift" not in work else task.layout.views(work["shift"]).values()
    while done < steps:
        order = shuffle(fold(fold(key, keyed._word("epoch")), epoch), len(mine))
        for b in range(0, len(mine), batch):
            if done == steps:
                break
            rows = mine[order[b : b + batch]]
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net(task.ready(task.inputs[rows])), task.targets[rows], reduction="mean")
            loss.backward()
            losses.append((loss.item(), len(rows)))
            if local.clip is not None:
                norm = torch.cat([p.grad.reshape(-1) for p in net.parameters()]).norm()
                for p in net.parameters():
                    p.grad *= min(1.0, local.clip / float(norm))
            for i, p in enumerate(net.parameters()):
                p.grad += local.weight_decay * p.detach()
                p.grad *= work.get("scale", 1.0)
                p.grad += work.get("mu", 0.0) * (p.detach() - start[i])
                if shift is not None:
                    p.grad += list(shift)[i]
            optimiser.step()
            done += 1
        epoch += 1
    delta = torch.cat([(p.detach() - s).reshape(-1) for p, s in zip(net.parameters(), start, strict=True)])
    return delta, sum(v * c for v, c in losses) / sum(c for _, c in losses)


CASES = {
    "steps": (LocalSGD(lr=0.1, steps=5, batch=4), {}),
    "epochs": (LocalSGD(lr=0.1, epochs=2, batch=8), {}),
    "whole data": (LocalSGD(lr=0.1, steps=3, batch=None), {}),
    "momentum": (LocalSGD(lr=0.05, epochs=1, batch=4, momentum=0.9), {}),
    "clip and decay": (LocalSGD(lr=0.5, steps=7, batch=4, clip=0.3, weight_decay=0.1), {}),
    "schedule": (LocalSGD(lr=0.5, steps=2, batch=4, lr_schedule=Inverse(decay=0.5)), {}),
    "pull": (LocalSGD(lr=0.1, steps=5, batch=4), {"mu": 0.7}),
    "scale": (LocalSGD(lr=0.1, steps=5, batch=4, momentum=0.5), {"scale": 0.3}),
    "shift": (LocalSGD(lr=0.1, steps=5, batch=4), {"shift": True}),
    "everything": (LocalSGD(lr=0.1, epochs=1, batch=4, momentum=0.5, weight_decay=0.1, clip=1.0),
                   {"shift": True, "scale": 0.5, "mu": 0.2}),
}  # fmt: skip


@pytest.mark.parametrize("engine", [Stacked(5), Stacked(16), Loop()], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_equals_a_plain_torch_loop(case: str, engine: Any) -> None:
    local, work = CASES[case]
    module = MODELS["convolution"]()
    task = toy(lambda: module)
    work, twins = dict(work), dict(work)
    if "shift" in work:
        g = torch.Generator().manual_seed(5)
        work["shift"] = torch.randn(task.n, task.layout.size, dtype=task.dtype, generator=g)
    x, t = task.fresh(1), 4
    answer = train(engine, task, local, t=t, start=x.expand(task.n, -1), **work)
    keys = keyed.fold(3, "client", t, torch.arange(task.n))
    for i in range(task.n):
        if "shift" in work:
            twins["shift"] = work["shift"][i]
        delta, loss = twin(task, module, local, i, int(keys[i]) & (2**64 - 1), x, t, **twins)
        torch.testing.assert_close(answer.delta[i], delta, rtol=1e-9, atol=1e-12)
        assert abs(float(answer.loss[i]) - loss) < 1e-9


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("local", [
    LocalSGD(lr=0.1, epochs=2, batch=8), LocalSGD(lr=0.1, steps=3, batch=4, momentum=0.9),
])  # fmt: skip
def test_engines_agree(model: str, local: LocalSGD) -> None:
    """To rounding: rtol 1e-5 of a client's whole move in float32, 1e-12 in float64."""
    for dtype, rtol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        task = toy(model, dtype=dtype)
        ask = frozenset({"gradient-at-start", "loss-at-start", "velocity"})
        one = train(Loop(), task, local, ask=ask)
        for chunk in (1, 5, 12, 20):
            many = train(Stacked(chunk), task, local, ask=ask)
            assert many.told.keys() == one.told.keys()
            pairs = [(one.delta, many.delta), (one.loss, many.loss), *((one.told[k], many.told[k]) for k in one.told)]
            for a, b in pairs:
                assert float((a - b).norm()) <= rtol * float(a.norm())


@pytest.mark.parametrize("model", MODELS)
def test_a_client_does_not_notice_the_others(model: str) -> None:
    """Bit for bit: with chunk, threads and dtype fixed, whoever else is there, in whatever order."""
    task = toy(model, dtype=torch.float32)
    local = LocalSGD(lr=0.1, epochs=1, batch=4, momentum=0.5)
    everyone = train(Stacked(4), task, local)
    for who in ([3], [0, 3], [3, 5, 7, 11], [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]):
        few = train(Stacked(4), task, local, who=who)
        assert torch.equal(few.delta, everyone.delta[who])
        assert torch.equal(few.loss, everyone.loss[who])


def test_every_epoch_visits_each_example_once() -> None:
    """With lr 0 the mean training loss of whole epochs is the client's loss, whatever the order."""
    task = toy()
    base = train(Loop(), task, LocalSGD(lr=0.0, steps=1, batch=None)).loss
    for batch in (1, 4, 7, 64):
        for engine in (Stacked(5), Loop()):
            torch.testing.assert_close(train(engine, task, LocalSGD(lr=0.0, epochs=3, batch=batch)).loss, base)


def test_effort_is_a_share_of_the_steps() -> None:
    task = toy()
    local = LocalSGD(lr=0.1, steps=10, batch=4)
    effort = torch.linspace(0.05, 1.0, task.n)
    partial = train(Stacked(5), task, local, effort=effort)
    for i, e in enumerate(effort.tolist()):
        steps = int(np.ceil(round(e, 6) * 10))
        assert partial.span is not None
        assert float(partial.span[i]) == pytest.approx(steps * 0.1)
        alone = train(Stacked(5), task, dataclasses.replace(local, steps=steps), who=[i])
        assert torch.equal(alone.delta[0], partial.delta[i])


@pytest.mark.parametrize("local", [
    LocalSGD(lr=0.1, steps=5, batch=4), LocalSGD(lr=0.1, epochs=1, batch=4),
    LocalSGD(lr=0.1, steps=6, batch=4, momentum=0.8),
])  # fmt: skip
@pytest.mark.parametrize("work", [{}, {"scale": 0.25}, {"mu": 0.9}, {"scale": 0.5, "mu": 0.3}])
def test_span_turns_moves_into_gradients(local: LocalSGD, work: dict[str, float]) -> None:
    """delta = -span * gradient exactly where the gradient is constant: a model whose output is its loss."""

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.zeros(3))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.flatten(1)[:, :3].sum(1) * 0 + (self.x * torch.tensor([1.0, -2.0, 3.0])).sum()

    task = toy(Slope, classes=0)
    for engine in (Stacked(4), Loop()):
        answer = train(engine, task, local, **work)
        slope = torch.tensor([1.0, -2.0, 3.0], dtype=task.dtype)
        torch.testing.assert_close(answer.delta, -answer.span[:, None] * slope)
    assert train(Loop(), task, dataclasses.replace(local, clip=1.0)).span is None


def test_parameters_without_dimensions() -> None:
    """A scalar parameter is a parameter like any other."""

    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(2.0))
            self.offset = nn.Parameter(torch.zeros(5))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.gain * inputs.flatten(1)[:, :5] + self.offset

    task = toy(Gain)
    ask = frozenset({"gradient-at-start"})
    one, many = (
        train(engine, task, LocalSGD(steps=3, batch=4, momentum=0.5), ask=ask) for engine in (Loop(), Stacked(4))
    )
    torch.testing.assert_close(one.delta, many.delta)
    torch.testing.assert_close(one.told["gradient-at-start"], many.told["gradient-at-start"])
    assert bool(one.delta[:, 0].abs().gt(0).all())


def test_velocity_is_carried_over() -> None:
    """Two turns of 3 steps with the velocity handed on are one of 6, on whole-data batches."""
    task = toy()
    once = train(Loop(), task, LocalSGD(lr=0.1, steps=6, batch=None, momentum=0.9))
    half = LocalSGD(lr=0.1, steps=3, batch=None, momentum=0.9)
    for engine in (Stacked(5), Loop()):
        a = train(engine, task, half, ask=frozenset({"velocity"}))
        start = task.fresh(1) + a.delta
        b = train(engine, task, half, start=start, velocity=a.told["velocity"])
        torch.testing.assert_close(a.delta + b.delta, once.delta)


def test_lanes_take_a_step_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many train; and the model itself is entered to make the program: traced, and held against it."""
    task = toy(n=12, examples=120)
    taken, entries = [], []
    advance = Room.advance

    def watched(self: Room, steps: int) -> None:
        taken.append(steps)
        advance(self, steps)

    def counted(params: Any, inputs: torch.Tensor, key: Any) -> torch.Tensor:
        entries.append(1)
        return task.outputs_of(params, inputs, key)

    monkeypatch.setattr(Room, "advance", watched)
    seen = dataclasses.replace(task, outputs_of=counted)
    for k, stretches in ((1, [5]), (4, [5]), (5, [5, 5]), (12, [5, 5, 5])):
        taken.clear()
        train(Stacked(4), seen, LocalSGD(lr=0.1, steps=5, batch=4), who=list(range(k)))
        assert taken == stretches
    assert len(entries) == 2


def test_lanes_waste_only_the_end() -> None:
    lanes = Lanes([9, 1, 1, 1, 3, 3, 5, 1], 3)
    assert lanes.length == 9
    seen = {(int(j), int(s)) for j, s in zip(lanes.job.flatten(), lanes.tau.flatten(), strict=True) if s >= 0}
    assert seen == {(j, s) for j, steps in enumerate([9, 1, 1, 1, 3, 3, 5, 1]) for s in range(steps)}


def test_work_it_cannot_do_is_refused() -> None:
    task, local = toy(), LocalSGD(steps=1)
    for engine in (Stacked(), Loop()):
        with pytest.raises(ValueError, match="clients can tell"):
            train(engine, task, local, ask=frozenset({"hessian"}))
        with pytest.raises(ValueError, match="no momentum"):
            train(engine, task, local, velocity=torch.zeros(task.n, task.layout.size))


def test_the_chunk_fits_the_budget_and_the_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    task, local = toy("mlp"), LocalSGD(steps=5, batch=16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert choose(task, local, cohort=100, memory=10**9).chunk == 25  # four clients in every lane
    assert choose(task, local, cohort=33, memory=10**9).chunk == 17
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert choose(task, local, cohort=100, memory=10**9).chunk == 25
    assert choose(task, local, cohort=40, memory=10**9).chunk == 20  # for each of two workers
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert choose(toy("convolution"), local, cohort=100).chunk == 1  # of which a CPU has none for several models
    wide = federate("clusters", clients=8, model=models.MLP(hidden=(5000,)))
    assert choose(wide, local, cohort=8).chunk == 5 * 2**20 // (2 * 4 * wide.layout.size)
    assert choose(task, local, cohort=2.3, memory=10**9).chunk == 2
    assert choose(task, local, cohort=100, memory=1).chunk == 1
    uneven = LocalSGD(epochs=1, batch=1)  # steps = sizes: 12 clients, 150 examples, the largest a good third of them
    assert choose(task, uneven, cohort=12, memory=10**9).chunk == round(150 / max(task.sizes))


class Honest(TorchDispatchMode):
    """Fails where a host tensor and a device tensor meet, other than in a copy made on purpose."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.ndim]
        kinds = {x.device.type for x in tensors}
        if len(kinds) > 1 and "copy" not in func.__name__:
            raise AssertionError(f"{func} mixes {kinds}")
        return func(*args, **(kwargs or {}))


def elsewhere(task: Task) -> Task:
    """The task on a device that is not there: data-dependent questions (item, nonzero) raise."""
    task.sizes, task.firsts  # noqa: B018  what the host knows, before the data leave it
    away = copy.copy(task)
    for name, value in vars(task).items():
        if isinstance(value, torch.Tensor):
            object.__setattr__(away, name, value.to("lazy"))
    return away


@pytest.mark.parametrize("local", [
    LocalSGD(steps=5, batch=4), LocalSGD(epochs=2, batch=8, momentum=0.9, clip=1.0, weight_decay=0.1),
])  # fmt: skip
@pytest.mark.parametrize("model", ["mlp", "convolution", "dropout"])
def test_a_round_asks_the_device_nothing(model: str, local: LocalSGD) -> None:
    task = toy(model, dtype=torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        away = elsewhere(task)
        x = torch.zeros(task.layout.size, device="lazy")
        who = torch.arange(0, task.n, 2, device="lazy")
        keys = keyed.fold(7, "client", 3, who)
    who_here = torch.arange(0, task.n, 2)
    ask = frozenset({"gradient-at-start", "loss-at-start", "velocity"})
    with mode, Honest():
        answer = Stacked(4)(away, who_here, Work(x.expand(6, -1), mu=0.1, shift=x, ask=ask), keys, local, 3)
        assert answer.delta.device.type == answer.loss.device.type == "lazy"


def test_schedules_of_the_learning_rate() -> None:
    assert [Inverse(1.0).factor(t) for t in (0, 1, 3)] == [1.0, 0.5, 0.25]
    assert InverseSqrt(0.1).factor(30) == 0.5
    assert [Step(10, 0.5).factor(t) for t in (9, 10, 20)] == [1.0, 0.5, 0.25]
    assert [Cosine(10, 0.2).factor(t) for t in (0, 5, 10, 50)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


@pytest.mark.parametrize(("settings", "message"), [
    ({"steps": 1, "lr": -1.0}, "lr must be"), ({"steps": 1, "lr": float("nan")}, "lr must be"),
    ({}, "either steps or epochs"), ({"steps": 1, "epochs": 1}, "either steps or epochs"),
    ({"steps": 0}, "steps must be a whole number"), ({"steps": 1, "momentum": 1.0}, "momentum must be"),
    ({"steps": 1, "clip": 0.0}, "clip must be positive"), ({"steps": 1, "batch": 0}, "batch must be"),
    ({"steps": 1.5}, "steps must be a whole number"),
    ({"steps": 1, "batch": "all"}, "a whole number from 1; None is all of a client's examples, got 'all'"),
    ({"steps": 1, "weight_decay": -0.1}, "weight_decay"),
])  # fmt: skip
def test_impossible_training_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalSGD(**settings)

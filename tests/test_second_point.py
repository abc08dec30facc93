"""Two gradients a step: a second point that stays, on the same minibatch, and the mean gradient along the way.

The engines against the step written out with autograd: minibatches, dropout masks, decay, momentum, pull and shift.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import close, noise, same, slope
from torch import Tensor, nn

from fedsim import LocalSGD, Work, federate, keyed
from fedsim.engine import Loop, Stacked
from fedsim.engine.loop import batch_rows, rows_of
from fedsim.engine.plan import Job
from fedsim.task import Task

N = 7
F64 = torch.float64


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(20, 6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 10))


@pytest.fixture(scope="module")
def task() -> Task:
    found: Task = federate("clusters", clients=N, model=network, seed=1, dtype=F64)
    assert len(set(found.sizes)) > 3
    return found


def twin(task: Task, local: LocalSGD, i: int, key: Tensor, work: Work) -> tuple[Tensor, Tensor]:
    """How far client i moves, and the mean of its own gradients."""
    assert work.other is not None
    start, other, shift = work.start[i], work.other[i], work.shift[i]  # type: ignore[index]
    y, v, raw = start.clone(), torch.zeros_like(start), []
    for s in range(local.count(task.sizes[i])):
        rows, step = batch_rows(task, local, rows_of(task, i), key, s), keyed.fold(key, "step", s)
        raw.append(slope(task, y, rows, step) + local.weight_decay * y)
        second = slope(task, other, rows, step) + local.weight_decay * other
        v = local.momentum * v + work.scale * raw[-1] - work.against * second + work.mu * (y - start) + shift
        y = y - local.lr * v
    return y - start, torch.stack(raw).mean(0)


LOCALS = [
    LocalSGD(lr=0.2, steps=3, batch=8),
    LocalSGD(lr=0.1, epochs=1, batch=32),
    LocalSGD(lr=0.1, epochs=1, batch=64, momentum=0.5, weight_decay=0.1),
]


def work_of(task: Task, **more: Any) -> Work:
    start = task.fresh(1)[None] + noise(task, 1)
    given = {"shift": noise(task, 2), "scale": 0.7, "mu": 0.2, "other": start + noise(task, 3), "against": 0.4}
    return Work(start, **given | more, ask=frozenset({"mean-gradient"}))


def train(engine: Any, task: Task, work: Work, local: LocalSGD, who: Any = None) -> Any:
    who = torch.arange(N) if who is None else torch.tensor(who)
    parts = {name: getattr(work, name)[who] for name in ("start", "shift", "other")}
    return engine(task, who, work._replace(**parts), keyed.fold(3, "client", 0, who), local)


@pytest.mark.parametrize("engine", [Stacked(3), Stacked(16), Loop()], ids=str)
@pytest.mark.parametrize("local", LOCALS, ids=["steps", "epochs", "momentum and decay"])
def test_equals_the_step_written_out(task: Task, local: LocalSGD, engine: Any) -> None:
    work = work_of(task)
    answer, keys = train(engine, task, work, local), keyed.fold(3, "client", 0, torch.arange(N))
    for i in range(N):
        delta, raw = twin(task, local, i, keys[i], work)
        torch.testing.assert_close(answer.delta[i], delta, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(answer.told["mean-gradient"][i], raw, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", [Stacked(3), Loop()], ids=str)
def test_at_the_same_point_the_gradients_cancel(task: Task, engine: Any) -> None:
    """One step from x with the whole gradient at x against it goes nowhere: same examples, same dropout."""
    x = task.fresh(1).expand(N, -1)
    work = Work(x, other=x, against=1.0)
    answer = engine(task, torch.arange(N), work, keyed.fold(3, torch.arange(N)), LocalSGD(lr=0.5, steps=1, batch=8))
    close(answer.delta, torch.zeros_like(answer.delta), 1e-15)


def test_the_question_alone_changes_nothing(task: Task) -> None:
    """Asking for the mean gradient, which takes the general step, moves nobody elsewhere."""
    local = LocalSGD(lr=0.2, steps=4, batch=8)
    x = task.fresh(1).expand(N, -1)
    for engine in (Stacked(4), Loop()):
        asked, plain = (
            engine(task, torch.arange(N), Work(x, ask=ask), keyed.fold(3, torch.arange(N)), local)
            for ask in (frozenset({"mean-gradient"}), frozenset[str]())
        )
        close(asked.delta, plain.delta, 1e-12)
        close(asked.told["mean-gradient"], -plain.delta / plain.span[:, None], 1e-10)


def test_a_client_does_not_notice_the_others() -> None:
    """Bit for bit in float32, whoever shares the lanes, and with cohorts of other runs beside it."""
    task = federate("clusters", clients=N, model=network, seed=1)
    work, local = work_of(task), LocalSGD(lr=0.1, epochs=1, batch=16)
    engine = Stacked(3)
    together = train(engine, task, work, local)
    for i in (0, 4, 6):
        alone = train(engine, task, work, local, [i])
        assert torch.equal(alone.delta[0], together.delta[i])
        assert torch.equal(alone.told["mean-gradient"][0], together.told["mean-gradient"][i])
    who, keys = torch.arange(N), keyed.fold(3, "client", 0, torch.arange(N))
    x = task.fresh(2)[None]
    shared = Work(x.expand(N, -1), shift=0.01, other=x.expand(N, -1) + 0.1, against=0.9)
    jobs = [
        Job(task, who, work, keys, local),
        Job(task, who, shared, keys, local),
        Job(task, who, shared._replace(against=0.2), keys, LocalSGD(lr=0.05, steps=2, batch=16)),
        Job(task, who, Work(x.expand(N, -1), shift=0.01), keys, local),
    ]
    for job, answer in zip(jobs, engine.together(jobs), strict=True):
        own = engine(*job)
        same(answer.delta, own.delta)
        assert answer.told.keys() == own.told.keys() == ({"mean-gradient"} if job.work.ask else set())
    same(engine.together(jobs)[0].told["mean-gradient"], together.told["mean-gradient"])


def test_clipped_gradients_at_two_points_are_refused(task: Task) -> None:
    for engine in (Stacked(3), Loop()):
        with pytest.raises(ValueError, match="which of them is clipped is not said: leave out clip"):
            train(engine, task, work_of(task), LocalSGD(lr=0.1, steps=1, clip=1.0))

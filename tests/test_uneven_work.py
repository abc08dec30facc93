"""Work that differs from client to client, from parameter to parameter and from step to step.

The engines against the step written out with autograd; then messages, spans, and cohorts of several runs at once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import noise, same, slope
from test_engine import elsewhere, toy, train
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fedsim import LocalSGD, Loop, Stacked, Work, keyed
from fedsim.engine.loop import batch_rows, rows_of
from fedsim.engine.plan import Job, ends
from fedsim.strategy import Phase
from fedsim.task import Task

N = 6
LOCALS = [
    LocalSGD(lr=0.2, steps=5, batch=4),
    LocalSGD(lr=0.1, epochs=2, batch=8, momentum=0.6, weight_decay=0.1),
]
ENGINES = [Stacked(2), Stacked(8), Loop()]
HOW = {"ids": str}


@pytest.fixture(scope="module")
def task() -> Task:
    found = toy("mlp", n=N)
    assert len(set(found.sizes)) > 3
    return found


def minibatch(task: Task, local: LocalSGD, i: int, s: int) -> tuple[Tensor, Tensor]:
    """Places in the pool, and the key, of client i's step s in round 0."""
    key = keyed.fold(3, "client", 0, torch.tensor([i]))[0]
    return batch_rows(task, local, rows_of(task, i), key, s), keyed.fold(key, "step", s)


# A pull of each client's own -----------------------------------------------------------------------------------------

PULLS = torch.tensor([[0.0], [0.1], [0.5], [1.0], [2.0], [0.3]], dtype=torch.float64)


@pytest.mark.parametrize("engine", ENGINES, **HOW)
@pytest.mark.parametrize("local", LOCALS, ids=["plain", "heavy"])
def test_each_client_is_pulled_as_hard_as_it_was_told(task: Task, local: LocalSGD, engine: Any) -> None:
    """Each gets what it would get from a number: move, loss and span."""
    together = train(engine, task, local, mu=PULLS, shift=noise(task, 1))
    for i in range(N):
        alone = train(Loop(), task, local, who=[i], mu=float(PULLS[i]), shift=noise(task, 1)[i : i + 1])
        torch.testing.assert_close(together.delta[i], alone.delta[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(together.span[i], alone.span[0], rtol=1e-12, atol=0)
    other = train(engine, task, local, mu=PULLS.flip(0), shift=noise(task, 1))
    assert not torch.allclose(other.delta, together.delta, atol=1e-4)


def test_runs_with_own_and_with_common_pulls_share_the_lanes(task: Task) -> None:
    who = torch.arange(N)
    x, keys = task.fresh(1).expand(N, -1), keyed.fold(3, "client", 0, who)
    jobs = [
        Job(task, who, Work(x, mu=PULLS), keys, LOCALS[0]),
        Job(task, who, Work(x, mu=0.4, shift=noise(task, 2)), keys, LOCALS[0]),
        Job(task, who, Work(x), keys, LOCALS[0]),
    ]
    engine = Stacked(3)
    for job, answer in zip(jobs, engine.together(jobs), strict=True):
        own = engine(*job)
        same(answer.delta, own.delta)
        same(answer.span, own.span)


def test_own_pulls_ask_the_device_nothing(task: Task) -> None:
    away, work = told_elsewhere(task, mu=PULLS)
    with away[0]:
        answer = Stacked(4)(*away[1:3], work, *away[3:])
        assert answer.delta.device.type == answer.span.device.type == "lazy"


def told_elsewhere(task: Task, **work: Any) -> tuple[tuple[Any, ...], Work]:
    """A mode, and all that an engine is given, for a device that is not there; vectors of `work` are sent there."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        away = elsewhere(task)
        x = torch.zeros(task.layout.size, device="lazy", dtype=task.dtype)
        keys = keyed.fold(7, "client", 3, torch.arange(N, device="lazy"))
        there = {name: value.to("lazy") if isinstance(value, Tensor) else value for name, value in work.items()}
    return (mode, away, torch.arange(N), keys, LOCALS[0], 3), Work(x.expand(N, -1), **there)


# What each parameter's gradient is multiplied by ----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES, **HOW)
@pytest.mark.parametrize("local", LOCALS, ids=["plain", "heavy"])
@pytest.mark.parametrize("common", [True, False], ids=["for all clients", "for each client"])
def test_each_parameter_s_gradient_is_multiplied_by_its_own(
    task: Task, local: LocalSGD, engine: Any, common: bool
) -> None:
    """The step written out, with a second point whose gradients are multiplied apart too."""
    scale, against = (1 + 5 * noise(task, seed, 1 if common else N) for seed in (3, 4))
    other, shift = task.fresh(2).expand(N, -1) + noise(task, 5), noise(task, 6)
    answer = train(engine, task, local, scale=scale, against=against, other=other, shift=shift)
    assert answer.span is None  # there is one for each parameter
    for i in range(N):
        y, v = task.fresh(1), torch.zeros(task.layout.size, dtype=task.dtype)
        for s in range(local.count(task.sizes[i])):
            rows, key = minibatch(task, local, i, s)
            one, two = (slope(task, at, rows, key) + local.weight_decay * at for at in (y, other[i]))
            j = 0 if common else i
            v = local.momentum * v + scale[j] * one - against[j] * two + shift[i]
            y = y - local.lr * v
        torch.testing.assert_close(answer.delta[i], y - task.fresh(1), rtol=1e-9, atol=1e-12)


def test_runs_with_numbers_and_with_vectors_share_the_lanes(task: Task) -> None:
    who = torch.arange(N)
    x, keys = task.fresh(1).expand(N, -1), keyed.fold(3, "client", 0, who)
    works = [
        Work(x, scale=1 + noise(task, 1, 1), other=x, against=1 + noise(task, 2)),
        Work(x, scale=0.4, other=x + noise(task, 3), against=torch.linspace(0, 1, N, dtype=task.dtype)[:, None]),
        Work(x, scale=0.4, other=x, against=0.4),
    ]
    jobs, engine = [Job(task, who, work, keys, LOCALS[0]) for work in works], Stacked(3)
    for job, answer in zip(jobs, engine.together(jobs), strict=True):
        same(answer.delta, engine(*job).delta)


def test_a_question_moves_nobody(task: Task) -> None:
    """With no work to do a client only answers, in either engine, and answers the same."""
    ask, nobody = frozenset({"gradient-at-start"}), torch.zeros(N)
    told = []
    for engine in ENGINES:
        answer = train(engine, task, LOCALS[0], ask=ask, effort=nobody)
        assert not answer.delta.any()
        assert not answer.loss.any()
        told.append(answer.told["gradient-at-start"])
    torch.testing.assert_close(told[0], told[2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(told[1], told[2], rtol=1e-9, atol=1e-12)
    working = train(Loop(), task, LOCALS[0], ask=ask)
    torch.testing.assert_close(told[2], working.told["gradient-at-start"], rtol=0, atol=0)


# Phases ---------------------------------------------------------------------------------------------------------------


def phases_of(task: Task) -> tuple[Phase, ...]:
    """Three: the head, everything but the first bias, the body; the first does not count."""
    free = torch.zeros(3, task.layout.size, dtype=torch.bool)
    at = dict(zip(task.layout.names, torch.arange(task.layout.size).split(task.layout.sizes), strict=True))
    head = [name for name in at if name.startswith("3.")]
    free[0, torch.cat([at[name] for name in head])] = True
    free[1] = True
    free[1, at["1.bias"]] = False
    free[2] = ~free[0]
    return Phase(0.5, free[0], counts=False), Phase(0.2, free[1]), Phase(0.3, free[2])


PHASED = [
    LocalSGD(lr=0.2, steps=7, batch=4),
    LocalSGD(lr=0.1, epochs=3, batch=8, momentum=0.6, weight_decay=0.1),
    LocalSGD(lr=0.2, steps=6, batch=4, momentum=0.3, weight_decay=0.1, clip=0.5),
]


def test_a_phase_ends_where_its_share_rounded_down_ends(task: Task) -> None:
    phases = phases_of(task)
    assert ends(phases, 10) == [5, 7, 10]
    assert ends(phases, 3) == [1, 2, 3]
    assert ends(phases, 1) == [0, 0, 1]  # the last phase has what there is
    assert ends((Phase(10 / 11, phases[0].free), Phase(1 / 11, phases[2].free)), 11) == [10, 11]


@pytest.mark.parametrize("engine", ENGINES, **HOW)
@pytest.mark.parametrize("local", PHASED, ids=["plain", "heavy", "clipped"])
def test_what_is_not_free_stands_still(task: Task, local: LocalSGD, engine: Any) -> None:
    """torch's own optimiser on models whose parameters are taken out of it and put back."""
    phases, effort = phases_of(task), torch.tensor([1.0, 0.5, 1.0, 0.3, 1.0, 1.0])
    answer = train(engine, task, local, phases=phases, effort=effort, ask=frozenset({"mean-gradient"}))
    for i in range(N):
        params = {name: view.clone().requires_grad_() for name, view in task.layout.views(task.fresh(1)).items()}
        sgd = torch.optim.SGD(
            params.values(), lr=local.lr, momentum=local.momentum, weight_decay=local.weight_decay
        )  # fmt: skip
        for value in params.values():  # torch's momentum begins as the first gradient, which is momentum from 0
            sgd.state[value] = {"momentum_buffer": torch.zeros_like(value)} if local.momentum else {}
        steps, raw, counted = local.count(task.sizes[i], float(effort[i])), torch.zeros_like(task.fresh(1)), 0
        stops = ends(phases, steps)
        for s in range(steps):
            phase = phases[next(j for j, stop in enumerate(stops) if s < stop)]
            rows, key = minibatch(task, local, i, s)
            sgd.zero_grad()
            task.losses(params, task.inputs[rows], task.targets[rows], key).mean().backward()
            for name, view in task.layout.views(phase.free).items():
                if not view.any():
                    params[name].grad = None
                else:
                    assert view.all()
            moving = [value for value in params.values() if value.grad is not None]
            if local.clip is not None:
                norm = torch.cat([value.grad.reshape(-1) for value in moving]).norm()
                for value in moving:
                    value.grad *= min(1.0, local.clip / float(norm))
            if phase.counts:
                counted += 1
                found = {n: torch.zeros_like(v) if v.grad is None else v.grad for n, v in params.items()}
                raw += task.layout.flat(found)
                raw += local.weight_decay * task.layout.flat(params).detach()
            sgd.step()
        moved = task.layout.flat(params).detach() - task.fresh(1)
        torch.testing.assert_close(answer.delta[i], moved, rtol=1e-9, atol=1e-12)
        if local.clip is None:
            torch.testing.assert_close(answer.told["mean-gradient"][i], raw / counted, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(answer.span[i], torch.tensor(local.span(counted, 0), dtype=task.dtype))
        assert torch.equal(answer.delta[i] != 0, (moved != 0))


def test_runs_with_other_phases_share_the_lanes(task: Task) -> None:
    who = torch.arange(N)
    x, keys, phases = task.fresh(1).expand(N, -1), keyed.fold(3, "client", 0, who), phases_of(task)
    jobs = [
        Job(task, who, Work(x, phases=phases), keys, PHASED[0]),
        Job(task, who, Work(x, phases=(phases[2]._replace(share=1.0),)), keys, PHASED[0]),
        Job(task, who, Work(x, phases=(phases[2]._replace(share=0.4), phases[0]._replace(share=0.6))), keys, LOCALS[0]),
        Job(task, who, Work(x), keys, PHASED[0]),
    ]
    engine = Stacked(3)
    for job, answer in zip(jobs, engine.together(jobs), strict=True):
        own, slow = engine(*job), Loop()(*job)
        same(answer.delta, own.delta)
        same(answer.span, own.span)
        torch.testing.assert_close(own.delta, slow.delta, rtol=1e-9, atol=1e-12)
        same(own.span, slow.span)


def test_phases_ask_the_device_nothing(task: Task) -> None:
    phases = phases_of(task)
    away, work = told_elsewhere(task)
    with away[0]:
        there = tuple(phase._replace(free=phase.free.to("lazy")) for phase in phases)
        ask = frozenset({"mean-gradient"})
        answer = Stacked(4)(*away[1:3], work._replace(phases=there, ask=ask), *away[3:])
        assert answer.delta.device.type == answer.span.device.type == "lazy"


def test_shares_that_are_not_a_whole_turn_are_refused(task: Task) -> None:
    for engine in ENGINES:
        with pytest.raises(ValueError, match=r"shares of a turn's phases must sum to 1, got \[0.5, 0.2\]"):
            train(engine, task, PHASED[0], phases=phases_of(task)[:2])

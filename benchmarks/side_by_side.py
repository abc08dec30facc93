"""Many runs of logistic regression as one program, for benchmarks that compare strategies by the hundred.

Runs on one task, schedule and seed draw the same minibatches, since a client's draws depend on (seed, round, client)
alone. So the examples are fetched once for all runs, whose models stand side by side as the columns of one matrix, and
a local step of k clients in M runs is two batched products. The gradient is written out, softmax minus target; which
examples make a minibatch is `fedsim.engine.plan.minibatches`, and strategies, weights and memory are fedsim's own.
`fedsim.simulate` gives the same numbers to rounding, run by run: tests/test_benchmarks.py holds the two together.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim import keyed
from fedsim.engine.plan import minibatches, spans, width
from fedsim.local import LocalSGD
from fedsim.participation import Schedule
from fedsim.simulation import begin, prepare
from fedsim.strategy import Round, Strategy, Work
from fedsim.task import Task


class Contender(NamedTuple):
    """A strategy and its learning rate; all else in local training is common to the runs that stand side by side."""

    strategy: Strategy
    lr: float


class Shared(NamedTuple):
    """A task of logistic regression and its examples as the products want them."""

    task: Task
    inputs: Tensor  # [N, d]  the pool, normalised


def share(task: Task) -> Shared:
    """Raises ValueError unless the model is logistic regression."""
    shapes = [tuple(shape) for shape in task.layout.shapes]
    features = task.inputs[0].numel()
    if shapes != [(task.classes, features), (task.classes,)]:
        raise ValueError(f"only models W [C, d], b [C] of logistic regression stand side by side, got {shapes}")
    return Shared(task, task.ready(task.inputs).flatten(1))


def train(
    shared: Shared, who: Tensor, starts: Tensor, keys: Tensor, local: LocalSGD, rates: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """What an engine does, for M runs: moves [M, k, P] and mean losses [M, k] of the clients `who` [k] that start from
    each of the models `starts` [M, P], run m with the learning rate rates[m]."""
    task, batch, steps = shared.task, width(shared.task, local), local.steps
    if steps is None or local != LocalSGD(lr=local.lr, steps=steps, batch=local.batch):
        raise ValueError(f"side by side clients take a number of plain steps at a constant rate, got {local}")
    M, k, C, d = len(starts), len(who), task.classes, shared.inputs.shape[1]
    s = torch.arange(steps).expand(k, -1)  # [k, S]
    size, first = task.size[who, None].expand(-1, steps), task.first[who, None].expand(-1, steps)
    place, counted, _ = minibatches(keys[:, None].expand(-1, steps), size, first, s, s >= 0, batch)
    pool = task.rows[place]  # [k, S, b]
    weight = counted.to(task.dtype)
    weight = weight / weight.sum(-1, keepdim=True)
    start = starts[:, : C * d].reshape(M * C, d), starts[:, C * d :].reshape(1, M * C)
    W, b = (value.expand(k, -1, -1).clone() for value in start)  # [k, M C, d], [k, 1, M C]
    rate = torch.tensor(rates, dtype=task.dtype)[:, None]
    one = torch.ones((), dtype=task.dtype)
    loss = torch.zeros(k, M, dtype=task.dtype)
    for j in range(steps):
        x, w = shared.inputs[pool[:, j]], weight[:, j, :, None, None]  # [k, b, d], [k, b, 1, 1]
        target = task.targets[pool[:, j], None, None].expand(-1, -1, M, 1)
        chance = torch.baddbmm(b, x, W.mT).view(k, batch, M, C).log_softmax(-1)  # its logarithm, so far
        loss -= (chance.gather(-1, target) * w).sum((1, 3)) / steps
        slope = chance.exp_().scatter_add_(-1, target, -one.expand(target.shape))
        change = (slope * (w * -rate)).view(k, batch, M * C)
        W.baddbmm_(change.mT, x)
        b += change.sum(1, keepdim=True)
    delta = torch.cat([(W - start[0]).view(k, M, C * d), (b - start[1]).view(k, M, C)], dim=-1)
    return delta.transpose(0, 1), loss.T


def together(
    shared: Shared, contenders: Sequence[Contender], schedule: Schedule, local: LocalSGD, *, seed: int, p: Tensor
) -> Iterator[dict[int, Tensor]]:
    """`fedsim.simulate` for many at once: yields after each round the model [P] of every contender, by its place.

    A contender whose model is no longer finite has diverged, and is missing from then on.
    """
    task = shared.task
    strategies = {m: prepare(each.strategy, task, schedule) for m, each in enumerate(contenders)}
    states: dict[int, Any] = {m: begin(strategy, task, seed=seed, p=p) for m, strategy in strategies.items()}
    for t, row in enumerate(schedule):
        who = row.chosen
        starts = torch.stack([states[m].x for m in states]) if states else torch.empty(0)
        rates = [contenders[m].lr for m in states]
        if len(who) and states:
            delta, loss = train(shared, who, starts, keyed.fold(seed, "client", t, who), local, rates)
        else:
            delta = starts.new_empty((len(states), 0, task.layout.size))
            loss = starts.new_empty((len(states), 0))
        models: dict[int, Tensor] = {}
        for i, m in enumerate(list(states)):
            mine = replace(local, lr=rates[i])
            work = Work(starts[i].expand(len(who), -1))
            span = spans(mine, [local.steps or 0] * len(who), t, work)
            round = Round(t, who, work.start, delta[i], span, loss[i], row.available, rates[i])
            states[m] = strategies[m].step(states[m], round)
            model = strategies[m].model(states[m])
            if bool(torch.isfinite(model.sum())):
                models[m] = model
            else:
                del states[m]
        yield models


def evaluate(task: Task, features: Tensor, targets: Tensor, models: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [M, N] and hits [M, N] of logistic models [M, P] on normalised features [N, d]."""
    M, C, d = len(models), task.classes, features.shape[1]
    W, b = models[:, : C * d].reshape(M * C, d), models[:, C * d :].reshape(M * C)
    losses, hits = [], []
    for x, y in zip(features.split(4096), targets.split(4096), strict=True):
        outputs = torch.addmm(b, x, W.T).view(len(x), M, C)
        hits.append((outputs.argmax(-1) == y[:, None]).T)
        target = y[:, None, None].expand(-1, M, 1)
        losses.append((outputs.logsumexp(-1) - outputs.gather(-1, target)[..., 0]).T)
    return torch.cat(losses, 1), torch.cat(hits, 1)


def verdict(intervals: Iterable[dict[str, float]]) -> str:
    """Of a claim all of whose differences should be positive."""
    found = list(intervals)
    if any(one["high"] < 0 for one in found):
        return "does not hold"
    return "holds" if all(one["low"] > 0 for one in found) else "not clear"


def rounded(numbers: dict[str, float]) -> dict[str, float]:
    """Figures as results files hold them."""
    return {name: round(value, 6) for name, value in numbers.items()}


def origin() -> dict[str, Any]:
    """Where numbers come from: the commit of this checkout and the versions that matter."""
    folder = Path(__file__).parent
    asked = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")}
    return {
        "commit": asked.stdout.strip() or None,
        "versions": {"python": platform.python_version(), **versions, "processor": platform.machine()},
        "threads": torch.get_num_threads(),
    }

"""What settings are judged on while they are tuned: part of everybody's training examples, or clients who never train.

Either way the test set is taken out of the task, and what [task] holds out stays out of it, so that no choice can have
seen them. The value of a model is Σ p_i F_i over the clients that validate, with the objective's weights p; of nodes
[n, P] the mean value of those that the experiment tests, each on all the clients' validation examples.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim import keyed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fedsim.compare import World
    from fedsim.data import Dataset
    from fedsim.experiment import Experiment
    from fedsim.experiment.tuning import TuneTable
    from fedsim.participation import Schedule


class Court(NamedTuple):
    """A tuning seed's world, and who judges there."""

    world: World  # its task holds out the validation examples and has no test set
    p: Tensor  # [n] float64: the objective's weights of those who judge; 0 for others
    metric: str  # "loss" or "accuracy"

    def value(self, model: Tensor) -> float:
        """The metric of a model [P] or of nodes [n, P] on the validation examples."""
        from fedsim import measure

        models = model[None] if model.ndim == 1 else model[self.world.nodes.to(model.device)]
        found = []
        for x in models:
            figures = measure.per_client(self.world.task, x)
            values = figures.loss if self.metric == "loss" else figures.accuracy
            assert values is not None  # `court` has seen to it
            there = figures.measured
            found.append(float(self.p[there] @ values[there] / self.p[there].sum()))
        return sum(found) / len(found)


def court(
    experiment: Experiment, table: TuneTable, dataset: Dataset, rounds: int, seed: int, like: Court | None = None
) -> Court:
    """The world of a tuning seed; another seed's (`like`) lends its examples and model. Raises ValueError where nothing
    is left to judge by."""
    from fedsim import compare

    if table.metric == "accuracy" and not dataset.classes:
        raise ValueError(f'[tune] metric = "accuracy" needs classes, and {dataset.name} has none; use metric = "loss"')
    world = compare.make_world(experiment.settled(rounds=rounds), dataset, seed, None if like is None else like.world)
    task = world.task
    world = world._replace(task=replace(task, test_inputs=task.test_inputs[:0], test_targets=task.test_targets[:0]))
    apart = _clients if table.on == "clients" else _examples
    made, p = apart(world, table.share, experiment.task.objective)
    return Court(made, p, table.metric)


def _examples(world: World, share: float, objective: str) -> tuple[World, Tensor]:
    """The world with a share of every client's training examples held out."""
    import torch

    from fedsim.data.partition import Parts, hold_out
    from fedsim.task import Held

    task = world.task
    rows, first, size = (each.cpu().numpy() for each in (task.rows, task.first, task.size))
    kept, held = hold_out(Parts(rows, first, size), share, keyed.seed(world.seed, "tune"))
    if held is None:
        raise ValueError(
            '[tune] on = "held-out" needs a client with two examples or more; use on = "clients", or fewer clients'
        )

    def on_device(parts: Parts) -> Held:
        return Held(*(torch.as_tensor(each, device=task.device) for each in (parts.rows, parts.first, parts.size)))

    rest = on_device(kept)
    task = replace(task, rows=rest.rows, first=rest.first, size=rest.size, held=on_device(held))
    p = task.weights(objective)
    return world._replace(task=task, p=p), p


def _clients(world: World, share: float, objective: str) -> tuple[World, Tensor]:
    """The world in which a share of the clients is never there, and validates with all it would have trained on."""
    import torch

    from fedsim.task import Held

    task = world.task
    count = min(max(round(share * task.n), 1), task.n - 1)
    judges = keyed.permutation(keyed.fold(world.seed, "tune"), task.n)[:count].sort().values
    apart = np.zeros(task.n, dtype=bool)
    apart[judges.numpy()] = True
    away = torch.from_numpy(apart).to(task.device)
    size = torch.where(away, task.size, 0)
    rows = task.rows[torch.repeat_interleave(away, task.size)]
    p = task.weights(objective)
    training = torch.where(away, 0.0, p)
    schedule = without(world.schedule, apart)
    task = replace(task, held=Held(rows, size.cumsum(0) - size, size))
    changed: dict[str, Any] = {"schedule": schedule, "rates": schedule.rates(), "p": training / training.sum()}
    return world._replace(task=task, **changed), torch.where(away, p, 0.0)


def without(schedule: Schedule, gone: NDArray[np.bool_]) -> Schedule:
    """The same schedule in which some clients [n] are never there, neither chosen nor available."""
    from fedsim.participation.schedule import Lists

    def lists(kind: Any) -> tuple[Lists, NDArray[np.bool_]]:
        """A schedule's lists without those gone, and which entries were kept; None is everybody."""
        n, rounds = schedule.n, schedule.rounds
        clients = np.tile(np.arange(n, dtype=np.int32), rounds) if kind is None else kind.clients
        first = np.arange(rounds + 1) * n if kind is None else kind.first
        kept = ~gone[clients]
        before = np.concatenate([[0], np.cumsum(kept)])
        return Lists(before[first].astype(np.int64), clients[kept]), kept

    chosen, kept = lists(schedule.chosen)
    available: Any = schedule.available
    if available != "chosen":
        available = lists(None if isinstance(available, str) else available)[0]
    listed = [each if each is None else each[kept] for each in (schedule.effort, schedule.chance)]
    return replace(schedule, chosen=chosen, available=available, effort=listed[0], chance=listed[1])

"""What a room's next steps are fed with: which examples, with which weights, keys and rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.engine.plan import minibatches
from fedsim.engine.traced.recorded import recorded

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.engine.cohort import Cohort
    from fedsim.engine.lanes import Plan
    from fedsim.task import Task


class Served(NamedTuple):
    """Where a room wants what S steps are fed with."""

    places: Tensor  # [S, c, b]  of examples, in the pool
    weights: Tensor  # [S, c, b]  what they count
    keys: Tensor  # [S, c]
    rates: Tensor  # [S, c]     learning rates
    phases: Tensor  # [S, c]     of the cohort's, where there are any


class Feed:
    """Minibatches for S steps of the lanes, written where they are wanted. Planning them is hundreds of operators on
    small tensors of integers, so that is recorded as well."""

    def __init__(self, task: Task, served: Served) -> None:
        import torch

        self._served = served
        self._client, self._size, self._first, self._tau = (  # [S, c]  keys of clients, ...
            torch.zeros_like(served.keys) for _ in range(4)
        )
        self._examples = torch.zeros_like(served.keys, dtype=task.dtype)  # how many count; 0: the lane is idle
        self._uses = 0
        self._recorded: Any = None
        self._rows: Tensor | None = None
        self.enter(task)

    def enter(self, task: Task) -> None:
        """From now on, these are the clients."""
        self._rows = task.rows
        if self._recorded is not None:
            self._recorded.bind((task.rows,))

    def leave(self) -> None:
        """Keeps nothing of the task alive."""
        self._rows = None
        if self._recorded is not None:
            self._recorded.release()

    def fill(self, cohort: Cohort, plan: Plan, segment: slice) -> None:
        """With what the lanes do in these steps of a plan; tells the plan how many examples count in each."""
        job = plan.job[segment]
        self._client.copy_(cohort.keys[job])
        self._size.copy_(cohort.sizes[job])
        self._first.copy_(cohort.task.first[cohort.who[job]])
        self._tau.copy_(plan.tau[segment])
        self._served.rates.copy_(cohort.rates[job])
        if cohort.phased is not None:
            self._served.phases.copy_(cohort.phased.at(job, self._tau))
        self._uses += 1
        if self._recorded is not None:
            self._recorded(1)
        elif self._uses == 2:
            assert self._rows is not None
            written = [*self._served[:3], self._examples]
            self._recorded = recorded(self._plan, written, (self._rows,))
        else:
            self._plan()
        plan.examples[segment] = self._examples

    def _plan(self) -> None:
        assert self._rows is not None
        tau, served = self._tau, self._served
        places, counted, keys = minibatches(
            self._client, self._size, self._first, tau.clamp(min=0), tau >= 0, served.places.shape[-1]
        )
        count = counted.sum(-1)  # [S, c]
        served.places.copy_(self._rows[places])
        served.weights.copy_(counted.to(served.weights.dtype) / count.clamp(min=1)[..., None])
        served.keys.copy_(keys)
        self._examples.copy_(count)

"""What a room's next steps are fed with: which examples, with which weights, keys and rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedsim.engine.plan import minibatches
from fedsim.engine.traced.recorded import recorded

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.engine.cohort import Cohort
    from fedsim.engine.lanes import Plan
    from fedsim.task import Task


class Feed:
    """Minibatches of `batch` examples for `steps` steps of `chunk` lanes. Planning them is hundreds of operators on
    small tensors of integers, so that is recorded as well."""

    def __init__(self, task: Task, steps: int, chunk: int, batch: int) -> None:
        import torch

        def table(*shape: int, dtype: Any = torch.int64) -> Tensor:
            return torch.zeros((steps, chunk, *shape), dtype=dtype, device=task.device)

        self._batch = batch
        self._client, self._size, self._first, self._tau = table(), table(), table(), table()  # keys of clients, ...
        self.places = table(batch)  # [S, c, b]  of examples, in the pool
        self.weights = table(batch, dtype=task.dtype)  # [S, c, b]  what they count
        self.keys = table()  # [S, c]
        self.examples = table(dtype=task.dtype)  # [S, c]  how many count; 0: the lane is idle
        self.rates = table(dtype=task.dtype)  # [S, c]  learning rates
        self.phase = table()  # [S, c]  of the cohort's, where there are any
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
        self.rates.copy_(cohort.rates[job])
        if cohort.phased is not None:
            self.phase.copy_(cohort.phased.at(job, self._tau))
        self._uses += 1
        if self._recorded is not None:
            self._recorded(1)
        elif self._uses == 2:
            assert self._rows is not None
            written = [self.places, self.weights, self.keys, self.examples]
            self._recorded = recorded(self._plan, written, (self._rows,))
        else:
            self._plan()
        plan.examples[segment] = self.examples

    def _plan(self) -> None:
        assert self._rows is not None
        tau = self._tau
        places, counted, keys = minibatches(
            self._client, self._size, self._first, tau.clamp(min=0), tau >= 0, self._batch
        )
        count = counted.sum(-1)  # [S, c]
        self.places.copy_(self._rows[places])
        self.weights.copy_(counted.to(self.weights.dtype) / count.clamp(min=1)[..., None])
        self.keys.copy_(keys)
        self.examples.copy_(count)

"""How many clients side by side? Tried out, on this machine, with this model: `choose` follows a rule instead."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedsim.engine.stacked import Stacked, common

if TYPE_CHECKING:
    from fedsim.local import LocalSGD
    from fedsim.task import Task

STEPS = 3  # of every client in a trial
TIMES = 3  # that a trial is repeated; the quickest counts
CLEAR = 0.97  # of the rule's time, above which the rule's chunk stays


def fastest(task: Task, locals: Iterable[LocalSGD], cohort: float, memory: int = 2**30) -> Stacked:
    """The stacked engine whose chunk trains a cohort of that size in the shortest time, among the one that `choose`
    finds for all of these ways of training and a few smaller and larger ones.

    Takes a second or a few. What comes out depends on the clock: keep it with the run (an experiment does), since
    another chunk gives the same numbers only to rounding. Chunks for which there is no memory are out of the question.
    """
    ways = list(dict.fromkeys(locals))
    first = common(task, ways, cohort, memory)
    chunks = sorted({1, *(max(1, round(first.chunk * factor)) for factor in (0.25, 0.5, 1, 2))})
    taken = {chunk: seconds(Stacked(chunk), task, ways, max(chunks)) for chunk in chunks}
    for _ in range(TIMES - 1):
        for chunk in chunks:
            taken[chunk] = min(taken[chunk], seconds(Stacked(chunk), task, ways, max(chunks)))
    best = min(chunks, key=taken.__getitem__)
    return Stacked(best) if taken[best] < CLEAR * taken[first.chunk] else first


def seconds(engine: Stacked, task: Task, ways: Iterable[LocalSGD], most: int) -> float:
    """What the engine takes for a few steps of some clients, the same for every engine; infinity without memory."""
    import torch

    from fedsim import keyed
    from fedsim.engine import rooms
    from fedsim.engine.plan import Job
    from fedsim.strategy import Work

    who = torch.arange(min(task.n, 2 * most))
    start = task.fresh(0).expand(len(who), -1)
    keys = keyed.fold(0, "trial", who.to(task.device))
    begin = time.perf_counter()
    for local in ways:
        share = torch.tensor([min(1.0, STEPS / max(local.count(task.sizes[i]), 1)) for i in who.tolist()])
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", ".* has no memory for ")  # fewer lanes are another engine
                answer = engine(*Job(task, who, Work(start), keys, local, 0, share))
        except (torch.OutOfMemoryError, UserWarning):
            rooms.clear()
            return float("inf")
        float(answer.loss.sum())  # a device has then done it
    return time.perf_counter() - begin

"""The smallest example in which a law breaks: fewer clients, fewer parameters, fewer rounds, fewer of them present."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

from fedsim.testing.stage import Stage
from fedsim.testing.states import Inapplicable

PATIENCE = 5.0  # seconds


def smallest(attempt: Callable[[Stage], None], stage: Stage, broken: Exception) -> tuple[Stage, Exception]:
    """A stage in which `attempt` raises an exception of the same type as it did (`broken`) on the one given, no smaller
    one of which was found to; and that exception. Greedy: every step that still breaks is taken, for some seconds."""
    until = time.monotonic() + PATIENCE

    def breaks(smaller: Stage) -> Exception | None:
        try:
            attempt(smaller)
        except Inapplicable:
            return None
        except Exception as error:  # the user's code may raise anything; only what it raised before is of interest
            return error if type(error) is type(broken) else None
        return None

    found = True
    while found and time.monotonic() < until:
        found = False
        for smaller in _smaller(stage):
            error = breaks(smaller)
            if error is not None:
                stage, broken, found = smaller, error, True
                break
            if time.monotonic() > until:
                break
    return stage, broken


def _smaller(stage: Stage) -> Iterator[Stage]:
    """Stages a step smaller, the largest steps first. n and P stay different: what is per client has to be told from
    what is per parameter by its shape."""
    for n in range(1, stage.n):
        presence = tuple(tuple(i for i in who if i < n) for who in stage.presence)
        for size in range(1, stage.size + 1):
            if size != n:
                yield dataclasses.replace(stage, n=n, size=size, presence=presence)
    for size in range(1, stage.size):
        if size != stage.n:
            yield dataclasses.replace(stage, size=size)
    rounds = stage.presence
    for length in range(1, len(rounds)):
        yield dataclasses.replace(stage, presence=rounds[:length])
    for t in range(len(rounds)):
        if len(rounds) > 1:
            yield dataclasses.replace(stage, presence=rounds[:t] + rounds[t + 1 :])
    for t, who in enumerate(rounds):
        for i in who:
            fewer = tuple(j for j in who if j != i)
            yield dataclasses.replace(stage, presence=(*rounds[:t], fewer, *rounds[t + 1 :]))

"""The chunk that a trial finds is the quickest that fits, and the rule's where nothing is clearly quicker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from fedsim import LocalSGD, Stacked, federate
from fedsim.engine import choose, fastest, rooms, trial
from fedsim.engine.room import Room

LOCAL = LocalSGD(lr=0.1, steps=7, batch=5)


def task() -> Any:
    return federate("clusters", clients=40, model="logistic")


def test_the_quickest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    clock: dict[int, float] = {}
    asked: list[int] = []

    def seconds(engine: Stacked, task: Any, ways: Iterable[LocalSGD], most: int) -> float:
        asked.append(engine.chunk)
        assert most == 40
        return clock.get(engine.chunk, 1.0)

    monkeypatch.setattr(trial, "seconds", seconds)
    here = task()
    assert choose(here, LOCAL, cohort=20) == Stacked(20)
    for times, chunk in (
        ({}, 20),
        ({5: 0.5}, 5),
        ({40: 0.9, 10: 0.95}, 40),
        ({40: 0.98}, 20),  # not clearly
        ({20: float("inf"), 40: float("inf")}, 1),  # no memory
    ):
        clock = times
        assert fastest(here, [LOCAL, LOCAL], cohort=20) == Stacked(chunk)
    assert set(asked) == {1, 5, 10, 20, 40}


def test_a_trial_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of each way of training; a chunk without memory takes for ever, whatever the engine makes of it."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    here, done = task(), []
    turns = Stacked._turns

    def watched(self: Stacked, cohort: Any, plan: Any) -> None:
        done.append((self.chunk, cohort.steps))
        turns(self, cohort, plan)

    monkeypatch.setattr(Stacked, "_turns", watched)
    other = LocalSGD(lr=0.1, steps=1, batch=5)
    assert 0 < trial.seconds(Stacked(4), here, [LOCAL, other], 6) < 60
    assert done == [(4, [3] * 12), (4, [1] * 12)]
    take = rooms.take

    def small(task: Any, chunk: int, *rest: Any) -> Room:
        if chunk > 2:
            raise torch.OutOfMemoryError("too large")
        return take(task, chunk, *rest)

    monkeypatch.setattr(rooms, "take", small)
    assert trial.seconds(Stacked(4), here, [LOCAL], 6) == float("inf")
    assert trial.seconds(Stacked(2), here, [LOCAL], 6) < 60
    assert fastest(here, [LOCAL], cohort=4).chunk in (1, 2)

"""A round does not wait for the device: strategies are played on one that is not there, and asked for no value."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from elsewhere import DEVICE, Away, Wait, Watched
from helpers import same
from torch import Tensor
from torch.utils._pytree import tree_map

from fedsim import parts, strategies
from fedsim.engine import Answer
from fedsim.participation import Row
from fedsim.simulation import play
from fedsim.strategies import MIFA, FedProx, Personal
from fedsim.strategy import Strategy
from fedsim.testing.stage import Stage
from fedsim.testing.states import contents
from fedsim.testing.strategies import fitting

PRESENCE = ((0, 1, 2, 3, 4, 5), (0, 2), (), (1, 3, 4), (2, 3, 5))  # everybody first: tables have their full length
EFFORT = 0.5  # of the first of a round, from the second round on: a straggler
PICKS = "it chooses who trains, and the host has to know whom"
KNOWN = {
    "BufferedGossip": "who sends to whom, and whose buffer is full, are lists of as many as there are",
    "CAFed": PICKS,
    "ClientCurriculum": PICKS,
    "ClusterFedVARP": "which clusters were heard",
    "F3AST": PICKS,
    "RandomWalk": "the walk's node decides who is asked",
    "SRRW": "the walk's node decides who is asked",
}  # what of a round depends on values by its nature


def here(value: Any) -> Any:
    """The same with its tensors' values, on the host."""
    return tree_map(lambda x: x.values if isinstance(x, Away) else x, value)


def away(value: Any) -> Any:
    """The same on the device."""
    return tree_map(lambda x: Away(x) if isinstance(x, Tensor) else x, value)


def played(strategy: Strategy, stage: Stage, device: torch.device | None = None) -> tuple[list[Any], list[Wait], int]:
    """The states' contents round by round, what was waited for on a device, and how much of that before round 0."""
    n, local, watched = stage.n, stage.training(strategy), Watched()

    def engine(task: Any, who: Tensor, work: Any, keys: Tensor, local: Any, t: int = 0, effort: Any = None) -> Answer:
        answer = stage.clients(task, who, here(work), here(keys), local, t, effort)
        if device is None:
            return answer
        return Answer(who, *map(away, answer[1:]))

    task: Any = SimpleNamespace(device=device or torch.device("cpu"))
    found = []
    x, p = stage.start(strategy), stage.p
    with watched:
        state = strategy.init(*((x, p) if device is None else (Away(x), Away(p))), 7)
        first = len(watched.waits)
        for t, who in enumerate(PRESENCE):
            effort = torch.ones(len(who))
            effort[: t and 1] = EFFORT
            row = Row(torch.arange(n), torch.tensor(who, dtype=torch.int64), effort)
            state, _ = play(task, strategy, engine, local, row, state, t, 3)
            found.append({name: here(value) for name, value in contents(state).items()})
            found[-1] = {name: v.clone() if isinstance(v, Tensor) else v for name, v in found[-1].items()}
    return found, watched.waits, first


def waits(strategy: Strategy) -> tuple[list[Wait], list[Wait]]:
    """What a strategy waits for before the first round, and in its rounds, which are those of the host bit for bit."""
    stage = fitting(strategy)
    strategy = stage.ready(strategy)
    expected, nothing, _ = played(strategy, stage)
    found, waited, first = played(strategy, stage, DEVICE)
    assert nothing == []
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            same(one[name], other[name])
    return waited[:first], waited[first:]


@pytest.mark.parametrize("name", strategies.__all__)
def test_a_round_waits_for_nothing(name: str) -> None:
    _, waited = waits(getattr(strategies, name)())
    assert bool(waited) == (name in KNOWN), waited


@pytest.mark.parametrize(
    "strategy",
    [
        FedProx(mu=0.1, stragglers="drop"),
        FedProx(MIFA(), mu=0.1, stragglers="drop"),
        Personal(keep=("bias",)),
        Personal(MIFA(), keep=("bias",)),
    ],
    ids=repr,
)
def test_stragglers_and_parts_of_a_model_do_not_either(strategy: Strategy) -> None:
    parts.split.cache_clear()
    assert waits(strategy) == ([], [])

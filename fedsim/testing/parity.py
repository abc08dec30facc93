"""A strategy of ours through Flower's messages: `FlowerStrategy` in this process, against the loop."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import numpy as np

from fedsim.strategy import Strategy, core
from fedsim.testing.clients import quadratics
from fedsim.testing.stage import Stage, is_gossip
from fedsim.testing.states import Inapplicable, contents, same

SEED = 3


def flower_gives_the_same(strategy: Strategy, stage: Stage) -> None:
    """As a flwr Strategy over ClientApps, some of whom do not answer, it ends in the state of the loop, bit for bit."""
    if is_gossip(strategy):
        raise Inapplicable("Flower has one model, on a server; gossip has one for each node")
    if type(core(strategy)).pick is not Strategy.pick:
        raise Inapplicable("it picks clients itself, and Flower asks whom it samples")
    if type(core(strategy)).survey is not Strategy.survey:
        raise Inapplicable("it asks its clients before it tells them what to do, and a Flower round has one exchange")
    if importlib.util.find_spec("flwr") is None:
        raise Inapplicable("flwr is not installed")
    from fedsim.engine import Loop
    from fedsim.flower import FlowerStrategy, InProcessGrid, client_app, initial_arrays
    from fedsim.participation import Lists, Schedule
    from fedsim.simulation import simulate

    task = quadratics(stage.clients.a, stage.clients.b)
    counts = [len(who) for who in stage.presence]
    index = np.array([i for who in stage.presence for i in who], dtype=np.int32)
    lists = Lists(np.cumsum([0, *counts]).astype(np.int64), index)
    schedule = Schedule(stage.n, len(counts), lists, "everyone", probabilities=np.full(stage.n, 0.5))
    *_, step = simulate(task, strategy, schedule, stage.local, seed=SEED, engine=Loop())

    asked = dict.fromkeys(range(stage.n), -1)  # the last round in which each was asked to train

    class Lossy(InProcessGrid):
        """Only who is present answers when asked to train."""

        def deliver(self, message: Any) -> Any:
            if message.metadata.message_type == "train":
                client = self.node_ids.index(message.metadata.dst_node_id)
                asked[client] += 1
                if client not in stage.presence[asked[client]]:
                    return None
            return super().deliver(message)

    door = FlowerStrategy(
        strategy, seed=SEED, fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1, num_clients=stage.n
    )
    grid = Lossy(client_app(task, stage.local), stage.n)
    said = logging.getLogger("flwr")
    level = said.level
    said.setLevel(logging.ERROR)
    try:
        door.start(grid, initial_arrays(task, SEED), num_rounds=len(counts))
    finally:
        said.setLevel(level)
    same(contents(door.state), contents(step.state), "through Flower, where the loop ends with")

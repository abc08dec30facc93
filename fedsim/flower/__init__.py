"""Flower: the only room that imports flwr. Everything here stands on flwr's public message API.

    client_app(task, local)        our clients as a flwr ClientApp
    over(grid)                     an engine for `simulate`: the training travels through any flwr Grid to ClientApps
    FlowerStrategy(strategy)       a server strategy of ours as a flwr Strategy, in anybody's ServerApp
    CohortGrid(task, local)        a flwr Grid that trains the clients asked at once: any flwr Strategy on our engines
    rounds(strategy, grid, ...)    a flwr Strategy over a CohortGrid, round by round, never waiting
    runtimes.simulation(app, n)    Flower's simulation runtime (Ray) as such a Grid; `fedsim run --on ...` uses it
    app.server, app.client         an experiment file as a Flower app: `flwr run .`
    InProcessGrid(app, n)          a flwr Grid that calls a ClientApp directly, in this process: no SuperLink, no Ray
    initial_arrays(task, seed)     the model that `fedsim.simulate` with the same seed starts from, as flwr wants it

With the same task, local training and seed, FlowerStrategy and `over`, on client_app, give the numbers of
`fedsim.simulate` with the `Loop` engine, bit for bit, for whoever answers.
"""

from __future__ import annotations

from fedsim.flower.client import client_app, initial_arrays, with_query
from fedsim.flower.cohort import CohortGrid
from fedsim.flower.drive import rounds
from fedsim.flower.grid import InProcessGrid
from fedsim.flower.over import Over, over
from fedsim.flower.replies import Absence
from fedsim.flower.strategy import FlowerStrategy

__all__ = [
    "Absence",
    "CohortGrid",
    "FlowerStrategy",
    "InProcessGrid",
    "Over",
    "client_app",
    "initial_arrays",
    "over",
    "rounds",
    "with_query",
]

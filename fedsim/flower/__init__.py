"""Flower: the only room that imports flwr. Everything here stands on flwr's public message API.

    client_app(task, local)        our clients as a flwr ClientApp
    FlowerStrategy(strategy)       a server strategy of ours as a flwr Strategy, in anybody's ServerApp
    InProcessGrid(app, n)          a flwr Grid that calls a ClientApp directly, in this process: no SuperLink, no Ray
    initial_arrays(task, seed)     the model that `fedsim.simulate` with the same seed starts from, as flwr wants it

With the same task, local training and seed, FlowerStrategy over client_app gives the numbers of `fedsim.simulate`
with the `Loop` engine, bit for bit, for whoever answers.
"""

from __future__ import annotations

from fedsim.flower.client import client_app, initial_arrays
from fedsim.flower.grid import InProcessGrid
from fedsim.flower.strategy import Absence, FlowerStrategy

__all__ = ["Absence", "FlowerStrategy", "InProcessGrid", "client_app", "initial_arrays"]

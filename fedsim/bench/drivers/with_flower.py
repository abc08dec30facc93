"""Flower's simulation runtime: its FedAvg, one SuperNode per client, ClientApps in Ray actors of one core each.

The actors import this file by its name and read the workload from the folder in FEDSIM_BENCH_WORLD, once each: only
models travel. A client does what `fedsim.bench.plain` does with it.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.bench.drivers.child import Turns, World

FOLDER = "FEDSIM_BENCH_WORLD"


def drive(world: World, turns: Turns) -> None:
    """Flower owns the loop: it takes turns where its strategy sets up a round."""
    here = str(Path(__file__).resolve().parent)
    sys.path.append(here)
    os.environ |= {
        FOLDER: str(world.folder), "PYTHONPATH": here, "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }  # fmt: skip
    importlib.import_module("with_flower").run(world, turns)


def run(world: World, turns: Turns) -> None:
    """As `drive`, in the module that the actors know."""
    import torch
    from flwr.app import ArrayRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    torch.set_num_threads(1)
    n, actors = len(world.rows), int(world.setting["actors"])
    module = world.module()
    now: list[Any] = [ArrayRecord(module.state_dict())]

    class Strategy(FedAvg):
        """Flower's, in turns."""

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            """The round before is over."""
            now[:] = [arrays]
            turns.lap()
            return super().configure_train(server_round, arrays, config, grid)

    def model() -> Any:
        module.load_state_dict(now[0].to_torch_state_dict())
        return torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()

    server, client = ServerApp(), ClientApp()
    client.train()(train)

    @server.main()
    def main(grid: Any, context: Any) -> None:
        strategy = Strategy(fraction_train=world.workload["present"] / n, fraction_evaluate=0.0)
        strategy.start(grid=grid, initial_arrays=now[0], num_rounds=len(world.cohorts), timeout=600)

    turns.model = model
    turns.versions("flwr", "ray", "torch", "numpy")
    backend: Any = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": actors, "num_gpus": 0, "include_dashboard": False, "log_to_driver": False},
    }
    run_simulation(server, client, num_supernodes=n, backend_config=backend)


@functools.cache
def own() -> tuple[Any, ...]:
    """What an actor keeps from message to message."""
    import numpy as np
    import torch

    child = importlib.import_module("child")
    torch.set_num_threads(1)
    world = child.read(Path(os.environ[FOLDER]), {})
    draw = np.random.default_rng([1, os.getpid()])
    return world, world.module(), torch.from_numpy(world.normalised()), torch.from_numpy(world.targets), draw


def train(message: Any, context: Any) -> Any:
    """A client's turn."""
    import torch
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    world, module, inputs, targets, draw = own()
    work = world.workload
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    params = list(module.parameters())
    data = [value.data for value in params]
    places = torch.from_numpy(world.minibatches(int(context.node_config["partition-id"]), draw).reshape(-1))
    for x, y in zip(inputs[places].split(work["batch"]), targets[places].split(work["batch"]), strict=True):
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(module(x), y), params)
        torch._foreach_add_(data, gradients, alpha=-work["lr"])
    content = RecordDict(
        {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": world.rows.shape[1]})}
    )
    return Message(content=content, reply_to=message)

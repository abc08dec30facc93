"""pfl-research on CIFAR-10, as a process that plays a round when told to: see ../gpu_cifar10.py.

Runs in pfl's own environment, which has no fedsim: driven by fedsim/bench/drivers/child.py, whose `drive` it is.
"""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fedsim.bench.drivers.child import Turns, World


def network(shape: tuple[int, int, int], first: Any = None) -> Any:
    """The CNN of pfl's benchmark in plain torch, as fedsim.models.PFLCNN lays it out; with the parameters `first`."""
    import torch
    from torch import nn

    channels, height, width = shape
    features = 64 * ((height - 4) // 2) * ((width - 4) // 2)
    module = nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip
    if first is not None:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(np.array(first)), module.parameters())
    return module


def drive(world: World, turns: Turns) -> None:
    """pfl's loop as `fedsim bench` drives it. Examples, and the order in which they are gone through, lie on its
    device from the start."""
    import torch
    from pfl.internal.ops.pytorch_ops import get_default_device

    device = get_default_device()
    if device.type != world.setting["device"]:
        raise SystemExit(f"pfl trains on {device.type}, not on {world.setting['device']}")
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(world.setting["seed"])
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (world.mean, world.std))
    inputs = ((torch.from_numpy(world.inputs).float() / 255 - mean) / std).to(device)
    targets = torch.from_numpy(world.targets).to(device)
    orders = torch.from_numpy(np.load(world.folder / "orders.npy")).flatten(0, 1).to(device)
    module = network(tuple(inputs.shape[1:]), world.first).to(device)
    for layer in module:
        if isinstance(layer, torch.nn.Dropout):
            layer.p *= world.setting["dropout"]  # 0: none

    def loss(x: Any, y: Any) -> Any:
        module.train()  # at every step, as pfl's own benchmark does
        return torch.nn.functional.cross_entropy(module(x), y)

    module.loss = loss
    # the user asked for in a turn is known by the turn: a user's minibatches differ from round to round
    run = runpy.run_path(str(Path(inspect.getfile(type(world))).with_name("with_pfl.py")))["run"]
    run(world, turns, module, lambda turn: (inputs[orders[turn]], targets[orders[turn]]), iter(range(len(orders))))

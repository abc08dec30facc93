"""FedLab: its standalone pipeline, serial trainer and synchronous server. It imports torchvision for data sets that are
not used here; an empty module stands in, so that all have the same torch."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.bench.drivers.child import Turns, World


def drive(world: World, turns: Turns) -> None:
    """FedLab owns the loop: it takes turns where the pipeline evaluates."""
    import warnings

    warnings.simplefilter("ignore")
    for name in ("torchvision", "torchvision.transforms", "torchvision.datasets"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision"].__dict__["transforms"] = sys.modules["torchvision.transforms"]
    sys.modules["torchvision"].__dict__["datasets"] = sys.modules["torchvision.datasets"]
    import numpy as np
    import torch
    from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
    from fedlab.contrib.algorithm.basic_server import SyncServerHandler
    from fedlab.core.standalone import StandalonePipeline

    torch.set_num_threads(int(world.setting["threads"]))
    work, n = world.workload, len(world.rows)
    inputs, targets = torch.from_numpy(world.normalised()), torch.from_numpy(world.targets)
    draw = np.random.default_rng(1)
    cohorts = iter(world.cohorts)

    class Data:
        """What FedLab asks for a client's minibatches, without the cost of a DataLoader."""

        def get_dataloader(self, i: int, batch: int) -> Any:
            """All of a round's, in one pass."""
            places = torch.from_numpy(world.minibatches(i, draw).reshape(-1))
            return list(zip(inputs[places].split(batch), targets[places].split(batch), strict=True))

    class Server(SyncServerHandler):  # type: ignore[misc]
        """FedLab's, with the workload's cohorts."""

        def sample_clients(self) -> Any:
            """Who is there."""
            return [int(i) for i in next(cohorts)]

    class Pipeline(StandalonePipeline):  # type: ignore[misc]
        """FedLab's, in turns."""

        def evaluate(self) -> None:
            """A round is over."""
            turns.lap()

    trainer = SGDSerialClientTrainer(world.module(), n)
    trainer.setup_dataset(Data())
    trainer.setup_optim(1, work["batch"], work["lr"])
    server = Server(world.module(), len(world.cohorts), work["present"] / n)
    turns.model = lambda: server.model_parameters.numpy()
    turns.versions("fedlab", "torch", "numpy")
    turns.lap()
    Pipeline(server, trainer).main()

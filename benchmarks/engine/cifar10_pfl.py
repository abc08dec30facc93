"""pfl-research on CIFAR-10, as a process that plays a round when told to: see ../gpu_cifar10.py.

Runs in pfl's own environment, which has no fedsim: driven by fedsim/bench/drivers/child.py, whose `drive` it is.
"""

from __future__ import annotations

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
    """pfl owns the loop and takes turns in its hook after a round. Its examples lie on its device from the start."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.internal.ops.pytorch_ops import get_default_device
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    device = get_default_device()
    if device.type != world.setting["device"]:
        raise SystemExit(f"pfl trains on {device.type}, not on {world.setting['device']}")
    if device.type == "cpu":
        torch.set_num_threads(1)
    work = world.workload
    inputs = torch.from_numpy(world.normalised()).to(device)
    targets = torch.from_numpy(world.targets).to(device)
    module = network(tuple(inputs.shape[1:]), world.first).to(device)

    def loss(x: Any, y: Any) -> Any:
        module.train()
        return torch.nn.functional.cross_entropy(module(x), y)

    def metrics(x: Any, y: Any) -> Any:  # asked for once, in the first round
        module.eval()
        with torch.no_grad():
            return {"loss": Weighted(float(torch.nn.functional.cross_entropy(module(x), y)) * len(y), len(y))}

    module.loss, module.metrics = loss, metrics
    draw = np.random.default_rng(1)

    def holds(user: int) -> Any:  # in the order in which this turn goes through them
        places = torch.from_numpy(world.minibatches(user, draw).reshape(-1)).to(device)
        return PyTorchTensorDataset((inputs[places], targets[places]), user_id=str(user))

    class Turn(TrainingProcessCallback):  # type: ignore[misc]
        """Where pfl tells that a round is over."""

        def on_train_begin(self, *, model: Any) -> Any:
            """All is set up."""
            return self.lap()

        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            """A round is over."""
            return False, self.lap()

        def lap(self) -> Any:
            """When the device is done."""
            if device.type == "cuda":
                torch.cuda.synchronize()
            turns.lap()
            return Metrics()

    users = (int(i) for cohort in world.cohorts for i in cohort)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    backend = SimulatedBackend(FederatedDataset(holds, lambda: next(users)), None)
    turns.model = lambda: torch.nn.utils.parameters_to_vector(module.parameters()).detach().cpu().numpy()
    turns.versions("pfl", "torch", "numpy")
    rounds = len(world.cohorts)
    FederatedAveraging().run(
        NNAlgorithmParams(rounds, rounds + 1, work["present"], 0), backend, model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=work["lr"], local_batch_size=work["batch"]),
        NNEvalHyperParams(local_batch_size=None), callbacks=[Turn()], send_metrics_to_platform=False,
    )  # fmt: skip

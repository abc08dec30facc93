"""Apple's pfl-research: its simulated backend and its loop. With several processes, ranks of its own distributed mode,
each with its share of the cohort."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.bench.drivers.child import Turns, World


def drive(world: World, turns: Turns) -> None:
    """pfl owns the loop: it takes turns in its hook after a round."""
    rank, processes = 0, int(world.setting.get("processes", 1))
    gates: list[tuple[int, int]] = []  # a pipe for each other rank, which waits at its end between turns
    if processes > 1:
        gates = [os.pipe() for _ in range(1, processes)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{free.getsockname()[1]}"
        for other in range(1, processes):  # before torch is there: nothing in it survives a fork badly
            if os.fork() == 0:
                rank = other
                break
        os.environ |= {
            "PFL_WORKER_RANK": str(rank), "PFL_WORKER_ADDRESSES": ",".join([place] * processes),
            "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
    import numpy as np
    import torch

    torch.set_num_threads(int(world.setting.get("threads", 1)))
    inputs, targets = torch.from_numpy(world.normalised()), torch.from_numpy(world.targets)
    module = world.module()
    module.loss = lambda x, y: torch.nn.functional.cross_entropy(module(x), y)
    draw = np.random.default_rng([1, rank])

    def holds(user: int) -> Any:  # a client's examples, as often and in the order in which it goes through them
        places = torch.from_numpy(world.minibatches(user, draw).reshape(-1))
        return inputs[places], targets[places]

    users = (int(i) for cohort in world.cohorts for i in cohort)

    def lap() -> None:  # the first rank speaks for all; without a gate the others would train on in others' turns
        if rank == 0:
            turns.lap()
            for _, write in gates:
                os.write(write, b".")
        elif not os.read(gates[rank - 1][0], 1):
            os._exit(0)

    if rank:
        for _, write in gates:
            os.close(write)
    run(world, turns, module, holds, users, lap)


def run(
    world: World, turns: Turns, module: Any, holds: Callable[[int], Any], users: Iterator[int],
    lap: Callable[[], None] | None = None,
) -> None:  # fmt: skip
    """All rounds with a module that has a `loss`; `holds` gives the inputs and targets of a user, in the order in which
    they make minibatches. After each `lap` is called: the turns' own if None."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    work = world.workload
    on_gpu = any(value.is_cuda for value in module.parameters())

    def metrics(x: Any, y: Any) -> Any:  # asked for once, in the first round
        with torch.no_grad():
            return {"loss": Weighted(float(module.loss(x, y)) * len(y), len(y))}

    module.metrics = metrics

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
            if on_gpu:
                torch.cuda.synchronize()
            (lap or turns.lap)()
            return Metrics()

    def dataset(user: int) -> Any:
        return PyTorchTensorDataset(holds(user), user_id=str(user))

    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    backend = SimulatedBackend(FederatedDataset(dataset, lambda: next(users)), None)
    turns.model = lambda: torch.nn.utils.parameters_to_vector(module.parameters()).detach().cpu().numpy()
    turns.versions("pfl", "torch", "numpy")
    rounds = len(world.cohorts)
    FederatedAveraging().run(
        NNAlgorithmParams(rounds, rounds + 1, work["present"], 0), backend, model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=work["lr"], local_batch_size=work["batch"]),
        NNEvalHyperParams(local_batch_size=None), callbacks=[Turn()], send_metrics_to_platform=False,
    )  # fmt: skip
